package cluster

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"sync/atomic"

	"github.com/dunlin-iot/dunlin"
)

// hashesMax bounds the hashes that are being made or waited for: each reads a whole shard, so they are made one by one.
const hashesMax = 16

// hashes orders them.
type hashes struct {
	wanted atomic.Int64
	turn   chan struct{} // size 1: held by who makes one
}

type hashRequest struct {
	Shard dunlin.ShardID `json:"shard"`
}

// OwnReplicas implements dunlin.ClusterAdmin.
func (c *Cluster) OwnReplicas(context.Context) (*dunlin.NodeReplicas, error) {
	out := &dunlin.NodeReplicas{Node: c.cfg.NodeID, Name: c.cfg.Name, Replicas: []dunlin.OwnReplica{}}
	for i := range c.cfg.Shards {
		sh := dunlin.ShardID(i)
		s := c.host.Status(sh)
		if !s.Present {
			continue
		}
		r := dunlin.OwnReplica{Shard: sh, Term: s.Term, Applied: s.Applied, Commit: s.Commit}
		r.Owns, _ = c.host.Owned(sh)
		if o := c.owners.of[i].Load(); o != nil {
			r.Leader, r.LeaderTerm = o.node, o.term
		}
		out.Replicas = append(out.Replicas, r)
	}
	return out, nil
}

// ShardHash implements dunlin.ClusterAdmin.
func (c *Cluster) ShardHash(ctx context.Context, sh dunlin.ShardID, member string) (*dunlin.ShardHash, error) {
	if int(sh) >= c.cfg.Shards {
		return nil, fmt.Errorf("%w: shard %d of %d", dunlin.ErrNotFound, sh, c.cfg.Shards)
	}
	id := c.cfg.NodeID
	if member != "" {
		var err error
		if id, err = c.member(member); err != nil {
			return nil, err
		}
	}
	h := &dunlin.ShardHash{}
	if err := c.call(ctx, id, methodHash, &hashRequest{sh}, h); err != nil {
		return nil, err
	}
	return h, nil
}

func (c *Cluster) serveHash(ctx context.Context, body []byte) ([]byte, error) {
	var r hashRequest
	if err := json.Unmarshal(body, &r); err != nil {
		return nil, fmt.Errorf("%w: body of a call: %w", dunlin.ErrInvalid, err)
	}
	if s := c.host.Status(r.Shard); !s.Present || !s.Initialised {
		return nil, fmt.Errorf("%w: %s has no replica of shard %d", dunlin.ErrNotFound, c.cfg.Name, r.Shard)
	}
	defer c.hashes.wanted.Add(-1)
	if c.hashes.wanted.Add(1) > hashesMax {
		return nil, fmt.Errorf("%w: %d hashes of shards are wanted already", dunlin.ErrOverloaded, hashesMax)
	}
	select {
	case c.hashes.turn <- struct{}{}:
		defer func() { <-c.hashes.turn }()
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: hash of shard %d: %w", dunlin.ErrUnavailable, r.Shard, context.Cause(ctx))
	}
	sum, index, err := c.cfg.Store.HashContext(ctx, r.Shard)
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("%w: hash of shard %d: %w", dunlin.ErrUnavailable, r.Shard, context.Cause(ctx))
	case err != nil:
		return nil, err
	case index == 0:
		return nil, fmt.Errorf("%w: the replica of shard %d on %s has nothing yet", dunlin.ErrNotFound, r.Shard, c.cfg.Name)
	}
	return marshal(&dunlin.ShardHash{Shard: r.Shard, Node: c.cfg.NodeID, Name: c.cfg.Name, Applied: index, Hash: hex.EncodeToString(sum[:])}), nil
}
