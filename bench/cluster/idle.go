package main

import (
	"context"
	"fmt"
	"strings"
	"time"
)

// How long nodes are left alone before they are measured, and for how long they are.
const (
	idleSettle  = 20 * time.Second
	idleMeasure = 20 * time.Second
)

// idle measures what nodes take that nobody talks to.
func idle(ctx context.Context, o options) error {
	three, err := startNodes(ctx, o, 3)
	if err != nil {
		return err
	}
	defer three.stop()
	one, err := startNodes(ctx, o, 1)
	if err != nil {
		return err
	}
	defer one.stop()
	say("idle: settling")
	if err := wait(ctx, idleSettle); err != nil {
		return err
	}
	for _, p := range three.all {
		p.profileFor(o.profile, "idle", idleMeasure)
	}
	was := make([]float64, 3)
	for i, p := range three.all {
		was[i] = p.cpu()
	}
	lone, start := one.cpu(), time.Now()
	if err := wait(ctx, idleMeasure); err != nil {
		return err
	}
	secs := time.Since(start).Seconds()
	var each, mem []string
	sum := 0.0
	for i, p := range three.all {
		used := (p.cpu() - was[i]) / secs
		sum += used
		each = append(each, fmt.Sprintf("%.3f", used))
		mem = append(mem, fmt.Sprintf("%.0f", float64(p.rss())/1e6))
	}
	fmt.Printf("Idle, %d shards on three nodes, over %v\n", shards, idleMeasure)
	fmt.Printf("  %-30s %10.3f   (%s; goal: at most 0.1)\n", "CPU of all nodes, cores", sum, strings.Join(each, ", "))
	fmt.Printf("  %-30s %10.3f\n", "CPU of one node alone, cores", (one.cpu()-lone)/secs)
	fmt.Printf("  %-30s %10.0f   (%s)\n", "RSS of all nodes, MB", float64(three.rss())/1e6, strings.Join(mem, ", "))
	fmt.Printf("  %-30s %10.0f\n", "RSS of one node alone, MB", float64(one.rss())/1e6)
	return nil
}
