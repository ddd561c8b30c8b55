package control

import (
	"fmt"
	"slices"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

// Health says how the cluster is: all of dunlin.ClusterStatus but who answers. Problems say what to do.
func Health(v *View, lim Limits) dunlin.ClusterStatus {
	l := lim.withDefaults()
	h := &health{roster: newRoster(v, &l)}
	st := &h.status
	st.Shards, st.Replication, st.Moves, st.Problems = len(v.Shards), v.Replication, []string{}, []string{}
	for _, m := range h.all {
		if m.State == dunlin.MemberLeft {
			continue
		}
		st.Members++
		if m.Alive {
			st.Alive++
		}
		if e := m.EntryMax; m.Alive && e != 0 && (st.Entries == 0 || e < st.Entries) {
			st.Entries = e
		}
	}
	for i := range v.Shards {
		h.shard(&v.Shards[i])
	}
	if meta := h.find(dunlin.MetaShard); meta != nil && h.fresh(meta) {
		st.Controller = meta.Owner
	}
	st.Healthy = st.Owned == st.Shards && st.Full == st.Shards
	h.problems()
	return *st
}

type health struct {
	*roster
	status dunlin.ClusterStatus

	lost    map[string][]dunlin.ShardID // by who of their members is missing
	waiting []dunlin.ShardID            // a majority lives, but nobody owns them
	thin    []dunlin.ShardID            // fewer replicas than they shall have
	stuck   map[dunlin.NodeID]int       // replicas that should go and have nowhere to
}

// Moving says what the controller is doing with a shard, "" if nothing.
func Moving(v *View, sh *Shard) string {
	l := Limits{}.withDefaults()
	return newRoster(v, &l).moving(sh)
}

func (r *roster) moving(sh *Shard) string {
	mv := sh.Row.Move
	if mv == nil {
		if !sh.Conf.settled() {
			return "replica set changing"
		}
		return ""
	}
	p := progressOf(sh, mv.To)
	switch {
	case !sh.Conf.settled():
		return "replica set changing"
	case slices.Contains(sh.Conf.Voters, mv.To):
		return "arrived"
	case !slices.Contains(sh.Conf.Learners, mv.To):
		return "starting"
	case p.Snapshot != 0 && sh.Bytes > 0 && p.Received > 0:
		return fmt.Sprintf("snapshot %d %%", min(99, 100*p.Received/sh.Bytes))
	case p.Snapshot != 0:
		return "snapshot"
	case r.caughtUp(sh, mv.To):
		return "catch-up 100 %"
	case sh.Commit > 0:
		return fmt.Sprintf("catch-up %d %%", min(99, 100*p.Match/sh.Commit))
	}
	return "catch-up"
}

func (h *health) shard(sh *Shard) {
	st := &h.status
	if mv := sh.Row.Move; mv != nil {
		st.Moves = append(st.Moves, h.moveLine(sh, mv))
	}
	living := 0
	var missing []string
	for _, id := range sh.Row.Voters {
		if h.alive(id) {
			living++
		} else {
			missing = append(missing, h.name(id))
		}
	}
	owned := h.fresh(sh)
	if owned {
		st.Owned++
	}
	want := h.wanted(sh.Row.Voters)
	switch {
	case living >= want && living == len(sh.Row.Voters):
		st.Full++
	case living > len(sh.Row.Voters)/2 && owned:
		h.thin = append(h.thin, sh.ID)
	}
	switch {
	case owned || sh.Row.Epoch == 0:
	case living <= len(sh.Row.Voters)/2:
		if h.lost == nil {
			h.lost = map[string][]dunlin.ShardID{}
		}
		who := fmt.Sprintf("%d of %d replicas (%s)", len(missing), len(sh.Row.Voters), strings.Join(missing, ", "))
		h.lost[who] = append(h.lost[who], sh.ID)
	default:
		h.waiting = append(h.waiting, sh.ID)
	}
	for _, id := range sh.Row.Voters {
		if owned && sh.ID != dunlin.MetaShard && sh.Row.Move == nil && h.push(id) != pushNone && !h.canTake(sh) {
			if h.stuck == nil {
				h.stuck = map[dunlin.NodeID]int{}
			}
			h.stuck[id]++
		}
	}
}

// canTake reports whether any member could be given another replica of the shard.
func (h *health) canTake(sh *Shard) bool {
	return slices.ContainsFunc(h.usable, func(m *Member) bool { return !sh.Row.Names(m.ID) })
}

func (h *health) moveLine(sh *Shard, mv *Move) string {
	from := ""
	if mv.From != 0 {
		from = " from " + h.name(mv.From)
	}
	return fmt.Sprintf("shard %d%s to %s: %s (%s)", sh.ID, from, h.name(mv.To), h.moving(sh), mv.Why)
}

func (h *health) say(format string, v ...any) {
	h.status.Problems = append(h.status.Problems, fmt.Sprintf(format, v...))
}

// problems puts the worst first.
func (h *health) problems() {
	var whos []string
	for who := range h.lost {
		whos = append(whos, who)
	}
	slices.Sort(whos)
	for _, who := range whos {
		h.say("%s: %s are down, which is no majority: nothing can be written or read there. Start them again; if they are lost for good, "+
			"stop a node that has a replica and run `dunlin cluster recover --unsafe` on it", shards(h.lost[who]), who)
	}
	if len(h.waiting) > 0 {
		h.say("%s: no owner has reported, though a majority of the replicas lives: an election ends this within seconds; if it lasts, "+
			"look whether the nodes reach each other", shards(h.waiting))
	}
	h.deadMembers()
	if n := len(h.usable); n == 2 && h.v.Replication > 2 && h.status.Members == 2 {
		h.say("there are 2 members: if either stops, nothing can be acknowledged until it is back. Add a third")
	}
	for _, m := range h.all {
		n := h.stuck[m.ID]
		switch {
		case n == 0 && m.State == dunlin.MemberDraining && m.Alive && len(h.usable) < h.v.Replication:
			h.say("%s drains, and without it shards can have %d of %d replicas: set it active again, or add a member", m.Name, len(h.usable), h.v.Replication)
		case n == 0:
		case m.State == dunlin.MemberDraining && m.Alive:
			h.say("%s drains, and keeps its replicas (%d), because no other member can take them: its shards are owned elsewhere, so it may be "+
				"restarted; add a member to empty it", m.Name, n)
		case m.State == dunlin.MemberLeaving:
			h.say("%s leaves, and nobody can take its replicas (%d): add a member", m.Name, n)
		}
	}
	for _, m := range h.usable {
		if total := m.DiskFree + m.DiskUsed; m.DiskFree > 0 && m.DiskFree < total/10 {
			h.say("%s has %d MiB of disk left: give it more, or add a member", m.Name, m.DiskFree>>20)
		}
	}
	h.twins()
	if len(h.status.Problems) == 0 && len(h.thin) > 0 && len(h.status.Moves) == 0 {
		h.say("%s: they lack living replicas; these are being made", shards(h.thin))
	}
}

func (h *health) deadMembers() {
	for _, m := range h.all {
		d := h.down(m.ID)
		if d == 0 {
			continue
		}
		switch n := h.stuck[m.ID]; {
		case d < h.lim.Grace && m.State == dunlin.MemberActive && len(h.usable) < h.status.Replication:
			h.say("%s is down for %s: start it again; no other member could take its replicas", m.Name, span(d))
		case d < h.lim.Grace && m.State == dunlin.MemberActive:
			h.say("%s is down for %s: start it again; in %s its replicas are made anew elsewhere", m.Name, span(d), span(h.lim.Grace-d))
		case n > 0:
			h.say("%s is down for %s, and nobody can take its replicas (%d): start it again, or add a member", m.Name, span(d), n)
		case len(h.lost) > 0:
			h.say("%s is down for %s: start it again", m.Name, span(d))
		default:
			h.say("%s is down for %s: start it again, or let it go with `dunlin cluster leave %s`", m.Name, span(d), m.Name)
		}
	}
}

// twins tells of living members with one name.
func (h *health) twins() {
	for i, m := range h.all {
		for _, o := range h.all[i+1:] {
			if m.Name == o.Name && m.Alive && o.Alive && m.State != dunlin.MemberLeft && o.State != dunlin.MemberLeft {
				h.say("two living members are called %s (%s and %s): stop one and give it another name", m.Name, m.ID, o.ID)
			}
		}
	}
}

// shards lists ids as ranges.
func shards(ids []dunlin.ShardID) string {
	var b strings.Builder
	b.WriteString("shard")
	if len(ids) > 1 {
		b.WriteByte('s')
	}
	for i := 0; i < len(ids); {
		j := i
		for j+1 < len(ids) && ids[j+1] == ids[j]+1 {
			j++
		}
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, " %d", ids[i])
		if j > i {
			fmt.Fprintf(&b, "–%d", ids[j])
		}
		i = j + 1
	}
	return b.String()
}
