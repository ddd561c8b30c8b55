package plugins

import (
	"math"
	"time"
)

// most inputs of a plugin's first crossing, when nothing is known of what they take.
const firstInputs = 64

// cost is what a pool's crossings take, as far as known: means, the newer the heavier. The gate's lock guards it.
type cost struct {
	calls    int64
	perUnit  float64 // nanoseconds
	perInput float64 // nanoseconds; quick to rise, slow to fall
}

// sample reports whether the next crossing is to be measured even if it is short.
func (c *cost) sample() bool {
	c.calls++
	return c.calls%sampled == 1
}

// note learns from a crossing and returns what it took: measured, if took is not 0, or estimated by what it burnt.
func (c *cost) note(burnt int64, took time.Duration, inputs int) time.Duration {
	unit := c.perUnit
	if took == 0 {
		if unit == 0 {
			unit = nanosUsual
		}
		took = time.Duration(float64(burnt) * unit)
	} else if burnt > 0 {
		now := min(float64(took)/float64(burnt), nanosWorst)
		if unit == 0 {
			unit = now
		}
		c.perUnit = unit + (min(now, 2*unit)-unit)/8 // the odd one was interrupted
	}
	if inputs > 0 {
		mean, now := c.perInput, float64(took)
		if inputs > 1 {
			now /= float64(inputs)
		}
		switch {
		case mean == 0:
			mean = now
		case now > mean:
			mean += (now - mean) / 2
		default:
			mean += (now - mean) / 32
		}
		c.perInput = mean
	}
	return took
}

// inputs returns how many inputs are expected to take that long.
func (c *cost) inputs(in time.Duration) int {
	per := c.perInput
	if per == 0 {
		return firstInputs
	}
	return int(min(max(float64(in)/per, 1), math.MaxInt32))
}
