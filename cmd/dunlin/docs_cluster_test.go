package main_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// loopbacks skips the test where loopback has one address only.
func loopbacks(t *testing.T, net3 string) {
	t.Helper()
	for _, host := range []string{net3 + ".1", net3 + ".3"} {
		ln, err := net.Listen("tcp", host+":0")
		if err != nil {
			t.Skipf("SKIPPED: %v", err)
		}
		ln.Close()
	}
}

// The lines of docs/cluster.md work one after the other: three nodes are founded, one is killed, a fourth comes and leaves,
// one is drained and restarted, and what recover would do is told.
func TestClusterDocLinesWork(t *testing.T) {
	foreign(t, "curl")
	bash := foreign(t, "bash")
	loopbacks(t, "127.0.77")
	doc, err := os.ReadFile("../../docs/cluster.md")
	if err != nil {
		t.Fatal(err)
	}
	script := "set -e\nexport DUNLIN_SERVER=http://127.0.0.1:8080\n"
	for _, block := range strings.Split(string(doc), "```sh\n")[1:] {
		block, _, _ = strings.Cut(block, "```")
		script += block
	}
	if n := strings.Count(script, "\n"); n < 25 {
		t.Fatalf("only %d lines found in docs/cluster.md", n)
	}
	script = strings.NewReplacer("bin/dunlin", binary, "127.0.0.", "127.0.77.").Replace(script)
	cmd := exec.Command(bash, "-c", script)
	cmd.Dir = t.TempDir()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // its nodes end with it, whatever becomes of the script
	said := filepath.Join(t.TempDir(), "said")
	out, err := os.Create(said)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	cmd.Stdout, cmd.Stderr = out, out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	select {
	case err = <-ended:
	case <-time.After(3 * time.Minute):
		err = os.ErrDeadlineExceeded
	}
	_ = syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // nothing is left of it, usually
	text, readErr := os.ReadFile(said)
	if readErr != nil {
		t.Fatal(readErr)
	}
	if err != nil {
		t.Fatalf("%v\n%s", err, text)
	}
	for _, want := range []string{"HEALTHY", "temp    210", "n4 has left", "n4 has ended", "n2 is drained", "what these acknowledged without this node is lost"} {
		if !strings.Contains(string(text), want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
}

// All nodes are killed and started again without --join: they find each other by what they know of each other.
func TestAllRestartedMeetAgainWithoutJoin(t *testing.T) {
	loopbacks(t, "127.0.78")
	dir, key := t.TempDir(), strings.TrimSpace(command(t, binary, "cluster", "key", "--new"))
	run := func(i string, args ...string) *node {
		host := "127.0.78." + i
		cmd := exec.Command(binary, append([]string{"server", "-o", "json", "--name", "n" + i, "--data", filepath.Join(dir, i), "--cluster", host + ":7946",
			"--http", host + ":0", "--mqtt", host + ":0", "--coap", host + ":0"}, args...)...)
		cmd.Env = append(os.Environ(), "DUNLIN_CLUSTER_KEY="+key, "DUNLIN_SHARDS=8")
		return launch(t, cmd)
	}
	h := &herd{t: t, nodes: map[string]*node{}}
	whole := func(st *dunlin.ClusterStatus) bool { return st.Healthy && st.Alive == 3 }
	h.nodes["1"] = run("1")
	h.nodes["2"] = run("2", "--join", "127.0.78.9,127.0.78.1")
	h.nodes["3"] = run("3", "--join", "127.0.78.1")
	h.wait("1", "whole cluster", whole)
	for _, n := range h.nodes {
		n.kill()
	}
	var again [3]*node // all at once: each waits for the others
	var wg sync.WaitGroup
	for i := range again {
		wg.Go(func() { again[i] = run(strconv.Itoa(i + 1)) })
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	h.nodes["1"] = again[0]
	h.wait("1", "whole cluster, without --join", whole)
}
