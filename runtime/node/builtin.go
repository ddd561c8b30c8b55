package node

import (
	"context"
	"encoding/json"
	"runtime/debug"
	"slices"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins"
)

// builtInAlarms is the plugin that every cluster has: it comes with the binary.
const builtInAlarms = "alarms"

// offerEvery is how often a node looks whether it is its turn to bring what its binary has.
const offerEvery = 5 * time.Second

// Offer has the node bring the plugins that come with the binary, in the background: whoever owns the meta shard does. module
// returns one by name; an error means that this binary was built without.
func (n *Node) Offer(module func(name string) ([]byte, error)) {
	n.middle.run(n, func(ctx context.Context) error { return n.offer(ctx, module) })
}

func (n *Node) offer(ctx context.Context, module func(name string) ([]byte, error)) error {
	left := []string{builtInAlarms}
	var prepared []dunlin.ModuleHash
	tick := time.NewTicker(offerEvery)
	defer tick.Stop()
	for {
		changed := n.registry.Changed()
		if _, owner := n.directory.Owned(dunlin.MetaShard); owner {
			left = slices.DeleteFunc(left, func(name string) bool { return n.bring(ctx, name, module) })
		}
		// Where the pipeline was changed the module is compiled. All other nodes may have to run it, too.
		for _, h := range n.registry.BuiltIn() {
			if !slices.Contains(prepared, h) {
				prepared = append(prepared, h)
				n.modules.Want(h)
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-tick.C:
			if len(left) == 0 {
				debug.FreeOSMemory() // the module went through memory: an idle node would keep that for minutes
				tick.Stop()
			}
		}
	}
}

// bring offers one plugin to the registry; false says that it is to be tried again.
func (n *Node) bring(ctx context.Context, name string, module func(name string) ([]byte, error)) (done bool) {
	wasm, err := module(name)
	if err != nil {
		n.obs.Log.Debug("the binary has no such plugin", "plugin", name, "error", err)
		return true
	}
	m, manifest, err := plugins.ReadManifest(wasm)
	if err == nil {
		err = n.registry.Offer(ctx, name, wasm, dunlin.PluginVersion{Version: m.Version, Manifest: json.RawMessage(manifest), Language: "Go"})
	}
	if err != nil && ctx.Err() == nil {
		n.obs.Log.Warn("the plugin that came with the binary can't be brought", "plugin", name, "error", err)
	}
	return err == nil
}

// installUsed compiles a module that was fetched, or whose row was applied, unless it came with the binary and nobody uses it.
func (n *Node) installUsed(ctx context.Context, hash dunlin.ModuleHash, module []byte) error {
	if n.registry.Idle(hash) {
		return nil
	}
	return n.install(ctx, hash, module)
}
