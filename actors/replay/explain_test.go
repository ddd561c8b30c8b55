package replay

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// An alert is explained by the turn that raised it, run again: from the log, from the archive, and from a state that had to be
// rebuilt. One whose entry is gone has an answer that says so.
func TestExplain(t *testing.T) {
	w := newWorld(t)
	w.stage("fickle", module(t), `{"above": 9}`)
	w.days(0, 1, 2, true)
	w.archive()
	w.days(1, 2, 2, true)
	w.plugins["fickle"].Versions = []dunlin.PluginVersion{{Hash: w.plugins["fickle"].Hash, Version: "1.2.3"}}
	s := w.service(Config{})
	page, err := w.dir.Alerts(t.Context(), dunlin.AlertsQuery{Device: "dev-1", Limit: 1000})
	if err != nil {
		t.Fatal(err)
	}
	var from []string
	for i := range page.Alerts {
		a := &page.Alerts[i]
		if i%7 > 1 {
			continue
		}
		x, err := s.Explain(t.Context(), "", a.ID())
		if err != nil {
			t.Fatal(err)
		}
		if !x.Same || len(x.Again) == 0 || x.Again[0].ID() != a.ID() || x.Version != "1.2.3" || x.Name != "fickle" || string(x.Config) != `{"above":9}` {
			t.Errorf("%s: %+v", a.ID(), x)
		}
		in := &x.Inputs[x.Input]
		if a.Rule == "hot" && in.Records[0].Num <= 9 || a.Rule == "stale" && in.Timer != "watch" || slices.Equal(x.Before, x.After) {
			t.Errorf("%s: input %+v, state %x to %x", a.ID(), in, x.Before, x.After)
		}
		if !slices.Contains(from, x.StateFrom) {
			from = append(from, x.StateFrom)
		}
		wire, err := appendExplanation(x)
		if err != nil {
			t.Fatal(err)
		}
		if y, err := cutExplanation(wire); err != nil || y.Again[0].ID() != a.ID() || len(y.Inputs) != len(x.Inputs) {
			t.Errorf("on its way: %v", err)
		}
	}
	if slices.Sort(from); !slices.Equal(from, []string{"log", "rebuilt"}) {
		t.Errorf("states from %v", from)
	}
	oldest := page.Alerts[len(page.Alerts)-1].ID()
	if _, err := s.Explain(t.Context(), "", "dev-1/hot/999999"); !errors.Is(err, dunlin.ErrNotFound) {
		t.Errorf("an alert that never was: %v", err)
	}
	if _, err := s.Explain(t.Context(), "", "nonsense"); !errors.Is(err, dunlin.ErrInvalid) {
		t.Errorf("nonsense: %v", err)
	}
	past := s.deps.Past
	s.deps.Past = func(sh dunlin.ShardID, since dunlin.Time, states bool) (Reader, error) {
		return past(sh, worldStart.Add(30*time.Hour), states)
	}
	if _, err := s.Explain(t.Context(), "", oldest); !errors.Is(err, dunlin.ErrCursorLost) || !strings.Contains(err.Error(), "dropped by retention") {
		t.Errorf("an alert of old: %v", err)
	}
}

func TestParseAlertID(t *testing.T) {
	for _, a := range []dunlin.Alert{{Device: "d", Rule: "r", RaisedSeq: 1}, {Device: "d", Rule: "r", Key: "k", RaisedSeq: 2}, {Device: "d", Rule: "r", Key: "a/b/c", RaisedSeq: 3}} {
		o, err := parseAlertID(a.ID())
		if err != nil || o != (occurrenceID{a.Device, a.Rule, a.Key, a.RaisedSeq}) {
			t.Errorf("%s: %+v, %v", a.ID(), o, err)
		}
	}
}

// A dead letter that is handed over again goes away once the plugin takes it, and stays, once, if the plugin does not.
func TestLetters(t *testing.T) {
	w := newWorld(t)
	w.stage("fickle", module(t), `{"above": 9}`)
	for _, v := range []float64{5, 13, 13.5, 666, 6, 13} {
		w.pass(time.Minute)
		w.report(map[string]float64{"dev-1": v})
	}
	letters := func() (ids []string) {
		t.Helper()
		page, err := w.dir.DeadLetters(t.Context(), dunlin.DeadLettersQuery{})
		if err != nil {
			t.Fatal(err)
		}
		for i := range page.Letters {
			ids = append(ids, page.Letters[i].ID())
		}
		return ids
	}
	if got, want := letters(), []string{"dev-1/0/6", "dev-1/0/4", "dev-1/0/2"}; !slices.Equal(got, want) {
		t.Fatalf("letters %v, want %v", got, want)
	}
	s := w.service(Config{})
	w.pass(time.Minute)
	if again, err := s.ReplayLetter(t.Context(), "", "dev-1/0/6"); err != nil || again != "plugin: unlucky" {
		t.Fatalf("again %q, %v", again, err)
	}
	if got := len(letters()); got != 3 {
		t.Fatalf("%d letters", got)
	}
	// The new version is not superstitious.
	w.stage("fickle", coldChain(t), `{}`)
	w.pass(time.Minute)
	for _, id := range []string{"dev-1/0/6", "dev-1/0/2"} {
		if again, err := s.ReplayLetter(t.Context(), "", id); err != nil || again != "" {
			t.Fatalf("%s: again %q, %v", id, again, err)
		}
	}
	if err := s.DropLetter(t.Context(), "", "dev-1/0/4"); err != nil {
		t.Fatal(err)
	}
	if got := letters(); len(got) != 0 {
		t.Fatalf("letters %v", got)
	}
	if err := s.DropLetter(t.Context(), "", "dev-1/0/4"); !errors.Is(err, dunlin.ErrNotFound) {
		t.Errorf("dropped twice: %v", err)
	}
	history, err := w.dir.Readings(t.Context(), dunlin.ReadingsQuery{DeviceKey: dunlin.DeviceKey{Tenant: "default", Device: "dev-1"}, Metrics: []string{"temp"}})
	if err != nil || len(history.Rows) != 6 {
		t.Errorf("%d readings, want 6: the same reading is there once; %v", len(history.Rows), err)
	}
}
