package plugins

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins/abi"
)

var emptyModule = []byte("\x00asm\x01\x00\x00\x00")

func TestManifest(t *testing.T) {
	whole := `{"name":"cold-chain","version":"1.4.0-rc.1+b7","description":"fridges","license":"Apache-2.0",
		"source":"https://git.example/cold-chain","capabilities":["command","levitate"],"reads":["temp","door"],
		"emits":["temp/mean"],"config":{"type":"object"},"Name":"other","younger":[1,{"x":null}]}`
	for _, c := range []struct{ manifest, want string }{
		{whole, ""},
		{`{}`, ""},
		{`{"name":null,"config":null,"reads":null}`, ""},
		{`null`, "is null"},
		{`[]`, "not a JSON object"},
		{``, "not a JSON object"},
		{`{} {}`, "not a JSON object"},
		{"{\"name\":\"\xff\"}", "not UTF-8"},
		{`{"name":"a b"}`, "the manifest's name"},
		{`{"name":7}`, "name must be a text"},
		{`{"version":"1.4"}`, "not a semantic version"},
		{`{"version":"v1.4.0"}`, "not a semantic version"},
		{`{"version":"1.4.0` + strings.Repeat("0", 200) + `"}`, "not a semantic version"},
		{`{"source":"javascript:alert(1)"}`, "not a URL"},
		{`{"source":"git+https://git.example/x"}`, ""},
		{`{"source":"/etc/passwd"}`, "not a URL"},
		{`{"description":"` + strings.Repeat("x", manifestTextMax+1) + `"}`, "description has 4097 bytes"},
		{`{"capabilities":"command"}`, "capabilities must be a list"},
		{`{"capabilities":["no name"]}`, "is no name"},
		{`{"capabilities":["a"` + strings.Repeat(`,"a"`, capabilitiesMax) + `]}`, "17 capabilities"},
		{`{"reads":["-"]}`, "manifest's reads"},
		{`{"emits":["a"` + strings.Repeat(`,"a"`, manifestMetricsMax) + `]}`, "257 metrics"},
		{`{"config":true}`, "config must be a JSON schema"},
		{`{"x":"` + strings.Repeat("x", abi.ManifestBytesMax) + `"}`, "at most 65536"},
	} {
		_, err := ParseManifest([]byte(c.manifest))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || !errors.Is(err, dunlin.ErrInvalid)) {
			t.Errorf("%.60s: %v, want %q", c.manifest, err, c.want)
		}
	}
	wasm, err := WithManifest(emptyModule, json.RawMessage(whole))
	if err != nil {
		t.Fatal(err)
	}
	m, raw, err := ReadManifest(wasm)
	if err != nil || string(raw) != whole {
		t.Fatal(err, string(raw))
	}
	want := Manifest{Name: "cold-chain", Version: "1.4.0-rc.1+b7", Description: "fridges", License: "Apache-2.0",
		Source: "https://git.example/cold-chain", Capabilities: []string{"command", "levitate"}, Reads: []string{"temp", "door"},
		Emits: []string{"temp/mean"}, Config: json.RawMessage(`{"type":"object"}`)}
	if fmt.Sprintf("%+v", *m) != fmt.Sprintf("%+v", want) || m.grants() != (grants{command: true}) {
		t.Errorf("got  %+v\nwant %+v", *m, want)
	}
}

// A manifest is put in place of the one before, and nothing else of the module moves.
func TestManifestIsReplaced(t *testing.T) {
	custom := func(name, body string) []byte {
		b := append([]byte{byte(len(name))}, name+body...)
		return append([]byte{0, byte(len(b))}, b...)
	}
	a, b := custom("producers", "x"), custom("name", "y")
	module := slices.Concat(emptyModule, a, custom(abi.ManifestSection, `{"name":"old"}`), b)
	out, err := WithManifest(module, json.RawMessage(`{"name":"new"}`))
	if err != nil {
		t.Fatal(err)
	}
	if want := slices.Concat(emptyModule, a, b, custom(abi.ManifestSection, `{"name":"new"}`)); !bytes.Equal(out, want) {
		t.Errorf("got  %q\nwant %q", out, want)
	}
	if out, err = WithManifest(out, nil); err != nil || !bytes.Equal(out, slices.Concat(emptyModule, a, b)) {
		t.Errorf("without: %q, %v", out, err)
	}
	for want, bad := range map[string][]byte{
		"not a WebAssembly module": []byte("MZ"),
		"longer than the module":   append(slices.Clone(emptyModule), 0, 7, 1),
		"more than one section":    slices.Concat(module, custom(abi.ManifestSection, `{}`)),
		"manifest's name":          slices.Concat(emptyModule, custom(abi.ManifestSection, `{"name":"a b"}`)),
	} {
		if _, _, err := ReadManifest(bad); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", bad, err, want)
		}
	}
}

// FuzzManifest hands any bytes to the reader of manifests, as a module and as a manifest: what it takes is within the bounds,
// and comes back from a module that it was put into.
func FuzzManifest(f *testing.F) {
	f.Add([]byte(`{"name":"a","version":"1.0.0","capabilities":["command"],"reads":["temp"],"config":{}}`))
	module, err := WithManifest(emptyModule, json.RawMessage(`{"name":"a"}`))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(module)
	f.Add(append(module, module[8:]...))
	f.Fuzz(func(t *testing.T, b []byte) {
		if m, raw, err := ReadManifest(b); err == nil {
			boundedManifest(t, m, raw)
			if _, err := WithManifest(b, raw); err != nil {
				t.Fatal(err)
			}
		}
		m, err := ParseManifest(b)
		if err != nil {
			return
		}
		boundedManifest(t, m, b)
		wasm, err := WithManifest(emptyModule, b)
		if err != nil {
			t.Fatal(err)
		}
		if again, raw, err := ReadManifest(wasm); err != nil || !bytes.Equal(raw, b) || fmt.Sprint(*again) != fmt.Sprint(*m) {
			t.Fatalf("%v: %s", err, raw)
		}
	})
}

func boundedManifest(t *testing.T, m *Manifest, raw []byte) {
	t.Helper()
	if len(raw) > abi.ManifestBytesMax || len(m.Reads) > manifestMetricsMax || len(m.Capabilities) > capabilitiesMax ||
		len(m.Name) > dunlin.NameBytesMax || len(m.Description) > manifestTextMax {
		t.Fatalf("beyond its bounds: %+v", m)
	}
}
