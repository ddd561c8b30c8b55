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
	state    span // in the frame: as it came
	input    int  // of the device; −1 in Begin
	received Time

	start   int  // of the device's records in the answer
	opened  bool // the answer names the device
	failed  bool // a handler panicked or Fail was called
	saved   bool // what the guest's writer holds is the new state
	inGroup bool
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
	c.id, c.state = span{at + abi.DeviceSize, id}, span{at + stateAt, state}
	c.input, c.received, c.start = -1, c.now, len(g.out)
	c.opened, c.failed, c.saved, c.inGroup = false, false, false, true
	if g.p.Begin != nil {
		g.p.Begin(c)
	}
	return true
}

// end completes a device's turn.
func (c *Context) end() {
	if !c.inGroup {
		return
	}
	if !c.failed && c.guest.p.End != nil {
		c.guest.p.End(c)
	}
	c.inGroup = false
	if c.saved && !c.failed { // the host sees for itself whether it is the old one
		c.guest.putState(c.index, c.opened)
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
	c.opened, c.failed = false, true
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

// Alert raises the rule's alert at the device. Raising it again only updates its severity, text and value: people are
// told once. value is what raised it, NoValue if there is none.
func (c *Context) Alert(rule string, severity Severity, text string, value float64) {
	c.AlertKey(rule, "", severity, text, value)
}

// Clear ends the rule's alert at the device, if there is one.
func (c *Context) Clear(rule string) { c.ClearKey(rule, "") }

// ClearWith is Clear with what cleared it: its text and value replace those of the raising.
func (c *Context) ClearWith(rule, text string, value float64) {
	c.alert(rule, "", false, Info, text, value)
}

// AlertKey is Alert for a rule that can hold several times at one device: once for each key, say a sensor's name.
func (c *Context) AlertKey(rule, key string, severity Severity, text string, value float64) {
	c.alert(rule, key, true, severity, text, value)
}

// ClearKey ends the alert of one key.
func (c *Context) ClearKey(rule, key string) { c.alert(rule, key, false, Info, "", NoValue()) }

func (c *Context) alert(rule, key string, raise bool, severity Severity, text string, value float64) {
	if c.failed {
		return
	}
	c.open()
	flags := uint16(0)
	if raise {
		flags = abi.FlagRaise
	}
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
	if c.failed {
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
	if c.failed {
		return
	}
	c.open()
	c.guest.out = abi.AppendSet(c.guest.out, int64(at), name)
}

// Log writes a line to the node's log, with the plugin and the device. The node limits how many it takes.
func (c *Context) Log(text string) {
	if c.failed {
		return
	}
	c.open()
	c.guest.out = abi.AppendText(c.guest.out, abi.KindLog, abi.LogInfo, text)
}

// State returns the device's state as it came. It must not be changed.
func (c *Context) State() []byte { return c.state.of(c.guest.frame) }

// SetState makes b the device's new state. b is copied.
func (c *Context) SetState(b []byte) {
	w := &c.guest.writer
	w.b, c.saved = append(w.b[:0], b...), true
}
