package router

import (
	"hash/maphash"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// Bounds of one call.
const (
	batchUplinksMax = 512
	batchBytesMax   = 256 << 10 // as costOf counts; a single uplink may be more
	perDeviceMax    = 16        // of a call: half of what a device's dedupe window remembers
)

// Bounds of the calls in flight to one node. The first few go at once, each with what has come since the one before: so they
// pace themselves by how long commits take. More than that only when a batch is full, and calls that take unusually long
// don't count any more: one stalled shard must not hold up what goes to the others.
const (
	callsYoung = 4
	callsFull  = 16
	callsMost  = 64
	youngAge   = 100 * time.Millisecond
)

// Pauses of the porter, and how long a node that said that it is not the owner, or did not answer, is left alone.
const (
	tickWaiting = 10 * time.Millisecond
	tickCalls   = 250 * time.Millisecond
	restRefused = 20 * time.Millisecond
	restLost    = 300 * time.Millisecond
)

// peersMax is how many nodes are remembered that nothing goes to: they may have left for good.
const peersMax = 256

// item is an uplink in the router's hands.
type item struct {
	u     *dunlin.Uplink
	since time.Duration // by Router.now, when it was taken, or was first sent in vain: for WaitMax from then on it is sent again
	bytes int32
	tried bool // it was sent, or proposed here, in vain
	early bool // it came before all that is not
}

// costOf is what an uplink counts in windows and batches.
func costOf(u *dunlin.Uplink) int32 {
	n := 256 + len(u.Payload) + 72*len(u.Records)
	for i := range u.Records {
		n += len(u.Records[i].Str)
	}
	return int32(min(n, 1<<30))
}

// The places of a lane.
const (
	laneIdle    = iota // empty, or its call is in flight
	laneTouched        // on the list of those that Flush looks at
	laneReady          // on its peer's list
	laneWaiting        // on the list of those whose owner is not known
)

// lane is what waits to be sent for one shard, oldest first.
type lane struct {
	shard   dunlin.ShardID
	held    atomic.Int64 // uplinks in queue, in flight and being told; none of its senders' passes by while there are any
	queue   []item
	bytes   int64
	place   uint8
	busy    bool                          // a call with uplinks of it is in flight, or they are on their way to the Directory
	calls   uint64                        // numbers its calls
	telling int                           // refusals that are being told
	refused map[dunlin.DeviceKey]struct{} // … of which devices: what comes of them meanwhile is refused, too
	peer    *peer                         // in whose window the queue counts; nil: in nobody's, which is for those without an owner
	term    uint64
	avoid   struct { // who is not to be tried again before
		node  dunlin.NodeID
		term  uint64
		until time.Duration
	}
}

// peer is a node that uplinks go to.
type peer struct {
	node    dunlin.NodeID
	uplinks int // in the lanes that go there, and in flight
	bytes   int64
	ready   []*lane
	calls   []*call
}

// call is a batch on its way. Whoever sets over, under the router's lock, answers what is in it.
type call struct {
	peer    *peer
	parts   []part
	uplinks int
	bytes   int64
	began   time.Duration
	over    bool
}

// part is one lane's uplinks in a call.
type part struct {
	shard dunlin.ShardID
	term  uint64 // in which the node is believed to own the shard; 0: unknown
	seq   uint64 // counts the lane's calls: see fences
	items []item
}

// Ingest implements dunlin.Ingestor. Uplinks of shards that are not owned here come back by Take.
func (r *Router) Ingest(first *dunlin.Uplink) { r.deps.Local.Ingest(first) }

// Holds implements actors.Elsewhere.
func (r *Router) Holds(sh dunlin.ShardID) bool { return r.mu.lanes[sh].held.Load() > 0 }

// Take implements actors.Elsewhere. What came from another node goes back there: that node's Router knows what it has tried.
func (r *Router) Take(sh dunlin.ShardID, u *dunlin.Uplink) bool { return r.take(sh, item{u: u}) }

// TakeBack implements actors.Elsewhere. What was proposed here may only be tried elsewhere if it can be told from a second
// message; and before what came after it, or the dedupe window of its device might have moved on.
func (r *Router) TakeBack(sh dunlin.ShardID, u *dunlin.Uplink, tried bool) bool {
	return !(tried && u.MessageID == 0) && r.take(sh, item{u: u, tried: tried, early: true})
}

func (r *Router) take(sh dunlin.ShardID, it item) bool {
	u := it.u
	if _, ok := u.Waiter.(*arrival); ok || r.closing.Load() {
		return false
	}
	it.bytes, it.since = costOf(u), r.now()
	r.mu.Lock()
	l := &r.mu.lanes[sh]
	p := r.windowLocked(l)
	switch {
	case r.mu.closed:
		r.mu.Unlock()
		return false
	case !it.early && l.refuses(u):
		r.mu.Unlock()
		r.met.unavailable.Inc()
		tell(u, refusal(errBehind))
		return true
	case p.uplinks >= r.cfg.WindowUplinks || p.bytes+int64(it.bytes) > r.cfg.WindowBytes:
		r.mu.Unlock()
		r.met.overloaded.Inc()
		tell(u, refusal(errWindow))
		return true
	}
	if u.MessageID == 0 {
		u.MessageID = r.stamps.make()
	}
	u.Flags |= dunlin.FlagForwarded
	u.Next = nil
	p.uplinks++
	p.bytes += int64(it.bytes)
	l.bytes += int64(it.bytes)
	l.held.Add(1)
	if it.early {
		l.insert(it)
	} else {
		l.queue = append(l.queue, it)
	}
	r.touchLocked(l)
	r.mu.Unlock()
	return true
}

// insert puts items behind the early ones.
func (l *lane) insert(items ...item) {
	n := 0
	for n < len(l.queue) && l.queue[n].early {
		n++
	}
	l.queue = slices.Insert(l.queue, n, items...)
}

func tell(u *dunlin.Uplink, rec dunlin.Receipt) {
	u.Next = nil
	if u.Waiter != nil {
		u.Waiter.Done(u, rec)
	}
}

func (r *Router) windowLocked(l *lane) *peer {
	if l.peer == nil {
		return &r.mu.nobody
	}
	return l.peer
}

// touchLocked makes the next Flush look at the lane.
func (r *Router) touchLocked(l *lane) {
	if l.place == laneIdle && !l.busy && len(l.queue) > 0 {
		l.place = laneTouched
		r.mu.touched = append(r.mu.touched, l)
	}
}

// Flush implements actors.Elsewhere: what can be sent is sent, by the caller.
func (r *Router) Flush() {
	for range flushesMax {
		r.mu.Lock()
		if len(r.mu.touched) == 0 {
			r.mu.Unlock()
			return
		}
		now := r.now()
		var out outbox
		r.placeLocked(now, &out)
		r.gatherLocked(now, &out)
		r.mu.Unlock()
		if !r.send(&out) {
			return
		}
	}
	r.Changed() // others go on filling what this goroutine empties
}

// flushesMax is how often a Flush looks for what came to shards of ours while it handed over what was before.
const flushesMax = 4

// outbox is what is to be done once the lock is released.
type outbox struct {
	calls   []*call
	local   []part // of shards that turned out to be ours
	refused []verdict
}

// placeLocked finds each touched lane its place.
func (r *Router) placeLocked(now time.Duration, out *outbox) {
	for _, l := range r.mu.touched {
		l.place = laneIdle
		r.assignLocked(l, now, out)
	}
	clear(r.mu.touched)
	r.mu.touched = r.mu.touched[:0]
}

// assignLocked puts a lane on the list of its owner, or of those without one. A shard that is ours is not a lane's matter.
func (r *Router) assignLocked(l *lane, now time.Duration, out *outbox) {
	if _, ok := r.deps.Local.Owned(l.shard); ok {
		out.local = append(out.local, part{shard: l.shard, items: l.queue})
		r.emptyLocked(l)
		l.busy = true // until they are handed over
		return
	}
	node, term, ok := r.deps.Owners.Owner(l.shard)
	if ok && (node == r.cfg.Self || r.deps.Local.Holds(l.shard) || node == l.avoid.node && term <= l.avoid.term && now < l.avoid.until) {
		ok = false // it is us, but not yet; or older ones are still to come back; or who has just said no
	}
	var p *peer
	if ok {
		p = r.peerLocked(node)
	}
	if p != l.peer {
		r.accountLocked(r.windowLocked(l), -len(l.queue), -l.bytes)
		l.peer = p
		r.accountLocked(r.windowLocked(l), len(l.queue), l.bytes)
	}
	if l.term = term; ok {
		l.place = laneReady
		p.ready = append(p.ready, l)
		return
	}
	l.place = laneWaiting
	r.mu.waiting = append(r.mu.waiting, l)
	r.armLocked(now, tickWaiting)
}

func (r *Router) accountLocked(p *peer, uplinks int, bytes int64) {
	p.uplinks += uplinks
	p.bytes += bytes
}

func (r *Router) emptyLocked(l *lane) {
	r.accountLocked(r.windowLocked(l), -len(l.queue), -l.bytes)
	l.queue, l.bytes = nil, 0
}

func (r *Router) peerLocked(node dunlin.NodeID) *peer {
	p := r.mu.peers[node]
	if p == nil {
		p = &peer{node: node}
		r.mu.peers[node] = p
	}
	return p
}

// gatherLocked makes calls of what is ready.
func (r *Router) gatherLocked(now time.Duration, out *outbox) {
	for _, p := range r.mu.peers {
		for len(p.ready) > 0 && p.maySend(now) {
			c := r.callLocked(p, now)
			p.calls = append(p.calls, c)
			out.calls = append(out.calls, c)
			r.armLocked(now, tickCalls)
		}
		if len(p.ready) > 0 {
			r.armLocked(now, tickWaiting)
		}
	}
}

func (p *peer) maySend(now time.Duration) bool {
	young := 0
	for _, c := range p.calls {
		if now-c.began < youngAge {
			young++
		}
	}
	if young < callsYoung {
		return len(p.calls) < callsMost
	}
	if young >= callsFull || len(p.calls) >= callsMost {
		return false
	}
	uplinks, bytes := 0, int64(0)
	for _, l := range p.ready {
		uplinks += len(l.queue)
		bytes += l.bytes
		if uplinks >= batchUplinksMax || bytes >= batchBytesMax {
			return true
		}
	}
	return false
}

// callLocked takes a batch out of the lanes that are ready.
func (r *Router) callLocked(p *peer, now time.Duration) *call {
	c := &call{peer: p, began: now}
	clear(r.mu.perDevice[:])
	rest := p.ready[:0]
	for _, l := range p.ready {
		items, bytes := r.takeLocked(l, batchUplinksMax-c.uplinks, batchBytesMax-c.bytes, c.uplinks == 0)
		if len(items) == 0 { // the batch is full, or has enough of the lane's next device
			rest = append(rest, l)
			continue
		}
		c.uplinks += len(items)
		c.bytes += bytes
		l.calls++
		c.parts = append(c.parts, part{shard: l.shard, term: l.term, seq: l.calls, items: items})
		l.place, l.busy = laneIdle, true
	}
	clear(p.ready[len(rest):])
	p.ready = rest
	return c
}

// takeLocked takes the head of a lane: at most so many uplinks and bytes, but one if must, and of no device more than the call
// may have.
func (r *Router) takeLocked(l *lane, uplinks int, bytes int64, must bool) (items []item, taken int64) {
	n := 0
	for n < len(l.queue) && n < uplinks {
		it := &l.queue[n]
		if taken+int64(it.bytes) > bytes && !(must && n == 0) {
			break
		}
		count := &r.mu.perDevice[maphash.String(r.seed, string(it.u.Device))%uint64(len(r.mu.perDevice))]
		if *count++; *count > perDeviceMax {
			break
		}
		taken += int64(it.bytes)
		n++
	}
	items, l.queue = l.queue[:n:n], l.queue[n:]
	l.bytes -= taken
	return items, taken
}
