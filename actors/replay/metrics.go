package replay

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the room's own figures. A back-test counts at each node that has shards of it.
type metrics struct {
	running                        prometheus.Gauge
	done, failed, turns, explained prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) (*metrics, error) {
	parts := prometheus.NewCounterVec(prometheus.CounterOpts{Name: "dunlin_backtest_parts_total",
		Help: "Back-tests worked off over this node's shards, by how they ended: done, or failed or stopped."}, []string{"result"})
	m := &metrics{
		running:   prometheus.NewGauge(prometheus.GaugeOpts{Name: "dunlin_backtest_running", Help: "Back-tests that this node is working on."}),
		done:      parts.WithLabelValues("done"),
		failed:    parts.WithLabelValues("failed"),
		turns:     prometheus.NewCounter(prometheus.CounterOpts{Name: "dunlin_backtest_turns_total", Help: "Recorded turns that back-tests have worked off again, of those that ended well."}),
		explained: prometheus.NewCounter(prometheus.CounterOpts{Name: "dunlin_alerts_explained_total", Help: "Alerts whose turn this node has run again to explain them."}),
	}
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.running, parts, m.turns, m.explained} {
		if err := reg.Register(c); err != nil {
			return nil, fmt.Errorf("metrics of replay: %w", err)
		}
	}
	return m, nil
}

// began tells that this node works on a back-test; ended must follow.
func (m *metrics) began() { m.running.Inc() }

func (m *metrics) ended(k *tally, err error) {
	m.running.Dec()
	if err != nil {
		m.failed.Inc()
		return
	}
	m.done.Inc()
	m.turns.Add(float64(k.turns))
}
