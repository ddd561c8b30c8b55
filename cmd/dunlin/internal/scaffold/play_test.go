package scaffold_test

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"gopkg.in/yaml.v3"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins"
)

// caseFile is a file of tests/, as far as the templates and tutorials use what it may have.
type caseFile struct {
	Config map[string]any
	Steps  []caseStep
}

type caseStep struct {
	At       time.Duration
	Device   string
	Advance  bool // only time passes
	Readings map[string]any
	Expect   struct {
		Alerts *[]struct {
			Rule     string
			Raised   bool
			Severity string
			Value    *float64
		}
		State *string
	}
}

// player plays cases on the real host.
type player struct {
	host   *plugins.Host
	stage  *dunlin.Stage
	states map[dunlin.DeviceID][]byte
	timers map[dunlin.DeviceID]map[string]dunlin.Time
	active map[string]bool // device and rule
	seq    uint64
}

// playAll has the host look at the module, plays the cases of a plugin's folder on it and returns how many they are.
func playAll(t *testing.T, dir string, wasm []byte) int {
	t.Helper()
	h, err := plugins.Open(plugins.Config{Workers: 1, CacheDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	rep, err := h.Check(t.Context(), wasm)
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Install(t.Context(), rep.Hash, wasm); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(dir, "tests", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		var c caseFile
		dec := yaml.NewDecoder(bytes.NewReader(text))
		dec.KnownFields(true)
		if err := dec.Decode(&c); err != nil {
			t.Fatalf("%s: %v", file, err)
		}
		config, err := json.Marshal(c.Config)
		if err != nil {
			t.Fatal(err)
		}
		p := &player{host: h, stage: &dunlin.Stage{Plugin: "p", Hash: rep.Hash, Config: config}, states: map[dunlin.DeviceID][]byte{},
			timers: map[dunlin.DeviceID]map[string]dunlin.Time{}, active: map[string]bool{}}
		for i := range c.Steps {
			if err := p.step(&c.Steps[i]); err != nil {
				t.Errorf("%s, step %d: %v", filepath.Base(file), i, err)
			}
		}
	}
	return len(files)
}

func (p *player) step(s *caseStep) error {
	now := dunlin.Time(1_767_225_600_000_000 + s.At.Microseconds())
	dev := dunlin.DeviceID(s.Device)
	var got []string
	for {
		name, due := p.next(dev)
		if name == "" || due > now {
			break
		}
		delete(p.timers[dev], name)
		lines, err := p.turn(dev, due, dunlin.Input{Kind: dunlin.InputTimer, Received: due, Timer: name})
		if err != nil {
			return err
		}
		got = append(got, lines...)
	}
	if !s.Advance {
		in := dunlin.Input{Kind: dunlin.InputTelemetry, Received: now}
		for _, metric := range slices.Sorted(maps.Keys(s.Readings)) {
			r := dunlin.Record{Metric: metric, Kind: dunlin.Number, Time: now}
			switch v := s.Readings[metric].(type) {
			case bool:
				if r.Kind = dunlin.Boolean; v {
					r.Num = 1
				}
			case int:
				r.Num = float64(v)
			case float64:
				r.Num = v
			}
			in.Records = append(in.Records, r)
		}
		lines, err := p.turn(dev, now, in)
		if err != nil {
			return err
		}
		got = append(got, lines...)
	}
	if want := s.Expect.State; want != nil && hex.EncodeToString(p.states[dev]) != *want {
		return fmt.Errorf("state %x, want %s", p.states[dev], *want)
	}
	if s.Expect.Alerts == nil {
		return nil
	}
	var want []string
	for _, a := range *s.Expect.Alerts {
		want = append(want, alertLine(a.Rule, a.Raised, a.Severity, a.Value))
	}
	if !slices.Equal(got, want) {
		return fmt.Errorf("alerts %q, want %q", got, want)
	}
	return nil
}

// next returns the device's timer that is due first.
func (p *player) next(dev dunlin.DeviceID) (name string, due dunlin.Time) {
	due = math.MaxInt64
	for n, d := range p.timers[dev] {
		if d < due {
			name, due = n, d
		}
	}
	return name, due
}

// turn hands one input to the plugin, and returns the transitions that it makes.
func (p *player) turn(dev dunlin.DeviceID, now dunlin.Time, in dunlin.Input) (lines []string, err error) {
	p.seq++
	work := &dunlin.Work{DeviceKey: dunlin.DeviceKey{Tenant: dunlin.DefaultTenant, Device: dev}, Seq: p.seq, State: p.states[dev],
		Inputs: []dunlin.Input{in}}
	if err := p.host.Process("d", p.stage, 0, now, []*dunlin.Work{work}); err != nil {
		return nil, err
	}
	o := &work.Outcome
	if o.Failure != "" {
		return nil, fmt.Errorf("failure: %s", o.Failure)
	}
	if o.State != nil {
		p.states[dev] = o.State
	}
	for _, t := range o.Timers {
		if p.timers[dev] == nil {
			p.timers[dev] = map[string]dunlin.Time{}
		}
		if p.timers[dev][t.Name] = t.Due; t.Due == 0 {
			delete(p.timers[dev], t.Name)
		}
	}
	for _, a := range o.Signals {
		id := string(dev) + "/" + a.Rule
		if p.active[id] != a.Raise {
			p.active[id] = a.Raise
			lines = append(lines, alertLine(a.Rule, a.Raise, a.Severity.String(), a.Value))
		}
	}
	return lines, nil
}

func alertLine(rule string, raised bool, severity string, value *float64) string {
	s := "cleared " + rule
	if raised {
		s = severity + " " + rule
	}
	if value != nil {
		s += fmt.Sprintf(" %v", *value)
	}
	return s
}
