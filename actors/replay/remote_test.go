package replay

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// pair is two nodes with one recording: the first has shard 0, the second both.
type pair struct {
	t      *testing.T
	first  *Service
	second *Service
	mu     sync.Mutex
	calls  map[string]int
	cut    bool
	staged map[dunlin.ModuleHash][]byte
}

const (
	firstNode  dunlin.NodeID = 1
	secondNode dunlin.NodeID = 2
)

// Fresh, Replicas and Owner are the first node's view.
func (p *pair) Fresh(sh dunlin.ShardID) (time.Duration, bool) { return 0, sh == 0 }

func (p *pair) Replicas(sh dunlin.ShardID) []dunlin.NodeID {
	if sh == 0 {
		return []dunlin.NodeID{firstNode, secondNode}
	}
	return []dunlin.NodeID{secondNode}
}

func (p *pair) Owner(dunlin.ShardID) (dunlin.NodeID, uint64, bool) { return secondNode, 1, true }

func (p *pair) Call(ctx context.Context, to dunlin.NodeID, method string, body []byte) ([]byte, error) {
	p.mu.Lock()
	p.calls[method]++
	cut := p.cut
	p.mu.Unlock()
	if cut || to != secondNode {
		return nil, fmt.Errorf("%w: no way there", dunlin.ErrUnavailable)
	}
	return p.second.Serve(ctx, firstNode, method, body)
}

func (p *pair) count(method string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calls[method]
}

func (p *pair) Stage(h dunlin.ModuleHash, m []byte) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.staged[h] = m
	return nil
}

func (p *pair) Unstage(h dunlin.ModuleHash) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.staged, h)
}

func (p *pair) Fetch(_ context.Context, from dunlin.NodeID, h dunlin.ModuleHash) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if m := p.staged[h]; m != nil && from == firstNode {
		return m, nil
	}
	return nil, dunlin.ErrNotFound
}

// away is Updates of a node that owns nothing.
type away struct{ Updates }

func (away) Owned(dunlin.ShardID) (uint64, bool) { return 0, false }

func newPair(t *testing.T, w *world) *pair {
	p := &pair{t: t, calls: map[string]int{}, staged: map[dunlin.ModuleHash][]byte{}}
	cfg := Config{Self: firstNode, PollEvery: 5 * time.Millisecond}
	p.first, p.second = w.service(cfg), w.service(Config{Self: secondNode})
	p.first.deps.Places, p.first.deps.Caller, p.first.deps.Modules = p, p, p
	p.first.deps.Updates = away{p.first.deps.Updates}
	p.second.deps.Modules = p
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = p.second.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return p
}

// Two nodes come to what one comes to, whatever the candidate is.
func TestTwoNodes(t *testing.T) {
	w := newWorld(t)
	w.stage("fickle", module(t), `{"above": 9}`)
	w.days(0, 1, 2, true)
	w.pass(time.Second)
	p := newPair(t, w)
	alone := w.service(Config{})
	for what, b := range map[string]dunlin.Backtest{
		"exact":     {Since: worldStart},
		"stricter":  {Since: worldStart, Config: []byte(`{"above": 10}`)},
		"uneven":    {Since: worldStart, Config: []byte(`{"above": 9.0, "counts": true}`)},
		"one there": {Since: worldStart, Device: "dev-1", Config: []byte(`{"above": 10}`)},
		"rules":     {Since: worldStart, Rules: []byte(`[{"name": "hot", "when": "temp > 9.0", "severity": "major"}]`)},
		"a module":  {Since: worldStart, Config: []byte(`{}`)},
	} {
		var wasm []byte
		if what == "a module" {
			wasm = coldChain(t)
		}
		one, both := w.backtest(alone, b, wasm), w.backtest(p.first, b, wasm)
		for _, r := range []*dunlin.BacktestReport{one, both} {
			r.Took, r.Cost.Fuel, r.Failures, r.Deployed = 0, 0, nil, nil // batches differ
		}
		if x, y := toJSON(t, one), toJSON(t, both); x != y {
			t.Errorf("%s:\none  %s\nboth %s", what, x, y)
		}
	}
	if len(p.staged) != 0 {
		t.Errorf("%d modules are still staged", len(p.staged))
	}
}

func toJSON(t *testing.T, v any) string {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// A node that can't be reached leaves its shards out, one that is busy has the back-test refused, and a back-test that nobody
// asks about any more ends.
func TestOtherNodesTrouble(t *testing.T) {
	w := newWorld(t)
	w.stage("fickle", module(t), `{"above": 9}`)
	for range 30 {
		w.pass(time.Minute)
		w.report(map[string]float64{"dev-1": 10, "dev-2": 10, "dev-3": 13})
	}
	w.pass(time.Second)
	p := newPair(t, w)
	p.cut = true
	rep := w.backtest(p.first, dunlin.Backtest{Since: worldStart}, nil)
	if len(rep.Missing) != 1 || rep.Missing[0].Shard != 1 || rep.Devices != 1 {
		t.Errorf("cut off: %s, missing %v", summary(rep), rep.Missing)
	}
	p.cut = false
	page, err := w.dir.Alerts(t.Context(), dunlin.AlertsQuery{Device: "dev-1"})
	if err != nil || len(page.Alerts) != 1 {
		t.Fatal(err, page)
	}
	here, err := w.service(Config{}).Explain(t.Context(), "", page.Alerts[0].ID())
	if err != nil {
		t.Fatal(err)
	}
	there, err := p.first.Explain(t.Context(), "", page.Alerts[0].ID())
	if err != nil || p.count(methodExplain) != 1 {
		t.Fatal(err)
	}
	if here.Fuel, there.Fuel = 0, 0; !reflect.DeepEqual(here, there) {
		t.Errorf("explained\nhere  %+v\nthere %+v", here, there)
	}
	if err := p.first.DropLetter(t.Context(), "", "dev-3/0/7"); err != nil || p.count(methodDrop) != 1 {
		t.Errorf("drop: %v", err)
	}
	if err := p.first.DropLetter(t.Context(), "", "dev-3/0/7"); !errors.Is(err, dunlin.ErrNotFound) {
		t.Errorf("drop again: %v", err)
	}
	// The second node's Processor hangs until it is let go.
	let, began := make(chan struct{}), make(chan struct{}, 1)
	open := p.second.deps.Open
	p.second.deps.Open = func() (Processor, error) {
		began <- struct{}{}
		<-let
		return open()
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		_, err := p.first.Backtest(ctx, dunlin.Backtest{Domain: "d", Since: worldStart}, nil, nil)
		done <- err
	}()
	select {
	case <-began:
	case err := <-done:
		t.Fatal(err)
	}
	if _, err := p.first.Backtest(t.Context(), dunlin.Backtest{Domain: "d", Since: worldStart}, nil, nil); !errors.Is(err, dunlin.ErrOverloaded) {
		t.Errorf("two at once here: %v", err)
	}
	if _, err := p.second.Serve(t.Context(), 3, methodStart, []byte(toJSON(t, order{Version: callVersion, Shards: []dunlin.ShardID{1},
		Hash: w.plugins["fickle"].Hash, Backtest: dunlin.Backtest{Domain: "d", Since: worldStart}}))); !errors.Is(err, dunlin.ErrOverloaded) {
		t.Errorf("two at once there: %v", err)
	}
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	if p.count(methodStop) == 0 {
		t.Error("the other node was not told")
	}
	close(let)
	// A start whose answer is lost: nobody polls, and the job ends.
	p.second.deps.Open = func() (Processor, error) { return slow{}, nil }
	p.second.cfg.PollMax = 50 * time.Millisecond
	body := []byte(toJSON(t, order{Version: callVersion, Shards: []dunlin.ShardID{1}, Hash: w.plugins["fickle"].Hash, Backtest: dunlin.Backtest{Domain: "d", Since: worldStart}}))
	for taken := 0; taken < 2; <-time.After(time.Millisecond) { // the second one once the first is forgotten
		if _, err := p.second.Serve(t.Context(), firstNode, methodStart, body); err == nil {
			taken++
		} else if !errors.Is(err, dunlin.ErrOverloaded) {
			t.Fatal(err)
		}
	}
}

// slow is a Processor that takes its time to begin.
type slow struct{ Processor }

func (slow) Install(ctx context.Context, _ dunlin.ModuleHash, _ []byte) error {
	<-ctx.Done()
	return context.Cause(ctx)
}

func (slow) Close() error { return nil }

// What other nodes send may be anything.
func FuzzServe(f *testing.F) {
	s, err := New(Config{Shards: 2, ShardOf: shardOf}, Deps{Registry: &world{t: f, domain: &dunlin.Domain{ID: "d"}},
		Past:   func(dunlin.ShardID, dunlin.Time, bool) (Reader, error) { return nil, dunlin.ErrUnavailable },
		Open:   func() (Processor, error) { return nil, dunlin.ErrUnavailable },
		Module: func(dunlin.ModuleHash) ([]byte, error) { return nil, dunlin.ErrNotFound }, Updates: away{}})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(methodStart, []byte(`{"v":1,"backtest":{"domain":"d","since":"2026-01-01T00:00:00Z"},"hash":"","shards":[9]}`))
	f.Add(methodPoll, []byte(`{"v":1,"id":5}`))
	f.Add(methodStop, []byte(`{"v":1}`))
	f.Add(methodExplain, []byte{1, 2, 3})
	f.Add("replay/nothing", []byte{})
	x, _ := appendExplanation(&dunlin.Explanation{Alert: dunlin.Alert{Device: "d", Rule: "r"}})
	f.Add(methodExplain, x)
	f.Fuzz(func(t *testing.T, method string, body []byte) {
		if method != methodDrop { // it changes what is there
			_, _ = s.Serve(t.Context(), 1, method, body)
		}
		_, _ = cutExplanation(body)
		_, _ = parseAlertID(string(body))
	})
}
