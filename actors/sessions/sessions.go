// Package sessions keeps MQTT sessions in the shards of their keys, so that a client finds its session at any node, and has
// one connection in the whole cluster.
//
// A session's row is changed by its shard's owner alone, in the shard's actor, one change after the other; what comes in
// the meantime goes into one entry together. A connection claims a session (Open): that raises the row's epoch and names
// the holder, and from then on nobody else's Save counts. If somebody holds it already, that one is told to let go first
// and saves how it stands; one that can't be reached is fenced off by its epoch.
//
//	gateway ─▶ Open ─▶ owner of the shard: held by another node? ──yes──▶ that node: Kick ─▶ Save(Done) ─┐
//	   ▲                  │ no                        ▲                                                   │
//	   └──── epoch ◀── row committed                  └───────────────────── once more ◀──────────────────┘
//
// Sweeps of the owner end what has expired, let go for holders that died, and have wills said.
// Part of the runtime; no compatibility promise before v1.
package sessions

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/prometheus/client_golang/prometheus"
)

// Config says how a Service works. Shards and ShardOf must be given.
type Config struct {
	Self    dunlin.NodeID // default 1
	Shards  int
	ShardOf func(dunlin.DeviceKey) dunlin.ShardID

	QueueMax    int           // changes that wait for one shard's owner; default 4,096; above it ErrOverloaded
	VolatileMax int           // sessions of one shard that have a holder and no row; default 100,000; more are not fenced
	SweepEvery  time.Duration // default 2 s
	SweepRows   int           // rows of one shard that a sweep looks at; default 512
	OpenMax     time.Duration // how long a claim is tried; default 5 s
	KickMax     time.Duration // how long a holder may take to let go; default 2 s
	UpdateMax   time.Duration // how long an entry may take; default 10 s
	VerifyEvery time.Duration // how often a holder is asked whether it still holds; default 30 s

	Clock   func() dunlin.Time    // nil: the system's
	Log     *slog.Logger          // nil: none
	Metrics prometheus.Registerer // nil: none
}

// Updater runs changes in the shards' actors: *actors.Directory.
type Updater interface {
	Update(ctx context.Context, shard dunlin.ShardID, key *dunlin.DeviceKey,
		build func(at dunlin.Time, st *dunlin.DeviceState) ([]dunlin.Put, error)) error
}

// Rows reads rows of the registry: *store.State.
type Rows interface {
	Row(shard dunlin.ShardID, table, key string) ([]byte, bool, error)
	Rows(shard dunlin.ShardID, table, prefix, afterKey string, limit int) ([]dunlin.Put, error)
}

// Peers are the other nodes.
type Peers interface {
	// Owner returns who leads the shard, as far as this node knows.
	Owner(shard dunlin.ShardID) (node dunlin.NodeID, term uint64, ok bool)
	// Down reports whether the node is known to be dead or gone for good.
	Down(node dunlin.NodeID) bool
	// Call asks the node's Serve.
	Call(ctx context.Context, to dunlin.NodeID, method string, body []byte) ([]byte, error)
}

// Holder is who has the connections of this node: *mqtt.Gateway.
type Holder interface {
	// Kick ends the connection that holds the session in that epoch, if it is here, and returns once the session is saved as
	// done. renewed: it is lost to a connection that starts it afresh.
	Kick(ctx context.Context, key dunlin.DeviceKey, epoch uint64, renewed bool) error
	// Holds reports whether the session is held here in that epoch, or still to be saved.
	Holds(key dunlin.DeviceKey, epoch uint64) bool
	// LastWord says a will, and returns once it is kept or refused for good. Saying it again under the same epoch is no news.
	LastWord(ctx context.Context, key dunlin.DeviceKey, epoch uint64, will []byte) error
}

// Deps are the rooms that a Service works with. Peers nil: there are no others.
type Deps struct {
	Updates Updater
	Rows    Rows
	Peers   Peers
}

// Service keeps sessions.
type Service struct {
	cfg    Config
	deps   Deps
	holder atomic.Pointer[Holder]
	lanes  []lane
	stats  stats

	work struct { // lanes' runners, kicks, wills
		sync.RWMutex
		sync.WaitGroup
		closed bool
	}
	due    chan dueWill // has room for dueMax; what doesn't fit is found by a sweep
	saying struct {
		sync.Mutex
		now map[claim]bool // at most saysMax
	}

	mine struct {
		sync.Mutex
		byShard []holdings // volatile ones of this node, to be told to a shard's next owner
	}
}

// holdings are this node's sessions without a row, in one shard.
type holdings struct {
	epochs map[string]uint64
	owner  dunlin.NodeID // who knows of them all
	term   uint64
}

const (
	dueMax  = 1024
	saysMax = 16
)

// New checks cfg. Wills are said, and holders asked, after Attach; sweeps run in Run.
func New(cfg Config, deps Deps) (*Service, error) {
	if cfg.Shards < 1 || cfg.ShardOf == nil || deps.Updates == nil || deps.Rows == nil {
		return nil, fmt.Errorf("%w: sessions need Shards (%d), ShardOf, Updates and Rows", dunlin.ErrInvalid, cfg.Shards)
	}
	for _, d := range []struct {
		v   *int
		def int
	}{{&cfg.QueueMax, 4096}, {&cfg.VolatileMax, 100_000}, {&cfg.SweepRows, 512}} {
		if *d.v <= 0 {
			*d.v = d.def
		}
	}
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{{&cfg.SweepEvery, 2 * time.Second}, {&cfg.OpenMax, 5 * time.Second}, {&cfg.KickMax, 2 * time.Second},
		{&cfg.UpdateMax, 10 * time.Second}, {&cfg.VerifyEvery, 30 * time.Second}} {
		if *d.v <= 0 {
			*d.v = d.def
		}
	}
	if cfg.Self == 0 {
		cfg.Self = 1
	}
	if cfg.Clock == nil {
		cfg.Clock = func() dunlin.Time { return dunlin.TimeOf(time.Now()) }
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Service{cfg: cfg, deps: deps, lanes: make([]lane, cfg.Shards), due: make(chan dueWill, dueMax)}
	s.saying.now = map[claim]bool{}
	for i := range s.lanes {
		s.lanes[i].s, s.lanes[i].shard = s, dunlin.ShardID(i)
	}
	s.mine.byShard = make([]holdings, cfg.Shards)
	return s, s.register(cfg.Metrics)
}

// Attach names this node's holder, once that is there.
func (s *Service) Attach(h Holder) { s.holder.Store(&h) }

// Run sweeps until ctx ends, and returns when everything that was begun has ended. Claims and saves fail after that: the
// doors must be closed before.
func (s *Service) Run(ctx context.Context) error {
	s.spawn(func() {
		for {
			select {
			case d := <-s.due:
				s.say(ctx, d)
			case <-ctx.Done():
				return
			}
		}
	})
	ticker := time.NewTicker(s.cfg.SweepEvery)
	defer ticker.Stop()
	for ctx.Err() == nil {
		select {
		case <-ticker.C:
			s.sweep(ctx)
		case <-ctx.Done():
		}
	}
	s.work.Lock()
	s.work.closed = true
	s.work.Unlock()
	s.work.Wait()
	return nil
}

// spawn runs f, and Run waits for it; false: it is too late.
func (s *Service) spawn(f func()) bool {
	s.work.RLock()
	defer s.work.RUnlock()
	if s.work.closed {
		return false
	}
	s.work.Go(f)
	return true
}
