package replica

import (
	"errors"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/prometheus/client_golang/prometheus"
)

// metrics is what the host tells of itself.
type metrics struct {
	batches, entries, bytes, appliedEntries, truncations prometheus.Counter
	installs, sent, lost, owners                         prometheus.Counter
	writeSeconds, applySeconds                           prometheus.Histogram
	overloaded, notOwner, unavailable, other             prometheus.Counter
}

func newMetrics(h *Host, reg prometheus.Registerer) (*metrics, error) {
	counter := func(name, help string) prometheus.Counter {
		return prometheus.NewCounter(prometheus.CounterOpts{Name: name, Help: help})
	}
	seconds := func(name, help string) prometheus.Histogram {
		return prometheus.NewHistogram(prometheus.HistogramOpts{Name: name, Help: help, Buckets: prometheus.ExponentialBuckets(50e-6, 2, 16)})
	}
	refused := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "dunlin_raft_refused_total", Help: "Proposals that were not acknowledged, by reason."}, []string{"reason"})
	m := &metrics{
		batches:        counter("dunlin_raft_batches_total", "Batches written to the Raft log."),
		entries:        counter("dunlin_raft_rows_total", "Rows written to the Raft log."),
		bytes:          counter("dunlin_raft_bytes_total", "Entry bytes written to the Raft log."),
		appliedEntries: counter("dunlin_raft_applied_total", "Entries applied to the state."),
		installs:       counter("dunlin_raft_installs_total", "Snapshots of other nodes that were installed."),
		sent:           counter("dunlin_raft_sent_total", "Messages for other nodes' replicas."),
		lost:           counter("dunlin_raft_lost_total", "Messages of other nodes that found no room."),
		owners:         counter("dunlin_raft_ownerships_total", "Times that this node became the owner of a shard."),
		truncations:    counter("dunlin_raft_truncations_total", "Truncations of a shard's log."),
		writeSeconds:   seconds("dunlin_raft_write_seconds", "Time to write a batch to the Raft log, with its fsync."),
		applySeconds:   seconds("dunlin_raft_apply_seconds", "Time to apply a batch to the state."),
		overloaded:     refused.WithLabelValues("overloaded"),
		notOwner:       refused.WithLabelValues("not_owner"),
		unavailable:    refused.WithLabelValues("unavailable"),
		other:          refused.WithLabelValues("other"),
	}
	owned := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "dunlin_raft_owned_shards", Help: "Shards that this node owns."}, func() float64 {
		n := 0
		for i := range h.owned {
			if h.owned[i].Load() != 0 {
				n++
			}
		}
		return float64(n)
	})
	replicas := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "dunlin_raft_replicas", Help: "Shards that have a replica on this node."}, func() float64 {
		n := 0
		for i := range h.cells {
			if h.cells[i].flags.Load() != 0 {
				n++
			}
		}
		return float64(n)
	})
	pending := prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "dunlin_raft_pending_bytes", Help: "Bytes of proposals whose fate is open."}, func() float64 {
		h.in.Lock()
		defer h.in.Unlock()
		return float64(h.in.node.bytes)
	})
	if reg == nil {
		return m, nil
	}
	for _, c := range []prometheus.Collector{m.batches, m.entries, m.bytes, m.appliedEntries, m.truncations, m.writeSeconds,
		m.applySeconds, m.installs, m.sent, m.lost, m.owners, refused, owned, replicas, pending} {
		if err := reg.Register(c); err != nil {
			return nil, err
		}
	}
	return m, nil
}

func (m *metrics) wrote(b *appendBatch, d time.Duration) {
	m.batches.Inc()
	m.entries.Add(float64(len(b.rows)))
	m.bytes.Add(float64(b.bytes))
	m.writeSeconds.Observe(d.Seconds())
}

func (m *metrics) applied(b *applyBatch, d time.Duration) {
	m.appliedEntries.Add(float64(len(b.entries)))
	m.applySeconds.Observe(d.Seconds())
}

func (m *metrics) refused(err error) {
	switch {
	case errors.Is(err, dunlin.ErrOverloaded):
		m.overloaded.Inc()
	case errors.Is(err, dunlin.ErrNotOwner):
		m.notOwner.Inc()
	case errors.Is(err, dunlin.ErrUnavailable):
		m.unavailable.Inc()
	default:
		m.other.Inc()
	}
}
