// Package node wires the rooms into a node, by hand, from the inside out, and ends them from the outside in.
// It knows every room, and no room knows it.
// Part of the runtime; no compatibility promise before v1.
package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors"
	"github.com/dunlin-iot/dunlin/actors/registry"
	"github.com/dunlin-iot/dunlin/cluster"
	"github.com/dunlin-iot/dunlin/cluster/shard"
	"github.com/dunlin-iot/dunlin/plugins"
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
)

// Addrs are the bound addresses, host:port; Admin is "" without an admin listener.
type Addrs struct{ HTTP, MQTT, CoAP, Admin string }

// Node is a running node.
type Node struct {
	cfg       config.Config
	obs       *observe.Observer
	db        *store.DB
	blobs     *blob.Blobs
	host      *plugins.Host
	cluster   *cluster.Cluster
	directory *actors.Directory
	registry  *registry.Registry
	decoder   *payload.Decoder
	addrs     Addrs
	ready     atomic.Bool

	inner, outer layer // inner: cluster and store; outer: doors
	failed       chan struct{}
	fail         sync.Once
	failure      error
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
	for _, l := range []*layer{&n.inner, &n.outer} {
		l.ctx, l.cancel = context.WithCancel(base)
	}
	for _, step := range []func(context.Context) error{n.openStore, n.openCluster, n.openPlugins, n.openRegistry, n.openActors,
		n.runInner, n.guard, n.openDoors} {
		if err := step(ctx); err != nil {
			return nil, errors.Join(err, n.Close())
		}
	}
	n.ready.Store(true)
	return n, nil
}

func (n *Node) openStore(context.Context) error {
	if err := os.MkdirAll(n.cfg.Data, 0o700); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	var err error
	n.db, err = store.Open(store.Config{
		Dir: filepath.Join(n.cfg.Data, "db"), Identity: store.Identity{Shards: n.cfg.Shards}, ShardOf: n.shardOf,
		OnApplied: func(sh dunlin.ShardID, index uint64, e *dunlin.Entry) { n.registry.OnApplied(sh, index, e) },
		Retention: n.retention, Fatal: n.fatal, CacheBytes: n.cfg.CacheBytes, ArchiveAge: n.cfg.ArchiveAge, ArchiveBytes: n.cfg.ArchiveBytes,
		Log: n.obs.Log, Metrics: n.obs.Metrics,
	})
	if err != nil {
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
	n.cluster, err = cluster.Open(cluster.Config{Shards: n.cfg.Shards, Log: n.db.Log(), StateMachine: n.db.State(),
		OnOwner: func(sh dunlin.ShardID, term uint64, owner bool) {
			if owner {
				n.directory.Own(sh, term)
			} else {
				n.directory.Disown(sh)
			}
		},
		Fatal: n.fatal, Logger: n.obs.Log, Metrics: n.obs.Metrics})
	return err
}

func (n *Node) openPlugins(context.Context) error {
	var err error
	n.host, err = plugins.Open(plugins.Config{CacheDir: filepath.Join(n.cfg.Data, "wasm-cache"), Module: n.blobs.Get, Log: n.obs.Log, Metrics: n.obs.Metrics})
	return err
}

func (n *Node) openRegistry(context.Context) error {
	cfg := registry.Config{Shards: n.cfg.Shards, ShardOf: n.shardOf, Log: n.obs.Log, Static: n.static()}
	deps := registry.Deps{Rows: n.db.State(), Check: n.check, Install: n.install, Keep: n.blobs.Put, TryConfig: n.host.TryConfig}
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
	return registry.Checked{Language: rep.Language, Report: b}, err
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
		WindowMax: window, Log: n.obs.Log, Metrics: n.obs.Metrics},
		actors.Deps{Processor: n.host, Committer: n.cluster, States: n.db.State(), History: n.db.State(), Rules: n.registry.Rules})
	if err != nil {
		return err
	}
	n.registry.Attach(n.directory)
	return nil
}

// runInner starts the cluster and waits until every shard is owned: the log is replayed then, and the registry complete.
func (n *Node) runInner(ctx context.Context) error {
	n.inner.run(n, func(ctx context.Context) error { return n.cluster.Run(ctx) })
	n.inner.run(n, func(ctx context.Context) error { return n.db.Run(ctx) })
	ctx, cancel := context.WithTimeoutCause(ctx, readyWait, fmt.Errorf("shards are not owned after %v", readyWait))
	defer cancel()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for n.cluster.Ready() != nil {
		select {
		case <-tick.C:
		case <-n.failed:
			return n.failure
		case <-ctx.Done():
			return fmt.Errorf("start: %w: %w", context.Cause(ctx), n.cluster.Ready())
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

// Registrar is the node's registry.
func (n *Node) Registrar() dunlin.Registrar { return n.registry }

// Feed is what the node commits.
func (n *Node) Feed() dunlin.Feed { return n.db.Journal() }

// Close ends the node from the outside in: doors, actors, cluster, store. What was acked is kept.
func (n *Node) Close() error {
	n.ready.Store(false)
	n.outer.cancel()
	n.outer.wg.Wait()
	var errs []error
	if n.directory != nil {
		ctx, cancel := context.WithTimeout(n.inner.ctx, actorsGrace)
		if err := n.directory.Close(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			errs = append(errs, err)
		}
		cancel()
	}
	n.inner.cancel()
	n.inner.wg.Wait()
	if n.host != nil {
		errs = append(errs, n.host.Close())
	}
	if n.blobs != nil {
		errs = append(errs, n.blobs.Close())
	}
	if n.db != nil {
		errs = append(errs, n.db.Close())
	}
	select {
	case <-n.failed:
		errs = append(errs, n.failure)
	default:
	}
	return errors.Join(errs...)
}

// host returns the host part of an address, for messages.
func hostOf(addr string) string {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return addr
	}
	return host
}
