package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/dunlin-iot/dunlin/internal/load"
	"github.com/dunlin-iot/dunlin/plugins"
)

const (
	isolationMost = 1.10                 // the quiet domain's p99 beside the greedy one's, by that alone
	greedyCPU     = 6 * time.Millisecond // of 9: above that a call is stopped, and a version that is stopped again and again is no longer called
	quietRate     = 200.0                // messages/s, half over MQTT and half over CoAP
	greedyRate    = 200.0
	quietDevices  = 100
	greedyDevices = 200
	warmup        = 4 * time.Second
)

// isolation measures what a domain with a plugin that takes most of what a call may take, at every input, costs another one.
func isolation(ctx context.Context, o options) error {
	burner, err := buildBurner(ctx, o)
	if err != nil {
		return err
	}
	rounds, took, err := calibrate(o, burner)
	if err != nil {
		return err
	}
	fmt.Printf("Isolation: domain B, 200 msg/s over MQTT and CoAP, alone and beside domain A, whose plugin takes %.1f ms at each of its 200 msg/s over MQTT (median of %d pairs of %v)\n",
		took.Seconds()*1000, o.runs, o.duration)
	var alone50, alone99, beside50, beside99, ratios []float64
	var greedy, cpu float64
	for range o.runs {
		p, err := isolated(ctx, o, burner, rounds)
		if err != nil {
			return err
		}
		alone50, alone99 = append(alone50, p.alone50), append(alone99, p.alone99)
		beside50, beside99 = append(beside50, p.beside50), append(beside99, p.beside99)
		ratios = append(ratios, p.beside99/p.alone99)
		greedy, cpu = greedy+p.greedy/float64(o.runs), cpu+p.cpu/float64(o.runs)
	}
	ratio := medianOf(ratios)
	fmt.Printf("  %-42s %10s %10s\n", "B, reading to ack", "p50, ms", "p99, ms")
	fmt.Printf("  %-42s %10.2f %10.2f\n", "alone", medianOf(alone50), medianOf(alone99))
	fmt.Printf("  %-42s %10.2f %10.2f\n", "beside A", medianOf(beside50), medianOf(beside99))
	fmt.Printf("  %-42s %10.2f %10.2f  %s\n", "ratio", medianOf(beside50)/medianOf(alone50), ratio, verdict(ratio <= isolationMost, "p99 ≤ 1.10"))
	fmt.Printf("  %-42s %10.0f\n", "A, acked/s", greedy)
	fmt.Printf("  %-42s %10.2f\n", "processors that the node takes beside A", cpu)
	return nil
}

// pair is one node's two measurements.
type pair struct {
	alone50, alone99, beside50, beside99 float64
	greedy                               float64 // A's acked/s
	cpu                                  float64
}

func isolated(ctx context.Context, o options, burner []byte, rounds int) (*pair, error) {
	n, err := startNode(ctx, o)
	if err != nil {
		return nil, err
	}
	defer n.stop()
	wasm, name, err := quietModule(o)
	if err != nil {
		return nil, err
	}
	if err := n.push(ctx, name, wasm); err != nil {
		return nil, err
	}
	if err := n.push(ctx, "burn", burner); err != nil {
		return nil, err
	}
	if err := n.domain(ctx, "b", name, `{}`, quietDevices/2, "bm", "bc"); err != nil {
		return nil, err
	}
	if err := n.domain(ctx, "a", "burn", fmt.Sprintf(`{"rounds":%d}`, rounds), greedyDevices, "a"); err != nil {
		return nil, err
	}
	p := &pair{}
	if p.alone50, p.alone99, err = quiet(ctx, o, n); err != nil {
		return nil, err
	}
	greedyCtx, stop := context.WithCancel(ctx)
	defer stop()
	type done struct {
		res *load.Result
		err error
	}
	ended := make(chan done, 1)
	go func() {
		res, err := load.Run(greedyCtx, load.Config{Protocol: "mqtt", Addr: n.MQTT, Clients: greedyDevices, Devices: greedyDevices, Prefix: "a",
			Rate: greedyRate, Warmup: 2 * warmup, Duration: o.duration})
		ended <- done{res, err}
	}()
	select { // until it is known what A's plugin takes
	case <-time.After(warmup):
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	cpu, began := n.cpu(), time.Now()
	if p.beside50, p.beside99, err = quiet(ctx, o, n); err != nil {
		return nil, err
	}
	p.cpu = (n.cpu() - cpu) / time.Since(began).Seconds()
	d := <-ended
	if d.err != nil {
		return nil, fmt.Errorf("domain A: %w", d.err)
	}
	if p.greedy = d.res.PerSecond(); p.cpu < 0.5 {
		fmt.Printf("  domain A was stopped in this run: the node took %.2f processors\n", p.cpu)
	}
	return p, nil
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
func calibrate(o options, wasm []byte) (rounds int, took time.Duration, err error) {
	h, err := openHost(filepath.Join(o.work, "cache"), plugins.Limits{CallTime: time.Second, FuelPerCall: 1 << 40})
	if err != nil {
		return 0, 0, err
	}
	defer h.Close()
	const tried = 2000
	st := h.stage("burn", wasm, fmt.Sprintf(`{"rounds":%d}`, tried))
	best := time.Hour
	for range 5 {
		works := reports(1)
		cpu := cpuTime()
		if err := h.Process("cold", st, 0, epoch, works); err != nil {
			return 0, 0, err
		}
		if f := works[0].Outcome.Failure; f != "" {
			return 0, 0, fmt.Errorf("%s", f)
		}
		best = min(best, cpuTime()-cpu)
	}
	rounds = int(float64(tried) * float64(greedyCPU) / float64(best))
	return rounds, greedyCPU, nil
}
