package simnet

import (
	"errors"
	"slices"
	"strconv"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/control"
	"github.com/dunlin-iot/dunlin/cluster/replica"
	"github.com/dunlin-iot/dunlin/entry"
)

const (
	gossipDead = 1500 * time.Millisecond // unheard for so long, a node is taken for dead
	stepDead   = time.Second             // a controller's step is forgotten after so long
)

// controller is what the meta shard's owner does besides.
type controller struct {
	term    uint64
	plan    *control.Controller
	since   dunlin.Time
	reports []report // by shard
	busy    map[string]dunlin.Time
	idle    dunlin.Time // since when there has been nothing to do; 0: there is
}

type report struct {
	control.Shard
	at dunlin.Time
}

// report tells the others that the node is alive, and the meta shard's owner what it owns.
func (n *node) report() {
	w := n.w
	for _, o := range w.nodes {
		if o != n && !o.over {
			w.send(n.id, o.id, func() {
				if o.up {
					o.heard[n.id] = w.now
				}
			})
		}
	}
	to := w.node(n.m.Status(dunlin.MetaShard).Lead)
	for i := range w.shards {
		r := n.shardReport(dunlin.ShardID(i))
		switch {
		case r == nil || to == nil:
		case to == n:
			n.reported(*r)
		default:
			w.send(n.id, to.id, func() {
				if to.up {
					to.reported(*r)
				}
			})
		}
	}
	n.control()
}

// shardReport is what an owner says of its shard, nil if it is none.
func (n *node) shardReport(sh dunlin.ShardID) *control.Shard {
	term, owns := n.m.Owned(sh)
	if !owns {
		return nil
	}
	st := n.m.Status(sh)
	r := &control.Shard{ID: sh, Owner: n.id, Term: term, Commit: st.Commit, Bytes: int64(st.Applied) << 7,
		Conf:     control.Conf{Index: st.Conf.Index, Voters: st.Conf.Voters, Outgoing: st.Conf.Outgoing, Learners: st.Conf.Learners, LearnersNext: st.Conf.LearnersNext},
		Replicas: []control.Progress{{Node: n.id, Match: st.Last, Active: true}}}
	for _, p := range st.Progress {
		r.Replicas = append(r.Replicas, control.Progress{Node: p.Node, Match: p.Match, Active: p.Active, Snapshot: p.Snapshot})
	}
	return r
}

func (n *node) reported(s control.Shard) {
	if n.ctl != nil {
		n.ctl.reports[s.ID] = report{s, n.w.now}
	}
}

// control takes a controller's step if the node owns the meta shard.
func (n *node) control() {
	term, owns := n.m.Owned(dunlin.MetaShard)
	if !owns {
		n.ctl = nil
		return
	}
	if n.ctl == nil || n.ctl.term != term {
		n.ctl = &controller{term: term, plan: control.New(n.w.limits), since: n.w.now, reports: make([]report, n.w.shards), busy: map[string]dunlin.Time{}}
	}
	if n.register() {
		return
	}
	v := n.view()
	as := n.ctl.plan.Step(v)
	if len(as) > 0 {
		n.ctl.idle = 0
	} else if n.ctl.idle == 0 {
		n.ctl.idle = n.w.now
	}
	for _, a := range as {
		n.carryOut(a)
	}
}

// register gives every node that is heard of a row.
func (n *node) register() bool {
	var puts []dunlin.Put
	known := map[dunlin.NodeID]bool{}
	for _, m := range n.members() {
		known[m.ID] = true
	}
	for _, o := range n.w.nodes {
		if _, heard := n.heard[o.id]; (heard || o == n) && !known[o.id] {
			m := control.Member{Member: dunlin.Member{ID: o.id, Name: o.name, Zone: o.zone, State: dunlin.MemberActive}, Joined: n.w.now}
			puts = append(puts, dunlin.Put{Table: dunlin.TableMembers, Key: control.MemberKey(o.id), Value: control.EncodeMember(&m)})
		}
	}
	if len(puts) > 0 {
		n.put("register", puts...)
	}
	return len(puts) > 0
}

// members reads the members table.
func (n *node) members() (ms []control.Member) {
	rows, err := n.db.State().Rows(dunlin.MetaShard, dunlin.TableMembers, "", "", 0)
	if err != nil {
		n.w.fail("%s: %w", n, err)
	}
	for _, r := range rows {
		m, err := control.DecodeMember(r.Value)
		if err != nil {
			n.w.fail("%s: %w", n, err)
		}
		ms = append(ms, m)
	}
	return ms
}

// placement reads a shard's row.
func (n *node) placement(sh dunlin.ShardID) (control.Placement, bool) {
	b, ok, err := n.db.State().Row(dunlin.MetaShard, dunlin.TablePlacement, control.PlacementKey(sh))
	if err != nil || !ok {
		return control.Placement{}, false
	}
	p, err := control.DecodePlacement(b)
	if err != nil {
		n.w.fail("%s: %w", n, err)
	}
	return p, true
}

// view is the cluster as this node sees it.
func (n *node) view() *control.View {
	w := n.w
	v := &control.View{Now: w.now, Replication: 3, Members: n.members()}
	for i := range v.Members {
		m := &v.Members[i]
		last, heard := n.heard[m.ID]
		if !heard {
			last = n.ctl.since
		}
		if m.Alive = m.ID == n.id || w.now.Sub(last) <= gossipDead; !m.Alive {
			m.DownFor = dunlin.Duration(w.now.Sub(last))
		}
	}
	for i := range w.shards {
		r := &n.ctl.reports[i]
		s := r.Shard
		s.ID, s.Age = dunlin.ShardID(i), w.now.Sub(r.at)
		s.Row, _ = n.placement(s.ID)
		v.Shards = append(v.Shards, s)
	}
	rows, err := n.db.State().Rows(dunlin.MetaShard, dunlin.TableCluster, "", "", 0)
	if err != nil {
		w.fail("%s: %w", n, err)
	}
	for _, row := range rows {
		if r, err := control.DecodeRequest(row.Value); err == nil && control.IsRequestKey(row.Key) {
			v.Requests = append(v.Requests, r)
		}
	}
	return v
}

// put proposes rows of the meta shard.
func (n *node) put(what string, puts ...dunlin.Put) {
	if at, ok := n.ctl.busy[what]; ok && n.w.now.Sub(at) < stepDead {
		return
	}
	ctl := n.ctl
	ctl.busy[what] = n.w.now
	e := dunlin.Entry{Shard: dunlin.MetaShard, Term: ctl.term, At: n.wall(), Puts: puts}
	n.m.Propose(dunlin.MetaShard, ctl.term, entry.Append(nil, &e), func(_ uint64, err error) { delete(ctl.busy, what) })
	n.poke()
}

// carryOut does a controller's step, or lets somebody else do it.
func (n *node) carryOut(a control.Action) {
	switch a := a.(type) {
	case *control.WritePlacement:
		n.w.say("%s places shard %d: %v + %v: %s", n, a.Row.Shard, a.Row.Voters, a.Row.Learners, a.Reason)
		n.put("row "+strconv.Itoa(int(a.Row.Shard)), dunlin.Put{Table: dunlin.TablePlacement, Key: control.PlacementKey(a.Row.Shard), Value: control.EncodePlacement(&a.Row)})
	case *control.SetMemberState:
		for _, m := range n.members() {
			if m.ID == a.Member {
				m.State = a.State
				n.put("member", dunlin.Put{Table: dunlin.TableMembers, Key: control.MemberKey(m.ID), Value: control.EncodeMember(&m)})
			}
		}
	case *control.EndRequest:
		n.put("request", dunlin.Put{Table: dunlin.TableCluster, Key: control.RequestKey(a.Shard)})
	case *control.Change:
		n.ask(a.Shard, a.Owner, func(o *node, done func(error)) { o.change(a, done) })
	case *control.Transfer:
		n.ask(a.Shard, a.Owner, func(o *node, done func(error)) {
			if term, ok := o.m.Owned(a.Shard); !ok || term != a.Term {
				done(dunlin.ErrNotOwner)
				return
			}
			o.w.say("%s hands shard %d over to %s: %s", o, a.Shard, o.w.node(a.To), a.Reason)
			o.m.Transfer(a.Shard, a.To, done)
		})
	}
}

// ask lets a shard's owner do something; one thing at a time.
func (n *node) ask(sh dunlin.ShardID, owner dunlin.NodeID, do func(*node, func(error))) {
	what, ctl := "shard "+strconv.Itoa(int(sh)), n.ctl
	if at, ok := ctl.busy[what]; ok && n.w.now.Sub(at) < stepDead {
		return
	}
	ctl.busy[what] = n.w.now
	o := n.w.node(owner)
	n.w.send(n.id, owner, func() {
		if !o.up {
			return
		}
		do(o, func(error) { n.w.send(owner, n.id, func() { delete(ctl.busy, what) }) })
		o.poke()
	})
}

// change is a change of a replica set, at the owner.
func (n *node) change(a *control.Change, done func(error)) {
	now := n.shardReport(a.Shard)
	if now == nil {
		done(dunlin.ErrNotOwner)
		return
	}
	if err := a.Check(now, n.w.limits); err != nil {
		done(err)
		return
	}
	var rs []replica.ReplicaChange
	text := ""
	for _, r := range a.Replicas {
		rs = append(rs, replica.ReplicaChange{Node: r.Node, Kind: replica.ChangeKind(r.Kind)})
		text += " " + r.Kind.String() + " " + n.w.node(r.Node).String()
	}
	n.w.say("%s changes shard %d:%s: %s", n, a.Shard, text, a.Reason)
	n.m.Change(a.Shard, rs, func(err error) {
		if err == nil {
			n.w.stats.moves++
		}
		done(err)
	})
}

// place makes and destroys replicas as the placement rows say. Rows of the past are no reason: they are believed only once
// this node's replica of the meta shard is up to date.
func (n *node) place() {
	w := n.w
	if heard := n.m.Status(dunlin.MetaShard).Heard; heard < 0 || heard > time.Second {
		n.recheck = true
		return
	}
	for _, m := range n.members() {
		if m.ID == n.id && m.State == dunlin.MemberLeft {
			w.say("%s reads that it has left", n)
			n.over = true
			n.stop()
			return
		}
	}
	for i := range w.shards {
		row, ok := n.placement(dunlin.ShardID(i))
		if !ok {
			continue
		}
		st := n.m.Status(row.Shard)
		switch {
		case row.Names(n.id) && !st.Present:
			if err := n.m.Ensure(row.Shard); errors.Is(err, dunlin.ErrConflict) {
				n.recheck = true
			} else if err != nil {
				w.fail("%s: ensure shard %d: %w", n, row.Shard, err)
			}
			n.poke()
		case n.leaving[row.Shard], st.Present && row.Shard != dunlin.MetaShard && row.Drops(n.id, st.Applied, inConf(&st.Conf, n.id)):
			n.leaving[row.Shard] = true
			switch err := n.m.Destroy(row.Shard, row.Was[n.id]); {
			case errors.Is(err, dunlin.ErrUnavailable):
				n.recheck = true
			case err != nil:
				n.broken(err)
				return
			default:
				delete(n.leaving, row.Shard)
			}
			n.poke()
		case !row.Names(n.id) && st.Present && row.Shard != dunlin.MetaShard:
			n.recheck = true // it is to go, and does not know it yet
		}
	}
}

func inConf(c *replica.Conf, id dunlin.NodeID) bool {
	return slices.Contains(slices.Concat(c.Voters, c.Outgoing, c.Learners, c.LearnersNext), id)
}

// master is the node whose controller works, nil if there is none.
func (w *world) master() *node {
	for _, n := range w.nodes {
		if n.up && n.ctl != nil {
			if _, owns := n.m.Owned(dunlin.MetaShard); owns {
				return n
			}
		}
	}
	return nil
}

// gone reports whether a member has left, as the controller has it.
func (n *node) gone(id dunlin.NodeID) bool {
	return slices.ContainsFunc(n.members(), func(m control.Member) bool { return m.ID == id && m.State == dunlin.MemberLeft })
}
