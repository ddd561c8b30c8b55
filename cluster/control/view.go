package control

import (
	"fmt"
	"slices"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// View is the cluster as the controller's node sees it. Nothing in it is changed by this package.
type View struct {
	Now         dunlin.Time
	Replication int      // replicas that a shard shall have; odd
	Members     []Member // all that are known, those that left included, in any order
	Shards      []Shard  // all, by ID
	Requests    []Request
}

// Member is a row of the members table with what gossip and the member's own report add.
type Member struct {
	dunlin.Member
	Joined dunlin.Time // when it registered: of two with one name, the later replaces the earlier
}

// Shard is a shard's committed placement and its owner's report.
type Shard struct {
	ID  dunlin.ShardID
	Row Placement // Epoch 0: there is none yet

	// The owner's report; Owner 0: nobody has reported as one.
	Owner    dunlin.NodeID
	Term     uint64
	Conf     Conf
	Replicas []Progress
	Commit   uint64
	Bytes    int64
	Age      time.Duration // of the report
}

// Conf is a Raft group's replica set.
type Conf struct {
	Index        uint64 // up to this entry it is known to hold: what its owner has applied
	Voters       []dunlin.NodeID
	Outgoing     []dunlin.NodeID // not empty: a joint change is not over
	Learners     []dunlin.NodeID
	LearnersNext []dunlin.NodeID // become learners when the joint change is over
}

func (c *Conf) settled() bool { return len(c.Outgoing) == 0 && len(c.LearnersNext) == 0 }

// same reports whether two replica sets are alike, at whatever index.
func (c *Conf) same(o *Conf) bool {
	return sameIDs(c.Voters, o.Voters) && sameIDs(c.Outgoing, o.Outgoing) && sameIDs(c.Learners, o.Learners) && sameIDs(c.LearnersNext, o.LearnersNext)
}

// Progress is what an owner knows of a replica. It lists itself, too.
type Progress struct {
	Node     dunlin.NodeID
	Match    uint64 // the newest index that it surely has
	Active   bool   // heard of lately
	Snapshot uint64 // not 0: it is being sent a snapshot of this index
	Received int64  // bytes of the snapshot that it has, if known
}

// Request is what an operator asked for by ClusterAdmin.MoveReplica, a row of intent until EndRequest. With To a voter
// already it asks for To to be the owner.
type Request struct {
	Shard dunlin.ShardID `json:"shard"`
	From  dunlin.NodeID  `json:"from,omitzero"`
	To    dunlin.NodeID  `json:"to"`
	Asked dunlin.Time    `json:"asked,omitzero"`
}

// Limits bound what the controller does at once. The zero value has the defaults.
type Limits struct {
	Moves        int           // replicas in motion in the cluster; default 4
	MovesPerNode int           // of these, into one node, and out of one owner; default 2
	SmallBytes   int64         // a shard below this counts an eighth in both; default 8 MiB
	Grace        time.Duration // a dead member's replicas are made anew elsewhere after it; default 5m
	Imbalance    int           // replicas that two members must differ by before one moves; default 2
	LeadSlack    int           // shards owned that two members may differ by; default 2
	Transfers    int           // of leadership, in one step, for balance; default 4
	TransferRest time.Duration // between two such steps; default 1s
	ShardRest    time.Duration // between two transfers of a shard, for balance; default 30s
	CatchUp      uint64        // entries that a replica may lack and count as caught up; default 1,024
	Patience     time.Duration // a learner without any progress for so long is given up; default 10m
	LearnerGrace time.Duration // a learner whose member is dead for so long is given up; default 1m
	Avoid        time.Duration // a member is no target for a shard for so long after it was given up; default 30m
	ReportAge    time.Duration // an older report is none; default 10s
	EndRest      time.Duration // a membership ends so long after the last replica went, and is told of so long; default 15s
	ReplicaRest  time.Duration // a member gets no replica of a shard for so long after it lost one; default 10s
}

func (l Limits) withDefaults() Limits {
	def(&l.Moves, 4)
	def(&l.MovesPerNode, 2)
	def(&l.SmallBytes, 8<<20)
	def(&l.Grace, 5*time.Minute)
	def(&l.Imbalance, 2)
	def(&l.LeadSlack, 2)
	def(&l.Transfers, 4)
	def(&l.TransferRest, time.Second)
	def(&l.ShardRest, 30*time.Second)
	def(&l.CatchUp, 1024)
	def(&l.Patience, 10*time.Minute)
	def(&l.LearnerGrace, time.Minute)
	def(&l.Avoid, 30*time.Minute)
	def(&l.ReportAge, 10*time.Second)
	def(&l.EndRest, 15*time.Second)
	def(&l.ReplicaRest, 3*time.Second)
	l.Imbalance, l.LeadSlack = max(l.Imbalance, 2), max(l.LeadSlack, 1) // below, moves would never end
	return l
}

func def[T int | int64 | uint64 | time.Duration](p *T, v T) {
	if *p <= 0 {
		*p = v
	}
}

// Action is one step: *WritePlacement, *Change, *Transfer, *SetMemberState or *EndRequest. A step is repeated by the next
// plans until the view shows its effect; whoever carries it out need not retry, and may drop what is still under way.
type Action interface {
	// Why says in words what it is good for.
	Why() string
}

// WritePlacement is a row of the placement table, to be proposed in the meta shard.
type WritePlacement struct {
	Row    Placement
	Reason string
}

// Change asks the shard's owner for a membership change, all of Replicas in one. The owner does it if Check allows it still:
// the step may have been late.
type Change struct {
	Shard    dunlin.ShardID
	Owner    dunlin.NodeID
	Term     uint64 // the owner's; another owner must not do it
	Conf     Conf   // the replica set that it was meant for
	Replicas []ReplicaChange
	Reason   string
}

// Check says why the owner must not do the change now, with dunlin.ErrConflict, or nil. now is what the owner would report of
// the shard at this moment (ID, Row and Age do not matter).
func (a *Change) Check(now *Shard, lim Limits) error {
	l := lim.withDefaults()
	if now.Owner != a.Owner || now.Term != a.Term {
		return fmt.Errorf("%w: change of shard %d was meant for the owner of term %d, this is %d", dunlin.ErrConflict, a.Shard, a.Term, now.Term)
	}
	if !a.Conf.same(&now.Conf) {
		return fmt.Errorf("%w: change of shard %d was meant for another replica set", dunlin.ErrConflict, a.Shard)
	}
	for _, r := range a.Replicas {
		p := progressOf(now, r.Node)
		switch {
		case r.Kind == AddVoter && (!p.Active || p.Snapshot != 0 || p.Match == 0 || p.Match+2*l.CatchUp < now.Commit):
			return fmt.Errorf("%w: change of shard %d: %s is not caught up", dunlin.ErrConflict, a.Shard, r.Node)
		case r.Kind != AddVoter && r.Node == now.Owner:
			return fmt.Errorf("%w: change of shard %d: %s is its owner", dunlin.ErrConflict, a.Shard, r.Node)
		}
	}
	return nil
}

// ReplicaChange is one replica's part in a Change.
type ReplicaChange struct {
	Node dunlin.NodeID
	Kind ChangeKind
}

// ChangeKind says what becomes of a replica.
type ChangeKind uint8

// The kinds of change.
const (
	AddLearner    ChangeKind = 1 // it receives the log and does not vote; a voter is demoted to one
	AddVoter      ChangeKind = 2
	RemoveReplica ChangeKind = 3
)

var changeNames = [...]string{"", "learner", "voter", "remove"}

// String is "learner", "voter" or "remove".
func (k ChangeKind) String() string {
	if int(k) < len(changeNames) {
		return changeNames[k]
	}
	return "unknown"
}

// Transfer asks the shard's owner to hand over to another voter.
type Transfer struct {
	Shard  dunlin.ShardID
	Owner  dunlin.NodeID
	Term   uint64
	To     dunlin.NodeID
	Reason string
}

// SetMemberState changes a member's row, if the member still is what the step was meant for.
type SetMemberState struct {
	Member dunlin.NodeID
	From   dunlin.MemberState
	State  dunlin.MemberState
	Reason string
}

// Check says why the row must not be changed now, with dunlin.ErrConflict, or nil.
func (a *SetMemberState) Check(now dunlin.MemberState) error {
	if now != a.From {
		return fmt.Errorf("%w: member %s was to become %s from %s, and is %s", dunlin.ErrConflict, a.Member, a.State, a.From, now)
	}
	return nil
}

// EndRequest deletes a Request: it is fulfilled, or can't be.
type EndRequest struct {
	Shard  dunlin.ShardID
	Reason string
}

// Why returns the reason.
func (a *WritePlacement) Why() string { return a.Reason }

// Why returns the reason.
func (a *Change) Why() string { return a.Reason }

// Why returns the reason.
func (a *Transfer) Why() string { return a.Reason }

// Why returns the reason.
func (a *SetMemberState) Why() string { return a.Reason }

// Why returns the reason.
func (a *EndRequest) Why() string { return a.Reason }

func without(ids []dunlin.NodeID, gone ...dunlin.NodeID) []dunlin.NodeID {
	out := make([]dunlin.NodeID, 0, len(ids))
	for _, id := range ids {
		if !slices.Contains(gone, id) {
			out = append(out, id)
		}
	}
	return out
}

// with returns ids and one more, sorted.
func with(ids []dunlin.NodeID, more dunlin.NodeID) []dunlin.NodeID {
	out := append(slices.Clone(ids), more)
	slices.Sort(out)
	return slices.Compact(out)
}

func sameIDs(a, b []dunlin.NodeID) bool { return slices.Equal(sorted(a), sorted(b)) }

func sorted(ids []dunlin.NodeID) []dunlin.NodeID {
	out := slices.Clone(ids)
	slices.Sort(out)
	return out
}
