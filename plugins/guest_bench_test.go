package plugins

import (
	"crypto/sha256"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins/fuel"
)

// BenchmarkCrossingParts takes a crossing of 100 devices apart: encoding, the guest with and without fuel, decoding.
func BenchmarkCrossingParts(b *testing.B) {
	dir := b.TempDir()
	file := filepath.Join(dir, "cold-chain.wasm")
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-ldflags=-s -w", "-o", file, "../sdk/go/examples/cold-chain")
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if out, err := cmd.CombinedOutput(); err != nil {
		b.Fatalf("%v: %s", err, out)
	}
	wasm, err := os.ReadFile(file)
	if err != nil {
		b.Fatal(err)
	}
	h, err := Open(Config{Workers: 1})
	if err != nil {
		b.Fatal(err)
	}
	defer h.Close()
	works := benchWorks(100)
	for _, charged := range []bool{true, false} {
		in := benchInstance(b, h, wasm, charged)
		w := newWorker(&h.cfg.Limits)
		round := func(now dunlin.Time) []byte {
			for _, work := range works {
				work.Inputs[0].Received = now
			}
			w.encode(in, now, works)
			out, _, _, err := in.call(w.frame, now, false)
			if err != nil {
				b.Fatal(err)
			}
			return out
		}
		now := dunlin.Time(1e15)
		for range 10 {
			now += 1000
			if err := w.decode(round(now), works, now, nil); err != nil {
				b.Fatal(err)
			}
			for _, work := range works {
				work.State = work.Outcome.State
			}
		}
		out := round(now + 1000)
		b.Run(fmt.Sprintf("guest/fuel=%v", charged), func(b *testing.B) {
			defer reportCPU(b, len(works))()
			for b.Loop() {
				if _, _, _, err := in.call(w.frame, now, false); err != nil {
					b.Fatal(err)
				}
			}
		})
		if !charged {
			continue
		}
		b.Run("encode", func(b *testing.B) {
			defer reportCPU(b, len(works))()
			for b.Loop() {
				w.encode(in, now, works)
			}
		})
		out = round(now + 1000)
		b.Run("decode", func(b *testing.B) {
			defer reportCPU(b, len(works))()
			for b.Loop() {
				if err := w.decode(out, works, now, nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// reportCPU reports processor time per event, which other processes on the machine disturb less than wall time.
func reportCPU(b *testing.B, events int) func() {
	b.ReportAllocs()
	used := func() int64 {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return u.Utime.Nano() + u.Stime.Nano()
	}
	before := used()
	return func() {
		n := float64(b.N) * float64(events)
		b.ReportMetric(float64(used()-before)/n, "cpu-ns/event")
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/n, "ns/event")
	}
}

func benchInstance(b *testing.B, h *Host, wasm []byte, charged bool) *instance {
	b.Helper()
	m, err := fuel.Parse(wasm)
	if err != nil {
		b.Fatal(err)
	}
	rewrite := m.Rewrite
	if !charged {
		rewrite = m.Unmetered
	}
	bin, err := rewrite(h.cfg.Limits.FuelInit)
	if err != nil {
		b.Fatal(err)
	}
	compiled, err := h.rt.CompileModule(b.Context(), bin)
	if err != nil {
		b.Fatal(err)
	}
	in, err := h.start(&module{hash: sha256.Sum256(bin), compiled: compiled}, nil, 1e15)
	if err != nil {
		b.Fatal(err)
	}
	return in
}

func benchWorks(n int) []*dunlin.Work {
	works := make([]*dunlin.Work, n)
	for i := range works {
		works[i] = &dunlin.Work{DeviceKey: dunlin.DeviceKey{Tenant: "default", Device: dunlin.DeviceID(fmt.Sprintf("device-%d", i))},
			Seq: 1, Inputs: []dunlin.Input{{Kind: dunlin.InputTelemetry, Records: []dunlin.Record{
				{Metric: "temp", Unit: "Cel", Kind: dunlin.Number, Num: 4, Time: 1e15},
				{Metric: "humidity", Unit: "%RH", Kind: dunlin.Number, Num: 55, Time: 1e15},
				{Metric: "door", Kind: dunlin.Boolean, Time: 1e15},
				{Metric: "battery", Unit: "%EL", Kind: dunlin.Number, Num: 99, Time: 1e15},
			}}}}
	}
	return works
}
