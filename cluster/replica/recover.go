package replica

import (
	"fmt"

	"github.com/dunlin-iot/dunlin"
	pb "go.etcd.io/raft/v3/raftpb"
)

// Recover makes this node the only voter of every shard in the log, for a cluster that has lost its majority for good. It is
// to be called on a node that is down, with Config's Node, Shards, Log and StateMachine. What others acknowledged without
// this node is lost; what it says of each shard is for the operator. The others must never come back as they are.
//
// It writes an entry that decrees the replica set, behind all that the log has, and declares it committed, in a new term. So
// whatever changes of the replica set the log holds, applied or not, committed or not, come before it; and who is fed from
// this log later meets it, too.
func Recover(cfg Config) ([]Recovered, error) {
	cfg.setDefaults()
	cfg.Bootstrap, cfg.Voters = false, []uint64{cfg.Node}
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	groups, err := load(&cfg)
	if err != nil {
		return nil, err
	}
	decree, err := marshalConf(birthConf([]uint64{cfg.Node}))
	if err != nil {
		return nil, err
	}
	var out []Recovered
	var rows []dunlin.LogRow
	for _, g := range groups {
		if g == nil || g.st.last < birthIndex {
			continue
		}
		lastTerm, err := g.st.Term(g.st.last)
		if err != nil {
			return nil, fmt.Errorf("recover shard %d: %w", g.shard, err)
		}
		r := Recovered{Shard: g.shard, Applied: g.applied, Commit: g.hard.commit, Last: g.st.last,
			Term: max(g.hard.term, lastTerm) + 1, Was: exportConf(g.conf, g.applied)}
		index := g.st.last + 1
		rows = append(rows,
			dunlin.LogRow{Shard: g.shard, Index: index, Term: r.Term, Type: uint8(pb.EntryConfChange), Data: decree},
			dunlin.LogRow{Shard: g.shard, Hard: appendHard(nil, hardState{term: r.Term, vote: cfg.Node, commit: index})})
		out = append(out, r)
	}
	if len(rows) == 0 {
		return nil, nil
	}
	if err := cfg.Log.Append(rows, true); err != nil {
		return nil, fmt.Errorf("recover: append to log: %w", err)
	}
	return out, nil
}
