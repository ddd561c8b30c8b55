package actors

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/device"
)

// lane is where a domain's devices have their turns while its plugins take so long that others would wait for them: beside the
// shard, one turn at a time. The plugin calls run on a goroutine of the lane; the shard itself, between two of them, does what
// only it may do with cells.
//
//	gather ─▶ lane's turn ─▶ prepare ─▶ [process] ─▶ conclude ─▶ … each stage … ─▶ propose ─▶ committed ─▶ next
//	               ▲                       └ the lane's goroutine                                  │
//	               └──────────────── wait: uplinks of the domain that came meanwhile ──────────────┘
type lane struct {
	turn   *turn
	rules  *device.Rules
	flying bool  // turn is being worked off, or committed
	wait   chain // uplinks behind it, at most laneWaitMax
	bytes  int64 // of the uplinks that turn has gathered
}

// laneWaitMax bounds the uplinks of a shard that wait for a lane: the mailbox has room for others' behind them.
const laneWaitMax = 1024

// laneKey names a domain.
type laneKey struct {
	tenant dunlin.Tenant
	domain dunlin.DomainID
}

// slow says whether the domain's turns are taken in a lane: its plugins are expensive, or a lane of it has not ended yet, which
// what comes now must not overtake. The answer is the same for the length of a round.
func (s *shard) slow(r *device.Rules) bool {
	if s.dir.deps.Slow == nil || r == nil || len(r.Stages) == 0 {
		return false
	}
	if is, known := s.slows[r]; known {
		return is
	}
	is := s.lanes[laneKey{r.Tenant, r.Domain}] != nil || s.dir.deps.Slow(r.Tenant, r.Domain)
	if s.slows == nil {
		s.slows = make(map[*device.Rules]bool)
	}
	s.slows[r] = is
	return is
}

// lane returns the domain's lane; it has a turn that gathers, or one that flies.
func (s *shard) lane(r *device.Rules) *lane {
	key := laneKey{r.Tenant, r.Domain}
	l := s.lanes[key]
	if l == nil {
		if s.lanes == nil {
			s.lanes = make(map[laneKey]*lane)
		}
		l = new(lane)
		s.lanes[key] = l
	}
	if l.turn == nil {
		l.turn, l.rules, l.bytes = s.dir.newTurn(s), r, 0
		l.turn.lane = l
	}
	return l
}

// aside puts an uplink into its domain's lane.
func (s *shard) aside(c *cell, u *dunlin.Uplink, r *device.Rules) {
	l := s.lane(r)
	if c.Phase() != device.Committing && (l.flying || l.turn.uplinks >= turnUplinksMax || l.bytes >= turnBytesMax) {
		if l.wait.n >= laneWaitMax {
			s.dir.met.laneFull.Inc()
			s.answer(u, refusal(errLane))
			return
		}
		l.wait.append(u, u)
		return
	}
	switch v, receipt := c.Accept(u, r); v {
	case device.Taken:
		l.turn.uplinks++
		l.bytes += cost(u)
		l.turn.add(c, r)
	case device.Answered:
		s.answer(u, receipt)
		s.stranger(c)
	}
}

// errLane refuses what finds no room.
var errLane = fmt.Errorf("%w: the domain's plugins don't keep up", dunlin.ErrOverloaded)

// fly sends the turns off that lanes have gathered.
func (s *shard) fly(now dunlin.Time) {
	for key, l := range s.lanes {
		switch {
		case l.flying:
		case len(l.turn.cells) == 0:
			s.endLane(key, l)
		default:
			l.flying = true
			s.flying = append(s.flying, l.turn)
			s.aloft++
			s.dir.met.laneTurns.Inc()
			l.turn.term = s.term
			s.draw(l.turn, now)
			l.turn.only(l.turn.rules[0], 0)
			s.stage(l.turn)
		}
	}
	clear(s.slows)
}

// endLane ends a lane that has nothing more to do.
func (s *shard) endLane(key laneKey, l *lane) {
	s.dir.freeTurn(l.turn)
	delete(s.lanes, key)
}

// stage has the lane's goroutine run the next stage of a turn.
func (s *shard) stage(t *turn) {
	r, stage := t.lane.rules, t.stage
	s.prepare(t, r, stage)
	last := stage == len(r.Stages)-1
	s.dir.lanes.Go(func() {
		t.laneErr = t.beside(s.dir, r, stage)
		n, soon := int64(max(t.uplinks, 1)), !last || t.laneErr != nil
		s.box.land(t)
		if soon {
			s.dir.beat.enlistMail(&s.box)
			return
		}
		// What it made shares the next commit with everybody: commits of its own would be in others' way.
		s.dir.beat.enlistTurn(&s.box)
		s.dir.beat.posted(n)
	})
}

// beside is process, on a goroutine that nobody supervises.
func (t *turn) beside(d *Directory, r *device.Rules, stage int) (err error) {
	defer func() {
		if p := recover(); p != nil {
			d.cfg.Log.Error("a lane panicked", slog.Any("reason", p), slog.String("stack", string(debug.Stack())))
			err = errFailed
		}
	}()
	return t.process(d.deps.Processor, r, stage)
}

// landAll goes on with the turns whose stage has been run.
func (s *shard) landAll() {
	for t := s.box.landed.Swap(nil); t != nil; {
		next := t.next
		t.next = nil
		s.land(t)
		t = next
	}
}

func (s *shard) land(t *turn) {
	switch {
	case s.term != t.term: // it never got as far as the committer
		s.ground(t, errNotOwner)
		return
	case t.laneErr != nil:
		s.ground(t, errors.Join(dunlin.ErrUnavailable, t.laneErr))
		return
	}
	s.conclude(t, t.lane.rules, t.stage)
	if t.stage++; t.stage < len(t.lane.rules.Stages) {
		s.stage(t)
		return
	}
	t.forget()
	s.proposeChanges(t)
}

// ground ends a lane's turn that was not proposed. Its uplinks go where the shard went, or are refused.
func (s *shard) ground(t *turn, err error) {
	s.landing(t)
	for _, c := range t.cells {
		s.abort(c, refusal(err))
		s.refuseQueue(c, err)
		s.cells.remove(c)
	}
	s.dir.freeTurn(t)
	if s.term == 0 {
		s.begin()
		s.leave()
	}
	s.moreUpdates()
	s.enlist(s.backlog.n)
}

// landing takes a lane's turn off the list of those that fly; what waited behind it comes next.
func (s *shard) landing(t *turn) {
	l := t.lane
	s.unfly(t)
	s.aloft--
	t.lane, l.turn, l.flying = nil, nil, false
	s.release(l)
	for key, o := range s.lanes {
		if o == l {
			delete(s.lanes, key)
		}
	}
}

// release puts what waits for a lane in front of what came later.
func (s *shard) release(l *lane) {
	n := l.wait.n
	s.backlog.prepend(l.wait.first, int(n))
	l.wait = chain{}
}

// releaseLanes gives up what lanes have gathered and what waits for them; their turns in flight will land.
func (s *shard) releaseLanes() {
	for key, l := range s.lanes {
		s.release(l)
		if !l.flying {
			delete(s.lanes, key)
		}
	}
}
