package gossip

import (
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the room's own figures.
type metrics struct {
	refused, malformed prometheus.Counter

	health atomic.Pointer[func() int]
	reg    prometheus.Registerer
	all    []prometheus.Collector
}

func newMetrics(reg prometheus.Registerer, g *Gossip) (*metrics, error) {
	m := &metrics{reg: reg}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "dunlin_gossip_" + name + "_total", Help: help})
		m.all = append(m.all, c)
		return c
	}
	gauge := func(name, help, state string, f func() int) {
		o := prometheus.GaugeOpts{Name: "dunlin_gossip_" + name, Help: help}
		if state != "" {
			o.ConstLabels = prometheus.Labels{"state": state}
		}
		m.all = append(m.all, prometheus.NewGaugeFunc(o, func() float64 { return float64(f()) }))
	}
	m.refused = counter("refused", "Nodes that were refused, or that took this node's name.")
	m.malformed = counter("malformed", "Messages that could not be read.")
	const members = "Nodes as this one sees them, itself included."
	gauge("members", members, "alive", g.view.alive)
	gauge("members", members, "dead", g.view.dead)
	gauge("hints", "Shards with a known owner.", "", func() int { return g.hints.len() })
	gauge("health", "How late this node is with its own gossip: 0 is well, 7 as bad as it gets.", "", func() int {
		if f := m.health.Load(); f != nil {
			return (*f)()
		}
		return 0
	})
	if reg == nil {
		return m, nil
	}
	for i, c := range m.all {
		if err := reg.Register(c); err != nil {
			m.all = m.all[:i]
			m.close()
			return nil, err
		}
	}
	return m, nil
}

// ready gives the health score, which memberlist has only once it runs.
func (m *metrics) ready(health func() int) { m.health.Store(&health) }

// close takes the figures out of the registry again.
func (m *metrics) close() {
	if m.reg != nil {
		for _, c := range m.all {
			m.reg.Unregister(c)
		}
	}
}
