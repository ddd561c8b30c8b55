// Command bench holds the runtime against a floor, side by side in one run: a bare server that does no more than parse,
// commit and ack. It prints medians, and what it prints is what docs/benchmarks.md quotes.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"time"

	"github.com/dunlin-iot/dunlin/bench/floor"
)

// options are the command's flags.
type options struct {
	dunlin   string
	runs     int
	duration time.Duration
	only     string
	profile  string
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if len(os.Args) > 1 && os.Args[1] == "floor" {
		exit(serveFloor(ctx, os.Args[2:]))
	}
	var o options
	flag.StringVar(&o.dunlin, "dunlin", "bin/dunlin", "the binary to measure; \"\" measures the floor alone")
	flag.IntVar(&o.runs, "runs", 3, "runs of which the median is printed")
	flag.DurationVar(&o.duration, "duration", 8*time.Second, "counted part of each run")
	flag.StringVar(&o.only, "only", "mqtt,coap,rate500,rate2000,memory", "which parts, by comma")
	flag.StringVar(&o.profile, "profile", "", "folder for CPU profiles of the runtime in each part")
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

// serveFloor is the floor as a process of its own, so that its CPU can be told from the load's.
func serveFloor(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("floor", flag.ExitOnError)
	dir := fs.String("dir", "", "data folder")
	if err := fs.Parse(args); err != nil {
		return err
	}
	s, err := floor.Start(floor.Config{Dir: *dir, MQTT: "127.0.0.1:0", CoAP: "127.0.0.1:0"})
	if err != nil {
		return err
	}
	fmt.Printf(`{"mqtt":"%s","coap":"%s","pid":%d}`+"\n", s.MQTT(), s.CoAP(), os.Getpid())
	s.Wait(ctx)
	return nil
}

// part is one comparison.
type part struct {
	name     string
	title    string
	protocol string
	clients  int
	devices  int
	rate     float64
	warmup   time.Duration
}

var parts = []part{
	{name: "mqtt", title: "MQTT QoS 1, 1,000 connections, 1 in flight, closed loop", protocol: "mqtt", clients: 1000, devices: 1000, warmup: 2 * time.Second},
	{name: "coap", title: "CoAP CON, 64 sockets, 1 in flight, 1,024 devices, closed loop", protocol: "coap", clients: 64, devices: 1024, warmup: 2 * time.Second},
	{name: "rate500", title: "MQTT QoS 1, 1,000 connections, 500 readings/s", protocol: "mqtt", clients: 1000, devices: 1000, rate: 500, warmup: 12 * time.Second},
	{name: "rate2000", title: "MQTT QoS 1, 1,000 connections, 2,000 readings/s", protocol: "mqtt", clients: 1000, devices: 1000, rate: 2000, warmup: 4 * time.Second},
}

func run(ctx context.Context, o options) error {
	for _, p := range parts {
		if !strings.Contains(","+o.only+",", ","+p.name+",") {
			continue
		}
		if err := compare(ctx, o, p); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	if strings.Contains(","+o.only+",", ",memory,") {
		return memory(ctx, o)
	}
	return nil
}
