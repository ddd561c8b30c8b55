package replay

import (
	"strings"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// In a pipeline of several stages a candidate sees what the stages before it derived, and is compared with the deployed version
// of its stage at work again; the whole pipeline repeats exactly.
func TestPipeline(t *testing.T) {
	w := newWorld(t)
	w.stage("first", module(t), `{"above": 9, "rule": "first"}`)
	w.stage("second", module(t), `{"above": 20, "rule": "second"}`) // of the doubled readings
	w.days(0, 1, 3, true)
	w.pass(time.Second)
	s := w.service(Config{})
	exact := w.backtest(s, dunlin.Backtest{Since: worldStart, Stage: "second"}, nil)
	t.Log(summary(exact))
	if exact.Mode != dunlin.BacktestExact || exact.Exact.Different != 0 || exact.Alerts.Same < 30 || exact.Alerts.Same != exact.Alerts.Recorded {
		t.Error("not exact")
	}
	same := w.backtest(s, dunlin.Backtest{Since: worldStart, Stage: "second", Config: []byte(`{"above": 20.0, "rule": "second"}`)}, nil)
	t.Log(summary(same))
	if same.Against != "re-run" || same.Alerts.Same < 10 || differ(&same.Alerts) != 0 || same.Alerts.Recorded >= exact.Alerts.Recorded {
		t.Error("another stage's alerts")
	}
	if _, err := s.Backtest(t.Context(), dunlin.Backtest{Domain: "d", Since: worldStart}, nil, nil); err == nil || !strings.Contains(err.Error(), "first, second") {
		t.Errorf("no stage named: %v", err)
	}
	id := ""
	page, err := w.dir.Alerts(t.Context(), dunlin.AlertsQuery{Device: "dev-1"})
	if err != nil {
		t.Fatal(err)
	}
	for i := range page.Alerts {
		if page.Alerts[i].Rule == "second" {
			id = page.Alerts[i].ID()
		}
	}
	if x, err := s.Explain(t.Context(), "", id); err != nil || x.Stage != 1 || x.Name != "second" || !x.Same {
		t.Errorf("explain %s: %+v, %v", id, x, err)
	}
}

// A candidate may be rules, a version that is known, or nothing that could run, which is said before anything has.
func TestWhatACandidateIs(t *testing.T) {
	w := newWorld(t)
	w.stage("fickle", module(t), `{"above": 9}`)
	for range 50 {
		w.pass(time.Minute)
		w.report(map[string]float64{"dev-1": 5, "dev-2": 10})
	}
	w.pass(time.Second)
	s := w.service(Config{})
	rules := w.backtest(s, dunlin.Backtest{Since: worldStart, Rules: []byte(`[{"name": "hot", "when": "temp > 9.0", "severity": "major"}]`)}, nil)
	t.Log(summary(rules))
	if rules.Alerts.Candidate != 1 || rules.Inputs != 100 || rules.Cost.Failed != 0 {
		t.Error("rules")
	}
	h := w.plugins["fickle"].Hash.String()
	for _, version := range []string{"", h, h[:8]} {
		if rep := w.backtest(s, dunlin.Backtest{Since: worldStart, Plugin: "fickle", Version: version}, nil); rep.Mode != dunlin.BacktestExact {
			t.Errorf("version %q: %s", version, rep.Mode)
		}
	}
	one := w.backtest(s, dunlin.Backtest{Since: worldStart, Device: "dev-2", Config: []byte(`{"above": 11}`)}, nil)
	if one.Devices != 1 || one.Alerts.Removed != 1 {
		t.Errorf("one device: %s", summary(one))
	}
	for what, b := range map[string]dunlin.Backtest{
		"no since":        {},
		"no such version": {Since: worldStart, Version: "9.9.9"},
		"a bad module":    {Since: worldStart, Stage: "fickle"},
		"a bad stage":     {Since: worldStart, Stage: "x"},
		"bad settings":    {Since: worldStart, Config: []byte(`{"above": "high"}`)},
		"bad rules":       {Since: worldStart, Rules: []byte(`[{"when": 5}]`)},
	} {
		var wasm []byte
		if what == "a bad module" {
			wasm = []byte("\x00asm")
		}
		b.Domain = "d"
		if rep, err := s.Backtest(t.Context(), b, wasm, nil); err == nil {
			t.Errorf("%s: %s", what, summary(rep))
		}
	}
}
