package payload

import (
	"encoding/binary"
	"math"
	"strconv"
	"unicode/utf8"
)

// The major types of CBOR (RFC 8949 §3.1).
const (
	cborUint   = 0
	cborNegInt = 1
	cborBytes  = 2
	cborText   = 3
	cborArray  = 4
	cborMap    = 5
	cborTag    = 6
	cborSimple = 7
)

// Values of major type 7, and the tags that mean something here.
const (
	cborFalse     = 20
	cborTrue      = 21
	cborNull      = 22
	cborUndefined = 23
	cborFloat16   = 25
	cborFloat32   = 26
	cborFloat64   = 27
	cborBreak     = 31

	tagTimeText = 0
	tagTime     = 1
	tagDecimal  = 4
	tagSelf     = 55799
)

// cborScanner is a pack read as CBOR (RFC 8949). A failure moves it to the end, where every read fails again.
type cborScanner pack

func (s *cborScanner) pack() *pack { return (*pack)(s) }

// item is the head of a data item.
type item struct {
	major uint8
	info  uint8
	arg   uint64
	indef bool // a string, array or map without a length, or the break that ends one
	at    int
}

func (s *cborScanner) fail(at int, why string) {
	s.pack().fail(at, why)
	s.i = len(s.b)
}

// head reads the head of the next item; null if there is none.
func (s *cborScanner) head() (h item) {
	h.at = s.i
	if s.i >= len(s.b) {
		s.fail(s.i, "the end of the payload comes too early")
		return item{at: h.at, major: cborSimple, info: cborNull}
	}
	c := s.b[s.i]
	s.i++
	h.major, h.info = c>>5, c&31
	switch {
	case h.info < 24:
		h.arg = uint64(h.info)
	case h.info <= 27:
		n := 1 << (h.info - 24)
		if len(s.b)-s.i < n {
			s.fail(h.at, "the end of the payload comes too early")
			return item{at: h.at, major: cborSimple, info: cborNull}
		}
		switch n {
		case 1:
			h.arg = uint64(s.b[s.i])
		case 2:
			h.arg = uint64(binary.BigEndian.Uint16(s.b[s.i:]))
		case 4:
			h.arg = uint64(binary.BigEndian.Uint32(s.b[s.i:]))
		case 8:
			h.arg = binary.BigEndian.Uint64(s.b[s.i:])
		}
		s.i += n
		if h.major == cborSimple && h.info == 24 && h.arg < 32 {
			s.fail(h.at, "a simple value in the wrong form")
		}
	case h.info == 31 && (h.major >= cborBytes && h.major <= cborMap || h.major == cborSimple):
		h.indef = true
	default:
		s.fail(h.at, "no CBOR")
		return item{at: h.at, major: cborSimple, info: cborNull}
	}
	return h
}

// isBreak reports whether the next byte is the break, and takes it.
func (s *cborScanner) isBreak() bool {
	if s.i < len(s.b) && s.b[s.i] == cborSimple<<5|cborBreak {
		s.i++
		return true
	}
	return false
}

// size returns the number of elements of an array (each 1) or map (each 2 items), or −1 if only a break will tell.
func (s *cborScanner) size(h item, each uint64) int {
	if h.indef {
		return -1
	}
	if h.arg > uint64(len(s.b)-s.i)/each {
		s.fail(h.at, "an array or map is longer than the payload")
		return 0
	}
	return int(h.arg)
}

// more is called before each of n elements of an array or map.
func (s *cborScanner) more(i, n int) bool {
	if s.err != nil {
		return false
	}
	if n >= 0 {
		return i < n
	}
	return !s.isBreak()
}

// string returns the bytes of a string whose head was read; only one of definite length (RFC 8428 §6).
func (s *cborScanner) string(h item) []byte {
	if h.indef {
		s.fail(h.at, "a string without a length")
		return nil
	}
	if h.arg > uint64(len(s.b)-s.i) {
		s.fail(h.at, "a string is longer than the payload")
		return nil
	}
	v := s.b[s.i : s.i+int(h.arg)]
	s.i += int(h.arg)
	return v
}

func (s *cborScanner) text() []byte {
	h := s.head()
	if h.major != cborText {
		s.fail(h.at, "want a text")
		return nil
	}
	v := s.string(h)
	if !utf8.Valid(v) {
		s.fail(h.at, "a text is not UTF-8")
	}
	return v
}

// float reads a number: an integer, a float, or a decimal fraction (RFC 8949 §3.4.4).
func (s *cborScanner) float() float64 {
	h := s.head()
	f, ok := s.floatOf(h)
	if !ok {
		s.fail(h.at, "want a number")
	}
	return f
}

// floatOf returns the number whose head was read; false if it is none.
func (s *cborScanner) floatOf(h item) (float64, bool) {
	switch {
	case h.major == cborUint:
		return float64(h.arg), true
	case h.major == cborNegInt:
		if h.arg < 1<<53 {
			return -1 - float64(h.arg), true
		}
		if h.arg == math.MaxUint64 {
			return -1 << 64, true
		}
		return -float64(h.arg + 1), true
	case h.major == cborSimple && h.info == cborFloat64:
		return math.Float64frombits(h.arg), true
	case h.major == cborSimple && h.info == cborFloat32:
		return float64(math.Float32frombits(uint32(h.arg))), true
	case h.major == cborSimple && h.info == cborFloat16:
		return half(uint16(h.arg)), true
	case h.major == cborTag && h.arg == tagDecimal:
		return s.decimal()
	}
	return 0, false
}

// half decodes an IEEE 754 half-precision number (RFC 8949 appendix D).
func half(v uint16) float64 {
	exp, frac := int(v>>10&31), float64(v&1023)
	switch exp {
	case 0:
		frac = math.Ldexp(frac, -24)
	case 31:
		if frac != 0 {
			return math.NaN()
		}
		frac = math.Inf(1)
	default:
		frac = math.Ldexp(frac+1024, exp-25)
	}
	if v>>15 != 0 {
		return -frac
	}
	return frac
}

// decimal reads the content of tag 4: [exponent, mantissa].
func (s *cborScanner) decimal() (float64, bool) {
	h := s.head()
	if h.major != cborArray || h.indef || h.arg != 2 {
		return 0, false
	}
	e, m := s.head(), s.head()
	if e.major > cborNegInt || m.major > cborNegInt || e.arg > 10_000 {
		return 0, false // a mantissa of more than 64 bits is nothing that a sensor sends
	}
	exp := int(e.arg)
	if e.major == cborNegInt {
		exp = -1 - exp
	}
	n := number{digits: m.arg, exp: exp, exact: true}
	if m.major == cborNegInt {
		n.neg = true
		if n.digits++; n.digits == 0 {
			return 0, false
		}
	}
	var room [48]byte
	n.text = room[:0]
	if n.neg {
		n.text = append(n.text, '-')
	}
	n.text = append(strconv.AppendUint(n.text, n.digits, 10), 'e')
	n.text = strconv.AppendInt(n.text, int64(exp), 10)
	return n.float()
}

// micros reads a number of seconds.
func (s *cborScanner) micros() int64 {
	h := s.head()
	return s.microsOf(h)
}

func (s *cborScanner) microsOf(h item) int64 {
	var m int64
	f, ok := s.floatOf(h)
	if ok {
		m, ok = floatMicros(f)
	}
	if !ok {
		s.fail(h.at, "a time is no number, or out of range")
	}
	return m
}

func (s *cborScanner) bool() bool {
	h := s.head()
	if h.major != cborSimple || h.info != cborTrue && h.info != cborFalse {
		s.fail(h.at, "want true or false")
	}
	return h.info == cborTrue
}

// skip reads any item.
func (s *cborScanner) skip(depth int) { s.skipRest(s.head(), depth) }

// skipRest reads the rest of an item whose head was read.
func (s *cborScanner) skipRest(h item, depth int) {
	if depth > depthMax {
		s.fail(h.at, "nested too deeply")
		return
	}
	switch h.major {
	case cborBytes, cborText:
		if !h.indef {
			s.string(h)
			return
		}
		for s.more(0, -1) {
			part := s.head()
			if part.major != h.major || part.indef {
				s.fail(part.at, "a part of a string is of another kind")
				return
			}
			s.string(part)
		}
	case cborArray:
		n := s.size(h, 1)
		for i := 0; s.more(i, n); i++ {
			s.skip(depth + 1)
		}
	case cborMap:
		n := s.size(h, 2)
		for i := 0; s.more(i, n); i++ {
			s.skip(depth + 1)
			s.skip(depth + 1)
		}
	case cborTag:
		s.skip(depth + 1)
	case cborSimple:
		if h.indef {
			s.fail(h.at, "a break where nothing ends")
		}
	}
}

func (s *cborScanner) end() {
	if s.i < len(s.b) {
		s.fail(s.i, "something follows the value")
	}
}
