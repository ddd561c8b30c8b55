package main

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/dunlin-iot/dunlin/internal/load"
)

// traffic is what is played against the doors.
type traffic struct {
	name    string
	title   string
	clients int
	rate    float64 // readings/s in all; 0: closed loop
	warmup  time.Duration
}

var (
	closedLoop = traffic{name: "mqtt", title: "MQTT QoS 1, 1,000 connections over all nodes, 1 in flight, closed loop", clients: 1000, warmup: 4 * time.Second}
	slowRate   = traffic{name: "rate500", title: "MQTT QoS 1, 1,000 connections over all nodes, 500 readings/s", clients: 1000, rate: 500, warmup: 8 * time.Second}
)

// figures are what one run of one system measured.
type figures struct {
	perSecond    float64
	ack50, ack99 float64 // ms
	cpu          float64 // CPU-seconds of all processes per 100,000 acked readings
	rss          float64 // MB, all processes
	refused      float64
}

// whole plays a traffic against the floor, one node and three, in turn.
func whole(ctx context.Context, o options, t traffic) error {
	systems := []struct {
		name  string
		start func(context.Context, options) (*nodes, error)
	}{
		{"floor", startFloor},
		{"1 node", func(ctx context.Context, o options) (*nodes, error) { return startNodes(ctx, o, 1) }},
		{"3 nodes", func(ctx context.Context, o options) (*nodes, error) { return startNodes(ctx, o, 3) }},
	}
	got := make([][]figures, len(systems))
	for i := range o.runs {
		for j, s := range systems {
			say("%s: run %d of %d: %s", t.name, i+1, o.runs, s.name)
			ns, err := s.start(ctx, o)
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			f, err := ns.play(ctx, t, fmt.Sprintf("%s-%d", t.name, len(ns.all)))
			ns.stop()
			if err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
			got[j] = append(got[j], *f)
		}
	}
	fmt.Printf("%s (medians of %d runs of %v; ratio: to the floor, and of 3 nodes to 1)\n", t.title, o.runs, o.duration)
	fmt.Printf("  %-30s %10s %10s %10s %8s %8s %8s\n", "", "floor", "1 node", "3 nodes", "1:floor", "3:floor", "3:1")
	line := func(name, format string, get func(*figures) float64) {
		f, a, b := median(got[0], get), median(got[1], get), median(got[2], get)
		ratio := func(x, y float64) string {
			if y == 0 {
				return "-"
			}
			return fmt.Sprintf("%.2f", x/y)
		}
		fmt.Printf("  %-30s %10s %10s %10s %8s %8s %8s\n", name, fmt.Sprintf(format, f), fmt.Sprintf(format, a), fmt.Sprintf(format, b), ratio(a, f), ratio(b, f), ratio(b, a))
	}
	line("acked/s", "%.0f", func(f *figures) float64 { return f.perSecond })
	line("ack p50, ms", "%.2f", func(f *figures) float64 { return f.ack50 })
	line("ack p99, ms", "%.2f", func(f *figures) float64 { return f.ack99 })
	line("CPU-s per 100,000, all nodes", "%.2f", func(f *figures) float64 { return f.cpu })
	line("RSS of all nodes, MB", "%.0f", func(f *figures) float64 { return f.rss })
	line("refused", "%.0f", func(f *figures) float64 { return f.refused })
	return nil
}

// play spreads the clients over the nodes, so that most devices are not on the node that owns them.
func (ns *nodes) play(ctx context.Context, t traffic, label string) (*figures, error) {
	f := &figures{}
	var before, after float64
	measured := make(chan struct{})
	// Only the counted part: what compiling a module and registering devices take is no part of a reading's price.
	begun := func() {
		time.AfterFunc(t.warmup, func() {
			before = ns.cpu()
			for _, p := range ns.all {
				p.profileFor(ns.o.profile, label, ns.o.duration-time.Second)
			}
		})
		time.AfterFunc(t.warmup+ns.o.duration, func() { after = ns.cpu(); close(measured) })
	}
	res, err := ns.load(ctx, t, ns.o.duration, begun, label)
	if err != nil {
		return nil, err
	}
	<-measured
	f.cpu = (after - before) / float64(res.Acked) * 100_000
	f.rss, f.refused = float64(ns.rss())/1e6, float64(res.Refused)
	f.perSecond = res.PerSecond()
	f.ack50, f.ack99 = float64(res.Ack.ValueAtQuantile(50))/1000, float64(res.Ack.ValueAtQuantile(99))/1000
	return f, nil
}

// load plays t against all nodes at once and adds up what it measured. begun is called once all are connected.
func (ns *nodes) load(ctx context.Context, t traffic, d time.Duration, begun func(), prefix string) (*load.Result, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	n := len(ns.all)
	results := make([]*load.Result, n)
	errs := make([]error, n)
	all := make(chan struct{}) // closed when all are connected
	var left atomic.Int64
	left.Store(int64(n))
	var wg sync.WaitGroup
	for i, p := range ns.all {
		clients := t.clients / n
		cfg := load.Config{Protocol: "mqtt", Addr: p.MQTT, Clients: clients, Devices: clients, Rate: t.rate / float64(n), Prefix: fmt.Sprintf("%s-%d", prefix, i),
			Warmup: t.warmup, Duration: d, Flips: 20,
			Connected: func() {
				if left.Add(-1) == 0 {
					begun()
					close(all)
				}
				select {
				case <-all:
				case <-ctx.Done():
				}
			}}
		wg.Go(func() {
			if results[i], errs[i] = load.Run(ctx, cfg); errs[i] != nil {
				cancel(errs[i])
			}
		})
	}
	wg.Wait()
	if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
		return nil, context.Cause(ctx)
	}
	sum := results[0]
	for _, r := range results[1:] {
		sum.Acked += r.Acked
		sum.AckedAll += r.AckedAll
		sum.Refused += r.Refused
		sum.Ack.Merge(r.Ack)
	}
	return sum, nil
}

// ms is a histogram's quantile in milliseconds.
func ms(h *hdrhistogram.Histogram, q float64) float64 { return float64(h.ValueAtQuantile(q)) / 1000 }

// quantile of v, which it sorts.
func quantile(v []float64, q float64) float64 {
	slices.Sort(v)
	if len(v) == 0 {
		return 0
	}
	return v[min(int(q*float64(len(v))), len(v)-1)]
}
