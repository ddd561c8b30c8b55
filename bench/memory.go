package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/dunlin-iot/dunlin/internal/load"
)

// memory prints the node's resident memory: idle, with devices, and per idle connection.
func memory(ctx context.Context, o options) error {
	fmt.Println("Memory of the node (RSS; one run)")
	s, err := startDunlin(ctx, o)
	if err != nil {
		return err
	}
	defer s.stop()
	settle(ctx)
	idle := s.rss()
	fmt.Printf("  %-34s %12.1f MB\n", "idle", mb(idle))
	for _, devices := range []int{1000, 50_000} {
		if err := touch(ctx, s, devices); err != nil {
			return err
		}
		settle(ctx)
		rss := s.rss()
		fmt.Printf("  %-34s %12.1f MB %8.0f bytes a device above idle\n", fmt.Sprintf("%d devices that reported", devices), mb(rss), float64(rss-idle)/float64(devices))
	}
	before := s.rss()
	const conns = 5000
	open := make([]net.Conn, 0, conns)
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	for i := range conns {
		c, err := load.Idle(s.MQTT, fmt.Sprintf("idle-%d", i))
		if err != nil {
			return err
		}
		open = append(open, c)
	}
	settle(ctx)
	fmt.Printf("  %-34s %12.1f MB %8.0f bytes a connection\n\n", fmt.Sprintf("and %d idle MQTT connections", conns), mb(s.rss()), float64(s.rss()-before)/conns)
	return nil
}

// touch lets each device report a few times.
func touch(ctx context.Context, s *server, devices int) error {
	clients := min(devices, 500)
	per := time.Duration(float64(devices) / 4000 * float64(time.Second))
	_, err := load.Run(ctx, load.Config{Protocol: "mqtt", Addr: s.MQTT, Clients: clients, Devices: devices,
		Prefix: fmt.Sprintf("mem-%d", devices), Duration: max(3*time.Second, per)})
	return err
}

// settle gives the node time to passivate, flush and collect garbage.
func settle(ctx context.Context) {
	fmt.Fprintln(os.Stderr, "memory: settling")
	select {
	case <-time.After(15 * time.Second):
	case <-ctx.Done():
	}
}

func mb(b int64) float64 { return float64(b) / 1e6 }
