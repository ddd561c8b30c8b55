// Package plugintest plays an author's cases on a module: readings in, alerts, derived readings and state out, with timers that
// fire as time passes. Each case is played twice, on an instance that is kept and on a new one for each turn; a plugin that
// remembers devices outside their state behaves differently, and is told so.
//
// Part of the runtime; no compatibility promise before v1.
package plugintest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"sort"
	"strings"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins"
)

// Case is one story of a file.
type Case struct {
	Name   string         `yaml:"name"`
	Config map[string]any `yaml:"config"`
	Steps  []Step         `yaml:"steps"`
}

// Step is something that a device sends, or only time that passes, and what is expected of it.
type Step struct {
	At       string         `yaml:"at"`       // a span from the beginning, such as 10m; default: the step's before
	Device   string         `yaml:"device"`   // default "device"
	Readings map[string]any `yaml:"readings"` // metric → number, true or false, or text
	Raw      string         `yaml:"raw"`      // hex: a payload as it came
	Format   uint16         `yaml:"format"`   // of Raw; default 42
	Advance  bool           `yaml:"advance"`  // only time passes
	Expect   *Expect        `yaml:"expect"`
}

// Expect is what came of a step, timers before it included. What is left out is not looked at; an empty list is none.
type Expect struct {
	Alerts   *[]Alert        `yaml:"alerts"` // transitions, in order
	Readings *map[string]any `yaml:"readings"`
	State    *string         `yaml:"state"` // hex, after the step
	Commands *[]string       `yaml:"commands"`
	Publish  *[]string       `yaml:"publish"` // topics
	Error    string          `yaml:"error"`   // a part of why the plugin refused or failed
}

// Alert is an expected transition.
type Alert struct {
	Rule     string   `yaml:"rule"`
	Key      string   `yaml:"key"`
	Raised   bool     `yaml:"raised"`
	Severity string   `yaml:"severity"`
	Value    *float64 `yaml:"value"`
	Text     *string  `yaml:"text"`
}

// Result is how a case ended.
type Result struct {
	Name     string   `json:"name"`
	Steps    int      `json:"steps"`
	Problems []string `json:"problems,omitempty"`
	Fuel     uint64   `json:"fuel"` // an input, on average
}

// caseBytesMax bounds a file of cases.
const caseBytesMax = 1 << 20

// Parse reads a case.
func Parse(name string, text []byte) (*Case, error) {
	if len(text) > caseBytesMax {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are allowed", name, len(text), caseBytesMax)
	}
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	c := &Case{}
	if err := dec.Decode(c); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	if c.Name == "" {
		c.Name = strings.TrimSuffix(name, ".yaml")
	}
	if len(c.Steps) == 0 {
		return nil, fmt.Errorf("%s: it has no steps", name)
	}
	return c, nil
}

// Runner plays cases on one module.
type Runner struct {
	host   *plugins.Host
	module []byte
	hash   dunlin.ModuleHash
}

// New checks a module and makes it ready. cache is a folder for compiled code.
func New(ctx context.Context, module []byte, cache string) (*Runner, *plugins.Report, error) {
	h, err := plugins.Open(plugins.Config{CacheDir: cache})
	if err != nil {
		return nil, nil, err
	}
	r := &Runner{host: h, module: module, hash: sha256.Sum256(module)}
	rep, err := h.Check(ctx, module)
	if err == nil {
		err = h.Install(ctx, r.hash, module)
	}
	if err != nil {
		return nil, nil, errors.Join(err, h.Close())
	}
	return r, rep, nil
}

// Close ends the runner.
func (r *Runner) Close() error { return r.host.Close() }

// Play plays a case and says what was not as expected. The error is about the case or the module as such.
func (r *Runner) Play(ctx context.Context, c *Case) (*Result, error) {
	res := &Result{Name: c.Name, Steps: len(c.Steps)}
	config, err := json.Marshal(c.Config)
	if err != nil {
		return nil, fmt.Errorf("%s: config: %w", c.Name, err)
	}
	if c.Config == nil {
		config = []byte("{}")
	}
	st := &dunlin.Stage{Plugin: c.Name, Name: c.Name, Hash: r.hash, Config: config}
	if err := r.host.TryConfig(ctx, st); err != nil {
		return nil, fmt.Errorf("%s: %w", c.Name, err)
	}
	used := newWorld(r.host, st)
	fresh := newWorld(r.host, st)
	fresh.before = func() error {
		r.host.Remove(r.hash)
		return r.host.Install(ctx, r.hash, r.module)
	}
	for i := range c.Steps {
		s := &c.Steps[i]
		for _, w := range []*world{used, fresh} {
			if err := w.step(s); err != nil {
				return nil, fmt.Errorf("%s, step %d: %w", c.Name, i+1, err)
			}
		}
		for _, p := range used.check(s) {
			res.Problems = append(res.Problems, fmt.Sprintf("step %d (%s): %s", i+1, s.At, p))
		}
		if a, b := used.said(), fresh.said(); a != b {
			res.Problems = append(res.Problems, fmt.Sprintf(
				"step %d (%s): a new instance does not do what one does that was used before: the plugin remembers devices outside their state\n  used: %s\n  new:  %s", i+1, s.At, a, b))
			break // they differ from here on
		}
	}
	if used.inputs > 0 {
		res.Fuel = used.fuel / used.inputs
	}
	return res, nil
}

// check says what of a step is not as expected.
func (w *world) check(s *Step) (problems []string) {
	e := s.Expect
	say := func(format string, args ...any) { problems = append(problems, fmt.Sprintf(format, args...)) }
	refused := strings.Join(w.errors, "; ")
	switch {
	case e == nil || e.Error == "":
		if refused != "" {
			say("the plugin refused it: %s", refused)
		}
	case !strings.Contains(refused, e.Error):
		say("it was to be refused with %q, and %s", e.Error, or(refused, "was not"))
	}
	if e == nil {
		return problems
	}
	if e.Alerts != nil {
		problems = append(problems, w.checkAlerts(*e.Alerts)...)
	}
	if e.Readings != nil {
		for _, m := range sorted(*e.Readings) {
			if got, ok := w.derived[m]; !ok || !sameValue(got, (*e.Readings)[m]) {
				say("reading %s is %s, want %v", m, or(fmt.Sprint(got), "missing"), (*e.Readings)[m])
			}
		}
		for _, m := range sorted(w.derived) {
			if _, ok := (*e.Readings)[m]; !ok {
				say("reading %s = %v was not expected", m, w.derived[m])
			}
		}
	}
	if e.State != nil {
		if got := hex.EncodeToString(w.state(s.device())); got != strings.ToLower(*e.State) {
			say("the state is %q, want %q", got, *e.State)
		}
	}
	if e.Commands != nil && !slices.Equal(*e.Commands, w.commands) {
		say("commands are %v, want %v", w.commands, *e.Commands)
	}
	if e.Publish != nil && !slices.Equal(*e.Publish, w.topics) {
		say("publications are %v, want %v", w.topics, *e.Publish)
	}
	return problems
}

func (w *world) checkAlerts(want []Alert) (problems []string) {
	for i := range max(len(want), len(w.alerts)) {
		switch {
		case i >= len(w.alerts):
			problems = append(problems, fmt.Sprintf("missing: %s", want[i].String()))
		case i >= len(want):
			problems = append(problems, fmt.Sprintf("not expected: %s", describe(&w.alerts[i])))
		case !want[i].matches(&w.alerts[i]):
			problems = append(problems, fmt.Sprintf("got %s, want %s", describe(&w.alerts[i]), want[i].String()))
		}
	}
	return problems
}

func (a *Alert) matches(got *dunlin.Alert) bool {
	raised := got.State == dunlin.AlertRaised
	return a.Rule == got.Rule && a.Key == got.Key && a.Raised == raised && (a.Severity == "" || a.Severity == got.Severity.String()) &&
		(a.Text == nil || *a.Text == got.Text) && (a.Value == nil || got.Value != nil && near(*a.Value, *got.Value))
}

// String renders the alert as a case writes it.
func (a *Alert) String() string {
	s := fmt.Sprintf("{rule: %s, raised: %v", a.Rule, a.Raised)
	if a.Key != "" {
		s += ", key: " + a.Key
	}
	if a.Severity != "" {
		s += ", severity: " + a.Severity
	}
	if a.Value != nil {
		s += fmt.Sprintf(", value: %v", *a.Value)
	}
	if a.Text != nil {
		s += fmt.Sprintf(", text: %q", *a.Text)
	}
	return s + "}"
}

func describe(a *dunlin.Alert) string {
	sev := a.Severity.String()
	return (&Alert{Rule: a.Rule, Key: a.Key, Raised: a.State == dunlin.AlertRaised, Severity: sev, Value: a.Value, Text: &a.Text}).String()
}

func near(a, b float64) bool { return math.Abs(a-b) <= 1e-9*max(1, math.Abs(a), math.Abs(b)) }

func sameValue(got, want any) bool {
	switch w := want.(type) {
	case int:
		g, ok := got.(float64)
		return ok && near(g, float64(w))
	case float64:
		g, ok := got.(float64)
		return ok && near(g, w)
	}
	return got == want
}

func or(s, other string) string {
	if s == "" || s == "<nil>" {
		return other
	}
	return s
}

func sorted[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

func (s *Step) device() dunlin.DeviceID {
	if s.Device == "" {
		return "device"
	}
	return dunlin.DeviceID(s.Device)
}

// input is what the step's device sends at a moment; false if only time passes.
func (s *Step) input(now dunlin.Time) (in dunlin.Input, sends bool, err error) {
	in.Received = now
	switch {
	case s.Raw != "":
		in.Kind, in.Format = dunlin.InputRaw, dunlin.FormatOctets
		if s.Format != 0 {
			in.Format = dunlin.ContentFormat(s.Format)
		}
		if in.Payload, err = hex.DecodeString(strings.ReplaceAll(s.Raw, " ", "")); err != nil {
			return in, false, fmt.Errorf("raw is hex: %w", err)
		}
		return in, true, nil
	case len(s.Readings) > 0:
		in.Kind = dunlin.InputTelemetry
		for _, m := range sorted(s.Readings) {
			r := dunlin.Record{Metric: m, Time: now, Kind: dunlin.Number}
			switch v := s.Readings[m].(type) {
			case int:
				r.Num = float64(v)
			case float64:
				r.Num = v
			case bool:
				r.Kind = dunlin.Boolean
				if v {
					r.Num = 1
				}
			case string:
				r.Kind, r.Str = dunlin.Text, v
			default:
				return in, false, fmt.Errorf("reading %s is a %T; it is a number, true or false, or a text", m, v)
			}
			in.Records = append(in.Records, r)
		}
		return in, true, nil
	case s.Advance:
		return in, false, nil
	}
	return in, false, errors.New("it has neither readings nor raw, nor advance: true")
}

// when is the step's moment.
func (s *Step) when(now dunlin.Time) (dunlin.Time, error) {
	if s.At == "" {
		return now, nil
	}
	d, err := time.ParseDuration(s.At)
	if err != nil {
		return 0, fmt.Errorf("at is a span from the beginning, such as 90s or 10m: %q", s.At)
	}
	if t := epoch.Add(d); t >= now {
		return t, nil
	}
	return 0, fmt.Errorf("at %s is before the step before", s.At)
}
