package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster"
)

// room is an open store.
type room struct {
	log      cluster.Log
	state    cluster.StateMachine
	views    views
	maintain func() error // makes applied entries durable, as the store does from time to time
	close    func() error
}

// opener opens a store on a file system.
type opener func(ctx context.Context, fs vfs.FS, size size) (*room, error)

// size is what differs between the stores of two seeds.
type size struct {
	shards   int
	memtable int  // bytes: small ones are flushed often, large ones leave much to be lost
	archive  bool // what leaves the log is archived
	upkeep   int  // rounds between two maintenances of the store, on average; 0: none
}

// faults are planted around a store, to see that the suite finds them.
type faults struct {
	unsynced bool // the log is not synced before an entry is acknowledged
	eager    bool // the log is truncated to the index applied in memory
}

var errCrashed = errors.New("the machine is off")

// power is a machine's: after so many operations of the file system, it fails. What the disk then has is random: all
// that was synced, and of the rest, by block, a share.
type power struct {
	fs    *vfs.MemFS
	rng   *rand.Rand
	off   context.CancelCauseFunc
	keep  int  // percent of what was not synced
	table bool // only operations on tables and manifests count: the power fails in a flush or a compaction

	mu struct {
		sync.Mutex
		left  int
		clone *vfs.MemFS // not nil: off
		where string     // what was being done when it failed
	}
}

// MaybeError implements errorfs.Injector; it injects nothing but the end.
func (p *power) MaybeError(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
		return nil
	}
	if op.Kind == errorfs.OpCreate && strings.HasPrefix(path.Base(op.Path), "marker.manifest.") {
		p.settle(path.Dir(op.Path))
	}
	switch {
	case strings.HasSuffix(op.Path, ".sst"):
		p.use("writing a table", true)
	case strings.Contains(op.Path, "MANIFEST"):
		p.use("writing a manifest", true)
	case strings.HasSuffix(op.Path, ".log"):
		p.use("writing a write-ahead log", false)
	default:
		p.use("other files", false)
	}
	return nil
}

func (p *power) String() string { return "power" }

// settle makes the names in a folder last. Pebble syncs a new manifest, makes a marker that points to it, and only then
// syncs the folder: it counts on a file's fsync to keep the file's name as well, or on names lasting in the order they were
// made. Linux file systems do that, POSIX does not promise it, and MemFS, which is free to keep the marker and forget the
// manifest, left a store that could not be opened.
func (p *power) settle(dir string) {
	d, err := p.fs.OpenDir(dir)
	if err == nil {
		err = errors.Join(d.Sync(), d.Close())
	}
	if err != nil {
		panic(fmt.Sprintf("sync folder %s: %v", dir, err))
	}
}

// use spends one operation.
func (p *power) use(what string, table bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.table && !table {
		return
	}
	if p.mu.left--; p.mu.left == 0 {
		p.fail(what)
	}
}

// fail takes the picture of the disk. The caller holds mu: nothing is acknowledged meanwhile.
func (p *power) fail(where string) {
	if p.mu.clone == nil {
		p.mu.where = where
		p.mu.clone = p.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: p.keep, RNG: p.rng})
		p.off(errCrashed)
	}
}

// end fails the power now, unless it has.
func (p *power) end() *vfs.MemFS {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail("idle")
	return p.mu.clone
}

// on runs f unless the power has failed.
func (p *power) on(f func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.clone != nil {
		return errCrashed
	}
	return f()
}

func (p *power) alive() error { return p.on(func() error { return nil }) }

// testLog and testState sit between the host and the store: they spend power between a turn's steps, plant the faults,
// and tell the model.
type testLog struct {
	cluster.Log
	life *life
}

func (l testLog) Append(rows []dunlin.LogRow, sync bool) error {
	l.life.power.use("before a write to the log", false)
	err := l.Log.Append(rows, sync && !l.life.faults.unsynced)
	l.life.power.use("between log and state", false)
	return errors.Join(err, l.life.power.alive())
}

type testState struct {
	cluster.StateMachine
	life *life
}

func (s testState) Apply(batch []dunlin.Committed) error {
	s.life.power.use("between log and state", false)
	if err := s.life.power.on(func() error { return s.life.model.apply(batch) }); err != nil {
		s.life.broke(err)
		return err
	}
	err := s.StateMachine.Apply(batch)
	s.life.power.use("between state and acknowledgement", false)
	return errors.Join(err, s.life.power.alive())
}

func (s testState) Durable(sh dunlin.ShardID) uint64 {
	if s.life.faults.eager {
		return s.Applied(sh)
	}
	return s.StateMachine.Durable(sh)
}

// life is a node from its start to its end.
type life struct {
	size
	power  *power
	model  *model
	faults faults
	rng    *rand.Rand

	room    *room
	cluster *cluster.Cluster

	mu struct {
		sync.Mutex
		owned  map[dunlin.ShardID]uint64
		broken error // the model's, or the host's before the power failed
	}
	changed chan struct{} // size 1: something was owned, answered or broken
}

func (l *life) broke(err error) {
	if errors.Is(err, errCrashed) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.mu.broken == nil {
		l.mu.broken = err
	}
	l.poke()
}

func (l *life) poke() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

func (l *life) start(ctx context.Context, open opener) (ended <-chan error, err error) {
	if l.room, err = open(ctx, errorfs.Wrap(l.power.fs, l.power), l.size); err != nil {
		return nil, fmt.Errorf("open store: %w", err)
	}
	l.changed = make(chan struct{}, 1)
	l.mu.owned = map[dunlin.ShardID]uint64{}
	l.cluster, err = cluster.Open(cluster.Config{Shards: l.shards, Log: testLog{l.room.log, l}, StateMachine: testState{l.room.state, l},
		TruncateEvery: 500 * time.Microsecond, TruncateEntriesMin: 1,
		OnOwner: func(sh dunlin.ShardID, term uint64, owner bool) {
			l.mu.Lock()
			defer l.mu.Unlock()
			if owner {
				l.mu.owned[sh] = term
			}
			l.poke()
		}})
	if err != nil {
		return nil, errors.Join(err, l.room.close())
	}
	end := make(chan error, 1)
	go func() {
		err := l.cluster.Run(ctx)
		if err != nil {
			l.broke(err)
		}
		l.poke()
		end <- err
	}()
	return end, nil
}

// wait returns once all shards are owned.
func (l *life) wait(ctx context.Context) error {
	for {
		l.mu.Lock()
		n, broken := len(l.mu.owned), l.mu.broken
		l.mu.Unlock()
		if broken != nil || n == l.shards {
			return broken
		}
		select {
		case <-l.changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// check compares the store with the model, and readies the load.
func (l *life) check(ld *load) error {
	if l.rng.IntN(2) == 0 { // the same index twice is nothing
		var all []dunlin.Committed
		for _, s := range l.model.shards {
			all = append(all, s.committed[1:]...)
		}
		if err := l.room.state.Apply(all); err != nil {
			return fmt.Errorf("apply again: %w", err)
		}
	}
	for sh := range dunlin.ShardID(l.shards) {
		f, err := l.model.fold(sh)
		if err != nil {
			return err
		}
		if got, want := l.room.state.Applied(sh), uint64(len(l.model.shards[sh].committed)-1); got != want {
			return fmt.Errorf("shard %d has applied %d entries, want %d", sh, got, want)
		}
		if err := f.check(l.room.views, sh); err != nil {
			return err
		}
		if ld != nil {
			l.mu.Lock()
			term := l.mu.owned[sh]
			l.mu.Unlock()
			ld.activate(sh, term, f)
		}
	}
	return nil
}

// work proposes until the power fails, or so many rounds are done.
func (l *life) work(ctx context.Context, ld *load, rounds int) error {
	var mu sync.Mutex
	open := 0
	for range rounds {
		for range 1 + l.rng.IntN(4) {
			t, data := ld.next(dunlin.ShardID(l.rng.IntN(l.shards)))
			if t == nil {
				continue
			}
			mu.Lock()
			open++
			mu.Unlock()
			l.cluster.Propose(t.shard, ld.term[t.shard], data, func(index uint64, err error) {
				if err == nil { // the acknowledgement counts only if it left before the end
					err = l.power.on(func() error { l.model.shards[t.shard].acked[index] = t.id; return nil })
				}
				ld.done(t, err)
				mu.Lock()
				open--
				mu.Unlock()
				l.poke()
			})
		}
		l.cluster.Flush()
		if l.upkeep > 0 && l.rng.IntN(l.upkeep) == 0 {
			if err := l.room.maintain(); err != nil && l.power.alive() == nil {
				return fmt.Errorf("maintain: %w", err)
			}
		}
		for busy := l.rng.IntN(4); ; { // let some rounds overlap
			mu.Lock()
			n := open
			mu.Unlock()
			if n <= busy {
				break
			}
			select {
			case <-l.changed:
			case <-ctx.Done():
				return nil
			}
		}
		l.mu.Lock()
		broken := l.mu.broken
		l.mu.Unlock()
		if broken != nil {
			return broken
		}
	}
	return nil
}
