package store

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"
)

// What only grows is a counter and is named as one.
func TestTotalsAreCounters(t *testing.T) {
	c := small(vfs.NewMem(), 1)
	reg := prometheus.NewRegistry()
	c.Metrics = reg
	db := openTest(t, c)
	if err := db.state.eng.Flush(); err != nil {
		t.Fatal(err)
	}
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]int{}
	for _, f := range families {
		if f.GetType().String() == "COUNTER" {
			found[f.GetName()] = len(f.GetMetric())
		}
	}
	for _, name := range []string{"dunlin_store_flushes_total", "dunlin_store_compactions_total"} {
		if found[name] != 2 { // one for each engine
			t.Errorf("%d counters %s, want 2", found[name], name)
		}
	}
}
