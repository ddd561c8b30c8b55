package control

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/dunlin-iot/dunlin"
)

// Plan makes one step from the view alone.
func Plan(v *View, l Limits) []Action { return New(l).Step(v) }

// Controller makes steps from views. What it remembers between them only paces it (since when a learner stands still, when
// it last handed a shard over): a new controller knows nothing of that and carries on all the same.
type Controller struct {
	lim      Limits
	learners map[place]standing
	avoid    map[place]dunlin.Time // until when
	lost     map[place]dunlin.Time // since when the row says that the member has lost its replica
	handed   map[dunlin.ShardID]dunlin.Time
	lastHand dunlin.Time
	left     map[dunlin.NodeID]dunlin.Time // since when it is seen as left
	ending   map[dunlin.NodeID]dunlin.Time // since when it is seen with nothing but a learner of the meta shard
}

// place is a replica's: a shard at a member.
type place struct {
	shard dunlin.ShardID
	node  dunlin.NodeID
}

// standing is how far a learner was when it last moved.
type standing struct {
	at       dunlin.Time
	progress Progress
}

// New returns a controller that remembers nothing.
func New(l Limits) *Controller {
	return &Controller{lim: l.withDefaults(), learners: map[place]standing{}, avoid: map[place]dunlin.Time{}, lost: map[place]dunlin.Time{},
		handed: map[dunlin.ShardID]dunlin.Time{}, left: map[dunlin.NodeID]dunlin.Time{}, ending: map[dunlin.NodeID]dunlin.Time{}}
}

// step is the making of one plan.
type step struct {
	*roster
	c       *Controller
	actions []Action
	acted   map[dunlin.ShardID]bool // has its action
	busy    map[dunlin.ShardID]bool // likewise, or is in motion
	whole   bool                    // nothing is to be repaired, grown or emptied

	replicas map[dunlin.NodeID]int // as they will be once what is in motion has arrived; without the meta shard
	bytes    map[dunlin.NodeID]int64
	leads    map[dunlin.NodeID]int
	budget   budget
}

// Step returns what is to be done next, the same for the same view and memory. At rest it is nothing.
func (c *Controller) Step(v *View) []Action {
	s := &step{roster: newRoster(v, &c.lim), c: c, acted: map[dunlin.ShardID]bool{}, busy: map[dunlin.ShardID]bool{},
		whole: true, replicas: map[dunlin.NodeID]int{}, bytes: map[dunlin.NodeID]int64{}, leads: map[dunlin.NodeID]int{}}
	s.budget = newBudget(&c.lim)
	c.watch(s)
	for i := range v.Shards {
		s.count(&v.Shards[i])
	}
	s.hurryLeads()
	var wants []want
	for i := range v.Shards {
		if sh := &v.Shards[i]; !s.acted[sh.ID] && s.ready(sh) {
			if w := s.shard(sh); w != nil {
				wants = append(wants, *w)
				s.whole = false
			}
		}
	}
	wants = append(wants, s.requests()...)
	slices.SortStableFunc(wants, func(a, b want) int { return cmp.Compare(a.rank, b.rank) })
	for i := range wants {
		s.begin(&wants[i])
	}
	if s.whole {
		s.balance()
	}
	s.balanceLeads()
	s.endMembers()
	return s.actions
}

// watch brings the memory up to date with the view.
func (c *Controller) watch(s *step) {
	now, seen := s.v.Now, map[place]bool{}
	for i := range s.v.Shards {
		sh := &s.v.Shards[i]
		if sh.Row.Move == nil || !s.fresh(sh) {
			continue
		}
		at := place{sh.ID, sh.Row.Move.To}
		seen[at] = true
		p := progressOf(sh, at.node)
		if was, ok := c.learners[at]; !ok || was.progress.Match != p.Match || was.progress.Snapshot != p.Snapshot || was.progress.Received != p.Received {
			c.learners[at] = standing{now, p}
		}
	}
	for at := range c.learners {
		if sh := s.find(at.shard); !seen[at] && (sh == nil || s.fresh(sh)) {
			delete(c.learners, at)
		}
	}
	for at, until := range c.avoid {
		if now >= until {
			delete(c.avoid, at)
		}
	}
	c.watchLost(s)
	for sh, at := range c.handed {
		if now.Sub(at) >= c.lim.ShardRest {
			delete(c.handed, sh)
		}
	}
	for _, m := range s.all {
		if _, ok := c.left[m.ID]; m.State == dunlin.MemberLeft && !ok {
			c.left[m.ID] = now
		}
	}
}

// watchLost notes since when members have lost replicas. A controller that is new takes all that it finds for fresh.
func (c *Controller) watchLost(s *step) {
	for i := range s.v.Shards {
		sh := &s.v.Shards[i]
		for id := range sh.Row.Was {
			if at := (place{sh.ID, id}); c.lost[at] == 0 {
				c.lost[at] = s.v.Now
			}
		}
	}
	for at := range c.lost {
		if sh := s.find(at.shard); sh == nil || sh.Row.Was[at.node] == 0 {
			delete(c.lost, at)
		}
	}
}

// rests reports whether a member has lost its replica of a shard only just now. What that one has acknowledged may still be on
// its way to the owner, which would take it for a new one's.
func (s *step) rests(sh dunlin.ShardID, id dunlin.NodeID) bool {
	at, ok := s.c.lost[place{sh, id}]
	return ok && s.v.Now.Sub(at) < s.lim.ReplicaRest
}

// count adds a shard to what members have and do.
func (s *step) count(sh *Shard) {
	mv := sh.Row.Move
	if sh.Owner != 0 {
		s.leads[sh.Owner]++
	}
	if mv != nil {
		s.busy[sh.ID] = true
		s.budget.take(sh, mv.To)
	}
	if sh.ID == dunlin.MetaShard {
		return
	}
	for _, id := range sh.Row.Voters {
		if mv == nil || id != mv.From {
			s.replicas[id]++
			s.bytes[id] += sh.Bytes
		}
	}
	if mv != nil && !slices.Contains(sh.Row.Voters, mv.To) {
		s.replicas[mv.To]++
		s.bytes[mv.To] += sh.Bytes
	}
}

// ready reports whether a shard's row and conf agree on who votes and nothing of it is under way in Raft; if the row has to
// follow, it says so.
func (s *step) ready(sh *Shard) bool {
	row, conf := &sh.Row, &sh.Conf
	if !s.fresh(sh) || !conf.settled() || len(conf.Voters) == 0 || conf.Index < row.ConfIndex {
		s.busy[sh.ID] = true // the owner's report is none, of a moment in between, or older than the row
		return false
	}
	switch {
	case row.Epoch == 0:
		s.write(sh, Placement{Voters: conf.Voters, Learners: conf.Learners}, "the shard has no placement yet")
		return false
	case !sameIDs(row.Voters, conf.Voters):
		s.follow(sh)
		return false
	}
	return true
}

// follow makes the row what conf has become.
func (s *step) follow(sh *Shard) {
	p := Placement{Voters: sh.Conf.Voters, Learners: sh.Conf.Learners}
	why := "the replica set changed"
	if mv := sh.Row.Move; mv != nil {
		voter, from := slices.Contains(p.Voters, mv.To), slices.Contains(p.Voters, mv.From)
		switch {
		case voter && !from:
			why = "replica on " + s.name(mv.To) + " is there: " + mv.Why
		case voter:
			p.Move = mv // and from goes next
		default: // somebody else's doing; the move goes on
			p.Move, p.Learners = mv, with(p.Learners, mv.To)
		}
	}
	s.write(sh, p, why)
}

// write makes the row's next version.
func (s *step) write(sh *Shard, p Placement, why string) {
	p.Shard, p.Epoch, p.ConfIndex = sh.ID, sh.Row.Epoch+1, max(sh.Conf.Index, sh.Row.ConfIndex)
	p.Voters, p.Learners = sorted(p.Voters), sorted(p.Learners)
	was := map[dunlin.NodeID]uint64{}
	for id, at := range sh.Row.Was {
		if m := s.byID[id]; m != nil && m.State != dunlin.MemberLeft && !p.Names(id) {
			was[id] = at
		}
	}
	for _, id := range append(slices.Clone(sh.Row.Voters), sh.Row.Learners...) {
		if !p.Names(id) {
			was[id] = p.ConfIndex
		}
	}
	if len(was) > 0 {
		p.Was = was
	}
	if len(p.Learners) == 0 {
		p.Learners = nil
	}
	s.do(sh, &WritePlacement{Row: p, Reason: why})
}

// do takes an action for a shard, its only one in this step.
func (s *step) do(sh *Shard, a Action) {
	s.busy[sh.ID], s.acted[sh.ID] = true, true
	s.actions = append(s.actions, a)
}

// change asks for a membership change, unless it could cost the shard its majority.
func (s *step) change(sh *Shard, why string, rs ...ReplicaChange) {
	voters := sh.Conf.Voters
	for _, r := range rs {
		if r.Kind == AddVoter {
			voters = with(voters, r.Node)
		} else {
			voters = without(voters, r.Node)
		}
	}
	if !s.majority(sh, sh.Conf.Voters) || !s.majority(sh, voters) {
		s.busy[sh.ID] = true
		return
	}
	s.do(sh, &Change{Shard: sh.ID, Owner: sh.Owner, Term: sh.Term, Conf: sh.Conf, Replicas: rs, Reason: why})
}

// want is a replica to be set in motion, once there is room.
type want struct {
	sh       *Shard
	from, to dunlin.NodeID
	why      string
	rank     int // lower first
}

// Ranks of wants: repair first, the shards with the fewest living voters before the others.
const (
	rankRepair  = 0 // + living voters
	rankGrow    = 100
	rankEmpty   = 200
	rankRequest = 300
)

// begin sets a replica in motion.
func (s *step) begin(w *want) {
	if s.busy[w.sh.ID] || !s.budget.room(w.sh, w.to) {
		return
	}
	s.budget.take(w.sh, w.to)
	s.replicas[w.to]++
	s.bytes[w.to] += w.sh.Bytes
	if w.from != 0 {
		s.replicas[w.from]--
		s.bytes[w.from] -= w.sh.Bytes
	}
	s.write(w.sh, Placement{Voters: w.sh.Conf.Voters, Learners: with(w.sh.Conf.Learners, w.to),
		Move: &Move{From: w.from, To: w.to, Why: w.why, Since: s.v.Now}}, s.moveText(w.sh.ID, w.from, w.to)+": "+w.why)
}

func (s *step) moveText(sh dunlin.ShardID, from, to dunlin.NodeID) string {
	if from == 0 {
		return fmt.Sprintf("shard %d to %s", sh, s.name(to))
	}
	return fmt.Sprintf("shard %d from %s to %s", sh, s.name(from), s.name(to))
}

// budget is how much may be in motion at once, in eighths of a move.
type budget struct {
	lim  *Limits
	left int
	in   map[dunlin.NodeID]int
	out  map[dunlin.NodeID]int // of owners, who feed the learners
}

const wholeMove = 8

func newBudget(l *Limits) budget {
	return budget{lim: l, left: wholeMove * l.Moves, in: map[dunlin.NodeID]int{}, out: map[dunlin.NodeID]int{}}
}

func (b *budget) cost(sh *Shard) int {
	if sh.Bytes < b.lim.SmallBytes {
		return 1
	}
	return wholeMove
}

func (b *budget) room(sh *Shard, to dunlin.NodeID) bool {
	n, most := b.cost(sh), wholeMove*b.lim.MovesPerNode
	return n <= b.left && b.in[to]+n <= most && b.out[sh.Owner]+n <= most
}

func (b *budget) take(sh *Shard, to dunlin.NodeID) {
	n := b.cost(sh)
	b.left -= n
	b.in[to] += n
	b.out[sh.Owner] += n
}
