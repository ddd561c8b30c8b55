package registry

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/dunlin-iot/dunlin"
)

// Plugin implements dunlin.Registrar.
func (r *Registry) Plugin(_ context.Context, t dunlin.Tenant, plugin string) (*dunlin.Plugin, error) {
	p := r.view.Load().plugins[name{tenant(t), plugin}]
	if p == nil {
		return nil, notFound("plugin", plugin)
	}
	c := *p
	return &c, nil
}

// Plugins implements dunlin.Registrar; by name.
func (r *Registry) Plugins(_ context.Context, t dunlin.Tenant) ([]dunlin.Plugin, error) {
	var all []dunlin.Plugin
	for n, p := range r.view.Load().plugins {
		if n.tenant == tenant(t) {
			all = append(all, *p)
		}
	}
	slices.SortFunc(all, func(a, b dunlin.Plugin) int { return cmp.Compare(a.Name, b.Name) })
	return all, nil
}

// PutPlugin implements dunlin.Registrar.
func (r *Registry) PutPlugin(ctx context.Context, t dunlin.Tenant, plugin string, module []byte, ifRevision uint64) (*dunlin.Plugin, error) {
	return r.BringVersion(ctx, t, dunlin.PluginSettings{Name: plugin, Activate: true, Source: "upload", IfRevision: ifRevision}, module)
}

// worthChecking refuses early what the change would refuse anyway: checking a module takes seconds.
func (r *Registry) worthChecking(n name, ifRevision uint64) error {
	v := r.view.Load()
	was, count := dunlin.Plugin{}, 0
	for other, p := range v.plugins {
		if other == n {
			was = *p
		}
		if other.tenant == n.tenant {
			count++
		}
	}
	if was.Revision == 0 && count >= pluginsMax {
		return invalid("the tenant has %d plugins already", count)
	}
	return revised("plugin "+n.name, nil, &was, &was.Revision, ifRevision)
}

// prepare checks a module, keeps it and makes it ready to run.
func (r *Registry) prepare(ctx context.Context, t dunlin.Tenant, set *dunlin.PluginSettings, module []byte) (*dunlin.PluginVersion, error) {
	v := &dunlin.PluginVersion{Hash: sha256.Sum256(module), Bytes: int64(len(module)), Source: set.Source, By: set.By}
	if set.Signature != "" {
		sig, err := r.verify(t, set, module)
		if err != nil {
			return nil, err
		}
		v.Signatures = []dunlin.PluginSignature{*sig}
	}
	checked, err := r.deps.Check(ctx, module)
	if err != nil {
		return nil, err
	}
	v.Language, v.Report, v.Manifest, v.Version = checked.Language, checked.Report, checked.Manifest, checked.Version
	hash, err := r.deps.Keep(module)
	if err != nil {
		return nil, err
	}
	if hash != v.Hash {
		return nil, fmt.Errorf("the module's hash is %s, and it was kept as %s", v.Hash, hash)
	}
	if err := r.deps.Install(ctx, hash, module); err != nil {
		return nil, err
	}
	return v, nil
}

// DeletePlugin implements dunlin.Registrar. The module stays where it is kept: the log names it.
func (r *Registry) DeletePlugin(ctx context.Context, t dunlin.Tenant, plugin string, ifRevision uint64) error {
	n := name{tenant(t), plugin}
	err := r.update(ctx, dunlin.TablePlugins, n.key(), func(_ dunlin.Time, old []byte) ([]byte, error) {
		var was dunlin.Plugin
		if old == nil {
			return nil, notFound("plugin", plugin)
		}
		if err := revised("plugin "+plugin, old, &was, &was.Revision, ifRevision); err != nil {
			return nil, err
		}
		domains, err := r.deps.Rows.Rows(dunlin.MetaShard, dunlin.TableDomains, string(n.tenant)+"/", "", 0)
		if err != nil {
			return nil, err
		}
		for _, row := range domains {
			var d dunlin.Domain
			if err := json.Unmarshal(row.Value, &d); err != nil {
				return nil, fmt.Errorf("domain %s: %w", row.Key, err)
			}
			if slices.ContainsFunc(d.Pipeline, func(u dunlin.PluginUse) bool { return u.Plugin == plugin }) {
				return nil, fmt.Errorf("%w: the pipeline of domain %s names plugin %s", dunlin.ErrConflict, d.ID, plugin)
			}
		}
		return nil, nil
	})
	if err != nil {
		return fmt.Errorf("delete plugin %s: %w", plugin, err)
	}
	return nil
}
