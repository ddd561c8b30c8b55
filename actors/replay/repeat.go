package replay

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/device"
)

// repeat lets recorded turns happen again as they were: all stages, with the modules that ran then, at the moment that they
// ran at, timers as they fired.
type repeat struct {
	*task
	p     Processor
	clock func() dunlin.Time
	cost  *costs

	works []*dunlin.Work
	calls []*dunlin.Work
	whose []int // turns of calls
	turns []again

	// Of the last entry, for who wants to know more.
	logs   []string
	raised []raisedBy
}

// raisedBy says which of a turn's stages raised an alert.
type raisedBy struct {
	rule, key string
	stage     int // in the change's
}

// twin is a device that goes through its turns again.
type twin struct {
	m device.Machine
}

// again is one turn.
type again struct {
	twin *twin
	was  *dunlin.Change
	now  dunlin.Change
	fuel uint64
}

func newRepeat(t *task, p Processor, clock func() dunlin.Time, k *costs) *repeat {
	return &repeat{task: t, p: p, clock: clock, cost: k}
}

func newTwin(ch *dunlin.Change) *twin {
	key := dunlin.DeviceKey{Tenant: dunlin.Tenant(strings.Clone(string(ch.Tenant))), Device: dunlin.DeviceID(strings.Clone(string(ch.Device)))}
	st := dunlin.DeviceState{DeviceKey: key, Version: ch.Version - uint64(len(ch.Inputs)), Domain: dunlin.DomainID(strings.Clone(string(ch.Domain)))}
	return &twin{m: device.Make(st)}
}

// stage is a stage as it ran when a turn was recorded.
func (r *repeat) stage(st *dunlin.StageResult) (dunlin.Stage, bool) {
	if int(st.Stage) >= len(r.pipeline) {
		return dunlin.Stage{}, false
	}
	now := r.pipeline[st.Stage]
	now.Trial, now.Share = nil, 1
	if now.Hash == st.Hash {
		return now, true
	}
	if now.Rules != nil { // rules that are no longer there
		return now, false
	}
	now.Hash = st.Hash
	now.Made.Module = max(binary.BigEndian.Uint32(st.Hash[:]), 1)
	return now, true
}

// begin puts a turn into the row of those that run together.
func (r *repeat) begin(t *twin, was *dunlin.Change) {
	if v := was.Version - uint64(len(was.Inputs)); t.m.Version() != v {
		// Something is missing in between: what is known of the device goes on from here.
		st := *t.m.State()
		st.Version = v
		t.m = device.Make(st)
	}
	if n := len(r.turns); n < cap(r.turns) {
		r.turns = r.turns[:n+1]
	} else {
		r.turns = append(r.turns, again{})
	}
	a := &r.turns[len(r.turns)-1]
	a.twin, a.was, a.fuel = t, was, 0
	a.twin.m.Again(&a.now, was.Inputs)
}

// run lets all stages run on the turns that begin put there.
func (r *repeat) run(at dunlin.Time) error {
	r.logs, r.raised = r.logs[:0], r.raised[:0]
	for len(r.works) < len(r.turns) {
		r.works = append(r.works, &dunlin.Work{})
	}
	for stage := 0; ; stage++ {
		more := false
		for i := range r.turns {
			if a := &r.turns[i]; stage < len(a.was.Stages) && len(a.now.Stages) == stage {
				more = true
				if err := r.together(i, stage, at); err != nil {
					return err
				}
			}
		}
		if !more {
			return nil
		}
	}
}

// together runs a stage on the i-th turn and on those behind it that ran the same.
func (r *repeat) together(i, stage int, at dunlin.Time) error {
	like := &r.turns[i].was.Stages[stage]
	st, known := r.stage(like)
	r.calls, r.whose = r.calls[:0], r.whose[:0]
	for j := i; j < len(r.turns); j++ {
		a := &r.turns[j]
		if stage >= len(a.was.Stages) || len(a.now.Stages) != stage || a.was.Stages[stage].Hash != like.Hash || a.was.Stages[stage].Stage != like.Stage {
			continue
		}
		was := &a.was.Stages[stage]
		if notRun(was.Failure) || !known {
			out := dunlin.Outcome{Failure: was.Failure}
			if !known {
				out.Failure = "the rules that ran then are not known any more"
			}
			a.twin.m.Stage(&a.now, was.Stage, was.Hash, &out, at)
			continue
		}
		w := r.works[j]
		*w = dunlin.Work{DeviceKey: a.twin.m.Key(), Seq: a.now.Seq(0), State: a.twin.m.PluginState(was.Stage), Made: a.twin.m.PluginMade(was.Stage),
			Inputs: r.view(&a.now, &st)}
		r.calls, r.whose = append(r.calls, w), append(r.whose, j)
	}
	if len(r.calls) == 0 {
		return nil
	}
	began := r.clock()
	if err := r.p.Process(r.domain, &st, int(like.Stage), at, r.calls); err != nil {
		return err
	}
	r.cost.nanos += uint64(max(r.clock().Sub(began), 0))
	for n, j := range r.whose {
		a, w := &r.turns[j], r.calls[n]
		for tries := 0; byChance(w.Outcome.Failure) && tries < triesMax; tries++ {
			if err := r.p.Process(r.domain, &st, int(like.Stage), at, []*dunlin.Work{w}); err != nil {
				return err
			}
		}
		a.fuel += w.Outcome.FuelUsed
		r.cost.Fuel += w.Outcome.FuelUsed
		r.logs = append(r.logs, w.Outcome.Logs...)
		alerts := len(a.now.Alerts)
		a.twin.m.StageOf(&a.now, &device.Origin{Stage: like.Stage, Hash: st.Hash, Made: st.Made, Now: at, Effects: true}, &w.Outcome)
		for i := range a.now.Alerts[alerts:] {
			r.raised = append(r.raised, raisedBy{a.now.Alerts[alerts+i].Rule, a.now.Alerts[alerts+i].Key, stage})
		}
		r.cost.turn(&a.now, at)
	}
	return nil
}

// view returns a turn's inputs as a stage sees them.
func (r *repeat) view(c *dunlin.Change, st *dunlin.Stage) []dunlin.Input {
	var derived []dunlin.Record
	for i := range c.Stages {
		if seen(st, int(c.Stages[i].Stage)) {
			derived = append(derived, c.Stages[i].Records...)
		}
	}
	if len(derived) == 0 {
		return c.Inputs
	}
	view := slices.Clone(c.Inputs)
	see(&view[len(view)-1], derived)
	return view
}

// end makes what came of the turns the devices' state.
func (r *repeat) end() {
	for i := range r.turns {
		a := &r.turns[i]
		a.twin.m.Apply(&a.now)
		a.was, a.twin = nil, nil
	}
	r.turns = r.turns[:0]
}

// notRun reports whether a failure is not what the module came to on these inputs: it was not run on them, or might come to
// something else another time.
func notRun(failure string) bool {
	return strings.HasPrefix(failure, "quarantined until ") || strings.HasPrefix(failure, "the plugin does not start: ") || byChance(failure)
}

// byChance reports whether a failure may be another one, or none, the next time: who came too late or had too little time.
func byChance(failure string) bool {
	return strings.HasPrefix(failure, "not tried: ") || strings.HasPrefix(failure, "no memory: ") || strings.HasPrefix(failure, "fuel exhausted")
}

// difference says how what came of a turn differs from what was recorded; "" if it doesn't.
func (a *again) difference() string {
	was, now := a.was, &a.now
	if len(was.Alerts) != len(now.Alerts) {
		return fmt.Sprintf("%d transitions of alerts, recorded were %d", len(now.Alerts), len(was.Alerts))
	}
	for i := range was.Alerts {
		if !sameAlert(&was.Alerts[i], &now.Alerts[i]) {
			return fmt.Sprintf("alert %s is %s, recorded was %s", now.Alerts[i].ID(), show(&now.Alerts[i]), show(&was.Alerts[i]))
		}
	}
	if !sameTimers(was.Timers, now.Timers) {
		return fmt.Sprintf("timers are %v, recorded were %v", now.Timers, was.Timers)
	}
	for i := range was.Stages {
		if i >= len(now.Stages) {
			return fmt.Sprintf("stage %d did not run", i)
		}
		w, n := &was.Stages[i], &now.Stages[i]
		if (w.Failure == "") != (n.Failure == "") {
			return fmt.Sprintf("stage %d: failure %q, recorded was %q", w.Stage, n.Failure, w.Failure)
		}
		if !slices.EqualFunc(w.Records, n.Records, dunlin.Record.Same) {
			return fmt.Sprintf("stage %d derived %d readings, recorded were %d, or others", w.Stage, len(n.Records), len(w.Records))
		}
	}
	return ""
}

func sameTimers(a, b []dunlin.TimerSet) bool {
	return slices.EqualFunc(a, b, func(x, y dunlin.TimerSet) bool { return x.Name == y.Name && x.Due == y.Due })
}

func show(a *dunlin.Alert) string {
	value := "none"
	if a.Value != nil && !math.IsNaN(*a.Value) {
		value = fmt.Sprint(*a.Value)
	}
	return fmt.Sprintf("%s %s at %s, value %s, text %q", a.Severity, a.State, a.At, value, a.Text)
}

// repeat repeats an entry's turns of the domain and compares.
func (r *shardRun) repeat(e *dunlin.Entry) error {
	for i := range e.Changes {
		ch := &e.Changes[i]
		if !r.concerns(ch) {
			continue
		}
		d := r.devs[ch.DeviceKey]
		if d == nil {
			d = r.add(ch)
		}
		if d.twin == nil {
			d.twin = newTwin(ch)
		}
		r.count(d, e, ch)
		r.held += len(ch.Inputs)
		r.again.begin(d.twin, ch)
	}
	if err := r.again.run(e.At); err != nil {
		return err
	}
	for i := range r.again.turns {
		a := &r.again.turns[i]
		r.compare(e, a)
	}
	r.again.end()
	for i := range e.Puts {
		if err := r.put(&e.Puts[i]); err != nil {
			return err
		}
	}
	return nil
}

// compare notes what came of a turn.
func (r *shardRun) compare(e *dunlin.Entry, a *again) {
	d := r.devs[a.twin.m.Key()]
	for i := range a.was.Alerts {
		d.alert(recorded, &a.was.Alerts[i])
	}
	for i := range a.now.Alerts {
		d.alert(candidate, &a.now.Alerts[i])
	}
	if e.At < r.period.since {
		return
	}
	if r.tally.exact == nil {
		r.tally.exact = &dunlin.BacktestExactness{}
	}
	x := r.tally.exact
	x.Turns++
	if why := a.difference(); why != "" {
		x.Different++
		if len(x.Differences) < differencesMax {
			x.Differences = append(x.Differences, fmt.Sprintf("%s at %s, input %d: %s", d.key.Device, e.At, a.now.Seq(0), why))
		}
	}
}
