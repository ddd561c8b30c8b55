package coap

import (
	"fmt"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dunlin-iot/dunlin/protocols/coap/endpoint"
)

// collector shows the readers' counters to Prometheus. They count for themselves; it sums up when asked.
type collector struct{ g *Gateway }

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("dunlin_coap_"+name, help, labels, nil)
}

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, ch) }

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	var sum endpoint.Stats
	var lost uint64
	var byCode [256]uint64
	for _, rd := range c.g.readers {
		rd.publish.Lock()
		s := rd.publish.stats
		lost += rd.publish.lost
		rd.publish.Unlock()
		sum.Add(&s)
		for i := range byCode {
			byCode[i] += rd.codes[i].Load()
		}
	}
	count := func(name, help string, v uint64) {
		ch <- prometheus.MustNewConstMetric(desc(name, help), prometheus.CounterValue, float64(v))
	}
	gauge := func(name, help string, v int) {
		ch <- prometheus.MustNewConstMetric(desc(name, help), prometheus.GaugeValue, float64(v))
	}
	count("requests_total", "New requests.", sum.Requests)
	count("duplicates_total", "Requests that were seen before.", sum.Duplicates)
	count("pings_total", "Empty confirmable messages.", sum.Pings)
	count("malformed_total", "Datagrams that are no CoAP message.", sum.Malformed)
	count("stray_total", "Messages that belong to nothing: unexpected ACKs, Resets and responses.", sum.Stray)
	count("empty_acks_total", "Requests that took longer than a second.", sum.EmptyAcks)
	count("retransmits_total", "Repetitions of confirmable answers.", sum.Retransmits)
	count("abandoned_total", "Confirmable answers that were never acknowledged.", sum.GaveUp)
	count("resets_total", "Confirmable answers that were answered with a Reset.", sum.Resets)
	count("refused_total", "Requests that found a table full.", sum.Refused)
	count("peers_evicted_total", "Peers forgotten before their time because the table was full.", sum.Evicted)
	count("datagrams_lost_total", "Datagrams that the socket did not take.", lost)
	gauge("peers", "Endpoints remembered.", sum.Peers)
	gauge("exchanges", "Requests in work.", sum.Pending)
	gauge("unacknowledged", "Confirmable answers that wait for their ACK.", sum.Unacked)
	byCodeDesc := desc("answers_total", "Answers by code; duplicates are not counted again.", "code")
	for code, n := range byCode {
		if n > 0 {
			ch <- prometheus.MustNewConstMetric(byCodeDesc, prometheus.CounterValue, float64(n), fmt.Sprintf("%d.%02d", code>>5, code&31))
		}
	}
}
