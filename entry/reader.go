package entry

import (
	"encoding/binary"
	"unsafe"

	"github.com/dunlin-iot/dunlin"
)

// reader reads one entry or state. The first failure moves it to the end of the bytes, where all reads give zero values,
// so that only loops need to look at what.
type reader struct {
	b        []byte
	i        int
	what     string // what could not be read; "": all is well
	failedAt int

	at   dunlin.Time
	prev dunlin.Time

	key    dunlin.DeviceKey
	domain dunlin.DomainID
	format dunlin.ContentFormat

	last    int
	first   int
	derived int
	hashes  []dunlin.ModuleHash
	mades   mades

	changeBits, stageBits uint8 // that the entry's version may have in heads

	budget int // bytes that lengths alone may still allocate

	// One allocation serves all lists of a kind, as long as the counts at the entry's head are true.
	inputs  []dunlin.Input
	records []dunlin.Record
	stages  []dunlin.StageResult
	timers  []dunlin.TimerSet

	names
}

func (r *reader) fail(what string) {
	if r.what == "" {
		r.what, r.failedAt = what, r.i
	}
	r.i = len(r.b)
}

func (r *reader) byte(what string) uint8 {
	if r.i >= len(r.b) {
		r.fail(what)
		return 0
	}
	v := r.b[r.i]
	r.i++
	return v
}

func (r *reader) uvarint(what string) uint64 {
	if r.i < len(r.b) && r.b[r.i] < 0x80 {
		r.i++
		return uint64(r.b[r.i-1])
	}
	return r.longUvarint(what)
}

func (r *reader) longUvarint(what string) uint64 {
	v, n := binary.Uvarint(r.b[r.i:])
	if n <= 0 {
		r.fail(what)
		return 0
	}
	r.i += n
	return v
}

func (r *reader) varint(what string) int64 {
	v := r.uvarint(what)
	return int64(v>>1) ^ -int64(v&1)
}

func (r *reader) fixed64(what string) uint64 {
	if len(r.b)-r.i < 8 {
		r.fail(what)
		return 0
	}
	v := binary.LittleEndian.Uint64(r.b[r.i:])
	r.i += 8
	return v
}

func (r *reader) time(what string) dunlin.Time { return r.at + dunlin.Time(r.varint(what)) }

// bytes returns a part of b without copying; nil if it is empty.
func (r *reader) bytes(what string) []byte {
	n := r.uvarint(what)
	if n == 0 {
		return nil
	}
	if n > uint64(len(r.b)-r.i) {
		r.fail(what)
		return nil
	}
	p := r.b[r.i : r.i+int(n) : r.i+int(n)]
	r.i += int(n)
	return p
}

// string returns a part of b as a string, without copying: b never changes (see Decode).
func (r *reader) string(what string) string {
	p := r.bytes(what)
	return unsafe.String(unsafe.SliceData(p), len(p))
}

// count reads the length of a list whose elements have at least bytesMin bytes each.
func (r *reader) count(what string, bytesMin int) int {
	n := r.uvarint(what)
	if n > uint64(len(r.b)-r.i)/uint64(bytesMin) {
		r.fail(what)
		return 0
	}
	return int(n)
}

// budgetFor is how much may be allocated on the word of lengths: real entries need about 13 times their size.
func budgetFor(b []byte) int { return 1024 + 16*len(b) }

// room makes an empty slice for a claimed number of elements, cut to the budget. A list that turns out longer than that
// grows as its elements are read.
func room[T any](r *reader, n int) []T {
	var t T
	n = min(n, r.budget/int(unsafe.Sizeof(t)))
	r.budget -= n * int(unsafe.Sizeof(t))
	return make([]T, 0, n)
}

// list returns an empty slice with room for n elements, out of the slab if it has that much.
func list[T any](r *reader, slab *[]T, n int) []T {
	if s := *slab; n <= cap(s)-len(s) {
		*slab = s[:len(s)+n]
		return s[len(s) : len(s) : len(s)+n]
	}
	return room[T](r, n)
}

func (r *reader) name(what string) string {
	n := r.uvarint(what)
	if n == 0 {
		s := r.string(what)
		r.add(pair{name: s})
		return s
	}
	if n > uint64(r.known) {
		r.fail(what)
		return ""
	}
	return r.nth(int(n - 1)).name
}
