package cli

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin/runtime/config"
	"github.com/dunlin-iot/dunlin/runtime/node"
	"github.com/dunlin-iot/dunlin/runtime/observe"
)

// Bounds of a cluster in one process.
const (
	nodesMax   = 9
	gatherMax  = 30 * time.Second
	clusterAt  = 7946
	clusterGap = 3 // ports of a node: gossip, links, calls
)

// nodes are a cluster in one process; the first one has the addresses that were asked for.
type nodes []*node.Node

// start starts the nodes on free ports, all at once: one that was a member before waits for the others. moved lists the
// ports of the first that were taken.
func (f *devFlags) start(ctx context.Context, env Env, data string) (ns nodes, moved []string, err error) {
	cfg, moved, err := f.config()
	if err != nil {
		return nil, nil, err
	}
	cfgs := []config.Config{cfg}
	if f.nodes > 1 {
		if cfgs, err = f.siblings(cfg, data); err != nil {
			return nil, nil, err
		}
	}
	cfgs[0].Data = data
	ns = make(nodes, len(cfgs))
	errs := make([]error, len(cfgs))
	var wg sync.WaitGroup
	for i := range cfgs {
		obs, err := observe.Setup(env.Stderr, cfgs[i].LogLevel, cfgs[i].LogFormat)
		if err != nil {
			return nil, nil, err
		}
		if f.nodes > 1 {
			obs.Log = obs.Log.With("node", cfgs[i].Name)
		}
		wg.Go(func() { ns[i], errs[i] = node.Start(ctx, cfgs[i], obs) })
	}
	wg.Wait()
	if err := errors.Join(errs...); err != nil {
		return nil, nil, errors.Join(err, ns.Close())
	}
	return ns, moved, nil
}

// siblings makes the settings of all nodes of the cluster out of the first one's.
func (f *devFlags) siblings(first config.Config, data string) ([]config.Config, error) {
	key, err := node.ClusterKey(config.Config{Data: data})
	if err != nil { // a new folder
		key = node.NewClusterKey()
	}
	cfgs := make([]config.Config, f.nodes)
	port := clusterAt
	for i := range cfgs {
		c := first
		c.Name, c.Zone, c.ClusterKey = fmt.Sprintf("node-%d", i+1), "", key
		if c.Cluster, port, err = freeTrio(port); err != nil {
			return nil, err
		}
		if i > 0 {
			c.Data = filepath.Join(data, c.Name)
			c.HTTP, c.MQTT, c.CoAP, c.Admin = "127.0.0.1:0", "127.0.0.1:0", "127.0.0.1:0", ""
			c.Join = []string{cfgs[0].Cluster}
		}
		cfgs[i] = c
	}
	return cfgs, nil
}

// freeTrio finds three ports in a row that nobody listens on, for gossip, links and calls of a node; next is where to look on.
func freeTrio(from int) (addr string, next int, err error) {
	for port := from; port < from+portsTried; port += clusterGap {
		at := func(off int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port+off)) }
		err = probe("udp", at(0))
		for off := 0; off < clusterGap && err == nil; off++ {
			err = probe("tcp", at(off))
		}
		if err == nil {
			return at(0), port + clusterGap, nil
		}
	}
	return "", 0, fmt.Errorf("no three free ports in a row from %d on: %w", from, err)
}

// gather waits until every shard has a replica on as many nodes as it shall have, and says so if that takes a while.
func (f *devFlags) gather(ctx context.Context, ns nodes, env Env) error {
	if len(ns) == 1 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, gatherMax)
	defer cancel()
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for i := 1; ; i++ {
		st, err := ns[0].Cluster().ClusterStatus(ctx)
		if err == nil && st.Healthy && st.Alive == len(ns) {
			return nil
		}
		if err == nil && i%20 == 0 {
			fmt.Fprintf(env.Stderr, "%d of %d nodes, %d of %d shards have all their replicas\n", st.Alive, len(ns), st.Full, st.Shards)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("the nodes did not become a cluster within %v: %w", gatherMax, errors.Join(err, context.Cause(ctx)))
		}
	}
}

// Close ends all nodes, the first one last.
func (ns nodes) Close() error {
	errs := make([]error, len(ns))
	for i := len(ns) - 1; i >= 0; i-- {
		if ns[i] != nil {
			errs[i] = ns[i].Close()
		}
	}
	return errors.Join(errs...)
}

// failed is closed when a node can't go on.
func (ns nodes) failed(ctx context.Context) <-chan struct{} {
	if len(ns) == 1 {
		return ns[0].Failed()
	}
	out := make(chan struct{})
	var once sync.Once
	for _, n := range ns {
		go func() {
			select {
			case <-n.Failed():
				once.Do(func() { close(out) })
			case <-ctx.Done():
			}
		}()
	}
	return out
}

// addrs lists where the nodes are, if there are several.
func (ns nodes) addrs() (as []node.Addrs) {
	if len(ns) == 1 {
		return nil
	}
	for _, n := range ns {
		as = append(as, n.Addrs())
	}
	return as
}

// describe prints where the other nodes are.
func (ns nodes) describe(out *lines) {
	for i, n := range ns[1:] {
		a := n.Addrs()
		out.printf("  node-%d  http://%s  mqtt://%s  coap://%s\n", i+2, a.HTTP, a.MQTT, a.CoAP)
	}
}
