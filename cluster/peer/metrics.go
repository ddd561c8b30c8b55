package peer

import (
	"errors"

	"github.com/dunlin-iot/dunlin"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics is what the links tell of themselves. What the hot path counts is read from the peers when somebody asks.
type metrics struct {
	calls, serves *prometheus.CounterVec
	refusals      *prometheus.CounterVec
	overloaded    prometheus.Counter
}

func newMetrics(l *Links, reg prometheus.Registerer) (*metrics, error) {
	vec := func(name, help, label string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{label})
	}
	m := &metrics{
		calls:      vec("dunlin_peer_calls_total", "Calls to other nodes, by outcome.", "outcome"),
		serves:     vec("dunlin_peer_served_total", "Calls of other nodes that were served, by outcome.", "outcome"),
		refusals:   vec("dunlin_peer_refused_total", "Connections that this node refused, by reason.", "reason"),
		overloaded: prometheus.NewCounter(prometheus.CounterOpts{Name: "dunlin_peer_overloaded_total", Help: "Calls of other nodes that were refused because too many were being served."}),
	}
	if reg == nil {
		return m, nil
	}
	all := []prometheus.Collector{m.calls, m.serves, m.refusals, m.overloaded, &collector{l}}
	for _, c := range all {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func outcome(err error) string {
	switch {
	case err == nil:
		return "ok"
	case errors.Is(err, dunlin.ErrOverloaded):
		return "overloaded"
	case errors.Is(err, dunlin.ErrUnavailable):
		return "unavailable"
	}
	return "error"
}

func (m *metrics) called(err error) { m.calls.WithLabelValues(outcome(err)).Inc() }
func (m *metrics) served(err error) { m.serves.WithLabelValues(outcome(err)).Inc() }
func (m *metrics) refused(r Reason) { m.refusals.WithLabelValues(r.String()).Inc() }

// collector reads the peers.
type collector struct{ l *Links }

// columns are the metrics of each peer.
func columns() []column {
	gauge, counter := prometheus.GaugeValue, prometheus.CounterValue
	of := func(name, help string, typ prometheus.ValueType, value func(p *peer, s *PeerStatus) float64) column {
		return column{prometheus.NewDesc(name, help, []string{"peer"}, nil), typ, value}
	}
	return []column{
		of("dunlin_peer_connected", "1 if the node is linked.", gauge, func(_ *peer, s *PeerStatus) float64 {
			if s.Connected {
				return 1
			}
			return 0
		}),
		of("dunlin_peer_rtt_seconds", "Round trip of a ping, smoothed.", gauge, func(_ *peer, s *PeerStatus) float64 { return s.RTT.Seconds() }),
		of("dunlin_peer_queue_bytes", "Raft messages waiting for the node.", gauge, func(_ *peer, s *PeerStatus) float64 { return float64(s.Queue) }),
		of("dunlin_peer_links_total", "Connections that became the link.", counter, func(p *peer, _ *PeerStatus) float64 { return float64(p.connections.Load()) }),
		of("dunlin_peer_dropped_total", "Raft messages lost here: the queue was full or nobody linked.", counter, func(p *peer, _ *PeerStatus) float64 { return float64(p.dropped.Load()) }),
		of("dunlin_peer_sent_messages_total", "Raft messages queued for the node.", counter, func(p *peer, _ *PeerStatus) float64 { return float64(p.sentMessages.Load()) }),
		of("dunlin_peer_sent_bytes_total", "Their bytes.", counter, func(p *peer, _ *PeerStatus) float64 { return float64(p.sentBytes.Load()) }),
		of("dunlin_peer_received_messages_total", "Raft messages from the node.", counter, func(p *peer, _ *PeerStatus) float64 { return float64(p.gotMessages.Load()) }),
		of("dunlin_peer_received_bytes_total", "Their bytes.", counter, func(p *peer, _ *PeerStatus) float64 { return float64(p.gotBytes.Load()) }),
	}
}

type column struct {
	desc  *prometheus.Desc
	typ   prometheus.ValueType
	value func(p *peer, s *PeerStatus) float64
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, col := range columns() {
		ch <- col.desc
	}
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	for id, p := range *c.l.peers.Load() {
		s := p.status()
		for _, col := range columns() {
			ch <- prometheus.MustNewConstMetric(col.desc, col.typ, col.value(p, &s), id.String())
		}
	}
}
