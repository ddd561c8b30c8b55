// Package placement joins the node's actor system with those of the others: protoactor's cluster on top of our gossip and
// our sharding, and calls between nodes over protoactor's remote.
//
//	Call, Go ──▶ peer: window ──frame──▶ remote's writer ──gate: SendMsg──▶ gRPC, mTLS ──gate: RecvMsg──▶ calls ──▶ Serve
//	    ◀─────── peer ◀── calls ◀── gate: RecvMsg ◀── gRPC, mTLS ◀── gate: SendMsg ◀── remote's writer ◀── frame ──────┘
//
// A device's address is the same on every node and is resolved on the spot (Lookup): what a node does not own the router
// forwards, as a call. So nothing but frames of one type, to one address, ever crosses protoactor's remote, and the gate
// lets nothing else through: without it any member could stop any actor of any other, or kill its process.
//
// Invariants:
//   - Call, Go and their answers never wait for a peer: whatever is handed to protoactor, whose queues know no bounds, has
//     a place in a window first, by count and bytes. A full window is ErrOverloaded.
//   - A call ends once: with its answer, its deadline, or at once when the connection to its peer is lost.
//   - A frame is taken only from the node that its sender's certificate names.
//
// Part of the runtime; no compatibility promise before v1.
package placement

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/dunlin-iot/dunlin"
)

// Config says what a Remote joins. System, Server, Client, PeerOf, Self, Members and Serve must be given.
type Config struct {
	System    *actor.ActorSystem // the node's. Start must come before it is busy: remote sets its address without a lock
	Bind      string             // host:port to listen on; port 0: any
	Advertise string             // host or host:port at which others reach it; "": as bound, which must not be 0.0.0.0 then
	Self      dunlin.NodeID
	Cluster   string // the cluster's id

	Server, Client *tls.Config // both ends show and check certificates
	// PeerOf tells which node a checked certificate is of: keys.PeerOf.
	PeerOf func(tls.ConnectionState) (dunlin.NodeID, string, error)

	Members func() []dunlin.Member             // as gossip and the meta shard know them; must not block
	AddrOf  func(dunlin.NodeID) (string, bool) // where a node takes calls; must not block; nil: from Members

	// Serve answers a call, in a goroutine of its own. body is its to keep. Its error's dunlin.Err* reaches the caller.
	Serve func(ctx context.Context, from dunlin.NodeID, method string, body []byte) ([]byte, error)

	WindowMax      int           // calls to one node on their way; 0: 512
	WindowBytesMax int64         // their bytes; 0: 16 MiB
	BodyBytesMax   int           // of one call or answer; 0: 4 MiB
	ServeMax       int           // calls of one node that Serve works on at once; 0: 256
	CallTimeout    time.Duration // of a Go, and of a Call whose context has no deadline; 0: 10 s

	// Again says that a response to a cluster.Request means "not here, ask again": it is asked once more. nil: never.
	Again func(response any) bool
	// Repeatable says that a message may be sent twice: then a Request that got no answer in half its time is sent again.
	Repeatable func(message any) bool

	Log     *slog.Logger          // nil: none
	Metrics prometheus.Registerer // nil: none

	now func() time.Duration // since some moment; nil: since Start
}

// Bounds of what has none in Config.
const (
	methodBytesMax = 255
	addrBytesMax   = 260
	timeoutMax     = 5 * time.Minute
	retryMin       = 100 * time.Millisecond // between two attempts to connect
	retryMax       = 2 * time.Second
	connectMax     = 3 * time.Second // for TCP, TLS and remote's greeting
	streamsMax     = 8               // that one node has open to this one
	batchFrames    = 64              // that remote's writer takes at a time
	batchBytes     = 1 << 20         // after which a batch is sent in more than one message
	pushEvery      = 2 * time.Second // the members to protoactor
	tickEvery      = 100 * time.Millisecond
)

func (c *Config) complete() error {
	if c.System == nil || c.Server == nil || c.Client == nil || c.PeerOf == nil || c.Self == 0 || c.Members == nil || c.Serve == nil {
		return fmt.Errorf("%w: placement needs System, Server, Client, PeerOf, Self, Members and Serve", dunlin.ErrInvalid)
	}
	if c.WindowMax <= 0 {
		c.WindowMax = 512
	}
	if c.WindowBytesMax <= 0 {
		c.WindowBytesMax = 16 << 20
	}
	if c.BodyBytesMax <= 0 {
		c.BodyBytesMax = 4 << 20
	}
	if c.ServeMax <= 0 {
		c.ServeMax = 256
	}
	if c.CallTimeout <= 0 {
		c.CallTimeout = 10 * time.Second
	}
	c.CallTimeout = min(c.CallTimeout, timeoutMax)
	if c.WindowBytesMax < int64(c.BodyBytesMax)+frameOverhead {
		return fmt.Errorf("%w: a window of %d bytes has no room for a body of %d", dunlin.ErrInvalid, c.WindowBytesMax, c.BodyBytesMax)
	}
	if c.Again == nil {
		c.Again = func(any) bool { return false }
	}
	if c.Repeatable == nil {
		c.Repeatable = func(any) bool { return false }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.now == nil {
		start := time.Now()
		c.now = func() time.Duration { return time.Since(start) }
	}
	return nil
}
