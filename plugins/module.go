package plugins

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/experimental"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins/fuel"
)

// module is a compiled module, or one that is being compiled, or the reason why it couldn't be.
type module struct {
	hash     dunlin.ModuleHash
	ready    chan struct{} // closed when the fields below are set
	compiled wazero.CompiledModule
	manifest *Manifest
	err      error
	used     atomic.Int64
	bytes    atomic.Int64 // memory of the last instance
	verdicts sync.Map     // dunlin.Tenant → *verdict
}

// module returns the compiled module, fetching and compiling it first if need be. wasm may be nil.
func (h *Host) module(ctx context.Context, hash dunlin.ModuleHash, wasm []byte) (*module, error) {
	h.mu.Lock()
	if h.mu.closed {
		h.mu.Unlock()
		return nil, errClosed
	}
	m := h.mu.modules[hash]
	if m != nil {
		h.mu.Unlock()
		<-m.ready
		return m, m.err
	}
	if h.makeRoomLocked(); len(h.mu.modules) >= h.cfg.Limits.Modules {
		h.mu.Unlock()
		return nil, fmt.Errorf("%w: %d plugin modules are in use, no room for another", dunlin.ErrOverloaded, len(h.mu.modules))
	}
	m = &module{hash: hash, ready: make(chan struct{})}
	m.used.Store(h.uses.Add(1))
	h.mu.modules[hash] = m
	h.mu.Unlock()

	m.err = h.load(ctx, m, wasm)
	close(m.ready)
	if m.err != nil { // the next one tries again
		h.mu.Lock()
		if h.mu.modules[hash] == m {
			delete(h.mu.modules, hash)
		}
		h.mu.Unlock()
		return nil, m.err
	}
	return m, nil
}

// load fetches, checks and compiles what m is to be.
func (h *Host) load(ctx context.Context, m *module, wasm []byte) error {
	if wasm == nil {
		if h.cfg.Module == nil {
			return fmt.Errorf("%w: module %s is not installed", dunlin.ErrNotFound, m.hash)
		}
		var err error
		if wasm, err = h.cfg.Module(m.hash); err != nil {
			return fmt.Errorf("module %s: %w", m.hash, err)
		}
		if sum := dunlin.ModuleHash(sha256.Sum256(wasm)); sum != m.hash {
			return fmt.Errorf("%w: module %s was stored with hash %s", dunlin.ErrInvalid, m.hash, sum)
		}
	}
	parsed, err := h.parse(wasm)
	if err != nil {
		return err
	}
	if m.manifest, _, err = ReadManifest(wasm); err != nil {
		return err
	}
	m.bytes.Store(int64(parsed.Memories[0].Min) << 16)
	m.compiled, err = h.compile(ctx, parsed)
	return err
}

// parse reads a module and refuses what can't be a plugin, without running any of it.
func (h *Host) parse(wasm []byte) (*fuel.Module, error) {
	m, err := h.inspect(wasm)
	if e, ok := errors.AsType[*dunlin.ModuleError](err); ok && len(e.Detail) > refusalBytesMax { // it may tell a name of a megabyte
		err = &dunlin.ModuleError{Check: e.Check, Detail: cleanText([]byte(e.Detail), refusalBytesMax) + "…"}
	}
	return m, err
}

// refusalBytesMax bounds what is said against a module.
const refusalBytesMax = 2 << 10

func (h *Host) inspect(wasm []byte) (*fuel.Module, error) {
	if n := len(wasm); n > h.cfg.Limits.ModuleBytes {
		return nil, &dunlin.ModuleError{Check: "size", Detail: fmt.Sprintf(
			"the module has %d bytes, at most %d are allowed; strip it (Go: -ldflags=\"-s -w\")", n, h.cfg.Limits.ModuleBytes)}
	}
	m, err := fuel.Parse(wasm)
	if err != nil {
		return nil, &dunlin.ModuleError{Check: "parse", Detail: err.Error()}
	}
	if err := checkModule(m, &h.cfg.Limits); err != nil {
		return nil, err
	}
	if _, _, err := ReadManifest(wasm); err != nil {
		return nil, err
	}
	return m, nil
}

func (h *Host) compile(ctx context.Context, m *fuel.Module) (wazero.CompiledModule, error) {
	h.compiling.Lock()
	defer h.compiling.Unlock()
	h.mu.RLock()
	closed := h.mu.closed
	h.mu.RUnlock()
	if closed {
		return nil, errClosed
	}
	rewritten, err := m.Rewrite(0)
	if err != nil {
		return nil, &dunlin.ModuleError{Check: "parse", Detail: err.Error()}
	}
	slow := &dunlin.ModuleError{Check: "parse", Detail: fmt.Sprintf(
		"compiling the module takes longer than %v; make it smaller, or split its largest functions", h.cfg.Limits.CompileTime)}
	ctx, cancel := context.WithTimeoutCause(ctx, h.cfg.Limits.CompileTime, slow)
	defer cancel()
	// With more than one worker wazero looks at ctx between functions.
	compiled, err := h.rt.CompileModule(experimental.WithCompilationWorkers(ctx, 2), rewritten)
	if err != nil {
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		return nil, &dunlin.ModuleError{Check: "parse", Detail: "the module does not validate: " + firstLine(err)}
	}
	return compiled, nil
}

// makeRoomLocked drops the compiled module that was used longest ago and has no pool, if there are too many.
func (h *Host) makeRoomLocked() {
	if len(h.mu.modules) < h.cfg.Limits.Modules {
		return
	}
	inUse := make(map[dunlin.ModuleHash]bool)
	for k := range h.mu.pools {
		inUse[k.hash] = true
	}
	var oldest *module
	for hash, m := range h.mu.modules {
		select {
		case <-m.ready:
			if !inUse[hash] && (oldest == nil || m.used.Load() < oldest.used.Load()) {
				oldest = m
			}
		default: // being compiled
		}
	}
	if oldest != nil {
		delete(h.mu.modules, oldest.hash)
		h.drop(oldest)
	}
}

// drop lets a compiled module go. Instances keep the code that they run.
func (h *Host) drop(m *module) {
	<-m.ready
	if m.compiled == nil {
		return
	}
	if err := m.compiled.Close(&callContext{}); err != nil && !errors.Is(err, context.Canceled) {
		h.cfg.Log.Warn("closing a plugin module", slog.String("module", m.hash.String()), slog.String("error", err.Error()))
	}
}
