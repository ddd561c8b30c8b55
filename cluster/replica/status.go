package replica

import (
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
)

// Conf is the replica set of a shard: who votes, and who only receives the log.
type Conf struct {
	Voters       []dunlin.NodeID
	Outgoing     []dunlin.NodeID // not empty: a joint change is under way, and both sets must agree
	Learners     []dunlin.NodeID
	LearnersNext []dunlin.NodeID // voters of Outgoing that are learners once the joint change is over
	Index        uint64          // up to this entry it is known to hold
}

// ProgressState says how an owner feeds a replica.
type ProgressState string

// The states of Progress.
const (
	Probing     ProgressState = "probe"     // it is not known where its log ends
	Replicating ProgressState = "replicate" // entries flow
	Snapshot    ProgressState = "snapshot"  // it needs a snapshot, or is busy receiving one
)

// Progress is what a shard's owner knows of another replica.
type Progress struct {
	Node     dunlin.NodeID
	Learner  bool
	Match    uint64 // the newest entry it surely has
	Next     uint64 // the next one to be sent
	State    ProgressState
	Active   bool   // heard of lately
	Snapshot uint64 // State Snapshot: index of the snapshot that it is to install
}

// Status is what this node's replica of a shard knows. Term to Last are current; Progress may be some ticks old.
type Status struct {
	Shard       dunlin.ShardID
	Present     bool // there is a replica here; all else is zero if not
	Initialised bool // it knows its replica set; before that it neither votes nor answers
	Muted       bool // recreated after a tombstone, and not past it yet: it does not vote
	Term        uint64
	Lead        dunlin.NodeID // 0: unknown
	Leader      bool          // this node leads; Host.Owned says whether it is ready to be the owner, too
	Transferee  dunlin.NodeID // the leader is handing over to it
	Applied     uint64
	Commit      uint64
	First       uint64 // the oldest entry in the log
	Last        uint64
	Conf        Conf
	Progress    []Progress // of the other replicas, by id; leader only
	// Heard is how long ago this replica surely had applied all that was committed: on a leader since a majority answered, on
	// others since the leader told a commit index that is applied here. Negative: never.
	Heard time.Duration
}

// ChangeKind is what a ReplicaChange does.
type ChangeKind uint8

// The kinds of changes.
const (
	AddLearner    ChangeKind = 1 // a voter becomes a learner, too
	AddVoter      ChangeKind = 2 // promotes a learner
	RemoveReplica ChangeKind = 3
)

// ReplicaChange is one part of a change of a replica set.
type ReplicaChange struct {
	Node dunlin.NodeID
	Kind ChangeKind
}

// Recovered is a shard that Recover made this node the only voter of.
type Recovered struct {
	Shard   dunlin.ShardID
	Applied uint64 // as of the state
	Commit  uint64 // surely committed, as far as this node knew
	Last    uint64 // what the log had: entries behind Commit may or may not have been acknowledged, all of them are kept
	Term    uint64 // the new term
	Was     Conf   // the replica set as of Applied: what its voters acknowledged behind Last is lost
}

// cell is what other goroutines may know of a group at any time.
type cell struct {
	flags, term, lead, transferee atomic.Uint64
	applied, commit, first, last  atomic.Uint64
	logBytes                      atomic.Uint64 // of the rows from first to last, about
	fresh                         atomic.Int64  // freshness.at
	conf                          atomic.Pointer[Conf]
	progress                      atomic.Pointer[[]Progress]
}

const (
	flagPresent = 1 << iota
	flagInitialised
	flagMuted
	flagLeader
	flagAlone
)

func put(a *atomic.Uint64, v uint64) {
	if a.Load() != v { // a load is a lot cheaper
		a.Store(v)
	}
}

// publish brings the group's cell up to date.
func (g *group) publish() {
	c := g.cell
	flags := uint64(flagPresent)
	if len(g.conf.Voters) > 0 {
		flags |= flagInitialised
	}
	if g.applied < g.floor && !g.alone {
		flags |= flagMuted
	}
	if g.told.leader {
		flags |= flagLeader
	}
	if g.alone {
		flags |= flagAlone
	}
	put(&c.flags, flags)
	put(&c.term, g.told.term)
	put(&c.lead, g.told.lead)
	put(&c.applied, g.applied)
	put(&c.commit, max(g.commit, g.applied))
	put(&c.first, g.st.first)
	put(&c.last, g.last)
	put(&c.logBytes, g.st.sizes.behind(g.st.first-1))
	if c.conf.Load() == nil {
		conf := exportConf(g.conf, g.applied)
		c.conf.Store(&conf)
	}
	if (!g.told.leader || len(g.peers) == 0) && c.progress.Load() != nil {
		c.progress.Store(nil)
		c.transferee.Store(0)
	}
}

// publishProgress tells how the other replicas get on.
func (g *group) publishProgress() {
	if !g.told.leader || len(g.peers) == 0 {
		return
	}
	list := make([]Progress, 0, len(g.peers))
	g.rn.WithProgress(func(id uint64, typ raft.ProgressType, p tracker.Progress) {
		if g.peer(id) == nil {
			return
		}
		out := Progress{Node: dunlin.NodeID(id), Learner: typ == raft.ProgressTypeLearner, Match: p.Match, Next: p.Next, Active: p.RecentActive}
		switch p.State {
		case tracker.StateReplicate:
			out.State = Replicating
		case tracker.StateSnapshot:
			out.State, out.Snapshot = Snapshot, p.PendingSnapshot
		default:
			out.State = Probing
		}
		list = append(list, out)
	})
	g.cell.progress.Store(&list)
	put(&g.cell.transferee, g.rn.BasicStatus().LeadTransferee)
}

// vanish makes the cell that of a shard without a replica.
func (c *cell) vanish() {
	c.flags.Store(0)
	c.fresh.Store(0)
	c.conf.Store(nil)
	c.progress.Store(nil)
}

func (c *cell) status(sh dunlin.ShardID, now dunlin.Time) Status {
	flags := c.flags.Load()
	s := Status{Shard: sh, Present: flags&flagPresent != 0}
	if !s.Present {
		return s
	}
	s.Initialised, s.Muted, s.Leader = flags&flagInitialised != 0, flags&flagMuted != 0, flags&flagLeader != 0
	s.Term, s.Lead, s.Transferee = c.term.Load(), dunlin.NodeID(c.lead.Load()), dunlin.NodeID(c.transferee.Load())
	s.Applied, s.Commit, s.First, s.Last = c.applied.Load(), c.commit.Load(), c.first.Load(), c.last.Load()
	if conf := c.conf.Load(); conf != nil {
		s.Conf = *conf
		s.Conf.Index = max(s.Conf.Index, s.Applied)
	}
	if p := c.progress.Load(); p != nil && s.Leader {
		s.Progress = *p
	}
	switch at := c.fresh.Load(); {
	case s.Leader && flags&flagAlone != 0:
	case at == 0:
		s.Heard = -1
	default:
		s.Heard = max(now.Sub(dunlin.Time(at)), 0)
	}
	return s
}
