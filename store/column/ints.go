package column

import (
	"encoding/binary"
	"math/bits"
	"slices"
)

// frameLen is how many integers share a width. It also bounds what a byte of a hostile block can stand for.
const frameLen = 32

// intStream writes integers so that small ones, small steps, or even steps take few bits, whichever is best:
//
//	u8 order · varint base · order 2: varint step · frames of 32 (the last may be shorter): u8 width, then width bits each
//
// Order 0 keeps the differences to the smallest, order 1 those to the one before, order 2 the differences of these. All
// may wrap and wrap back. The reader knows how many integers there are.
func (w *writer) intStream(v []int64) {
	if len(v) == 0 {
		return
	}
	order, base, step := bestOrder(v)
	w.byte(order)
	w.varint(base)
	if order == 2 {
		w.varint(step)
	}
	prev, delta := base-step, step
	var frame [frameLen]uint64
	for len(v) > 0 {
		n := min(len(v), frameLen)
		var all uint64
		switch order {
		case 0:
			for i, x := range v[:n] {
				frame[i] = uint64(x - base)
				all |= frame[i]
			}
		case 1:
			for i, x := range v[:n] {
				frame[i] = zigzag(x - prev)
				all |= frame[i]
				prev = x
			}
		default:
			for i, x := range v[:n] {
				d := x - prev
				frame[i] = zigzag(d - delta)
				all |= frame[i]
				prev, delta = x, d
			}
		}
		width := bits.Len64(all)
		w.byte(uint8(width))
		w.b = packBits(w.b, frame[:n], uint(width))
		v = v[n:]
	}
}

// bestOrder returns the order that takes the fewest bytes, and its base and step.
func bestOrder(v []int64) (order uint8, base, step int64) {
	low := v[0]
	for _, x := range v {
		low = min(low, x)
	}
	if len(v) > 1 {
		step = v[1] - v[0]
	}
	var cost [3]int
	cost[2] = 2 // for the step
	p1, p2, d2 := v[0], v[0]-step, step
	for rest := v; len(rest) > 0; {
		n := min(len(rest), frameLen)
		var a0, a1, a2 uint64
		for _, x := range rest[:n] {
			d := x - p2
			a0 |= uint64(x - low)
			a1 |= zigzag(x - p1)
			a2 |= zigzag(d - d2)
			p1, p2, d2 = x, x, d
		}
		cost[0] += (bits.Len64(a0)*n + 7) / 8
		cost[1] += (bits.Len64(a1)*n + 7) / 8
		cost[2] += (bits.Len64(a2)*n + 7) / 8
		rest = rest[n:]
	}
	switch {
	case cost[1] <= cost[0] && cost[1] <= cost[2]:
		return 1, v[0], 0
	case cost[2] <= cost[0]:
		return 2, v[0], step
	}
	return 0, low, 0
}

// packBits appends values of width bits each, the first in the lowest bits, and fills up the last byte with zeros.
func packBits(dst []byte, v []uint64, width uint) []byte {
	var acc uint64
	var n uint
	for _, x := range v {
		acc |= x << n
		if n += width; n >= 64 {
			dst = binary.LittleEndian.AppendUint64(dst, acc)
			n -= 64
			acc = x >> (width - n)
		}
	}
	for ; n > 0; n -= min(n, 8) {
		dst = append(dst, byte(acc))
		acc >>= 8
	}
	return dst
}

// intStream reads n integers, appended to out.
func (r *reader) intStream(n int, out []int64, what string) []int64 {
	if n == 0 || r.what != "" {
		return out
	}
	if n > (len(r.b)-r.i)*frameLen {
		r.fail(what)
		return out
	}
	order := r.byte(what)
	if order > 2 {
		r.fail(what)
		return out
	}
	base := r.varint(what)
	var step int64
	if order == 2 {
		step = r.varint(what)
	}
	out = slices.Grow(out, n)
	prev, delta := base-step, step
	var frame [frameLen]uint64
	for n > 0 {
		k := min(n, frameLen)
		n -= k
		if !r.frame(frame[:k], what) {
			return out
		}
		switch order {
		case 0:
			for _, u := range frame[:k] {
				out = append(out, base+int64(u))
			}
		case 1:
			for _, u := range frame[:k] {
				prev += unzigzag(u)
				out = append(out, prev)
			}
		default:
			for _, u := range frame[:k] {
				delta += unzigzag(u)
				prev += delta
				out = append(out, prev)
			}
		}
	}
	return out
}

// frame reads as many values as it has room for; false if they are not there.
func (r *reader) frame(v []uint64, what string) bool {
	width := uint(r.byte(what))
	src := r.bytes(uint64(uint(len(v))*width+7)/8, what)
	if width > 64 {
		r.fail(what)
	}
	if r.what != "" {
		return false
	}
	if width == 0 {
		clear(v)
		return true
	}
	var room [frameLen*8 + 9]byte // so that whole words can be read everywhere
	copy(room[:], src)
	mask := ^uint64(0) >> (64 - width)
	for i := range v {
		bit := uint(i) * width
		at, shift := bit>>3, bit&7
		x := binary.LittleEndian.Uint64(room[at:at+8]) >> shift
		if shift+width > 64 {
			x |= uint64(room[at+8]) << (64 - shift)
		}
		v[i] = x & mask
	}
	return true
}
