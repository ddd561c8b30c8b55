// Package node wires the rooms into a node, by hand, from the inside out, and ends them from the outside in.
// It knows every room, and no room knows it.
// Part of the runtime; no compatibility promise before v1.
package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors"
	"github.com/dunlin-iot/dunlin/actors/registry"
	"github.com/dunlin-iot/dunlin/actors/replay"
	"github.com/dunlin-iot/dunlin/actors/router"
	"github.com/dunlin-iot/dunlin/actors/sessions"
	"github.com/dunlin-iot/dunlin/actors/stream"
	"github.com/dunlin-iot/dunlin/actors/trial"
	"github.com/dunlin-iot/dunlin/cluster"
	"github.com/dunlin-iot/dunlin/cluster/keys"
	"github.com/dunlin-iot/dunlin/cluster/placement"
	"github.com/dunlin-iot/dunlin/cluster/shard"
	"github.com/dunlin-iot/dunlin/entry"
	"github.com/dunlin-iot/dunlin/plugins"
	"github.com/dunlin-iot/dunlin/protocols/mqtt"
	"github.com/dunlin-iot/dunlin/protocols/payload"
	"github.com/dunlin-iot/dunlin/runtime/config"
	"github.com/dunlin-iot/dunlin/runtime/observe"
	"github.com/dunlin-iot/dunlin/store"
	"github.com/dunlin-iot/dunlin/store/blob"
)

// Bounds of ending: doors say goodbye, what is in flight is committed, the store is closed.
const (
	doorsGrace  = 300 * time.Millisecond
	actorsGrace = 300 * time.Millisecond
	readyWait   = 30 * time.Second // for the first ownership of all shards, with the log replayed
	memberWait  = 10 * time.Second // likewise, of a node that has others
	tellEvery   = 5 * time.Second  // what a node waits for
	handOverMax = time.Second      // for others to take what this node owns
	leaveMax    = 500 * time.Millisecond
)

// Addrs are the bound addresses, host:port; Admin is "" without an admin listener.
type Addrs struct{ HTTP, MQTT, CoAP, Admin string }

// Node is a running node.
type Node struct {
	cfg       config.Config
	obs       *observe.Observer
	identity  store.Identity
	newborn   bool // the data folder is new
	bootstrap bool // this node gives birth to the cluster's shards
	keys      keys.Secret
	network   *cluster.Network // nil: alone
	db        *store.DB
	blobs     *blob.Blobs
	host      *plugins.Host
	cluster   *cluster.Cluster
	directory *actors.Directory
	trials    trial.Book
	registry  *registry.Registry
	router    *router.Router
	modules   *router.Modules
	feed      *stream.Feed
	replay    *replay.Service
	sessions  *sessions.Service
	remote    *placement.Remote // nil: alone
	decoder   *payload.Decoder
	addrs     Addrs
	mqtt      atomic.Pointer[mqtt.Gateway] // nil until its door is open
	ready     atomic.Bool
	wired     atomic.Bool // router, feed and remote are there

	// net: links between nodes; inner: cluster and store; middle: what the doors speak to; outer: the doors.
	net, inner, middle, outer layer
	failed                    chan struct{}
	fail                      sync.Once
	failure                   error
}

// layer is a set of goroutines that end together.
type layer struct {
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// Start brings a node up and returns once it takes uplinks. ctx bounds the start, not the node: Close ends that.
func Start(ctx context.Context, cfg config.Config, obs *observe.Observer) (*Node, error) {
	n := &Node{cfg: cfg, obs: obs, decoder: payload.NewDecoder(), failed: make(chan struct{})}
	base := context.WithoutCancel(ctx)
	for _, l := range []*layer{&n.net, &n.inner, &n.middle, &n.outer} {
		l.ctx, l.cancel = context.WithCancel(base)
	}
	for _, step := range []func(context.Context) error{n.vacant, n.identify, n.openStore, n.openCluster, n.openPlugins, n.openRegistry, n.openActors,
		n.openRoutes, n.openRemote, n.runInner, n.guard, n.openDoors} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	n.ready.Store(true)
	return n, nil
}

func (n *Node) openStore(context.Context) error {
	var err error
	n.db, err = store.Open(store.Config{
		Dir: n.folder(), Identity: n.folderIdentity(), ShardOf: n.shardOf,
		OnApplied:   n.applied,
		OnInstalled: n.installed,
		Retention:   n.retention, Fatal: n.fatal, CacheBytes: n.cfg.CacheBytes, ArchiveAge: n.cfg.ArchiveAge, ArchiveBytes: n.cfg.ArchiveBytes,
		Log: n.obs.Log, Metrics: n.obs.Metrics,
	})
	if err != nil {
		return err
	}
	if err := n.db.Claim(n.identity.Cluster, n.identity.Node); err != nil {
		return err
	}
	n.cfg.Shards = n.db.Identity().Shards // what the folder was made with
	n.blobs, err = blob.Open(filepath.Join(n.cfg.Data, "modules"))
	return err
}

func (n *Node) shardOf(k dunlin.DeviceKey) dunlin.ShardID { return shard.Of(k, n.cfg.Shards) }

// retention is asked by the store's housekeeping.
func (n *Node) retention(t dunlin.Tenant, id dunlin.DomainID) time.Duration {
	d, err := n.registry.Domain(n.inner.ctx, t, id)
	if err != nil {
		return 0 // an unknown domain's history stays
	}
	return time.Duration(d.RetentionAge)
}

func (n *Node) openCluster(context.Context) error {
	var err error
	n.cluster, err = cluster.Open(cluster.Config{NodeID: n.identity.NodeID, Name: n.identity.Node, Zone: n.cfg.Zone,
		ClusterID: n.identity.Cluster, Shards: n.cfg.Shards, Bootstrap: n.bootstrap,
		Replication: n.cfg.Replication, RepairAfter: n.cfg.RepairAfter, Founders: n.cfg.Expect,
		Network: n.network, Log: n.db.Log(), State: n.db.State(), Snapshots: n.db, Chunks: n.db, Store: n.db.State(), Disk: n.db.Disk,
		Encode:  func(e *dunlin.Entry, v uint32) []byte { return entry.AppendAs(nil, e, v) },
		Version: n.cfg.Version, EntryMax: entry.Version,
		OnOwner: func(sh dunlin.ShardID, term uint64, owner bool) {
			if owner {
				n.directory.Own(sh, term)
			} else {
				n.directory.Disown(sh)
			}
			n.moved()
		},
		OnMoved: n.moved, Fatal: n.fatal, Logger: n.obs.Log, Metrics: n.obs.Metrics})
	return err
}

func (n *Node) openPlugins(context.Context) error {
	var err error
	n.host, err = plugins.Open(plugins.Config{CacheDir: filepath.Join(n.cfg.Data, "wasm-cache"), Module: func(h dunlin.ModuleHash) ([]byte, error) { return n.modules.Get(h) },
		Limits: n.limits(), OnBad: n.bad, Log: n.obs.Log, Metrics: n.obs.Metrics})
	return err
}

// limits are what the configuration says of plugins.
func (n *Node) limits() plugins.Limits {
	c := &n.cfg
	return plugins.Limits{CallTime: c.PluginCallTime, DomainTime: c.PluginDomainTime, TenantTime: c.PluginTenantTime,
		MemoryBytes: int(c.PluginMemory), InstanceBytes: c.PluginsMemory}
}

func (n *Node) openRegistry(context.Context) error {
	cfg := registry.Config{Shards: n.cfg.Shards, ShardOf: n.shardOf, Log: n.obs.Log, Static: n.static()}
	deps := registry.Deps{Rows: n.db.State(), Check: n.check, Install: n.install, Keep: func(m []byte) (dunlin.ModuleHash, error) { return n.modules.Keep(m) }, TryConfig: n.host.TryConfig, TryStates: n.host.TryStates,
		States: n.db.State(), Module: func(h dunlin.ModuleHash) ([]byte, error) { return n.modules.Get(h) }}
	var err error
	if n.registry, err = registry.New(cfg, deps); err != nil {
		return err
	}
	return nil
}

// check is a module's check, in the registry's words.
func (n *Node) check(ctx context.Context, module []byte) (registry.Checked, error) {
	rep, err := n.host.Check(ctx, module)
	if err != nil {
		return registry.Checked{}, err
	}
	b, err := json.Marshal(rep)
	if err != nil {
		return registry.Checked{}, err
	}
	man, text, err := plugins.ReadManifest(module)
	if err != nil {
		return registry.Checked{}, err
	}
	c := registry.Checked{Language: rep.Language, Report: b, Manifest: text}
	if man != nil {
		c.Version = man.Version
	}
	return c, nil
}

// install compiles a module. What the compiler leaves behind (70 MB for a Go module) goes back to the system at once: an
// idle node has no reason to collect garbage for minutes.
func (n *Node) install(ctx context.Context, hash dunlin.ModuleHash, module []byte) error {
	defer debug.FreeOSMemory()
	return n.host.Install(ctx, hash, module)
}

func (n *Node) openActors(context.Context) error {
	window := n.cfg.WindowMax
	if window == 0 {
		window = -1 // not at all
	}
	var err error
	n.directory, err = actors.New(actors.Config{Shards: n.cfg.Shards, ShardOf: n.shardOf, DefaultDomain: dunlin.DomainID(n.cfg.DefaultDomain),
		WindowMax: window, EntryVersion: n.cluster.EntryVersion, Refuse: n.diskFull, Log: n.obs.Log, Metrics: n.obs.Metrics},
		actors.Deps{Processor: n.host, Committer: n.cluster, States: n.db.State(), History: n.db.State(), Rules: n.registry.Rules,
			Slow: n.host.Busy, Labels: n.labels, Trials: &n.trials})
	if err != nil {
		return err
	}
	n.registry.Attach(n.directory)
	return nil
}

var errDisk = fmt.Errorf("%w: the disk is nearly full", dunlin.ErrOverloaded)

// diskFull refuses uplinks while so little disk is left that this node would rather own nothing.
func (n *Node) diskFull() error {
	if n.cluster.DiskLow() {
		return errDisk
	}
	return nil
}

// runInner starts the cluster and waits until every shard has an owner and the registry is up to date. A new node waits as
// long as it takes: it has nothing to offer before. One that was a member before opens its doors after a while all the same:
// without a majority it has an answer for everybody, and an operator can ask it what is wrong.
func (n *Node) runInner(ctx context.Context) error {
	n.inner.run(n, func(ctx context.Context) error { return n.cluster.Run(ctx) })
	n.inner.run(n, func(ctx context.Context) error { return n.db.Run(ctx) })
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	began := n.clock()
	told := began
	for n.cluster.Ready() != nil {
		select {
		case <-tick.C:
		case <-n.failed:
			return n.failure
		case <-ctx.Done():
			return fmt.Errorf("start: %w: %w", context.Cause(ctx), n.cluster.Ready())
		}
		now := n.clock()
		switch waited := now.Sub(began); {
		case n.network == nil && waited > readyWait:
			return fmt.Errorf("start: shards are not owned after %v: %w", readyWait, n.cluster.Ready())
		case n.network != nil && !n.newborn && waited > memberWait:
			n.obs.Log.Warn("this node is not ready, and opens its doors to say so", "why", n.cluster.Ready())
			return nil
		case now.Sub(told) > tellEvery:
			told = now
			n.obs.Log.Info("waiting for the cluster", "for", n.cluster.Ready())
		}
	}
	return nil
}

// run starts a goroutine of the layer; an error ends the node.
func (l *layer) run(n *Node, f func(context.Context) error) {
	l.wg.Go(func() {
		if err := f(l.ctx); err != nil && l.ctx.Err() == nil {
			n.fatal(err)
		}
	})
}

// fatal notes the first error that the node can't live with. The process is to end: whoever started the node sees Failed.
func (n *Node) fatal(err error) {
	n.fail.Do(func() {
		n.failure = err
		n.ready.Store(false)
		n.obs.Log.Error("the node can't go on", "error", err)
		close(n.failed)
	})
}

// Failed is closed when the node can't go on; Close then returns why.
func (n *Node) Failed() <-chan struct{} { return n.failed }

// Addrs returns the bound addresses.
func (n *Node) Addrs() Addrs { return n.addrs }

// Registrar is the cluster's registry.
func (n *Node) Registrar() dunlin.Registrar { return n.router }

// Feed is what the cluster commits.
func (n *Node) Feed() dunlin.Feed { return n.feed }

// Cluster is what the node knows of its cluster.
func (n *Node) Cluster() dunlin.ClusterAdmin { return n.cluster }

// ClusterAddr is where other nodes join this one, "" if they can't.
func (n *Node) ClusterAddr() string {
	if n.network == nil {
		return ""
	}
	return n.network.Addr()
}

// ClusterKey is the cluster's secret, "" if the node has none.
func (n *Node) ClusterKey() string {
	if n.keys.IsZero() {
		return ""
	}
	return n.keys.String()
}

// Close ends the node from the outside in: doors, ownership, actors, cluster, store. What was acked is kept.
func (n *Node) Close() error {
	n.ready.Store(false)
	n.outer.cancel()
	n.outer.wg.Wait()
	var errs []error
	within := func(max time.Duration, f func(context.Context) error) {
		ctx, cancel := context.WithTimeout(n.inner.ctx, max)
		defer cancel()
		if err := f(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			errs = append(errs, err)
		}
	}
	if n.cluster != nil {
		within(handOverMax, func(ctx context.Context) error { n.cluster.HandOver(ctx); return nil })
	}
	if n.router != nil {
		within(actorsGrace, n.router.Close)
	}
	if n.directory != nil {
		within(actorsGrace, n.directory.Close)
	}
	n.middle.cancel()
	n.middle.wg.Wait()
	if n.remote != nil {
		within(actorsGrace, n.remote.Close)
	}
	if n.network != nil {
		within(leaveMax, func(ctx context.Context) error {
			if err := n.network.Leave(ctx); err != nil { // nobody is there to hear it, or in a hurry as well: they will notice
				n.obs.Log.Debug("left without a goodbye", "error", err)
			}
			return nil
		})
	}
	n.inner.cancel()
	n.inner.wg.Wait()
	n.net.cancel()
	n.net.wg.Wait()
	for _, c := range n.closers() {
		errs = append(errs, c.Close())
	}
	select {
	case <-n.failed:
		errs = append(errs, n.failure)
	default:
	}
	return errors.Join(errs...)
}

// closers lists what holds files and sockets, in the order of closing.
func (n *Node) closers() (cs []io.Closer) {
	if n.network != nil {
		cs = append(cs, n.network)
	}
	if n.host != nil {
		cs = append(cs, n.host)
	}
	if n.blobs != nil {
		cs = append(cs, n.blobs)
	}
	if n.db != nil {
		cs = append(cs, n.db)
	}
	return cs
}

func (n *Node) clock() dunlin.Time { return dunlin.TimeOf(time.Now()) }

// folderIdentity is what the store is to find in its folder, or to write into a new one.
func (n *Node) folderIdentity() store.Identity {
	id := n.identity
	if !n.newborn { // what an older folder lacks is claimed once it is open
		id.Cluster, id.Node = "", ""
	}
	return id
}

// host returns the host part of an address, for messages.
func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return host
}
