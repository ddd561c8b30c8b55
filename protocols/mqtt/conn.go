package mqtt

import (
	"errors"
	"io"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// wire is how a connection reaches its socket. All methods are called with the connection's lock held and don't block.
type wire interface {
	// write sends as much of b as the socket takes. errBlocked means that the rest waits: the wire calls the
	// connection's writable when there is room again.
	write(b []byte) (n int, err error)
	// resume makes the connection's reader go on after a pause.
	resume()
	// shutdown ends our direction; what the peer still sends is read and thrown away until it ends its own.
	shutdown()
	// close gives the socket up.
	close()
	remote() string
}

var errBlocked = errors.New("socket takes no more for now")

// outMax is how many bytes wait for a socket that takes no more before nothing is read from it and nothing delivered.
const outMax = 32 << 10

// lingerTime is how long the peer gets to read our last packet: closing at once, with its bytes unread, would reset the
// connection and could take the packet with it.
const lingerTime = 2 * time.Second

// conn is a connection: a machine, what arrived and is no whole packet yet, what the socket didn't take yet. One reader
// (a poller's loop, or its own goroutine) feeds it; its flusher answers for it.
type conn struct {
	g    *Gateway
	fl   *flusher
	wire wire

	queued atomic.Bool // in fl's list
	next   *conn       // there
	balked atomic.Bool // a PUBLISH was refused for now: nothing new is offered before it

	timer    timer
	younger  *conn // half-open connections, oldest first; guarded by Gateway.half
	older    *conn
	halfOpen bool

	mu struct {
		sync.Mutex
		m       machine
		in      []byte // the beginning of a packet, or packets that must wait
		out     []byte // what the socket didn't take
		blocked bool   // … and it will say when it does
		paused  bool   // the reader stopped; see unpauseLocked
		hungry  chan struct{}
		since   dunlin.Time // accepted
		seen    dunlin.Time // last bytes from the client
		stuck   dunlin.Time // since when the socket takes nothing
		spoke   bool        // the client has said something since CONNACK
		linger  dunlin.Time // until when the peer may read our last packet
		mute    dunlin.Time // until when we hear what the peer said before it left; 0: it is there
		left    int         // … how many bytes of that we still hear
		broke   error       // … and how we know
		closed  bool
	}
}

// queue puts the connection on its flusher's list. It never blocks; any goroutine may call it.
func (c *conn) queue() {
	if !c.queued.Load() && c.queued.CompareAndSwap(false, true) {
		c.fl.push(c)
	}
}

// stalledLocked reports whether no packet can be taken now.
func (c *conn) stalledLocked() bool {
	return c.mu.m.blocked() || len(c.mu.out) > outMax || c.g.draining.Load()
}

// unpauseLocked lets the reader go on if what it waited for has come.
func (c *conn) unpauseLocked(t *turn) {
	if c.mu.paused && !c.stalledLocked() && c.mu.m.phase != phaseOver {
		c.mu.paused = false
		c.mu.seen = t.now // it couldn't be heard
		c.wire.resume()
	}
}

// inputLocked takes what the reader read, or nil after a pause, and runs the packets in it.
func (c *conn) inputLocked(t *turn, data []byte) {
	if c.mu.m.phase == phaseOver {
		return
	}
	t.c, t.settle = c, false
	buf := data
	if len(data) > 0 {
		c.mu.seen = t.now
	}
	if c.mu.mute != 0 {
		if c.mu.left -= len(data); c.mu.left < 0 {
			c.endLocked(t, ending{err: c.mu.broke, will: true, dead: true})
			return
		}
	}
	if len(c.mu.in) > 0 {
		before := cap(c.mu.in)
		c.mu.in = append(c.mu.in, data...)
		buf = c.mu.in
		c.g.inputBytes.Add(int64(cap(c.mu.in) - before))
	}
	for len(buf) > 0 {
		if c.stalledLocked() {
			c.mu.paused = true
			break
		}
		n, err := c.packetLocked(t, buf)
		if err != nil {
			c.endLocked(t, ending{fault: err, will: true})
		}
		if c.mu.m.phase == phaseOver {
			return
		}
		if n == 0 {
			break
		}
		buf = buf[n:]
	}
	c.keepLocked(t, buf)
	if t.settle {
		t.settle = false
		c.settleLocked(t)
	}
	c.sendLocked(t)
}

// packetLocked runs the packet that buf begins with; n == 0: it isn't all there.
func (c *conn) packetLocked(t *turn, buf []byte) (n int, err *fault) {
	m := &c.mu.m
	if m.phase == phaseNew && buf[0] != typeConnect<<4 {
		return 0, violation("the first packet must be CONNECT")
	}
	if buf[0]>>4 == 0 {
		return 0, malformed("packet type 0")
	}
	f, n, err := nextFrame(buf, m.frameMax())
	if err != nil || n == 0 {
		return 0, err
	}
	spoke := m.phase == phaseOpen
	if err = m.packet(t, f); err != nil {
		return 0, err
	}
	if spoke && !c.mu.spoke {
		c.mu.spoke = true
		c.feedLocked()
	}
	switch {
	case t.login != nil:
		r := t.login
		t.login = nil
		if !c.g.askLogin(c, r) {
			return 0, &fault{codeServerBusy, "too many connections are logging in"}
		}
	case t.chore != nil:
		ch, s := t.chore, m.sess
		t.chore = nil
		c.g.work.Go(func() { c.g.chore(c, s, ch) })
	case t.follow:
		t.follow = false
		c.g.follow(c, m.sess)
	case t.bye:
		will := t.byeWill
		t.bye, t.byeWill = false, false
		c.settleLocked(t)
		c.endLocked(t, ending{will: will})
	}
	return n, nil
}

// keepLocked keeps the rest of what was read for later.
func (c *conn) keepLocked(t *turn, rest []byte) {
	held := cap(c.mu.in)
	switch {
	case len(rest) == 0:
		c.mu.in = nil
	case len(c.mu.in) > 0: // rest is its end
		c.mu.in = c.mu.in[:copy(c.mu.in, rest)]
	default:
		c.mu.in = append(c.mu.in, rest...)
	}
	if delta := int64(cap(c.mu.in) - held); delta != 0 && c.g.inputBytes.Add(delta) > c.g.cfg.InputBytesMax && delta > 0 {
		c.endLocked(t, ending{fault: &fault{codeQuotaExceeded, "too many unfinished packets on this node"}, will: true})
	}
}

// sendLocked sends t.out and what waited before it, as far as the socket takes it.
func (c *conn) sendLocked(t *turn) {
	b := t.out
	t.out = t.out[:0]
	if len(b) == 0 && (len(c.mu.out) == 0 || c.mu.blocked) || c.mu.closed {
		return
	}
	if c.mu.mute != 0 {
		c.mu.out = c.mu.out[:0]
		return
	}
	if len(c.mu.out) > 0 || c.mu.blocked {
		c.mu.out = append(c.mu.out, b...)
		if c.mu.blocked {
			return
		}
		b = c.mu.out
	}
	n, err := c.wire.write(b)
	switch {
	case err == nil:
		c.sentLocked(t)
	case errors.Is(err, errBlocked):
		if len(c.mu.out) > 0 {
			c.mu.out = c.mu.out[:copy(c.mu.out, b[n:])]
		} else {
			c.mu.out = append(c.mu.out, b[n:]...)
		}
		c.mu.blocked = true
		c.mu.stuck = t.now
		c.g.wheel.earlier(&c.timer, t.now.Add(c.g.cfg.WriteTimeout))
	default:
		c.brokenLocked(t, err)
	}
}

// leftMax is how many bytes are heard of a peer that takes none any more: as much as a socket's buffer may have.
const leftMax = 4 << 20

// brokenLocked follows when nothing more can be sent: the peer has gone. What it said before is still in the socket: what it
// acknowledged would come to it again, and with its DISCONNECT unheard its will would be said. So that is read to its end, for a
// moment.
func (c *conn) brokenLocked(t *turn, err error) {
	c.mu.out, c.mu.blocked = nil, false
	switch {
	case c.mu.m.phase == phaseOver:
		c.closeLocked(t)
		return
	case c.mu.mute != 0:
		return
	}
	c.mu.mute, c.mu.left, c.mu.broke = t.now.Add(lingerTime), leftMax, err
	c.g.wheel.earlier(&c.timer, c.mu.mute)
	c.feedLocked()
	c.unpauseLocked(t)
}

// feedLocked wakes who waits for room in out, or for the client's first word.
func (c *conn) feedLocked() {
	if h := c.mu.hungry; h != nil {
		c.mu.hungry = nil
		select {
		case h <- struct{}{}:
		default:
		}
	}
}

// sentLocked follows when nothing is left to send.
func (c *conn) sentLocked(t *turn) {
	if cap(c.mu.out) > 4<<10 {
		c.mu.out = nil
	}
	c.mu.out = c.mu.out[:0]
	c.mu.blocked = false
	if c.mu.linger != 0 {
		c.wire.shutdown()
		return
	}
	c.feedLocked()
	c.unpauseLocked(t)
}

// writableLocked is called by the wire when a blocked socket takes bytes again.
func (c *conn) writableLocked(t *turn) {
	if c.mu.blocked {
		c.mu.blocked = false
		c.sendLocked(t)
	}
}

// settle is the flusher's visit: it answers what is done and writes what waits.
func (c *conn) settle(t *turn) {
	c.mu.Lock()
	t.c = c
	c.settleLocked(t)
	c.sendLocked(t)
	c.unpauseLocked(t)
	c.mu.Unlock()
}

func (c *conn) settleLocked(t *turn) {
	m := &c.mu.m
	if m.phase == phaseOver {
		for s := m.ring.head; s != nil && s.state.Load() == slotDone; s = m.ring.head {
			t.g.slots.put(m.ring.pop())
		}
		return
	}
	if err := m.settle(t); err != nil {
		c.endLocked(t, ending{fault: err, will: true})
		return
	}
	if m.held && m.retryAt != 0 {
		c.g.wheel.earlier(&c.timer, m.retryAt)
	}
}

// ending is why and how a connection ends.
type ending struct {
	fault   *fault // ours: to be told to the client
	err     error  // the socket's
	will    bool   // the client didn't say goodbye
	renewed bool   // its session was taken over and started afresh
	dead    bool   // nothing more can be written
	closing bool   // the node goes, not the client
}

// endLocked ends the connection, once: it tells the client why, gives the session back and lets the socket go.
func (c *conn) endLocked(t *turn, e ending) {
	m := &c.mu.m
	if m.phase == phaseOver {
		return
	}
	was := m.phase
	m.phase = phaseOver
	e.dead = e.dead || c.mu.mute != 0
	if f := e.fault; f != nil {
		if was == phaseOpen {
			t.out = appendDisconnect(t.out, f, m.quiet, m.v5)
		} else {
			t.out = appendConnack(t.out, &connack{code: connackCode(f.code), why: f.why}, m.v5)
		}
	}
	c.g.leaveHalfOpen(c)
	c.g.observeEnd(c, was, &e)
	if m.sess != nil {
		var will *lastWord
		if e.will && m.will != nil && c.g.deps.Sessions == nil {
			will = c.g.lastWord(m)
		}
		m.sess.detach(t, c, will, &e)
		m.will = nil
	}
	c.g.inputBytes.Add(-int64(cap(c.mu.in)))
	c.mu.in, c.mu.paused = nil, false
	c.feedLocked()
	for s := m.ring.head; s != nil && s.state.Load() == slotDone; s = m.ring.head {
		t.g.slots.put(m.ring.pop())
	}
	if e.dead || len(t.out) == 0 && len(c.mu.out) == 0 {
		c.closeLocked(t)
		return
	}
	c.mu.linger = t.now.Add(lingerTime)
	c.g.wheel.set(&c.timer, c.mu.linger)
	c.sendLocked(t)
}

// closeLocked gives the socket up.
func (c *conn) closeLocked(t *turn) {
	if c.mu.closed {
		return
	}
	t.out = t.out[:0]
	c.mu.closed = true
	c.mu.out = nil
	c.g.wheel.stop(&c.timer)
	c.wire.close()
	c.g.forget(c)
}

// eofLocked is the end of the client's stream.
func (c *conn) eofLocked(t *turn, err error) {
	t.c = c
	if c.mu.m.phase == phaseOver {
		c.closeLocked(t)
		return
	}
	if errors.Is(err, io.EOF) {
		err = c.mu.broke
	}
	c.endLocked(t, ending{err: err, will: true, dead: true})
}

// wake is the connection's timer: every timeout that it has is looked at.
func (c *conn) wake(now dunlin.Time) {
	t := c.g.tickTurn
	t.now, t.c = now, c
	c.mu.Lock()
	if next := c.checkLocked(t); next != 0 && !c.mu.closed {
		c.g.wheel.set(&c.timer, next)
	}
	c.mu.Unlock()
	t.ingest()
}

// checkLocked ends what took too long and returns when to look again; 0: never.
func (c *conn) checkLocked(t *turn) (next dunlin.Time) {
	cfg, m, now := &c.g.cfg, &c.mu.m, t.now
	// over reports whether the timeout d that began at since is over, and otherwise notes when it will be.
	over := func(since dunlin.Time, d time.Duration) bool {
		due := since.Add(d)
		if now >= due {
			return true
		}
		if next == 0 || due < next {
			next = due
		}
		return false
	}
	switch {
	case c.mu.linger != 0:
		if over(c.mu.linger, 0) {
			c.closeLocked(t)
		}
		return next
	case c.mu.mute != 0 && over(c.mu.mute, 0):
		c.endLocked(t, ending{err: c.mu.broke, will: true, dead: true})
		return 0
	case m.phase != phaseOpen:
		if over(c.mu.since, cfg.ConnectTimeout) {
			c.endLocked(t, ending{err: errConnectTimeout, dead: true})
		}
		return next
	case c.mu.blocked && over(c.mu.stuck, cfg.WriteTimeout):
		c.endLocked(t, ending{err: errWriteTimeout, will: true, dead: true})
		return 0
	case m.held && over(m.heldSince, cfg.HoldMax):
		c.endLocked(t, ending{fault: &fault{codeServerBusy, "the node could not keep what was published in time"}, will: true})
		return 0
	case m.held && m.retryAt != 0 && over(m.retryAt, 0):
		c.queue()
	}
	if m.keepAlive > 0 && !c.mu.paused && over(c.mu.seen, m.keepAlive) {
		c.endLocked(t, ending{fault: &fault{codeKeepAlive, "nothing came within 1.5 times the keep alive"}, will: true})
		return 0
	}
	if m.keepAlive > 0 && c.mu.paused {
		over(now, m.keepAlive)
	}
	return next
}

var (
	errConnectTimeout = errors.New("no CONNECT in time")
	errWriteTimeout   = errors.New("the client reads nothing")
)
