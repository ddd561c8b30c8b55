// Package router lets any node take any device's message and answer any question: what this node does not own goes to the
// node that does, in batches for uplinks and in calls for questions and changes of the registry.
//
//	gateway ──Ingest──▶ Directory ──owned here──▶ shard actor
//	                        │ Take: not owned here
//	                        ▼
//	                  lane of the shard ──one call for many lanes──▶ owner's Serve ──▶ its Directory ──▶ shard actor
//	    ◀──Done────────────┘  ◀───────────── a receipt for each uplink ──────────────────┘
//
// Invariants:
//   - An uplink is answered exactly once: it is in one lane or one call, and whoever takes it out of there answers it.
//   - A lane has one call in flight, so uplinks of a device reach its owner in the order they came in. While a lane has anything,
//     what comes for its shard goes through it, also if the shard is this node's by then (Holds); and while the Directory has
//     anything of a shard that it gave up, the shard's lane waits for that to come back.
//   - Who refuses an uplink for now refuses what is behind it of the same device: it will come again, and then be first.
//   - What is sent twice is stored once: before it is first sent, an uplink has a message id, and FlagForwarded has the device
//     look for exactly this uplink in its dedupe window. No more uplinks of a device are in a call than the window remembers,
//     and a call that is overtaken by a later one of its lane is refused (fences).
//   - Lanes, calls in flight, questions being answered and modules being fetched are all bounded. Full has an answer.
//
// Part of the runtime; no compatibility promise before v1.
package router

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"hash/maphash"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dunlin-iot/dunlin"
)

// Config says how a Router works. Self, Shards and ShardOf must be given.
type Config struct {
	Self    dunlin.NodeID
	Shards  int                                   // of the cluster
	ShardOf func(dunlin.DeviceKey) dunlin.ShardID // where a device lives; below Shards

	WindowUplinks int           // uplinks that wait or are on their way to one node, and as many that wait for an owner; 0: 16,384
	WindowBytes   int64         // their bytes, estimated; 0: 16 MiB
	WaitMax       time.Duration // how long an uplink waits for its shard to have an owner; 0: 1 s
	CallMax       time.Duration // how long an owner may take to answer a batch; 0: 4 s
	AskMax        time.Duration // how long one node may take to answer a question; 0: 3 s
	AsksMax       int           // questions and changes of others that are worked on at a time; 0: 256

	Clock   func() dunlin.Time    // nil: the system's
	Log     *slog.Logger          // nil: none
	Metrics prometheus.Registerer // nil: none
}

// Owners says where shards are, as far as this node knows.
type Owners interface {
	// Owner returns the node that owns the shard and the term in which it does; false if nobody does or nobody is known.
	Owner(shard dunlin.ShardID) (node dunlin.NodeID, term uint64, ok bool)
	// Hint tells what somebody else said of a shard's owner. An older term than is known already is to be ignored.
	Hint(shard dunlin.ShardID, node dunlin.NodeID, term uint64)
	// Replicas returns the nodes that have a replica of the shard which can be read, this node among them if it has one.
	Replicas(shard dunlin.ShardID) []dunlin.NodeID
	// Voters returns the nodes that vote in the shard.
	Voters(shard dunlin.ShardID) []dunlin.NodeID
}

// Reads says how fresh this node's replicas are.
type Reads interface {
	// ReadIndex returns once this node's replica has applied all that was acknowledged before the call.
	ReadIndex(ctx context.Context, shard dunlin.ShardID) error
	// Fresh returns how long ago this node's replica was known to be up to date; false if there is none that can be read.
	Fresh(shard dunlin.ShardID) (time.Duration, bool)
}

// Caller calls other nodes: *placement.Remote. What it calls is the other Router's Serve. Errors keep their dunlin.Err*
// sentinel on the way.
type Caller interface {
	Call(ctx context.Context, to dunlin.NodeID, method string, body []byte) ([]byte, error)
	// Go is Call without a goroutine: it never blocks, and done is called exactly once, from any goroutine, possibly before Go
	// returns. body is the callee's for ever.
	Go(to dunlin.NodeID, method string, body []byte, done func(reply []byte, err error))
}

// Local is where this node's own uplinks go: *actors.Directory.
type Local interface {
	Ingest(first *dunlin.Uplink)
	// Post takes uplinks of one shard past what Holds of the Router says, and returns those that it did not take because this
	// node does not own the shard (any more).
	Post(shard dunlin.ShardID, first *dunlin.Uplink) (left *dunlin.Uplink)
	// Holds reports whether there are uplinks of the shard that are not answered.
	Holds(shard dunlin.ShardID) bool
	// Owned returns the term in which this node takes the shard's uplinks, and whether it does.
	Owned(shard dunlin.ShardID) (term uint64, ok bool)
}

// State is what this node's replicas have applied: *store.State.
type State interface {
	LoadDevice(shard dunlin.ShardID, key dunlin.DeviceKey) (*dunlin.DeviceState, bool, error)
	Readings(shard dunlin.ShardID, q dunlin.ReadingsQuery) (*dunlin.ReadingsPage, error)
	Alerts(shards []dunlin.ShardID, q dunlin.AlertsQuery) (*dunlin.AlertsPage, error)
	DeadLetters(shards []dunlin.ShardID, q dunlin.DeadLettersQuery) ([]dunlin.DeadLetter, error)
}

// Registry is what is registered, as this node's replicas have it, and how that is changed where this node owns the shard:
// *registry.Registry.
type Registry interface {
	dunlin.Registrar
	// DevicesIn lists devices of some shards, all of which have a replica here.
	DevicesIn(ctx context.Context, shards []dunlin.ShardID, q dunlin.DevicesQuery) (*dunlin.DevicesPage, error)
}

// Deps are what a Router works with. All must be set but Modules.
type Deps struct {
	Local    Local
	State    State
	Registry Registry
	Plugins  dunlin.Plugins // versions of plugins, changed where this node owns the meta shard; nil: there are none
	Owners   Owners
	Reads    Reads
	Caller   Caller
	Modules  *Modules // nil: plugins can't be uploaded on a node that does not own the meta shard

	// MergeAlerts makes one page of pages of disjoint shards that answer the same query: (*store.State).MergeAlerts.
	MergeAlerts func(pages []*dunlin.AlertsPage, q dunlin.AlertsQuery) (*dunlin.AlertsPage, error)
}

func (c *Config) complete() error {
	if c.Self == 0 || c.Shards < 1 || c.Shards > 1<<16 || c.ShardOf == nil {
		return fmt.Errorf("%w: the router needs Self (%s), Shards (%d) and ShardOf", dunlin.ErrInvalid, c.Self, c.Shards)
	}
	if c.WindowUplinks <= 0 {
		c.WindowUplinks = 16_384
	}
	if c.WindowBytes <= 0 {
		c.WindowBytes = 16 << 20
	}
	if c.WaitMax <= 0 {
		c.WaitMax = time.Second
	}
	if c.CallMax <= 0 {
		c.CallMax = 4 * time.Second
	}
	if c.AskMax <= 0 {
		c.AskMax = 3 * time.Second
	}
	if c.AsksMax <= 0 {
		c.AsksMax = 256
	}
	if c.Clock == nil {
		c.Clock = func() dunlin.Time { return dunlin.TimeOf(time.Now()) }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Router sends uplinks and questions to where their shards are owned, and answers those of other nodes. It implements
// dunlin.Ingestor, dunlin.Inspector, dunlin.Registrar and actors.Elsewhere.
type Router struct {
	cfg     Config
	deps    Deps
	met     *metrics
	names   interner
	stamps  stamps
	asks    chan struct{}  // a slot for each question of others that is worked on
	mail    chan twinAsked // of AskTwin; its size is AsksMax
	poke    chan struct{}  // one token wakes the porter, which is Run
	timer   *time.Timer    // wakes it, too
	began   time.Time      // time is measured from here, by the monotonic clock
	seed    maphash.Seed
	life    uint64 // tells this Router from those that ran on this node before
	fences  fences
	closing atomic.Bool

	mu struct {
		sync.Mutex
		lanes     []lane  // by shard
		touched   []*lane // to be looked at by the next Flush
		waiting   []*lane // those without a known owner
		peers     map[dunlin.NodeID]*peer
		nobody    peer          // counts what waits for an owner
		perDevice [1024]uint8   // of the call being gathered: uplinks of a device, by its hash
		armed     time.Duration // when the timer goes off; 0: it doesn't
		closed    bool
	}
}

var (
	_ dunlin.Ingestor  = (*Router)(nil)
	_ dunlin.Inspector = (*Router)(nil)
	_ dunlin.Registrar = (*Router)(nil)
)

// New makes a Router. It takes uplinks at once; those that have to wait for something are only seen to while Run runs.
func New(cfg Config, deps Deps) (*Router, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	if deps.Local == nil || deps.State == nil || deps.Registry == nil || deps.Owners == nil || deps.Reads == nil || deps.Caller == nil ||
		deps.MergeAlerts == nil {
		return nil, fmt.Errorf("%w: a dependency of the router is nil", dunlin.ErrInvalid)
	}
	// The channels' sizes are the numbers of their slots; poke holds one token.
	r := &Router{cfg: cfg, deps: deps, asks: make(chan struct{}, cfg.AsksMax), mail: make(chan twinAsked, cfg.AsksMax),
		poke: make(chan struct{}, 1), timer: time.NewTimer(time.Hour), began: time.Now(), seed: maphash.MakeSeed()}
	r.timer.Stop()
	r.names.init()
	r.stamps.init()
	r.life = r.stamps.make()
	r.mu.lanes = make([]lane, cfg.Shards)
	for i := range r.mu.lanes {
		r.mu.lanes[i].shard = dunlin.ShardID(i)
	}
	r.mu.peers = map[dunlin.NodeID]*peer{}
	met, err := newMetrics(cfg.Metrics, r)
	if err != nil {
		return nil, fmt.Errorf("metrics of the router: %w", err)
	}
	r.met = met
	return r, nil
}

// Serve answers a call of another node. It is what the node hands to the Caller's other side.
func (r *Router) Serve(ctx context.Context, from dunlin.NodeID, method string, body []byte) ([]byte, error) {
	if r.closing.Load() {
		return nil, errClosing
	}
	if method == methodUplinks {
		return r.serveUplinks(ctx, from, body)
	}
	select {
	case r.asks <- struct{}{}:
		defer func() { <-r.asks }()
	default:
		return nil, fmt.Errorf("%w: %d questions of other nodes are being answered", dunlin.ErrOverloaded, r.cfg.AsksMax)
	}
	return r.serveAsk(ctx, from, method, body)
}

// now is for measuring how long things take.
func (r *Router) now() time.Duration { return time.Since(r.began) }

// stamps makes message ids that nobody else makes: a counter from a random start, well mixed.
type stamps struct{ next atomic.Uint64 }

func (s *stamps) init() {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails since Go 1.24
	s.next.Store(binary.LittleEndian.Uint64(b[:]))
}

// make returns the next id; never 0, which means none. The mixing is SplitMix64's, a bijection.
func (s *stamps) make() uint64 {
	z := s.next.Add(0x9e3779b97f4a7c15)
	z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
	z = (z ^ z>>27) * 0x94d049bb133111eb
	return max(z^z>>31, 1)
}

// The refusals, made once.
var (
	errClosing = fmt.Errorf("%w: this node is closing", dunlin.ErrUnavailable)
	errWindow  = fmt.Errorf("%w: too many uplinks are on their way to the shard's owner", dunlin.ErrOverloaded)
	errNobody  = fmt.Errorf("%w: the device's shard has no owner for the moment", dunlin.ErrUnavailable)
	errLost    = fmt.Errorf("%w: the owner of the device's shard did not answer", dunlin.ErrUnavailable)
	errBehind  = fmt.Errorf("%w: an earlier message of the device was refused", dunlin.ErrUnavailable)
	errMoved   = fmt.Errorf("%w: %w: the device's shard is moving", dunlin.ErrUnavailable, dunlin.ErrNotOwner)
	errMail    = fmt.Errorf("%w: too many questions about devices of other nodes wait", dunlin.ErrOverloaded)
	errForeign = fmt.Errorf("%w: no replica of the shard can be read here", dunlin.ErrNotOwner)
)

func refusal(err error) dunlin.Receipt { return dunlin.Receipt{Err: err, RetryAfterSeconds: 1} }
