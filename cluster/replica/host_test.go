package replica

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/prometheus/client_golang/prometheus"
)

// testHost is a running host with what it said.
type testHost struct {
	*Host
	log   *memLog
	state *memState
	stop  func() error // ends Run and returns its error

	mu     sync.Mutex
	owned  map[dunlin.ShardID]uint64
	change chan struct{} // closed and replaced when owned changes
}

func startHost(t *testing.T, cfg Config) *testHost {
	t.Helper()
	h := &testHost{owned: map[dunlin.ShardID]uint64{}, change: make(chan struct{})}
	if cfg.Shards == 0 {
		cfg.Shards = 4
	}
	cfg.Bootstrap = cfg.Bootstrap || cfg.Snapshots == nil
	if cfg.Log == nil {
		h.log, h.state = newMemLog(cfg.Shards), newMemState(cfg.Shards)
		cfg.Log, cfg.StateMachine = h.log, h.state
	}
	cfg.OnOwner = func(sh dunlin.ShardID, term uint64, owner bool) {
		h.mu.Lock()
		defer h.mu.Unlock()
		delete(h.owned, sh)
		if owner {
			h.owned[sh] = term
		}
		close(h.change)
		h.change = make(chan struct{})
	}
	var err error
	if h.Host, err = Open(cfg); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- h.Run(ctx) }()
	h.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	t.Cleanup(func() { h.stop() })
	return h
}

// wait blocks until the host owns n shards.
func (h *testHost) wait(n int) {
	for {
		h.mu.Lock()
		have, change := len(h.owned), h.change
		h.mu.Unlock()
		if have >= n {
			return
		}
		<-change
	}
}

type answer struct {
	index uint64
	err   error
}

// ask proposes and returns a channel with the answer.
func (h *testHost) ask(sh dunlin.ShardID, data string) <-chan answer {
	term, _ := h.Owned(sh)
	c := make(chan answer, 2)
	h.Propose(sh, term, stamp(term, data), func(index uint64, err error) { c <- answer{index, err} })
	return c
}

func TestHostCommitsWhatIsProposed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := startHost(t, Config{Metrics: prometheus.NewRegistry()})
		h.wait(4)
		syncs, batches := h.log.syncs, h.state.batches
		var answers []<-chan answer
		for i := range 40 {
			answers = append(answers, h.ask(dunlin.ShardID(i%4), fmt.Sprint("d", i)))
		}
		synctest.Wait()
		if h.log.syncs != syncs {
			t.Error("proposals were written before Flush")
		}
		h.Flush()
		for i, c := range answers {
			a := <-c
			if a.err != nil {
				t.Fatalf("proposal %d: %v", i, a.err)
			}
			if want := uint64(3 + i/4); a.index != want {
				t.Errorf("proposal %d: index %d, want %d", i, a.index, want)
			}
		}
		if got := h.log.syncs - syncs; got != 1 {
			t.Errorf("%d fsyncs for one Flush, want 1", got)
		}
		if got := h.state.batches - batches; got != 1 {
			t.Errorf("%d batches applied for one Flush, want 1", got)
		}
		if n := h.in.node; n != (load64{}) {
			t.Errorf("%+v is still counted as pending", n)
		}
		if err := h.stop(); err != nil {
			t.Error(err)
		}
		if len(h.owned) != 0 {
			t.Errorf("%d shards are still owned after Run", len(h.owned))
		}
		if a := <-h.ask(0, "late"); !errors.Is(a.err, dunlin.ErrUnavailable) {
			t.Errorf("proposal after Run: %v, want ErrUnavailable", a.err)
		}
	})
}

// gate is a Log whose appends wait.
type gate struct {
	*memLog
	closed atomic.Bool
	pass   chan error // each append takes one
}

func (g *gate) Append(rows []dunlin.LogRow, sync bool) error {
	if g.closed.Load() {
		if err := <-g.pass; err != nil {
			return err
		}
	}
	return g.memLog.Append(rows, sync)
}

func gatedHost(t *testing.T, cfg Config) (*testHost, *gate) {
	g := &gate{memLog: newMemLog(4), pass: make(chan error)}
	state := newMemState(4)
	cfg.Log, cfg.StateMachine = g, state
	h := startHost(t, cfg)
	h.log, h.state = g.memLog, state
	h.wait(4)
	synctest.Wait()
	g.closed.Store(true)
	return h, g
}

func TestHostBoundsWhatIsPending(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, g := gatedHost(t, Config{PendingMax: 3, NodePendingMax: 5, PendingBytesMax: 1000, NodePendingBytesMax: 1500, EntryBytesMax: 900})
		over := func(what string, c <-chan answer) {
			t.Helper()
			select {
			case a := <-c:
				if !errors.Is(a.err, dunlin.ErrOverloaded) {
					t.Errorf("%s: %v, want ErrOverloaded", what, a.err)
				}
			default:
				t.Errorf("%s: not answered at once", what)
			}
		}
		var kept []<-chan answer
		for range 3 {
			kept = append(kept, h.ask(0, "x"))
		}
		over("fourth of a shard", h.ask(0, "x"))
		kept = append(kept, h.ask(1, "x"), h.ask(2, "x"))
		over("sixth of the node", h.ask(3, "x"))
		h.Flush()
		synctest.Wait() // the write is under way: still pending
		over("while the write is under way", h.ask(3, "x"))
		g.pass <- nil
		for i, c := range kept {
			if a := <-c; a.err != nil {
				t.Errorf("kept proposal %d: %v", i, a.err)
			}
		}
		big := string(make([]byte, 700))
		kept = []<-chan answer{h.ask(0, big)}
		over("bytes of a shard", h.ask(0, big))
		kept = append(kept, h.ask(1, big))
		over("bytes of the node", h.ask(2, big))
		if a := <-h.ask(2, big+big); !errors.Is(a.err, dunlin.ErrTooLarge) {
			t.Errorf("huge entry: %v, want ErrTooLarge", a.err)
		}
		g.closed.Store(false)
		h.Flush()
		for i, c := range kept {
			if a := <-c; a.err != nil {
				t.Errorf("big proposal %d: %v", i, a.err)
			}
		}
		h.Propose(9, 1, []byte("x"), func(_ uint64, err error) {
			if !errors.Is(err, dunlin.ErrInvalid) {
				t.Errorf("unknown shard: %v, want ErrInvalid", err)
			}
		})
	})
}

func TestHostGathersWhileItWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, g := gatedHost(t, Config{})
		first := h.ask(0, "first")
		h.Flush()
		synctest.Wait()
		var rest []<-chan answer
		for range 100 {
			rest = append(rest, h.ask(1, "rest"))
			h.Flush()
		}
		synctest.Wait()
		appends := h.log.appends
		g.pass <- nil
		if a := <-first; a.err != nil {
			t.Fatal(a.err)
		}
		g.pass <- nil
		for _, c := range rest {
			if a := <-c; a.err != nil {
				t.Fatal(a.err)
			}
		}
		if got := h.log.appends - appends; got != 2 {
			t.Errorf("%d batches, want 2: one under way, one that gathered behind it", got)
		}
	})
}

func TestHostClosingAnswersEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h, g := gatedHost(t, Config{})
		kept := []<-chan answer{h.ask(0, "in the write")}
		h.Flush()
		synctest.Wait()
		kept = append(kept, h.ask(1, "in the turn behind it"))
		ended := make(chan error, 1)
		go func() { ended <- h.stop() }()
		synctest.Wait()
		g.pass <- nil
		synctest.Wait() // the loop waits for its last write
		queued := h.ask(2, "too late")
		g.pass <- nil
		if err := <-ended; err != nil {
			t.Fatal(err)
		}
		for i, c := range kept {
			if a := <-c; a.err != nil {
				t.Errorf("written when closing began: %d: %v, want it acknowledged", i, a.err)
			}
		}
		if a := <-queued; !errors.Is(a.err, dunlin.ErrUnavailable) {
			t.Errorf("queued when closing began: %v, want ErrUnavailable", a.err)
		}
	})
}

func TestHostStopsAtAWriteError(t *testing.T) {
	for _, where := range []string{"log", "state"} {
		t.Run(where, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				bad := errors.New("input/output error")
				var fatal error
				h, g := gatedHost(t, Config{Fatal: func(err error) { fatal = err }})
				a, b := h.ask(0, "a"), h.ask(1, "b")
				if where == "log" {
					h.Flush()
					g.pass <- bad
				} else {
					h.state.fail = bad
					h.Flush()
					g.pass <- nil
				}
				for _, c := range []<-chan answer{a, b} {
					if a := <-c; !errors.Is(a.err, dunlin.ErrUnavailable) {
						t.Errorf("answer %v, want ErrUnavailable", a.err)
					}
				}
				if err := h.stop(); !errors.Is(err, bad) {
					t.Errorf("Run returned %v", err)
				}
				if !errors.Is(fatal, bad) {
					t.Errorf("Fatal was told %v", fatal)
				}
				if a := <-h.ask(2, "c"); !errors.Is(a.err, dunlin.ErrUnavailable) {
					t.Errorf("afterwards: %v, want ErrUnavailable", a.err)
				}
			})
		})
	}
}

// archive keeps entries up to a bound.
type archive struct {
	upTo  atomic.Uint64
	asked atomic.Uint64
}

func (a *archive) Archive(_ dunlin.ShardID, upTo uint64) (uint64, error) {
	a.asked.Store(upTo)
	return a.upTo.Load(), nil
}

func TestHostTruncatesWhatIsDurableAndArchived(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		arch := &archive{}
		h := startHost(t, Config{Archiver: arch, TruncateEntriesMin: 2, TruncateEvery: time.Second, Shards: 1})
		h.wait(1)
		for range 10 {
			c := h.ask(0, "x")
			h.Flush()
			if a := <-c; a.err != nil {
				t.Fatal(a.err)
			}
		}
		first := func() uint64 {
			<-time.After(1100 * time.Millisecond) // in a bubble: no time passes
			synctest.Wait()
			_, first, _, _ := h.log.Load(0)
			return first
		}
		if got := first(); got != 1 {
			t.Errorf("first row is %d with nothing flushed, want 1", got)
		}
		h.state.flush()
		if got := first(); got != 1 {
			t.Errorf("first row is %d with nothing archived, want 1", got)
		}
		arch.upTo.Store(7)
		if got := first(); got != 8 {
			t.Errorf("first row is %d with 7 archived, want 8", got)
		}
		arch.upTo.Store(100)
		if got := first(); got != 12 {
			t.Errorf("first row is %d with everything archived, want 12: the newest stays", got)
		}
		if got := arch.asked.Load(); got != 12 {
			t.Errorf("archive was asked for %d, want the flushed 12", got)
		}
	})
}

// TestHostTruncatesFewLargeEntries: rows that take room go, however few they are.
func TestHostTruncatesFewLargeEntries(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := startHost(t, Config{TruncateBytesMin: 10_000, TruncateEvery: time.Second, Shards: 1})
		h.wait(1)
		write := func(text string) (first uint64) {
			c := h.ask(0, text)
			h.Flush()
			if a := <-c; a.err != nil {
				t.Fatal(a.err)
			}
			h.state.flush()
			<-time.After(1100 * time.Millisecond) // in a bubble: no time passes
			synctest.Wait()
			_, first, _, _ = h.log.Load(0)
			return first
		}
		if got := write(strings.Repeat("x", 4000)); got != 1 {
			t.Errorf("first row is %d with 4,000 bytes, want 1: not worth it yet", got)
		}
		if got := write(strings.Repeat("x", 8000)); got < 3 {
			t.Errorf("first row is %d with 12,000 bytes, want 3 or more", got)
		}
	})
}

// TestHostIsQuietAlone: a lone node that nobody uses does nothing but look every few seconds whether to truncate.
func TestHostIsQuietAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := startHost(t, Config{Shards: 64, TruncateEvery: time.Hour})
		h.wait(64)
		synctest.Wait()
		appends := h.log.appends
		<-time.After(30 * time.Minute)
		if got := h.log.appends - appends; got != 0 || len(h.owned) != 64 {
			t.Errorf("%d writes and %d shards owned after half an hour of nothing, want 0 and 64", got, len(h.owned))
		}
		if h.core.ticking() {
			t.Error("groups of one tick")
		}
	})
}

// wires connects hosts; a cut node neither sends nor receives.
type wires struct {
	mu    sync.Mutex
	hosts map[uint64]*testHost
	cut   map[uint64]bool
}

type wire struct {
	*wires
	from uint64
}

func (w wire) Send(batch []Message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, m := range batch {
		if to := w.hosts[m.To]; to != nil && !w.cut[m.To] && !w.cut[w.from] {
			_ = to.Receive(m.Shard, m.Data) // as a network: losing is allowed
		}
	}
}

func (w *wires) cutOff(id uint64, cut bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.cut[id] = cut
}

// TestHostsOfThree shows that the seams carry: three hosts, messages through Transport and Receive, ticks, a cut-off owner.
func TestHostsOfThree(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := &wires{hosts: map[uint64]*testHost{}, cut: map[uint64]bool{}}
		ids := []uint64{1, 2, 3}
		for _, id := range ids {
			h := startHost(t, Config{Node: id, Voters: ids, Shards: 2, Transport: wire{w, id}})
			w.mu.Lock()
			w.hosts[id] = h
			w.mu.Unlock()
		}
		owner := func(not uint64) *testHost {
			for {
				<-time.After(100 * time.Millisecond)
				synctest.Wait()
				for id, h := range w.hosts {
					if _, ok := h.Owned(0); ok && id != not {
						return h
					}
				}
			}
		}
		old := owner(0)
		c := old.ask(0, "first")
		old.Flush()
		if a := <-c; a.err != nil {
			t.Fatal(a.err)
		}
		w.cutOff(old.cfg.Node, true)
		lost := old.ask(0, "lost")
		old.Flush()
		now := owner(old.cfg.Node)
		if a := <-lost; !errors.Is(a.err, dunlin.ErrNotOwner) {
			t.Errorf("proposal of the cut-off owner: %v, want ErrNotOwner", a.err)
		}
		c = now.ask(0, "second")
		now.Flush()
		if a := <-c; a.err != nil {
			t.Fatal(a.err)
		}
		w.cutOff(old.cfg.Node, false)
		<-time.After(2 * time.Second)
		synctest.Wait()
		want := fmt.Sprint(now.state.effects(0))
		for id, h := range w.hosts {
			if got := fmt.Sprint(h.state.effects(0)); got != want {
				t.Errorf("node %d has %s, want %s", id, got, want)
			}
		}
		if err := now.Receive(0, []byte{0xff, 0xff}); !errors.Is(err, dunlin.ErrInvalid) {
			t.Errorf("broken message: %v, want ErrInvalid", err)
		}
		for _, h := range w.hosts {
			h.stop()
		}
	})
}

func TestHostRestarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := startHost(t, Config{})
		h.wait(4)
		for range 3 {
			c := h.ask(2, "x")
			h.Flush()
			<-c
		}
		h.stop()
		log, state := h.log.crash(0), h.state.crash() // nothing of the state was flushed
		h = startHost(t, Config{Log: log, StateMachine: state})
		h.wait(4)
		if got := len(state.effects(2)); got != 3 {
			t.Errorf("%d effects after the restart, want 3", got)
		}
		if term, _ := h.Owned(2); term != 3 {
			t.Errorf("owner in term %d, want 3", term)
		}
	})
}

func TestOpenRefuses(t *testing.T) {
	base := Config{Shards: 1, Bootstrap: true, Log: newMemLog(1), StateMachine: newMemState(1)}
	for name, change := range map[string]func(*Config){
		"no log":          func(c *Config) { c.Log = nil },
		"too many shards": func(c *Config) { c.Shards = 1<<16 + 1 },
		"not a voter":     func(c *Config) { c.Voters = []uint64{2} },
		"no transport":    func(c *Config) { c.Voters = []uint64{1, 2} },
		"ticks":           func(c *Config) { c.ElectionTicks, c.HeartbeatTicks = 1, 1 },
	} {
		cfg := base
		change(&cfg)
		if _, err := Open(cfg); !errors.Is(err, dunlin.ErrInvalid) {
			t.Errorf("%s: %v, want ErrInvalid", name, err)
		}
	}
	cfg := base
	state := newMemState(1)
	state.shards[0].applied = 7
	cfg.StateMachine = state
	if _, err := Open(cfg); !errors.Is(err, errMismatch) {
		t.Errorf("state ahead of a new log: %v, want errMismatch", err)
	}
}

func FuzzHard(f *testing.F) {
	f.Add(appendHard(nil, hardState{3, 1, 77}))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := parseHard(b)
		if err != nil {
			return
		}
		if again, err := parseHard(appendHard(nil, h)); err != nil || again != h {
			t.Errorf("%v became %v, %v", h, again, err)
		}
	})
}
