package stream

import (
	"errors"

	"github.com/prometheus/client_golang/prometheus"
)

// metrics are the room's own figures.
type metrics struct {
	pulls, fills, bytes, moves, failures prometheus.Counter
}

func newMetrics(reg prometheus.Registerer, f *Feed) (*metrics, error) {
	var all []prometheus.Collector
	counter := func(name, help string) prometheus.Counter {
		c := prometheus.NewCounter(prometheus.CounterOpts{Name: "dunlin_feed_" + name + "_total", Help: help})
		all = append(all, c)
		return c
	}
	gauge := func(name, help string, read func() int) {
		all = append(all, prometheus.NewGaugeFunc(prometheus.GaugeOpts{Name: "dunlin_feed_" + name, Help: help}, func() float64 {
			f.mu.Lock()
			defer f.mu.Unlock()
			return float64(read())
		}))
	}
	m := &metrics{
		pulls:    counter("pulls", "Answered questions for the newest entries of shards elsewhere."),
		fills:    counter("fills", "Answered questions for older entries of shards elsewhere."),
		bytes:    counter("received_bytes", "Bytes of entries that came from other nodes."),
		moves:    counter("moves", "Shards whose entries were taken from another replica than before."),
		failures: counter("failures", "Questions to other nodes that were not answered."),
	}
	gauge("tail_bytes", "Memory of entries from elsewhere, about.", func() int { return f.mu.tailBytes })
	gauge("far_shards", "Shards that are pulled from other nodes.", func() (n int) {
		for i := range f.mu.shards {
			if f.mu.shards[i].peer != nil {
				n++
			}
		}
		return n
	})
	if reg == nil {
		return m, nil
	}
	var errs []error
	for _, c := range all {
		errs = append(errs, reg.Register(c))
	}
	return m, errors.Join(errs...)
}
