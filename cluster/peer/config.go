package peer

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/prometheus/client_golang/prometheus"
)

// BodyBytesMax bounds a call's body and its answer.
const BodyBytesMax = 8 << 20

// Config says who a node is, whom it meets and within which bounds. Server, Client, Resolve and OnMessages must be given.
type Config struct {
	Self   Hello       // Cluster "": this node has not joined yet; see SetCluster. WireMin and WireMax default to the build's
	Server *tls.Config // both sides show certificates, TLS 1.3; NextProtos are set here
	Client *tls.Config
	// PeerOf reads the node that the other side's certificate names; 0: it names none, and its Hello decides. nil: no
	// certificate does.
	PeerOf func(tls.ConnectionState) (node dunlin.NodeID, name string, err error)

	Addr string // to listen on, host:port; default 127.0.0.1:0
	// Resolve says where a node listens. It must not block: it is asked ten times a second while a node can't be reached.
	Resolve func(dunlin.NodeID) (addr string, ok bool)

	// OnMessages takes a Raft message from another node. It must not block, and data is only its own until it returns.
	OnMessages func(from dunlin.NodeID, shard dunlin.ShardID, data []byte)
	// Serve answers another node's call, in a goroutine of its own. ctx ends with the caller's deadline, with its
	// connection, or when it loses interest. body is Serve's own. nil: every call is answered with ErrNotFound.
	// In a call through CallAddr from may be any node with a good certificate, and need not be a member.
	Serve func(ctx context.Context, from dunlin.NodeID, method string, body []byte) ([]byte, error)
	// OnLink tells that a node became reachable or ceased to be. It must not block; two calls may overtake each other, Peers
	// knows what is. nil: nobody cares.
	OnLink func(node dunlin.NodeID, up bool)
	// OnRefused tells that another node will not talk to this one, and why: *Refusal. It must not block. nil: it's logged.
	OnRefused func(node dunlin.NodeID, err error)

	MessageBytesMax int // of one Raft message; default 12 MiB, at most 15 MiB
	QueueBytesMax   int // Raft messages waiting for one node; default 16 MiB
	CallsMax        int // calls from one node under way at a time; default 64
	CallsOutMax     int // calls to one node under way at a time; default 1024
	BulkBytesMax    int // bodies being received from one node; default 32 MiB, at least BodyBytesMax
	WindowBytes     int // bodies on their way from one node that were asked for; default 1 MiB, at least 64 KiB
	HandshakesMax   int // incoming connections that have not said who they are; default 128

	DialTimeout time.Duration // to a connection that both sides agreed on; default 5s
	DeadAfter   time.Duration // without a byte, a node counts as gone; default 1s
	RetryMin    time.Duration // first pause between two attempts to connect; default 20ms
	RetryMax    time.Duration // longest; default 1s

	Logger  *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: none

	now func() time.Duration // monotonic
}

func (c *Config) setDefaults() {
	if c.Self.WireMin == 0 && c.Self.WireMax == 0 {
		c.Self.WireMin, c.Self.WireMax = WireMin, WireMax
	}
	if c.Addr == "" {
		c.Addr = "127.0.0.1:0"
	}
	for _, d := range []struct {
		p *int
		v int
	}{
		{&c.MessageBytesMax, 12 << 20}, {&c.QueueBytesMax, 16 << 20}, {&c.CallsMax, 64}, {&c.CallsOutMax, 1024},
		{&c.BulkBytesMax, 32 << 20}, {&c.WindowBytes, 1 << 20}, {&c.HandshakesMax, 128},
	} {
		if *d.p == 0 {
			*d.p = d.v
		}
	}
	for _, d := range []struct {
		p *time.Duration
		v time.Duration
	}{
		{&c.DialTimeout, 5 * time.Second}, {&c.DeadAfter, time.Second},
		{&c.RetryMin, 20 * time.Millisecond}, {&c.RetryMax, time.Second},
	} {
		if *d.p == 0 {
			*d.p = d.v
		}
	}
	if c.PeerOf == nil {
		c.PeerOf = func(tls.ConnectionState) (dunlin.NodeID, string, error) { return 0, "", nil }
	}
	if c.Serve == nil {
		c.Serve = func(_ context.Context, _ dunlin.NodeID, method string, _ []byte) ([]byte, error) {
			return nil, fmt.Errorf("%w: method %q", dunlin.ErrNotFound, method)
		}
	}
	if c.OnLink == nil {
		c.OnLink = func(dunlin.NodeID, bool) {}
	}
	if c.OnRefused == nil {
		c.OnRefused = func(dunlin.NodeID, error) {}
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.now == nil {
		start := time.Now()
		c.now = func() time.Duration { return time.Since(start) }
	}
}

func (c *Config) validate() error {
	s := &c.Self
	switch {
	case c.Server == nil || c.Client == nil || c.Resolve == nil || c.OnMessages == nil:
		return fmt.Errorf("%w: links need certificates, addresses and somebody to give messages to", dunlin.ErrInvalid)
	case s.Node == 0 || s.Name == "" || len(s.Name) > textMax || len(s.Cluster) > textMax || len(s.Version) > textMax:
		return fmt.Errorf("%w: links of node %s, name %q, cluster %q, version %q", dunlin.ErrInvalid, s.Node, s.Name, s.Cluster, s.Version)
	case s.WireMin < 1 || s.WireMin > s.WireMax || s.WireMin > WireMax || s.WireMax > WireMax:
		return fmt.Errorf("%w: wire versions %d to %d, this build speaks %d to %d", dunlin.ErrInvalid, s.WireMin, s.WireMax, WireMin, WireMax)
	case c.MessageBytesMax < 1 || c.MessageBytesMax > 15<<20 || c.QueueBytesMax < 1:
		return fmt.Errorf("%w: messages of %d bytes in queues of %d", dunlin.ErrInvalid, c.MessageBytesMax, c.QueueBytesMax)
	case c.CallsMax < 1 || c.CallsOutMax < 1 || c.BulkBytesMax < BodyBytesMax || c.WindowBytes < chunkMax || c.HandshakesMax < 1:
		return fmt.Errorf("%w: bounds of calls: %d in, %d out, bodies %d, window %d, handshakes %d", dunlin.ErrInvalid,
			c.CallsMax, c.CallsOutMax, c.BulkBytesMax, c.WindowBytes, c.HandshakesMax)
	case c.DialTimeout < time.Millisecond || c.DeadAfter < 10*time.Millisecond || c.RetryMin < time.Millisecond || c.RetryMax < c.RetryMin:
		return fmt.Errorf("%w: times of links: dial %s, dead after %s, retry %s to %s", dunlin.ErrInvalid,
			c.DialTimeout, c.DeadAfter, c.RetryMin, c.RetryMax)
	}
	return nil
}
