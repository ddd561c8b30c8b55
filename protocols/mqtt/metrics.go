package mqtt

import (
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/prometheus/client_golang/prometheus"
)

// stats are the gateway's counts. They are plain atomics, read when somebody scrapes.
type stats struct {
	accepted    atomic.Int64 // connections
	open        atomic.Int64 // logged in, now
	logins      atomic.Int64
	refusals    atomic.Int64 // of CONNECT
	faults      atomic.Int64 // connections ended for a reason code of ours
	takeovers   atomic.Int64
	published   atomic.Int64
	refused     atomic.Int64
	holds       atomic.Int64
	wills       atomic.Int64
	delivered   atomic.Int64
	rejected    atomic.Int64
	oversize    atomic.Int64
	cursorsLost atomic.Int64

	saves        atomic.Int64
	saveFailures atomic.Int64
}

// counters are a turn's share of stats, added up once a turn.
type counters struct {
	accepted, refused, holds, rejected int64
}

func (c *counters) flush(s *stats) {
	if *c == (counters{}) {
		return
	}
	s.published.Add(c.accepted)
	s.refused.Add(c.refused)
	s.holds.Add(c.holds)
	s.rejected.Add(c.rejected)
	*c = counters{}
}

func (g *Gateway) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	counter := func(name, help string, v *atomic.Int64) prometheus.Collector {
		return prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "dunlin_mqtt_" + name, Help: help},
			func() float64 { return float64(v.Load()) })
	}
	gauge := func(name, help string, f func() float64) prometheus.Collector {
		return prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "dunlin_mqtt_" + name, Help: help}, f)
	}
	s := &g.stats
	for _, c := range []prometheus.Collector{
		gauge("connections", "Connections that are logged in.", func() float64 { return float64(s.open.Load()) }),
		gauge("sessions", "Sessions, with and without a connection.", func() float64 {
			g.sessions.mu.Lock()
			defer g.sessions.mu.Unlock()
			return float64(len(g.sessions.mu.byKey))
		}),
		gauge("unfinished_bytes", "Bytes of packets that are not complete or must wait.", func() float64 { return float64(g.inputBytes.Load()) }),
		counter("accepted_total", "Sockets accepted.", &s.accepted),
		counter("logins_total", "CONNECTs granted.", &s.logins),
		counter("login_refusals_total", "CONNECTs refused.", &s.refusals),
		counter("faults_total", "Connections that the gateway ended with a reason code.", &s.faults),
		counter("takeovers_total", "Sessions taken over by a new connection.", &s.takeovers),
		counter("publishes_total", "PUBLISHes committed and answered.", &s.published),
		counter("publish_refusals_total", "PUBLISHes and wills refused for good.", &s.refused),
		counter("holds_total", "Times that a connection was held back because the node was overloaded.", &s.holds),
		counter("wills_total", "Wills published.", &s.wills),
		counter("deliveries_total", "PUBLISHes sent to subscribers.", &s.delivered),
		counter("delivery_rejections_total", "Deliveries that a subscriber acknowledged with a failure.", &s.rejected),
		counter("deliveries_oversize_total", "Messages above their subscriber's Maximum Packet Size, not sent.", &s.oversize),
		counter("cursors_lost_total", "Sessions that ended because the log was truncated before they read it.", &s.cursorsLost),
		counter("session_saves_total", "Sessions given to their shards.", &s.saves),
		counter("session_save_failures_total", "… that were not taken, for now or because another connection has the session.", &s.saveFailures),
	} {
		if err := r.Register(c); err != nil {
			return fmt.Errorf("mqtt: register metrics: %w", err)
		}
	}
	return nil
}

// observeOpen counts a login.
func (g *Gateway) observeOpen(c *conn) {
	g.stats.open.Add(1)
	g.stats.logins.Add(1)
	m := &c.mu.m
	g.log.LogAttrs(g.life, slog.LevelDebug, "mqtt: connected", slog.String("client", m.client), slog.String("principal", m.principal.ID),
		slog.String("remote", c.wire.remote()))
}

// observeEnd counts and logs the end of a connection.
func (g *Gateway) observeEnd(c *conn, was phase, e *ending) {
	m := &c.mu.m
	level := slog.LevelDebug
	if was == phaseOpen {
		g.stats.open.Add(-1)
	}
	switch {
	case e.fault == nil:
	case was == phaseOpen:
		g.stats.faults.Add(1)
		level = slog.LevelInfo
	default:
		g.stats.refusals.Add(1)
	}
	if !g.log.Enabled(g.life, level) {
		return
	}
	err := e.err
	if e.fault != nil {
		err = e.fault
	}
	if level > slog.LevelDebug && !g.refusals.allow(g.now()) {
		return
	}
	g.log.LogAttrs(g.life, level, "mqtt: connection ended", slog.String("client", m.client), slog.String("remote", c.wire.remote()),
		slog.Any("err", err))
}

// refusalLog keeps hostile clients from filling the log: logsPerSecond lines, and the number of those left out.
type refusalLog struct {
	mu struct {
		sync.Mutex
		second  int64
		n       int
		skipped int
	}
}

const logsPerSecond = 20

func (l *refusalLog) allow(now dunlin.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if s := int64(now) / time.Second.Microseconds(); s != l.mu.second {
		l.mu.second, l.mu.n = s, 0
	}
	if l.mu.n++; l.mu.n > logsPerSecond {
		l.mu.skipped++
		return false
	}
	return true
}

func (l *refusalLog) log(t *turn, m *machine, s *slot, code byte, err error) {
	if !l.allow(t.now) {
		return
	}
	l.mu.Lock()
	skipped := l.mu.skipped
	l.mu.skipped = 0
	l.mu.Unlock()
	t.g.log.LogAttrs(t.g.life, slog.LevelInfo, "mqtt: publish refused", slog.String("client", m.client),
		slog.String("device", string(s.u.Device)), slog.Int("code", int(code)), slog.Any("err", err), slog.Int("unlogged", skipped))
}
