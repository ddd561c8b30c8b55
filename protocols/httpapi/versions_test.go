package httpapi

import (
	"encoding/base64"
	"strings"
	"testing"
)

// TestVersionsOfAPlugin is the way of a module over HTTP: brought, tried, promoted, rolled back, downloaded.
func TestVersionsOfAPlugin(t *testing.T) {
	b := newBed(t)
	wasm := "Content-Type: application/wasm"
	first := parse[pluginView](t, b.want(b.do("PUT", "/v1/plugins/p?reason=first", "\x00asm-1", wasm), 201))
	sig := base64.StdEncoding.EncodeToString([]byte("a signature"))
	p := parse[pluginView](t, b.want(b.do("PUT", "/v1/plugins/p?activate=false&source=oci://r/p", "\x00asm-2", wasm, "Dunlin-Signature: "+sig, "Dunlin-Key: RWQ"), 200))
	if p.Hash != first.Hash || len(p.Versions) != 2 || p.Versions[0].Active || p.Versions[0].Source != "oci://r/p" || p.Versions[0].Signatures[0].Key != "RWQ" {
		t.Errorf("brought: %+v", p)
	}
	candidate := p.Versions[0].Hash
	b.want(b.do("GET", "/v1/plugins/p/trial", ""), 404)
	p = parse[pluginView](t, b.want(b.do("PUT", "/v1/plugins/p/trial", `{"hash":"1.1.0","kind":"canary","share":5}`), 200))
	if p.Trial == nil || p.Trial.Hash != candidate || p.Trial.Share != 5 {
		t.Errorf("trial %+v", p.Trial)
	}
	if c := parse[runningTrialView](t, b.want(b.do("GET", "/v1/plugins/p/trial", ""), 200)); c.Counts.Candidate.Inputs != 5 || c.Missing != 1 || c.Trial.ID != "T1" {
		t.Errorf("counts %+v", c)
	}
	b.want(b.do("DELETE", "/v1/plugins/p/trial?reason=enough", ""), 204)
	b.want(b.do("DELETE", "/v1/plugins/p/trial", ""), 404)
	p = parse[pluginView](t, b.want(b.do("POST", "/v1/plugins/p/activate", `{"version":"`+candidate[:8]+`","reason":"better"}`), 200))
	if p.Hash != candidate || p.Activations[0].Reason != "better" || p.Activations[0].From != first.Hash {
		t.Errorf("activated: %+v", p)
	}
	if p = parse[pluginView](t, b.want(b.do("POST", "/v1/plugins/p/rollback", ""), 200)); p.Hash != first.Hash || p.Activations[0].Reason != "rolled back" {
		t.Errorf("rolled back: %+v", p)
	}
	w := b.do("GET", "/v1/plugins/p/modules/1.0.0", "")
	if got := b.want(w, 200); !strings.HasPrefix(got, "\x00asm") || w.Header().Get("Content-Type") != "application/wasm" {
		t.Errorf("module %q of %s", got, w.Header().Get("Content-Type"))
	}
	for what, body := range map[string]string{"unknown": `{"version":"9.9.9"}`, "too short": `{"version":"` + candidate[:4] + `"}`} {
		if pr := parse[Problem](t, b.want(b.do("POST", "/v1/plugins/p/activate", body), 404)); !strings.Contains(pr.Detail, "has no version") {
			t.Errorf("%s: %+v", what, pr)
		}
	}
	b.want(b.do("PUT", "/v1/plugins/p", "\x00asm-3", wasm, "Dunlin-Signature: ???"), 422)
	b.want(b.do("PUT", "/v1/plugins/p/trial", `{"hash":"1.1.0","kind":"x"}`), 422)
	b.want(b.do("POST", "/v1/plugins/q/activate", `{"version":"1.0.0"}`), 404)
}
