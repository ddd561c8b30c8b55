package router

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"

	"github.com/dunlin-iot/dunlin"
)

var _ dunlin.Plugins = (*Router)(nil)

var errNoVersions = fmt.Errorf("%w: this node keeps no versions of plugins", dunlin.ErrUnavailable)

// BringVersion implements dunlin.Plugins. A module does not fit a call: whoever makes the change fetches it from here.
func (r *Router) BringVersion(ctx context.Context, t dunlin.Tenant, set dunlin.PluginSettings, module []byte) (*dunlin.Plugin, error) {
	if r.deps.Plugins == nil {
		return nil, errNoVersions
	}
	hash := dunlin.ModuleHash(sha256.Sum256(module))
	if r.deps.Modules != nil {
		if err := r.deps.Modules.stage(hash, module); err != nil {
			return nil, err
		}
		defer r.deps.Modules.unstage(hash)
	}
	return change(ctx, r, dunlin.MetaShard, "BringVersion", order{Tenant: t, Settings: &set, Module: &hash, Bytes: len(module)},
		func(ctx context.Context) (*dunlin.Plugin, error) {
			return r.deps.Plugins.BringVersion(ctx, t, set, module)
		})
}

// Activate implements dunlin.Plugins.
func (r *Router) Activate(ctx context.Context, t dunlin.Tenant, name string, a dunlin.Activation, ifRevision uint64) (*dunlin.Plugin, error) {
	return r.changePlugin(ctx, "Activate", order{Tenant: t, Name: name, Activation: &a, IfRevision: ifRevision})
}

// SetTrial implements dunlin.Plugins.
func (r *Router) SetTrial(ctx context.Context, t dunlin.Tenant, name string, trial *dunlin.Trial, reason string, ifRevision uint64) (*dunlin.Plugin, error) {
	return r.changePlugin(ctx, "SetTrial", order{Tenant: t, Name: name, Trial: trial, Reason: reason, IfRevision: ifRevision})
}

// Ban implements dunlin.Plugins.
func (r *Router) Ban(ctx context.Context, t dunlin.Tenant, name string, hash dunlin.ModuleHash, reason string) (*dunlin.Plugin, error) {
	return r.changePlugin(ctx, "Ban", order{Tenant: t, Name: name, Module: &hash, Reason: reason})
}

// Module implements dunlin.Plugins: every node has the modules, or gets them.
func (r *Router) Module(ctx context.Context, t dunlin.Tenant, name string, hash dunlin.ModuleHash) ([]byte, error) {
	if r.deps.Plugins == nil {
		return nil, errNoVersions
	}
	if err := r.readable(ctx, dunlin.MetaShard); err != nil {
		return nil, metaError(err)
	}
	return r.deps.Plugins.Module(ctx, t, name, hash)
}

func (r *Router) changePlugin(ctx context.Context, method string, o order) (*dunlin.Plugin, error) {
	return change(ctx, r, dunlin.MetaShard, method, o, func(ctx context.Context) (*dunlin.Plugin, error) {
		return r.obeyPlugins(ctx, r.cfg.Self, method, &o)
	})
}

// obeyPlugins makes a change of a plugin's versions as an order says.
func (r *Router) obeyPlugins(ctx context.Context, from dunlin.NodeID, method string, o *order) (*dunlin.Plugin, error) {
	reg := r.deps.Plugins
	switch {
	case reg == nil:
		return nil, errNoVersions
	case method == "BringVersion" && o.Settings != nil && o.Module != nil && r.deps.Modules != nil:
		module, err := r.deps.Modules.fetch(ctx, from, *o.Module)
		if err != nil {
			return nil, fmt.Errorf("fetch the module of plugin %s: %w", o.Settings.Name, err)
		}
		return reg.BringVersion(ctx, o.Tenant, *o.Settings, module)
	case method == "Activate" && o.Activation != nil:
		return reg.Activate(ctx, o.Tenant, o.Name, *o.Activation, o.IfRevision)
	case method == "SetTrial":
		return reg.SetTrial(ctx, o.Tenant, o.Name, o.Trial, o.Reason, o.IfRevision)
	case method == "Ban" && o.Module != nil:
		return reg.Ban(ctx, o.Tenant, o.Name, *o.Module, o.Reason)
	}
	return nil, errNoChange
}

// errNoChange says that a method is none of these.
var errNoChange = errors.New("no change of versions")
