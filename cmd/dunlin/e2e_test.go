package main_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// binary is the command under test, built once by TestMain from the checkout as a user would.
var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "dunlin-e2e-")
	if err != nil {
		panic(err)
	}
	if err := buildAll(dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

func buildAll(dir string) error {
	binary = filepath.Join(dir, "dunlin")
	wasm := filepath.Join("internal", "builtin", "modules", "cold-chain.wasm")
	if err := goBuild([]string{"GOOS=wasip1", "GOARCH=wasm"}, "-trimpath", "-ldflags", "-s -w", "-buildmode=c-shared", "-o", wasm, "../../sdk/go/examples/cold-chain"); err != nil {
		return err
	}
	return goBuild(nil, "-trimpath", "-o", binary, ".")
}

func goBuild(env []string, args ...string) error {
	cmd := exec.Command("go", append([]string{"build"}, args...)...)
	cmd.Env = append(append(os.Environ(), "CGO_ENABLED=0", "GOTOOLCHAIN=local"), env...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %v: %w\n%s", args, err, out)
	}
	return nil
}

// node is a running dunlin process.
type node struct {
	t    *testing.T
	cmd  *exec.Cmd
	out  *output
	HTTP string `json:"http"`
	MQTT string `json:"mqtt"`
	CoAP string `json:"coap"`
	PID  int    `json:"pid"`

	Cluster string `json:"cluster"` // where others join it
}

// output collects what the process prints after its readiness line.
type output struct {
	buf  bytes.Buffer
	done chan struct{}
}

// start runs dunlin with the arguments and -o json on free loopback ports, and waits for its readiness line.
func start(t *testing.T, args ...string) *node {
	t.Helper()
	args = append(args, "-o", "json", "--http", "127.0.0.1:0", "--mqtt", "127.0.0.1:0", "--coap", "127.0.0.1:0")
	return launch(t, exec.Command(binary, args...))
}

func launch(t *testing.T, cmd *exec.Cmd) *node {
	t.Helper()
	n := &node{t: t, cmd: cmd, out: &output{done: make(chan struct{})}}
	var stderr bytes.Buffer
	n.cmd.Stderr = &stderr
	pipe, err := n.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = n.cmd.Process.Kill() // it has usually ended
		<-n.out.done
		_ = n.cmd.Wait() // may have been waited for
		if t.Failed() {
			t.Logf("dunlin said:\n%s", stderr.String())
		}
	})
	in := bufio.NewReader(pipe)
	line, err := in.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, n)
	}
	if err != nil {
		close(n.out.done)
		t.Fatalf("readiness line %q: %v\n%s", line, err, stderr.String())
	}
	go func() {
		defer close(n.out.done)
		_, _ = io.Copy(&n.out.buf, in) // ends with the process
	}()
	return n
}

// interrupt is Ctrl-C; it returns how long the process took to end.
func (n *node) interrupt() time.Duration {
	n.t.Helper()
	began := time.Now()
	if err := n.cmd.Process.Signal(os.Interrupt); err != nil {
		n.t.Fatal(err)
	}
	<-n.out.done
	if err := n.cmd.Wait(); err != nil {
		n.t.Errorf("after Ctrl-C: %v", err)
	}
	return time.Since(began)
}

// kill is kill -9.
func (n *node) kill() {
	n.t.Helper()
	if err := n.cmd.Process.Signal(syscall.SIGKILL); err != nil {
		n.t.Fatal(err)
	}
	<-n.out.done
	_ = n.cmd.Wait() // "signal: killed" is what was wanted
}

// get decodes a JSON answer; it fails the test on another status than 200.
func (n *node) get(path string, into any) {
	n.t.Helper()
	resp, err := http.Get("http://" + n.HTTP + path)
	if err != nil {
		n.t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		n.t.Fatalf("GET %s: %s %v\n%s", path, resp.Status, err, body)
	}
	if err := json.Unmarshal(body, into); err != nil {
		n.t.Fatalf("GET %s: %v\n%s", path, err, body)
	}
}

// waitMetric asks /metrics until it has the line, for at most 10 s.
func (n *node) waitMetric(line string) {
	n.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); <-time.After(10 * time.Millisecond) {
		resp, err := http.Get("http://" + n.HTTP + "/metrics")
		if err != nil {
			n.t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			n.t.Fatal(err)
		}
		if strings.Contains(string(body), "\n"+line+"\n") {
			return
		}
	}
	n.t.Fatalf("no %q in /metrics after 10 s", line)
}

// foreign finds a client that nobody here wrote, or skips the test; where .ci/run has installed them, missing is a failure.
func foreign(t *testing.T, names ...string) string {
	t.Helper()
	for _, n := range names {
		if p, err := exec.LookPath(n); err == nil {
			return p
		}
	}
	if os.Getenv("DUNLIN_FOREIGN") == "required" {
		t.Fatalf("none of %v is installed, and DUNLIN_FOREIGN=required", names)
	}
	t.Skipf("SKIPPED: none of %v is installed (Debian: mosquitto-clients, libcoap3-bin, curl)", names)
	return ""
}

// command runs a foreign client to its end, for at most 20 s.
func command(t *testing.T, name string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// stream runs a foreign client that prints lines, until the test ends; next waits for a line that contains all the words.
func stream(t *testing.T, name string, args ...string) (next func(words ...string) string) {
	t.Helper()
	return startText(t, exec.Command(name, args...))
}

// follow reads a started process's output line by line and ends the process with the test.
func follow(t *testing.T, cmd *exec.Cmd, pipe io.Reader) (next func(words ...string) string) {
	name := filepath.Base(cmd.Path)
	lines := make(chan string, 1000) // more than any test prints
	go func() {
		defer close(lines)
		for sc := bufio.NewScanner(pipe); sc.Scan(); {
			lines <- sc.Text()
		}
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it runs until then
		for range lines {
		}
		_ = cmd.Wait() // "signal: killed"
	})
	return func(words ...string) string {
		t.Helper()
		timeout := time.After(20 * time.Second)
		var seen []string
	line:
		for {
			select {
			case l, ok := <-lines:
				if !ok {
					t.Fatalf("%s ended; wanted %q, saw\n%s", name, words, strings.Join(seen, "\n"))
				}
				seen = append(seen, l)
				for _, w := range words {
					if !strings.Contains(l, w) {
						continue line
					}
				}
				return l
			case <-timeout:
				t.Fatalf("%s: no line with %q in 20 s; saw\n%s", name, words, strings.Join(seen, "\n"))
			}
		}
	}
}

func port(addr string) string {
	_, p, _ := net.SplitHostPort(addr)
	return p
}

// startText starts dunlin for its text output; next waits for a line that contains all the words.
func startText(t *testing.T, cmd *exec.Cmd) (next func(words ...string) string) {
	t.Helper()
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	return follow(t, cmd, pipe)
}

// interrupt is Ctrl-C; the process is waited for when the test ends.
func interrupt(t *testing.T, cmd *exec.Cmd) {
	t.Helper()
	if err := cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
}

func post(t *testing.T, n *node, device, body string) {
	t.Helper()
	resp, err := http.Post("http://"+n.HTTP+"/v1/devices/"+device+"/t", "application/json", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode/100 != 2 {
		b, _ := io.ReadAll(resp.Body)
		t.Fatalf("POST: %s %s", resp.Status, b)
	}
}
