package plugins

import (
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// tally is what the crossings of a plugin's instances came to. Each crossing adds to all of it: as counters of their own they
// were a tenth of a small one, so they are plain numbers under the gate's lock, which a crossing takes anyway.
type tally struct {
	crossings, inputs, fuel, nanos, output int64
}

// tallies are all plugins' as a collector of metrics. They stay when pools end: totals don't shrink.
type tallies struct {
	families [5]tallied
	lock     sync.Locker // the gate's
	plugins  map[string]*tally
}

// tallied is one number of all tallies as a metric.
type tallied struct {
	desc  *prometheus.Desc
	value func(*tally) float64
}

func newTallies(lock sync.Locker) *tallies {
	family := func(name, help string, value func(*tally) float64) tallied {
		return tallied{prometheus.NewDesc(name, help, []string{"plugin"}, nil), value}
	}
	return &tallies{lock: lock, plugins: make(map[string]*tally), families: [...]tallied{
		family("dunlin_plugin_crossings_total", "Calls into a plugin, each with a batch of inputs.",
			func(t *tally) float64 { return float64(t.crossings) }),
		family("dunlin_plugin_inputs_total", "Inputs that a plugin worked off or failed on.",
			func(t *tally) float64 { return float64(t.inputs) }),
		family("dunlin_plugin_fuel_total", "Fuel that a plugin burnt, in units of about one instruction.",
			func(t *tally) float64 { return float64(t.fuel) }),
		family("dunlin_plugin_cpu_seconds_total", "Processor time that a plugin took, short calls estimated by their fuel.",
			func(t *tally) float64 { return float64(t.nanos) / 1e9 }),
		family("dunlin_plugin_output_bytes_total", "Bytes that a plugin answered.",
			func(t *tally) float64 { return float64(t.output) }),
	}}
}

// of returns a plugin's tally.
func (ts *tallies) of(plugin string) *tally {
	ts.lock.Lock()
	defer ts.lock.Unlock()
	t := ts.plugins[plugin]
	if t == nil {
		t = new(tally)
		ts.plugins[plugin] = t
	}
	return t
}

// Describe implements prometheus.Collector.
func (ts *tallies) Describe(ch chan<- *prometheus.Desc) {
	for _, f := range ts.families {
		ch <- f.desc
	}
}

// Collect implements prometheus.Collector.
func (ts *tallies) Collect(ch chan<- prometheus.Metric) {
	ts.lock.Lock()
	now := make(map[string]tally, len(ts.plugins))
	for plugin, t := range ts.plugins {
		now[plugin] = *t
	}
	ts.lock.Unlock()
	for plugin, t := range now {
		for _, f := range ts.families {
			ch <- prometheus.MustNewConstMetric(f.desc, prometheus.CounterValue, f.value(&t), plugin)
		}
	}
}
