package control

import (
	"fmt"
	"slices"

	"github.com/dunlin-iot/dunlin"
)

// CanSet says why a member can't be set to a state, with dunlin.ErrConflict or ErrNotFound, or nil.
//
// A drain needs another living member, to take the ownerships; where nobody can take a replica, it stays, and Health says so.
// A leave is refused if it would leave fewer living members than the replication factor: a shard's copies have to be
// somewhere. (Lower the factor first, to shrink below it.) A dead member may always leave: its copies are missing anyhow.
// If members die after a leave was granted, it waits. It can be taken back until the member has left.
// Both are refused while a shard's replica on the member could not be moved for lack of a living majority.
func CanSet(v *View, id dunlin.NodeID, state dunlin.MemberState, lim Limits) error {
	l := lim.withDefaults()
	r := newRoster(v, &l)
	m := r.byID[id]
	if m == nil {
		return fmt.Errorf("%w: member %s", dunlin.ErrNotFound, id)
	}
	if m.State == dunlin.MemberLeft {
		return fmt.Errorf("%w: %s has left; a node that comes back under its name with an empty folder is a new member", dunlin.ErrConflict, m.Name)
	}
	switch state {
	case dunlin.MemberActive:
		return nil // what has moved away from it comes back by and by
	case dunlin.MemberDraining, dunlin.MemberLeaving:
	default:
		return fmt.Errorf("%w: member state %q: want active, draining or leaving", dunlin.ErrInvalid, state)
	}
	if m.State == state {
		return nil
	}
	rest := 0
	for _, o := range r.usable {
		if o.ID != id {
			rest++
		}
	}
	if rest == 0 {
		return fmt.Errorf("%w: without %s there would be no living active member", dunlin.ErrConflict, m.Name)
	}
	if state == dunlin.MemberLeaving && m.Alive && m.State == dunlin.MemberActive && rest < v.Replication {
		return fmt.Errorf("%w: shards have %d replicas, and without %s only %d living members could take them; add a member first",
			dunlin.ErrConflict, v.Replication, m.Name, rest)
	}
	if sh := r.needs(id); sh != nil {
		return fmt.Errorf("%w: shard %d has too few living replicas to move the one on %s; start its other members first",
			dunlin.ErrConflict, sh.ID, m.Name)
	}
	return nil
}

// needs finds a shard whose replica on the member could not be moved: too few of its voters live to agree on it.
func (r *roster) needs(id dunlin.NodeID) *Shard {
	for i := range r.v.Shards {
		sh := &r.v.Shards[i]
		if !slices.Contains(sh.Row.Voters, id) {
			continue
		}
		living := 0
		for _, v := range sh.Row.Voters {
			if r.alive(v) {
				living++
			}
		}
		if living <= len(sh.Row.Voters)/2 {
			return sh
		}
	}
	return nil
}

// CanMove says why a shard's replica can't be moved from one member to another, or its ownership given to one, with
// dunlin.ErrConflict, ErrInvalid or ErrNotFound; or nil. What it allows may become a Request.
func CanMove(v *View, shard dunlin.ShardID, from, to dunlin.NodeID, lim Limits) error {
	l := lim.withDefaults()
	r := newRoster(v, &l)
	sh := r.find(shard)
	if sh == nil {
		return fmt.Errorf("%w: shard %d", dunlin.ErrNotFound, shard)
	}
	for _, q := range v.Requests {
		if q.Shard == shard {
			return fmt.Errorf("%w: shard %d has been asked to go to %s already", dunlin.ErrConflict, shard, r.name(q.To))
		}
	}
	return canMove(r, sh, from, to)
}

func canMove(r *roster, sh *Shard, from, to dunlin.NodeID) error {
	m := r.byID[to]
	voters := sh.Row.Voters
	switch {
	case m == nil || m.State == dunlin.MemberLeft:
		return fmt.Errorf("%w: member %s", dunlin.ErrNotFound, to)
	case !r.isUsable(to):
		return fmt.Errorf("%w: %s can take nothing: it is %s", dunlin.ErrConflict, m.Name, stateWord(m))
	case slices.Contains(voters, to):
		return nil
	case sh.ID == dunlin.MetaShard:
		return fmt.Errorf("%w: every member has a replica of the meta shard; only its ownership can be moved, to one of its voters", dunlin.ErrConflict)
	case !slices.Contains(voters, from):
		return fmt.Errorf("%w: %s has no voting replica of shard %d", dunlin.ErrInvalid, r.name(from), sh.ID)
	}
	return nil
}

func stateWord(m *Member) string {
	if !m.Alive {
		return "down"
	}
	return string(m.State)
}
