// Package trial counts what a plugin's candidate and its active version do beside each other, chooses the devices that a canary
// runs on, and judges by the trial's gates whether it goes on. It is pure: counts and time are passed in.
//
// Part of the runtime; no compatibility promise before v1.
package trial

import (
	"fmt"
	"hash/fnv"
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// The gates' defaults.
const (
	InputsMin     = 1000
	ErrorRateMax  = 0.001
	FuelRatioMax  = 3.0
	AlertRatioMax = 2.0
	LatencyMax    = time.Millisecond
)

// Alerts are compared by their rate only once so many were raised on either side: one alert beside none is no rate.
const alertsMin = 10

// Decision is what becomes of a trial.
type Decision uint8

// The decisions.
const (
	GoOn Decision = iota
	Promote
	TakeBack
)

// Judge says whether a trial that has run for so long goes on, and why not.
func Judge(t *dunlin.Trial, c *dunlin.TrialCounts, age time.Duration) (Decision, string) {
	g := t.Gates
	if c.Candidate.Inputs < uint64(or(g.InputsMin, InputsMin)) {
		return GoOn, ""
	}
	n, active := float64(c.Candidate.Inputs), float64(c.Active.Inputs)
	if limit := or(g.ErrorRateMax, ErrorRateMax); limit >= 0 && float64(c.Candidate.Failed)/n > limit {
		return TakeBack, fmt.Sprintf("%d of %d inputs failed, more than %g", c.Candidate.Failed, c.Candidate.Inputs, limit)
	}
	if limit := or(time.Duration(g.LatencyMax), LatencyMax); limit >= 0 && time.Duration(float64(c.Candidate.Nanos)/n) > limit {
		return TakeBack, fmt.Sprintf("an input takes %v in the plugin, more than %v", time.Duration(float64(c.Candidate.Nanos)/n), limit)
	}
	if active > 0 {
		if limit := or(g.FuelRatioMax, FuelRatioMax); limit >= 0 && c.Active.Fuel > 0 {
			if ratio := float64(c.Candidate.Fuel) / n / (float64(c.Active.Fuel) / active); ratio > limit {
				return TakeBack, fmt.Sprintf("an input costs %.1f times the active version's fuel, more than %g", ratio, limit)
			}
		}
		if limit := or(g.AlertRatioMax, AlertRatioMax); limit >= 0 && c.Candidate.Alerts >= alertsMin {
			if ratio := float64(c.Candidate.Alerts) / n / (max(float64(c.Active.Alerts), 1) / active); ratio > limit {
				return TakeBack, fmt.Sprintf("it raises %.1f times the active version's alerts (%d on %d inputs, beside %d on %d), more than %g", ratio,
					c.Candidate.Alerts, c.Candidate.Inputs, c.Active.Alerts, c.Active.Inputs, limit)
			}
		}
	}
	if g.PromoteAfter > 0 && age >= time.Duration(g.PromoteAfter) {
		return Promote, fmt.Sprintf("no gate was hit in %v and %d inputs", age.Round(time.Second), c.Candidate.Inputs)
	}
	return GoOn, ""
}

func or[T int | float64 | time.Duration](v, def T) T {
	if v == 0 {
		return def
	}
	return v
}

// Selects reports whether a trial is for the device. The choice is by the device's id, so that it is the same on every node,
// and another one for each trial.
func Selects(t *dunlin.Trial, key dunlin.DeviceKey, labels map[string]string) bool {
	for k, v := range t.Labels {
		if labels[k] != v {
			return false
		}
	}
	if t.Share <= 0 {
		return t.Kind == dunlin.TrialShadow || len(t.Labels) > 0
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(t.ID + "\x00" + key.String())) // never fails
	x := h.Sum64()
	x ^= x >> 33 // FNV's upper bits are not good enough for a share
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	return float64(x%10_000) < t.Share*100
}

// Book is what the trials on a node have counted. Its methods may be called concurrently.
type Book struct {
	mu     sync.Mutex
	trials map[string]*dunlin.TrialCounts
}

// tallies of so many trials are kept; a trial that has ended is dropped by Keep.
const trialsMax = 1024

// Add adds to a trial's counts.
func (b *Book) Add(id string, more *dunlin.TrialCounts) {
	b.mu.Lock()
	defer b.mu.Unlock()
	c := b.trials[id]
	if c == nil {
		if len(b.trials) >= trialsMax {
			return
		}
		if b.trials == nil {
			b.trials = make(map[string]*dunlin.TrialCounts)
		}
		c = new(dunlin.TrialCounts)
		b.trials[id] = c
	}
	Sum(c, more)
}

// Counts returns a trial's counts.
func (b *Book) Counts(id string) dunlin.TrialCounts {
	b.mu.Lock()
	defer b.mu.Unlock()
	if c := b.trials[id]; c != nil {
		return *c
	}
	return dunlin.TrialCounts{}
}

// Keep forgets all trials but these.
func (b *Book) Keep(ids map[string]bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for id := range b.trials {
		if !ids[id] {
			delete(b.trials, id)
		}
	}
}

// Sum adds more to c.
func Sum(c, more *dunlin.TrialCounts) {
	c.Same += more.Same
	c.Differ += more.Differ
	c.AlertsOnly += more.AlertsOnly
	c.AlertsMissing += more.AlertsMissing
	sum(&c.Candidate, &more.Candidate)
	sum(&c.Active, &more.Active)
}

func sum(c, more *dunlin.VersionCounts) {
	c.Inputs += more.Inputs
	c.Failed += more.Failed
	c.Alerts += more.Alerts
	c.Fuel += more.Fuel
	c.Nanos += more.Nanos
}
