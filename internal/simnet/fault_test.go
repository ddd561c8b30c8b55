package simnet

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/control"
)

// nextFault lets faults come until a moment.
func (w *world) nextFault(end dunlin.Time) {
	w.after(w.between(w.every/3, 2*w.every), func() {
		if w.now < end {
			w.stats.faults++
			w.fault()
			w.nextFault(end)
		}
	})
}

// fault is one thing that goes wrong, or that an operator does.
func (w *world) fault() {
	up := w.living()
	if len(up) == 0 {
		return
	}
	n := up[w.rng.IntN(len(up))]
	switch k := w.rng.IntN(100); {
	case k < 22:
		n.crash("power")
		n.back()
	case k < 26: // all at once
		for _, o := range up {
			o.crash("power of the house")
			o.back()
		}
	case k < 44:
		w.partition()
	case k < 52:
		d := w.between(5*time.Millisecond, 400*time.Millisecond)
		w.say("the disk of %s becomes slow: %v", n, d)
		n.slow = d
		n.later(w.between(300*time.Millisecond, 2*time.Second), func() { n.slow = 300 * time.Microsecond })
	case k < 57:
		w.say("the disk of %s fails", n)
		n.failing = true
	case k < 65:
		w.net.slow, w.net.double = w.rng.IntN(30), w.rng.IntN(20)
		w.say("%d %% of messages are slow, %d %% come twice", w.net.slow, w.net.double)
		w.after(w.between(300*time.Millisecond, 3*time.Second), func() { w.net.slow, w.net.double = 0, 0 })
	case k < 69:
		n.skew = w.between(-5*time.Second, 5*time.Second)
		w.say("the clock of %s jumps to %v", n, n.skew)
	case k < 76 && len(up) < w.most:
		w.born(fmt.Sprintf("n%d", w.nextID), false)
	case k < 83:
		w.wipe(n)
	case k < 90:
		w.operate(n)
	case k < 95:
		w.moveShard(n)
	default:
		for i := range w.shards {
			w.truth.hash(n, dunlin.ShardID(i))
		}
	}
}

// wipe takes a node's disk away, and gives its name to a new one; unless a shard could lose its majority for good.
func (w *world) wipe(n *node) {
	if !w.spare(n) {
		return
	}
	w.say("%s is wiped", n)
	w.stats.crashes++
	n.stop()
	n.over = true
	w.after(w.between(100*time.Millisecond, 2*time.Second), func() { w.born(n.name, false) })
}

// spare reports whether every shard that has a replica on the node keeps a majority, of all replica sets that any node takes
// for the newest.
func (w *world) spare(n *node) bool {
	keeps := func(ids []dunlin.NodeID) bool {
		left := 0
		for _, id := range ids {
			if o := w.node(id); o != n && !o.over {
				left++
			}
		}
		return len(ids) == 0 || left > len(ids)/2
	}
	for _, o := range w.nodes {
		if o.over {
			continue
		}
		if !o.up {
			return false // who knows what it knows
		}
		for i := range w.shards {
			st := o.m.Status(dunlin.ShardID(i))
			if st.Present && (len(st.Conf.Voters) < 3 || len(st.Conf.Outgoing) > 0 || !keeps(st.Conf.Voters)) {
				return false
			}
			// A change may be on its way: who is a learner may be a voter a moment later.
			if slices.Contains(st.Conf.Learners, n.id) && sh(i) != dunlin.MetaShard {
				return false
			}
		}
	}
	return true
}

func sh(i int) dunlin.ShardID { return dunlin.ShardID(i) }

// operate sets a member's state, as an operator may.
func (w *world) operate(n *node) {
	m := w.master()
	if m == nil {
		return
	}
	state := []dunlin.MemberState{dunlin.MemberDraining, dunlin.MemberLeaving, dunlin.MemberActive, dunlin.MemberActive}[w.rng.IntN(4)]
	if err := control.CanSet(m.view(), n.id, state, w.limits); err != nil {
		return
	}
	for _, row := range m.members() {
		if row.ID == n.id && row.State != state {
			w.say("the operator sets %s to %s", n, state)
			row.State = state
			m.put("operator", dunlin.Put{Table: dunlin.TableMembers, Key: control.MemberKey(n.id), Value: control.EncodeMember(&row)})
		}
	}
}

// moveShard asks for a replica, or an ownership, to be moved.
func (w *world) moveShard(to *node) {
	m := w.master()
	if m == nil {
		return
	}
	r := control.Request{Shard: sh(w.rng.IntN(w.shards)), To: to.id}
	row, ok := m.placement(r.Shard)
	if !ok {
		return
	}
	r.From = row.Voters[w.rng.IntN(len(row.Voters))]
	if err := control.CanMove(m.view(), r.Shard, r.From, r.To, w.limits); err != nil {
		return
	}
	w.say("the operator moves shard %d from %s to %s", r.Shard, w.node(r.From), to)
	m.put("operator", dunlin.Put{Table: dunlin.TableCluster, Key: control.RequestKey(r.Shard), Value: control.EncodeRequest(&r)})
}

// heal ends all faults.
func (w *world) heal() {
	w.say("all is healed")
	w.healed = true
	w.net = network{}
	for _, n := range w.nodes {
		n.slow, n.failing = 300*time.Microsecond, false
		if !n.up && !n.over {
			n.start()
		}
	}
	for _, c := range w.clients {
		c.over = true
	}
}

// atRest reports whether there is nothing left to be done.
func (w *world) atRest() bool { return w.stats.events%64 == 0 && w.unrest() == "" }

// unrest says what is still to be done, or nothing.
func (w *world) unrest() string {
	for _, c := range w.clients {
		if c.out != nil {
			return fmt.Sprintf("%s waits for an answer to message %d", c.key.Device, c.sent)
		}
	}
	m := w.master()
	if m == nil {
		return "nobody owns the meta shard"
	}
	if m.ctl.idle == 0 || w.now.Sub(m.ctl.idle) < 3*time.Second {
		return "the controller has things to do"
	}
	if st := control.Health(m.view(), w.limits); !st.Healthy {
		return "not healthy: " + strings.Join(st.Problems, "; ")
	}
	for i := range w.shards {
		if text := w.shardUnrest(m, sh(i)); text != "" {
			return fmt.Sprintf("shard %d: %s", i, text)
		}
	}
	return ""
}

func (w *world) shardUnrest(m *node, s dunlin.ShardID) string {
	row, ok := m.placement(s)
	if !ok {
		return "it has no placement"
	}
	var owner *node
	for _, n := range w.living() {
		if _, owns := n.m.Owned(s); owns && n.id != 0 {
			owner = n
		}
	}
	if owner == nil {
		return "nobody owns it"
	}
	want := owner.m.Status(s).Commit
	for _, n := range w.living() {
		st := n.m.Status(s)
		switch {
		case m.gone(n.id):
		case row.Names(n.id) && (!st.Present || st.Applied != want):
			return fmt.Sprintf("%s has applied %d of %d", n, st.Applied, want)
		case !row.Names(n.id) && st.Present:
			return fmt.Sprintf("%s still has a replica", n)
		}
	}
	return ""
}

// finish is the last look at everything.
func (w *world) finish() {
	m := w.master()
	for i := range w.shards {
		s := sh(i)
		row, _ := m.placement(s)
		checked := false
		for _, n := range w.living() {
			if !row.Names(n.id) || m.gone(n.id) {
				continue
			}
			if got, want := n.db.State().Applied(s), uint64(len(w.truth.shards[i].log)); got != want {
				w.fail("shard %d: %s has applied %d entries, want %d", i, n, got, want)
			}
			w.truth.hash(n, s)
			if !checked { // the others have the same hash
				checked = true
				if err := w.truth.check(n, s); err != nil {
					w.fail("shard %d on %s: %w", i, n, err)
				}
			}
		}
	}
	for _, c := range w.clients {
		for _, id := range c.acked {
			if w.truth.messages[id] == 0 {
				w.fail("message %x of %s was acknowledged and is gone", id, c.key.Device)
			}
		}
	}
}
