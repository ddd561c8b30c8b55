package registry

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"slices"

	"fmt"

	"github.com/dunlin-iot/dunlin"
)

// Domain implements dunlin.Registrar.
func (r *Registry) Domain(_ context.Context, t dunlin.Tenant, id dunlin.DomainID) (*dunlin.Domain, error) {
	d := r.view.Load().domains[name{tenant(t), string(id)}]
	if d == nil {
		return nil, notFound("domain", string(id))
	}
	return copyDomain(d), nil
}

// Domains implements dunlin.Registrar; by id.
func (r *Registry) Domains(_ context.Context, t dunlin.Tenant) ([]dunlin.Domain, error) {
	var all []dunlin.Domain
	for n, d := range r.view.Load().domains {
		if n.tenant == tenant(t) {
			all = append(all, *copyDomain(d))
		}
	}
	slices.SortFunc(all, func(a, b dunlin.Domain) int { return cmp.Compare(a.ID, b.ID) })
	return all, nil
}

func copyDomain(d *dunlin.Domain) *dunlin.Domain {
	c := *d
	c.Pipeline, c.Signers = slices.Clone(d.Pipeline), slices.Clone(d.Signers)
	return &c
}

// PutDomain implements dunlin.Registrar.
func (r *Registry) PutDomain(ctx context.Context, d dunlin.Domain, ifRevision uint64) (*dunlin.Domain, error) {
	d.Tenant = tenant(d.Tenant)
	if err := checkDomain(&d); err != nil {
		return nil, err
	}
	n := name{d.Tenant, string(d.ID)}
	if err := r.roomFor(n); err != nil {
		return nil, err
	}
	if err := r.tryPipeline(ctx, n, d.Pipeline); err != nil {
		return nil, fmt.Errorf("put domain %s: %w", d.ID, err)
	}
	err := r.update(ctx, dunlin.TableDomains, n.key(), func(at dunlin.Time, old []byte) ([]byte, error) {
		var was dunlin.Domain
		if err := revised("domain "+n.name, old, &was, &was.Revision, ifRevision); err != nil {
			return nil, err
		}
		for i := range d.Pipeline {
			if err := r.mayRun(&d, &d.Pipeline[i]); err != nil {
				return nil, err
			}
		}
		d.Revision, d.UpdatedAt = was.Revision+1, at
		return json.Marshal(d)
	})
	if err != nil {
		return nil, fmt.Errorf("put domain %s: %w", d.ID, err)
	}
	return &d, nil
}

// mayRun says whether the domain may name the plugin in its pipeline, as the registry is now.
func (r *Registry) mayRun(d *dunlin.Domain, use *dunlin.PluginUse) error {
	if use.Rules != nil {
		return nil
	}
	row, known, err := r.deps.Rows.Row(dunlin.MetaShard, dunlin.TablePlugins, name{d.Tenant, use.Plugin}.key())
	if err != nil {
		return err
	}
	if !known {
		return invalid("the pipeline of domain %s names plugin %q, which does not exist", d.ID, use.Plugin)
	}
	var p dunlin.Plugin
	if err := json.Unmarshal(row, &p); err != nil {
		return fmt.Errorf("plugin %s: %w", use.Plugin, err)
	}
	ofOldRow(&p)
	if v := versionOf(&p, p.Hash); v != nil {
		if err := signed(d, p.Name, v); err != nil {
			return err
		}
	}
	if p.Trial != nil {
		if v := versionOf(&p, p.Trial.Hash); v != nil {
			return signed(d, p.Name, v)
		}
	}
	return nil
}

// tryPipeline starts the plugins of a pipeline with their configurations: one that a plugin refuses would make a dead letter
// of every reading. What the domain runs already is not tried again, so that its owner can be changed whatever a plugin says;
// a plugin that is not known here is left to the change, which says so.
func (r *Registry) tryPipeline(ctx context.Context, n name, pipeline []dunlin.PluginUse) error {
	if r.deps.TryConfig == nil {
		return nil
	}
	v := r.view.Load()
	var runs []dunlin.Stage
	if rules := v.rules[n]; rules != nil {
		runs = rules.Stages
	}
	names := stageNames(pipeline)
	for i := range pipeline {
		use := &pipeline[i]
		p := v.plugins[name{n.tenant, use.Plugin}]
		if p == nil && use.Rules == nil {
			continue
		}
		st := stageOf(use, names[i], p)
		if slices.ContainsFunc(runs, func(o dunlin.Stage) bool { return o.Hash == st.Hash && o.Made == st.Made }) {
			continue
		}
		if err := r.deps.TryConfig(ctx, &st); err != nil {
			return fmt.Errorf("try the configuration of plugin %s: %w", st.Plugin, err)
		}
	}
	return nil
}

func (r *Registry) roomFor(n name) error {
	v := r.view.Load()
	if v.domains[n] != nil {
		return nil
	}
	count := 0
	for other := range v.domains {
		if other.tenant == n.tenant {
			count++
		}
	}
	if count >= domainsMax {
		return invalid("the tenant has %d domains already", count)
	}
	return nil
}

func checkDomain(d *dunlin.Domain) error {
	if err := errors.Join(d.Tenant.Validate(), d.ID.Validate(), bounded("owner", d.Owner, textBytesMax),
		bounded("description", d.Description, textBytesMax)); err != nil {
		return err
	}
	switch {
	case d.Owner == "":
		return invalid("domain %s names no owner", d.ID)
	case d.UnknownDevices != "" && d.UnknownDevices != dunlin.UnknownReject && d.UnknownDevices != dunlin.UnknownRegister:
		return invalid("unknown_devices is %q, want %q or %q", d.UnknownDevices, dunlin.UnknownReject, dunlin.UnknownRegister)
	case d.SkewMax < 0 || d.RetentionAge < 0 || d.PayloadBytesMax < 0:
		return invalid("skew_max, retention_age and payload_bytes_max of domain %s must not be negative", d.ID)
	case len(d.Pipeline) > pipelineMax:
		return invalid("the pipeline of domain %s has %d plugins, want at most %d", d.ID, len(d.Pipeline), pipelineMax)
	}
	if d.PluginShare < 0 || d.PluginShare > 1000 {
		return invalid("plugin_share of domain %s is %d, want 1 to 1000", d.ID, d.PluginShare)
	}
	if err := checkSigners(d.Signers); err != nil {
		return err
	}
	return checkPipeline(d.Pipeline)
}

// DeleteDomain implements dunlin.Registrar. From when it looks for devices until it is done, none is put into the domain
// here; one that is registering itself at the very moment, or is put on another node, may be left without: it keeps its
// readings, and runs no plugin.
func (r *Registry) DeleteDomain(ctx context.Context, t dunlin.Tenant, id dunlin.DomainID, ifRevision uint64) error {
	n := name{tenant(t), string(id)}
	r.leaving(n, true)
	defer r.leaving(n, false)
	if err := r.noDevices(ctx, n); err != nil {
		return fmt.Errorf("delete domain %s: %w", id, err)
	}
	err := r.update(ctx, dunlin.TableDomains, n.key(), func(_ dunlin.Time, old []byte) ([]byte, error) {
		var was dunlin.Domain
		if old == nil {
			return nil, notFound("domain", n.name)
		}
		if err := revised("domain "+n.name, old, &was, &was.Revision, ifRevision); err != nil {
			return nil, err
		}
		for s := range r.cfg.Shards {
			ids, err := r.deps.Rows.DevicesOf(dunlin.ShardID(s), dunlin.DevicesQuery{Tenant: n.tenant, Domain: id, Limit: 1}, "")
			if err != nil {
				return nil, err
			}
			if len(ids) > 0 {
				return nil, fmt.Errorf("%w: device %s belongs to domain %s", dunlin.ErrConflict, ids[0], id)
			}
		}
		return nil, nil
	})
	if err != nil {
		return fmt.Errorf("delete domain %s: %w", id, err)
	}
	return nil
}

// noDevices asks the fleet whether a device belongs to the domain; what shards here say is looked at once more when the change
// is made.
func (r *Registry) noDevices(ctx context.Context, n name) error {
	f := r.fleet.Load()
	if f == nil || r.view.Load().domains[n] == nil {
		return nil
	}
	page, err := (*f).Devices(dunlin.WithReadLevel(ctx, dunlin.ReadLevel{}), dunlin.DevicesQuery{Tenant: n.tenant, Domain: dunlin.DomainID(n.name), Limit: 1})
	switch {
	case err != nil:
		return err
	case len(page.Devices) > 0:
		return fmt.Errorf("%w: device %s belongs to domain %s", dunlin.ErrConflict, page.Devices[0].ID, n.name)
	case len(page.Missing) > 0:
		return fmt.Errorf("%w: shard %d does not answer, which may have devices of domain %s: %s", dunlin.ErrUnavailable, page.Missing[0].Shard,
			n.name, page.Missing[0].Reason)
	}
	return nil
}

func (r *Registry) leaving(n name, is bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if is {
		r.mu.leaving[n] = true
	} else {
		delete(r.mu.leaving, n)
	}
}

// domainFor says whether devices and credentials may name the domain.
func (r *Registry) domainFor(t dunlin.Tenant, d dunlin.DomainID) error {
	r.mu.RLock()
	defer r.mu.RUnlock()
	n := name{t, string(d)}
	if r.view.Load().domains[n] == nil || r.mu.leaving[n] {
		return invalid("there is no domain %q", d)
	}
	return nil
}
