package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/replica"
)

// room is an open store.
type room struct {
	log      replica.Log
	state    replica.StateMachine
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

// testLog and testState sit between the host and the store: they spend power between a turn's steps, plant the faults,
// and tell the model.
type testLog struct {
	replica.Log
	life *life
}

func (l testLog) Append(rows []dunlin.LogRow, sync bool) error {
	l.life.power.use("before a write to the log", false)
	err := l.Log.Append(rows, sync && !l.life.faults.unsynced)
	l.life.power.use("between log and state", false)
	return errors.Join(err, l.life.power.alive())
}

type testState struct {
	replica.StateMachine
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

	room *room
	host *replica.Host

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
	l.host, err = replica.Open(replica.Config{Bootstrap: true, Shards: l.shards, Log: testLog{l.room.log, l}, StateMachine: testState{l.room.state, l},
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
		err := l.host.Run(ctx)
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
			l.host.Propose(t.shard, ld.term[t.shard], data, func(index uint64, err error) {
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
		l.host.Flush()
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
