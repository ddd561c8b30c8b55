package plugins_test

import (
	"bytes"
	"fmt"
	"log/slog"
	"reflect"
	"strings"
	"sync"
	"testing"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins"
	"github.com/dunlin-iot/dunlin/plugins/abi"
)

// fleet drives devices through the cold-chain plugin, keeping their states as a shard does, and writes down what comes.
type fleet struct {
	b      *bench
	st     *dunlin.Stage
	states map[dunlin.DeviceID][]byte
	seq    uint64
	log    []string
}

func (f *fleet) turn(t testing.TB, round, devices int) {
	now := t0 + dunlin.Time(round)*60e6
	f.seq++
	works := make([]*dunlin.Work, devices)
	for i := range works {
		id := fmt.Sprintf("fridge-%d", i)
		temp := 4 + float64((round*7+i*3)%11)
		works[i] = telemetry(id, f.seq, f.states[dunlin.DeviceID(id)], now,
			dunlin.Record{Metric: "temp", Unit: "Cel", Num: temp},
			dunlin.Record{Metric: "door", Kind: dunlin.Boolean, Num: float64(round / 3 % 2)},
			dunlin.Record{Metric: "note", Kind: dunlin.Text, Str: fmt.Sprint("round ", round)})
		if round%4 == 3 {
			works[i].Inputs = append(works[i].Inputs,
				dunlin.Input{Kind: dunlin.InputTimer, Timer: "silent", Received: now},
				dunlin.Input{Kind: dunlin.InputTimer, Timer: "door-open", Received: now})
		}
	}
	if err := f.b.Process("cold", f.st, 0, now, works); err != nil {
		t.Fatal(err)
	}
	for _, w := range works {
		o := &w.Outcome
		if o.Failure != "" {
			t.Fatalf("%s: %s", w.Device, o.Failure)
		}
		if o.State != nil {
			f.states[w.Device] = o.State
		}
		for _, s := range o.Signals {
			f.log = append(f.log, fmt.Sprint(round, w.Device, s.Input, s.Rule, s.Raise, s.Text))
		}
		for _, tm := range o.Timers {
			f.log = append(f.log, fmt.Sprint(round, w.Device, tm.Name, tm.Due))
		}
	}
}

// The amnesia test: instances that are replaced between any two batches, batches that are split into many crossings, and
// an instance that lives for ever come to the same results, byte for byte.
func TestInstancesMayBeReplacedAtAnyTime(t *testing.T) {
	wasm := buildColdChain(t)
	config := `{"max": 9, "door_open_minutes": 2}`
	run := func(limits plugins.Limits, forget bool) *fleet {
		b := newBench(t, plugins.Config{Limits: limits})
		f := &fleet{b: b, st: b.stage(wasm, config), states: make(map[dunlin.DeviceID][]byte)}
		for round := range 24 {
			if forget {
				b.Remove(f.st.Hash)
			}
			f.turn(t, round, 12)
		}
		return f
	}
	lives := run(plugins.Limits{}, false)
	if s := fmt.Sprint(lives.log); !strings.Contains(s, "too-warm") || !strings.Contains(s, "door-open") {
		t.Fatalf("the story has no alert: %s", s)
	}
	for name, other := range map[string]*fleet{
		"replaced": run(plugins.Limits{}, true), "split": run(plugins.Limits{FrameBytes: 200}, false)} {
		if !reflect.DeepEqual(other.states, lives.states) || !reflect.DeepEqual(other.log, lives.log) {
			t.Errorf("%s instances: %d states, log %v\nwant %v", name, len(other.states), other.log, lives.log)
		}
	}
}

// A state that another plugin wrote, and a reading beyond float32, break nothing.
func TestStrangeStateAndReading(t *testing.T) {
	b := newBench(t, plugins.Config{})
	st := b.stage(buildColdChain(t), "")
	hostile := telemetry("liar", 1, []byte{1, 2, 3, 200, 200, 200, 255}, t0, dunlin.Record{Metric: "temp", Num: 9})
	hostile.Inputs[0].Records[0].Num = 1e300
	works := []*dunlin.Work{hostile, telemetry("fridge", 1, nil, t0, dunlin.Record{Metric: "temp", Num: 9})}
	process(t, b, st, t0, works...)
	if works[1].Outcome.Failure != "" || works[1].Outcome.State == nil {
		t.Errorf("the other device: %+v", works[1].Outcome)
	}
}

// More metric names than an instance is told at a time: all are forgotten and told anew.
func TestManyMetricNames(t *testing.T) {
	b := newBench(t, plugins.Config{})
	st := b.stage(buildColdChain(t), `{"samples": 1, "silent_minutes": 0}`)
	for i := range 50 {
		recs := []dunlin.Record{{Metric: "temp", Num: float64(4 + i%2*10)}}
		for j := range 200 {
			recs = append(recs, dunlin.Record{Metric: fmt.Sprintf("m%d", i*100+j), Unit: "Cel", Num: 1})
		}
		recs = append(recs, dunlin.Record{Metric: "temp", Num: float64(4 + i%2*10)})
		var state []byte
		w := telemetry("fridge", 1, state, t0, recs...)
		process(t, b, st, t0, w)
		if want := i % 2; w.Outcome.Failure != "" || len(w.Outcome.Signals) != want {
			t.Fatalf("round %d: %q, %d alerts, want %d", i, w.Outcome.Failure, len(w.Outcome.Signals), want)
		}
	}
}

// What goes into Pebble and the entry must not cost garbage for each reading.
func TestSteadyStateAllocatesLittle(t *testing.T) {
	b := newBench(t, plugins.Config{})
	st := b.stage(plugin(nil).build(), "")
	works := batchOf(100)
	process(t, b, st, t0, works...)
	perBatch := testing.AllocsPerRun(50, func() { process(t, b, st, t0, works...) })
	if perBatch > 10 { // states, 8 bytes each, in pieces of 512
		t.Errorf("%v allocations for 100 devices with 300 readings", perBatch)
	}
}

// Shards call at the same time, with different plugins and configurations, while plugins are installed and removed.
func TestConcurrentShards(t *testing.T) {
	var logged syncBuffer
	b := newBench(t, plugins.Config{Workers: 2, Limits: plugins.Limits{BadDevices: 1000}, Log: slog.New(slog.NewTextHandler(&logged, nil))})
	stages := []*dunlin.Stage{
		b.stage(plugin(code(unreachable)).build(), ""), b.stage(plugin(nil).build(), `{"a":1}`),
		b.stage(plugin(nil).build(), `{"a":2}`),
	}
	var wg sync.WaitGroup
	for i := range 4 {
		wg.Go(func() {
			for round := range 40 {
				works := append(batchOf(3), raw(fmt.Sprintf("poison-%d-%d", i, round), "x"))
				st := stages[(i+round)%len(stages)]
				if err := b.Process("d", st, 0, t0+dunlin.Time(round), works); err != nil {
					t.Error(err)
				}
				for k, w := range works[:3] {
					if w.Outcome.Failure != "" || sum(w.Outcome.State) != float64(3*k) {
						t.Errorf("%+v", w.Outcome)
					}
				}
				if i == 3 && round%10 == 9 {
					b.Remove(stages[1].Hash)
				}
			}
		})
	}
	wg.Wait()
	if n := strings.Count(logged.String(), "\n"); n > 60 {
		t.Errorf("%d log lines of a plugin that traps in each batch: the log is not limited\n%s", n, logged.String())
	}
}

// A plugin's log lines come with the device's outcome, as many as its allowance has.
func TestLogLinesAreLimited(t *testing.T) {
	b := newBench(t, plugins.Config{Limits: plugins.Limits{LogLinesPerSecond: 5}})
	records := abi.AppendText(nil, abi.KindLog, abi.LogInfo, "hello\nworld")
	records = abi.AppendText(records, abi.KindLog, abi.LogWarn, "look \xff")
	records = abi.AppendText(records, abi.KindLog, abi.LogDebug, "not this")
	m := plugin(emit(len(records)))
	m.data = records
	st := b.stage(m.build(), "")
	for i, want := range []string{"[hello world warning: look \uFFFD]", "[hello world]", "[]"} {
		w := raw("talker", "x")
		if process(t, b, st, t0, w); fmt.Sprint(w.Outcome.Logs) != want || w.Outcome.Failure != "" {
			t.Errorf("round %d: %q %q, want %s", i, w.Outcome.Logs, w.Outcome.Failure, want)
		}
	}
	w := raw("talker", "x")
	if process(t, b, st, t0+1e6, w); len(w.Outcome.Logs) != 3 {
		t.Errorf("a second later: %q", w.Outcome.Logs)
	}
}

// What a guest prints, by the log import or to standard error, is in the node's log; an import's lies are answered.
func TestPrintsAreLogged(t *testing.T) {
	var logged syncBuffer
	b := newBench(t, plugins.Config{Log: slog.New(slog.NewTextHandler(&logged, nil))})
	text := []byte("hello from the guest\n")
	m := plugin(code(
		i32c(1), i32c(dataAt), i32c(20), call(0), // log
		i32c(1), i32c(-8), i32c(1<<30), call(0), // log of what isn't there
		i32c(0), i32c(dataAt+6), mem(0x36, 0), i32c(4), i32c(14), mem(0x36, 0), // a vector at 0
		i32c(2), i32c(0), i32c(1), i32c(8), call(1), drop, // fd_write
		i32c(2), i32c(-1), i32c(1), i32c(8), call(1), drop,
	), imp{module: "dunlin_v1", name: "log", params: []byte{i32, i32, i32}}, wasiImport("fd_write", "iiii", true))
	m.data = text
	w := raw("talker", "x")
	process(t, b, b.stage(m.build(), ""), t0, w)
	got := logged.String()
	if w.Outcome.Failure != "" || !strings.Contains(got, `text="hello from the guest"`) || !strings.Contains(got, `text="from the guest"`) {
		t.Errorf("%q\n%s", w.Outcome.Failure, got)
	}
}

// A trap's reason has the line that a run-time library printed about it, as Go does before it aborts.
func TestTrapTellsThePanic(t *testing.T) {
	b := newBench(t, plugins.Config{})
	text := []byte("starting\npanic: boom\n\ngoroutine 5 [running]:\n")
	m := plugin(code(
		i32c(0), i32c(dataAt), mem(0x36, 0), i32c(4), i32c(int32(len(text))), mem(0x36, 0),
		i32c(2), i32c(0), i32c(1), i32c(8), call(0), drop, unreachable,
	), wasiImport("fd_write", "iiii", true))
	m.data = text
	w := raw("boomer", "x")
	process(t, b, b.stage(m.build(), ""), t0, w)
	if got := w.Outcome.Failure; !strings.HasPrefix(got, "trap: unreachable in ") || !strings.HasSuffix(got, ": panic: boom") {
		t.Errorf("failure %q", got)
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}
