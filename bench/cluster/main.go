// Command cluster measures nodes that keep each shard three times: beside raw synced Pebble batches of the same bytes, beside
// the floor, and beside one node alone, in one run on one machine. It prints medians, and what it prints is what
// docs/benchmarks.md quotes.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"
)

// options are the command's flags.
type options struct {
	dunlin   string
	plugin   string
	runs     int
	duration time.Duration
	only     string
	kills    int
	gb       float64
	profile  string
	logs     string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if len(os.Args) > 1 && os.Args[1] == "floor" {
		exit(serveFloor(ctx, os.Args[2:]))
	}
	var o options
	flag.StringVar(&o.dunlin, "dunlin", "bin/dunlin", "the binary to measure")
	flag.StringVar(&o.plugin, "plugin", "cmd/dunlin/internal/builtin/modules/cold-chain.wasm", "the module that sees every reading; \"\" for none")
	flag.IntVar(&o.runs, "runs", 3, "runs of which the median is printed")
	flag.DurationVar(&o.duration, "duration", 8*time.Second, "counted part of each run")
	flag.StringVar(&o.only, "only", "durable,mqtt,rate500,idle,failover,rebalance", "which parts, by comma")
	flag.IntVar(&o.kills, "kills", 6, "how many owners are killed")
	flag.Float64Var(&o.gb, "gb", 1, "GB that the shards hold before the fourth node comes")
	flag.StringVar(&o.profile, "profile", "", "folder for profiles of the nodes")
	flag.StringVar(&o.logs, "logs", "error", "level of what the nodes say on standard error")
	flag.Parse()
	exit(run(ctx, o))
}

func exit(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func run(ctx context.Context, o options) error {
	for _, p := range []struct {
		name string
		f    func(context.Context, options) error
	}{
		{"durable", durable},
		{"mqtt", func(ctx context.Context, o options) error { return whole(ctx, o, closedLoop) }},
		{"rate500", func(ctx context.Context, o options) error { return whole(ctx, o, slowRate) }},
		{"idle", idle},
		{"failover", failover},
		{"rebalance", rebalance},
	} {
		if !strings.Contains(","+o.only+",", ","+p.name+",") {
			continue
		}
		busy := loadavg()
		if err := p.f(ctx, o); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		fmt.Printf("  (load average before: %s, after: %s)\n\n", busy, loadavg())
	}
	return nil
}

// loadavg tells how busy the machine is with other things: a figure from a busy one is worth repeating.
func loadavg() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:1], " ")
}

// wait waits for d, or until ctx ends.
func wait(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// until asks f every pause until it says yes, for at most max. what says what was waited for.
func until(ctx context.Context, max, pause time.Duration, what string, f func() bool) error {
	for end := time.Now().Add(max); ; {
		if f() {
			return nil
		}
		if time.Now().After(end) {
			return fmt.Errorf("no %s within %v", what, max)
		}
		if err := wait(ctx, pause); err != nil {
			return err
		}
	}
}

// say tells on standard error what is going on.
func say(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }
