package router

import (
	"context"
	"errors"
	"log/slog"
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// send does what Flush found to do, and reports whether Flush should look again. It runs without the lock; a call may come back
// before Go returns.
func (r *Router) send(out *outbox) (again bool) {
	r.tellAll(out.refused)
	for i := range out.local {
		r.handOver(&out.local[i])
	}
	for _, c := range out.calls {
		body := appendBatch(make([]byte, 0, 64+c.bytes/4), r.life, c.parts)
		r.met.calls.Inc()
		r.met.forwarded.Add(float64(c.uplinks))
		r.deps.Caller.Go(c.peer.node, methodUplinks, body, func(reply []byte, err error) { r.returned(c, reply, err) })
	}
	return len(out.local) > 0
}

// handOver gives a lane's uplinks to the Directory. What comes for the shard meanwhile waits behind them, and what the Directory
// does not take goes back to where it was.
func (r *Router) handOver(p *part) {
	n := len(p.items)
	for i := 1; i < n; i++ {
		p.items[i-1].u.Next = p.items[i].u
	}
	var first *dunlin.Uplink
	if n > 0 {
		first = r.deps.Local.Post(p.shard, p.items[0].u)
	}
	taken := 0
	for taken < n && p.items[taken].u != first { // those may be anybody's by now, but this one is still ours
		taken++
	}
	l := &r.mu.lanes[p.shard]
	r.tellAll(r.handedOver(l, p.items[taken:], taken))
}

// handedOver puts back what is left.
func (r *Router) handedOver(l *lane, left []item, taken int) (told []verdict) {
	r.mu.Lock()
	defer r.mu.Unlock()
	l.busy = false
	l.held.Add(int64(-taken))
	bytes := int64(0)
	for i := range left {
		if left[i].u.Next = nil; r.mu.closed {
			told = append(told, verdict{u: left[i].u, receipt: refusal(errClosing), lane: l})
		}
		left[i].early = false // what has yet to come back from there was before
		bytes += int64(left[i].bytes)
	}
	if told != nil {
		return told
	}
	l.insert(left...)
	l.bytes += bytes
	r.accountLocked(r.windowLocked(l), len(left), bytes)
	r.touchLocked(l)
	return nil
}

// refuses reports whether an uplink of this device is being refused: this one must not be before it.
func (l *lane) refuses(u *dunlin.Uplink) bool {
	_, ok := l.refused[u.DeviceKey]
	return ok
}

// refuseLocked decides that an uplink is refused for now, and whatever else comes of its device until it is told.
func (l *lane) refuseLocked(u *dunlin.Uplink, rec dunlin.Receipt, told []verdict) []verdict {
	if l.refused == nil {
		l.refused = map[dunlin.DeviceKey]struct{}{}
	}
	l.refused[u.DeviceKey] = struct{}{}
	l.telling++
	return append(told, verdict{u: u, receipt: rec, lane: l, refused: true})
}

// cascadeLocked refuses what waits in a lane behind uplinks that are refused.
func (r *Router) cascadeLocked(l *lane, told []verdict) []verdict {
	if l.refused == nil || len(l.queue) == 0 {
		return told
	}
	keep := l.queue[:0:0]
	for _, it := range l.queue {
		if !l.refuses(it.u) {
			keep = append(keep, it)
			continue
		}
		told = l.refuseLocked(it.u, refusal(errBehind), told)
		l.bytes -= int64(it.bytes)
		r.accountLocked(r.windowLocked(l), -1, -int64(it.bytes))
	}
	l.queue = keep
	return told
}

// tellAll tells what was decided.
func (r *Router) tellAll(told []verdict) {
	refused := false
	for _, v := range told {
		r.met.told(v.receipt)
		refused = refused || v.refused
		tell(v.u, v.receipt)
		v.lane.held.Add(-1) // only now: who is told asks what it may do next
	}
	if !refused {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, v := range told {
		if !v.refused {
			continue
		}
		if v.lane.telling--; v.lane.telling == 0 {
			v.lane.refused = nil
		}
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
	r.tellAll(told)
	if !closed {
		r.Flush()
	}
}

// verdict is an uplink that is to be told.
type verdict struct {
	u       *dunlin.Uplink
	receipt dunlin.Receipt
	lane    *lane
	refused bool // for now, so that it will come again
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
		switch {
		case once && !r.mu.closed && !l.refuses(it.u):
			it.early = true
			again = append(again, it)
		case rec.Err != nil && laterMaybe(rec.Err):
			told = l.refuseLocked(it.u, rec, told)
		default:
			told = append(told, verdict{u: it.u, receipt: rec, lane: l})
		}
	}
	told = r.cascadeLocked(l, told)
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

// laterMaybe reports whether a refusal is for now only.
func laterMaybe(err error) bool {
	return errors.Is(err, dunlin.ErrUnavailable) || errors.Is(err, dunlin.ErrNotOwner) || errors.Is(err, dunlin.ErrOverloaded)
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
	var out outbox
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
	if r.send(&out) {
		r.Flush()
	}
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
			if now-it.since < r.cfg.WaitMax && !l.refuses(it.u) {
				keep = append(keep, it)
				continue
			}
			out.refused = l.refuseLocked(it.u, refusal(errNobody), out.refused)
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
	var left []verdict
	for _, p := range r.mu.peers {
		calls = append(calls, p.calls...)
	}
	for i := range r.mu.lanes {
		l := &r.mu.lanes[i]
		for _, it := range l.queue {
			left = append(left, verdict{u: it.u, receipt: refusal(errClosing), lane: l})
		}
		r.emptyLocked(l)
	}
	r.mu.Unlock()
	r.timer.Stop()
	r.tellAll(left)
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
