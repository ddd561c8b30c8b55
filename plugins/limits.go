package plugins

import "time"

// Limits bounds what a plugin may take. Zero means the default.
type Limits struct {
	ModuleBytes int           // of an uploaded module; default 16 MiB
	CompileTime time.Duration // of a module, to within one function; default 60 s
	MemoryBytes int           // of one instance; default 64 MiB, whole pages of 64 KiB

	// Fuel is about one simple instruction a unit, a tenth of a nanosecond where the processor is quick and ten nanoseconds
	// where each one misses every cache; see package fuel. A crossing with n inputs may burn n × FuelPerEvent, but not more
	// than FuelPerCall: native code can't be preempted, and while it runs no garbage collection of the whole process can
	// begin. A reading costs a plugin in C 200 units and one in Go 10,000; a collection within a Go plugin some millions.
	FuelPerEvent int64 // default 10 million
	FuelPerCall  int64 // default 40 million
	FuelInit     int64 // start function, _initialize and dunlin_init together; default 100 million

	FrameBytes    int // a batch is split into crossings of about this size; default 1 MiB
	InputBytes    int // one device's inputs with its state in one crossing; default 8 MiB
	OutputBytes   int // an answer; default 4 MiB
	StateBytes    int // a device's state; default 64 KiB
	EmitsPerEvent int // alerts, readings and timers a device and input; default 64
	TextBytes     int // an alert's text, a log line, a reason; default 1 KiB

	LogLinesPerSecond int // of one plugin and configuration, in the node's log; default 20
	TrapsPerBatch     int // so many devices of one batch may trap before the rest is not tried; default 8
	Instances         int // idle ones of all plugins that are kept; default 64
	Modules           int // compiled ones that are kept; default 64
}

func (l Limits) withDefaults() Limits {
	or := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	or64 := func(v *int64, d int64) {
		if *v <= 0 {
			*v = d
		}
	}
	or(&l.ModuleBytes, 16<<20)
	or(&l.MemoryBytes, 64<<20)
	if l.CompileTime <= 0 {
		l.CompileTime = time.Minute
	}
	or64(&l.FuelPerEvent, 10_000_000)
	or64(&l.FuelPerCall, 40_000_000)
	or64(&l.FuelInit, 100_000_000)
	or(&l.FrameBytes, 1<<20)
	or(&l.InputBytes, 8<<20)
	or(&l.OutputBytes, 4<<20)
	or(&l.StateBytes, 64<<10)
	or(&l.EmitsPerEvent, 64)
	or(&l.TextBytes, 1<<10)
	or(&l.LogLinesPerSecond, 20)
	or(&l.TrapsPerBatch, 8)
	or(&l.Instances, 64)
	or(&l.Modules, 64)
	return l
}

// fuel returns the budget of a crossing with n inputs.
func (l *Limits) fuel(n int) int64 {
	return min(l.FuelPerCall, max(int64(n), 1)*l.FuelPerEvent)
}
