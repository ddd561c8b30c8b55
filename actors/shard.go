package actors

import (
	"errors"
	"log/slog"
	"runtime"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/device"
)

// order is a message of our own to a shard actor, which its mailbox never refuses.
type order interface{ order() }

type own struct {
	shard dunlin.ShardID
	term  uint64
	again bool // of ourselves: if nobody has said that the term is over
}

type disown struct{ shard dunlin.ShardID }

func (own) order()    {}
func (disown) order() {}

// shardActor is an incarnation of a shard's actor. It holds nothing itself, so that a restart loses only what it must.
type shardActor struct{ *shard }

// shard is what a shard's actor works on. All but id, box, open, taking and due is the actor's alone.
type shard struct {
	dir    *Directory
	id     dunlin.ShardID
	pid    *actor.PID // the parent's
	box    mailbox
	open   atomic.Bool   // Ingest may post
	taking atomic.Uint64 // the term in which it may
	due    atomic.Int64  // dunlin.Time when to ask the store for due device timers; 0: nothing is armed

	term     uint64 // in which this node owns the shard; 0: it doesn't
	coming   uint64 // the term that begins when all turns in flight have come back; 0: none
	lost     uint64 // the term that the committer has refused to go on in, and nobody else has ended; 0: none
	cells    cells
	backlog  chain   // uplinks taken from the mailbox, not yet in a turn
	tried    chain   // uplinks proposed in a term that ended over it: older than the backlog, and perhaps committed
	flying   []*turn // proposed and not back
	current  *turn   // being gathered
	settled  *turn   // being settled
	updates  updates // changes of the registry
	happened []*cell // with something that happened to them, to be told to their plugins
	aloft    int     // of those flying, lanes' turns

	lanes      map[laneKey]*lane      // of domains whose plugins are slow
	slows      map[*device.Rules]bool // what slow has said in this round
	candidates map[candidateKey]*candidate
	last       struct {
		tenant dunlin.Tenant
		domain dunlin.DomainID
		rules  *device.Rules
	}
	recheck bool // the store may show timers again that are in flight
	stalled bool // the backlog waits for turns to come back
	passed  bool // uplinks went elsewhere, which is to be told
	counted int  // cells, as last told

	freedEvents, freedBytes int64 // reservations to give back
}

// chain is a list of uplinks in order, with their number.
type chain struct {
	first, last *dunlin.Uplink
	n           int64
}

func (c *chain) pop() *dunlin.Uplink {
	u := c.first
	if u != nil {
		if c.first = u.Next; c.first == nil {
			c.last = nil
		}
		c.n--
		u.Next = nil
	}
	return u
}

// append puts a chain at the end; last may be nil for an empty one.
func (c *chain) append(first, last *dunlin.Uplink) {
	if first == nil {
		return
	}
	for u := first; u != nil; u = u.Next {
		c.n++
	}
	if c.last == nil {
		c.first = first
	} else {
		c.last.Next = first
	}
	c.last = last
}

// prepend puts n uplinks in front.
func (c *chain) prepend(first *dunlin.Uplink, n int) {
	if first == nil {
		return
	}
	last := first
	for last.Next != nil {
		last = last.Next
	}
	if last.Next = c.first; c.last == nil {
		c.last = last
	}
	c.first, c.n = first, c.n+int64(n)
}

func (s *shard) init(d *Directory, id dunlin.ShardID) {
	s.dir, s.id = d, id
	s.box.beat, s.box.shard = d.beat, s
}

// Receive implements actor.Actor.
func (a *shardActor) Receive(ctx actor.Context) {
	switch m := ctx.Message().(type) {
	case *work:
		a.work(m)
	case own:
		if !m.again || m.term == a.lost {
			a.own(m.term)
		}
	case disown:
		a.disown()
	case *update:
		a.updates.waiting = append(a.updates.waiting, m)
		a.nextUpdate()
	case *ask:
		a.answerAsk(m)
	case *actor.Restarting:
		a.fail()
	}
}

// work settles the turns that came back and, if it is time, takes the next one.
func (s *shard) work(w *work) {
	s.settleAll()
	if !w.inline {
		s.landAll()
	}
	if s.updates.due && !w.inline {
		s.nextUpdate()
	}
	if w.turn {
		s.takeTurn()
	}
	s.giveBack()
}

// settleAll settles the turns that came back, in that order.
func (s *shard) settleAll() {
	var first *turn
	for t := s.box.committed.Swap(nil); t != nil; {
		next := t.next
		t.next, first = first, t
		t = next
	}
	for t := first; t != nil; {
		next := t.next
		t.next = nil
		s.settle(t)
		t = next
	}
}

// own begins a term. Uplinks that an earlier one left behind are worked off in this one; if turns of it are still in flight they
// come first, because their devices' state is not known before.
func (s *shard) own(term uint64) {
	s.endTerm()
	s.clearCells()
	s.coming, s.lost = term, 0
	s.begin()
	s.giveBack()
}

// begin begins the coming term if nothing of an earlier one is in flight.
func (s *shard) begin() {
	if s.coming == 0 || len(s.flying) > 0 {
		return
	}
	s.cells.clear()
	for u := s.tried.first; u != nil; u = u.Next {
		u.Flags |= dunlin.FlagForwarded // the device looks whether it was committed
	}
	s.backlog.prepend(s.tried.first, int(s.tried.n))
	s.tried = chain{}
	s.term, s.coming = s.coming, 0
	s.dir.owned.Add(1)
	s.taking.Store(s.term)
	s.open.Store(true)
	s.due.Store(0)
	s.setDue(1) // ask the store at once
	s.dir.cfg.Log.Debug("shard owned", slog.Int("shard", int(s.id)), slog.Uint64("term", s.term))
	s.enlist(s.backlog.n)
	s.moreUpdates()
}

// disown ends the term: nothing is taken any more. What is in flight will come back; then what waits goes elsewhere, behind it,
// or is refused.
func (s *shard) disown() {
	if s.term != 0 {
		s.dir.cfg.Log.Debug("shard given up", slog.Int("shard", int(s.id)), slog.Uint64("term", s.term))
	}
	s.open.Store(false)
	s.endTerm()
	s.clearCells()
	s.coming, s.lost = 0, 0
	s.due.Store(0)
	s.leave()
	s.failUpdates(errNotOwner)
	s.giveBack()
}

// leave gives up the uplinks that wait, if no term has begun or is about to and nothing older is in flight.
func (s *shard) leave() {
	if s.term == 0 && s.coming == 0 && len(s.flying) == 0 {
		s.drop(errNotOwner)
	}
}

// lose ends the term because the committer takes nothing more in it. Most often somebody else is about to own the shard, and
// disown or own will come. But a leader that hands over and is not taken up on it leads on in the same term, and nobody will say
// so; what it refused meanwhile has had no effect. So the term is tried again after a while.
func (s *shard) lose() {
	term := s.term
	s.disown()
	s.lost = term
	d, id := s.dir, s.id
	time.AfterFunc(loseFor, func() {
		if !d.closing.Load() {
			d.system.Root.Send(d.parent, own{shard: id, term: term, again: true})
		}
	})
}

// loseFor is how long a shard is closed after the committer has refused to go on.
const loseFor = 50 * time.Millisecond

func (s *shard) endTerm() {
	s.releaseLanes()
	clear(s.candidates)
	if s.term != 0 {
		s.term = 0
		s.dir.owned.Add(-1)
	}
}

// clearCells forgets all cells; what waits in them is older than the backlog. Cells of turns in flight live on in these.
func (s *shard) clearCells() {
	for _, c := range s.cells.ring {
		s.backlog.prepend(c.Release())
	}
	s.cells.clear()
}

// drop forgets all cells and refuses the uplinks that wait in them and in the mailbox.
func (s *shard) drop(err error) {
	for u := s.tried.pop(); u != nil; u = s.tried.pop() {
		s.answerTried(u, err)
	}
	s.dropCells(err)
	s.backlog.append(s.box.take())
	for u := s.backlog.pop(); u != nil; u = s.backlog.pop() {
		s.answer(u, refusal(err))
	}
}

// dropCells forgets all cells and refuses the uplinks that wait in them. Cells of turns in flight live on in these.
func (s *shard) dropCells(err error) {
	for _, c := range s.cells.ring {
		s.refuseQueue(c, err)
		if c.Phase() == device.Gathering {
			s.abort(c, refusal(err))
		}
	}
	s.cells.clear()
}

// fail is what a restart after a panic does: nobody waits for ever, turns in flight come back to the next incarnation, every
// other cell is read from the store again, and what is still in the mailbox has its turn later.
func (s *shard) fail() {
	s.dir.met.restarts.Inc()
	s.dir.cfg.Log.Warn("shard actor restarts", slog.Int("shard", int(s.id)))
	if t := s.settled; t != nil { // what of it was not answered may be committed all the same: the device will ask again
		s.failTurn(t, errFailed)
	}
	if t := s.current; t != nil && !slices.Contains(s.flying, t) {
		s.failTurn(t, errFailed)
	}
	for _, l := range s.lanes {
		if !l.flying && l.turn != nil {
			s.failTurn(l.turn, errFailed)
		}
	}
	s.settled, s.current = nil, nil
	term := s.term
	s.endTerm()
	s.dropCells(errFailed)
	if term != 0 {
		s.coming = term
		s.begin()
	}
	s.giveBack()
}

// failTurn answers what a turn holds; nobody will settle it.
func (s *shard) failTurn(t *turn, err error) {
	for _, c := range t.cells {
		s.refuseQueue(c, err)
		s.abort(c, refusal(err))
	}
	if t.update != nil {
		s.endUpdate(t.update, err)
	}
}

// bury answers what a stopped actor left behind, when nobody runs mailboxes any more but the committer's goroutine. Its
// last step keeps that out for ever.
func (s *shard) bury() {
	for s.box.status.Or(running)&running != 0 {
		runtime.Gosched() // an answer is being given; that doesn't block
	}
	s.settleAll()
	s.endTerm()
	s.drop(errClosing)
	for _, t := range s.flying {
		s.failTurn(t, errClosing)
	}
	s.failUpdates(errClosing)
	s.box.letters.Lock()
	rest := s.box.letters.user
	s.box.letters.user = nil
	s.box.letters.Unlock()
	for _, m := range rest {
		s.refuse(m)
	}
	s.giveBack()
}

// answer answers an uplink that holds a reservation. One that is refused because the shard went elsewhere may go there, too.
func (s *shard) answer(u *dunlin.Uplink, r dunlin.Receipt) {
	s.freedEvents++
	s.freedBytes += cost(u)
	if r.Err == errNotOwner && s.dir.passBack(s.id, u, false) {
		s.passed = true
		return
	}
	s.dir.tell(u, r)
}

// answerTried is answer for an uplink that was proposed, and may be committed all the same.
func (s *shard) answerTried(u *dunlin.Uplink, err error) {
	s.freedEvents++
	s.freedBytes += cost(u)
	if err == errNotOwner && s.dir.passBack(s.id, u, true) {
		s.passed = true
		return
	}
	s.dir.tell(u, refusal(err))
}

func (s *shard) answerAll(a device.Answers) {
	for u, r := a.Next(); u != nil; u, r = a.Next() {
		s.answer(u, r)
	}
}

func (s *shard) abort(c *cell, r dunlin.Receipt) { s.answerAll(c.Abort(r)) }

func (s *shard) refuseQueue(c *cell, err error) {
	for u, _ := c.Release(); u != nil; {
		next := u.Next
		u.Next = nil
		s.answer(u, refusal(err))
		u = next
	}
}

// giveBack gives the reservations of answered uplinks back.
func (s *shard) giveBack() {
	if n := len(s.cells.ring); n != s.counted {
		s.dir.active.Add(int64(n - s.counted))
		s.counted = n
	}
	if s.freedEvents == 0 {
		return
	}
	s.box.bytes.Add(-s.freedBytes)
	s.box.events.Add(-s.freedEvents)
	s.freedEvents, s.freedBytes = 0, 0
	if s.passed {
		s.passed = false
		(*s.dir.elsewhere.Load()).Flush()
	}
	if s.dir.closing.Load() {
		select {
		case s.dir.drained <- struct{}{}:
		default:
		}
	}
}

// enlist makes a round take a turn of what the actor holds itself, n of which wait since now.
func (s *shard) enlist(n int64) {
	if n > 0 {
		s.dir.beat.enlistTurn(&s.box)
		s.dir.beat.posted(n)
	}
}

// setDue lowers the time at which the store is asked for due timers.
func (s *shard) setDue(due dunlin.Time) {
	if was := dunlin.Time(s.due.Load()); was == 0 || due < was {
		s.due.Store(int64(due))
		s.dir.beat.remind(due.Sub(s.dir.cfg.Clock()))
	}
}

// rules returns what holds in a domain; it remembers the last one for the length of a turn.
func (s *shard) rules(t dunlin.Tenant, d dunlin.DomainID) *device.Rules {
	if l := &s.last; l.domain != d || l.tenant != t || l.rules == nil {
		l.tenant, l.domain, l.rules = t, d, s.dir.deps.Rules(t, d)
	}
	return s.last.rules
}

// cell returns the device's cell, and activates the device if it has none.
func (s *shard) cell(key dunlin.DeviceKey) (*cell, error) {
	if c := s.cells.get(key); c != nil {
		return c, nil
	}
	st, known, err := s.dir.deps.States.LoadDevice(s.id, key)
	if err != nil {
		return nil, errors.Join(dunlin.ErrUnavailable, err)
	}
	if !known {
		if err := errors.Join(key.Tenant.Validate(), key.Device.Validate()); err != nil {
			return nil, err
		}
		// The key may be a piece of a packet, which must not live as long as the cell.
		st = &dunlin.DeviceState{DeviceKey: dunlin.DeviceKey{
			Tenant: dunlin.Tenant(strings.Clone(string(key.Tenant))), Device: dunlin.DeviceID(strings.Clone(string(key.Device)))}}
	}
	s.dir.met.activations.Inc()
	return s.cells.add(device.Make(*st)), nil
}
