package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/control"
	"github.com/dunlin-iot/dunlin/cluster/gossip"
)

// steward is what the controller's shell remembers. The controller itself is package control: pure, and run by whoever owns
// the meta shard.
type steward struct {
	sync.Mutex
	reports map[dunlin.NodeID]*report
	busy    map[dunlin.ShardID]bool // a change or a transfer of the shard is under way
	hints   []gossip.Hint           // as told last; the follower's
}

// Paces of the controller.
const (
	controlEvery = time.Second
	reportWait   = 400 * time.Millisecond
	actionWait   = 10 * time.Second
)

// controlLoop is the controller's shell: while this node owns the meta shard it looks at the cluster, plans, and carries the
// plan out. A step that fails is planned again.
func (c *Cluster) controlLoop(ctx context.Context) {
	tick := time.NewTicker(controlEvery)
	defer tick.Stop()
	var brain *control.Controller
	var brainTerm uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-c.controls:
		}
		term, ok := c.host.Owned(dunlin.MetaShard)
		if !ok {
			brain = nil
			continue
		}
		if brain == nil || brainTerm != term {
			brain, brainTerm = control.New(c.limits), term
		}
		v, err := c.view(ctx)
		if err == nil {
			err = c.found(ctx, term)
		}
		if err != nil {
			c.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "the controller can't see the cluster", slog.Any("error", err))
			continue
		}
		c.carryOut(ctx, term, brain.Step(v))
	}
}

// found writes down, once, what was decided when the cluster began: whoever controls later goes by that, and not by its own
// configuration.
func (c *Cluster) found(ctx context.Context, term uint64) error {
	rows, err := c.cfg.Store.Rows(dunlin.MetaShard, dunlin.TableCluster, control.ClusterKey, "", 1)
	if err != nil || len(rows) > 0 && rows[0].Key == control.ClusterKey {
		return err
	}
	row := control.Cluster{ID: c.cfg.ClusterID, Shards: c.cfg.Shards, Replication: c.cfg.Replication, Born: c.cfg.Clock()}
	return c.put(ctx, term, []dunlin.Put{{Table: dunlin.TableCluster, Key: control.ClusterKey, Value: control.EncodeCluster(&row)}})
}

// carryOut does what the plan says. Rows are written in one entry; what owners are asked for runs beside.
func (c *Cluster) carryOut(ctx context.Context, term uint64, plan []control.Action) {
	if slices.ContainsFunc(plan, func(a control.Action) bool { _, ok := a.(*control.SetMemberState); return ok }) {
		let, err := c.holdMembers(ctx)
		if err != nil {
			return
		}
		defer let()
	}
	var puts []dunlin.Put
	for _, a := range plan {
		attrs := []slog.Attr{slog.String("why", a.Why())}
		switch a := a.(type) {
		case *control.WritePlacement:
			puts = append(puts, dunlin.Put{Table: dunlin.TablePlacement, Key: control.PlacementKey(a.Row.Shard), Value: control.EncodePlacement(&a.Row)})
			attrs = append(attrs, slog.Int("shard", int(a.Row.Shard)))
		case *control.SetMemberState:
			put, err := c.memberPut(a.Member, func(m *control.Member) error {
				if err := a.Check(m.State); err != nil {
					return err
				}
				m.State = a.State
				return nil
			})
			if errors.Is(err, dunlin.ErrConflict) { // somebody gave another order meanwhile, which the next plan sees
				continue
			}
			if err != nil {
				c.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "a member's state was not changed", slog.Any("error", err))
				continue
			}
			puts = append(puts, put)
		case *control.EndRequest:
			puts = append(puts, dunlin.Put{Table: dunlin.TableCluster, Key: control.RequestKey(a.Shard)})
		case *control.Change:
			c.ask(ctx, a.Shard, a.Owner, methodChange, a)
			attrs = append(attrs, slog.Int("shard", int(a.Shard)))
		case *control.Transfer:
			c.ask(ctx, a.Shard, a.Owner, methodTransfer, a)
			attrs = append(attrs, slog.Int("shard", int(a.Shard)))
		}
		c.cfg.Logger.LogAttrs(ctx, slog.LevelDebug, "controller", append(attrs, slog.String("step", fmt.Sprintf("%T", a)))...)
	}
	if len(puts) == 0 {
		return
	}
	if err := c.put(ctx, term, puts); err != nil {
		c.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "the controller's rows were not written", slog.Any("error", err))
		return
	}
	poke(c.controls) // the next step follows from these
}

// ask has a shard's owner do something, one thing of a shard at a time.
func (c *Cluster) ask(ctx context.Context, sh dunlin.ShardID, owner dunlin.NodeID, method string, what any) {
	c.steward.Lock()
	busy := c.steward.busy[sh]
	c.steward.busy[sh] = true
	c.steward.Unlock()
	if busy {
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(ctx, actionWait)
		defer cancel()
		if err := c.call(ctx, owner, method, what, nil); err != nil && ctx.Err() == nil {
			level := slog.LevelInfo
			if errors.Is(err, dunlin.ErrConflict) || errors.Is(err, dunlin.ErrNotOwner) { // it came late
				level = slog.LevelDebug
			}
			c.cfg.Logger.LogAttrs(ctx, level, "a step of the controller failed and will be planned again",
				slog.Int("shard", int(sh)), slog.String("step", method), slog.Any("error", err))
		}
		c.steward.Lock()
		delete(c.steward.busy, sh)
		c.steward.Unlock()
		poke(c.controls)
	}()
}

// put writes rows of the meta shard, as its owner in term, and returns when they are committed and applied.
func (c *Cluster) put(ctx context.Context, term uint64, puts []dunlin.Put) error {
	data := c.cfg.Encode(&dunlin.Entry{Shard: dunlin.MetaShard, Term: term, At: c.cfg.Clock(), Puts: puts}, c.EntryVersion())
	done := make(chan error, 1)
	c.host.Propose(dunlin.MetaShard, term, data, func(_ uint64, err error) { done <- err })
	c.host.Flush()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", dunlin.ErrUnavailable, context.Cause(ctx))
	}
}

// marshal makes the body of a call; what goes in can always be written.
func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("cluster: encode a call: %v", err))
	}
	return b
}
