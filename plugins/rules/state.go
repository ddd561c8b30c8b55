package rules

import (
	"encoding/binary"
	"fmt"
	"math"
	"slices"

	"github.com/dunlin-iot/dunlin"
)

// phase is where a rule is at a device. The numbers are part of the state's format.
type phase uint8

const (
	idle     phase = 0
	pending  phase = 1
	active   phase = 2
	clearing phase = 3
)

// known is what is known of one metric.
type known struct {
	kind         dunlin.ValueKind // 0: nothing
	num          float64
	str          string
	at           dunlin.Time
	before       float64 // numbers only
	beforeAt     dunlin.Time
	beforeExists bool
}

// memory is a device's state in a stage of rules, by the order of a Set.
type memory struct {
	metrics []known
	phases  []phase
	since   []dunlin.Time // when the phase began, of pending and clearing
}

// stateVersion is the first byte of a state:
//
//	u8 1 · uvarint metrics · each: string name, u8 kind, f64 or string, varint time, u8 1 and f64, varint time of the value before, or u8 0
//	     · uvarint rules   · each: string name, u8 phase, varint since
//
// Names are spelled out, so that a device's state outlives a change of the rules: what no rule names any more is dropped. Rules
// that are idle, and metrics of which nothing is known, are left out.
const stateVersion = 1

func (s *Set) load(state []byte) (*memory, error) {
	m := &memory{metrics: make([]known, len(s.metrics)), phases: make([]phase, len(s.rules)), since: make([]dunlin.Time, len(s.rules))}
	if len(state) == 0 {
		return m, nil
	}
	r := reader{b: state}
	if r.byte() != stateVersion {
		return nil, fmt.Errorf("%w: a state of %d bytes that rules did not make", dunlin.ErrInvalid, len(state))
	}
	for range r.count() {
		name := r.string()
		k := known{kind: dunlin.ValueKind(r.byte())}
		if k.kind == dunlin.Text {
			k.str = r.string()
		} else {
			k.num = r.float()
		}
		k.at = dunlin.Time(r.varint())
		if r.byte() == 1 {
			k.beforeExists, k.before, k.beforeAt = true, r.float(), dunlin.Time(r.varint())
		}
		if i := s.metric(name); i >= 0 && !r.bad {
			m.metrics[i] = k
		}
	}
	for range r.count() {
		name, p, since := r.string(), phase(r.byte()), dunlin.Time(r.varint())
		i := slices.IndexFunc(s.rules, func(r rule) bool { return r.Name == name })
		if i >= 0 && p <= clearing && !r.bad {
			m.phases[i], m.since[i] = p, since
		}
	}
	if r.bad || r.i != len(state) {
		return nil, fmt.Errorf("%w: a cut state of %d bytes", dunlin.ErrInvalid, len(state))
	}
	return m, nil
}

func (s *Set) save(m *memory) []byte {
	b := []byte{stateVersion}
	n := 0
	for i := range m.metrics {
		if m.metrics[i].kind != 0 {
			n++
		}
	}
	b = binary.AppendUvarint(b, uint64(n))
	for i := range m.metrics {
		k := &m.metrics[i]
		if k.kind == 0 {
			continue
		}
		b = appendString(b, s.metrics[i])
		if b = append(b, byte(k.kind)); k.kind == dunlin.Text {
			b = appendString(b, k.str)
		} else {
			b = binary.LittleEndian.AppendUint64(b, math.Float64bits(k.num))
		}
		b = binary.AppendVarint(b, int64(k.at))
		if !k.beforeExists {
			b = append(b, 0)
			continue
		}
		b = binary.LittleEndian.AppendUint64(append(b, 1), math.Float64bits(k.before))
		b = binary.AppendVarint(b, int64(k.beforeAt))
	}
	n = 0
	for _, p := range m.phases {
		if p != idle {
			n++
		}
	}
	b = binary.AppendUvarint(b, uint64(n))
	for i, p := range m.phases {
		if p != idle {
			b = append(appendString(b, s.rules[i].Name), byte(p))
			b = binary.AppendVarint(b, int64(m.since[i]))
		}
	}
	return b
}

func appendString(b []byte, s string) []byte {
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

// reader reads a state; bad is set for good once something is missing.
type reader struct {
	b   []byte
	i   int
	bad bool
}

func (r *reader) byte() byte {
	if r.bad || r.i >= len(r.b) {
		r.bad = true
		return 0
	}
	r.i++
	return r.b[r.i-1]
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b[min(r.i, len(r.b)):])
	if r.bad = r.bad || n <= 0; r.bad {
		return 0
	}
	r.i += n
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b[min(r.i, len(r.b)):])
	if r.bad = r.bad || n <= 0; r.bad {
		return 0
	}
	r.i += n
	return v
}

// count is a number of elements, of which each takes a byte at least.
func (r *reader) count() int {
	n := r.uvarint()
	if r.bad = r.bad || n > uint64(len(r.b)-r.i); r.bad {
		return 0
	}
	return int(n)
}

func (r *reader) string() string {
	n := r.count()
	if r.bad {
		return ""
	}
	r.i += n
	return string(r.b[r.i-n : r.i])
}

func (r *reader) float() float64 {
	if r.bad || len(r.b)-r.i < 8 {
		r.bad = true
		return 0
	}
	r.i += 8
	return math.Float64frombits(binary.LittleEndian.Uint64(r.b[r.i-8:]))
}
