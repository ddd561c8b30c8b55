package mqtt

import (
	"context"
	"crypto/rand"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/dunlin-iot/dunlin"
	mochi "github.com/mochi-mqtt/server/v2/packets"
)

// loginWorkers ask the Authenticator, which may take its time (it hashes secrets), off the readers' goroutines.
const loginWorkers = 4

type loginRequest struct {
	c *conn
	r *connectRequest
}

// askLogin queues a CONNECT for the login workers; false: too many wait.
func (g *Gateway) askLogin(c *conn, r *connectRequest) bool {
	select {
	case g.logins <- loginRequest{c, r}:
		return true
	default:
		return false
	}
}

func (g *Gateway) loginWorker(ctx context.Context) {
	t := g.newTurn(0)
	for {
		select {
		case q := <-g.logins:
			g.login(ctx, t, q.c, q.r)
			t.ingest()
		case <-ctx.Done():
			return
		}
	}
}

// login answers a CONNECT.
func (g *Gateway) login(ctx context.Context, t *turn, c *conn, r *connectRequest) {
	refuse := func(f *fault) {
		t.now, t.c = g.now(), c
		c.mu.Lock()
		c.endLocked(t, ending{fault: f})
		c.mu.Unlock()
	}
	p, err := g.authenticate(ctx, c, r)
	if err != nil {
		f := &fault{loginCode(err, r.named), "login refused"}
		if f.code == codeServerBusy {
			f.why = "the node can't take this connection now"
		}
		refuse(f)
		return
	}
	if r.client == "" {
		r.client, r.assignedClient = "auto-"+rand.Text(), true
	}
	will, f := g.checkWill(&p, r)
	if f != nil {
		refuse(f)
		return
	}
	if g.deps.Sessions != nil {
		select {
		case g.claims <- struct{}{}:
			g.work.Go(func() {
				defer func() { <-g.claims }()
				g.claim(ctx, c, r, p, will)
			})
		case <-ctx.Done():
		}
		return
	}
	key := sessionKey{p.Tenant, p.Kind, p.ID, r.client}
	t.now, t.c = g.now(), c
	c.mu.Lock()
	if c.mu.m.phase != phaseLogin {
		c.mu.Unlock()
		return
	}
	s, present, old, f := g.attach(t, key, r)
	if f != nil {
		c.endLocked(t, ending{fault: f})
		c.mu.Unlock()
		return
	}
	c.mu.m.sess = s
	c.mu.Unlock()
	g.admit(t, admission{c: c, r: r, p: p, will: will, s: s, old: old, present: present})
}

// admission is a login that is through.
type admission struct {
	c       *conn
	r       *connectRequest
	p       dunlin.Principal
	will    *willMessage
	s       *session
	old     *conn // who had the session, at this node
	present bool
}

// admit ends who had the session, and welcomes who has it now.
func (g *Gateway) admit(t *turn, a admission) {
	if a.old != nil { // before the CONNACK, so that the two never talk at the same time
		g.stats.takeovers.Add(1)
		g.end(a.old, ending{fault: errTakenOver, will: true, renewed: !a.present})
	}
	c := a.c
	c.mu.Lock()
	switch {
	case c.mu.m.phase == phaseLogin:
		c.mu.m.sess = a.s
		g.welcome(t, c, a.r, a.p, a.present)
		c.mu.m.will = a.will
		c.sendLocked(t)
		c.unpauseLocked(t)
	case c.mu.m.sess == nil: // it went while its session was claimed
		a.s.detach(t, c, nil, &ending{})
	}
	c.mu.Unlock()
	g.follow(c, a.s)
}

func (g *Gateway) authenticate(ctx context.Context, c *conn, r *connectRequest) (dunlin.Principal, error) {
	ctx, cancel := context.WithTimeout(ctx, g.cfg.ConnectTimeout)
	defer cancel()
	if int(g.stats.open.Load()) >= g.cfg.ConnectionsMax {
		return dunlin.Principal{}, fmt.Errorf("%d connections: %w", g.cfg.ConnectionsMax, dunlin.ErrOverloaded)
	}
	p, err := g.deps.Auth.Authenticate(ctx, dunlin.LoginAttempt{ID: r.user, Secret: r.secret, Protocol: "mqtt", Remote: c.wire.remote()})
	r.secret = nil
	if err != nil {
		g.log.LogAttrs(ctx, slog.LevelInfo, "mqtt: login refused", slog.String("user", clip(r.user, 64)),
			slog.String("client", clip(r.client, 64)), slog.String("remote", c.wire.remote()), slog.Any("err", err))
		return p, err
	}
	if p.Kind == dunlin.PrincipalNone {
		return p, dunlin.ErrUnauthenticated
	}
	if p.Tenant == "" {
		p.Tenant = dunlin.DefaultTenant
	}
	return p, nil
}

// welcome opens the connection and writes its CONNACK.
func (g *Gateway) welcome(t *turn, c *conn, r *connectRequest, p dunlin.Principal, present bool) {
	m := &c.mu.m
	m.phase = phaseOpen
	m.principal, m.client = p, r.client
	m.clientHash = xxhash.Sum64String(r.client)
	m.receiveMax = g.cfg.WindowMax
	m.packetMax = math.MaxInt32
	a := connack{present: present}
	keep := time.Duration(r.keepAlive) * time.Second
	if r.v5 {
		if r.receiveMax > 0 {
			m.receiveMax = min(m.receiveMax, int(r.receiveMax))
		}
		if r.packetMax > 0 {
			m.packetMax = int(min(r.packetMax, math.MaxInt32))
		}
		if keep == 0 || keep > g.cfg.KeepAliveMax {
			keep = g.cfg.KeepAliveMax
			a.props.ServerKeepAlive, a.props.ServerKeepAliveFlag = uint16(keep/time.Second), true
		}
		g.capabilities(&a.props, r)
	}
	m.keepAlive = keep * 3 / 2
	t.out = appendConnack(t.out, &a, r.v5)
	g.leaveHalfOpen(c)
	g.observeOpen(c)
	c.mu.seen = t.now
	if m.keepAlive > 0 {
		g.wheel.set(&c.timer, t.now.Add(m.keepAlive))
	} else {
		g.wheel.stop(&c.timer)
	}
}

// capabilities tells an MQTT 5 client what it may use.
func (g *Gateway) capabilities(p *mochi.Properties, r *connectRequest) {
	p.ReceiveMaximum = uint16(g.cfg.ReceiveMax)
	p.MaximumPacketSize = uint32(g.cfg.PacketBytesMax)
	p.TopicAliasMaximum = uint16(g.cfg.TopicAliasMax)
	p.RetainAvailableFlag = true    // and 0
	p.SharedSubAvailableFlag = true // and 0
	if granted := clampExpiry(r.expiry, g.cfg.SessionExpiryMax); granted != r.expiry {
		p.SessionExpiryInterval, p.SessionExpiryIntervalFlag = granted, true
	}
	if r.assignedClient {
		p.AssignedClientID = r.client
	}
}
