package plugins

import (
	"context"
	"fmt"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/dunlin-iot/dunlin/plugins/fuel"
)

// A call gets its fuel in slices. When one is burnt the guest comes out of native code, into the meter: it looks at the
// processor time that went by, lets a garbage collection begin and others run, and gives the next slice, or none.
//
//	call ──▶ slice ──▶ slice ──▶ … ──▶ slice ──▶ none: the guest traps
//	      │         │                         │
//	      │         └─ refill: time? others?  └─ Limits.CallTime is used up, or Limits.FuelPerCall
//	      └─ a usual call ends within the first, without a look at the clock
//
// So fuel needn't be exact: what a unit takes differs by the guest and by the machine, but only a slice's length depends
// on it, and with it how long a collection or another domain may have to wait.
const (
	sliceFirst = 12_000  // units: 2 to 4 µs
	sliceMost  = 500_000 // units: 70 to 130 µs, 5 ms where each instruction misses every cache
	sliceLeast = 5_000
	sliceTime  = 100 * time.Microsecond // what a slice is to take, as far as the one before tells
	sliceGrow  = 8                      // times the one before
	// nanosWorst is what a unit takes at worst, nanosUsual in compiled code: what a slice is taken for that was not measured.
	nanosWorst = 10
	nanosUsual = 0.25
	// nanosOwed is what a unit takes at worst of those that one instruction is charged by size.
	nanosOwed = 1.5
	// sampled is how many short calls of a plugin pass between two that are measured all the same.
	sampled = 16
	// pauseEvery is how often a call lets others run: it wakes another thread, which takes some 10 µs. A pause of less than
	// pauseShort was none.
	pauseEvery = 200 * time.Microsecond
	pauseShort = 5 * time.Microsecond
	// doubt is what a slice counts at most whose time is the clock's alone: the operating system may have interrupted it.
	doubt = time.Millisecond
	// brief is how long a call is measured by the clock alone: to ask for the thread's time takes up to a microsecond.
	brief = 100 * time.Microsecond
)

// meter measures an instance's calls.
type meter struct {
	clock func() time.Duration // monotonic
	pause func(used time.Duration)

	time    time.Duration // that the call may take
	fuel    int64         // that it may burn
	granted int64         // the counter at the beginning of the slice
	burnt   int64         // before the slice
	spent   time.Duration // before the slice
	at      time.Duration // the clock at the beginning of the slice, if timed
	yielded time.Duration // the clock when others could run
	cpu     time.Duration // the thread's time at the beginning of the slice; 0: not asked for
	thread  int           // which thread that was
	timed   bool
	over    bool // none was left
}

// begin returns what the counter is to hold.
func (m *meter) begin(most time.Duration, units int64, timed bool) int64 {
	m.time, m.fuel, m.granted, m.burnt, m.spent = most, units, min(sliceFirst, units), 0, 0
	m.cpu, m.over = 0, false
	if m.timed = timed; timed {
		m.at = m.clock()
		m.yielded = m.at
	}
	return m.granted
}

// passed is the processor time since the slice began, as far as that can be known, with the clock and the thread's time now. What
// grows its memory comes out of native code, and may go on on another thread.
func (m *meter) passed(now, cpu time.Duration, thread int) time.Duration {
	took := now - m.at
	if m.cpu > 0 && cpu >= m.cpu && thread == m.thread {
		return min(cpu-m.cpu, took)
	}
	return min(took, doubt)
}

// refill takes the counter, which is below zero, and returns what it is to hold: what it held if there is no more.
func (m *meter) refill(counter int64) int64 {
	units := m.granted - counter
	m.burnt += units
	m.granted = counter
	now, cpu, thread := m.clock(), time.Duration(0), 0
	if m.cpu > 0 {
		cpu, thread = threadTime()
	}
	took, grow := time.Duration(float64(units)*nanosUsual), int64(1) // of a first slice that isn't timed
	if m.timed {
		took, grow = m.passed(now, cpu, thread), sliceGrow
	} else {
		m.timed, m.yielded = true, now
	}
	m.spent += took
	// One instruction may owe more than a slice: it has not run yet, and must not if it would run beyond the time.
	left := m.time - m.spent - time.Duration(float64(-counter)*nanosOwed)
	if left <= 0 || m.burnt >= m.fuel {
		m.over = true
		return counter
	}
	if m.pause != nil && now-m.yielded >= pauseEvery {
		m.pause(m.spent)
		m.yielded = m.clock()
		if m.yielded-now > pauseShort { // perhaps on another thread
			cpu = 0
		}
		now = m.yielded
	}
	if cpu == 0 && m.spent >= brief {
		cpu, thread = threadTime()
	}
	m.at, m.cpu, m.thread = now, cpu, thread
	slice := min(int64(float64(sliceTime)*float64(units)/float64(max(took, 1))), grow*units, sliceMost, int64(left)/nanosWorst)
	m.granted = min(max(slice, sliceLeast), m.fuel-m.burnt)
	return m.granted
}

// end returns what the call burnt and took; the time is 0 if it was too short to be measured.
func (m *meter) end(counter int64) (burnt int64, used time.Duration) {
	burnt = m.burnt + m.granted - counter
	if !m.timed {
		return burnt, 0
	}
	if m.over {
		return burnt, m.spent
	}
	now, cpu, thread := m.clock(), time.Duration(0), 0
	if m.cpu > 0 && now-m.at > 2*sliceTime {
		cpu, thread = threadTime()
	}
	return burnt, max(m.spent+m.passed(now, cpu, thread), 1)
}

// exhausted says why a call was stopped.
func (m *meter) exhausted() string {
	return fmt.Sprintf("fuel exhausted after %.1f ms and %d units", m.spent.Seconds()*1000, m.burnt)
}

// The host's function that guests call for more fuel reaches them as a reference in a table (see package fuel): as an import it
// would move the numbers of all functions.
const (
	refillModule = "dunlin_refill"
	refillFunc   = "refill"
)

// instantiateRefill returns the reference to the function that gives an instance more fuel.
func instantiateRefill(ctx context.Context, rt wazero.Runtime) (uint64, error) {
	b := rt.NewHostModuleBuilder(refillModule)
	b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(func(ctx context.Context, _ api.Module, _ []uint64) {
		in := ctx.(*callContext).in
		in.fuel.Set(uint64(in.meter.refill(int64(in.fuel.Get()))))
	}), nil, nil).Export(refillFunc)
	if _, err := b.Instantiate(ctx); err != nil {
		return 0, fmt.Errorf("host function %s: %w", refillFunc, err)
	}
	mod, err := rt.InstantiateWithConfig(ctx, referenceModule(), wazero.NewModuleConfig().WithName(refillModule+"_reference"))
	if err != nil {
		return 0, fmt.Errorf("reference to %s: %w", refillFunc, err)
	}
	return mod.ExportedGlobal(refillFunc).Get(), nil
}

// referenceModule is
//
//	(module (import "dunlin_refill" "refill" (func)) (global (export "refill") funcref (ref.func 0)))
func referenceModule() []byte {
	name := func(s string) []byte { return append([]byte{byte(len(s))}, s...) }
	section := func(id byte, parts ...[]byte) []byte {
		content := []byte{1} // one item
		for _, p := range parts {
			content = append(content, p...)
		}
		return append([]byte{id, byte(len(content))}, content...)
	}
	b := []byte("\x00asm\x01\x00\x00\x00")
	b = append(b, section(1, []byte{0x60, 0, 0})...)
	b = append(b, section(2, name(refillModule), name(refillFunc), []byte{0, 0})...)
	b = append(b, section(6, []byte{byte(fuel.FuncRef), 0, 0xd2, 0, 0x0b})...)
	return append(b, section(7, name(refillFunc), []byte{byte(fuel.KindGlobal), 0})...)
}
