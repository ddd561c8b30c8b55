package cluster

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync/atomic"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/gossip"
	"github.com/dunlin-iot/dunlin/cluster/keys"
	"github.com/dunlin-iot/dunlin/cluster/peer"
)

// NewNodeID makes a node's id, with its data folder.
func NewNodeID() dunlin.NodeID {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails, says its documentation
	return dunlin.NodeID(binary.BigEndian.Uint64(b[:])>>1 | 1)
}

// NewClusterID makes a cluster's id, with the cluster.
func NewClusterID() string {
	var b [8]byte
	_, _ = rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// NetworkConfig says how a node reaches the others.
type NetworkConfig struct {
	Name    string // of the node, for people
	Zone    string
	Node    dunlin.NodeID
	Cluster string // its id; "" if the data folder is new and the node is to learn it
	Secret  keys.Secret

	Bind      string   // host:port of gossip; links get the next port. Port 0: any two
	Advertise string   // host that others dial; "": the one of Bind, or a private address of the machine
	Seeds     []string // members to join: see gossip.Join
	Remember  string   // file that keeps where the others gossip; "": none
	Expect    int      // how many new nodes found a cluster together; 0 or 1: this one alone does, unless there are Seeds

	Version  string // of the binary
	EntryMax uint32 // the newest entries it reads

	// LinkChanged is told that another node was lost or found again. It must not block.
	LinkChanged func()
	// Refused is told that this node may not take part any more, and what to do. It must not block.
	Refused func(error)

	Log     *slog.Logger
	Metrics prometheus.Registerer
}

// Founding says which cluster a node belongs to.
type Founding struct {
	Cluster     string `json:"cluster"`
	Shards      int    `json:"shards"`      // 0: the configuration's
	Replication int    `json:"replication"` // likewise
	Bootstrap   bool   `json:"-"`           // this node gives birth to the shards
}

// Network is a node's way to the others: gossip and links. It is up before the store, because a node that joins learns
// here whose data it will keep.
type Network struct {
	cfg    NetworkConfig
	links  *peer.Links
	gossip *gossip.Gossip
	up     atomic.Bool // gossip is set: it tells of changes before Start has returned
	self   gossip.Self

	moved   chan struct{} // size 1: members or hints have changed
	met     chan struct{} // size 1: likewise, for Rejoin
	refused chan error    // size 1
	seen    atomic.Pointer[map[dunlin.NodeID]gossip.Seen]
	cluster atomic.Pointer[Cluster] // nil until Open

	known      []string // addresses that were remembered when the node started
	remembered []byte   // the file as this life wrote it; Rejoin's
}

// Connect starts gossip and listens for links. Run must be called then.
func Connect(cfg NetworkConfig) (_ *Network, err error) {
	n := &Network{cfg: cfg, moved: make(chan struct{}, 1), met: make(chan struct{}, 1), refused: make(chan error, 1)}
	if cfg.Log == nil {
		n.cfg.Log = slog.New(slog.DiscardHandler)
	}
	n.recall()
	server, client, err := cfg.Secret.TLS(cfg.Node, cfg.Name, cfg.Cluster)
	if err != nil {
		return nil, fmt.Errorf("cluster key: %w", err)
	}
	host, port, err := split(cfg.Bind, linksOffset)
	if err != nil {
		return nil, err
	}
	n.links, err = peer.Open(peer.Config{
		Self:   peer.Hello{Cluster: cfg.Cluster, Node: cfg.Node, Name: cfg.Name, Version: cfg.Version},
		Server: server, Client: client, PeerOf: keys.PeerOf, Addr: net.JoinHostPort(host, port),
		Resolve: n.resolve, OnMessages: n.receive, Serve: n.serve, OnLink: n.linked, OnRefused: n.turnedAway,
		Logger: cfg.Log, Metrics: cfg.Metrics,
	})
	if err != nil {
		return nil, fmt.Errorf("links between nodes: %w", err)
	}
	n.self = gossip.Self{Name: cfg.Name, ID: cfg.Node, Cluster: cfg.Cluster, Zone: cfg.Zone, Version: cfg.Version,
		WireMin: peer.WireMin, WireMax: peer.WireMax, EntryMax: cfg.EntryMax}
	n.gossip, err = gossip.Start(gossip.Config{Self: n.self, Bind: cfg.Bind, Advertise: cfg.Advertise, Keys: cfg.Secret.Gossip(),
		OnChange: n.look, OnRefused: n.refuse, Log: cfg.Log, Metrics: cfg.Metrics})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("gossip: %w", err), n.links.Close())
	}
	n.self.Peer = n.reachable(n.links.Addr())
	if err := n.gossip.SetSelf(n.self); err != nil {
		return nil, errors.Join(fmt.Errorf("gossip: %w", err), n.gossip.Close(), n.links.Close())
	}
	n.up.Store(true)
	n.look()
	return n, nil
}

// linksOffset is from the port of gossip to the one of the links. A member's row has the latter.
const linksOffset = 1

// split returns the host of addr, and its port plus off; port 0 stays.
func split(addr string, off int) (host, port string, err error) {
	host, port, err = net.SplitHostPort(addr)
	if err != nil {
		return "", "", fmt.Errorf("%w: cluster address %q is not host:port", dunlin.ErrInvalid, addr)
	}
	p, err := strconv.Atoi(port)
	if err != nil || p < 0 || p+off > 65535 {
		return "", "", fmt.Errorf("%w: cluster address %q: the port is not between 0 and %d", dunlin.ErrInvalid, addr, 65535-off)
	}
	if p != 0 {
		p += off
	}
	return host, strconv.Itoa(p), nil
}

// reachable is a bound address as others dial it: on the host where gossip is reached.
func (n *Network) reachable(bound net.Addr) string {
	host, _, err := net.SplitHostPort(n.gossip.Addr())
	if err != nil {
		return bound.String()
	}
	_, port, err := net.SplitHostPort(bound.String())
	if err != nil {
		return bound.String()
	}
	return net.JoinHostPort(host, port)
}

// Run serves the links until ctx ends.
func (n *Network) Run(ctx context.Context) error { return n.links.Run(ctx) }

// Close leaves without a word, once Run has ended; Leave says goodbye before.
func (n *Network) Close() error { return n.gossip.Close() }

// Leave tells the others that this node goes. It takes at most two seconds.
func (n *Network) Leave(ctx context.Context) error { return n.gossip.Leave(ctx) }

// Addr is where this node gossips, as others reach it.
func (n *Network) Addr() string { return n.gossip.Addr() }

// SetServices tells the others where this node takes calls, and people.
func (n *Network) SetServices(calls, http string) error {
	n.self.Calls, n.self.HTTP = calls, http
	return n.gossip.SetSelf(n.self)
}

// belong makes the node a member of the cluster.
func (n *Network) belong(cluster string) error {
	n.self.Cluster = cluster
	n.links.SetCluster(cluster)
	return n.gossip.SetSelf(n.self)
}

func (n *Network) poke() {
	select {
	case n.moved <- struct{}{}:
	default:
	}
}

// look takes over what gossip sees.
func (n *Network) look() {
	if !n.up.Load() {
		return
	}
	seen := map[dunlin.NodeID]gossip.Seen{}
	for _, s := range n.gossip.Members() {
		if old, ok := seen[s.ID]; !ok || !old.Alive {
			seen[s.ID] = s
		}
	}
	n.seen.Store(&seen)
	n.poke()
	select {
	case n.met <- struct{}{}:
	default:
	}
	if c := n.cluster.Load(); c != nil {
		c.membersMoved()
	}
}

func (n *Network) refuse(err error) {
	select {
	case n.refused <- err:
	default:
	}
	if n.cfg.Refused != nil {
		n.cfg.Refused(err)
	}
}

func (n *Network) linked(dunlin.NodeID, bool) {
	n.poke()
	if n.cfg.LinkChanged != nil {
		n.cfg.LinkChanged()
	}
}

// turnedAway is told that a node will not link with this one. A twin may be a former life that is
// still being mourned, so only what does not change by itself ends the node. The links have logged it.
func (n *Network) turnedAway(_ dunlin.NodeID, err error) {
	var r *peer.Refusal
	if errors.As(err, &r) && r.Theirs && (r.Reason == peer.RefusedForeign || r.Reason == peer.RefusedLeft) {
		n.refuse(err)
	}
}

// Seen returns what gossip sees of a node.
func (n *Network) Seen(id dunlin.NodeID) (gossip.Seen, bool) {
	m := n.seen.Load()
	if m == nil {
		return gossip.Seen{}, false
	}
	s, ok := (*m)[id]
	return s, ok
}

func (n *Network) resolve(id dunlin.NodeID) (string, bool) {
	if s, ok := n.Seen(id); ok && s.Peer != "" {
		return s.Peer, true
	}
	if c := n.cluster.Load(); c != nil {
		return c.peerAddr(id)
	}
	return "", false
}

func (n *Network) receive(_ dunlin.NodeID, sh dunlin.ShardID, data []byte) {
	if c := n.cluster.Load(); c != nil {
		// What can't be taken is lost, which Raft expects of a network; what is malformed was counted by the link's owner.
		_ = c.host.Receive(sh, data)
	}
}

func (n *Network) serve(ctx context.Context, from dunlin.NodeID, method string, body []byte) ([]byte, error) {
	c := n.cluster.Load()
	if c == nil {
		return nil, fmt.Errorf("%w: node %s is starting", dunlin.ErrUnavailable, n.cfg.Name)
	}
	return c.serve(ctx, from, method, body)
}
