package plugins

import "github.com/prometheus/client_golang/prometheus"

// metrics are the host's; their label is the plugin's name.
type metrics struct {
	instances                                                   prometheus.Gauge
	crossings, inputs, burnt, failures, traps, starts, notStart *prometheus.CounterVec
}

// poolMetrics are a pool's own counters, looked up once.
type poolMetrics struct {
	crossings, inputs, fuel, failures, traps, starts, startFailures prometheus.Counter
}

func newMetrics(reg prometheus.Registerer) *metrics {
	counter := func(name, help string) *prometheus.CounterVec {
		return prometheus.NewCounterVec(prometheus.CounterOpts{Name: name, Help: help}, []string{"plugin"})
	}
	m := &metrics{
		instances: prometheus.NewGauge(prometheus.GaugeOpts{Name: "dunlin_plugin_instances",
			Help: "Live instances of plugins."}),
		crossings: counter("dunlin_plugin_crossings_total", "Calls into a plugin, each with a batch of inputs."),
		inputs:    counter("dunlin_plugin_inputs_total", "Inputs that a plugin worked off or failed on."),
		burnt:     counter("dunlin_plugin_fuel_total", "Fuel that a plugin burnt, in units of about one instruction."),
		failures:  counter("dunlin_plugin_failures_total", "Turns of a device that a plugin failed on."),
		traps:     counter("dunlin_plugin_traps_total", "Calls that ended in a trap, without fuel or with a bad answer."),
		starts:    counter("dunlin_plugin_starts_total", "Instances started."),
		notStart:  counter("dunlin_plugin_start_failures_total", "Instances that did not start."),
	}
	if reg != nil {
		reg.MustRegister(m.instances, m.crossings, m.inputs, m.burnt, m.failures, m.traps, m.starts, m.notStart)
	}
	return m
}

func (m *metrics) pool(plugin string) poolMetrics {
	return poolMetrics{
		crossings: m.crossings.WithLabelValues(plugin), inputs: m.inputs.WithLabelValues(plugin),
		fuel: m.burnt.WithLabelValues(plugin), failures: m.failures.WithLabelValues(plugin),
		traps: m.traps.WithLabelValues(plugin), starts: m.starts.WithLabelValues(plugin),
		startFailures: m.notStart.WithLabelValues(plugin),
	}
}
