package router

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// TestChangesTravel: a change is made where its shard is owned, and whoever asked for it sees it where it asked.
func TestChangesTravel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newRealm(t, 3)
		k := devIn(1, 0) // node 2's
		d, err := m.nodes[1].router.PutDevice(t.Context(), dunlin.Device{ID: k.Device, Domain: "plain", Labels: map[string]string{"a": "b"}}, 0)
		if err != nil || d.Revision != 1 || d.Tenant != "default" || d.Labels["a"] != "b" || !slices.Equal(m.took(), []string{"1>2 reg/PutDevice"}) {
			t.Errorf("put: %+v, %v", d, err)
		}
		if m.nodes[2].reads == 0 || m.nodes[1].reads == 0 {
			t.Error("the owner doesn't look for the newest domains, or the asker doesn't wait until it sees the change")
		}
		if _, err := m.nodes[1].router.PutDevice(t.Context(), *d, 5); !errors.Is(err, dunlin.ErrPrecondition) || errors.Is(err, dunlin.ErrUnavailable) {
			t.Errorf("a wrong revision: %v", err)
		}
		if _, err := m.nodes[2].router.PutDevice(t.Context(), *d, 1); err != nil || len(m.took()) != 1 {
			t.Errorf("at the owner: %v", err)
		}
		m.nodes[2].notYet = 3 // it has been elected and has not begun
		if _, err := m.nodes[1].router.PutDevice(t.Context(), *d, 2); err != nil || m.devices[k].Revision != 3 {
			t.Errorf("an owner that has not begun: %v", err)
		}
		m.nodes[2].notYet = 1000
		began := time.Now()
		if _, err := m.nodes[1].router.PutDevice(t.Context(), *d, 3); !errors.Is(err, dunlin.ErrUnavailable) || time.Since(began) > 1500*time.Millisecond {
			t.Errorf("an owner that never begins: %v after %v", err, time.Since(began))
		}
		m.nodes[2].notYet = 0
		m.took()
		m.replyErr = fmt.Errorf("%w: the connection broke", dunlin.ErrUnavailable)
		if _, err := m.nodes[1].router.PutDevice(t.Context(), *d, 3); !errors.Is(err, dunlin.ErrUnavailable) || len(m.took()) != 1 || m.devices[k].Revision != 4 {
			t.Errorf("a lost answer: %v, revision %d: it must not be made twice", err, m.devices[k].Revision)
		}
		m.replyErr = nil
		r := m.nodes[3].router // the meta shard is node 1's
		m.took()
		m.nodes[2].reads = 0
		if _, err := r.PutDomain(t.Context(), dunlin.Domain{ID: "x", Owner: "o", SkewMax: dunlin.Duration(time.Hour)}, dunlin.AnyRevision); err != nil || m.domains["x"].SkewMax != dunlin.Duration(time.Hour) {
			t.Errorf("a domain: %v", err)
		}
		if !slices.Equal(m.took(), []string{"3>1 reg/PutDomain", "3>2 seen"}) || m.nodes[2].reads == 0 {
			t.Error("node 2 is not waited for, which may get what devices send to the domain")
		}
		m.silent[2] = true
		began = time.Now()
		if _, err := m.nodes[1].router.PutDomain(t.Context(), dunlin.Domain{ID: "y", Owner: "o"}, dunlin.AnyRevision); err != nil || time.Since(began) > othersMax {
			t.Errorf("a domain, while a node does not answer: %v after %v", err, time.Since(began))
		}
		m.silent[2] = false
		if s, err := r.PutCredential(t.Context(), dunlin.Credential{Kind: "device", ID: "d"}, "secret"); s != "devicedsecret" || err != nil {
			t.Errorf("a credential: %q, %v", s, err)
		}
		for _, err := range []error{r.DeleteDevice(t.Context(), k, 1), r.DeleteDomain(t.Context(), "", "x", 1), r.DeleteCredential(t.Context(), "", "device", "d")} {
			if err != nil {
				t.Error(err)
			}
		}
		if err := r.DeletePlugin(t.Context(), "", "p", 1); !errors.Is(err, dunlin.ErrConflict) || err.Error() != "conflict: the pipeline of domain x names it" {
			t.Errorf("an error comes as it was: %v", err)
		}
		m.owner[0] = 0
		if _, err := r.PutDomain(t.Context(), dunlin.Domain{ID: "x"}, 0); !errors.Is(err, dunlin.ErrUnavailable) {
			t.Errorf("nobody owns the registry: %v", err)
		}
	})
}

// blobs are a node's modules.
type blobs struct {
	sync.Mutex
	of   map[dunlin.ModuleHash][]byte
	fail error
}

func (b *blobs) Put(data []byte) (dunlin.ModuleHash, error) {
	b.Lock()
	defer b.Unlock()
	h := dunlin.ModuleHash(sha256.Sum256(data))
	if b.of == nil {
		b.of = map[dunlin.ModuleHash][]byte{}
	}
	if b.fail == nil {
		b.of[h] = bytes.Clone(data)
	}
	return h, b.fail
}

func (b *blobs) Get(h dunlin.ModuleHash) ([]byte, error) {
	b.Lock()
	defer b.Unlock()
	if data, ok := b.of[h]; ok {
		return data, nil
	}
	return nil, fmt.Errorf("blob %s: %w", h, dunlin.ErrNotFound)
}

func (b *blobs) Has(h dunlin.ModuleHash) bool { _, err := b.Get(h); return err == nil }

// library is a realm whose nodes have modules.
func library(t *testing.T, nodes int) (m *realm, of map[dunlin.NodeID]*blobs, ready map[dunlin.NodeID]*[]dunlin.ModuleHash, end func()) {
	m = newRealm(t, nodes)
	of, ready = map[dunlin.NodeID]*blobs{}, map[dunlin.NodeID]*[]dunlin.ModuleHash{}
	ctx, stop := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for id, r := range m.nodes {
		of[id], ready[id] = &blobs{}, &[]dunlin.ModuleHash{}
		list := ready[id]
		mods, err := NewModules(ModulesConfig{Self: id}, ModulesDeps{Blobs: of[id], Owners: r, Caller: r,
			Install: func(_ context.Context, h dunlin.ModuleHash, _ []byte) error { *list = append(*list, h); return nil }})
		if err != nil {
			t.Fatal(err)
		}
		r.router.deps.Modules = mods
		all.Go(func() { _ = mods.Run(ctx) })
	}
	return m, of, ready, func() { stop(); all.Wait() }
}

// TestPluginTravels: a module is uploaded at one node, checked at the owner of the registry, kept by a majority before its row
// is, and fetched by every other node as soon as that sees the row.
func TestPluginTravels(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, of, ready, end := library(t, 5)
		defer end()
		module := bytes.Repeat([]byte("module"), 1_000_000) // three pieces
		hash := dunlin.ModuleHash(sha256.Sum256(module))
		p, err := m.nodes[4].router.PutPlugin(t.Context(), "", "p", module, 0)
		if err != nil || p.Bytes != int64(len(module)) {
			t.Fatalf("%+v, %v", p, err)
		}
		if _, err := m.nodes[4].router.PutPlugin(t.Context(), "", "bad", module, 0); !errors.Is(err, dunlin.ErrInvalid) {
			t.Errorf("a bad module: %v", err)
		} else if e, ok := errors.AsType[*dunlin.ModuleError](err); !ok || e.Check != "imports" || e.Detail != "it imports what it must not" {
			t.Errorf("a bad module: %#v", err)
		}
		m.took()
		m.silence(true, 3) // voters of the registry are 1, 2 and 3
		if h, err := m.nodes[1].router.deps.Modules.Keep(module); err != nil || h != hash || !of[1].Has(hash) || !of[2].Has(hash) || of[3].Has(hash) {
			t.Errorf("kept by a majority: %v", err)
		}
		m.silence(true, 2)
		other := []byte("another module")
		if _, err := m.nodes[1].router.deps.Modules.Keep(other); !errors.Is(err, dunlin.ErrUnavailable) {
			t.Errorf("kept by one of three: %v", err)
		}
		m.silence(false, 2, 3)
		row := fmt.Appendf(nil, `{"name":"p","hash":"%s"}`, hash)
		for _, r := range m.nodes {
			r.router.deps.Modules.OnApplied(dunlin.MetaShard, 7, &dunlin.Entry{Puts: []dunlin.Put{{Table: dunlin.TablePlugins, Key: "default/p", Value: row}}})
		}
		synctest.Wait()
		for id := range m.nodes {
			if got, err := of[id].Get(hash); err != nil || !bytes.Equal(got, module) || !slices.Equal(*ready[id], []dunlin.ModuleHash{hash}) {
				t.Errorf("node %d: %d bytes, %v, ready %v", id, len(got), err, *ready[id])
			}
		}
		m.took()
		_, _ = of[2].Put(other)
		for range 2 {
			if got, err := m.nodes[5].router.deps.Modules.Get(dunlin.ModuleHash(sha256.Sum256(other))); string(got) != string(other) || err != nil {
				t.Errorf("fetched when it is needed: %q, %v", got, err)
			}
		}
		if n := len(m.took()); n > 4 {
			t.Errorf("%d calls for one module", n)
		}
		if _, err := m.nodes[5].router.deps.Modules.Get(dunlin.ModuleHash{1}); !errors.Is(err, dunlin.ErrNotFound) {
			t.Errorf("one that nobody has: %v", err)
		}
	})
}

// TestWantedLater: what cannot be fetched now is fetched later.
func TestWantedLater(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m, of, _, end := library(t, 3)
		defer end()
		hash := dunlin.ModuleHash(sha256.Sum256([]byte("m")))
		m.nodes[3].router.deps.Modules.Want(hash)
		after(3 * time.Second)
		if of[3].Has(hash) {
			t.Fatal("it is there")
		}
		_, _ = of[1].Put([]byte("m"))
		after(time.Minute)
		if !of[3].Has(hash) {
			t.Error("it never came")
		}
	})
}

// TestHostileModules: what a peer says is checked.
func TestHostileModules(t *testing.T) {
	m, _, _, end := library(t, 2)
	defer end()
	mods := m.nodes[1].router.deps.Modules
	hash := dunlin.ModuleHash(sha256.Sum256([]byte("m")))
	for _, reply := range []string{"", "abc", "\x00\x00\x00\x05", "\xff\xff\xff\xffxxxx", "\x00\x00\x00\x01xx", "\x00\x00\x00\x01x"} {
		mods.deps.Caller = callFunc(func(string) ([]byte, error) { return []byte(reply), nil })
		if _, err := mods.fetch(t.Context(), 2, hash); !errors.Is(err, dunlin.ErrInvalid) {
			t.Errorf("%q is taken: %v", reply, err)
		}
	}
	for _, call := range []struct{ method, body string }{{methodGet, "short"}, {methodHave, string(hash[:]) + "x"}, {"mod/else", string(hash[:])},
		{methodGet, string(hash[:]) + "\xff\xff\xff\xff"}} {
		if _, err := m.nodes[1].router.Serve(t.Context(), 2, call.method, []byte(call.body)); err == nil {
			t.Errorf("%s %q is answered", call.method, call.body)
		}
	}
}

type callFunc func(method string) ([]byte, error)

func (f callFunc) Call(_ context.Context, _ dunlin.NodeID, method string, _ []byte) ([]byte, error) {
	return f(method)
}
func (f callFunc) Go(dunlin.NodeID, string, []byte, func([]byte, error)) {}

func FuzzServe(f *testing.F) {
	for _, method := range []string{methodUplinks, methodTwin, methodReadings, methodAlerts, methodLetters, methodDevices, methodDevice, "reg/PutDevice", "reg/PutDomain", methodGet} {
		f.Add(method, []byte(`{"v":1,"tenant":"default","device":"d1","shards":[1,9]}`))
	}
	m := newRealm(f, 1)
	f.Fuzz(func(t *testing.T, method string, body []byte) {
		_, _ = m.nodes[1].router.Serve(t.Context(), 2, method, body)
	})
}
