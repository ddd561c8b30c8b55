package registry

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/dunlin-iot/dunlin"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const shards = 8

func shardOf(k dunlin.DeviceKey) dunlin.ShardID {
	return dunlin.ShardID(sha256.Sum256([]byte(k.String()))[0] % shards)
}

// world is the rest of the node: shards that commit at once, rows as applied, a host of plugins, and a clock.
type world struct {
	mu      sync.Mutex
	rows    map[dunlin.ShardID]map[string]dunlin.Put
	reg     *Registry
	now     dunlin.Time
	blobs   map[dunlin.ModuleHash]bool
	runs    map[dunlin.ModuleHash]bool
	failing error
	index   uint64

	tryConfig func(context.Context, *dunlin.Stage) error // nil: all are fine
}

func newWorld(t *testing.T, change func(*Config)) *world {
	w := &world{rows: map[dunlin.ShardID]map[string]dunlin.Put{}, now: 1e15, blobs: map[dunlin.ModuleHash]bool{},
		runs: map[dunlin.ModuleHash]bool{}}
	w.open(t, change)
	return w
}

func (w *world) open(t *testing.T, change func(*Config)) {
	cfg := Config{Shards: shards, ShardOf: shardOf, Clock: func() dunlin.Time { return w.now }}
	if change != nil {
		change(&cfg)
	}
	reg, err := New(cfg, Deps{Rows: w, Check: w.check, Install: w.install, Keep: w.keep, TryConfig: w.try})
	if err != nil {
		t.Fatal(err)
	}
	reg.Attach(w)
	w.reg = reg
}

func (w *world) Update(_ context.Context, shard dunlin.ShardID, _ *dunlin.DeviceKey,
	build func(dunlin.Time, *dunlin.DeviceState) ([]dunlin.Put, error)) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.failing != nil {
		return w.failing
	}
	w.now += 1e6
	puts, err := build(w.now, nil)
	if err != nil {
		return err
	}
	if w.rows[shard] == nil {
		w.rows[shard] = map[string]dunlin.Put{}
	}
	for _, p := range puts {
		if w.rows[shard][p.Table+"/"+p.Key] = p; p.Value == nil {
			delete(w.rows[shard], p.Table+"/"+p.Key)
		}
	}
	w.index++
	w.reg.OnApplied(shard, w.index, &dunlin.Entry{Shard: shard, Puts: puts})
	return nil
}

func (w *world) Row(shard dunlin.ShardID, table, key string) ([]byte, bool, error) {
	p, ok := w.rows[shard][table+"/"+key]
	return p.Value, ok, nil
}

func (w *world) Rows(shard dunlin.ShardID, table, prefix, after string, limit int) (rows []dunlin.Put, _ error) {
	for _, p := range w.rows[shard] {
		if p.Table == table && strings.HasPrefix(p.Key, prefix) && p.Key > after {
			rows = append(rows, p)
		}
	}
	slices.SortFunc(rows, func(a, b dunlin.Put) int { return cmp.Compare(a.Key, b.Key) })
	if limit > 0 && len(rows) > limit {
		rows = rows[:limit]
	}
	return rows, nil
}

func (w *world) DevicesOf(shard dunlin.ShardID, q dunlin.DevicesQuery, after dunlin.DeviceID) (ids []dunlin.DeviceID, _ error) {
	rows, _ := w.Rows(shard, dunlin.TableDevices, string(q.Tenant)+"/"+q.Prefix, string(q.Tenant)+"/"+string(after), 0)
	for _, p := range rows {
		var d dunlin.Device
		if json.Unmarshal(p.Value, &d) == nil && d.Domain == q.Domain && (q.Limit == 0 || len(ids) < q.Limit) {
			ids = append(ids, d.ID)
		}
	}
	return ids, nil
}

func (w *world) check(_ context.Context, module []byte) (Checked, error) {
	if string(module) == "bad" {
		return Checked{}, &dunlin.ModuleError{Check: "parse", Detail: "no"}
	}
	return Checked{Language: "Go", Report: json.RawMessage(`{"fuel":1}`)}, nil
}

func (w *world) keep(module []byte) (dunlin.ModuleHash, error) {
	h := dunlin.ModuleHash(sha256.Sum256(module))
	w.blobs[h] = true
	return h, nil
}

func (w *world) try(ctx context.Context, st *dunlin.Stage) error {
	if w.tryConfig == nil {
		return nil
	}
	return w.tryConfig(ctx, st)
}

func (w *world) install(_ context.Context, h dunlin.ModuleHash, _ []byte) error {
	if !w.blobs[h] {
		return errors.New("installed before it was kept")
	}
	w.runs[h] = true
	return nil
}

func want(t *testing.T, what string, err, target error) {
	t.Helper()
	if target == nil && err != nil || !errors.Is(err, target) {
		t.Errorf("%s: got %v, want %v", what, err, target)
	}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestDomains(t *testing.T) {
	w, ctx := newWorld(t, nil), t.Context()
	r := w.reg
	changed := r.Changed()
	good := dunlin.Domain{ID: "cold", Owner: "ops", UnknownDevices: dunlin.UnknownRegister, SkewMax: dunlin.Duration(time.Hour)}
	for what, d := range map[string]dunlin.Domain{
		"no owner":      {ID: "cold"},
		"bad id":        {ID: "c d", Owner: "o"},
		"bad policy":    {ID: "cold", Owner: "o", UnknownDevices: "maybe"},
		"negative":      {ID: "cold", Owner: "o", SkewMax: -1},
		"no plugin":     {ID: "cold", Owner: "o", Pipeline: []dunlin.PluginUse{{Plugin: "gone"}}},
		"config":        {ID: "cold", Owner: "o", Pipeline: []dunlin.PluginUse{{Plugin: "p", Config: json.RawMessage(`[1]`)}}},
		"null config":   {ID: "cold", Owner: "o", Pipeline: []dunlin.PluginUse{{Plugin: "p", Config: json.RawMessage(`null`)}}},
		"long pipeline": {ID: "cold", Owner: "o", Pipeline: make([]dunlin.PluginUse, 9)},
		"long text":     {ID: "cold", Owner: "o", Description: strings.Repeat("x", 5000)},
	} {
		_, err := r.PutDomain(ctx, d, dunlin.AnyRevision)
		want(t, what, err, dunlin.ErrInvalid)
	}
	_, err := r.PutDomain(ctx, good, 3)
	want(t, "revision of what isn't there", err, dunlin.ErrPrecondition)
	d := must(r.PutDomain(ctx, good, 0))
	if d.Revision != 1 || d.Tenant != "default" || d.UpdatedAt == 0 {
		t.Errorf("first revision %+v", d)
	}
	select {
	case <-changed:
	default:
		t.Error("nobody was told of the change")
	}
	_, err = r.PutDomain(ctx, good, 0)
	want(t, "must not exist", err, dunlin.ErrPrecondition)
	d = must(r.PutDomain(ctx, good, 1))
	_, err = r.PutDomain(ctx, good, 1)
	want(t, "lost update", err, dunlin.ErrPrecondition)
	if rules := r.Rules("default", "cold"); rules == nil || !rules.Register || rules.SkewMax != time.Hour {
		t.Errorf("rules %+v", rules)
	}
	if r.Rules("other", "cold") != nil {
		t.Error("another tenant's rules")
	}
	must(r.PutDevice(ctx, dunlin.Device{ID: "a", Domain: "cold"}, dunlin.AnyRevision))
	want(t, "in use", r.DeleteDomain(ctx, "", "cold", dunlin.AnyRevision), dunlin.ErrConflict)
	want(t, "device", r.DeleteDevice(ctx, dunlin.DeviceKey{Device: "a"}, dunlin.AnyRevision), nil)
	want(t, "old revision", r.DeleteDomain(ctx, "", "cold", 1), dunlin.ErrPrecondition)
	want(t, "delete", r.DeleteDomain(ctx, "", "cold", d.Revision), nil)
	want(t, "again", r.DeleteDomain(ctx, "", "cold", dunlin.AnyRevision), dunlin.ErrNotFound)
	if _, err := r.Domain(ctx, "", "cold"); !errors.Is(err, dunlin.ErrNotFound) || r.Rules("default", "cold") != nil {
		t.Errorf("after deletion: %v", err)
	}
	w.failing = dunlin.ErrNotOwner
	_, err = r.PutDomain(ctx, good, 0)
	want(t, "not committed", err, dunlin.ErrNotOwner)
	if _, err := r.Domain(ctx, "", "cold"); !errors.Is(err, dunlin.ErrNotFound) {
		t.Error("what was not committed is there")
	}
}

// A domain whose plugin refuses its configuration is not put; what it runs already is not asked about again, and a host that
// has no time is no refusal.
func TestConfigurationsAreTried(t *testing.T) {
	w, ctx := newWorld(t, nil), t.Context()
	var tried []string
	says := error(nil)
	w.tryConfig = func(_ context.Context, st *dunlin.Stage) error {
		tried = append(tried, st.Plugin+" "+string(st.Config))
		if st.Hash != sha256.Sum256([]byte("module")) && st.Hash != sha256.Sum256([]byte("next")) {
			t.Errorf("%s is tried with hash %s", st.Plugin, st.Hash)
		}
		return says
	}
	must(w.reg.PutPlugin(ctx, "", "p", []byte("module"), 0))
	put := func(owner string, configs ...string) error {
		d := dunlin.Domain{ID: "cold", Owner: owner}
		for _, c := range configs {
			d.Pipeline = append(d.Pipeline, dunlin.PluginUse{Plugin: "p", Config: json.RawMessage(c)})
		}
		_, err := w.reg.PutDomain(ctx, d, dunlin.AnyRevision)
		return err
	}
	refusal := fmt.Errorf("%w: max is no number", dunlin.ErrInvalid)
	for _, c := range []struct {
		what    string
		says    error
		owner   string
		configs []string
		tries   string
	}{
		{"a host that closes", dunlin.ErrUnavailable, "a", []string{`{"max": 1}`}, `p {"max": 1}`},
		{"a refusal", refusal, "a", []string{`{"max": "hot"}`}, `p {"max": "hot"}`},
		{"a good one", nil, "a", []string{`{"max": 1}`}, `p {"max": 1}`},
		{"another owner", refusal, "b", []string{`{ "max":1 }`}, ""},
		{"a second stage", refusal, "b", []string{`{"max":1}`, `{}`}, `p-2 {}`},
		{"another second stage", nil, "b", []string{`{"max":1}`, ``}, `p-2 `},
		{"an empty pipeline", refusal, "b", nil, ""},
	} {
		tried, says = nil, c.says
		err := put(c.owner, c.configs...)
		if got := strings.Join(tried, ", "); got != c.tries {
			t.Errorf("%s: tried %q, want %q", c.what, got, c.tries)
		}
		if c.tries == "" {
			want(t, c.what, err, nil)
			continue
		}
		want(t, c.what, err, c.says)
		if c.says != nil && !strings.Contains(err.Error(), "plugin p") {
			t.Errorf("%s: %v does not name the plugin", c.what, err)
		}
		if c.says != refusal && errors.Is(err, dunlin.ErrInvalid) {
			t.Errorf("%s: %v is told as a refusal", c.what, err)
		}
	}
	says = nil
	must(w.reg.PutPlugin(ctx, "", "p", []byte("next"), dunlin.AnyRevision))
	want(t, "the next version", put("b", `{"max":1}`), nil)
	if d := must(w.reg.Domain(ctx, "", "cold")); len(d.Pipeline) != 1 {
		t.Errorf("pipeline %+v", d.Pipeline)
	}
}

func TestPlugins(t *testing.T) {
	w, ctx := newWorld(t, nil), t.Context()
	r := w.reg
	var module *dunlin.ModuleError
	if _, err := r.PutPlugin(ctx, "", "p", []byte("bad"), 0); !errors.As(err, &module) || module.Check != "parse" {
		t.Errorf("bad module: %v", err)
	}
	_, err := r.PutPlugin(ctx, "", "p q", []byte("x"), 0)
	want(t, "bad name", err, dunlin.ErrInvalid)
	for i := range 14 {
		p := must(r.PutPlugin(ctx, "", "p", fmt.Append(nil, "v", i), uint64(i)))
		if p.Revision != uint64(i+1) || len(p.Previous) != min(i, 10) || !w.runs[p.Hash] || p.Language != "Go" {
			t.Errorf("version %d: %+v", i, p)
		}
	}
	_, err = r.PutPlugin(ctx, "", "p", []byte("v99"), 3)
	want(t, "lost update", err, dunlin.ErrPrecondition)
	if w.blobs[sha256.Sum256([]byte("v99"))] {
		t.Error("what was refused was kept")
	}
	back := must(r.PutPlugin(ctx, "", "p", []byte("v12"), dunlin.AnyRevision)) // a version from before is no previous one
	if slices.Contains(back.Previous, back.Hash) || len(back.Previous) != 10 {
		t.Errorf("previous versions %v", back.Previous)
	}
	must(r.PutDomain(ctx, dunlin.Domain{ID: "cold", Owner: "o", Pipeline: []dunlin.PluginUse{{Plugin: "p", Config: json.RawMessage(`{"a":1}`)}}}, 0))
	rules := r.Rules("default", "cold")
	if len(rules.Stages) != 1 || rules.Stages[0].Hash != back.Hash || string(rules.Stages[0].Config) != `{"a":1}` {
		t.Errorf("stages %+v", rules.Stages)
	}
	next := must(r.PutPlugin(ctx, "", "p", []byte("next"), dunlin.AnyRevision))
	if got := r.Rules("default", "cold").Stages[0].Hash; got != next.Hash || rules.Stages[0].Hash != back.Hash {
		t.Error("the new version is not active, or rules in use have changed")
	}
	if m := r.Modules(); len(m) != 1 || m[0] != next.Hash {
		t.Errorf("modules %v", m)
	}
	want(t, "in use", r.DeletePlugin(ctx, "", "p", dunlin.AnyRevision), dunlin.ErrConflict)
	must(r.PutDomain(ctx, dunlin.Domain{ID: "cold", Owner: "o"}, dunlin.AnyRevision))
	want(t, "delete", r.DeletePlugin(ctx, "", "p", dunlin.AnyRevision), nil)
	want(t, "again", r.DeletePlugin(ctx, "", "p", dunlin.AnyRevision), dunlin.ErrNotFound)
	if all := must(r.Plugins(ctx, "")); len(all) != 0 {
		t.Errorf("plugins %v", all)
	}
}

func TestDevicesAreChecked(t *testing.T) {
	w, ctx := newWorld(t, nil), t.Context()
	must(w.reg.PutDomain(ctx, dunlin.Domain{ID: "odd", Owner: "o"}, 0))
	for what, d := range map[string]dunlin.Device{
		"no domain":        {ID: "a"},
		"unknown domain":   {ID: "a", Domain: "gone"},
		"another tenant's": {Tenant: "other", ID: "a", Domain: "odd"},
		"bad id":           {ID: "a/b", Domain: "odd"},
		"label":            {ID: "a", Domain: "odd", Labels: map[string]string{"": "x"}},
		"long label":       {ID: "a", Domain: "odd", Labels: map[string]string{"x": strings.Repeat("x", 300)}},
	} {
		_, err := w.reg.PutDevice(ctx, d, 0)
		want(t, what, err, dunlin.ErrInvalid)
	}
}

func TestDeviceLists(t *testing.T) {
	w, ctx := newWorld(t, nil), t.Context()
	r := w.reg
	must(r.PutDomain(ctx, dunlin.Domain{ID: "even", Owner: "o"}, 0))
	must(r.PutDomain(ctx, dunlin.Domain{ID: "odd", Owner: "o"}, 0))
	must(r.PutDomain(ctx, dunlin.Domain{Tenant: "other", ID: "odd", Owner: "o"}, 0))
	for i := range 300 {
		must(r.PutDevice(ctx, dunlin.Device{ID: dunlin.DeviceID(fmt.Sprintf("d%03d", i)), Domain: []dunlin.DomainID{"even", "odd"}[i%2]}, 0))
	}
	must(r.PutDevice(ctx, dunlin.Device{ID: "x1", Domain: "odd"}, 0))
	must(r.PutDevice(ctx, dunlin.Device{Tenant: "other", ID: "d5", Domain: "odd"}, 0))
	for _, c := range []struct {
		q     dunlin.DevicesQuery
		count int
		pages int
	}{
		{dunlin.DevicesQuery{}, 301, 4},
		{dunlin.DevicesQuery{Limit: 1000}, 301, 1},
		{dunlin.DevicesQuery{Limit: 301}, 301, 1},
		{dunlin.DevicesQuery{Limit: 7, Prefix: "d1"}, 100, 15},
		{dunlin.DevicesQuery{Domain: "odd", Limit: 50}, 151, 4},
		{dunlin.DevicesQuery{Domain: "odd", Prefix: "d00"}, 5, 1},
		{dunlin.DevicesQuery{Tenant: "other"}, 1, 1},
		{dunlin.DevicesQuery{Tenant: "nobody"}, 0, 1},
	} {
		var got []dunlin.Device
		pages := 0
		for q := c.q; ; {
			page := must(r.Devices(ctx, q))
			got, pages = append(got, page.Devices...), pages+1
			if q.Cursor = page.Next; q.Cursor == "" {
				break
			}
		}
		if len(got) != c.count || pages != c.pages || !slices.IsSortedFunc(got, func(a, b dunlin.Device) int { return cmp.Compare(a.ID, b.ID) }) {
			t.Errorf("%+v: %d devices on %d pages, want %d on %d, in order", c.q, len(got), pages, c.count, c.pages)
		}
	}
	_, err := r.Devices(ctx, dunlin.DevicesQuery{Limit: 2000})
	want(t, "limit", err, dunlin.ErrInvalid)
	_, err = r.Devices(ctx, dunlin.DevicesQuery{Cursor: "a b"})
	want(t, "cursor", err, dunlin.ErrInvalid)

	d := must(r.PutDevice(ctx, dunlin.Device{ID: "d001", Domain: "even", Labels: map[string]string{"room": "3"}}, 1))
	if d.Revision != 2 || d.CreatedAt == 0 || d.CreatedAt == d.UpdatedAt {
		t.Errorf("moved %+v", d)
	}
	got := must(r.Device(ctx, dunlin.DeviceKey{Device: "d001"}))
	if got.Labels["room"] != "3" || got.Domain != "even" {
		t.Errorf("read back %+v", got)
	}
	want(t, "old revision", r.DeleteDevice(ctx, dunlin.DeviceKey{Device: "d001"}, 1), dunlin.ErrPrecondition)
	want(t, "delete", r.DeleteDevice(ctx, dunlin.DeviceKey{Device: "d001"}, 2), nil)
	want(t, "again", r.DeleteDevice(ctx, dunlin.DeviceKey{Device: "d001"}, dunlin.AnyRevision), dunlin.ErrNotFound)
}

// What was committed is there after a restart, and a row of another version harms nobody.
func TestLoad(t *testing.T) {
	w, ctx := newWorld(t, nil), t.Context()
	must(w.reg.PutPlugin(ctx, "", "p", []byte("module"), 0))
	must(w.reg.PutDomain(ctx, dunlin.Domain{ID: "cold", Owner: "o", Pipeline: []dunlin.PluginUse{{Plugin: "p"}}}, 0))
	token := must(w.reg.PutCredential(ctx, dunlin.Credential{Kind: dunlin.CredentialOperator, ID: "admin"}, ""))
	w.rows[0]["domains/strange"] = dunlin.Put{Table: dunlin.TableDomains, Key: "strange", Value: []byte("{}")}
	w.rows[0]["domains/default/odd"] = dunlin.Put{Table: dunlin.TableDomains, Key: "default/odd", Value: []byte("{")}
	w.open(t, nil)
	if rules := w.reg.Rules("default", "cold"); rules == nil || len(rules.Stages) != 1 {
		t.Errorf("rules after a restart: %+v", rules)
	}
	if p, err := w.reg.Authenticate(ctx, dunlin.LoginAttempt{Secret: []byte(token)}); err != nil || p.Kind != dunlin.PrincipalOperator {
		t.Errorf("login after a restart: %+v, %v", p, err)
	}
	fresh, err := New(Config{Shards: shards, ShardOf: shardOf}, Deps{Rows: w})
	if err != nil {
		t.Fatal(err)
	}
	_, err = fresh.PutDomain(ctx, dunlin.Domain{ID: "x", Owner: "o"}, 0)
	want(t, "before Attach", err, dunlin.ErrUnavailable)
}
