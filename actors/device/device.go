// Package device is the pure state machine of one device: which uplinks it takes, which it has seen before, which alerts
// and timers change, and what its state is once a change is committed. It has no goroutine, clock or I/O; whoever drives
// it (a shard actor) passes time in and carries out what it asks.
//
//	         Accept, Fire            Propose, Stage…
//	┌──────┐ ─────────▶ ┌───────────┐ ─────────▶ ┌────────────┐
//	│ idle │            │ gathering │            │ committing │◀─┐ Accept: queues
//	└──────┘ ◀───────── └───────────┘            └────────────┘ ─┘
//	   ▲        Abort                               │ Apply, Abort
//	   └────────────────────────────────────────────┘
//
// Invariants:
//   - The state changes in Apply only, by a change that a majority holds, and equals the store's fold of the same changes.
//   - At most one change of a device is on its way, so its sequence numbers have neither holes nor doubles.
//   - Every uplink that Accept takes comes out exactly once: in the Answers of Apply or Abort, or from Release.
//   - A command waits until one input of kind InputResult names it: the device's answer, or its deadline.
//   - No state outgrows dunlin's bounds. What a sender does too much is refused (ErrTooLarge); what a plugin does too much
//     fails that plugin's stage, whose inputs then become dead letters with the reason.
//
// Part of the runtime; no compatibility promise before v1.
package device

import (
	"time"

	"github.com/dunlin-iot/dunlin"
)

// QueueMax bounds the uplinks that wait for a device's commit.
const QueueMax = 256

// SkewMaxDefault is how far a record's time may be from its receipt if the domain doesn't say.
const SkewMaxDefault = 24 * time.Hour

// TimerMin is how far ahead of its turn a timer is armed at least; an earlier due time is put off to that. A plugin that
// arms a timer in the past at each turn would otherwise keep its device and the log busy for ever.
const TimerMin = 100 * time.Millisecond

// Rules are what a domain asks of its devices' turns, with its pipeline resolved to modules. They are immutable; a change
// of the domain or of one of its plugins makes new ones.
type Rules struct {
	Tenant          dunlin.Tenant
	Domain          dunlin.DomainID
	Register        bool          // unknown devices may register themselves
	SkewMax         time.Duration // 0: SkewMaxDefault
	PayloadBytesMax int           // of raw payloads; 0: whatever the gateway lets through
	Stages          []dunlin.Stage
}

// Verdict is what Accept did with an uplink.
type Verdict uint8

// The verdicts.
const (
	Taken    Verdict = iota + 1 // it is part of the turn
	Repeats                     // it repeats an uplink of the turn, and will be answered with it
	Queued                      // the device is committing: Release gives it back afterwards
	Answered                    // it is the caller's again, to be answered with the receipt
)

// Phase is where a machine is in its turn.
type Phase uint8

// The phases.
const (
	Idle Phase = iota
	Gathering
	Committing
)

func (p Phase) String() string { return [...]string{"idle", "gathering", "committing"}[p] }

// Machine is one device. Make makes one; the zero value is of no use.
type Machine struct {
	state   dunlin.DeviceState
	joining dunlin.DomainID // an unknown device's domain while its first turn is on the way
	turn    chain           // uplinks of the turn, in the order of their sequence numbers
	repeats chain           // uplinks that repeat one of the turn
	queue   chain           // uplinks that came while committing
	fired   []dunlin.DueTimer
	extra   *extra // of the turn; nil: nothing of what is rare
	fresh   int32  // at most so many metrics are new with this turn
	active  int32  // alerts that are active after the change that is on its way
	queued  int32
	phase   Phase
	held    bool // committing on somebody else's behalf: see Hold
}

// chain is a list through Uplink.Next, in order.
type chain struct{ head, tail *dunlin.Uplink }

func (c *chain) push(u *dunlin.Uplink) {
	u.Next = nil
	if c.tail == nil {
		c.head = u
	} else {
		c.tail.Next = u
	}
	c.tail = u
}

func (c *chain) pop() *dunlin.Uplink {
	u := c.head
	if u == nil {
		return nil
	}
	if c.head = u.Next; c.head == nil {
		c.tail = nil
	}
	u.Next = nil
	return u
}

// Make returns the machine of a device whose committed state is s, of which it takes the slices over; the plugins' states
// are copied, because Apply writes into them. A device that is not registered has a key and nothing else.
func Make(s dunlin.DeviceState) Machine {
	for i := range s.Plugins {
		s.Plugins[i].State = append([]byte(nil), s.Plugins[i].State...)
	}
	return Machine{state: s}
}

// Key returns the device's name.
func (m *Machine) Key() dunlin.DeviceKey { return m.state.DeviceKey }

// Registered reports whether the device has a place in the registry, as far as is committed.
func (m *Machine) Registered() bool { return m.state.Domain != "" }

// Domain returns the device's domain, or that in which it is about to register; "" for a stranger.
func (m *Machine) Domain() dunlin.DomainID {
	if m.state.Domain != "" {
		return m.state.Domain
	}
	return m.joining
}

// Phase returns where the machine is in its turn.
func (m *Machine) Phase() Phase { return m.phase }

// Version returns the sequence number of the newest committed input.
func (m *Machine) Version() uint64 { return m.state.Version }

// Waits reports whether uplinks wait for the commit to end.
func (m *Machine) Waits() bool { return m.queue.head != nil }

// Busy reports whether the machine must be kept: it holds uplinks, or a change of its device is on the way.
func (m *Machine) Busy() bool { return m.phase != Idle || m.queue.head != nil }

// State returns the committed state: read only, and only until the next call.
func (m *Machine) State() *dunlin.DeviceState { return &m.state }

// PluginState returns the committed state of the pipeline's i-th plugin: read only, until the next Apply.
func (m *Machine) PluginState(i uint8) []byte {
	if p := m.plugin(i); p != nil {
		return p.State
	}
	return nil
}

// PluginMade returns what made the committed state of the pipeline's i-th plugin.
func (m *Machine) PluginMade(i uint8) dunlin.Made {
	if p := m.plugin(i); p != nil {
		return p.Made
	}
	return dunlin.Made{}
}

func (m *Machine) plugin(i uint8) *dunlin.StageState {
	for j := range m.state.Plugins {
		if m.state.Plugins[j].Stage == i {
			return &m.state.Plugins[j]
		}
	}
	return nil
}

// Twin renders the committed state; the result shares nothing with the machine that Apply would change.
func (m *Machine) Twin() *dunlin.Twin {
	t := m.state.Twin()
	for i := range t.Plugins {
		t.Plugins[i].State = append([]byte(nil), t.Plugins[i].State...)
	}
	return t
}

// Hold marks an idle machine as committing, for a change of its device that is not a turn (of the registry).
// Let ends that.
func (m *Machine) Hold() {
	m.mustBe(Idle)
	m.phase, m.held = Committing, true
}

// Let ends a Hold.
func (m *Machine) Let() {
	m.mustBe(Committing)
	m.phase, m.held = Idle, false
}

// Release gives back the uplinks that waited for the commit, as a chain in their order and its length.
func (m *Machine) Release() (first *dunlin.Uplink, n int) {
	first, n = m.queue.head, int(m.queued)
	m.queue, m.queued = chain{}, 0
	return first, n
}

// Bytes estimates the memory that the machine keeps. Names of metrics and units are interned and not counted.
func (m *Machine) Bytes() int {
	s := &m.state
	const machine, record, stage, alert, timer, seen, command = 432, 72, 40, 200, 32, 24, 88
	n := machine + len(s.Device) + record*cap(s.Reported) + stage*cap(s.Plugins) + alert*cap(s.Alerts) +
		timer*cap(s.Timers) + seen*cap(s.Seen) + command*cap(s.Commands)
	for i := range s.Reported {
		n += len(s.Reported[i].Str)
	}
	for i := range s.Plugins {
		n += cap(s.Plugins[i].State)
	}
	for i := range s.Alerts {
		n += len(s.Alerts[i].Text) + len(s.Alerts[i].Rule) + len(s.Alerts[i].Key)
	}
	for i := range s.Commands {
		n += 3*len(s.Commands[i].ID) + len(s.Commands[i].Name) + cap(s.Commands[i].Payload) // the id names its timer, too
	}
	return n
}
