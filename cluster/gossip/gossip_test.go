package gossip

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/dunlin-iot/dunlin"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func key(b byte) []byte { return bytes.Repeat([]byte{b}, 32) }

// node starts a node on loopback; change may change its settings.
func node(t *testing.T, name string, id dunlin.NodeID, change func(*Config)) *Gossip {
	t.Helper()
	cfg := Config{
		Self: Self{Name: name, ID: id, Cluster: "c1", Zone: "z-" + name, Peer: "127.0.0.1:1", Calls: "127.0.0.1:2",
			HTTP: "h:80", Version: "test", WireMin: 1, WireMax: 2, EntryMax: 3},
		Bind: "127.0.0.1:0", Keys: [][]byte{key(1)},
	}
	if change != nil {
		change(&cfg)
	}
	g, err := Start(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := g.Close(); err != nil {
			t.Error(err)
		}
	})
	return g
}

func join(t *testing.T, g *Gossip, to *Gossip) {
	t.Helper()
	if n, err := g.Join(t.Context(), []string{to.Addr()}); n != 1 || err != nil {
		t.Fatalf("join: %d, %v", n, err)
	}
}

// eventually waits until ok, and says what it waited for if that takes too long.
func eventually(t *testing.T, within time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Since(start) > within {
			t.Fatalf("after %v still not: %s", within, what)
		}
		<-tick.C
	}
	return time.Since(start)
}

// living is the names that a node sees alive.
func living(g *Gossip) string {
	var names []string
	for _, s := range g.Members() {
		if s.Alive {
			names = append(names, s.Name)
		}
	}
	return strings.Join(names, " ")
}

func three(t *testing.T, change func(*Config)) (a, b, c *Gossip) {
	t.Helper()
	a, b, c = node(t, "a", 1, change), node(t, "b", 2, change), node(t, "c", 3, change)
	join(t, b, a)
	join(t, c, b)
	for _, g := range []*Gossip{a, b, c} {
		eventually(t, 3*time.Second, "all three see each other", func() bool { return living(g) == "a b c" })
	}
	return a, b, c
}

func TestAKilledNodeIsSeenAndComesBack(t *testing.T) {
	var pokes atomic.Int64
	a, b, c := three(t, func(cfg *Config) { cfg.OnChange = func() { pokes.Add(1) } })
	got := a.Members()[2]
	if got.Name != "c" || got.ID != 3 || got.Zone != "z-c" || got.Peer != "127.0.0.1:1" || got.HTTP != "h:80" || got.EntryMax != 3 ||
		got.Addr != c.Addr() || got.Since == 0 {
		t.Errorf("a sees %+v", got)
	}
	before := pokes.Load()
	killed := time.Now()
	if err := c.Close(); err != nil { // not a word: as a kill -9
		t.Fatal(err)
	}
	if d := time.Since(killed); d > 500*time.Millisecond {
		t.Errorf("Close took %v", d)
	}
	for _, g := range []*Gossip{a, b} {
		d := eventually(t, 3*time.Second, "c is dead", func() bool { return living(g) == "a b" })
		t.Logf("seen after %v", d)
	}
	if pokes.Load() == before {
		t.Error("nobody was told")
	}
	dead := a.Members()[2]
	if dead.Alive || dead.ID != 3 || dead.Since < dunlin.TimeOf(killed) {
		t.Errorf("the dead: %+v", dead)
	}
	// It lost its folder, and has another address: the same name, another life.
	c2 := node(t, "c", 33, func(cfg *Config) { cfg.Self.Cluster = "" })
	join(t, c2, a)
	for _, g := range []*Gossip{a, b, c2} {
		eventually(t, 3*time.Second, "c is back", func() bool { return living(g) == "a b c" })
	}
	all := b.Members()
	if len(all) != 4 || all[2].ID != 33 || all[3].ID != 3 || all[3].Alive {
		t.Errorf("b sees %+v", all)
	}
	s := c2.self.Load().Self
	s.Cluster, s.Zone = "c1", "moved"
	if err := c2.SetSelf(s); err != nil {
		t.Fatal(err)
	}
	eventually(t, 3*time.Second, "a hears of c's zone", func() bool { return a.Members()[2].Zone == "moved" && a.Members()[2].Cluster == "c1" })
	s.ID = 4
	if err := c2.SetSelf(s); !errors.Is(err, dunlin.ErrInvalid) {
		t.Errorf("another id: %v", err)
	}
}

// A cut that lasts longer than memberlist cares: who was lost is called until it answers.
func TestTheLostAreCalledAgain(t *testing.T) {
	quick := func(c *Config) { c.Reconnect = 50 * time.Millisecond }
	a, b := node(t, "a", 1, quick), node(t, "b", 2, quick)
	join(t, b, a)
	eventually(t, 3*time.Second, "a and b", func() bool { return living(a) == "a b" })
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 3*time.Second, "b is lost", func() bool { return living(a) == "a" })
	b2 := node(t, "b", 2, func(c *Config) { c.Bind = b.Addr() }) // joins nobody
	eventually(t, 3*time.Second, "they found each other", func() bool { return living(a) == "a b" && living(b2) == "a b" })
}

func TestWhoLeavesIsGoneAtOnce(t *testing.T) {
	a, b, c := three(t, nil)
	start := time.Now()
	if err := c.Leave(t.Context()); err != nil {
		t.Error(err)
	}
	t.Logf("Leave took %v", time.Since(start))
	for _, g := range []*Gossip{a, b} {
		eventually(t, time.Second, "c left", func() bool { return living(g) == "a b" })
	}
	if err := c.SetSelf(c.self.Load().Self); err != nil {
		t.Errorf("nothing new: %v", err)
	}
	if _, err := c.Join(t.Context(), []string{a.Addr()}); !errors.Is(err, dunlin.ErrUnavailable) {
		t.Errorf("join after leaving: %v", err)
	}
}

func TestHintsReachEverybody(t *testing.T) {
	a, b, c := three(t, nil)
	var all []Hint
	for i := range 64 {
		all = append(all, Hint{Shard: dunlin.ShardID(i), Term: 5, Owner: dunlin.NodeID(i%3 + 1)})
	}
	a.SetHints(all)
	for _, g := range []*Gossip{a, b, c} {
		d := eventually(t, 3*time.Second, "all hints are there", func() bool { return slices.Equal(g.Hints(), all) })
		t.Logf("64 hints after %v", d)
	}
	// An older term is not news, whoever says it; a newer one is.
	b.SetHints([]Hint{{Shard: 7, Term: 4, Owner: 9}, {Shard: 8, Term: 6, Owner: 2}, {Shard: 9, Term: 9}})
	all[8] = Hint{Shard: 8, Term: 6, Owner: 2}
	for _, g := range []*Gossip{a, b, c} {
		eventually(t, 3*time.Second, "the newer term won", func() bool { return slices.Equal(g.Hints(), all) })
	}
	// Who comes later learns them all when it joins.
	d := node(t, "d", 4, nil)
	join(t, d, c)
	eventually(t, time.Second, "d has all hints", func() bool { return slices.Equal(d.Hints(), all) })
}

func TestRefusals(t *testing.T) {
	a := node(t, "a", 1, nil)
	b := node(t, "b", 2, nil)
	join(t, b, a)
	eventually(t, 3*time.Second, "a and b", func() bool { return living(a) == "a b" && living(b) == "a b" })
	for _, c := range []struct {
		story, name string
		id          dunlin.NodeID
		change      func(*Config)
		is          error
		want        string
	}{
		{"another secret", "x", 9, func(c *Config) { c.Keys = [][]byte{key(2)} }, dunlin.ErrUnauthenticated, "another cluster secret: give this node"},
		{"another cluster", "x", 9, func(c *Config) { c.Self.Cluster = "c2" }, dunlin.ErrConflict, "belongs to cluster c1, this one to c2: check the addresses"},
		{"a's name, another id", "a", 9, nil, dunlin.ErrConflict, "the name a is taken twice"},
		{"b's name, met through a", "b", 9, nil, dunlin.ErrConflict, "the name b is taken twice"},
		{"a copy of a's folder", "a", 1, nil, dunlin.ErrConflict, "0000000000000001 runs twice"},
		{"a copy of b's folder under another name", "x", 2, nil, dunlin.ErrConflict, "can't share a data folder"},
	} {
		t.Run(c.story, func(t *testing.T) {
			x := node(t, c.name, c.id, c.change)
			n, err := x.Join(t.Context(), []string{a.Addr()})
			if n != 0 || !errors.Is(err, c.is) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %d, %v; want %q", n, err, c.want)
			}
			if got := living(x); got != c.name {
				t.Errorf("it sees %q", got)
			}
			if err := x.Close(); err != nil {
				t.Error(err)
			}
		})
	}
	// The running ones noticed nothing.
	for _, g := range []*Gossip{a, b} {
		if got := g.Members(); living(g) != "a b" || got[0].ID != 1 || got[1].ID != 2 || len(got) != 2 {
			t.Errorf("members: %+v", got)
		}
	}
	// A node that belongs to no cluster yet may come.
	n := node(t, "n", 9, func(c *Config) { c.Self.Cluster = "" })
	join(t, n, b)
	// And through it nobody else: it has learned whose it is.
	y := node(t, "y", 10, func(c *Config) { c.Self.Cluster = "c2" })
	if _, err := y.Join(t.Context(), []string{n.Addr()}); !errors.Is(err, dunlin.ErrConflict) {
		t.Errorf("through the joining: %v", err)
	}
}

// The secret is rotated node by node: first all learn to read the new one, then it becomes the primary, then the old one goes.
func TestARotationOfKeys(t *testing.T) {
	steps := [][][]byte{{key(1)}, {key(1), key(2)}, {key(2), key(1)}, {key(2)}}
	for i := range len(steps) - 1 {
		a := node(t, "a", 1, func(c *Config) { c.Keys = steps[i] })
		b := node(t, "b", 2, func(c *Config) { c.Keys = steps[i+1] })
		join(t, b, a)
		eventually(t, 3*time.Second, "they meet", func() bool { return living(a) == "a b" && living(b) == "a b" })
		_, _ = a.Close(), b.Close()
	}
}

// fakeDNS answers from tables.
type fakeDNS struct {
	hosts map[string][]string
	srv   map[string][]*net.SRV
}

func (f fakeDNS) LookupHost(_ context.Context, h string) ([]string, error) {
	if ips, ok := f.hosts[h]; ok {
		return ips, nil
	}
	return nil, fmt.Errorf("no such host %s", h)
}

func (f fakeDNS) LookupSRV(_ context.Context, service, proto, name string) (string, []*net.SRV, error) {
	if service != "" || proto != "" {
		return "", nil, errors.New("want the name as it is")
	}
	if r, ok := f.srv[name]; ok {
		return name, r, nil
	}
	return "", nil, fmt.Errorf("no such host %s", name)
}

func TestSeeds(t *testing.T) {
	path := filepath.Join(t.TempDir(), "seeds")
	if err := os.WriteFile(path, []byte("# the lab\n10.0.0.1  # first\n\n  node:99\nsrv:_gossip._tcp.lab\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	nested := filepath.Join(t.TempDir(), "nested")
	if err := os.WriteFile(nested, []byte("file:"+path+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	dns := fakeDNS{
		hosts: map[string][]string{"node": {"10.0.0.2"}, "all": {"10.0.0.3", "fd00::3"}, "localhost": {"127.0.0.1"}},
		srv:   map[string][]*net.SRV{"_gossip._tcp.lab": {{Target: "node.", Port: 7}, {Target: "gone.", Port: 8}}},
	}
	for _, c := range []struct {
		seed, want, err string
	}{
		{"10.0.0.1", "10.0.0.1:7946", ""},
		{"10.0.0.1:1", "10.0.0.1:1", ""},
		{"::1", "[::1]:7946", ""},
		{"[::1]", "[::1]:7946", ""},
		{"[::1]:5", "[::1]:5", ""},
		{"node", "10.0.0.2:7946", ""},
		{"dns:all", "10.0.0.3:7946 [fd00::3]:7946", ""},
		{"dns:all:9", "10.0.0.3:9 [fd00::3]:9", ""},
		{"srv:_gossip._tcp.lab", "10.0.0.2:7", "no such host gone"},
		{"file:" + path, "10.0.0.1:7946 10.0.0.2:99 10.0.0.2:7", "no such host gone"},
		{"file:" + nested, "", "can't name another file"},
		{"file:/nowhere/seeds", "", "no such file"},
		{"missing", "", "no such host missing"},
		{"srv:missing", "", "no such host missing"},
		{"", "", "want host, host:port"},
		{"node:x", "", "want host, host:port"},
		{"http://node", "", "want host, host:port"},
		{"a b", "", "want host, host:port"},
	} {
		got, errs := resolve(t.Context(), dns, []string{c.seed})
		var addrs []string
		for _, s := range got {
			addrs = append(addrs, s.addr)
		}
		if g := strings.Join(addrs, " "); g != c.want {
			t.Errorf("%q: got %q, want %q", c.seed, g, c.want)
		}
		if err := errors.Join(errs...); (err != nil) != (c.err != "") || err != nil && !strings.Contains(err.Error(), c.err) {
			t.Errorf("%q: got error %v, want %q", c.seed, err, c.err)
		}
	}
}

// A file of seeds is read at each attempt; a failed attempt says each seed's reason on its own line.
func TestJoinByFileAndByName(t *testing.T) {
	a := node(t, "a", 1, nil)
	_, port, _ := net.SplitHostPort(a.Addr())
	b := node(t, "b", 2, func(c *Config) { c.Resolver = fakeDNS{hosts: map[string][]string{"seed": {"127.0.0.1"}}} })
	path := filepath.Join(t.TempDir(), "seeds")
	// A port where nobody listens: taken, and let go.
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	nobody := l.Addr().String()
	_ = l.Close()
	if err := os.WriteFile(path, []byte(nobody+"\nnowhere\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	n, err := b.Join(t.Context(), []string{"file:" + path, b.Addr()})
	if n != 0 || err == nil || len(strings.Split(err.Error(), "\n")) != 2 || !strings.Contains(err.Error(), "refused") {
		t.Errorf("got %d, %v", n, err)
	}
	t.Log(err)
	if err := os.WriteFile(path, []byte(nobody+"\ndns:seed:"+port+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if n, err := b.Join(t.Context(), []string{"file:" + path}); n != 1 || err != nil {
		t.Errorf("got %d, %v", n, err)
	}
	if _, err := b.Join(t.Context(), []string{b.Addr()}); err == nil || !strings.Contains(err.Error(), "only this node itself") {
		t.Errorf("itself: %v", err)
	}
	if _, err := b.Join(t.Context(), nil); !errors.Is(err, dunlin.ErrInvalid) {
		t.Errorf("no seeds: %v", err)
	}
}

// A join does not outlast its context, whoever does not answer.
func TestJoinOfTheDeaf(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0") // takes connections, says nothing
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	a := node(t, "a", 1, nil)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := a.Join(ctx, []string{l.Addr().String()}); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got %v", err)
	}
	if err := a.Close(); err != nil || time.Since(start) > time.Second {
		t.Errorf("closed after %v: %v", time.Since(start), err)
	}
}

func TestConfig(t *testing.T) {
	ok := Config{Self: Self{Name: "a", ID: 1}, Bind: "127.0.0.1:0", Keys: [][]byte{key(1)}}
	for _, c := range []struct {
		what   string
		change func(*Config)
	}{
		{"no key", func(c *Config) { c.Keys = nil }},
		{"short key", func(c *Config) { c.Keys = [][]byte{{1}} }},
		{"no id", func(c *Config) { c.Self.ID = 0 }},
		{"no name", func(c *Config) { c.Self.Name = "" }},
		{"address without port", func(c *Config) { c.Self.Peer = "host" }},
		{"too much", func(c *Config) {
			c.Self.Peer, c.Self.Calls, c.Self.HTTP = strings.Repeat("a", 200)+":1", strings.Repeat("b", 200)+":1", strings.Repeat("c", 200)+":1"
		}},
		{"listening on a name", func(c *Config) { c.Bind = "localhost:0" }},
		{"all of IPv6 without an address to advertise", func(c *Config) { c.Bind = "[::]:0" }},
	} {
		cfg := ok
		c.change(&cfg)
		if g, err := Start(cfg); !errors.Is(err, dunlin.ErrInvalid) {
			t.Errorf("%s: %v", c.what, err)
			if g != nil {
				_ = g.Close()
			}
		}
	}
	reg := prometheus.NewRegistry()
	cfg := ok
	cfg.Metrics, cfg.Advertise = reg, "127.0.0.1"
	for range 2 { // Close takes the figures out again
		g, err := Start(cfg)
		if err != nil {
			t.Fatal(err)
		}
		if all, err := reg.Gather(); err != nil || len(all) != 5 {
			t.Errorf("%d figures, %v", len(all), err)
		}
		_ = g.Close()
	}
}
