package payload

import (
	"math"
	"strconv"
	"unsafe"
)

// number is a JSON number taken apart: ±digits × 10^exp.
type number struct {
	text   []byte
	digits uint64
	exp    int
	neg    bool
	exact  bool // digits has all of them
}

// The powers of ten that are float64s, and those that are uint64s.
var (
	floatPow10 = [...]float64{1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17,
		1e18, 1e19, 1e20, 1e21, 1e22}
	intPow10 = [...]uint64{1e0, 1e1, 1e2, 1e3, 1e4, 1e5, 1e6, 1e7, 1e8, 1e9, 1e10, 1e11, 1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18}
)

// scanNumber reads the JSON number (RFC 8259 §6) that b begins with; false if there is none. Its text ends where the
// number does.
func scanNumber(b []byte) (n number, ok bool) {
	i := 0
	if i < len(b) && b[i] == '-' {
		n.neg = true
		i++
	}
	first := i
	n.exact = true
	var used int
	for i < len(b) && b[i]-'0' <= 9 {
		used = n.add(b[i], used)
		i++
	}
	if i == first || i-first > 1 && b[first] == '0' {
		return n, false
	}
	if i < len(b) && b[i] == '.' {
		i++
		point := i
		for i < len(b) && b[i]-'0' <= 9 {
			used = n.add(b[i], used)
			i++
		}
		if i == point {
			return n, false
		}
		n.exp = point - i
	}
	if i < len(b) && b[i]|0x20 == 'e' {
		i++
		sign := 1
		if i < len(b) && (b[i] == '+' || b[i] == '-') {
			sign = int(',') - int(b[i])
			i++
		}
		from, e := i, 0
		for i < len(b) && b[i]-'0' <= 9 {
			if e < 1e6 {
				e = e*10 + int(b[i]-'0')
			}
			i++
		}
		if i == from {
			return n, false
		}
		n.exp += sign * e
	}
	n.text = b[:i]
	return n, true
}

// add takes one more digit; used counts those from the first that isn't 0 on. A uint64 holds any 19 of them.
func (n *number) add(c byte, used int) int {
	if c == '0' && used == 0 {
		return 0
	}
	if used == 19 {
		n.exact = false
		return used
	}
	n.digits = n.digits*10 + uint64(c-'0')
	return used + 1
}

// float returns the float64 nearest to the number, as strconv.ParseFloat does; false if it is too large for one.
func (n *number) float() (float64, bool) {
	if n.exact && n.digits < 1<<53 && n.exp >= -22 && n.exp <= 22 {
		// Both are float64s without rounding, so their quotient or product is rounded once.
		f := float64(n.digits)
		if n.exp < 0 {
			f /= floatPow10[-n.exp]
		} else if n.exp > 0 {
			f *= floatPow10[n.exp]
		}
		if n.neg {
			f = -f
		}
		return f, true
	}
	f, err := strconv.ParseFloat(unsafe.String(unsafe.SliceData(n.text), len(n.text)), 64)
	return f, err == nil
}

// micros returns the number of seconds in microseconds, rounded to the nearest; false if that is absurd. It is exact where
// a float64 of seconds is not: 2⁻²² s today, and coarser in the years to come.
func (n *number) micros() (int64, bool) {
	if n.exact && n.digits <= microsMax {
		e := n.exp + 6
		m := n.digits
		switch {
		case m == 0 || e < -18:
			m = 0
		case e < 0:
			half := intPow10[-e] / 2
			m = (m + half) / intPow10[-e]
		case e > 18 || m > microsMax/intPow10[e]:
			return 0, false
		default:
			m *= intPow10[e]
		}
		if n.neg {
			return -int64(m), true
		}
		return int64(m), true
	}
	f, ok := n.float()
	if !ok {
		return 0, false
	}
	return floatMicros(f)
}

// floatMicros is micros for a number that came as a float64.
func floatMicros(f float64) (int64, bool) {
	f = math.Round(f * 1e6)
	if !(math.Abs(f) <= microsMax) {
		return 0, false
	}
	return int64(f), true
}
