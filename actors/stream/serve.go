package stream

import (
	"context"
	"fmt"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// served is a peer whose questions are at work here. Guarded by Feed.mu.
type served struct {
	n     int           // questions
	ended chan struct{} // closed when a newer waiting pull takes the place of the one that waits; nil: none waits
}

// Serve answers another node's feed. Of a peer's waiting pulls the newest counts: it ends the one before, so a peer that gave
// up on a pull holds nothing here.
func (f *Feed) Serve(ctx context.Context, from dunlin.NodeID, method string, body []byte) ([]byte, error) {
	if method != MethodPull {
		return nil, fmt.Errorf("feed: %w: method %q", dunlin.ErrInvalid, method)
	}
	req, err := decodePull(body, f.cfg.Shards)
	if err != nil {
		return nil, fmt.Errorf("feed: %w", err)
	}
	ended, err := f.admit(from, req.wait > 0)
	if err != nil {
		return nil, fmt.Errorf("feed: %w", err)
	}
	defer f.dismiss(from, ended)
	return f.serve(ctx, &req, ended)
}

// admit counts a question in. ended is closed when a newer one takes its place.
func (f *Feed) admit(from dunlin.NodeID, waits bool) (ended chan struct{}, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.mu.serving[from]
	if s == nil {
		s = &served{}
		f.mu.serving[from] = s
	}
	if s.n >= servingMax {
		return nil, fmt.Errorf("%w: %d questions of node %s are at work", dunlin.ErrOverloaded, s.n, from)
	}
	s.n++
	if !waits {
		return nil, nil
	}
	if s.ended != nil {
		close(s.ended)
	}
	s.ended = make(chan struct{})
	return s.ended, nil
}

func (f *Feed) dismiss(from dunlin.NodeID, ended chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.mu.serving[from]
	if ended != nil && s.ended == ended {
		s.ended = nil
	}
	if s.n--; s.n == 0 {
		delete(f.mu.serving, from)
	}
}

// serve reads what is asked for, and waits for it if there is nothing.
func (f *Feed) serve(ctx context.Context, req *pull, ended chan struct{}) ([]byte, error) {
	w := newReply(min(max(req.max, 1), f.cfg.ReplyBytes))
	if req.wait == 0 {
		for _, at := range req.from {
			f.answer(w, at, req.device, true)
		}
		return w.b, nil
	}
	shards := make([]dunlin.ShardID, len(req.from))
	for i, at := range req.from {
		shards[i] = at.shard
	}
	fl := f.join(shards, true)
	defer f.leave(fl)
	timer := time.NewTimer(req.wait)
	defer timer.Stop()
	for {
		marked := f.takeMarked(fl)
		for _, at := range req.from {
			if marked[at.shard/64]&(1<<(at.shard%64)) != 0 {
				f.answer(w, at, req.device, false)
			}
		}
		if !w.empty() {
			return w.b, nil
		}
		if !f.readyToWait(fl) {
			continue
		}
		select {
		case <-fl.wake:
			continue
		case <-timer.C:
		case <-ended:
		case <-ctx.Done():
			f.awake(fl)
			return nil, context.Cause(ctx)
		}
		f.awake(fl)
		return w.b, nil
	}
}

// takeMarked takes all marked shards at once.
func (f *Feed) takeMarked(fl *follower) []uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	marked := append([]uint64(nil), fl.marked...)
	clear(fl.marked)
	return marked
}

// readyToWait readies fl to wait, unless there is something to read already.
func (f *Feed) readyToWait(fl *follower) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, w := range fl.marked {
		if w != 0 {
			return false
		}
	}
	fl.waiting = true
	return true
}

// answer appends what the replica here has to say about a position; nothing, if it has nothing new and always is not set.
func (f *Feed) answer(w *replyWriter, at position, device *dunlin.DeviceKey, always bool) {
	present, fresh := f.here(at.shard)
	w.open(at.shard, at.next)
	head := f.deps.Local.Head(at.shard)
	st := statusOK
	if !fresh {
		st = statusStale
	}
	switch {
	case !present:
		w.close(statusAbsent, at.next, 0)
		return
	case at.next == 0:
		w.close(st, head, head)
		return
	}
	next, err := f.copyItems(w, at, device)
	switch {
	case err != nil && next == at.next:
		w.close(statusLost, next, head) // also if it can't be read: for the one who asks it is the same
	case next > at.next:
		w.close(statusOK, next, head)
	case always || st != statusOK:
		w.close(st, next, head)
	}
}

// copyItems appends entries until the reply is full or there are no more. With a device it stops after some reading, whether
// anything was found or not: the position tells how far it came.
func (f *Feed) copyItems(w *replyWriter, at position, device *dunlin.DeviceKey) (next uint64, err error) {
	next = at.next
	for range readsMax {
		if !w.room() {
			return next, nil
		}
		items, upTo, err := f.deps.Local.Read(at.shard, next)
		if err != nil || upTo == next {
			return next, err
		}
		for _, it := range items {
			if !w.room() {
				return it.Index, nil
			}
			if device != nil && !touches(it.Entry, *device) {
				continue
			}
			if !w.item(it) {
				return it.Index, fmt.Errorf("entry %d of shard %d: %w", it.Index, at.shard, dunlin.ErrTooLarge)
			}
		}
		next = upTo
	}
	return next, nil
}
