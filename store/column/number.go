package column

import (
	"encoding/binary"
	"math"
	"math/bits"
	"slices"
)

// Numbers are kept as decimals where that gives back their bits: m / 10^scale, moved by a few units in the last place.
// Those few make room for what plugins compute: a mean of decimals is one but for the rounding of its sum.
const (
	scaleMax     = 8
	ulpsMax      = 8
	exactMax     = 1 << 53 // of m: below it the division is rounded once, the same everywhere
	nearMax      = 1 << 40 // of m with ulps: above it everything is near some decimal
	quickMax     = 10_000  // numbers below it that are decimals at all are so at scaleMax, with m < nearMax
	exceptionFor = 72      // bits that an exception costs over a number that is none
)

var pow10 = [scaleMax + 1]float64{1, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8}

// decimal returns m and ulps so that f is m / 10^scale moved by ulps; false if there are none.
func decimal(f float64, scale int) (m, ulps int64, ok bool) {
	x := f * pow10[scale]
	if !(x > -exactMax && x < exactMax) {
		return 0, 0, false
	}
	m = int64(math.RoundToEven(x))
	g := float64(m) / pow10[scale]
	ulps = int64(math.Float64bits(f)) - int64(math.Float64bits(g))
	if ulps == 0 {
		return m, 0, true
	}
	return m, ulps, ulps >= -ulpsMax && ulps <= ulpsMax && m != 0 && m > -nearMax && m < nearMax
}

// scaleOf returns the smallest scale at which f is a decimal, or −1. The scale of the number before is a good guess.
func scaleOf(f float64, guess int) int {
	if guess >= 0 {
		if m, _, ok := decimal(f, guess); ok && (guess == 0 || m%10 != 0) {
			return guess
		}
	}
	if f > -quickMax && f < quickMax {
		if _, _, ok := decimal(f, scaleMax); !ok {
			return -1
		}
	}
	for s := range scaleMax + 1 {
		if _, _, ok := decimal(f, s); ok {
			return s
		}
	}
	return -1
}

// The modes of a stream of numbers: a scale with flags, or the bits.
const (
	modeScale      = 0x0f
	modeUlps       = 0x10
	modeExceptions = 0x20
	modeXOR        = 0x40
)

// numberStream writes numbers, given as their bits:
//
//	u8 mode · exceptions: uvarint count, count × (uvarint gap, u64) · ints m · ulps: ints · or: uvarint length, XOR bits
func (w *writer) numberStream(v []uint64) {
	var counts [scaleMax + 2]int // by scale; the last: no decimal
	guess := -1
	for _, b := range v {
		s := scaleOf(math.Float64frombits(b), guess)
		if s < 0 {
			counts[scaleMax+1]++
			continue
		}
		counts[s]++
		guess = s
	}
	scale, exceptions := bestScale(&counts, len(v))
	if exceptions*4 > len(v) {
		w.byte(modeXOR)
		from := len(w.b)
		w.xorStream(v)
		w.wrapLength(from)
		return
	}
	w.decimalStream(v, scale)
}

// bestScale weighs the digits that a larger scale adds to every number against the exceptions that a smaller one makes.
func bestScale(counts *[scaleMax + 2]int, n int) (scale, exceptions int) {
	best := math.MaxInt
	left := n
	for s := range scaleMax + 1 {
		left -= counts[s]
		if counts[s] == 0 && s > 0 {
			continue
		}
		if cost := left*exceptionFor + n*s*10/3; cost < best {
			best, scale, exceptions = cost, s, left
		}
	}
	return scale, exceptions
}

func (w *writer) decimalStream(v []uint64, scale int) {
	w.ints = w.ints[:0]
	w.ulps = w.ulps[:0]
	w.gaps = w.gaps[:0]
	var all, last int64
	at := 0
	for i, b := range v {
		m, ulps, ok := decimal(math.Float64frombits(b), scale)
		if !ok {
			m, ulps = last, 0 // costs nothing
			w.gaps = append(w.gaps, i-at)
			at = i + 1
		}
		last = m
		all |= ulps
		w.ints = append(w.ints, m)
		w.ulps = append(w.ulps, ulps)
	}
	mode := uint8(scale)
	if all != 0 {
		mode |= modeUlps
	}
	if len(w.gaps) > 0 {
		mode |= modeExceptions
	}
	w.byte(mode)
	if len(w.gaps) > 0 {
		w.uvarint(uint64(len(w.gaps)))
		at = 0
		for _, gap := range w.gaps {
			at += gap
			w.uvarint(uint64(gap))
			w.fixed64(v[at])
			at++
		}
	}
	w.intStream(w.ints)
	if all != 0 {
		w.intStream(w.ulps)
	}
}

// numberStream reads n numbers as bits, appended to out.
func (r *reader) numberStream(n int, out []uint64) []uint64 {
	mode := r.byte("mode of numbers")
	if mode == modeXOR {
		return r.xorStream(n, out)
	}
	scale := int(mode & modeScale)
	if mode&^(modeScale|modeUlps|modeExceptions) != 0 || scale > scaleMax {
		r.fail("mode of numbers")
		return out
	}
	var exceptions reader
	var count int
	if mode&modeExceptions != 0 {
		count = r.count(9, "exceptions")
		exceptions = reader{b: r.b, i: r.i}
		for range count {
			r.uvarint("exceptions")
			r.fixed64("exceptions")
		}
	}
	r.ints = r.intStream(n, r.ints[:0], "decimals")
	if r.what != "" {
		return out
	}
	from := len(out)
	out = slices.Grow(out, n)
	for _, m := range r.ints {
		out = append(out, math.Float64bits(float64(m)/pow10[scale]))
	}
	if mode&modeUlps != 0 {
		r.ints = r.intStream(n, r.ints[:0], "decimals")
		if r.what != "" {
			return out
		}
		for i, u := range r.ints {
			out[from+i] += uint64(u)
		}
	}
	at := from
	for range count {
		gap := exceptions.uvarint("exceptions")
		if gap >= uint64(len(out)-at) {
			r.fail("exceptions")
			return out
		}
		at += int(gap)
		out[at] = exceptions.fixed64("exceptions")
		at++
	}
	return out
}

// bitWriter appends bits, the first in the lowest place of a byte.
type bitWriter struct {
	b   []byte
	acc uint64
	n   uint
}

func (w *bitWriter) write(v uint64, width uint) {
	w.acc |= v << w.n
	if w.n += width; w.n >= 64 {
		w.b = binary.LittleEndian.AppendUint64(w.b, w.acc)
		w.n -= 64
		w.acc = v >> (width - w.n)
	}
}

// xorStream writes each number's difference, bit by bit, to the one before: 0, the same; 10, bits of the last window;
// 11, 6 bits leading zeros, 6 bits length − 1, and those bits. (Gorilla, Pelkonen et al. 2015, with a wider window.)
func (w *writer) xorStream(v []uint64) {
	bw := bitWriter{b: w.b}
	var prev uint64
	lead, size := uint(0), uint(64)
	for _, x := range v {
		d := x ^ prev
		prev = x
		if d == 0 {
			bw.write(0, 1)
			continue
		}
		l, t := uint(bits.LeadingZeros64(d)), uint(bits.TrailingZeros64(d))
		// The last window again, unless a new one would save more than its 12 bits.
		if l >= lead && 64-t <= lead+size && size < 64-l-t+12 {
			bw.write(0b01, 2)
		} else {
			lead, size = l, 64-l-t
			bw.write(0b11|uint64(lead)<<2|uint64(size-1)<<8, 14)
		}
		bw.write(d>>(64-lead-size), size)
	}
	w.b = bw.b
	for n := bw.n; n > 0; n -= min(n, 8) {
		w.b = append(w.b, byte(bw.acc))
		bw.acc >>= 8
	}
}

// bitReader reads what a bitWriter wrote.
type bitReader struct {
	b   []byte
	bit uint
}

// read returns the next width bits; missing ones are zeros, and bad says so.
func (r *bitReader) read(width uint) uint64 {
	at, shift := r.bit>>3, r.bit&7
	r.bit += width
	var room [9]byte
	if at < uint(len(r.b)) {
		copy(room[:], r.b[at:])
	}
	x := binary.LittleEndian.Uint64(room[:8]) >> shift
	if shift+width > 64 {
		x |= uint64(room[8]) << (64 - shift)
	}
	return x & (^uint64(0) >> (64 - width))
}

func (r *bitReader) bad() bool { return r.bit > uint(len(r.b))*8 }

func (r *reader) xorStream(n int, out []uint64) []uint64 {
	const what = "numbers"
	br := bitReader{b: r.bytes(r.uvarint(what), what)}
	if n > len(br.b)*8 {
		r.fail(what)
		return out
	}
	var prev uint64
	lead, size := uint(0), uint(64)
	for range n {
		if br.read(1) != 0 {
			if br.read(1) != 0 {
				lead, size = uint(br.read(6)), uint(br.read(6))+1
				if lead+size > 64 {
					r.fail(what)
					return out
				}
			}
			prev ^= br.read(size) << (64 - lead - size)
		}
		if br.bad() {
			r.fail(what)
			return out
		}
		out = append(out, prev)
	}
	return out
}
