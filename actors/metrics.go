package actors

import (
	"errors"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dunlin-iot/dunlin"
)

// metrics are the room's own figures. Those of the usual way are counted once for a turn, not for each uplink.
type metrics struct {
	uplinks, readings, raised, deadLetters     prometheus.Counter
	duplicates, activations, passivated        prometheus.Counter
	turns, turnsFailed, restarts, logsDropped  prometheus.Counter
	laneTurns, laneFull                        prometheus.Counter
	overloaded, unavailable, unknown, rejected prometheus.Counter
	commitSeconds                              prometheus.Histogram

	reg prometheus.Registerer
	all []prometheus.Collector
}

func newMetrics(reg prometheus.Registerer, d *Directory) (*metrics, error) {
	m := &metrics{reg: reg}
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "dunlin_" + name + "_total", Help: help})
		m.all = append(m.all, c)
		return c
	}
	gauge := func(name, help string, f func() float64) {
		m.all = append(m.all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "dunlin_" + name, Help: help}, f))
	}
	m.uplinks = counter("uplinks_committed", "Uplinks that were committed and answered.")
	m.readings = counter("readings_committed", "Readings of committed uplinks, and those derived from them.")
	m.raised = counter("alerts_raised", "Alerts that were raised.")
	m.deadLetters = counter("dead_letters", "Inputs that a plugin failed on.")
	m.duplicates = counter("uplinks_duplicate", "Uplinks that repeated a committed one.")
	m.activations = counter("device_activations", "Devices that were read from the store to become active.")
	m.passivated = counter("device_passivations", "Devices that were dropped from memory to make room.")
	m.turns = counter("turns", "Entries that were proposed.")
	m.turnsFailed = counter("turns_failed", "Entries that were not committed.")
	m.restarts = counter("shard_restarts", "Restarts of a shard's actor after a panic.")
	m.logsDropped = counter("device_log_lines_dropped", "Log lines of plugins over the limit.")
	m.laneTurns = counter("lane_turns", "Turns that were taken beside others because the domain's plugins are slow.")
	m.laneFull = counter("lane_refusals", "Uplinks that were refused because too many wait for their domain's plugins.")
	m.overloaded = counter("uplinks_overloaded", "Uplinks that were refused because a queue was full.")
	m.unavailable = counter("uplinks_unavailable", "Uplinks that were refused because the shard is not led here.")
	m.unknown = counter("uplinks_unknown_device", "Uplinks of devices that may not register themselves.")
	m.rejected = counter("uplinks_rejected", "Uplinks that were refused for what they are.")
	m.commitSeconds = prometheus.NewHistogram(prometheus.HistogramOpts{Name: "dunlin_commit_seconds",
		Help: "From the proposal of an entry until it was committed and applied.", Buckets: prometheus.ExponentialBuckets(0.0005, 2, 13)})
	m.all = append(m.all, m.commitSeconds)
	gauge("devices_active", "Devices in memory.", func() float64 { return float64(d.active.Load()) })
	gauge("shards_owned", "Shards that this node leads.", func() float64 { return float64(d.owned.Load()) })
	gauge("uplinks_outstanding", "Uplinks that wait for their answer.", func() float64 { return float64(d.outstanding()) })
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

func (m *metrics) applied(uplinks, readings, raised, deadLetters int) {
	m.uplinks.Add(float64(uplinks))
	m.readings.Add(float64(readings))
	if raised > 0 {
		m.raised.Add(float64(raised))
	}
	if deadLetters > 0 {
		m.deadLetters.Add(float64(deadLetters))
	}
}

func (m *metrics) committed(took time.Duration) { m.commitSeconds.Observe(took.Seconds()) }

func (m *metrics) failed(error) { m.turnsFailed.Inc() }

// answered counts the answers that applied doesn't.
func (m *metrics) answered(r dunlin.Receipt) {
	switch {
	case r.Err == nil:
		if r.Duplicate {
			m.duplicates.Inc()
		}
	case errors.Is(r.Err, dunlin.ErrOverloaded):
		m.overloaded.Inc()
	case errors.Is(r.Err, dunlin.ErrUnavailable):
		m.unavailable.Inc()
	case errors.Is(r.Err, dunlin.ErrUnknownDevice):
		m.unknown.Inc()
	default:
		m.rejected.Inc()
	}
}
