package dunlin

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// drawChanges makes a device's history: n changes with inputs, plugins' states, alerts, timers and commands with their answers.
func drawChanges(t *rapid.T, n int) []Change {
	key := DeviceKey{"t", "d"}
	var out []Change
	version := uint64(0)
	now := Time(1_700_000_000_000_000)
	var open []string
	for range n {
		now += Time(rapid.Int64Range(0, int64(3*time.Minute/time.Microsecond)).Draw(t, "pause"))
		c := Change{DeviceKey: key, Domain: DomainID(rapid.SampledFrom([]string{"", "a", "b"}).Draw(t, "domain"))}
		for range rapid.IntRange(1, 3).Draw(t, "inputs") {
			version++
			in := Input{Kind: InputTelemetry, Received: now, MessageID: rapid.Uint64Range(0, 40).Draw(t, "id")}
			if rapid.IntRange(0, 4).Draw(t, "timer") == 0 {
				in = Input{Kind: InputTimer, Received: now, Timer: rapid.SampledFrom([]string{"x", "y"}).Draw(t, "name")}
			} else {
				in.Records = []Record{{Metric: rapid.SampledFrom([]string{"m1", "m2", "m3"}).Draw(t, "metric"), Kind: Number,
					Time: now + Time(rapid.Int64Range(-5, 5).Draw(t, "skew")), Num: float64(version)}}
			}
			c.Inputs = append(c.Inputs, in)
		}
		for _, id := range open {
			if rapid.IntRange(0, 3).Draw(t, "answer") == 0 {
				version++
				c.Inputs = append(c.Inputs, Input{Kind: InputResult, Received: now + 100, Timer: id,
					Flags: rapid.SampledFrom([]InputFlags{0, FlagTimedOut}).Draw(t, "timed out")})
				open = slices.DeleteFunc(slices.Clone(open), func(o string) bool { return o == id })
			}
		}
		c.Version = version
		for i := range rapid.IntRange(0, 2).Draw(t, "commands") {
			c.Commands = append(c.Commands, Command{ID: CommandID(version, i), Name: "x", At: now, Deadline: now + 1})
			open = append(open, CommandID(version, i))
		}
		if rapid.Bool().Draw(t, "state") {
			c.Stages = []StageResult{{Stage: rapid.Uint8Range(0, 1).Draw(t, "stage"), StateSet: true, State: []byte(fmt.Sprint(version)),
				Made: Made{Module: rapid.Uint32Range(0, 2).Draw(t, "module")}}}
		}
		if rapid.Bool().Draw(t, "alert") {
			c.Alerts = []Alert{{Device: "d", Rule: rapid.SampledFrom([]string{"r1", "r2"}).Draw(t, "rule"), Seq: version,
				State: rapid.SampledFrom([]AlertState{AlertRaised, AlertCleared}).Draw(t, "alertState")}}
		}
		if rapid.Bool().Draw(t, "set") {
			c.Timers = []TimerSet{{Name: rapid.SampledFrom([]string{"x", "y"}).Draw(t, "timerName"), Due: Time(rapid.Int64Range(0, 2).Draw(t, "due"))}}
		}
		out = append(out, c)
	}
	return out
}

// fold merges deltas pairwise in a random order before the last, final fold: what a store may do with its operands.
func fold(t *rapid.T, deltas []DeviceState) DeviceState {
	for len(deltas) > 1 {
		i := rapid.IntRange(0, len(deltas)-2).Draw(t, "pair")
		if rapid.Bool().Draw(t, "stop") {
			break
		}
		deltas[i].Merge(&deltas[i+1], false)
		deltas = slices.Delete(deltas, i+1, i+2)
	}
	var s DeviceState
	for i := range deltas {
		s.Merge(&deltas[i], true)
	}
	return s
}

func deltasOf(changes []Change) []DeviceState {
	var out []DeviceState
	for i := range changes {
		d := DeltaOf(&changes[i])
		d.Alerts, d.Reported = slices.Clone(d.Alerts), slices.Clone(d.Reported) // Merge takes memory over
		out = append(out, d)
	}
	return out
}

// normal orders what has no order of its own.
func normal(s DeviceState) DeviceState {
	slices.SortFunc(s.Reported, func(a, b Record) int { return strings.Compare(a.Metric, b.Metric) })
	slices.SortFunc(s.Alerts, func(a, b Alert) int { return strings.Compare(a.Rule, b.Rule) })
	slices.SortFunc(s.Timers, func(a, b TimerSet) int { return strings.Compare(a.Name, b.Name) })
	slices.SortFunc(s.Plugins, func(a, b StageState) int { return int(a.Stage) - int(b.Stage) })
	slices.SortFunc(s.Commands, func(a, b Command) int { return strings.Compare(a.ID, b.ID) })
	for i := range s.Timers {
		s.Timers[i].Was = 0 // what a timer replaced depends on nothing but its change
	}
	return s
}

// However a store groups its deltas, the state is the one that applying change by change gives.
func TestFoldingDeltasIsAssociative(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		changes := drawChanges(t, rapid.IntRange(1, 12).Draw(t, "changes"))
		var want DeviceState
		for _, d := range deltasOf(changes) {
			want.Merge(&d, true)
		}
		got := fold(t, deltasOf(changes))
		got, want = normal(got), normal(want)
		if fmt.Sprintf("%+v", fields(got)) != fmt.Sprintf("%+v", fields(want)) {
			t.Fatalf("grouped:\n%+v\none by one:\n%+v", fields(got), fields(want))
		}
		for _, a := range got.Alerts {
			if a.State == AlertCleared {
				t.Fatalf("a cleared alert stayed: %+v", a)
			}
		}
		for _, c := range got.Commands {
			if c.Deadline == 0 {
				t.Fatalf("an answered command stayed: %+v", c)
			}
		}
		if len(got.Seen) > SeenMax {
			t.Fatalf("%d messages in the window", len(got.Seen))
		}
	})
}

// fields prints a state whole: its own String is its key's.
func fields(s DeviceState) []any {
	v := reflect.ValueOf(s)
	out := make([]any, v.NumField())
	for i := range out {
		out[i] = v.Field(i).Interface()
	}
	return out
}

// One reading of a clock a year ahead does not stand in the twin for a year: the next sane one replaces it.
func TestAClockAheadDoesNotFreezeTheTwin(t *testing.T) {
	key, now, year := DeviceKey{"t", "d"}, Time(1_700_000_000_000_000), Time(365*24*time.Hour/time.Microsecond)
	change := func(version uint64, received, at Time, v float64) *Change {
		return &Change{DeviceKey: key, Version: version, Inputs: []Input{{Kind: InputTelemetry, Received: received,
			Records: []Record{{Metric: "m", Kind: Number, Time: at, Num: v}}}}}
	}
	var s DeviceState
	for _, c := range []*Change{change(1, now, now+year, 1), change(2, now+1000, now+1000, 2), change(3, now+2000, now-year, 3)} {
		d := DeltaOf(c)
		s.Merge(&d, true)
	}
	if r := s.Reported[0]; len(s.Reported) != 1 || r.Num != 2 || r.Time != now+1000 {
		t.Errorf("got %+v", s.Reported)
	}
}

func TestSeenKeepsTheNewestWhateverTheirAge(t *testing.T) {
	var s DeviceState
	at := func(min int) Time { return Time(0).Add(time.Duration(min) * time.Minute) }
	for i := range 20 {
		s.Merge(&DeviceState{DeviceKey: DeviceKey{"t", "d"}, Seen: []SeenMessage{{ID: uint64(i + 1), At: at(i * 60), Seq: uint64(i)}}}, true)
	}
	if len(s.Seen) != SeenMin || s.Seen[SeenMin-1].ID != 20 {
		t.Errorf("of messages an hour apart: %+v", s.Seen)
	}
	if m, ok := s.Lookup(20); !ok || m.Seq != 19 {
		t.Errorf("got %+v, %v", m, ok)
	}
	if _, ok := s.Lookup(1); ok {
		t.Error("message 1 is still there")
	}
	for i := range 100 {
		s.Merge(&DeviceState{Seen: []SeenMessage{{ID: uint64(1000 + i), At: at(2000)}}}, true)
	}
	if len(s.Seen) != SeenMax {
		t.Errorf("of messages at once: %d", len(s.Seen))
	}
}
