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
	r.off, r.last, r.short = c.state.at, c.state.at+c.state.size, false
	return r
}

// Save returns a writer of the device's new state. The state is written to disk whenever it changed: keep it small.
func (c *Context) Save() *StateWriter {
	c.saved = true
	w := &c.guest.writer
	w.b = w.b[:0]
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

// StateWriter writes a device's state.
type StateWriter struct{ b []byte }

// Byte writes a byte.
func (w *StateWriter) Byte(v byte) { w.b = append(w.b, v) }

// Bool writes a bool: 1 byte.
func (w *StateWriter) Bool(v bool) {
	if v {
		w.Byte(1)
	} else {
		w.Byte(0)
	}
}

// Uint writes an unsigned number: 1 byte below 128, at most 10.
func (w *StateWriter) Uint(v uint64) { w.b = binary.AppendUvarint(w.b, v) }

// Int writes a signed number: 1 byte from −64 to 63, at most 10.
func (w *StateWriter) Int(v int64) { w.Uint(uint64(v)<<1 ^ uint64(v>>63)) }

// Time writes a moment: 8 bytes.
func (w *StateWriter) Time(v Time) { w.b = binary.LittleEndian.AppendUint64(w.b, uint64(v)) }

// Float writes a float64: 8 bytes.
func (w *StateWriter) Float(v float64) {
	w.b = binary.LittleEndian.AppendUint64(w.b, math.Float64bits(v))
}

// Float32 writes a float32: 4 bytes.
func (w *StateWriter) Float32(v float32) {
	w.b = binary.LittleEndian.AppendUint32(w.b, math.Float32bits(v))
}

// Float32s writes float32s: 4 bytes each. Write them last: how many there are is not written.
func (w *StateWriter) Float32s(vs []float32) { w.b = appendFloat32s(w.b, vs) }

// Text writes a string: its length and its bytes.
func (w *StateWriter) Text(v string) {
	w.Uint(uint64(len(v)))
	w.b = append(w.b, v...)
}
