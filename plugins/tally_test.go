package plugins_test

import (
	"sync"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dunlin-iot/dunlin/plugins"
)

// What crossings come to is told while they run, and stays when the instances that made them are gone.
func TestTalliesAreTold(t *testing.T) {
	reg := prometheus.NewRegistry()
	b := newBench(t, plugins.Config{Metrics: reg})
	st := b.stage(plugin(nil).build(), "")
	st.Name = "one"
	told := func() map[string]float64 {
		families, err := reg.Gather()
		if err != nil {
			t.Fatal(err)
		}
		values := make(map[string]float64)
		for _, f := range families {
			for _, m := range f.GetMetric() {
				if l := m.GetLabel(); len(l) == 1 && l[0].GetName() == "plugin" && l[0].GetValue() == "one" {
					values[f.GetName()] = m.GetCounter().GetValue()
				}
			}
		}
		return values
	}
	var all sync.WaitGroup
	for range 2 {
		all.Go(func() {
			for range 50 {
				if err := b.Process("cold", st, 0, t0, batchOf(3)); err != nil {
					t.Error(err)
				}
				told()
			}
		})
	}
	all.Wait()
	check := func(when string) {
		t.Helper()
		v := told()
		if v["dunlin_plugin_crossings_total"] != 100 || v["dunlin_plugin_inputs_total"] != 300 {
			t.Errorf("%s: %v crossings with %v inputs, not 100 with 300", when, v["dunlin_plugin_crossings_total"], v["dunlin_plugin_inputs_total"])
		}
		for _, name := range []string{"dunlin_plugin_fuel_total", "dunlin_plugin_cpu_seconds_total", "dunlin_plugin_output_bytes_total"} {
			if v[name] <= 0 {
				t.Errorf("%s: %s is %v", when, name, v[name])
			}
		}
	}
	check("with instances")
	b.Remove(st.Hash)
	check("without")
}
