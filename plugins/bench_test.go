package plugins_test

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins"
)

// BenchmarkCrossing measures Process: one device's report at a time, 100 devices and a full batch of 512; reports of one
// metric and of the four of the ingest benchmark. The plugins are the examples cold-chain and threshold in Go, and one as small as a C
// compiler makes them: it sums up the readings and makes that the state.
func BenchmarkCrossing(b *testing.B) {
	host := newBench(b, plugins.Config{})
	for _, p := range []struct {
		name string
		wasm []byte
	}{{"go", buildColdChain(b)}, {"go-threshold", buildExample(b, "go", "threshold")}, {"c", plugin(nil).build()}} {
		st := host.stage(p.wasm, `{}`)
		process(b, host, st, t0, batchOf(1)...) // compiles
		for _, devices := range []int{1, 100, 512} {
			for _, metrics := range []int{1, 4} {
				b.Run(fmt.Sprintf("%s/devices=%d/metrics=%d", p.name, devices, metrics), func(b *testing.B) {
					benchmarkCrossing(b, host, st, devices, metrics)
				})
			}
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
	cpu := cpuTime(b)
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
			if w.Outcome.State != nil {
				w.State = w.Outcome.State
			}
			burnt += w.Outcome.FuelUsed
		}
	}
	n := float64(b.N) * float64(devices)
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/n, "ns/event")
	b.ReportMetric(float64(cpuTime(b)-cpu)/n, "cpu-ns/event") // other processes disturb it less
	b.ReportMetric(n/b.Elapsed().Seconds(), "events/s")
	b.ReportMetric(float64(burnt)/n, "fuel/event")
}

func cpuTime(b *testing.B) int64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return u.Utime.Nano() + u.Stime.Nano()
}
