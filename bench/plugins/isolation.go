package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/dunlin-iot/dunlin/internal/load"
	"github.com/dunlin-iot/dunlin/plugins"
)

const (
	isolationMost = 1.10 // the quiet domain's p99 beside the greedy one's, by that alone
	// greedyCPU is some less than the 9 ms at which a call is stopped: a version that is stopped again and again is no longer called.
	greedyCPU     = 5 * time.Millisecond
	greedyLeast   = 0.5   // processors that the node takes then, or A was stopped
	quietRate     = 200.0 // messages/s, half over MQTT and half over CoAP
	greedyRate    = 200.0
	quietDevices  = 100
	greedyDevices = 200
	warmup        = 4 * time.Second
)

// isolation measures what a domain with a plugin that takes most of what a call may take, at every input, costs another one. What
// the same messages cost it with a plugin that takes nothing tells the plugin's part from that of more traffic.
func isolation(ctx context.Context, o options) error {
	burner, err := buildBurner(ctx, o)
	if err != nil {
		return err
	}
	rounds, err := calibrate(o, burner)
	if err != nil {
		return err
	}
	fmt.Printf("Isolation: domain B, 200 msg/s over MQTT and CoAP: alone; beside domain A with 200 msg/s over MQTT whose plugin takes next to nothing; with one that takes %v at each (medians of %d runs, %v each)\n",
		greedyCPU, o.runs, o.duration)
	var all [3]stretch
	var toAlone, toCheap []float64
	for range o.runs {
		run, err := isolated(ctx, o, burner, rounds)
		if err != nil {
			return err
		}
		if used := run[2].cpu[0]; used < greedyLeast {
			fmt.Printf("  a run does not count: domain A was stopped, the node took %.2f processors\n", used)
			continue
		}
		for i := range all {
			all[i].add(&run[i])
		}
		toAlone, toCheap = append(toAlone, run[2].p99[0]/run[0].p99[0]), append(toCheap, run[2].p99[0]/run[1].p99[0])
	}
	if len(toAlone) == 0 {
		fmt.Println("  not measured: domain A was stopped in every run; is something else running?")
		return nil
	}
	fmt.Printf("  %-38s %12s %12s %12s %18s\n", "", "B p50, ms", "B p99, ms", "A, acked/s", "node, processors")
	for i, name := range []string{"B alone", "beside A, plugin that takes nothing", "beside A, greedy plugin"} {
		s := &all[i]
		fmt.Printf("  %-38s %12.2f %12.2f %12.0f %18.2f\n", name, medianOf(s.p50), medianOf(s.p99), medianOf(s.greedy), medianOf(s.cpu))
	}
	fmt.Printf("  %-38s %25.2f  %s\n", "p99 beside the greedy one, to alone", medianOf(toAlone), verdict(medianOf(toAlone) <= isolationMost, "≤ 1.10"))
	fmt.Printf("  %-38s %25.2f\n", "the same, to beside the other", medianOf(toCheap))
	return nil
}

// stretch is what was measured under the same conditions, in one run or in all.
type stretch struct{ p50, p99, greedy, cpu []float64 }

func (s *stretch) add(o *stretch) {
	s.p50, s.p99 = append(s.p50, o.p50...), append(s.p99, o.p99...)
	s.greedy, s.cpu = append(s.greedy, o.greedy...), append(s.cpu, o.cpu...)
}

// isolated measures the three on one node.
func isolated(ctx context.Context, o options, burner []byte, rounds int) (run [3]stretch, err error) {
	n, err := startNode(ctx, o)
	if err != nil {
		return run, err
	}
	defer n.stop()
	wasm, name, err := quietModule(o)
	if err != nil {
		return run, err
	}
	if err := errors.Join(n.push(ctx, name, wasm), n.push(ctx, "burn", burner)); err != nil {
		return run, err
	}
	if err := n.domain(ctx, "b", name, `{}`, quietDevices/2, "bm", "bc"); err != nil {
		return run, err
	}
	for i, rounds := range []int{0, 1, rounds} {
		if rounds == 0 {
			if run[i], err = beside(ctx, o, n, nil); err != nil {
				return run, err
			}
			continue
		}
		devices := greedyDevices
		if i == 2 {
			devices = 0 // they are there
		}
		if err := n.domain(ctx, "a", "burn", fmt.Sprintf(`{"rounds":%d}`, rounds), devices, "a"); err != nil {
			return run, err
		}
		run[i], err = beside(ctx, o, n, &load.Config{Protocol: "mqtt", Addr: n.MQTT, Clients: greedyDevices, Devices: greedyDevices, Prefix: "a",
			Rate: greedyRate, Warmup: 2 * warmup, Duration: o.duration})
		if err != nil {
			return run, err
		}
	}
	return run, nil
}

// beside plays domain B's load beside another one, if any.
func beside(ctx context.Context, o options, n *node, other *load.Config) (s stretch, err error) {
	type done struct {
		res *load.Result
		err error
	}
	ended := make(chan done, 1)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	greedy := 0.0
	if other != nil {
		go func() {
			res, err := load.Run(ctx, *other)
			ended <- done{res, err}
		}()
		select { // until it is known what A's plugin takes
		case <-time.After(warmup):
		case <-ctx.Done():
			return s, context.Cause(ctx)
		}
	}
	cpu, began := n.cpu(), time.Now()
	p50, p99, err := quiet(ctx, o, n)
	if err != nil {
		return s, err
	}
	used := (n.cpu() - cpu) / time.Since(began).Seconds()
	if other != nil {
		d := <-ended
		if d.err != nil {
			return s, fmt.Errorf("domain A: %w", d.err)
		}
		greedy = d.res.PerSecond()
	}
	return stretch{[]float64{p50}, []float64{p99}, []float64{greedy}, []float64{used}}, nil
}

// quiet plays domain B's load and returns how long its readings took to be acked, in ms.
func quiet(ctx context.Context, o options, n *node) (p50, p99 float64, err error) {
	results := make(chan error, 2)
	sum := hdrhistogram.New(1, int64(time.Minute/time.Microsecond), 3)
	hists := make(chan *hdrhistogram.Histogram, 2)
	for protocol, addr := range map[string]string{"mqtt": n.MQTT, "coap": n.CoAP} {
		go func() {
			res, err := load.Run(ctx, load.Config{Protocol: protocol, Addr: addr, Clients: quietDevices / 2, Devices: quietDevices / 2,
				Prefix: "b" + protocol[:1], Rate: quietRate / 2, Warmup: warmup, Duration: o.duration})
			if err == nil {
				hists <- res.Ack
			}
			results <- err
		}()
	}
	for range 2 {
		if e := <-results; e != nil {
			err = fmt.Errorf("domain B: %w", e)
		}
	}
	if err != nil {
		return 0, 0, err
	}
	for range 2 {
		sum.Merge(<-hists)
	}
	return float64(sum.ValueAtQuantile(50)) / 1000, float64(sum.ValueAtQuantile(99)) / 1000, nil
}

// quietModule is the cheapest threshold that was built.
func quietModule(o options) (wasm []byte, name string, err error) {
	for _, l := range languages() {
		wasm, ok, err := l.module(o)
		if err != nil {
			return nil, "", err
		}
		if ok {
			return wasm, "threshold", nil
		}
	}
	wasm, err = os.ReadFile(filepath.Join(o.root, "cmd/dunlin/internal/builtin/modules/cold-chain.wasm"))
	return wasm, "cold-chain", err
}

// calibrate finds how many rounds take greedyCPU.
func calibrate(o options, wasm []byte) (rounds int, err error) {
	h, err := openHost(filepath.Join(o.work, "cache"), plugins.Limits{CallTime: time.Second, FuelPerCall: 1 << 40})
	if err != nil {
		return 0, err
	}
	defer h.Close()
	const tried = 2000
	st := h.stage("burn", wasm, fmt.Sprintf(`{"rounds":%d}`, tried))
	best := time.Hour
	for range 5 {
		works := reports(1)
		cpu := cpuTime()
		if err := h.Process("cold", st, 0, epoch, works); err != nil {
			return 0, err
		}
		if f := works[0].Outcome.Failure; f != "" {
			return 0, fmt.Errorf("%s", f)
		}
		best = min(best, cpuTime()-cpu)
	}
	return int(float64(tried) * float64(greedyCPU) / float64(best)), nil
}
