package control

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/dunlin-iot/dunlin"
)

// meta does the meta shard's next step. Every member has a replica of it, as a learner if it is no voter, so that domains,
// plugins, credentials and placement are known everywhere: learners are where new voters come from, and nobody waits for
// the others.
func (s *step) meta(sh *Shard) {
	for _, id := range sh.Conf.Learners {
		if !slices.Contains(sh.Row.Learners, id) {
			s.write(sh, Placement{Voters: sh.Conf.Voters, Learners: with(sh.Row.Learners, id)}, "the replica set changed")
			return
		}
	}
	for _, id := range sh.Row.Learners {
		if !slices.Contains(sh.Conf.Learners, id) && !slices.Contains(sh.Conf.Voters, id) {
			if !s.alive(id) {
				s.write(sh, Placement{Voters: sh.Conf.Voters, Learners: without(sh.Row.Learners, id)}, s.name(id)+" is not there")
				return
			}
			s.change(sh, s.name(id)+" has a replica of the meta shard, as every member has", ReplicaChange{id, AddLearner})
			return
		}
	}
	if s.metaVoters(sh) {
		return
	}
	for _, id := range sorted(sh.Conf.Learners) {
		if s.gone(id) && s.mayForget(sh, id) {
			s.change(sh, s.pushWhy(id), ReplicaChange{id, RemoveReplica})
			return
		}
	}
	for _, m := range s.all {
		if s.alive(m.ID) && !sh.Row.Names(m.ID) {
			s.write(sh, Placement{Voters: sh.Conf.Voters, Learners: with(sh.Conf.Learners, m.ID)},
				m.Name+" has a replica of the meta shard, as every member has")
			return
		}
	}
}

// mayForget reports whether a member that left need not be told any more: it has read so, or is dead, or had its time.
func (s *step) mayForget(sh *Shard, id dunlin.NodeID) bool {
	m := s.byID[id]
	if m == nil || m.State != dunlin.MemberLeft {
		return m == nil
	}
	p := progressOf(sh, id)
	return !m.Alive || !p.Active || s.v.Now.Sub(s.c.left[id]) >= s.lim.EndRest
}

// metaVoters does the next step of the meta shard's voters, and reports whether there was one to do.
func (s *step) metaVoters(sh *Shard) bool {
	voters, n := sh.Conf.Voters, s.wanted(sh.Conf.Voters)
	worst := s.worst(sh)
	up := s.metaLearner(sh, 0)
	switch {
	case len(voters) > n:
		s.whole = false
		s.demote(sh, worst, 0, cmp.Or(s.pushWhy(worst), fmt.Sprintf("%d voters, %d wanted", len(voters), n)))
		return true
	case len(voters) < n && up != 0:
		s.change(sh, fmt.Sprintf("the meta shard has %d of %d voters", len(voters), n), ReplicaChange{up, AddVoter})
		return true
	case len(voters) < n:
		return false
	}
	if s.push(worst) != pushNone {
		if up = s.metaLearner(sh, worst); up != 0 {
			s.demote(sh, worst, up, s.pushWhy(worst))
			return true
		}
		return false
	}
	for _, id := range sorted(voters) { // of two in a zone, one for another zone
		rest := s.zones(voters, id)
		if up = s.metaLearner(sh, id); up != 0 && rest[s.zone(id)] > 0 && rest[s.zone(up)] == 0 {
			s.demote(sh, id, up, "zone "+s.zone(up)+" has no voter of the meta shard")
			return true
		}
	}
	return false
}

// metaLearner is the best learner to become a voter in from's place; 0 if there is none.
func (s *step) metaLearner(sh *Shard, from dunlin.NodeID) dunlin.NodeID {
	zones := s.zones(sh.Conf.Voters, from)
	var best dunlin.NodeID
	for _, id := range sorted(sh.Conf.Learners) {
		if s.isUsable(id) && s.caughtUp(sh, id) && (best == 0 || zones[s.zone(id)] < zones[s.zone(best)]) {
			best = id
		}
	}
	return best
}

// demote makes a voter a learner, or removes it if it is gone, in one change with the promotion of up.
func (s *step) demote(sh *Shard, id, up dunlin.NodeID, why string) {
	if sh.Owner == id {
		if !s.handOver(sh, pushGone, why) && len(sh.Conf.Voters) == 1 && up != 0 {
			s.change(sh, why, ReplicaChange{up, AddVoter})
		}
		return
	}
	var rs []ReplicaChange
	if up != 0 {
		rs = append(rs, ReplicaChange{up, AddVoter})
	}
	kind := AddLearner
	if s.gone(id) {
		kind = RemoveReplica
	}
	s.change(sh, why, append(rs, ReplicaChange{id, kind})...)
}

// endMembers ends the membership of those that leave, or were replaced, and have had nothing for a while but the meta shard's
// log: a promotion there that is still under way would otherwise make a voter of one that has left.
func (s *step) endMembers() {
	meta := s.find(dunlin.MetaShard)
	if meta == nil || !s.fresh(meta) {
		return
	}
	for _, m := range s.all {
		if m.State == dunlin.MemberLeft || m.State != dunlin.MemberLeaving && s.replaced[m.ID] == 0 {
			delete(s.c.ending, m.ID)
			continue
		}
		has := slices.ContainsFunc(s.v.Shards, func(sh Shard) bool {
			voter := slices.Contains(sh.Row.Voters, m.ID) || slices.Contains(sh.Conf.Voters, m.ID)
			return sh.Row.Epoch == 0 || voter || sh.ID != dunlin.MetaShard && (sh.Row.Names(m.ID) || slices.Contains(sh.Conf.Learners, m.ID))
		})
		since, ok := s.c.ending[m.ID]
		switch {
		case has:
			delete(s.c.ending, m.ID)
		case !ok:
			s.c.ending[m.ID] = s.v.Now
		case s.v.Now.Sub(since) >= s.lim.EndRest:
			s.actions = append(s.actions, &SetMemberState{Member: m.ID, From: m.State, State: dunlin.MemberLeft,
				Reason: s.pushWhy(m.ID) + ", and has no replica any more"})
		}
	}
}
