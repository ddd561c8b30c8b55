// Package plugins runs user-supplied WebAssembly modules on devices' inputs, each bounded in time, memory and output, so
// that a bad one harms nobody else.
//
//	            works of one batch
//	                   │ encode, one frame          ┌─ pool (module, configuration) ─┐
//	Process ──▶ gate ──┼──────────────▶ instance ◀──┤ idle instances, one in spare   │
//	                   │ decode         │ trap?      └────────────────────────────────┘
//	                   ▼                ▼ dropped; devices one by one, each in its own crossing
//	           Outcome of each device
//
// A batch crosses into WebAssembly once: one frame with all its devices goes in, one comes out (package abi). State is
// the caller's; instances know nothing of devices and may be replaced at any time. Package fuel makes them count what they
// burn, the meter stops them in time, and the gate lets domains take turns by the processor time that they took.
//
// Part of the runtime; no compatibility promise before v1.
package plugins

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/dunlin-iot/dunlin"
)

// Config configures a Host.
type Config struct {
	// CacheDir keeps compiled modules over restarts: compiling a Go module takes seconds, loading it milliseconds. It
	// holds native code, so nobody else may write there. "": they are kept in memory only.
	CacheDir string
	Limits   Limits
	// Module returns the bytes of a module that was not installed. nil: only installed modules run.
	Module func(dunlin.ModuleHash) ([]byte, error)
	// Workers is how many crossings run at the same time; default GOMAXPROCS.
	Workers int
	// OnBad is told once that a version keeps failing on several devices: it should be taken out of use. Meanwhile it is not
	// called for a minute. It runs in a goroutine of its own, which Close waits for; ctx ends then. nil: it is only logged.
	OnBad func(ctx context.Context, tenant dunlin.Tenant, plugin string, hash dunlin.ModuleHash, reason string)
	// Now is what the clock shows to plugins in dry runs; nil is the real one.
	Now     func() dunlin.Time
	Log     *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: none
}

// Host runs plugins. Its methods may be called concurrently.
type Host struct {
	cfg        Config
	rt         wazero.Runtime
	cache      wazero.CompilationCache // nil without CacheDir
	metrics    *metrics
	rules      ruleSets
	gate       *gate
	background background
	clock      func() time.Duration // monotonic
	runs       sync.Pool            // *run: memory of calls of Process that have ended
	routes     routes
	refills    chan *pool      // want a spare; a full queue means that who needs an instance makes it
	ctx        context.Context // ends with the host
	stop       context.CancelFunc
	done       sync.WaitGroup
	uses       atomic.Int64 // of modules so far: says which one was used last
	swept      atomic.Int64
	memory     atomic.Int64 // bytes of all instances

	refillRef uint64 // the function that gives instances fuel, as they refer to it
	reference func() float64

	compiling sync.Mutex // one at a time: it takes a core and much memory

	mu struct {
		sync.RWMutex
		closed  bool
		modules map[dunlin.ModuleHash]*module
		pools   map[poolKey]*pool
	}
}

// errClosed is what Process returns when the host is closing.
var errClosed = fmt.Errorf("plugin host: %w: closing", dunlin.ErrUnavailable)

// Open returns a Host. Close ends it.
func Open(cfg Config) (*Host, error) {
	if cfg.Workers <= 0 {
		cfg.Workers = runtime.GOMAXPROCS(0)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	if cfg.Now == nil {
		cfg.Now = func() dunlin.Time { return dunlin.TimeOf(time.Now()) }
	}
	cfg.Limits = cfg.Limits.withDefaults()
	rc := wazero.NewRuntimeConfigCompiler()
	if !compilerSupported() {
		rc = wazero.NewRuntimeConfigInterpreter()
		cfg.Log.Warn("no compiler for this processor: plugins are interpreted, 10 to 100 times slower",
			slog.String("arch", runtime.GOARCH))
	}
	rc = rc.WithCoreFeatures(api.CoreFeaturesV2).WithDebugInfoEnabled(false).
		WithMemoryLimitPages(uint32(max(1, cfg.Limits.MemoryBytes>>16)))
	opened := time.Now()
	h := &Host{cfg: cfg, clock: func() time.Duration { return time.Since(opened) },
		refills: make(chan *pool, 2*cfg.Workers)}
	h.gate = newGate(h.clock, cfg.Workers, cfg.Limits.Waiting,
		budgets{domain: cfg.Limits.DomainTime.Seconds(), tenant: cfg.Limits.TenantTime.Seconds()})
	h.background.most = cfg.Workers
	h.reference = sync.OnceValue(h.measureReference)
	h.runs.New = func() any { return newRun(h) }
	if cfg.CacheDir != "" {
		if err := os.MkdirAll(cfg.CacheDir, 0o700); err != nil {
			return nil, fmt.Errorf("plugin cache: %w", err)
		}
		cache, err := wazero.NewCompilationCacheWithDir(cfg.CacheDir)
		if err != nil {
			return nil, fmt.Errorf("plugin cache %s: %w", cfg.CacheDir, err)
		}
		h.cache = cache
		rc = rc.WithCompilationCache(cache)
	}
	ctx, stop := context.WithCancel(&callContext{})
	h.ctx, h.stop = ctx, stop
	h.rt = wazero.NewRuntimeWithConfig(ctx, rc)
	err := instantiateHostModules(ctx, h.rt)
	if err == nil {
		h.refillRef, err = instantiateRefill(ctx, h.rt)
	}
	if err != nil {
		stop()
		return nil, errors.Join(err, h.rt.Close(ctx))
	}
	h.metrics = newMetrics(cfg.Metrics, &h.gate.mu.Mutex, func() float64 { return float64(h.memory.Load()) })
	h.gate.waited = h.metrics.waited
	h.mu.modules = make(map[dunlin.ModuleHash]*module)
	h.mu.pools = make(map[poolKey]*pool)
	h.done.Go(func() { h.refill(ctx) })
	return h, nil
}

// compilerSupported asks wazero, which panics when told to compile for what it can't.
func compilerSupported() (ok bool) {
	switch runtime.GOARCH {
	case "amd64", "arm64":
		return runtime.GOOS == "linux" || runtime.GOOS == "darwin" || runtime.GOOS == "freebsd" || runtime.GOOS == "windows"
	}
	return false
}

// Close waits for running crossings and ends the host; Process then fails.
func (h *Host) Close() error {
	h.mu.Lock()
	closed := h.mu.closed
	h.mu.closed = true
	h.mu.Unlock()
	if closed {
		return nil
	}
	h.stop()
	h.gate.close()
	h.background.close()
	h.done.Wait()
	h.compiling.Lock()
	defer h.compiling.Unlock()
	ctx := &callContext{}
	err := h.rt.Close(ctx)
	if h.cache != nil {
		err = errors.Join(err, h.cache.Close(ctx))
	}
	return err
}

// Process lets the stage's plugin work off one device's inputs for each Work, and fills in every Outcome. stage is the
// index in the domain's pipeline, now the owner's clock. Devices are independent: what a plugin does wrong with one is
// in that Outcome's Failure. The error is not nil only if the host is closing. The first use of a module waits for its
// compilation.
func (h *Host) Process(domain dunlin.DomainID, st *dunlin.Stage, stage int, now dunlin.Time, works []*dunlin.Work) error {
	if len(works) == 0 {
		return nil
	}
	r := h.runs.Get().(*run)
	defer r.done()
	way, err := h.route(domain, st, works[0].Tenant, now)
	r.route, r.now, r.traps = way, now, 0
	r.turn.flow = way.flow
	if st.Rules != nil {
		return r.rules(works)
	}
	h.sweep(now)
	if err != nil {
		if errors.Is(err, errClosed) {
			return err
		}
		for _, work := range works {
			work.Outcome = dunlin.Outcome{Failure: err.Error()}
		}
		h.cfg.Log.Warn("a plugin cannot run", slog.String("domain", string(domain)), slog.String("plugin", st.Plugin),
			slog.Int("stage", stage), slog.String("error", err.Error()))
		return nil
	}
	if reason := r.verdict.refused(now); reason != "" {
		r.refuse(works, reason)
		return nil
	}
	return r.batch(works)
}

// Install compiles a module and keeps it ready. hash is the SHA-256 of the module as it was uploaded.
func (h *Host) Install(ctx context.Context, hash dunlin.ModuleHash, wasm []byte) error {
	if sum := dunlin.ModuleHash(sha256.Sum256(wasm)); sum != hash {
		return fmt.Errorf("%w: module %s has hash %s", dunlin.ErrInvalid, hash, sum)
	}
	_, err := h.module(ctx, hash, wasm)
	return err
}

// Remove forgets a module; crossings that run go on.
func (h *Host) Remove(hash dunlin.ModuleHash) {
	h.mu.Lock()
	m := h.mu.modules[hash]
	delete(h.mu.modules, hash)
	var pools []*pool
	for k, p := range h.mu.pools {
		if k.hash == hash {
			pools = append(pools, p)
			delete(h.mu.pools, k)
		}
	}
	h.mu.Unlock()
	for _, p := range pools {
		p.close()
	}
	if m != nil {
		h.drop(m)
	}
}
