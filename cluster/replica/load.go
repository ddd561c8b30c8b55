package replica

import (
	"errors"
	"fmt"

	"github.com/dunlin-iot/dunlin"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

// errMismatch: log and state do not belong together, or one of them lost its tail. Going on would make up history.
var errMismatch = errors.New("log and state do not fit together")

// load brings back all groups as the last run left them, or as new ones: those that are not here are nil. Births are written
// in one synced batch, so a log has all of them or none; whatever else it lacks was never here or was destroyed, and must
// not be born again.
func load(cfg *Config) ([]*group, error) {
	groups := make([]*group, cfg.Shards)
	found := false
	for i := range groups {
		g, err := loadGroup(cfg, dunlin.ShardID(i))
		if err != nil {
			return nil, err
		}
		groups[i] = g
		if !found && g == nil {
			_, found, err = loadTomb(cfg, dunlin.ShardID(i))
			if err != nil {
				return nil, err
			}
		}
		found = found || g != nil
	}
	if found || !cfg.Bootstrap {
		return groups, nil
	}
	return groups, bear(cfg, groups)
}

// bear fills in new groups. Raft looks for their first rows, so these are written before.
func bear(cfg *Config, groups []*group) error {
	conf, err := marshalConf(birthConf(cfg.Voters))
	if err != nil {
		return err
	}
	hard := hardState{term: birthTerm, commit: birthIndex}
	var rows []dunlin.LogRow
	for i := range groups {
		sh := dunlin.ShardID(i)
		rows = append(rows,
			dunlin.LogRow{Shard: sh, Index: birthIndex, Term: birthTerm, Type: uint8(pb.EntryConfChange), Data: conf},
			dunlin.LogRow{Shard: sh, Hard: appendHard(nil, hard)})
	}
	if err := cfg.Log.Append(rows, true); err != nil {
		return fmt.Errorf("write first entries: %w", err)
	}
	for i := range groups {
		st := newStorage(cfg, dunlin.ShardID(i), birthIndex, birthIndex)
		st.hard, st.conf = hard, birthConf(cfg.Voters)
		if groups[i], err = newGroup(cfg, st, conf, 0); err != nil {
			return err
		}
	}
	return nil
}

// newGroup starts Raft on a shard's storage.
func newGroup(cfg *Config, st *storage, confBytes []byte, floor uint64) (*group, error) {
	applied := cfg.StateMachine.Applied(st.shard)
	g := &group{shard: st.shard, st: st, hard: st.hard, applied: applied, commit: st.hard.commit, last: st.last, floor: floor}
	st.exports = cfg.Snapshots != nil
	rn, err := raft.NewRawNode(&raft.Config{
		ID: cfg.Node, HeartbeatTick: 1,
		// Only leaders tick Raft's own clock (see elect.go), and what they do with it is to step down when nobody answers.
		// They are given twice the time after which others take over, for a moment's stall of a majority is no reason to;
		// nothing rests on their being early.
		ElectionTick: max(2*cfg.ElectionTicks/cfg.HeartbeatTicks, 2),
		Storage:      st, Applied: g.applied, AsyncStorageWrites: true,
		MaxSizePerMsg: uint64(cfg.MaxEntryBytesPerRead), MaxCommittedSizePerReady: uint64(cfg.MaxEntryBytesPerRead),
		MaxInflightMsgs: cfg.InflightMax, MaxInflightBytes: uint64(cfg.InflightBytesMax),
		CheckQuorum: true, PreVote: true, StepDownOnRemoval: true,
		// What an owner proposes depends on what it has applied in its term: nobody else may propose it.
		DisableProposalForwarding: true,
		Logger:                    raftLogger{cfg.Logger},
	})
	if err != nil {
		return nil, fmt.Errorf("start shard %d: %w", g.shard, err)
	}
	g.rn, g.stale = rn, true
	g.setConf(st.conf, confBytes, cfg.Node)
	g.look()
	g.told = g.role
	g.stale = true
	return g, nil
}

// loadGroup brings one shard's replica back, nil if the log does not have it.
func loadGroup(cfg *Config, sh dunlin.ShardID) (*group, error) {
	hard, first, last, err := cfg.Log.Load(sh)
	if err != nil {
		return nil, fmt.Errorf("load log of shard %d: %w", sh, err)
	}
	applied := cfg.StateMachine.Applied(sh)
	if hard == nil && last == 0 {
		if applied != 0 {
			return nil, fmt.Errorf("%w: shard %d has applied entry %d, its log is new", errMismatch, sh, applied)
		}
		return nil, nil
	}
	st := newStorage(cfg, sh, first, last)
	if st.hard, err = parseHard(hard); err != nil {
		return nil, fmt.Errorf("load log of shard %d: %w", sh, err)
	}
	if applied > last || applied+1 < st.first || st.hard.commit > last {
		return nil, fmt.Errorf("%w: shard %d: applied %d, committed %d, the log has %d to %d",
			errMismatch, sh, applied, st.hard.commit, st.first, last)
	}
	if st.first > 1 {
		if st.prevTerm, err = cfg.Log.Term(sh, st.first-1); err != nil {
			return nil, fmt.Errorf("load log of shard %d: %w", sh, err)
		}
	}
	// What is applied was committed, and the log does not learn of every commit.
	st.hard.commit = max(st.hard.commit, applied)
	tomb, _, err := loadTomb(cfg, sh)
	if err != nil {
		return nil, err
	}
	conf, err := loadConf(cfg, st, applied)
	if err != nil {
		return nil, err
	}
	return newGroup(cfg, st, conf, tomb.floor)
}

// loadConf fills in the replica set as of the applied index.
func loadConf(cfg *Config, st *storage, applied uint64) ([]byte, error) {
	b := cfg.StateMachine.Conf(st.shard)
	if applied < birthIndex {
		if st.last < birthIndex { // nobody has fed it yet
			st.conf = pb.EnsureConfState(&pb.ConfState{})
			return nil, nil
		}
		// Crashed before the birth was applied, or the state was lost whole; the certificate says it as well.
		rows, err := st.log.Read(st.shard, birthIndex, birthIndex+1, 1<<20)
		if err != nil || len(rows) != 1 {
			return nil, fmt.Errorf("%w: shard %d: first entry: %d rows: %v", errMismatch, st.shard, len(rows), err)
		}
		b = rows[0].Data
	}
	cs, err := parseConf(b)
	if err != nil {
		return nil, fmt.Errorf("replica set of shard %d: %w", st.shard, err)
	}
	st.conf = cs
	return b, nil
}

// empty makes a replica that waits to be fed. What an earlier one here has promised binds it.
func empty(cfg *Config, sh dunlin.ShardID) (*group, error) {
	if applied := cfg.StateMachine.Applied(sh); applied != 0 {
		return nil, fmt.Errorf("%w: shard %d has applied entry %d, its log is new", errMismatch, sh, applied)
	}
	tomb, _, err := loadTomb(cfg, sh)
	if err != nil {
		return nil, err
	}
	st := newStorage(cfg, sh, 1, 0)
	st.hard = hardState{term: tomb.term, vote: tomb.vote}
	st.conf = pb.EnsureConfState(&pb.ConfState{})
	return newGroup(cfg, st, nil, tomb.floor)
}
