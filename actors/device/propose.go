package device

import (
	"bytes"
	"cmp"
	"fmt"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

// Propose begins the turn's change: c gets the device, the next version and the inputs (those that Inputs returned).
// What slices c has are used again. From now on the machine is committing, until Apply or Abort.
func (m *Machine) Propose(c *dunlin.Change, inputs []dunlin.Input) {
	m.mustBe(Gathering)
	*c = dunlin.Change{
		DeviceKey: m.state.DeviceKey,
		Domain:    m.Domain(),
		Version:   m.state.Version + uint64(len(inputs)),
		Created:   !m.Registered(),
		Inputs:    inputs,
		Stages:    c.Stages[:0],
		Alerts:    c.Alerts[:0],
		Timers:    c.Timers[:0],
	}
	m.active = int32(len(m.state.Alerts))
	m.phase = Committing
	if m.extra != nil && m.extra.results > 0 {
		m.settle(c)
	}
}

// Origin says what made an outcome.
type Origin struct {
	Stage uint8             // its place in the pipeline
	Hash  dunlin.ModuleHash // of the module, or the rules
	Made  dunlin.Made       // what the states that it makes are marked with
	Now   dunlin.Time       // of the turn
	// Effects: every node that is to read the change's entry knows commands, publications, refusals and marks (its version is
	// entry.VersionEffects or later).
	Effects bool
}

// errEffects fails a stage that wants what the entry can't say. Its inputs are dead letters, which can be replayed.
const errEffects = "commands, publications and refusals of single inputs have to wait until every node of the cluster has been upgraded"

// Stage is StageOf for an entry that all builds read: the outcome has no effects but the oldest ones.
func (m *Machine) Stage(c *dunlin.Change, stage uint8, hash dunlin.ModuleHash, out *dunlin.Outcome, now dunlin.Time) bool {
	return m.StageOf(c, &Origin{Stage: stage, Hash: hash, Now: now}, out)
}

// StageOf adds to the change what the pipeline's next plugin made of the turn, and reports whether the plugin succeeded.
//
// Signals become transitions of alerts. "Raise" of a condition that isn't active raises it; of one that is, it is nothing,
// so that a plugin may say it at every reading and the alert is still raised once – unless the severity is higher than
// before: then the alert is raised to it, under the same identity, and needs to be acknowledged again. (A lower severity
// takes a clear or an update.) "Update" changes text, value and severity of an active condition, as far as it names them, and
// leaves its state alone, unless the severity rises: that is a raise. "Clear" and "update" of a condition that is not active
// are nothing.
//
// An outcome that breaks a bound of the device is a failure of the plugin as a whole: no half of it is kept.
func (m *Machine) StageOf(c *dunlin.Change, from *Origin, out *dunlin.Outcome) bool {
	res := dunlin.StageResult{Stage: from.Stage, Hash: from.Hash, Failure: out.Failure}
	alerts, timers, active, commands, publish := len(c.Alerts), c.Timers, m.active, len(c.Commands), len(c.Publish)
	if res.Failure == "" {
		res.Failure = m.checkRecords(c, out)
	}
	if res.Failure == "" && len(out.Signals) > 0 {
		res.Failure = m.signals(c, out.Signals)
	}
	if res.Failure == "" && len(out.Timers) > 0 {
		if len(timers) > 0 { // timers of an earlier stage may be replaced, and must be there again if this stage fails
			timers = append([]dunlin.TimerSet(nil), timers...)
		}
		res.Failure = m.timers(c, out.Timers, from.Now)
	}
	if res.Failure == "" && len(out.Commands)+len(out.Publish)+len(out.Refused) > 0 {
		res.Refused, res.Failure = m.effects(c, from, out)
	}
	if res.Failure != "" {
		c.Alerts, c.Timers, m.active = c.Alerts[:alerts], timers, active
		c.Commands, c.Publish, res.Refused = c.Commands[:commands], c.Publish[:publish], nil
		c.Stages = append(c.Stages, res)
		return false
	}
	m.keepState(&res, from, out)
	res.Records = out.Records
	c.Stages = append(c.Stages, res)
	return true
}

// keepState says what the plugin's state is after the turn, if that is another one. A state that was made by another module
// or configuration is written again even if it stays the same: by who took it over, so that this is not asked of it again.
func (m *Machine) keepState(res *dunlin.StageResult, from *Origin, out *dunlin.Outcome) {
	is := m.PluginState(from.Stage)
	switch {
	case out.State != nil && !bytes.Equal(out.State, is):
		res.State, res.StateSet = out.State, true
	case from.Effects && len(is) > 0 && from.Made != (dunlin.Made{}) && m.PluginMade(from.Stage) != from.Made:
		res.State, res.StateSet = bytes.Clone(is), true
	}
	if res.StateSet && from.Effects {
		res.Made = from.Made
	}
}

// checkRecords says what is wrong with the derived readings, or nothing.
func (m *Machine) checkRecords(c *dunlin.Change, out *dunlin.Outcome) string {
	for i := range out.Records {
		r := &out.Records[i]
		if r.Kind < dunlin.Number || r.Kind > dunlin.Data {
			return fmt.Sprintf("derived reading %q has no value of a known kind", r.Metric)
		}
		if err := dunlin.ValidateMetric(r.Metric); err != nil {
			return "derived reading: " + err.Error()
		}
		if r.Time == 0 {
			r.Time = c.Inputs[len(c.Inputs)-1].Received
		}
	}
	n := len(m.state.Reported) + int(m.fresh) + len(out.Records)
	for i := range c.Stages {
		n += len(c.Stages[i].Records)
	}
	if n <= dunlin.MetricsPerDeviceMax {
		return ""
	}
	earlier := make([][]dunlin.Record, 0, len(c.Stages))
	for i := range c.Stages {
		earlier = append(earlier, c.Stages[i].Records)
	}
	if m.tooManyMetrics(out.Records, earlier...) {
		return errMetrics.Error()
	}
	return ""
}

// alert returns the condition's newest occurrence if it is active: as the change leaves it so far.
func (m *Machine) alert(c *dunlin.Change, rule, key string) *dunlin.Alert {
	for i := len(c.Alerts) - 1; i >= 0; i-- {
		if a := &c.Alerts[i]; a.Rule == rule && a.Key == key {
			if a.State == dunlin.AlertCleared {
				return nil
			}
			return a
		}
	}
	for i := range m.state.Alerts {
		if a := &m.state.Alerts[i]; a.Rule == rule && a.Key == key {
			return a
		}
	}
	return nil
}

// signals appends the transitions that the signals make, and says what is wrong with them, or nothing.
func (m *Machine) signals(c *dunlin.Change, signals []dunlin.AlertSignal) string {
	for i := range signals {
		s := &signals[i]
		graded := s.Raise || s.Update && s.Severity != 0
		if s.Rule == "" || s.Raise && s.Update || graded && (s.Severity < dunlin.Info || s.Severity > dunlin.Critical) {
			return fmt.Sprintf("alert signal with rule %q and %s", s.Rule, s.Severity)
		}
		was := m.alert(c, s.Rule, s.Key)
		if s.Raise && was != nil && s.Severity <= was.Severity || !s.Raise && was == nil || s.Update && unchanged(s, was) {
			continue
		}
		input := min(max(s.Input, 0), len(c.Inputs)-1)
		at, seq := c.Inputs[input].Received, c.Seq(input)
		var a dunlin.Alert
		if was != nil {
			a = *was
		} else {
			m.active++
			a = dunlin.Alert{Tenant: c.Tenant, Device: c.Device, Domain: c.Domain, Rule: s.Rule, Key: s.Key,
				RaisedAt: at, RaisedSeq: seq}
		}
		a.At, a.Seq = at, seq
		switch {
		case s.Raise:
			a.State, a.Severity, a.Text, a.Value = dunlin.AlertRaised, s.Severity, s.Text, s.Value
		case s.Update:
			if s.Severity > a.Severity {
				a.State = dunlin.AlertRaised
			}
			a.Severity = cmp.Or(s.Severity, a.Severity)
			amend(&a, s)
		default:
			m.active--
			a.State, a.ClearedAt = dunlin.AlertCleared, at
			amend(&a, s)
		}
		if m.active > dunlin.AlertsPerDeviceMax {
			return fmt.Sprintf("the device would have more than %d active alerts", dunlin.AlertsPerDeviceMax)
		}
		c.Alerts = append(c.Alerts, a)
	}
	return ""
}

// amend gives an alert the text and the value that the signal has.
func amend(a *dunlin.Alert, s *dunlin.AlertSignal) {
	a.Text = cmp.Or(s.Text, a.Text)
	if s.Value != nil {
		a.Value = s.Value
	}
}

// unchanged reports that an update says nothing new.
func unchanged(s *dunlin.AlertSignal, was *dunlin.Alert) bool {
	return (s.Severity == 0 || s.Severity == was.Severity) && (s.Text == "" || s.Text == was.Text) &&
		(s.Value == nil || was.Value != nil && *s.Value == *was.Value)
}

// timers adds the settings to the change, one for each name, and says what is wrong with them, or nothing.
func (m *Machine) timers(c *dunlin.Change, sets []dunlin.TimerSet, now dunlin.Time) string {
	for _, t := range sets {
		if t.Name == "" || strings.HasPrefix(t.Name, ownTimer) {
			return fmt.Sprintf("a timer with the name %q", t.Name)
		}
		t.Was = m.armed(t.Name)
		firing := m.firing(t.Name)
		if t.Due != 0 && (t.Due != t.Was || firing) {
			t.Due = max(t.Due, now.Add(TimerMin))
		}
		if i := indexTimer(c.Timers, t.Name); i >= 0 {
			c.Timers[i] = t // also where that makes it what it was: the entry says what the plugins said
		} else if t.Due != t.Was || firing {
			c.Timers = append(c.Timers, t)
		}
	}
	if m.armedAfter(c) > dunlin.TimersPerDeviceMax {
		return fmt.Sprintf("the device would have more than %d armed timers", dunlin.TimersPerDeviceMax)
	}
	return ""
}

// armedAfter counts the plugins' timers that are armed after the change.
func (m *Machine) armedAfter(c *dunlin.Change) (armed int) {
	for i := range m.state.Timers {
		if !strings.HasPrefix(m.state.Timers[i].Name, ownTimer) {
			armed++
		}
	}
	for i := range c.Timers {
		switch t := &c.Timers[i]; {
		case strings.HasPrefix(t.Name, ownTimer):
		case t.Was == 0 && t.Due != 0:
			armed++
		case t.Was != 0 && t.Due == 0:
			armed--
		}
	}
	for _, f := range m.fired {
		if indexTimer(c.Timers, f.Name) < 0 {
			armed--
		}
	}
	return armed
}

func indexTimer(ts []dunlin.TimerSet, name string) int {
	for i := range ts {
		if ts[i].Name == name {
			return i
		}
	}
	return -1
}

// armed returns when the timer is due as far as is committed, 0 if it isn't armed.
func (m *Machine) armed(name string) dunlin.Time {
	if i := indexTimer(m.state.Timers, name); i >= 0 {
		return m.state.Timers[i].Due
	}
	return 0
}

func (m *Machine) firing(name string) bool {
	for i := range m.fired {
		if m.fired[i].Name == name {
			return true
		}
	}
	return false
}
