package stream

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// Follow implements dunlin.Feed. An empty position means Now.
func (f *Feed) Follow(ctx context.Context, from *dunlin.Cursor, device *dunlin.DeviceKey) iter.Seq2[dunlin.FeedItem, error] {
	return func(yield func(dunlin.FeedItem, error) bool) {
		if len(*from) == 0 {
			now, err := f.Now(ctx)
			if err != nil {
				yield(dunlin.FeedItem{}, fmt.Errorf("follow: %w", err))
				return
			}
			*from = now
		}
		if len(*from) != f.cfg.Shards {
			yield(dunlin.FeedItem{}, fmt.Errorf("follow: %w: position of %d shards, there are %d", dunlin.ErrInvalid, len(*from), f.cfg.Shards))
			return
		}
		var shards []dunlin.ShardID
		if device != nil {
			shards = []dunlin.ShardID{f.cfg.ShardOf(*device)}
		}
		w := &following{Feed: f, ctx: ctx, at: *from, device: device, yield: yield,
			gaps: make(map[dunlin.ShardID]*gap), results: make(chan fill, fillsMax)}
		w.fl = f.join(shards, false)
		defer f.leave(w.fl)
		if err := w.run(); !errors.Is(err, errStop) {
			if ctx.Err() == nil {
				err = fmt.Errorf("follow: %w", err)
			}
			yield(dunlin.FeedItem{}, err)
		}
	}
}

// following is one Follow at work. All of it is its goroutine's own, but results.
type following struct {
	*Feed
	ctx    context.Context // of the call that this is a part of
	fl     *follower
	at     dunlin.Cursor
	device *dunlin.DeviceKey
	yield  func(dunlin.FeedItem, error) bool
	items  []dunlin.FeedItem // scratch

	gaps    map[dunlin.ShardID]*gap // shards that wait for something older than what is at hand
	filling int
	queue   []dunlin.ShardID // gaps that wait for others to be filled
	results chan fill        // size fillsMax: whoever fills never waits
}

// gap is a shard whose next entries are looked for at other nodes, or will be.
type gap struct {
	busy      bool        // being filled, or in the queue
	local     error       // why the replica here does not have it; nil if there is none, or it just is not up to date
	retryAt   dunlin.Time // if not busy
	fails     int
	lostSince dunlin.Time // since when all that were reached said that it is lost; 0: not so
}

// errStop ends a Follow whose consumer has enough.
var errStop = errors.New("the consumer has enough")

func (w *following) run() error {
	fills, cancel := context.WithCancel(w.ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	start := func(sh dunlin.ShardID) {
		w.filling++
		ask := gapRequest{shard: sh, next: max(w.at[sh], 1), device: w.device, local: w.gaps[sh].local}
		wg.Go(func() { w.results <- w.fill(fills, &ask) })
	}
	for {
		if sh, ok := w.next(w.fl); ok {
			if err := w.drain(sh); err != nil {
				return err
			}
			for len(w.queue) > 0 && w.filling < fillsMax {
				start(w.queue[0])
				w.queue = w.queue[1:]
			}
			continue
		}
		if err := w.wait(); err != nil {
			return err
		}
	}
}

// wait waits for news, what fills a gap, or the time to look for it again.
func (w *following) wait() error {
	var retry <-chan time.Time
	if at := w.retryAt(); at != 0 {
		t := time.NewTimer(max(at.Sub(w.cfg.Clock()), 0))
		defer t.Stop()
		retry = t.C
	}
	select {
	case <-w.fl.wake:
		return nil
	case r := <-w.results:
		w.awake(w.fl)
		return w.filled(&r)
	case <-retry:
		w.awake(w.fl)
		now := w.cfg.Clock()
		for sh, g := range w.gaps {
			if !g.busy && now >= g.retryAt {
				w.again(sh)
			}
		}
		return nil
	case <-w.ctx.Done():
		w.awake(w.fl)
		return context.Cause(w.ctx)
	}
}

// again marks a shard for the follower itself.
func (w *following) again(sh dunlin.ShardID) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fl.marked[sh/64] |= 1 << (sh % 64)
}

func (w *following) retryAt() (first dunlin.Time) {
	for _, g := range w.gaps {
		if !g.busy && (first == 0 || g.retryAt < first) {
			first = g.retryAt
		}
	}
	return first
}

// drain yields what there is of the shard from the position on, from wherever it is at hand.
func (w *following) drain(sh dunlin.ShardID) error {
	for {
		if g := w.gaps[sh]; g != nil && g.busy {
			return nil
		}
		next := max(w.at[sh], 1)
		items, upTo, gone, err := w.read(sh, next)
		switch {
		case gone:
			w.look(sh, err)
			return nil
		case err != nil:
			return err
		}
		delete(w.gaps, sh) // it is at hand, or there is nothing yet
		if upTo == next {
			return nil
		}
		if err := w.emitAll(sh, items, upTo); err != nil {
			return err
		}
	}
}

// read takes what is at hand: of the replica here, whether it is up to date or not, because all it has is committed; and if
// that ends here, of the tail. gone: there is something, but older than what is at hand, err says
// why if there is a replica here.
func (w *following) read(sh dunlin.ShardID, next uint64) (items []dunlin.FeedItem, upTo uint64, gone bool, err error) {
	w.mu.Lock()
	present, fresh := w.mu.shards[sh].present, w.mu.shards[sh].fresh
	w.mu.Unlock()
	if present {
		items, upTo, err := w.deps.Local.Read(sh, next)
		switch {
		case err == nil && (upTo > next || fresh):
			return items, upTo, false, nil
		case err != nil && w.alone():
			return nil, next, false, err
		case err != nil: // not kept, or the replica is being replaced under our hands: others have it
			return nil, next, true, err
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	items, upTo, gone = w.mu.shards[sh].tail.read(next, w.items[:0])
	w.items = items
	return items, upTo, gone, nil
}

// look has the shard's gap filled, at once or when its time has come.
func (w *following) look(sh dunlin.ShardID, local error) {
	g := w.gaps[sh]
	if g == nil {
		g = &gap{}
		w.gaps[sh] = g
	}
	if w.cfg.Clock() < g.retryAt {
		return
	}
	g.busy, g.local = true, local
	w.queue = append(w.queue, sh)
}

// filled takes what was found.
func (w *following) filled(r *fill) error {
	w.filling--
	g := w.gaps[r.shard]
	g.busy = false
	w.again(r.shard)
	switch {
	case r.err == nil:
		delete(w.gaps, r.shard)
		return w.emitAll(r.shard, r.items, r.upTo)
	case errors.Is(r.err, errAway):
		now := w.cfg.Clock()
		switch {
		case !r.lost:
			g.lostSince = 0
		case g.lostSince == 0:
			g.lostSince = now
		case now.Sub(g.lostSince) >= w.cfg.LostAfter:
			return lost(r.shard, max(w.at[r.shard], 1))
		}
		g.retryAt = now.Add(backoff(g.fails))
		g.fails++
		return nil
	}
	return r.err
}

// emitAll yields items and moves the position to upTo.
func (w *following) emitAll(sh dunlin.ShardID, items []dunlin.FeedItem, upTo uint64) error {
	defer clear(items)
	for _, it := range items {
		if err := w.emit(sh, it); err != nil {
			return err
		}
	}
	w.at[sh] = upTo
	return nil
}

// emit moves the position behind an entry and yields it, if it has the device.
func (w *following) emit(sh dunlin.ShardID, it dunlin.FeedItem) error {
	w.at[sh] = it.Index
	if w.ctx.Err() != nil {
		return context.Cause(w.ctx)
	}
	w.at[sh] = it.Index + 1
	if w.device != nil && !touches(it.Entry, *w.device) {
		return nil
	}
	if !w.yield(it, nil) {
		return errStop
	}
	return nil
}

// touches tells whether an entry has to do with a device.
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
