package registry

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"strings"
	"testing"

	"aead.dev/minisign"

	"github.com/dunlin-iot/dunlin"
)

// bring makes a module a version of plugin p.
func (w *world) bring(t *testing.T, module string, active bool, more ...func(*dunlin.PluginSettings)) *dunlin.Plugin {
	t.Helper()
	set := dunlin.PluginSettings{Name: "p", Activate: active, Source: "upload", By: "eve", IfRevision: dunlin.AnyRevision}
	for _, f := range more {
		f(&set)
	}
	p, err := w.reg.BringVersion(t.Context(), "", set, []byte(module))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// TestAVersionIsBanned: what keeps failing is replaced by what ran before, once, and not chosen again by itself.
func TestAVersionIsBanned(t *testing.T) {
	w, ctx := newWorld(t, nil), t.Context()
	one, two, three := w.bring(t, "one", true).Hash, w.bring(t, "two", true).Hash, w.bring(t, "three", true).Hash
	p := must(w.reg.Ban(ctx, "", "p", three, "traps on 12 devices"))
	if p.Hash != two || p.Activations[0].By != "dunlin" || !strings.Contains(p.Activations[0].Reason, "traps on 12 devices") || p.Activations[0].From != three {
		t.Errorf("after the ban of three: %s, %+v", p.Hash, p.Activations[0])
	}
	_, err := w.reg.Ban(ctx, "", "p", three, "traps on 12 devices")
	want(t, "another node says the same", err, dunlin.ErrConflict)
	if p = must(w.reg.Ban(ctx, "", "p", two, "too")); p.Hash != one {
		t.Errorf("after the ban of two runs %s", p.Hash)
	}
	if p = must(w.reg.Ban(ctx, "", "p", one, "all are bad")); p.Hash != one {
		t.Errorf("with nothing to take over runs %s", p.Hash)
	}
	p = must(w.reg.Activate(ctx, "", "p", dunlin.Activation{Hash: three, By: "eve", Reason: "mended its input"}, dunlin.AnyRevision))
	if p.Hash != three || versionOf(p, three).Banned != "" || versionOf(p, two).Banned == "" {
		t.Errorf("somebody wants it again: %s, banned %q", p.Hash, versionOf(p, three).Banned)
	}
	_, err = w.reg.Activate(ctx, "", "p", dunlin.Activation{Hash: dunlin.ModuleHash{9}}, dunlin.AnyRevision)
	want(t, "an unknown version", err, dunlin.ErrNotFound)
	_, err = w.reg.Ban(ctx, "", "q", three, "")
	want(t, "an unknown plugin", err, dunlin.ErrNotFound)
}

// TestTrials: a candidate runs beside the active version until it is promoted, or taken back with a reason.
func TestTrials(t *testing.T) {
	w, ctx := newWorld(t, nil), t.Context()
	one := w.bring(t, "one", true).Hash
	p := w.bring(t, "two", false)
	two := p.Versions[0].Hash
	if p.Hash != one || len(p.Versions) != 2 || p.Versions[0].By != "eve" {
		t.Fatalf("brought, not activated: %+v", p)
	}
	must(w.reg.PutDomain(ctx, dunlin.Domain{ID: "cold", Owner: "o", Pipeline: []dunlin.PluginUse{{Plugin: "p"}}}, 0))
	for what, bad := range map[string]dunlin.Trial{"kind": {Hash: two, Kind: "x"}, "nobody": {Hash: two, Kind: dunlin.TrialCanary},
		"share": {Hash: two, Kind: dunlin.TrialShadow, Share: 101}} {
		_, err := w.reg.SetTrial(ctx, "", "p", &bad, "", dunlin.AnyRevision)
		want(t, what, err, dunlin.ErrInvalid)
	}
	_, err := w.reg.SetTrial(ctx, "", "p", &dunlin.Trial{Hash: one, Kind: dunlin.TrialShadow}, "", dunlin.AnyRevision)
	want(t, "the active one", err, dunlin.ErrConflict)
	p = must(w.reg.SetTrial(ctx, "", "p", &dunlin.Trial{Hash: two, Kind: dunlin.TrialCanary, Share: 5}, "", dunlin.AnyRevision))
	if st := w.reg.Rules("default", "cold").Stages[0]; st.Trial == nil || st.Trial.Hash != two || st.Trial.ID != p.Trial.ID || p.Trial.ID == "" || st.Trial.Made == st.Made {
		t.Errorf("stage %+v", st.Trial)
	}
	if m := w.reg.Modules(); len(m) != 2 {
		t.Errorf("modules to be ready: %v", m)
	}
	if p = must(w.reg.SetTrial(ctx, "", "p", nil, "error rate 2 %", dunlin.AnyRevision)); p.Trial != nil || p.Hash != one || p.Activations[0].Reason != "error rate 2 %" {
		t.Errorf("taken back: %+v", p.Activations[0])
	}
	must(w.reg.SetTrial(ctx, "", "p", &dunlin.Trial{Hash: two, Kind: dunlin.TrialShadow}, "", dunlin.AnyRevision))
	if p = must(w.reg.Ban(ctx, "", "p", two, "traps")); p.Trial != nil || p.Hash != one {
		t.Errorf("banned candidate: %+v", p)
	}
	must(w.reg.SetTrial(ctx, "", "p", &dunlin.Trial{Hash: two, Kind: dunlin.TrialShadow}, "", dunlin.AnyRevision))
	if p = must(w.reg.Activate(ctx, "", "p", dunlin.Activation{Hash: two, Reason: "promoted"}, dunlin.AnyRevision)); p.Trial != nil || p.Hash != two {
		t.Errorf("promoted: %+v", p)
	}
}

// TestSignatures: a domain that names signers runs nothing else, however it is asked to.
func TestSignatures(t *testing.T) {
	w, ctx := newWorld(t, nil), t.Context()
	key, private, err := minisign.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	_, stranger, _ := minisign.GenerateKey(rand.Reader)
	sign := func(k minisign.PrivateKey, module string) func(*dunlin.PluginSettings) {
		return func(s *dunlin.PluginSettings) {
			s.Signature = string(minisign.SignWithComments(k, []byte(module), "built on Monday", "x"))
		}
	}
	w.bring(t, "unsigned", true)
	d := dunlin.Domain{ID: "cold", Owner: "o", Signers: []string{key.String()}, Pipeline: []dunlin.PluginUse{{Plugin: "p"}}}
	_, err = w.reg.PutDomain(ctx, d, 0)
	want(t, "an unsigned plugin", err, dunlin.ErrForbidden)
	must(w.reg.PutDomain(ctx, dunlin.Domain{ID: "other", Owner: "o", Signers: d.Signers}, 0)) // so that the key is known
	p := w.bring(t, "signed", true, sign(private, "signed"))
	if s := p.Versions[0].Signatures; len(s) != 1 || s[0].Key != key.String() || s[0].Comment != "built on Monday" {
		t.Errorf("signatures %+v", s)
	}
	must(w.reg.PutDomain(ctx, d, 0))
	for what, c := range map[string]struct {
		module string
		change func(*dunlin.PluginSettings)
		want   error
	}{
		"not signed":             {"next", func(*dunlin.PluginSettings) {}, dunlin.ErrForbidden},
		"signed by a stranger":   {"next", sign(stranger, "next"), dunlin.ErrInvalid},
		"another module's":       {"next", sign(private, "nexT"), dunlin.ErrInvalid},
		"no signature":           {"next", func(s *dunlin.PluginSettings) { s.Signature = "hello" }, dunlin.ErrInvalid},
		"a long one":             {"next", func(s *dunlin.PluginSettings) { s.Signature = strings.Repeat("x", 10_000) }, dunlin.ErrInvalid},
		"another's key is given": {"next", func(s *dunlin.PluginSettings) { sign(stranger, "next")(s); s.Key = key.String() }, dunlin.ErrInvalid},
	} {
		set := dunlin.PluginSettings{Name: "p", Activate: true, IfRevision: dunlin.AnyRevision}
		c.change(&set)
		_, err := w.reg.BringVersion(ctx, "", set, []byte(c.module))
		want(t, what, err, c.want)
	}
	other := w.bring(t, "idle", false) // may lie there, but not run
	_, err = w.reg.Activate(ctx, "", "p", dunlin.Activation{Hash: other.Versions[0].Hash}, dunlin.AnyRevision)
	want(t, "activate what is not signed", err, dunlin.ErrForbidden)
	_, err = w.reg.SetTrial(ctx, "", "p", &dunlin.Trial{Hash: other.Versions[0].Hash, Kind: dunlin.TrialCanary, Share: 1}, "", dunlin.AnyRevision)
	want(t, "a canary of what is not signed", err, dunlin.ErrForbidden)
	signed := w.bring(t, "idle", false, sign(private, "idle"))
	if len(signed.Versions) != 3 {
		t.Errorf("%d versions; a signature of one that is there adds none", len(signed.Versions))
	}
	must(w.reg.Activate(ctx, "", "p", dunlin.Activation{Hash: other.Versions[0].Hash}, dunlin.AnyRevision))
}

// TestStatesAreTriedOnCopies: a version that can't take over the states of devices that are there is not activated.
func TestStatesAreTriedOnCopies(t *testing.T) {
	w, ctx := newWorld(t, nil), t.Context()
	one := w.bring(t, "one", true)
	must(w.reg.PutDomain(ctx, dunlin.Domain{ID: "cold", Owner: "o", Pipeline: []dunlin.PluginUse{{Plugin: "p", Config: json.RawMessage(`{}`)}}}, 0))
	must(w.reg.PutDevice(ctx, dunlin.Device{ID: "d1", Domain: "cold"}, 0))
	state := []byte{1, 2, 3}
	made := w.reg.Rules("default", "cold").Stages[0].Made
	w.reg.deps.TryConfig = func(context.Context, *dunlin.Stage) error { return nil }
	w.reg.deps.States = states{state, made}
	var tried []*dunlin.Work
	w.reg.deps.TryStates = func(_ context.Context, st *dunlin.Stage, works []*dunlin.Work) error {
		tried = works
		works[0].State[0] = 9
		return fmt.Errorf("%w: state of three bytes", dunlin.ErrInvalid)
	}
	set := dunlin.PluginSettings{Name: "p", Activate: true, IfRevision: dunlin.AnyRevision}
	_, err := w.reg.BringVersion(ctx, "", set, []byte("two"))
	want(t, "a version that refuses the states", err, dunlin.ErrInvalid)
	if len(tried) != 1 || tried[0].Made != made || state[0] != 1 {
		t.Errorf("tried %+v; the state is now %v", tried, state)
	}
	if p := must(w.reg.Plugin(ctx, "", "p")); p.Hash != one.Hash || len(p.Versions) != 1 {
		t.Errorf("what was refused is there: %+v", p)
	}
	tried = nil
	w.bring(t, "one", true) // its own states need no trial
	if tried != nil {
		t.Error("a version was tried with its own states")
	}
}

type states struct {
	state []byte
	made  dunlin.Made
}

func (s states) LoadDevice(_ dunlin.ShardID, key dunlin.DeviceKey) (*dunlin.DeviceState, bool, error) {
	return &dunlin.DeviceState{DeviceKey: key, Plugins: []dunlin.StageState{{Stage: 0, State: s.state, Made: s.made}}}, true, nil
}

// TestPipelinesAreChecked: stages have names of their own, and see only what runs before them.
func TestPipelinesAreChecked(t *testing.T) {
	use := func(name string, sees ...string) dunlin.PluginUse {
		return dunlin.PluginUse{Name: name, Plugin: "p", Sees: sees}
	}
	rules := dunlin.PluginUse{Rules: json.RawMessage(`[]`)}
	for _, c := range []struct {
		what     string
		pipeline []dunlin.PluginUse
		err      string
	}{
		{"one after the other", []dunlin.PluginUse{use("a"), use("b", "a"), use("c", "a", "b"), rules}, ""},
		{"a cycle of two", []dunlin.PluginUse{use("a", "b"), use("b", "a")}, "cycle"},
		{"itself", []dunlin.PluginUse{use("a", "a")}, "cycle"},
		{"unknown", []dunlin.PluginUse{use("a"), use("b", "x")}, "does not have"},
		{"twice the name", []dunlin.PluginUse{use("a"), use("a")}, "another name"},
		{"twice the plugin", []dunlin.PluginUse{use(""), use("")}, ""},
		{"both", []dunlin.PluginUse{{Plugin: "p", Rules: json.RawMessage(`[]`)}}, "two stages"},
		{"neither", []dunlin.PluginUse{{}}, "plugin name"},
	} {
		err := checkPipeline(c.pipeline)
		if c.err == "" && err != nil || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s: %v, want %q", c.what, err, c.err)
		}
	}
	names := stageNames([]dunlin.PluginUse{use(""), use(""), rules, use("x", "p-2"), rules})
	if got := strings.Join(names, " "); got != "p p-2 rules x rules-2" {
		t.Errorf("names %s", got)
	}
}
