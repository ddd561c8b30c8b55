package router

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dunlin-iot/dunlin"
)

// The calls for modules.
const (
	methodHave = "mod/have" // fetch this module from me and keep it
	methodGet  = "mod/get"  // a piece of this module, please
)

// Bounds of modules.
const (
	moduleBytesMax = 64 << 20
	chunkBytesMax  = 2 << 20
	stagedMax      = 4   // modules that wait for another node to fetch them
	wantedMax      = 256 // modules that this node lacks and knows of
	moduleWorkers  = 4
	tasksMax       = 64 // pushes and fetches that wait for a worker
	keepMax        = time.Minute
	getMax         = 10 * time.Second
	wantPause      = time.Second // between rounds of fetching what is wanted; longer the more often in vain
	wantPauseMax   = 30 * time.Second
)

// Blobs is where this node keeps modules: *blob.Blobs.
type Blobs interface {
	Put(data []byte) (dunlin.ModuleHash, error)
	Get(hash dunlin.ModuleHash) ([]byte, error)
	Has(hash dunlin.ModuleHash) bool
}

// ModulesConfig says how Modules work. Self must be given.
type ModulesConfig struct {
	Self    dunlin.NodeID
	Log     *slog.Logger          // nil: none
	Metrics prometheus.Registerer // nil: none
}

// ModulesDeps are what Modules work with. All but Install must be set.
type ModulesDeps struct {
	Blobs  Blobs
	Owners Owners
	Caller Caller
	// Install makes a module ready to run that was fetched, or whose row was applied: so that no turn waits for its compilation.
	Install func(ctx context.Context, hash dunlin.ModuleHash, module []byte) error // plugins.Host.Install; nil: it is left to the first turn
}

// Modules spreads the modules of plugins over the nodes. The log says which module runs; the module itself is too large for
// it. So it is on a majority of the meta shard's voters before its row is proposed, and every node fetches it as soon as the
// row is applied there: a takeover never waits for one.
type Modules struct {
	cfg     ModulesConfig
	deps    ModulesDeps
	tasks   chan func(context.Context) // for the workers
	poke    chan struct{}              // one token: something is wanted
	fetched prometheus.Counter

	mu struct {
		sync.Mutex
		staged map[dunlin.ModuleHash]*staged
		wanted []dunlin.ModuleHash
		flying map[dunlin.ModuleHash]chan struct{} // fetches by Get; closed at the end
	}
}

type staged struct {
	module []byte
	users  int
}

// NewModules makes Modules; hand them to the Router, which serves other nodes' calls for them. What has to be fetched or
// pushed is while Run runs.
func NewModules(cfg ModulesConfig, deps ModulesDeps) (*Modules, error) {
	if cfg.Self == 0 || deps.Blobs == nil || deps.Owners == nil || deps.Caller == nil {
		return nil, fmt.Errorf("%w: modules need Self (%s) and all dependencies", dunlin.ErrInvalid, cfg.Self)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	m := &Modules{cfg: cfg, deps: deps, tasks: make(chan func(context.Context), tasksMax), poke: make(chan struct{}, 1)}
	m.mu.staged = map[dunlin.ModuleHash]*staged{}
	m.mu.flying = map[dunlin.ModuleHash]chan struct{}{}
	m.fetched = prometheus.NewCounter(prometheus.CounterOpts{Name: "dunlin_modules_fetched_total", Help: "Plugin modules that were fetched from other nodes."})
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(m.fetched); err != nil {
			return nil, fmt.Errorf("metrics of modules: %w", err)
		}
	}
	return m, nil
}

// Keep keeps a module here and on other nodes. It returns once a majority of the meta shard's voters has it on disk; the rest
// gets it meanwhile.
func (m *Modules) Keep(module []byte) (dunlin.ModuleHash, error) {
	hash, err := m.deps.Blobs.Put(module)
	if err != nil {
		return hash, err
	}
	voters := m.deps.Owners.Voters(dunlin.MetaShard)
	need := len(voters)/2 + 1
	if slices.Contains(voters, m.cfg.Self) {
		need--
	}
	if len(voters) == 0 {
		need = 0
	}
	nodes := m.peers()
	results := make(chan bool, len(nodes)) // a result each, so that nobody waits to give it
	asked := 0
	for _, node := range nodes {
		push := func(ctx context.Context) {
			err := m.push(ctx, node, hash)
			if err != nil {
				m.cfg.Log.Warn("module not kept elsewhere", slog.String("node", node.String()), slog.Any("error", err))
			}
			results <- err == nil && slices.Contains(voters, node)
		}
		select {
		case m.tasks <- push:
			asked++
		default: // it will fetch the module when it sees the row
		}
	}
	timer := time.NewTimer(keepMax)
	defer timer.Stop()
	for ; need > 0 && asked > 0; asked-- {
		select {
		case ok := <-results:
			if ok {
				need--
			}
		case <-timer.C:
			asked = 1
		}
	}
	if need > 0 {
		return hash, fmt.Errorf("%w: %d more of the registry's %d nodes must keep the module", dunlin.ErrUnavailable, need, len(voters))
	}
	return hash, nil
}

// peers are the other nodes: voters of the meta shard first.
func (m *Modules) peers() []dunlin.NodeID { return peersOf(m.deps.Owners, m.cfg.Self) }

// peersOf returns the other nodes: each has a replica of the meta shard.
func peersOf(owners Owners, self dunlin.NodeID) (nodes []dunlin.NodeID) {
	for _, list := range [][]dunlin.NodeID{owners.Voters(dunlin.MetaShard), owners.Replicas(dunlin.MetaShard)} {
		for _, n := range list {
			if n != self && !slices.Contains(nodes, n) {
				nodes = append(nodes, n)
			}
		}
	}
	return nodes
}

func (m *Modules) push(ctx context.Context, node dunlin.NodeID, hash dunlin.ModuleHash) error {
	ctx, cancel := context.WithTimeoutCause(ctx, keepMax, errSilent(node))
	defer cancel()
	_, err := m.deps.Caller.Call(ctx, node, methodHave, hash[:])
	return err
}

// Get returns a module: this node's, or else another node's, which it keeps then. The error wraps dunlin.ErrNotFound if nobody
// that answers has it.
func (m *Modules) Get(hash dunlin.ModuleHash) ([]byte, error) {
	module, err := m.deps.Blobs.Get(hash)
	if err == nil || !errors.Is(err, dunlin.ErrNotFound) || len(m.peers()) == 0 {
		return module, err
	}
	m.mu.Lock()
	done := m.mu.flying[hash]
	if done == nil {
		done = make(chan struct{})
		fetch := func(ctx context.Context) {
			if err := m.obtain(ctx, hash); err != nil {
				m.cfg.Log.Warn("module not fetched", slog.String("module", hash.String()), slog.Any("error", err))
			}
			m.mu.Lock()
			delete(m.mu.flying, hash)
			m.mu.Unlock()
			close(done)
		}
		select {
		case m.tasks <- fetch:
			m.mu.flying[hash] = done
		default:
			m.mu.Unlock()
			return nil, fmt.Errorf("%w: too many modules are being fetched", dunlin.ErrOverloaded)
		}
	}
	m.mu.Unlock()
	timer := time.NewTimer(getMax)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	}
	return m.deps.Blobs.Get(hash)
}

// obtain fetches a module from whoever has it, and keeps it.
func (m *Modules) obtain(ctx context.Context, hash dunlin.ModuleHash) error {
	err := fmt.Errorf("%w: module %s", dunlin.ErrNotFound, hash)
	for _, node := range m.peers() {
		module, e := m.fetch(ctx, node, hash)
		if e == nil {
			_, e = m.deps.Blobs.Put(module)
			return e
		}
		if err = e; ctx.Err() != nil {
			break
		}
	}
	return err
}

// fetch gets a module from a node, piece by piece, and checks that it is the one.
func (m *Modules) fetch(ctx context.Context, from dunlin.NodeID, hash dunlin.ModuleHash) ([]byte, error) {
	if module, err := m.deps.Blobs.Get(hash); err == nil {
		return module, nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, keepMax, errSilent(from))
	defer cancel()
	var module []byte
	for {
		q := binary.BigEndian.AppendUint32(hash[:len(hash):len(hash)], uint32(len(module)))
		reply, err := m.deps.Caller.Call(ctx, from, methodGet, q)
		if err != nil {
			return nil, fmt.Errorf("module %s from node %s: %w", hash, from, err)
		}
		if len(reply) < 4 {
			return nil, fmt.Errorf("%w: a piece of module %s from node %s has %d bytes", dunlin.ErrInvalid, hash, from, len(reply))
		}
		total, piece := int(binary.BigEndian.Uint32(reply)), reply[4:]
		if total > moduleBytesMax || len(module)+len(piece) > total || len(piece) == 0 && len(module) < total {
			return nil, fmt.Errorf("%w: module %s from node %s: a piece of %d bytes at %d of %d", dunlin.ErrInvalid, hash, from, len(piece),
				len(module), total)
		}
		if module = append(module, piece...); len(module) == total {
			break
		}
	}
	if sha256.Sum256(module) != hash {
		return nil, fmt.Errorf("%w: what node %s has as module %s is not that", dunlin.ErrInvalid, from, hash)
	}
	m.fetched.Inc()
	return module, nil
}

// stage holds a module ready for another node to fetch, until unstage.
func (m *Modules) stage(hash dunlin.ModuleHash, module []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := m.mu.staged[hash]
	if s == nil {
		if len(m.mu.staged) >= stagedMax {
			return fmt.Errorf("%w: %d modules are being uploaded", dunlin.ErrOverloaded, stagedMax)
		}
		s = &staged{module: module}
		m.mu.staged[hash] = s
	}
	s.users++
	return nil
}

func (m *Modules) unstage(hash dunlin.ModuleHash) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s := m.mu.staged[hash]; s.users > 1 {
		s.users--
	} else {
		delete(m.mu.staged, hash)
	}
}

// serve answers another node's call.
func (m *Modules) serve(ctx context.Context, from dunlin.NodeID, method string, body []byte) ([]byte, error) {
	var hash dunlin.ModuleHash
	if len(body) < len(hash) {
		return nil, fmt.Errorf("%w: %s of %d bytes", dunlin.ErrInvalid, method, len(body))
	}
	rest := body[copy(hash[:], body):]
	switch {
	case method == methodHave && len(rest) == 0:
		if m.deps.Blobs.Has(hash) {
			return nil, nil
		}
		module, err := m.fetch(ctx, from, hash)
		if err == nil {
			_, err = m.deps.Blobs.Put(module)
		}
		return nil, err
	case method == methodGet && len(rest) == 4:
		return m.piece(hash, binary.BigEndian.Uint32(rest))
	}
	return nil, fmt.Errorf("%w: %s of %d bytes", dunlin.ErrInvalid, method, len(body))
}

// piece is a part of a module behind its whole length.
func (m *Modules) piece(hash dunlin.ModuleHash, at uint32) ([]byte, error) {
	m.mu.Lock()
	s := m.mu.staged[hash]
	m.mu.Unlock()
	var module []byte
	if s != nil {
		module = s.module
	} else {
		var err error
		if module, err = m.deps.Blobs.Get(hash); err != nil {
			return nil, err
		}
	}
	if uint64(at) > uint64(len(module)) {
		return nil, fmt.Errorf("%w: module %s has %d bytes, not %d", dunlin.ErrInvalid, hash, len(module), at)
	}
	rest := module[at:]
	rest = rest[:min(len(rest), chunkBytesMax)]
	reply := binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(rest)), uint32(len(module)))
	return append(reply, rest...), nil
}

// OnApplied follows an applied entry: a plugin's module is fetched as soon as the plugin is known here. It does not block.
func (m *Modules) OnApplied(sh dunlin.ShardID, _ uint64, e *dunlin.Entry) {
	if sh != dunlin.MetaShard {
		return
	}
	for i := range e.Puts {
		var p dunlin.Plugin
		if e.Puts[i].Table == dunlin.TablePlugins && e.Puts[i].Value != nil && json.Unmarshal(e.Puts[i].Value, &p) == nil {
			m.Want(p.Hash)
		}
	}
}

// Want makes this node fetch modules that it lacks, in the background. Of more than it can remember it forgets the first: Get
// fetches what is needed and not there.
func (m *Modules) Want(hashes ...dunlin.ModuleHash) {
	m.mu.Lock()
	for _, h := range hashes {
		if !slices.Contains(m.mu.wanted, h) {
			m.mu.wanted = append(m.mu.wanted, h)
		}
	}
	m.mu.wanted = m.mu.wanted[max(0, len(m.mu.wanted)-wantedMax):]
	m.mu.Unlock()
	select {
	case m.poke <- struct{}{}:
	default:
	}
}

// Run fetches and pushes modules until ctx ends.
func (m *Modules) Run(ctx context.Context) error {
	if m.cfg.Metrics != nil {
		defer m.cfg.Metrics.Unregister(m.fetched)
	}
	var all sync.WaitGroup
	for range moduleWorkers {
		all.Go(func() {
			for {
				select {
				case task := <-m.tasks:
					task(ctx)
				case <-ctx.Done():
					return
				}
			}
		})
	}
	m.fetchWanted(ctx)
	all.Wait()
	return nil
}

func (m *Modules) fetchWanted(ctx context.Context) {
	wait := wantPause
	timer := time.NewTimer(wait)
	defer timer.Stop()
	for {
		select {
		case <-m.poke:
			wait = wantPause
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		if m.fetchRound(ctx) {
			timer.Reset(wait)
			wait = min(2*wait, wantPauseMax)
		}
	}
}

// fetchRound tries to fetch all that is wanted; it reports whether something is left.
func (m *Modules) fetchRound(ctx context.Context) bool {
	m.mu.Lock()
	wanted := slices.Clone(m.mu.wanted)
	m.mu.Unlock()
	got := map[dunlin.ModuleHash]bool{}
	for _, h := range wanted {
		if err := m.prepare(ctx, h); err != nil {
			m.cfg.Log.Info("module not ready yet", slog.String("module", h.String()), slog.Any("error", err))
			continue
		}
		got[h] = true
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.mu.wanted = slices.DeleteFunc(m.mu.wanted, func(h dunlin.ModuleHash) bool { return got[h] })
	return len(m.mu.wanted) > 0
}

// prepare makes a module ready to run here.
func (m *Modules) prepare(ctx context.Context, hash dunlin.ModuleHash) error {
	if !m.deps.Blobs.Has(hash) {
		if err := m.obtain(ctx, hash); err != nil {
			return err
		}
	}
	if m.deps.Install == nil {
		return nil
	}
	module, err := m.deps.Blobs.Get(hash)
	if err != nil {
		return err
	}
	return m.deps.Install(ctx, hash, module)
}
