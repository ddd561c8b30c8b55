package replay

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/goleak"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors"
	"github.com/dunlin-iot/dunlin/actors/device"
	"github.com/dunlin-iot/dunlin/plugins"
	"github.com/dunlin-iot/dunlin/store"
)

var tempDir = sync.OnceValue(func() string {
	dir, err := os.MkdirTemp("", "dunlin-replay")
	if err != nil {
		panic(err)
	}
	return dir
})

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.Cleanup(func(code int) {
		_ = os.RemoveAll(tempDir())
		os.Exit(code)
	}))
}

// fickle is the plugin of testdata/fickle.
var fickle = sync.OnceValues(func() ([]byte, error) {
	out := filepath.Join(tempDir(), "fickle.wasm")
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-ldflags=-s -w", "-o", out, "./testdata/fickle")
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm")
	if b, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, b)
	}
	return os.ReadFile(out)
})

func module(t testing.TB) []byte {
	t.Helper()
	b, err := fickle()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func coldChain(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("../../cmd/dunlin/internal/builtin/modules/cold-chain.wasm")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

const worldShards = 2

var worldStart = dunlin.TimeOf(time.Date(2026, 5, 1, 0, 0, 0, 0, time.UTC))

// world is what of a node makes recordings: a store, shard actors, plugins. Its clock is the test's.
type world struct {
	t       testing.TB
	fs      *vfs.MemFS
	mu      sync.Mutex
	now     dunlin.Time
	db      *store.DB
	host    *plugins.Host
	dir     *actors.Directory
	modules map[dunlin.ModuleHash][]byte
	rules   *device.Rules
	domain  *dunlin.Domain
	plugins map[string]*dunlin.Plugin
	next    [worldShards]uint64
	terms   uint64
	sent    uint64
}

func shardOf(k dunlin.DeviceKey) dunlin.ShardID {
	return dunlin.ShardID(k.Device[len(k.Device)-1] % worldShards)
}

func newWorld(t testing.TB) *world {
	w := &world{t: t, fs: vfs.NewMem(), now: worldStart, modules: map[dunlin.ModuleHash][]byte{}, plugins: map[string]*dunlin.Plugin{},
		domain: &dunlin.Domain{Tenant: "default", ID: "d"}, rules: &device.Rules{Tenant: "default", Domain: "d", Register: true}}
	for i := range w.next {
		w.next[i] = 1
	}
	w.open()
	t.Cleanup(w.close)
	return w
}

// stage adds a stage to the pipeline, or gives it another module.
func (w *world) stage(name string, wasm []byte, config string) {
	h := dunlin.ModuleHash(sha256.Sum256(wasm))
	w.modules[h] = wasm
	st := dunlin.Stage{Plugin: name, Name: name, Hash: h, Config: []byte(config)}
	st.Made = madeBy(&st)
	w.plugins[name] = &dunlin.Plugin{Name: name, Hash: h}
	next := *w.rules
	next.Stages = slices.Clone(next.Stages)
	if i := slices.IndexFunc(next.Stages, func(s dunlin.Stage) bool { return s.Plugin == name }); i >= 0 {
		next.Stages[i] = st
	} else {
		next.Stages = append(next.Stages, st)
	}
	w.mu.Lock()
	w.rules = &next
	w.mu.Unlock()
}

func (w *world) clock() dunlin.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.now
}

func (w *world) Rules(dunlin.Tenant, dunlin.DomainID) *device.Rules {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.rules
}

func (w *world) Domain(context.Context, dunlin.Tenant, dunlin.DomainID) (*dunlin.Domain, error) {
	return w.domain, nil
}

func (w *world) Plugin(_ context.Context, _ dunlin.Tenant, name string) (*dunlin.Plugin, error) {
	if p := w.plugins[name]; p != nil {
		return p, nil
	}
	return nil, dunlin.ErrNotFound
}

func (w *world) module(h dunlin.ModuleHash) ([]byte, error) {
	if m := w.modules[h]; m != nil {
		return m, nil
	}
	return nil, dunlin.ErrNotFound
}

func (w *world) openHost() (*plugins.Host, error) {
	return plugins.Open(plugins.Config{CacheDir: filepath.Join(tempDir(), "cache"), Module: w.module, Workers: 2})
}

func (w *world) open() {
	w.t.Helper()
	var err error
	if w.db, err = store.Open(store.Config{FS: w.fs, Dir: "data", Identity: store.Identity{Cluster: "c", Node: "n", Shards: worldShards}, ShardOf: shardOf,
		SegmentBytes: 16 << 10, LogBytes: 64 << 10, LogMemTableBytes: 256 << 10, StateMemTableBytes: 256 << 10, ArchiveAge: -1, Clock: w.clock}); err != nil {
		w.t.Fatal(err)
	}
	if w.host, err = w.openHost(); err != nil {
		w.t.Fatal(err)
	}
	w.dir, err = actors.New(actors.Config{Shards: worldShards, ShardOf: shardOf, DefaultDomain: "d", WindowMax: -1, Workers: 1, Clock: w.clock},
		actors.Deps{Processor: w.host, Committer: w, States: w.db.State(), History: w.db.State(), Rules: w.Rules})
	if err != nil {
		w.t.Fatal(err)
	}
	w.terms++
	for sh := range dunlin.ShardID(worldShards) {
		w.dir.Own(sh, w.terms)
		for _, ok := w.dir.Owned(sh); !ok; _, ok = w.dir.Owned(sh) {
			<-time.After(100 * time.Microsecond)
		}
	}
}

func (w *world) close() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(w.t.Context()), 10*time.Second)
	defer cancel()
	if err := errors.Join(w.dir.Close(ctx), w.host.Close(), w.db.Close()); err != nil {
		w.t.Error(err)
	}
}

// restart ends all and begins again with what is on disk.
func (w *world) restart() {
	w.t.Helper()
	w.close()
	w.open()
}

// archive moves what is in the log to the archive.
func (w *world) archive() {
	w.t.Helper()
	if err := w.db.Sync(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
	for sh := range dunlin.ShardID(worldShards) {
		if err := w.db.Log().Truncate(sh, w.db.State().Durable(sh)); err != nil {
			w.t.Fatal(err)
		}
	}
}

// Propose implements actors.Committer: what is proposed is committed.
func (w *world) Propose(sh dunlin.ShardID, term uint64, data []byte, done func(uint64, error)) {
	w.mu.Lock()
	index := w.next[sh]
	w.next[sh]++
	w.mu.Unlock()
	data = slices.Clone(data)
	err := w.db.Log().Append([]dunlin.LogRow{{Shard: sh, Index: index, Term: term, Data: data}}, false)
	if err == nil {
		err = w.db.State().Apply([]dunlin.Committed{{Shard: sh, Index: index, Term: term, Data: data}})
	}
	done(index, err)
}

// Flush implements actors.Committer.
func (w *world) Flush() {}

type waiter struct {
	wg  sync.WaitGroup
	mu  sync.Mutex
	err error
}

func (a *waiter) Done(_ *dunlin.Uplink, r dunlin.Receipt) {
	a.mu.Lock()
	a.err = errors.Join(a.err, r.Err)
	a.mu.Unlock()
	a.wg.Done()
}

// report lets devices report at the moment that it is, and waits until that is committed.
func (w *world) report(values map[string]float64) {
	w.t.Helper()
	a := &waiter{}
	now := w.clock()
	for _, dev := range slices.Sorted(maps.Keys(values)) {
		w.sent++
		u := &dunlin.Uplink{DeviceKey: dunlin.DeviceKey{Tenant: "default", Device: dunlin.DeviceID(dev)}, Waiter: a, Tag: w.sent,
			Sender: dunlin.Principal{Kind: dunlin.PrincipalOpen, Tenant: "default"},
			Input: dunlin.Input{Kind: dunlin.InputTelemetry, Format: dunlin.FormatSenMLJSON, MessageID: w.sent, Received: now,
				Records: []dunlin.Record{{Metric: "temp", Unit: "Cel", Kind: dunlin.Number, Num: values[dev], Time: now - 1000}}}}
		a.wg.Add(1)
		w.dir.Ingest(u)
	}
	a.wg.Wait()
	if a.err != nil {
		w.t.Fatal(a.err)
	}
}

// pass lets time go by.
func (w *world) pass(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.now = w.now.Add(d)
}

// days lets a fleet report every minute for some days: with daily warmth, silence, inputs that the plugin refuses or breaks on,
// and a restart a day.
func (w *world) days(from, to, devices int, special bool) {
	w.t.Helper()
	for day := from; day < to; day++ {
		for m := range 1440 {
			w.pass(time.Minute)
			values := map[string]float64{"pulse-0": 1, "pulse-1": 1} // lets the others' timers fire
			for i := range devices {
				dev := fmt.Sprintf("dev-%d", i)
				v := 5 + float64((m*7+i*131+day*977)%600)/100
				if m/60 == (i*5+day)%24 && m%60 > 20 {
					continue // silent for a while
				}
				switch {
				case special && (m+i*17)%701 == 0:
					v = 13
				case special && (m+i*29)%1103 == 0:
					v = 666
				}
				values[dev] = v
			}
			w.report(values)
			w.pass(3 * time.Second)
		}
		w.restart()
	}
}

// service asks the world's past.
func (w *world) service(cfg Config) *Service {
	w.t.Helper()
	cfg.Shards, cfg.ShardOf, cfg.Clock, cfg.Log = worldShards, shardOf, w.clock, slog.New(slog.NewTextHandler(w.t.Output(), nil))
	s, err := New(cfg, Deps{Registry: w, Module: w.module,
		Past: func(sh dunlin.ShardID, since dunlin.Time, states bool) (Reader, error) {
			return w.db.Journal().Recording(sh, since, states)
		},
		Open: func() (Processor, error) {
			return plugins.Open(plugins.Config{CacheDir: filepath.Join(tempDir(), "cache"), Module: w.module,
				Limits: plugins.Limits{BadDevices: math.MaxInt32, TrapsPerBatch: math.MaxInt32}})
		},
		Inspector: w.dir, Ingestor: w.dir, Updates: w.dir})
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) backtest(s *Service, b dunlin.Backtest, wasm []byte) *dunlin.BacktestReport {
	w.t.Helper()
	b.Domain = "d"
	rep, err := s.Backtest(w.t.Context(), b, wasm, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	return rep
}

func (w *world) alerts() (n int) {
	page, err := w.db.State().Alerts(nil, dunlin.AlertsQuery{Limit: 1000})
	if err != nil {
		w.t.Fatal(err)
	}
	return len(page.Alerts)
}

func summary(r *dunlin.BacktestReport) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s against %s: %d devices, %d turns, %d inputs, %d readings\nalerts %+v\ncost %+v\n", r.Mode, r.Against, r.Devices, r.Turns, r.Inputs,
		r.Readings, r.Alerts, r.Cost)
	for _, f := range r.Failures {
		fmt.Fprintf(&b, "failed %d: %s\n", f.Inputs, f.Reason)
	}
	if r.Exact != nil {
		fmt.Fprintf(&b, "exact: %d turns, %d different %v\n", r.Exact.Turns, r.Exact.Different, r.Exact.Differences)
	}
	for _, d := range r.ByDevice {
		fmt.Fprintf(&b, "%s %+v\n", d.Device, d.Alerts)
		for _, x := range d.Differences[:min(len(d.Differences), 3)] {
			fmt.Fprintf(&b, "   %s %s %+v %+v\n", x.Kind, x.Rule, x.Recorded, x.Candidate)
		}
	}
	return b.String()
}
