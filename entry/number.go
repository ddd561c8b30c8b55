package entry

import "math"

// pow10 are the scales of the decimals that a number may be kept as.
var pow10 = [numberDigitsMax + 1]float64{1, 1e1, 1e2, 1e3, 1e4, 1e5}

// mantissaMax bounds a decimal's digits: below it every integer is a float64, so that mantissa / 10^digits is one
// correctly rounded division, with the same bits on every machine.
const mantissaMax = 1 << 53

// numberForm picks the smallest form that gives back every bit of f. For a decimal, m / 10^form is f.
func numberForm(f float64) (form uint8, m int64) {
	// In this range the product below fits an int64; NaN, both infinities and the odd −0 fail one of the tests.
	if f > -mantissaMax && f < mantissaMax && (f != 0 || !math.Signbit(f)) {
		for d, scale := range pow10 {
			x := f * scale
			if x <= -mantissaMax || x >= mantissaMax {
				break
			}
			m = int64(math.RoundToEven(x))
			if float64(m)/scale == f {
				return uint8(d), m
			}
		}
	}
	if float64(float32(f)) == f && (f != 0 || math.Signbit(f)) {
		return numberFloat32, 0
	}
	return numberFloat64, 0
}
