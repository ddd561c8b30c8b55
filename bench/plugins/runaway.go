package main

import (
	"context"
	"fmt"
	"math"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins"
)

// What a guest that never ends may take until it is stopped, and for how long it may hold a garbage collection up.
const (
	runawayMost = 10.0 // ms
	pauseMost   = 10.0 // ms
)

// runaways measures guests that never end: the processor time until they are stopped, and the longest pause of garbage collections
// that are asked for all the while.
func runaways(ctx context.Context, o options) error {
	const inputs = 40
	wasm, err := buildBurner(ctx, o)
	if err != nil {
		return err
	}
	// One that fails is to be tried again, on any device.
	h, err := openHost(filepath.Join(o.work, "cache"), plugins.Limits{BadDevices: math.MaxInt32, TrapsPerBatch: math.MaxInt32})
	if err != nil {
		return err
	}
	defer h.Close()
	st := h.stage("runaway", wasm, `{"rounds":0}`)
	if err := h.Process("cold", h.stage("burn", wasm, `{"rounds":1}`), 0, epoch, reports(1)); err != nil { // compiles
		return err
	}
	pause := 0.0
	var cpu, worst []float64
	for range o.runs {
		took, longest, err := runaway(h, st, inputs)
		if err != nil {
			return err
		}
		pause = max(pause, longest)
		cpu, worst = append(cpu, medianOf(took)), append(worst, slices.Max(took))
	}
	fmt.Printf("Runaway: a guest in Go that never ends, %d times, beside garbage collections one after the other (medians of %d runs; the worst pause of all)\n", inputs, o.runs)
	fmt.Printf("  %-50s %8.2f ms  %s\n", "processor time until it is stopped", medianOf(cpu), verdict(medianOf(cpu) <= runawayMost, "≤ 10 ms"))
	fmt.Printf("  %-50s %8.2f ms\n", "the worst of each run", medianOf(worst))
	fmt.Printf("  %-50s %8.2f ms  %s\n", "longest pause of a garbage collection", pause, verdict(pause <= pauseMost, "≤ 10 ms"))
	return nil
}

func runaway(h *host, st *dunlin.Stage, inputs int) (took []float64, longest float64, err error) {
	before := pauses()
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				runtime.GC()
			}
		}
	})
	defer debug.SetGCPercent(debug.SetGCPercent(-1)) // only those that are asked for
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	works := reports(inputs)
	for i, w := range works {
		cpu := threadTime()
		if err := h.Process("cold", st, 0, epoch+dunlin.Time(i)*1000, []*dunlin.Work{w}); err != nil {
			return nil, 0, err
		}
		took = append(took, float64(threadTime()-cpu)/1e6)
		if f := w.Outcome.Failure; !strings.Contains(f, "fuel exhausted") {
			err = fmt.Errorf("it ended with %q", f)
		}
	}
	close(stop)
	wg.Wait()
	return took, longestSince(before), err
}

// threadTime is the processor time of this thread: a call of Process stays on it.
func threadTime() time.Duration {
	const thread = 1 // RUSAGE_THREAD
	var u syscall.Rusage
	if syscall.Getrusage(thread, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// pauses counts the pauses for garbage collections by their length, the time to stop everybody included.
func pauses() *metrics.Float64Histogram {
	s := []metrics.Sample{{Name: "/sched/pauses/total/gc:seconds"}}
	metrics.Read(s)
	return s[0].Value.Float64Histogram()
}

// longestSince is the upper bound, in ms, of the longest pause since.
func longestSince(before *metrics.Float64Histogram) float64 {
	now := pauses()
	longest := 0.0
	for i, n := range now.Counts {
		if n > before.Counts[i] && !math.IsInf(now.Buckets[i+1], 0) {
			longest = now.Buckets[i+1] * 1000
		}
	}
	return longest
}
