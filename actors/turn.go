package actors

import (
	"encoding/json"
	"errors"
	"log/slog"
	"slices"
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/device"
	"github.com/dunlin-iot/dunlin/entry"
)

// turn is one batch of a shard on its way: gathered, run through the plugins, proposed as one entry, and settled when that
// has come back. Turns are used again with all their slabs; what they hold of devices and uplinks they give up before.
type turn struct {
	next  *turn // in the mailbox's lane of committed turns
	shard *shard
	done  func(index uint64, err error) // t.committed, made once
	err   error                         // what done was told
	began time.Duration                 // when it was proposed

	uplinks int
	cells   []*cell
	rules   []*device.Rules // of each cell's domain; nil: none
	inputs  []dunlin.Input
	views   []dunlin.Input // inputs as later stages see them
	changes []dunlin.Change
	works   []dunlin.Work
	now     dunlin.Time    // the owner's clock when it began
	who     []int          // the devices of the domain whose stages run
	calls   []*dunlin.Work // of one stage: the active version's …
	canary  []*dunlin.Work // … those of a candidate in its place …
	shadows []*dunlin.Work // … and beside it

	spent, candidateSpent time.Duration // in those calls

	// Of a lane's turn.
	lane    *lane
	term    uint64
	stage   int
	laneErr error
	puts    []dunlin.Put
	data    []byte
	update  *update // instead of cells: a change of the registry
}

func (d *Directory) newTurn(s *shard) *turn {
	t := d.turns.Get().(*turn)
	t.shard = s
	if t.done == nil {
		t.done = t.committed
	}
	return t
}

// free clears what the turn holds and keeps the slabs, unless the entry was of an unusual size.
func (d *Directory) freeTurn(t *turn) {
	if cap(t.data) > turnBytesMax {
		t.data = nil
	}
	clear(t.cells)
	clear(t.rules)
	clear(t.inputs)
	clear(t.views)
	clear(t.works[:len(t.cells)])
	clear(t.puts)
	for i := range t.changes[:len(t.cells)] {
		c := &t.changes[i]
		clear(c.Stages)
		clear(c.Alerts)
		clear(c.Timers)
		*c = dunlin.Change{Stages: c.Stages[:0], Alerts: c.Alerts[:0], Timers: c.Timers[:0]}
	}
	t.cells, t.rules, t.inputs, t.views, t.puts = t.cells[:0], t.rules[:0], t.inputs[:0], t.views[:0], t.puts[:0]
	t.forget()
	t.shard, t.err, t.update, t.uplinks = nil, nil, nil, 0
	t.lane, t.term, t.stage, t.laneErr = nil, 0, 0, nil
	d.turns.Put(t)
}

// takeTurn makes one turn of what waits.
func (s *shard) takeTurn() {
	s.backlog.append(s.box.take())
	if s.term == 0 {
		s.leave()
		return // or the term begins, or ends, when the old turns are back
	}
	if s.stalled = len(s.flying)-s.aloft >= flyingMax; s.stalled {
		return // settle goes on
	}
	now := s.dir.cfg.Clock()
	t := s.dir.newTurn(s)
	s.current = t
	s.last.rules = nil
	s.gatherTimers(t, now)
	s.gatherHappened(t)
	s.gather(t)
	if len(t.cells) == 0 {
		s.dir.freeTurn(t)
	} else {
		s.proposeTurn(t, now)
	}
	s.current = nil
	s.fly(now)
	if n := s.cells.evict(s.dir.quota()); n > 0 {
		s.dir.met.passivated.Add(float64(n))
	}
	s.enlist(s.backlog.n)
}

// gather lets devices accept the uplinks that wait, as many as make an entry.
func (s *shard) gather(t *turn) {
	var c *cell
	for bytes := int64(0); t.uplinks < turnUplinksMax && bytes < turnBytesMax; {
		u := s.backlog.pop()
		if u == nil {
			return
		}
		if c == nil || c.Key() != u.DeviceKey || c.place < 0 {
			var err error
			if c, err = s.cell(u.DeviceKey); err != nil {
				s.answer(u, refusal(err))
				continue
			}
		}
		domain := c.Domain()
		if domain == "" {
			if domain = u.Sender.Domain; domain == "" {
				domain = s.dir.cfg.DefaultDomain
			}
		}
		rules := s.rules(u.Tenant, domain)
		if s.slow(rules) {
			s.aside(c, u, rules)
			continue
		}
		switch v, r := c.Accept(u, rules); v {
		case device.Taken:
			t.uplinks++
			bytes += cost(u)
			t.add(c, rules)
		case device.Answered:
			s.answer(u, r)
			s.stranger(c)
		}
	}
}

// stranger forgets a device that is not registered: strangers at the door take no room inside.
func (s *shard) stranger(c *cell) {
	if !c.Registered() && !c.Busy() {
		s.cells.remove(c)
	}
}

func (t *turn) add(c *cell, rules *device.Rules) {
	if !c.turning {
		c.turning = true
		t.cells = append(t.cells, c)
		t.rules = append(t.rules, rules)
	}
}

// gatherTimers makes due timers inputs of the turn. The store shows a timer until the change that it fired in is
// committed, so after those that were due it must be asked again then.
func (s *shard) gatherTimers(t *turn, now dunlin.Time) {
	if due := dunlin.Time(s.due.Load()); due == 0 || due > now {
		return
	}
	rows, next, err := s.dir.deps.States.TimersDue(s.id, now+1, turnTimersMax)
	if err != nil {
		s.dir.cfg.Log.Error("read due timers", slog.Int("shard", int(s.id)), slog.Any("error", err))
		next = now.Add(time.Second)
	}
	fires := 0
	for _, row := range rows {
		c, err := s.cell(row.DeviceKey)
		if err != nil {
			continue
		}
		rules, to := s.rules(row.Tenant, c.Domain()), t
		if s.slow(rules) {
			l := s.lane(rules)
			if to = l.turn; l.flying {
				fires++ // when it is back
				continue
			}
		}
		if c.Fire(row) {
			to.add(c, rules)
			fires++
		} else if c.Phase() == device.Committing {
			fires++
		}
	}
	s.recheck = fires > 0
	switch {
	case s.recheck:
		next = 0 // until the turns are back
	case len(rows) > 0: // rows that no device knows of: not to be asked for all the time
		next = now.Add(time.Minute)
	}
	s.due.Store(0)
	if next != 0 {
		s.setDue(next)
	}
}

// proposeTurn runs the plugins and proposes what comes of it.
func (s *shard) proposeTurn(t *turn, now dunlin.Time) {
	s.draw(t, now)
	if err := s.pipelines(t); err != nil {
		r := refusal(errors.Join(dunlin.ErrUnavailable, err))
		for _, c := range t.cells {
			s.abort(c, r)
		}
		s.dir.freeTurn(t)
		return
	}
	s.proposeChanges(t)
}

// draw begins the changes of the turn's devices and their part of plugin calls.
func (s *shard) draw(t *turn, now dunlin.Time) {
	n := len(t.cells)
	t.now = now
	t.changes = grown(t.changes, n)
	t.works = grown(t.works, n)
	t.inputs = slices.Grow(t.inputs, t.uplinks)
	for i, c := range t.cells {
		c.turning = false
		from := len(t.inputs)
		t.inputs = c.Inputs(t.inputs)
		c.Propose(&t.changes[i], t.inputs[from:len(t.inputs):len(t.inputs)])
		t.works[i] = dunlin.Work{DeviceKey: c.Key(), Seq: t.changes[i].Seq(0)}
	}
}

// proposeChanges proposes the turn's changes.
func (s *shard) proposeChanges(t *turn) {
	changes := t.changes[:len(t.cells)]
	for i := range changes {
		if c := &changes[i]; c.Created {
			t.puts = append(t.puts, deviceRow(c, t.now))
		}
	}
	s.propose(t, &dunlin.Entry{Shard: s.id, Term: s.term, At: t.now, Changes: changes, Puts: t.puts})
}

// propose hands an entry to the committer, and says so to the beat.
func (s *shard) propose(t *turn, e *dunlin.Entry) {
	t.data = entry.AppendAs(t.data[:0], e, s.dir.cfg.EntryVersion())
	b := s.dir.beat
	if t.lane == nil {
		s.flying = append(s.flying, t)
	}
	b.turns.Add(1)
	b.uplinks.Add(int64(t.uplinks))
	t.began = b.now()
	s.dir.met.turns.Inc()
	s.dir.deps.Committer.Propose(s.id, s.term, t.data, t.done) // the turn is not used again before it is done
	b.proposed.Store(true)
}

// grown returns a slice of at least n elements, with those that are there, for the sake of what they point to.
func grown[T any](s []T, n int) []T {
	if len(s) < n {
		s = append(s, make([]T, n-len(s))...)
	}
	return s
}

// deviceRow is the registry's row of a device that registers itself.
func deviceRow(c *dunlin.Change, now dunlin.Time) dunlin.Put {
	row, err := json.Marshal(dunlin.Device{Tenant: c.Tenant, ID: c.Device, Domain: c.Domain, Revision: 1, CreatedAt: now,
		UpdatedAt: now})
	if err != nil {
		panic("a device that doesn't marshal: " + err.Error())
	}
	return dunlin.Put{Table: dunlin.TableDevices, Key: c.DeviceKey.String(), Value: row}
}

// committed is the turn's done. Few uplinks are answered right here, on the committer's goroutine; many are left to the
// beat, so that the committer can get on with what waits for its disk.
func (t *turn) committed(_ uint64, err error) {
	s, n, b := t.shard, int64(t.uplinks), t.shard.dir.beat
	t.err = err
	few := b.uplinks.Load() <= inlineMax
	s.box.commit(t) // from here on t may be gone
	if few {
		s.box.run(forMail, true)
	} else {
		b.enlistMail(&s.box)
	}
	b.returned(1, n)
}

// settle ends a turn that has come back.
func (s *shard) settle(t *turn) {
	had := s.backlog.n
	s.settled = t
	if t.lane != nil {
		s.landing(t)
	} else {
		s.unfly(t)
	}
	s.dir.met.committed(s.dir.beat.now() - t.began)
	switch {
	case t.update != nil:
		s.settleUpdate(t)
	case t.err != nil:
		s.settleFailure(t)
	default:
		s.settleSuccess(t)
	}
	s.settled = nil
	lost := errors.Is(t.err, dunlin.ErrNotOwner)
	s.dir.freeTurn(t)
	switch {
	case s.term == 0:
		s.begin()
		s.leave()
	case lost:
		s.lose()
	case s.recheck:
		s.recheck = false
		s.setDue(s.dir.cfg.Clock())
	}
	s.moreUpdates()
	if s.stalled {
		s.stalled = false
		s.enlist(max(s.backlog.n, 1)) // due timers may have stalled, too
	} else {
		s.enlist(s.backlog.n - had)
	}
}

func (s *shard) unfly(t *turn) {
	s.flying = slices.DeleteFunc(s.flying, func(o *turn) bool { return o == t })
}

func (s *shard) settleSuccess(t *turn) {
	readings, raised, letters := 0, 0, 0
	for i, c := range t.cells {
		change := &t.changes[i]
		answers := c.Apply(change)
		for j := range change.Inputs {
			readings += countReadings(change.Inputs[j].Records)
		}
		for j := range change.Stages {
			readings += countReadings(change.Stages[j].Records)
			if change.Stages[j].Failure != "" {
				letters += len(change.Inputs)
			}
		}
		for j := range change.Alerts {
			if a := &change.Alerts[j]; a.State == dunlin.AlertRaised && a.Seq == a.RaisedSeq {
				raised++
			}
		}
		for _, timer := range change.Timers {
			if timer.Due != 0 {
				s.setDue(timer.Due)
			}
		}
		s.cells.resize(c)
		s.answerAll(answers)
		s.requeue(c)
	}
	s.dir.met.applied(t.uplinks, readings, raised, letters)
}

// requeue puts uplinks that waited for the commit in front of what came later.
func (s *shard) requeue(c *cell) {
	if !c.Waits() {
		return
	}
	s.backlog.prepend(c.Release())
}

// settleFailure drops the cells of a turn that was not committed: the store knows better how they are. If the shard has another
// owner by now, or this node owns it again, that may have committed the turn; its uplinks may be tried there if the device's
// dedupe window can tell.
func (s *shard) settleFailure(t *turn) {
	s.dir.met.failed(t.err)
	moved := errors.Is(t.err, dunlin.ErrNotOwner)
	for i, c := range t.cells {
		known := moved && len(t.changes[i].Inputs) <= dunlin.SeenMax
		for a := c.Abort(refusal(t.err)); ; {
			u, r := a.Next()
			if u == nil {
				break
			}
			if known && u.MessageID != 0 {
				s.tried.append(u, u)
			} else {
				s.answer(u, r)
			}
		}
		if moved { // they were not even tried
			s.backlog.prepend(c.Release())
		} else {
			s.refuseQueue(c, t.err)
		}
		s.cells.remove(c)
	}
}

func countReadings(records []dunlin.Record) (n int) {
	for i := range records {
		if k := records[i].Kind; k == dunlin.Number || k == dunlin.Boolean {
			n++
		}
	}
	return n
}

// logLimit bounds what plugins may say in the node's log.
type logLimit struct{ second, lines atomic.Int64 }

const logLinesMax = 100

func (l *logLimit) allow(now dunlin.Time) bool {
	if sec := int64(now / 1e6); l.second.Swap(sec) != sec {
		l.lines.Store(0)
	}
	return l.lines.Add(1) <= logLinesMax
}
