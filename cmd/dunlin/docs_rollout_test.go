package main_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// The lines of docs/rollout.md work one after the other: a plugin is begun, tried on the past and beside what is deployed,
// activated, taken back, explained and signed.
func TestRolloutDocLinesWork(t *testing.T) {
	foreign(t, "curl")
	bash := foreign(t, "bash")
	doc, err := os.ReadFile("../../docs/rollout.md")
	if err != nil {
		t.Fatal(err)
	}
	n := start(t, "dev", "--sim", "0")
	script := ""
	for _, block := range strings.Split(string(doc), "```sh\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		script += block
	}
	cmd := exec.CommandContext(t.Context(), bash, "-e", "-o", "pipefail", "-x", "-c", script)
	cmd.Dir = t.TempDir()
	cmd.WaitDelay = 10 * time.Second
	cmd.Env = append(os.Environ(), "DUNLIN_SERVER="+n.HTTP, "CGO_ENABLED=0", "GOTOOLCHAIN=local",
		"PATH="+filepath.Dir(binary)+string(os.PathListSeparator)+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{"raised-once", "threshold", "0.2.0", "as good, and cheaper", "signed by RW"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is not said:\n%s", want, out)
		}
	}
}
