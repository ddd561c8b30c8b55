package placement

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/dunlin-iot/dunlin"
)

// The states of the connection to a peer.
const (
	stateIdle       = iota // nothing was sent yet
	stateConnecting        // remote's writer works on it; what is sent waits there
	stateUp
	stateEnding // lost; remote must still forget it
	stateDown   // until retryAt calls fail at once
)

// peer is another node: the calls to it, and of its calls those that are being served.
type peer struct {
	r    *Remote
	node dunlin.NodeID

	serving      atomic.Int64 // its calls
	servingBytes atomic.Int64
	streams      atomic.Int64 // that it has open to this node
	warned       atomic.Int64 // when its misbehaviour was logged last

	mu struct {
		sync.Mutex
		addr    string
		told    string     // where it says that it is, for want of anybody who knows better
		pid     *actor.PID // of calls, over there
		state   int
		current *outgoing
		err     error // why it is not up
		fails   int   // in a row
		retryAt time.Duration
		calls   map[uint64]*call
		bytes   int64         // of calls
		queued  *atomic.Int64 // bytes that are with remote's writer: of calls and of answers to its calls
	}
}

// call is one on its way.
type call struct {
	id       uint64
	deadline time.Duration
	bytes    int64
	done     func([]byte, error)
}

func newPeer(r *Remote, node dunlin.NodeID) *peer {
	p := &peer{r: r, node: node}
	p.mu.calls = make(map[uint64]*call)
	p.mu.queued = new(atomic.Int64)
	return p
}

// begin starts a call. If it returns an error, done is not called; otherwise it is, exactly once, unless drop comes first.
func (p *peer) begin(method string, body []byte, timeout time.Duration, done func([]byte, error)) (uint64, error) {
	r := p.r
	switch {
	case len(body) > r.cfg.BodyBytesMax:
		return 0, fmt.Errorf("%w: call of %d bytes, at most %d", dunlin.ErrTooLarge, len(body), r.cfg.BodyBytesMax)
	case method == "" || len(method) > methodBytesMax:
		return 0, fmt.Errorf("%w: method of %d bytes", dunlin.ErrInvalid, len(method))
	}
	r.life.RLock()
	defer r.life.RUnlock()
	if r.life.closing {
		return 0, errClosed
	}
	if err := p.locate(); err != nil {
		return 0, err
	}
	now := r.cfg.now()
	c := &call{id: r.ids.Add(1), deadline: now + timeout, bytes: int64(len(body) + len(method) + frameOverhead), done: done}
	f := frame{version: frameVersion, kind: kindRequest, arg: max(millis(timeout), 1), from: r.cfg.Self, to: p.node, call: c.id, method: method, body: body}
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.reachableLocked(now); err != nil {
		return 0, err
	}
	if len(p.mu.calls) >= r.cfg.WindowMax || p.mu.bytes+c.bytes > r.cfg.WindowBytesMax {
		r.met.full.Inc()
		return 0, errFull
	}
	p.mu.calls[c.id] = c
	p.mu.bytes += c.bytes
	p.sendLocked(f.bytes())
	return c.id, nil
}

// reachableLocked returns why nothing may be sent now.
func (p *peer) reachableLocked(now time.Duration) error {
	if p.mu.state == stateEnding || p.mu.state == stateDown && now < p.mu.retryAt {
		return p.mu.err
	}
	return nil
}

// locate brings the peer's address up to date. What was on its way to an old one is lost.
func (p *peer) locate() error {
	if p.node == p.r.cfg.Self {
		return nil
	}
	addr, err := p.r.whereIs(p.node)
	p.mu.Lock()
	if err != nil && p.mu.told != "" && p.r.unknown(p.node) {
		addr, err = p.mu.told, nil
	}
	if err == nil && addr == p.r.addr {
		err = fmt.Errorf("%w: node %s is said to be at %s, where this node is", dunlin.ErrUnavailable, p.node, addr)
	}
	was := p.mu.addr
	if err != nil || addr == was {
		p.mu.Unlock()
		return err
	}
	s := p.mu.current
	p.mu.addr, p.mu.pid = addr, actor.NewPID(addr, callsID)
	p.mu.state, p.mu.current, p.mu.fails, p.mu.err = stateIdle, nil, 0, nil
	p.mu.queued = new(atomic.Int64)
	p.r.byAddr.Store(addr, p)
	p.mu.Unlock()
	if was == "" {
		return nil
	}
	p.r.byAddr.CompareAndDelete(was, p)
	if s != nil {
		s.stop(errMoved)
	}
	p.r.forget(was)
	p.fail(fmt.Errorf("%w: node %s is at %s no more", dunlin.ErrUnavailable, p.node, was))
	return nil
}

// sendLocked hands a frame to remote's writer, or over directly if it is for this node itself.
func (p *peer) sendLocked(b []byte) {
	if p.node == p.r.cfg.Self {
		p.r.wg.Go(func() { p.r.handle(b) })
		return
	}
	if p.mu.state == stateIdle || p.mu.state == stateDown {
		p.mu.state = stateConnecting
	}
	p.mu.queued.Add(wrappedBytes(len(b)))
	p.r.cfg.System.Root.Send(p.mu.pid, wrap(b))
}

// answer sends what is not a call: an answer, an error or a hello. It is lost if the peer can't be reached, or if it does
// not fetch its answers.
func (p *peer) answer(f *frame) {
	r := p.r
	r.life.RLock()
	defer r.life.RUnlock()
	if r.life.closed || p.locate() != nil {
		r.met.lost.Inc()
		return
	}
	b := f.bytes()
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reachableLocked(r.cfg.now()) != nil || p.mu.queued.Load()+int64(len(b)) > 2*r.cfg.WindowBytesMax {
		r.met.lost.Inc()
		return
	}
	p.sendLocked(b)
}

// complete ends a call with its answer.
func (p *peer) complete(id uint64, body []byte, err error) {
	c := p.drop(id)
	if c == nil && err != nil {
		c = p.astray(id)
	}
	if c == nil {
		p.r.met.late.Inc()
		return
	}
	c.done(body, err)
}

// astray finds a call to another node that went to this one's address, over a connection that was there already, and that
// this one has refused. Numbers of calls are a node's own, so it is one call at most.
func (p *peer) astray(id uint64) (c *call) {
	addr := p.where()
	p.r.each(func(q *peer) {
		if c == nil && q != p && addr != "" && q.where() == addr {
			c = q.drop(id)
		}
	})
	return c
}

// drop takes a call out of the window; nil: it has ended.
func (p *peer) drop(id uint64) *call {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.mu.calls[id]
	if c != nil {
		delete(p.mu.calls, id)
		p.mu.bytes -= c.bytes
	}
	return c
}

// fail ends all calls.
func (p *peer) fail(err error) {
	p.mu.Lock()
	calls := p.mu.calls
	p.mu.calls, p.mu.bytes = make(map[uint64]*call), 0
	p.mu.Unlock()
	for _, c := range calls {
		c.done(nil, err)
	}
}

// expire ends the calls whose time is over: lost frames, silent peers.
func (p *peer) expire(now time.Duration) {
	var over []*call
	p.mu.Lock()
	for id, c := range p.mu.calls {
		if c.deadline <= now {
			over = append(over, c)
			delete(p.mu.calls, id)
			p.mu.bytes -= c.bytes
		}
	}
	p.mu.Unlock()
	if len(over) == 0 {
		return
	}
	err := fmt.Errorf("%w: no answer from node %s: %w", dunlin.ErrUnavailable, p.node, context.DeadlineExceeded)
	for _, c := range over {
		c.done(nil, err)
	}
}

// started notes the stream that remote's writer works on.
func (p *peer) started(s *outgoing) *atomic.Int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.current, p.mu.state = s, stateConnecting
	return p.mu.queued
}

// up notes that the peer has answered remote's greeting.
func (p *peer) up(s *outgoing) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.current == s {
		p.mu.state, p.mu.fails, p.mu.err = stateUp, 0, nil
	}
}

// down notes that the connection is lost, or was never made, and ends the calls on it at once.
func (p *peer) down(s *outgoing, why error) {
	p.mu.Lock()
	if p.mu.current != s {
		p.mu.Unlock()
		return
	}
	wait := min(retryMin<<min(p.mu.fails, 5), retryMax)
	p.mu.fails++
	p.mu.state, p.mu.current, p.mu.retryAt = stateEnding, nil, p.r.cfg.now()+wait
	p.mu.err = fmt.Errorf("%w: node %s at %s: %w", dunlin.ErrUnavailable, p.node, p.mu.addr, why)
	err := p.mu.err
	p.mu.Unlock()
	p.r.met.downs.Inc()
	p.fail(err)
}

// heard notes a sign of life: an attempt to reach the peer is worth it.
func (p *peer) heard(addr string) {
	p.mu.Lock()
	p.mu.told = addr
	if p.mu.state == stateDown {
		p.mu.retryAt = 0
	}
	p.mu.Unlock()
	p.r.Poke()
}

// tend is the keeper's look at the peer: it has remote forget an ended connection, and makes one that is missing.
func (p *peer) tend(now time.Duration, alive bool) {
	p.expire(now)
	p.mu.Lock()
	ended, addr := p.mu.state == stateEnding, p.mu.addr
	p.mu.Unlock()
	if ended {
		p.r.forget(addr)
		p.mu.Lock()
		if p.mu.state == stateEnding {
			p.mu.state, p.mu.queued = stateDown, new(atomic.Int64)
		}
		p.mu.Unlock()
		return
	}
	p.mu.Lock()
	want := alive && p.node != p.r.cfg.Self && (p.mu.state == stateIdle || p.mu.state == stateDown && now >= p.mu.retryAt)
	p.mu.Unlock()
	if want {
		p.answer(&frame{version: frameVersion, kind: kindHello, from: p.r.cfg.Self, to: p.node})
	}
}

// warnEvery is how often a peer's misbehaviour is logged.
const warnEvery = 10 * time.Second

// warn returns whether it is time to.
func (p *peer) warn() bool {
	now, last := p.r.cfg.now(), p.warned.Load()
	return (last == 0 || now-time.Duration(last) >= warnEvery) && p.warned.CompareAndSwap(last, int64(max(now, 1)))
}

// unused returns whether nothing would be lost with this record of a node that nobody knows.
func (p *peer) unused() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.mu.calls) == 0 && p.serving.Load() == 0 && p.streams.Load() == 0 && (p.mu.state == stateIdle || p.mu.state == stateDown)
}
