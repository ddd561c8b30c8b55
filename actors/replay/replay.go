// Package replay asks the past: what a new version of a plugin would have done with recorded inputs, how an alert came about,
// and what a dead letter comes to when it is handed over again.
//
//	recording of a shard ──entries──▶ window ──inputs by device──▶ sim ──one crossing for many──▶ Processor
//	(archive, then log)                  │                          ▲ │ outcomes
//	                                     │ recorded alerts          │ ▼
//	                                     │                     device.Machine of each device: alerts, timers, state
//	                                     ▼                            │ alerts
//	                                    diff ◀────────────────────────┘
//
// Invariants:
//   - Nothing here has an effect: outcomes go to machines that nobody else knows, and no entry is proposed. The exception is a
//     dead letter, whose input is sent on its way again.
//   - A device's turns and its timers happen in order of time. Several turns are handed over as one only while that makes no
//     difference, which samples show: a difference has the whole back-test made again turn by turn.
//   - Memory is bounded by a shard's devices and a window of its recording.
//   - One back-test at a time is made for this node, and one for each other node.
//
// Part of the runtime; no compatibility promise before v1.
package replay

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"runtime"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/device"
)

// Reader goes over what a shard keeps of its past: a *store.Recording.
type Reader interface {
	// Next appends entries that follow; they stay as they are until Reset. io.EOF: there are no more.
	Next(items []dunlin.FeedItem) ([]dunlin.FeedItem, error)
	// Reset takes the memory of what Next returned back.
	Reset()
	// Begins returns the time of the oldest entry that is kept, 0 if that is not known, and whether there never was an older one.
	Begins() (at dunlin.Time, whole bool)
	// Close ends it.
	Close()
}

// Processor runs modules, apart from those that devices' turns run: a *plugins.Host of its own.
type Processor interface {
	Install(ctx context.Context, hash dunlin.ModuleHash, module []byte) error
	// TryConfig says what the stage's plugin, or its rules, have against their configuration.
	TryConfig(ctx context.Context, st *dunlin.Stage) error
	Process(domain dunlin.DomainID, st *dunlin.Stage, stage int, now dunlin.Time, works []*dunlin.Work) error
	Close() error
}

// Registry knows domains, plugins and rules: *registry.Registry.
type Registry interface {
	Domain(ctx context.Context, t dunlin.Tenant, id dunlin.DomainID) (*dunlin.Domain, error)
	Plugin(ctx context.Context, t dunlin.Tenant, name string) (*dunlin.Plugin, error)
	// Rules are a domain's, nil if there is no such domain.
	Rules(t dunlin.Tenant, d dunlin.DomainID) *device.Rules
}

// Config says how much a Replay may take. The zero value of a field means its default; Self, Shards and ShardOf must be given.
type Config struct {
	Self    dunlin.NodeID
	Shards  int
	ShardOf func(dunlin.DeviceKey) dunlin.ShardID

	Workers     int           // shards that are worked on at a time; default all processors but one, which is left for devices
	WindowMax   int           // inputs that are gathered before they are worked off; default 12,000
	FuelPerCall int64         // of the Processor's crossings; default 500 million
	PollEvery   time.Duration // how often another node is asked how far it is; default 300 ms
	PollMax     time.Duration // a node's back-test that nobody asks about for so long ends; default 15 s
	LetterMax   time.Duration // to wait for a dead letter's new turn; default 10 s

	// EntryVersion is what every node of the cluster reads: before entry.VersionEffects, no letter can be deleted. nil: the newest.
	EntryVersion func() uint32
	Clock        func() dunlin.Time    // nil: the system's
	Log          *slog.Logger          // nil: none
	Metrics      prometheus.Registerer // nil: none
}

func (c *Config) complete() error {
	if c.Shards < 1 || c.ShardOf == nil {
		return fmt.Errorf("%w: replay needs Shards (%d) and ShardOf", dunlin.ErrInvalid, c.Shards)
	}
	c.Workers = cmp.Or(c.Workers, max(runtime.GOMAXPROCS(0)-1, 1))
	c.WindowMax = cmp.Or(c.WindowMax, 12_000)
	c.FuelPerCall = cmp.Or(c.FuelPerCall, 500_000_000)
	c.PollEvery = cmp.Or(c.PollEvery, 300*time.Millisecond)
	c.PollMax = cmp.Or(c.PollMax, 15*time.Second)
	c.LetterMax = cmp.Or(c.LetterMax, 10*time.Second)
	if c.Clock == nil {
		c.Clock = func() dunlin.Time { return dunlin.TimeOf(time.Now()) }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Deps are what a Service works with. Without Places and Caller all shards are taken to be here.
type Deps struct {
	// Past begins to read what a shard here keeps, from a moment on; with plugins' states, as far as they are kept.
	Past func(shard dunlin.ShardID, since dunlin.Time, states bool) (Reader, error)
	// Open makes a Processor for one back-test.
	Open func() (Processor, error)
	// Module returns the bytes of a module that some plugin has.
	Module   func(dunlin.ModuleHash) ([]byte, error)
	Registry Registry
	Places   Places
	Caller   Caller
	Modules  Modules // nil: other nodes get no candidates that are only here

	Inspector dunlin.Inspector
	Ingestor  dunlin.Ingestor
	Updates   Updates
}

// Places says where shards are: *cluster.Cluster.
type Places interface {
	// Fresh reports whether there is a replica here that can be read.
	Fresh(shard dunlin.ShardID) (time.Duration, bool)
	// Replicas returns the nodes that have one.
	Replicas(shard dunlin.ShardID) []dunlin.NodeID
	// Owner returns the shard's owner.
	Owner(shard dunlin.ShardID) (node dunlin.NodeID, term uint64, ok bool)
}

// Caller asks other nodes, which hand the question to their Service.Serve.
type Caller interface {
	Call(ctx context.Context, to dunlin.NodeID, method string, body []byte) ([]byte, error)
}

// Modules brings a candidate's bytes to other nodes: *router.Modules.
type Modules interface {
	// Stage keeps a module ready for others to fetch, until Unstage.
	Stage(hash dunlin.ModuleHash, module []byte) error
	Unstage(hash dunlin.ModuleHash)
	// Fetch gets a module from a node.
	Fetch(ctx context.Context, from dunlin.NodeID, hash dunlin.ModuleHash) ([]byte, error)
}

// Updates makes changes of rows where this node owns their shard: *actors.Directory.
type Updates interface {
	Owned(shard dunlin.ShardID) (term uint64, ok bool)
	Update(ctx context.Context, shard dunlin.ShardID, key *dunlin.DeviceKey, build func(at dunlin.Time, st *dunlin.DeviceState) ([]dunlin.Put, error)) error
}

// Service asks the past of all shards, and answers other nodes about those that are here. It implements dunlin.Replayer.
type Service struct {
	cfg  Config
	deps Deps
	own  chan struct{}              // a slot: the back-test that was asked for here
	jobs chan func(context.Context) // to be run by Run; of others, one at a time
	met  *metrics

	mu struct {
		sync.Mutex
		job *job // the newest of others
		ids uint64
	}
}

var _ dunlin.Replayer = (*Service)(nil)

// New makes a Service.
func New(cfg Config, deps Deps) (*Service, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	if deps.Past == nil || deps.Open == nil || deps.Module == nil || deps.Registry == nil {
		return nil, fmt.Errorf("%w: a dependency of replay is nil", dunlin.ErrInvalid)
	}
	met, err := newMetrics(cfg.Metrics)
	if err != nil {
		return nil, err
	}
	return &Service{cfg: cfg, deps: deps, own: make(chan struct{}, 1), jobs: make(chan func(context.Context)), met: met}, nil
}

// Run works other nodes' back-tests off until ctx ends.
func (s *Service) Run(ctx context.Context) error {
	for {
		select {
		case job := <-s.jobs:
			job(ctx)
		case <-ctx.Done():
			return nil
		}
	}
}
