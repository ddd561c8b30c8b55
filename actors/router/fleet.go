package router

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/dunlin-iot/dunlin"
)

// Bounds of a question to the fleet.
const (
	fanMax   = 8   // nodes asked at a time
	freshMax = 256 // replicas here made fresh at a time: one that can't be must not hold up others
	roundMax = 2   // a shard whose node failed is asked of another one once
)

// Limits of pages, as the store and the registry have them.
const (
	limitDefault = 100
	limitMax     = 1000
)

func limitOf(n int) int {
	if n <= 0 {
		return limitDefault
	}
	return min(n, limitMax)
}

// Alerts implements dunlin.Inspector.
func (r *Router) Alerts(ctx context.Context, q dunlin.AlertsQuery) (*dunlin.AlertsPage, error) {
	q.Limit, q.Tenant = limitOf(q.Limit), cmp.Or(q.Tenant, dunlin.DefaultTenant)
	pages, missing, err := gather(ctx, r, r.shardsOf(q.Tenant, q.Device),
		func(shards []dunlin.ShardID) (*dunlin.AlertsPage, []dunlin.MissingShard, error) {
			return r.alertsHere(ctx, shards, q)
		},
		func(node dunlin.NodeID, shards []dunlin.ShardID) (*dunlin.AlertsPage, []dunlin.MissingShard, error) {
			b, err := r.ask(ctx, node, methodAlerts, question{Shards: shards, Tenant: q.Tenant, Device: q.Device, Domain: q.Domain, State: uint8(q.State),
				Active: q.Active, Severity: uint8(q.Severity), Limit: q.Limit, Cursor: q.Cursor})
			if err != nil {
				return nil, nil, err
			}
			p, err := decodeAlerts(b)
			if err != nil {
				return nil, nil, err
			}
			return p, p.Missing, nil
		})
	if err != nil {
		return nil, fmt.Errorf("alerts: %w", err)
	}
	page := pages[0]
	if len(pages) > 1 {
		if page, err = r.deps.MergeAlerts(pages, q); err != nil {
			return nil, err
		}
	}
	page.Missing = missing
	return page, nil
}

func (q *question) alerts() dunlin.AlertsQuery {
	return dunlin.AlertsQuery{Tenant: q.Tenant, Device: q.Device, Domain: q.Domain, State: dunlin.AlertState(q.State), Active: q.Active,
		Severity: dunlin.Severity(q.Severity), Limit: q.Limit, Cursor: q.Cursor}
}

func (r *Router) alertsHere(ctx context.Context, shards []dunlin.ShardID, q dunlin.AlertsQuery) (*dunlin.AlertsPage, []dunlin.MissingShard, error) {
	shards, missing := r.readableOf(ctx, shards)
	if len(shards) == 0 {
		return &dunlin.AlertsPage{}, missing, nil
	}
	p, err := r.deps.State.Alerts(shards, q)
	return p, missing, err
}

// DeadLetters implements dunlin.Inspector.
func (r *Router) DeadLetters(ctx context.Context, q dunlin.DeadLettersQuery) (*dunlin.DeadLettersPage, error) {
	q.Limit, q.Tenant = limitOf(q.Limit), cmp.Or(q.Tenant, dunlin.DefaultTenant)
	pages, missing, err := gather(ctx, r, r.shardsOf(q.Tenant, q.Device),
		func(shards []dunlin.ShardID) ([]dunlin.DeadLetter, []dunlin.MissingShard, error) {
			return r.lettersHere(ctx, shards, q)
		},
		func(node dunlin.NodeID, shards []dunlin.ShardID) ([]dunlin.DeadLetter, []dunlin.MissingShard, error) {
			b, err := r.ask(ctx, node, methodLetters, question{Shards: shards, Tenant: q.Tenant, Device: q.Device, Limit: q.Limit})
			if err != nil {
				return nil, nil, err
			}
			p, err := decodeLetters(b)
			if err != nil {
				return nil, nil, err
			}
			return p.Letters, p.Missing, nil
		})
	if err != nil {
		return nil, fmt.Errorf("dead letters: %w", err)
	}
	all := slices.Concat(pages...)
	slices.SortStableFunc(all, func(a, b dunlin.DeadLetter) int { // as the store does
		return cmp.Or(cmp.Compare(b.At, a.At), cmp.Compare(a.Device, b.Device), cmp.Compare(b.Seq, a.Seq))
	})
	return &dunlin.DeadLettersPage{Letters: all[:min(len(all), q.Limit)], Missing: missing}, nil
}

func (q *question) letters() dunlin.DeadLettersQuery {
	return dunlin.DeadLettersQuery{Tenant: q.Tenant, Device: q.Device, Limit: q.Limit}
}

func (r *Router) lettersHere(ctx context.Context, shards []dunlin.ShardID, q dunlin.DeadLettersQuery) ([]dunlin.DeadLetter, []dunlin.MissingShard, error) {
	shards, missing := r.readableOf(ctx, shards)
	if len(shards) == 0 {
		return nil, missing, nil
	}
	l, err := r.deps.State.DeadLetters(shards, q)
	return l, missing, err
}

// Devices implements dunlin.Registrar.
func (r *Router) Devices(ctx context.Context, q dunlin.DevicesQuery) (*dunlin.DevicesPage, error) {
	if q.Limit == 0 {
		q.Limit = limitDefault
	}
	if q.Limit < 0 || q.Limit > limitMax {
		return nil, fmt.Errorf("%w: limit is %d, want 1 to %d", dunlin.ErrInvalid, q.Limit, limitMax)
	}
	q.Tenant = cmp.Or(q.Tenant, dunlin.DefaultTenant)
	pages, missing, err := gather(ctx, r, r.shardsOf(q.Tenant, ""),
		func(shards []dunlin.ShardID) (*dunlin.DevicesPage, []dunlin.MissingShard, error) {
			return r.devicesHere(ctx, shards, q)
		},
		func(node dunlin.NodeID, shards []dunlin.ShardID) (*dunlin.DevicesPage, []dunlin.MissingShard, error) {
			b, err := r.ask(ctx, node, methodDevices, question{Shards: shards, Tenant: q.Tenant, Domain: q.Domain, Prefix: q.Prefix,
				Limit: q.Limit, Cursor: q.Cursor})
			if err != nil {
				return nil, nil, err
			}
			p := &dunlin.DevicesPage{}
			if err := json.Unmarshal(b, p); err != nil {
				return nil, nil, err
			}
			return p, p.Missing, nil
		})
	if err != nil {
		return nil, fmt.Errorf("list devices: %w", err)
	}
	page := mergeDevices(pages, q.Limit)
	page.Missing = missing
	return page, nil
}

// mergeDevices makes one page of pages of disjoint shards. What a page with a next one says ends at its last device: behind the
// first such end nothing is known of that page's shards.
func mergeDevices(pages []*dunlin.DevicesPage, limit int) *dunlin.DevicesPage {
	if len(pages) == 1 {
		return pages[0]
	}
	all := &dunlin.DevicesPage{}
	end, more := dunlin.DeviceID(""), false
	for _, p := range pages {
		all.Devices = append(all.Devices, p.Devices...)
		if p.Next != "" && (!more || dunlin.DeviceID(p.Next) < end) {
			end, more = dunlin.DeviceID(p.Next), true
		}
	}
	slices.SortFunc(all.Devices, func(a, b dunlin.Device) int { return cmp.Compare(a.ID, b.ID) })
	if more {
		n, found := slices.BinarySearchFunc(all.Devices, end, func(d dunlin.Device, id dunlin.DeviceID) int { return cmp.Compare(d.ID, id) })
		if found {
			n++
		}
		all.Devices = all.Devices[:n]
	}
	if len(all.Devices) > limit {
		all.Devices, more = all.Devices[:limit], true
	}
	if more && len(all.Devices) > 0 {
		all.Next = string(all.Devices[len(all.Devices)-1].ID)
	}
	return all
}

func (q *question) devices() dunlin.DevicesQuery {
	return dunlin.DevicesQuery{Tenant: q.Tenant, Domain: q.Domain, Prefix: q.Prefix, Limit: q.Limit, Cursor: q.Cursor}
}

func (r *Router) devicesHere(ctx context.Context, shards []dunlin.ShardID, q dunlin.DevicesQuery) (*dunlin.DevicesPage, []dunlin.MissingShard, error) {
	shards, missing := r.readableOf(ctx, shards)
	if len(shards) == 0 {
		return &dunlin.DevicesPage{}, missing, nil
	}
	p, err := r.deps.Registry.DevicesIn(ctx, shards, q)
	return p, missing, err
}

// shardsOf returns where rows of a device are; of any device, if it is not named.
func (r *Router) shardsOf(t dunlin.Tenant, dev dunlin.DeviceID) []dunlin.ShardID {
	if dev != "" {
		return []dunlin.ShardID{r.cfg.ShardOf(dunlin.DeviceKey{Tenant: t, Device: dev})}
	}
	all := make([]dunlin.ShardID, r.cfg.Shards)
	for i := range all {
		all[i] = dunlin.ShardID(i)
	}
	return all
}

// readableOf makes replicas here fresh, and says which could not be. It takes half of AskMax: who asks from another node waits
// no longer than AskMax, and if that were over first, shards without an owner would take all others in the question along.
func (r *Router) readableOf(ctx context.Context, shards []dunlin.ShardID) (fresh []dunlin.ShardID, missing []dunlin.MissingShard) {
	errs := make([]error, len(shards))
	var waiting []int
	level := dunlin.ReadLevelOf(ctx)
	for i, sh := range shards { // most often none has to be waited for
		if r.alone(sh) {
			continue
		}
		if lag, ok := r.deps.Reads.Fresh(sh); !ok {
			errs[i] = errForeign
		} else if level.Stale <= 0 || lag > level.Stale {
			waiting = append(waiting, i)
		}
	}
	wait, cancel := context.WithTimeoutCause(ctx, r.cfg.AskMax/2, errNobody)
	defer cancel()
	each(waiting, freshMax, func(i int) { errs[i] = r.readable(wait, shards[i]) })
	for i, err := range errs {
		if err == nil {
			fresh = append(fresh, shards[i])
		} else {
			missing = append(missing, dunlin.MissingShard{Shard: shards[i], Reason: err.Error()})
		}
	}
	return fresh, missing
}

// each calls f for each of the list, at most so many at a time, and returns when all have returned.
func each[T any](list []T, most int, f func(T)) {
	if len(list) == 1 {
		f(list[0])
		return
	}
	var all sync.WaitGroup
	slots := make(chan struct{}, most) // the calls under way
	for _, v := range list {
		slots <- struct{}{}
		all.Go(func() {
			defer func() { <-slots }()
			f(v)
		})
	}
	all.Wait()
}

// group is the shards that one node is asked about, and what came of it.
type group[P any] struct {
	node    dunlin.NodeID
	shards  []dunlin.ShardID
	page    P
	missing []dunlin.MissingShard
	err     error
}

// gather asks the nodes that can answer about some shards, each once for all that it is asked about, and a second one about
// shards that the first had no answer for. It fails if nobody has answered, or with an error that is an answer.
func gather[P any](ctx context.Context, r *Router, shards []dunlin.ShardID, here func([]dunlin.ShardID) (P, []dunlin.MissingShard, error),
	there func(dunlin.NodeID, []dunlin.ShardID) (P, []dunlin.MissingShard, error)) (pages []P, missing []dunlin.MissingShard, err error) {
	tried := map[dunlin.ShardID]dunlin.NodeID{}
	answered := 0
	for round := 0; round < roundMax && len(shards) > 0 && ctx.Err() == nil; round++ {
		var groups []*group[P]
		var nowhere []dunlin.MissingShard
		groups, nowhere = grouped[P](r, shards, tried)
		each(groups, fanMax, func(g *group[P]) {
			if g.node == r.cfg.Self {
				g.page, g.missing, g.err = here(g.shards)
			} else {
				g.page, g.missing, g.err = there(g.node, g.shards)
			}
		})
		missing, shards = missing[:0], shards[:0:0]
		for _, g := range groups {
			if g.err != nil {
				if final(g.err) {
					return nil, nil, g.err
				}
				err, g.missing = g.err, nil
				for _, sh := range g.shards {
					g.missing = append(g.missing, dunlin.MissingShard{Shard: sh, Reason: g.err.Error()})
				}
			}
			g.missing = slices.DeleteFunc(g.missing, func(m dunlin.MissingShard) bool { return !slices.Contains(g.shards, m.Shard) })
			if n := len(g.shards) - len(g.missing); n > 0 {
				answered += n
				pages = append(pages, g.page)
			}
			for _, m := range g.missing {
				tried[m.Shard] = g.node
				shards = append(shards, m.Shard)
			}
			missing = append(missing, g.missing...)
		}
		missing = append(missing, nowhere...)
		for _, m := range nowhere {
			shards = append(shards, m.Shard)
		}
	}
	if answered == 0 {
		if ctx.Err() != nil {
			return nil, nil, context.Cause(ctx)
		}
		if err == nil || !errors.Is(err, dunlin.ErrUnavailable) {
			why := "nobody can be asked"
			if len(missing) > 0 {
				why = missing[0].Reason
			}
			err = fmt.Errorf("%w: %s", dunlin.ErrUnavailable, why)
		}
		return nil, nil, err
	}
	slices.SortFunc(missing, func(a, b dunlin.MissingShard) int { return cmp.Compare(a.Shard, b.Shard) })
	return pages, missing, nil
}

// grouped says who is to be asked about which shards: this node about those that it has a replica of, else the owner, else
// another replica's node; but not who was asked before.
func grouped[P any](r *Router, shards []dunlin.ShardID, tried map[dunlin.ShardID]dunlin.NodeID) (groups []*group[P], nowhere []dunlin.MissingShard) {
	of := map[dunlin.NodeID]*group[P]{}
	for _, sh := range shards {
		node := dunlin.NodeID(0)
		if tried[sh] != r.cfg.Self && r.here(sh) {
			node = r.cfg.Self
		} else {
			for _, n := range r.others(sh) {
				if n != tried[sh] {
					node = n
					break
				}
			}
		}
		if node == 0 {
			nowhere = append(nowhere, dunlin.MissingShard{Shard: sh, Reason: "no node is known that could be asked"})
			continue
		}
		g := of[node]
		if g == nil {
			g = &group[P]{node: node}
			of[node], groups = g, append(groups, g)
		}
		g.shards = append(g.shards, sh)
	}
	return groups, nowhere
}
