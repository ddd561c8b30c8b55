package replay

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dunlin-iot/dunlin"
)

// What is deployed, run over what was recorded, makes the alerts that were recorded, all of them and no others: over timers,
// inputs that were refused or broke the plugin, quarantine, restarts, and a version that took over from another.
func TestDeployedVersionRepeatsHistory(t *testing.T) {
	w := newWorld(t)
	w.stage("fickle", module(t), `{"above": 9}`)
	w.days(0, 1, 6, true)
	w.archive()
	w.stage("fickle", append(module(t), "\x00\x05\x04next"...), `{"above": 9}`) // another hash: a custom section more
	w.days(1, 2, 6, true)
	w.pass(time.Second)
	reg := prometheus.NewRegistry()
	rep := w.backtest(w.service(Config{Metrics: reg}), dunlin.Backtest{Since: worldStart}, nil)
	t.Log(summary(rep))
	told := map[string]float64{}
	families, err := reg.Gather()
	for _, f := range families {
		for _, m := range f.Metric {
			told[f.GetName()] += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	if err != nil || told["dunlin_backtest_running"] != 0 || told["dunlin_backtest_parts_total"] != 1 ||
		told["dunlin_backtest_turns_total"] < 15_000 {
		t.Errorf("the metrics say %v; %v", told, err)
	}
	if rep.Mode != dunlin.BacktestExact || rep.Exact == nil || rep.Exact.Different != 0 || rep.Exact.Turns < 15_000 {
		t.Errorf("not exact")
	}
	if n := w.alerts(); rep.Alerts.Recorded != uint64(n) || rep.Alerts.Same != uint64(n) || n < 100 || len(rep.ByDevice) > 0 {
		t.Errorf("%d alerts in the store", n)
	}
	if len(rep.Deployed) != 2 || rep.Deployed[0] == rep.Candidate || rep.Deployed[1] != rep.Candidate {
		t.Errorf("deployed %v, candidate %s", rep.Deployed, rep.Candidate)
	}
	if rep.Cost.Failed == 0 || rep.Reaches < worldStart || rep.Reaches > worldStart.Add(3600e9) {
		t.Errorf("failed %d, reaches %s", rep.Cost.Failed, rep.Reaches)
	}
}

// The same version as a candidate, with timers of its own and many turns at once, comes to the same alerts; a stricter one to
// others, and the report says which. A version to which it makes a difference how many turns it gets at once is found out.
func TestCandidates(t *testing.T) {
	w := newWorld(t)
	w.stage("fickle", module(t), `{"above": 9}`)
	w.days(0, 1, 4, false)
	w.days(1, 2, 2, false)
	w.pass(time.Second)
	s := w.service(Config{})
	all := uint64(w.alerts())
	for _, c := range []struct {
		what, config string
		since        dunlin.Time
		mode         dunlin.BacktestMode
		same, moved  bool
	}{
		{"the same", `{"above": 9.0}`, worldStart, dunlin.BacktestCandidate, true, false},
		{"the same, with a warm-up", `{"above": 9.0}`, worldStart.Add(36 * 3600e9), dunlin.BacktestCandidate, true, false},
		{"stricter", `{"above": 10}`, worldStart, dunlin.BacktestCandidate, false, true},
		{"one that counts its calls", `{"above": 9.0, "counts": true}`, worldStart, dunlin.BacktestByTurn, true, false},
		{"one that looks at the clock", `{"above": 9.0, "now": true}`, worldStart, dunlin.BacktestByTurn, true, false},
	} {
		rep := w.backtest(s, dunlin.Backtest{Since: c.since, Config: []byte(c.config)}, nil)
		t.Logf("%s: %s", c.what, summary(rep))
		a := rep.Alerts
		if rep.Mode != c.mode {
			t.Errorf("%s: mode %q, want %q", c.what, rep.Mode, c.mode)
		}
		if a.Recorded != a.Same+a.Moved+a.Removed || a.Candidate != a.Same+a.Moved+a.Added {
			t.Errorf("%s: counts don't add up", c.what)
		}
		if c.since == worldStart && a.Recorded != all {
			t.Errorf("%s: %d recorded alerts, the store has %d", c.what, a.Recorded, all)
		}
		if c.same != (a.Same == a.Recorded && a.Same == a.Candidate && a.Same > 10) || c.moved != (a.Moved > 10) {
			t.Errorf("%s: alerts", c.what)
		}
	}
}
