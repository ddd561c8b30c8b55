package cluster

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/control"
)

// Paces of the follower.
const (
	followEvery = 250 * time.Millisecond
	catchUpWait = 2 * time.Second
	diskEvery   = 2 * time.Second
)

// follow does what the meta shard says: it makes and destroys this node's replicas, keeps the node registered as a member,
// and tells the others what this node owns.
func (c *Cluster) follow(ctx context.Context) {
	c.started.Store(int64(c.cfg.Clock()))
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	var seen uint64 // index of the placements that were carried out whole
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-c.follows:
		}
		if c.net != nil {
			c.hint()
		}
		if err := c.catchUp(ctx); err != nil {
			continue
		}
		places, err := c.readPlacements()
		if err != nil {
			c.cfg.Fatal(fmt.Errorf("placement: %w", err))
			return
		}
		if places.index != seen {
			if err := c.obey(ctx, places); errors.Is(err, errLater) {
				c.cfg.Logger.LogAttrs(ctx, slog.LevelDebug, "a replica was not placed yet", slog.Any("error", err))
			} else if err != nil {
				c.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "a replica was not placed", slog.Any("error", err))
			} else {
				seen = places.index
			}
			c.form(places)
		}
		if err := c.register(ctx, places); err != nil && ctx.Err() == nil {
			c.cfg.Logger.LogAttrs(ctx, slog.LevelDebug, "this node is not registered yet", slog.Any("error", err))
		}
	}
}

// catchUp sees to it, once, that this node's meta shard has what was committed before the node started. Until then a row may
// be an old one, and nothing is destroyed by it.
func (c *Cluster) catchUp(ctx context.Context) error {
	if c.fresh.Load() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, catchUpWait)
	defer cancel()
	if !c.Has(dunlin.MetaShard) { // a new node: the controller does not know it yet
		if err := c.register(ctx, c.places.Load()); err != nil {
			return err
		}
		return dunlin.ErrUnavailable
	}
	if err := c.host.ReadIndex(ctx, dunlin.MetaShard); err != nil {
		return err
	}
	c.fresh.Store(true)
	return nil
}

// obey makes the replicas that the placement gives this node, and destroys those that it took away.
func (c *Cluster) obey(ctx context.Context, places *placements) error {
	var errs []error
	for sh := range places.of {
		row, id := &places.of[sh], dunlin.ShardID(sh)
		st := c.host.Status(id)
		switch {
		case row.Epoch == 0: // the controller has not seen the shard yet
		case row.Names(c.cfg.NodeID) && !st.Present:
			errs = append(errs, c.host.Ensure(id))
		case row.Names(c.cfg.NodeID) || !st.Present || id == dunlin.MetaShard:
		case !row.Drops(c.cfg.NodeID, st.Applied, holds(st.Conf.Voters, st.Conf.Learners, c.cfg.NodeID)):
			errs = append(errs, fmt.Errorf("the replica of shard %d is ahead of its placement: %w", id, errLater))
		default:
			if err := c.host.Destroy(ctx, id, max(row.Was[c.cfg.NodeID], row.ConfIndex)); err != nil {
				errs = append(errs, fmt.Errorf("destroy the replica of shard %d: %w", id, err))
			}
		}
	}
	return errors.Join(errs...)
}

// errLater is not worth a warning: the next look is another one.
var errLater = errors.New("to be looked at again")

func holds(voters, learners []dunlin.NodeID, id dunlin.NodeID) bool {
	return slices.Contains(voters, id) || slices.Contains(learners, id)
}

// form notes that the founders have their replicas. From then on the cluster is formed, whatever becomes of them.
func (c *Cluster) form(places *placements) {
	want := min(c.cfg.Founders, c.cfg.Replication)
	for sh := range places.of {
		if want > 1 && len(places.of[sh].Voters) < want {
			return
		}
	}
	c.formed.Store(true)
}

// register sees to it that the members table says of this node what is so.
func (c *Cluster) register(ctx context.Context, places *placements) error {
	want := c.self()
	if row, ok := places.addrs[c.cfg.NodeID]; ok {
		if row.State == dunlin.MemberLeft {
			c.cfg.Fatal(fmt.Errorf("%w: node %s (%s) has left the cluster for good: to bring the machine back, start it with an empty data folder",
				dunlin.ErrForbidden, c.cfg.Name, c.cfg.NodeID))
			return nil
		}
		want.State, want.Joined = row.State, row.Joined
		if string(control.EncodeMember(&want)) == string(control.EncodeMember(&row)) {
			return nil
		}
	}
	ctx, cancel := context.WithTimeout(ctx, catchUpWait)
	defer cancel()
	err := c.callController(ctx, methodRegister, &want, nil)
	if errors.Is(err, dunlin.ErrForbidden) || errors.Is(err, dunlin.ErrConflict) { // no use in asking again
		c.cfg.Fatal(fmt.Errorf("the cluster does not take this node: %w", err))
	}
	return err
}

// self is what this node says of itself.
func (c *Cluster) self() control.Member {
	m := control.Member{Member: dunlin.Member{ID: c.cfg.NodeID, Name: c.cfg.Name, Zone: c.cfg.Zone, State: dunlin.MemberActive,
		Version: c.cfg.Version, EntryMax: c.cfg.EntryMax}}
	if c.net != nil {
		if s, ok := c.net.Seen(c.cfg.NodeID); ok {
			m.Gossip, m.Peer, m.Calls, m.HTTP, m.WireMin, m.WireMax = c.net.Addr(), s.Peer, s.Calls, s.HTTP, s.WireMin, s.WireMax
		}
	}
	return m
}

// watchDisk hands the node's shards over before its disk is full, and takes part again once there is room.
func (c *Cluster) watchDisk(ctx context.Context) {
	if c.cfg.Disk == nil {
		return
	}
	tick := time.NewTicker(diskEvery)
	defer tick.Stop()
	for {
		_, free, err := c.cfg.Disk()
		low := err != nil || free < c.cfg.DiskReserve
		if c.low.Load() && err == nil && free < 2*c.cfg.DiskReserve {
			low = true
		}
		if low != c.low.Load() {
			c.low.Store(low)
			c.host.Abdicate(low)
			what := "the disk is nearly full: this node hands its shards over"
			if !low {
				what = "there is room on the disk again: this node takes part"
			}
			c.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, what, slog.Int64("free", free))
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// DiskLow reports whether so little disk is left that this node gives its shards away. A node that nobody can take them from
// should take no more uplinks.
func (c *Cluster) DiskLow() bool { return c.low.Load() }
