package sessions

import (
	"context"
	"fmt"
	"log/slog"
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/prometheus/client_golang/prometheus"
)

// stats are the service's counts, read when somebody scrapes.
type stats struct {
	entries atomic.Int64
	changes atomic.Int64
	micros  atomic.Int64
	kicks   atomic.Int64
	fenced  atomic.Int64
	swept   atomic.Int64
	wills   atomic.Int64
}

func (st *stats) entry(changes int, took time.Duration) {
	st.entries.Add(1)
	st.changes.Add(int64(changes))
	st.micros.Add(took.Microseconds())
}

func (s *Service) register(r prometheus.Registerer) error {
	if r == nil {
		return nil
	}
	st := &s.stats
	for _, c := range []struct {
		name, help string
		value      func() float64
	}{
		{"rounds_total", "Rounds in which changes of a shard's sessions were decided together.", count(&st.entries)},
		{"changes_total", "Changes of sessions decided by this node.", count(&st.changes)},
		{"round_seconds_total", "Time that these rounds took.", func() float64 { return float64(st.micros.Load()) / 1e6 }},
		{"kicks_total", "Holders that were told to let go.", count(&st.kicks)},
		{"fenced_total", "Holders that could not be told, and were fenced off.", count(&st.fenced)},
		{"swept_total", "Sessions that a sweep ended, or let go for a holder that was lost.", count(&st.swept)},
		{"wills_total", "Wills said for connections that are over.", count(&st.wills)},
	} {
		if err := r.Register(prometheus.NewCounterFunc(prometheus.CounterOpts{Name: "dunlin_sessions_" + c.name, Help: c.help}, c.value)); err != nil {
			return fmt.Errorf("sessions: register metrics: %w", err)
		}
	}
	return nil
}

func count(v *atomic.Int64) func() float64 { return func() float64 { return float64(v.Load()) } }

func (s *Service) logKick(ctx context.Context, node dunlin.NodeID, key dunlin.DeviceKey, err error) {
	s.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "sessions: a holder was fenced off", slog.String("key", key.String()),
		slog.String("node", node.String()), slog.Any("error", err))
}
