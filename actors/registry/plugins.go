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

// PutPlugin implements dunlin.Registrar. The module is checked, kept and made ready to run before its row says that it is
// the active one: from that index on it runs without a pause.
func (r *Registry) PutPlugin(ctx context.Context, t dunlin.Tenant, plugin string, module []byte, ifRevision uint64) (*dunlin.Plugin, error) {
	n := name{tenant(t), plugin}
	if err := dunlin.ValidatePluginName(plugin); err != nil {
		return nil, err
	}
	if err := n.tenant.Validate(); err != nil {
		return nil, err
	}
	if len(module) > moduleBytesMax {
		return nil, fmt.Errorf("%w: module has %d bytes, want at most %d", dunlin.ErrTooLarge, len(module), moduleBytesMax)
	}
	if err := r.worthChecking(n, ifRevision); err != nil {
		return nil, err
	}
	row, err := r.prepare(ctx, n, module)
	if err != nil {
		return nil, fmt.Errorf("put plugin %s: %w", plugin, err)
	}
	err = r.update(ctx, dunlin.TablePlugins, n.key(), func(at dunlin.Time, old []byte) ([]byte, error) {
		var was dunlin.Plugin
		if err := revised("plugin "+plugin, old, &was, &was.Revision, ifRevision); err != nil {
			return nil, err
		}
		row.Previous = nil
		if old != nil && was.Hash != row.Hash {
			row.Previous = append(row.Previous, was.Hash)
		}
		for _, h := range was.Previous {
			if len(row.Previous) < previousMax && h != row.Hash {
				row.Previous = append(row.Previous, h)
			}
		}
		row.Revision, row.UpdatedAt = was.Revision+1, at
		return json.Marshal(row)
	})
	if err != nil {
		return nil, fmt.Errorf("put plugin %s: %w", plugin, err)
	}
	return row, nil
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

func (r *Registry) prepare(ctx context.Context, n name, module []byte) (*dunlin.Plugin, error) {
	checked, err := r.deps.Check(ctx, module)
	if err != nil {
		return nil, err
	}
	hash, err := r.deps.Keep(module)
	if err != nil {
		return nil, err
	}
	if want := dunlin.ModuleHash(sha256.Sum256(module)); hash != want {
		return nil, fmt.Errorf("the module's hash is %s, and it was kept as %s", want, hash)
	}
	if err := r.deps.Install(ctx, hash, module); err != nil {
		return nil, err
	}
	return &dunlin.Plugin{Tenant: n.tenant, Name: n.name, Hash: hash, Bytes: int64(len(module)),
		Language: checked.Language, Report: checked.Report}, nil
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
