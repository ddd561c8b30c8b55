package nemesis

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// A node is killed and another stands still for a while, on loopback addresses; nothing that was acked is lost, nothing is
// there twice. `make nemesis` does the rest.
func TestKillAndStop(t *testing.T) {
	if testing.Short() {
		t.Skip("starts real processes for 20 s; `make nemesis` does more of it")
	}
	dir := t.TempDir()
	binary, module := filepath.Join(dir, "dunlin"), filepath.Join(dir, "cold-chain.wasm")
	build(t, nil, "-trimpath", "-o", binary, "../../cmd/dunlin")
	build(t, []string{"GOOS=wasip1", "GOARCH=wasm"}, "-trimpath", "-ldflags", "-s -w", "-buildmode=c-shared", "-o", module, "../../sdk/go/examples/cold-chain")
	r, err := Run(t.Context(), Config{Binary: binary, Module: module, Dir: t.ArtifactDir(), Rounds: 2, Seed: 5, Faults: []string{"kill", "stop"},
		Devices: 12, Calm: time.Second, LogLevel: "info", Out: t.Output()})
	if r != nil {
		r.Print(t.Output())
	}
	if err != nil {
		t.Fatal(err)
	}
	if len(r.Failures) > 0 || r.Rounds != 2 || r.Total.Acked < 100 || r.Total.Reads < 50 {
		t.Errorf("%d failures in %d rounds, %d acked, %d read; want 0, 2, at least 100 and 50", len(r.Failures), r.Rounds, r.Total.Acked, r.Total.Reads)
	}
	if c := &r.Total; c.Claims < 1000 || c.Reigns < 64 || c.States != 128 || c.Uncompared != 0 || c.Hashes < 256 {
		t.Errorf("heard %d claims of %d ownerships, compared %d shards and %d not, %d hashes", c.Claims, c.Reigns, c.States, c.Uncompared, c.Hashes)
	}
}

func build(t *testing.T, env []string, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", append([]string{"build"}, args...)...)
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0", "GOTOOLCHAIN=local"), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("go build %v: %v\n%s", args, err, out)
	}
}

// The checks must be able to fail: what a register could not have answered is told, and blamed on the right read.
func TestRegister(t *testing.T) {
	b := &Bench{procs: []*proc{{name: "n1"}, {name: "n2"}}}
	ms := func(n int) time.Duration { return time.Duration(n) * time.Millisecond }
	writes := []write{{value: 1, call: ms(0), done: ms(10)}, {value: 2, call: ms(20), done: ms(50)}, {value: 3, call: ms(60)}}
	for _, c := range []struct {
		name  string
		reads []reading
		want  porcupine.CheckResult
	}{
		{"in order", []reading{{value: 1, call: ms(11), done: ms(12)}, {value: 2, call: ms(51), done: ms(52)}}, porcupine.Ok},
		{"while it is written", []reading{{value: 2, call: ms(21), done: ms(30)}, {value: 2, call: ms(31), done: ms(40)}}, porcupine.Ok},
		{"of an outcome unknown", []reading{{value: 3, call: ms(70), done: ms(80)}}, porcupine.Ok},
		{"before the first", []reading{{value: 0, call: ms(0), done: ms(5)}}, porcupine.Ok},
		{"what was overwritten", []reading{{node: 1, value: 1, call: ms(51), done: ms(52)}}, porcupine.Illegal},
		{"what was not yet sent", []reading{{value: 3, call: ms(51), done: ms(52)}}, porcupine.Illegal},
		{"back again", []reading{{value: 2, call: ms(21), done: ms(30)}, {value: 1, call: ms(31), done: ms(40)}}, porcupine.Illegal},
	} {
		if got, _ := linearizable(0, writes, c.reads); got != c.want {
			t.Errorf("%s: porcupine says %v, want %v", c.name, got, c.want)
		}
		if blame := b.blame(0, writes, c.reads); c.want == porcupine.Ok && blame != "" {
			t.Errorf("%s: blamed without need: %s", c.name, blame)
		}
	}
	if blame := b.blame(0, writes, []reading{{node: 1, value: 1, call: ms(51), done: ms(52)}}); blame != "n2 answered 1 to a question from 0.051 to 0.052 s, when 2 was acked at 0.050 s" {
		t.Errorf("blame says %q", blame)
	}
}

// A device's longest span without ack counts from and to the edges of the window.
func TestGaps(t *testing.T) {
	f := &fleet{devices: []*device{{}, {}, {}}}
	for i, acks := range [][]int{{1, 5, 6, 12}, {2, 11}, {1}} {
		for _, s := range acks {
			f.devices[i].mu.writes = append(f.devices[i].mu.writes, write{done: time.Duration(s) * time.Second})
		}
	}
	if got, want := fmt.Sprint(f.gaps(4*time.Second, 10*time.Second)), "[4s 6s 6s]"; got != want {
		t.Errorf("gaps are %s, want %s", got, want)
	}
}

// The gate holds who comes and waits for who is inside.
func TestGate(t *testing.T) {
	g := newGate()
	g.set(true)
	if err := g.enter(t.Context()); err != nil {
		t.Fatal(err)
	}
	idle := g.set(false)
	select {
	case <-idle:
		t.Error("idle while somebody works")
	default:
	}
	entered := make(chan error)
	go func() { entered <- g.enter(t.Context()) }()
	g.leave()
	<-idle
	g.set(true)
	if err := <-entered; err != nil {
		t.Error(err)
	}
}
