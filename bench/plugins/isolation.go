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
	greedyCPU     = 4 * time.Millisecond
	greedyLeast   = 0.5   // processors that the node takes then, or A was stopped
	quietRate     = 200.0 // messages/s, half over MQTT and half over CoAP
	greedyRate    = 200.0
	quietDevices  = 100
	greedyDevices = 200
	warmup        = 1500 * time.Millisecond
	// isolationTurns is how many turns of all three a run has.
	isolationTurns = 3
)

// isolation measures what a domain with a plugin that takes most of what a call may take, at every input, costs another one. What
// the same messages cost it with a plugin that takes nothing tells the plugin's part from that of more traffic. The three
// take turns on one node, for what else the machine and its disk do comes and goes in seconds.
func isolation(ctx context.Context, o options) error {
	burner, err := buildBurner(ctx, o)
	if err != nil {
		return err
	}
	rounds, err := calibrate(o, burner)
	if err != nil {
		return err
	}
	n, err := startNode(ctx, o)
	if err != nil {
		return err
	}
	defer n.stop()
	if err := isolationDomains(ctx, o, n, burner, rounds); err != nil {
		return err
	}
	long, turns := o.duration/2, isolationTurns*o.runs
	fmt.Printf("Isolation: domain B, %.0f msg/s over MQTT and CoAP: alone; beside domain A with %.0f msg/s over MQTT whose plugin takes next to nothing; with one that takes %v at each (medians of %d turns of %v each)\n",
		quietRate, greedyRate, greedyCPU, turns, long)
	var all [3]stretch
	var toAlone, toCheap []float64
	for range turns {
		var run [3]stretch
		for i, prefix := range []string{"", "a", "g"} {
			if run[i], err = beside(ctx, o, n, prefix, long); err != nil {
				return err
			}
		}
		if used := run[2].cpu[0]; used < greedyLeast {
			fmt.Printf("  a turn does not count: domain A was stopped, the node took %.2f processors\n", used)
			continue
		}
		for i := range all {
			all[i].add(&run[i])
		}
		toAlone, toCheap = append(toAlone, run[2].p99[0]/run[0].p99[0]), append(toCheap, run[2].p99[0]/run[1].p99[0])
	}
	if len(toAlone) == 0 {
		fmt.Println("  not measured: domain A was stopped in every turn; is something else running?")
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

// stretch is what was measured under the same conditions, in one turn or in all.
type stretch struct{ p50, p99, greedy, cpu []float64 }

func (s *stretch) add(o *stretch) {
	s.p50, s.p99 = append(s.p50, o.p50...), append(s.p99, o.p99...)
	s.greedy, s.cpu = append(s.greedy, o.greedy...), append(s.cpu, o.cpu...)
}

// isolationDomains makes domain B, and A twice: with a plugin that takes nothing, and with one that takes much.
func isolationDomains(ctx context.Context, o options, n *node, burner []byte, rounds int) error {
	wasm, name, err := quietModule(o)
	if err != nil {
		return err
	}
	return errors.Join(n.push(ctx, name, wasm), n.push(ctx, "burn", burner),
		n.domain(ctx, "b", name, `{}`, quietDevices/2, "bm", "bc"),
		n.domain(ctx, "a", "burn", `{"rounds":1}`, greedyDevices, "a"),
		n.domain(ctx, "g", "burn", fmt.Sprintf(`{"rounds":%d}`, rounds), greedyDevices, "g"))
}

// beside plays domain B's load beside that of the devices with a prefix, if any.
func beside(ctx context.Context, o options, n *node, prefix string, long time.Duration) (s stretch, err error) {
	type done struct {
		res *load.Result
		err error
	}
	ended := make(chan done, 1)
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	greedy := 0.0
	if prefix != "" {
		go func() {
			res, err := load.Run(ctx, load.Config{Protocol: "mqtt", Addr: n.MQTT, Clients: greedyDevices, Devices: greedyDevices, Prefix: prefix,
				Rate: greedyRate, Warmup: 2 * warmup, Duration: long})
			ended <- done{res, err}
		}()
		select { // until it is known what A's plugin takes
		case <-time.After(warmup):
		case <-ctx.Done():
			return s, context.Cause(ctx)
		}
	}
	cpu, began := n.cpu(), time.Now()
	p50, p99, err := quiet(ctx, n, long)
	if err != nil {
		return s, err
	}
	used := (n.cpu() - cpu) / time.Since(began).Seconds()
	if prefix != "" {
		d := <-ended
		if d.err != nil {
			return s, fmt.Errorf("domain A: %w", d.err)
		}
		greedy = d.res.PerSecond()
	}
	return stretch{[]float64{p50}, []float64{p99}, []float64{greedy}, []float64{used}}, nil
}

// quiet plays domain B's load and returns how long its readings took to be acked, in ms.
func quiet(ctx context.Context, n *node, long time.Duration) (p50, p99 float64, err error) {
	results := make(chan error, 2)
	sum := hdrhistogram.New(1, int64(time.Minute/time.Microsecond), 3)
	hists := make(chan *hdrhistogram.Histogram, 2)
	for protocol, addr := range map[string]string{"mqtt": n.MQTT, "coap": n.CoAP} {
		go func() {
			res, err := load.Run(ctx, load.Config{Protocol: protocol, Addr: addr, Clients: quietDevices / 2, Devices: quietDevices / 2,
				Prefix: "b" + protocol[:1], Rate: quietRate / 2, Warmup: warmup, Duration: long})
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
