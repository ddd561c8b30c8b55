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

// load brings back all groups as the last run left them, or as new ones. Births are written in one synced batch.
func load(cfg *Config) ([]*group, error) {
	var births []dunlin.LogRow
	groups := make([]*group, cfg.Shards)
	for i := range groups {
		st, born, err := loadStorage(cfg, dunlin.ShardID(i))
		if err != nil {
			return nil, err
		}
		births = append(births, born...)
		groups[i] = &group{shard: st.shard, st: st, hard: st.hard, applied: cfg.StateMachine.Applied(st.shard),
			sole: soleVoter(st.conf, cfg.Node)}
	}
	if len(births) > 0 {
		if err := cfg.Log.Append(births, true); err != nil {
			return nil, fmt.Errorf("write first entries: %w", err)
		}
	}
	logger := raftLogger{cfg.Logger}
	for _, g := range groups {
		rn, err := raft.NewRawNode(&raft.Config{
			ID: cfg.Node, ElectionTick: cfg.ElectionTicks, HeartbeatTick: cfg.HeartbeatTicks,
			Storage: g.st, Applied: g.applied, AsyncStorageWrites: true,
			MaxSizePerMsg: uint64(cfg.MaxEntryBytesPerRead), MaxCommittedSizePerReady: uint64(cfg.MaxEntryBytesPerRead),
			MaxInflightMsgs: 256, CheckQuorum: true, PreVote: true, StepDownOnRemoval: true,
			// What an owner proposes depends on what it has applied in its term: nobody else may propose it.
			DisableProposalForwarding: true,
			Logger:                    logger,
		})
		if err != nil {
			return nil, fmt.Errorf("start shard %d: %w", g.shard, err)
		}
		g.rn, g.stale = rn, true
		g.look()
		g.told = g.role
		g.stale = true
	}
	return groups, nil
}

// loadStorage reads one shard's range, hard state and replica set, and the rows of its birth if it is new.
func loadStorage(cfg *Config, sh dunlin.ShardID) (*storage, []dunlin.LogRow, error) {
	hard, first, last, err := cfg.Log.Load(sh)
	if err != nil {
		return nil, nil, fmt.Errorf("load log of shard %d: %w", sh, err)
	}
	applied := cfg.StateMachine.Applied(sh)
	st := &storage{shard: sh, log: cfg.Log, first: max(first, 1), last: last, bytesMax: cfg.RecentBytesMax}
	if hard == nil && last == 0 {
		if applied != 0 {
			return nil, nil, fmt.Errorf("%w: shard %d has applied entry %d, its log is new", errMismatch, sh, applied)
		}
		rows, err := birth(cfg, st)
		return st, rows, err
	}
	if st.hard, err = parseHard(hard); err != nil {
		return nil, nil, fmt.Errorf("load log of shard %d: %w", sh, err)
	}
	if applied > last || applied+1 < st.first || st.hard.commit > last {
		return nil, nil, fmt.Errorf("%w: shard %d: applied %d, committed %d, the log has %d to %d",
			errMismatch, sh, applied, st.hard.commit, st.first, last)
	}
	if st.first > 1 {
		if st.prevTerm, err = cfg.Log.Term(sh, st.first-1); err != nil {
			return nil, nil, fmt.Errorf("load log of shard %d: %w", sh, err)
		}
	}
	// What is applied was committed, and the log does not learn of every commit.
	st.hard.commit = max(st.hard.commit, applied)
	st.conf, err = loadConf(cfg, st, applied)
	return st, nil, err
}

// loadConf returns the replica set as of the applied index.
func loadConf(cfg *Config, st *storage, applied uint64) (*pb.ConfState, error) {
	b := cfg.StateMachine.Conf(st.shard)
	if applied < birthIndex {
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
	return cs, nil
}

// birth makes the first rows of a new group.
func birth(cfg *Config, st *storage) ([]dunlin.LogRow, error) {
	st.first, st.last = birthIndex, birthIndex
	st.hard = hardState{term: birthTerm, commit: birthIndex}
	st.conf = birthConf(cfg.Voters)
	conf, err := marshalConf(st.conf)
	if err != nil {
		return nil, err
	}
	return []dunlin.LogRow{
		{Shard: st.shard, Index: birthIndex, Term: birthTerm, Type: uint8(pb.EntryConfChange), Data: conf},
		{Shard: st.shard, Hard: appendHard(nil, st.hard)},
	}, nil
}
