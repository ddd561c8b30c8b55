package placement

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	protocluster "github.com/asynkron/protoactor-go/cluster"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/keys"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is who is a member, as all nodes of a test see it.
type world struct {
	sync.Mutex
	t       testing.TB
	secret  keys.Secret
	members map[dunlin.NodeID]dunlin.Member
	nodes   []*testNode
}

type testNode struct {
	*Remote
	w      *world
	id     dunlin.NodeID
	system *actor.ActorSystem
	serve  func(ctx context.Context, from dunlin.NodeID, method string, body []byte) ([]byte, error)
}

func newWorld(t testing.TB) *world {
	return &world{t: t, secret: keys.NewSecret(), members: map[dunlin.NodeID]dunlin.Member{}}
}

func (w *world) list() []dunlin.Member {
	w.Lock()
	defer w.Unlock()
	var all []dunlin.Member
	for _, m := range w.members {
		all = append(all, m)
	}
	return all
}

func (w *world) set(m dunlin.Member) {
	w.Lock()
	w.members[m.ID] = m
	nodes := w.nodes
	w.Unlock()
	for _, n := range nodes {
		n.Poke()
	}
}

func (w *world) alive(id dunlin.NodeID, alive bool) {
	w.Lock()
	m := w.members[id]
	w.Unlock()
	m.Alive = alive
	w.set(m)
}

// echo answers with the method and the body.
func echo(_ context.Context, _ dunlin.NodeID, method string, body []byte) ([]byte, error) {
	return append([]byte(method+":"), body...), nil
}

// node starts a node and makes it a member.
func (w *world) node(id dunlin.NodeID, change func(*Config)) *testNode {
	w.t.Helper()
	name := fmt.Sprintf("n%d", id)
	server, client, err := w.secret.TLS(id, name, "c1")
	if err != nil {
		w.t.Fatal(err)
	}
	n := &testNode{w: w, id: id, serve: echo}
	n.system = actor.NewActorSystem(actor.WithLoggerFactory(quiet), actor.WithDeadLetterRequestLogging(false),
		actor.WithDeadLetterThrottleInterval(10*time.Millisecond))
	cfg := Config{System: n.system, Bind: "127.0.0.1:0", Self: id, Cluster: "c1", Server: server, Client: client, PeerOf: keys.PeerOf,
		Members: w.list, CallTimeout: 5 * time.Second,
		Serve: func(ctx context.Context, from dunlin.NodeID, method string, body []byte) ([]byte, error) {
			return n.serve(ctx, from, method, body)
		}}
	if change != nil {
		change(&cfg)
	}
	if n.Remote, err = Start(cfg); err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(n.kill)
	w.Lock()
	w.nodes = append(w.nodes, n)
	w.Unlock()
	w.set(dunlin.Member{ID: id, Name: name, State: dunlin.MemberActive, Alive: true, Calls: n.Addr()})
	return n
}

// kill ends a node; again is nothing.
func (n *testNode) kill() {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	if err := n.Close(ctx); err != nil {
		n.w.t.Errorf("close node %d: %v", n.id, err)
	}
	if !n.system.IsStopped() {
		n.system.Shutdown()
	}
}

func (n *testNode) isUp(to dunlin.NodeID) bool {
	for _, p := range n.Peers() {
		if p.Node == to {
			return p.Up
		}
	}
	return false
}

func eventually(t testing.TB, within time.Duration, what string, ok func() bool) time.Duration {
	t.Helper()
	start := time.Now()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		if time.Since(start) > within {
			t.Fatalf("after %v still not: %s", within, what)
		}
		<-tick.C
	}
	return time.Since(start)
}

func (w *world) connected() {
	w.t.Helper()
	for _, a := range w.nodes {
		for _, b := range w.nodes {
			if a != b {
				eventually(w.t, 5*time.Second, fmt.Sprintf("%d is connected to %d", a.id, b.id), func() bool { return a.isUp(b.id) })
			}
		}
	}
}

func TestCallsThereAndBack(t *testing.T) {
	w := newWorld(t)
	a, b, c := w.node(1, nil), w.node(2, nil), w.node(3, nil)
	w.connected()
	for _, from := range []*testNode{a, b, c} {
		for _, to := range []*testNode{a, b, c} { // itself, too
			got, err := from.Call(t.Context(), to.id, "hello", []byte("x"))
			if err != nil || string(got) != "hello:x" {
				t.Errorf("%d to %d: %q, %v", from.id, to.id, got, err)
			}
		}
	}
	// The one who asks is who its certificate says.
	b.serve = func(_ context.Context, from dunlin.NodeID, _ string, _ []byte) ([]byte, error) {
		return []byte(from.String()), nil
	}
	if got, err := a.Call(t.Context(), 2, "who", nil); err != nil || string(got) != "0000000000000001" {
		t.Errorf("got %q, %v", got, err)
	}
	// Errors are over there what they were here.
	b.serve = func(context.Context, dunlin.NodeID, string, []byte) ([]byte, error) {
		return nil, fmt.Errorf("shard 7: %w: %w", dunlin.ErrUnavailable, dunlin.ErrNotOwner)
	}
	_, err := a.Call(t.Context(), 2, "m", nil)
	if !errors.Is(err, dunlin.ErrNotOwner) || !errors.Is(err, dunlin.ErrUnavailable) || errors.Is(err, dunlin.ErrConflict) ||
		err.Error() != "shard 7: unavailable: not the owner" {
		t.Errorf("got %v", err)
	}
	// A call that panics is its own affair.
	b.serve = func(context.Context, dunlin.NodeID, string, []byte) ([]byte, error) { panic("ouch") }
	if _, err := a.Call(t.Context(), 2, "m", nil); err == nil || !strings.Contains(err.Error(), "panicked") {
		t.Errorf("got %v", err)
	}
	b.serve = func(context.Context, dunlin.NodeID, string, []byte) ([]byte, error) { return make([]byte, 5<<20), nil }
	if _, err := a.Call(t.Context(), 2, "m", nil); !errors.Is(err, dunlin.ErrTooLarge) {
		t.Errorf("a long answer: %v", err)
	}
	b.serve = echo
	if _, err := a.Call(t.Context(), 2, "m", make([]byte, 5<<20)); !errors.Is(err, dunlin.ErrTooLarge) {
		t.Errorf("a long call: %v", err)
	}
	big := bytes.Repeat([]byte("x"), 4<<20-8)
	if got, err := a.Call(t.Context(), 2, "m", big); err != nil || len(got) != len(big)+2 {
		t.Errorf("as long as can be: %d bytes, %v", len(got), err)
	}
	if _, err := a.Call(t.Context(), 9, "m", nil); !errors.Is(err, dunlin.ErrUnavailable) {
		t.Errorf("nobody: %v", err)
	}
	if _, err := a.Call(t.Context(), 2, "", nil); !errors.Is(err, dunlin.ErrInvalid) {
		t.Errorf("no method: %v", err)
	}
}

func TestDeadlines(t *testing.T) {
	w := newWorld(t)
	a := w.node(1, func(c *Config) { c.CallTimeout = 300 * time.Millisecond })
	b := w.node(2, nil)
	w.connected()
	left := make(chan time.Duration, 2)
	b.serve = func(ctx context.Context, _ dunlin.NodeID, _ string, _ []byte) ([]byte, error) {
		end, _ := ctx.Deadline()
		left <- time.Until(end)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if _, err := a.Call(ctx, 2, "m", nil); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, dunlin.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	if d := time.Since(start); d > 200*time.Millisecond {
		t.Errorf("after %v", d)
	}
	if d := <-left; d > 50*time.Millisecond {
		t.Errorf("the other side had %v", d)
	}
	got := make(chan error, 1)
	start = time.Now()
	a.Go(2, "m", nil, func(_ []byte, err error) { got <- err })
	if err := <-got; !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > time.Second {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
	if n := a.Peers(); len(n) == 0 || n[len(n)-1].Calls != 0 || n[len(n)-1].Bytes != 0 {
		t.Errorf("the window is not empty: %+v", n)
	}
}

func TestAFullWindow(t *testing.T) {
	w := newWorld(t)
	a := w.node(1, func(c *Config) { c.WindowMax, c.WindowBytesMax, c.BodyBytesMax = 8, 64<<10, 32<<10 })
	b := w.node(2, func(c *Config) { c.ServeMax = 4 })
	w.connected()
	release := make(chan struct{})
	b.serve = func(context.Context, dunlin.NodeID, string, []byte) ([]byte, error) { <-release; return nil, nil }
	results := make(chan error, 100)
	done := func(_ []byte, err error) { results <- err }
	start := time.Now()
	for range 20 {
		a.Go(2, "m", nil, done)
	}
	if d := time.Since(start); d > time.Second {
		t.Errorf("Go blocked for %v", d)
	}
	var full int
	for range 12 {
		if err := <-results; !errors.Is(err, dunlin.ErrOverloaded) {
			t.Fatalf("got %v", err)
		}
		full++
	}
	// Of the 8 on their way the other side takes 4, and says so of the others.
	for range 4 {
		if err := <-results; !errors.Is(err, dunlin.ErrOverloaded) || !strings.Contains(err.Error(), "being served") {
			t.Fatalf("got %v", err)
		}
	}
	close(release)
	for range 4 {
		if err := <-results; err != nil {
			t.Error(err)
		}
	}
	// By bytes.
	b.serve = func(ctx context.Context, _ dunlin.NodeID, _ string, _ []byte) ([]byte, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	a.Go(2, "m", make([]byte, 32<<10), done)
	a.Go(2, "m", make([]byte, 32<<10), done)
	if err := <-results; !errors.Is(err, dunlin.ErrOverloaded) {
		t.Errorf("got %v", err)
	}
}

// protoactor's remote loses messages of 16 KiB by the thousand without a word if they meet gRPC's usual limit in one batch.
func TestNothingIsLost(t *testing.T) {
	w := newWorld(t)
	a := w.node(1, func(c *Config) { c.WindowMax, c.WindowBytesMax = 2000, 64<<20 })
	b := w.node(2, func(c *Config) { c.ServeMax, c.WindowBytesMax = 2000, 64<<20 })
	w.connected()
	var sum atomic.Int64
	b.serve = func(_ context.Context, _ dunlin.NodeID, _ string, body []byte) ([]byte, error) {
		sum.Add(int64(len(body)))
		return body, nil
	}
	const n, size = 2000, 16 << 10
	results := make(chan error, n)
	body := bytes.Repeat([]byte("x"), size)
	start := time.Now()
	for range n {
		a.Go(2, "m", body, func(b []byte, err error) {
			if err == nil && len(b) != size {
				err = fmt.Errorf("%d bytes", len(b))
			}
			results <- err
		})
	}
	for range n {
		if err := <-results; err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("%d calls of %d bytes there and back in %v", n, size, time.Since(start))
	if sum.Load() != n*size {
		t.Errorf("%d bytes arrived", sum.Load())
	}
}

func TestAPeerThatDies(t *testing.T) {
	w := newWorld(t)
	a, b := w.node(1, nil), w.node(2, nil)
	w.connected()
	entered := make(chan struct{}, 10)
	b.serve = func(ctx context.Context, _ dunlin.NodeID, _ string, _ []byte) ([]byte, error) {
		entered <- struct{}{}
		<-ctx.Done()
		return nil, ctx.Err()
	}
	results := make(chan error, 10)
	for range 10 {
		a.Go(2, "m", nil, func(_ []byte, err error) { results <- err })
	}
	for range 10 {
		<-entered
	}
	b.cluster.Remote.Shutdown(false) // its sockets are gone: as a kill -9
	start := time.Now()
	for range 10 {
		if err := <-results; !errors.Is(err, dunlin.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
	}
	t.Logf("10 calls failed after %v", time.Since(start))
	if d := time.Since(start); d > 500*time.Millisecond {
		t.Errorf("after %v", d)
	}
	start = time.Now()
	if _, err := a.Call(t.Context(), 2, "m", nil); !errors.Is(err, dunlin.ErrUnavailable) || time.Since(start) > 100*time.Millisecond {
		t.Errorf("the next after %v: %v", time.Since(start), err)
	}
	addr := b.Addr()
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.Close(over); err == nil { // the calls were still being served
		t.Error("nothing to say?")
	}
	// It comes back at the same address: nobody has to call for the connections to be there again.
	b2 := w.node(2, func(c *Config) { c.Bind = addr })
	d := eventually(t, 5*time.Second, "they are connected again", func() bool { return a.isUp(2) && b2.isUp(1) })
	t.Logf("connected again after %v", d)
	if got, err := a.Call(t.Context(), 2, "m", []byte("y")); err != nil || string(got) != "m:y" {
		t.Errorf("got %q, %v", got, err)
	}
	// And at another one.
	b2.kill()
	b3 := w.node(2, nil)
	d = eventually(t, 5*time.Second, "they are connected again", func() bool { return a.isUp(2) && b3.isUp(1) })
	t.Logf("connected again elsewhere after %v", d)
	if _, err := a.Call(t.Context(), 2, "m", nil); err != nil {
		t.Error(err)
	}
}

// A peer that gossip sees dead may have its sockets open still: it is stopped, or its network is cut.
func TestAPeerThatGossipSeesDead(t *testing.T) {
	w := newWorld(t)
	a, b := w.node(1, func(c *Config) { c.CallTimeout = time.Second }), w.node(2, nil)
	w.connected()
	b.serve = func(ctx context.Context, _ dunlin.NodeID, method string, _ []byte) ([]byte, error) {
		if method == "hang" {
			<-ctx.Done()
		}
		return nil, ctx.Err()
	}
	got := make(chan error, 1)
	a.Go(2, "hang", nil, func(_ []byte, err error) { got <- err })
	start := time.Now()
	w.alive(2, false)
	if err := <-got; !errors.Is(err, dunlin.ErrUnavailable) || time.Since(start) > 500*time.Millisecond {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
	if _, err := a.Call(t.Context(), 2, "m", nil); !errors.Is(err, dunlin.ErrUnavailable) || !strings.Contains(err.Error(), "is down") {
		t.Errorf("got %v", err)
	}
	w.alive(2, true)
	eventually(t, 5*time.Second, "connected again", func() bool { return a.isUp(2) })
	if _, err := a.Call(t.Context(), 2, "m", nil); err != nil {
		t.Error(err)
	}
	// protoactor knows it again, under an id that it has not blocked.
	eventually(t, 3*time.Second, "two members", func() bool { return a.Cluster().MemberList.Length() == 2 })
	// One that has left for good stays out.
	w.set(dunlin.Member{ID: 2, Name: "n2", State: dunlin.MemberLeft, Alive: true, Calls: b.Addr()})
	eventually(t, 3*time.Second, "who left is not called", func() bool {
		_, err := a.Call(t.Context(), 2, "m", nil)
		return err != nil && strings.Contains(err.Error(), "has left")
	})
	if _, err := b.Call(t.Context(), 1, "m", nil); err == nil {
		t.Error("who left may still call")
	}
}

// Another node has taken the address: it is not mistaken for the one that was there.
func TestTheWrongNodeAtAnAddress(t *testing.T) {
	w := newWorld(t)
	a, b := w.node(1, nil), w.node(2, nil)
	w.connected()
	w.set(dunlin.Member{ID: 3, Name: "n3", State: dunlin.MemberActive, Alive: true, Calls: b.Addr()})
	eventually(t, 3*time.Second, "known", func() bool { _, err := a.whereIs(3); return err == nil })
	if _, err := a.Call(t.Context(), 3, "m", nil); !errors.Is(err, dunlin.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("over the connection that was there: %v", err)
	}
	c := w.node(4, nil) // has no connection there yet
	eventually(t, 3*time.Second, "known", func() bool { _, err := c.whereIs(3); return err == nil })
	if _, err := c.Call(t.Context(), 3, "m", nil); !errors.Is(err, dunlin.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("over a new one: %v", err)
	}
	t.Log(func() error { _, err := c.Call(t.Context(), 3, "m", nil); return err }())
	if _, err := a.Call(t.Context(), 2, "m", nil); err != nil {
		t.Errorf("the one that is there: %v", err)
	}
}

func TestCloseIsQuick(t *testing.T) {
	w := newWorld(t)
	a, b := w.node(1, nil), w.node(2, nil)
	w.connected()
	entered := make(chan struct{})
	b.serve = func(ctx context.Context, _ dunlin.NodeID, _ string, _ []byte) ([]byte, error) {
		close(entered)
		select { // it ends by itself, soon enough
		case <-time.After(100 * time.Millisecond):
		case <-ctx.Done():
		}
		return []byte("done"), nil
	}
	got := make(chan string, 1)
	a.Go(2, "m", nil, func(b []byte, err error) { got <- fmt.Sprintf("%s, %v", b, err) })
	<-entered
	start := time.Now()
	b.kill()
	t.Logf("closing with a call of 100 ms took %v", time.Since(start))
	if d := time.Since(start); d > time.Second {
		t.Errorf("Close took %v", d)
	}
	if s := <-got; s != "done, <nil>" {
		t.Errorf("the call that was being served: %s", s)
	}
	start = time.Now()
	a.kill()
	t.Logf("closing took %v", time.Since(start))
	if d := time.Since(start); d > 500*time.Millisecond {
		t.Errorf("Close took %v", d)
	}
	if _, err := a.Call(t.Context(), 2, "m", nil); !errors.Is(err, dunlin.ErrUnavailable) {
		t.Errorf("after Close: %v", err)
	}
}

// A call that does not end is not waited for beyond Close's context.
func TestCloseDoesNotWaitForEver(t *testing.T) {
	w := newWorld(t)
	a, b := w.node(1, nil), w.node(2, nil)
	w.connected()
	entered := make(chan struct{})
	b.serve = func(ctx context.Context, _ dunlin.NodeID, _ string, _ []byte) ([]byte, error) {
		close(entered)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	a.Go(2, "m", nil, func([]byte, error) {})
	<-entered
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	start := time.Now()
	if err := b.Close(ctx); !errors.Is(err, context.DeadlineExceeded) || time.Since(start) > time.Second {
		t.Errorf("after %v: %v", time.Since(start), err)
	}
}

// device is what actors.Directory registers: one process for all devices of this node.
type device struct {
	node *testNode
	wait atomic.Int32 // requests that get no answer
}

func (d *device) SendUserMessage(pid *actor.PID, message any) {
	_, _, sender := actor.UnwrapEnvelope(message)
	if d.wait.Add(-1) >= 0 {
		return
	}
	d.node.system.Root.Send(sender, fmt.Sprintf("%s at %d", pid.Id, d.node.id))
}
func (d *device) SendSystemMessage(*actor.PID, any) {}
func (d *device) Stop(*actor.PID)                   {}

func quiet(*actor.ActorSystem) *slog.Logger { return slog.New(slog.DiscardHandler) }

// The devices' address is resolved on the node itself, remote or not: it was there first.
func TestDevicesAreFoundOnTheSpot(t *testing.T) {
	w := newWorld(t)
	var nodes []*testNode
	var doors []*device
	for id := range dunlin.NodeID(2) {
		d := &device{}
		n := w.node(id+1, func(c *Config) {
			c.System.ProcessRegistry.RegisterAddressResolver(func(pid *actor.PID) (actor.Process, bool) { return d, pid.Address == Kind })
			c.Repeatable = func(m any) bool { return m == "again" }
			c.Again = func(resp any) bool { return resp == "a/elsewhere at 2" }
		})
		d.node = n
		nodes, doors = append(nodes, n), append(doors, d)
	}
	w.connected()
	for i, n := range nodes {
		pid := n.Cluster().Get("t/dev1", Kind)
		if got, err := n.system.Root.RequestFuture(pid, "x", time.Second).Result(); err != nil || got != fmt.Sprintf("t/dev1 at %d", i+1) {
			t.Errorf("by address: %v, %v", got, err)
		}
		if got, err := n.Cluster().Request("t/dev1", Kind, "x"); err != nil || got != fmt.Sprintf("t/dev1 at %d", i+1) {
			t.Errorf("by identity: %v, %v", got, err)
		}
		f, err := n.Cluster().RequestFuture("t/dev1", Kind, "x")
		if err != nil {
			t.Fatal(err)
		}
		if got, err := f.Result(); err != nil || got != fmt.Sprintf("t/dev1 at %d", i+1) {
			t.Errorf("as a future: %v, %v", got, err)
		}
		if got := n.Cluster().MemberList.Length(); got != 2 {
			t.Errorf("%d members", got)
		}
		if _, err := n.Cluster().Request("t/dev1", "ghost", "x"); !errors.Is(err, dunlin.ErrNotFound) {
			t.Errorf("no such kind: %v", err)
		}
	}
	// What may be repeated is, after half its time; what may not is not.
	doors[0].wait.Store(1)
	short := protocluster.WithTimeout(200 * time.Millisecond)
	if got, err := nodes[0].Cluster().Request("t/dev1", Kind, "again", short); err != nil || got != "t/dev1 at 1" {
		t.Errorf("repeated: %v, %v", got, err)
	}
	doors[0].wait.Store(1)
	if _, err := nodes[0].Cluster().Request("t/dev1", Kind, "once", short); !errors.Is(err, actor.ErrTimeout) || !errors.Is(err, dunlin.ErrUnavailable) {
		t.Errorf("not repeated: %v", err)
	}
	if got, err := nodes[1].Cluster().Request("a/elsewhere", Kind, "once"); err != nil || got != "a/elsewhere at 2" {
		t.Errorf("sent away twice: %v, %v", got, err)
	}
}

func TestConfig(t *testing.T) {
	w := newWorld(t)
	server, client, err := w.secret.TLS(1, "n1", "c1")
	if err != nil {
		t.Fatal(err)
	}
	ok := Config{Bind: "127.0.0.1:0", Self: 1, Server: server, Client: client, PeerOf: keys.PeerOf, Members: w.list, Serve: echo}
	for _, c := range []struct {
		what   string
		is     error
		change func(*Config)
	}{
		{"nothing to serve", dunlin.ErrInvalid, func(c *Config) { c.Serve = nil }},
		{"no address", dunlin.ErrInvalid, func(c *Config) { c.Bind = "host" }},
		{"all addresses", dunlin.ErrInvalid, func(c *Config) { c.Bind = "0.0.0.0:0" }},
		{"a window for nothing", dunlin.ErrInvalid, func(c *Config) { c.WindowBytesMax = 100 }},
		{"not an address of this machine", dunlin.ErrUnavailable, func(c *Config) { c.Bind = "192.0.2.1:1" }},
	} {
		cfg := ok
		cfg.System = actor.NewActorSystem(actor.WithLoggerFactory(quiet))
		c.change(&cfg)
		if _, err := Start(cfg); !errors.Is(err, c.is) {
			t.Errorf("%s: %v", c.what, err)
		}
		cfg.System.Shutdown()
	}
	reg := prometheus.NewRegistry()
	n := w.node(1, func(c *Config) { c.Metrics, c.Bind, c.Advertise = reg, "0.0.0.0:0", "127.0.0.1" })
	if !strings.HasPrefix(n.Addr(), "127.0.0.1:") || strings.HasSuffix(n.Addr(), ":0") {
		t.Errorf("at %s", n.Addr())
	}
	m := w.node(2, nil)
	w.connected()
	if _, err := m.Call(t.Context(), 1, "m", nil); err != nil {
		t.Error(err)
	}
	if all, err := reg.Gather(); err != nil || len(all) != 11 {
		t.Errorf("%d figures, %v", len(all), err)
	}
	if _, err := Start(Config{System: n.system, Bind: "127.0.0.1:0", Self: 1, Server: server, Client: client, PeerOf: keys.PeerOf, Members: w.list, Serve: echo}); !errors.Is(err, dunlin.ErrConflict) {
		t.Errorf("a system with two: %v", err)
	}
}
