package crash

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/store"
)

// A replica comes to what it has by its log, by a snapshot, or not at all: these runs drive a store as the host of a cluster
// drives it, with snapshots from a store that has everything, and let the power fail at any operation of the file system.
// After each failure every shard must be what it was before what was being done, or what it was to become.

// want is what a replica of a shard has promised to be.
type want struct {
	last uint64 // entries up to here are kept
	hard uint64 // the number of the hard state, 0: none
	tomb uint64 // the number of the tombstone, 0: none
	gone bool   // destroyed, and nothing came since
	base uint64 // the log begins behind this at the latest
}

// replicaRun is one seed.
type replicaRun struct {
	rng    *rand.Rand
	shards int
	size   size
	bug    store.Planted
	story  [][]dunlin.Committed // by shard; the entry with index i is at i−1
	hashes [][][32]byte         // by shard and applied index
	source *store.DB            // never fails

	disk *vfs.MemFS
	pw   *power
	db   *store.DB
	is   []want
	next []*want // by shard: what it becomes if what is being done comes through, nil: nothing is
	meta []dunlin.SnapshotMeta
	made uint64 // hard states and tombstones

	installs, destroys, resumed int
}

func replicaConfig(fs vfs.FS, sz size, bug store.Planted) store.Config {
	return store.Config{
		Dir: "data", FS: fs, Identity: store.Identity{Shards: sz.shards, NodeID: 7},
		CacheBytes: 1 << 20, LogMemTableBytes: int64(sz.memtable), StateMemTableBytes: int64(sz.memtable),
		LogBytes: 16 << 10, SegmentBytes: 2 << 10, TailBytes: 16 << 10, ArchiveOff: !sz.archive, ArchiveAge: -1, ChunkBytes: 2 << 10, Planted: bug,
		Fatal: func(err error) { panic(fmt.Sprintf("no disk failed here: %v", err)) },
	}
}

const replicaStory = 60 // entries of a shard

// tell makes the entries of all shards, and the hash of each moment.
func (r *replicaRun) tell(seed uint64) error {
	ld := newLoad(rand.New(rand.NewPCG(seed, 3)), r.shards)
	ref, err := store.Open(replicaConfig(vfs.NewMem(), r.size, store.Planted{}))
	if err != nil {
		return err
	}
	defer ref.Close()
	r.story, r.hashes = make([][]dunlin.Committed, r.shards), make([][][32]byte, r.shards)
	for sh := range dunlin.ShardID(r.shards) {
		ld.activate(sh, 1, &fold{})
		empty, _, err := ref.State().Hash(sh)
		if err != nil {
			return err
		}
		r.hashes[sh] = [][32]byte{empty}
		for i := uint64(1); i <= replicaStory; i++ {
			c := dunlin.Committed{Shard: sh, Index: i, Term: 1 + i/20}
			ld.term[sh] = c.Term
			if i == 1 || r.rng.IntN(10) == 0 {
				c.Conf = fmt.Appendf(nil, "conf %d", i)
			} else if t, data := ld.next(sh); t != nil {
				c.Data = data
				ld.done(t, nil)
			}
			r.story[sh] = append(r.story[sh], c)
			if err := ref.State().Apply([]dunlin.Committed{c}); err != nil {
				return err
			}
			sum, _, err := ref.State().Hash(sh)
			if err != nil {
				return err
			}
			r.hashes[sh] = append(r.hashes[sh], sum)
		}
	}
	return nil
}

func (r *replicaRun) rows(batch []dunlin.Committed) (rows []dunlin.LogRow) {
	for _, c := range batch {
		row := dunlin.LogRow{Shard: c.Shard, Index: c.Index, Term: c.Term, Data: c.Data}
		if c.Conf != nil {
			row.Type, row.Data = 1, c.Conf
		}
		rows = append(rows, row)
	}
	return rows
}

func number(what string, n uint64) []byte {
	if n == 0 {
		return nil
	}
	return fmt.Appendf(nil, "%s %d", what, n)
}

// open opens the store on the disk that the last failure left, and looks at all of it.
func (r *replicaRun) open(ctx context.Context) error {
	db, err := store.Open(replicaConfig(errorfs.Wrap(r.disk, r.pw), r.size, r.bug))
	if err != nil {
		return fmt.Errorf("open: %w", err)
	}
	r.db = db
	for i := range r.is {
		sh := dunlin.ShardID(i)
		err := r.check(sh, &r.is[i])
		if next := r.next[i]; err != nil && next != nil {
			if other := r.check(sh, next); other != nil {
				err = fmt.Errorf("neither what it was (%w) nor what it was to become (%w)", err, other)
			} else {
				r.is[i], err = *next, nil
			}
		}
		if err != nil {
			return fmt.Errorf("shard %d: %w", sh, err)
		}
		// What else is there was written and not acknowledged: it stays.
		_, first, last, err := db.Log().Load(sh)
		if err != nil {
			return err
		}
		r.is[i].last, r.is[i].base, r.next[i] = last, first-1, nil
		if err := r.replay(sh); err != nil {
			return fmt.Errorf("shard %d: %w", sh, err)
		}
	}
	return ctx.Err()
}

// check compares a shard with what it should be.
func (r *replicaRun) check(sh dunlin.ShardID, w *want) error {
	hard, first, last, err := r.db.Log().Load(sh)
	if err != nil {
		return err
	}
	tomb, err := r.db.Tombstone(sh)
	if err != nil {
		return err
	}
	if !bytes.Equal(tomb, number("tomb", w.tomb)) || !bytes.Equal(hard, number("hard", w.hard)) {
		return fmt.Errorf("hard state %q, tombstone %q, want numbers %d, %d", hard, tomb, w.hard, w.tomb)
	}
	s := r.db.State()
	applied := s.Applied(sh)
	if w.gone && (last != 0 || first != 1 || applied != 0 || s.Conf(sh) != nil || r.db.Present(sh)) {
		return fmt.Errorf("it was destroyed, and has entries %d to %d, applied %d", first, last, applied)
	}
	if last < w.last || first > last+1 || applied > last || applied+1 < first || s.Durable(sh) > applied {
		return fmt.Errorf("entries %d to %d, applied %d, durable %d, want entries to %d", first, last, applied, s.Durable(sh), w.last)
	}
	if first > w.base+1 && first-1 > applied {
		return fmt.Errorf("the log begins at %d, applied is %d", first, applied)
	}
	if first > 1 {
		if term, err := r.db.Log().Term(sh, first-1); err != nil || term != r.story[sh][first-2].Term {
			return fmt.Errorf("term of entry %d: %d, %w", first-1, term, err)
		}
	}
	sum, index, err := s.Hash(sh)
	if err != nil {
		return err
	}
	if index != applied || sum != r.hashes[sh][applied] {
		return fmt.Errorf("the rows are not those of entry %d", applied)
	}
	return nil
}

// replay applies what the log has, and reads what is there of the past.
func (r *replicaRun) replay(sh dunlin.ShardID) error {
	_, first, last, err := r.db.Log().Load(sh)
	if err != nil {
		return err
	}
	for next := first; next <= last; {
		rows, err := r.db.Log().Read(sh, next, last+1, 4<<10)
		if err != nil {
			return err
		}
		for i := range rows {
			if w := r.rows(r.story[sh][rows[i].Index-1:][:1])[0]; rows[i].Term != w.Term || rows[i].Type != w.Type || !bytes.Equal(rows[i].Data, w.Data) {
				return fmt.Errorf("entry %d of the log is another", rows[i].Index)
			}
		}
		next = rows[len(rows)-1].Index + 1
	}
	if err := r.db.State().Apply(r.story[sh][:last]); err != nil {
		return err
	}
	if sum, _, err := r.db.State().Hash(sh); err != nil || sum != r.hashes[sh][last] {
		return fmt.Errorf("the rows are not those of entry %d: %w", last, err)
	}
	if !r.size.archive {
		return nil
	}
	seen := uint64(0)
	for next := uint64(1); ; {
		items, upTo, err := r.db.Journal().Read(sh, next)
		if err != nil {
			return fmt.Errorf("journal from %d: %w", next, err)
		}
		for _, it := range items {
			for seen++; len(r.story[sh][seen-1].Data) == 0; seen++ {
			}
			if it.Index != seen {
				return fmt.Errorf("journal: entry %d follows, want %d", it.Index, seen)
			}
		}
		if upTo == next {
			break
		}
		next = upTo
	}
	if head := r.db.Journal().Head(sh); head != last+1 {
		return fmt.Errorf("the journal ends at %d, want %d", head, last+1)
	}
	return nil
}

// doing runs something that makes a shard become next; what it becomes counts once it returns.
func (r *replicaRun) doing(sh dunlin.ShardID, next want, f func() error) error {
	if err := r.pw.on(func() error { r.next[sh] = &next; return nil }); err != nil {
		return err
	}
	err := f()
	return errors.Join(r.pw.on(func() error {
		if r.next[sh] = nil; err == nil {
			r.is[sh] = next
		}
		return nil
	}), err)
}

func (r *replicaRun) step(ctx context.Context) error {
	sh := dunlin.ShardID(r.rng.IntN(r.shards))
	is := r.is[sh]
	switch n := r.rng.IntN(20); {
	case n < 7:
		return r.append(sh, is)
	case n < 8:
		return errors.Join(r.db.Maintain(ctx), r.db.Retain(ctx))
	case n < 9:
		return r.db.Sync(ctx)
	case n < 11:
		return r.db.Log().Truncate(sh, r.db.State().Durable(sh))
	case n < 12:
		return r.destroy(sh, is)
	case n < 13:
		return r.db.Drop(sh)
	}
	return r.receive(sh)
}

// append is a turn of the host: entries and a hard state in one synced batch, then apply.
func (r *replicaRun) append(sh dunlin.ShardID, is want) error {
	to := min(is.last+uint64(r.rng.IntN(6)), replicaStory)
	batch := r.story[sh][is.last:to]
	next := is
	r.made++
	next.last, next.hard, next.gone = to, r.made, false
	rows := append(r.rows(batch), dunlin.LogRow{Shard: sh, Hard: number("hard", next.hard)})
	err := r.doing(sh, next, func() error { return r.db.Log().Append(rows, true) })
	if err != nil {
		return err
	}
	return r.db.State().Apply(batch)
}

func (r *replicaRun) destroy(sh dunlin.ShardID, is want) error {
	r.destroys++
	r.made++
	return r.doing(sh, want{tomb: r.made, gone: true}, func() error { return r.db.Destroy(sh, number("tomb", r.made)) })
}

// receive takes some chunks of a snapshot of the shard, and installs it if that were all.
func (r *replicaRun) receive(sh dunlin.ShardID) error {
	applied := r.db.State().Applied(sh)
	if meta := r.meta[sh]; meta.Index <= applied {
		have := r.source.State().Applied(sh)
		if to := min(max(have, applied)+1+uint64(r.rng.IntN(15)), replicaStory); to > have {
			batch := r.story[sh][have:to]
			if err := errors.Join(r.source.Log().Append(r.rows(batch), true), r.source.State().Apply(batch)); err != nil {
				panic(err)
			}
			have = to
		}
		if have <= applied {
			return nil // it has the whole story
		}
		var err error
		if r.meta[sh], err = r.source.Export(sh); err != nil {
			panic(err)
		}
	}
	meta := r.meta[sh]
	have, err := r.db.Receive(meta)
	if err != nil {
		return err
	}
	if have > 0 {
		r.resumed++
	}
	for n := r.rng.IntN(4); ; n-- {
		if n == 0 {
			return nil
		}
		data, last, err := r.source.Chunk(meta.ID, have)
		if err != nil {
			panic(err)
		}
		if err := r.db.Add(meta, have, data, last); err != nil {
			return err
		}
		if have++; last {
			break
		}
	}
	if r.rng.IntN(4) == 0 || r.bug.NoInstallMarker { // make it likelier to fail in here
		_ = r.pw.on(func() error {
			if r.pw.mu.left > 40 {
				r.pw.mu.left = 1 + r.rng.IntN(40)
			}
			return nil
		})
	}
	r.made++
	next := want{last: meta.Index, base: meta.Index, hard: r.made, tomb: r.is[sh].tomb}
	r.installs++
	return r.doing(sh, next, func() error { return r.db.Install(meta, number("hard", next.hard)) })
}

const replicaSteps = 60

// runReplica lives some lives on one disk.
func runReplica(ctx context.Context, seed uint64, bug store.Planted, sc *replicaScore) error {
	r := &replicaRun{rng: rand.New(rand.NewPCG(seed, 0x7265706c)), bug: bug, disk: vfs.NewCrashableMem()}
	r.shards = 1 + r.rng.IntN(3)
	r.size = size{shards: r.shards, memtable: []int{16 << 10, 64 << 10, 1 << 20}[r.rng.IntN(3)], archive: r.rng.IntN(3) > 0}
	r.is, r.next, r.meta = make([]want, r.shards), make([]*want, r.shards), make([]dunlin.SnapshotMeta, r.shards)
	for i := range r.is {
		r.is[i].gone = true
	}
	if err := r.tell(seed); err != nil {
		return err
	}
	var err error
	if r.source, err = store.Open(replicaConfig(vfs.NewMem(), r.size, store.Planted{})); err != nil {
		return err
	}
	defer r.source.Close()
	lives := 3 + r.rng.IntN(5)
	for n := range lives {
		if err := r.live(ctx, seed, n, n == lives-1, sc); err != nil {
			return fmt.Errorf("life %d of %d on %d shards: %w", n+1, lives, r.shards, err)
		}
	}
	sc.installs.Add(int64(r.installs))
	sc.destroys.Add(int64(r.destroys))
	sc.resumed.Add(int64(r.resumed))
	return nil
}

// replicaScore sums up what the seeds went through.
type replicaScore struct {
	score
	installs, destroys, resumed atomic.Int64
}

func (r *replicaRun) live(ctx context.Context, seed uint64, n int, last bool, sc *replicaScore) error {
	ctx, off := context.WithCancelCause(ctx)
	defer off(nil)
	r.pw = &power{fs: r.disk, off: off, rng: rand.New(rand.NewPCG(seed, uint64(n)+20)), keep: []int{0, 0, 20, 50, 90, 100}[r.rng.IntN(6)]}
	if !last {
		r.pw.mu.left = 1 + r.rng.IntN(700)
	}
	err := r.open(ctx)
	for range replicaSteps {
		if err != nil || last || r.pw.alive() != nil {
			break
		}
		err = r.step(ctx)
	}
	off(nil)
	dead := r.pw.alive() != nil
	r.disk = r.pw.end()
	sc.crashed(r.pw.mu.where)
	if r.db != nil {
		if closeErr := r.db.Close(); closeErr != nil && !dead {
			err = errors.Join(err, closeErr)
		}
		r.db = nil
	}
	if dead { // of a machine that is off
		return nil
	}
	return err
}

// TestCrashReplicas: whatever the moment of the crash while snapshots come in and replicas go, there is never half a
// replica, and what was promised is kept.
func TestCrashReplicas(t *testing.T) {
	var sc replicaScore
	seed, err := forSeeds(t, *seedsFlag, *firstFlag, func(seed uint64) error {
		return runReplica(t.Context(), seed, store.Planted{}, &sc)
	})
	if err != nil {
		t.Fatalf("seed %d: %v\nagain: go test ./internal/crash -run TestCrashReplicas$ -seeds=1 -first=%d", seed, err, seed)
	}
	t.Logf("%d seeds: %d installs and %d destructions begun, %d transfers resumed; crashes by what was being done: %v",
		*seedsFlag, sc.installs.Load(), sc.destroys.Load(), sc.resumed.Load(), sc.crashes)
	if n := int64(*seedsFlag); n >= 100 && (sc.installs.Load() < 3*n || sc.destroys.Load() < 2*n || sc.resumed.Load() < 5*n) {
		t.Errorf("that is too little to show anything")
	}
}

// TestCrashFindsSnapshotWithoutMarker: see TestCrashFindsPlantedFaults.
func TestCrashFindsSnapshotWithoutMarker(t *testing.T) {
	const seeds = 40
	var sc replicaScore
	var found atomic.Int64
	_, _ = forSeeds(t, seeds, 0, func(seed uint64) error {
		if err := runReplica(t.Context(), seed, store.Planted{NoInstallMarker: true}, &sc); err != nil {
			found.Add(1)
			t.Logf("seed %d: %v", seed, err)
		}
		return nil
	})
	t.Logf("%d of %d seeds found it", found.Load(), seeds)
	if found.Load() < seeds/8 {
		t.Errorf("%d of %d seeds found it", found.Load(), seeds)
	}
}
