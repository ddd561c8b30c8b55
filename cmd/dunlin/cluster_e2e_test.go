package main_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/internal/load"
)

// herd is a cluster of processes on loopback.
type herd struct {
	t     *testing.T
	key   string
	dir   string
	bin   string
	nodes map[string]*node
}

// gather starts a cluster of nodes of the given names, and returns once every shard has all its replicas.
func gather(t *testing.T, names ...string) *herd {
	t.Helper()
	h := &herd{t: t, key: strings.TrimSpace(command(t, binary, "cluster", "key", "--new")), dir: t.TempDir(), bin: binary, nodes: map[string]*node{}}
	for _, name := range names {
		h.add(name)
	}
	h.wait(names[0], "all replicas", func(st *dunlin.ClusterStatus) bool { return st.Healthy && st.Alive == len(names) })
	return h
}

// command makes the command line of a member; its addresses are those it had before, if it ran before.
func (h *herd) command(name string, args ...string) *exec.Cmd {
	at := node{HTTP: "127.0.0.1:0", MQTT: "127.0.0.1:0", CoAP: "127.0.0.1:0", Cluster: "127.0.0.1:0"}
	if old := h.nodes[name]; old != nil {
		at = node{HTTP: old.HTTP, MQTT: old.MQTT, CoAP: old.CoAP, Cluster: "127.0.0.1:0"}
	}
	for other, n := range h.nodes {
		if other != name && !slices.Contains(args, "--join") {
			args = append(args, "--join", n.Cluster)
			break
		}
	}
	cmd := exec.Command(h.bin, append([]string{"server", "--data", filepath.Join(h.dir, name), "--name", name, "-o", "json", "--repair-after", "1h",
		"--default-domain", "cold-chain", "--http", at.HTTP, "--mqtt", at.MQTT, "--coap", at.CoAP, "--cluster", at.Cluster}, args...)...)
	cmd.Env = append(os.Environ(), "DUNLIN_CLUSTER_KEY="+h.key, "DUNLIN_SHARDS=16")
	return cmd
}

func (h *herd) add(name string) *node {
	h.t.Helper()
	n := launch(h.t, h.command(name))
	h.nodes[name] = n
	return n
}

// wait asks a member for the cluster's status until it is as wanted, for at most a minute.
func (h *herd) wait(name, what string, ok func(*dunlin.ClusterStatus) bool) {
	h.t.Helper()
	var st dunlin.ClusterStatus
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); <-time.After(50 * time.Millisecond) {
		h.nodes[name].get("/v1/cluster", &st)
		if ok(&st) {
			return
		}
	}
	h.t.Fatalf("no %s after a minute: %+v", what, st)
}

// fleet is devices with their ledgers, spread over nodes.
type fleet struct {
	devs  []*ledger
	base  int64
	count atomic.Int64
	stop  chan struct{}
	wg    sync.WaitGroup
}

// play lets devices send through the nodes until halt. Each keeps to its node; what is not acked is repeated.
func play(t *testing.T, prefix string, devices int, nodes ...*node) *fleet {
	t.Helper()
	f := &fleet{base: time.Now().Add(-time.Hour).UnixMilli(), stop: make(chan struct{})}
	for i := range devices {
		dev := &ledger{device: fmt.Sprintf("%s-%02d", prefix, i), acked: map[int64]float64{}}
		f.devs = append(f.devs, dev)
		n := nodes[i%len(nodes)]
		protocol, addr := "mqtt", n.MQTT
		if i/len(nodes)%2 == 1 {
			protocol, addr = "coap", n.CoAP
		}
		c, err := load.Dial(protocol, addr, dev.device, "", "")
		if err != nil {
			t.Fatal(err)
		}
		f.wg.Go(func() {
			defer c.Close()
			if err := f.device(dev, c); err != nil {
				t.Errorf("%s over %s: %v", dev.device, protocol, err)
			}
		})
	}
	return f
}

// device sends until halt, about a hundred times a second.
func (f *fleet) device(dev *ledger, c load.Client) error {
	for i := int64(0); ; i++ {
		select {
		case <-f.stop:
			return nil
		case <-time.After(10 * time.Millisecond):
		}
		at, temp := f.base+i, 4.0
		if i%20 == 10 {
			temp = 1000
		}
		body := fmt.Appendf(nil, `[{"bn":"%s:","bt":%d.%03d,"n":"temp","v":%g}]`, dev.device, at/1000, at%1000, temp)
		err := c.Send(dev.device, body)
		for deadline := time.Now().Add(20 * time.Second); err != nil && time.Now().Before(deadline); <-time.After(20 * time.Millisecond) {
			if errors.Is(err, load.ErrRefused) { // answered: what follows is another message
				err = c.Send(dev.device, body)
			} else if e := c.Reconnect(); e == nil {
				err = c.Repeat()
			}
		}
		if err != nil {
			return err
		}
		dev.acked[at] = temp
		f.count.Add(1)
	}
}

// more waits until so many more uplinks were acked.
func (f *fleet) more(t *testing.T, n int64) {
	t.Helper()
	from := f.count.Load()
	for deadline := time.Now().Add(30 * time.Second); f.count.Load() < from+n; <-time.After(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d uplinks were acked in 30 s, want %d", f.count.Load()-from, n)
		}
	}
}

// halt ends the load and compares what every node answers with the ledgers.
func (f *fleet) halt(t *testing.T, nodes ...*node) {
	t.Helper()
	close(f.stop)
	f.wg.Wait()
	for i, dev := range f.devs {
		n := nodes[i%len(nodes)]
		checkReadings(t, n, dev)
		checkAlerts(t, n, dev)
	}
	t.Logf("%d uplinks acked", f.count.Load())
}

func (h *herd) rule(through *node) {
	h.t.Helper()
	wasm := filepath.Join("internal", "builtin", "modules", "cold-chain.wasm")
	command(h.t, h.bin, "plugin", "push", wasm, "--server", "http://"+through.HTTP)
	h.put(through, "/v1/domains/cold-chain", `{"unknown_devices":"register","description":"boxes","owner":"you",
		"pipeline":[{"plugin":"cold-chain","config":{"max":8,"clear_below":7,"silent_minutes":1440,"door_open_minutes":600}}]}`)
}

func (h *herd) put(n *node, path, body string) {
	h.t.Helper()
	req, err := http.NewRequest(http.MethodPut, "http://"+n.HTTP+path, strings.NewReader(body))
	if err != nil {
		h.t.Fatal(err)
	}
	req.Header.Set("Content-Type", "application/json")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		h.t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); resp.StatusCode/100 != 2 {
		h.t.Fatalf("PUT %s: %s %s", path, resp.Status, b)
	}
}

// Three nodes are one: what is pushed at one works at all, devices speak to any, a subscriber at one hears devices of another.
// One is killed under load, and nobody but its own clients notices more than a pause: nothing acked is lost, no alert comes twice.
func TestThreeNodesAsOne(t *testing.T) {
	sub := foreign(t, "mosquitto_sub")
	h := gather(t, "a", "b", "c")
	a, b, c := h.nodes["a"], h.nodes["b"], h.nodes["c"]
	h.rule(b)
	heard := stream(t, sub, "-h", "127.0.0.1", "-p", port(c.MQTT), "-q", "1", "-t", "d/+/a", "-v")
	pub := foreign(t, "mosquitto_pub")
	told := make(chan string, 1)
	go func() { told <- heard("d/sh-00/a", "too-warm") }()
	for deadline := time.Now().Add(20 * time.Second); ; { // until the subscription stands
		command(t, pub, "-h", "127.0.0.1", "-p", port(a.MQTT), "-q", "1", "-t", "d/sh-00/t", "-m", `{"temp": 1000}`)
		select {
		case <-told:
		case <-time.After(200 * time.Millisecond):
			if time.Now().After(deadline) {
				t.Fatal("the subscriber at c heard no alert of a device at a")
			}
			continue
		}
		break
	}

	f := play(t, "kill", 30, b, c)
	f.more(t, 1000)
	began := time.Now()
	a.kill()
	f.more(t, 1000)
	t.Logf("1000 acks within %v of the kill", time.Since(began).Round(time.Millisecond))
	a = h.add("a")
	h.wait("b", "whole cluster", func(st *dunlin.ClusterStatus) bool { return st.Healthy && st.Alive == 3 })
	f.more(t, 500)
	f.halt(t, a, b, c)
}

// A cluster of three is upgraded node by node under load, by a build that speaks a later version on the wire and in entries.
// The old version is written until the last node has the new build; then nobody with the old one is let in. Replicas of both
// builds are the same all the while.
func TestRollingUpgrade(t *testing.T) {
	next := filepath.Join(t.TempDir(), "dunlin-next")
	if err := goBuild(nil, "-tags", "dunlin_next", "-o", next, "."); err != nil {
		t.Fatal(err)
	}
	h := gather(t, "a", "b", "c")
	h.rule(h.nodes["a"])
	f := play(t, "up", 12, h.nodes["a"], h.nodes["b"], h.nodes["c"])
	f.more(t, 300)
	h.bin = next
	for i, name := range []string{"a", "b", "c"} {
		h.wait(name, "version 2 while there is an old node", func(st *dunlin.ClusterStatus) bool { return st.Entries == 2 })
		h.nodes[name].interrupt()
		h.add(name)
		h.wait(name, "whole cluster", func(st *dunlin.ClusterStatus) bool { return st.Healthy && st.Alive == 3 })
		f.more(t, 300)
		command(t, binary, "cluster", "shards", "--verify", "--server", "http://"+h.nodes[name].HTTP)
		t.Logf("%d of 3 upgraded", i+1)
	}
	h.wait("b", "version 3", func(st *dunlin.ClusterStatus) bool { return st.Entries == 3 })
	f.more(t, 300)
	f.halt(t, h.nodes["a"], h.nodes["b"], h.nodes["c"])

	h.bin = binary
	out, err := h.command("d").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "newer dunlin") {
		t.Errorf("an old build joins: %v\n%s", err, out)
	}
}

// Without a majority nothing is acked, and every protocol says so in its own words; when it is back, so is the service.
func TestWithoutAMajority(t *testing.T) {
	coap := foreign(t, "coap-client-notls", "coap-client")
	h := gather(t, "a", "b", "c")
	h.rule(h.nodes["a"])
	a := h.nodes["a"]
	h.nodes["b"].kill()
	h.nodes["c"].kill()
	body := `[{"n":"temp","v":4}]`
	deadline := time.Now().Add(20 * time.Second)
	for {
		resp, err := http.Post("http://"+a.HTTP+"/v1/devices/dev-00/t", "application/senml+json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == 503 && resp.Header.Get("Retry-After") != "" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("POST without a majority: %s, Retry-After %q", resp.Status, resp.Header.Get("Retry-After"))
		}
	}
	out, _ := exec.Command(coap, "-v", "6", "-B", "8", "-m", "post", "-t", "110", "-e", body, "coap://"+a.CoAP+"/d/dev-00/t").CombinedOutput()
	if !strings.Contains(string(out), "5.03") || !strings.Contains(string(out), "Max-Age") {
		t.Errorf("CoAP without a majority:\n%s", out)
	}
	c, err := load.Dial("mqtt", a.MQTT, "dev-00", "", "")
	if err == nil { // it may be let in, but not be acked
		acked := make(chan error, 1)
		go func() { acked <- c.Send("dev-00", []byte(body)) }()
		select {
		case err := <-acked:
			if err == nil {
				t.Error("MQTT acked without a majority")
			}
		case <-time.After(2 * time.Second):
		}
		c.Close()
	}
	// The node that it is told to join is gone for good; it knows a from before.
	h.nodes["b"] = launch(t, h.command("b", "--join", h.nodes["c"].Cluster))
	n := a
	for deadline := time.Now().Add(20 * time.Second); ; <-time.After(50 * time.Millisecond) {
		resp, err := http.Post("http://"+n.HTTP+"/v1/devices/dev-00/t", "application/senml+json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode/100 == 2 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("POST with a majority again: %s", resp.Status)
		}
	}
}

// Nodes that do not belong are refused with what to do; and the one node that is left of a cluster goes on alone.
func TestStrangersAndSurvivors(t *testing.T) {
	h := gather(t, "a", "b", "c")
	h.rule(h.nodes["a"])
	post(t, h.nodes["b"], "dev-00", `{"temp": 5}`)
	refused := func(what string, cmd *exec.Cmd, words ...string) {
		t.Helper()
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		select {
		case err := <-ended:
			if err == nil {
				t.Errorf("%s is let in", what)
			}
		case <-time.After(20 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
			t.Errorf("%s goes on trying:\n%s", what, out.String())
		}
		for _, w := range words {
			if !strings.Contains(out.String(), w) {
				t.Errorf("%s is not told %q:\n%s", what, w, out.String())
			}
		}
	}
	wrong := h.command("stranger")
	wrong.Env = append(wrong.Env, "DUNLIN_CLUSTER_KEY="+strings.Repeat("ab", 32))
	refused("a node with another key", wrong, "key")
	refused("a node with the name of a living one", exec.Command(wrong.Path, append(h.command("x").Args[1:], "--name", "b")...), "cluster key")

	other := gather(t, "z")
	other.nodes["z"].interrupt()
	moved := other.command("z", "--join", h.nodes["a"].Cluster)
	moved.Env = append(moved.Env, "DUNLIN_CLUSTER_KEY="+h.key)
	refused("a data folder of another cluster", moved, "cluster", "empty data folder")

	for _, name := range []string{"a", "b", "c"} {
		h.nodes[name].kill()
	}
	data := filepath.Join(h.dir, "b")
	account := command(t, h.bin, "cluster", "recover", "--data", data)
	if !strings.Contains(account, "is lost") || !strings.Contains(account, "Nothing was changed") {
		t.Errorf("the account:\n%s", account)
	}
	ask := exec.Command(h.bin, "cluster", "recover", "--data", data, "--unsafe")
	ask.Stdin = strings.NewReader("no\n")
	if out, err := ask.CombinedOutput(); err == nil || !strings.Contains(string(out), "nothing was changed") {
		t.Errorf("a wrong answer: %v\n%s", err, out)
	}
	command(t, h.bin, "cluster", "recover", "--data", data, "--unsafe", "--yes")
	delete(h.nodes, "a")
	delete(h.nodes, "c")
	b := h.add("b")
	var st struct {
		Reported map[string]struct{ Value float64 }
	}
	b.get("/v1/devices/dev-00/state", &st)
	if st.Reported["temp"].Value != 5 {
		t.Errorf("after recover: %+v", st)
	}
	post(t, b, "dev-00", `{"temp": 6}`)
}

// Members come and go under load: 1, 3, 5, 3 nodes. The first of all is among those that leave.
func TestGrowAndShrink(t *testing.T) {
	h := gather(t, "a")
	a := h.nodes["a"]
	h.rule(a)
	first := play(t, "grow", 6, a)
	first.more(t, 200)
	b, c := h.add("b"), h.add("c")
	h.wait("b", "three replicas", func(st *dunlin.ClusterStatus) bool { return st.Healthy && st.Members == 3 })
	f := play(t, "stay", 6, b, c)
	f.more(t, 200)
	d, e := h.add("d"), h.add("e")
	h.wait("d", "five members", func(st *dunlin.ClusterStatus) bool { return st.Healthy && st.Members == 5 && len(st.Moves) == 0 })
	first.more(t, 200)
	first.halt(t, a, b, c, d, e)
	for _, name := range []string{"a", "e"} {
		command(t, h.bin, "cluster", "leave", name, "--server", "http://"+b.HTTP)
	}
	h.wait("c", "three members", func(st *dunlin.ClusterStatus) bool { return st.Healthy && st.Members == 3 && len(st.Moves) == 0 })
	f.more(t, 200)
	f.halt(t, b, c, d)
	for i, dev := range first.devs {
		checkReadings(t, []*node{b, c, d}[i%3], dev)
	}
	var members struct{ Items []dunlin.Member }
	d.get("/v1/cluster/members", &members)
	if b, _ := json.Marshal(members); strings.Contains(string(b), `"name":"a"`) {
		t.Errorf("a is still there: %s", b)
	}
}
