package plugintest

import (
	"encoding/json"
	"fmt"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/device"
	"github.com/dunlin-iot/dunlin/plugins"
)

// epoch is when every case begins: 2026-01-01T00:00:00Z.
const epoch = dunlin.Time(1_767_225_600_000_000)

// world is the devices of a case, each the runtime's own state machine, with one stage.
type world struct {
	host    *plugins.Host
	stage   *dunlin.Stage
	rules   *device.Rules
	now     dunlin.Time
	devices map[dunlin.DeviceID]*device.Machine
	order   []dunlin.DeviceID
	before  func() error // each call of the plugin; nil: nothing

	inputs, fuel uint64

	// What came of the step.
	alerts   []dunlin.Alert
	derived  map[string]any
	commands []string
	topics   []string
	errors   []string
	states   []string
}

func newWorld(h *plugins.Host, st *dunlin.Stage) *world {
	return &world{host: h, stage: st, now: epoch, devices: map[dunlin.DeviceID]*device.Machine{},
		rules: &device.Rules{Tenant: dunlin.DefaultTenant, Domain: "test", Register: true, Stages: []dunlin.Stage{*st}}}
}

// step lets time pass, timers included, and then the device send.
func (w *world) step(s *Step) error {
	w.alerts, w.derived, w.commands, w.topics, w.errors, w.states = nil, map[string]any{}, nil, nil, nil, nil
	until, err := s.when(w.now)
	if err != nil {
		return err
	}
	if err := w.pass(until); err != nil {
		return err
	}
	in, sends, err := s.input(w.now)
	if err != nil || !sends {
		return err
	}
	m := w.machine(s.device())
	u := &dunlin.Uplink{DeviceKey: m.Key(), Sender: dunlin.Principal{Kind: dunlin.PrincipalOpen}, Input: in}
	if v, r := m.Accept(u, w.rules); v != device.Taken {
		return fmt.Errorf("the device's uplink is refused: %w", r.Err)
	}
	return w.turn(m)
}

func (w *world) machine(id dunlin.DeviceID) *device.Machine {
	m := w.devices[id]
	if m == nil {
		made := device.Make(dunlin.DeviceState{DeviceKey: dunlin.DeviceKey{Tenant: dunlin.DefaultTenant, Device: id}})
		m = &made
		w.devices[id] = m
		w.order = append(w.order, id)
	}
	return m
}

// timersMax bounds the timers of one step: a plugin that arms one at each would never end.
const timersMax = 100_000

// pass lets time pass and timers fire, the earliest first.
func (w *world) pass(until dunlin.Time) error {
	for range timersMax {
		var next *device.Machine
		var due dunlin.DueTimer
		for _, id := range w.order {
			m := w.devices[id]
			for _, t := range m.State().Timers {
				if t.Due <= until && (next == nil || t.Due < due.Due) {
					next, due = m, dunlin.DueTimer{DeviceKey: m.Key(), Name: t.Name, Due: t.Due}
				}
			}
		}
		if next == nil {
			w.now = until
			return nil
		}
		w.now = max(w.now, due.Due)
		if !next.Fire(due) {
			return fmt.Errorf("timer %s of %s does not fire", due.Name, due.Device)
		}
		if err := w.turn(next); err != nil {
			return err
		}
	}
	return fmt.Errorf("more than %d timers fired in one step", timersMax)
}

// turn is a device's turn, as the runtime has it.
func (w *world) turn(m *device.Machine) error {
	if w.before != nil {
		if err := w.before(); err != nil {
			return err
		}
	}
	var c dunlin.Change
	m.Propose(&c, m.Inputs(nil))
	work := &dunlin.Work{DeviceKey: c.DeviceKey, Seq: c.Seq(0), State: m.PluginState(0), Inputs: c.Inputs}
	if err := w.host.Process("test", w.stage, 0, w.now, []*dunlin.Work{work}); err != nil {
		return err
	}
	m.StageOf(&c, &device.Origin{Hash: w.stage.Hash, Now: w.now, Effects: true}, &work.Outcome)
	for a := m.Apply(&c); ; {
		if u, _ := a.Next(); u == nil {
			break
		}
	}
	w.inputs += uint64(len(c.Inputs))
	w.fuel += work.Outcome.FuelUsed
	w.alerts = append(w.alerts, c.Alerts...)
	st := &c.Stages[0]
	for i := range st.Records {
		w.derived[st.Records[i].Metric] = st.Records[i].Value()
	}
	for i := range c.Commands {
		w.commands = append(w.commands, c.Commands[i].Name)
	}
	for i := range c.Publish {
		w.topics = append(w.topics, c.Publish[i].Topic)
	}
	if st.Failure != "" {
		w.errors = append(w.errors, st.Failure)
	}
	for _, r := range st.Refused {
		w.errors = append(w.errors, r.Reason)
	}
	w.states = append(w.states, fmt.Sprintf("%s=%x", c.Device, m.PluginState(0)))
	return nil
}

func (w *world) state(id dunlin.DeviceID) []byte {
	if m := w.devices[id]; m != nil {
		return m.PluginState(0)
	}
	return nil
}

// said is all that came of the step, to be compared.
func (w *world) said() string {
	b, err := json.Marshal(map[string]any{"alerts": w.alerts, "readings": w.derived, "commands": w.commands, "publish": w.topics,
		"errors": w.errors, "states": w.states})
	if err != nil {
		return err.Error()
	}
	return string(b)
}
