package router

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// realm is a cluster for questions: who has a replica of what, what is in them, who is down, and how stale replicas are.
type realm struct {
	t        testing.TB
	mu       sync.Mutex
	nodes    map[dunlin.NodeID]*resident
	owner    [8]dunlin.NodeID
	replicas [8][]dunlin.NodeID
	states   map[dunlin.DeviceKey]*dunlin.DeviceState
	alerts   []dunlin.Alert
	letters  []dunlin.DeadLetter
	devices  map[dunlin.DeviceKey]dunlin.Device
	domains  map[dunlin.DomainID]dunlin.Domain
	silent   map[dunlin.NodeID]bool // calls to it end with the caller's patience
	calls    []string               // "from>to method"
	replyErr error                  // what calls of changes are answered with once the change is made
}

// resident is one node of it: Owners, Reads, Caller, Local, State and Registry.
type resident struct {
	*realm
	id     dunlin.NodeID
	router *Router
	lag    time.Duration
	stuck  bool // ReadIndex never returns
	reads  int  // calls of ReadIndex
	notYet int  // changes that are refused by somebody who is not the owner yet
}

func newRealm(t testing.TB, nodes int) *realm {
	m := &realm{t: t, nodes: map[dunlin.NodeID]*resident{}, states: map[dunlin.DeviceKey]*dunlin.DeviceState{},
		devices: map[dunlin.DeviceKey]dunlin.Device{}, domains: map[dunlin.DomainID]dunlin.Domain{}, silent: map[dunlin.NodeID]bool{}}
	for i := range nodes {
		r := &resident{realm: m, id: dunlin.NodeID(i + 1)}
		var err error
		r.router, err = New(Config{Self: r.id, Shards: 8, ShardOf: shardOf}, Deps{Local: r, State: r, Registry: residentRegistry{r}, Owners: r, Reads: r,
			Caller: r, MergeAlerts: r.merge})
		if err != nil {
			t.Fatal(err)
		}
		m.nodes[r.id] = r
	}
	for sh := range 8 { // three replicas each, the first of which leads
		for j := range min(3, nodes) {
			m.replicas[sh] = append(m.replicas[sh], dunlin.NodeID((sh+j)%nodes+1))
		}
		m.owner[sh] = m.replicas[sh][0]
	}
	return m
}

func (r *resident) has(sh dunlin.ShardID) bool { return slices.Contains(r.replicas[sh], r.id) }

func (r *resident) Owner(sh dunlin.ShardID) (dunlin.NodeID, uint64, bool) {
	return r.owner[sh], 1, r.owner[sh] != 0
}
func (r *resident) Hint(dunlin.ShardID, dunlin.NodeID, uint64)         {}
func (r *resident) Replicas(sh dunlin.ShardID) []dunlin.NodeID         { return r.replicas[sh] }
func (r *resident) Voters(sh dunlin.ShardID) []dunlin.NodeID           { return r.replicas[sh] }
func (r *resident) Owned(sh dunlin.ShardID) (uint64, bool)             { return 1, r.owner[sh] == r.id }
func (r *resident) Ingest(*dunlin.Uplink)                              {}
func (r *resident) Holds(dunlin.ShardID) bool                          { return false }
func (r *resident) Post(dunlin.ShardID, *dunlin.Uplink) *dunlin.Uplink { return nil }
func (r *resident) Fresh(sh dunlin.ShardID) (time.Duration, bool)      { return r.lag, r.has(sh) }
func (r *resident) LoadDevice(sh dunlin.ShardID, k dunlin.DeviceKey) (*dunlin.DeviceState, bool, error) {
	r.must(sh)
	st := r.states[k]
	return st, st != nil, nil
}

func (r *resident) must(sh dunlin.ShardID) {
	if !r.has(sh) {
		r.t.Errorf("node %d reads shard %d, of which it has no replica", r.id, sh)
	}
}

func (r *resident) ReadIndex(ctx context.Context, sh dunlin.ShardID) error {
	r.must(sh)
	r.mu.Lock()
	r.reads++
	r.mu.Unlock()
	if r.stuck || r.owner[sh] == 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (r *resident) Call(ctx context.Context, to dunlin.NodeID, method string, body []byte) ([]byte, error) {
	r.mu.Lock()
	r.calls = append(r.calls, fmt.Sprintf("%d>%d %s", uint64(r.id), uint64(to), method))
	silent := r.silent[to]
	r.mu.Unlock()
	if silent {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	reply, err := r.nodes[to].router.Serve(ctx, r.id, method, body)
	if ctx.Err() != nil { // the answer comes to nobody
		return nil, ctx.Err()
	}
	if strings.HasPrefix(method, "reg/") && r.replyErr != nil {
		return nil, r.replyErr
	}
	if err != nil { // an error comes with its sentinel and its text
		err = &far{mask: maskOf(err), text: err.Error()}
	}
	return reply, err
}

func (r *resident) Go(dunlin.NodeID, string, []byte, func([]byte, error)) {}

func (r *resident) Readings(sh dunlin.ShardID, q dunlin.ReadingsQuery) (*dunlin.ReadingsPage, error) {
	r.must(sh)
	if q.Cursor == "bad" {
		return nil, fmt.Errorf("%w: cursor", dunlin.ErrInvalid)
	}
	rows := fleet(1)[0].Records
	if q.Metrics != nil {
		rows = rows[:1]
	}
	return &dunlin.ReadingsPage{Rows: rows, Next: fmt.Sprint(q.From, q.To, q.Newest, q.Limit, q.Bucket),
		Buckets: []dunlin.Bucket{{Metric: "t", Start: -5, Count: 2, Min: math.Inf(-1), Max: 1, Mean: 2, First: 3, Last: 4}}}, nil
}

func (r *resident) Alerts(shards []dunlin.ShardID, q dunlin.AlertsQuery) (*dunlin.AlertsPage, error) {
	p := &dunlin.AlertsPage{}
	for _, sh := range shards {
		r.must(sh)
		for _, a := range r.alerts {
			if shardOf(dunlin.DeviceKey{Tenant: a.Tenant, Device: a.Device}) == sh && string(a.Device) > q.Cursor && a.Severity >= q.Severity {
				p.Alerts = append(p.Alerts, a)
			}
		}
	}
	return r.merge([]*dunlin.AlertsPage{p}, q)
}

// merge orders alerts by device here.
func (r *resident) merge(pages []*dunlin.AlertsPage, q dunlin.AlertsQuery) (*dunlin.AlertsPage, error) {
	all := &dunlin.AlertsPage{}
	for _, p := range pages {
		all.Alerts = append(all.Alerts, p.Alerts...)
		all.Next = cmp.Or(all.Next, p.Next)
	}
	slices.SortFunc(all.Alerts, func(a, b dunlin.Alert) int { return cmp.Compare(a.Device, b.Device) })
	if len(all.Alerts) > q.Limit {
		all.Alerts = all.Alerts[:q.Limit]
		all.Next = string(all.Alerts[q.Limit-1].Device)
	}
	return all, nil
}

func (r *resident) DeadLetters(shards []dunlin.ShardID, q dunlin.DeadLettersQuery) (out []dunlin.DeadLetter, _ error) {
	for _, l := range r.letters {
		if slices.Contains(shards, shardOf(l.DeviceKey)) && (q.Device == "" || q.Device == l.Device) {
			out = append(out, l)
		}
	}
	return out[:min(len(out), q.Limit)], nil
}

type residentRegistry struct{ *resident }

func (r residentRegistry) Device(_ context.Context, k dunlin.DeviceKey) (*dunlin.Device, error) {
	r.must(shardOf(k))
	d, ok := r.devices[k]
	if !ok {
		return nil, fmt.Errorf("%w: device %s", dunlin.ErrNotFound, k.Device)
	}
	return &d, nil
}

func (r residentRegistry) DevicesIn(_ context.Context, shards []dunlin.ShardID, q dunlin.DevicesQuery) (*dunlin.DevicesPage, error) {
	p := &dunlin.DevicesPage{}
	for k, d := range r.devices {
		if slices.Contains(shards, shardOf(k)) && string(k.Device) > q.Cursor && strings.HasPrefix(string(k.Device), q.Prefix) {
			p.Devices = append(p.Devices, d)
		}
	}
	slices.SortFunc(p.Devices, func(a, b dunlin.Device) int { return cmp.Compare(a.ID, b.ID) })
	if len(p.Devices) > q.Limit {
		p.Devices = p.Devices[:q.Limit]
		p.Next = string(p.Devices[q.Limit-1].ID)
	}
	return p, nil
}

func (r residentRegistry) Devices(context.Context, dunlin.DevicesQuery) (*dunlin.DevicesPage, error) {
	return nil, errors.New("nobody asks this")
}

// change is what all changes have in common.
func (r residentRegistry) change(sh dunlin.ShardID) error {
	if r.notYet > 0 {
		r.notYet--
		return fmt.Errorf("change: %w", dunlin.ErrNotOwner)
	}
	if r.owner[sh] != r.id {
		r.t.Errorf("node %d makes a change in shard %d, of which it is not the owner", r.id, sh)
	}
	return nil
}

func (r residentRegistry) PutDevice(_ context.Context, d dunlin.Device, rev uint64) (*dunlin.Device, error) {
	k := dunlin.DeviceKey{Tenant: d.Tenant, Device: d.ID}
	if err := r.change(shardOf(k)); err != nil {
		return nil, err
	}
	if rev != dunlin.AnyRevision && rev != r.devices[k].Revision {
		return nil, fmt.Errorf("%w: device %s has revision %d", dunlin.ErrPrecondition, d.ID, r.devices[k].Revision)
	}
	d.Revision = r.devices[k].Revision + 1
	r.devices[k] = d
	return &d, nil
}

func (r residentRegistry) DeleteDevice(_ context.Context, k dunlin.DeviceKey, _ uint64) error {
	delete(r.devices, k)
	return r.change(shardOf(k))
}

func (r residentRegistry) Domain(_ context.Context, _ dunlin.Tenant, id dunlin.DomainID) (*dunlin.Domain, error) {
	d, ok := r.domains[id]
	if !ok {
		return nil, dunlin.ErrNotFound
	}
	return &d, nil
}
func (r residentRegistry) Domains(context.Context, dunlin.Tenant) ([]dunlin.Domain, error) {
	return nil, nil
}
func (r residentRegistry) PutDomain(_ context.Context, d dunlin.Domain, _ uint64) (*dunlin.Domain, error) {
	if err := r.change(dunlin.MetaShard); err != nil {
		return nil, err
	}
	d.Revision = r.domains[d.ID].Revision + 1
	r.domains[d.ID] = d
	return &d, nil
}
func (r residentRegistry) DeleteDomain(_ context.Context, _ dunlin.Tenant, id dunlin.DomainID, _ uint64) error {
	delete(r.domains, id)
	return r.change(dunlin.MetaShard)
}
func (r residentRegistry) Plugin(context.Context, dunlin.Tenant, string) (*dunlin.Plugin, error) {
	return nil, dunlin.ErrNotFound
}
func (r residentRegistry) Plugins(context.Context, dunlin.Tenant) ([]dunlin.Plugin, error) {
	return nil, nil
}
func (r residentRegistry) PutPlugin(_ context.Context, _ dunlin.Tenant, name string, module []byte, _ uint64) (*dunlin.Plugin, error) {
	if err := r.change(dunlin.MetaShard); err != nil {
		return nil, err
	}
	if name == "bad" {
		return nil, fmt.Errorf("put plugin bad: %w", &dunlin.ModuleError{Check: "imports", Detail: "it imports what it must not"})
	}
	return &dunlin.Plugin{Name: name, Bytes: int64(len(module))}, nil
}
func (r residentRegistry) DeletePlugin(context.Context, dunlin.Tenant, string, uint64) error {
	return fmt.Errorf("%w: the pipeline of domain x names it", dunlin.ErrConflict)
}
func (r residentRegistry) Credentials(context.Context, dunlin.Tenant) ([]dunlin.Credential, error) {
	return nil, nil
}
func (r residentRegistry) PutCredential(_ context.Context, c dunlin.Credential, secret string) (string, error) {
	return string(c.Kind) + c.ID + secret, r.change(dunlin.MetaShard)
}
func (r residentRegistry) DeleteCredential(context.Context, dunlin.Tenant, dunlin.CredentialKind, string) error {
	return r.change(dunlin.MetaShard)
}

// silence says of nodes whether calls to them are answered.
func (m *realm) silence(is bool, nodes ...dunlin.NodeID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, n := range nodes {
		m.silent[n] = is
	}
}

func (m *realm) took() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	calls := m.calls
	m.calls = nil
	slices.Sort(calls)
	return calls
}

// devIn returns the n-th name of a device in a shard.
func devIn(sh dunlin.ShardID, n int) dunlin.DeviceKey {
	for i := 0; ; i++ {
		k := dunlin.DeviceKey{Tenant: "default", Device: dunlin.DeviceID(fmt.Sprint("d", i))}
		if shardOf(k) == sh {
			if n--; n < 0 {
				return k
			}
		}
	}
}
