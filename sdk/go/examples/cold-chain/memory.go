package main

import "math"

import sdk "github.com/dunlin-iot/dunlin/sdk/go"

// memory is what the plugin knows of a device: 19 bytes and 4 for each sample, 39 with the usual 5.
type memory struct {
	flags     flag
	next      uint8 // where the next sample goes
	lastSeen  sdk.Time
	openSince sdk.Time
	n         int                 // samples that there are
	samples   [samplesMax]float32 // the last ones, in a ring
}

// flag is a set of what is so about a device.
type flag uint8

const (
	warm     flag = 1 << iota // too-warm is raised
	silent                    // silent is raised
	watched                   // the timer of silence is armed
	doorOpen                  // the door is open
	doorTold                  // door-open is raised
)

func (m *memory) is(f flag) bool { return m.flags&f != 0 }
func (m *memory) set(f flag)     { m.flags |= f }
func (m *memory) unset(f flag)   { m.flags &^= f }

// stateVersion is the first byte of a state.
const stateVersion = 1

func (m *memory) load(r *sdk.StateReader) {
	if r.Byte() != stateVersion { // new to us
		*m = memory{}
		return
	}
	m.flags, m.next = flag(r.Byte()), r.Byte()
	m.lastSeen, m.openSince = r.Time(), r.Time()
	m.n = r.Float32s(m.samples[:])
}

func (m *memory) save(w *sdk.StateWriter) {
	w.Byte(stateVersion)
	w.Byte(byte(m.flags))
	w.Byte(m.next)
	w.Time(m.lastSeen)
	w.Time(m.openSince)
	w.Float32s(m.samples[:m.n])
}

// push adds a sample and keeps the last most of them.
func (m *memory) push(v float32, most int) {
	if m.n > most || int(m.next) >= most {
		m.n, m.next = min(m.n, most), 0 // the setting was lowered
	}
	m.samples[m.next] = v
	m.n = max(m.n, int(m.next)+1)
	if m.next++; int(m.next) >= most {
		m.next = 0
	}
}

func (m *memory) mean() float64 {
	sum := 0.0
	for _, v := range m.samples[:m.n] {
		sum += float64(v)
	}
	return math.Round(1e4*sum/float64(m.n)) / 1e4 // of float32 samples: more digits would be noise
}
