package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/keys"
	"github.com/dunlin-iot/dunlin/sdk/client"
)

// shards is how many a cluster has: the default.
const shards = 64

// nodes are the measured processes, which keep their data under one folder.
type nodes struct {
	o      options
	dir    string
	secret string
	all    []*process
	gossip []string // where each is reached by the others, if there are several
	api    *client.Client
}

// startFloor runs this very binary as the floor.
func startFloor(ctx context.Context, o options) (*nodes, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ns, err := newNodes(o)
	if err != nil {
		return nil, err
	}
	return ns, ns.launch(ctx, &process{name: "floor", args: []string{self, "floor", "-dir", filepath.Join(ns.dir, "db")}})
}

func newNodes(o options) (*nodes, error) {
	dir, err := os.MkdirTemp("", "dunlin-bench-")
	return &nodes{o: o, dir: dir, secret: keys.NewSecret().String()}, err
}

// launch starts a process that stop will end.
func (ns *nodes) launch(ctx context.Context, p *process) error {
	if err := p.start(ctx); err != nil {
		ns.stop()
		return err
	}
	ns.all = append(ns.all, p)
	return nil
}

// startNodes starts n nodes, a cluster if there are several, with a domain for unknown devices, and returns when all shards
// have all their replicas.
func startNodes(ctx context.Context, o options, n int) (*nodes, error) {
	ns, err := newNodes(o)
	if err != nil {
		return nil, err
	}
	for range n {
		if err := ns.add(ctx, n > 1); err != nil {
			return nil, err
		}
	}
	if ns.api, err = client.New(ns.all[0].HTTP, client.Options{}); err == nil {
		if err = ns.domain(ctx); err == nil && n > 1 {
			err = ns.settled(ctx, n)
		}
	}
	if err != nil {
		ns.stop()
		return nil, err
	}
	return ns, nil
}

// add starts one more node.
func (ns *nodes) add(ctx context.Context, others bool) error {
	p := &process{name: fmt.Sprintf("node-%d", len(ns.all)+1)}
	p.args = []string{ns.o.dunlin, "server", "-o", "json", "--data", filepath.Join(ns.dir, p.name), "--log-level", ns.o.logs, "--default-domain", "bench",
		"--http", "127.0.0.1:0", "--mqtt", "127.0.0.1:0", "--coap", "127.0.0.1:0", "--admin", "127.0.0.1:0"}
	if others {
		at, err := freeTrio()
		if err != nil {
			return err
		}
		p.env = []string{"DUNLIN_CLUSTER_KEY=" + ns.secret}
		p.args = append(p.args, "--cluster", at, "--name", p.name)
		if len(ns.gossip) > 0 {
			p.args = append(p.args, "--join", ns.gossip[0])
		}
		ns.gossip = append(ns.gossip, at)
	}
	return ns.launch(ctx, p)
}

// again starts a node that was killed, at the addresses that it had.
func (ns *nodes) again(ctx context.Context, p *process) error {
	for flag, at := range map[string]string{"--http": p.HTTP, "--mqtt": p.MQTT, "--coap": p.CoAP, "--admin": p.Admin} {
		for i := range p.args {
			if p.args[i] == flag {
				p.args[i+1] = at
			}
		}
	}
	return p.start(ctx)
}

// freeTrio finds three ports in a row that nobody listens on: a node needs them for gossip, replication and calls.
func freeTrio() (string, error) {
	for range 100 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return "", err
		}
		port := ln.Addr().(*net.TCPAddr).Port
		free := port+2 < 65536
		for off := 1; off <= 2 && free; off++ {
			next, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port+off)))
			if free = err == nil; free {
				next.Close()
			}
		}
		ln.Close()
		if free {
			return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), nil
		}
	}
	return "", fmt.Errorf("no three free ports in a row")
}

// domain makes the domain of unknown devices, with the module in its pipeline if there is one.
func (ns *nodes) domain(ctx context.Context) error {
	d := dunlin.Domain{ID: "bench", Owner: "bench", UnknownDevices: dunlin.UnknownRegister}
	if ns.o.plugin != "" {
		module, err := os.ReadFile(ns.o.plugin)
		if err != nil {
			return err
		}
		if _, err := ns.api.PushPlugin(ctx, "cold-chain", module, dunlin.AnyRevision); err != nil {
			return fmt.Errorf("plugin: %w", err)
		}
		d.Pipeline = []dunlin.PluginUse{{Plugin: "cold-chain", Config: json.RawMessage(`{"max":8,"clear_below":7,"silent_minutes":15,"door_open_minutes":3}`)}}
	}
	if _, err := ns.api.PutDomain(ctx, d, 0); err != nil {
		return fmt.Errorf("domain: %w", err)
	}
	return nil
}

// settled waits until n nodes have all replicas and share the shards evenly.
func (ns *nodes) settled(ctx context.Context, n int) error {
	return until(ctx, 2*time.Minute, 200*time.Millisecond, "even cluster", func() bool {
		st, err := ns.api.ClusterStatus(ctx)
		if err != nil || !st.Healthy || st.Alive != n || len(st.Moves) > 0 {
			return false
		}
		members, err := ns.api.Members(ctx)
		if err != nil || len(members) != n {
			return false
		}
		for _, m := range members {
			if m.Leads < shards/n-3 || m.Leads > shards/n+4 {
				return false
			}
		}
		return true
	})
}

// stop ends all nodes in order and removes their data.
func (ns *nodes) stop() {
	if ns.api != nil {
		ns.api.Close()
	}
	for i := len(ns.all) - 1; i >= 0; i-- {
		ns.all[i].stop()
	}
	os.RemoveAll(ns.dir)
}

func (ns *nodes) cpu() (sum float64) {
	for _, p := range ns.all {
		sum += p.cpu()
	}
	return sum
}

func (ns *nodes) rss() (sum int64) {
	for _, p := range ns.all {
		sum += p.rss()
	}
	return sum
}

// median returns the middle of what get says of each.
func median[T any](all []T, get func(*T) float64) float64 {
	v := make([]float64, len(all))
	for i := range all {
		v[i] = get(&all[i])
	}
	return quantile(v, 0.5)
}
