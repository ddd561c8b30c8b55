// Package cluster answers three questions for the node: is this entry durable, who owns a shard, and (once there are
// others) who is alive. It is the façade before the MultiRaft host and, later, gossip and placement.
// Part of the runtime; no compatibility promise before v1.
package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/replica"
	"github.com/prometheus/client_golang/prometheus"
)

// What a Cluster drives; see package replica.
type (
	Log          = replica.Log
	StateMachine = replica.StateMachine
	Archiver     = replica.Archiver
)

// Config says what a Cluster drives. Log and StateMachine are needed; all else has a default.
type Config struct {
	NodeID       uint64 // this node's number among the replicas; default 1
	Shards       int    // default 64, 1 to 65,536; fixed for the life of the data
	Log          Log
	StateMachine StateMachine
	Archiver     Archiver // asked before entries are dropped from the log; nil: nobody keeps them

	// OnOwner(shard, term, true) is called when this node owns the shard in term and has applied all that earlier owners
	// acknowledged; (…, false) when it stops. It must not block.
	OnOwner func(sh dunlin.ShardID, term uint64, owner bool)
	// Fatal is told of an error of the log or the state; nothing is acknowledged after it, and Run returns it.
	Fatal func(error)

	PendingMax          int           // proposals of a shard whose fate is open; default 1,024
	PendingBytesMax     int           // their bytes; default 16 MiB
	NodePendingMax      int           // of all shards; default 16,384
	NodePendingBytesMax int           // default 64 MiB
	TruncateEvery       time.Duration // how often the log is truncated; default 5s
	TruncateEntriesMin  int           // and by how many entries of a shard at least; default 1,024

	Clock   func() dunlin.Time    // nil: real
	Logger  *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: none
}

// Cluster is this node's part in the cluster.
type Cluster struct {
	host   *replica.Host
	shards int
}

// Open loads the replicas of this node, or gives birth to them on new data. Nothing moves before Run.
func Open(cfg Config) (*Cluster, error) {
	if cfg.Shards == 0 {
		cfg.Shards = 64
	}
	host, err := replica.Open(replica.Config{
		Node: cfg.NodeID, Shards: cfg.Shards, Bootstrap: true, Log: cfg.Log, StateMachine: cfg.StateMachine, Archiver: cfg.Archiver,
		OnOwner: cfg.OnOwner, Fatal: cfg.Fatal,
		PendingMax: cfg.PendingMax, PendingBytesMax: cfg.PendingBytesMax,
		NodePendingMax: cfg.NodePendingMax, NodePendingBytesMax: cfg.NodePendingBytesMax,
		TruncateEvery: cfg.TruncateEvery, TruncateEntriesMin: cfg.TruncateEntriesMin,
		Clock: cfg.Clock, Logger: cfg.Logger, Metrics: cfg.Metrics,
	})
	if err != nil {
		return nil, fmt.Errorf("open replicas: %w", err)
	}
	return &Cluster{host: host, shards: cfg.Shards}, nil
}

// Run drives the replicas until ctx ends (nil) or the log or the state fails. Entries that are being written when ctx ends
// are still applied and acknowledged; everything else that is pending gets ErrUnavailable.
func (c *Cluster) Run(ctx context.Context) error { return c.host.Run(ctx) }

// Propose queues an entry for a shard that this node owns in term; it never blocks. done is called exactly once: after the
// entry was committed in that term and applied, or with ErrNotOwner, ErrUnavailable, ErrOverloaded, ErrTooLarge or
// ErrInvalid. It may be called before Propose returns, otherwise from the host's loop, and must not block. data must not
// change until then.
func (c *Cluster) Propose(sh dunlin.ShardID, term uint64, data []byte, done func(index uint64, err error)) {
	c.host.Propose(sh, term, data, done)
}

// Flush wakes the host: everything proposed so far goes into one log batch with one fsync.
func (c *Cluster) Flush() { c.host.Flush() }

// Owned returns the term in which this node owns the shard, and whether it does.
func (c *Cluster) Owned(sh dunlin.ShardID) (term uint64, ok bool) { return c.host.Owned(sh) }

// Ready returns nil once every shard has an owner here; before that, ErrUnavailable with a shard that has none.
func (c *Cluster) Ready() error {
	for sh := range c.shards {
		if _, ok := c.host.Owned(dunlin.ShardID(sh)); !ok {
			return fmt.Errorf("%w: shard %d has no owner yet", dunlin.ErrUnavailable, sh)
		}
	}
	return nil
}
