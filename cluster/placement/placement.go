// Package placement joins the node's actor system with those of the others: protoactor's cluster on top of our gossip and
// our sharding, and calls between nodes over protoactor's remote.
//
// Part of the runtime; no compatibility promise before v1.
package placement

import (
	"context"
	"crypto/tls"
	"log/slog"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/dunlin-iot/dunlin"
)

// Config says what a Remote joins. System, Server, Client, PeerOf, Self, Members and Serve must be given.
type Config struct {
	System    *actor.ActorSystem // the node's; Start must come before it owns shards
	Bind      string             // host:port to listen on; port 0: any
	Advertise string             // host:port at which others reach it; "": as bound
	Self      dunlin.NodeID
	Cluster   string // the cluster's id

	Server, Client *tls.Config // both ends show and check certificates
	PeerOf         func(tls.ConnectionState) (dunlin.NodeID, string, error)

	Members func() []dunlin.Member             // as gossip and the meta shard know them; must not block
	AddrOf  func(dunlin.NodeID) (string, bool) // where a node takes calls; nil: from Members

	// Serve answers a call, in a goroutine of its own. body is its to keep. Its error's dunlin.Err* reaches the caller.
	Serve func(ctx context.Context, from dunlin.NodeID, method string, body []byte) ([]byte, error)
	// Take, if given, is offered each call first, one after the other in the order in which the node sent them; it must not
	// block. If it returns true it calls reply exactly once, at any time, from any goroutine.
	Take func(from dunlin.NodeID, method string, body []byte, reply func([]byte, error)) bool

	WindowMax      int           // calls to one node on their way; 0: 512
	WindowBytesMax int64         // their bytes; 0: 16 MiB
	BodyBytesMax   int           // of one call or answer; 0: 4 MiB
	ServeMax       int           // calls of one node that Serve works on at once; 0: 256
	CallTimeout    time.Duration // of a Go, and of a Call whose context has no deadline; 0: 10 s

	// Again says that a response to a cluster.Request means "not here, ask again": it is asked once more. nil: never.
	Again func(response any) bool
	// Repeatable says that a message may be sent twice: then a Request that got no answer in half its time is sent again.
	Repeatable func(message any) bool

	Clock   func() dunlin.Time    // nil: the system's
	Log     *slog.Logger          // nil: none
	Metrics prometheus.Registerer // nil: none
}
