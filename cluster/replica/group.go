package replica

import (
	"fmt"
	"slices"

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
	gone  bool // on its way out: nothing is fed to it, nothing it wants is done

	role      role   // as looked up last
	told      role   // as of the last Ready
	led       role   // as OnLeader was told
	announced uint64 // the term in which the owner was told that it is one; 0: it is not
	applied   uint64
	commit    uint64 // as of the last Ready
	last      uint64 // of the log, as far as Raft has handed it out to be written

	conf      *pb.ConfState // as of the last change handed out to be applied
	confIndex uint64
	member    bool       // this node is in it
	alone     bool       // this node is the only voter
	sole      bool       // and nobody listens: see quiet
	peers     []peerInfo // all others in it, by id

	// floor is where a tombstone left off: until that is applied, the replica that was here before may have acknowledged what
	// this one does not have, and a vote of this one could elect somebody who doesn't have it either.
	floor uint64

	hard       hardState     // term and vote as they are in the log or on their way there
	appendSeq  uint64        // the last append batch with rows of this group
	applying   int           // parts of apply batches under way or gathered
	held       []*pb.Message // to be written: a snapshot, and what comes behind it
	busy       bool          // the snapshot is being installed
	offering   bool          // Raft was given a snapshot that is here, and has not said what it does with it
	installing bool          // it accepted one that is not installed yet

	// fresh are proposals that Raft does not have yet; fates are all proposals whose fate is open, oldest first. Only the
	// owner has any, all of its own term. The fates from unplaced on have no index yet.
	fresh    []*pb.Entry
	fates    []fate
	unplaced int

	elapsed int // ticks since the leader was heard of, or since the last campaign
	timeout int // ticks of it after which to campaign

	change   *confChange
	transfer *transfer
	reads    reads
	fetch    *fetch
	sent     []sentSnapshot
	exporter exporter
	fresher  freshness
	cell     *cell
}

// peerInfo is what the core remembers of another replica. Raft's own Progress forgets it every election timeout.
type peerInfo struct {
	id      uint64
	tick    uint64      // when it was last heard of by this leader
	heard   dunlin.Time // the same by the clock
	learner bool
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
// quorum to check, and a candidate in one waits for its own disk only; so time means nothing to it. Nor does it to a replica
// that is in no replica set, as far as it knows. Once a second voter or a learner joins, the group ticks.
func (g *group) quiet() bool { return g.sole || !g.member && g.fetch == nil }

// mute reports whether the replica must not have a say in elections: it knows of no replica set, or it has not got back yet
// what its predecessor here had acknowledged. Where it is the only voter it decides alone, by decree of Recover.
func (g *group) mute() bool {
	return len(g.conf.Voters) == 0 || g.applied < g.floor && !g.alone
}

// look brings role up to date.
func (g *group) look() {
	if g.stale {
		g.stale = false
		s := g.rn.BasicStatus()
		g.role = role{term: s.HardState.GetTerm(), lead: s.Lead, leader: s.RaftState == raft.StateLeader}
	}
}

// owner reports whether the group leads and has told so: it has applied all that earlier owners acknowledged.
func (g *group) owner() bool {
	g.look()
	return g.role.leader && g.announced == g.role.term
}

// place gives proposals their indexes as Raft's entries come by on their way to the log. In the owner's own term these are
// the proposals in order, next to entries of Raft's own.
func (g *group) place(e *pb.Entry) {
	if e.GetType() != pb.EntryNormal {
		if c := g.change; c != nil && c.index == 0 && e.GetTerm() == c.term && e.GetType() == pb.EntryConfChangeV2 {
			c.index = e.GetIndex()
		}
		return
	}
	if g.unplaced == len(g.fates) || e.GetTerm() != g.fates[g.unplaced].term || len(e.Data) == 0 {
		return
	}
	g.fates[g.unplaced].index = e.GetIndex()
	g.unplaced++
}

// reconfigure carries out a committed membership change in Raft and returns the replica set after it.
func (g *group) reconfigure(e *pb.Entry, self uint64) ([]byte, error) {
	var now *pb.ConfState
	if isCertificate(e) {
		cs, err := parseConf(e.Data)
		if err != nil {
			return nil, fmt.Errorf("entry %d of shard %d: %w", e.GetIndex(), g.shard, err)
		}
		now = g.decree(cs)
	} else {
		cc, err := parseChange(e.GetType(), e.Data)
		if err == nil {
			_, err = afterChange(g.conf, cc.AsV2())
		}
		if err != nil {
			return nil, fmt.Errorf("entry %d of shard %d: %w", e.GetIndex(), g.shard, err)
		}
		now = g.rn.ApplyConfChange(cc)
	}
	b, err := marshalConf(now)
	if err != nil {
		return nil, err
	}
	g.setConf(now, b, self)
	g.confIndex = e.GetIndex()
	if c := g.change; c != nil && c.final == 0 && c.index != 0 && c.index <= e.GetIndex() && len(now.VotersOutgoing) == 0 {
		c.final = e.GetIndex()
	}
	return b, nil
}

// decree brings Raft to a replica set that an entry names whole. A first replica is at its birth there already, its storage
// said so; one that joined while the log was still whole learns it here.
func (g *group) decree(cs *pb.ConfState) *pb.ConfState {
	now := g.conf
	if len(now.Voters) == 0 { // Raft makes no joint change from nothing
		for _, id := range cs.Voters {
			now = g.rn.ApplyConfChange(&pb.ConfChange{Type: pb.ConfChangeAddNode.Enum(), NodeId: &id})
		}
		return now
	}
	if len(now.VotersOutgoing) > 0 {
		now = g.rn.ApplyConfChange(&pb.ConfChangeV2{})
	}
	changes := between(now, cs)
	if len(changes) == 0 {
		return now
	}
	g.rn.ApplyConfChange(&pb.ConfChangeV2{Transition: pb.ConfChangeTransitionJointExplicit.Enum(), Changes: changes})
	return g.rn.ApplyConfChange(&pb.ConfChangeV2{})
}

// setConf takes a replica set over that Raft is in already.
func (g *group) setConf(cs *pb.ConfState, b []byte, self uint64) {
	g.stale = true
	g.conf, g.st.confBytes = cs, b
	g.alone = len(cs.Voters) == 1 && cs.Voters[0] == self && len(cs.VotersOutgoing) == 0
	g.sole = soleVoter(cs, self)
	was := g.peers
	g.peers, g.member = nil, false
	for _, id := range members(cs) {
		if id == self {
			g.member = true
			continue
		}
		p := peerInfo{id: id, learner: !slices.Contains(cs.Voters, id) && !slices.Contains(cs.VotersOutgoing, id)}
		for _, w := range was {
			if w.id == id {
				p.tick, p.heard = w.tick, w.heard
			}
		}
		g.peers = append(g.peers, p)
	}
}

func (g *group) peer(id uint64) *peerInfo {
	for i := range g.peers {
		if g.peers[i].id == id {
			return &g.peers[i]
		}
	}
	return nil
}
