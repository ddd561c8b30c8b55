package fuel

import "unicode/utf8"

// reader walks the module's bytes. The first error sticks; after it every read returns zero, so that callers check once
// per item. Offsets in errors are of the whole module.
type reader struct {
	b   []byte
	pos int
	end int
	err error
}

func (r *reader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = errAt(r.pos, format, args...)
		r.pos = r.end
	}
}

func (r *reader) more() bool { return r.err == nil && r.pos < r.end }

func (r *reader) byte() byte {
	if r.pos >= r.end {
		r.fail("ends too early")
		return 0
	}
	c := r.b[r.pos]
	r.pos++
	return c
}

func (r *reader) skip(n int) {
	if n < 0 || n > r.end-r.pos {
		r.fail("ends too early")
		return
	}
	r.pos += n
}

// u32 reads an unsigned LEB128 of at most 32 bits.
func (r *reader) u32() uint32 {
	if r.pos < r.end { // the usual case: one byte
		if c := r.b[r.pos]; c < 0x80 {
			r.pos++
			return uint32(c)
		}
	}
	var v uint64
	for shift := 0; shift < 35; shift += 7 {
		c := r.byte()
		v |= uint64(c&0x7f) << shift
		if c < 0x80 {
			if v > 1<<32-1 {
				break
			}
			return uint32(v)
		}
	}
	r.fail("a number does not fit 32 bits")
	return 0
}

// sleb skips a signed LEB128 of at most size bytes and returns its value, as far as 64 bits hold it.
func (r *reader) sleb(size int) int64 {
	var v int64
	for i := range size {
		c := r.byte()
		v |= int64(c&0x7f) << (7 * i)
		if c < 0x80 {
			if c&0x40 != 0 && 7*(i+1) < 64 {
				v |= -1 << (7 * (i + 1))
			}
			return v
		}
	}
	r.fail("a number is longer than %d bytes", size)
	return 0
}

// count reads the length of a vector whose items take at least one byte each.
func (r *reader) count(what string) int {
	n := r.u32()
	if int64(n) > int64(r.end-r.pos) || n > ItemsMax {
		r.fail("%d %s do not fit in", n, what)
		return 0
	}
	return int(n)
}

func (r *reader) name() string {
	n := r.count("bytes of a name")
	b := r.b[r.pos : r.pos+n]
	if !utf8.Valid(b) {
		r.fail("a name is not UTF-8")
		return ""
	}
	r.pos += n
	return string(b)
}

func (r *reader) valueType() ValueType {
	switch t := ValueType(r.byte()); t {
	case I32, I64, F32, F64, V128, FuncRef, ExternRef:
		return t
	default:
		r.pos--
		r.fail("value type %#x is not of WebAssembly 2.0", byte(t))
		return 0
	}
}

func (r *reader) limits() Limits {
	var l Limits
	switch flag := r.byte(); flag {
	case 0:
		l.Min = r.u32()
	case 1:
		l.Min, l.Max, l.HasMax = r.u32(), r.u32(), true
	default:
		r.pos--
		r.fail("limits of kind %#x (shared or 64-bit) are not supported", flag)
	}
	return l
}

func appendU32(b []byte, v uint32) []byte {
	for v >= 0x80 {
		b = append(b, byte(v)|0x80)
		v >>= 7
	}
	return append(b, byte(v))
}

func appendS64(b []byte, v int64) []byte {
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if v == 0 && c&0x40 == 0 || v == -1 && c&0x40 != 0 {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}

// costBytes is the fixed width of a region's cost in the code, so that it can be filled in when the region is complete.
const costBytes = 5

// costMax is the largest cost that costBytes hold as a signed number.
const costMax = 1<<(7*costBytes-1) - 1

func putCost(b []byte, v int64) {
	v = min(v, costMax)
	for i := range costBytes {
		b[i] = byte(v&0x7f) | 0x80
		v >>= 7
	}
	b[costBytes-1] &= 0x7f
}
