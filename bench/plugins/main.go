// Command plugins measures what plugins cost: a crossing into each language's guest beside native Go, rules and scripts with the
// same logic, compiling and starting, uploading to a real node, a guest that never ends, and what a domain with a greedy plugin
// costs another one. It prints medians beside their goals, and what it prints is what docs/benchmarks.md quotes.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"
)

// options are the command's flags.
type options struct {
	dunlin   string
	root     string
	runs     int
	duration time.Duration
	bench    time.Duration
	only     string
	work     string // a folder for what is built and cached
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	var o options
	flag.StringVar(&o.dunlin, "dunlin", "bin/dunlin", "the binary to measure")
	flag.StringVar(&o.root, "root", ".", "the repository: where the SDKs' examples were built")
	flag.IntVar(&o.runs, "runs", 3, "runs of which the median is printed")
	flag.DurationVar(&o.duration, "duration", 10*time.Second, "counted part of each run of the isolation part")
	flag.DurationVar(&o.bench, "bench", 500*time.Millisecond, "each run of a crossing")
	flag.StringVar(&o.only, "only", "crossing,fuel,start,upload,runaway,isolation", "which parts, by comma")
	flag.Parse()
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp("", "dunlin-bench-plugins-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	o.work = dir
	fmt.Printf("load average at the start: %s\n\n", loadAverage())
	for _, p := range []struct {
		name string
		f    func(context.Context, options) error
	}{{"crossing", crossings}, {"fuel", fuels}, {"start", starts}, {"upload", uploads}, {"runaway", runaways}, {"isolation", isolation}} {
		if !strings.Contains(","+o.only+",", ","+p.name+",") {
			continue
		}
		if err := ctx.Err(); err != nil {
			return context.Cause(ctx)
		}
		if err := p.f(ctx, o); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
		fmt.Println()
	}
	return nil
}

// median of what a function measures in o.runs runs.
func median(o options, f func() (float64, error)) (float64, error) {
	vs := make([]float64, o.runs)
	for i := range vs {
		var err error
		if vs[i], err = f(); err != nil {
			return 0, err
		}
	}
	return medianOf(vs), nil
}

func medianOf(vs []float64) float64 {
	s := slices.Sorted(slices.Values(vs))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// verdict says whether a goal was met.
func verdict(met bool, goal string) string {
	if met {
		return "goal " + goal + ": met"
	}
	return "goal " + goal + ": MISSED"
}

// cpuTime is this process's user and system time.
func cpuTime() time.Duration {
	var u syscall.Rusage
	if syscall.Getrusage(syscall.RUSAGE_SELF, &u) != nil {
		return 0
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func loadAverage() string {
	b, err := os.ReadFile("/proc/loadavg")
	if err != nil {
		return "unknown"
	}
	return strings.Join(strings.Fields(string(b))[:2], " ")
}
