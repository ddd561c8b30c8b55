package replica

import (
	"time"

	"github.com/dunlin-iot/dunlin"
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
