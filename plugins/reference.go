package plugins

import (
	"math"
	"time"

	"github.com/dunlin-iot/dunlin/plugins/fuel"
)

// The reference is a loop of what plugins mostly do: loads, stores, a call, whole numbers and floating point. What a unit of
// fuel takes in it says how fast the machine is; a module's own number is told as a multiple of that.
const referencePasses = 50_000

// measureReference returns the nanoseconds of a unit in the reference; 1 if it could not be measured.
func (h *Host) measureReference() float64 {
	m, err := fuel.Parse(referenceLoop())
	if err != nil {
		return 1
	}
	compiled, err := h.compile(h.ctx, m)
	if err != nil {
		return 1
	}
	defer func() { _ = compiled.Close(&callContext{}) }() // nothing of it is left to fail
	in, err := h.instantiate(compiled, 1)
	if err != nil {
		return 1
	}
	defer in.close()
	run := in.mod.ExportedFunction("run")
	best := math.Inf(1)
	for range 5 { // others on the machine only make it longer
		in.fuel.Set(uint64(in.meter.begin(time.Second, math.MaxInt64, true)))
		in.stack[0] = referencePasses
		if run.CallWithStack(&in.ctx, in.stack[:]) != nil {
			return 1
		}
		burnt, used := in.meter.end(int64(in.fuel.Get()))
		best = min(best, float64(used)/float64(burnt))
	}
	return best
}

// referenceLoop is
//
//	(module (memory (export "memory") 1)
//	  (func $mix (param f64) (result f64) local.get 0  f64.const 0.5  f64.mul)
//	  (func (export "run") (param $n i32) (local $x f64)
//	    (loop
//	      (local.set $x (f64.add (call $mix (local.get $x)) (f64.load (i32.and (local.get $n) (i32.const 0xff8)))))
//	      (i32.store (i32.and (local.get $n) (i32.const 0xffc)) (i32.mul (local.get $n) (i32.const 77)))
//	      (br_if 0 (local.tee $n (i32.sub (local.get $n) (i32.const 1)))))))
func referenceLoop() []byte {
	return []byte("\x00asm\x01\x00\x00\x00" +
		"\x01\x0a\x02\x60\x01\x7c\x01\x7c\x60\x01\x7f\x00" + // types
		"\x03\x03\x02\x00\x01" + // functions
		"\x05\x03\x01\x00\x01" + // memory
		"\x07\x10\x02\x06memory\x02\x00\x03run\x00\x01" + // exports
		"\x0a\x40\x02" + // code
		"\x0e\x00\x20\x00\x44\x00\x00\x00\x00\x00\x00\xe0\x3f\xa2\x0b" +
		"\x2f\x01\x01\x7c\x03\x40" +
		"\x20\x01\x10\x00\x20\x00\x41\xf8\x1f\x71\x2b\x03\x00\xa0\x21\x01" +
		"\x20\x00\x41\xfc\x1f\x71\x20\x00\x41\xcd\x00\x6c\x36\x02\x00" +
		"\x20\x00\x41\x01\x6b\x22\x00\x0d\x00\x0b\x0b")
}
