package node

import (
	"context"
	"math"
	"path/filepath"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/replay"
	"github.com/dunlin-iot/dunlin/plugins"
)

// openReplay opens what asks the past. A back-test's modules run in a host of their own, with which they end: quarantine, limits
// and spare instances of what devices wait for are not theirs to touch. Its compiled code comes from the same cache.
func (n *Node) openReplay() error {
	var err error
	n.replay, err = replay.New(replay.Config{Self: n.identity.NodeID, Shards: n.cfg.Shards, ShardOf: n.shardOf, EntryVersion: n.cluster.EntryVersion, Log: n.obs.Log, Metrics: n.obs.Metrics},
		replay.Deps{Registry: n.registry, Module: n.modules.Get, Places: n.cluster, Modules: n.modules, Caller: (*caller)(n), Inspector: n.router,
			Ingestor: n.router, Updates: n.directory,
			Past: func(sh dunlin.ShardID, since dunlin.Time, states bool) (replay.Reader, error) {
				return n.db.Journal().Recording(sh, since, states)
			},
			Open: func() (replay.Processor, error) {
				return plugins.Open(plugins.Config{CacheDir: filepath.Join(n.cfg.Data, "wasm-cache"), Module: n.modules.Get, Limits: n.trying()})
			}})
	if err != nil {
		return err
	}
	n.middle.run(n, func(ctx context.Context) error { return n.replay.Run(ctx) })
	return nil
}

// trying are the limits of modules that are only tried: one that fails is to fail all the way, not to be given a rest.
func (n *Node) trying() plugins.Limits {
	return plugins.Limits{CallTime: n.cfg.PluginCallTime, MemoryBytes: int(n.cfg.PluginMemory), BadDevices: math.MaxInt32, TrapsPerBatch: math.MaxInt32}
}
