package replica

import (
	"fmt"

	"github.com/dunlin-iot/dunlin"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

// group is this node's replica of one shard.
type group struct {
	shard dunlin.ShardID
	rn    *raft.RawNode
	st    *storage

	dirty bool // in core.dirty: Raft may have something to say
	fed   bool // it surely has, as far as we can tell; otherwise it is asked first
	stale bool // Raft was fed something since role was looked up, that may have changed it

	role      role   // as looked up last
	told      role   // as of the last Ready
	sole      bool   // this node is the only voter and nobody listens: see quiet
	announced uint64 // the term in which the owner was told that it is one; 0: it is not
	applied   uint64

	hard hardState // term and vote as they are in the log or on their way there

	// fresh are proposals that Raft does not have yet; fates are all proposals whose fate is open, oldest first. Only the
	// owner has any, all of its own term. The fates from unplaced on have no index yet.
	fresh    []*pb.Entry
	fates    []fate
	unplaced int
}

// role is what a group is in Raft's eyes.
type role struct {
	term   uint64
	lead   uint64
	leader bool
}

// fate is a proposal that waits to be committed and applied.
type fate struct {
	index uint64 // 0: Raft has not said yet
	term  uint64
	size  int
	done  func(index uint64, err error)
}

// quiet reports whether the group needs no ticks. The leader of a group of one has nobody to send heartbeats to and no
// quorum to check, and a candidate in one waits for its own disk only; so time means nothing to it. Once a second voter or
// a learner joins, the group ticks.
func (g *group) quiet() bool { return g.sole }

// look brings role up to date.
func (g *group) look() {
	if g.stale {
		g.stale = false
		s := g.rn.BasicStatus()
		g.role = role{term: s.HardState.GetTerm(), lead: s.Lead, leader: s.RaftState == raft.StateLeader}
	}
}

// place gives proposals their indexes as Raft's entries come by on their way to the log. In the owner's own term these are
// the proposals in order, next to entries of Raft's own.
func (g *group) place(e *pb.Entry) {
	if g.unplaced == len(g.fates) || e.GetTerm() != g.fates[g.unplaced].term || e.GetType() != pb.EntryNormal || len(e.Data) == 0 {
		return
	}
	g.fates[g.unplaced].index = e.GetIndex()
	g.unplaced++
}

// change carries out a committed membership change in Raft and returns the replica set after it.
func (g *group) change(e *pb.Entry) ([]byte, error) {
	if e.GetIndex() == birthIndex {
		return g.born(e.Data)
	}
	cc, err := parseChange(e.GetType(), e.Data)
	if err != nil {
		return nil, fmt.Errorf("entry %d of shard %d: %w", e.GetIndex(), g.shard, err)
	}
	return g.adopt(g.rn.ApplyConfChange(cc))
}

// born brings Raft to the replica set of the birth certificate. A first replica is there already, its storage said so; one
// that joined while the log was still whole learns it here.
func (g *group) born(data []byte) ([]byte, error) {
	cs, err := parseConf(data)
	if err != nil {
		return nil, fmt.Errorf("first entry of shard %d: %w", g.shard, err)
	}
	now := cs
	for _, id := range cs.Voters {
		now = g.rn.ApplyConfChange(&pb.ConfChange{Type: pb.ConfChangeAddNode.Enum(), NodeId: &id})
	}
	return g.adopt(now)
}

func (g *group) adopt(cs *pb.ConfState) ([]byte, error) {
	g.stale = true
	g.sole = soleVoter(cs, g.rn.BasicStatus().ID)
	return marshalConf(cs)
}
