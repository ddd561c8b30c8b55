package store

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/dunlin-iot/dunlin"
)

// State is what applying the log makes: one engine for all shards. One goroutine applies at a time; any may read.
type State struct {
	eng       engine
	shards    int
	shardOf   func(dunlin.DeviceKey) dunlin.ShardID // nil: unknown
	clock     func() dunlin.Time                    // as Config's, and so is the next
	retention func(dunlin.Tenant, dunlin.DomainID) time.Duration
	applied   []atomic.Uint64 // in memory; published after the batch is committed
	durable   []atomic.Uint64 // on disk
	cut       []atomic.Uint64 // on disk, and in the archive if there is one
	confs     struct {
		sync.RWMutex
		of [][]byte
	}
	apply    applier
	hot      []hotTimers          // by shard
	onCommit func([]appliedEntry) // journal, archive and Config.OnApplied, in that order
}

func openState(eng engine, shards int) (*State, error) {
	s := &State{eng: eng, shards: shards}
	s.applied = make([]atomic.Uint64, shards)
	s.durable = make([]atomic.Uint64, shards)
	s.cut = make([]atomic.Uint64, shards)
	s.confs.of = make([][]byte, shards)
	s.apply.next = make([]shardStep, shards)
	s.hot = make([]hotTimers, shards)
	if err := loadApplied(eng, s.applied, nil); err != nil {
		return nil, err
	}
	if err := loadApplied(eng, s.durable, &pebble.IterOptions{OnlyReadGuaranteedDurable: true}); err != nil {
		return nil, err
	}
	for i := range shards {
		s.apply.next[i].applied = s.applied[i].Load()
		s.durable[i].Store(min(s.durable[i].Load(), s.applied[i].Load()))
		var err error
		if s.confs.of[i], _, err = get(eng, appendHead(nil, dunlin.ShardID(i), tabConf)); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// allShards is the shard in the key of what belongs to none; ShardsMax keeps it free.
const allShards dunlin.ShardID = 0xffff

// loadApplied fills applied indexes, of each shard the larger of two rows: the one that all batches merge into, because that
// makes one row of a batch of many shards, and the shard's own, which is there for a shard that came whole from elsewhere.
func loadApplied(eng engine, applied []atomic.Uint64, o *pebble.IterOptions) error {
	it, err := eng.NewIter(o)
	if err != nil {
		return err
	}
	defer it.Close()
	read := func(shard dunlin.ShardID) ([]appliedIndex, error) {
		key := appendHead(nil, shard, tabApplied)
		if !it.SeekGE(key) || !bytes.Equal(it.Key(), key) {
			return nil, it.Error()
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return nil, err
		}
		return cutApplied(nil, v)
	}
	for i := range len(applied) + 1 {
		shard := dunlin.ShardID(i)
		if i == len(applied) {
			shard = allShards
		}
		rows, err := read(shard)
		if err != nil {
			return err
		}
		for _, r := range rows {
			if int(r.shard) < len(applied) {
				applied[r.shard].Store(max(applied[r.shard].Load(), r.index))
			}
		}
	}
	return nil
}

func (s *State) check(shard dunlin.ShardID) error {
	if int(shard) >= s.shards {
		return fmt.Errorf("%w: shard %d, there are %d", dunlin.ErrInvalid, shard, s.shards)
	}
	return nil
}

// Applied returns the index of the last entry of the shard that was applied. A crash may take it back to Durable.
func (s *State) Applied(shard dunlin.ShardID) uint64 {
	if s.check(shard) != nil {
		return 0
	}
	return s.applied[shard].Load()
}

// Durable returns the index up to which the shard's log may be truncated: what these entries made is on disk for certain,
// and so is their archive, if one is kept. DB.Maintain moves it on.
func (s *State) Durable(shard dunlin.ShardID) uint64 {
	if s.check(shard) != nil {
		return 0
	}
	return s.cut[shard].Load()
}

// Conf returns the last Committed.Conf that was applied, nil if there was none.
func (s *State) Conf(shard dunlin.ShardID) []byte {
	if s.check(shard) != nil {
		return nil
	}
	s.confs.RLock()
	defer s.confs.RUnlock()
	return s.confs.of[shard]
}

// LoadDevice returns the state of a device, and whether the shard knows it. A device that was registered and has never
// sent anything has Version 0.
func (s *State) LoadDevice(shard dunlin.ShardID, key dunlin.DeviceKey) (*dunlin.DeviceState, bool, error) {
	if err := s.check(shard); err != nil {
		return nil, false, err
	}
	return loadDevice(s.eng, shard, key)
}

func loadDevice(r pebble.Reader, shard dunlin.ShardID, key dunlin.DeviceKey) (*dunlin.DeviceState, bool, error) {
	v, ok, err := get(r, appendDevice(nil, shard, tabDevice, key))
	if err != nil || !ok {
		return nil, false, wrapDevice("load", key, err)
	}
	st := &dunlin.DeviceState{}
	tombs, err := decodeState(st, v)
	if err != nil {
		return nil, false, wrapDevice("load", key, err)
	}
	if tombs {
		whole := &dunlin.DeviceState{}
		whole.Merge(st, true)
		st = whole
	}
	return st, true, nil
}

func wrapDevice(op string, key dunlin.DeviceKey, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s device %s: %w", op, key, err)
}

// Row returns a row of the registry.
func (s *State) Row(shard dunlin.ShardID, table, key string) ([]byte, bool, error) {
	if err := s.check(shard); err != nil {
		return nil, false, err
	}
	v, ok, err := get(s.eng, appendRow(nil, shard, table, key))
	if err != nil {
		return nil, false, fmt.Errorf("row %s of %s: %w", key, table, err)
	}
	return v, ok, nil
}

// Rows returns rows of a table of the registry whose keys begin with prefix and come after a key, in order of their
// keys, at most limit (0: all).
func (s *State) Rows(shard dunlin.ShardID, table, prefix, afterKey string, limit int) ([]dunlin.Put, error) {
	if err := s.check(shard); err != nil {
		return nil, err
	}
	var rows []dunlin.Put
	head := appendRow(nil, shard, table, "")
	err := s.keys(appendRow(nil, shard, table, prefix), appendRow(nil, shard, table, afterKey), func(key, value []byte) bool {
		rows = append(rows, dunlin.Put{Table: table, Key: string(key[len(head):]), Value: bytes.Clone(value)})
		return limit <= 0 || len(rows) < limit
	})
	if err != nil {
		return nil, fmt.Errorf("rows of %s: %w", table, err)
	}
	return rows, nil
}

// DevicesOf returns ids of the shard's devices that belong to a domain, begin with prefix and come after an id, in order,
// at most limit (0: all).
func (s *State) DevicesOf(shard dunlin.ShardID, q dunlin.DevicesQuery, afterID dunlin.DeviceID) ([]dunlin.DeviceID, error) {
	if err := s.check(shard); err != nil {
		return nil, err
	}
	var ids []dunlin.DeviceID
	head := appendDomain(nil, shard, q.Tenant, q.Domain, "")
	from := appendDomain(nil, shard, q.Tenant, q.Domain, afterID)
	err := s.keys(append(slices.Clip(head), q.Prefix...), from, func(key, _ []byte) bool {
		ids = append(ids, dunlin.DeviceID(key[len(head):]))
		return q.Limit <= 0 || len(ids) < q.Limit
	})
	if err != nil {
		return nil, fmt.Errorf("devices of domain %s: %w", q.Domain, err)
	}
	return ids, nil
}

// keys yields the rows whose keys begin with prefix and are greater than from.
func (s *State) keys(prefix, from []byte, yield func(key, value []byte) bool) error {
	it, err := s.eng.NewIter(&pebble.IterOptions{LowerBound: prefix, UpperBound: after(prefix)})
	if err != nil {
		return err
	}
	defer it.Close()
	ok := it.SeekGE(from)
	if ok && bytes.Equal(it.Key(), from) && !bytes.Equal(from, prefix) {
		ok = it.Next()
	}
	for ; ok; ok = it.Next() {
		v, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if !yield(it.Key(), v) {
			return nil
		}
	}
	return it.Error()
}

// cutDeviceKey reads the key of a row of dunlin.TableDevices.
func cutDeviceKey(key string) (dunlin.DeviceKey, bool) {
	tenant, device, ok := strings.Cut(key, "/")
	return dunlin.DeviceKey{Tenant: dunlin.Tenant(tenant), Device: dunlin.DeviceID(device)}, ok && tenant != "" && device != ""
}

// errStop ends a walk early.
var errStop = errors.New("stop")
