package main_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/dunlin-iot/dunlin"
)

// run runs a dunlin command against the node and returns what it prints; it must succeed.
func (n *node) run(args ...string) string {
	n.t.Helper()
	cmd := exec.CommandContext(n.t.Context(), binary, args...)
	cmd.Env = append(os.Environ(), "DUNLIN_SERVER="+n.HTTP)
	out, err := cmd.Output()
	if err != nil {
		stderr := ""
		if e, ok := err.(*exec.ExitError); ok {
			stderr = string(e.Stderr)
		}
		n.t.Fatalf("dunlin %s: %v\n%s%s", strings.Join(args, " "), err, out, stderr)
	}
	return string(out)
}

// plugin returns what the node knows of a plugin.
func (n *node) plugin(name string) (p dunlin.Plugin) {
	n.t.Helper()
	if err := json.Unmarshal([]byte(n.run("plugin", "versions", name, "-o", "json")), &p); err != nil {
		n.t.Fatal(err)
	}
	return p
}

// TestTrialsAreJudged: on three nodes a canary that holds its gates is promoted by itself, and a shadow that doesn't is taken back
// with the reason.
func TestTrialsAreJudged(t *testing.T) {
	n := start(t, "dev", "--nodes", "3", "--sim", "0")
	dir := t.TempDir()
	module, err := os.ReadFile(filepath.Join("internal", "builtin", "modules", "cold-chain.wasm"))
	if err != nil {
		t.Fatal(err)
	}
	file := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	other := func(i byte) []byte { return append(append([]byte(nil), module...), 0, 2, 1, 'a'+i) } // the same with a custom section more
	n.run("plugin", "push", file("rule.wasm", module), "--name", "rule")
	n.run("apply", "-f", file("d.yaml", []byte("id: halls\nowner: o\nunknown_devices: register\npipeline: [{plugin: rule}]\n")))
	var csv strings.Builder
	csv.WriteString("timestamp,value\n")
	for i := range 20 {
		fmt.Fprintf(&csv, "2020-05-01 00:%02d:00,4.5\n", i)
	}
	readings := file("r.csv", []byte(csv.String()))
	sent := 0
	send := func() {
		sent++
		device := fmt.Sprint("hall-", sent%5)
		n.run("device", "add", device, "--domain", "halls")
		n.run("sim", "run", "--csv", readings, "--device", device, "--metric", "temp", "--mqtt", n.MQTT)
	}
	send()

	n.run("plugin", "push", file("next.wasm", other(0)), "--name", "rule", "--no-activate")
	first := n.plugin("rule")
	candidate := first.Versions[0].Hash
	n.run("plugin", "canary", "rule", candidate.String(), "--share", "100", "--inputs-min", "30", "--latency-max", "1s", "--promote-after", "1s")
	until(t, "the canary is promoted", func() bool {
		send()
		return n.plugin("rule").Hash == candidate
	})
	p := n.plugin("rule")
	if a := p.Activations[0]; a.By != "dunlin" || !strings.HasPrefix(a.Reason, "promoted: no gate was hit in ") || a.From != first.Hash || p.Trial != nil {
		t.Errorf("promoted as %+v", a)
	}

	n.run("plugin", "push", file("worse.wasm", other(1)), "--name", "rule", "--no-activate")
	worse := n.plugin("rule").Versions[0].Hash
	n.run("plugin", "shadow", "rule", worse.String(), "--inputs-min", "30", "--latency-max", "1ns")
	until(t, "the shadow is taken back", func() bool {
		send()
		return n.plugin("rule").Trial == nil
	})
	p = n.plugin("rule")
	if a := p.Activations[0]; p.Hash != candidate || !strings.Contains(a.Reason, "in the plugin, more than 1ns") || !strings.Contains(p.Versions[0].Banned, "more than 1ns") {
		t.Errorf("taken back as %+v, banned %q", a, p.Versions[0].Banned)
	}
}

// TestABadVersionIsReplaced: a version that hangs on several devices' readings is taken out of use by itself, the one before runs
// again, every reading is kept, what the plugin did not work off is a dead letter, and other domains have noticed nothing.
func TestABadVersionIsReplaced(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.wasm")
	if err := goBuild([]string{"GOOS=wasip1", "GOARCH=wasm"}, "-trimpath", "-ldflags", "-s -w", "-buildmode=c-shared", "-o", bad, "./testdata/poison"); err != nil {
		t.Fatal(err)
	}
	n := start(t, "dev", "--sim", "0")
	good := filepath.Join("internal", "builtin", "modules", "cold-chain.wasm")
	domain := filepath.Join(dir, "d.yaml")
	if err := os.WriteFile(domain, []byte("id: halls\nowner: o\nunknown_devices: register\npipeline: [{plugin: rule}]\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	csv := filepath.Join(dir, "r.csv")
	if err := os.WriteFile(csv, []byte("timestamp,value\n2020-05-01 00:00:00,1\n2020-05-01 00:01:00,2\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n.run("plugin", "push", good, "--name", "rule")
	n.run("apply", "-f", domain)
	n.run("plugin", "push", bad, "--name", "rule")
	worse := n.plugin("rule").Hash
	i := 0
	until(t, "the version before takes over", func() bool {
		device := fmt.Sprint("hall-", i)
		i++
		n.run("device", "add", device, "--domain", "halls")
		n.run("sim", "run", "--csv", csv, "--device", device, "--metric", "poison", "--mqtt", n.MQTT)
		return n.plugin("rule").Hash != worse
	})
	p := n.plugin("rule")
	if a := p.Activations[0]; a.By != "dunlin" || a.From != worse || !strings.Contains(a.Reason, "taken out of use") {
		t.Errorf("activation %+v", a)
	}
	if v := p.Versions[0]; v.Hash != worse || v.Banned == "" {
		t.Errorf("the bad version: %+v", v)
	}
	if got := strings.Count(n.run("get", "readings", "hall-0"), "poison"); got != 2 {
		t.Errorf("%d readings of the first device, want 2", got)
	}
	if out := n.run("get", "deadletters"); !strings.Contains(out, "hall-0 ") || !strings.Contains(out, worse.String()[:12]) {
		t.Errorf("dead letters:\n%s", out)
	}
	n.run("sim", "run", "--csv", csv, "--device", "hall-0", "--metric", "temp", "--mqtt", n.MQTT)
	if out := n.run("get", "deadletters", "-o", "json"); strings.Contains(out, p.Hash.String()) {
		t.Errorf("the version that took over fails, too:\n%s", out)
	}
}

// TestPluginDevFollowsSaves: each save is built, tested and uploaded; one whose cases fail leaves the node as it is.
func TestPluginDevFollowsSaves(t *testing.T) {
	n := start(t, "dev", "--sim", "0")
	dir := filepath.Join(t.TempDir(), "guard")
	n.run("plugin", "new", dir, "--lang", "go")
	var out, said lines
	cmd := exec.CommandContext(t.Context(), binary, "plugin", "dev", dir)
	cmd.Env = append(os.Environ(), "DUNLIN_SERVER="+n.HTTP)
	cmd.Stdout, cmd.Stderr = &out, &said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = cmd.Wait() }()
	defer func() { _ = cmd.Process.Signal(os.Interrupt) }()
	until(t, "the first build runs", func() bool { return strings.Count(out.String(), "guard runs ") == 1 })
	first := n.plugin("guard").Hash
	save := func(file, from, to string) {
		path := filepath.Join(dir, file)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(string(text), from) {
			t.Fatalf("%s has no %q", file, from)
		}
		if err := os.WriteFile(path, []byte(strings.Replace(string(text), from, to, 1)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	save("dunlin.yaml", "version: 0.1.0", "version: 0.1.1")
	until(t, "a save runs", func() bool { return n.plugin("guard").Hash != first })
	second := n.plugin("guard").Hash
	save("tests/settings.yaml", "raised: true", "raised: false")
	until(t, "a failed case is told", func() bool { return strings.Contains(said.String(), "cases failed; the node goes on with what it has") })
	if got := n.plugin("guard").Hash; got != second {
		t.Errorf("%s runs after a failed case, want %s", got, second)
	}
}

// lines is what a process prints, read while it does.
type lines struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
