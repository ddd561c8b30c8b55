package router

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// Bounds of a change of the registry that is forwarded.
const (
	seenMax     = 2 * time.Second       // to wait until this node sees the change, too
	othersMax   = time.Second           // to wait until the others do
	ownerPause  = 20 * time.Millisecond // before the owner is looked for again
	changeTries = 64                    // the rest is WaitMax's
)

// order is a change of the registry, as JSON: the call "reg/" + the Registrar's method.
type order struct {
	Version    int                   `json:"v"`
	IfRevision uint64                `json:"if_revision,omitempty"`
	Tenant     dunlin.Tenant         `json:"tenant,omitempty"`
	Name       string                `json:"name,omitempty"`
	Kind       dunlin.CredentialKind `json:"kind,omitempty"`
	Secret     string                `json:"secret,omitempty"`
	Device     *dunlin.Device        `json:"device,omitempty"`
	Domain     *dunlin.Domain        `json:"domain,omitempty"`
	Credential *dunlin.Credential    `json:"credential,omitempty"`
	Module     *dunlin.ModuleHash    `json:"module,omitempty"` // to be fetched from the caller
	Bytes      int                   `json:"bytes,omitempty"`  // of the module

	Settings   *dunlin.PluginSettings `json:"settings,omitempty"`
	Activation *dunlin.Activation     `json:"activation,omitempty"`
	Trial      *dunlin.Trial          `json:"trial,omitempty"`
	Reason     string                 `json:"reason,omitempty"`
}

// outcome is the answer to an order.
type outcome struct {
	Version int             `json:"v"`
	Value   json.RawMessage `json:"value,omitempty"`
	Error   *failure        `json:"error,omitempty"`
}

// failure is an error with what callers ask of it.
type failure struct {
	Mask   uint64 `json:"mask"`
	Text   string `json:"text"`
	Check  string `json:"check,omitempty"` // of a *dunlin.ModuleError
	Detail string `json:"detail,omitempty"`
}

func failureOf(err error) *failure {
	f := &failure{Mask: maskOf(err), Text: cutText(err.Error())}
	if m, ok := errors.AsType[*dunlin.ModuleError](err); ok {
		f.Check, f.Detail = m.Check, m.Detail
	}
	return f
}

func (f *failure) err() error {
	e := error(&far{mask: f.Mask, text: f.Text})
	if f.Check != "" {
		e = &farModule{far{f.Mask, f.Text}, dunlin.ModuleError{Check: f.Check, Detail: f.Detail}}
	}
	return e
}

// farModule is a *dunlin.ModuleError of another node with what was said around it.
type farModule struct {
	far
	module dunlin.ModuleError
}

// Unwrap returns the *dunlin.ModuleError.
func (e *farModule) Unwrap() error { return &e.module }

// change makes a change of the registry: here if this node owns the shard, else by a call of the node that does. A refusal by
// somebody who is not the owner is no try: it is made again until an owner is found, for WaitMax.
func change[T any](ctx context.Context, r *Router, sh dunlin.ShardID, method string, o order, here func(context.Context) (T, error)) (T, error) {
	var none T
	began := r.now()
	for range changeTries {
		if _, ok := r.deps.Local.Owned(sh); ok {
			v, err := here(ctx)
			if err == nil && sh == dunlin.MetaShard {
				r.waitForOthers(ctx, r.cfg.Self)
			}
			if !errors.Is(err, dunlin.ErrNotOwner) {
				return v, err
			}
		} else if node, _, ok := r.deps.Owners.Owner(sh); ok && node != r.cfg.Self {
			v, err := forward[T](ctx, r, node, method, o)
			if err == nil {
				r.catchUp(ctx, sh)
			}
			if err == nil && sh == dunlin.MetaShard {
				r.waitForOthers(ctx, node)
			}
			if !errors.Is(err, dunlin.ErrNotOwner) {
				return v, err
			}
		}
		if r.now()-began >= r.cfg.WaitMax || !pause(ctx, ownerPause) {
			break
		}
	}
	if ctx.Err() != nil {
		return none, context.Cause(ctx)
	}
	return none, fmt.Errorf("%w: shard %d has no owner for the moment", dunlin.ErrUnavailable, sh)
}

// pause waits; false if ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

func forward[T any](ctx context.Context, r *Router, node dunlin.NodeID, method string, o order) (v T, err error) {
	o.Version = askVersion
	body, err := json.Marshal(o)
	if err != nil {
		return v, err
	}
	r.met.asked.Inc()
	reply, err := r.deps.Caller.Call(ctx, node, "reg/"+method, body)
	switch {
	case errors.Is(err, dunlin.ErrNotOwner), errors.Is(err, dunlin.ErrOverloaded):
		return v, err
	case err != nil:
		return v, fmt.Errorf("%w: the answer of node %s is lost, and the change may be made all the same: %w", dunlin.ErrUnavailable, node, err)
	}
	var out outcome
	if err := json.Unmarshal(reply, &out); err != nil || out.Version != askVersion {
		return v, fmt.Errorf("%w: answer to %s of version %d", dunlin.ErrInvalid, method, out.Version)
	}
	if out.Error != nil {
		return v, out.Error.err()
	}
	if len(out.Value) > 0 {
		err = json.Unmarshal(out.Value, &v)
	}
	return v, err
}

// catchUp waits until this node's replica has the change that was just acknowledged, so that whoever made it sees it here.
func (r *Router) catchUp(ctx context.Context, sh dunlin.ShardID) {
	if !r.here(sh) {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, seenMax)
	defer cancel()
	if err := r.deps.Reads.ReadIndex(ctx, sh); err != nil {
		r.cfg.Log.Warn("a change of the registry is made, and not seen here yet", slog.Int("shard", int(sh)), slog.Any("error", err))
	}
}

// methodSeen is answered once the node sees what was in the registry when it was asked.
const methodSeen = "seen"

// waitForOthers returns once all nodes see a change that owner has made: from then on it holds for what devices send, wherever
// that is worked off. Nodes that do not answer, and those of older builds, are not waited for; they will see it.
func (r *Router) waitForOthers(ctx context.Context, owner dunlin.NodeID) {
	var nodes []dunlin.NodeID
	for _, n := range peersOf(r.deps.Owners, r.cfg.Self) {
		if n != owner {
			nodes = append(nodes, n)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, othersMax)
	defer cancel()
	each(nodes, freshMax, func(node dunlin.NodeID) {
		if _, err := r.deps.Caller.Call(ctx, node, methodSeen, nil); err != nil {
			r.cfg.Log.Debug("a change of the registry is made, and another node may not see it yet", slog.String("node", node.String()), slog.Any("error", err))
		}
	})
}

// serveChange makes another node's change.
func (r *Router) serveChange(ctx context.Context, from dunlin.NodeID, method string, body []byte) ([]byte, error) {
	var o order
	if err := json.Unmarshal(body, &o); err != nil || o.Version != askVersion {
		return nil, fmt.Errorf("%w: %s of version %d", dunlin.ErrInvalid, method, o.Version)
	}
	value, err := r.obey(ctx, from, strings.TrimPrefix(method, "reg/"), &o)
	out := outcome{Version: askVersion}
	if err != nil {
		out.Error = failureOf(err)
	} else if out.Value, err = json.Marshal(value); err != nil {
		return nil, err
	}
	return json.Marshal(out)
}

// obey makes a change as another node's order says.
func (r *Router) obey(ctx context.Context, from dunlin.NodeID, method string, o *order) (any, error) {
	sh := dunlin.MetaShard
	switch {
	case method == "PutDevice" && o.Device != nil:
		sh = r.cfg.ShardOf(dunlin.DeviceKey{Tenant: o.Device.Tenant, Device: o.Device.ID})
	case method == "DeleteDevice":
		sh = r.cfg.ShardOf(dunlin.DeviceKey{Tenant: o.Tenant, Device: dunlin.DeviceID(o.Name)})
	}
	if _, ok := r.deps.Local.Owned(sh); !ok {
		return nil, errMoved
	}
	if err := r.readable(ctx, dunlin.MetaShard); err != nil { // a domain that the device names may be quite new
		return nil, fmt.Errorf("%w: the registry: %v", dunlin.ErrUnavailable, err)
	}
	reg := r.deps.Registry
	switch {
	case method == "PutDevice" && o.Device != nil:
		return reg.PutDevice(ctx, *o.Device, o.IfRevision)
	case method == "DeleteDevice":
		return nil, reg.DeleteDevice(ctx, dunlin.DeviceKey{Tenant: o.Tenant, Device: dunlin.DeviceID(o.Name)}, o.IfRevision)
	case method == "PutDomain" && o.Domain != nil:
		return reg.PutDomain(ctx, *o.Domain, o.IfRevision)
	case method == "DeleteDomain":
		return nil, reg.DeleteDomain(ctx, o.Tenant, dunlin.DomainID(o.Name), o.IfRevision)
	case method == "PutPlugin" && o.Module != nil && r.deps.Modules != nil:
		module, err := r.deps.Modules.fetch(ctx, from, *o.Module)
		if err != nil {
			return nil, fmt.Errorf("fetch the module of plugin %s: %w", o.Name, err)
		}
		return reg.PutPlugin(ctx, o.Tenant, o.Name, module, o.IfRevision)
	case method == "DeletePlugin":
		return nil, reg.DeletePlugin(ctx, o.Tenant, o.Name, o.IfRevision)
	case method == "PutCredential" && o.Credential != nil:
		return reg.PutCredential(ctx, *o.Credential, o.Secret)
	case method == "DeleteCredential":
		return nil, reg.DeleteCredential(ctx, o.Tenant, o.Kind, o.Name)
	}
	if p, err := r.obeyPlugins(ctx, from, method, o); !errors.Is(err, errNoChange) {
		return p, err
	}
	return nil, fmt.Errorf("%w: change %q", dunlin.ErrInvalid, method)
}

// nothing is the value of a change without one.
type nothing = struct{}

func tenantOr(t dunlin.Tenant) dunlin.Tenant {
	if t == "" {
		return dunlin.DefaultTenant
	}
	return t
}

// PutDevice implements dunlin.Registrar.
func (r *Router) PutDevice(ctx context.Context, d dunlin.Device, ifRevision uint64) (*dunlin.Device, error) {
	d.Tenant = tenantOr(d.Tenant)
	return change(ctx, r, r.cfg.ShardOf(dunlin.DeviceKey{Tenant: d.Tenant, Device: d.ID}), "PutDevice", order{Device: &d, IfRevision: ifRevision},
		func(ctx context.Context) (*dunlin.Device, error) {
			if err := r.readable(ctx, dunlin.MetaShard); err != nil {
				return nil, fmt.Errorf("%w: the registry: %v", dunlin.ErrUnavailable, err)
			}
			return r.deps.Registry.PutDevice(ctx, d, ifRevision)
		})
}

// DeleteDevice implements dunlin.Registrar.
func (r *Router) DeleteDevice(ctx context.Context, key dunlin.DeviceKey, ifRevision uint64) error {
	key.Tenant = tenantOr(key.Tenant)
	_, err := change(ctx, r, r.cfg.ShardOf(key), "DeleteDevice", order{Tenant: key.Tenant, Name: string(key.Device), IfRevision: ifRevision},
		func(ctx context.Context) (nothing, error) {
			return nothing{}, r.deps.Registry.DeleteDevice(ctx, key, ifRevision)
		})
	return err
}

// Domain implements dunlin.Registrar.
func (r *Router) Domain(ctx context.Context, t dunlin.Tenant, id dunlin.DomainID) (*dunlin.Domain, error) {
	if err := r.readable(ctx, dunlin.MetaShard); err != nil {
		return nil, metaError(err)
	}
	return r.deps.Registry.Domain(ctx, t, id)
}

// metaError makes what is wrong with this node's replica of the meta shard, which every node has, an error of the node.
func metaError(err error) error {
	return fmt.Errorf("%w: the registry: %w", dunlin.ErrUnavailable, err)
}

// Domains implements dunlin.Registrar.
func (r *Router) Domains(ctx context.Context, t dunlin.Tenant) ([]dunlin.Domain, error) {
	if err := r.readable(ctx, dunlin.MetaShard); err != nil {
		return nil, metaError(err)
	}
	return r.deps.Registry.Domains(ctx, t)
}

// PutDomain implements dunlin.Registrar.
func (r *Router) PutDomain(ctx context.Context, d dunlin.Domain, ifRevision uint64) (*dunlin.Domain, error) {
	return change(ctx, r, dunlin.MetaShard, "PutDomain", order{Domain: &d, IfRevision: ifRevision}, func(ctx context.Context) (*dunlin.Domain, error) {
		return r.deps.Registry.PutDomain(ctx, d, ifRevision)
	})
}

// DeleteDomain implements dunlin.Registrar.
func (r *Router) DeleteDomain(ctx context.Context, t dunlin.Tenant, id dunlin.DomainID, ifRevision uint64) error {
	_, err := change(ctx, r, dunlin.MetaShard, "DeleteDomain", order{Tenant: t, Name: string(id), IfRevision: ifRevision},
		func(ctx context.Context) (nothing, error) {
			return nothing{}, r.deps.Registry.DeleteDomain(ctx, t, id, ifRevision)
		})
	return err
}

// Plugin implements dunlin.Registrar.
func (r *Router) Plugin(ctx context.Context, t dunlin.Tenant, name string) (*dunlin.Plugin, error) {
	if err := r.readable(ctx, dunlin.MetaShard); err != nil {
		return nil, metaError(err)
	}
	return r.deps.Registry.Plugin(ctx, t, name)
}

// Plugins implements dunlin.Registrar.
func (r *Router) Plugins(ctx context.Context, t dunlin.Tenant) ([]dunlin.Plugin, error) {
	if err := r.readable(ctx, dunlin.MetaShard); err != nil {
		return nil, metaError(err)
	}
	return r.deps.Registry.Plugins(ctx, t)
}

// PutPlugin implements dunlin.Registrar. A module does not fit a call: whoever makes the change fetches it from here.
func (r *Router) PutPlugin(ctx context.Context, t dunlin.Tenant, name string, module []byte, ifRevision uint64) (*dunlin.Plugin, error) {
	hash := dunlin.ModuleHash(sha256.Sum256(module))
	if r.deps.Modules != nil {
		if err := r.deps.Modules.stage(hash, module); err != nil {
			return nil, err
		}
		defer r.deps.Modules.unstage(hash)
	}
	return change(ctx, r, dunlin.MetaShard, "PutPlugin", order{Tenant: t, Name: name, Module: &hash, Bytes: len(module), IfRevision: ifRevision},
		func(ctx context.Context) (*dunlin.Plugin, error) {
			return r.deps.Registry.PutPlugin(ctx, t, name, module, ifRevision)
		})
}

// DeletePlugin implements dunlin.Registrar.
func (r *Router) DeletePlugin(ctx context.Context, t dunlin.Tenant, name string, ifRevision uint64) error {
	_, err := change(ctx, r, dunlin.MetaShard, "DeletePlugin", order{Tenant: t, Name: name, IfRevision: ifRevision},
		func(ctx context.Context) (nothing, error) {
			return nothing{}, r.deps.Registry.DeletePlugin(ctx, t, name, ifRevision)
		})
	return err
}

// Credentials implements dunlin.Registrar.
func (r *Router) Credentials(ctx context.Context, t dunlin.Tenant) ([]dunlin.Credential, error) {
	if err := r.readable(ctx, dunlin.MetaShard); err != nil {
		return nil, metaError(err)
	}
	return r.deps.Registry.Credentials(ctx, t)
}

// PutCredential implements dunlin.Registrar.
func (r *Router) PutCredential(ctx context.Context, c dunlin.Credential, secret string) (string, error) {
	return change(ctx, r, dunlin.MetaShard, "PutCredential", order{Credential: &c, Secret: secret}, func(ctx context.Context) (string, error) {
		return r.deps.Registry.PutCredential(ctx, c, secret)
	})
}

// DeleteCredential implements dunlin.Registrar.
func (r *Router) DeleteCredential(ctx context.Context, t dunlin.Tenant, kind dunlin.CredentialKind, id string) error {
	_, err := change(ctx, r, dunlin.MetaShard, "DeleteCredential", order{Tenant: t, Kind: kind, Name: id}, func(ctx context.Context) (nothing, error) {
		return nothing{}, r.deps.Registry.DeleteCredential(ctx, t, kind, id)
	})
	return err
}
