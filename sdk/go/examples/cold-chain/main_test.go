package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	sdk "github.com/dunlin-iot/dunlin/sdk/go"
	"github.com/dunlin-iot/dunlin/sdk/go/sdktest"
)

func raised(t *testing.T, r sdktest.Result) string {
	t.Helper()
	if r.Failure != "" {
		t.Fatalf("failure: %s", r.Failure)
	}
	var s []string
	for _, a := range r.Alerts {
		if a.Raise {
			s = append(s, "+"+a.Rule)
		} else {
			s = append(s, "-"+a.Rule)
		}
	}
	return strings.Join(s, " ")
}

// Five readings have to be warm on average; the alert is raised once, and cleared once below the lower limit.
func TestTooWarmIsRaisedOnceAndClearedBelowTheLowerLimit(t *testing.T) {
	h := sdktest.New(t, newPlugin, `{"max": 8, "clear_below": 6}`)
	d := h.Device("fridge-1")
	for i, step := range []struct {
		temp float64
		want string
	}{
		{20, ""}, {20, ""}, {4, ""}, {4, ""}, {4, "+too-warm"}, // the first full window: mean 10.4
		{9, ""}, {9, ""}, {9, ""}, // 8.2, 6, 6.4 … stays, whatever happens above the lower limit
		{4, ""}, {4, ""}, {3, "-too-warm"}, // mean 5.8
		{3, ""}, {3, ""}, {30, "+too-warm"}, // mean 8.6
	} {
		h.Advance(time.Minute)
		if got := raised(t, d.Send(sdktest.Number("temp", step.temp))); got != step.want {
			t.Fatalf("step %d, %v °C: alerts %q, want %q", i, step.temp, got, step.want)
		}
	}
	if a, ok := d.Active("too-warm", ""); !ok || a.Severity != sdk.Major || fmt.Sprintf("%.1f", a.Value) != "8.6" {
		t.Errorf("active alert %+v, %v", a, ok)
	}
	if n := len(d.State()); n > 64 {
		t.Errorf("the state has %d bytes, it is written with every reading and should have at most 64", n)
	}
}

// The timer of silence is armed once and re-arms itself; a thousand readings do not touch it.
func TestSilenceIsToldOnceAndTheTimerIsLeftAlone(t *testing.T) {
	h := sdktest.New(t, newPlugin, `{"silent_minutes": 15}`)
	d := h.Device("fridge-1")
	d.Send(sdktest.Number("temp", 4))
	armed := d.Timer(timerSilent)
	if armed != sdktest.Start.Add(15*time.Minute) {
		t.Fatalf("timer at %v", armed)
	}
	for range 80 {
		h.Advance(10 * time.Second)
		d.Send(sdktest.Number("temp", 4))
		if d.Timer(timerSilent) != armed {
			t.Fatal("a reading moved the timer")
		}
	}
	lastSeen := h.Now()
	h.Advance(5 * time.Minute)
	if got, want := d.Timer(timerSilent), lastSeen.Add(15*time.Minute); got != want {
		t.Fatalf("after it fired the timer stands at %v, want %v", got.Std(), want.Std())
	}
	fired := h.Advance(10 * time.Minute)
	if len(fired) != 1 || raised(t, fired[0]) != "+silent" || d.Timer(timerSilent) != 0 {
		t.Fatalf("after 15 silent minutes: %+v, timer %v", fired, d.Timer(timerSilent))
	}
	if more := h.Advance(24 * time.Hour); len(more) != 0 {
		t.Fatalf("a silent device is told of again: %+v", more)
	}
	if got := raised(t, d.Send(sdktest.Number("temp", 4))); got != "-silent" || d.Timer(timerSilent) == 0 {
		t.Fatalf("the next reading: %q, timer %v", got, d.Timer(timerSilent))
	}
}

func TestDoorThatStaysOpen(t *testing.T) {
	h := sdktest.New(t, newPlugin, `{"door_open_minutes": 0.1, "silent_minutes": 0}`)
	d := h.Device("fridge-1")
	d.Send(sdktest.Bool("door", true))
	h.Advance(5 * time.Second)
	if d.Send(sdktest.Bool("door", false)); d.Timer(timerDoor) != 0 {
		t.Fatal("the timer of a closed door is armed")
	}
	h.Advance(time.Minute)
	d.Send(sdktest.Number("door", 1))
	h.Advance(5 * time.Second)
	d.Send(sdktest.Number("door", 1), sdktest.Number("temp", 4))
	fired := h.Advance(2 * time.Second)
	if len(fired) != 1 || raised(t, fired[0]) != "+door-open" {
		t.Fatalf("after 6 s: %+v", fired)
	}
	if got := raised(t, d.Send(sdktest.Bool("door", false))); got != "-door-open" {
		t.Fatalf("closing: %q", got)
	}
}

func TestConfiguration(t *testing.T) {
	for config, want := range map[string]string{
		``:                             "",
		`{}`:                           "",
		`{"metric": "t"}`:              "",
		`{"max": "8"}`:                 `setting max must be a number, not "8"`,
		`{"max": 4, "clear_below": 5}`: "setting clear_below must not be above max",
		`{"samples": 9}`:               "setting samples must be 1 to 8",
		`[]`:                           "the configuration is not a JSON object: see byte 0",
		`{"max": 8`:                    "the configuration is not a JSON object: see byte 9",
	} {
		if got := sdktest.Configure(newPlugin, config); got != want {
			t.Errorf("%s: %q, want %q", config, got, want)
		}
	}
}
