package store

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/entry"
)

// appendLetter is a dead letter's bytes: an entry with one change that has the one input and the one stage that failed on it.
func appendLetter(dst []byte, e *dunlin.Entry, c *dunlin.Change, st *dunlin.StageResult, reason string, input int) []byte {
	return entry.Append(dst, &dunlin.Entry{Shard: e.Shard, Term: e.Term, At: e.At, Changes: []dunlin.Change{{
		DeviceKey: c.DeviceKey, Domain: c.Domain, Version: c.Seq(input), Inputs: c.Inputs[input : input+1],
		Stages: []dunlin.StageResult{{Stage: st.Stage, Hash: st.Hash, Failure: reason}}}}})
}

func cutLetter(b []byte) (dunlin.DeadLetter, error) {
	e, err := entry.Decode(b)
	if err != nil {
		return dunlin.DeadLetter{}, err
	}
	if len(e.Changes) != 1 || len(e.Changes[0].Inputs) != 1 || len(e.Changes[0].Stages) != 1 {
		return dunlin.DeadLetter{}, fmt.Errorf("%w: dead letter without its input", dunlin.ErrInvalid)
	}
	c := &e.Changes[0]
	return dunlin.DeadLetter{DeviceKey: c.DeviceKey, Domain: c.Domain, Hash: c.Stages[0].Hash, Stage: c.Stages[0].Stage,
		Seq: c.Version, At: e.At, Reason: c.Stages[0].Failure, Input: c.Inputs[0]}, nil
}

// DeadLetters lists the dead letters of some shards (nil: all), newest first. An empty tenant means the default one.
func (s *State) DeadLetters(shards []dunlin.ShardID, q dunlin.DeadLettersQuery) ([]dunlin.DeadLetter, error) {
	q.Limit = limitOf(q.Limit, 100, 1000)
	q.Tenant = cmp.Or(q.Tenant, dunlin.DefaultTenant)
	shards, err := s.those(shards)
	if err != nil {
		return nil, err
	}
	var newest []dunlin.DeadLetter
	for _, sh := range shards {
		key := dunlin.DeviceKey{Tenant: q.Tenant, Device: q.Device}
		prefix := appendName(appendHead(nil, sh, tabDead), q.Tenant)
		if q.Device != "" {
			prefix = appendDevice(nil, sh, tabDead, key)
		}
		var inner error
		err := s.keys(prefix, prefix, func(_, v []byte) bool {
			newest, inner = appendNewest(newest, v, q.Limit)
			return inner == nil
		})
		if err = cmp.Or(err, inner); err != nil {
			return nil, fmt.Errorf("dead letters of shard %d: %w", sh, err)
		}
	}
	newest = keepNewest(newest, q.Limit)
	for i := range newest { // what was decoded points into a row of which perhaps little is left
		newest[i] = cloneLetter(newest[i])
	}
	return newest, nil
}

func appendNewest(dst []dunlin.DeadLetter, row []byte, limit int) ([]dunlin.DeadLetter, error) {
	items, err := cutLetters(nil, bytes.Clone(row))
	if err != nil {
		return nil, err
	}
	for i := range items {
		if items[i].kind != itemLetter {
			continue
		}
		l, err := cutLetter(items[i].letter)
		if err != nil {
			return nil, err
		}
		dst = append(dst, l)
	}
	if len(dst) > 4*limit {
		dst = keepNewest(dst, limit)
	}
	return dst, nil
}

func keepNewest(l []dunlin.DeadLetter, limit int) []dunlin.DeadLetter {
	slices.SortStableFunc(l, func(a, b dunlin.DeadLetter) int {
		return cmp.Or(cmp.Compare(b.At, a.At), cmp.Compare(a.Device, b.Device), cmp.Compare(b.Seq, a.Seq))
	})
	return l[:min(len(l), limit)]
}

// cloneLetter copies a letter by way of its bytes.
func cloneLetter(l dunlin.DeadLetter) dunlin.DeadLetter {
	c := dunlin.Change{DeviceKey: l.DeviceKey, Domain: l.Domain, Version: l.Seq, Inputs: []dunlin.Input{l.Input},
		Stages: []dunlin.StageResult{{Stage: l.Stage, Hash: l.Hash}}}
	copied, err := cutLetter(appendLetter(nil, &dunlin.Entry{At: l.At}, &c, &c.Stages[0], l.Reason, 0))
	if err != nil {
		return l
	}
	return copied
}
