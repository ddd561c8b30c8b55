package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/sdk/client"
)

// The filling: packs of text records through POST /v1/ingest.
const (
	fillDevices = 8 // a shard
	fillText    = 600
	fillRecords = 40 // a pack
	fillItems   = 64 // a request
	fillWorkers = 2  // a node
)

// lightLoad is of the same devices all the time, and its warm-up is long enough for their first readings, which register them.
var lightLoad = traffic{name: "light", clients: 99, rate: 200, warmup: time.Second}

// rebalance fills the shards, starts a fourth node, and measures how long it takes until that one has its share, and what
// this does to the acks of a light load.
func rebalance(ctx context.Context, o options) error {
	o.plugin = "" // the domain's pipeline is empty: bytes are the question
	ns, err := startNodes(ctx, o, 3)
	if err != nil {
		return err
	}
	defer ns.stop()
	start := time.Now()
	sent, err := ns.fill(ctx, int64(o.gb*1e9))
	if err != nil {
		return fmt.Errorf("fill: %w", err)
	}
	filled := time.Since(start)
	say("rebalance: filled with %.2f GB in %v", float64(sent)/1e9, filled.Round(time.Second))
	if err := wait(ctx, 30*time.Second); err != nil { // what the filling left to flush and compact
		return err
	}
	if _, err := ns.load(ctx, lightLoad, 2*time.Second, func() {}, "light"); err != nil {
		return err
	}
	before, err := ns.load(ctx, lightLoad, 20*time.Second, func() {}, "light")
	if err != nil {
		return err
	}
	say("rebalance: p99 %.1f ms before", ms(before.Ack, 99))
	start = time.Now()
	if err := ns.add(ctx, true); err != nil {
		return err
	}
	for _, p := range ns.all {
		p.metricsTo(o.profile, "rebalance-before")
		p.profileFor(o.profile, "rebalance", 15*time.Second)
	}
	during, took, err := ns.whileMoving(ctx, start)
	for _, p := range ns.all {
		p.metricsTo(o.profile, "rebalance-after")
	}
	if err != nil {
		return err
	}
	placed, err := ns.api.ShardReplicas(ctx)
	if err != nil {
		return err
	}
	var moved, total int64
	count := 0
	for _, s := range placed {
		total += s.Bytes
		for _, r := range s.Replicas {
			if r.Name == "node-4" {
				moved += s.Bytes
				count++
			}
		}
	}
	a, b := ms(before.Ack, 99), ms(during, 99)
	fmt.Printf("Rebalance: a fourth node joins three that keep %.2f GB (%.2f GB of text sent in %.0f s) in %d shards\n", float64(total)/1e9, float64(sent)/1e9, filled.Seconds(), shards)
	fmt.Printf("  %-36s %10.1f\n", "until balanced, s", took.Seconds())
	fmt.Printf("  %-36s %10d   (%.2f GB)\n", "replicas that it took over", count, float64(moved)/1e9)
	fmt.Printf("  %-36s %10.1f\n", "MB/s", float64(moved)/1e6/took.Seconds())
	fmt.Printf("  %-36s %10.2f %10.2f ms p50\n", "ack before / during, 200 readings/s", ms(before.Ack, 50), ms(during, 50))
	fmt.Printf("  %-36s %10.2f %10.2f ms p99, ratio %.2f   (goal: at most 2)\n", "", a, b, b/a)
	return nil
}

// fill sends text through all nodes, as much as they take, until the shards keep n bytes, archived log and state, and returns
// how much text was acked.
func (ns *nodes) fill(ctx context.Context, n int64) (int64, error) {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	var acked atomic.Int64
	var full atomic.Bool
	var watched sync.WaitGroup
	watched.Go(func() {
		for !full.Load() && wait(ctx, time.Second) == nil {
			full.Store(ns.bytes(ctx) >= n)
		}
	})
	var wg sync.WaitGroup
	errs := make(chan error, len(ns.all)*fillWorkers)
	ids := make([][]dunlin.DeviceID, fillDevices)
	for i := range ids {
		ids[i] = devicePerShard(fmt.Sprintf("fill%d", i))
	}
	begin := time.Now().Add(-24 * time.Hour)
	var turn atomic.Int64
	for i := range len(ns.all) * fillWorkers {
		api, err := client.New(ns.all[i%len(ns.all)].HTTP, client.Options{})
		if err != nil {
			return 0, err
		}
		wg.Go(func() {
			defer api.Close()
			for !full.Load() && ctx.Err() == nil {
				// each request has packs of all shards, of devices whose clock goes on with each
				k := turn.Add(1)
				got, err := sendPacks(ctx, api, ids[k%fillDevices], begin.Add(time.Duration(k)*fillRecords*time.Millisecond))
				if err != nil {
					errs <- err
					return
				}
				acked.Add(got)
			}
		})
	}
	wg.Wait()
	close(errs)
	all := ctx.Err()
	stop()
	watched.Wait()
	for err := range errs {
		all = errors.Join(all, err)
	}
	return acked.Load(), all
}

// bytes is what all shards keep, each counted once.
func (ns *nodes) bytes(ctx context.Context) (sum int64) {
	placed, err := ns.api.ShardReplicas(ctx)
	if err != nil {
		return 0
	}
	for i := range placed {
		sum += placed[i].Bytes
	}
	return sum
}

// sendPacks sends a pack of each device, those again that were not taken, and returns how many bytes of text were acked.
func sendPacks(ctx context.Context, api *client.Client, ids []dunlin.DeviceID, at time.Time) (int64, error) {
	items := make([]client.Item, 0, fillItems)
	for _, id := range ids[:fillItems] {
		items = append(items, client.Item{Device: id, Payload: pack(at)})
	}
	var acked int64
	for try := 0; len(items) > 0; try++ {
		results, err := api.SendBatch(ctx, items, "")
		if err != nil {
			return acked, err
		}
		var rest []client.Item
		for i, r := range results {
			if r.Problem == nil {
				acked += fillRecords * fillText
				continue
			}
			if try > 100 {
				return acked, fmt.Errorf("item of %s: %w", items[i].Device, r.Problem)
			}
			rest = append(rest, items[i])
		}
		if items = rest; len(items) > 0 {
			if err := wait(ctx, 50*time.Millisecond); err != nil {
				return acked, err
			}
		}
	}
	return acked, nil
}

// pack is a SenML pack of text that does not compress well.
func pack(at time.Time) json.RawMessage {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	var b strings.Builder
	b.Grow(fillRecords * (fillText + 60))
	text := make([]byte, fillText)
	for i := range fillRecords {
		for j := 0; j < fillText; j += 10 {
			for k, r := 0, rand.Uint64(); k < 10; k, r = k+1, r>>6 {
				text[j+k] = letters[r%64]
			}
		}
		sep := byte(',')
		if i == 0 {
			sep = '['
		}
		b.WriteByte(sep)
		fmt.Fprintf(&b, `{"n":"log","t":%.3f,"vs":"%s"}`, float64(at.UnixMilli()+int64(i))/1000, text)
	}
	b.WriteByte(']')
	return json.RawMessage(b.String())
}

// whileMoving plays the light load on the first three nodes until the fourth has its share, and returns the acks' latencies
// and how long it took.
func (ns *nodes) whileMoving(ctx context.Context, start time.Time) (*hdrhistogram.Histogram, time.Duration, error) {
	first := &nodes{o: ns.o, all: ns.all[:3]}
	var took atomic.Int64
	sum := hdrhistogram.New(1, int64(time.Minute/time.Microsecond), 3)
	var wg sync.WaitGroup
	var watched error
	wg.Go(func() {
		watched = until(ctx, 20*time.Minute, time.Second, "balance", func() bool { return ns.balanced(ctx) })
		took.Store(int64(time.Since(start)))
	})
	for took.Load() == 0 {
		res, err := first.load(ctx, lightLoad, 5*time.Second, func() {}, "light")
		if err != nil {
			wg.Wait()
			return nil, 0, err
		}
		sum.Merge(res.Ack)
		if members, err := ns.api.Members(ctx); err == nil && len(members) == 4 {
			say("rebalance: %.0f s, p99 %.1f ms, the fourth node has %d replicas", time.Since(start).Seconds(), ms(res.Ack, 99), members[3].Replicas)
		}
	}
	wg.Wait()
	return sum, time.Duration(took.Load()), watched
}

// balanced reports whether the four nodes have about as many replicas and nothing moves.
func (ns *nodes) balanced(ctx context.Context) bool {
	st, err := ns.api.ClusterStatus(ctx)
	if err != nil || !st.Healthy || len(st.Moves) > 0 {
		return false
	}
	members, err := ns.api.Members(ctx)
	if err != nil || len(members) != 4 {
		return false
	}
	least, most := members[0].Replicas, members[0].Replicas
	for _, m := range members {
		least, most = min(least, m.Replicas), max(most, m.Replicas)
	}
	return most-least <= 3 // all have the meta shard; two of difference are let be
}
