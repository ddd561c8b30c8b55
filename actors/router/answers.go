package router

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// send does what Flush found to do. It runs without the lock; a call may come back before Go returns.
func (r *Router) send(out *outbox) {
	for _, it := range out.refused {
		r.met.unavailable.Inc()
		tell(it.u, refusal(out.why))
	}
	if len(out.local) > 0 {
		for i := range out.local[1:] {
			out.local[i].u.Next = out.local[i+1].u
		}
		r.deps.Local.Ingest(out.local[0].u)
	}
	for _, c := range out.calls {
		body := appendBatch(make([]byte, 0, 64+c.bytes/4), r.life, c.parts)
		r.met.calls.Inc()
		r.met.forwarded.Add(float64(c.uplinks))
		r.deps.Caller.Go(c.peer.node, methodUplinks, body, func(reply []byte, err error) { r.returned(c, reply, err) })
	}
}

// returned ends a call: with the owner's answer, or with what became of it instead.
func (r *Router) returned(c *call, reply []byte, err error) {
	if !r.end(c) {
		return // it took too long, and was given up
	}
	var answers []answer
	if err == nil {
		if answers, err = r.decodeReply(reply, c.parts); err != nil {
			r.cfg.Log.Error("reply to a batch of uplinks", slog.String("node", c.peer.node.String()), slog.Any("error", err))
			err = errLost
		}
	}
	var told []verdict
	r.mu.Lock()
	now := r.now()
	for i := range c.parts {
		a := answer{err: err}
		if err == nil {
			a = answers[i]
		}
		told = r.judgeLocked(c, &c.parts[i], &a, now, told)
	}
	closed := r.mu.closed
	r.mu.Unlock()
	for i := range answers {
		if a := &answers[i]; a.hint != 0 {
			r.deps.Owners.Hint(c.parts[i].shard, a.hint, a.hintTerm)
		}
	}
	for _, v := range told {
		r.met.told(v.receipt)
		tell(v.u, v.receipt)
	}
	if !closed {
		r.Flush()
	}
}

// verdict is an uplink that is to be told.
type verdict struct {
	u       *dunlin.Uplink
	receipt dunlin.Receipt
}

// end takes a call out of those in flight; false if somebody else has.
func (r *Router) end(c *call) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if c.over {
		return false
	}
	c.over = true
	for i, o := range c.peer.calls {
		if o == c {
			last := len(c.peer.calls) - 1
			c.peer.calls[i] = c.peer.calls[last]
			c.peer.calls[last] = nil
			c.peer.calls = c.peer.calls[:last]
			break
		}
	}
	r.accountLocked(c.peer, -c.uplinks, -c.bytes)
	return true
}

// judgeLocked decides about the uplinks of one part: those that have their answer are told, those that should be tried once more
// go back to the head of their lane.
func (r *Router) judgeLocked(c *call, p *part, a *answer, now time.Duration, told []verdict) []verdict {
	l := &r.mu.lanes[p.shard]
	l.busy = false
	var again []item
	for i := range p.items {
		it := p.items[i]
		rec, once := dunlin.Receipt{}, false
		switch {
		case a.refused: // nothing of it was tried
			once, rec = now-it.since < r.cfg.WaitMax, refusal(errMoved)
		case a.err != nil:
			once, rec = it.again(now, r.cfg.WaitMax) && !errors.Is(a.err, dunlin.ErrOverloaded), refusal(whyNot(a.err))
		default:
			rec = a.receipts[i]
			once = rec.Err != nil && errors.Is(rec.Err, dunlin.ErrNotOwner) && it.again(now, r.cfg.WaitMax)
		}
		if once && !r.mu.closed {
			it.early = true
			again = append(again, it)
		} else {
			told = append(told, verdict{it.u, rec})
		}
	}
	if len(again) == 0 {
		r.touchLocked(l)
		return told
	}
	r.met.retries.Add(float64(len(again)))
	rest := restRefused
	if a.err != nil {
		rest = restLost
	}
	l.avoid.node, l.avoid.term, l.avoid.until = c.peer.node, p.term, now+rest
	bytes := int64(0)
	for i := range again {
		bytes += int64(again[i].bytes)
	}
	r.accountLocked(r.windowLocked(l), len(again), bytes)
	l.bytes += bytes
	l.queue = append(again, l.queue...)
	r.touchLocked(l)
	return told
}

// again reports whether an uplink that was sent in vain may be sent again: once at least, and for a while.
func (it *item) again(now, wait time.Duration) bool {
	if !it.tried {
		it.tried, it.since = true, now
	}
	return now-it.since < wait
}

// whyNot is what an uplink's sender is told of a call that failed.
func whyNot(err error) error {
	if errors.Is(err, dunlin.ErrOverloaded) {
		return errWindow
	}
	return errLost
}

// Changed tells that owners have changed: what waits for one is looked at at once.
func (r *Router) Changed() {
	select {
	case r.poke <- struct{}{}:
	default:
	}
}

// mailers is how many goroutines ask for AskTwin.
const mailers = 4

// Run sees to what waits until ctx ends, and then refuses what is left.
func (r *Router) Run(ctx context.Context) error {
	var all sync.WaitGroup
	for range mailers {
		all.Go(func() { r.answerMail(ctx) })
	}
	defer r.stop()
	defer all.Wait()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.poke:
		case <-r.timer.C:
		}
		r.tick()
	}
}

// Close refuses new uplinks and waits for the answers to those in flight; when ctx ends first, what is left is refused.
func (r *Router) Close(ctx context.Context) error {
	r.closing.Store(true)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	var err error
	for err == nil && r.outstanding() > 0 {
		select {
		case <-tick.C:
			r.tick()
		case <-ctx.Done():
			err = context.Cause(ctx)
		}
	}
	r.stop()
	return err
}

// outstanding is how many uplinks are not answered.
func (r *Router) outstanding() (n int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	n = r.mu.nobody.uplinks
	for _, p := range r.mu.peers {
		n += p.uplinks
	}
	return n
}

// armLocked has the porter look around after so long, or before if it would anyway.
func (r *Router) armLocked(now time.Duration, in time.Duration) {
	if at := now + in; r.mu.armed == 0 || at < r.mu.armed {
		r.mu.armed = at
		r.timer.Reset(in)
	}
}

// tick looks at everything that time may have changed: owners, lanes that have waited for too long, calls that take too long.
func (r *Router) tick() {
	r.mu.Lock()
	if r.mu.closed {
		r.mu.Unlock()
		return
	}
	now := r.now()
	r.mu.armed = 0
	out := outbox{why: errNobody}
	r.overdueLocked(now, &out)
	late := r.lateLocked(now)
	r.placeLocked(now, &out)
	r.gatherLocked(now, &out)
	for _, p := range r.mu.peers {
		if len(p.calls) > 0 {
			r.armLocked(now, tickCalls)
		}
	}
	r.mu.Unlock()
	r.send(&out)
	for _, c := range late {
		r.returned(c, nil, errLost)
	}
}

// overdueLocked takes the lanes that wait, and those that are ready for somebody who is not the owner any more, to look for
// their owners again; uplinks that have waited too long are refused.
func (r *Router) overdueLocked(now time.Duration, out *outbox) {
	for _, l := range r.mu.waiting {
		l.place = laneIdle
		keep := l.queue[:0:0]
		for _, it := range l.queue {
			if now-it.since < r.cfg.WaitMax {
				keep = append(keep, it)
				continue
			}
			out.refused = append(out.refused, it)
			l.bytes -= int64(it.bytes)
			r.accountLocked(r.windowLocked(l), -1, -int64(it.bytes))
		}
		l.queue = keep
		r.touchLocked(l)
	}
	clear(r.mu.waiting)
	r.mu.waiting = r.mu.waiting[:0]
	for node, p := range r.mu.peers {
		rest := p.ready[:0]
		for _, l := range p.ready {
			if owner, term, ok := r.deps.Owners.Owner(l.shard); ok && owner == node {
				l.term = term
				rest = append(rest, l)
				continue
			}
			l.place = laneIdle
			r.touchLocked(l)
		}
		clear(p.ready[len(rest):])
		p.ready = rest
		if p.uplinks == 0 && len(p.calls) == 0 && len(r.mu.peers) > peersMax {
			r.forgetLocked(node, p)
		}
	}
}

// forgetLocked drops a peer that nothing goes to; it may have left the cluster for good.
func (r *Router) forgetLocked(node dunlin.NodeID, p *peer) {
	for i := range r.mu.lanes {
		if l := &r.mu.lanes[i]; l.peer == p {
			l.peer = nil // its queue is empty, so it counts nowhere
		}
	}
	delete(r.mu.peers, node)
}

// lateLocked returns the calls that take too long.
func (r *Router) lateLocked(now time.Duration) (late []*call) {
	for _, p := range r.mu.peers {
		for _, c := range p.calls {
			if now-c.began > r.cfg.CallMax {
				late = append(late, c)
			}
		}
	}
	return late
}

// stop refuses whatever is left; nothing is taken or sent from now on.
func (r *Router) stop() {
	r.closing.Store(true)
	r.mu.Lock()
	if r.mu.closed {
		r.mu.Unlock()
		return
	}
	r.mu.closed = true
	var calls []*call
	var left []item
	for _, p := range r.mu.peers {
		calls = append(calls, p.calls...)
	}
	for i := range r.mu.lanes {
		l := &r.mu.lanes[i]
		left = append(left, l.queue...)
		r.emptyLocked(l)
	}
	r.mu.Unlock()
	r.timer.Stop()
	for _, it := range left {
		tell(it.u, refusal(errClosing))
	}
	for len(r.mail) > 0 { // nothing comes in any more, but somebody may still be answering
		select {
		case m := <-r.mail:
			m.answer(nil, errClosing)
		default:
		}
	}
	for _, c := range calls {
		r.returned(c, nil, errClosing)
	}
	r.met.close()
}
