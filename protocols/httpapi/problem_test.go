package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"os"
	"strings"
	"testing"

	"github.com/dunlin-iot/dunlin"
)

// TestProblems is the list of what a client is told when something is wrong; the golden file is what it reads.
func TestProblems(t *testing.T) {
	b := newBed(t, func(c *Config) { c.PayloadBytesMax = 100; c.DocumentBytesMax = 300; c.ModuleBytesMax = 1000 })
	b.devices[key("fridge-1")] = dunlin.Device{Tenant: dunlin.DefaultTenant, ID: "fridge-1", Domain: "cold-chain", Revision: 3}
	var out strings.Builder
	n := 0
	show := func(name, method, path, body string, headers ...string) {
		t.Helper()
		n++
		w := b.do(method, path, body, append(headers, fmt.Sprintf("X-Request-Id: r%d", n))...)
		if ct := w.Header().Get("Content-Type"); ct != "application/problem+json" {
			t.Errorf("%s: Content-Type %q, body %s", name, ct, w.Body)
		}
		if cc := w.Header().Get("Content-Length"); cc == "0" {
			t.Errorf("%s: empty", name)
		}
		var doc bytes.Buffer
		if err := json.Indent(&doc, bytes.TrimSpace(w.Body.Bytes()), "", "  "); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		fmt.Fprintf(&out, "# %s\n%s %s\n%d", name, method, path, w.Code)
		for _, h := range []string{"Retry-After", "Allow", "WWW-Authenticate"} {
			if v := w.Header().Values(h); len(v) > 0 {
				fmt.Fprintf(&out, " %s=%s", h, strings.Join(v, "|"))
			}
		}
		fmt.Fprintf(&out, "\n%s\n\n", doc.String())
	}
	showIngestProblems(b, show)
	showAPIProblems(show)
	b.open = false
	show("who are you", "GET", "/v1/devices", "")
	show("unknown scheme", "GET", "/v1/devices", "", "Authorization: Digest x")
	golden(t, "testdata/problems.txt", out.String())
}

func showIngestProblems(b *bed, show func(name, method, path, body string, headers ...string)) {
	senml := "Content-Type: application/senml+json"
	show("curl -d without a type", "POST", "/v1/devices/fridge-1/t", `[{"n":"t","v":1}]`, "Content-Type: application/x-www-form-urlencoded")
	show("no type at all", "POST", "/v1/devices/fridge-1/t", `[{"n":"t","v":1}]`)
	show("broken SenML", "POST", "/v1/devices/fridge-1/t", `[{"n":"t","v":}]`, senml)
	show("another device in the pack", "POST", "/v1/devices/fridge-1/t", `[{"bn":"urn:dev:ow:fridge-2:","n":"t","v":1}]`, senml)
	show("too many bytes", "POST", "/v1/devices/fridge-1/t", `[{"n":"t","vs":"`+strings.Repeat("x", 200)+`"}]`, senml)
	show("compressed", "POST", "/v1/devices/fridge-1/t", `x`, senml, "Content-Encoding: gzip")
	show("bad device id", "POST", "/v1/devices/-x/t", `[{"n":"t","v":1}]`, senml)
	for _, tc := range []struct {
		name string
		r    dunlin.Receipt
	}{
		{"unknown device", dunlin.Receipt{Err: fmt.Errorf("domain default: %w %q: register it, or let the domain register strangers", dunlin.ErrUnknownDevice, "fridge-1")}},
		{"overloaded", dunlin.Receipt{Err: fmt.Errorf("shard 7: %w: 4096 uplinks wait", dunlin.ErrOverloaded), RetryAfterSeconds: 3}},
		{"no majority", dunlin.Receipt{Err: fmt.Errorf("%w: shard 7 has no majority", dunlin.ErrUnavailable)}},
		{"a bug", dunlin.Receipt{Err: errors.New("pebble: /var/lib/dunlin/000012.sst: no such file")}},
	} {
		b.receipt = func(*dunlin.Uplink) (dunlin.Receipt, bool) { return tc.r, true }
		show(tc.name, "POST", "/v1/devices/fridge-1/t", `[{"n":"t","v":1}]`, senml)
	}
}

func showAPIProblems(show func(name, method, path, body string, headers ...string)) {
	show("no such device", "GET", "/v1/devices/fridge-9", "")
	show("bad query", "GET", "/v1/devices/fridge-1/readings?from=yesterday&limit=0&order=up&colour=red", "")
	show("bad bucket", "GET", "/v1/devices/fridge-1/readings?bucket=soon&to=-1x", "")
	show("empty range", "GET", "/v1/devices/fridge-1/readings?from=-1h&to=-2h", "")
	show("bad metric", "GET", "/v1/devices/fridge-1/readings?metric=%00", "")
	show("nothing that Accept takes", "GET", "/v1/devices/fridge-1/readings", "", "Accept: image/png")
	show("buckets as SenML", "GET", "/v1/devices/fridge-1/readings?bucket=5m", "", "Accept: application/senml+json")
	show("lost update", "PUT", "/v1/devices/fridge-1", `{"domain":"cold-chain"}`, `If-Match: "2"`)
	show("exists already", "PUT", "/v1/devices/fridge-1", `{"domain":"cold-chain"}`, `If-None-Match: *`)
	show("match on nothing", "PUT", "/v1/devices/fridge-9", `{"domain":"cold-chain"}`, `If-Match: *`)
	show("a tag that was never ours", "DELETE", "/v1/devices/fridge-1", ``, `If-Match: "abc"`)
	show("broken JSON", "PUT", "/v1/devices/fridge-1", `{"domain":`)
	show("misspelt field", "PUT", "/v1/devices/fridge-1", `{"domian":"cold-chain"}`)
	show("no body", "PUT", "/v1/devices/fridge-1", ``)
	show("big document", "PUT", "/v1/devices/fridge-1", `{"domain":"`+strings.Repeat("x", 400)+`"}`)
	show("unknown body format", "PUT", "/v1/domains/cold-chain", `x`, "Content-Type: application/toml")
	show("broken YAML", "PUT", "/v1/domains/cold-chain", "owner: [", "Content-Type: application/yaml")
	show("two YAML documents", "PUT", "/v1/domains/cold-chain", "owner: a\n---\nowner: b\n", "Content-Type: application/yaml")
	show("unknown plugin in a pipeline", "PUT", "/v1/domains/cold-chain", "owner: a\npipeline: [{plugin: nope}]\n", "Content-Type: application/yaml")
	show("plugin configuration that is no object", "PUT", "/v1/domains/cold-chain", `{"pipeline":[{"plugin":"p","config":[1]}]}`)
	show("domain in use", "DELETE", "/v1/domains/cold-chain", "")
	show("bad module", "PUT", "/v1/plugins/cold-chain", "MZ\x90", "Content-Type: application/wasm")
	show("module of no known type", "PUT", "/v1/plugins/cold-chain", "\x00asm", "Content-Type: text/plain")
	show("big module", "PUT", "/v1/plugins/cold-chain", "\x00asm"+strings.Repeat("x", 1000), "Content-Type: application/wasm")
	show("broken batch", "POST", "/v1/ingest", `[{"device":"a","payload":{}},{"device":]`, "Content-Type: application/json")
	show("bad event id", "GET", "/v1/events", "", "Last-Event-ID: nonsense!")
	show("bad event type", "GET", "/v1/events?types=readings", "")
}

// TestEveryErrorHasAnAnswer checks the table against the dictionary's own comment: each error's status.
func TestEveryErrorHasAnAnswer(t *testing.T) {
	src, err := os.ReadFile("../../errors.go")
	if err != nil {
		t.Fatal(err)
	}
	if got, want := strings.Count(string(src), "errors.New("), 14; got != want {
		t.Errorf("the dictionary has %d errors, this table knows %d", got, want)
	}
	for err, want := range map[error]int{
		dunlin.ErrInvalid: 400, dunlin.ErrBadPayload: 400, dunlin.ErrFormat: 415, dunlin.ErrTooLarge: 413, dunlin.ErrUnauthenticated: 401,
		dunlin.ErrForbidden: 403, dunlin.ErrNotFound: 404, dunlin.ErrUnknownDevice: 404, dunlin.ErrConflict: 409, dunlin.ErrPrecondition: 412,
		dunlin.ErrOverloaded: 503, dunlin.ErrUnavailable: 503, dunlin.ErrNotOwner: 503, dunlin.ErrCursorLost: 410,
		&dunlin.ModuleError{Check: "abi"}: 422, errors.New("else"): 500,
	} {
		p := problemOf(fmt.Errorf("layer: %w", err))
		if p.Status != want || p.Title == "" || !strings.HasPrefix(p.Type, problemURN) {
			t.Errorf("%v: got %+v, want status %d", err, p, want)
		}
		if p.Status == http.StatusServiceUnavailable && p.GetHeaders().Get("Retry-After") == "" {
			t.Errorf("%v: no Retry-After", err)
		}
	}
}

// The bare error is what the hot path returns; the answer adds what to do.
func TestUnknownDeviceSaysWhatToDo(t *testing.T) {
	if got := problemOf(dunlin.ErrUnknownDevice).Detail; !strings.Contains(got, "dunlin device add") {
		t.Errorf("detail %q", got)
	}
}
