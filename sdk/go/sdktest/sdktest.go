// Package sdktest runs a plugin's handlers natively, as the runtime would: for unit tests without WebAssembly.
//
// Every call is made twice, to an instance that lives as long as the test and to one that was made just now; the test
// fails if they answer differently. A plugin that passes keeps what it knows of devices in their state, as it must.
package sdktest

import (
	"bytes"
	"math"
	"slices"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin/plugins/abi"
	sdk "github.com/dunlin-iot/dunlin/sdk/go"
)

// Harness is a plugin with a configuration, a clock and devices.
type Harness struct {
	t      testing.TB
	make   func() sdk.Plugin
	config string
	old    *instance
	now    sdk.Time
	order  []*Device
}

// Start is the harness's clock at first: 2026-01-01 00:00 UTC.
const Start sdk.Time = 1767225600_000000

// New returns a Harness. newPlugin makes the plugin anew; config is a JSON object. A configuration that the plugin
// refuses fails the test; see Configure.
func New(t testing.TB, newPlugin func() sdk.Plugin, config string) *Harness {
	t.Helper()
	h := &Harness{t: t, make: newPlugin, config: config, now: Start}
	in, refused := h.instance()
	if refused != "" {
		t.Fatalf("the plugin refuses the configuration: %s", refused)
	}
	h.old = in
	return h
}

// Configure returns what a plugin says against a configuration, "" if it takes it.
func Configure(newPlugin func() sdk.Plugin, config string) string {
	h := &Harness{make: newPlugin, config: config}
	_, refused := h.instance()
	return refused
}

// Now returns the harness's clock.
func (h *Harness) Now() sdk.Time { return h.now }

// Device returns the device of that id, new if it isn't known.
func (h *Harness) Device(id string) *Device {
	for _, d := range h.order {
		if d.ID == id {
			return d
		}
	}
	d := &Device{ID: id, h: h, timers: map[string]sdk.Time{}, active: map[string]Alert{}}
	h.order = append(h.order, d)
	return d
}

// Advance moves the clock on, firing what timers become due in their order, and returns what came of them.
func (h *Harness) Advance(d time.Duration) []Result {
	h.t.Helper()
	end := h.now.Add(d)
	var results []Result
	for range 10_000 {
		dev, name, due := h.nextTimer()
		if dev == nil || due > end {
			h.now = end
			return results
		}
		h.now = max(h.now, due)
		delete(dev.timers, name)
		results = append(results, dev.turn(func(dst []byte, _ *instance) []byte {
			return abi.AppendTimer(dst, int64(due), name)
		}))
	}
	h.t.Fatal("10,000 timers fired: the plugin arms them in the past")
	return nil
}

func (h *Harness) nextTimer() (dev *Device, name string, due sdk.Time) {
	for _, d := range h.order {
		for n, at := range d.timers {
			if dev == nil || at < due || at == due && d == dev && n < name {
				dev, name, due = d, n, at
			}
		}
	}
	return dev, name, due
}

// Device is a device of a Harness.
type Device struct {
	ID     string
	h      *Harness
	seq    uint64
	state  []byte
	timers map[string]sdk.Time
	active map[string]Alert
	notes  []byte // for the next turn
}

// Alert is what the plugin said about an alert: raised, updated, or else cleared.
type Alert struct {
	Rule, Key, Text string
	Raise, Update   bool
	Severity        sdk.Severity
	Value           float64 // NaN: none
}

// Command is a command to the device.
type Command struct {
	Name     string
	Format   uint16
	Payload  []byte
	Deadline sdk.Time
}

// Publication is a message to applications.
type Publication struct {
	Topic   string
	Format  uint16
	Payload []byte
}

// Result is what came of one turn.
type Result struct {
	Device    string
	Alerts    []Alert
	Readings  []sdk.Derived
	Commands  []Command
	Published []Publication
	Logs      []string
	Refused   string // why the input was refused alone
	Failure   string // why all of the device's inputs were
}

// Number returns a reading to send.
func Number(metric string, v float64) sdk.Derived { return sdk.Derived{Metric: metric, Value: v} }

// Bool returns a boolean reading to send.
func Bool(metric string, v bool) sdk.Derived {
	r := sdk.Derived{Metric: metric, Kind: sdk.Boolean}
	if v {
		r.Value = 1
	}
	return r
}

// Text returns a text reading to send.
func Text(metric, v string) sdk.Derived { return sdk.Derived{Metric: metric, Kind: sdk.Text, Text: v} }

// Send delivers one report; readings without a time get the clock's.
func (d *Device) Send(rs ...sdk.Derived) Result {
	d.h.t.Helper()
	return d.turn(func(dst []byte, in *instance) []byte {
		start := len(dst)
		dst = abi.BeginTelemetry(dst, int64(d.h.now), len(rs), 0)
		for _, r := range rs {
			at := r.Time
			if at == 0 {
				at = d.h.now
			}
			dst = abi.AppendReading(dst, abi.Reading{Metric: in.id(r.Metric), Unit: uint16(in.id(r.Unit)),
				Kind: max(uint8(r.Kind), abi.ValueNumber), Time: int64(at), Value: r.Value})
		}
		for i, r := range rs {
			if r.Kind >= sdk.Text {
				dst = abi.AppendValue(dst, start, i, r.Text)
			}
		}
		return abi.EndTelemetry(dst, start)
	})
}

// SendRaw delivers a payload that the runtime doesn't decode.
func (d *Device) SendRaw(format uint16, payload []byte) Result {
	d.h.t.Helper()
	return d.turn(func(dst []byte, _ *instance) []byte {
		return abi.AppendRaw(dst, int64(d.h.now), format, 0, payload)
	})
}

// Answer delivers what the device says to a command.
func (d *Device) Answer(command string, format uint16, payload []byte) Result {
	d.h.t.Helper()
	return d.turn(func(dst []byte, _ *instance) []byte {
		return abi.AppendCommandResult(dst, int64(d.h.now), format, false, command, payload)
	})
}

// TimeOut delivers that nobody answered a command until its deadline.
func (d *Device) TimeOut(command string) Result {
	d.h.t.Helper()
	return d.turn(func(dst []byte, _ *instance) []byte {
		return abi.AppendCommandResult(dst, int64(d.h.now), 0, true, command, nil)
	})
}

// Lifecycle delivers what happened to the device's registration, a JSON object: {"event":"registered","domain":"cold"}.
func (d *Device) Lifecycle(event string) Result {
	d.h.t.Helper()
	return d.turn(func(dst []byte, _ *instance) []byte {
		return abi.AppendLifecycle(dst, int64(d.h.now), []byte(event))
	})
}

// HasStateOf gives the device a state that another version of the plugin made: Migrate is called with the next input.
func (d *Device) HasStateOf(module uint32, state []byte) {
	d.state, d.notes = bytes.Clone(state), abi.AppendMigrate(d.notes, module)
}

// Reconfigured makes the device's state one of another configuration: Configured is called with the next input.
func (d *Device) Reconfigured() { d.notes = abi.AppendConfigured(d.notes) }

// State returns the device's state.
func (d *Device) State() []byte { return d.state }

// Active returns the active alert of a rule and key.
func (d *Device) Active(rule, key string) (Alert, bool) {
	a, ok := d.active[rule+"\x00"+key]
	return a, ok
}

// Timer returns when the timer of that name is due, 0 if it isn't armed.
func (d *Device) Timer(name string) sdk.Time { return d.timers[name] }

func (d *Device) turn(input func(dst []byte, in *instance) []byte) Result {
	h := d.h
	h.t.Helper()
	d.seq++
	fresh, refused := h.instance()
	if refused != "" {
		h.t.Fatalf("the plugin takes its configuration only sometimes: %s", refused)
	}
	outs := [2][]byte{}
	for i, in := range []*instance{h.old, fresh} {
		body := input(nil, in) // defines names
		frame := abi.AppendBatch(nil, int64(h.now), 1, 1)
		frame = append(frame, in.names...)
		in.names = nil
		frame = abi.AppendDevice(frame, d.seq, d.ID, d.state)
		frame = append(frame, d.notes...)
		out, failed := in.guest.Process(append(frame, body...))
		if failed {
			return Result{Device: d.ID, Failure: string(out)}
		}
		outs[i] = slices.Clone(out)
	}
	d.notes = nil
	if !bytes.Equal(outs[0], outs[1]) {
		h.t.Errorf("device %s, input %d: an instance that was made just now answers otherwise than an old one: "+
			"the plugin keeps something outside its state", d.ID, d.seq)
	}
	return d.apply(outs[0])
}

func (d *Device) apply(out []byte) Result {
	res := Result{Device: d.ID}
	r := abi.NewReader(out)
	for {
		kind, flags, rec, err := r.Next()
		if err != nil {
			d.h.t.Fatalf("device %s: %v", d.ID, err)
		}
		if rec == nil {
			return res
		}
		switch kind {
		case abi.KindState:
			d.state = bytes.Clone(abi.Body(rec))
		case abi.KindAlert:
			a, err := abi.ReadAlert(flags, rec)
			d.must(err)
			res.Alerts = append(res.Alerts, d.alert(a))
		case abi.KindReading:
			x, err := abi.ReadDerived(rec)
			d.must(err)
			res.Readings = append(res.Readings, sdk.Derived{Metric: string(x.Metric), Unit: string(x.Unit),
				Time: sdk.Time(x.Time), Value: x.Value, Text: string(x.Bytes), Kind: sdk.Kind(x.Kind)})
		case abi.KindSet:
			due, name, err := abi.ReadSet(rec)
			d.must(err)
			if delete(d.timers, string(name)); due != 0 {
				d.timers[string(name)] = sdk.Time(due)
			}
		case abi.KindLog:
			res.Logs = append(res.Logs, string(abi.Body(rec)))
		case abi.KindCommand:
			c, err := abi.ReadCommand(rec)
			d.must(err)
			res.Commands = append(res.Commands, Command{Name: string(c.Name), Format: c.Format,
				Payload: bytes.Clone(c.Payload), Deadline: sdk.Time(c.Deadline)})
		case abi.KindPublish:
			p, err := abi.ReadPublish(rec)
			d.must(err)
			res.Published = append(res.Published, Publication{Topic: string(p.Topic), Format: p.Format, Payload: bytes.Clone(p.Payload)})
		case abi.KindError:
			if flags&abi.FlagInput == 0 {
				res.Failure = string(abi.Body(rec))
				continue
			}
			_, why, err := abi.ReadInputError(rec)
			d.must(err)
			res.Refused = string(why)
		}
	}
}

// alert does with what the plugin said what the runtime does: an active alert is only raised again if that is more severe.
func (d *Device) alert(a abi.Alert) Alert {
	alert := Alert{Rule: string(a.Rule), Key: string(a.Key), Text: string(a.Text), Raise: a.Raise, Update: a.Update,
		Severity: sdk.Severity(a.Severity), Value: a.Value}
	name := alert.Rule + "\x00" + alert.Key
	was, active := d.active[name]
	switch {
	case a.Raise && (!active || alert.Severity > was.Severity), a.Update && active:
		d.active[name] = alert
	case !a.Raise && !a.Update:
		delete(d.active, name)
	}
	return alert
}

func (d *Device) must(err error) {
	if err != nil {
		d.h.t.Fatalf("device %s: %v", d.ID, err)
	}
}

// instance is a guest with the metric names that it was told.
type instance struct {
	guest *sdk.Guest
	known []string
	names []byte // KindName records to put into the next frame
}

func (h *Harness) instance() (in *instance, refused string) {
	in = &instance{guest: sdk.NewGuest(h.make()), known: []string{""}}
	out, failed := in.guest.Init(abi.AppendText(nil, abi.KindConfig, 0, h.config))
	if failed {
		return nil, string(out)
	}
	return in, ""
}

func (in *instance) id(name string) uint32 {
	i := slices.Index(in.known, name)
	if i < 0 {
		i = len(in.known)
		in.known = append(in.known, name)
		in.names = abi.AppendName(in.names, uint32(i), name)
	}
	if i > math.MaxUint16 {
		panic("sdktest: more than 65,535 names")
	}
	return uint32(i)
}
