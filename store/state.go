package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"github.com/dunlin-iot/dunlin"
)

// State is what applying the log makes: one engine for all shards. One goroutine applies at a time; any may read.
type State struct {
	eng     engine
	shards  int
	shardOf func(dunlin.DeviceKey) dunlin.ShardID // nil: unknown
	applied []atomic.Uint64                       // in memory; published after the batch is committed
	durable []atomic.Uint64                       // on disk
	cut     []atomic.Uint64                       // on disk, and in the archive if there is one
	confs   struct {
		sync.RWMutex
		of [][]byte
	}
	apply    applier
	onCommit func([]appliedEntry) // journal, archive and Config.OnApplied, in that order
	metrics  *metrics
}

func openState(eng engine, shards int) (*State, error) {
	s := &State{eng: eng, shards: shards}
	s.applied = make([]atomic.Uint64, shards)
	s.durable = make([]atomic.Uint64, shards)
	s.cut = make([]atomic.Uint64, shards)
	s.confs.of = make([][]byte, shards)
	s.apply.next = make([]shardStep, shards)
	durable, err := eng.NewIter(&pebble.IterOptions{OnlyReadGuaranteedDurable: true})
	if err != nil {
		return nil, err
	}
	defer durable.Close()
	for i := range shards {
		shard := dunlin.ShardID(i)
		key := appendHead(nil, shard, tabApplied)
		v, ok, err := get(eng, key)
		if err != nil {
			return nil, err
		}
		if ok && len(v) != 8 {
			return nil, fmt.Errorf("%w: applied index of %d bytes", dunlin.ErrInvalid, len(v))
		}
		if ok {
			s.applied[i].Store(binary.BigEndian.Uint64(v))
		}
		s.apply.next[i].applied = s.applied[i].Load()
		if durable.SeekGE(key) && bytes.Equal(durable.Key(), key) && len(durable.Value()) == 8 {
			s.durable[i].Store(binary.BigEndian.Uint64(durable.Value()))
		}
		if s.confs.of[i], _, err = get(eng, appendHead(nil, shard, tabConf)); err != nil {
			return nil, err
		}
	}
	return s, durable.Error()
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
	st, tombs, err := decodeState(v)
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

// TimersDue returns armed timers that are due before a moment, oldest first, at most limit, and when the first one that it
// left out is due (0 if there is none).
func (s *State) TimersDue(shard dunlin.ShardID, before dunlin.Time, limit int) (due []dunlin.DueTimer, next dunlin.Time, err error) {
	if err := s.check(shard); err != nil {
		return nil, 0, err
	}
	head := appendHead(nil, shard, tabTimer)
	it, err := s.eng.NewIter(&pebble.IterOptions{LowerBound: head, UpperBound: after(head)})
	if err != nil {
		return nil, 0, fmt.Errorf("timers of shard %d: %w", shard, err)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		t, err := cutTimer(it.Key())
		if err != nil {
			return nil, 0, fmt.Errorf("timers of shard %d: %w", shard, err)
		}
		if t.Due >= before || len(due) >= limit {
			return due, t.Due, nil
		}
		due = append(due, t)
	}
	if err := it.Error(); err != nil {
		return nil, 0, fmt.Errorf("timers of shard %d: %w", shard, err)
	}
	return due, 0, nil
}

func cutTimer(key []byte) (t dunlin.DueTimer, err error) {
	var tenant, device string
	b := key[keyHead:]
	if t.Due, b, err = cutTime(b); err != nil {
		return t, err
	}
	if tenant, b, err = cutName(b); err != nil {
		return t, err
	}
	if device, b, err = cutName(b); err != nil {
		return t, err
	}
	t.DeviceKey = dunlin.DeviceKey{Tenant: dunlin.Tenant(tenant), Device: dunlin.DeviceID(device)}
	t.Name, _, err = cutName(b)
	return t, err
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
