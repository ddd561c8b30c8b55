package plugintest

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// build compiles a Go plugin of this repository.
func build(t *testing.T, pkg string) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "plugin.wasm")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-ldflags", "-s -w", "-buildmode=c-shared", "-o", file, pkg)
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0", "GOTOOLCHAIN=local")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %s: %v\n%s", pkg, err, out)
	}
	wasm, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return wasm
}

func runner(t *testing.T, pkg string) *Runner {
	r, rep, err := New(t.Context(), build(t, pkg), t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	if rep.FuelPerInput <= 0 {
		t.Errorf("report %+v", rep)
	}
	t.Cleanup(func() {
		if err := r.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func play(t *testing.T, r *Runner, text string) *Result {
	t.Helper()
	c, err := Parse("case.yaml", []byte(text))
	if err != nil {
		t.Fatal(err)
	}
	res, err := r.Play(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

// TestTheScaffoldsCasesHold: what a new plugin is given to begin with passes on the example that it begins with.
func TestTheScaffoldsCasesHold(t *testing.T) {
	r := runner(t, "../../../../sdk/go/examples/threshold")
	files, err := filepath.Glob("../scaffold/templates/common/tests/*.yaml")
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, f := range files {
		text, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		if res := play(t, r, string(text)); len(res.Problems) > 0 {
			t.Errorf("%s: %s", f, strings.Join(res.Problems, "\n"))
		}
	}
	res := play(t, r, `
steps:
  - {at: 0s, readings: {temp: 9}, expect: {alerts: [], state: "00"}}
  - {at: 1s, readings: {temp: 9}, expect: {alerts: [{rule: other, raised: true}], readings: {x: 1}, error: no}}
  - {at: 2s, readings: {temp: 1}, expect: {alerts: [{rule: threshold, raised: false, value: 2}], commands: [on], publish: [a]}}
`)
	got := strings.Join(res.Problems, "\n")
	for _, want := range []string{
		`step 1 (0s): not expected: {rule: threshold, raised: true, severity: major, value: 9, text: ""}`, `step 1 (0s): the state is "01", want "00"`,
		`step 2 (1s): missing: {rule: other, raised: true}`, `step 2 (1s): reading x is missing, want 1`, `it was to be refused with "no", and was not`,
		`step 3 (2s): got {rule: threshold, raised: false, severity: major, value: 1, text: ""}, want {rule: threshold, raised: false, value: 2}`,
		`commands are [], want [on]`, `publications are [], want [a]`} {
		if !strings.Contains(got, want) {
			t.Errorf("not told: %s\nin %s", want, got)
		}
	}
}

// TestTimersFireAsTimePasses, to the moment.
func TestTimersFireAsTimePasses(t *testing.T) {
	r := runner(t, "../../../../sdk/go/examples/absence")
	res := play(t, r, `
config: {after_s: 60}
steps:
  - {at: 0s, device: a, readings: {temp: 9}, expect: {alerts: []}}
  - {at: 59s, advance: true, expect: {alerts: []}}
  - {at: 60s, advance: true, expect: {alerts: [{rule: absence, raised: true, severity: major}]}}
  - {at: 90s, device: a, readings: {temp: 9}, expect: {alerts: [{rule: absence, raised: false}]}}
`)
	if len(res.Problems) > 0 {
		t.Error(strings.Join(res.Problems, "\n"))
	}
}

// TestAForgetfulPluginIsFound, although its alerts are as expected.
func TestAForgetfulPluginIsFound(t *testing.T) {
	r := runner(t, "./testdata/forgetful")
	res := play(t, r, `
steps:
  - {at: 0s, readings: {temp: 9}, expect: {alerts: []}}
  - {at: 1s, readings: {temp: 9}, expect: {alerts: [{rule: second, raised: true}]}}
`)
	if len(res.Problems) != 1 || !strings.Contains(res.Problems[0], "remembers devices outside their state") {
		t.Errorf("problems %q", res.Problems)
	}
}

// TestCasesAreChecked: a case that can't be played is told by its step.
func TestCasesAreChecked(t *testing.T) {
	r := runner(t, "../../../../sdk/go/examples/threshold")
	for text, want := range map[string]string{
		"steps: []": "no steps", "stepz: []": "field stepz not found", "steps: [{at: soon, advance: true}]": "step 1: at is a span",
		"steps: [{at: 2s, advance: true}, {at: 1s, advance: true}]": "step 2: at 1s is before", "steps: [{at: 1s}]": "neither readings nor raw",
		"steps: [{raw: xy}]": "raw is hex", "steps: [{readings: {a: [1]}}]": "reading a is a", "config: {above: x}\nsteps: [{advance: true}]": "above",
	} {
		c, err := Parse("case.yaml", []byte(text))
		if err == nil {
			_, err = r.Play(t.Context(), c)
		}
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
