package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"github.com/dunlin-iot/dunlin/internal/sim"
	"github.com/spf13/cobra"
)

func newSim(env Env) *cobra.Command {
	return group(&cobra.Command{Use: "sim", Short: "Play devices that do not exist"}, newSimRun(env))
}

type simFlags struct {
	cfg      sim.Config
	replay   sim.Replay
	protocol string
	mqtt     string
	coap     string
	csv      string
	duration time.Duration
}

func newSimRun(_ Env) *cobra.Command {
	var f simFlags
	c := &cobra.Command{
		Use:   "run",
		Short: "Send readings of simulated fridges, or replay a CSV file, over CoAP and MQTT",
		Example: "  dunlin sim run --devices 100 --every 1s --duration 1m\n" +
			"  dunlin sim run --devices 10 --protocol coap --drop 0.05 --duplicate 0.1 --skew 30s --duration 30s\n" +
			"  dunlin sim run --csv readings.csv --device press-1 --metric temp --unit Cel --protocol mqtt",
		Args: cobra.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return f.run(c) },
	}
	fl := c.Flags()
	fl.StringVar(&f.mqtt, "mqtt", "127.0.0.1:1883", "address of the node's MQTT gateway")
	fl.StringVar(&f.coap, "coap", "127.0.0.1:5683", "address of the node's CoAP gateway")
	fl.StringVar(&f.protocol, "protocol", "", "mqtt, coap or both; default both, for a CSV file mqtt")
	fl.DurationVar(&f.duration, "duration", 0, "stop after this long; 0: at Ctrl-C")
	fl.IntVar(&f.cfg.Devices, "devices", 25, "how many fridges")
	fl.StringVar(&f.cfg.Prefix, "prefix", "fridge", "of the device ids")
	fl.DurationVar(&f.cfg.Every, "every", time.Second, "between a device's readings")
	fl.Uint64Var(&f.cfg.Seed, "seed", 1, "of everything random")
	fl.Float64Var(&f.cfg.Drop, "drop", 0, "share of messages that never leave the device, 0 to 1")
	fl.Float64Var(&f.cfg.Duplicate, "duplicate", 0, "share of messages sent twice, 0 to 1")
	fl.DurationVar(&f.cfg.Skew, "skew", 0, "device clocks are off by up to this")
	fl.StringVar(&f.cfg.User, "user", "", "user name of an MQTT gateway's credential")
	fl.StringVar(&f.cfg.Password, "password", "", "its secret; for CoAP the device's")
	fl.StringVar(&f.csv, "csv", "", "replay this file of timestamp,value rows instead")
	fl.StringVar(&f.replay.Device, "device", "", "with --csv: the device that sends them")
	fl.StringVar(&f.replay.Metric, "metric", "value", "with --csv: the metric's name")
	fl.StringVar(&f.replay.Unit, "unit", "", "with --csv: its SenML unit, such as Cel")
	fl.IntVar(&f.replay.Pack, "pack", 20, "with --csv: readings per message, 1 to 50")
	fl.Float64Var(&f.replay.Speed, "speed", 0, "with --csv: times faster than recorded; 0: as fast as acked")
	return c
}

func (f *simFlags) run(c *cobra.Command) error {
	if msg := f.wrong(); msg != "" {
		return usageError{c.CommandPath(), msg}
	}
	ctx := c.Context()
	if f.duration > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, f.duration)
		defer cancel()
	}
	if f.csv != "" {
		return f.runReplay(ctx, c)
	}
	switch f.protocol {
	case "", "both":
		f.cfg.MQTT, f.cfg.CoAP = f.mqtt, f.coap
	case "mqtt":
		f.cfg.MQTT = f.mqtt
	case "coap":
		f.cfg.CoAP = f.coap
	default:
		return usageError{c.CommandPath(), fmt.Sprintf("protocol %q is none of mqtt, coap, both", f.protocol)}
	}
	var stats sim.Stats
	stop := every(ctx, 2*time.Second, func() { f.line(c.ErrOrStderr(), &stats, "\r") })
	err := sim.Run(ctx, f.cfg, &stats)
	stop()
	f.line(c.ErrOrStderr(), &stats, "\n")
	return err
}

// wrong says which flag is out of its bounds, or nothing.
func (f *simFlags) wrong() string {
	switch {
	case f.cfg.Devices < 1 || f.cfg.Devices > 10_000:
		return fmt.Sprintf("--devices %d is not between 1 and 10000", f.cfg.Devices)
	case !(f.cfg.Drop >= 0 && f.cfg.Drop <= 1):
		return fmt.Sprintf("--drop %g is not between 0 and 1", f.cfg.Drop)
	case !(f.cfg.Duplicate >= 0 && f.cfg.Duplicate <= 1):
		return fmt.Sprintf("--duplicate %g is not between 0 and 1", f.cfg.Duplicate)
	case f.cfg.Every <= 0:
		return fmt.Sprintf("--every %v is not more than nothing", f.cfg.Every)
	case f.cfg.Skew < 0 || f.duration < 0:
		return "--skew and --duration can't be negative"
	}
	return ""
}

func (f *simFlags) line(w io.Writer, s *sim.Stats, end string) {
	fmt.Fprintf(w, "%d devices: %d acked, %d refused, %d dropped, %d repeated, %d reconnects   %s",
		f.cfg.Devices, s.Acked.Load(), s.Refused.Load(), s.Dropped.Load(), s.Duplicated.Load(), s.Reconnects.Load(), end)
}

func (f *simFlags) runReplay(ctx context.Context, c *cobra.Command) error {
	if f.replay.Device == "" {
		return usageError{c.CommandPath(), "--csv needs --device: whose readings they are"}
	}
	file, err := os.Open(f.csv)
	if err != nil {
		return err
	}
	defer file.Close()
	points, err := sim.ReadCSV(file)
	if err != nil {
		return fmt.Errorf("%s: %w", f.csv, err)
	}
	r := f.replay
	r.Protocol, r.Addr, r.User, r.Password = f.protocol, f.mqtt, f.cfg.User, f.cfg.Password
	if r.Protocol == "" {
		r.Protocol = "mqtt"
	}
	if r.Protocol == "coap" {
		r.Addr = f.coap
	}
	start, last := time.Now(), time.Now()
	r.Progress = func(rows int) {
		if time.Since(last) > 2*time.Second {
			last = time.Now()
			fmt.Fprintf(c.ErrOrStderr(), "%d of %d rows acked\r", rows, len(points))
		}
	}
	acked, err := r.Run(ctx, points)
	if err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	fmt.Fprintf(c.OutOrStdout(), "%d of %d rows acked by %s over %s in %.1f s\n", acked, len(points), r.Addr, r.Protocol, time.Since(start).Seconds())
	return nil
}

// every calls f each d until ctx ends or stop is called; stop waits for a call that runs.
func every(ctx context.Context, d time.Duration, f func()) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(d)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				f()
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() { cancel(); <-done }
}
