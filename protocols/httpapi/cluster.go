package httpapi

import (
	"context"
	"fmt"
	"net/http"
	"slices"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dunlin-iot/dunlin"
)

// The operator's view of the cluster, and the three things that they tell it. Every node answers.

type memberView struct {
	ID       dunlin.NodeID      `json:"id" doc:"16 hex digits; another one if the node lost its data folder"`
	Name     string             `json:"name"`
	Zone     string             `json:"zone,omitempty" doc:"Replicas of a shard are spread over zones"`
	State    dunlin.MemberState `json:"state" doc:"What is wanted of it: active, draining or leaving"`
	Alive    bool               `json:"alive" doc:"As the answering node sees it"`
	DownFor  dunlin.Duration    `json:"down_for,omitempty" doc:"Since it was last alive, such as 90s"`
	Gossip   string             `json:"gossip" doc:"host:port of its gossip"`
	Peer     string             `json:"peer" doc:"host:port between nodes"`
	Calls    string             `json:"calls" doc:"host:port between nodes, of the actors"`
	HTTP     string             `json:"http,omitempty" doc:"host:port for people"`
	Version  string             `json:"version,omitempty" doc:"Of its binary"`
	WireMin  uint32             `json:"wire_min" doc:"Oldest messages between nodes that it speaks"`
	WireMax  uint32             `json:"wire_max" doc:"Newest messages between nodes that it speaks"`
	EntryMax uint32             `json:"entry_max" doc:"Newest log entries that it reads"`
	Replicas int                `json:"replicas" doc:"Replicas on it"`
	Leads    int                `json:"leads" doc:"Shards that it owns"`
	DiskFree int64              `json:"disk_free,omitempty" doc:"Bytes"`
	DiskUsed int64              `json:"disk_bytes,omitempty" doc:"Bytes of its data folder"`
}

type replicaView struct {
	Node   dunlin.NodeID      `json:"node"`
	Name   string             `json:"name" doc:"Of the member"`
	Role   dunlin.ReplicaRole `json:"role" doc:"voter; learner: receives the log and does not vote; outgoing: votes until the change is over"`
	Match  uint64             `json:"match" doc:"Newest index that the owner knows it to have"`
	Behind uint64             `json:"behind" doc:"Entries that it lacks"`
	Active bool               `json:"active" doc:"The owner heard of it lately"`
}

type shardView struct {
	Shard    dunlin.ShardID `json:"shard"`
	Owner    dunlin.NodeID  `json:"owner" doc:"none: nobody, or nobody knows"`
	Term     uint64         `json:"term"`
	Commit   uint64         `json:"commit" doc:"Newest committed index"`
	Bytes    int64          `json:"bytes"`
	Replicas []replicaView  `json:"replicas" nullable:"false"`
	Moving   string         `json:"moving,omitempty" doc:"What is being done with it, such as catch-up 83 %"`
	Missing  string         `json:"missing,omitempty" doc:"What it lacks"`
}

type ownReplicaView struct {
	Shard      dunlin.ShardID `json:"shard"`
	Term       uint64         `json:"term"`
	Owns       uint64         `json:"owns" doc:"The term in which this node owns the shard; 0: it does not"`
	Leader     dunlin.NodeID  `json:"leader" doc:"Of the newest term that this node has heard of"`
	LeaderTerm uint64         `json:"leader_term" doc:"That term"`
	Applied    uint64         `json:"applied" doc:"Newest entry that is in its state"`
	Commit     uint64         `json:"commit" doc:"Newest entry that it knows to be committed"`
}

type nodeReplicasView struct {
	Node     dunlin.NodeID    `json:"node" doc:"Which answers"`
	Name     string           `json:"name" doc:"Of the node that answers"`
	Replicas []ownReplicaView `json:"replicas" nullable:"false" doc:"By shard"`
}

type shardHashView struct {
	Shard   dunlin.ShardID `json:"shard"`
	Node    dunlin.NodeID  `json:"node" doc:"Whose replica it is"`
	Name    string         `json:"name" doc:"Of the member"`
	Applied uint64         `json:"applied" doc:"The hash is of the state as of this entry"`
	Hash    string         `json:"hash" doc:"SHA-256 in hex"`
}

type clusterView struct {
	Cluster     string        `json:"cluster"`
	Node        dunlin.NodeID `json:"node" doc:"Which answers"`
	Name        string        `json:"name" doc:"Of the node that answers"`
	Controller  dunlin.NodeID `json:"controller" doc:"The member that decides where replicas go"`
	Shards      int           `json:"shards"`
	Replication int           `json:"replication" doc:"Replicas that a shard shall have"`
	Owned       int           `json:"owned" doc:"Shards with an owner"`
	Full        int           `json:"full" doc:"Shards with all their replicas on living members"`
	Members     int           `json:"members"`
	Alive       int           `json:"alive"`
	Moves       []string      `json:"moves" nullable:"false" doc:"Under way, a line each"`
	Entries     uint32        `json:"entry_version" doc:"Version of log entries that all members read"`
	Healthy     bool          `json:"healthy" doc:"Every shard has an owner and all its replicas"`
	Problems    []string      `json:"problems" nullable:"false" doc:"What is wrong and what to do, the worst first"`
}

func shardViewOf(s *dunlin.ShardReplicas) shardView {
	v := shardView{Shard: s.Shard, Owner: s.Owner, Term: s.Term, Commit: s.Commit, Bytes: s.Bytes, Moving: s.Moving, Missing: s.Missing,
		Replicas: make([]replicaView, len(s.Replicas))}
	for i, r := range s.Replicas {
		v.Replicas[i] = replicaView(r)
	}
	return v
}

// admin is the cluster behind the door, or a 404.
func (a *api) admin() (dunlin.ClusterAdmin, error) {
	if a.g.deps.Cluster == nil {
		return nil, fmt.Errorf("%w: this node does not take part in a cluster", dunlin.ErrNotFound)
	}
	return a.g.deps.Cluster, nil
}

func (a *api) registerCluster() {
	operation(a, huma.Operation{OperationID: "get-cluster", Method: http.MethodGet, Path: "/v1/cluster", Tags: []string{"cluster"},
		Summary: "Whether the cluster is well, and what is wrong or under way"}, a.getCluster)
	operation(a, huma.Operation{OperationID: "list-members", Method: http.MethodGet, Path: "/v1/cluster/members", Tags: []string{"cluster"},
		Summary: "List members by name"}, a.listMembers)
	operation(a, huma.Operation{OperationID: "list-shards", Method: http.MethodGet, Path: "/v1/cluster/shards", Tags: []string{"cluster"},
		Summary: "List shards with their replicas"}, a.listShards)
	operation(a, huma.Operation{OperationID: "list-own-replicas", Method: http.MethodGet, Path: "/v1/cluster/replicas", Tags: []string{"cluster"},
		Summary: "What the node that answers knows of its own replicas", Description: "No other node is asked."}, a.ownReplicas)
	operation(a, huma.Operation{OperationID: "get-shard-hash", Method: http.MethodGet, Path: "/v1/cluster/shards/{shard}/hash", Tags: []string{"cluster"},
		Summary: "Sum up a member's replica of a shard",
		Description: "Replicas that have applied as much have the same hash, but for moments in which history comes of its retention's age. All of the " +
			"shard is read; a node makes one hash at a time. 404 if the member has no replica of the shard, or an empty one."}, a.shardHash)
	operation(a, huma.Operation{OperationID: "set-member-state", Method: http.MethodPut, Path: "/v1/cluster/members/{name}/state", Tags: []string{"cluster"},
		Summary: "Drain a member, let it leave, or take a drain back",
		Description: "Answers when this is committed; members and shards then show the progress. draining: its shards get other owners and its replicas move " +
			"where others can take them. leaving: the same, and it is forgotten once it is empty. Refused with 409 if shards could not keep a replica elsewhere."},
		a.setMember)
	operation(a, huma.Operation{OperationID: "move-replica", Method: http.MethodPost, Path: "/v1/cluster/shards/{shard}/move", Tags: []string{"cluster"},
		Summary: "Move a replica to another member, or make a member with one the owner", DefaultStatus: http.StatusAccepted,
		Description: "Answers when this is committed; shards then show the progress."}, a.moveReplica)
}

func (a *api) getCluster(ctx context.Context, _ *call, _ *struct{}) (*struct{ Body clusterView }, error) {
	admin, err := a.admin()
	if err != nil {
		return nil, err
	}
	st, err := admin.ClusterStatus(ctx)
	if err != nil {
		return nil, err
	}
	v := clusterView(*st)
	v.Moves, v.Problems = notNil(v.Moves), notNil(v.Problems)
	return &struct{ Body clusterView }{v}, nil
}

func notNil(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func (a *api) listMembers(ctx context.Context, c *call, _ *struct{}) (*listOutput[memberView], error) {
	admin, err := a.admin()
	if err != nil {
		return nil, err
	}
	found, err := admin.Members(ctx)
	if err != nil {
		return nil, err
	}
	items := make([]memberView, len(found))
	for i := range found {
		items[i] = memberView(found[i])
	}
	return page(items, c.path, nil, ""), nil
}

func (a *api) listShards(ctx context.Context, c *call, _ *struct{}) (*listOutput[shardView], error) {
	admin, err := a.admin()
	if err != nil {
		return nil, err
	}
	found, err := admin.ShardReplicas(ctx)
	if err != nil {
		return nil, err
	}
	items := make([]shardView, len(found))
	for i := range found {
		items[i] = shardViewOf(&found[i])
	}
	return page(items, c.path, nil, ""), nil
}

func (a *api) ownReplicas(ctx context.Context, _ *call, _ *struct{}) (*struct{ Body nodeReplicasView }, error) {
	admin, err := a.admin()
	if err != nil {
		return nil, err
	}
	found, err := admin.OwnReplicas(ctx)
	if err != nil {
		return nil, err
	}
	v := nodeReplicasView{Node: found.Node, Name: found.Name, Replicas: make([]ownReplicaView, len(found.Replicas))}
	for i, r := range found.Replicas {
		v.Replicas[i] = ownReplicaView(r)
	}
	return &struct{ Body nodeReplicasView }{v}, nil
}

type hashInput struct {
	Shard  int    `path:"shard" minimum:"0" maximum:"65535" doc:"Number of the shard"` // int: see moveInput
	Member string `query:"member" maxLength:"64" doc:"A member's name or id; default the node that answers"`
}

func (a *api) shardHash(ctx context.Context, _ *call, in *hashInput) (*struct{ Body shardHashView }, error) {
	admin, err := a.admin()
	if err != nil {
		return nil, err
	}
	h, err := admin.ShardHash(ctx, dunlin.ShardID(in.Shard), in.Member)
	if err != nil {
		return nil, err
	}
	return &struct{ Body shardHashView }{shardHashView(*h)}, nil
}

type memberStateInput struct {
	Name string `path:"name" maxLength:"64" doc:"A member's name, or its id"`
	Body struct {
		State dunlin.MemberState `json:"state" enum:"active,draining,leaving"`
	}
}

// setMember answers with the member as it is now; with its name and state alone if that can't be said at the moment, because
// the change itself is committed.
func (a *api) setMember(ctx context.Context, _ *call, in *memberStateInput) (*struct{ Body memberView }, error) {
	admin, err := a.admin()
	if err != nil {
		return nil, err
	}
	if err := admin.SetMember(ctx, in.Name, in.Body.State); err != nil {
		return nil, err
	}
	v := memberView{Name: in.Name, State: in.Body.State}
	if found, err := admin.Members(ctx); err == nil {
		is := func(m dunlin.Member) bool { return m.Name == in.Name || m.ID.String() == in.Name }
		if i := slices.IndexFunc(found, is); i >= 0 {
			v = memberView(found[i])
		}
	}
	return &struct{ Body memberView }{v}, nil
}

type moveInput struct {
	// huma cuts a number to the bits of its type instead of refusing it (v2.39.1): 65537 would be another shard.
	Shard int `path:"shard" minimum:"0" maximum:"65535" doc:"Number of the shard"`
	Body  struct {
		From string `json:"from,omitempty" maxLength:"64" doc:"The member that gives its replica up; not needed if to has one already"`
		To   string `json:"to" minLength:"1" maxLength:"64" doc:"The member that gets it; if it has one, it becomes the owner"`
	}
}

func (a *api) moveReplica(ctx context.Context, _ *call, in *moveInput) (*struct{}, error) {
	admin, err := a.admin()
	if err != nil {
		return nil, err
	}
	return nil, admin.MoveReplica(ctx, dunlin.ShardID(in.Shard), in.Body.From, in.Body.To)
}
