package plugins_test

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins"
	"github.com/dunlin-iot/dunlin/plugins/abi"
)

// raw is the work that makes plugin() run its bad code.
func raw(device string, payload string) *dunlin.Work {
	return &dunlin.Work{DeviceKey: dunlin.DeviceKey{Tenant: dunlin.DefaultTenant, Device: dunlin.DeviceID(device)}, Seq: 1,
		Inputs: []dunlin.Input{{Kind: dunlin.InputRaw, Format: dunlin.FormatOctets, Received: t0, Payload: []byte(payload)}}}
}

func wasiImport(name, params string, result bool) imp {
	im := imp{module: "wasi_snapshot_preview1", name: name}
	for _, c := range params {
		im.params = append(im.params, map[rune]byte{'i': i32, 'I': i64}[c])
	}
	if result {
		im.results = []byte{i32}
	}
	return im
}

type villain struct {
	name string
	bad  *wasm
	want string // in the poison's Failure
}

func villains() []villain {
	frames := func(name string, frame []byte, want string) villain {
		m := plugin(answer(frame))
		m.data = frame
		return villain{name, m, want}
	}
	header := func(size uint32, kind abi.Kind) []byte {
		b := abi.AppendText(nil, kind, 0, "")
		b[0], b[1], b[2], b[3] = byte(size), byte(size>>8), byte(size>>16), byte(size>>24)
		return b
	}
	about := func(name string, records []byte, want string) villain { // records about the poison itself
		m := plugin(emit(len(records)))
		m.data = records
		return villain{name, m, want}
	}
	may := func(name string, records []byte, want string) villain { // with all capabilities
		v := about(name, records, want)
		v.bad.custom = section(0, code(str(abi.ManifestSection), []byte(`{"capabilities":["command","publish"]}`)))
		return v
	}
	twice := append(abi.AppendGroup(nil, 0), abi.AppendGroup(nil, 0)...)
	huge := plugin(code(i64c(1<<62|math.MaxInt32), returnOp))
	fill := code(loop, void, i32c(0), i32c(0), i32c(4<<20), 0xfc, 11, 0, br, 0, end)
	exit := plugin(code(i32c(3), call(0)), wasiImport("proc_exit", "i", false))
	random := plugin(code(loop, void, i32c(0), i32c(4<<20), call(0), drop, br, 0, end), wasiImport("random_get", "ii", true))
	write := plugin(code(loop, void, i32c(1), i32c(0), i32c(1000), i32c(8), call(0), drop, br, 0, end),
		wasiImport("fd_write", "iiii", true))
	return []villain{
		{"loops for ever", plugin(code(loop, void, br, 0, end)), "fuel exhausted after"},
		{"fills memory for ever", plugin(fill), "fuel exhausted after"},
		{"asks for random numbers for ever", random, "fuel exhausted after"},
		{"writes for ever", write, "fuel exhausted after"},
		{"eats memory", plugin(code(loop, void, i32c(16), 0x40, 0, i32c(-1), 0x47, brIf, 0, end, unreachable)), ""}, // or stopped, since growing takes time
		{"unreachable", plugin(code(unreachable)), "trap: unreachable"},
		{"divides by zero", plugin(code(i32c(1), i32c(0), 0x6d, drop)), "trap: integer divide by zero"},
		{"reads outside", plugin(code(i32c(-4), mem(0x28, 0), drop)), "trap: out of bounds memory access"},
		{"exits", exit, "trap: exit status 3"},
		{"answers outside the memory", plugin(code(i64c(0x7fffffff<<32|8), returnOp)), "bad frame: the answer at"},
		{"answers with its whole memory", plugin(code(i64c(64<<16), returnOp)), "bad frame: at byte 0"},
		{"answers with 2 GiB", huge, "output too large: 2147483647 bytes"},
		{"states an error", func() *wasm {
			m := plugin(code(i64c(math.MinInt64|dataAt<<32|5), returnOp))
			m.data = []byte("sorry\xff")
			return m
		}(), "plugin: sorry"},
		{"states an error outside the memory", plugin(code(i64c(-1), returnOp)), "bad frame: the text of an error"},
		frames("record of no length", header(0, abi.KindGroup), "bad frame: at byte 0"),
		frames("record of 4 GiB", header(math.MaxUint32, abi.KindGroup), "bad frame: at byte 0"),
		frames("half a header", []byte{8, 0, 0}, "bad frame: at byte 0"),
		frames("state before any device", abi.AppendText(nil, abi.KindState, 0, "x"), "before any device"),
		frames("a device that isn't there", abi.AppendGroup(nil, math.MaxUint32), "out of turn"),
		frames("a device twice", twice, "out of turn"),
		about("an alert of lies", lying(abi.AppendAlert(nil, abi.FlagRaise, 0, 1, 0, "rule", "", ""), 20), "bad frame: at byte 16"),
		about("an alert without a rule", abi.AppendAlert(nil, abi.FlagRaise, 0, 1, 0, "", "", ""), "an alert's rule"),
		about("an alert with a slash", abi.AppendAlert(nil, abi.FlagRaise, 0, 1, 0, "a/b", "", ""), "an alert's rule"),
		about("an alert of severity 9", abi.AppendAlert(nil, abi.FlagRaise, 0, 9, 0, "r", "", ""), "severity 9"),
		about("an alert of infinity", abi.AppendAlert(nil, abi.FlagRaise, 0, 1, math.Inf(1), "r", "", ""), "not finite"),
		about("an alert of input 7", abi.AppendAlert(nil, abi.FlagRaise, 7, 1, 0, "r", "", ""), "input 7 of 1"),
		about("a reading of NaN", abi.AppendDerived(nil, 1, 1, math.NaN(), "m", "", ""), "not a finite number"),
		about("a reading without a name", abi.AppendDerived(nil, 1, 1, 0, "", "", ""), "derived reading"),
		about("a reading before 1970", abi.AppendDerived(nil, 1, -1, 0, "m", "", ""), "not within 1970 to 9999"),
		about("a timer in 292,000", abi.AppendSet(nil, math.MaxInt64, "t"), "not within 1970 to 9999"),
		about("a huge state", abi.AppendText(nil, abi.KindState, 0, make([]byte, 65<<10)), "state too large: 66560 bytes"),
		about("a flood", flood(), "too many emissions"),
		about("an alert raised and updated", abi.AppendAlert(nil, abi.FlagRaise|abi.FlagUpdate, 0, 1, 0, "r", "", ""), "both flags"),
		about("an update of severity 0", abi.AppendAlert(nil, abi.FlagUpdate, 0, 0, 0, "r", "", ""), "severity 0"),
		about("a cut command", abi.AppendText(nil, abi.KindCommand, 0, ""), "bad frame: at byte 16"),
		about("a command of lies", lying(abi.AppendCommand(nil, 0, 0, "c", nil), 20), "bad frame: at byte 16"),
		about("a publication of lies", lying(abi.AppendPublish(nil, 0, "t", nil), 12), "bad frame: at byte 16"),
		about("a command without the capability", abi.AppendCommand(nil, 0, 0, "c", nil), `add "command" to its capabilities`),
		about("a publication without the capability", abi.AppendPublish(nil, 0, "t", nil), `add "publish" to its capabilities`),
		may("a command without a name", abi.AppendCommand(nil, 0, 0, "", nil), "a command: "),
		may("a command with a slash", abi.AppendCommand(nil, 0, 0, "a/b", nil), "is not allowed there"),
		may("a command with a plus", abi.AppendCommand(nil, 0, 0, "a+b", nil), "a command: "),
		may("a command until 292,000", abi.AppendCommand(nil, math.MaxInt64, 0, "c", nil), "not within 1970 to 9999"),
		may("a command of 4 KiB and one", abi.AppendCommand(nil, 0, 0, "c", make([]byte, 4<<10+1)), "4097 bytes, at most 4096"),
		may("a publication about nothing", abi.AppendPublish(nil, 0, "", nil), "a publication: topic: "),
		may("a publication about all", abi.AppendPublish(nil, 0, "#", nil), "a publication: topic: "),
		may("a publication of 32 KiB and one", abi.AppendPublish(nil, 0, "t", make([]byte, 32<<10+1)), "32769 bytes, at most 32768"),
		may("a publication with a hole", abi.AppendPublish(nil, 0, "a//b", nil), "an empty level"),
		about("refusing what isn't there", abi.AppendInputError(nil, 1, "why"), "refuses input 1 of 1"),
		about("refusing nothing", abi.AppendText(nil, abi.KindError, abi.FlagInput, "why"), "bad frame: at byte 16"),
		about("refusing without end", refusals(), "too many emissions"),
		about("its own error", abi.AppendText(nil, abi.KindError, 0, "no such sensor"), "plugin: no such sensor"),
	}
}

// lying makes a length at an offset of the record 4 GiB.
func lying(b []byte, at int) []byte {
	copy(b[at:], "\xff\xff\xff\xff")
	return b
}

func refusals() (b []byte) {
	for range 65 {
		b = abi.AppendInputError(b, 0, "why")
	}
	return b
}

func flood() []byte {
	var b []byte
	for i := range 65 {
		b = abi.AppendSet(b, int64(t0)+int64(i), "t")
	}
	return b
}

// What one device's inputs make a plugin do is told with them; the devices beside it in the batch get their results, the
// host lives, and the next batch is as good as any.
func TestPoisonIsFoundAndTheOthersGetTheirResults(t *testing.T) {
	limits := plugins.Limits{BadDevices: 100}
	for _, v := range villains() {
		t.Run(strings.ReplaceAll(v.name, " ", "-"), func(t *testing.T) {
			b := newBench(t, plugins.Config{Limits: limits})
			module := v.bad.build()
			if _, err := b.Check(t.Context(), module); err != nil {
				t.Fatalf("the upload is refused: %v", err)
			}
			st := b.stage(module, "")
			for round := range 2 {
				works := batchOf(5)
				poison := raw("poison", "x")
				works[2] = poison
				process(t, b, st, t0, works...)
				for i, w := range works {
					switch {
					case w == poison && (w.Outcome.Failure == "" || !strings.Contains(w.Outcome.Failure, v.want)):
						t.Errorf("round %d: the poison's failure is %q, want %q", round, w.Outcome.Failure, v.want)
					case w == poison && (w.Outcome.State != nil || w.Outcome.Signals != nil || w.Outcome.Timers != nil):
						t.Errorf("round %d: the poison has effects: %+v", round, w.Outcome)
					case w != poison && (w.Outcome.Failure != "" || sum(w.Outcome.State) != float64(3*i)):
						t.Errorf("round %d: device %d: %+v", round, i, w.Outcome)
					}
				}
			}
		})
	}
}

func batchOf(n int) []*dunlin.Work {
	works := make([]*dunlin.Work, n)
	for i := range works {
		v := float64(i)
		works[i] = telemetry(fmt.Sprintf("device-%d", i), 1, nil, t0, dunlin.Record{Metric: "a", Num: v},
			dunlin.Record{Metric: "b", Num: v}, dunlin.Record{Metric: "c", Num: v})
	}
	return works
}

func sum(state []byte) float64 {
	if len(state) != 8 {
		return math.NaN()
	}
	bits := uint64(0)
	for i := range 8 {
		bits |= uint64(state[i]) << (8 * i)
	}
	return math.Float64frombits(bits)
}

// Recursion ends at wazero's stack, some 80 MB that the next collection takes back, if fuel doesn't end it before.
func TestRecursionIsATrap(t *testing.T) {
	m := plugin(code(i64c(1), call(fnExtra), 0xa7, drop))
	m.funcs = append(m.funcs, fn{params: []byte{i64}, results: []byte{i64},
		body: code(get(0), i64c(1), 0x7c, call(fnExtra), get(0), 0x85)})
	for _, c := range []struct {
		fuel int64
		want string
	}{{1_000_000, "fuel exhausted after "}, {200_000_000, "trap: stack overflow"}} {
		b := newBench(t, plugins.Config{Limits: plugins.Limits{FuelPerCall: c.fuel, CallTime: time.Second}})
		poison, good := raw("poison", "x"), batchOf(2)[1]
		process(t, b, b.stage(m.build(), ""), t0, good, poison)
		if !strings.HasPrefix(poison.Outcome.Failure, c.want) || sum(good.Outcome.State) != 3 {
			t.Errorf("with fuel for %d: %q, %+v; want %q", c.fuel, poison.Outcome.Failure, good.Outcome, c.want)
		}
	}
}

// A plugin that does wrong before its first batch, in all the places where its code can run.
func TestStartIsBounded(t *testing.T) {
	loops := code(loop, void, br, 0, end)
	inStart, inInitialize, inInit, inBuffer := plugin(nil), plugin(nil), plugin(nil), plugin(nil)
	inStart.funcs = append(inStart.funcs, fn{body: loops})
	inStart.start = fnExtra
	inInitialize.funcs = append(inInitialize.funcs, fn{body: loops, export: "_initialize"})
	inInit.funcs[fnInit].body = code(loops, i64c(0))
	inBuffer.funcs[fnBuffer].body = i32c(-8)
	refuses := plugin(nil)
	refuses.data = []byte("setting max is missing")
	refuses.funcs[fnInit].body = i64c(math.MinInt64 | dataAt<<32 | 22)
	for want, m := range map[string]*wasm{
		"the module's start function: fuel exhausted after ": inStart,
		"_initialize: fuel exhausted after ":                 inInitialize,
		"dunlin_init: fuel exhausted after ":                 inInit,
		"bad frame: dunlin_buffer(4096) = 4294967288":        inBuffer,
		"dunlin_init: plugin: setting max is missing":        refuses,
	} {
		b := newBench(t, plugins.Config{Limits: plugins.Limits{FuelInit: 3_000_000}})
		st := b.stage(m.build(), "")
		works := batchOf(3)
		process(t, b, st, t0, works...)
		for _, w := range works {
			if !strings.HasPrefix(w.Outcome.Failure, "the plugin does not start: ") || !strings.Contains(w.Outcome.Failure, want) {
				t.Errorf("failure %q, want %q", w.Outcome.Failure, want)
			}
		}
		if err := b.TryConfig(t.Context(), st); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("TryConfig: %v, want %q", err, want)
		}
		gone, cancel := context.WithCancel(t.Context())
		cancel()
		if err := b.TryConfig(gone, st); !errors.Is(err, context.Canceled) || errors.Is(err, dunlin.ErrInvalid) {
			t.Errorf("TryConfig without time: %v", err)
		}
		rep, err := b.Check(t.Context(), m.build())
		if m == refuses {
			if err != nil || !strings.Contains(rep.Note, "setting max is missing") {
				t.Errorf("a plugin that wants a configuration: %v, %+v", err, rep)
			}
		} else if e, ok := errors.AsType[*dunlin.ModuleError](err); !ok || e.Check != "dry-run" {
			t.Errorf("Check: %v, want a dry-run error", err)
		}
	}
}

// A device that makes the plugin trap again and again is left out for a while; one that recovers is not.
func TestQuarantine(t *testing.T) {
	b := newBench(t, plugins.Config{})
	st := b.stage(plugin(code(unreachable)).build(), "")
	now := t0
	outcome := func(after dunlin.Time, w *dunlin.Work) string {
		now += after
		process(t, b, st, now, w, batchOf(2)[1])
		return w.Outcome.Failure
	}
	const second = dunlin.Time(1e6)
	for i := range 3 {
		if got := outcome(second, raw("poison", "x")); !strings.HasPrefix(got, "trap: unreachable") {
			t.Fatalf("trap %d: %q", i, got)
		}
	}
	if got := outcome(second, raw("poison", "x")); !strings.Contains(got, "quarantined until 2026-01-01T00:00:13Z: the plugin failed 3 times") {
		t.Errorf("after three traps: %q", got)
	}
	if got := outcome(10*second, raw("poison", "x")); !strings.HasPrefix(got, "trap: unreachable") {
		t.Errorf("after 10 seconds it is tried again: %q", got)
	}
	if got := outcome(15*second, raw("poison", "x")); !strings.Contains(got, "failed 4 times") {
		t.Errorf("then for 20 seconds: %q", got)
	}
	good := telemetry("poison", 9, nil, t0, dunlin.Record{Metric: "a", Num: 2})
	if got := outcome(10*second, good); got != "" || sum(good.Outcome.State) != 2 {
		t.Errorf("good input after it: %q", got)
	}
	if got := outcome(second, raw("poison", "x")); !strings.HasPrefix(got, "trap: unreachable") {
		t.Errorf("and it begins anew: %q", got)
	}
}

// A batch full of poison costs a bounded number of instances; who was not tried is told so and not blamed.
func TestTrapsPerBatch(t *testing.T) {
	b := newBench(t, plugins.Config{Limits: plugins.Limits{TrapsPerBatch: 4, BadDevices: 100}})
	st := b.stage(plugin(code(unreachable)).build(), "")
	var works []*dunlin.Work
	for i := range 20 {
		works = append(works, raw(fmt.Sprintf("poison-%d", i), "x"))
	}
	process(t, b, st, t0, works...)
	traps, notTried := 0, 0
	for _, w := range works {
		switch {
		case strings.HasPrefix(w.Outcome.Failure, "trap: unreachable"):
			traps++
		case strings.HasPrefix(w.Outcome.Failure, "not tried: the plugin had failed on 4 devices"):
			notTried++
		default:
			t.Errorf("failure %q", w.Outcome.Failure)
		}
	}
	if traps != 4 || notTried != 16 {
		t.Errorf("%d trapped, %d not tried", traps, notTried)
	}
}

// Twice the longest call is the longest that a plugin can hold up a garbage collection of the process.
func TestFuelBoundsTime(t *testing.T) {
	if testing.Short() {
		t.Skip("measures time")
	}
	b := newBench(t, plugins.Config{})
	st := b.stage(plugin(code(loop, void, br, 0, end)).build(), "")
	process(t, b, st, t0, batchOf(1)...)
	start := time.Now()
	poison := raw("poison", "x")
	process(t, b, st, t0, poison)
	if d := time.Since(start); d > 2*time.Second || !strings.HasPrefix(poison.Outcome.Failure, "fuel exhausted") {
		t.Errorf("%v, %q", d, poison.Outcome.Failure)
	} else {
		t.Logf("10 million units of an empty loop take %v", d)
	}
}
