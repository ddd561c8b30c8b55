package stream

import (
	"context"
	"fmt"
	"math/bits"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// Feed is the dunlin.Feed of a node in a cluster. It serves what is here to the feeds of other nodes, too.
//
// Locks: the journal's may be held when Feed.mu is taken (news), never the other way round.
type Feed struct {
	cfg     Config
	deps    Deps
	metrics *metrics
	poked   chan struct{} // size 1: look at once where the shards are

	watches struct {
		sync.Mutex
		stop []func() // by shard: of the journal's watch
	}
	mu struct {
		sync.Mutex
		shards    []shardState
		followers []*follower // of all shards
		all       int         // followers of all shards that want what is elsewhere, too
		peers     map[dunlin.NodeID]*peer
		tailBytes int
		asking    chan struct{} // not nil: a round of Now's is under way, closed when it is over
		serving   map[dunlin.NodeID]*served
	}
}

var _ dunlin.Feed = (*Feed)(nil)

// shardState is what the feed knows of a shard. Guarded by Feed.mu.
type shardState struct {
	present, fresh bool        // the replica here: is there, and up to date
	followers      []*follower // of this shard, and not of all
	refs           int         // followers of this shard alone, those that serve peers included
	wants          int         // of these, those that want what is elsewhere, too
	idleAt         dunlin.Time // when refs and wants came down to 0
	tail           tail        // while fresh is false
	peer           *peer       // whom the tail is pulled from
	skip           map[dunlin.NodeID]dunlin.Time
	known          uint64 // the newest head that anybody told, 0 if nobody did
	knownAt        dunlin.Time
}

// follower is one Follow, or one pull that is served. Its fields are guarded by Feed.mu.
type follower struct {
	shards  []dunlin.ShardID // nil: all
	local   bool             // serves a peer: what is not here is none of its business
	marked  []uint64         // bit set of shards that may have news
	waiting bool
	wake    chan struct{} // size 1: at least one shard was marked since it waits
}

// New makes a feed. Run it; until then it knows only what is here.
func New(c Config, d Deps) (*Feed, error) {
	if err := c.setDefaults(); err != nil {
		return nil, err
	}
	if d.Local == nil || c.ShardOf == nil {
		return nil, fmt.Errorf("%w: feed: no journal or no map of devices to shards", dunlin.ErrInvalid)
	}
	f := &Feed{cfg: c, deps: d, poked: make(chan struct{}, 1)}
	f.watches.stop = make([]func(), c.Shards)
	f.mu.shards = make([]shardState, c.Shards)
	f.mu.peers = make(map[dunlin.NodeID]*peer)
	f.mu.serving = make(map[dunlin.NodeID]*served)
	f.look()
	var err error
	f.metrics, err = newMetrics(c.Metrics, f)
	return f, err
}

func (f *Feed) alone() bool { return f.deps.Replicas == nil || f.deps.Caller == nil }

// Poke makes the feed look at once where the shards are: the placement or an owner has changed. It never blocks.
func (f *Feed) Poke() {
	select {
	case f.poked <- struct{}{}:
	default:
	}
}

// here tells whether there is a replica here, and whether it is up to date.
func (f *Feed) here(sh dunlin.ShardID) (present, fresh bool) {
	if f.alone() {
		return true, true
	}
	age, ok := f.deps.Replicas.Fresh(sh)
	return ok, ok && age <= f.cfg.FreshMax
}

// look asks how up to date the replicas here are, and marks what has changed for those who follow it.
func (f *Feed) look() {
	type seen struct{ present, fresh bool }
	now := make([]seen, f.cfg.Shards)
	for i := range now {
		now[i].present, now[i].fresh = f.here(dunlin.ShardID(i))
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.mu.shards {
		s := &f.mu.shards[i]
		if s.present != now[i].present || s.fresh != now[i].fresh {
			s.present, s.fresh = now[i].present, now[i].fresh
			f.markLocked(dunlin.ShardID(i))
		}
	}
}

// news is told that something was applied here.
func (f *Feed) news(sh dunlin.ShardID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.markLocked(sh)
}

func (f *Feed) markLocked(sh dunlin.ShardID) {
	for _, fl := range f.mu.followers {
		fl.mark(sh)
	}
	for _, fl := range f.mu.shards[sh].followers {
		fl.mark(sh)
	}
}

func (fl *follower) mark(sh dunlin.ShardID) {
	fl.marked[sh/64] |= 1 << (sh % 64)
	if fl.waiting {
		fl.waiting = false
		fl.wake <- struct{}{} // has room: it is empty whenever waiting is set
	}
}

// join registers a follower of shards (nil: all), all of them marked.
func (f *Feed) join(shards []dunlin.ShardID, local bool) *follower {
	fl := &follower{shards: shards, local: local, marked: make([]uint64, (f.cfg.Shards+63)/64), wake: make(chan struct{}, 1)}
	if f.enter(fl) {
		f.Poke()
	}
	if shards == nil {
		for i := range f.cfg.Shards {
			f.watch(dunlin.ShardID(i))
		}
	}
	for _, sh := range shards {
		f.watch(sh)
	}
	return fl
}

// enter puts fl on the lists. It reports whether a shard is wanted that was not and is elsewhere.
func (f *Feed) enter(fl *follower) (look bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if fl.shards == nil {
		f.mu.followers = append(f.mu.followers, fl)
		f.mu.all++
		for i := range f.cfg.Shards {
			fl.marked[i/64] |= 1 << (i % 64)
			look = look || !f.mu.shards[i].fresh && f.mu.shards[i].peer == nil
		}
		return look
	}
	for _, sh := range fl.shards {
		s := &f.mu.shards[sh]
		s.followers = append(s.followers, fl)
		s.refs++
		if !fl.local {
			s.wants++
			look = look || !s.fresh && s.peer == nil
		}
		fl.marked[sh/64] |= 1 << (sh % 64)
	}
	return look
}

func (f *Feed) leave(fl *follower) {
	now := f.cfg.Clock()
	f.mu.Lock()
	defer f.mu.Unlock()
	is := func(o *follower) bool { return o == fl }
	if fl.shards == nil {
		f.mu.followers = slices.DeleteFunc(f.mu.followers, is)
		f.mu.all--
		for i := range f.mu.shards {
			f.mu.shards[i].idleAt = now
		}
		return
	}
	for _, sh := range fl.shards {
		s := &f.mu.shards[sh]
		s.followers = slices.DeleteFunc(s.followers, is)
		s.refs--
		if !fl.local {
			s.wants--
		}
		s.idleAt = now
	}
}

// wanted tells whether somebody reads the shard: at all, and what is elsewhere. It lingers a little after the last of them,
// because whoever follows for a while at a time is back at once.
func (f *Feed) wantedLocked(sh dunlin.ShardID, now dunlin.Time) (here, elsewhere bool) {
	s := &f.mu.shards[sh]
	lingers := s.idleAt != 0 && now.Sub(s.idleAt) < f.cfg.Linger
	return f.mu.all > 0 || s.refs > 0 || lingers, f.mu.all > 0 || s.wants > 0 || lingers && s.peer != nil
}

// watch has the journal tell of the shard's news. Entries from before may have been told to nobody: the caller reads once
// after it.
func (f *Feed) watch(sh dunlin.ShardID) {
	f.watches.Lock()
	defer f.watches.Unlock()
	if f.watches.stop[sh] == nil {
		f.watches.stop[sh] = f.deps.Local.Watch(sh, func() { f.news(sh) })
	}
}

// unwatch stops the watches of shards that nobody reads, or all.
func (f *Feed) unwatch(all bool) {
	f.watches.Lock()
	defer f.watches.Unlock()
	now := f.cfg.Clock()
	for i, stop := range f.watches.stop {
		if stop == nil {
			continue
		}
		f.mu.Lock()
		here, _ := f.wantedLocked(dunlin.ShardID(i), now)
		f.mu.Unlock()
		if all || !here {
			stop()
			f.watches.stop[i] = nil
		}
	}
}

// next takes a marked shard, or readies fl to wait.
func (f *Feed) next(fl *follower) (dunlin.ShardID, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for i, w := range fl.marked {
		if w != 0 {
			bit := bits.TrailingZeros64(w)
			fl.marked[i] &^= 1 << bit
			return dunlin.ShardID(i*64 + bit), true
		}
	}
	fl.waiting = true
	return 0, false
}

// awake ends the readiness to wait after something else than the wake channel ended the wait.
func (f *Feed) awake(fl *follower) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if !fl.waiting {
		<-fl.wake // was sent with the lock held: it is there
	}
	fl.waiting = false
}

// Run keeps track of where the shards are and pulls what is followed from elsewhere, until ctx ends.
func (f *Feed) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer f.unwatch(true)
	var priming atomic.Bool
	ticker := time.NewTicker(f.cfg.Tick)
	defer ticker.Stop()
	for {
		f.look()
		for _, p := range f.assign() {
			wg.Go(func() { f.pull(ctx, p) })
		}
		f.unwatch(false)
		if !f.alone() && priming.CompareAndSwap(false, true) {
			wg.Go(func() { f.prime(ctx); priming.Store(false) })
		}
		select {
		case <-ticker.C:
		case <-f.poked:
		case <-ctx.Done():
			return nil
		}
	}
}
