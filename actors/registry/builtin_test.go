package registry

import (
	"testing"

	"github.com/dunlin-iot/dunlin"
)

// TestWhatComesWithTheBinary: a new binary brings a new version, an old one takes none back, and what somebody uploaded stays.
func TestWhatComesWithTheBinary(t *testing.T) {
	w, ctx := newWorld(t, nil), t.Context()
	offer := func(module, version string) *dunlin.Plugin {
		t.Helper()
		if err := w.reg.Offer(ctx, "alarms", []byte(module), dunlin.PluginVersion{Version: version, Language: "Go"}); err != nil {
			t.Fatal(err)
		}
		return must(w.reg.Plugin(ctx, "", "alarms"))
	}
	p := offer("one", "1.0.0")
	if v := p.Versions[0]; p.Hash != v.Hash || v.Source != "built in" || v.By != "dunlin" || v.Version != "1.0.0" || p.Activations[0].By != "dunlin" {
		t.Fatalf("brought as %+v", p)
	}
	one := p.Hash
	if !w.reg.Idle(one) || len(w.reg.BuiltIn()) != 0 {
		t.Error("nobody runs it, and it is to be compiled")
	}
	must(w.reg.PutDomain(ctx, dunlin.Domain{ID: "cold", Owner: "o", Pipeline: []dunlin.PluginUse{{Plugin: "alarms"}}}, 0))
	if got := w.reg.BuiltIn(); w.reg.Idle(one) || len(got) != 1 || got[0] != one {
		t.Errorf("a domain runs it: idle %v, %v", w.reg.Idle(one), got)
	}
	if p = offer("one", "1.0.0"); p.Revision != 1 {
		t.Errorf("the same again: revision %d", p.Revision)
	}
	if p = offer("two", "1.1.0"); p.Hash == one || len(p.Versions) != 2 || p.Previous[0] != one {
		t.Errorf("a newer one: %+v", p)
	}
	two := p.Hash
	if p = offer("another build", "1.1.0"); p.Hash != two || p.Revision != 2 {
		t.Errorf("another build of the same version: %+v", p)
	}
	if p = offer("one", "1.0.0"); p.Hash != two {
		t.Error("an old binary took the version back")
	}
	must(w.reg.SetTrial(ctx, "", "alarms", &dunlin.Trial{Hash: one, Kind: dunlin.TrialShadow}, "", dunlin.AnyRevision))
	if p = offer("three", "1.2.0"); p.Trial == nil || p.Hash != two {
		t.Error("it ended somebody's trial")
	}
	must(w.reg.SetTrial(ctx, "", "alarms", nil, "", dunlin.AnyRevision))
	must(w.reg.BringVersion(ctx, "", dunlin.PluginSettings{Name: "alarms", Source: "built in", By: "eve", IfRevision: dunlin.AnyRevision}, []byte("mine")))
	if p = offer("three", "1.2.0"); p.Hash != two || len(p.Versions) != 3 {
		t.Error("it replaced what somebody uploaded")
	}
	must(w.reg.BringVersion(ctx, "", dunlin.PluginSettings{Name: "p", Activate: true, By: "eve", IfRevision: dunlin.AnyRevision}, []byte("four")))
	if four := must(w.reg.Plugin(ctx, "", "p")).Hash; w.reg.Idle(four) {
		t.Error("an uploaded module is not to be compiled")
	}
}
