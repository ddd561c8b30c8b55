package actors

import (
	"log/slog"
	"slices"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/device"
	"github.com/dunlin-iot/dunlin/entry"
)

// pipelines runs the domains' plugins on the turn: one call for each stage of each domain. It errs only if the plugins'
// host is closing.
func (s *shard) pipelines(t *turn) error {
	for i, r := range t.rules {
		if r == nil || len(r.Stages) == 0 || t.done1(i) {
			continue
		}
		t.only(r, i)
		for stage := range r.Stages {
			s.prepare(t, r, stage)
			if err := t.process(s.dir.deps.Processor, r, stage); err != nil {
				return err
			}
			s.conclude(t, r, stage)
		}
		t.forget()
	}
	return nil
}

// only makes one domain's devices those that the next stages run on: from the i-th of the turn on.
func (t *turn) only(r *device.Rules, i int) {
	t.who = t.who[:0]
	for j := i; j < len(t.rules); j++ {
		if t.rules[j] == r {
			t.who = append(t.who, j)
		}
	}
}

// done1 reports whether the i-th device's pipeline has run, together with that of an earlier device of its domain.
func (t *turn) done1(i int) bool { return len(t.changes[i].Stages) > 0 }

// forget clears what calls point to.
func (t *turn) forget() {
	clear(t.calls)
	clear(t.canary)
	clear(t.shadows)
	t.calls, t.canary, t.shadows = t.calls[:0], t.canary[:0], t.shadows[:0]
}

// prepare makes the calls of a stage: the active version's, and those of a candidate. What follows it, process, touches nothing
// but works, so that it may run beside the shard.
func (s *shard) prepare(t *turn, r *device.Rules, stage int) {
	st := &r.Stages[stage]
	t.forget()
	var tr *candidate
	if st.Trial != nil {
		tr = s.candidate(r, stage)
	}
	for _, i := range t.who {
		w := &t.works[i]
		w.State, w.Made = t.cells[i].PluginState(uint8(stage)), t.cells[i].PluginMade(uint8(stage))
		w.Inputs = t.view(&t.changes[i], st.Sees)
		w.Outcome = dunlin.Outcome{}
		chosen := tr != nil && s.chosen(tr, &st.Trial.Trial, w.DeviceKey).in
		if chosen && st.Trial.Kind == dunlin.TrialCanary {
			t.canary = append(t.canary, w)
			continue
		}
		t.calls = append(t.calls, w)
		if chosen {
			t.shadows = append(t.shadows, tr.shadow(t.cells[i], w))
		}
	}
}

// process runs a stage's calls.
func (t *turn) process(p Processor, r *device.Rules, stage int) error {
	st := &r.Stages[stage]
	b := t.shard.dir.beat
	began := b.now()
	if len(t.calls) > 0 {
		if err := p.Process(r.Domain, st, stage, t.now, t.calls); err != nil {
			return err
		}
	}
	if st.Trial == nil {
		return nil
	}
	t.spent = b.now() - began
	other := *st
	other.Hash, other.Made, other.Trial = st.Trial.Hash, st.Trial.Made, nil
	began = b.now()
	if len(t.canary) > 0 {
		if err := p.Process(r.Domain, &other, stage, t.now, t.canary); err != nil {
			return err
		}
	}
	if len(t.shadows) > 0 {
		if err := p.Process(r.Domain, &other, stage, t.now, t.shadows); err != nil {
			return err
		}
	}
	t.candidateSpent = b.now() - began
	return nil
}

// conclude makes what a stage's calls returned part of the devices' changes.
func (s *shard) conclude(t *turn, r *device.Rules, stage int) {
	st := &r.Stages[stage]
	var count *tally
	if st.Trial != nil {
		count = &tally{st: st, spent: t.spent, candidateSpent: t.candidateSpent, active: len(t.calls), canary: len(t.canary), shadows: len(t.shadows)}
	}
	effects := s.dir.cfg.EntryVersion() >= entry.VersionEffects
	call, other, shade := 0, 0, 0
	for _, i := range t.who {
		w, c := &t.works[i], &t.changes[i]
		from := device.Origin{Stage: uint8(stage), Hash: st.Hash, Made: st.Made, Now: t.now, Effects: effects}
		canary := other < len(t.canary) && t.canary[other] == w
		if canary {
			from.Hash, from.Made = st.Trial.Hash, st.Trial.Made
			other++
		} else {
			call++
		}
		alerts := len(c.Alerts)
		t.cells[i].StageOf(c, &from, &w.Outcome)
		if count != nil {
			count.add(c, alerts, w, canary)
			if shade < len(t.shadows) && t.shadows[shade].DeviceKey == w.DeviceKey {
				s.compare(count, r, stage, c, alerts, w, t.shadows[shade])
				shade++
			}
		}
		if len(w.Outcome.Logs) > 0 {
			s.logs(w, st, t.now)
		}
	}
	if count != nil {
		s.dir.deps.Trials.Add(st.Trial.ID, count.done())
	}
}

// view returns the change's inputs as a stage sees them: with the readings that stages before it derived as records of the last
// input, all of them or those that it says. A raw input that has been decoded that way is telemetry to later stages. The
// change's own inputs stay as they are.
func (t *turn) view(c *dunlin.Change, sees []int) []dunlin.Input {
	derived := 0
	for i := range c.Stages {
		if sees == nil || slices.Contains(sees, i) {
			derived += len(c.Stages[i].Records)
		}
	}
	if derived == 0 {
		return c.Inputs
	}
	from := len(t.views)
	t.views = append(t.views, c.Inputs...)
	view := t.views[from:len(t.views):len(t.views)]
	last := &view[len(view)-1]
	records := make([]dunlin.Record, 0, len(last.Records)+derived)
	records = append(records, last.Records...)
	for i := range c.Stages {
		if sees == nil || slices.Contains(sees, i) {
			records = append(records, c.Stages[i].Records...)
		}
	}
	if last.Records = records; last.Kind == dunlin.InputRaw {
		last.Kind, last.Payload = dunlin.InputTelemetry, nil
	}
	return view
}

func (s *shard) logs(w *dunlin.Work, st *dunlin.Stage, now dunlin.Time) {
	for _, line := range w.Outcome.Logs {
		if !s.dir.logs.allow(now) {
			s.dir.met.logsDropped.Inc()
			continue
		}
		s.dir.cfg.Log.Info("plugin", slog.String("plugin", st.Plugin), slog.String("device", w.DeviceKey.String()),
			slog.String("says", line))
	}
}

// tally counts one stage of one turn for a trial.
type tally struct {
	st                      *dunlin.Stage
	spent, candidateSpent   time.Duration
	active, canary, shadows int
	counts                  dunlin.TrialCounts
}

// add counts what a version did for a device: the active one, or a canary in its place.
func (y *tally) add(c *dunlin.Change, alerts int, w *dunlin.Work, canary bool) {
	v := &y.counts.Active
	if canary {
		v = &y.counts.Candidate
	}
	n := uint64(len(w.Inputs))
	v.Inputs += n
	v.Fuel += w.Outcome.FuelUsed
	if res := &c.Stages[len(c.Stages)-1]; res.Failure != "" {
		v.Failed += n
	} else {
		v.Failed += uint64(len(res.Refused))
	}
	for i := alerts; i < len(c.Alerts); i++ {
		if a := &c.Alerts[i]; a.State == dunlin.AlertRaised && a.Seq == a.RaisedSeq {
			v.Alerts++
		}
	}
}

func (y *tally) done() *dunlin.TrialCounts {
	if y.active > 0 {
		y.counts.Active.Nanos += uint64(y.spent)
	}
	if y.canary+y.shadows > 0 {
		y.counts.Candidate.Nanos += uint64(y.candidateSpent)
	}
	return &y.counts
}
