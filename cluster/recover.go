package cluster

import (
	"fmt"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/control"
	"github.com/dunlin-iot/dunlin/cluster/replica"
)

// Recovered is a shard that a node was made the only voter of.
type Recovered = replica.Recovered

// Recover makes a node that is down the only voter of every shard that it has, and gives birth to those that it doesn't have
// (empty). Of cfg it needs NodeID, Shards, Log, State and Snapshots. See replica.Recover.
func Recover(cfg Config) (had []Recovered, empty []dunlin.ShardID, err error) {
	if had, empty, err = recoverIn(cfg, cfg.Log); err != nil {
		return nil, nil, err
	}
	// Opening gives birth to what is missing. Nothing runs.
	_, err = replica.Open(replica.Config{Node: uint64(cfg.NodeID), Shards: cfg.Shards, Bootstrap: true, Log: cfg.Log,
		StateMachine: cfg.State, Snapshots: cfg.Snapshots})
	if err != nil {
		return nil, nil, fmt.Errorf("recover: %w", err)
	}
	return had, empty, nil
}

// Survey returns what Recover would, and changes nothing.
func Survey(cfg Config) (had []Recovered, empty []dunlin.ShardID, err error) {
	return recoverIn(cfg, readOnly{cfg.Log})
}

func recoverIn(cfg Config, log Log) (had []Recovered, empty []dunlin.ShardID, err error) {
	had, err = replica.Recover(replica.Config{Node: uint64(cfg.NodeID), Shards: cfg.Shards, Log: log, StateMachine: cfg.State, Snapshots: cfg.Snapshots})
	if err != nil {
		return nil, nil, err
	}
	has := map[dunlin.ShardID]bool{}
	for i := range had {
		has[had[i].Shard] = true
	}
	for sh := range cfg.Shards {
		if !has[dunlin.ShardID(sh)] {
			empty = append(empty, dunlin.ShardID(sh))
		}
	}
	return had, empty, nil
}

// readOnly is a log that keeps nothing.
type readOnly struct{ Log }

// Append implements replica.Log.
func (readOnly) Append([]dunlin.LogRow, bool) error { return nil }

// MemberNames returns the members' names as a store's meta shard has them.
func MemberNames(rows interface {
	Rows(sh dunlin.ShardID, table, prefix, after string, limit int) ([]dunlin.Put, error)
}) (map[dunlin.NodeID]string, error) {
	puts, err := rows.Rows(dunlin.MetaShard, dunlin.TableMembers, "", "", 0)
	if err != nil {
		return nil, err
	}
	out := map[dunlin.NodeID]string{}
	for _, p := range puts {
		m, err := control.DecodeMember(p.Value)
		if err != nil {
			return nil, fmt.Errorf("member %s: %w", p.Key, err)
		}
		out[m.ID] = m.Name
	}
	return out, nil
}
