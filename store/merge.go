package store

import (
	"cmp"
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/entry"
	"github.com/dunlin-iot/dunlin/store/column"
)

// mergerName is on disk: a folder written with another one cannot be opened.
const mergerName = "dunlin.1"

// The first byte of the operands that this file defines; column's blocks have their own.
const (
	opVersion = 1
	opList    = 2 // a list of operands, oldest first, each a uvarint length and its bytes
)

// listMax is how many operands wait in a list to be folded. A flush sees few operands of each device that reports seldom:
// to fold them there and again with those of the next flush costs more than to fold all when they meet what is below.
const listMax = 16

// newMerger returns the one merge operator of the state engine. The table in the key says what the operands are.
func newMerger() *pebble.Merger {
	pool := &sync.Pool{New: func() any { return new(fold) }}
	return &pebble.Merger{Name: mergerName, Merge: func(key, value []byte) (pebble.ValueMerger, error) {
		if len(key) < keyHead {
			return nil, errKey
		}
		merge := mergeOf(key[2])
		if merge == nil {
			return nil, fmt.Errorf("%w: merge operand in table %#x", dunlin.ErrInvalid, key[2])
		}
		f := pool.Get().(*fold)
		*f = fold{merge: merge, arena: f.arena[:0], ends: f.ends[:0], ops: f.ops[:0], pool: pool}
		f.add(value)
		return f, nil
	}}
}

func mergeOf(table byte) func(oldestFirst [][]byte, final bool) ([]byte, error) {
	switch table {
	case tabDevice:
		return mergeStates
	case tabReadings:
		return mergeBlocks
	case tabDead:
		return mergeDead
	case tabApplied:
		return mergeApplied
	}
	return nil
}

// fold collects the operands of one key. Pebble gives them either all from old to new or all from new to old.
type fold struct {
	merge func(oldestFirst [][]byte, final bool) ([]byte, error)
	arena []byte // of all operands
	ends  []int
	ops   [][]byte
	older bool // they come from new to old
	pool  *sync.Pool
}

// foldBytesMax is how large an arena may be to be kept for the next fold.
const foldBytesMax = 1 << 20

func (f *fold) add(v []byte) {
	f.arena = append(f.arena, v...)
	f.ends = append(f.ends, len(f.arena))
}

// MergeNewer implements pebble.ValueMerger.
func (f *fold) MergeNewer(value []byte) error { f.add(value); return nil }

// MergeOlder implements pebble.ValueMerger.
func (f *fold) MergeOlder(value []byte) error { f.older = true; f.add(value); return nil }

// Finish implements pebble.ValueMerger. With includesBase there is nothing older than the operands. The value may lie in
// the arena, which is used again once Pebble closes f.
func (f *fold) Finish(includesBase bool) ([]byte, io.Closer, error) {
	start := 0
	for _, end := range f.ends {
		f.ops = append(f.ops, f.arena[start:end:end])
		start = end
	}
	if f.older {
		slices.Reverse(f.ops)
	}
	v, err := f.finish(includesBase)
	return v, f, err
}

func (f *fold) finish(final bool) ([]byte, error) {
	if len(f.ops) == 1 && (!final || len(f.ops[0]) == 0 || f.ops[0][0] != opList) {
		return f.merge(f.ops, final)
	}
	for i := range f.ops {
		if len(f.ops[i]) > 0 && f.ops[i][0] == opList {
			if err := f.unlist(); err != nil {
				return nil, err
			}
			break
		}
	}
	if !final && len(f.ops) <= listMax {
		return appendList(nil, f.ops), nil
	}
	return f.merge(f.ops, final)
}

// unlist puts the operands of lists in their places.
func (f *fold) unlist() error {
	var flat [][]byte
	for _, op := range f.ops {
		if len(op) == 0 || op[0] != opList {
			flat = append(flat, op)
			continue
		}
		for b := op[1:]; len(b) > 0; {
			size, n := binary.Uvarint(b)
			if n <= 0 || size == 0 || size > uint64(len(b)-n) {
				return fmt.Errorf("%w: list of merge operands of %d bytes", dunlin.ErrInvalid, len(op))
			}
			end := n + int(size)
			flat = append(flat, b[n:end:end])
			b = b[end:]
		}
	}
	f.ops = flat
	return nil
}

func appendList(dst []byte, ops [][]byte) []byte {
	dst = append(dst, opList)
	for _, op := range ops {
		dst = binary.AppendUvarint(dst, uint64(len(op)))
		dst = append(dst, op...)
	}
	return dst
}

// Close implements io.Closer.
func (f *fold) Close() error {
	if cap(f.arena) <= foldBytesMax {
		clear(f.ops)
		f.ops = f.ops[:0]
		f.pool.Put(f)
	}
	return nil
}

func mergeBlocks(ops [][]byte, _ bool) ([]byte, error) {
	if len(ops) == 1 {
		return ops[0], nil
	}
	return column.Merge(nil, ops)
}

// A device state operand:
//
//	┌─────────┬───────┬───────────────────┐
//	│ version │ flags │ entry.AppendState │
//	└─────────┴───────┴───────────────────┘
//
// Its alerts are sorted by rule and key, its timers by name and its commands by id, so that folding in any grouping makes the
// same bytes.
const stateTombs = 1 << 0 // has cleared alerts, cancelled timers or answered commands, which a whole state must not

func appendState(dst []byte, s *dunlin.DeviceState) []byte {
	sortState(s)
	var flags byte
	for i := range s.Alerts {
		if s.Alerts[i].State == dunlin.AlertCleared {
			flags |= stateTombs
		}
	}
	for i := range s.Timers {
		if s.Timers[i].Due == 0 {
			flags |= stateTombs
		}
	}
	for i := range s.Commands {
		if s.Commands[i].Deadline == 0 {
			flags |= stateTombs
		}
	}
	return entry.AppendState(append(dst, opVersion, flags), s)
}

// sortState brings s into the canonical order without touching slices that s shares with a Change.
func sortState(s *dunlin.DeviceState) {
	byRule := func(a, b dunlin.Alert) int {
		return cmp.Or(strings.Compare(a.Rule, b.Rule), strings.Compare(a.Key, b.Key))
	}
	if len(s.Alerts) > 1 && !slices.IsSortedFunc(s.Alerts, byRule) {
		s.Alerts = slices.Clone(s.Alerts)
		slices.SortStableFunc(s.Alerts, byRule)
	}
	byName := func(a, b dunlin.TimerSet) int { return strings.Compare(a.Name, b.Name) }
	if len(s.Timers) > 1 && !slices.IsSortedFunc(s.Timers, byName) {
		s.Timers = slices.Clone(s.Timers)
		slices.SortStableFunc(s.Timers, byName)
	}
	byStage := func(a, b dunlin.StageState) int { return cmp.Compare(a.Stage, b.Stage) }
	if len(s.Plugins) > 1 && !slices.IsSortedFunc(s.Plugins, byStage) {
		s.Plugins = slices.Clone(s.Plugins)
		slices.SortStableFunc(s.Plugins, byStage)
	}
	byID := func(a, b dunlin.Command) int { return strings.Compare(a.ID, b.ID) }
	if len(s.Commands) > 1 && !slices.IsSortedFunc(s.Commands, byID) {
		s.Commands = slices.Clone(s.Commands)
		slices.SortStableFunc(s.Commands, byID)
	}
}

// decodeState reads an operand into s, in the memory that s has.
func decodeState(s *dunlin.DeviceState, op []byte) (tombs bool, err error) {
	if len(op) < 2 || op[0] != opVersion {
		return false, fmt.Errorf("%w: device state operand of %d bytes", dunlin.ErrInvalid, len(op))
	}
	return op[1]&stateTombs != 0, entry.DecodeStateInto(s, op[2:])
}

func mergeStates(ops [][]byte, final bool) ([]byte, error) {
	if len(ops) == 1 && (!final || len(ops[0]) > 1 && ops[0][0] == opVersion && ops[0][1]&stateTombs == 0) {
		return ops[0], nil
	}
	var s, delta dunlin.DeviceState
	for _, op := range ops {
		if _, err := decodeState(&delta, op); err != nil {
			return nil, err
		}
		s.Merge(&delta, final) // takes elements over, no list: the next operand may use delta's
	}
	return appendState(nil, &s), nil
}

// appliedIndex is a part of an applied operand: a version byte, then shard and index as uvarints, by shard.
type appliedIndex struct {
	shard dunlin.ShardID
	index uint64
}

func appendApplied(dst []byte, shard dunlin.ShardID, index uint64) []byte {
	return binary.AppendUvarint(binary.AppendUvarint(dst, uint64(shard)), index)
}

func cutApplied(dst []appliedIndex, op []byte) ([]appliedIndex, error) {
	bad := fmt.Errorf("%w: applied operand of %d bytes", dunlin.ErrInvalid, len(op))
	if len(op) == 0 || op[0] != opVersion {
		return nil, bad
	}
	for b := op[1:]; len(b) > 0; {
		shard, n := binary.Uvarint(b)
		if n <= 0 || shard >= uint64(allShards) {
			return nil, bad
		}
		index, m := binary.Uvarint(b[n:])
		if m <= 0 {
			return nil, bad
		}
		dst = append(dst, appliedIndex{dunlin.ShardID(shard), index})
		b = b[n+m:]
	}
	return dst, nil
}

// mergeApplied keeps the largest index of each shard.
func mergeApplied(ops [][]byte, _ bool) ([]byte, error) {
	if len(ops) == 1 {
		return ops[0], nil
	}
	var largest []uint64 // by shard
	var rows []appliedIndex
	for _, op := range ops {
		var err error
		if rows, err = cutApplied(rows[:0], op); err != nil {
			return nil, err
		}
		for _, r := range rows {
			if n := int(r.shard) + 1 - len(largest); n > 0 {
				largest = append(largest, make([]uint64, n)...)
			}
			largest[r.shard] = max(largest[r.shard], r.index)
		}
	}
	v := []byte{opVersion}
	for shard, index := range largest {
		if index > 0 {
			v = appendApplied(v, dunlin.ShardID(shard), index)
		}
	}
	return v, nil
}
