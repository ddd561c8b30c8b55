package peer

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// lastingPause is how many times RetryMax lies between two attempts at a node that refuses for a lasting reason.
const lastingPause = 10

// peer is another node, connected or not.
type peer struct {
	l   *Links
	id  dunlin.NodeID
	cur atomic.Pointer[conn] // the link; nil: there is none

	serving                                     atomic.Int32 // its calls that are being served
	sentMessages, sentBytes                     atomic.Uint64
	gotMessages, gotBytes, dropped, connections atomic.Uint64

	wanted atomic.Bool   // somebody has something for it
	poke   chan struct{} // size 1: a set flag for its loop, that it is wanted
	kick   chan struct{} // size 1: a set flag for its loop, that it shall not pause

	mu struct {
		sync.Mutex
		looping   bool
		forgotten bool
		boot      uint64        // of its life that seq is about; used if it decides
		seq       uint64        // highest number of a Use: said if we decide, otherwise heard
		changed   chan struct{} // closed, and replaced, when a Call that waits should look again
		pausing   bool
		addr      string // being dialled or dialled last
		abort     context.CancelCauseFunc
		problem   error  // why there is no link; nil: there is, or nobody tried
		failures  uint64 // attempts that came to nothing
		since     time.Duration
		name      string
		version   string
		noted     string // the last problem that was logged
		notedAt   time.Duration
	}
}

func newPeer(l *Links, id dunlin.NodeID) *peer {
	p := &peer{l: l, id: id, poke: make(chan struct{}, 1), kick: make(chan struct{}, 1)}
	p.mu.changed, p.mu.since = make(chan struct{}), l.cfg.now()
	return p
}

// decides reports whether this node says which connection counts.
func (p *peer) decides() bool { return p.l.cfg.Self.Node < p.id }

func (p *peer) changedLocked() {
	close(p.mu.changed)
	p.mu.changed = make(chan struct{})
}

func (p *peer) want() {
	if !p.wanted.Load() {
		p.wanted.Store(true)
		set(p.poke)
	}
}

func set(flag chan struct{}) {
	select {
	case flag <- struct{}{}:
	default:
	}
}

// loop keeps the node connected as long as somebody has something for it.
func (p *peer) loop(ctx context.Context) {
	tries := 0
	var after time.Duration // no attempt before
	for ctx.Err() == nil {
		if c := p.cur.Load(); c != nil {
			select {
			case <-c.done:
				p.lost(c)
			case <-ctx.Done():
			}
			if p.l.cfg.now()-c.since > p.l.cfg.DeadAfter/4 {
				tries, after = 0, 0 // it was worth having; try again at once
			}
			continue
		}
		if !p.wanted.Load() {
			select {
			case <-p.poke:
			case <-ctx.Done():
			}
			continue
		}
		if p.pause(ctx, after); p.cur.Load() != nil || ctx.Err() != nil {
			continue
		}
		p.wanted.Store(false)
		err := p.dial(ctx)
		if tries++; err == nil && tries == 1 {
			continue
		}
		after = p.l.cfg.now() + p.backoff(tries, err)
		p.failed(err)
	}
}

// backoff is how long to wait after so many attempts, jittered so that nodes that fell together don't come back together.
func (p *peer) backoff(tries int, err error) time.Duration {
	d := p.l.cfg.RetryMin << min(tries-1, 20)
	if d <= 0 || d > p.l.cfg.RetryMax {
		d = p.l.cfg.RetryMax
	}
	var r *Refusal
	if errors.As(err, &r) && r.Reason.lasting() {
		d = lastingPause * p.l.cfg.RetryMax
	}
	return d/2 + rand.N(d/2+1)
}

// pause waits until the moment, unless something happens that makes an attempt worth while.
func (p *peer) pause(ctx context.Context, until time.Duration) {
	d := until - p.l.cfg.now()
	if d <= 0 {
		return
	}
	p.mu.Lock()
	p.mu.pausing = true
	p.changedLocked()
	changed := p.mu.changed
	p.mu.Unlock()
	t := time.NewTimer(d)
	defer t.Stop()
	for waiting := true; waiting; {
		select {
		case <-changed:
			p.mu.Lock()
			changed = p.mu.changed
			p.mu.Unlock()
			waiting = p.cur.Load() == nil
		case <-t.C:
			waiting = false
		case <-p.kick:
			waiting = false
		case <-ctx.Done():
			waiting = false
		}
	}
	p.mu.Lock()
	p.mu.pausing = false
	p.mu.Unlock()
}

// failed takes the outcome of an attempt.
func (p *peer) failed(err error) {
	if err == nil {
		return
	}
	p.mu.Lock()
	if p.cur.Load() != nil {
		p.mu.Unlock()
		return
	}
	p.mu.failures++
	tell := p.problemLocked(err)
	p.changedLocked()
	p.mu.Unlock()
	tell()
}

// problemLocked notes why there is no link. What it returns logs it, if that is news, and is to be called without the lock.
func (p *peer) problemLocked(err error) (tell func()) {
	p.mu.problem = err
	var r *Refusal
	if errors.As(err, &r) && r.Reason == RefusedRedundant {
		return func() {}
	}
	text, now := gist(err), p.l.cfg.now()
	known := p.mu.noted != "" && now-p.mu.notedAt < noteAgain
	if known && text == p.mu.noted {
		return func() {}
	}
	level := slog.LevelInfo
	switch {
	case r != nil && r.Reason.lasting() && r.Reason != RefusedLeft || errors.Is(err, dunlin.ErrUnauthenticated):
		level = slog.LevelError
	case known: // that it can't be reached either, after the link was lost, is no news
		level = slog.LevelDebug
	}
	if level != slog.LevelDebug {
		p.mu.noted, p.mu.notedAt = text, now
	}
	name, addr := p.mu.name, p.mu.addr
	return func() {
		p.l.log(level, "no link to a node", slog.String("peer", p.id.String()), slog.String("name", name),
			slog.String("addr", addr), slog.Any("reason", err))
		if r != nil && r.Theirs && r.Reason.lasting() {
			p.l.cfg.OnRefused(p.id, err)
		}
	}
}

// dial makes one attempt. It returns once there is a link, ours or another.
func (p *peer) dial(ctx context.Context) error {
	addr, ok := p.l.cfg.Resolve(p.id)
	if !ok {
		return fmt.Errorf("%w: the address of node %s is not known", dunlin.ErrUnavailable, p.id)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, p.l.cfg.DialTimeout, fmt.Errorf("%w: no answer within %s", dunlin.ErrUnavailable, p.l.cfg.DialTimeout))
	defer cancel()
	ctx, abort := context.WithCancelCause(ctx)
	defer abort(nil)
	p.mu.Lock()
	p.mu.addr, p.mu.abort = addr, abort
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		p.mu.abort = nil
		p.mu.Unlock()
	}()
	c, err := p.l.connect(ctx, addr, kindLink, p)
	if err != nil {
		if p.cur.Load() != nil {
			return nil
		}
		return fmt.Errorf("node %s at %s: %w", p.id, addr, err)
	}
	p.l.start(c)
	if p.decides() {
		return p.offer(c)
	}
	return p.decided(ctx, c)
}

// decided waits for the other side to use the connection or another one.
func (p *peer) decided(ctx context.Context, c *conn) error {
	done := c.done
	for {
		p.mu.Lock()
		changed := p.mu.changed
		p.mu.Unlock()
		if p.cur.Load() != nil {
			return nil
		}
		select {
		case <-changed:
		case <-done:
			var r *Refusal
			if !errors.As(c.cause, &r) || r.Reason != RefusedRedundant {
				return c.cause
			}
			done = nil // the one that it has chosen will say so any moment
			stop := time.AfterFunc(p.l.cfg.DeadAfter, p.nudge)
			defer stop.Stop()
		case <-ctx.Done():
			err := context.Cause(ctx)
			c.fail(err)
			return err
		}
		if done == nil && p.cur.Load() == nil && p.l.cfg.now()-c.since > p.l.cfg.DeadAfter {
			return c.cause
		}
	}
}

func (p *peer) nudge() {
	p.mu.Lock()
	p.changedLocked()
	p.mu.Unlock()
}

// offer decides whether a connection shall be the link from now on, and says so. Only the smaller id calls it.
func (p *peer) offer(c *conn) error {
	p.mu.Lock()
	old := p.cur.Load()
	switch {
	case p.mu.forgotten:
		p.mu.Unlock()
		r := p.l.left(p.id)
		c.refuse(r)
		return r
	case old != nil && !replaces(old, c, p.l.boot):
		p.mu.Unlock()
		r := refuse(RefusedRedundant, "there is another connection")
		c.refuse(r)
		return r
	}
	p.mu.seq++
	c.seq = p.mu.seq
	c.control(func(b []byte) []byte { return appendWord(b, frameUse, c.seq) })
	p.linkLocked(c, old)
	return nil
}

// use takes the other side's word that a connection is the link from now on. Only the larger id is told so.
func (p *peer) use(c *conn, seq uint64) error {
	if p.decides() {
		return broken("Use from the node with the larger id")
	}
	p.mu.Lock()
	if c.them.boot != p.mu.boot {
		p.mu.boot, p.mu.seq = c.them.boot, 0
	}
	if seq <= p.mu.seq || p.mu.forgotten || isDone(c) {
		p.mu.Unlock()
		return refuse(RefusedRedundant, "there is a newer connection")
	}
	p.mu.seq = seq
	p.linkLocked(c, p.cur.Load())
	return nil
}

// linkLocked makes a connection the link. It unlocks.
func (p *peer) linkLocked(c, old *conn) {
	c.used.Store(true)
	p.cur.Store(c)
	p.mu.problem, p.mu.noted, p.mu.since = nil, "", p.l.cfg.now()
	p.mu.name, p.mu.version = c.them.Name, c.them.Version
	if p.mu.abort != nil && p.decides() { // our own attempt; if the other side decides it has to
		p.mu.abort(refuse(RefusedRedundant, "the other side was faster"))
	}
	p.changedLocked()
	p.mu.Unlock()
	p.connections.Add(1)
	set(p.poke) // its loop shall watch this one
	if old != nil {
		old.fail(refuse(RefusedRedundant, "replaced by a newer connection"))
	} else {
		p.l.log(slog.LevelInfo, "linked", slog.String("peer", p.id.String()), slog.String("name", c.them.Name),
			slog.String("addr", c.wire.RemoteAddr().String()), slog.String("version", c.them.Version))
		p.l.cfg.OnLink(p.id, true)
	}
}

// lost takes note that a connection has failed. It is called more than once for each.
func (p *peer) lost(c *conn) {
	p.mu.Lock()
	if !p.cur.CompareAndSwap(c, nil) {
		p.mu.Unlock()
		return
	}
	p.mu.since = p.l.cfg.now()
	tell := p.problemLocked(c.cause)
	p.changedLocked()
	p.mu.Unlock()
	tell()
	p.l.cfg.OnLink(p.id, false)
	p.want() // somebody had a use for it a moment ago
}

// replaces says whether a new connection shall take the place of the link, as the side that decides sees it. boot is its own.
func replaces(old, c *conn, boot uint64) bool {
	switch {
	case isDone(old), old.them.boot != c.them.boot:
		return true // it lives again; that the old one is dead was made sure of
	case c.dialled:
		return false // ours came late
	case !old.dialled:
		return true // the other side dials only when it has none
	}
	// The other side dials although there is our connection: if it has heard of it, it has lost it; otherwise it will.
	return c.them.seenBoot == boot && c.them.seen >= old.seq
}

func isDone(c *conn) bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// link waits for a connection. It fails when an attempt fails, and at once while the next one isn't due.
func (p *peer) link(ctx context.Context) (*conn, error) {
	for first, failures := true, uint64(0); ; first = false {
		p.mu.Lock()
		if first {
			failures = p.mu.failures
		}
		changed, problem, forgotten := p.mu.changed, p.mu.problem, p.mu.forgotten
		failed := problem != nil && (p.mu.pausing || p.mu.failures != failures)
		p.mu.Unlock()
		c := p.cur.Load()
		switch {
		case forgotten:
			return nil, fmt.Errorf("%w: %w", dunlin.ErrUnavailable, p.l.left(p.id))
		case c != nil && !isDone(c):
			return c, nil
		}
		p.want()
		if c == nil && failed {
			return nil, unavailable(problem)
		}
		select {
		case <-changed:
		case <-p.l.closed:
			return nil, errClosing
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: node %s: %w", dunlin.ErrUnavailable, p.id, context.Cause(ctx))
		}
	}
}

// look is called now and then while there is no link: an address that changed is tried at once.
func (p *peer) look() {
	if p.cur.Load() != nil {
		return
	}
	p.mu.Lock()
	dialled, abort, pausing := p.mu.addr, p.mu.abort, p.mu.pausing
	p.mu.Unlock()
	if abort == nil && !pausing {
		return
	}
	if addr, ok := p.l.cfg.Resolve(p.id); ok && addr != dialled {
		p.again(abort)
	}
}

// again ends an attempt, if there is one, or the pause before the next.
func (p *peer) again(abort context.CancelCauseFunc) {
	set(p.kick)
	p.want()
	if abort != nil {
		abort(fmt.Errorf("%w: it has another address now", dunlin.ErrUnavailable))
	}
}

func (p *peer) status() PeerStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := PeerStatus{Node: p.id, Name: p.mu.name, Addr: p.mu.addr, Since: p.l.cfg.now() - p.mu.since, Dropped: p.dropped.Load(), Version: p.mu.version}
	if p.mu.problem != nil {
		s.Problem = p.mu.problem.Error()
	}
	if c := p.cur.Load(); c != nil {
		s.Connected, s.Addr, s.RTT, s.Wire = true, c.wire.RemoteAddr().String(), time.Duration(c.rtt.Load()), c.version
		c.out.Lock()
		s.Queue = c.out.bytes
		c.out.Unlock()
	}
	return s
}
