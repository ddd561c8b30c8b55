package placement

import "github.com/prometheus/client_golang/prometheus"

// metrics are the room's own figures.
type metrics struct {
	full, served, refused, lost, late, downs, panics prometheus.Counter

	reg prometheus.Registerer
	all []prometheus.Collector
}

func newMetrics(reg prometheus.Registerer, r *Remote) (*metrics, error) {
	m := &metrics{reg: reg}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "dunlin_calls_" + name + "_total", Help: help})
		m.all = append(m.all, c)
		return c
	}
	gauge := func(name, help string, f func(PeerStatus) int64) {
		m.all = append(m.all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "dunlin_calls_" + name, Help: help}, func() float64 {
			n := int64(0)
			for _, p := range r.Peers() {
				n += f(p)
			}
			return float64(n)
		}))
	}
	m.served = counter("served", "Calls of other nodes that were served.")
	m.full = counter("window_full", "Calls that were refused because too many to the node were on their way.")
	m.refused = counter("refused", "Streams and frames of other nodes that were refused.")
	m.lost = counter("answers_lost", "Answers that could not be sent.")
	m.late = counter("answers_late", "Answers to calls that had ended.")
	m.downs = counter("disconnects", "Connections to other nodes that were lost or could not be made.")
	m.panics = counter("panics", "Calls and streams that panicked.")
	gauge("in_flight", "Calls to other nodes on their way.", func(p PeerStatus) int64 { return int64(p.Calls) })
	gauge("in_flight_bytes", "Bytes of calls to other nodes on their way.", func(p PeerStatus) int64 { return p.Bytes })
	gauge("serving", "Calls of other nodes that are being served.", func(p PeerStatus) int64 { return int64(p.Serving) })
	gauge("peers_up", "Nodes that this one is connected to.", func(p PeerStatus) int64 {
		if p.Up {
			return 1
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

// close takes the figures out of the registry again.
func (m *metrics) close() {
	if m.reg != nil {
		for _, c := range m.all {
			m.reg.Unregister(c)
		}
	}
}
