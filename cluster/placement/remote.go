package placement

import (
	"context"
	"fmt"

	protocluster "github.com/asynkron/protoactor-go/cluster"

	"github.com/dunlin-iot/dunlin"
)

// Remote is this node's end of the calls between nodes.
type Remote struct{}

var errClosed = fmt.Errorf("%w: this node's calls are closing", dunlin.ErrUnavailable)

// Start listens and joins the system to protoactor's cluster.
func Start(cfg Config) (*Remote, error) { return nil, errClosed }

// Addr returns host:port at which others reach this node.
func (r *Remote) Addr() string { return "" }

// Cluster returns protoactor's cluster: its Request reaches every device as ("<tenant>/<device>", "dev").
func (r *Remote) Cluster() *protocluster.Cluster { return nil }

// Call asks another node and waits for its answer, at most until ctx ends.
func (r *Remote) Call(ctx context.Context, to dunlin.NodeID, method string, body []byte) ([]byte, error) {
	return nil, errClosed
}

// Go asks another node without waiting. It never blocks; done is called exactly once, perhaps before Go returns, and must
// not block either. Body must not change before that.
func (r *Remote) Go(to dunlin.NodeID, method string, body []byte, done func([]byte, error)) {
	done(nil, errClosed)
}

// Poke tells that Members may say something else now. It never blocks.
func (r *Remote) Poke() {}

// PeerStatus is how calls to another node go.
type PeerStatus struct {
	Node     dunlin.NodeID
	Addr     string
	Up       bool
	Error    string // why it is not up
	Calls    int    // on their way
	Bytes    int64  // of them
	Retry    int64  // connection attempts that failed since it was last up
	Serving  int    // of its calls, here
	SinceRaw dunlin.Time
}

// Peers lists the nodes that this one has called or was called by.
func (r *Remote) Peers() []PeerStatus { return nil }

// Close refuses new calls, waits until ctx ends for those that it serves, and takes the node off the network.
func (r *Remote) Close(ctx context.Context) error { return nil }
