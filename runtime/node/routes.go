package node

import (
	"cmp"
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors"
	"github.com/dunlin-iot/dunlin/actors/router"
	"github.com/dunlin-iot/dunlin/actors/sessions"
	"github.com/dunlin-iot/dunlin/actors/stream"
	"github.com/dunlin-iot/dunlin/cluster"
	"github.com/dunlin-iot/dunlin/cluster/keys"
	"github.com/dunlin-iot/dunlin/cluster/placement"
)

// openRoutes opens what stands between the doors and the shards, wherever these are owned: the router for uplinks and
// questions, the feed for what is committed, and the sessions of MQTT clients.
func (n *Node) openRoutes(context.Context) error {
	var err error
	n.modules, err = router.NewModules(router.ModulesConfig{Self: n.identity.NodeID, Log: n.obs.Log, Metrics: n.obs.Metrics},
		router.ModulesDeps{Blobs: n.blobs, Owners: n.cluster, Caller: (*caller)(n), Install: n.installUsed})
	if err != nil {
		return err
	}
	n.router, err = router.New(router.Config{Self: n.identity.NodeID, Shards: n.cfg.Shards, ShardOf: n.shardOf, Log: n.obs.Log, Metrics: n.obs.Metrics},
		router.Deps{Local: n.directory, State: n.db.State(), Registry: n.registry, Plugins: n.registry, Owners: n.cluster, Reads: n.cluster, Caller: (*caller)(n),
			Modules: n.modules, MergeAlerts: n.db.State().MergeAlerts})
	if err != nil {
		return err
	}
	n.directory.Attach(n.router)
	n.registry.AttachFleet(n.router)
	n.feed, err = stream.New(stream.Config{Self: n.identity.NodeID, Shards: n.cfg.Shards, ShardOf: n.shardOf, Log: n.obs.Log, Metrics: n.obs.Metrics},
		stream.Deps{Local: n.db.Journal(), Replicas: n.cluster, Caller: (*caller)(n)})
	if err != nil {
		return err
	}
	n.sessions, err = sessions.New(sessions.Config{Self: n.identity.NodeID, Shards: n.cfg.Shards, ShardOf: n.shardOf, Log: n.obs.Log, Metrics: n.obs.Metrics},
		sessions.Deps{Updates: n.directory, Rows: n.db.State(), Peers: peers{n.cluster, (*caller)(n)}})
	if err != nil {
		return err
	}
	for _, f := range []func(context.Context) error{n.router.Run, n.modules.Run, n.feed.Run, n.sessions.Run, n.judge} {
		n.middle.run(n, f)
	}
	return n.openReplay()
}

// openRemote lets other nodes ask this one.
func (n *Node) openRemote(context.Context) error {
	defer n.wired.Store(true)
	if n.network == nil {
		return nil
	}
	server, client, err := n.keys.TLS(n.identity.NodeID, n.identity.Node, n.identity.Cluster, "h2")
	if err != nil {
		return fmt.Errorf("cluster key: %w", err)
	}
	bind, err := offset(n.cfg.Cluster, 2)
	if err != nil {
		return err
	}
	host, _, err := net.SplitHostPort(n.network.Addr())
	if err != nil {
		return fmt.Errorf("cluster address: %w", err)
	}
	_, port, err := net.SplitHostPort(bind)
	if err != nil {
		return fmt.Errorf("cluster address: %w", err)
	}
	advertise := ""
	if port != "0" {
		advertise = net.JoinHostPort(host, port)
	}
	n.remote, err = placement.Start(placement.Config{System: n.directory.System(), Bind: bind, Advertise: advertise,
		Self: n.identity.NodeID, Cluster: n.identity.Cluster, Server: server, Client: client, PeerOf: keys.PeerOf,
		Members: n.cluster.MembersSeen, Serve: n.serve, Again: actors.NotHere, Repeatable: actors.IsQuestion, Log: n.obs.Log, Metrics: n.obs.Metrics})
	if err != nil {
		return fmt.Errorf("calls between nodes: %w", err)
	}
	return n.network.SetServices(n.remote.Addr(), n.announced(n.cfg.HTTP))
}

// offset is addr with another port: gossip, links and calls stand next to each other.
func offset(addr string, by int) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("%w: cluster address %q is not host:port", dunlin.ErrInvalid, addr)
	}
	p, err := strconv.Atoi(port)
	if err != nil || p < 0 || p+by > 65535 {
		return "", fmt.Errorf("%w: cluster address %q: the port is not between 0 and %d", dunlin.ErrInvalid, addr, 65535-by)
	}
	if p == 0 {
		by = 0
	}
	return net.JoinHostPort(cmp.Or(host, "0.0.0.0"), strconv.Itoa(p+by)), nil
}

// serve answers what other nodes ask: the method's first word says who is meant.
func (n *Node) serve(ctx context.Context, from dunlin.NodeID, method string, body []byte) ([]byte, error) {
	word, _, _ := strings.Cut(method, "/")
	switch word {
	case "feed":
		return n.feed.Serve(ctx, from, method, body)
	case "sess":
		return n.sessions.Serve(ctx, from, method, body)
	case "replay":
		return n.replay.Serve(ctx, from, method, body)
	case "trial":
		return n.serveTrial(method, body)
	}
	return n.router.Serve(ctx, from, method, body)
}

// moved tells those who have to know that shards, owners or members have changed.
func (n *Node) moved() {
	if !n.wired.Load() {
		return
	}
	n.router.Changed()
	n.feed.Poke()
	if n.remote != nil {
		n.remote.Poke()
	}
}

// applied is told each entry that had an effect.
func (n *Node) applied(sh dunlin.ShardID, index uint64, e *dunlin.Entry) {
	n.registry.OnApplied(sh, index, e)
	n.modules.OnApplied(sh, index, e)
}

// installed is told that a shard came as a snapshot, not entry by entry.
func (n *Node) installed(sh dunlin.ShardID) {
	if sh == dunlin.MetaShard {
		if err := n.registry.Reload(); err != nil {
			n.fatal(err)
			return
		}
		n.modules.Want(n.registry.Modules()...)
	}
}

// caller asks other nodes, once there is a way to them.
type caller Node

var errAlone = fmt.Errorf("%w: this node has no way to others", dunlin.ErrUnavailable)

// Call asks a node and waits for its answer.
func (c *caller) Call(ctx context.Context, to dunlin.NodeID, method string, body []byte) ([]byte, error) {
	if !c.wired.Load() || c.remote == nil {
		return nil, errAlone
	}
	return c.remote.Call(ctx, to, method, body)
}

// Go asks a node without waiting.
func (c *caller) Go(to dunlin.NodeID, method string, body []byte, done func([]byte, error)) {
	if !c.wired.Load() || c.remote == nil {
		done(nil, errAlone)
		return
	}
	c.remote.Go(to, method, body, done)
}

// peers is the cluster as sessions see it.
type peers struct {
	*cluster.Cluster
	*caller
}
