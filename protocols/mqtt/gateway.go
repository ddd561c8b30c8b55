// Package mqtt is the MQTT door: it takes readings from devices by MQTT 3.1.1 and 5 and hands committed readings and
// alert transitions to applications that subscribe. Packets are mochi's codec, sessions and delivery are its own: a
// PUBACK leaves only after the commit, in the order of the PUBLISHes, and a subscriber reads the log at its own pace.
// Part of the runtime; no compatibility promise before v1.
//
//	socket ─▶ loop ─▶ conn/machine ─▶ Ingestor ··commit··▶ slot.Done ─▶ flusher ─▶ PUBACK
//	                        │ SUBSCRIBE
//	                        └─▶ session/flow ◀── Feed       one follower a subscribing connection
package mqtt

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/payload"
	"github.com/prometheus/client_golang/prometheus"
)

// Decoder turns payloads into records; *payload.Decoder is one.
type Decoder interface {
	Take(u *dunlin.Uplink, body []byte) (*payload.Pack, error)
}

// Deps is what the gateway works with. Feed may be nil: then nothing can be subscribed to. Log nil discards, Metrics nil
// keeps none.
type Deps struct {
	Ingestor dunlin.Ingestor
	Auth     dunlin.Authenticator
	Feed     dunlin.Feed
	Decoder  Decoder
	Sessions Sessions // keeps sessions beyond this node; nil: they are in its memory
	Log      *slog.Logger
	Metrics  prometheus.Registerer
}

// Gateway serves MQTT.
type Gateway struct {
	cfg   Config
	deps  Deps
	log   *slog.Logger
	stats stats

	listeners []net.Listener
	loops     []*loop
	flushers  []*flusher
	adopted   atomic.Uint64 // deals connections out to loops and flushers

	life     context.Context // of Serve's goroutines: followers start from packets, which bring no context
	work     sync.WaitGroup  // connections' goroutines and followers
	logins   chan loginRequest
	draining atomic.Bool

	slots      slotPool
	buffers    sync.Pool // *[]byte of readSize
	inputBytes atomic.Int64
	wheel      *wheel
	heart      heart
	tickTurn   *turn // of the wheel's goroutine
	refusals   refusalLog
	sessions   sessions
	keeper     keeper
	claims     chan struct{} // has room for claimsMax: connections that wait for their sessions

	half struct {
		sync.Mutex
		oldest, newest *conn
		n              int
	}
	conns struct {
		sync.Mutex
		all map[*conn]struct{}
	}
}

// New checks cfg and makes a gateway. It listens after Listen or Attach and serves in Serve.
func New(cfg Config, deps Deps) (*Gateway, error) {
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	if deps.Ingestor == nil || deps.Auth == nil || deps.Decoder == nil {
		return nil, fmt.Errorf("%w: mqtt needs an Ingestor, an Authenticator and a Decoder", dunlin.ErrInvalid)
	}
	g := &Gateway{cfg: cfg, deps: deps, log: deps.Log}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	g.logins = make(chan loginRequest, cfg.HalfOpenMax) // each belongs to a half-open connection
	g.buffers.New = func() any { b := make([]byte, 16<<10); return &b }
	g.wheel = newWheel(g.now())
	g.tickTurn = g.newTurn(0)
	g.sessions.mu.byKey = make(map[sessionKey]*session)
	g.sessions.mu.claims = make(map[sessionKey]*claiming)
	g.keeper.g = g
	g.claims = make(chan struct{}, claimsMax)
	g.conns.all = make(map[*conn]struct{})
	for range cfg.Flushers {
		g.flushers = append(g.flushers, &flusher{g: g, poke: make(chan struct{}, 1)})
	}
	if err := g.register(deps.Metrics); err != nil {
		return nil, err
	}
	return g, nil
}

// Listen binds Config.Addr.
func (g *Gateway) Listen() error {
	l, err := net.Listen("tcp", g.cfg.Addr)
	if err != nil {
		return fmt.Errorf("mqtt: %w", err)
	}
	g.Attach(l)
	return nil
}

// Attach adds a listener of the caller's, such as TLS or WebSocket; Serve closes it. Call it before Serve.
func (g *Gateway) Attach(l net.Listener) { g.listeners = append(g.listeners, l) }

// Addr is where the first listener listens; nil before Listen.
func (g *Gateway) Addr() net.Addr {
	if len(g.listeners) == 0 {
		return nil
	}
	return g.listeners[0].Addr()
}

// Serve serves until ctx ends or a listener fails. Then it takes no more, waits at most DrainMax for the commits under
// way so that their acks leave, says goodbye to the clients, and returns when all its goroutines have ended.
func (g *Gateway) Serve(ctx context.Context) error {
	life, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	g.life = life
	loops, err := newLoops(g)
	if err != nil {
		for _, l := range g.listeners {
			l.Close()
		}
		return fmt.Errorf("mqtt: %w", err)
	}
	g.loops = loops
	failed := make(chan error, len(g.listeners)+len(g.loops)) // one each
	var accepting, serving sync.WaitGroup
	for _, l := range g.loops {
		serving.Go(func() {
			if err := l.run(); err != nil {
				failed <- err
			}
		})
	}
	for _, f := range g.flushers {
		serving.Go(func() { f.run(life) })
	}
	for range loginWorkers {
		serving.Go(func() { g.loginWorker(life) })
	}
	serving.Go(func() { g.tick(life) })
	for _, l := range g.listeners {
		accepting.Go(func() {
			if err := g.accept(life, l); err != nil {
				failed <- err
			}
		})
	}
	select {
	case <-ctx.Done():
	case err = <-failed:
	}
	for _, l := range g.listeners {
		l.Close()
	}
	accepting.Wait()
	g.drain()
	g.goodbye()
	cancel(errors.New("mqtt: closed"))
	for _, l := range g.loops {
		l.stop()
	}
	serving.Wait()
	g.closeAll()
	g.work.Wait()
	for _, l := range g.loops {
		l.discard()
	}
	if err != nil {
		return fmt.Errorf("mqtt: %w", err)
	}
	return nil
}

// accept takes connections until the listener closes.
func (g *Gateway) accept(ctx context.Context, l net.Listener) error {
	wait := 5 * time.Millisecond
	for {
		nc, err := l.Accept()
		if err == nil {
			wait = 5 * time.Millisecond
			g.adopt(nc)
			continue
		}
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return nil
		}
		var ne net.Error
		if !errors.As(err, &ne) || wait > time.Minute {
			return err
		}
		// Out of descriptors, most likely: connections that end will give some back.
		g.log.LogAttrs(ctx, slog.LevelWarn, "mqtt: accept", slog.Any("err", err))
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return nil
		}
		wait = min(2*wait, time.Second)
	}
}

// adopt makes a connection of nc and begins to read it.
func (g *Gateway) adopt(nc net.Conn) {
	k := g.adopted.Add(1)
	c := &conn{g: g, fl: g.flushers[k%uint64(len(g.flushers))]}
	c.timer.owner = c
	c.mu.m.cfg = &g.cfg
	c.mu.since = g.now()
	var start func() error
	if len(g.loops) > 0 {
		w, watch, err := g.loops[k%uint64(len(g.loops))].wire(c, nc)
		if err != nil {
			g.log.LogAttrs(g.life, slog.LevelWarn, "mqtt: accept", slog.Any("err", err))
			nc.Close()
			return
		}
		if watch != nil {
			c.wire, start = w, watch
		}
	}
	if start == nil {
		w := newPortableWire(c, nc)
		c.wire, start = w, func() error { g.work.Go(w.reader); return nil }
	}
	g.conns.Lock()
	g.conns.all[c] = struct{}{}
	g.conns.Unlock()
	g.stats.accepted.Add(1)
	victim := g.enterHalfOpen(c)
	if victim != nil {
		g.end(victim, ending{err: errHalfOpen, dead: true})
	}
	g.wheel.set(&c.timer, c.mu.since.Add(g.cfg.ConnectTimeout))
	c.mu.Lock()
	var err error
	if !c.mu.closed {
		err = start()
	}
	c.mu.Unlock()
	if err != nil {
		g.log.LogAttrs(g.life, slog.LevelWarn, "mqtt: accept", slog.Any("err", err))
		g.end(c, ending{err: err, dead: true})
	}
}

var errHalfOpen = errors.New("too many connections that don't log in")

// end ends a connection from outside of its reader.
func (g *Gateway) end(c *conn, e ending) {
	t := g.newTurn(g.now())
	t.c = c
	c.mu.Lock()
	c.endLocked(t, e)
	c.mu.Unlock()
	t.ingest()
}

// enterHalfOpen counts c in and returns who has to go for it: the oldest, since an honest client is through in
// milliseconds, and a flood then only displaces itself.
func (g *Gateway) enterHalfOpen(c *conn) (victim *conn) {
	h := &g.half
	h.Lock()
	defer h.Unlock()
	c.halfOpen = true
	if c.older = h.newest; c.older != nil {
		c.older.younger = c
	} else {
		h.oldest = c
	}
	h.newest = c
	if h.n++; h.n > g.cfg.HalfOpenMax {
		victim = h.oldest
	}
	return victim
}

func (g *Gateway) leaveHalfOpen(c *conn) {
	h := &g.half
	h.Lock()
	defer h.Unlock()
	if !c.halfOpen {
		return
	}
	c.halfOpen = false
	if c.older != nil {
		c.older.younger = c.younger
	} else {
		h.oldest = c.younger
	}
	if c.younger != nil {
		c.younger.older = c.older
	} else {
		h.newest = c.older
	}
	c.older, c.younger = nil, nil
	h.n--
}

func (g *Gateway) forget(c *conn) {
	g.conns.Lock()
	delete(g.conns.all, c)
	g.conns.Unlock()
}

func (g *Gateway) now() dunlin.Time { return g.cfg.Clock() }

// tick turns the wheel.
func (g *Gateway) tick(ctx context.Context) {
	ticker := time.NewTicker(wheelTick)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			g.heart.beat(g.now())
			g.wheel.advance(g.now())
			g.keeper.sweep(g.now())
		case <-ctx.Done():
			return
		}
	}
}

// goodbyeTime is how long clients' sockets get to take the last packet.
const goodbyeTime = 100 * time.Millisecond

// drain stops reading and waits for the commits under way.
func (g *Gateway) drain() {
	g.draining.Store(true)
	g.await(g.cfg.DrainMax, func(c *conn) bool { return c.mu.m.phase == phaseOpen && c.mu.m.ring.n > 0 })
}

// goodbye ends all connections. Wills stay unsaid: the node goes, not the client.
func (g *Gateway) goodbye() {
	t := g.newTurn(g.now())
	for _, c := range g.snapshot() {
		t.c = c
		c.mu.Lock()
		c.endLocked(t, ending{fault: &fault{codeShuttingDown, "this node is closing"}, closing: true})
		c.mu.Unlock()
	}
	g.await(goodbyeTime, func(c *conn) bool { return len(c.mu.out) > 0 || c.mu.blocked })
	g.awaitKept()
}

// awaitKept waits a moment for the sessions to be saved. One that isn't is found by whoever looks after its row, as if the
// node had died.
func (g *Gateway) awaitKept() {
	deadline := time.NewTimer(goneWait)
	defer deadline.Stop()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for !g.keeper.idle() {
		select {
		case <-poll.C:
		case <-deadline.C:
			return
		}
	}
}

// await waits, at most for limit, until no connection is busy.
func (g *Gateway) await(limit time.Duration, busy func(*conn) bool) {
	deadline := time.NewTimer(limit)
	defer deadline.Stop()
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for _, c := range g.snapshot() {
		for {
			c.mu.Lock()
			wait := !c.mu.closed && busy(c)
			c.mu.Unlock()
			if !wait {
				break
			}
			select {
			case <-poll.C:
			case <-deadline.C:
				return
			}
		}
	}
}

func (g *Gateway) snapshot() []*conn {
	g.conns.Lock()
	defer g.conns.Unlock()
	all := make([]*conn, 0, len(g.conns.all))
	for c := range g.conns.all {
		all = append(all, c)
	}
	return all
}

// closeAll gives every socket up.
func (g *Gateway) closeAll() {
	t := g.newTurn(g.now())
	for _, c := range g.snapshot() {
		t.c = c
		c.mu.Lock()
		c.endLocked(t, ending{dead: true, closing: true})
		c.closeLocked(t)
		c.mu.Unlock()
	}
}
