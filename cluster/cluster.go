// Package cluster answers three questions for the node: is this entry durable, who owns a shard, and who is alive. It is the
// façade before the MultiRaft host, gossip, the links between nodes and the controller that places replicas.
// Part of the runtime; no compatibility promise before v1.
package cluster

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/control"
	"github.com/dunlin-iot/dunlin/cluster/replica"
)

// What a Cluster drives; see package replica.
type (
	Log          = replica.Log
	StateMachine = replica.StateMachine
	Archiver     = replica.Archiver
	Snapshots    = replica.Snapshots
)

// Store is what a Cluster needs of the node's store besides log and state machine: *store.DB and *store.State.
type Store interface {
	// Rows returns rows of the registry as applied.
	Rows(sh dunlin.ShardID, table, prefix, after string, limit int) ([]dunlin.Put, error)
	// Bytes estimates what a shard takes on disk.
	Bytes(sh dunlin.ShardID) int64
	// HashContext sums up what applying the shard's log has made, as of index: the same on all replicas that applied as much.
	HashContext(ctx context.Context, sh dunlin.ShardID) (sum [32]byte, index uint64, err error)
}

// Chunks serves the snapshots that replica.Snapshots.Export opened.
type Chunks interface {
	Chunk(id string, i int) (data []byte, last bool, err error)
	Release(id string)
}

// Config says what a Cluster drives. Log, StateMachine and Store are needed; all else has a default.
type Config struct {
	NodeID    dunlin.NodeID // default 1
	Name      string        // of the node
	Zone      string
	ClusterID string
	Shards    int  // default 64, 1 to 65,536; fixed for the life of the data
	Bootstrap bool // gives birth to the shards: on the one node that begins a cluster

	Replication  int           // replicas that a shard shall have; default 3
	RepairAfter  time.Duration // a dead member's replicas are made anew after it; default 5m
	Founders     int           // the cluster is ready once its shards have replicas on so many members, or on Replication; default 1
	SnapshotRate int64         // bytes of snapshots that the node receives in a second at most; default 12 MiB
	DiskReserve  int64         // with less space left on the disk the node hands its shards over; default 64 MiB

	Network   *Network // nil: a lone node that nobody reaches
	Log       Log
	State     StateMachine
	Snapshots Snapshots
	Chunks    Chunks
	Store     Store
	Disk      func() (used, free int64, err error)         // of the data folder; nil: not known
	Archiver  Archiver                                     // asked before entries are dropped from the log; nil: nobody keeps them
	Encode    func(e *dunlin.Entry, version uint32) []byte // package entry; needed

	Version  string // of the binary
	EntryMax uint32 // the newest version of entries that it reads

	// OnOwner(shard, term, true) is called when this node owns the shard in term and has applied all that earlier owners
	// acknowledged; (…, false) when it stops. It must not block.
	OnOwner func(sh dunlin.ShardID, term uint64, owner bool)
	// OnMoved tells that owners, places of replicas or members may have changed. It must not block.
	OnMoved func()
	// Fatal is told of an error of the log or the state; nothing is acknowledged after it, and Run returns it. It is also told
	// when this node is no longer a member.
	Fatal func(error)

	PendingMax          int           // proposals of a shard whose fate is open; default 1,024
	PendingBytesMax     int           // their bytes; default 16 MiB
	NodePendingMax      int           // of all shards; default 16,384
	NodePendingBytesMax int           // default 64 MiB
	TruncateEvery       time.Duration // how often the log is truncated; default 5s
	TruncateEntriesMin  int           // and by how many entries of a shard at least; default 1,024

	Clock   func() dunlin.Time    // nil: real
	Logger  *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: none
}

func (c *Config) setDefaults() {
	if c.NodeID == 0 {
		c.NodeID = 1
	}
	if c.Shards == 0 {
		c.Shards = 64
	}
	if c.Replication == 0 {
		c.Replication = 3
	}
	if c.RepairAfter == 0 {
		c.RepairAfter = 5 * time.Minute
	}
	if c.SnapshotRate == 0 {
		c.SnapshotRate = 12 << 20
	}
	if c.DiskReserve == 0 {
		c.DiskReserve = 64 << 20
	}
	if c.Clock == nil {
		c.Clock = func() dunlin.Time { return dunlin.TimeOf(time.Now()) }
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.OnOwner == nil {
		c.OnOwner = func(dunlin.ShardID, uint64, bool) {}
	}
	if c.OnMoved == nil {
		c.OnMoved = func() {}
	}
	if c.Fatal == nil {
		c.Fatal = func(error) {}
	}
}

// Cluster is this node's part in the cluster.
type Cluster struct {
	cfg    Config
	host   *replica.Host
	net    *Network
	owners owners
	places atomic.Pointer[placements] // what the meta shard says, as of an index
	limits control.Limits

	members  chan struct{} // size 1: held by who rewrites a member's row, from reading it until that is applied
	controls chan struct{} // size 1: the controller has something to look at
	follows  chan struct{} // size 1: so has the follower
	steward  steward
	fresh    atomic.Bool // the meta shard's replica here has caught up with its owner since the start
	formed   atomic.Bool // the founders have their replicas
	low      atomic.Bool // little disk is left
	sizes    sizes
	hashes   hashes
	pace     *pace
	entries  atomic.Uint32 // see EntryVersion
	started  atomic.Int64  // when Run was called
}

// heartbeatTicks is between two heartbeats of a shard: 90 ms of the 300 ms after which its followers look for another owner.
// Heartbeats are most of what an idle cluster does.
const heartbeatTicks = 3

// fetchesMax is how many snapshots a node receives at a time. Two would not be faster, for they share the rate, and take two cores.
const fetchesMax = 1

// Open loads the replicas of this node, or gives birth to them on new data. Nothing moves before Run.
func Open(cfg Config) (*Cluster, error) {
	cfg.setDefaults()
	c := &Cluster{cfg: cfg, net: cfg.Network, members: make(chan struct{}, 1), controls: make(chan struct{}, 1), follows: make(chan struct{}, 1),
		limits: control.Limits{Grace: cfg.RepairAfter}}
	c.hashes.turn = make(chan struct{}, 1)
	c.owners.of = make([]atomic.Pointer[owner], cfg.Shards)
	c.places.Store(&placements{of: make([]control.Placement, cfg.Shards)})
	c.formed.Store(cfg.Founders <= 1)
	c.steward.reports = map[dunlin.NodeID]*report{}
	c.steward.busy = map[dunlin.ShardID]bool{}
	rc := replica.Config{
		Node: uint64(cfg.NodeID), Shards: cfg.Shards, Bootstrap: cfg.Bootstrap, Log: cfg.Log, StateMachine: cfg.State,
		Snapshots: cfg.Snapshots, Archiver: cfg.Archiver, OnOwner: c.onOwner, OnLeader: c.onLeader, Fatal: cfg.Fatal,
		OnConf:     func(dunlin.ShardID, replica.Conf) { poke(c.controls) },
		PendingMax: cfg.PendingMax, PendingBytesMax: cfg.PendingBytesMax,
		NodePendingMax: cfg.NodePendingMax, NodePendingBytesMax: cfg.NodePendingBytesMax,
		HeartbeatTicks: heartbeatTicks, FetchesMax: fetchesMax, TruncateEvery: cfg.TruncateEvery, TruncateEntriesMin: cfg.TruncateEntriesMin,
		Clock: cfg.Clock, Logger: cfg.Logger, Metrics: cfg.Metrics,
	}
	if c.net != nil {
		rc.Transport, rc.Fetch = transport{c.net.links}, c.fetch
	}
	var err error
	if c.host, err = replica.Open(rc); err != nil {
		return nil, fmt.Errorf("open replicas: %w", err)
	}
	c.pace = newPace(cfg.SnapshotRate, c.host.WriteTime, time.Now)
	if c.net == nil {
		for sh := range cfg.Shards {
			if v := c.host.Status(dunlin.ShardID(sh)).Conf.Voters; len(v) > 1 {
				return nil, fmt.Errorf("%w: this data folder belongs to a node of a cluster of several: start it with --cluster HOST:PORT, "+
					"or, if the others are gone for good, see `dunlin cluster recover`", dunlin.ErrConflict)
			}
		}
	}
	if c.net != nil {
		if !cfg.Bootstrap { // everybody has a replica of the meta shard; a new one waits to be fed
			if err := c.host.Ensure(dunlin.MetaShard); err != nil {
				return nil, fmt.Errorf("open replicas: %w", err)
			}
		}
		c.net.cluster.Store(c)
	}
	if _, err := c.readPlacements(); err != nil {
		return nil, fmt.Errorf("open replicas: %w", err)
	}
	return c, nil
}

// Run drives the replicas until ctx ends (nil) or the log or the state fails. Entries that are being written when ctx ends
// are still applied and acknowledged; everything else that is pending gets ErrUnavailable.
func (c *Cluster) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	for _, f := range []func(context.Context){c.follow, c.controlLoop, c.watchDisk} {
		wg.Go(func() { f(ctx) })
	}
	if c.net != nil {
		wg.Go(func() { _ = c.net.Rejoin(ctx, c.seeds) }) // its only end is ctx's
	}
	err := c.host.Run(ctx)
	cancel()
	wg.Wait()
	return err
}

// HandOver gives away what this node owns, as far as others can take it, and returns when that is done or ctx ends. Nothing
// comes back to it until the process ends.
func (c *Cluster) HandOver(ctx context.Context) {
	c.host.Abdicate(true)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		left := 0
		for sh := range c.cfg.Shards {
			if _, ok := c.host.Owned(dunlin.ShardID(sh)); ok && len(c.host.Status(dunlin.ShardID(sh)).Conf.Voters) > 1 {
				left++
			}
		}
		if left == 0 {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

// Propose queues an entry for a shard that this node owns in term; it never blocks. done is called exactly once: after the
// entry was committed in that term and applied, or with ErrNotOwner, ErrUnavailable, ErrOverloaded, ErrTooLarge or
// ErrInvalid. It may be called before Propose returns, otherwise from the host's loop, and must not block. data must not
// change until then.
func (c *Cluster) Propose(sh dunlin.ShardID, term uint64, data []byte, done func(index uint64, err error)) {
	c.host.Propose(sh, term, data, done)
}

// Flush wakes the host: everything proposed so far goes into one log batch with one fsync.
func (c *Cluster) Flush() { c.host.Flush() }

// Owned returns the term in which this node owns the shard, and whether it does.
func (c *Cluster) Owned(sh dunlin.ShardID) (term uint64, ok bool) { return c.host.Owned(sh) }

// ReadIndex returns once this node's replica of the shard has applied all that was acknowledged before the call.
func (c *Cluster) ReadIndex(ctx context.Context, sh dunlin.ShardID) error {
	return c.host.ReadIndex(ctx, sh)
}

// Fresh returns how long ago this node's replica of the shard surely had all that was acknowledged; false if it has none, or
// never had.
func (c *Cluster) Fresh(sh dunlin.ShardID) (time.Duration, bool) {
	s := c.host.Status(sh)
	return s.Heard, s.Present && s.Initialised && s.Heard >= 0
}

// Ready returns nil while every shard has a living owner that this node knows, and knows what the meta shard says; before that,
// ErrUnavailable with what is missing.
func (c *Cluster) Ready() error {
	if !c.fresh.Load() {
		return fmt.Errorf("%w: the registry is not up to date yet", dunlin.ErrUnavailable)
	}
	for sh := range c.cfg.Shards {
		if id, _, ok := c.Owner(dunlin.ShardID(sh)); !ok || !c.Alive(id) {
			return fmt.Errorf("%w: shard %d has no owner", dunlin.ErrUnavailable, sh)
		}
	}
	if !c.formed.Load() {
		return fmt.Errorf("%w: the cluster's founders do not have their replicas yet", dunlin.ErrUnavailable)
	}
	return nil
}

// poke sets a flag.
func poke(ch chan struct{}) {
	select {
	case ch <- struct{}{}:
	default:
	}
}
