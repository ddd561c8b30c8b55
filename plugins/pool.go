package plugins

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// poolKey names a pool: instances are of one module with one configuration.
type poolKey struct {
	hash   dunlin.ModuleHash
	config string
}

// pool is the instances of a module with a configuration.
type pool struct {
	h      *Host
	plugin string // name at first use; for the log
	module *module
	config []byte
	gone   atomic.Bool // closed: what knows the pool has to find another

	metrics poolMetrics
	strikes quarantine
	log     logBudget // of what instances print when they start

	mu struct {
		*sync.Mutex // the gate's: who gets a slot gets an instance with it, and who leaves it gives that back
		closed      bool
		idle        []*instance   // the last one is the warmest
		broken      notRun        // why it doesn't start
		retry       dunlin.Time   // not before
		used        int64         // the gate's uses at the last use
		usedAt      dunlin.Time   // the batch's moment
		debt        time.Duration // that starting spare instances took and nobody was charged for
		cost        cost
	}
}

// errGone is the error of a pool that was closed meanwhile: its module was removed, or it was not used for long.
var errGone = errors.New("the instances are gone")

// startRetry is how long a plugin that doesn't start is left alone.
const startRetry = 10 * time.Second

// pool returns the stage's pool, making it at first use.
func (h *Host) pool(st *dunlin.Stage, now dunlin.Time) (*pool, error) {
	h.mu.RLock()
	p := h.mu.pools[poolKey{st.Hash, string(st.Config)}]
	h.mu.RUnlock()
	if p != nil {
		return p, nil
	}
	m, err := h.module(&callContext{}, st.Hash, nil)
	if err != nil {
		return nil, err
	}
	m.used.Store(h.uses.Add(1))
	p = &pool{h: h, plugin: st.Plugin, module: m, config: append([]byte(nil), st.Config...),
		metrics: h.metrics.pool(pluginName(st))}
	p.mu.Mutex = &h.gate.mu.Mutex
	p.touch(now)
	h.mu.Lock()
	defer h.mu.Unlock()
	if other := h.mu.pools[poolKey{st.Hash, string(st.Config)}]; other != nil {
		return other, nil
	}
	if h.mu.modules[st.Hash] != m {
		return nil, fmt.Errorf("%w: module %s was removed", dunlin.ErrNotFound, st.Hash)
	}
	h.mu.pools[poolKey{st.Hash, string(st.Config)}] = p
	return p, nil
}

// take gives the visit an idle instance, or a new one. The error is a failure. The last one is not taken without asking for a
// spare: a Go module takes 10 ms to start, which the next trap must not cost.
func (p *pool) take(v *visit, now dunlin.Time) error {
	p.mu.Lock()
	if p.mu.closed {
		p.mu.Unlock()
		return errGone
	}
	if p.takeLocked(v, now); v.in != nil {
		p.mu.Unlock()
		if v.last {
			p.wantSpare()
		}
		return nil
	}
	if p.mu.broken.text != "" && now < p.mu.retry {
		defer p.mu.Unlock()
		return p.mu.broken
	}
	v.timed = p.mu.cost.sample()
	p.mu.Unlock()
	began := p.h.clock()
	var err error
	if v.in, err = p.start(now); err == nil {
		p.wantSpare()
	}
	v.used += p.h.clock() - began
	return err
}

// takeLocked gives the visit the warmest idle instance, if there is one, and what is to be paid with it.
func (p *pool) takeLocked(v *visit, now dunlin.Time) {
	p.touchLocked(now)
	if p.mu.debt > 0 {
		v.used += p.mu.debt
		p.mu.debt = 0
	}
	if n := len(p.mu.idle); n > 0 {
		v.in, v.last, v.timed = p.mu.idle[n-1], n == 1, p.mu.cost.sample()
		p.mu.idle = p.mu.idle[:n-1]
	}
}

// touch notes that the pool is used.
func (p *pool) touch(now dunlin.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.touchLocked(now)
}

func (p *pool) touchLocked(now dunlin.Time) {
	uses := &p.h.gate.mu.uses
	*uses++
	p.mu.used, p.mu.usedAt = *uses, now
}

// lastUse returns which of the gate's uses was the last, and the batch's moment.
func (p *pool) lastUse() (int64, dunlin.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.mu.used, p.mu.usedAt
}

func (p *pool) start(now dunlin.Time) (*instance, error) {
	if f := p.h.makeRoom(p); f.text != "" {
		return nil, f
	}
	in, err := p.h.start(p.module, p.config, now)
	if err != nil {
		return nil, p.notStarted(err, now)
	}
	p.mu.Lock()
	p.mu.broken = notRun{}
	p.mu.Unlock()
	p.metrics.starts.Inc()
	p.metrics.instances.Inc()
	p.weigh(in)
	lines, _ := p.log.lines(in.printed, now, &p.h.cfg.Limits)
	for _, line := range lines {
		p.h.cfg.Log.Info("plugin starts", slog.String("plugin", p.plugin), slog.String("text", line))
	}
	return in, nil
}

// notStarted notes why no instance could be started, and says it once.
func (p *pool) notStarted(err error, now dunlin.Time) error {
	f := notRun{text: "the plugin does not start: " + err.Error()}
	if why, ok := errors.AsType[failure](err); ok {
		f.version = !why.refusal()
	}
	p.mu.Lock()
	if p.mu.closed { // its module is gone: what is said then is not the plugin's
		p.mu.Unlock()
		return errGone
	}
	news := p.mu.broken != f
	p.mu.broken, p.mu.retry = f, now.Add(startRetry)
	p.mu.Unlock() // the log may be slow, and the lock is everybody's
	p.metrics.startFailures.Inc()
	if news {
		p.h.cfg.Log.Warn("a plugin does not start", slog.String("plugin", p.plugin), slog.String("reason", err.Error()))
	}
	return f
}

// weigh keeps the host's count of memory right.
func (p *pool) weigh(in *instance) {
	if size := int64(in.memory.Size()); size != in.bytes {
		p.h.memory.Add(size - in.bytes)
		in.bytes = size
		p.module.bytes.Store(size)
	}
}

// give takes an instance back.
func (p *pool) give(in *instance) {
	p.weigh(in)
	p.mu.Lock()
	kept := p.giveLocked(in)
	p.mu.Unlock()
	if !kept {
		p.discard(in)
	}
}

// giveLocked keeps an instance, unless there are too many.
func (p *pool) giveLocked(in *instance) (kept bool) {
	if p.mu.closed || len(p.mu.idle) > p.h.cfg.Workers {
		return false
	}
	p.mu.idle = append(p.mu.idle, in)
	return true
}

// discard ends an instance.
func (p *pool) discard(in *instance) {
	p.metrics.instances.Dec()
	p.h.memory.Add(-in.bytes)
	in.close()
}

// makeRoom ends idle instances of plugins used longest ago if another of this one's would be too much memory. The failure
// says that there is no room.
func (h *Host) makeRoom(p *pool) notRun {
	most, need := h.cfg.Limits.InstanceBytes, p.module.bytes.Load()
	for h.memory.Load()+need > most {
		oldest := longestUnused(h.pools())
		if oldest == nil {
			return notRun{text: fmt.Sprintf("no memory: the instances of all plugins have %d bytes, at most %d are allowed",
				h.memory.Load(), most)}
		}
		oldest.shrink(oldest.idle() - 1)
	}
	return notRun{}
}

// longestUnused returns the pool that was used longest ago of those with idle instances; nil if there is none.
func longestUnused(pools []*pool) *pool {
	var oldest *pool
	least := int64(math.MaxInt64)
	for _, p := range pools {
		if used, _ := p.lastUse(); used < least && p.idle() > 0 {
			oldest, least = p, used
		}
	}
	return oldest
}

// pools returns all pools.
func (h *Host) pools() []*pool {
	h.mu.RLock()
	defer h.mu.RUnlock()
	pools := make([]*pool, 0, len(h.mu.pools))
	for _, p := range h.mu.pools {
		pools = append(pools, p)
	}
	return pools
}

// idle returns how many instances have nothing to do.
func (p *pool) idle() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.mu.idle)
}

// close ends the idle instances; those at work end when they are given back.
func (p *pool) close() {
	p.mu.Lock()
	p.mu.closed = true
	p.gone.Store(true)
	p.mu.Unlock()
	p.shrink(0)
}

// shrink ends idle instances above n, the coldest first, and returns how many there are left.
func (p *pool) shrink(n int) int {
	p.mu.Lock()
	drop := max(0, len(p.mu.idle)-n)
	cold := append([]*instance(nil), p.mu.idle[:drop]...)
	p.mu.idle = append(p.mu.idle[:0], p.mu.idle[drop:]...)
	left := len(p.mu.idle)
	p.mu.Unlock()
	for _, in := range cold {
		p.discard(in)
	}
	return left
}

// wantSpare asks for an idle instance to be ready.
func (p *pool) wantSpare() {
	select {
	case p.h.refills <- p:
	default:
	}
}

// refill makes spare instances until ctx ends.
func (h *Host) refill(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case p := <-h.refills:
			p.mu.Lock()
			n, skip, usedAt := len(p.mu.idle), p.mu.closed || p.mu.broken.text != "", p.mu.usedAt
			p.mu.Unlock()
			if n > 0 || skip || h.memory.Load()+p.module.bytes.Load() > h.cfg.Limits.InstanceBytes {
				continue // a spare is not worth ending another's
			}
			began := h.clock()
			in, err := p.start(usedAt)
			took := h.clock() - began
			p.mu.Lock()
			p.mu.debt += took
			p.mu.Unlock()
			if err == nil {
				p.give(in)
			}
		}
	}
}

// Idle pools are looked through every sweepEvery; those unused for idleMax end.
const (
	sweepEvery = time.Minute
	idleMax    = 10 * time.Minute
)

// sweep ends instances of plugins and configurations that are no longer used, and of those used longest ago if there are
// more than Limits.Instances. Its clock is the batches'.
func (h *Host) sweep(now dunlin.Time) {
	last := h.swept.Load()
	if now.Sub(dunlin.Time(last)) < sweepEvery && now >= dunlin.Time(last) || !h.swept.CompareAndSwap(last, int64(now)) {
		return
	}
	if h.gate.sweep() {
		h.routes.forget() // they know domains that are forgotten
	}
	pools := h.pools()
	total := 0
	for _, p := range pools {
		if _, at := p.lastUse(); now.Sub(at) > idleMax {
			h.forget(p)
			continue
		}
		total += p.idle()
	}
	for total > h.cfg.Limits.Instances {
		oldest := longestUnused(pools)
		if oldest == nil {
			return
		}
		before, n := total, oldest.idle()
		if total -= n - oldest.shrink(max(0, n-(total-h.cfg.Limits.Instances))); total == before {
			return
		}
	}
}

// forget takes a pool off the map and ends it.
func (h *Host) forget(p *pool) {
	h.mu.Lock()
	k := poolKey{p.module.hash, string(p.config)}
	if h.mu.pools[k] == p {
		delete(h.mu.pools, k)
	}
	h.mu.Unlock()
	p.close()
}

// TryConfig starts the stage's plugin with its configuration and returns what it says against it, as a *dunlin.ModuleError
// or another error that matches dunlin.ErrInvalid. That the host closes or ctx ends is nothing against the configuration.
func (h *Host) TryConfig(ctx context.Context, st *dunlin.Stage) error {
	if st.Rules != nil {
		_, err := h.rules.get(st)
		return err
	}
	m, err := h.module(ctx, st.Hash, nil)
	if err != nil {
		return err
	}
	leave, err := h.admit()
	if err != nil {
		return err
	}
	defer leave()
	in, err := h.start(m, st.Config, h.cfg.Now())
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if f, ok := errors.AsType[failure](err); ok {
			return fmt.Errorf("%w: plugin %s: %s", dunlin.ErrInvalid, st.Plugin, string(f))
		}
		return err
	}
	in.close()
	return nil
}
