package main

import (
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	sdk "github.com/dunlin-iot/dunlin/sdk/go"
	"github.com/dunlin-iot/dunlin/sdk/go/sdktest"
)

// told is what results say of alerts: +rule raised, −rule cleared.
func told(t testing.TB, results ...sdktest.Result) string {
	t.Helper()
	var words []string
	for _, r := range results {
		if r.Failure != "" || r.Refused != "" {
			t.Fatalf("failure: %s%s", r.Failure, r.Refused)
		}
		for _, a := range r.Alerts {
			sign := "-"
			if a.Raise {
				sign = "+"
			}
			words = append(words, sign+a.Rule)
		}
	}
	return strings.Join(words, " ")
}

// step is a reading after a while, and what is told of it and of the timers on the way.
type step struct {
	after time.Duration
	value float64
	want  string
}

func play(t *testing.T, h *sdktest.Harness, d *sdktest.Device, metric string, steps []step) {
	t.Helper()
	for i, s := range steps {
		results := h.Advance(s.after)
		if !math.IsNaN(s.value) {
			results = append(results, d.Send(sdktest.Number(metric, s.value)))
		}
		if got := told(t, results...); got != s.want {
			t.Fatalf("step %d, %s = %v: told %q, want %q", i+1, metric, s.value, got, s.want)
		}
	}
}

var nothing = math.NaN() // no reading, only time

func TestThresholdHoldsAndHasAHysteresis(t *testing.T) {
	h := sdktest.New(t, newPlugin, `{"alarms":[{"type":"threshold","name":"too-warm","metric":"temp","above":8,"clear":7,"for":"10m","severity":"major"}]}`)
	d := h.Device("fridge-1")
	const min = time.Minute
	play(t, h, d, "temp", []step{
		{0, 4, ""}, {min, 9, ""}, {5 * min, 9, ""}, {min, 8, ""}, // 6 minutes are not enough
		{min, 8.5, ""}, {9 * min, 9.5, ""}, {min, 9.5, "+too-warm"}, // 10 minutes by the timer, which comes first
		{min, 7.5, ""}, {min, 12, ""}, {min, 7, ""}, {min, 6.9, "-too-warm"},
		{min, 9, ""}, {10 * min, nothing, "+too-warm"}, {min, 1, "-too-warm"},
	})
	if len(d.State()) != 1 {
		t.Errorf("while all is well the state is %x", d.State())
	}
	d.Send(sdktest.Number("temp", 9))
	h.Advance(10 * min)
	a, ok := d.Active("too-warm", "")
	if !ok || a.Severity != sdk.Major || a.Value != 9 || a.Text != "temp is 9, above 8, for 10m" {
		t.Errorf("active alert %+v, %v", a, ok)
	}
}

// Old readings that come in one message are taken by their own times: what they show for so long is so.
func TestHoldTimesByTheReadingsTimes(t *testing.T) {
	h := sdktest.New(t, newPlugin, `{"alarms":[{"type":"threshold","metric":"temp","above":8,"for":"10m","clear_for":"2m","text":"{value} °C"}]}`)
	d := h.Device("fridge-1")
	at := func(minutes time.Duration, v float64) sdk.Derived {
		return sdk.Derived{Metric: "temp", Value: v, Time: h.Now().Add(minutes * time.Minute)}
	}
	h.Advance(time.Hour)
	if got := told(t, d.Send(at(-60, 9), at(-50, 9.5))); got != "+threshold-temp" {
		t.Fatalf("ten minutes of the past: %q", got)
	}
	if a, _ := d.Active("threshold-temp", ""); a.Text != "9.5 °C" || a.Severity != sdk.Warning || d.Timer("alarm:threshold-temp") != 0 {
		t.Errorf("alert %+v, timer %v", a, d.Timer("alarm:threshold-temp"))
	}
	if got := told(t, d.Send(at(-55, 1), at(-53, 1))); got != "" {
		t.Fatalf("readings older than the alert: %q", got)
	}
	if got := told(t, d.Send(at(-40, 1), at(-39, 9), at(-38, 1))); got != "" {
		t.Fatalf("a break in what clears: %q", got)
	}
	if got := told(t, h.Advance(2*time.Minute)...); got != "-threshold-temp" {
		t.Fatalf("two minutes later: %q", got)
	}
	// A clock that is ahead makes nothing wait for its time.
	if got := told(t, d.Send(at(600, 9)), d.Send(at(0, 9))); got != "" {
		t.Fatalf("a clock ahead: %q", got)
	}
	if got := told(t, h.Advance(10*time.Minute)...); got != "+threshold-temp" {
		t.Fatalf("ten minutes later: %q", got)
	}
}

func TestThresholdsBelowAndOutside(t *testing.T) {
	h := sdktest.New(t, newPlugin, `{"alarms":[
		{"type":"threshold","name":"low","metric":"level","below":10,"clear":15},
		{"type":"threshold","name":"outside","metric":"level","below":20,"above":80,"margin":5}]}`)
	play(t, h, h.Device("tank"), "level", []step{
		{0, 50, ""}, {1, 19, "+outside"}, {1, 24, ""}, {1, 9, "+low"}, {1, 15, ""}, {1, 15.1, "-low"},
		{1, 26, "-outside"}, {1, 81, "+outside"}, {1, 75, ""}, {1, 10, ""}, {1, 50, "-outside"},
	})
}

func TestRateOfChange(t *testing.T) {
	h := sdktest.New(t, newPlugin, `{"alarms":[
		{"type":"rate","name":"any","metric":"level","per_minute":5,"clear":1},
		{"type":"rate","name":"leak","metric":"level","per_minute":5,"direction":"down"},
		{"type":"rate","name":"slow","metric":"level","per_minute":5,"over":"10m"}]}`)
	d := h.Device("tank")
	const min = time.Minute
	play(t, h, d, "level", []step{
		{0, 100, ""}, {min, 104, ""}, {min, 110, "+any"}, {min, 114, ""}, {min, 114.5, "-any"},
		{min, 100, "+any +leak"}, {0, 0, ""}, {min, 100, "-any -leak"}, // 0 came in the same moment: no time, no rate
		{3 * min, 119, "+any"}, {min, 160, "+slow"}, // 100 to 160 in ten minutes
	})
	if a, _ := d.Active("any", ""); a.Text != "level changes by 6.33333 a minute" {
		t.Errorf("alert %+v", a)
	}
}

func TestDeviationFromWhatIsUsual(t *testing.T) {
	h := sdktest.New(t, newPlugin, `{"alarms":[{"type":"deviation","name":"odd","metric":"power","window":60,"sigmas":4}]}`)
	d := h.Device("press")
	send := func(v float64) string { h.Advance(time.Second); return told(t, d.Send(sdktest.Number("power", v))) }
	usual := func(i int) float64 { return 100 + 3*math.Sin(float64(i)) }
	for i := range 500 {
		if got := send(usual(i)); got != "" {
			t.Fatalf("usual reading %d: %q", i, got)
		}
	}
	if got := send(130); got != "+odd" {
		t.Fatalf("a spike: %q", got)
	}
	if got := send(101); got != "-odd" {
		t.Fatalf("back: %q", got)
	}
	if got := send(112); got != "+odd" {
		t.Fatalf("a smaller one right behind it, which a widened deviation would hide: %q", got)
	}
	n := 0
	for send(300+usual(n)) == "" {
		if n++; n > 300 {
			t.Fatal("what stays different never becomes usual")
		}
	}
	if n < 10 {
		t.Errorf("another level is usual after %d readings", n)
	}
	if len(d.State()) > 26 {
		t.Errorf("the state has %d bytes", len(d.State()))
	}
}

// A metric that stands still has no deviation at all, so that anything is far from it.
func TestDeviationOfWhatStandsStill(t *testing.T) {
	h := sdktest.New(t, newPlugin, `{"alarms":[{"type":"deviation","name":"odd","metric":"x","window":8},
		{"type":"deviation","name":"far","metric":"x","window":8,"at_least":0.5}]}`)
	d := h.Device("d")
	for range 50 {
		play(t, h, d, "x", []step{{time.Second, 0.1, ""}})
	}
	play(t, h, d, "x", []step{{1, 0.1001, "+odd"}, {1, 0.1, "-odd"}, {1, 5, "+odd +far"}})
}

func TestAbsenceIsToldOnceAndItsTimerIsLeftAlone(t *testing.T) {
	h := sdktest.New(t, newPlugin, `{"alarms":[{"type":"absence","after":"15m","severity":"critical"},{"type":"absence","after":"1h","metric":"temp"}]}`)
	d := h.Device("fridge-1")
	d.Send(sdktest.Number("temp", 4))
	armed := d.Timer("alarm:absence")
	for range 80 {
		h.Advance(10 * time.Second)
		d.Send(sdktest.Number("humidity", 4))
		if d.Timer("alarm:absence") != armed {
			t.Fatal("a reading moved the timer")
		}
	}
	last := h.Now()
	if got := told(t, h.Advance(14*time.Minute)...); got != "" || d.Timer("alarm:absence") != last.Add(15*time.Minute) {
		t.Fatalf("%q, timer %v", got, d.Timer("alarm:absence").Std())
	}
	if got := told(t, h.Advance(time.Minute)...); got != "+absence" {
		t.Fatalf("after 15 silent minutes: %q", got)
	}
	if got := told(t, h.Advance(24*time.Hour)...); got != "+absence-temp" {
		t.Fatalf("a day later: %q", got)
	}
	if got := told(t, d.SendRaw(42, []byte{1})); got != "-absence" {
		t.Fatalf("a payload: %q", got)
	}
	if got := told(t, d.Send(sdktest.Number("temp", 4))); got != "-absence-temp" {
		t.Fatalf("a temperature: %q", got)
	}
}

func TestADeviceThatWasRegisteredAndNeverSends(t *testing.T) {
	h := sdktest.New(t, newPlugin, `{"alarms":[{"type":"absence","after":"15m"}]}`)
	d := h.Device("fridge-1")
	d.Lifecycle(`{"event":"registered","domain":"cold"}`)
	if got := told(t, h.Advance(15*time.Minute)...); got != "+absence" {
		t.Fatalf("never heard of: %q", got)
	}
	if got := told(t, d.Lifecycle(`{"event":"changed"}`)); got != "" || d.Timer("alarm:absence") != 0 {
		t.Fatalf("a label more: %q", got)
	}
}

func TestStates(t *testing.T) {
	h := sdktest.New(t, newPlugin, `{"alarms":[
		{"type":"state","name":"open","metric":"door","is":true,"for":"2m"},
		{"type":"state","name":"fault","metric":"mode","is":"fault","severity":"critical"},
		{"type":"state","name":"code","metric":"code","is":7},
		{"type":"state","name":"moved","metric":"mode","changes":true,"clear_for":"1m"}]}`)
	d := h.Device("press")
	say := func(want string, rs ...sdk.Derived) {
		t.Helper()
		if got := told(t, append(h.Advance(time.Second), d.Send(rs...))...); got != want {
			t.Fatalf("told %q, want %q", got, want)
		}
	}
	say("", sdktest.Bool("door", true), sdktest.Text("mode", "idle"))
	say("", sdktest.Bool("door", false))
	say("", sdktest.Number("door", 1))
	if got := told(t, h.Advance(2*time.Minute)...); got != "+open" {
		t.Fatalf("open for two minutes: %q", got)
	}
	say("-open +fault +moved", sdktest.Bool("door", false), sdktest.Text("mode", "fault"))
	say("", sdktest.Text("mode", "fault"), sdktest.Number("mode", 1)) // a number is no text, and a change
	say("-fault", sdktest.Text("mode", "idle"))
	say("", sdktest.Text("mode", "idle"))
	if got := told(t, h.Advance(time.Minute)...); got != "-moved" {
		t.Fatalf("unchanged for a minute: %q", got)
	}
	say("+code", sdktest.Number("code", 7))
	say("", sdktest.Bool("door", true), sdktest.Number("code", 7))
}

// What alarms know survives a change of the others; one that is taken away is cleared.
func TestAnotherConfiguration(t *testing.T) {
	before := sdktest.New(t, newPlugin, `{"alarms":[{"type":"threshold","name":"warm","metric":"temp","above":8},
		{"type":"threshold","name":"hot","metric":"temp","above":20},{"type":"absence","after":"15m"},{"type":"rate","metric":"temp","per_minute":100}]}`)
	old := before.Device("d")
	old.Send(sdktest.Number("temp", 30))
	after := sdktest.New(t, newPlugin, `{"alarms":[{"type":"rate","metric":"temp","per_minute":1},{"type":"threshold","name":"hot","metric":"temp","above":25,"severity":"major"},
		{"type":"absence","after":"5m"}]}`)
	d := after.Device("d")
	d.HasStateOf(1, old.State())
	d.Reconfigured()
	after.Advance(time.Minute)
	if got := told(t, d.Send(sdktest.Number("temp", 28))); got != "-warm +rate-temp" {
		t.Fatalf("told %q", got)
	}
	if got := d.Timer("alarm:absence"); got != sdktest.Start.Add(5*time.Minute) {
		t.Errorf("the timer of absence stands at %v", got.Std())
	}
	if got := told(t, d.Send(sdktest.Number("temp", 24))); got != "-hot" {
		t.Fatalf("told %q", got)
	}
}

func TestConfigurations(t *testing.T) {
	for config, want := range map[string]string{
		``:               "",
		`{"alarms":[]}`:  "",
		`{"alarms":{}}`:  "setting alarms must be a list of objects, not {}",
		`{"alarms":[1]}`: "setting alarms must be a list of objects, not [1]",
		`{"alarms":[{"type":"threshold","metric":"t","above":"8"}]}`: `setting alarms 1.above must be a number, not "8"`,
		`{"alarms":[{}]}`:                                                               `alarm 1: type must be threshold, rate, deviation, absence or state, not ""`,
		`{"alarms":[{"type":"threshold"}]}`:                                             "alarm 1: metric is missing: which readings to look at",
		`{"alarms":[{"type":"threshold","metric":"t"}]}`:                                "alarm 1: above or below is missing: with both, values outside of them are the condition",
		`{"alarms":[{"type":"threshold","metric":"t","above":1,"clear":2}]}`:            "alarm 1: clear must not be greater than above",
		`{"alarms":[{"type":"threshold","metric":"t","below":1,"clear":0}]}`:            "alarm 1: clear must not be less than below",
		`{"alarms":[{"type":"threshold","metric":"t","above":1,"below":0,"clear":0}]}`:  "alarm 1: clear does not say on which side: with above and below use margin",
		`{"alarms":[{"type":"threshold","metric":"t","above":1,"below":0,"margin":1}]}`: "alarm 1: margin is more than half of what lies between below and above: the alarm would never be cleared",
		`{"alarms":[{"type":"threshold","metric":"t","above":1,"name":"a b"}]}`:         `alarm 1: name must be 1 to 64 of A-Z a-z 0-9 . _ : ~ @ -, not "a b"`,
		`{"alarms":[{"type":"threshold","metric":"t","above":1,"severity":"bad"}]}`:     "alarm 1: severity must be info, warning, major or critical",
		`{"alarms":[{"type":"threshold","metric":"t","above":1,"for":"1"}]}`:            `setting alarms 1.for must be a time span as 90s, 15m or 24h, not "1"`,
		`{"alarms":[{"type":"absence","after":"1m"},{"type":"absence","after":"2m"}]}`:  "alarms 1 and 2 are both called absence: give one of them another name",
		`{"alarms":[{"type":"absence"}]}`:                                               "alarm 1: after must be 1s to 2160h: how long nothing may be heard",
		`{"alarms":[{"type":"rate","metric":"t","per_minute":"5"}]}`:                    `setting alarms 1.per_minute must be a number, not "5"`,
		`{"alarms":[{"type":"rate","metric":"t"}]}`:                                     "alarm 1: per_minute must be more than 0: the change in a minute beyond which the alarm is raised",
		`{"alarms":[{"type":"deviation","metric":"t","window":1}]}`:                     "alarm 1: window must be 4 to 100000 readings",
		`{"alarms":[{"type":"state","metric":"t"}]}`:                                    "alarm 1: is or changes: true is missing, and only one of them: the value that is the condition, or that it is another than before",
		`{"alarms":[{"type":"state","metric":"t","is":[1]}]}`:                           "setting alarms 1.is must be a number, not [1]",
		`{"alarms":[{"type":"state","metric":"a/b","is":null,"changes":true}]}`:         "",
		`{"alarms":[` + strings.Repeat(`{"type":"absence","after":"1m"},`, 32) + `{}]}`: "setting alarms has 33 alarms, at most 32 are allowed",
	} {
		if got := sdktest.Configure(newPlugin, config); got != want {
			t.Errorf("%s: %q, want %q", config, got, want)
		}
	}
}

// all has an alarm of each type and option.
const all = `{"alarms":[{"type":"threshold","name":"warm","metric":"a","above":8,"clear":7,"for":"10s"},{"type":"threshold","name":"out","metric":"a","above":9,"below":-9,"margin":2,"clear_for":"5s"},
	{"type":"rate","metric":"a","per_minute":60,"for":"2s"},{"type":"deviation","metric":"b","window":4,"sigmas":2,"clear":1},{"type":"absence","after":"20s"},{"type":"absence","metric":"b","after":"30s"},
	{"type":"state","metric":"c","is":true,"for":"3s"},{"type":"state","name":"moved","metric":"c","changes":true,"clear_for":"4s"}]}`

// Whatever comes, an alert is raised when it is not and cleared when it is, a threshold's alert says what the last readings said,
// the state is small, and a new instance answers as an old one (sdktest sees to that).
func TestLaws(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		h := sdktest.New(t, newPlugin, all)
		d := h.Device("d")
		active := map[string]bool{}
		look := func(results ...sdktest.Result) {
			for _, r := range results {
				if r.Failure != "" || r.Refused != "" {
					rt.Fatalf("failure: %s%s", r.Failure, r.Refused)
				}
				for _, a := range r.Alerts {
					if a.Raise == active[a.Rule] {
						rt.Fatalf("%s is told twice: raise %v", a.Rule, a.Raise)
					}
					active[a.Rule] = a.Raise
				}
			}
			if len(d.State()) > 400 {
				rt.Fatalf("the state has %d bytes", len(d.State()))
			}
		}
		lastHeard := h.Now()
		for range rapid.IntRange(1, 40).Draw(rt, "inputs") {
			look(h.Advance(time.Duration(rapid.Int64Range(0, 40_000).Draw(rt, "ms")) * time.Millisecond)...)
			if h.Now().Sub(lastHeard) >= 20*time.Second && lastHeard != sdktest.Start && !active["absence"] {
				rt.Fatalf("silent for %v and nothing told", h.Now().Sub(lastHeard))
			}
			old := sdk.Time(0)
			if rapid.IntRange(0, 4).Draw(rt, "late") == 0 {
				old = h.Now().Add(-time.Duration(rapid.Int64Range(-5, 60).Draw(rt, "age")) * time.Second)
			}
			v := rapid.Float64Range(-12, 12).Draw(rt, "v")
			r := sdk.Derived{Metric: rapid.SampledFrom([]string{"a", "b", "c", "d"}).Draw(rt, "metric"), Value: v, Time: old}
			if r.Metric == "c" {
				r = sdktest.Bool("c", v > 0)
				r.Time = old
			}
			look(d.Send(r))
			lastHeard = h.Now()
			if active["absence"] {
				rt.Fatal("heard of, and absent")
			}
		}
		look(h.Advance(time.Hour)...)
		if lastHeard != sdktest.Start && !active["absence"] {
			rt.Fatal("silent for an hour and nothing told")
		}
		if n := len(d.State()); n == 0 {
			rt.Fatal("no state")
		}
	})
}

// No state makes the plugin fail: one that another plugin made is none.
func FuzzState(f *testing.F) {
	h := sdktest.New(f, newPlugin, all)
	d := h.Device("d")
	f.Add([]byte{})
	for i := range 20 {
		d.Send(sdktest.Number("a", float64(i)), sdktest.Number("b", float64(i*i)), sdktest.Bool("c", i%3 == 0))
		h.Advance(time.Second)
		f.Add(append([]byte(nil), d.State()...))
	}
	f.Fuzz(func(t *testing.T, state []byte) {
		h := sdktest.New(t, newPlugin, all)
		d := h.Device("d")
		d.HasStateOf(1, state)
		d.Reconfigured()
		for i := range 3 {
			if r := d.Send(sdktest.Number("a", 9), sdktest.Number("b", float64(i)), sdktest.Bool("c", true)); r.Failure != "" {
				t.Fatal(r.Failure)
			}
			h.Advance(time.Second)
		}
		p := &plugin{}
		p.alarms = []alarm{{kind: rate, id: 1}}
		p.mem = make([]memory, 1)
		p.load(state)
		if again := p.save(); len(again) > 0 {
			p.load(again)
			if b := p.save(); string(b) != string(again) {
				t.Fatalf("%x is read as %x", again, b)
			}
		}
	})
}
