package main

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/dunlin-iot/dunlin/internal/load"
)

// figures are what one run of one system measured.
type figures struct {
	perSecond        float64
	ack50, ack99     float64 // ms
	alert50, alert99 float64 // ms; 0: no alerts there
	cpu              float64 // CPU-seconds of the server per 100,000 acked readings
	disk             float64 // bytes in the data folder per acked reading, as it is at the end of the run
	rss              float64 // MB at the end
	refused          float64
	flips, alerts    float64
}

// compare runs both systems in turn, o.runs times, and prints the medians and their ratio.
func compare(ctx context.Context, o options, p part) error {
	var fl, du []figures
	for i := range o.runs {
		fmt.Fprintf(os.Stderr, "%s: run %d of %d\n", p.name, i+1, o.runs)
		f, err := measure(ctx, o, p, startFloor)
		if err != nil {
			return fmt.Errorf("floor: %w", err)
		}
		var d figures
		if o.dunlin != "" {
			if d, err = measure(ctx, o, p, startDunlin); err != nil {
				return fmt.Errorf("dunlin: %w", err)
			}
		}
		fl, du = append(fl, f), append(du, d)
	}
	f, d := medians(fl), medians(du)
	fmt.Printf("%s (medians of %d runs of %v)\n", p.title, o.runs, o.duration)
	fmt.Printf("  %-34s %12s %12s %10s\n", "", "floor", "dunlin", "ratio")
	line := func(name, format string, a, b float64) {
		ratio := "-"
		if a > 0 && b > 0 {
			ratio = fmt.Sprintf("%.2f", b/a)
		}
		cell := func(v float64) string {
			if v == 0 {
				return "-"
			}
			return fmt.Sprintf(format, v)
		}
		fmt.Printf("  %-34s %12s %12s %10s\n", name, cell(a), cell(b), ratio)
	}
	line("acked/s", "%.0f", f.perSecond, d.perSecond)
	line("refused", "%.0f", f.refused, d.refused)
	line("ack p50, ms", "%.2f", f.ack50, d.ack50)
	line("ack p99, ms", "%.2f", f.ack99, d.ack99)
	line("reading to alert p50, ms", "%.2f", f.alert50, d.alert50)
	line("reading to alert p99, ms", "%.2f", f.alert99, d.alert99)
	line("alerts caused", "%.0f", f.flips, d.flips)
	line("alerts seen", "%.0f", f.alerts, d.alerts)
	line("CPU-s per 100,000 readings", "%.2f", f.cpu, d.cpu)
	line("bytes on disk per reading, now", "%.0f", f.disk, d.disk)
	line("RSS, MB", "%.0f", f.rss, d.rss)
	fmt.Println()
	return nil
}

func measure(ctx context.Context, o options, p part, start func(context.Context, options) (*server, error)) (figures, error) {
	s, err := start(ctx, o)
	if err != nil {
		return figures{}, err
	}
	defer s.stop()
	var before, after float64
	var disk, rss int64
	cfg := load.Config{Protocol: p.protocol, Addr: s.addr(p.protocol), Clients: p.clients, Devices: p.devices, Rate: p.rate,
		Prefix: "bench-" + p.protocol, Warmup: p.warmup, Duration: o.duration, Flips: 20,
		Connected: func() { before = s.cpu() },
		Played:    func() { after, disk, rss = s.cpu(), s.disk(), s.rss() }}
	if s.name == "dunlin" {
		cfg.Alerts = s.MQTT
	}
	if o.profile != "" && s.Admin != "" {
		go s.profile(filepath.Join(o.profile, p.name+".pprof"), p.warmup, o.duration)
	}
	res, err := load.Run(ctx, cfg)
	if err != nil {
		return figures{}, err
	}
	quantile := func(v int64) float64 { return float64(v) / 1000 }
	f := figures{perSecond: res.PerSecond(), ack50: quantile(res.Ack.ValueAtQuantile(50)), ack99: quantile(res.Ack.ValueAtQuantile(99)),
		cpu: (after - before) / float64(res.AckedAll) * 100_000, disk: float64(disk) / float64(res.AckedAll), rss: float64(rss) / 1e6,
		refused: float64(res.Refused)}
	if res.Alert != nil {
		f.alert50, f.alert99 = quantile(res.Alert.ValueAtQuantile(50)), quantile(res.Alert.ValueAtQuantile(99))
		f.flips, f.alerts = float64(res.Flips), float64(res.Alerts)
	}
	return f, nil
}

// profile keeps a CPU profile of the middle of the run.
func (s *server) profile(file string, warmup, d time.Duration) {
	time.AfterFunc(warmup+time.Second, func() {
		resp, err := http.Get(fmt.Sprintf("http://%s/debug/pprof/profile?seconds=%d", s.Admin, max(1, int(d.Seconds())-1)))
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench: profile:", err)
			return
		}
		defer resp.Body.Close()
		out, err := os.Create(file)
		if err == nil {
			_, err = io.Copy(out, resp.Body)
			out.Close()
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, "bench: profile:", err)
		}
	})
}

func medians(all []figures) figures {
	mid := func(get func(*figures) float64) float64 {
		v := make([]float64, 0, len(all))
		for i := range all {
			v = append(v, get(&all[i]))
		}
		slices.Sort(v)
		return v[len(v)/2]
	}
	return figures{
		perSecond: mid(func(f *figures) float64 { return f.perSecond }), refused: mid(func(f *figures) float64 { return f.refused }),
		ack50: mid(func(f *figures) float64 { return f.ack50 }), ack99: mid(func(f *figures) float64 { return f.ack99 }),
		alert50: mid(func(f *figures) float64 { return f.alert50 }), alert99: mid(func(f *figures) float64 { return f.alert99 }),
		cpu: mid(func(f *figures) float64 { return f.cpu }), disk: mid(func(f *figures) float64 { return f.disk }),
		rss: mid(func(f *figures) float64 { return f.rss }), flips: mid(func(f *figures) float64 { return f.flips }),
		alerts: mid(func(f *figures) float64 { return f.alerts }),
	}
}
