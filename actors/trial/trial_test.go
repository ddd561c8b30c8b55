package trial

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// TestGates: each gate ends a trial for its own reason, and a negative limit switches it off.
func TestGates(t *testing.T) {
	good := dunlin.VersionCounts{Inputs: 2000, Alerts: 20, Fuel: 2000 * 100, Nanos: 2000 * 500}
	with := func(change func(*dunlin.VersionCounts)) dunlin.VersionCounts {
		v := good
		change(&v)
		return v
	}
	for _, c := range []struct {
		what      string
		candidate dunlin.VersionCounts
		gates     dunlin.Gates
		want      Decision
		why       string
	}{
		{"as good", good, dunlin.Gates{}, GoOn, ""},
		{"too few inputs", with(func(v *dunlin.VersionCounts) { v.Inputs, v.Failed = 999, 999 }), dunlin.Gates{}, GoOn, ""},
		{"few are enough", with(func(v *dunlin.VersionCounts) { v.Inputs, v.Failed = 10, 1 }), dunlin.Gates{InputsMin: 10}, TakeBack, "1 of 10 inputs failed"},
		{"errors", with(func(v *dunlin.VersionCounts) { v.Failed = 3 }), dunlin.Gates{}, TakeBack, "3 of 2000 inputs failed"},
		{"errors allowed", with(func(v *dunlin.VersionCounts) { v.Failed = 3 }), dunlin.Gates{ErrorRateMax: 0.01}, GoOn, ""},
		{"errors not looked at", with(func(v *dunlin.VersionCounts) { v.Failed = 2000 }), dunlin.Gates{ErrorRateMax: -1}, GoOn, ""},
		{"fuel", with(func(v *dunlin.VersionCounts) { v.Fuel *= 4 }), dunlin.Gates{}, TakeBack, "4.0 times the active version's fuel"},
		{"alerts", with(func(v *dunlin.VersionCounts) { v.Alerts = 50 }), dunlin.Gates{}, TakeBack, "2.5 times the active version's alerts"},
		{"alerts allowed", with(func(v *dunlin.VersionCounts) { v.Alerts = 50 }), dunlin.Gates{AlertRatioMax: 3}, GoOn, ""},
		{"slow", with(func(v *dunlin.VersionCounts) { v.Nanos = 2000 * 2e6 }), dunlin.Gates{}, TakeBack, "takes 2ms"},
		{"not yet", good, dunlin.Gates{PromoteAfter: dunlin.Duration(2 * time.Hour)}, GoOn, ""},
		{"promoted", good, dunlin.Gates{PromoteAfter: dunlin.Duration(time.Hour)}, Promote, "no gate was hit in 1h0m0s and 2000 inputs"},
		{"a gate before promotion", with(func(v *dunlin.VersionCounts) { v.Failed = 30 }), dunlin.Gates{PromoteAfter: dunlin.Duration(time.Hour)}, TakeBack, "failed"},
	} {
		d, why := Judge(&dunlin.Trial{Gates: c.gates}, &dunlin.TrialCounts{Candidate: c.candidate, Active: good}, time.Hour)
		if d != c.want || !strings.Contains(why, c.why) || (why == "") != (c.why == "") {
			t.Errorf("%s: %d %q, want %d %q", c.what, d, why, c.want, c.why)
		}
	}
	if d, why := Judge(&dunlin.Trial{}, &dunlin.TrialCounts{Candidate: dunlin.VersionCounts{Inputs: 5000, Alerts: 9}, Active: dunlin.VersionCounts{Inputs: 5000}}, 0); d != GoOn {
		t.Errorf("nine alerts beside none: %s", why)
	}
}

// TestSelection: a share is that share of the devices, the same ones each time, and others for another trial.
func TestSelection(t *testing.T) {
	a := &dunlin.Trial{ID: "A", Kind: dunlin.TrialCanary, Share: 5}
	b := &dunlin.Trial{ID: "B", Kind: dunlin.TrialCanary, Share: 5}
	in, both := 0, 0
	for i := range 20_000 {
		key := dunlin.DeviceKey{Tenant: "default", Device: dunlin.DeviceID(fmt.Sprintf("fridge-%05d", i))}
		x, y := Selects(a, key, nil), Selects(b, key, nil)
		if x != Selects(a, key, nil) {
			t.Fatal("a device is chosen, and then not")
		}
		if x {
			in++
		}
		if x && y {
			both++
		}
	}
	if in < 900 || in > 1100 || both > 90 {
		t.Errorf("%d of 20,000 devices are in a trial of 5 %%, %d in another, too", in, both)
	}
	key := dunlin.DeviceKey{Tenant: "default", Device: "d"}
	north := map[string]string{"hall": "north", "x": "y"}
	for what, c := range map[string]struct {
		trial  dunlin.Trial
		labels map[string]string
		want   bool
	}{
		"a shadow of all":       {dunlin.Trial{Kind: dunlin.TrialShadow}, nil, true},
		"a canary of none":      {dunlin.Trial{Kind: dunlin.TrialCanary}, nil, false},
		"its label":             {dunlin.Trial{Kind: dunlin.TrialCanary, Labels: map[string]string{"hall": "north"}}, north, true},
		"another label":         {dunlin.Trial{Kind: dunlin.TrialCanary, Labels: map[string]string{"hall": "south"}}, north, false},
		"no labels":             {dunlin.Trial{Kind: dunlin.TrialShadow, Labels: map[string]string{"hall": "north"}}, nil, false},
		"all by share":          {dunlin.Trial{Kind: dunlin.TrialCanary, Share: 100}, nil, true},
		"all of those, by both": {dunlin.Trial{Kind: dunlin.TrialCanary, Share: 100, Labels: map[string]string{"hall": "south"}}, north, false},
	} {
		if got := Selects(&c.trial, key, c.labels); got != c.want {
			t.Errorf("%s: %v", what, got)
		}
	}
}

// TestBook: counts add up, and those of ended trials go.
func TestBook(t *testing.T) {
	var b Book
	one := &dunlin.TrialCounts{Candidate: dunlin.VersionCounts{Inputs: 1, Failed: 2, Alerts: 3, Fuel: 4, Nanos: 5}, Same: 6, Differ: 7, AlertsOnly: 8, AlertsMissing: 9}
	b.Add("a", one)
	b.Add("a", one)
	b.Add("b", one)
	if c := b.Counts("a"); c.Candidate.Inputs != 2 || c.Candidate.Nanos != 10 || c.AlertsMissing != 18 {
		t.Errorf("%+v", c)
	}
	b.Keep(map[string]bool{"b": true})
	if b.Counts("a") != (dunlin.TrialCounts{}) || b.Counts("b") != *one {
		t.Error("the wrong trial is kept")
	}
}
