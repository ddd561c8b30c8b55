package actors

import (
	"bytes"
	"slices"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/device"
	"github.com/dunlin-iot/dunlin/actors/trial"
)

// candidate is what a shard knows of a trial at one stage: which of its devices are in it, and of a shadow their states, which are
// nobody's but its own: they begin as what the active version has, live here only, and end with the trial or the term.
type candidate struct {
	trial   string
	devices map[dunlin.DeviceKey]*chosen
}

// chosen is a device that a trial was asked about.
type chosen struct {
	in     bool
	begun  bool // state is the candidate's own
	state  []byte
	made   dunlin.Made
	active map[string]bool // conditions that the candidate has raised
}

// chosenMax bounds the devices of a shard that a trial is for; further ones run the active version alone.
const chosenMax = 1 << 14

// candidateKey names a stage of a domain.
type candidateKey struct {
	tenant dunlin.Tenant
	domain dunlin.DomainID
	stage  int
}

func (s *shard) candidate(r *device.Rules, stage int) *candidate {
	key := candidateKey{r.Tenant, r.Domain, stage}
	tr := s.candidates[key]
	if id := r.Stages[stage].Trial.ID; tr == nil || tr.trial != id {
		if s.candidates == nil {
			s.candidates = make(map[candidateKey]*candidate)
		}
		tr = &candidate{trial: id, devices: make(map[dunlin.DeviceKey]*chosen)}
		s.candidates[key] = tr
	}
	return tr
}

var notChosen = &chosen{}

// chosen says whether a device is in the trial. Labels are looked up once, when it is first seen.
func (s *shard) chosen(tr *candidate, t *dunlin.Trial, key dunlin.DeviceKey) *chosen {
	if d := tr.devices[key]; d != nil {
		return d
	}
	if len(tr.devices) >= chosenMax {
		return notChosen
	}
	var labels map[string]string
	if len(t.Labels) > 0 && s.dir.deps.Labels != nil {
		labels = s.dir.deps.Labels(s.id, key)
	}
	d := &chosen{in: trial.Selects(t, key, labels)}
	tr.devices[key] = d
	return d
}

// shadow is the candidate's work beside w: the same inputs, and its own state.
func (tr *candidate) shadow(c *cell, w *dunlin.Work) *dunlin.Work {
	d := tr.devices[w.DeviceKey]
	if !d.begun {
		d.begun, d.state, d.made, d.active = true, bytes.Clone(w.State), w.Made, map[string]bool{}
		for i := range c.State().Alerts {
			a := &c.State().Alerts[i]
			d.active[a.Rule+"/"+a.Key] = true
		}
	}
	return &dunlin.Work{DeviceKey: w.DeviceKey, Seq: w.Seq, State: d.state, Made: d.made, Inputs: w.Inputs}
}

// compare counts a shadow's result beside the active version's, whose alerts are the change's from an index on.
func (s *shard) compare(count *tally, r *device.Rules, stage int, c *dunlin.Change, alerts int, w, shadow *dunlin.Work) {
	d := s.candidate(r, stage).devices[w.DeviceKey]
	v, out := &count.counts.Candidate, &shadow.Outcome
	n := uint64(len(shadow.Inputs))
	v.Inputs += n
	v.Fuel += out.FuelUsed
	if out.Failure != "" {
		v.Failed += n
		if w.Outcome.Failure == "" {
			count.counts.Differ++
		} else {
			count.counts.Same++
		}
		return
	}
	v.Failed += uint64(len(out.Refused))
	if out.State != nil {
		d.state = out.State
	}
	d.made = count.st.Trial.Made
	only, missing := d.raised(out.Signals), []string(nil)
	v.Alerts += uint64(len(only))
	for i := alerts; i < len(c.Alerts); i++ {
		a := &c.Alerts[i]
		if a.State != dunlin.AlertRaised || a.Seq != a.RaisedSeq {
			continue
		}
		name := a.Rule + "/" + a.Key
		if j := slices.Index(only, name); j >= 0 {
			only = slices.Delete(only, j, j+1)
		} else {
			missing = append(missing, name)
		}
	}
	count.counts.AlertsOnly += uint64(len(only))
	count.counts.AlertsMissing += uint64(len(missing))
	if len(only)+len(missing) == 0 && sameSignals(out.Signals, w.Outcome.Signals) && slices.EqualFunc(out.Records, w.Outcome.Records, dunlin.Record.Same) {
		count.counts.Same++
	} else {
		count.counts.Differ++
	}
}

// raised takes a shadow's signals in and returns the conditions that they raise.
func (d *chosen) raised(signals []dunlin.AlertSignal) (names []string) {
	for i := range signals {
		s := &signals[i]
		name := s.Rule + "/" + s.Key
		switch {
		case s.Update:
		case !s.Raise:
			delete(d.active, name)
		case !d.active[name] && len(d.active) < dunlin.AlertsPerDeviceMax:
			d.active[name] = true
			names = append(names, name)
		}
	}
	return names
}

func sameSignals(a, b []dunlin.AlertSignal) bool {
	return slices.EqualFunc(a, b, func(x, y dunlin.AlertSignal) bool {
		return x.Raise == y.Raise && x.Update == y.Update && x.Rule == y.Rule && x.Key == y.Key && x.Severity == y.Severity && x.Input == y.Input
	})
}
