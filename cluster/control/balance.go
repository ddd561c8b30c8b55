package control

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/dunlin-iot/dunlin"
)

// balance sets replicas in motion for the sake of order: each first in its own zone, then all members alike. Every such move
// makes the order strictly better (more zones; or as many, and a smaller sum of squares), so that they end.
func (s *step) balance() {
	for i := range s.v.Shards {
		if sh := &s.v.Shards[i]; s.idle(sh) {
			if w := s.spread(sh); w != nil {
				s.begin(w)
			}
		}
	}
	for range s.lim.Moves * wholeMove {
		w := s.level()
		if w == nil {
			return
		}
		s.begin(w)
	}
}

// idle reports whether a shard may be set in motion for the sake of order: it is whole and at rest.
func (s *step) idle(sh *Shard) bool {
	return sh.ID != dunlin.MetaShard && !s.busy[sh.ID] && sh.Row.Move == nil && len(sh.Conf.Learners) == 0 &&
		!slices.ContainsFunc(sh.Conf.Voters, func(id dunlin.NodeID) bool { return !s.isUsable(id) || !s.caughtUp(sh, id) })
}

// spread finds a replica that shares its zone with another one of the shard, and a member of a zone that has none.
func (s *step) spread(sh *Shard) *want {
	zones := s.zones(sh.Conf.Voters, 0)
	to := s.target(sh, 0)
	if to == 0 || zones[s.zone(to)] > 0 {
		return nil
	}
	from := s.worst(sh)
	if zones[s.zone(from)] < 2 {
		return nil
	}
	return &want{sh: sh, from: from, to: to, why: "it has no replica in zone " + s.zone(to)}
}

// level finds the move that makes the members most alike.
func (s *step) level() *want {
	busiest := slices.Clone(s.usable)
	slices.SortStableFunc(busiest, func(a, b *Member) int { return cmp.Compare(s.replicas[b.ID], s.replicas[a.ID]) })
	var best *want
	widest := s.lim.Imbalance
	for _, from := range busiest {
		for _, to := range slices.Backward(busiest) {
			apart := s.replicas[from.ID] - s.replicas[to.ID]
			if apart < widest || best != nil && apart == widest {
				break
			}
			if sh := s.pick(from, to); sh != nil {
				widest = apart
				best = &want{sh: sh, from: from.ID, to: to.ID,
					why: fmt.Sprintf("%s has %d replicas, %s %d", from.Name, s.replicas[from.ID], to.Name, s.replicas[to.ID])}
			}
		}
	}
	return best
}

// pick chooses the shard whose replica should go from one member to another: of those that may, the one that brings their
// bytes closest together.
func (s *step) pick(from, to *Member) *Shard {
	var best *Shard
	apart := s.bytes[from.ID] - s.bytes[to.ID]
	off := func(sh *Shard) int64 { return max(apart-2*sh.Bytes, 2*sh.Bytes-apart) }
	for i := range s.v.Shards {
		sh := &s.v.Shards[i]
		if !s.idle(sh) || !slices.Contains(sh.Conf.Voters, from.ID) || !s.takes(sh, to) || !s.budget.room(sh, to.ID) {
			continue
		}
		if rest := s.zones(sh.Conf.Voters, from.ID); from.Zone != to.Zone && rest[to.Zone] > 0 && rest[from.Zone] == 0 {
			continue // a zone would be lost
		}
		if best == nil || off(sh) < off(best) {
			best = sh
		}
	}
	return best
}

// requests turns what the operator asked for into wants, and ends what is done or can't be.
func (s *step) requests() []want {
	var ws []want
	for i := range s.v.Requests {
		r := &s.v.Requests[i]
		sh := s.find(r.Shard)
		if sh == nil {
			s.actions = append(s.actions, &EndRequest{r.Shard, "there is no such shard"})
			continue
		}
		if s.busy[sh.ID] || !s.fresh(sh) {
			continue
		}
		from, to := slices.Contains(sh.Conf.Voters, r.From), slices.Contains(sh.Conf.Voters, r.To)
		err := canMove(s.roster, sh, r.From, r.To)
		_, gaveUp := s.c.avoid[place{sh.ID, r.To}]
		switch {
		case to && r.From != 0 && !from:
			s.actions = append(s.actions, &EndRequest{r.Shard, s.name(r.To) + " has the replica"})
		case to && sh.Owner == r.To:
			s.actions = append(s.actions, &EndRequest{r.Shard, s.name(r.To) + " owns it"})
		case err != nil:
			s.actions = append(s.actions, &EndRequest{r.Shard, err.Error()})
		case to && s.mayLead(sh, r.To):
			s.transfer(sh, r.To, "asked for")
		case to: // it has to catch up first
		case gaveUp:
			s.actions = append(s.actions, &EndRequest{r.Shard, s.name(r.To) + " did not catch up"})
		default:
			ws = append(ws, want{sh, r.From, r.To, "asked for", rankRequest})
		}
	}
	return ws
}

// hurryLeads takes shards from owners that shall have none: at once, and all.
func (s *step) hurryLeads() {
	for i := range s.v.Shards {
		sh := &s.v.Shards[i]
		if push := s.push(sh.Owner); push != pushNone && s.fresh(sh) && sh.Conf.settled() {
			s.handOver(sh, push-1, s.pushWhy(sh.Owner))
		}
	}
}

// balanceLeads hands shards from those that own many to those that own few, a few at a time, once they are too far apart.
func (s *step) balanceLeads() {
	if len(s.usable) < 2 || s.c.lastHand != 0 && s.v.Now.Sub(s.c.lastHand) < s.lim.TransferRest {
		return
	}
	for range s.lim.Transfers {
		sh, to := s.unevenLead()
		if sh == nil {
			return
		}
		s.c.lastHand, s.c.handed[sh.ID] = s.v.Now, s.v.Now
		from := sh.Owner
		s.transfer(sh, to, fmt.Sprintf("%s owns %d shards, %s %d", s.name(from), s.leads[from], s.name(to), s.leads[to]))
	}
}

// unevenLead finds the transfer between the two that are furthest apart.
func (s *step) unevenLead() (best *Shard, to dunlin.NodeID) {
	most, least := 0, 1<<30
	for _, m := range s.usable {
		most, least = max(most, s.leads[m.ID]), min(least, s.leads[m.ID])
	}
	if most-least <= s.lim.LeadSlack {
		return nil, 0
	}
	widest, busy := 1, s.receiving()
	for i := range s.v.Shards {
		sh := &s.v.Shards[i]
		_, rests := s.c.handed[sh.ID]
		if rests || !s.fresh(sh) || !s.idle(sh) {
			continue
		}
		for _, id := range sorted(sh.Conf.Voters) {
			if apart := s.leads[sh.Owner] - s.leads[id]; apart > widest && !busy[id] && s.mayLead(sh, id) {
				best, to, widest = sh, id, apart
			}
		}
	}
	return best, to
}

// receiving are the members that are being sent replicas of some size. Their disks have enough to do: a shard that they owned
// meanwhile would wait for it.
func (s *step) receiving() map[dunlin.NodeID]bool {
	out := map[dunlin.NodeID]bool{}
	for i := range s.v.Shards {
		if sh := &s.v.Shards[i]; sh.Row.Move != nil && sh.Bytes >= s.lim.SmallBytes {
			out[sh.Row.Move.To] = true
		}
	}
	return out
}
