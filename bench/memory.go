package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"time"

	"github.com/dunlin-iot/dunlin/internal/load"
)

// idleConns is how many idle connections are opened to see what one takes.
const idleConns = 5000

// memory prints the node's resident memory: idle, per idle connection, and with devices; each on a node of its own, so
// that one figure is not what another left behind.
func memory(ctx context.Context, o options) error {
	fmt.Println("Memory of the node (RSS; one run)")
	if err := onNode(ctx, o, func(s *server, idle int64) error {
		fmt.Printf("  %-34s %12.1f MB\n", "idle, example plugin loaded", mb(idle))
		open := make([]net.Conn, 0, idleConns)
		defer func() {
			for _, c := range open {
				c.Close()
			}
		}()
		for i := range idleConns {
			c, err := load.Idle(s.MQTT, fmt.Sprintf("idle-%d", i))
			if err != nil {
				return err
			}
			open = append(open, c)
		}
		settle(ctx)
		fmt.Printf("  %-34s %12.1f MB %8.0f bytes a connection\n", fmt.Sprintf("%d idle MQTT connections", idleConns), mb(s.rss()), float64(s.rss()-idle)/idleConns)
		return nil
	}); err != nil {
		return err
	}
	for _, devices := range []int{1000, 50_000} {
		if err := onNode(ctx, o, func(s *server, idle int64) error {
			if err := touch(ctx, s, devices); err != nil {
				return err
			}
			settle(ctx)
			fmt.Printf("  %-34s %12.1f MB %8.0f bytes a device above idle\n", fmt.Sprintf("%d active devices", devices), mb(s.rss()), float64(s.rss()-idle)/float64(devices))
			return nil
		}); err != nil {
			return err
		}
	}
	fmt.Println()
	return nil
}

// onNode runs f on a fresh node, with its resident memory when idle.
func onNode(ctx context.Context, o options, f func(s *server, idle int64) error) error {
	s, err := startDunlin(ctx, o)
	if err != nil {
		return err
	}
	defer s.stop()
	settle(ctx)
	return f(s, s.rss())
}

// touch lets each device report a few times.
func touch(ctx context.Context, s *server, devices int) error {
	const rate = 5000 // not flat out: what a device takes is the question, not what a full load does
	_, err := load.Run(ctx, load.Config{Protocol: "mqtt", Addr: s.MQTT, Clients: min(devices, 500), Devices: devices, Rate: rate,
		Prefix: fmt.Sprintf("mem-%d", devices), Duration: time.Duration(3 * float64(devices) / rate * float64(time.Second))})
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
