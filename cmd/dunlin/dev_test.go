package main_test

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// The demo's promise: simulated devices send, and an alert can be seen within 20 s; Ctrl-C ends it within one.
func TestDevShowsAnAlertWithin20SecondsAndEndsWithin1(t *testing.T) {
	n := start(t, "dev")
	deadline := time.Now().Add(20 * time.Second)
	var page struct {
		Alerts []struct {
			Device string `json:"device"`
			Rule   string `json:"rule"`
		} `json:"items"`
	}
	for len(page.Alerts) == 0 {
		if time.Now().After(deadline) {
			t.Fatal("no alert within 20 s")
		}
		<-time.After(200 * time.Millisecond)
		n.get("/v1/alerts?active=true", &page)
	}
	if a := page.Alerts[0]; a.Device != "fridge-07" || a.Rule != "too-warm" {
		t.Errorf("got %+v", a)
	}
	var devices struct {
		Devices []any `json:"items"`
	}
	n.get("/v1/devices", &devices)
	if len(devices.Devices) != 25 {
		t.Errorf("%d devices", len(devices.Devices))
	}
	if took := n.interrupt(); took > time.Second {
		t.Errorf("Ctrl-C took %v", took)
	}
}

func TestDevMovesToAFreePortAndSaysHowToKeepTheData(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	cmd := exec.Command(binary, "dev", "--sim", "0", "--http", taken.Addr().String(), "--mqtt", "127.0.0.1:0", "--coap", "127.0.0.1:0")
	next := startText(t, cmd)
	next(taken.Addr().String()+" is taken; HTTP moved to", "127.0.0.1:")
	next("coap://", "/d/my-fridge/t")
	next("mosquitto_pub")
	next("curl")
	interrupt(t, cmd)
	next("--data")
}

// The three lines that dev prints work as they are.
func TestPastedLinesWork(t *testing.T) {
	foreign(t, "mosquitto_pub")
	foreign(t, "curl")
	foreign(t, "coap-client-notls", "coap-client", "coap-client-openssl", "coap-client-gnutls")
	cmd := exec.Command(binary, "dev", "--sim", "0", "--http", "127.0.0.1:0", "--mqtt", "127.0.0.1:0", "--coap", "127.0.0.1:0")
	next := startText(t, cmd)
	for _, want := range []struct{ line, answer string }{{"-m post", ""}, {"mosquitto_pub", ""}, {"curl", `"my-fridge"`}} {
		line := strings.TrimSpace(next(want.line, "my-fridge"))
		out := command(t, "sh", "-c", line)
		if !strings.Contains(out, want.answer) {
			t.Errorf("%s: no %s in %s", line, want.answer, out)
		}
	}
	interrupt(t, cmd)
}

// A kept data folder is there again at the next start.
func TestDataIsKept(t *testing.T) {
	dir := t.TempDir()
	n := start(t, "dev", "--sim", "0", "--data", dir)
	post(t, n, "kept", `{"temp": 4.5}`)
	n.interrupt()
	n = start(t, "dev", "--sim", "0", "--data", dir)
	var tw twin
	n.get("/v1/devices/kept/state", &tw)
	if tw.Version != 1 || tw.Reported["temp"].Value != 4.5 {
		t.Errorf("got %+v", tw)
	}
}

// A server that other machines can reach wants credentials first, and says what to do.
func TestServerRefusesToBeExposedWithoutCredentials(t *testing.T) {
	out, err := exec.Command(binary, "server", "--data", t.TempDir(), "--http", "0.0.0.0:0", "--mqtt", "127.0.0.1:0", "--coap", "127.0.0.1:0").CombinedOutput()
	if err == nil {
		t.Fatal("it started")
	}
	for _, want := range []string{"0.0.0.0:0", "credential", "api_token", "--insecure"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("%q is not in: %s", want, out)
		}
	}
}

// `dunlin tail` shows readings and alerts as they are committed, and goes on over a restart of its node without a gap.
func TestTailGoesOnOverARestart(t *testing.T) {
	dir := t.TempDir()
	n := start(t, "dev", "--sim", "0", "--data", dir)
	post(t, n, "tailed", `{"temp": 1}`)
	next := stream(t, binary, "tail", "tailed", "--server", n.HTTP)
	n.waitMetric("dunlin_http_streams 1")
	post(t, n, "tailed", `{"temp": 2}`)
	next("#2", "temp=2")
	n.interrupt()
	n = launch(t, exec.Command(binary, "dev", "--sim", "0", "--data", dir, "-o", "json", "--http", n.HTTP, "--mqtt", n.MQTT, "--coap", n.CoAP))
	for _, temp := range []string{"30", "31", "32"} {
		post(t, n, "tailed", `{"temp": `+temp+`}`)
	}
	next("#3", "temp=30")
	next("#4", "temp=31")
	next("#5", "temp=32")
}

// Three that start at once find the same ports free; each must end up on its own.
func TestDevsThatStartTogetherShareThePortsOut(t *testing.T) {
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := free.Addr().String()
	free.Close()
	cmds := make([]*exec.Cmd, 3)
	outs := make([]func(words ...string) string, 3)
	for i := range cmds {
		cmds[i] = exec.Command(binary, "dev", "--sim", "0", "--http", addr, "--mqtt", "127.0.0.1:0", "--coap", "127.0.0.1:0")
		outs[i] = startText(t, cmds[i])
	}
	for i := range cmds {
		outs[i]("dunlin is ready")
	}
	for i := range cmds {
		interrupt(t, cmds[i])
	}
}

// A terminal that is closed ends dev like Ctrl-C: nothing stays behind in the temporary folder.
func TestDevCleansUpWhenItsTerminalIsClosed(t *testing.T) {
	tmp := t.TempDir()
	cmd := exec.Command(binary, "dev", "--sim", "0", "--http", "127.0.0.1:0", "--mqtt", "127.0.0.1:0", "--coap", "127.0.0.1:0")
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	next := startText(t, cmd)
	next("curl")
	if err := cmd.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	next("dunlin has stopped")
	deadline := time.Now().Add(2 * time.Second)
	for {
		left, err := filepath.Glob(filepath.Join(tmp, "dunlin-dev-*"))
		if err != nil {
			t.Fatal(err)
		}
		if len(left) == 0 {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("left behind: %v", left)
		}
		<-time.After(20 * time.Millisecond)
	}
}
