package placement

import (
	"context"
	"syscall"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// A batch of 256 uplinks of 200 bytes, answered with a receipt of 4 bytes each; 32 batches on their way. Both nodes are in
// this process, so the CPU is that of both ends, TLS included.
func BenchmarkCalls(b *testing.B) {
	w := newWorld(b)
	from, to := w.node(1, nil), w.node(2, nil)
	w.connected()
	answer := make([]byte, 256*4)
	to.serve = func(context.Context, dunlin.NodeID, string, []byte) ([]byte, error) { return answer, nil }
	body := make([]byte, 256*200)
	slots := make(chan struct{}, 32)
	done := func(_ []byte, err error) {
		if err != nil {
			b.Error(err)
		}
		<-slots
	}
	b.ReportAllocs()
	cpu, start := cpuTime(b), time.Now()
	for b.Loop() {
		slots <- struct{}{}
		from.Go(2, "uplinks", body, done)
	}
	for range cap(slots) {
		slots <- struct{}{}
	}
	used := cpuTime(b) - cpu
	b.ReportMetric(float64(b.N)/time.Since(start).Seconds(), "calls/s")
	b.ReportMetric(float64(used.Microseconds())/float64(b.N), "cpu-µs/call")
	b.ReportMetric(float64(used.Nanoseconds())/float64(b.N)/256, "cpu-ns/uplink")
}

// A small question at a time: its time there and back.
func BenchmarkRoundTrip(b *testing.B) {
	w := newWorld(b)
	from := w.node(1, nil)
	w.node(2, nil)
	w.connected()
	body := make([]byte, 100)
	b.ReportAllocs()
	cpu := cpuTime(b)
	for b.Loop() {
		if _, err := from.Call(b.Context(), 2, "twin", body); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((cpuTime(b)-cpu).Microseconds())/float64(b.N), "cpu-µs/call")
}

func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
