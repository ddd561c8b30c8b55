package mqtt

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// flow is a session's way out: where it is in the log, and what of it the subscriber hasn't acknowledged. Nothing else is
// queued: a slow subscriber lags behind in the log.
type flow struct {
	wake chan struct{} // cap 1: an ack came, the socket has room, or the end

	// Guarded by session.mu.
	box    outbox
	cancel context.CancelFunc // of the running follower
	done   chan struct{}      // closed when the last follower has ended
	owner  *conn              // whose follower runs
	device *dunlin.DeviceKey  // what it reads
	start  dunlin.Cursor      // where to begin if nothing was subscribed before; until a follower has done so

	mark position // what is through: acknowledged, in the box, or nobody's business

	at      position      // the follower's that runs; handed over through done
	repeats bool          // likewise: a holder at another node may have sent what follows
	sentTo  dunlin.Cursor // likewise: … up to here
}

// position is where a follower goes on: first in the entry that it broke off in, behind the first skip messages, then at
// cur.
type position struct {
	cur    dunlin.Cursor
	shard  dunlin.ShardID
	index  uint64
	skip   int
	device dunlin.DeviceID // that the entry has news of: the last one's that is through, or the next one's
	// one is the scope of cur: while only a device's shard was read, the other shards stayed at origin.
	one    bool
	origin dunlin.Cursor
}

func (p *position) clone() position {
	c := *p
	c.cur, c.origin = slices.Clone(p.cur), slices.Clone(p.origin)
	return c
}

func (f *flow) poke() {
	select {
	case f.wake <- struct{}{}:
	default:
	}
}

// stop ends the running follower without waiting for it: the next one does.
func (f *flow) stop() {
	if f.cancel != nil {
		f.cancel()
		f.cancel, f.owner = nil, nil
	}
}

// follow starts, restarts or stops the follower of c's session as its subscriptions want it.
func (g *Gateway) follow(c *conn, s *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.mu.flow
	if s.mu.conn != c || f == nil {
		return
	}
	var device *dunlin.DeviceKey
	if len(s.mu.subs) > 0 {
		device = scope(s.key.tenant, s.mu.subs)
		if f.owner == c && f.start == nil && (device == nil) == (f.device == nil) && (device == nil || *device == *f.device) {
			return // it sees the new list with the next entry
		}
	} else if f.box.n == 0 {
		f.stop()
		return
	}
	again := f.owner != c // a new connection
	f.stop()
	ctx, cancel := context.WithCancel(g.life)
	w := &follower{g: g, c: c, s: s, f: f, before: f.done, done: make(chan struct{}), device: device}
	f.cancel, f.owner, f.device, f.done = cancel, c, device, w.done
	if again {
		f.box.restart()
		w.fresh = !slices.ContainsFunc(s.mu.subs, func(sub subscription) bool { return sub.qos > 0 })
	}
	g.work.Go(func() { w.run(ctx); cancel() })
}

// follower delivers to one connection: first again what its predecessor's client didn't acknowledge, then the log.
type follower struct {
	g      *Gateway
	c      *conn
	s      *session
	f      *flow
	before chan struct{} // the predecessor's done
	done   chan struct{}
	device *dunlin.DeviceKey
	fresh  bool // nothing was promised across connections: begin with what comes now

	v5         bool
	receiveMax int
	packetMax  int
	buf        []byte // packets for the socket
	topic      []byte
	payload    []byte
	ids        []uint32
	spot       place           // of the message at hand
	of         dunlin.DeviceID // … and whose it is
}

var (
	errGone      = errors.New("the session went on without this connection")
	errNoOffer   = errors.New("nothing subscribed")
	errFeedEnded = errors.New("the feed ended")
	errLostSpot  = &fault{codeQuotaExceeded, "the log no longer keeps what this subscriber has not read; its session ends"}
)

func (w *follower) run(ctx context.Context) {
	defer close(w.done)
	if w.before != nil {
		<-w.before
	}
	w.c.mu.Lock()
	w.v5, w.receiveMax, w.packetMax = w.c.mu.m.v5, w.c.mu.m.receiveMax, w.c.mu.m.packetMax
	w.c.mu.Unlock()
	err := w.refill(ctx)
	if err == nil {
		err = w.hearFirst(ctx)
	}
	if err == nil {
		err = w.resend(ctx)
	}
	if err == nil {
		err = w.stream(ctx)
	}
	switch {
	case errors.Is(err, dunlin.ErrCursorLost):
		w.g.log.LogAttrs(ctx, slog.LevelWarn, "mqtt: subscriber fell out of the log", slog.String("client", w.s.key.client))
		w.g.stats.cursorsLost.Add(1)
		w.s.drop(w.c)
		w.g.end(w.c, ending{fault: errLostSpot})
	case err != nil && ctx.Err() == nil && !errors.Is(err, errGone) && !errors.Is(err, errNoOffer):
		w.g.log.LogAttrs(ctx, slog.LevelError, "mqtt: reading the log", slog.String("client", w.s.key.client), slog.Any("err", err))
		w.g.end(w.c, ending{fault: &fault{codeUnspecified, "the log can't be read"}})
	}
}

// hearFirst lets the client speak first, for a moment. One that comes back to its session mostly subscribes again at once, and the
// SUBACK should be ahead of the messages: a client that leaves as soon as it has the message that it waited for closes its socket
// with the SUBACK unread otherwise, and so takes those acks with it that its socket has not sent yet.
func (w *follower) hearFirst(ctx context.Context) error {
	if w.g.cfg.FirstWordMax < 0 {
		return nil
	}
	timer := time.NewTimer(w.g.cfg.FirstWordMax)
	defer timer.Stop()
	c := w.c
	for {
		c.mu.Lock()
		if c.mu.spoke && !c.mu.m.busy || c.mu.m.phase != phaseOpen {
			c.mu.Unlock()
			return nil
		}
		c.mu.hungry = w.f.wake
		c.mu.Unlock()
		select {
		case <-w.f.wake:
		case <-timer.C:
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// place sets where to begin.
func (w *follower) place(ctx context.Context) error {
	at := &w.f.at
	switch {
	case w.begin():
	case w.fresh || at.cur == nil:
		now, err := w.g.deps.Feed.Now(ctx)
		if err != nil {
			return err
		}
		*at = position{cur: slices.Clone(now)}
	}
	if at.one && w.device == nil {
		// From one device to all: the other shards stand where the first subscription began. What was committed there
		// since is no subscription's business, so take them to the present of the newest subscription.
		if moved := !slices.Equal(at.cur, at.origin); moved {
			now := w.newest()
			for i := range at.cur {
				if at.cur[i] == at.origin[i] && i < len(now) {
					at.cur[i] = max(at.cur[i], now[i])
				}
			}
		}
	}
	if one := w.device != nil; one != at.one {
		at.one, at.origin = one, nil
		if one {
			at.origin = slices.Clone(at.cur)
		}
	}
	return nil
}

// begin takes the follower to where the first subscription begins, once. A connection that ends before its follower gets
// here leaves that to the next one.
func (w *follower) begin() bool {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	f := w.f
	if f.start == nil {
		return false
	}
	f.at = position{cur: slices.Clone(f.start)}
	f.mark = f.at.clone()
	f.start = nil
	return true
}

func (w *follower) newest() dunlin.Cursor {
	w.s.mu.Lock()
	defer w.s.mu.Unlock()
	if n := len(w.s.mu.subs); n > 0 {
		return w.s.mu.subs[n-1].since
	}
	return nil
}

// stream reads the log until ctx ends.
func (w *follower) stream(ctx context.Context) error {
	w.s.mu.Lock()
	idle := len(w.s.mu.subs) == 0
	w.s.mu.Unlock()
	if idle {
		return errNoOffer
	}
	if err := w.place(ctx); err != nil {
		return err
	}
	at := &w.f.at
	if err := w.mark(ctx); err != nil {
		return err
	}
	if err := w.finish(ctx); err != nil {
		return err
	}
	cur := slices.Clone(at.cur)
	broken := false // off inside of an entry: that one is to be read again, whatever Follow makes of cur
	defer func() {
		copy(at.cur, cur)
		if broken && int(at.shard) < len(at.cur) {
			at.cur[at.shard] = at.index
		}
	}()
	for item, err := range w.g.deps.Feed.Follow(ctx, &cur, w.device) {
		if err != nil {
			return err
		}
		sh := item.Entry.Shard
		if done, err := w.entry(ctx, item, 0); err != nil {
			broken = true
			at.shard, at.index, at.skip, at.device = sh, item.Index, done, w.of
			return err
		}
		if int(sh) < len(cur) {
			cur[sh] = max(cur[sh], item.Index+1)
			w.through(sh, item.Index+1)
		}
	}
	if ctx.Err() == nil {
		return errFeedEnded
	}
	return ctx.Err()
}

// entry delivers what the session wants of one entry, from the skip-th message on. With an error it returns how many are
// through.
func (w *follower) entry(ctx context.Context, item dunlin.FeedItem, skip int) (done int, err error) {
	w.s.mu.Lock()
	subs := w.s.mu.subs
	w.s.mu.Unlock()
	eachNews(item.Entry, w.s.key.tenant, func(n news) bool {
		w.of = n.device
		if done < skip {
			done++
			return true
		}
		qos, ids, ok := match(subs, &n, item.Entry.Shard, item.Index, w.ids)
		w.ids = ids
		if ok {
			w.spot = place{item.Entry.Shard, item.Index, done}
			if err = w.send(ctx, &n, qos); err != nil {
				return false
			}
		}
		done++
		return true
	})
	if err == nil {
		err = w.flush(ctx)
	}
	return done, err
}

// send delivers one message.
func (w *follower) send(ctx context.Context, n *news, qos byte) error {
	var err error
	w.topic = appendTopic(w.topic[:0], n)
	if w.payload, err = appendPayload(w.payload[:0], n); err != nil {
		return err
	}
	m := message{kind: n.kind, topic: w.topic, payload: w.payload, media: n.media(), subIDs: w.ids, qos: qos}
	if m.sizeMax() > w.packetMax { // [MQTT-3.1.2-25]
		w.g.stats.oversize.Add(1)
		w.g.log.LogAttrs(ctx, slog.LevelWarn, "mqtt: message above the subscriber's maximum packet size",
			slog.String("client", w.s.key.client), slog.String("device", string(n.device)), slog.Int("bytes", len(m.payload)))
		return nil
	}
	if qos == 0 {
		w.g.stats.delivered.Add(1)
		w.buf = appendPublish(w.buf, &m, w.v5)
		return w.spill(ctx)
	}
	for {
		w.s.mu.Lock()
		switch {
		case w.s.mu.conn != w.c:
			w.s.mu.Unlock()
			return errGone
		case w.f.box.room(w.receiveMax, w.g.cfg.WindowMax, w.g.cfg.WindowBytesMax):
			w.f.box.add(&m)
			w.addedLocked()
			w.takeLocked()
			w.s.mu.Unlock()
			return w.spill(ctx)
		}
		w.s.mu.Unlock()
		if err := w.flush(ctx); err != nil {
			return err
		}
		if err := w.wait(ctx); err != nil {
			return err
		}
	}
}

// takeLocked encodes what the client may have now. The caller holds the session's lock.
func (w *follower) takeLocked() {
	for it := w.f.box.next(w.receiveMax); it != nil; it = w.f.box.next(w.receiveMax) {
		m := message{kind: it.kind, topic: it.buf[:it.topic], payload: it.buf[it.topic:], media: it.media, subIDs: it.subIDs,
			id: it.id, qos: 1, dup: it.dup}
		w.buf = appendPublish(w.buf, &m, w.v5)
		w.g.stats.delivered.Add(1)
	}
}

// resend delivers again what is left from the connection before.
func (w *follower) resend(ctx context.Context) error {
	for {
		w.s.mu.Lock()
		if w.s.mu.conn != w.c {
			w.s.mu.Unlock()
			return errGone
		}
		w.takeLocked()
		through := w.f.box.sent == w.f.box.n
		w.s.mu.Unlock()
		if err := w.flush(ctx); err != nil || through {
			return err
		}
		if err := w.wait(ctx); err != nil {
			return err
		}
	}
}

func (w *follower) wait(ctx context.Context) error {
	select {
	case <-w.f.wake:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// spill flushes if enough has gathered for a write of its own.
func (w *follower) spill(ctx context.Context) error {
	if len(w.buf) < 8<<10 {
		return nil
	}
	return w.flush(ctx)
}

// flush gives the gathered packets to the connection, once its socket took what came before.
func (w *follower) flush(ctx context.Context) error {
	for len(w.buf) > 0 {
		c := w.c
		c.mu.Lock()
		switch {
		case c.mu.m.phase != phaseOpen || c.mu.mute != 0:
			c.mu.Unlock()
			return errGone
		case len(c.mu.out) <= outMax/2:
			c.mu.out = append(c.mu.out, w.buf...)
			c.mu.Unlock()
			c.queue()
			w.buf = w.buf[:0]
			return nil
		}
		c.mu.hungry = w.f.wake
		c.mu.Unlock()
		if err := w.wait(ctx); err != nil {
			return err
		}
	}
	return nil
}
