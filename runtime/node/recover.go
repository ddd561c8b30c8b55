package node

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster"
	"github.com/dunlin-iot/dunlin/cluster/keys"
	"github.com/dunlin-iot/dunlin/runtime/config"
	"github.com/dunlin-iot/dunlin/store"
)

// Recovery is what becomes of a cluster of which one node is left.
type Recovery struct {
	Was, Now string // ids of the cluster before and after: who was left out of it does not come back
	Node     dunlin.NodeID
	Name     string
	Members  map[dunlin.NodeID]string // names, as this node's meta shard has them
	Shards   []cluster.Recovered      // that are on this node
	Empty    []dunlin.ShardID         // that are not: they begin anew, empty
}

// Recover makes the node of a data folder, which must be down, the only one of its cluster. With do false nothing is
// changed: the answer is what would be.
func Recover(cfg config.Config, do bool) (r *Recovery, err error) {
	n := &Node{cfg: cfg}
	id, found, err := store.ReadIdentity(nil, n.folder())
	if err != nil {
		return nil, err
	}
	if !found {
		return nil, fmt.Errorf("%w: %s is no data folder of dunlin: name one with --data", dunlin.ErrNotFound, cfg.Data)
	}
	db, err := store.Open(store.Config{Dir: n.folder()})
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, db.Close()) }()
	r = &Recovery{Was: id.Cluster, Now: cluster.NewClusterID(), Node: id.NodeID, Name: id.Node}
	if r.Members, err = cluster.MemberNames(db.State()); err != nil {
		return nil, err
	}
	rec := cluster.Recover
	if !do {
		rec = cluster.Survey
	}
	if r.Shards, r.Empty, err = rec(cluster.Config{NodeID: id.NodeID, Shards: id.Shards, Log: db.Log(), State: db.State(), Snapshots: db}); err != nil {
		return nil, err
	}
	if !do {
		return r, nil
	}
	return r, errors.Join(db.Refound(r.Now), cluster.Forget(filepath.Join(cfg.Data, membersFile)))
}

// ClusterKey reads the cluster's secret from a node's data folder.
func ClusterKey(cfg config.Config) (string, error) {
	file := filepath.Join(cfg.Data, keyFile)
	s, err := keys.Load(file)
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("%w: there is no %s: the node has not been started with --cluster yet; `dunlin cluster key --new` makes a key for a new cluster",
			dunlin.ErrNotFound, file)
	}
	return s.String(), err
}

// NewClusterKey makes a secret for a new cluster.
func NewClusterKey() string { return keys.NewSecret().String() }
