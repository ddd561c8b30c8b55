package control

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/dunlin-iot/dunlin"
)

// shard does the shard's next step, or returns the replica that it wants to be set in motion.
func (s *step) shard(sh *Shard) *want {
	if sh.ID == dunlin.MetaShard {
		s.meta(sh)
		return nil
	}
	mv := sh.Row.Move
	if s.stray(sh, mv) {
		return nil
	}
	if mv != nil {
		s.busy[sh.ID] = true
		s.whole = s.whole && s.push(mv.From) == pushNone && mv.From != 0
		s.advance(sh, mv)
		return nil
	}
	return s.lacks(sh)
}

// stray sends away a learner that no move waits for, such as one whose change was applied after its move was given up. The row
// names it before, even in place of a move, and no longer after: a row from before the learner came says nothing to a replica
// that has applied more.
func (s *step) stray(sh *Shard, mv *Move) bool {
	for _, id := range sh.Conf.Learners {
		switch {
		case mv != nil && mv.To == id:
		case !slices.Contains(sh.Row.Learners, id):
			s.write(sh, Placement{Voters: sh.Conf.Voters, Learners: []dunlin.NodeID{id}}, "a learner on "+s.name(id)+" came late")
			return true
		default:
			s.change(sh, "nobody waits for the learner on "+s.name(id), ReplicaChange{id, RemoveReplica})
			return true
		}
	}
	for _, id := range sh.Row.Learners {
		if (mv == nil || mv.To != id) && !slices.Contains(sh.Conf.Learners, id) {
			s.write(sh, Placement{Voters: sh.Conf.Voters, Learners: without(sh.Row.Learners, id), Move: mv}, "the late learner on "+s.name(id)+" is gone")
			return true
		}
	}
	return false
}

// advance does the next step of the replica in motion.
func (s *step) advance(sh *Shard, mv *Move) {
	voter, learner := slices.Contains(sh.Conf.Voters, mv.To), slices.Contains(sh.Conf.Learners, mv.To)
	reason := s.hopeless(sh, mv.To)
	switch {
	case voter && slices.Contains(sh.Conf.Voters, mv.From):
		s.remove(sh, mv.From, mv.Why)
	case voter:
		s.write(sh, Placement{Voters: sh.Conf.Voters}, "replica on "+s.name(mv.To)+" is there: "+mv.Why)
	case reason != "" && learner:
		s.change(sh, "replica on "+s.name(mv.To)+" is given up: "+reason, ReplicaChange{mv.To, RemoveReplica})
	case reason != "":
		s.write(sh, Placement{Voters: sh.Conf.Voters}, "replica on "+s.name(mv.To)+" is given up: "+reason)
	case !learner:
		s.change(sh, s.moveText(sh.ID, mv.From, mv.To)+": "+mv.Why, ReplicaChange{mv.To, AddLearner})
	case s.caughtUp(sh, mv.To):
		s.promote(sh, mv)
	}
}

// hopeless says why a learner will not make it, or nothing.
func (s *step) hopeless(sh *Shard, id dunlin.NodeID) string {
	if s.push(id) > pushDead || s.push(id) == pushDrain {
		return s.pushWhy(id)
	}
	if d := s.down(id); d >= s.lim.LearnerGrace {
		return s.name(id) + " is down for " + span(d)
	}
	if _, ok := s.c.avoid[place{sh.ID, id}]; ok {
		return "it did not come on"
	}
	if !slices.Contains(sh.Row.Voters, sh.Row.Move.From) && len(sh.Conf.Voters) >= s.wanted(sh.Conf.Voters) {
		return "it is no longer needed"
	}
	if st, ok := s.c.learners[place{sh.ID, id}]; ok && !s.caughtUp(sh, id) {
		if d := s.v.Now.Sub(st.at); d >= s.lim.Patience {
			s.c.avoid[place{sh.ID, id}] = s.v.Now.Add(s.lim.Avoid) // it looks fit: it would be chosen again
			return "it has not come on for " + span(d)
		}
	}
	return ""
}

// promote makes the caught-up learner a voter, in one change with the removal of the one whose place it takes.
func (s *step) promote(sh *Shard, mv *Move) {
	voters, why := sh.Conf.Voters, s.moveText(sh.ID, mv.From, mv.To)+": "+mv.Why
	up := ReplicaChange{mv.To, AddVoter}
	switch {
	case !slices.Contains(voters, mv.From):
		s.change(sh, why, up)
	case sh.Owner != mv.From:
		s.change(sh, why, up, ReplicaChange{mv.From, RemoveReplica})
	case len(voters) == 1:
		s.change(sh, why, up) // then it can take over, and the old owner goes
	default:
		s.handOver(sh, pushGone, why)
	}
}

// remove takes a voter away without another in its place.
func (s *step) remove(sh *Shard, id dunlin.NodeID, why string) {
	if sh.Owner == id {
		s.handOver(sh, pushGone, why)
		return
	}
	s.change(sh, "shard "+fmt.Sprint(sh.ID)+" away from "+s.name(id)+": "+why, ReplicaChange{id, RemoveReplica})
}

// handOver gives the shard to the voter that has the least reason to go, at most the given one, and owns the fewest.
func (s *step) handOver(sh *Shard, push int, why string) bool {
	var best dunlin.NodeID
	for _, id := range sorted(sh.Conf.Voters) {
		if id == sh.Owner || s.push(id) > push || !s.mayLead(sh, id) || sh.Row.Move != nil && id == sh.Row.Move.From {
			continue
		}
		if best == 0 || cmp.Or(cmp.Compare(s.push(id), s.push(best)), cmp.Compare(s.leads[id], s.leads[best])) < 0 {
			best = id
		}
	}
	if best == 0 {
		return false
	}
	s.transfer(sh, best, why)
	return true
}

// mayLead reports whether a voter could take over without making anybody wait.
func (s *step) mayLead(sh *Shard, id dunlin.NodeID) bool { return s.caughtUp(sh, id) }

func (s *step) transfer(sh *Shard, to dunlin.NodeID, why string) {
	s.leads[sh.Owner]--
	s.leads[to]++
	s.do(sh, &Transfer{Shard: sh.ID, Owner: sh.Owner, Term: sh.Term, To: to, Reason: why})
}

// lacks says which replica a shard at rest needs to have moved or made, and takes away one that is too many.
func (s *step) lacks(sh *Shard) *want {
	voters, n := sh.Conf.Voters, s.wanted(sh.Conf.Voters)
	worst := s.worst(sh)
	if len(voters) > n {
		why := s.pushWhy(worst)
		if why == "" {
			why = fmt.Sprintf("%d replicas, %d wanted", len(voters), n)
		}
		s.whole = false
		s.remove(sh, worst, why)
		return nil
	}
	living := 0
	for _, id := range voters {
		if s.lively(sh, id) {
			living++
		}
	}
	if len(voters) < n {
		if to := s.target(sh, 0); to != 0 {
			return &want{sh, 0, to, fmt.Sprintf("it has %d of %d replicas", len(voters), n), rankGrow + living}
		}
		return nil
	}
	push := s.push(worst)
	if push == pushNone {
		return nil
	}
	to := s.target(sh, worst)
	if to == 0 {
		return nil
	}
	rank := rankRepair + living
	if push == pushDrain || push == pushLeave && s.alive(worst) {
		rank = rankEmpty
	}
	return &want{sh, worst, to, s.pushWhy(worst), rank}
}

// worst is the voter that can best be spared.
func (s *step) worst(sh *Shard) dunlin.NodeID {
	zones := s.zones(sh.Conf.Voters, 0)
	return slices.MaxFunc(sorted(sh.Conf.Voters), func(a, b dunlin.NodeID) int {
		return cmp.Or(cmp.Compare(s.push(a), s.push(b)), cmp.Compare(min(zones[s.zone(a)], 2), min(zones[s.zone(b)], 2)),
			cmp.Compare(s.replicas[a], s.replicas[b]), cmp.Compare(s.bytes[a], s.bytes[b]), cmp.Compare(a, b))
	})
}

// target is the best member for a new replica of the shard, in from's place; 0 if there is none: another zone first, then
// who has the fewest replicas.
func (s *step) target(sh *Shard, from dunlin.NodeID) dunlin.NodeID {
	zones := s.zones(sh.Conf.Voters, from)
	best := s.best(sh, func(a, b *Member) int {
		return cmp.Or(cmp.Compare(min(zones[a.Zone], 1), min(zones[b.Zone], 1)), cmp.Compare(s.replicas[a.ID], s.replicas[b.ID]),
			cmp.Compare(s.bytes[a.ID], s.bytes[b.ID]), cmp.Compare(a.ID, b.ID))
	})
	if best == nil {
		return 0
	}
	return best.ID
}

func (s *step) best(sh *Shard, order func(a, b *Member) int) *Member {
	var best *Member
	for _, m := range s.usable {
		if s.takes(sh, m) && (best == nil || order(m, best) < 0) {
			best = m
		}
	}
	return best
}

// takes reports whether a member can be given a replica of the shard. It must have room for the snapshot and for the state
// made of it, and then some.
func (s *step) takes(sh *Shard, m *Member) bool {
	_, avoided := s.c.avoid[place{sh.ID, m.ID}]
	return !avoided && !s.rests(sh.ID, m.ID) && !sh.Row.Names(m.ID) && !slices.Contains(sh.Conf.Voters, m.ID) && !slices.Contains(sh.Conf.Learners, m.ID) &&
		(m.DiskFree == 0 || m.DiskFree > 3*sh.Bytes)
}
