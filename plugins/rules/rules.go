// Package rules runs alert rules that are CEL expressions (https://cel.dev) instead of a module: conditions with hold times,
// hysteresis and severity, for a threshold that somebody types into a file. docs/rules.md is its user's page.
//
// A Set is what a stage of a pipeline says, compiled; Run works off one device's inputs with it, as a plugin does: what it
// knows of the device is in the state that comes in and goes out, and so a rule can be tried on the past like a module.
//
//	        when                 held for "for"
//	idle ──────────▶ pending ─────────────────▶ active ──────────▶ clearing ──▶ idle
//	  ▲  not when       │                         ▲  clear              │ held for "clear_for"
//	  └─────────────────┘                         └─────────────────────┘
//	                                                 not clear
//
// Part of the runtime; no compatibility promise before v1.
package rules

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// Bounds of a stage's rules.
const (
	rulesMax     = 64
	metricsMax   = 64
	exprBytesMax = 1 << 10
	textBytesMax = 1 << 10
	holdMax      = 30 * 24 * time.Hour
	costMax      = 1000 // of one evaluation, in CEL's units: about one for each operation
)

// Rule is one rule as it is written.
type Rule struct {
	Name     string          `json:"name"`                // names the alert's rule
	When     string          `json:"when"`                // CEL, of type bool
	For      dunlin.Duration `json:"for,omitempty"`       // When must hold so long before the alert is raised
	Clear    string          `json:"clear,omitempty"`     // CEL, of type bool; default: When no longer holds
	ClearFor dunlin.Duration `json:"clear_for,omitempty"` // Clear must hold so long before the alert is cleared
	Severity dunlin.Severity `json:"severity"`            // default warning
	Text     string          `json:"text,omitempty"`      // {metric} stands for the metric's value
	Value    string          `json:"value,omitempty"`     // CEL, a number; default the metric, if When names one only
}

// Set is a stage's rules, compiled. It is immutable and may be used concurrently.
type Set struct {
	rules   []rule
	metrics []string // that any of them names, sorted
}

// rule is a compiled Rule.
type rule struct {
	Rule
	when, clear, value *program // clear nil: not when; value nil: none
	metrics            []int    // that it needs, as indexes of Set.metrics
	text               []piece
}

// piece is a part of a text: words, or a metric.
type piece struct {
	words  string
	metric int // index of Set.metrics; −1: words
}

// Metrics returns the metrics that the rules name.
func (s *Set) Metrics() []string { return slices.Clone(s.metrics) }

// Parse reads and compiles a stage's rules. An error matches dunlin.ErrInvalid and says which rule is wrong, where and why.
func Parse(doc []byte) (*Set, error) {
	dec := json.NewDecoder(bytes.NewReader(doc))
	dec.DisallowUnknownFields()
	var rs []Rule
	if err := dec.Decode(&rs); err != nil {
		return nil, fmt.Errorf("%w: rules: %v; they are a list of {name, when, for, clear, clear_for, severity, text, value}", dunlin.ErrInvalid, err)
	}
	if len(rs) == 0 || len(rs) > rulesMax {
		return nil, fmt.Errorf("%w: a stage has 1 to %d rules, not %d", dunlin.ErrInvalid, rulesMax, len(rs))
	}
	s := &Set{}
	parsed := make([]*parsedRule, len(rs))
	for i := range rs {
		p, err := parseRule(&rs[i])
		if err == nil && slices.ContainsFunc(rs[:i], func(o Rule) bool { return o.Name == rs[i].Name }) {
			err = fmt.Errorf("another rule has this name")
		}
		if err != nil {
			return nil, fmt.Errorf("%w: rule %d (%s): %v", dunlin.ErrInvalid, i+1, rs[i].Name, err)
		}
		parsed[i] = p
		s.metrics = append(s.metrics, p.metrics...)
	}
	slices.Sort(s.metrics)
	if s.metrics = slices.Compact(s.metrics); len(s.metrics) > metricsMax {
		return nil, fmt.Errorf("%w: the rules name %d metrics, at most %d are allowed", dunlin.ErrInvalid, len(s.metrics), metricsMax)
	}
	for i, p := range parsed {
		r, err := s.compile(p)
		if err != nil {
			return nil, fmt.Errorf("%w: rule %d (%s): %v", dunlin.ErrInvalid, i+1, rs[i].Name, err)
		}
		s.rules = append(s.rules, *r)
	}
	return s, nil
}

func (s *Set) metric(name string) int {
	i, ok := slices.BinarySearch(s.metrics, name)
	if !ok {
		return -1
	}
	return i
}
