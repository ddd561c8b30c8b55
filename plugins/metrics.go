package plugins

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the host's; their label is the plugin's name.
type metrics struct {
	memory                                      prometheus.GaugeFunc
	instances                                   *prometheus.GaugeVec
	wait                                        prometheus.Histogram
	tallies                                     *tallies // what every crossing adds to
	failures, traps, stopped, refused           *prometheus.CounterVec
	starts, notStart, quarantined, bad, dropped *prometheus.CounterVec
}

// poolMetrics are a pool's own counters, looked up once.
type poolMetrics struct {
	instances                                        prometheus.Gauge
	tally                                            *tally
	failures, traps, stopped, refused                prometheus.Counter
	starts, startFailures, quarantined, bad, dropped prometheus.Counter
}

// newMetrics makes the metrics; memory tells the bytes of all instances, and who has the lock may add to a tally.
func newMetrics(reg prometheus.Registerer, lock sync.Locker, memory func() float64) *metrics {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"plugin"})
	}
	m := &metrics{
		instances: prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: "dunlin_plugin_instances",
			Help: "Live instances of plugins."}, []string{"plugin"}),
		memory: prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "dunlin_plugin_memory_bytes",
			Help: "Memory of all live instances."}, memory),
		wait: prometheus.NewHistogram(prometheus.HistogramOpts{Name: "dunlin_plugin_wait_seconds",
			Help: "Time that calls waited for a processor, of those that did.", Buckets: prometheus.ExponentialBuckets(1e-5, 4, 9)}),
		tallies:     newTallies(lock),
		failures:    counter("dunlin_plugin_failures_total", "Turns of a device that a plugin failed on."),
		traps:       counter("dunlin_plugin_traps_total", "Calls that ended in a trap, without fuel or with a bad answer."),
		stopped:     counter("dunlin_plugin_stopped_total", "Calls that were stopped since they took too long."),
		refused:     counter("dunlin_plugin_refused_total", "Inputs that were not handed to a plugin: its version is bad, or their device is in quarantine."),
		starts:      counter("dunlin_plugin_starts_total", "Instances started."),
		notStart:    counter("dunlin_plugin_start_failures_total", "Instances that did not start."),
		quarantined: counter("dunlin_plugin_quarantines_total", "Devices put into quarantine."),
		bad:         counter("dunlin_plugin_bad_versions_total", "Versions that were found to be bad."),
		dropped:     counter("dunlin_plugin_log_lines_dropped_total", "Log lines of a plugin beyond its domain's allowance."),
	}
	if reg != nil {
		reg.MustRegister(m.instances, m.memory, m.wait, m.tallies, m.failures, m.traps, m.stopped, m.refused, m.starts, m.notStart,
			m.quarantined, m.bad, m.dropped)
	}
	return m
}

func (m *metrics) pool(plugin string) poolMetrics {
	return poolMetrics{
		instances: m.instances.WithLabelValues(plugin),
		tally:     m.tallies.of(plugin), failures: m.failures.WithLabelValues(plugin),
		traps: m.traps.WithLabelValues(plugin), stopped: m.stopped.WithLabelValues(plugin),
		refused: m.refused.WithLabelValues(plugin), starts: m.starts.WithLabelValues(plugin),
		startFailures: m.notStart.WithLabelValues(plugin), quarantined: m.quarantined.WithLabelValues(plugin),
		bad: m.bad.WithLabelValues(plugin), dropped: m.dropped.WithLabelValues(plugin),
	}
}

// waited notes how long a call waited for its slot.
func (m *metrics) waited(d time.Duration) { m.wait.Observe(d.Seconds()) }
