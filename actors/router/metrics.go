package router

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dunlin-iot/dunlin"
)

// metrics are the router's own figures.
type metrics struct {
	forwarded, arrived, calls, retries prometheus.Counter
	overloaded, unavailable, asked     prometheus.Counter

	reg prometheus.Registerer
	all []prometheus.Collector
}

func newMetrics(reg prometheus.Registerer, r *Router) (*metrics, error) {
	m := &metrics{reg: reg}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "dunlin_router_" + name + "_total", Help: help})
		m.all = append(m.all, c)
		return c
	}
	m.forwarded = counter("uplinks_forwarded", "Uplinks that were sent to the owners of their shards.")
	m.arrived = counter("uplinks_arrived", "Uplinks that other nodes sent here and that were taken.")
	m.calls = counter("batches", "Batches of uplinks that were sent.")
	m.retries = counter("uplinks_retried", "Uplinks that were to be sent once more.")
	m.overloaded = counter("uplinks_overloaded", "Uplinks that were refused because too many wait or are on their way.")
	m.unavailable = counter("uplinks_unavailable", "Uplinks that were refused because their shard had no owner, or that did not answer.")
	m.asked = counter("questions", "Questions and changes that were sent to other nodes.")
	m.all = append(m.all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "dunlin_router_uplinks_outstanding",
		Help: "Uplinks that wait for an owner or are on their way to one."}, func() float64 { return float64(r.outstanding()) }))
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

// told counts an uplink that was answered with an error of the router's or the owner's.
func (m *metrics) told(rec dunlin.Receipt) {
	switch {
	case rec.Err == nil:
	case errors.Is(rec.Err, dunlin.ErrOverloaded):
		m.overloaded.Inc()
	case errors.Is(rec.Err, dunlin.ErrUnavailable), errors.Is(rec.Err, dunlin.ErrNotOwner):
		m.unavailable.Inc()
	}
}

func (m *metrics) close() {
	if m.reg == nil {
		return
	}
	for _, c := range m.all {
		m.reg.Unregister(c)
	}
}
