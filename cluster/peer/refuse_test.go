package peer

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// Two nodes that must not talk. Both sides say why, in words that tell what to do, once.
func TestRefusals(t *testing.T) {
	strangers := newPKI(t)
	for _, c := range []struct {
		name   string
		change func(l *lan, c *Config) // of node 2
		text   string                  // at node 1, which calls
		other  string                  // at node 2
		is     error
		reason Reason
	}{
		{"foreign cluster", func(_ *lan, c *Config) { c.Self.Cluster = "decaf" },
			"node n2 (0000000000000002) belongs to cluster decaf, you belong to cluster c0ffee: correct the addresses to join, or start with an empty data folder",
			"belongs to cluster", dunlin.ErrConflict, RefusedForeign},
		{"not joined", func(_ *lan, c *Config) { c.Self.Cluster = "" }, "has not joined a cluster yet", "has not joined", dunlin.ErrUnavailable, RefusedNotJoined},
		{"wrong key", func(l *lan, c *Config) { k := strangers.tls(t, 2); c.Server, c.Client = k, k },
			"do not have the same cluster secret. Run `dunlin cluster key`", "do not have the same cluster secret", dunlin.ErrUnauthenticated, 0},
		{"certificate of another node", func(l *lan, c *Config) { k := l.pki.tls(t, 3); c.Server, c.Client = k, k },
			"your certificate is for node 0000000000000003, but you say that you are n2 (0000000000000002)", "is the certificate another node's?", dunlin.ErrUnauthenticated, RefusedCertificate},
		{"a copy of this node", func(l *lan, c *Config) { c.Self.Node = 1; k := l.pki.tls(t, 1); c.Server, c.Client = k, k },
			"have the same id: one data folder is a copy of the other", "have the same id", dunlin.ErrConflict, RefusedTwin},
		{"another node's address", func(l *lan, c *Config) { c.Self.Node = 3; k := l.pki.tls(t, 3); c.Server, c.Client = k, k },
			"node n2 (0000000000000003) is there instead", "", dunlin.ErrUnavailable, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			lan := newLAN(t)
			a := lan.node(1)
			b := lan.unlisted(2, func(cfg *Config) { c.change(lan, cfg) })
			lan.set(2, b.Addr().String())
			_, err := a.Call(within(t, 10*time.Second), 2, "echo", nil)
			if err == nil || !strings.Contains(err.Error(), c.text) || !errors.Is(err, c.is) || !errors.Is(err, dunlin.ErrUnavailable) {
				t.Errorf("node 1 got %v\nwant %q and %v", err, c.text, c.is)
			}
			var r *Refusal
			if c.reason != 0 && (!errors.As(err, &r) || r.Reason != c.reason) {
				t.Errorf("node 1 got reason %v, want %v", r, c.reason)
			}
			eventually(t, "node 2 says why", func() bool { return b.log.count("turned ") > 0 || c.other == "" })
			if c.other != "" && b.log.count(c.other) == 0 {
				t.Errorf("node 2 does not say %q", c.other)
			}
			for range 5 { // trying again and again is no news
				a.Kick(2)
				pass(20 * time.Millisecond)
			}
			if n, m := a.log.count("no link to a node"), b.log.count("turned "); n != 1 || m > 1 {
				t.Errorf("logged %d times by who dials, %d times by who is dialled; want once each\n%s\n%s", n, m, a.log.buf.String(), b.log.buf.String())
			}
			if s := a.status(2); s.Connected || !strings.Contains(s.Problem, c.text) {
				t.Errorf("status %+v", s)
			}
		})
	}
}

func TestVersions(t *testing.T) {
	node := func(name string, lo, hi uint32, boot uint64) *hello {
		return &hello{Hello: Hello{Cluster: "c", Node: dunlin.NodeID(boot), Name: name, WireMin: lo, WireMax: hi, Version: "v" + name}, boot: boot}
	}
	for _, c := range []struct {
		lo, hi, theirLo, theirHi uint32
		want                     uint32
		text                     string
	}{
		{1, 1, 1, 1, 1, ""},
		{1, 3, 2, 5, 3, ""},
		{2, 5, 1, 3, 3, ""},
		{1, 9, 4, 4, 4, ""},
		{1, 2, 3, 4, 0, "node me (0000000000000001) (dunlin vme) speaks versions 1 to 2 between nodes, you (dunlin vyou) 3 to 4: upgrade me to a release that speaks at least version 3"},
		{3, 4, 1, 2, 0, "you (dunlin vyou) 1 to 2: upgrade you, the node that reads this, to a release that speaks at least version 3"},
	} {
		v, r := greet(node("me", c.lo, c.hi, 1), node("you", c.theirLo, c.theirHi, 2), kindLink, 0)
		if v != c.want || (r == nil) != (c.text == "") || r != nil && (!strings.Contains(r.Text, c.text) || r.Reason != RefusedVersion || !errors.Is(r, dunlin.ErrPrecondition)) {
			t.Errorf("%d–%d and %d–%d: %d, %v; want %d, %q", c.lo, c.hi, c.theirLo, c.theirHi, v, r, c.want, c.text)
		}
	}
	// On the wire, from a release of the future.
	lan := newLAN(t)
	a := lan.node(1)
	c := lan.stranger(a.Addr().String(), 2)
	h := &hello{Hello: Hello{Cluster: "c0ffee", Node: 2, Name: "new", WireMin: 7, WireMax: 9, Version: "9.0"}, kind: kindLink, boot: 1}
	b := append(h.append(nil), "what later versions say"...)
	b[len(magic)] += byte(len("what later versions say"))
	if _, err := c.Write(b); err != nil {
		t.Fatal(err)
	}
	if _, err := readHello(c); err != nil {
		t.Fatal(err)
	}
	if r := drain(t, c); r == nil || r.Reason != RefusedVersion || !strings.Contains(r.Text, "upgrade n1 to a release that speaks at least version 7") {
		t.Errorf("refused with %v", r)
	}
}

func TestAForgottenNodeStaysOut(t *testing.T) {
	lan := newLAN(t)
	refused := make(chan error, 10)
	a := lan.node(1)
	b := lan.node(2, func(c *Config) { c.OnRefused = func(_ dunlin.NodeID, err error) { refused <- err } })
	send(t, b, a, 1, []byte("I was here"))
	a.Forget(2)
	select {
	case err := <-refused:
		var r *Refusal
		if !errors.As(err, &r) || r.Reason != RefusedLeft || !strings.Contains(err.Error(), "has left cluster c0ffee for good: start it with an empty data folder to join again") {
			t.Errorf("told %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("nobody told node 2")
	}
	for _, f := range []func() error{
		func() error { _, err := b.Call(within(t, time.Second), 1, "echo", nil); return err },
		func() error { _, err := a.Call(within(t, time.Second), 2, "echo", nil); return err },
		func() error {
			_, _, err := b.CallAddr(within(t, time.Second), a.Addr().String(), "echo", nil)
			return err
		},
	} {
		if err := f(); !errors.Is(err, dunlin.ErrForbidden) {
			t.Errorf("got %v, want %v", err, dunlin.ErrForbidden)
		}
	}
	eventually(t, "no connection is left", func() bool { return a.links() == 0 && b.links() == 0 })
	for _, n := range []*node{a, b} {
		if n.log.count("level=ERROR") > 0 || n.log.count("no link to a node") != 1 {
			t.Errorf("a node that leaves as it was told to is said once, and no error; node %d says\n%s", n.id, n.log.buf.String())
		}
	}
}

// A node that stops is one line in the log of another, however often that one tries to reach it.
func TestStoppedNodeIsSaidOnce(t *testing.T) {
	lan := newLAN(t)
	a, b := lan.node(1), lan.node(2)
	send(t, a, b, 1, []byte("hello"))
	b.stop()
	eventually(t, "node 1 has tried to reach it", func() bool {
		p := (*a.peers.Load())[2]
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.mu.failures > 0
	})
	for range 5 {
		a.Kick(2)
		pass(20 * time.Millisecond)
	}
	if n := a.log.count("no link to a node"); n != 1 || a.log.count("level=ERROR") > 0 {
		t.Errorf("said %d times:\n%s", n, a.log.buf.String())
	}
}

// A second process with a copy of a node's data is refused as long as the first one lives, and the first one does not
// notice; a process that takes the place of a dead one is let in.
func TestTwoProcessesWithOneID(t *testing.T) {
	for _, ids := range [][2]dunlin.NodeID{{1, 2}, {2, 1}} {
		lan := newLAN(t)
		quick := func(c *Config) { c.DeadAfter = 300 * time.Millisecond }
		a, first := lan.node(ids[0], quick), lan.node(ids[1], quick)
		send(t, first, a, 1, []byte("one"))
		links := (*a.peers.Load())[ids[1]].connections.Load()
		second := lan.unlisted(ids[1], quick)
		_, err := second.Call(within(t, 10*time.Second), ids[0], "echo", nil)
		if !errors.Is(err, dunlin.ErrConflict) || !strings.Contains(err.Error(), "two processes run with the same id") {
			t.Errorf("the second process got %v", err)
		}
		if n := (*a.peers.Load())[ids[1]].connections.Load(); n != links {
			t.Errorf("the link changed %d times", n-links)
		}
		first.stop()
		eventually(t, "the second takes its place", func() bool {
			second.Kick(ids[0])
			_, err := second.Call(within(t, time.Second), ids[0], "echo", nil)
			return err == nil
		})
		second.stop()
		a.stop()
	}
}

// Before it has joined, a node can ask, and only ask.
func TestCallAddr(t *testing.T) {
	lan := newLAN(t)
	a := lan.node(1)
	cfg := lan.config(2)
	cfg.Self.Cluster = ""
	cfg.OnMessages = func(dunlin.NodeID, dunlin.ShardID, []byte) {}
	b, err := Open(cfg) // never run
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, n := range []int{0, 100, 5 << 20} {
		got, hello, err := b.CallAddr(within(t, 10*time.Second), a.Addr().String(), "echo", body(n))
		if err != nil || len(got) != n || hello.Cluster != "c0ffee" || hello.Node != 1 || hello.Name != "n1" {
			t.Errorf("%d bytes, %+v, %v", len(got), hello, err)
		}
	}
	if _, _, err := b.CallAddr(within(t, 10*time.Second), a.Addr().String(), "no such", nil); !errors.Is(err, dunlin.ErrNotFound) {
		t.Errorf("got %v", err)
	}
	if _, _, err := a.CallAddr(within(t, 10*time.Second), a.Addr().String(), "echo", nil); err == nil || !strings.Contains(err.Error(), "reached itself") {
		t.Errorf("its own address: %v", err)
	}
	nowhere, _ := net.Listen("tcp", "127.0.0.1:0")
	nowhere.Close()
	if _, _, err := b.CallAddr(within(t, 10*time.Second), nowhere.Addr().String(), "echo", nil); !errors.Is(err, dunlin.ErrUnavailable) {
		t.Errorf("nobody there: %v", err)
	}
	eventually(t, "no connection is left", func() bool { return a.links() == 0 && a.guests.Load() == 0 })
}

// Not everybody who has the port has good manners. The node goes on, and lets others in meanwhile.
func TestHostileConnections(t *testing.T) {
	lan := newLAN(t)
	a := lan.node(1, func(c *Config) { c.DialTimeout, c.HandshakesMax = 500*time.Millisecond, 64 })
	addr := a.Addr().String()
	var silent []net.Conn
	for range 40 {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		silent = append(silent, c)
	}
	for _, c := range silent { // 16 of one host may stay for 500 ms
		drain(t, c)
		c.Close()
	}
	eventually(t, "the silent ones are thrown out", func() bool { a.mu.Lock(); defer a.mu.Unlock(); return len(a.mu.hosts) == 0 })
	for _, garbage := range []string{"GET / HTTP/1.1\r\n\r\n", "\x16\x03\x01\xff\xff" + strings.Repeat("x", 1000), strings.Repeat("\x00", 1<<16)} {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = c.Write([]byte(garbage))
		c.Close()
	}
	for _, b := range []string{"GET / HTTP/1.1\r\n\r\n", magic + "\xff\xff", magic + "\x01\x00\x01", magic + "\x40\x00" + strings.Repeat("\x01", 64)} { // inside TLS
		c := lan.stranger(addr, 2)
		_, _ = c.Write([]byte(b))
		drain(t, c)
	}
	noCert := &tls.Config{InsecureSkipVerify: true, NextProtos: []string{alpn}}
	if c, err := tls.Dial("tcp", addr, noCert); err == nil {
		drain(t, c)
		c.Close()
	}
	b := lan.node(2)
	send(t, b, a, 1, []byte("still there"))
}

// What a node with a good certificate may send wrong, and what it is told.
func TestBrokenFrames(t *testing.T) {
	frame := func(typ byte, b string) string { return string(appendHead(nil, typ, len(b))) + b }
	for _, c := range []struct{ name, bytes, text string }{
		{"type", frame(99, "x"), "frame of type 99"},
		{"empty type", frame(0, ""), "frame of type 0"},
		{"length", "\xff\xff\xff\x05", "frame of type 5 with 16777215 bytes"},
		{"ping", frame(framePing, "1234567"), "a number of 7 bytes"},
		{"raft", frame(frameRaft, "\x01\x00\xff\xff\xff\xff"), "Raft message of 4294967295 bytes"},
		{"raft rest", frame(frameRaft, "\x01\x00\x00\x00\x00\x00x"), "1 bytes at the end"},
		{"call", frame(frameCall, "\x01\x00\x00\x00\x00\x00\x00\x00\xff\xff\xff\xff\x01m"), "body of 4294967295 bytes"},
		{"call body", frame(frameCall, "\x01\x00\x00\x00\x00\x00\x00\x00\x05\x00\x00\x00\x01mxx"), "call with 2 bytes of a body of 5"},
		{"credit", frame(frameReplyCredit, "\x01\x00\x00\x00\x00\x00\x00\x00"), "credit for 0 bytes"},
		{"piece", frame(frameCallPiece, "\x01\x00\x00\x00"), "piece of 0 bytes"},
		{"piece too many", frame(frameCall, "\x01\x00\x00\x00\x00\x00\x00\x00\x40\x9c\x00\x00\x01m") +
			frame(frameCallPiece, "\x01\x00\x00\x00"+strings.Repeat("x", chunkMax)), "65536 bytes of a body where 40000 were asked for"},
		{"use", frame(frameUse, "12345678"), "Use from the node with the larger id"},
		{"twice", strings.Repeat(frame(frameCall, "\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x01\x00\x01m"), 2), "two calls number 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			lan := newLAN(t)
			a := lan.node(1, func(c *Config) { c.DeadAfter = 200 * time.Millisecond })
			m := lan.member(a.Addr().String(), 2, kindLink)
			if _, err := m.Write([]byte(c.bytes)); err != nil {
				t.Fatal(err)
			}
			if r := drain(t, m); r == nil || r.Reason != RefusedBroken || !strings.Contains(r.Text, c.text) {
				t.Errorf("told %v, want %q", r, c.text)
			}
			eventually(t, "the connection ends", func() bool { return a.links() == 0 })
		})
	}
}

// Whoever calls more than agreed is told so, and memory does not grow with it.
func TestCallFlood(t *testing.T) {
	lan := newLAN(t)
	var most, now atomicMax
	gate := make(chan struct{})
	a := lan.node(1, func(c *Config) {
		c.CallsMax = 8
		c.Serve = func(ctx context.Context, _ dunlin.NodeID, _ string, b []byte) ([]byte, error) {
			most.see(now.add(1))
			defer now.add(-1)
			select {
			case <-gate:
			case <-ctx.Done():
			}
			return b, nil
		}
	})
	b := lan.node(2, func(c *Config) { c.CallsOutMax = 100 })
	outcomes := make(chan error, 200)
	for range 200 {
		go func() {
			_, err := b.Call(within(t, 10*time.Second), 1, "wait", []byte("x"))
			outcomes <- err
		}()
	}
	for range 192 { // 8 are being served
		if err := <-outcomes; !errors.Is(err, dunlin.ErrOverloaded) {
			t.Fatalf("got %v, want %v", err, dunlin.ErrOverloaded)
		}
	}
	close(gate)
	for range 8 {
		if err := <-outcomes; err != nil {
			t.Error(err)
		}
	}
	if most.see(0) != 8 {
		t.Errorf("%d calls were served at a time, want 8", most.see(0))
	}
	// One that never reads its answers is cut off before they fill the memory.
	m := lan.member(a.Addr().String(), 3, kindLink)
	var reader sync.WaitGroup
	stop := make(chan struct{})
	reader.Go(func() { drainSlowly(m, stop) })
	defer reader.Wait()
	defer m.Close()
	defer close(stop)
	_ = m.SetWriteDeadline(time.Now().Add(10 * time.Second))
	var buf []byte
	for id := range uint32(100_000) {
		q := request{id: id, method: "m"}
		buf = q.appendHead(buf)
	}
	_, err := m.Write(buf)
	eventually(t, "the connection ends", func() bool { return a.links() == 1 })
	t.Logf("the flood ended with %v", err)
}
