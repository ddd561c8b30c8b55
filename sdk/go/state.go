package sdk

import (
	"encoding/binary"
	"math"
)

// Load returns a reader of the device's state. For a device that is new to the plugin every value reads as zero.
//
// Write a version first (Byte), and the numbers in a fixed order; a newer plugin can then tell what an older one wrote.
func (c *Context) Load() *StateReader {
	r := &c.guest.reader
	r.off, r.last, r.short = c.stateAt, c.stateAt+c.stateSize, false
	return r
}

// Save returns a writer of the device's new state. The state is written to disk whenever it changed: keep it small.
func (c *Context) Save() *StateWriter {
	c.flags |= saved
	w := &c.guest.writer
	w.n = 0
	return w
}

// StateReader reads what StateWriter wrote, in the same order. After the end every value is zero.
//
// Its methods are small enough for the compiler to inline, and move an offset rather than a slice: calls, branches and
// stored pointers cost a Go guest ten times what they cost natively.
type StateReader struct {
	b         []byte // the frame, or what Migrate made of the state
	off, last int    // what is left
	short     bool
}

// OK reports whether all values so far were there.
func (r *StateReader) OK() bool { return !r.short }

// Empty reports whether nothing is left.
func (r *StateReader) Empty() bool { return r.off >= r.last }

func (r *StateReader) end() { r.off, r.short = r.last, true }

// Byte reads a byte.
func (r *StateReader) Byte() (v byte) {
	if r.off >= r.last {
		r.end()
		return 0
	}
	v = r.b[r.off]
	r.off++
	return v
}

// Bool reads a bool.
func (r *StateReader) Bool() bool { return r.Byte() != 0 }

// Uint reads an unsigned number.
func (r *StateReader) Uint() uint64 {
	v, n := binary.Uvarint(r.b[r.off:r.last])
	if n <= 0 {
		r.end()
		return 0
	}
	r.off += n
	return v
}

// Int reads a signed number.
func (r *StateReader) Int() int64 {
	u := r.Uint()
	return int64(u>>1) ^ -int64(u&1)
}

// Time reads a moment.
func (r *StateReader) Time() (v Time) {
	if r.last-r.off < 8 {
		r.end()
		return 0
	}
	v = Time(load64(r.b, r.off))
	r.off += 8
	return v
}

// Float reads a float64.
func (r *StateReader) Float() (v float64) {
	if r.last-r.off < 8 {
		r.end()
		return 0
	}
	v = math.Float64frombits(load64(r.b, r.off))
	r.off += 8
	return v
}

// Float32 reads a float32.
func (r *StateReader) Float32() (v float32) {
	if r.last-r.off < 4 {
		r.end()
		return 0
	}
	v = math.Float32frombits(load32(r.b, r.off))
	r.off += 4
	return v
}

// Float32s fills vs with what StateWriter.Float32s wrote, and returns how many there were for it.
func (r *StateReader) Float32s(vs []float32) int {
	n := min(len(vs), (r.last-r.off)/4)
	getFloat32s(vs[:n], r.b[r.off:r.last])
	r.off += 4 * n
	return n
}

// Text reads a string.
func (r *StateReader) Text() string {
	n := r.Uint()
	if n > uint64(r.last-r.off) {
		r.end()
		return ""
	}
	s := string(r.b[r.off : r.off+int(n)])
	r.off += int(n)
	return s
}

// StateWriter writes a device's state: at most 64 KiB, as much as the runtime keeps.
//
// As with StateReader, its methods are small enough to be inlined, and move an offset: appending to a slice stores a pointer.
type StateWriter struct {
	b []byte // longer than what is written, by slack at least
	n int    // what is written
}

// stateRoom is how much may be written without asking for room, and slack what a store may reach beyond.
const (
	stateRoom = 64 << 10
	slack     = blindly
)

// tooLarge is what a plugin panics with that writes more.
const tooLarge = "state too large: more than 65536 bytes"

func (w *StateWriter) bytes() []byte { return w.b[:w.n] }

// room makes sure that n bytes have room.
func (w *StateWriter) room(n int) {
	if need := w.n + n + slack; need > len(w.b) {
		w.b = append(make([]byte, 0, need), w.b...)[:need]
	}
}

// Byte writes a byte.
func (w *StateWriter) Byte(v byte) {
	if w.n > stateRoom {
		panic(tooLarge)
	}
	w.b[w.n] = v
	w.n++
}

// Bool writes a bool: 1 byte.
func (w *StateWriter) Bool(v bool) { w.Byte(bit(v)) }

// Uint writes an unsigned number: 1 byte below 128, at most 10.
func (w *StateWriter) Uint(v uint64) {
	if w.n > stateRoom {
		panic(tooLarge)
	}
	w.n += binary.PutUvarint(w.b[w.n:], v)
}

// Int writes a signed number: 1 byte from −64 to 63, at most 10.
func (w *StateWriter) Int(v int64) { w.Uint(uint64(v)<<1 ^ uint64(v>>63)) }

// Time writes a moment: 8 bytes.
func (w *StateWriter) Time(v Time) {
	if w.n > stateRoom {
		panic(tooLarge)
	}
	store64(w.b, w.n, uint64(v))
	w.n += 8
}

// Float writes a float64: 8 bytes.
func (w *StateWriter) Float(v float64) {
	if w.n > stateRoom {
		panic(tooLarge)
	}
	store64(w.b, w.n, math.Float64bits(v))
	w.n += 8
}

// Float32 writes a float32: 4 bytes.
func (w *StateWriter) Float32(v float32) {
	if w.n > stateRoom {
		panic(tooLarge)
	}
	store32(w.b, w.n, math.Float32bits(v))
	w.n += 4
}

// Float32s writes float32s: 4 bytes each. Write them last: how many there are is not written.
func (w *StateWriter) Float32s(vs []float32) {
	w.room(4 * len(vs))
	putFloat32s(w.b[w.n:], vs)
	w.n += 4 * len(vs)
}

// Text writes a string: its length and its bytes.
func (w *StateWriter) Text(v string) {
	w.Uint(uint64(len(v)))
	w.room(len(v))
	w.n += copy(w.b[w.n:], v)
}
