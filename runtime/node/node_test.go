package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/runtime/config"
	"github.com/dunlin-iot/dunlin/runtime/observe"
)

const testShards = 8

// member starts a node on free ports of loopback; it joins where others are, or begins a cluster.
func member(ctx context.Context, t *testing.T, name, key, dir string, join ...string) (*Node, error) {
	cfg := config.Default()
	cfg.Data, cfg.Name, cfg.ClusterKey, cfg.Join = dir, name, key, join
	cfg.HTTP, cfg.MQTT, cfg.CoAP, cfg.Cluster = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0"
	cfg.Shards, cfg.DefaultDomain, cfg.Open, cfg.RepairAfter = testShards, "plain", true, time.Hour
	obs, err := observe.Setup(t.Output(), "warn", "text")
	if err != nil {
		return nil, err
	}
	obs.Log = obs.Log.With("node", name)
	return Start(ctx, cfg, obs)
}

// three starts a cluster and waits until every shard has its three replicas.
func three(t *testing.T) []*Node {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	key := NewClusterKey()
	ns, errs := make([]*Node, 3), make([]error, 3)
	dirs := []string{t.TempDir(), t.TempDir(), t.TempDir()}
	if ns[0], errs[0] = member(ctx, t, "a", key, dirs[0]); errs[0] != nil {
		t.Fatal(errs[0])
	}
	var wg sync.WaitGroup
	for i := 1; i < 3; i++ {
		wg.Go(func() { ns[i], errs[i] = member(ctx, t, string(rune('a'+i)), key, dirs[i], ns[0].ClusterAddr()) })
	}
	wg.Wait()
	for i := range ns {
		if errs[i] != nil {
			t.Fatal(errs[i])
		}
	}
	for {
		st, err := ns[2].Cluster().ClusterStatus(ctx)
		if err == nil && st.Healthy && st.Alive == 3 {
			return ns
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			t.Fatalf("no cluster: %+v, %v", st, err)
		}
	}
}

// do is one HTTP request, repeated while the answer is 503, for at most 20 s.
func do(ctx context.Context, n *Node, method, path, body, key string) (string, error) {
	for deadline := time.Now().Add(20 * time.Second); ; {
		req, err := http.NewRequestWithContext(ctx, method, "http://"+n.Addrs().HTTP+path, strings.NewReader(body))
		if err != nil {
			return "", err
		}
		req.Header.Set("Content-Type", "application/json")
		if key != "" {
			req.Header.Set("Idempotency-Key", key)
		}
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			return "", err
		}
		b, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		switch {
		case err != nil:
			return "", err
		case resp.StatusCode/100 == 2:
			return string(b), nil
		case resp.StatusCode != 503 || time.Now().After(deadline):
			return "", fmt.Errorf("%s %s: %s %s", method, path, resp.Status, b)
		}
		<-time.After(20 * time.Millisecond)
	}
}

// load has devices send through each of the nodes, numbered from first to last, and waits for all acks.
func load(t *testing.T, ns []*Node, devices, first, last int, meanwhile func()) {
	t.Helper()
	var wg sync.WaitGroup
	for d := range devices {
		wg.Go(func() {
			for v := first; v <= last; v++ {
				path := fmt.Sprintf("/v1/devices/dev-%d/t", d)
				if _, err := do(t.Context(), ns[(d+v)%len(ns)], http.MethodPost, path, fmt.Sprintf(`{"n": %d}`, v), fmt.Sprint(v)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	meanwhile()
	wg.Wait()
}

// check asks each node for all twins and histories.
func check(t *testing.T, ns []*Node, devices, last int) {
	t.Helper()
	for i, n := range ns {
		for d := range devices {
			var page struct{ Readings []struct{ Value int } }
			text, err := do(t.Context(), n, http.MethodGet, fmt.Sprintf("/v1/devices/dev-%d/readings", d), "", "")
			if err == nil {
				err = json.Unmarshal([]byte(text), &page)
			}
			if err != nil {
				t.Error(err)
				continue
			}
			ok := len(page.Readings) == last
			for j, r := range page.Readings {
				ok = ok && r.Value == j+1
			}
			if !ok {
				t.Errorf("node %d has of dev-%d %v, want 1 to %d", i, d, page.Readings, last)
			}
		}
	}
}

// follow counts what a node's feed says of devices, from the log's beginning on, until all were heard of as often as wanted.
func follow(t *testing.T, n *Node, devices, last int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	from, heard, left := make(dunlin.Cursor, testShards), map[dunlin.DeviceID]uint64{}, devices
	for item, err := range n.Feed().Follow(ctx, &from, nil) {
		if err != nil {
			t.Fatalf("%v; heard %v", err, heard)
		}
		for i := range item.Entry.Changes {
			ch := &item.Entry.Changes[i]
			for j := range ch.Inputs {
				if seq := ch.Seq(j); seq != heard[ch.Device]+1 {
					t.Errorf("after input %d of %s comes %d", heard[ch.Device], ch.Device, seq)
				}
				if heard[ch.Device]++; heard[ch.Device] == uint64(last) {
					left--
				}
			}
		}
		if left == 0 {
			return
		}
	}
	t.Errorf("the feed ended; heard %v", heard)
}

// Three nodes in one process, so that the race detector sees all rooms at work together: devices send through all of them while
// every shard changes its owner and the nodes are asked; then one closes, and the other two go on.
func TestThreeNodesInOneProcess(t *testing.T) {
	ns := three(t)
	closed := make([]bool, len(ns))
	end := func(i int) {
		if closed[i] {
			return
		}
		closed[i] = true
		if err := ns[i].Close(); err != nil {
			t.Errorf("closing node %d: %v", i, err)
		}
	}
	t.Cleanup(func() {
		for i := range ns {
			end(i)
		}
	})
	if _, err := do(t.Context(), ns[1], http.MethodPut, "/v1/domains/plain", `{"owner":"you","unknown_devices":"register"}`, ""); err != nil {
		t.Fatal(err)
	}
	const devices = 12
	load(t, ns, devices, 1, 20, func() { transfer(t, ns) })
	check(t, ns, devices, 20)
	for _, n := range ns {
		follow(t, n, devices, 20)
	}
	load(t, ns[1:], devices, 21, 30, func() { end(0) })
	check(t, ns[1:], devices, 30)
	follow(t, ns[2], devices, 30)
	end(1)
	if _, err := http.Get("http://" + ns[1].Addrs().HTTP + "/v1/version"); err == nil {
		t.Error("a closed node answers")
	}
}

// transfer makes the next of its replicas the owner of each shard. The first of them is the one that decides about moves.
func transfer(t *testing.T, ns []*Node) {
	t.Helper()
	shards, err := ns[0].Cluster().ShardReplicas(t.Context())
	if err != nil {
		t.Error(err)
	}
	for i, sh := range shards {
		at := slices.IndexFunc(sh.Replicas, func(r dunlin.Replica) bool { return r.Node == sh.Owner })
		if at < 0 {
			continue // it is changing hands by itself
		}
		from, to := sh.Replicas[at].Name, sh.Replicas[(at+1)%len(sh.Replicas)].Name
		for deadline := time.Now().Add(10 * time.Second); ; <-time.After(20 * time.Millisecond) {
			err := ns[i%len(ns)].Cluster().MoveReplica(t.Context(), sh.Shard, from, to)
			if err != nil && errors.Is(err, dunlin.ErrUnavailable) && time.Now().Before(deadline) {
				continue
			}
			if err != nil {
				t.Errorf("shard %d from %s to %s: %v", sh.Shard, from, to, err)
			}
			break
		}
	}
}
