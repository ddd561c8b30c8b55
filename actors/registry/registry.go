// Package registry keeps devices, domains, plugins and credentials, and says who a sender is: dunlin.Registrar and
// dunlin.Authenticator.
//
// Rows are JSON documents in the log like everything else: a device's in its own shard, all others in the meta shard. A
// change is built in the shard's actor, one after the other, from what the store holds then; so its revision check holds
// until the change is committed. Of what everybody asks for all the time – domains with their pipelines, plugins,
// credentials – there is a copy in memory, which follows the applied entries (OnApplied) and never runs ahead of them.
//
//	PutDomain ──Update──▶ shard actor: build ──▶ entry ──▶ committed, applied ──OnApplied──▶ copy ──▶ Rules for the turns
//	     ◀───────────────────────── done ──────────────────────────────┘
//
// Part of the runtime; no compatibility promise before v1.
package registry

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/device"
)

// Bounds of the registry.
const (
	domainsMax      = 1024 // of a tenant
	pluginsMax      = 1024 // of a tenant
	credentialsMax  = 1 << 20
	pipelineMax     = 8
	configBytesMax  = 64 << 10
	textBytesMax    = 4 << 10
	labelsMax       = 32
	labelBytesMax   = 256
	previousMax     = 10
	versionsMax     = 20
	activationsMax  = 50
	rulesBytesMax   = 64 << 10
	signersMax      = 16
	samplesMax      = 32 // devices whose states a new version is tried with
	secretBytesMin  = 12
	secretBytesMax  = 256
	moduleBytesMax  = 64 << 20
	devicesLimitMax = 1000
)

// Config says how a Registry works. Shards and ShardOf must be given.
type Config struct {
	Shards  int
	ShardOf func(dunlin.DeviceKey) dunlin.ShardID

	Open   bool     // everybody may do everything: for a node on loopback
	Static []Static // credentials of the configuration, besides those of the registry

	Clock func() dunlin.Time // nil: the system's
	Log   *slog.Logger       // nil: none
}

// Static is a credential of the configuration: it opens what a credential of its kind opens and is not in the registry.
type Static struct {
	Tenant dunlin.Tenant // "": the default one
	Kind   dunlin.CredentialKind
	ID     string // "": a bearer token alone
	Domain dunlin.DomainID
	Secret string
}

// Updater runs changes in the shards' actors: *actors.Directory.
type Updater interface {
	Update(ctx context.Context, shard dunlin.ShardID, key *dunlin.DeviceKey,
		build func(at dunlin.Time, st *dunlin.DeviceState) ([]dunlin.Put, error)) error
}

// Rows are the registry's rows as applied: *store.State.
type Rows interface {
	Row(shard dunlin.ShardID, table, key string) ([]byte, bool, error)
	// Rows returns rows whose keys begin with prefix and come after a key, in order, at most limit (0: all).
	Rows(shard dunlin.ShardID, table, prefix, after string, limit int) ([]dunlin.Put, error)
	// DevicesOf returns ids of a shard's devices in a domain, after an id, in order, at most q.Limit.
	DevicesOf(shard dunlin.ShardID, q dunlin.DevicesQuery, after dunlin.DeviceID) ([]dunlin.DeviceID, error)
}

// States reads devices as applied: *store.State.
type States interface {
	LoadDevice(shard dunlin.ShardID, key dunlin.DeviceKey) (*dunlin.DeviceState, bool, error)
}

// Checked is what the check of a module found out.
type Checked struct {
	Language string
	Version  string          // of the manifest; "" if it names none
	Manifest json.RawMessage // as in the module; nil without one
	Report   json.RawMessage
}

// Deps are the rooms that a Registry works with.
type Deps struct {
	Rows    Rows
	Check   func(ctx context.Context, module []byte) (Checked, error)              // plugins.Host.Check
	Install func(ctx context.Context, hash dunlin.ModuleHash, module []byte) error // plugins.Host.Install
	Keep    func(module []byte) (dunlin.ModuleHash, error)                         // blob.Blobs.Put

	// TryConfig starts a plugin with a configuration; an error that matches dunlin.ErrInvalid is what it says against it.
	TryConfig func(ctx context.Context, st *dunlin.Stage) error // plugins.Host.TryConfig; nil: configurations are not tried
	// TryStates lets a stage's plugin take over copies of states that another version made; an error that matches
	// dunlin.ErrInvalid is what it says against one. nil: it is not tried.
	TryStates func(ctx context.Context, st *dunlin.Stage, works []*dunlin.Work) error
	States    States                                                  // of devices, for TryStates
	Module    func(hash dunlin.ModuleHash) (module []byte, err error) // router.Modules.Get
}

// Registry keeps what is registered. It implements dunlin.Registrar and dunlin.Authenticator.
type Registry struct {
	cfg     Config
	deps    Deps
	updates atomic.Pointer[Updater] // nil until Attach
	fleet   atomic.Pointer[Fleet]   // nil: all shards are here
	view    atomic.Pointer[view]
	open    atomic.Bool // Config.Open, or what SetOpen said since
	auth    *gate

	mu struct {
		sync.RWMutex
		credentials map[credentialKey]dunlin.Credential
		changed     chan struct{} // closed at the next change
		leaving     map[name]bool // domains that are being deleted
	}
}

var (
	_ dunlin.Registrar     = (*Registry)(nil)
	_ dunlin.Authenticator = (*Registry)(nil)
	_ dunlin.Plugins       = (*Registry)(nil)
)

// name is a domain's or a plugin's full name.
type name struct {
	tenant dunlin.Tenant
	name   string
}

func (n name) key() string { return string(n.tenant) + "/" + n.name }

type credentialKey struct {
	tenant dunlin.Tenant
	kind   dunlin.CredentialKind
	id     string
}

func (k credentialKey) key() string { return string(k.tenant) + "/" + string(k.kind) + "/" + k.id }

// view is the copy in memory of domains and plugins, and what follows from them. It is immutable.
type view struct {
	domains map[name]*dunlin.Domain
	plugins map[name]*dunlin.Plugin
	rules   map[name]*device.Rules
}

// New reads what is registered. Changes work after Attach.
func New(cfg Config, deps Deps) (*Registry, error) {
	if cfg.Shards < 1 || cfg.ShardOf == nil {
		return nil, fmt.Errorf("%w: the registry needs Shards (%d) and ShardOf", dunlin.ErrInvalid, cfg.Shards)
	}
	if cfg.Clock == nil {
		cfg.Clock = func() dunlin.Time { return dunlin.TimeOf(time.Now()) }
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	g, err := newGate(cfg.Static, cfg.Clock)
	if err != nil {
		return nil, err
	}
	r := &Registry{cfg: cfg, deps: deps, auth: g}
	r.open.Store(cfg.Open)
	r.mu.credentials = map[credentialKey]dunlin.Credential{}
	r.mu.changed = make(chan struct{})
	r.mu.leaving = map[name]bool{}
	r.view.Store(&view{domains: map[name]*dunlin.Domain{}, plugins: map[name]*dunlin.Plugin{}})
	if err := r.Reload(); err != nil {
		return nil, err
	}
	return r, nil
}

// OnInstalled follows a snapshot of a shard's state that replaced what was there. The node calls it before it applies entries
// behind the snapshot.
func (r *Registry) OnInstalled(shard dunlin.ShardID) error {
	if shard != dunlin.MetaShard {
		return nil
	}
	return r.Reload()
}

// Reload makes the copy anew from what the store has. No entry of the meta shard may be applied meanwhile.
func (r *Registry) Reload() error {
	var rows []dunlin.Put
	for _, table := range []string{dunlin.TablePlugins, dunlin.TableDomains, dunlin.TableCredentials} {
		of, err := r.deps.Rows.Rows(dunlin.MetaShard, table, "", "", 0)
		if err != nil {
			return fmt.Errorf("load the registry: %w", err)
		}
		rows = append(rows, of...)
	}
	r.applyTo(&view{domains: map[name]*dunlin.Domain{}, plugins: map[name]*dunlin.Plugin{}}, true, rows)
	return nil
}

// Attach gives the registry what changes go through, once that is there (it needs Rules itself).
func (r *Registry) Attach(u Updater) { r.updates.Store(&u) }

// Fleet lists devices wherever they are: *router.Router.
type Fleet interface {
	Devices(ctx context.Context, q dunlin.DevicesQuery) (*dunlin.DevicesPage, error)
}

// AttachFleet gives the registry the means to look into shards that have no replica here.
func (r *Registry) AttachFleet(f Fleet) { r.fleet.Store(&f) }

// SetOpen says whether everybody may do everything. A node that finds out only after its log is replayed whether anyone
// has a credential says so then, before it opens a door.
func (r *Registry) SetOpen(open bool) { r.open.Store(open) }

// OnApplied follows an applied entry. The node calls it for every entry, in order within a shard, before whoever proposed
// it is told.
func (r *Registry) OnApplied(shard dunlin.ShardID, _ uint64, e *dunlin.Entry) {
	if shard == dunlin.MetaShard && slices.ContainsFunc(e.Puts, func(p dunlin.Put) bool { return ours(&p) }) {
		r.apply(e.Puts)
	}
}

// ours reports whether a row of the meta shard has a place in the copy. The controller's rows are there, too, and devices'.
func ours(p *dunlin.Put) bool {
	return p.Table == dunlin.TableDomains || p.Table == dunlin.TablePlugins || p.Table == dunlin.TableCredentials
}

// Changed returns a channel that is closed at the next change of a domain, plugin or credential.
func (r *Registry) Changed() <-chan struct{} {
	r.mu.RLock()
	defer r.mu.RUnlock()
	return r.mu.changed
}

// Rules returns what holds in a domain now; nil if there is no such domain. It doesn't block.
func (r *Registry) Rules(t dunlin.Tenant, d dunlin.DomainID) *device.Rules {
	return r.view.Load().rules[name{t, string(d)}]
}

// Modules returns the modules that pipelines run now.
func (r *Registry) Modules() []dunlin.ModuleHash {
	set := map[dunlin.ModuleHash]bool{}
	for _, rules := range r.view.Load().rules {
		for _, st := range rules.Stages {
			if st.Rules == nil {
				set[st.Hash] = true
			}
			if st.Trial != nil {
				set[st.Trial.Hash] = true
			}
		}
	}
	hashes := make([]dunlin.ModuleHash, 0, len(set))
	for h := range set {
		hashes = append(hashes, h)
	}
	return hashes
}

// apply makes rows of the meta shard part of the copy.
func (r *Registry) apply(puts []dunlin.Put) {
	old := r.view.Load() // nobody else changes it: entries are applied one after the other
	r.applyTo(&view{domains: maps.Clone(old.domains), plugins: maps.Clone(old.plugins)}, false, puts)
}

// applyTo makes rows part of the next copy; anew, it has nothing else. A row that doesn't parse is left out and told: it can
// only come from another version. Rows of other tables are not the registry's.
func (r *Registry) applyTo(next *view, anew bool, puts []dunlin.Put) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if anew {
		r.mu.credentials = map[credentialKey]dunlin.Credential{}
	}
	viewed, changed := anew, anew
	for i := range puts {
		p := &puts[i]
		tenant, rest, ok := cutKey(p.Key)
		n := name{tenant, rest}
		var err error
		switch {
		case !ours(p):
			continue
		case !ok:
			err = fmt.Errorf("%w: key", dunlin.ErrInvalid)
		case p.Table == dunlin.TableDomains:
			viewed, err = true, applyRow(next.domains, n, p.Value)
		case p.Table == dunlin.TablePlugins:
			viewed, err = true, applyRow(next.plugins, n, p.Value)
		case p.Table == dunlin.TableCredentials:
			err = r.applyCredentialLocked(tenant, rest, p.Value)
		}
		if changed = true; err != nil {
			r.cfg.Log.Error("row of the registry", slog.String("table", p.Table), slog.String("key", p.Key), slog.Any("error", err))
		}
	}
	if viewed {
		next.rules = resolve(next, r.cfg.Log)
		r.view.Store(next)
	}
	if changed {
		close(r.mu.changed)
		r.mu.changed = make(chan struct{})
	}
}

func applyRow[T any](m map[name]*T, n name, value []byte) error {
	if value == nil {
		delete(m, n)
		return nil
	}
	row := new(T)
	if err := json.Unmarshal(value, row); err != nil {
		return err
	}
	m[n] = row
	return nil
}

func (r *Registry) applyCredentialLocked(tenant dunlin.Tenant, rest string, value []byte) error {
	kind, id, ok := cut(rest)
	if !ok {
		return fmt.Errorf("%w: key", dunlin.ErrInvalid)
	}
	k := credentialKey{tenant, dunlin.CredentialKind(kind), id}
	if value == nil {
		delete(r.mu.credentials, k)
		return nil
	}
	var c dunlin.Credential
	if err := json.Unmarshal(value, &c); err != nil {
		return err
	}
	r.mu.credentials[k] = c
	return nil
}

// update has a row of the meta shard changed: build gets the row as it is (nil: none) and returns it as it shall be (nil:
// delete it). It returns when that is committed.
func (r *Registry) update(ctx context.Context, table, key string, build func(at dunlin.Time, old []byte) ([]byte, error)) error {
	return r.updateIn(ctx, dunlin.MetaShard, nil, table, key, build)
}

func (r *Registry) updateIn(ctx context.Context, shard dunlin.ShardID, dev *dunlin.DeviceKey, table, key string,
	build func(at dunlin.Time, old []byte) ([]byte, error)) error {
	u := r.updates.Load()
	if u == nil {
		return fmt.Errorf("%w: the node is starting", dunlin.ErrUnavailable)
	}
	return (*u).Update(ctx, shard, dev, func(at dunlin.Time, _ *dunlin.DeviceState) ([]dunlin.Put, error) {
		old, _, err := r.deps.Rows.Row(shard, table, key)
		if err != nil {
			return nil, err
		}
		row, err := build(at, old)
		if err != nil {
			return nil, err
		}
		return []dunlin.Put{{Table: table, Key: key, Value: row}}, nil
	})
}

// revised parses the row and checks its revision against what the caller expects. row.Revision is the present one.
func revised[T any](what string, old []byte, row *T, revision *uint64, want uint64) error {
	if old != nil {
		if err := json.Unmarshal(old, row); err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
	}
	switch {
	case want == dunlin.AnyRevision || want == *revision:
		return nil
	case *revision == 0:
		return fmt.Errorf("%w: %s does not exist, want revision %d", dunlin.ErrPrecondition, what, want)
	case want == 0:
		return fmt.Errorf("%w: %s exists already, with revision %d", dunlin.ErrPrecondition, what, *revision)
	}
	return fmt.Errorf("%w: %s has revision %d, want %d", dunlin.ErrPrecondition, what, *revision, want)
}
