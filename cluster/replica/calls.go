package replica

import (
	"context"

	"github.com/dunlin-iot/dunlin"
)

// Ensure sees to it that there is a replica of the shard: the one in the log, or a new one without a log, which waits for the
// shard's owner to feed it. A replica that was destroyed here before comes back with its term and vote, and does not vote
// before it has applied what its tombstone names.
func (h *Host) Ensure(sh dunlin.ShardID) error { return dunlin.ErrUnavailable }

// Destroy removes this node's replica of a shard that left the shard's replica set with entry removedAt, and all it kept,
// but for a tombstone. Nothing to remove is no error.
func (h *Host) Destroy(ctx context.Context, sh dunlin.ShardID, removedAt uint64) error {
	return dunlin.ErrUnavailable
}

// Status says what this node's replica of a shard knows. Any goroutine may ask, also from within a callback.
func (h *Host) Status(sh dunlin.ShardID) Status { return Status{Shard: sh} }

// Change changes the shard's replica set, in one step or, if there are several changes, by a joint change that ends by
// itself. It returns once the last step is applied here. Only the owner can (dunlin.ErrNotOwner), one change at a time
// (dunlin.ErrConflict). An owner that fails in between may leave a change that takes effect nevertheless: ask Status.
func (h *Host) Change(ctx context.Context, sh dunlin.ShardID, changes []ReplicaChange) error {
	return dunlin.ErrUnavailable
}

// Transfer hands the shard over to another voter and returns once this replica knows it to lead.
func (h *Host) Transfer(ctx context.Context, sh dunlin.ShardID, to dunlin.NodeID) error {
	return dunlin.ErrUnavailable
}

// ReadIndex returns once this replica, owner or not, has applied all that was acknowledged before the call.
func (h *Host) ReadIndex(ctx context.Context, sh dunlin.ShardID) error { return dunlin.ErrUnavailable }

// Abdicate makes the host hand over all leaderships as soon as somebody can take them, and campaign no more, until it is
// called with false. A shard that has no other voter stays.
func (h *Host) Abdicate(on bool) {}

// Recover makes this node the only voter of every shard in the log, for a cluster that has lost its majority for good. It is
// to be called on a node that is down, with Config's Node, Shards, Log and StateMachine. What others acknowledged without
// this node is lost; what it says of each shard is for the operator.
func Recover(cfg Config) ([]Recovered, error) { return nil, dunlin.ErrUnavailable }
