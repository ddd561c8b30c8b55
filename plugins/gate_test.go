package plugins_test

import (
	"sync"
	"testing"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins"
)

// TestLongCallsOfTwoDomainsEnd: two runaways at once, with nobody waiting behind them, take turns and are stopped; calls of a third
// domain are answered beside them and after.
func TestLongCallsOfTwoDomainsEnd(t *testing.T) {
	b := newBench(t, plugins.Config{Workers: 2, Limits: plugins.Limits{BadDevices: 1000, TrapsPerBatch: 1000}})
	loop := b.stage(runaways()["integers"].build(), "")
	good := b.stage(plugin(nil).build(), "")
	var all sync.WaitGroup
	for _, domain := range []dunlin.DomainID{"a", "b", "a", "b"} {
		all.Go(func() {
			for i := range 5 {
				w := raw(string(domain)+string(rune('0'+i)), "x")
				if err := b.Process(domain, loop, 0, t0, []*dunlin.Work{w}); err != nil || w.Outcome.Failure == "" {
					t.Errorf("domain %s: %v, %+v", domain, err, w.Outcome)
				}
			}
		})
	}
	for range 200 {
		if err := b.Process("c", good, 0, t0, batchOf(1)); err != nil {
			t.Fatal(err)
		}
	}
	all.Wait()
	if err := b.Process("c", good, 0, t0, batchOf(1)); err != nil {
		t.Fatal(err)
	}
}
