package coap

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dunlin-iot/dunlin/protocols/coap/endpoint"
)

// metric is one number that the readers keep.
type metric struct {
	desc  *prometheus.Desc
	kind  prometheus.ValueType
	value func(s *endpoint.Stats) float64
}

// collector shows the readers' counters to Prometheus. They count for themselves; it sums up when asked.
type collector struct {
	g       *Gateway
	metrics []metric
	lost    *prometheus.Desc
	answers *prometheus.Desc
}

func newCollector(g *Gateway) *collector {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc("dunlin_coap_"+name, help, labels, nil)
	}
	count := func(name, help string, value func(s *endpoint.Stats) uint64) metric {
		return metric{desc(name, help), prometheus.CounterValue, func(s *endpoint.Stats) float64 { return float64(value(s)) }}
	}
	gauge := func(name, help string, value func(s *endpoint.Stats) int) metric {
		return metric{desc(name, help), prometheus.GaugeValue, func(s *endpoint.Stats) float64 { return float64(value(s)) }}
	}
	type st = *endpoint.Stats
	return &collector{g: g,
		lost:    desc("datagrams_lost_total", "Datagrams that the socket did not take."),
		answers: desc("answers_total", "Answers by code; duplicates are not counted again.", "code"),
		metrics: []metric{
			count("requests_total", "New requests.", func(s st) uint64 { return s.Requests }),
			count("duplicates_total", "Requests that were seen before.", func(s st) uint64 { return s.Duplicates }),
			count("pings_total", "Empty confirmable messages.", func(s st) uint64 { return s.Pings }),
			count("malformed_total", "Datagrams that are no CoAP message.", func(s st) uint64 { return s.Malformed }),
			count("stray_total", "Messages that belong to nothing: unexpected ACKs, Resets and responses.", func(s st) uint64 { return s.Stray }),
			count("empty_acks_total", "Requests that took longer than a second.", func(s st) uint64 { return s.EmptyAcks }),
			count("retransmits_total", "Repetitions of confirmable answers.", func(s st) uint64 { return s.Retransmits }),
			count("abandoned_total", "Confirmable answers that were never acknowledged.", func(s st) uint64 { return s.GaveUp }),
			count("resets_total", "Confirmable answers that were answered with a Reset.", func(s st) uint64 { return s.Resets }),
			count("refused_total", "Requests that found a table full.", func(s st) uint64 { return s.Refused }),
			count("peers_evicted_total", "Peers forgotten before their time because the table was full.", func(s st) uint64 { return s.Evicted }),
			gauge("peers", "Endpoints remembered.", func(s st) int { return s.Peers }),
			gauge("exchanges", "Requests in work.", func(s st) int { return s.Pending }),
			gauge("unacknowledged", "Confirmable answers that wait for their ACK.", func(s st) int { return s.Unacked }),
		}}
}

// Describe implements prometheus.Collector.
func (c *collector) Describe(ch chan<- *prometheus.Desc) {
	for _, m := range c.metrics {
		ch <- m.desc
	}
	ch <- c.lost
	ch <- c.answers
}

// Collect implements prometheus.Collector.
func (c *collector) Collect(ch chan<- prometheus.Metric) {
	sum, lost := c.g.stats()
	for _, m := range c.metrics {
		ch <- prometheus.MustNewConstMetric(m.desc, m.kind, m.value(&sum))
	}
	ch <- prometheus.MustNewConstMetric(c.lost, prometheus.CounterValue, float64(lost))
	for code := range 256 {
		n := uint64(0)
		for _, rd := range c.g.listening() {
			n += rd.codes[code].Load()
		}
		if n > 0 {
			ch <- prometheus.MustNewConstMetric(c.answers, prometheus.CounterValue, float64(n), fmt.Sprintf("%d.%02d", code>>5, code&31))
		}
	}
}

// stats sums up what the readers last published, and how many datagrams their sockets did not take.
func (g *Gateway) stats() (sum endpoint.Stats, lost uint64) {
	for _, rd := range g.listening() {
		rd.publish.Lock()
		sum.Add(&rd.publish.stats)
		lost += rd.publish.lost
		rd.publish.Unlock()
	}
	return sum, lost
}
