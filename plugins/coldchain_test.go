package plugins_test

import (
	"fmt"
	"testing"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins"
)

// The example plugin as a person would run it: built from source, checked as an upload is, alerting once.
func TestColdChainAlertsOnce(t *testing.T) {
	b := newBench(t, plugins.Config{})
	wasm := buildColdChain(t)
	rep, err := b.Check(t.Context(), wasm)
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%+v", *rep)
	if rep.Language != "Go go1.26.8" && rep.Language == "" || rep.FuelPerInput <= 0 || rep.Note != "" {
		t.Errorf("report %+v", rep)
	}
	st := b.stage(wasm, `{"max": 8}`)
	var state []byte
	var story []string
	for i, temp := range []float64{9, 9, 9, 9, 9, 9, 9, 5, 5, 5, 5, 5, 5} {
		now := t0 + dunlin.Time(i)*60e6
		w := telemetry("fridge-1", uint64(i+1), state, now, dunlin.Record{Metric: "temp", Unit: "Cel", Num: temp})
		process(t, b, st, now, w)
		if w.Outcome.Failure != "" {
			t.Fatal(w.Outcome.Failure)
		}
		state = w.Outcome.State
		for _, s := range w.Outcome.Signals {
			story = append(story, fmt.Sprintf("%d %s %v %q", i, s.Rule, s.Raise, s.Text))
		}
		for _, s := range w.Outcome.Timers {
			story = append(story, fmt.Sprintf("%d timer %s %v", i, s.Name, s.Due.Sub(t0)))
		}
	}
	want := `[0 timer silent 15m0s 4 too-warm true "mean of the last 5 readings is 9.0 °C, the limit 8.0 °C" 9 too-warm false "mean of the last 5 readings is 6.6 °C, below 7.0 °C"]`
	if got := fmt.Sprint(story); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}
