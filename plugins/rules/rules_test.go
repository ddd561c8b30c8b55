package rules

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"

	"github.com/dunlin-iot/dunlin"
)

// TestStories plays rules on one device: testdata/*.txt. Lines of a story are "TIME metric=value …" or "TIME" alone, which lets
// timers fire until then; "new" begins with an instance that knows only the state.
func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata", func(t *testing.T, path string) {
		d := &stage{t: t}
		datadriven.RunTest(t, path, func(t *testing.T, td *datadriven.TestData) string {
			switch td.Cmd {
			case "rules":
				set, err := Parse([]byte(td.Input))
				if err != nil {
					return err.Error() + "\n"
				}
				d.set = set
				return "metrics: " + strings.Join(set.Metrics(), " ") + "\n"
			case "play":
				return d.play(td.Input)
			}
			return "unknown command"
		})
	})
}

// stage is a device in a stage of rules, with its timers.
type stage struct {
	t      *testing.T
	set    *Set
	state  []byte
	timers []dunlin.TimerSet
	out    strings.Builder
}

func at(t *testing.T, s string) dunlin.Time {
	d, err := time.ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return dunlin.Time(1e15).Add(d)
}

func (d *stage) play(input string) string {
	d.out.Reset()
	for line := range strings.Lines(input) {
		words := strings.Fields(line)
		if len(words) == 0 {
			continue
		}
		now := at(d.t, words[0])
		d.fire(now)
		if len(words) == 1 {
			continue
		}
		in := dunlin.Input{Kind: dunlin.InputTelemetry, Received: now}
		for _, w := range words[1:] {
			m, v, _ := strings.Cut(w, "=")
			r := dunlin.Record{Metric: m, Time: now, Kind: dunlin.Number}
			if m, ago, late := strings.Cut(m, "@"); late {
				r.Metric, r.Time = m, at(d.t, ago)
			}
			if _, err := fmt.Sscan(v, &r.Num); err != nil {
				switch v {
				case "true", "false":
					r.Kind, r.Num = dunlin.Boolean, map[string]float64{"true": 1}[v]
				default:
					r.Kind, r.Num, r.Str = dunlin.Text, 0, v
				}
			}
			in.Records = append(in.Records, r)
		}
		d.turn(now, in)
	}
	return d.out.String()
}

func (d *stage) fire(until dunlin.Time) {
	for {
		first := -1
		for i, t := range d.timers {
			if t.Due <= until && (first < 0 || t.Due < d.timers[first].Due) {
				first = i
			}
		}
		if first < 0 {
			return
		}
		timer := d.timers[first]
		d.timers = append(d.timers[:first], d.timers[first+1:]...)
		d.turn(timer.Due, dunlin.Input{Kind: dunlin.InputTimer, Received: timer.Due, Timer: timer.Name})
	}
}

func (d *stage) turn(now dunlin.Time, in dunlin.Input) {
	w := &dunlin.Work{DeviceKey: dunlin.DeviceKey{Device: "d1"}, State: d.state, Inputs: []dunlin.Input{in}}
	d.set.Run("s", w)
	say := func(format string, args ...any) {
		fmt.Fprintf(&d.out, "%v: "+format+"\n", append([]any{now.Sub(dunlin.Time(1e15))}, args...)...)
	}
	if w.Outcome.Failure != "" {
		say("failure: %s", w.Outcome.Failure)
	}
	for _, r := range w.Outcome.Refused {
		say("input %d refused: %s", r.Input, r.Reason)
	}
	for _, s := range w.Outcome.Signals {
		what, v := "clear", "-"
		if s.Raise {
			what = "raise " + s.Severity.String()
		}
		if s.Value != nil {
			v = fmt.Sprint(*s.Value)
		}
		say("%s %s value %s %q", what, s.Rule, v, s.Text)
	}
	for _, t := range w.Outcome.Timers {
		for i := range d.timers {
			if d.timers[i].Name == t.Name {
				d.timers = append(d.timers[:i], d.timers[i+1:]...)
				break
			}
		}
		if t.Due == 0 {
			say("timer %s off", t.Name)
			continue
		}
		say("timer %s at %v", t.Name, t.Due.Sub(dunlin.Time(1e15)))
		d.timers = append(d.timers, t)
	}
	if w.Outcome.State != nil {
		d.state = w.Outcome.State
	}
}

// FuzzParse: whatever is written, the answer is a set or an error; and a set runs.
func FuzzParse(f *testing.F) {
	for _, s := range []string{`[{"name":"a","when":"temp > 8"}]`, `[{"name":"a","when":"value[\"x/y\"] > 1 && has(value.z)","for":"10m","text":"{x/y}"}]`,
		`[{"name":"a","when":"per_minute[\"x\"] > 1 ? true : now.getHours() > 8","value":"x * 2"}]`, `[]`, `{`} {
		f.Add([]byte(s), []byte{})
	}
	doc, err := os.ReadFile("testdata/hold.txt")
	if err == nil {
		f.Add(doc, []byte{1, 0, 0})
	}
	f.Fuzz(func(t *testing.T, doc, state []byte) {
		set, err := Parse(doc)
		if err != nil {
			return
		}
		w := &dunlin.Work{State: state, Inputs: []dunlin.Input{{Kind: dunlin.InputTelemetry, Received: 1e15}}}
		for i, m := range set.Metrics() {
			w.Inputs[0].Records = append(w.Inputs[0].Records, dunlin.Record{Metric: m, Time: 1e15, Kind: dunlin.Number, Num: float64(i)})
		}
		set.Run("s", w)
		if len(w.Outcome.State) > 64<<10 {
			t.Errorf("a state of %d bytes", len(w.Outcome.State))
		}
	})
}

// FuzzState: a state is read back, or refused.
func FuzzState(f *testing.F) {
	set, err := Parse([]byte(`[{"name":"a","when":"temp > 8","for":"10m"},{"name":"b","when":"door && mode == 'x'"}]`))
	if err != nil {
		f.Fatal(err)
	}
	f.Add([]byte{1, 0, 0})
	f.Fuzz(func(t *testing.T, state []byte) {
		m, err := set.load(state)
		if err != nil || len(state) == 0 {
			return
		}
		once := set.save(m)
		again, err := set.load(once)
		if err != nil || string(set.save(again)) != string(once) {
			t.Errorf("state %x is read as %x, %v", state, once, err)
		}
	})
}

func BenchmarkThreshold(b *testing.B) {
	set, err := Parse([]byte(`[{"name":"too-warm","when":"temp > 8","clear":"temp < 7"}]`))
	if err != nil {
		b.Fatal(err)
	}
	w := &dunlin.Work{Inputs: []dunlin.Input{{Kind: dunlin.InputTelemetry, Records: []dunlin.Record{{Metric: "temp", Kind: dunlin.Number, Num: 5}}}}}
	b.ReportAllocs()
	for b.Loop() {
		w.Inputs[0].Records[0].Time++
		set.Run("s", w)
		if w.Outcome.State != nil {
			w.State = w.Outcome.State
		}
	}
}
