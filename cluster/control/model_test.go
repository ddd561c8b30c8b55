package control

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// world is a cluster without bytes: members that come and go, Raft groups that elect, commit and change their replica sets,
// and a controller whose steps it carries out.
type world struct {
	now     dunlin.Time
	rf      int
	next    dunlin.NodeID
	nodes   []*body
	shards  []*group
	wishes  []Request
	control *Controller
	lim     Limits
	stalled map[dunlin.NodeID]bool // learners there get nothing
	step    time.Duration

	// Faults; nil: none.
	rng   *rand.Rand
	calm  bool // steps are carried out at once
	queue []delayed
	views []*View // what was true before, for stale views
	log   []string
}

type body struct {
	Member
	downAt dunlin.Time
}

type group struct {
	Shard
	match map[dunlin.NodeID]uint64
	seen  dunlin.Time // when the owner last reported
	joint dunlin.Time // when the joint change began
	said  Shard       // its last report
}

type delayed struct {
	at dunlin.Time
	a  Action
}

func newWorld(shards, rf int) *world {
	w := &world{now: 1e15, rf: rf, next: 1, stalled: map[dunlin.NodeID]bool{}, calm: true, step: time.Second}
	w.control = New(w.lim)
	for i := range shards {
		w.shards = append(w.shards, &group{Shard: Shard{ID: dunlin.ShardID(i), Commit: 100, Bytes: 64 << 20}, match: map[dunlin.NodeID]uint64{}})
	}
	return w
}

func (w *world) join(name, zone string) *body {
	b := &body{Member: Member{Member: dunlin.Member{ID: w.next, Name: name, Zone: zone, State: dunlin.MemberActive, Alive: true}, Joined: w.now}}
	w.next++
	w.nodes = append(w.nodes, b)
	if len(w.nodes) == 1 {
		for _, g := range w.shards {
			g.Conf, g.Owner, g.Term = Conf{Index: 1, Voters: []dunlin.NodeID{b.ID}}, b.ID, 1
			g.match[b.ID] = g.Commit
		}
	}
	return b
}

// named is the newest life of a name.
func (w *world) named(name string) *body {
	for _, b := range slices.Backward(w.nodes) {
		if b.Name == name {
			return b
		}
	}
	return nil
}

func (w *world) body(id dunlin.NodeID) *body {
	for _, b := range w.nodes {
		if b.ID == id {
			return b
		}
	}
	return nil
}

func (w *world) alive(id dunlin.NodeID) bool { b := w.body(id); return b != nil && b.Alive }

func (w *world) down(b *body) { b.Alive, b.downAt = false, w.now }

func (w *world) most(ids []dunlin.NodeID) bool {
	n := 0
	for _, id := range ids {
		if w.alive(id) {
			n++
		}
	}
	return len(ids) == 0 || n > len(ids)/2
}

func (w *world) view() *View {
	v := &View{Now: w.now, Replication: w.rf, Requests: slices.Clone(w.wishes)}
	for _, b := range w.nodes {
		m := b.Member
		if !m.Alive {
			m.DownFor = dunlin.Duration(w.now.Sub(b.downAt))
		}
		v.Members = append(v.Members, m)
	}
	for _, g := range w.shards {
		if w.alive(g.Owner) && slices.Contains(append(slices.Clone(g.Conf.Voters), g.Conf.Outgoing...), g.Owner) {
			g.seen, g.said = w.now, *w.report(g)
		}
		s := g.said
		s.ID, s.Row, s.Age = g.ID, g.Row, w.now.Sub(g.seen)
		v.Shards = append(v.Shards, s)
	}
	return v
}

// report is what the shard's owner says.
func (w *world) report(g *group) *Shard {
	s := g.Shard
	s.Replicas, s.Conf.Index = nil, g.Commit
	for _, id := range slices.Concat(g.Conf.Voters, g.Conf.Outgoing, g.Conf.Learners) {
		s.Replicas = append(s.Replicas, Progress{Node: id, Match: g.match[id], Active: w.alive(id)})
	}
	return &s
}

// tick lets a step's time pass in the groups.
func (w *world) tick() {
	w.now = w.now.Add(w.step)
	for _, g := range w.shards {
		voters := slices.Concat(g.Conf.Voters, g.Conf.Outgoing)
		if g.Owner != 0 && (!w.alive(g.Owner) || !slices.Contains(voters, g.Owner)) {
			g.Owner = 0
		}
		if !w.most(g.Conf.Voters) || !w.most(g.Conf.Outgoing) {
			continue
		}
		if g.Owner == 0 {
			for _, id := range voters {
				if w.alive(id) && slices.Contains(g.Conf.Voters, id) && (g.Owner == 0 || g.match[id] > g.match[g.Owner]) {
					g.Owner = id
				}
			}
			g.Term++
		}
		g.Commit += 10
		for _, id := range slices.Concat(voters, g.Conf.Learners) {
			if w.alive(id) && !w.stalled[id] {
				g.match[id] = min(g.Commit, g.match[id]+max(1000, g.Commit/4))
			}
		}
		if len(g.Conf.Outgoing) > 0 && w.now > g.joint {
			g.Conf.Learners = sorted(append(g.Conf.Learners, g.Conf.LearnersNext...))
			g.Conf.Outgoing, g.Conf.LearnersNext = nil, nil
			g.Commit++
			g.Conf.Index = g.Commit
		}
	}
}

// carryOut does one action; it says what is wrong with it, or nothing. What came too late has no effect.
func (w *world) carryOut(a Action) error {
	switch a := a.(type) {
	case *WritePlacement:
		g := w.shards[a.Row.Shard]
		row, err := DecodePlacement(EncodePlacement(&a.Row))
		if err != nil {
			return err
		}
		if row.Epoch == g.Row.Epoch+1 && w.shards[0].Owner != 0 {
			if g.ID != dunlin.MetaShard && len(row.Learners) > 1 {
				return fmt.Errorf("shard %d: %d replicas in motion", g.ID, len(row.Learners))
			}
			g.Row = row
		}
	case *Change:
		return w.change(a)
	case *Transfer:
		g := w.shards[a.Shard]
		if g.Owner == a.Owner && g.Term == a.Term && w.alive(g.Owner) && w.alive(a.To) && slices.Contains(g.Conf.Voters, a.To) {
			if g.match[a.To]+2000 < g.Commit {
				return fmt.Errorf("shard %d goes to %s, which lacks %d entries", g.ID, a.To, g.Commit-g.match[a.To])
			}
			g.Owner = a.To
			g.Term++
		}
	case *SetMemberState:
		if a.Check(w.body(a.Member).State) != nil {
			return nil // it came late: the operator has said something else meanwhile
		}
		w.body(a.Member).State = a.State
		for _, g := range w.shards {
			if w.calm && slices.Contains(g.Conf.Voters, a.Member) { // what a late step made is taken away later
				return fmt.Errorf("%s left with a vote in shard %d", a.Member, g.ID)
			}
		}
	case *EndRequest:
		w.wishes = slices.DeleteFunc(w.wishes, func(r Request) bool { return r.Shard == a.Shard })
	}
	return nil
}

func (w *world) change(a *Change) error {
	g := w.shards[a.Shard]
	if a.Check(w.report(g), w.lim) != nil || !g.Conf.settled() || !w.alive(g.Owner) {
		return nil
	}
	voters, learners, next := slices.Clone(g.Conf.Voters), slices.Clone(g.Conf.Learners), []dunlin.NodeID(nil)
	for _, r := range a.Replicas {
		was := slices.Contains(voters, r.Node)
		switch r.Kind {
		case AddLearner:
			voters = without(voters, r.Node)
			if was && len(a.Replicas) > 1 {
				next = append(next, r.Node)
			} else {
				learners = with(learners, r.Node)
			}
		case AddVoter:
			if g.match[r.Node]+2048 < g.Commit {
				return fmt.Errorf("shard %d: %s becomes a voter and lacks %d entries", g.ID, r.Node, g.Commit-g.match[r.Node])
			}
			voters, learners = with(voters, r.Node), without(learners, r.Node)
		case RemoveReplica:
			if r.Node == g.Owner {
				return fmt.Errorf("shard %d: its owner %s removes itself", g.ID, r.Node)
			}
			voters, learners = without(voters, r.Node), without(learners, r.Node)
			g.match[r.Node] = 0
		}
	}
	switch {
	case len(voters) == 0 || len(voters) > w.rf+1:
		return fmt.Errorf("shard %d: %d voters", g.ID, len(voters))
	case len(without(voters, g.Conf.Voters...)) > 1 || len(without(g.Conf.Voters, voters...)) > 1:
		return fmt.Errorf("shard %d: more than one voter at once, from %v to %v", g.ID, g.Conf.Voters, voters)
	case g.ID != dunlin.MetaShard && len(learners) > 1:
		return fmt.Errorf("shard %d: %d replicas in motion", g.ID, len(learners))
	case !w.most(g.Conf.Voters) || !w.most(voters):
		if w.calm {
			return fmt.Errorf("shard %d: from %v to %v costs it its majority", g.ID, g.Conf.Voters, voters)
		}
		return nil // Raft would wait
	}
	g.Commit++
	c := Conf{Index: g.Commit, Voters: voters, Learners: learners}
	if len(a.Replicas) > 1 {
		c.Outgoing, c.LearnersNext, g.joint = g.Conf.Voters, next, w.now
	}
	g.Conf = c
	return nil
}

func (w *world) say(format string, v ...any) {
	w.log = append(w.log, fmt.Sprintf("%4ds  ", (w.now-1e15)/1e6)+fmt.Sprintf(format, v...))
}

func (w *world) text(a Action) string {
	r := newRoster(w.view(), &Limits{})
	names := func(ids []dunlin.NodeID) string {
		var s []string
		for _, id := range ids {
			s = append(s, r.name(id))
		}
		return strings.Join(s, " ")
	}
	switch a := a.(type) {
	case *WritePlacement:
		s := fmt.Sprintf("row %d: %s", a.Row.Shard, names(a.Row.Voters))
		if len(a.Row.Learners) > 0 {
			s += " + " + names(a.Row.Learners)
		}
		return s + " — " + a.Reason
	case *Change:
		s := fmt.Sprintf("change %d:", a.Shard)
		for _, c := range a.Replicas {
			s += fmt.Sprintf(" %s %s", c.Kind, r.name(c.Node))
		}
		return s + " — " + a.Reason
	case *Transfer:
		return fmt.Sprintf("transfer %d: %s to %s — %s", a.Shard, r.name(a.Owner), r.name(a.To), a.Reason)
	case *SetMemberState:
		return fmt.Sprintf("member %s: %s — %s", r.name(a.Member), a.State, a.Reason)
	case *EndRequest:
		return fmt.Sprintf("request %d done — %s", a.Shard, a.Reason)
	}
	return "?"
}

// table shows where everything is; owners have a star.
func (w *world) table() string {
	var b strings.Builder
	r := newRoster(w.view(), &Limits{})
	for _, g := range w.shards {
		fmt.Fprintf(&b, "%d:", g.ID)
		for _, id := range g.Conf.Voters {
			b.WriteString(" " + r.name(id))
			if id == g.Owner {
				b.WriteString("*")
			}
		}
		if len(g.Conf.Learners) > 0 {
			b.WriteString(" +")
			for _, id := range g.Conf.Learners {
				b.WriteString(" " + r.name(id))
			}
		}
		b.WriteString("\n")
	}
	return b.String()
}
