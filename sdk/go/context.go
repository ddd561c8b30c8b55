package sdk

import (
	"math"

	"github.com/dunlin-iot/dunlin/plugins/abi"
)

// Context is a device's turn: what came, and where to put what comes of it. It is only valid in a handler.
type Context struct {
	guest *Guest
	now   Time

	index    int // of the device in the frame; −1 before the first
	seq      uint64
	id       span // in the frame
	came     span // in the frame: the state as it came
	state    span // in what the guest's reader reads: the state as it came, or as Migrate left it
	input    int  // of the device; −1 before the first
	received Time

	start   int  // of the device's records in the answer
	mark    int  // of the records of the input at hand; −1 if there is none
	opened  bool // the answer names the device
	failed  bool // a handler panicked or Fail was called
	mute    bool // what handlers say is not taken: failed, or the input at hand is refused
	saved   bool // what the guest's writer holds is the new state
	inGroup bool
	begun   bool // Begin was called
}

// span is a part of the frame.
type span struct{ at, size int }

func (s span) of(frame []byte) []byte { return frame[s.at : s.at+s.size : s.at+s.size] }

// begin reads the device record of size bytes at an offset of the frame; false says that it is none.
func (c *Context) begin(at, size int) bool {
	if size < abi.DeviceSize {
		return false
	}
	g := c.guest
	lens := load64(g.frame, at+16)
	id, state := int(uint32(lens)), int(lens>>32)
	stateAt := abi.Align(abi.DeviceSize + id)
	if stateAt+state > size {
		return false
	}
	c.index++
	c.seq = load64(g.frame, at+8)
	c.id, c.came = span{at + abi.DeviceSize, id}, span{at + stateAt, state}
	c.state = c.came
	c.input, c.received, c.start, c.mark = -1, c.now, len(g.out), -1
	c.opened, c.failed, c.mute, c.saved, c.inGroup, c.begun = false, false, false, false, true, false
	if g.migrated != nil {
		g.migrated, g.reader.b = nil, g.frame
	}
	return true
}

// first calls Begin, behind the notes on the device and before the first of its inputs.
func (c *Context) first() {
	c.begun = true
	if c.guest.p.Begin != nil && !c.failed {
		c.guest.p.Begin(c)
	}
}

// next goes to the device's next input; false says that it is nobody's, or that the device has failed.
func (c *Context) next(received Time) bool {
	if !c.inGroup {
		return false
	}
	if !c.begun {
		c.first()
	}
	c.input++
	c.received = received
	if c.failed {
		return false
	}
	c.mark, c.mute = len(c.guest.out), false
	return true
}

// note hands a note to its handler. What it makes of the state is what the device's other handlers see.
func (c *Context) note(handler func()) {
	if !c.inGroup || c.failed {
		return
	}
	g := c.guest
	handler()
	if c.saved {
		g.migrated = append([]byte{}, g.writer.b...) // the writer is used again
		g.reader.b, c.state = g.migrated, span{0, len(g.migrated)}
	}
}

// end completes a device's turn.
func (c *Context) end() {
	if !c.inGroup {
		return
	}
	if !c.begun {
		c.first()
	}
	g := c.guest
	if !c.failed && g.p.End != nil {
		c.mark, c.mute = -1, false
		g.p.End(c)
	}
	c.inGroup = false
	if c.saved && !c.failed && !same(g.writer.b, g.frame, c.came.at, c.came.size) {
		g.putState(c.index, c.opened)
	}
}

// open names the device in the answer before the first record about it.
func (c *Context) open() {
	if !c.opened {
		c.opened = true
		c.guest.out = abi.AppendGroup(c.guest.out, uint32(c.index))
	}
}

func (c *Context) fail(why string) {
	c.guest.out = c.guest.out[:c.start]
	c.opened, c.failed, c.mute = false, true, true
	c.open()
	c.guest.out = abi.AppendText(c.guest.out, abi.KindError, 0, why)
}

// Device returns the device's id.
func (c *Context) Device() string { return string(c.id.of(c.guest.frame)) }

// Seq returns the sequence number of the input at hand: 1 for a device's first.
func (c *Context) Seq() uint64 { return c.seq + uint64(max(c.input, 0)) }

// Received returns when the input at hand was received; of a timer, when it was due.
func (c *Context) Received() Time { return c.received }

// Now returns the runtime's clock: never before Received, and later if the input had to wait.
func (c *Context) Now() Time { return c.now }

// Fail refuses the device's inputs: nothing that the handlers made of them counts, and the reason is kept with them in
// the dead-letter list. The readings themselves are kept.
func (c *Context) Fail(why string) {
	if !c.failed {
		c.fail(why)
	}
}

// FailInput refuses the input at hand alone: what its handler has said or says is not taken, what came of the device's other
// inputs is, and the reason is kept with the input in the dead-letter list. Outside of an input's handler it is Fail.
func (c *Context) FailInput(why string) {
	if c.mark < 0 {
		c.Fail(why)
	}
	if c.mute {
		return
	}
	c.guest.out = c.guest.out[:c.mark]
	c.opened, c.mute = c.mark > c.start, true
	c.open()
	c.guest.out = abi.AppendInputError(c.guest.out, uint32(c.input), why)
}

// Alert raises the rule's alert at the device. Raising it again is nothing, unless the severity is higher: people are told
// once. See Update. value is what raised it, NoValue if there is none.
func (c *Context) Alert(rule string, severity Severity, text string, value float64) {
	c.AlertKey(rule, "", severity, text, value)
}

// Clear ends the rule's alert at the device, if there is one.
func (c *Context) Clear(rule string) { c.ClearKey(rule, "") }

// ClearWith is Clear with what cleared it: its text and value replace those of the raising.
func (c *Context) ClearWith(rule, text string, value float64) {
	c.alert(rule, "", 0, 0, text, value)
}

// Update changes text, value and severity of the rule's alert, if it is active.
func (c *Context) Update(rule string, severity Severity, text string, value float64) {
	c.UpdateKey(rule, "", severity, text, value)
}

// UpdateKey is Update for the alert of one key.
func (c *Context) UpdateKey(rule, key string, severity Severity, text string, value float64) {
	c.alert(rule, key, abi.FlagUpdate, severity, text, value)
}

// AlertKey is Alert for a rule that can hold several times at one device: once for each key, say a sensor's name.
func (c *Context) AlertKey(rule, key string, severity Severity, text string, value float64) {
	c.alert(rule, key, abi.FlagRaise, severity, text, value)
}

// ClearKey ends the alert of one key.
func (c *Context) ClearKey(rule, key string) { c.alert(rule, key, 0, 0, "", NoValue()) }

func (c *Context) alert(rule, key string, flags uint16, severity Severity, text string, value float64) {
	if c.mute {
		return
	}
	c.open()
	c.guest.out = abi.AppendAlert(c.guest.out, flags, uint32(max(c.input, 0)), uint8(severity), value, rule, key, text)
}

// NoValue is the value of an alert without one.
func NoValue() float64 { return math.NaN() }

// Emit adds a derived reading, measured when the input at hand was received.
func (c *Context) Emit(metric string, value float64) {
	c.EmitDerived(Derived{Metric: metric, Value: value})
}

// EmitDerived adds a derived reading.
func (c *Context) EmitDerived(d Derived) {
	if c.mute {
		return
	}
	if d.Time == 0 {
		d.Time = c.received
	}
	if d.Kind == 0 {
		d.Kind = Number
	}
	c.open()
	c.guest.out = abi.AppendDerived(c.guest.out, uint8(d.Kind), int64(d.Time), d.Value, d.Metric, d.Unit, d.Text)
}

// Unit returns the unit of a reading of the report at hand, "" if it has none.
func (c *Context) Unit(r *Reading) string { return c.guest.lookup(uint32(r.unit)) }

// Text returns the text, or the bytes, of a reading of the report at hand, "" if it is a number or a boolean.
func (c *Context) Text(r *Reading) string {
	g := c.guest
	rec := g.frame[g.report : g.report+g.reportSize]
	_, _, raw, err := abi.Telemetry(rec)
	if r.Kind < Text || err != nil || int(r.at) >= len(raw)/abi.ReadingSize {
		return ""
	}
	a := abi.ReadingAt(raw, int(r.at))
	off, size := a.Span()
	if uint64(off)+uint64(size) > uint64(len(rec)) {
		return ""
	}
	return string(rec[off : uint64(off)+uint64(size)])
}

// SetTimer arms the device's timer of that name for a moment, or moves it there. It fires once, as a call of Timer.
// Every arming is written to disk: don't move a timer with each reading; let it fire, and arm it for the remainder.
func (c *Context) SetTimer(name string, at Time) { c.setTimer(name, max(at, 1)) }

// CancelTimer disarms a timer.
func (c *Context) CancelTimer(name string) { c.setTimer(name, 0) }

func (c *Context) setTimer(name string, at Time) {
	if c.mute {
		return
	}
	c.open()
	c.guest.out = abi.AppendSet(c.guest.out, int64(at), name)
}

// Command asks the device to do something until deadline (0: a day from now); its answer comes as a Result. The plugin's manifest
// must have the capability "command". format is the payload's content format, as in CoAP.
func (c *Context) Command(name string, format uint16, payload []byte, deadline Time) {
	if c.mute {
		return
	}
	c.open()
	c.guest.out = abi.AppendCommand(c.guest.out, int64(deadline), format, name, payload)
}

// Publish sends a message to the applications that subscribe to the topic. The plugin's manifest must have the capability
// "publish".
func (c *Context) Publish(topic string, format uint16, payload []byte) {
	if c.mute {
		return
	}
	c.open()
	c.guest.out = abi.AppendPublish(c.guest.out, format, topic, payload)
}

// Log writes a line to the node's log, with the plugin and the device. The node limits how many it takes.
func (c *Context) Log(text string) {
	if c.mute {
		return
	}
	c.open()
	c.guest.out = abi.AppendText(c.guest.out, abi.KindLog, abi.LogInfo, text)
}

// State returns the device's state as it came, or as Migrate left it. It must not be changed.
func (c *Context) State() []byte { return c.state.of(c.guest.reader.b) }

// SetState makes b the device's new state. b is copied.
func (c *Context) SetState(b []byte) {
	w := &c.guest.writer
	w.b, c.saved = append(w.b[:0], b...), true
}
