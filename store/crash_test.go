package store

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/dunlin-iot/dunlin"
)

var crashSeeds = flag.Int("store.seeds", 40, "seeds of the store's crash test")

// crashRun drives a store as a node's host does, and lets the power fail again and again, each time losing a random part
// of what was not synced. After each crash it looks whether everything acknowledged is there.
type crashRun struct {
	rng   *rand.Rand
	fs    *vfs.MemFS
	db    *DB
	all   []dunlin.Committed
	acked int // entries of all that were appended with a sync
	bug   func(s *State, sh dunlin.ShardID) uint64
}

const crashShards = 3

// open opens the store; once it is open, what is left of the log is applied again.
func (r *crashRun) open() error {
	c := small(r.fs, crashShards)
	db, err := Open(c)
	if err != nil {
		return err
	}
	r.db = db
	s, l := db.State(), db.Log()
	for sh := range dunlin.ShardID(crashShards) {
		_, first, last, err := l.Load(sh)
		if err != nil {
			return err
		}
		applied := s.Applied(sh)
		if want := r.lastAcked(sh); last < want {
			return fmt.Errorf("shard %d: the log ends at %d, %d was acknowledged", sh, last, want)
		}
		if applied > last || applied+1 < first || s.Durable(sh) > applied {
			return fmt.Errorf("shard %d: log %d to %d, applied %d, durable %d", sh, first, last, applied, s.Durable(sh))
		}
		for applied < last {
			rows, err := l.Read(sh, applied+1, last+1, 4<<10)
			if err != nil {
				return err
			}
			if err := r.db.State().Apply(committedRows(rows)); err != nil {
				return err
			}
			applied = rows[len(rows)-1].Index
		}
	}
	return nil
}

func (r *crashRun) lastAcked(sh dunlin.ShardID) (last uint64) {
	for _, c := range r.all[:r.acked] {
		if c.Shard == sh {
			last = c.Index
		}
	}
	return last
}

func committedRows(rows []dunlin.LogRow) (batch []dunlin.Committed) {
	for _, row := range rows {
		c := dunlin.Committed{Shard: row.Shard, Index: row.Index, Term: row.Term}
		if row.Type == 0 {
			c.Data = row.Data
		} else {
			c.Conf = row.Data
		}
		batch = append(batch, c)
	}
	return batch
}

func rowsOf(batch []dunlin.Committed) (rows []dunlin.LogRow) {
	for _, c := range batch {
		row := logRow(c)
		if c.Conf != nil {
			row.Type, row.Data = 2, c.Conf
		}
		rows = append(rows, row)
	}
	return rows
}

// turn is one turn of the host: append with a sync, apply, and sometimes maintain and truncate.
func (r *crashRun) turn(ctx context.Context) error {
	n := min(1+r.rng.IntN(8), len(r.all)-r.acked)
	batch := r.all[r.acked : r.acked+n]
	_ = r.db.Log().Append(nil, false)
	if err := r.db.Log().Append(rowsOf(batch), true); err != nil {
		return err
	}
	r.acked += n
	if err := r.db.State().Apply(batch); err != nil {
		return err
	}
	switch r.rng.IntN(12) {
	case 0:
		if err := r.db.Maintain(ctx); err != nil {
			return err
		}
	case 1:
		if err := r.db.Sync(ctx); err != nil {
			return err
		}
	case 2:
		if err := r.db.State().eng.Flush(); err != nil {
			return err
		}
	}
	for sh := range dunlin.ShardID(crashShards) {
		if err := r.db.Log().Truncate(sh, r.bug(r.db.State(), sh)); err != nil {
			return err
		}
	}
	return nil
}

func (r *crashRun) crash() error {
	fs := r.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: r.rng.IntN(101), RNG: r.rng})
	if err := r.db.Close(); err != nil {
		return err
	}
	r.fs = fs
	return r.open()
}

func runCrashes(t *testing.T, seed uint64, bug func(*State, dunlin.ShardID) uint64) error {
	r := &crashRun{rng: rand.New(rand.NewPCG(seed, 99)), fs: vfs.NewCrashableMem(), all: story(seed, crashShards, 9, 250), bug: bug}
	if err := r.open(); err != nil {
		return err
	}
	defer func() { _ = r.db.Close() }()
	for r.acked < len(r.all) {
		if err := r.turn(t.Context()); err != nil {
			return err
		}
		if r.rng.IntN(12) == 0 {
			if err := r.crash(); err != nil {
				return err
			}
		}
	}
	if err := r.crash(); err != nil {
		return err
	}
	return r.same(t)
}

// same compares the store to one that never crashed, and its journal to what was applied.
func (r *crashRun) same(t *testing.T) error {
	calm, done := openShort(t, small(vfs.NewMem(), crashShards))
	defer done()
	if err := calm.State().Apply(r.all); err != nil {
		return err
	}
	if got, want := dump(t, r.db.State()), dump(t, calm.State()); !bytes.Equal(got, want) {
		return fmt.Errorf("rows differ from those of a store that never crashed:\n%s", firstDifference(got, want))
	}
	return followAll(t, r.db, r.all)
}

func TestCrashesLoseNothing(t *testing.T) {
	durable := func(s *State, sh dunlin.ShardID) uint64 { return s.Durable(sh) }
	for seed := range uint64(*crashSeeds) {
		if err := runCrashes(t, seed, durable); err != nil {
			t.Fatalf("seed %d: %v", seed, err)
		}
	}
}

// The crash test must be able to see what it is for: a log that is truncated to what is only applied in memory.
func TestCrashesShowEarlyTruncation(t *testing.T) {
	early := func(s *State, sh dunlin.ShardID) uint64 { return s.Applied(sh) }
	for seed := range uint64(10) {
		if err := runCrashes(t, seed, early); err != nil {
			return
		}
	}
	t.Fatal("ten runs that truncate too early passed")
}

// followAll reads the journal from the beginning and checks that it has every entry that had an effect, once, in order.
func followAll(t *testing.T, db *DB, all []dunlin.Committed) error {
	t.Helper()
	want := effects(t, all)
	from := make(dunlin.Cursor, db.shards)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	got := make([][]uint64, len(from))
	left := 0
	for _, w := range want {
		left += len(w)
	}
	if left == 0 {
		return nil
	}
	for it, err := range db.Journal().Follow(ctx, &from, nil) {
		if err != nil {
			return err
		}
		sh := it.Entry.Shard
		got[sh] = append(got[sh], it.Index)
		if left--; left == 0 {
			break
		}
	}
	for sh := range got {
		if fmt.Sprint(got[sh]) != fmt.Sprint(want[sh]) {
			return fmt.Errorf("shard %d: the journal has %v,\nwant %v", sh, got[sh], want[sh])
		}
	}
	return nil
}

// effects returns the indexes of entries that have an effect, by shard.
func effects(t *testing.T, all []dunlin.Committed) [][]uint64 {
	t.Helper()
	var out [][]uint64
	for _, c := range all {
		for len(out) <= int(c.Shard) {
			out = append(out, nil)
		}
		row := logRow(c)
		e, err := effective(&row)
		if err != nil {
			t.Fatal(err)
		}
		if e != nil {
			out[c.Shard] = append(out[c.Shard], c.Index)
		}
	}
	return out
}
