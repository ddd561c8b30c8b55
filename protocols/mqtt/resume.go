package mqtt

import (
	"context"
	"errors"
	"fmt"

	"github.com/dunlin-iot/dunlin"
)

// mark begins the account of what is through at the follower's position, and finds out up to where a lost holder may have
// sent.
func (w *follower) mark(ctx context.Context) error {
	f := w.f
	if f.repeats {
		now, err := w.g.present(ctx)
		if err != nil {
			return err
		}
		f.repeats, f.sentTo = false, now
	}
	w.s.mu.Lock()
	f.mark = f.at.clone()
	w.s.mu.Unlock()
	return nil
}

// through notes that the shard is read up to next.
func (w *follower) through(sh dunlin.ShardID, next uint64) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	f, kp := w.f, &w.s.mu.keep
	if w.s.mu.conn != w.c || int(sh) >= len(f.mark.cur) {
		return
	}
	f.mark.cur[sh] = next
	if f.mark.shard == sh && f.mark.index < next {
		f.mark.skip = 0
	}
	if kp.passed++; kp.passed >= passedMax {
		w.s.touchLocked()
	}
}

// addedLocked notes where the newest message of the box comes from. The session's lock is held.
func (w *follower) addedLocked() {
	f, p := w.f, w.spot
	it := f.box.at(f.box.n - 1)
	it.place = p
	if int(p.shard) < len(f.sentTo) && p.index < f.sentTo[p.shard] {
		it.dup = true // perhaps it was never sent: "may be" is what DUP says
	}
	if int(p.shard) < len(f.mark.cur) {
		f.mark.cur[p.shard] = p.index
		f.mark.shard, f.mark.index, f.mark.skip, f.mark.device = p.shard, p.index, p.nth+1, w.of
	}
	w.s.touchLocked()
}

// finish delivers the rest of the entry that the connection before broke off in. It comes first, whatever else there is:
// only one entry is ever half through.
func (w *follower) finish(ctx context.Context) error {
	at := &w.f.at
	if at.skip == 0 || at.device == "" || int(at.shard) >= len(at.cur) || at.cur[at.shard] > at.index {
		at.skip = 0
		return nil
	}
	e, err := w.entryAt(ctx, place{shard: at.shard, index: at.index}, at.device)
	if err != nil {
		return err
	}
	if e != nil {
		if done, err := w.entry(ctx, dunlin.FeedItem{Index: at.index, Entry: e}, at.skip); err != nil {
			at.skip, at.device = done, w.of
			return err
		}
		at.cur[at.shard] = at.index + 1
		w.through(at.shard, at.index+1)
	}
	at.skip = 0
	return nil
}

// refill reads what is left of the connection before from the log, if that was at another node: its messages are known by
// their places alone.
func (w *follower) refill(ctx context.Context) error {
	for {
		p, device, err := w.nextHollow()
		if err != nil || device == "" {
			return err
		}
		e, err := w.entryAt(ctx, p, device)
		if err != nil {
			return err
		}
		if err := w.fill(p, e); err != nil {
			return err
		}
	}
}

// nextHollow returns the place of the first message that is to be read; device "": there is none.
func (w *follower) nextHollow() (p place, device dunlin.DeviceID, err error) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if w.s.mu.conn != w.c {
		return p, "", errGone
	}
	for i := range w.f.box.n {
		if it := w.f.box.at(i); it.hollow && !it.acked {
			return it.place, it.of, nil
		}
	}
	return p, "", nil
}

// entryAt reads the entry that has a message; nil if it has no effect any more.
func (w *follower) entryAt(ctx context.Context, p place, device dunlin.DeviceID) (*dunlin.Entry, error) {
	from := append(dunlin.Cursor(nil), w.f.at.cur...)
	if int(p.shard) >= len(from) {
		return nil, fmt.Errorf("%w: place in shard %d", dunlin.ErrInvalid, p.shard)
	}
	from[p.shard] = p.index
	for item, err := range w.g.deps.Feed.Follow(ctx, &from, &dunlin.DeviceKey{Tenant: w.s.key.tenant, Device: device}) {
		if err != nil {
			return nil, err
		}
		if item.Index != p.index || item.Entry.Shard != p.shard {
			return nil, nil
		}
		return item.Entry, nil
	}
	return nil, errors.Join(errFeedEnded, ctx.Err())
}

// fill makes all messages of an entry whole.
func (w *follower) fill(p place, e *dunlin.Entry) (err error) {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	box := &w.f.box
	nth := 0
	if e != nil {
		eachNews(e, w.s.key.tenant, func(n news) bool {
			for i := range box.n {
				it := box.at(i)
				if !it.hollow || it.place != (place{p.shard, p.index, nth}) {
					continue
				}
				w.topic = appendTopic(w.topic[:0], &n)
				if w.payload, err = appendPayload(w.payload[:0], &n); err != nil {
					return false
				}
				_, w.ids, _ = match(w.s.mu.subs, &n, p.shard, p.index, w.ids)
				box.fill(it, &message{kind: n.kind, topic: w.topic, payload: w.payload, media: n.media(), subIDs: w.ids})
			}
			nth++
			return true
		})
	}
	var lost []uint16
	for i := range box.n {
		if it := box.at(i); it.hollow && !it.acked && it.place.shard == p.shard && it.place.index == p.index {
			lost = append(lost, it.id) // the log has no such message: then nothing is owed
		}
	}
	for _, id := range lost {
		box.ack(id)
	}
	return err
}
