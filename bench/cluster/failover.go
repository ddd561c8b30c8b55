package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/shard"
	"github.com/dunlin-iot/dunlin/sdk/client"
)

// Paces of the failover part.
const (
	lightEvery   = 500 * time.Millisecond // each device's, all the time
	probeEvery   = 20 * time.Millisecond  // each moved shard's, from the kill to its first commit
	probeWait    = 2 * time.Second        // of one probe
	failoverWait = 30 * time.Second
)

// outage is one kill.
type outage struct {
	ns      *nodes
	victim  int
	devices []dunlin.DeviceID // by shard
	http    *http.Client
}

// failover kills the owner of a third of the shards, again and again, and measures for each of them how long it takes from
// the kill to the commit of a reading that was sent after it, through the nodes that are left. A probe of each of them goes
// out every 20 ms, whether the ones before were answered or not, so what is measured is the cluster and not a retry's pause.
func failover(ctx context.Context, o options) error {
	ns, err := startNodes(ctx, o, 3)
	if err != nil {
		return err
	}
	defer ns.stop()
	out := &outage{ns: ns, devices: devicePerShard("fo"), http: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 64}}}
	defer out.http.CloseIdleConnections()
	lightCtx, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var victim atomic.Int64
	victim.Store(-1)
	for sh := range out.devices {
		wg.Go(func() { out.light(lightCtx, sh, &victim) })
	}
	defer func() { stop(); wg.Wait() }()
	var took []float64
	worst := make([]float64, 0, o.kills)
	for i := range o.kills {
		if err := ns.settled(ctx, 3); err != nil {
			return err
		}
		if err := wait(ctx, 3*time.Second); err != nil {
			return err
		}
		out.victim = i % 3
		got, err := out.kill(ctx, &victim)
		if err != nil {
			return err
		}
		w := quantile(got, 1)
		say("failover: kill %d of %d: %s owned %d shards; median %.0f ms, worst %.0f ms", i+1, o.kills, ns.all[out.victim].name, len(got), quantile(got, 0.5), w)
		took, worst = append(took, got...), append(worst, w)
		if err := ns.again(ctx, ns.all[out.victim]); err != nil {
			return err
		}
		victim.Store(-1)
	}
	fmt.Printf("Failover: kill -9 of the owner of a third of %d shards, %d times, to the next commit of each (%d in all)\n", shards, o.kills, len(took))
	fmt.Printf("  %-30s %10.0f   (goal: below 600)\n", "median, ms", quantile(took, 0.5))
	fmt.Printf("  %-30s %10.0f\n", "p90, ms", quantile(took, 0.9))
	fmt.Printf("  %-30s %10.0f   (goal: below 2,000)\n", "worst, ms", quantile(took, 1))
	fmt.Printf("  %-30s %10.0f\n", "median of each kill's worst, ms", quantile(worst, 0.5))
	return nil
}

// devicePerShard finds a device of each shard.
func devicePerShard(prefix string) []dunlin.DeviceID {
	ids := make([]dunlin.DeviceID, shards)
	for n, left := 0, shards; left > 0; n++ {
		id := dunlin.DeviceID(fmt.Sprintf("%s-%d", prefix, n))
		if sh := shard.Of(dunlin.DeviceKey{Tenant: dunlin.DefaultTenant, Device: id}, shards); ids[sh] == "" {
			ids[sh] = id
			left--
		}
	}
	return ids
}

// light lets a shard's device report now and then, through any node that is up.
func (f *outage) light(ctx context.Context, sh int, victim *atomic.Int64) {
	if wait(ctx, time.Duration(rand.Int64N(int64(lightEvery)))) != nil {
		return
	}
	for ctx.Err() == nil {
		node := rand.IntN(len(f.ns.all))
		if int64(node) != victim.Load() {
			f.post(ctx, node, sh)
		}
		if wait(ctx, lightEvery) != nil {
			return
		}
	}
}

// post sends a reading of the shard's device and reports whether it was committed.
func (f *outage) post(ctx context.Context, node, sh int) bool {
	ctx, cancel := context.WithTimeout(ctx, probeWait)
	defer cancel()
	body := fmt.Sprintf(`[{"n":"temp","u":"Cel","v":4.%d,"t":%.6f}]`, rand.IntN(10), float64(time.Now().UnixMicro())/1e6)
	r, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("http://%s/v1/devices/%s/t", f.ns.all[node].HTTP, f.devices[sh]), bytes.NewReader([]byte(body)))
	if err != nil {
		return false
	}
	r.Header.Set("Content-Type", "application/senml+json")
	resp, err := f.http.Do(r)
	if err != nil {
		return false
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return err == nil && resp.StatusCode < 300
}

// kill kills the victim and returns, for each shard that it owned, the milliseconds until a later reading was committed.
func (f *outage) kill(ctx context.Context, victim *atomic.Int64) ([]float64, error) {
	api, err := client.New(f.ns.all[(f.victim+1)%3].HTTP, client.Options{})
	if err != nil {
		return nil, err
	}
	defer api.Close()
	members, err := api.Members(ctx)
	if err != nil {
		return nil, err
	}
	placed, err := api.ShardReplicas(ctx)
	if err != nil {
		return nil, err
	}
	var id dunlin.NodeID
	for _, m := range members {
		if m.Name == f.ns.all[f.victim].name {
			id = m.ID
		}
	}
	victim.Store(int64(f.victim))
	start := time.Now()
	if err := f.ns.all[f.victim].kill(); err != nil {
		return nil, err
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	var took []float64
	for _, s := range placed {
		if s.Owner == id {
			wg.Go(func() {
				d := f.firstCommit(ctx, int(s.Shard), start)
				mu.Lock()
				defer mu.Unlock()
				took = append(took, float64(d.Microseconds())/1000)
			})
		}
	}
	wg.Wait()
	return took, ctx.Err()
}

// firstCommit probes a shard through the nodes that are left until a reading is committed.
func (f *outage) firstCommit(ctx context.Context, sh int, start time.Time) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, failoverWait)
	defer cancel()
	done := make(chan time.Duration, 1)
	tick := time.NewTicker(probeEvery)
	defer tick.Stop()
	for n := 1; ; n++ {
		node := (f.victim + 1 + n%2) % 3
		go func() {
			if f.post(ctx, node, sh) {
				select {
				case done <- time.Since(start):
				default:
				}
			}
		}()
		select {
		case d := <-done:
			return d
		case <-tick.C:
		case <-ctx.Done():
			return time.Since(start)
		}
	}
}
