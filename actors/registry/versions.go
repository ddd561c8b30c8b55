package registry

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/dunlin-iot/dunlin"
)

// byRuntime is who did what nobody asked for.
const byRuntime = "dunlin"

// BringVersion implements dunlin.Plugins. The module is checked, kept and made ready to run before its row names it: from that
// index on it runs without a pause.
func (r *Registry) BringVersion(ctx context.Context, t dunlin.Tenant, set dunlin.PluginSettings, module []byte) (*dunlin.Plugin, error) {
	n := name{tenant(t), set.Name}
	if err := dunlin.ValidatePluginName(set.Name); err != nil {
		return nil, err
	}
	if err := n.tenant.Validate(); err != nil {
		return nil, err
	}
	if len(module) > moduleBytesMax {
		return nil, fmt.Errorf("%w: module has %d bytes, want at most %d", dunlin.ErrTooLarge, len(module), moduleBytesMax)
	}
	if err := r.worthChecking(n, set.IfRevision); err != nil {
		return nil, err
	}
	v, err := r.prepare(ctx, n.tenant, &set, module)
	if err != nil {
		return nil, fmt.Errorf("put plugin %s: %w", n.name, err)
	}
	if set.Activate {
		if err := r.tryVersion(ctx, n, v); err != nil {
			return nil, fmt.Errorf("put plugin %s: %w", n.name, err)
		}
	}
	return r.changePlugin(ctx, n, set.IfRevision, true, func(at dunlin.Time, p *dunlin.Plugin) error {
		keepVersion(p, v, at)
		if !set.Activate {
			return nil
		}
		return activate(p, dunlin.Activation{Hash: v.Hash, At: at, By: set.By, Reason: cmp.Or(set.Reason, "uploaded")})
	})
}

// keepVersion adds a version, or what is new of one that is there.
func keepVersion(p *dunlin.Plugin, v *dunlin.PluginVersion, at dunlin.Time) {
	nv := *v
	nv.At = at
	if was := versionOf(p, v.Hash); was != nil {
		nv.At, nv.Banned, nv.By, nv.Source = was.At, was.Banned, was.By, was.Source
		for _, s := range was.Signatures {
			if !slices.ContainsFunc(nv.Signatures, func(o dunlin.PluginSignature) bool { return o.Key == s.Key }) {
				nv.Signatures = append(nv.Signatures, s)
			}
		}
		*was = nv
		return
	}
	p.Versions = slices.Insert(p.Versions, 0, nv)
	for i := len(p.Versions) - 1; i > 0 && len(p.Versions) > versionsMax; i-- {
		if h := p.Versions[i].Hash; h != p.Hash && (p.Trial == nil || p.Trial.Hash != h) {
			p.Versions = slices.Delete(p.Versions, i, i+1)
		}
	}
}

// activate makes a version the active one.
func activate(p *dunlin.Plugin, a dunlin.Activation) error {
	v := versionOf(p, a.Hash)
	if v == nil {
		return fmt.Errorf("%w: plugin %s has no version %s; `dunlin plugin versions %s` lists them", dunlin.ErrNotFound, p.Name, a.Hash, p.Name)
	}
	if a.By != byRuntime {
		v.Banned = ""
	}
	if p.Trial != nil {
		p.Trial = nil // it was about what ran beside the former version
	}
	if p.Hash == a.Hash && len(p.Activations) > 0 {
		return nil
	}
	if a.From = p.Hash; p.Hash != a.Hash && p.Hash != (dunlin.ModuleHash{}) {
		p.Previous = slices.Insert(p.Previous, 0, p.Hash)
	}
	p.Previous = slices.DeleteFunc(p.Previous, func(h dunlin.ModuleHash) bool { return h == a.Hash })
	p.Previous = p.Previous[:min(len(p.Previous), previousMax)]
	p.Hash, p.Bytes, p.Language, p.Report = v.Hash, v.Bytes, v.Language, v.Report
	p.Activations = slices.Insert(p.Activations, 0, a)
	p.Activations = p.Activations[:min(len(p.Activations), activationsMax)]
	return nil
}

// Activate implements dunlin.Plugins.
func (r *Registry) Activate(ctx context.Context, t dunlin.Tenant, plugin string, a dunlin.Activation, ifRevision uint64) (*dunlin.Plugin, error) {
	n := name{tenant(t), plugin}
	if v := r.known(n, a.Hash); v != nil {
		if err := r.tryVersion(ctx, n, v); err != nil {
			return nil, fmt.Errorf("activate a version of plugin %s: %w", plugin, err)
		}
	}
	return r.changePlugin(ctx, n, ifRevision, false, func(at dunlin.Time, p *dunlin.Plugin) error {
		a.At = at
		return activate(p, a)
	})
}

// SetTrial implements dunlin.Plugins.
func (r *Registry) SetTrial(ctx context.Context, t dunlin.Tenant, plugin string, trial *dunlin.Trial, reason string, ifRevision uint64) (*dunlin.Plugin, error) {
	n := name{tenant(t), plugin}
	if trial != nil {
		if err := checkTrial(trial); err != nil {
			return nil, err
		}
		if v := r.known(n, trial.Hash); v != nil {
			if err := r.tryVersion(ctx, n, v); err != nil {
				return nil, fmt.Errorf("try a version of plugin %s: %w", plugin, err)
			}
		}
	}
	return r.changePlugin(ctx, n, ifRevision, false, func(at dunlin.Time, p *dunlin.Plugin) error {
		if trial == nil {
			p.Trial = nil
			note(p, at, reason)
			return nil
		}
		v := versionOf(p, trial.Hash)
		switch {
		case v == nil:
			return fmt.Errorf("%w: plugin %s has no version %s; push it with --no-activate first", dunlin.ErrNotFound, plugin, trial.Hash)
		case trial.Hash == p.Hash:
			return fmt.Errorf("%w: version %s of plugin %s is the active one", dunlin.ErrConflict, nameOf(v), plugin)
		}
		next := *trial
		next.ID, next.Since = rand.Text()[:12], at
		p.Trial = &next
		return nil
	})
}

// note remembers why a trial ended, as an activation of what is active anyway.
func note(p *dunlin.Plugin, at dunlin.Time, reason string) {
	if reason == "" {
		return
	}
	p.Activations = slices.Insert(p.Activations, 0, dunlin.Activation{Hash: p.Hash, From: p.Hash, At: at, By: byRuntime, Reason: reason})
	p.Activations = p.Activations[:min(len(p.Activations), activationsMax)]
}

func checkTrial(t *dunlin.Trial) error {
	switch {
	case t.Kind != dunlin.TrialShadow && t.Kind != dunlin.TrialCanary:
		return invalid("a trial is %q or %q, not %q", dunlin.TrialShadow, dunlin.TrialCanary, t.Kind)
	case t.Share < 0 || t.Share > 100:
		return invalid("the share of a canary is a percentage, 0 to 100, not %v", t.Share)
	case t.Kind == dunlin.TrialCanary && t.Share == 0 && len(t.Labels) == 0:
		return invalid("a canary needs a share of the devices, or labels that select some")
	case len(t.Labels) > labelsMax:
		return invalid("a trial selects by at most %d labels", labelsMax)
	case t.Gates.PromoteAfter < 0:
		return invalid("promote_after must not be negative")
	}
	return nil
}

// Ban implements dunlin.Plugins.
func (r *Registry) Ban(ctx context.Context, t dunlin.Tenant, plugin string, hash dunlin.ModuleHash, reason string) (*dunlin.Plugin, error) {
	n := name{tenant(t), plugin}
	return r.changePlugin(ctx, n, dunlin.AnyRevision, false, func(at dunlin.Time, p *dunlin.Plugin) error {
		v := versionOf(p, hash)
		if v == nil {
			return fmt.Errorf("%w: plugin %s has no version %s", dunlin.ErrNotFound, plugin, hash)
		}
		if v.Banned != "" {
			return errUnchanged // another node was faster
		}
		v.Banned = reason
		if p.Trial != nil && p.Trial.Hash == hash {
			p.Trial = nil
			note(p, at, "trial of version "+nameOf(v)+" ended: "+reason)
			return nil
		}
		if p.Hash != hash {
			return nil
		}
		for _, h := range p.Previous {
			if was := versionOf(p, h); was != nil && was.Banned == "" {
				return activate(p, dunlin.Activation{Hash: h, At: at, By: byRuntime, Reason: "version " + nameOf(v) + " taken out of use: " + reason})
			}
		}
		return nil // nothing to take over: it goes on, device by device
	})
}

// Module implements dunlin.Plugins.
func (r *Registry) Module(_ context.Context, t dunlin.Tenant, plugin string, hash dunlin.ModuleHash) ([]byte, error) {
	n := name{tenant(t), plugin}
	if r.view.Load().plugins[n] == nil {
		return nil, notFound("plugin", plugin)
	}
	if r.known(n, hash) == nil || r.deps.Module == nil {
		return nil, fmt.Errorf("%w: plugin %s has no version %s", dunlin.ErrNotFound, plugin, hash)
	}
	return r.deps.Module(hash)
}

// errUnchanged ends a change that has nothing to do.
var errUnchanged = fmt.Errorf("%w: unchanged", dunlin.ErrConflict)

// changePlugin has a plugin's row changed; make lets it be made.
func (r *Registry) changePlugin(ctx context.Context, n name, ifRevision uint64, create bool, change func(at dunlin.Time, p *dunlin.Plugin) error) (*dunlin.Plugin, error) {
	var row dunlin.Plugin
	err := r.update(ctx, dunlin.TablePlugins, n.key(), func(at dunlin.Time, old []byte) ([]byte, error) {
		row = dunlin.Plugin{Tenant: n.tenant, Name: n.name}
		if old == nil && !create {
			return nil, notFound("plugin", n.name)
		}
		if err := revised("plugin "+n.name, old, &row, &row.Revision, ifRevision); err != nil {
			return nil, err
		}
		ofOldRow(&row)
		active := row.Hash
		if err := change(at, &row); err != nil {
			return nil, err
		}
		if row.Hash != active {
			if err := r.allSigned(&row, row.Hash); err != nil {
				return nil, err
			}
		}
		if row.Trial != nil {
			if err := r.allSigned(&row, row.Trial.Hash); err != nil {
				return nil, err
			}
		}
		row.Revision, row.UpdatedAt = row.Revision+1, at
		return json.Marshal(row)
	})
	if err != nil {
		return nil, fmt.Errorf("change plugin %s: %w", n.name, err)
	}
	return &row, nil
}

// allSigned says whether all domains that run the plugin may run the version.
func (r *Registry) allSigned(p *dunlin.Plugin, hash dunlin.ModuleHash) error {
	v := versionOf(p, hash)
	if v == nil {
		return nil
	}
	rows, err := r.deps.Rows.Rows(dunlin.MetaShard, dunlin.TableDomains, string(p.Tenant)+"/", "", 0)
	if err != nil {
		return err
	}
	for _, row := range rows {
		var d dunlin.Domain
		if err := json.Unmarshal(row.Value, &d); err != nil {
			return fmt.Errorf("domain %s: %w", row.Key, err)
		}
		if runs(&d, p.Name) {
			if err := signed(&d, p.Name, v); err != nil {
				return err
			}
		}
	}
	return nil
}

func runs(d *dunlin.Domain, plugin string) bool {
	return slices.ContainsFunc(d.Pipeline, func(u dunlin.PluginUse) bool { return u.Plugin == plugin })
}

// tryVersion starts a version with the configurations of all domains that run the plugin, and lets it take over copies of
// states that some of their devices have. What it refuses would make a dead letter of every reading.
func (r *Registry) tryVersion(ctx context.Context, n name, v *dunlin.PluginVersion) error {
	if r.deps.TryConfig == nil {
		return nil
	}
	view := r.view.Load()
	for key, d := range view.domains {
		if key.tenant != n.tenant {
			continue
		}
		for i := range d.Pipeline {
			use := &d.Pipeline[i]
			if use.Plugin != n.name {
				continue
			}
			st := stageOf(use, n.name, &dunlin.Plugin{Name: n.name, Hash: v.Hash})
			if err := r.deps.TryConfig(ctx, &st); err != nil {
				return fmt.Errorf("with its configuration in domain %s: %w", d.ID, err)
			}
			if r.deps.TryStates == nil || r.deps.States == nil {
				continue
			}
			works, err := r.samples(d, uint8(i), st.Made)
			if err != nil {
				return err
			}
			if len(works) == 0 {
				continue
			}
			if err := r.deps.TryStates(ctx, &st, works); err != nil {
				return fmt.Errorf("with states of devices in domain %s: %w", d.ID, err)
			}
		}
	}
	return nil
}

// samples are copies of states that other versions made, of some devices that are here.
func (r *Registry) samples(d *dunlin.Domain, stage uint8, made dunlin.Made) (works []*dunlin.Work, err error) {
	for s := range r.cfg.Shards {
		sh := dunlin.ShardID(s)
		ids, err := r.deps.Rows.DevicesOf(sh, dunlin.DevicesQuery{Tenant: d.Tenant, Domain: d.ID, Limit: 4}, "")
		if err != nil {
			return nil, err
		}
		for _, id := range ids {
			st, ok, err := r.deps.States.LoadDevice(sh, dunlin.DeviceKey{Tenant: d.Tenant, Device: id})
			if err != nil || !ok {
				continue
			}
			for i := range st.Plugins {
				if p := &st.Plugins[i]; p.Stage == stage && len(p.State) > 0 && p.Made.Module != made.Module {
					works = append(works, &dunlin.Work{DeviceKey: st.DeviceKey, Seq: st.Version + 1, State: slices.Clone(p.State), Made: p.Made})
				}
			}
			if len(works) >= samplesMax {
				return works, nil
			}
		}
	}
	return works, nil
}

// known returns a version as the copy in memory has it.
func (r *Registry) known(n name, hash dunlin.ModuleHash) *dunlin.PluginVersion {
	p := r.view.Load().plugins[n]
	if p == nil {
		return nil
	}
	c := *p
	c.Versions = slices.Clone(p.Versions)
	ofOldRow(&c)
	return versionOf(&c, hash)
}

func versionOf(p *dunlin.Plugin, hash dunlin.ModuleHash) *dunlin.PluginVersion {
	for i := range p.Versions {
		if p.Versions[i].Hash == hash {
			return &p.Versions[i]
		}
	}
	return nil
}

// nameOf is what people call a version.
func nameOf(v *dunlin.PluginVersion) string {
	if v.Version != "" {
		return v.Version
	}
	return v.Hash.String()[:12]
}

// ofOldRow makes versions of a row that was written before there were any.
func ofOldRow(p *dunlin.Plugin) {
	if len(p.Versions) > 0 || p.Hash == (dunlin.ModuleHash{}) {
		return
	}
	p.Versions = append(p.Versions, dunlin.PluginVersion{Hash: p.Hash, Bytes: p.Bytes, Language: p.Language, Report: p.Report, Source: "upload", At: p.UpdatedAt})
	for _, h := range p.Previous {
		p.Versions = append(p.Versions, dunlin.PluginVersion{Hash: h, Source: "upload"})
	}
}

// Trials returns the plugins that have a trial now, of all tenants.
func (r *Registry) Trials() (with []dunlin.Plugin) {
	for _, p := range r.view.Load().plugins {
		if p.Trial != nil {
			with = append(with, *p)
		}
	}
	return with
}
