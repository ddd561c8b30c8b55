package dunlin

import (
	"context"
	"fmt"
	"strconv"
	"time"
)

// NodeID numbers one life of a node: a node that lost its data folder comes back under the same name with another id,
// because whatever it had promised to Raft is gone with the folder. 0: none.
type NodeID uint64

// String is 16 hex digits, or "none".
func (n NodeID) String() string {
	if n == 0 {
		return "none"
	}
	return fmt.Sprintf("%016x", uint64(n))
}

// MarshalText renders as String does.
func (n NodeID) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText reads what MarshalText wrote.
func (n *NodeID) UnmarshalText(b []byte) error {
	if string(b) == "none" {
		*n = 0
		return nil
	}
	v, err := strconv.ParseUint(string(b), 16, 64)
	if err != nil || len(b) != 16 || v == 0 {
		return fmt.Errorf("%w: node id %q is not 16 hex digits", ErrInvalid, b)
	}
	*n = NodeID(v)
	return nil
}

// MemberState is what the operator and the controller want of a member.
type MemberState string

// The states of a member.
const (
	MemberActive   MemberState = "active"   // has replicas, may own shards
	MemberDraining MemberState = "draining" // its replicas move away; it stays a member
	MemberLeaving  MemberState = "leaving"  // drains, and is forgotten once it is empty
	MemberLeft     MemberState = "left"     // gone for good: its id is refused from now on
)

// Member is a node as the cluster knows it: what the meta shard keeps, and what gossip sees.
type Member struct {
	ID       NodeID      `json:"id"`
	Name     string      `json:"name"`
	Zone     string      `json:"zone,omitempty"`
	State    MemberState `json:"state"`
	Alive    bool        `json:"alive"`                // as the answering node's gossip sees it
	DownFor  Duration    `json:"down_for,omitempty"`   // since it was last alive
	Gossip   string      `json:"gossip"`               // host:port of its gossip
	Peer     string      `json:"peer"`                 // host:port between nodes
	Calls    string      `json:"calls"`                // host:port of the actors' remote
	HTTP     string      `json:"http,omitempty"`       // host:port for people
	Version  string      `json:"version,omitempty"`    // of its binary
	WireMin  uint32      `json:"wire_min"`             // the versions of messages between nodes that it speaks
	WireMax  uint32      `json:"wire_max"`             //
	EntryMax uint32      `json:"entry_max"`            // the newest version of entries that it can read
	Replicas int         `json:"replicas"`             // on it
	Leads    int         `json:"leads"`                // shards that it owns
	DiskFree int64       `json:"disk_free,omitempty"`  // bytes
	DiskUsed int64       `json:"disk_bytes,omitempty"` // of its data folder
}

// ReplicaRole is what a replica is in its shard's Raft group.
type ReplicaRole string

// The roles of a replica.
const (
	RoleVoter    ReplicaRole = "voter"
	RoleLearner  ReplicaRole = "learner"  // receives the log, does not vote
	RoleOutgoing ReplicaRole = "outgoing" // votes until a joint change is over
)

// Replica is one copy of a shard.
type Replica struct {
	Node   NodeID      `json:"node"`
	Name   string      `json:"name"` // of the member
	Role   ReplicaRole `json:"role"`
	Match  uint64      `json:"match"`  // the newest index that its owner knows it to have
	Behind uint64      `json:"behind"` // entries that it lacks
	Active bool        `json:"active"` // its owner heard of it lately
}

// ShardReplicas says where a shard is.
type ShardReplicas struct {
	Shard    ShardID   `json:"shard"`
	Owner    NodeID    `json:"owner"` // 0: nobody, or nobody knows
	Term     uint64    `json:"term"`
	Commit   uint64    `json:"commit"`
	Bytes    int64     `json:"bytes"`
	Replicas []Replica `json:"replicas"`
	Moving   string    `json:"moving,omitempty"` // what the controller is doing with it: "catch-up 83 %", …
	Missing  string    `json:"missing,omitempty"`
}

// OwnReplica is what a node knows of its replica of a shard without asking anybody.
type OwnReplica struct {
	Shard      ShardID `json:"shard"`
	Term       uint64  `json:"term"`
	Owns       uint64  `json:"owns"`        // the term in which this node owns the shard; 0: it does not
	Leader     NodeID  `json:"leader"`      // of the newest term that this node has heard of; 0: unknown
	LeaderTerm uint64  `json:"leader_term"` // that term
	Applied    uint64  `json:"applied"`
	Commit     uint64  `json:"commit"`
}

// NodeReplicas are all replicas of one node.
type NodeReplicas struct {
	Node     NodeID       `json:"node"`
	Name     string       `json:"name"`
	Replicas []OwnReplica `json:"replicas"` // by shard
}

// ShardHash sums up the state of one replica. Replicas that have applied as much have the same hash, but for moments in which
// history comes of its retention's age.
type ShardHash struct {
	Shard   ShardID `json:"shard"`
	Node    NodeID  `json:"node"`
	Name    string  `json:"name"`
	Applied uint64  `json:"applied"` // as of this entry
	Hash    string  `json:"hash"`    // SHA-256 in hex
}

// ClusterStatus is the cluster in one page.
type ClusterStatus struct {
	Cluster     string   `json:"cluster"`
	Node        NodeID   `json:"node"` // which answers
	Name        string   `json:"name"`
	Controller  NodeID   `json:"controller"` // the owner of the meta shard
	Shards      int      `json:"shards"`
	Replication int      `json:"replication"` // replicas a shard shall have
	Owned       int      `json:"owned"`       // shards with an owner
	Full        int      `json:"full"`        // shards with all their replicas on living members
	Members     int      `json:"members"`
	Alive       int      `json:"alive"`
	Moves       []string `json:"moves"` // under way, one line each
	Entries     uint32   `json:"entry_version"`
	Healthy     bool     `json:"healthy"` // every shard has an owner and all its replicas
	Problems    []string `json:"problems"`
}

// ClusterAdmin is what an operator asks of the cluster and tells it. Every node answers. Names are members' names; an id in
// hex will do, too.
type ClusterAdmin interface {
	ClusterStatus(ctx context.Context) (*ClusterStatus, error)
	Members(ctx context.Context) ([]Member, error)
	// ShardReplicas lists all shards in order.
	ShardReplicas(ctx context.Context) ([]ShardReplicas, error)
	// OwnReplicas is about the answering node alone, and nobody else is asked: it tells of a node that is cut off, too.
	OwnReplicas(ctx context.Context) (*NodeReplicas, error)
	// ShardHash has a member sum up its replica of a shard; "" is the one that answers. It reads all of the shard. It fails with
	// ErrNotFound if the member has no replica, or an empty one.
	ShardHash(ctx context.Context, shard ShardID, member string) (*ShardHash, error)
	// SetMember changes a member's state: MemberDraining, MemberActive (a drain taken back) or MemberLeaving. It returns once
	// this is committed; Members and ShardReplicas show the progress. It fails with ErrConflict if the shards could not keep
	// a replica elsewhere.
	SetMember(ctx context.Context, name string, state MemberState) error
	// MoveReplica moves a shard's replica from one member to another; with to already a replica, it makes it the owner.
	MoveReplica(ctx context.Context, shard ShardID, from, to string) error
}

// ReadLevel says how fresh an answer must be.
type ReadLevel struct {
	// Stale 0 (level "leader"): the answer holds everything that was acknowledged before the question was asked. Otherwise a
	// replica may answer that was known to be up to date no longer than this ago.
	Stale time.Duration
}

// String is "leader" or "stale=10s".
func (l ReadLevel) String() string {
	if l.Stale <= 0 {
		return "leader"
	}
	return "stale=" + l.Stale.String()
}

// ParseReadLevel reads "leader", "" (the same) or "stale=10s".
func ParseReadLevel(s string) (ReadLevel, error) {
	if s == "" || s == "leader" {
		return ReadLevel{}, nil
	}
	if len(s) > 6 && s[:6] == "stale=" {
		if d, err := time.ParseDuration(s[6:]); err == nil && d > 0 && d <= 24*time.Hour {
			return ReadLevel{Stale: d}, nil
		}
	}
	return ReadLevel{}, fmt.Errorf("%w: read level %q, want leader or stale=10s", ErrInvalid, s)
}

type readLevelKey struct{}

// WithReadLevel returns a context whose questions to an Inspector or Registrar are answered at the level.
func WithReadLevel(ctx context.Context, l ReadLevel) context.Context {
	return context.WithValue(ctx, readLevelKey{}, l)
}

// ReadLevelOf returns what WithReadLevel said; "leader" if nobody said anything.
func ReadLevelOf(ctx context.Context) ReadLevel {
	l, _ := ctx.Value(readLevelKey{}).(ReadLevel)
	return l
}

// MissingShard is a shard that a question to the fleet got no answer from: the page lacks its devices.
type MissingShard struct {
	Shard  ShardID `json:"shard"`
	Reason string  `json:"reason"`
}

// SnapshotMeta names a snapshot of a shard's state on its way to another node: the state after entry Index.
type SnapshotMeta struct {
	Shard ShardID
	ID    string // of this snapshot, at the node that made it
	From  NodeID // who has it
	Index uint64
	Term  uint64
	Conf  []byte // the shard's replica set as of Index, as Committed.Conf
}
