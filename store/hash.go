package store

import (
	"bytes"
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash"

	"github.com/cockroachdb/pebble/v2"

	"github.com/dunlin-iot/dunlin"
)

// Hash sums up what applying a shard's log has made, as of index: the same on all replicas that have applied as much,
// however the entries came in batches or in a snapshot, and whatever Pebble has done with them since. It reads all of the
// shard, row by row.
//
// It leaves out what each node does by itself: the archive, applied indexes, dead letters (a node drops some when it has too
// many), and history that its domain's retention lets go of, or will within six hours. Two nodes' hashes may therefore
// differ for a moment when such a row of history comes of age: ask again before you believe in a difference.
func (s *State) Hash(sh dunlin.ShardID) (sum [32]byte, index uint64, err error) {
	return s.hashUntil(sh, func() error { return nil })
}

// HashContext is Hash that ends early, with ctx's error, when ctx ends.
func (s *State) HashContext(ctx context.Context, sh dunlin.ShardID) (sum [32]byte, index uint64, err error) {
	return s.hashUntil(sh, func() error { return context.Cause(ctx) })
}

func (s *State) hashUntil(sh dunlin.ShardID, over func() error) (sum [32]byte, index uint64, err error) {
	if err := s.check(sh); err != nil {
		return sum, 0, err
	}
	s.apply.Lock()
	index = s.applied[sh].Load()
	span := shardSpan(sh)
	it, err := s.eng.NewIter(&pebble.IterOptions{LowerBound: span.Start, UpperBound: span.End})
	s.apply.Unlock()
	if err == nil {
		sum, err = s.hash(it, over)
		err = cmp.Or(err, it.Close())
	}
	if err != nil {
		return sum, 0, fmt.Errorf("hash of shard %d: %w", sh, err)
	}
	return sum, index, nil
}

// hashLook is after how many rows it is asked whether anybody still waits for the hash.
const hashLook = 1024

func (s *State) hash(it *pebble.Iterator, over func() error) (sum [32]byte, err error) {
	old, err := s.newExpiry(it)
	if err != nil {
		return sum, err
	}
	defer old.close()
	h := sha256.New()
	rows := 0
	for ok := it.First(); ok; ok = it.Next() {
		if rows++; rows%hashLook == 0 {
			if err := over(); err != nil {
				return sum, err
			}
		}
		key := it.Key()
		switch key[2] {
		case tabApplied, tabDead, tabSegment, tabSegData:
			continue
		case tabReadings:
			if gone, err := old.covers(key); err != nil || gone {
				if err != nil {
					return sum, err
				}
				continue
			}
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return sum, err
		}
		hashField(h, key[2:])
		hashField(h, v)
	}
	return [32]byte(h.Sum(nil)), it.Error()
}

func hashField(h hash.Hash, b []byte) {
	var size [8]byte
	binary.BigEndian.PutUint64(size[:], uint64(len(b)))
	h.Write(size[:])
	h.Write(b)
}

// expiry tells which rows of history a domain's retention takes away, here or elsewhere. A nil one takes none.
type expiry struct {
	it     *pebble.Iterator // of the same moment as the one that walks
	state  *State
	now    dunlin.Time
	device []byte // names of the device that bucket is of
	bucket int64  // the newest that goes
	any    bool
}

func (s *State) newExpiry(it *pebble.Iterator) (*expiry, error) {
	if s.retention == nil {
		return nil, nil
	}
	own, err := it.Clone(pebble.CloneOptions{})
	return &expiry{it: own, state: s, now: s.clock()}, err
}

func (p *expiry) close() {
	if p != nil {
		_ = p.it.Close()
	}
}

func (p *expiry) covers(key []byte) (bool, error) {
	if p == nil {
		return false, nil
	}
	end := len(key) - 8
	at, _, err := cutTime(key[max(end, keyHead):])
	if err != nil {
		return false, err
	}
	if names := key[keyHead:end]; !bytes.Equal(names, p.device) {
		p.device = append(p.device[:0], names...)
		if err := p.look(key[:2]); err != nil {
			return false, err
		}
	}
	return p.any && int64(at) <= p.bucket, nil
}

// look finds out how long the device's history is kept.
func (p *expiry) look(shard []byte) error {
	p.any = false
	key := append(append(bytes.Clone(shard), tabDevice), p.device...)
	if !p.it.SeekGE(key) || !bytes.Equal(p.it.Key(), key) {
		return p.it.Error()
	}
	v, err := p.it.ValueAndErr()
	if err != nil {
		return err
	}
	var st dunlin.DeviceState
	if _, err := decodeState(&st, v); err != nil {
		return err
	}
	if age := p.state.retention(st.Tenant, st.Domain); age > 0 {
		p.any, p.bucket = true, bucketOf(p.now.Add(-age))
	}
	return nil
}
