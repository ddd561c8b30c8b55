package replica

import (
	"context"
	"fmt"
	"sync/atomic"

	"github.com/dunlin-iot/dunlin"
)

// Ensure sees to it that there is a replica of the shard: the one in the log, or a new one without a log, which waits for the
// shard's owner to feed it. A replica that was destroyed here before comes back with its term and vote, and does not vote
// before it has applied what its tombstone names.
func (h *Host) Ensure(sh dunlin.ShardID) error {
	if int(sh) >= h.cfg.Shards {
		return fmt.Errorf("%w: shard %d of %d", dunlin.ErrInvalid, sh, h.cfg.Shards)
	}
	select {
	case h.replicas <- struct{}{}:
		defer func() { <-h.replicas }()
	case <-h.ended:
		return dunlin.ErrUnavailable
	}
	switch {
	case h.present[sh]:
		return nil
	case h.tombs[sh] != nil:
		return fmt.Errorf("%w: the replica of shard %d that was here is not destroyed yet", dunlin.ErrConflict, sh)
	}
	g, err := empty(&h.cfg, sh)
	if err != nil {
		return err
	}
	g.cell = &h.cells[sh]
	g.cell.flags.Store(flagPresent)
	if !h.call(call{run: func(c *core) error {
		c.ensure(g)
		return nil
	}}) {
		return dunlin.ErrUnavailable
	}
	h.present[sh] = true
	return nil
}

// Destroy removes this node's replica of a shard that left the shard's replica set with entry removedAt, and all it kept,
// but for a tombstone. What is pending there is answered with dunlin.ErrNotOwner. Nothing to remove is no error. If it fails,
// it is to be called again.
func (h *Host) Destroy(ctx context.Context, sh dunlin.ShardID, removedAt uint64) error {
	if int(sh) >= h.cfg.Shards || h.cfg.Snapshots == nil {
		return fmt.Errorf("%w: destroy the replica of shard %d of %d", dunlin.ErrInvalid, sh, h.cfg.Shards)
	}
	select {
	case h.replicas <- struct{}{}:
		defer func() { <-h.replicas }()
	case <-h.ended:
		return dunlin.ErrUnavailable
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", dunlin.ErrUnavailable, context.Cause(ctx))
	}
	if h.present[sh] {
		var tomb tombstone
		// Nobody may give up waiting here: what is half out of the core could neither stay nor go.
		err := h.await(context.WithoutCancel(ctx), sh, func(c *core, done func(error)) {
			var ok bool
			if tomb, ok = c.detach(sh, removedAt, done); !ok {
				done(nil)
			}
		})
		if err != nil {
			return err
		}
		h.present[sh], h.tombs[sh] = false, appendTomb(nil, tomb)
	}
	if h.tombs[sh] == nil {
		return nil
	}
	if err := h.cfg.Snapshots.Destroy(sh, h.tombs[sh]); err != nil {
		return fmt.Errorf("destroy the replica of shard %d: %w", sh, err)
	}
	h.tombs[sh] = nil
	return nil
}

// await puts a question to the core and waits for its answer.
func (h *Host) await(ctx context.Context, sh dunlin.ShardID, ask func(c *core, done func(error))) error {
	if int(sh) >= h.cfg.Shards {
		return fmt.Errorf("%w: shard %d of %d", dunlin.ErrInvalid, sh, h.cfg.Shards)
	}
	answer := make(chan error, 1)
	done := func(err error) { answer <- err }
	if !h.call(call{
		run: func(c *core) error {
			ask(c, done)
			return nil
		},
		refuse: func() { done(dunlin.ErrUnavailable) },
	}) {
		return dunlin.ErrUnavailable
	}
	select {
	case err := <-answer:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", dunlin.ErrUnavailable, context.Cause(ctx))
	}
}

// Status says what this node's replica of a shard knows. Any goroutine may ask, also from within a callback.
func (h *Host) Status(sh dunlin.ShardID) Status {
	if int(sh) >= h.cfg.Shards {
		return Status{Shard: sh}
	}
	return h.cells[sh].status(sh, h.clock())
}

// Change changes the shard's replica set, in one step or, if there are several changes, by a joint change that ends by
// itself. It returns once the last step is applied here; a set that is as wished already is left alone. Only the owner can
// (dunlin.ErrNotOwner), one change at a time (dunlin.ErrConflict), and somebody must be left to vote (dunlin.ErrInvalid). An
// owner that fails in between, or a ctx that ends (dunlin.ErrUnavailable), may leave a change that takes effect nevertheless:
// ask Status.
func (h *Host) Change(ctx context.Context, sh dunlin.ShardID, changes []ReplicaChange) error {
	return h.await(ctx, sh, func(c *core, done func(error)) { c.reconfigure(sh, changes, done) })
}

// Transfer hands the shard over to another voter and returns once this replica knows it to lead. Proposals are refused
// meanwhile with dunlin.ErrNotOwner. If the other one does not take it within a second or so, this one leads on
// (dunlin.ErrUnavailable).
func (h *Host) Transfer(ctx context.Context, sh dunlin.ShardID, to dunlin.NodeID) error {
	return h.await(ctx, sh, func(c *core, done func(error)) { c.transferTo(sh, uint64(to), done) })
}

// ReadIndex returns once this replica, owner or not, has applied all that was acknowledged before the call. All calls that come
// in while one is under way share the next round trip to a majority. It fails with dunlin.ErrUnavailable when ctx ends first.
func (h *Host) ReadIndex(ctx context.Context, sh dunlin.ShardID) error {
	var over atomic.Bool
	defer over.Store(true)
	return h.await(ctx, sh, func(c *core, done func(error)) { c.read(sh, read{done, over.Load}) })
}

// Abdicate makes the host hand over all leaderships as soon as somebody can take them, and campaign no more, until it is
// called with false. A shard that has no other voter stays.
func (h *Host) Abdicate(on bool) {
	h.call(call{run: func(c *core) error {
		c.abdicate(on)
		return nil
	}})
}
