package httpapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/payload"
)

var update = flag.Bool("update", false, "rewrite the golden files and api/openapi.yaml")

// testNow is the gateway's clock in tests: 2026-03-01T12:00:00Z.
const testNow dunlin.Time = 1772366400_000000

// fakeNode plays all the rooms behind the door.
type fakeNode struct {
	mu         sync.Mutex
	uplinks    []*dunlin.Uplink
	seq        map[dunlin.DeviceKey]uint64
	seen       map[uint64]uint64
	receipt    func(u *dunlin.Uplink) (dunlin.Receipt, bool) // false: keep the uplink in held
	held       []*dunlin.Uplink
	devices    map[dunlin.DeviceKey]dunlin.Device
	twins      map[dunlin.DeviceKey]dunlin.Twin
	domains    map[dunlin.DomainID]dunlin.Domain
	plugins    map[string]dunlin.Plugin
	versions   map[string][]dunlin.PluginVersion
	creds      []dunlin.Credential
	alerts     []dunlin.Alert
	dead       []dunlin.DeadLetter
	readings   func(q dunlin.ReadingsQuery) (*dunlin.ReadingsPage, error)
	open       bool
	alertsHang bool
	tokens     map[string]dunlin.Principal
}

func newFakeNode() *fakeNode {
	return &fakeNode{seq: map[dunlin.DeviceKey]uint64{}, seen: map[uint64]uint64{}, devices: map[dunlin.DeviceKey]dunlin.Device{},
		twins: map[dunlin.DeviceKey]dunlin.Twin{}, domains: map[dunlin.DomainID]dunlin.Domain{}, plugins: map[string]dunlin.Plugin{}, versions: map[string][]dunlin.PluginVersion{},
		open: true, tokens: map[string]dunlin.Principal{}}
}

func key(id string) dunlin.DeviceKey {
	return dunlin.DeviceKey{Tenant: dunlin.DefaultTenant, Device: dunlin.DeviceID(id)}
}

func (n *fakeNode) Ingest(first *dunlin.Uplink) {
	for u := first; u != nil; {
		next := u.Next // u is not ours to touch after Done
		n.mu.Lock()
		n.uplinks = append(n.uplinks, u)
		r, now := n.commitLocked(u)
		if !now {
			n.held = append(n.held, u)
		}
		n.mu.Unlock()
		if now {
			u.Waiter.Done(u, r)
		}
		u = next
	}
}

func (n *fakeNode) commitLocked(u *dunlin.Uplink) (dunlin.Receipt, bool) {
	if n.receipt != nil {
		return n.receipt(u)
	}
	if seq, ok := n.seen[u.MessageID]; ok && u.Flags&dunlin.FlagMayRepeat != 0 {
		return dunlin.Receipt{Seq: seq, Duplicate: true}, true
	}
	n.seq[u.DeviceKey]++
	n.seen[u.MessageID] = n.seq[u.DeviceKey]
	return dunlin.Receipt{Seq: n.seq[u.DeviceKey]}, true
}

func (n *fakeNode) Twin(_ context.Context, k dunlin.DeviceKey) (*dunlin.Twin, error) {
	if t, ok := n.twins[k]; ok {
		return &t, nil
	}
	return nil, fmt.Errorf("twin of %s: %w", k.Device, dunlin.ErrNotFound)
}

func (n *fakeNode) Readings(_ context.Context, q dunlin.ReadingsQuery) (*dunlin.ReadingsPage, error) {
	if n.readings == nil {
		return &dunlin.ReadingsPage{}, nil
	}
	return n.readings(q)
}

func (n *fakeNode) Alerts(ctx context.Context, q dunlin.AlertsQuery) (*dunlin.AlertsPage, error) {
	if n.alertsHang {
		<-ctx.Done()
		return nil, fmt.Errorf("alerts: %w", ctx.Err())
	}
	p := &dunlin.AlertsPage{}
	for _, a := range n.alerts {
		if (q.Device == "" || a.Device == q.Device) && (!q.Active || a.State != dunlin.AlertCleared) && (q.State == 0 || a.State == q.State) &&
			a.Severity >= q.Severity && (q.Domain == "" || q.Domain == a.Domain) {
			p.Alerts = append(p.Alerts, a)
		}
	}
	return p, nil
}

func (n *fakeNode) DeadLetters(context.Context, dunlin.DeadLettersQuery) (*dunlin.DeadLettersPage, error) {
	return &dunlin.DeadLettersPage{Letters: n.dead}, nil
}

func (n *fakeNode) Device(_ context.Context, k dunlin.DeviceKey) (*dunlin.Device, error) {
	if d, ok := n.devices[k]; ok {
		return &d, nil
	}
	return nil, fmt.Errorf("device %q: %w", k.Device, dunlin.ErrNotFound)
}

func (n *fakeNode) Devices(_ context.Context, q dunlin.DevicesQuery) (*dunlin.DevicesPage, error) {
	var ids []string
	for k, d := range n.devices {
		if strings.HasPrefix(string(k.Device), q.Prefix) && (q.Domain == "" || d.Domain == q.Domain) && string(k.Device) > q.Cursor {
			ids = append(ids, string(k.Device))
		}
	}
	slices.Sort(ids)
	p := &dunlin.DevicesPage{}
	for _, id := range ids {
		if len(p.Devices) == q.Limit {
			p.Next = string(p.Devices[q.Limit-1].ID)
			break
		}
		p.Devices = append(p.Devices, n.devices[key(id)])
	}
	return p, nil
}

func checkRevision(have, want uint64) error {
	if want != dunlin.AnyRevision && want != have {
		return fmt.Errorf("%w: revision is %d, the request expects %d", dunlin.ErrPrecondition, have, want)
	}
	return nil
}

func (n *fakeNode) PutDevice(_ context.Context, d dunlin.Device, rev uint64) (*dunlin.Device, error) {
	k := dunlin.DeviceKey{Tenant: d.Tenant, Device: d.ID}
	old := n.devices[k]
	if err := checkRevision(old.Revision, rev); err != nil {
		return nil, err
	}
	d.Revision, d.UpdatedAt, d.CreatedAt = old.Revision+1, testNow, testNow
	n.devices[k] = d
	return &d, nil
}

func (n *fakeNode) DeleteDevice(_ context.Context, k dunlin.DeviceKey, rev uint64) error {
	d, ok := n.devices[k]
	if !ok {
		return fmt.Errorf("device %q: %w", k.Device, dunlin.ErrNotFound)
	}
	if err := checkRevision(d.Revision, rev); err != nil {
		return err
	}
	delete(n.devices, k)
	return nil
}

func (n *fakeNode) Domain(_ context.Context, _ dunlin.Tenant, id dunlin.DomainID) (*dunlin.Domain, error) {
	if d, ok := n.domains[id]; ok {
		return &d, nil
	}
	return nil, fmt.Errorf("domain %q: %w", id, dunlin.ErrNotFound)
}

func (n *fakeNode) Domains(context.Context, dunlin.Tenant) (out []dunlin.Domain, _ error) {
	for _, d := range n.domains {
		out = append(out, d)
	}
	return out, nil
}

func (n *fakeNode) PutDomain(_ context.Context, d dunlin.Domain, rev uint64) (*dunlin.Domain, error) {
	old := n.domains[d.ID]
	if err := checkRevision(old.Revision, rev); err != nil {
		return nil, err
	}
	for i, p := range d.Pipeline {
		if _, ok := n.plugins[p.Plugin]; !ok {
			return nil, fmt.Errorf("domain %q: pipeline[%d]: %w: there is no plugin %q", d.ID, i, dunlin.ErrInvalid, p.Plugin)
		}
	}
	d.Revision, d.UpdatedAt = old.Revision+1, testNow
	n.domains[d.ID] = d
	return &d, nil
}

func (n *fakeNode) DeleteDomain(_ context.Context, _ dunlin.Tenant, id dunlin.DomainID, _ uint64) error {
	for _, d := range n.devices {
		if d.Domain == id {
			return fmt.Errorf("domain %q: %w: devices belong to it", id, dunlin.ErrConflict)
		}
	}
	delete(n.domains, id)
	return nil
}

func (n *fakeNode) Plugin(_ context.Context, _ dunlin.Tenant, name string) (*dunlin.Plugin, error) {
	if p, ok := n.plugins[name]; ok {
		return &p, nil
	}
	return nil, fmt.Errorf("plugin %q: %w", name, dunlin.ErrNotFound)
}

func (n *fakeNode) Plugins(context.Context, dunlin.Tenant) (out []dunlin.Plugin, _ error) {
	for _, p := range n.plugins {
		out = append(out, p)
	}
	return out, nil
}

func (n *fakeNode) PutPlugin(_ context.Context, _ dunlin.Tenant, name string, module []byte, _ uint64) (*dunlin.Plugin, error) {
	if !bytes.HasPrefix(module, []byte("\x00asm")) {
		return nil, fmt.Errorf("plugin %q: %w", name, &dunlin.ModuleError{Check: "parse",
			Detail: "the file does not begin with \\0asm, so it is no WebAssembly module; build it with GOOS=wasip1 GOARCH=wasm"})
	}
	p := dunlin.Plugin{Name: name, Bytes: int64(len(module)), Revision: n.plugins[name].Revision + 1, UpdatedAt: testNow}
	n.plugins[name] = p
	return &p, nil
}

func (n *fakeNode) DeletePlugin(_ context.Context, _ dunlin.Tenant, name string, _ uint64) error {
	delete(n.plugins, name)
	return nil
}

func (n *fakeNode) Credentials(context.Context, dunlin.Tenant) ([]dunlin.Credential, error) {
	return n.creds, nil
}

func (n *fakeNode) PutCredential(_ context.Context, c dunlin.Credential, secret string) (string, error) {
	if secret == "" {
		secret = "made-by-the-node"
	}
	c.Hash = "hash-of-" + secret
	n.creds = append(n.creds, c)
	return secret, nil
}

func (n *fakeNode) DeleteCredential(_ context.Context, _ dunlin.Tenant, kind dunlin.CredentialKind, id string) error {
	before := len(n.creds)
	n.creds = slices.DeleteFunc(n.creds, func(c dunlin.Credential) bool { return c.Kind == kind && c.ID == id })
	if len(n.creds) == before {
		return dunlin.ErrNotFound
	}
	return nil
}

func (n *fakeNode) Authenticate(_ context.Context, a dunlin.LoginAttempt) (dunlin.Principal, error) {
	if n.open {
		return dunlin.Principal{Kind: dunlin.PrincipalOpen}, nil
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if p, ok := n.tokens[a.ID+":"+string(a.Secret)]; ok {
		return p, nil
	}
	return dunlin.Principal{}, fmt.Errorf("%w: no such credential", dunlin.ErrUnauthenticated)
}

// fakeFeed is a feed in memory.
type fakeFeed struct {
	mu      sync.Mutex
	shards  [][]*dunlin.Entry // entry i has index i+1
	lost    uint64            // positions up to here are gone
	changed chan struct{}
	follows int
}

func newFakeFeed(shards int) *fakeFeed {
	return &fakeFeed{shards: make([][]*dunlin.Entry, shards), changed: make(chan struct{})}
}

func (f *fakeFeed) add(e *dunlin.Entry) {
	f.mu.Lock()
	f.shards[e.Shard] = append(f.shards[e.Shard], e)
	close(f.changed)
	f.changed = make(chan struct{})
	f.mu.Unlock()
}

func (f *fakeFeed) nowLocked() dunlin.Cursor {
	c := make(dunlin.Cursor, len(f.shards))
	for i := range c {
		c[i] = uint64(len(f.shards[i])) + 1
	}
	return c
}

func (f *fakeFeed) Now(context.Context) (dunlin.Cursor, error) { return f.now(), nil }

func (f *fakeFeed) now() dunlin.Cursor {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.nowLocked()
}

func (f *fakeFeed) Follow(ctx context.Context, from *dunlin.Cursor, device *dunlin.DeviceKey) iter.Seq2[dunlin.FeedItem, error] {
	return func(yield func(dunlin.FeedItem, error) bool) {
		for {
			f.mu.Lock()
			f.follows++
			changed := f.changed
			var item dunlin.FeedItem
			for sh := range f.shards {
				next := (*from)[sh]
				if next <= f.lost {
					f.mu.Unlock()
					yield(item, fmt.Errorf("shard %d: %w", sh, dunlin.ErrCursorLost))
					return
				}
				if int(next) <= len(f.shards[sh]) {
					item = dunlin.FeedItem{Index: next, Entry: f.shards[sh][next-1]}
					break
				}
			}
			f.mu.Unlock()
			if item.Entry == nil {
				select {
				case <-ctx.Done():
					yield(item, ctx.Err())
					return
				case <-changed:
				}
				continue
			}
			(*from)[item.Entry.Shard] = item.Index + 1
			if device != nil && !slices.ContainsFunc(item.Entry.Changes, func(c dunlin.Change) bool { return c.DeviceKey == *device }) {
				continue
			}
			if !yield(item, nil) {
				return
			}
		}
	}
}

// bed is a gateway over fakes.
type bed struct {
	*fakeNode
	feed *fakeFeed
	g    *Gateway
	t    testing.TB
}

func newBed(t testing.TB, change ...func(*Config)) *bed {
	t.Helper()
	b := &bed{fakeNode: newFakeNode(), feed: newFakeFeed(4), t: t}
	cfg := Config{Addr: "127.0.0.1:0", Clock: func() dunlin.Time { return testNow }, Version: Version{Version: "test"},
		Log: slog.New(slog.NewTextHandler(io.Discard, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, f := range change {
		f(&cfg)
	}
	g, err := New(cfg, Deps{Ingestor: b, Inspector: b, Registrar: b, Auth: b, Feed: b.feed, Decoder: payload.NewDecoder(), Plugins: b, Trials: b})
	if err != nil {
		t.Fatal(err)
	}
	g.idPrefix = "req"
	b.g = g
	return b
}

// do sends a request to the gateway as a loopback client; headers are "Key: value".
func (b *bed) do(method, path, body string, headers ...string) *httptest.ResponseRecorder {
	b.t.Helper()
	r := httptest.NewRequest(method, "http://localhost:8080"+path, strings.NewReader(body))
	if body == "" {
		r.Body, r.ContentLength = http.NoBody, 0
	}
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ": ")
		if k == "Host" {
			r.Host = v
			continue
		}
		r.Header.Add(k, v)
	}
	w := httptest.NewRecorder()
	b.g.ServeHTTP(w, r)
	return w
}

// want checks a status and gives the body.
func (b *bed) want(w *httptest.ResponseRecorder, status int) string {
	b.t.Helper()
	if w.Code != status {
		b.t.Fatalf("status %d, want %d: %s", w.Code, status, w.Body)
	}
	return w.Body.String()
}

func parse[T any](t testing.TB, s string) (v T) {
	t.Helper()
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		t.Fatalf("%v in %s", err, s)
	}
	return v
}

// golden compares with a file, or writes it with -update.
func golden(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		t.Fatalf("%s is missing; write it with go test ./protocols/httpapi -update", path)
	}
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s differs; if that is meant, go test ./protocols/httpapi -update.\n got:\n%s\nwant:\n%s", path, got, want)
	}
}

func (n *fakeNode) BringVersion(ctx context.Context, t dunlin.Tenant, set dunlin.PluginSettings, module []byte) (*dunlin.Plugin, error) {
	old := n.plugins[set.Name]
	p, err := n.PutPlugin(ctx, t, set.Name, module, set.IfRevision)
	if err != nil {
		return nil, err
	}
	p.Hash, p.Previous, p.Activations = old.Hash, old.Previous, old.Activations
	n.plugins[set.Name] = *p
	v := dunlin.PluginVersion{Hash: sha256.Sum256(module), Version: fmt.Sprintf("1.%d.0", len(n.versions[set.Name])), Bytes: p.Bytes, By: set.By, Source: set.Source, At: testNow}
	if len(n.versions[set.Name]) > 9 {
		return nil, dunlin.ErrOverloaded
	}
	n.versions[set.Name] = append([]dunlin.PluginVersion{v}, n.versions[set.Name]...)
	p.Versions = n.versions[set.Name]
	if set.Signature != "" {
		p.Versions[0].Signatures = []dunlin.PluginSignature{{Key: set.Key, Sig: set.Signature}}
	}
	if set.Activate {
		return n.Activate(ctx, t, set.Name, dunlin.Activation{Hash: v.Hash, By: set.By, Reason: set.Reason}, set.IfRevision)
	}
	n.plugins[set.Name] = *p
	return p, nil
}

func (n *fakeNode) Activate(_ context.Context, _ dunlin.Tenant, name string, a dunlin.Activation, _ uint64) (*dunlin.Plugin, error) {
	p := n.plugins[name]
	a.At, a.From = testNow, p.Hash
	if p.Versions = n.versions[name]; p.Hash != (dunlin.ModuleHash{}) {
		p.Previous = append([]dunlin.ModuleHash{p.Hash}, p.Previous...)
	}
	p.Hash, p.Activations, p.Trial = a.Hash, append([]dunlin.Activation{a}, p.Activations...), nil
	n.plugins[name] = p
	return &p, nil
}

func (n *fakeNode) SetTrial(_ context.Context, _ dunlin.Tenant, name string, trial *dunlin.Trial, reason string, _ uint64) (*dunlin.Plugin, error) {
	p := n.plugins[name]
	if p.Trial = trial; trial != nil {
		trial.ID, trial.Since = "T1", testNow
	} else {
		p.Activations = append([]dunlin.Activation{{Hash: p.Hash, At: testNow, Reason: reason}}, p.Activations...)
	}
	n.plugins[name] = p
	return &p, nil
}

func (n *fakeNode) Ban(context.Context, dunlin.Tenant, string, dunlin.ModuleHash, string) (*dunlin.Plugin, error) {
	return nil, dunlin.ErrUnavailable // nobody asks for it over HTTP
}

func (n *fakeNode) Module(context.Context, dunlin.Tenant, string, dunlin.ModuleHash) ([]byte, error) {
	return []byte("\x00asm-the-module"), nil
}

func (n *fakeNode) TrialCounts(context.Context, dunlin.Tenant, string, string) (dunlin.TrialCounts, int, error) {
	return dunlin.TrialCounts{Candidate: dunlin.VersionCounts{Inputs: 5}, Same: 4, Differ: 1}, 1, nil
}
