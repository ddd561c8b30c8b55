package control

import (
	"cmp"
	"fmt"
	"slices"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// roster answers questions about a view's members and shards.
type roster struct {
	v        *View
	lim      *Limits
	all      []*Member // by id
	byID     map[dunlin.NodeID]*Member
	replaced map[dunlin.NodeID]dunlin.NodeID // a wiped node's old id → its new one
	usable   []*Member                       // may be given replicas, by id
}

func newRoster(v *View, l *Limits) *roster {
	r := &roster{v: v, lim: l, byID: map[dunlin.NodeID]*Member{}, replaced: map[dunlin.NodeID]dunlin.NodeID{}}
	for i := range v.Members {
		m := &v.Members[i]
		r.all = append(r.all, m)
		r.byID[m.ID] = m
	}
	slices.SortFunc(r.all, func(a, b *Member) int { return cmp.Compare(a.ID, b.ID) })
	newest := map[string]*Member{}
	for _, m := range r.all {
		if was := newest[m.Name]; was == nil || m.Joined >= was.Joined { // one that has left replaces the earlier, too
			newest[m.Name] = m
		}
	}
	for _, m := range r.all {
		if by := newest[m.Name]; m.State != dunlin.MemberLeft && by != m && !m.Alive {
			r.replaced[m.ID] = by.ID
		}
	}
	for _, m := range r.all {
		if m.State == dunlin.MemberActive && m.Alive && !r.gone(m.ID) {
			r.usable = append(r.usable, m)
		}
	}
	return r
}

// name is how people call the member. A wiped node's old id is told apart.
func (r *roster) name(id dunlin.NodeID) string {
	m := r.byID[id]
	if m == nil || m.Name == "" {
		return id.String()
	}
	if r.replaced[id] != 0 {
		return "the old " + m.Name
	}
	return m.Name
}

func (r *roster) zone(id dunlin.NodeID) string {
	if m := r.byID[id]; m != nil {
		return m.Zone
	}
	return ""
}

// gone reports a member that will never be back: unknown, left, or replaced by another life of its node.
func (r *roster) gone(id dunlin.NodeID) bool {
	m := r.byID[id]
	return m == nil || m.State == dunlin.MemberLeft || r.replaced[id] != 0
}

func (r *roster) alive(id dunlin.NodeID) bool { return !r.gone(id) && r.byID[id].Alive }

// down returns for how long a member has been dead, 0 if it isn't.
func (r *roster) down(id dunlin.NodeID) time.Duration {
	if r.gone(id) || r.byID[id].Alive {
		return 0
	}
	return max(time.Duration(r.byID[id].DownFor), 1)
}

func (r *roster) isUsable(id dunlin.NodeID) bool {
	return slices.ContainsFunc(r.usable, func(m *Member) bool { return m.ID == id })
}

// How badly a member should have no voter.
const (
	pushNone  = iota
	pushDrain // asked to; it may stay where nobody else can take it
	pushDead  // likewise: it may come back
	pushLeave // it has to go
	pushGone  // what it had is lost already
)

func (r *roster) push(id dunlin.NodeID) int {
	switch {
	case r.gone(id):
		return pushGone
	case r.byID[id].State == dunlin.MemberLeaving:
		return pushLeave
	case r.down(id) >= r.lim.Grace:
		return pushDead
	case r.byID[id].State == dunlin.MemberDraining:
		return pushDrain
	}
	return pushNone
}

// pushWhy says what pushes a member's replicas away.
func (r *roster) pushWhy(id dunlin.NodeID) string {
	switch r.push(id) {
	case pushGone:
		if by := r.replaced[id]; by != 0 {
			return r.name(by) + " came back with an empty folder"
		}
		return r.name(id) + " is gone"
	case pushLeave:
		return r.name(id) + " leaves"
	case pushDead:
		return r.name(id) + " is down for " + span(r.down(id))
	case pushDrain:
		return r.name(id) + " drains"
	}
	return ""
}

// span is a duration as people say it.
func span(d time.Duration) string {
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return fmt.Sprintf("%dh", d/time.Hour)
}

func (r *roster) find(sh dunlin.ShardID) *Shard {
	i, ok := slices.BinarySearchFunc(r.v.Shards, sh, func(s Shard, id dunlin.ShardID) int { return cmp.Compare(s.ID, id) })
	if !ok {
		return nil
	}
	return &r.v.Shards[i]
}

// fresh reports whether the shard has an owner that lives and has reported lately.
func (r *roster) fresh(sh *Shard) bool {
	return sh.Owner != 0 && r.alive(sh.Owner) && sh.Age <= r.lim.ReportAge
}

// wanted is how many voters a shard that has these shall have: the replication factor, but no more than there are members to
// take them. A member that is dead, drains or leaves keeps what it has while nobody else can take it: one copy less would
// help nobody. Only a member that is lost, or is dead and was told to leave, is let go without another in its place.
func (r *roster) wanted(voters []dunlin.NodeID) int {
	n := len(r.usable)
	for _, id := range voters {
		if push := r.push(id); !r.isUsable(id) && (push < pushLeave || push == pushLeave && r.alive(id)) {
			n++
		}
	}
	return max(1, min(r.v.Replication, n))
}

// progressOf is what the owner knows of a node's replica.
func progressOf(sh *Shard, id dunlin.NodeID) Progress {
	for _, p := range sh.Replicas {
		if p.Node == id {
			if id == sh.Owner {
				p.Match, p.Active = sh.Commit, true
			}
			return p
		}
	}
	return Progress{Node: id, Match: 0, Active: id == sh.Owner}
}

// lively reports whether a replica takes part.
func (r *roster) lively(sh *Shard, id dunlin.NodeID) bool {
	return r.alive(id) && (id == sh.Owner || progressOf(sh, id).Active)
}

// caughtUp reports whether a replica takes part and has nearly everything.
func (r *roster) caughtUp(sh *Shard, id dunlin.NodeID) bool {
	p := progressOf(sh, id)
	return id == sh.Owner || r.lively(sh, id) && p.Snapshot == 0 && p.Match > 0 && p.Match+r.lim.CatchUp >= sh.Commit
}

// majority reports whether most of the voters live and have, or soon will have, what is committed.
func (r *roster) majority(sh *Shard, voters []dunlin.NodeID) bool {
	n := 0
	for _, id := range voters {
		if r.caughtUp(sh, id) {
			n++
		}
	}
	return n > len(voters)/2
}

// zones counts the different zones of the members, one left out.
func (r *roster) zones(ids []dunlin.NodeID, but dunlin.NodeID) map[string]int {
	n := map[string]int{}
	for _, id := range ids {
		if id != but {
			n[r.zone(id)]++
		}
	}
	return n
}
