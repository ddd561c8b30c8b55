package main

import (
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin/sdk/go/sdktest"
)

// The handlers, natively: with a debugger, and in milliseconds. The cases in tests/ run the module.
func TestRaisedOnceAndClearedBelowTheLowerLimit(t *testing.T) {
	h := sdktest.New(t, newPlugin, `{"above": 8, "clear": 7}`)
	d := h.Device("fridge-1")
	for _, step := range []struct {
		value  float64
		active bool
	}{{7.5, false}, {9.1, true}, {7.5, true}, {6.9, false}, {7.5, false}} {
		h.Advance(time.Minute)
		d.Send(sdktest.Number("temp", step.value))
		if _, active := d.Active("threshold", ""); active != step.active {
			t.Fatalf("at %v: active %v, want %v", step.value, active, step.active)
		}
	}
}

func TestSettings(t *testing.T) {
	for config, want := range map[string]string{
		`{}`:                  "",
		`{"above": 5}`:        "setting clear must not be more than above",
		`{"severity": "bad"}`: "setting severity must be info, warning, major or critical",
		`{"above": "8"}`:      `setting above must be a number, not "8"`,
	} {
		if got := sdktest.Configure(newPlugin, config); got != want {
			t.Errorf("%s: %q, want %q", config, got, want)
		}
	}
}
