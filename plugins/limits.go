package plugins

import (
	"bytes"
	"fmt"
	"os"
	"time"
)

// Limits bounds what a plugin may take. Zero means the default.
type Limits struct {
	ModuleBytes int           // of an uploaded module; default 16 MiB
	CompileTime time.Duration // of a module, to within one function; default 60 s
	MemoryBytes int           // of one instance; default 64 MiB, whole pages of 64 KiB

	// CallTime is the processor time that a crossing may take, measured while it runs. A batch is split so that a crossing
	// is expected to take half of it. default 9 ms: a guest that never ends is stopped within 10.
	CallTime time.Duration
	// StartTime is the same for a start function, _initialize and dunlin_init together; default 100 ms. A plugin in Go takes
	// some 3 ms.
	StartTime time.Duration
	// Fuel is about one simple instruction a unit; see package fuel. It bounds what time bounds already, in numbers that are
	// the same on every machine.
	FuelPerCall int64 // default 500 million
	FuelInit    int64 // to start; default 5,000 million

	// DomainTime is the processor time that one domain's plugins may take in a second, all processors together; beyond it
	// they wait. 0: as much as the others leave.
	DomainTime time.Duration
	TenantTime time.Duration // the same for all domains of a tenant together
	Waiting    int           // calls of one domain that may wait for a processor; default 4,096
	BadDevices int           // so many devices have to fail within a minute, and a twentieth of the inputs, to make a version bad; default 5

	FrameBytes    int // a batch is split into crossings of about this size; default 1 MiB
	InputBytes    int // one device's inputs with its state in one crossing; default 8 MiB
	OutputBytes   int // an answer; default 4 MiB
	StateBytes    int // a device's state; default 64 KiB
	EmitsPerEvent int // alerts, readings and timers a device and input; default 64
	TextBytes     int // an alert's text, a log line, a reason; default 1 KiB

	LogLinesPerSecond int // of one domain's plugins, in the node's log; default 20
	TrapsPerBatch     int // so many devices of one batch may trap before the rest is not tried; default 8
	Instances         int // idle ones of all plugins that are kept; default 64
	// InstanceBytes is the memory of all instances together; default a quarter of the machine's, or 512 MiB if that is not known.
	InstanceBytes int64
	Modules       int // compiled ones that are kept; default 64
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
	if l.CallTime <= 0 {
		l.CallTime = 9 * time.Millisecond
	}
	if l.StartTime <= 0 {
		l.StartTime = 100 * time.Millisecond
	}
	or64(&l.FuelPerCall, 500_000_000)
	or64(&l.FuelInit, 5_000_000_000)
	or(&l.Waiting, 4096)
	or(&l.BadDevices, 5)
	or(&l.FrameBytes, 1<<20)
	or(&l.InputBytes, 8<<20)
	or(&l.OutputBytes, 4<<20)
	or(&l.StateBytes, 64<<10)
	or(&l.EmitsPerEvent, 64)
	or(&l.TextBytes, 1<<10)
	or(&l.LogLinesPerSecond, 20)
	or(&l.TrapsPerBatch, 8)
	or(&l.Instances, 64)
	if l.InstanceBytes <= 0 {
		l.InstanceBytes = instanceBytesDefault()
	}
	or(&l.Modules, 64)
	return l
}

// instanceBytesDefault is a quarter of the machine's memory.
func instanceBytesDefault() int64 {
	const unknown = 512 << 20
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return unknown
	}
	for line := range bytes.Lines(b) {
		var kib int64
		if n, _ := fmt.Sscanf(string(line), "MemTotal: %d kB", &kib); n == 1 && kib > 0 {
			return kib << 10 / 4
		}
	}
	return unknown
}
