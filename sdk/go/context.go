package sdk

import (
	"math"

	"github.com/dunlin-iot/dunlin/plugins/abi"
)

// Context is a device's turn: what came, and where to put what comes of it. It is only valid in a handler.
//
// What most turns don't ask for, such as the device's id, is read from the frame when it is asked for.
type Context struct {
	guest *Guest
	flags turn

	now      Time
	at       int // of the device's record in the frame
	index    int // of the device in the frame; −1 before the first
	input    int // of the device; −1 before the first
	received Time

	// In what the guest's reader reads: the state as it came, or as Migrate left it.
	stateAt, stateSize int

	start int // of the device's records in the answer
	mark  int // of the records of the input at hand; −1 if there is none
}

// turn is what is so about the turn at hand.
type turn uint8

const (
	inGroup  turn = 1 << iota // there is a device
	begun                     // Begin was called
	failed                    // a handler panicked or Fail was called
	mute                      // what handlers say is not taken: failed, or the input at hand is refused
	opened                    // the answer names the device
	saved                     // what the guest's writer holds is the new state
	migrated                  // the state is not in the frame
)

// begin reads the device record of size bytes at an offset of the frame; false says that it is none.
func (c *Context) begin(at, size int) bool {
	if size < abi.DeviceSize {
		return false
	}
	g := c.guest
	lens := load64(g.frame, at+16)
	state := int(lens >> 32)
	stateAt := abi.Align(abi.DeviceSize + int(uint32(lens)))
	if stateAt+state > size {
		return false
	}
	if c.flags&migrated != 0 {
		g.reader.b = g.frame
	}
	c.flags = inGroup
	c.at = at
	c.index++
	c.input = -1
	c.received = c.now
	c.stateAt = at + stateAt
	c.stateSize = state
	c.start = len(g.out)
	c.mark = -1
	return true
}

// first calls Begin, behind the notes on the device and before the first of its inputs.
func (c *Context) first() {
	c.flags |= begun
	if c.guest.p.Begin != nil && c.flags&failed == 0 {
		c.guest.p.Begin(c)
	}
}

// next goes to the device's next input; false says that it is nobody's, or that the device has failed.
func (c *Context) next(received Time) bool {
	if c.flags&inGroup == 0 {
		return false
	}
	if c.flags&begun == 0 {
		c.first()
	}
	c.input++
	c.received = received
	if c.flags&failed != 0 {
		return false
	}
	c.mark = len(c.guest.out)
	c.flags &^= mute
	return true
}

// note hands a note to its handler. What it makes of the state is what the device's other handlers see.
func (c *Context) note(handler func()) {
	if c.flags&(inGroup|failed) != inGroup {
		return
	}
	g := c.guest
	handler()
	if c.flags&saved != 0 {
		g.reader.b = append([]byte{}, g.writer.bytes()...) // the writer is used again
		c.stateAt, c.stateSize = 0, len(g.reader.b)
		c.flags |= migrated
	}
}

// end completes a device's turn.
func (c *Context) end() {
	if c.flags&(inGroup|begun) != inGroup|begun {
		if c.flags&inGroup == 0 {
			return
		}
		c.first()
	}
	g := c.guest
	if c.flags&failed == 0 && g.p.End != nil {
		c.mark = -1
		c.flags &^= mute
		g.p.End(c)
	}
	c.flags &^= inGroup
	if c.flags&(saved|failed) == saved {
		g.keep()
	}
}

// open names the device in the answer before the first record about it.
func (c *Context) open() {
	if c.flags&opened == 0 {
		c.flags |= opened
		c.guest.out = abi.AppendGroup(c.guest.out, uint32(c.index))
	}
}

func (c *Context) fail(why string) {
	c.guest.out = c.guest.out[:c.start]
	c.flags = c.flags&^opened | failed | mute
	c.open()
	c.guest.out = abi.AppendText(c.guest.out, abi.KindError, 0, why)
}

// Device returns the device's id.
func (c *Context) Device() string {
	g := c.guest
	at := c.at + abi.DeviceSize
	return string(g.frame[at : at+int(load32(g.frame, c.at+16))])
}

// Seq returns the sequence number of the input at hand: 1 for a device's first.
func (c *Context) Seq() uint64 { return load64(c.guest.frame, c.at+8) + uint64(max(c.input, 0)) }

// Received returns when the input at hand was received; of a timer, when it was due.
func (c *Context) Received() Time { return c.received }

// Now returns the runtime's clock: never before Received, and later if the input had to wait.
func (c *Context) Now() Time { return c.now }

// Fail refuses the device's inputs: nothing that the handlers made of them counts, and the reason is kept with them in
// the dead-letter list. The readings themselves are kept.
func (c *Context) Fail(why string) {
	if c.flags&failed == 0 {
		c.fail(why)
	}
}

// FailInput refuses the input at hand alone: what its handler has said or says is not taken, what came of the device's other
// inputs is, and the reason is kept with the input in the dead-letter list. Outside of an input's handler it is Fail.
func (c *Context) FailInput(why string) {
	if c.mark < 0 {
		c.Fail(why)
	}
	if c.flags&mute != 0 {
		return
	}
	c.guest.out = c.guest.out[:c.mark]
	if c.flags |= mute; c.mark == c.start {
		c.flags &^= opened
	}
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
	if c.flags&mute != 0 {
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
	if c.flags&mute != 0 {
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
	if c.flags&mute != 0 {
		return
	}
	c.open()
	c.guest.out = abi.AppendSet(c.guest.out, int64(at), name)
}

// Command asks the device to do something until deadline (0: a day from now); its answer comes as a Result. The plugin's manifest
// must have the capability "command". format is the payload's content format, as in CoAP.
func (c *Context) Command(name string, format uint16, payload []byte, deadline Time) {
	if c.flags&mute != 0 {
		return
	}
	c.open()
	c.guest.out = abi.AppendCommand(c.guest.out, int64(deadline), format, name, payload)
}

// Publish sends a message to the applications that subscribe to the topic. The plugin's manifest must have the capability
// "publish".
func (c *Context) Publish(topic string, format uint16, payload []byte) {
	if c.flags&mute != 0 {
		return
	}
	c.open()
	c.guest.out = abi.AppendPublish(c.guest.out, format, topic, payload)
}

// Log writes a line to the node's log, with the plugin and the device. The node limits how many it takes.
func (c *Context) Log(text string) {
	if c.flags&mute != 0 {
		return
	}
	c.open()
	c.guest.out = abi.AppendText(c.guest.out, abi.KindLog, abi.LogInfo, text)
}

// State returns the device's state as it came, or as Migrate left it. It must not be changed.
func (c *Context) State() []byte {
	last := c.stateAt + c.stateSize
	return c.guest.reader.b[c.stateAt:last:last]
}

// SetState makes b the device's new state. b is copied.
func (c *Context) SetState(b []byte) {
	w := c.Save()
	w.room(len(b))
	w.n = copy(w.b, b)
}
