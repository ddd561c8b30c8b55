package main

import (
	"encoding/binary"
	"math"

	sdk "github.com/dunlin-iot/dunlin/sdk/go"
)

// phase is where an alarm is at a device. The numbers are part of the state's format.
type phase uint8

const (
	idle     phase = 0
	pending  phase = 1
	active   phase = 2
	clearing phase = 3
)

// memory is what is known of an alarm at the device whose turn it is.
type memory struct {
	phase phase
	armed bool // absence: the timer is armed
	known bool // there was a reading
	n     uint32
	since sdk.Time // the reading's that the phase began with, unless idle
	until sdk.Time // pending, clearing: when the hold time is over
	value float64  // pending, clearing: what the timer will tell
	last  sdk.Time // rate: of the reading before. absence: when something was heard
	a, b  float64  // rate: the reading before. deviation: mean and variance
	bits  uint64   // state with changes: the value before, or its hash
}

// stray is an alarm that is active at the device and not in the configuration.
type stray struct{ name string }

// A state is a version and what there is to know of alarms, little-endian:
//
//	u8 1 · each: u32 id of the name, u8 head
//	             phase > 0:          i64 since
//	             pending, clearing:  i64 until, f64 value
//	             active, clearing:   u8 bytes, name
//	             known or armed, by type:
//	               rate       i64 last, f64 value
//	               deviation  u32 n, f64 mean, f64 variance
//	               absence    i64 last
//	               state      u64 value
//
//	head:  bits 0–2 type · 3–4 phase · 5 armed · 6 known
//
// An alarm that is idle and knows nothing is left out: thresholds and values cost nothing while all is well. An active one has
// its name, so that it can be cleared when the configuration doesn't have it any more.
const stateVersion = 1

const (
	headPhase = 3
	headArmed = 1 << 5
	headKnown = 1 << 6
)

// load reads a state. One that another plugin made, or that is cut, is as good as none from there on.
func (p *plugin) load(b []byte) {
	p.known, p.strays = len(b) > 0, p.strays[:0]
	clear(p.mem)
	if len(b) == 0 || b[0] != stateVersion {
		return
	}
	r := reader{b: b, at: 1}
	next := 0
	for r.at < len(b) {
		id, head := r.u32(), r.u8()
		t := kind(head & 7)
		m := memory{phase: phase(head >> headPhase & 3), armed: head&headArmed != 0, known: head&headKnown != 0}
		name := r.entry(t, &m)
		if r.bad {
			return
		}
		// The order is the configuration's, unless that was changed.
		i := p.find(id, next)
		if i < 0 || p.alarms[i].kind != t {
			if m.phase >= active {
				p.strays = append(p.strays, stray{name: string(name)})
			}
			continue
		}
		p.mem[i], next = m, i+1
	}
}

// entry reads what stands behind a head.
func (r *reader) entry(t kind, m *memory) (name []byte) {
	if m.phase != idle {
		m.since = sdk.Time(r.u64())
	}
	if m.phase == pending || m.phase == clearing {
		m.until, m.value = sdk.Time(r.u64()), r.f64()
	}
	if m.phase >= active {
		name = r.bytes(int(r.u8()))
	}
	if !m.known && !m.armed {
		return name
	}
	switch t {
	case rate:
		m.last, m.a = sdk.Time(r.u64()), r.f64()
	case deviation:
		m.n, m.a, m.b = r.u32(), r.f64(), r.f64()
	case absence:
		m.last = sdk.Time(r.u64())
	case state:
		m.bits = r.u64()
	}
	return name
}

func (p *plugin) find(id uint32, next int) int {
	if next < len(p.alarms) && p.alarms[next].id == id {
		return next
	}
	for i := range p.alarms {
		if p.alarms[i].id == id {
			return i
		}
	}
	return -1
}

// save returns the state; it is valid until the next call.
func (p *plugin) save() []byte {
	b := append(p.buf[:0], stateVersion)
	for i := range p.alarms {
		a, m := &p.alarms[i], &p.mem[i]
		if m.phase == idle && !m.known && !m.armed {
			continue
		}
		b = binary.LittleEndian.AppendUint32(b, a.id)
		head := byte(a.kind) | byte(m.phase)<<headPhase
		if m.armed {
			head |= headArmed
		}
		if m.known {
			head |= headKnown
		}
		b = append(b, head)
		if m.phase != idle {
			b = binary.LittleEndian.AppendUint64(b, uint64(m.since))
		}
		if m.phase == pending || m.phase == clearing {
			b = binary.LittleEndian.AppendUint64(b, uint64(m.until))
			b = binary.LittleEndian.AppendUint64(b, math.Float64bits(m.value))
		}
		if m.phase >= active {
			b = append(append(b, byte(len(a.name))), a.name...)
		}
		if m.known || m.armed {
			b = a.known(b, m)
		}
	}
	p.buf = b
	return b
}

func (a *alarm) known(b []byte, m *memory) []byte {
	switch a.kind {
	case rate:
		b = binary.LittleEndian.AppendUint64(b, uint64(m.last))
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(m.a))
	case deviation:
		b = binary.LittleEndian.AppendUint32(b, m.n)
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(m.a))
		b = binary.LittleEndian.AppendUint64(b, math.Float64bits(m.b))
	case absence:
		b = binary.LittleEndian.AppendUint64(b, uint64(m.last))
	case state:
		b = binary.LittleEndian.AppendUint64(b, m.bits)
	}
	return b
}

// reader reads a state. Beyond its end all is zero and bad is set.
type reader struct {
	b   []byte
	at  int
	bad bool
}

func (r *reader) bytes(n int) []byte {
	if n > len(r.b)-r.at {
		r.at, r.bad = len(r.b), true
		return nil
	}
	r.at += n
	return r.b[r.at-n : r.at]
}

func (r *reader) u8() byte {
	if b := r.bytes(1); b != nil {
		return b[0]
	}
	return 0
}

func (r *reader) u32() uint32 {
	if b := r.bytes(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *reader) u64() uint64 {
	if b := r.bytes(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (r *reader) f64() float64 { return math.Float64frombits(r.u64()) }
