package replay

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/device"
)

// Bounds of a crossing.
const (
	turnsMax     = 256  // of one device in a crossing
	roomMin      = 64   // inputs of the first crossing, and at least
	inputsMaxAll = 1024 // of one device's step, whatever its turns have
	triesMax     = 2    // of a step that failed by chance, after the first
	checkAll     = 32   // so many steps are tried turn by turn at first
	checkEvery   = 128  // and one of so many later
)

// errUneven says that turns handed over together came to something else than one by one.
var errUneven = errors.New("turns that are handed over together come to something else than one by one")

// sim is one version of a stage at work on a shard's recorded inputs, with a machine for each device.
type sim struct {
	p      Processor
	clock  func() dunlin.Time
	domain dunlin.DomainID
	stage  dunlin.Stage
	index  uint8
	alone  bool // the pipeline has no other stage: all recorded timers are the stage's
	byTurn bool // one turn at a time
	fuel   int64
	room   int // inputs that fit a crossing, as far as is known
	emit   func(c *cell, a *dunlin.Alert)
	cost   *costs

	cells  []*cell
	active []*cell
	steps  []step
	works  []*dunlin.Work
	change dunlin.Change
	from   device.Origin
	tried  int // steps that could be tried
}

// cell is a device in a sim.
type cell struct {
	dev    *dev
	m      device.Machine
	inputs []dunlin.Input // of the window's turns
	turns  []turn
	at     int // the next of turns
	limit  int // turns that are handed over together
	most   int // that limit may grow to
	tries  int // of a step that failed by chance
	timer  [1]dunlin.Input
	named  []string // timers that the candidate has set, if it is not alone
	sent   []sent   // recorded commands whose answer may come
	gone   bool
}

// turn is a recorded turn as the sim gets it.
type turn struct {
	at      dunlin.Time
	end     int  // of its inputs in the cell's
	answers bool // there are results of commands among them
}

// sent is a recorded command.
type sent struct{ id, name string }

// step is what a device has in a crossing: some turns, or a timer.
type step struct {
	c      *cell
	turns  int // 0: a timer
	inputs []dunlin.Input
	first  dunlin.Time     // moment of the first turn
	now    dunlin.Time     // of the last
	before *device.Machine // not nil: to be tried turn by turn
}

// cell makes a device's cell; version is that before its first turn.
func (s *sim) cell(d *dev, domain dunlin.DomainID, version uint64) *cell {
	c := &cell{dev: d, m: device.Make(dunlin.DeviceState{DeviceKey: d.key, Domain: domain, Version: version}), limit: 8, most: turnsMax}
	s.cells = append(s.cells, c)
	return c
}

// drop forgets the cells of devices that are gone.
func (s *sim) drop() {
	s.cells = slices.DeleteFunc(s.cells, func(c *cell) bool { return c.gone })
}

// feed takes a recorded turn over, to be worked off by drain.
func (s *sim) feed(c *cell, at dunlin.Time, ch *dunlin.Change) {
	from, answers := len(c.inputs), false
	for i := range ch.Inputs {
		in := &ch.Inputs[i]
		switch {
		case in.Kind == dunlin.InputTimer && (s.alone || slices.Contains(c.named, in.Timer)):
			continue // the candidate has its own
		case in.Kind == dunlin.InputResult && in.Flags&dunlin.FlagTimedOut != 0:
			continue // likewise
		case in.Kind == dunlin.InputResult:
			answers = true
		}
		c.inputs = append(c.inputs, *in)
		c.inputs[len(c.inputs)-1].MessageID = 0 // the dedupe window is of no use here
	}
	if derived := s.derived(ch); len(derived) > 0 {
		if len(c.inputs) == from {
			c.inputs = append(c.inputs, ch.Inputs[len(ch.Inputs)-1])
		}
		see(&c.inputs[len(c.inputs)-1], derived)
	}
	if len(c.inputs) == from {
		return
	}
	if n := len(c.turns); n > 0 { // a new owner's clock may be behind
		at = max(at, c.turns[n-1].at)
	}
	c.turns = append(c.turns, turn{at, len(c.inputs), answers})
	for i := range ch.Commands {
		cmd := &ch.Commands[i]
		if c.sent = append(c.sent, sent{strings.Clone(cmd.ID), strings.Clone(cmd.Name)}); len(c.sent) > 2*dunlin.CommandsPerDeviceMax {
			c.sent = slices.Delete(c.sent, 0, dunlin.CommandsPerDeviceMax)
		}
	}
}

// answer makes the recorded answers to the deployed version's commands answers to the candidate's: to the one of the same name
// that waits longest. An answer to nothing stays what it is, and a plugin ignores it.
func (c *cell) answer(inputs []dunlin.Input) {
	for i := range inputs {
		in := &inputs[i]
		if in.Kind != dunlin.InputResult {
			continue
		}
		at := slices.IndexFunc(c.sent, func(s sent) bool { return s.id == in.Timer })
		if at < 0 {
			continue
		}
		waiting := slices.Clone(c.m.State().Commands)
		dunlin.SortCommands(waiting)
		if j := slices.IndexFunc(waiting, func(cmd dunlin.Command) bool { return cmd.Name == c.sent[at].name }); j >= 0 {
			in.Timer = waiting[j].ID
		}
		c.sent = slices.Delete(c.sent, at, at+1)
	}
}

// derived returns what the stages before derived in a turn.
func (s *sim) derived(ch *dunlin.Change) (records []dunlin.Record) {
	if s.alone {
		return nil
	}
	for i := range ch.Stages {
		if st := &ch.Stages[i]; st.Stage < s.index && seen(&s.stage, int(st.Stage)) {
			records = append(records, st.Records...)
		}
	}
	return records
}

// seen reports whether a stage sees what an earlier one derives.
func seen(st *dunlin.Stage, earlier int) bool {
	return st.Sees == nil || slices.Contains(st.Sees, earlier)
}

// see makes an input one that a later stage sees: with derived readings, and decoded thereby. The input's records stay as they are.
func see(in *dunlin.Input, derived []dunlin.Record) {
	in.Records = append(in.Records[:len(in.Records):len(in.Records)], derived...)
	if in.Kind == dunlin.InputRaw {
		in.Kind, in.Payload = dunlin.InputTelemetry, nil
	}
}

// drain works off all turns that were fed, and all timers due until a moment.
func (s *sim) drain(to dunlin.Time) error {
	s.active = append(s.active[:0], s.cells...)
	for len(s.active) > 0 {
		s.steps = s.steps[:0]
		left, inputs := s.active[:0], 0
		for i, c := range s.active {
			if inputs >= s.room || s.byTurn && len(s.steps) > 0 {
				left = append(left, s.active[i:]...)
				break
			}
			st, ok := s.next(c, to, s.room-inputs)
			if !ok {
				c.inputs, c.turns, c.at = c.inputs[:0], c.turns[:0], 0
				continue
			}
			left = append(left, c)
			s.steps = append(s.steps, st)
			inputs += len(st.inputs)
		}
		s.active = left
		if len(s.steps) == 0 {
			continue
		}
		if err := s.cross(inputs); err != nil {
			return err
		}
	}
	return nil
}

// next returns what a device does next: its earliest timer, or turns before that.
func (s *sim) next(c *cell, to dunlin.Time, room int) (step, bool) {
	timer := earliest(c.m.State().Timers)
	due := timer.Due
	if c.at < len(c.turns) && (due == 0 || c.turns[c.at].at < due) {
		from := 0
		if c.at > 0 {
			from = c.turns[c.at-1].end
		}
		n, last := 1, &c.turns[c.at]
		if last.answers {
			c.answer(c.inputs[from:last.end])
		}
		for room = min(room, inputsMaxAll); n < c.limit && !s.byTurn && c.at+n < len(c.turns); n++ {
			if t := &c.turns[c.at+n]; due != 0 && t.at >= due || t.end-from > room || t.answers || last.answers {
				break
			}
		}
		last = &c.turns[c.at+n-1]
		return step{c: c, turns: n, inputs: c.inputs[from:last.end:last.end], first: c.turns[c.at].at, now: last.at}, true
	}
	if due == 0 || due > to {
		return step{}, false
	}
	c.timer[0] = device.TimerInput(timer)
	return step{c: c, inputs: c.timer[:], first: due, now: due}, true
}

// earliest returns the timer that fires first; none has no due time.
func earliest(ts []dunlin.TimerSet) (first dunlin.TimerSet) {
	for _, t := range ts {
		if first.Due == 0 || t.Due < first.Due || t.Due == first.Due && t.Name < first.Name {
			first = t
		}
	}
	return first
}

// cross hands s.steps over and lets the machines take what comes of it.
func (s *sim) cross(inputs int) error {
	// The crossing has one moment, the devices have their own: it gets the earliest, because timers before it would be put off.
	now := s.steps[0].first
	for i := range s.steps {
		now = min(now, s.steps[i].first)
	}
	for i := range s.steps {
		if st := &s.steps[i]; (st.turns > 1 || st.first != now) && s.try() {
			st.before = cloned(&st.c.m)
		}
	}
	s.ready(len(s.steps))
	for i := range s.steps {
		s.fill(s.works[i], &s.steps[i].c.m, s.steps[i].inputs)
	}
	works := s.works[:len(s.steps)]
	began := s.clock()
	if err := s.p.Process(s.domain, &s.stage, int(s.index), now, works); err != nil {
		return err
	}
	s.cost.nanos += uint64(max(s.clock().Sub(began), 0))
	fuel := uint64(0)
	for i := range s.steps {
		fuel += works[i].Outcome.FuelUsed
		if err := s.settle(&s.steps[i], &works[i].Outcome); err != nil {
			return err
		}
	}
	s.cost.Fuel += fuel
	s.widen(inputs, fuel)
	return nil
}

// try reports whether a step is one to try turn by turn.
func (s *sim) try() bool {
	s.tried++
	return s.tried <= checkAll || s.tried%checkEvery == 0
}

func (s *sim) ready(n int) {
	for len(s.works) < n {
		s.works = append(s.works, &dunlin.Work{})
	}
}

func (s *sim) fill(w *dunlin.Work, m *device.Machine, inputs []dunlin.Input) {
	*w = dunlin.Work{DeviceKey: m.Key(), Seq: m.Version() + 1, State: m.PluginState(s.index), Made: m.PluginMade(s.index), Inputs: inputs}
}

// widen lets crossings grow as far as their fuel reaches with some to spare.
func (s *sim) widen(inputs int, fuel uint64) {
	most := 14_000
	if inputs > 0 && fuel > 0 {
		most = min(most, int(uint64(s.fuel/4)/max(fuel/uint64(inputs), 1)))
	}
	s.room = max(min(2*s.room, most), roomMin/8)
}

// settle lets a device's machine take what a step came to. What several turns came to together, and might have come to something
// else one by one, is left to be done again in smaller steps.
func (s *sim) settle(st *step, out *dunlin.Outcome) error {
	c := st.c
	if st.turns > 1 && (out.Failure != "" || len(out.Refused) > 0 || c.early(st, out.Timers)) {
		c.limit = max(1, st.turns/2)
		if out.Failure != "" {
			c.most, c.limit = max(1, st.turns/2), 1
		}
		return nil
	}
	if byChance(out.Failure) && c.tries < triesMax {
		c.tries++
		return nil
	}
	c.tries = 0
	c.m.Again(&s.change, st.inputs)
	if ok := c.m.StageOf(&s.change, s.origin(st.now), out); !ok && st.turns > 1 {
		c.m.Abort(dunlin.Receipt{})
		c.limit = 1
		return nil
	}
	s.cost.turn(&s.change, st.now)
	for i := range s.change.Alerts {
		s.emit(c, &s.change.Alerts[i])
	}
	if !s.alone {
		for i := range s.change.Timers {
			if n := s.change.Timers[i].Name; !slices.Contains(c.named, n) {
				c.named = append(c.named, n)
			}
		}
	}
	c.m.Apply(&s.change)
	if st.before != nil {
		if err := s.again(st); err != nil {
			return err
		}
	}
	if c.at += st.turns; st.turns == c.limit {
		c.most = min(c.most+1, turnsMax) // what was too much once may not be so for ever
		c.limit = min(2*c.limit, c.most)
	}
	return nil
}

func (s *sim) origin(now dunlin.Time) *device.Origin {
	s.from = device.Origin{Stage: s.index, Hash: s.stage.Hash, Made: s.stage.Made, Now: now, Effects: true}
	return &s.from
}

// early reports whether a timer might have fired before the step's last turn: at the moment that was said of it, or, if each
// turn has moved it on and only the last word is known, in the longest pause between two turns.
func (c *cell) early(st *step, sets []dunlin.TimerSet) bool {
	for i := range sets {
		d := sets[i].Due
		if d == 0 {
			continue
		}
		if d <= st.now {
			return true
		}
		for j := c.at + 1; j < c.at+st.turns; j++ {
			if c.turns[j].at-c.turns[j-1].at >= d-st.now {
				return true
			}
		}
	}
	return false
}

// cloned copies an idle machine.
func cloned(m *device.Machine) *device.Machine {
	st := *m.State()
	st.Reported = slices.Clone(st.Reported)
	st.Plugins = slices.Clone(st.Plugins)
	st.Alerts = slices.Clone(st.Alerts)
	st.Timers = slices.Clone(st.Timers)
	st.Seen = slices.Clone(st.Seen)
	c := device.Make(st)
	return &c
}

// again works a step off once more, turn by turn, and compares what comes of it with what came of it together.
func (s *sim) again(st *step) error {
	m, c := st.before, st.c
	alerts, said := slices.Clone(s.change.Alerts), 0
	begin, from := stepBegin(c), 0
	var change dunlin.Change
	for i := range max(st.turns, 1) {
		inputs, now := st.inputs, st.now
		if st.turns > 0 {
			t := &c.turns[c.at+i]
			inputs, now = st.inputs[from:t.end-begin:t.end-begin], t.at
			from = t.end - begin
		}
		var w dunlin.Work
		s.fill(&w, m, inputs)
		if err := s.p.Process(s.domain, &s.stage, int(s.index), now, []*dunlin.Work{&w}); err != nil {
			return err
		}
		if w.Outcome.Failure != "" { // not tried, or out of time: that says nothing
			return nil
		}
		m.Again(&change, inputs)
		m.StageOf(&change, s.origin(now), &w.Outcome)
		for j := range change.Alerts {
			if said == len(alerts) || !sameAlert(&alerts[said], &change.Alerts[j]) {
				return uneven(st, "alerts")
			}
			said++
		}
		m.Apply(&change)
	}
	if said != len(alerts) {
		return uneven(st, "alerts")
	}
	if what := otherState(m, &c.m, s.index); what != "" {
		return uneven(st, what)
	}
	return nil
}

func uneven(st *step, what string) error {
	return fmt.Errorf("%w: %d turns of device %s until %s: other %s", errUneven, st.turns, st.c.m.Key().Device, st.now, what)
}

// stepBegin is where the inputs of a cell's next turn begin.
func stepBegin(c *cell) int {
	if c.at == 0 {
		return 0
	}
	return c.turns[c.at-1].end
}

// otherState says in what two machines differ, as far as the stage is concerned.
func otherState(a, b *device.Machine, stage uint8) string {
	if string(a.PluginState(stage)) != string(b.PluginState(stage)) {
		return fmt.Sprintf("states: %x and %x", a.PluginState(stage), b.PluginState(stage))
	}
	if len(a.State().Timers) != len(b.State().Timers) {
		return "timers"
	}
	for _, t := range a.State().Timers {
		if !slices.ContainsFunc(b.State().Timers, func(u dunlin.TimerSet) bool {
			return u.Name == t.Name && max(t.Due-u.Due, u.Due-t.Due) <= dunlin.Time(device.TimerMin.Microseconds())
		}) {
			return fmt.Sprintf("timers: %v and %v", a.State().Timers, b.State().Timers)
		}
	}
	return ""
}
