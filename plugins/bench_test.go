package plugins_test

import (
	"fmt"
	"testing"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins"
)

// BenchmarkCrossing measures Process with the example plugin: one reading of one device, and 100 devices with a report
// each; with one metric, and with the four of the ingest benchmark.
func BenchmarkCrossing(b *testing.B) {
	host := newBench(b, plugins.Config{})
	st := host.stage(buildColdChain(b), `{}`)
	for _, devices := range []int{1, 100, 512} {
		for _, metrics := range []int{1, 4} {
			b.Run(fmt.Sprintf("devices=%d/metrics=%d", devices, metrics), func(b *testing.B) {
				benchmarkCrossing(b, host, st, devices, metrics)
			})
		}
	}
}

func benchmarkCrossing(b *testing.B, host *bench, st *dunlin.Stage, devices, metrics int) {
	works := make([]*dunlin.Work, devices)
	for i := range works {
		var recs []dunlin.Record
		for _, m := range []string{"temp", "humidity", "door", "battery"}[:metrics] {
			recs = append(recs, dunlin.Record{Metric: m, Unit: "Cel", Num: 4})
		}
		works[i] = telemetry(fmt.Sprintf("device-%d", i), 1, nil, t0, recs...)
	}
	now := t0
	var burnt uint64
	b.ReportAllocs()
	for b.Loop() {
		now += 1000
		for _, w := range works {
			w.Inputs[0].Received = now
		}
		if err := host.Process("cold", st, 0, now, works); err != nil {
			b.Fatal(err)
		}
		for _, w := range works {
			if w.Outcome.Failure != "" {
				b.Fatal(w.Outcome.Failure)
			}
			w.State = w.Outcome.State
			burnt += w.Outcome.FuelUsed
		}
	}
	n := float64(b.N) * float64(devices)
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/n, "ns/event")
	b.ReportMetric(n/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(burnt)/n, "fuel/event")
}
