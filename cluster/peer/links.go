package peer

import (
	"context"
	"net"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// Message is a Raft message for another node's replica of a shard.
type Message struct {
	To    uint64 // node
	Shard dunlin.ShardID
	Data  []byte
}

// PeerStatus is what a link knows about another node.
type PeerStatus struct {
	Node      dunlin.NodeID
	Name      string // as its Hello said; "" before the first
	Addr      string // of the connection, or what is being dialled
	Connected bool
	Since     time.Duration // how long it has been connected, or not
	RTT       time.Duration // smoothed; 0: not known
	Queue     int           // bytes of Raft messages waiting
	Dropped   uint64        // Raft messages lost here because the queue was full or nobody was connected
	Wire      uint32        // version agreed on; 0: none
	Version   string        // of its binary
	Problem   string        // why it is not connected; "" if it is
}

// Links are a node's connections to the others.
type Links struct{ cfg Config }

// Open listens. Nothing else happens before Run.
func Open(cfg Config) (*Links, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	return &Links{cfg: cfg}, nil
}

// Run serves and dials until ctx ends, and returns once all it started has ended. It may be called once.
func (l *Links) Run(ctx context.Context) error { <-ctx.Done(); return nil }

// Close frees the address if Run was never called.
func (l *Links) Close() error { return nil }

// Addr is where it listens.
func (l *Links) Addr() net.Addr { return nil }

// SetCluster sets the cluster's id once this node has joined it: from then on it links with its members.
func (l *Links) SetCluster(id string) {}

// Send sends Raft messages. It never blocks: what does not fit a node's queue, or finds no connection, is lost. The batch
// and its data are the link's from now on.
func (l *Links) Send(batch []Message) {}

// Send is Links.Send for messages of another package's type with the same fields.
func Send[M ~struct {
	To    uint64
	Shard dunlin.ShardID
	Data  []byte
}](l *Links, batch []M) {
}

// Call asks another node and waits for its answer. body and answer are at most BodyBytesMax. The error is one of dunlin's
// if the other side's was, with its text; ErrUnavailable if the node can't be reached or is lost meanwhile, in which case
// it may or may not have served the call; ErrOverloaded if too many calls are under way.
func (l *Links) Call(ctx context.Context, to dunlin.NodeID, method string, body []byte) ([]byte, error) {
	return nil, dunlin.ErrUnavailable
}

// CallAddr asks whoever listens at an address, over a connection of its own: before one has joined, or knows anybody.
func (l *Links) CallAddr(ctx context.Context, addr, method string, body []byte) ([]byte, Hello, error) {
	return nil, Hello{}, dunlin.ErrUnavailable
}

// Peers lists the nodes that there is or was a link to, by id.
func (l *Links) Peers() []PeerStatus { return nil }

// Kick dials a node now instead of waiting for the next attempt.
func (l *Links) Kick(node dunlin.NodeID) {}

// Forget ends the link to a node that has left, and refuses it from now on.
func (l *Links) Forget(node dunlin.NodeID) {}
