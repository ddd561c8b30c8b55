package store

import "github.com/dunlin-iot/dunlin"

// segmentMemory is where a segment is read to. With again set what was read lies in large pieces that are used again after
// reset; otherwise every list is made anew and may be kept for ever.
type segmentMemory struct {
	again   bool
	entries slab[dunlin.Entry]
	changes slab[dunlin.Change]
	inputs  slab[dunlin.Input]
	stages  slab[dunlin.StageResult]
	records slab[dunlin.Record]
	timers  slab[dunlin.TimerSet]
	bytes   slab[byte]
	tracks  []*deviceTrack
	used    int // of tracks
}

// reuse makes a memory that is used again.
func reuse() *segmentMemory {
	m := &segmentMemory{again: true}
	m.entries.again, m.changes.again, m.inputs.again, m.stages.again = true, true, true, true
	m.records.again, m.timers.again, m.bytes.again = true, true, true
	return m
}

// reset takes all memory back.
func (m *segmentMemory) reset() {
	m.entries.reset()
	m.changes.reset()
	m.inputs.reset()
	m.stages.reset()
	m.records.reset()
	m.timers.reset()
	m.bytes.reset()
	m.used = 0
}

// room returns an empty slice with room for at least n bytes.
func (m *segmentMemory) room(n uint64) []byte {
	if m == nil || !m.again {
		return make([]byte, 0, n)
	}
	return m.bytes.list(int(n))[:0]
}

// track returns a device's track as it is at first.
func (m *segmentMemory) track(key dunlin.DeviceKey) *deviceTrack {
	if m.again && m.used < len(m.tracks) {
		d := m.tracks[m.used]
		m.used++
		*d = deviceTrack{key: key, domain: -1, inputs: 1, last: d.last[:0], due: d.due[:0]}
		return d
	}
	d := &deviceTrack{key: key, domain: -1, inputs: 1}
	if m.again {
		m.tracks = append(m.tracks, d)
		m.used++
	}
	return d
}

// slab hands out lists that lie in one piece of memory, as far as it reaches.
type slab[T any] struct {
	again bool
	piece []T
	used  int
}

// list returns n zero elements, nil for none.
func (s *slab[T]) list(n int) []T {
	if n == 0 {
		return nil
	}
	if !s.again {
		return make([]T, n)
	}
	if s.used+n > len(s.piece) {
		s.piece, s.used = make([]T, max(2*len(s.piece), n, 64)), 0
	}
	l := s.piece[s.used : s.used+n : s.used+n]
	s.used += n
	return l
}

// reset takes all lists back. Pieces that were outgrown are not used again; the last one has room for most of what comes next.
func (s *slab[T]) reset() {
	clear(s.piece[:s.used])
	s.used = 0
}
