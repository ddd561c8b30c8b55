package store

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"math/bits"
	"slices"
	"sync"

	"github.com/dunlin-iot/dunlin"
)

// Journal is the entries that were applied, as a stream: it implements dunlin.Feed. The newest are in memory while somebody
// follows, the ones before in the Raft log, those before in the archive. A follower is never waited for: one that falls
// behind what is in memory reads from disk until it has caught up.
//
// There is no goroutine here. Apply puts entries into the shard's tail, marks the shard with those who follow it and wakes
// the ones that wait; a follower looks at marked shards only, so that its cost is that of the entries.
type Journal struct {
	log     *Log
	archive *archive
	shards  int
	shardOf func(dunlin.DeviceKey) dunlin.ShardID
	max     int // bytes of all tails

	mu struct {
		sync.Mutex
		tails     []tail // by shard
		bytes     int
		followers []*follower // of all shards
	}
}

var _ dunlin.Feed = (*Journal)(nil)

// tail is the newest applied entries of a shard. All that has an effect between from and head is in items.
type tail struct {
	from, head uint64 // head is the next index to be applied
	items      []tailItem
	bytes      int
	followers  []*follower // of this shard only
}

type tailItem struct {
	index uint64
	entry *dunlin.Entry
	size  int
}

// follower is one Follow at work. Its fields are guarded by Journal.mu.
type follower struct {
	one     bool // follows shard only
	shard   dunlin.ShardID
	marked  []uint64 // bit set of shards that may have news
	waiting bool
	wake    chan struct{} // size 1: at least one shard was marked since it waits
	news    func()        // not nil: called instead of all that, with Journal.mu held

	items []dunlin.FeedItem // scratch of the follower's own goroutine
}

// itemOverhead is what a decoded entry takes in memory for each byte of its encoding, about.
const itemOverhead = 4

// followItems is how many entries a follower takes from a tail at once, followBytes from the log.
const (
	followItems = 256
	followBytes = 256 << 10
)

func newJournal(c *Config, log *Log, state *State, a *archive) *Journal {
	j := &Journal{log: log, archive: a, shards: state.shards, shardOf: c.ShardOf, max: c.TailBytes}
	j.mu.tails = make([]tail, state.shards)
	for i := range j.mu.tails {
		j.mu.tails[i].head = state.applied[i].Load() + 1
		j.mu.tails[i].from = j.mu.tails[i].head
	}
	return j
}

// Now returns the position after the newest applied entry of every shard. It neither blocks nor fails.
func (j *Journal) Now(context.Context) (dunlin.Cursor, error) { return j.heads(), nil }

func (j *Journal) heads() dunlin.Cursor {
	j.mu.Lock()
	defer j.mu.Unlock()
	c := make(dunlin.Cursor, j.shards)
	for i := range c {
		c[i] = j.mu.tails[i].head
	}
	return c
}

func (j *Journal) tailBytes() int {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.mu.bytes
}

// push takes over what was applied.
func (j *Journal) push(entries []appliedEntry) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i := range entries {
		e := &entries[i]
		t := &j.mu.tails[e.shard]
		t.head = e.index + 1
		if len(t.followers) == 0 && len(j.mu.followers) == 0 {
			t.from = t.head
			continue
		}
		if e.entry == nil {
			continue
		}
		size := itemOverhead*e.size + 64
		t.items = append(t.items, tailItem{e.index, e.entry, size})
		t.bytes += size
		j.mu.bytes += size
		mark(j.mu.followers, e.shard)
		mark(t.followers, e.shard)
	}
	for j.mu.bytes > j.max {
		j.shrinkLocked()
	}
}

func mark(followers []*follower, shard dunlin.ShardID) {
	for _, f := range followers {
		if f.news != nil {
			f.news()
			continue
		}
		f.marked[shard/64] |= 1 << (shard % 64)
		if f.waiting {
			f.waiting = false
			f.wake <- struct{}{} // has room: it is empty whenever waiting is set
		}
	}
}

// shrinkLocked drops the older half of the largest tail.
func (j *Journal) shrinkLocked() {
	largest := &j.mu.tails[0]
	for i := range j.mu.tails {
		if t := &j.mu.tails[i]; t.bytes > largest.bytes {
			largest = t
		}
	}
	j.dropLocked(largest, (len(largest.items)+1)/2)
}

func (j *Journal) dropLocked(t *tail, n int) {
	for _, it := range t.items[:n] {
		t.bytes -= it.size
		j.mu.bytes -= it.size
		t.from = it.index + 1
	}
	if n == len(t.items) {
		t.items = nil
		return
	}
	t.items = slices.Clone(t.items[n:])
}

func (j *Journal) join(device *dunlin.DeviceKey) *follower {
	f := &follower{marked: make([]uint64, (j.shards+63)/64), wake: make(chan struct{}, 1)}
	j.mu.Lock()
	defer j.mu.Unlock()
	if device != nil && j.shardOf != nil {
		j.joinLocked(f, j.shardOf(*device))
		return f
	}
	j.mu.followers = append(j.mu.followers, f)
	for i := range j.shards {
		f.marked[i/64] |= 1 << (i % 64)
	}
	return f
}

// joinLocked lets f follow one shard.
func (j *Journal) joinLocked(f *follower, shard dunlin.ShardID) {
	f.one, f.shard = true, shard
	t := &j.mu.tails[shard]
	t.followers = append(t.followers, f)
	f.marked[shard/64] |= 1 << (shard % 64)
}

func (j *Journal) leave(f *follower) {
	j.mu.Lock()
	defer j.mu.Unlock()
	is := func(o *follower) bool { return o == f }
	if f.one {
		t := &j.mu.tails[f.shard]
		t.followers = slices.DeleteFunc(t.followers, is)
	} else {
		j.mu.followers = slices.DeleteFunc(j.mu.followers, is)
	}
	if len(j.mu.followers) > 0 {
		return
	}
	for i := range j.mu.tails {
		if t := &j.mu.tails[i]; len(t.followers) == 0 {
			j.dropLocked(t, len(t.items))
			t.from = t.head
		}
	}
}

// next takes a marked shard, or readies f to wait.
func (j *Journal) next(f *follower) (dunlin.ShardID, bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	for i, w := range f.marked {
		if w != 0 {
			bit := bits.TrailingZeros64(w)
			f.marked[i] &^= 1 << bit
			return dunlin.ShardID(i*64 + bit), true
		}
	}
	f.waiting = true
	return 0, false
}

// Follow implements dunlin.Feed. An empty position means Now.
func (j *Journal) Follow(ctx context.Context, from *dunlin.Cursor, device *dunlin.DeviceKey) iter.Seq2[dunlin.FeedItem, error] {
	return func(yield func(dunlin.FeedItem, error) bool) {
		if len(*from) == 0 {
			*from = j.heads()
		}
		if len(*from) != j.shards {
			yield(dunlin.FeedItem{}, fmt.Errorf("follow: %w: position of %d shards, there are %d", dunlin.ErrInvalid, len(*from), j.shards))
			return
		}
		f := j.join(device)
		defer j.leave(f)
		w := &following{Journal: j, follower: f, ctx: ctx, at: *from, device: device, yield: yield}
		for {
			if shard, ok := j.next(f); ok {
				if err := w.drain(shard); err != nil {
					if !errors.Is(err, errStop) {
						yield(dunlin.FeedItem{}, fmt.Errorf("follow: %w", err))
					}
					return
				}
				continue
			}
			select {
			case <-f.wake:
			case <-ctx.Done():
				yield(dunlin.FeedItem{}, context.Cause(ctx))
				return
			}
		}
	}
}

// following is the part of Follow that reads.
type following struct {
	*Journal
	*follower
	ctx    context.Context // of the call that this is a part of
	at     dunlin.Cursor
	device *dunlin.DeviceKey
	yield  func(dunlin.FeedItem, error) bool
}

// drain yields what the shard has from the position on. It returns errStop when the consumer has enough.
func (w *following) drain(shard dunlin.ShardID) error {
	for {
		items, upTo, err := w.read(shard, w.at[shard], w.items[:0])
		if err != nil {
			return err
		}
		if upTo == max(w.at[shard], 1) {
			return nil
		}
		for _, it := range items {
			if err := w.emit(shard, it.Index, it.Entry); err != nil {
				return err
			}
		}
		clear(items)
		w.items = items
		w.at[shard] = upTo
	}
}

// emit moves the position behind an entry and yields it, if it has an effect and the device.
func (w *following) emit(shard dunlin.ShardID, index uint64, e *dunlin.Entry) error {
	w.at[shard] = index + 1
	if w.device != nil && !touches(e, *w.device) {
		return nil
	}
	if w.ctx.Err() != nil {
		w.at[shard] = index
		return context.Cause(w.ctx)
	}
	if !w.yield(dunlin.FeedItem{Index: index, Entry: e}, nil) {
		return errStop
	}
	return nil
}

func touches(e *dunlin.Entry, key dunlin.DeviceKey) bool {
	for i := range e.Changes {
		if e.Changes[i].DeviceKey == key {
			return true
		}
	}
	for i := range e.Puts {
		if p := &e.Puts[i]; p.Table == dunlin.TableDevices && len(p.Key) == len(key.Tenant)+1+len(key.Device) && p.Key == key.String() {
			return true
		}
	}
	return false
}
