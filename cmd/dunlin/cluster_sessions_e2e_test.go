package main_test

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// revive starts nodes that were members before, all at once: none of them is ready without a majority. They take new
// addresses between each other, which all of them are told.
func (h *herd) revive(names ...string) {
	h.t.Helper()
	at := map[string]string{}
	taken := h.doors()
	for _, name := range names {
		at[name] = freeTrio(h.t, taken)
		taken = append(taken, trio(at[name])...)
	}
	for _, name := range names {
		h.nodes[name].Cluster = at[name] // where command says that others are
	}
	started := make([]*node, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		args := []string{"--cluster", at[name]}
		for _, other := range names {
			if other != name {
				args = append(args, "--join", at[other])
			}
		}
		cmd := h.command(name, args...)
		wg.Go(func() { started[i] = launch(h.t, cmd) })
	}
	wg.Wait()
	for i, name := range names {
		if started[i] == nil {
			h.t.FailNow() // launch has said why
		}
		h.nodes[name] = started[i]
	}
}

// doors are the addresses that nodes had, and have again when they are back.
func (h *herd) doors() []string {
	var all []string
	for _, n := range h.nodes {
		all = append(all, n.HTTP, n.MQTT, n.CoAP)
	}
	return all
}

// trio are the addresses that a node takes for gossip, links and calls.
func trio(first string) []string {
	addr := netip.MustParseAddrPort(first)
	var all []string
	for off := range uint16(3) {
		all = append(all, netip.AddrPortFrom(addr.Addr(), addr.Port()+off).String())
	}
	return all
}

// freeTrio finds three ports in a row that nobody listens on, for gossip, links and calls of a node; those in taken are for others.
func freeTrio(t *testing.T, taken []string) string {
	t.Helper()
	for range 100 {
		first, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		at := first.Addr().String()
		all := trio(at)
		free := !slices.ContainsFunc(all, func(addr string) bool { return slices.Contains(taken, addr) })
		for _, addr := range all[1:] {
			l, err := net.Listen("tcp", addr)
			if free = free && err == nil; err == nil {
				l.Close()
			}
		}
		u, err := net.ListenPacket("udp", at)
		if free = free && err == nil; err == nil {
			u.Close()
		}
		first.Close()
		if free {
			return at
		}
	}
	t.Fatal("no three free ports in a row")
	return ""
}

// publish has a foreign client send the numbers from first to last, in one connection, and waits until all are acked.
func publish(t *testing.T, n *node, device string, first, last int) {
	t.Helper()
	var in bytes.Buffer
	for v := first; v <= last; v++ {
		fmt.Fprintf(&in, "{\"temp\": %d}\n", v)
	}
	cmd := exec.CommandContext(t.Context(), foreign(t, "mosquitto_pub"), "-h", "127.0.0.1", "-p", port(n.MQTT), "-q", "1", "-t", "d/"+device+"/t", "-l")
	cmd.Stdin = &in
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("mosquitto_pub: %v\n%s", err, out)
	}
}

// listen has a foreign client of a kept session print so many messages, or what comes within a time, and leave at once. It returns
// when the node knows that it has left: what a client has acknowledged may come again if it turns up elsewhere before that.
func listen(t *testing.T, n *node, id string, args ...string) (temps []int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), foreign(t, "mosquitto_sub"), append([]string{"-h", "127.0.0.1", "-p", port(n.MQTT), "-c", "-i", id, "-q", "1", "-t", "d/+/t"}, args...)...)
	out, err := cmd.Output()
	if err != nil && (cmd.ProcessState == nil || cmd.ProcessState.ExitCode() != 27) { // 27: its time is over
		t.Fatalf("mosquitto_sub: %v\n%s", err, out)
	}
	n.waitMetric("dunlin_mqtt_connections 0")
	for line := range strings.Lines(string(out)) {
		var recs []struct{ V int }
		if err := json.Unmarshal([]byte(line), &recs); err != nil || len(recs) != 1 {
			t.Fatalf("message %q: %v", line, err)
		}
		temps = append(temps, recs[0].V)
	}
	return temps
}

func upTo(first, last int) (s []int) {
	for v := first; v <= last; v++ {
		s = append(s, v)
	}
	return s
}

// connect opens a kept session of MQTT 3.1.1 and returns what CONNACK says of it.
func connect(t *testing.T, n *node, id string) (c net.Conn, present bool) {
	t.Helper()
	c, err := net.Dial("tcp", n.MQTT)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	body := append([]byte{0, 4, 'M', 'Q', 'T', 'T', 4, 0, 0, 60, 0, byte(len(id))}, id...)
	if _, err := c.Write(append([]byte{0x10, byte(len(body))}, body...)); err != nil {
		t.Fatal(err)
	}
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	ack := make([]byte, 4)
	if _, err := io.ReadFull(c, ack); err != nil || ack[0] != 0x20 || ack[3] != 0 {
		t.Fatalf("CONNACK %x, %v", ack, err)
	}
	return c, ack[2]&1 == 1
}

// An application's session is the cluster's: it goes on at any node, also when its own has died or all of them were
// restarted. What it was sent and has acknowledged does not come again, what it missed comes in order, and it has one connection.
func TestSessionsMoveBetweenNodes(t *testing.T) {
	sub := foreign(t, "mosquitto_sub")
	h := gather(t, "a", "b", "c")
	a, b, c := h.nodes["a"], h.nodes["b"], h.nodes["c"]
	h.rule(a)
	publish(t, b, "dev-00", 0, 0)
	if got := listen(t, a, "app", "-E"); len(got) != 0 {
		t.Errorf("a new session heard %v", got)
	}

	publish(t, b, "dev-00", 1, 60)
	if got := listen(t, c, "app", "-C", "60", "-W", "10"); !slices.Equal(got, upTo(1, 60)) {
		t.Errorf("at another node it heard %v, want 1 to 60", got)
	}
	publish(t, a, "dev-00", 61, 62)
	if got := listen(t, b, "app", "-C", "2", "-W", "10"); !slices.Equal(got, upTo(61, 62)) {
		t.Errorf("after 60 acknowledged messages it heard %v, want 61 and 62", got)
	}

	// A session that was left in order at a node that then dies, and one whose client was connected when it died.
	if got := listen(t, a, "app", "-E"); len(got) != 0 {
		t.Errorf("with nothing new it heard %v", got)
	}
	dying := exec.Command(foreign(t, "stdbuf"), "-oL", sub, "-h", "127.0.0.1", "-p", port(a.MQTT), "-c", "-i", "dying", "-q", "1", "-t", "d/+/t", "-d", "-v")
	heard := startText(t, dying)
	heard("Subscribed")
	publish(t, b, "dev-00", 63, 72)
	heard("d/dev-00/t", "72")
	a.kill()
	_ = dying.Process.Kill() // it would go on trying
	publish(t, b, "dev-00", 73, 92)
	began := time.Now()
	if got := listen(t, c, "app", "-C", "30", "-W", "10"); !slices.Equal(got, upTo(63, 92)) {
		t.Errorf("after its node's death it heard %v, want 63 to 92", got)
	}
	got := listen(t, b, "dying", "-W", "3")
	again := slices.Index(got, 73)
	if again < 0 || !slices.Equal(got[again:], upTo(73, 92)) || again > 10 || again > 0 && !slices.Equal(got[:again], upTo(73-again, 72)) {
		t.Errorf("connected when its node died, it heard %v, want 73 to 92 with some of 63 to 72 again before", got)
	}
	t.Logf("both sessions were served %v after the kill, %d of 10 messages twice", time.Since(began).Round(time.Millisecond), max(again, 0))
	a = h.add("a")
	h.wait("b", "whole cluster", func(st *dunlin.ClusterStatus) bool { return st.Healthy && st.Alive == 3 && len(st.Moves) == 0 })

	for _, n := range []*node{a, b, c} { // one connection at a time, wherever
		_, present := connect(t, n, "app")
		if !present {
			t.Error("the session is not present")
		}
	}
	old, _ := connect(t, a, "app")
	connect(t, b, "app")
	_ = old.SetReadDeadline(time.Now().Add(10 * time.Second))
	if rest, err := io.ReadAll(old); err != nil {
		t.Errorf("the connection that was taken over is not closed: %v, after %x", err, rest)
	}
	five := stream(t, foreign(t, "stdbuf"), "-oL", sub, "-V", "mqttv5", "-x", "3600", "-h", "127.0.0.1", "-p", port(c.MQTT), "-c", "-i", "app", "-q", "1", "-t", "d/+/t", "-d")
	five("CONNACK (0)")
	connect(t, a, "app")
	five("Received DISCONNECT (142)")

	// All of them are restarted, and nobody waits until the shards have settled: what is published changes its way under way.
	for first := 93; first < 93+3*20; first += 20 {
		for _, n := range h.nodes {
			n.kill()
		}
		h.revive("a", "b", "c")
		publish(t, h.nodes["b"], "dev-00", first, first+19)
		if got := listen(t, h.nodes["c"], "dying", "-C", "20", "-W", "20"); !slices.Equal(got, upTo(first, first+19)) {
			t.Errorf("after a restart of all nodes it heard %v, want %d to %d", got, first, first+19)
		}
	}
	if _, present := connect(t, h.nodes["a"], "dying"); !present {
		t.Error("after a restart of all nodes the session is not present")
	}
}
