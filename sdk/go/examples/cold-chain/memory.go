package main

import sdk "github.com/dunlin-iot/dunlin/sdk/go"

// memory is what the plugin knows of a device: at most 52 bytes, 39 with the usual 5 samples.
type memory struct {
	lastSeen  sdk.Time
	openSince sdk.Time
	warm      bool // too-warm is raised
	silent    bool // silent is raised
	watched   bool // the timer of silence is armed
	open      bool // the door is
	doorTold  bool // door-open is raised
	n         uint8
	samples   [samplesMax]float32 // oldest first
}

// stateVersion is the first byte of a state.
const stateVersion = 1

func (m *memory) load(r *sdk.StateReader) {
	*m = memory{}
	if r.Byte() != stateVersion {
		return // new to us
	}
	flags := r.Byte()
	m.warm, m.silent, m.watched = flags&1 != 0, flags&2 != 0, flags&4 != 0
	m.open, m.doorTold = flags&8 != 0, flags&16 != 0
	m.lastSeen, m.openSince = r.Time(), r.Time()
	m.n = min(r.Byte(), samplesMax)
	for i := range m.n {
		m.samples[i] = r.Float32()
	}
}

func (m *memory) save(w *sdk.StateWriter) {
	flags := byte(0)
	for i, set := range [...]bool{m.warm, m.silent, m.watched, m.open, m.doorTold} {
		if set {
			flags |= 1 << i
		}
	}
	w.Byte(stateVersion)
	w.Byte(flags)
	w.Time(m.lastSeen)
	w.Time(m.openSince)
	w.Byte(m.n)
	for i := range m.n {
		w.Float32(m.samples[i])
	}
}

// push adds a sample and keeps the newest most.
func (m *memory) push(v float32, most int) {
	if over := int(m.n) + 1 - most; over > 0 {
		copy(m.samples[:], m.samples[over:m.n])
		m.n -= uint8(over)
	}
	m.samples[m.n] = v
	m.n++
}

func (m *memory) mean() float64 {
	sum := 0.0
	for i := range m.n {
		sum += float64(m.samples[i])
	}
	return sum / float64(m.n)
}
