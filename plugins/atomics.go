package plugins

import (
	"math"
	"sync/atomic"
)

type atomicCount = atomic.Int64

// atomicFloat is a float64 that goroutines share; a lost update of a mean doesn't matter.
type atomicFloat struct{ bits atomic.Uint64 }

func (f *atomicFloat) Load() float64   { return math.Float64frombits(f.bits.Load()) }
func (f *atomicFloat) Store(v float64) { f.bits.Store(math.Float64bits(v)) }
