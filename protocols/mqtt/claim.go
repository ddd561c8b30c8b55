package mqtt

import (
	"context"
	"errors"
	"log/slog"

	"github.com/cespare/xxhash/v2"
	"github.com/dunlin-iot/dunlin"
)

// claimsMax is how many connections wait for their sessions at a time; more wait with the login workers.
const claimsMax = 256

// claiming are the claims of one key that are under way at this node.
type claiming struct {
	n      int
	fenced uint64 // a claim with this epoch or one before it is void
}

// claim gets c the session that it asks for from wherever in the cluster it is, and answers the CONNECT.
func (g *Gateway) claim(ctx context.Context, c *conn, r *connectRequest, p dunlin.Principal, will *willMessage) {
	ctx, cancel := context.WithTimeout(ctx, g.cfg.ConnectTimeout)
	defer cancel()
	t := g.newTurn(g.now())
	key := sessionKey{p.Tenant, p.Kind, p.ID, r.client}
	s, present, old, f := g.claimSession(ctx, c, key, r, p, will)
	t.now, t.c = g.now(), c
	if f != nil {
		c.mu.Lock()
		c.endLocked(t, ending{fault: f})
		c.mu.Unlock()
		t.ingest()
		return
	}
	g.admit(t, admission{c: c, r: r, p: p, will: will, s: s, old: old, present: present})
	t.ingest()
}

func (g *Gateway) claimSession(ctx context.Context, c *conn, key sessionKey, r *connectRequest, p dunlin.Principal, will *willMessage) (
	s *session, present bool, old *conn, f *fault) {
	if f = g.enterClaim(ctx, key); f != nil {
		return nil, false, nil, f
	}
	o := dunlin.SessionOpen{Clean: r.clean, Expiry: clampExpiry(r.expiry, g.cfg.SessionExpiryMax)}
	if will != nil {
		w := word{principal: p, client: r.client, msg: *will}
		o.Will, o.WillDelay = w.append(nil), will.delay
	}
	got, err := g.deps.Sessions.Open(ctx, key.rowKey(), o)
	if err != nil {
		g.leaveClaim(key)
		g.log.LogAttrs(ctx, slog.LevelInfo, "mqtt: no session", slog.String("client", clip(r.client, 64)), slog.Any("err", err))
		if errors.Is(err, dunlin.ErrOverloaded) {
			return nil, false, nil, &fault{codeServerBusy, "too many sessions are being changed"}
		}
		return nil, false, nil, &fault{codeUnavailable, "the session can't be had now"}
	}
	return g.attachClaim(c, key, o.Expiry, got)
}

// enterClaim waits until the session that this node may still have is saved: what a client last said must be known before
// it comes back.
func (g *Gateway) enterClaim(ctx context.Context, key sessionKey) *fault {
	g.sessions.mu.Lock()
	s := g.sessions.mu.byKey[key]
	if s == nil && len(g.sessions.mu.byKey)+len(g.sessions.mu.claims) >= g.cfg.SessionsMax {
		g.sessions.mu.Unlock()
		return &fault{codeQuotaExceeded, "too many sessions on this node"}
	}
	cl := g.sessions.mu.claims[key]
	if cl == nil {
		cl = &claiming{}
		g.sessions.mu.claims[key] = cl
	}
	cl.n++
	var over chan struct{}
	if s != nil {
		s.mu.Lock()
		if s.mu.keep.done {
			over = s.over
			s.retryLocked()
		}
		s.mu.Unlock()
	}
	g.sessions.mu.Unlock()
	if over == nil {
		return nil
	}
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		g.leaveClaim(key)
		return &fault{codeUnavailable, "the session can't be saved now"}
	}
}

func (g *Gateway) leaveClaim(key sessionKey) {
	g.sessions.mu.Lock()
	defer g.sessions.mu.Unlock()
	g.leaveClaimLocked(key)
}

func (g *Gateway) leaveClaimLocked(key sessionKey) (fenced uint64) {
	cl := g.sessions.mu.claims[key]
	if cl.n--; cl.n == 0 {
		delete(g.sessions.mu.claims, key)
	}
	return cl.fenced
}

// attachClaim gives c the session that was claimed for it: the one in memory if that is what was claimed from, or what was
// kept.
func (g *Gateway) attachClaim(c *conn, key sessionKey, expiry uint32, got *dunlin.SessionOpened) (s *session, present bool, old *conn, f *fault) {
	var kept *record
	if got.Present && len(got.Body) > 0 {
		var err error
		if kept, err = parseRecord(got.Body); err != nil {
			g.log.LogAttrs(g.life, slog.LevelError, "mqtt: kept session", slog.String("client", key.client), slog.Any("err", err))
			got.Present = false
		}
	}
	g.sessions.mu.Lock()
	defer g.sessions.mu.Unlock()
	fenced := g.leaveClaimLocked(key)
	before := g.sessions.mu.byKey[key]
	if before != nil {
		before.mu.Lock()
		defer before.mu.Unlock()
	}
	if fenced >= got.Epoch || before != nil && before.mu.keep.epoch > got.Epoch {
		return nil, false, nil, errTakenOver
	}
	if before != nil {
		old, before.mu.conn = before.mu.conn, nil
		if got.Present && before.mu.keep.epoch == got.Before {
			before.mu.conn, before.mu.expiry = c, expiry
			before.mu.keep.claim(got.Epoch)
			return before, true, old, nil
		}
		before.goneLocked()
	}
	s = &session{key: key, g: g, over: make(chan struct{})}
	s.timer.owner = s
	if kept != nil {
		s.restore(kept, got.Exact)
	}
	s.mu.conn, s.mu.expiry, s.mu.keep.epoch = c, expiry, got.Epoch
	g.sessions.mu.byKey[key] = s
	return s, got.Present, old, nil
}

func (kp *keeping) claim(epoch uint64) {
	kp.epoch, kp.done, kp.fate, kp.grace, kp.since, kp.tries = epoch, false, dunlin.WillForget, 0, 0, 0
}

// Kick implements sessions.Holder: it ends the connection that holds the session in that epoch and returns once the
// session is saved.
func (g *Gateway) Kick(ctx context.Context, key dunlin.DeviceKey, epoch uint64, renewed bool) error {
	k, ok := parseRowKey(key)
	if !ok {
		return nil
	}
	g.sessions.mu.Lock()
	if cl := g.sessions.mu.claims[k]; cl != nil {
		cl.fenced = max(cl.fenced, epoch)
	}
	s := g.sessions.mu.byKey[k]
	var c *conn
	var over chan struct{}
	if s != nil {
		s.mu.Lock()
		if s.mu.keep.epoch <= epoch {
			c, over = s.mu.conn, s.over
			s.retryLocked()
		}
		s.mu.Unlock()
	}
	g.sessions.mu.Unlock()
	if c != nil {
		g.stats.takeovers.Add(1)
		g.end(c, ending{fault: errTakenOver, will: true, renewed: renewed})
	}
	if over == nil {
		return nil
	}
	select {
	case <-over:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Holds implements sessions.Holder.
func (g *Gateway) Holds(key dunlin.DeviceKey, epoch uint64) bool {
	k, ok := parseRowKey(key)
	if !ok {
		return false
	}
	g.sessions.mu.Lock()
	defer g.sessions.mu.Unlock()
	if g.sessions.mu.claims[k] != nil {
		return true // perhaps; the next time it will be known
	}
	s := g.sessions.mu.byKey[k]
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.mu.keep.epoch == epoch
}

// lastSaid waits for a will to be kept.
type lastSaid struct{ done chan dunlin.Receipt }

// Done implements dunlin.Waiter.
func (l *lastSaid) Done(_ *dunlin.Uplink, r dunlin.Receipt) { l.done <- r }

// LastWord implements sessions.Holder: it publishes the will of a connection that is over, of this node or another one. The
// epoch makes it one message, however often it is published.
func (g *Gateway) LastWord(ctx context.Context, key dunlin.DeviceKey, epoch uint64, will []byte) error {
	w, err := parseWord(will)
	if err == nil {
		err = g.publishWord(ctx, w, xxhash.Sum64String(key.String())+epoch)
	}
	if err != nil && temporary(err) {
		return err
	}
	if err != nil {
		g.stats.refused.Add(1)
		g.log.LogAttrs(ctx, slog.LevelWarn, "mqtt: will lost", slog.String("session", key.String()), slog.Any("err", err))
	}
	return nil
}

func (g *Gateway) publishWord(ctx context.Context, w *word, hash uint64) error {
	s, err := g.willSlot(&w.principal, &w.msg, hash, true)
	if err != nil {
		return err
	}
	said := &lastSaid{done: make(chan dunlin.Receipt, 1)}
	s.u.Waiter = said
	g.stats.wills.Add(1)
	t := g.newTurn(g.now())
	t.offer(s)
	t.ingest()
	select {
	case r := <-said.done:
		return r.Err
	case <-ctx.Done():
		return errors.Join(dunlin.ErrUnavailable, context.Cause(ctx))
	}
}
