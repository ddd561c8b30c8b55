package httpapi

import (
	"encoding/csv"
	"fmt"
	"math"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/dunlin-iot/dunlin"
)

// TestDeviceLife registers a device, changes it guarded by its revision, lists and removes it.
func TestDeviceLife(t *testing.T) {
	b := newBed(t)
	w := b.do("PUT", "/v1/devices/d1", `{"domain":"cold-chain","labels":{"site":"a"}}`, "If-None-Match: *")
	b.want(w, 201)
	if got := w.Header().Get("ETag"); got != `"1"` {
		t.Fatalf("ETag %s", got)
	}
	w = b.do("GET", "/v1/devices/d1", "")
	body := b.want(w, 200)
	b.want(b.do("GET", "/v1/devices/d1", "", `If-None-Match: W/"9", "1"`), 304)
	// What a GET answered can be put back, read-only fields and all.
	w = b.do("PUT", "/v1/devices/d1", body, `If-Match: "1"`)
	b.want(w, 200)
	if got := w.Header().Get("ETag"); got != `"2"` {
		t.Fatalf("ETag %s", got)
	}
	b.want(b.do("PUT", "/v1/devices/d1", body, `If-Match: *`), 200)
	if got := b.devices[key("d1")]; got.Revision != 3 || got.Labels["site"] != "a" || got.Domain != "cold-chain" {
		t.Errorf("got %+v", got)
	}
	b.want(b.do("PUT", "/v1/devices/d1", `{"domain":"cold-chain","id":"d2"}`), 422)
	b.want(b.do("PUT", "/v1/devices/d1", `{"domain":"cold-chain","labels":{"":"x"}}`), 422)
	b.want(b.do("DELETE", "/v1/devices/d1", "", `If-Match: "2"`), 412)
	b.want(b.do("DELETE", "/v1/devices/d1", "", `If-Match: "3"`), 204)
	b.want(b.do("DELETE", "/v1/devices/d1", ""), 404)
}

// TestPages walks a list by its next links, both as body and as header.
func TestPages(t *testing.T) {
	b := newBed(t)
	for i := range 25 {
		id := dunlin.DeviceID(fmt.Sprintf("d%02d", i))
		b.devices[key(string(id))] = dunlin.Device{Tenant: dunlin.DefaultTenant, ID: id, Domain: "a", Revision: 1}
	}
	b.devices[key("x")] = dunlin.Device{ID: "x", Domain: "b", Revision: 1}
	var got []string
	next := "/v1/devices?domain=a&prefix=d&limit=10"
	for pages := 0; next != ""; pages++ {
		if pages == 3 {
			t.Fatal("the links don't end")
		}
		w := b.do("GET", next, "")
		p := parse[listView[deviceView]](t, b.want(w, 200))
		for _, d := range p.Items {
			got = append(got, string(d.ID))
		}
		next = p.Next
		if want := ""; next != "" {
			want = "<" + next + `>; rel="next"`
			if w.Header().Get("Link") != want {
				t.Errorf("Link %q, want %q", w.Header().Get("Link"), want)
			}
		}
	}
	if len(got) != 25 || !slices.IsSorted(got) {
		t.Errorf("got %d devices: %v", len(got), got)
	}
	if body := b.want(b.do("GET", "/v1/devices?domain=none", ""), 200); !strings.Contains(body, `"items":[]`) {
		t.Errorf("an empty list is %s", body)
	}
}

// TestState shows the twin with its version as ETag, also with numbers that JSON has no words for.
func TestState(t *testing.T) {
	b := newBed(t)
	b.twins[key("d1")] = dunlin.Twin{Tenant: dunlin.DefaultTenant, Device: "d1", Domain: "a", Version: 7, SeenAt: testNow,
		Reported: map[string]dunlin.Reported{"t": {Value: 4.5, Unit: "Cel", At: testNow}, "nan": {Value: math.NaN(), At: testNow},
			"open": {Value: true, At: testNow}, "name": {Value: "böse\xff", At: testNow}, "blob": {Value: []byte{1, 2}, At: testNow}},
		Alerts: []dunlin.Alert{{Device: "d1", Rule: "hot", Severity: dunlin.Major, State: dunlin.AlertRaised, Value: new(math.Inf(1)),
			RaisedAt: testNow, RaisedSeq: 5, At: testNow, Seq: 5}},
		Plugins: []dunlin.PluginState{{Stage: 0, State: []byte("x")}}}
	w := b.do("GET", "/v1/devices/d1/state", "")
	golden(t, "testdata/state.json", b.want(w, 200))
	if got := w.Header().Get("ETag"); got != `"7"` {
		t.Errorf("ETag %s", got)
	}
	w = b.do("GET", "/v1/devices/d1/state", "", `If-None-Match: "7"`)
	if body := b.want(w, 304); body != "" || w.Header().Get("ETag") != `"7"` {
		t.Errorf("304 with body %q, ETag %s", body, w.Header().Get("ETag"))
	}
	b.want(b.do("GET", "/v1/devices/none/state", ""), 404)
}

// TestReadings shows one page in each representation, and what the room behind is asked.
func TestReadings(t *testing.T) {
	b := newBed(t)
	var asked dunlin.ReadingsQuery
	b.readings = func(q dunlin.ReadingsQuery) (*dunlin.ReadingsPage, error) {
		asked = q
		if q.Bucket > 0 {
			return &dunlin.ReadingsPage{Buckets: []dunlin.Bucket{{Metric: "t", Start: testNow, Count: 2, Min: 1, Max: 2, Mean: 1.5, First: 1, Last: 2}}}, nil
		}
		return &dunlin.ReadingsPage{Next: "c+1/=", Rows: []dunlin.Record{
			{Metric: "t", Unit: "Cel", Time: testNow, Kind: dunlin.Number, Num: 4.25},
			{Metric: "open", Time: testNow + 1, Kind: dunlin.Boolean, Num: 1},
			{Metric: "note", Time: testNow + 2, Kind: dunlin.Text, Str: "a \"b\",\nc <d>"},
			{Metric: "blob", Time: testNow + 3, Kind: dunlin.Data, Str: "\x00\x01"},
			{Metric: "t", Time: testNow + 4, Kind: dunlin.Number, Num: math.Inf(-1)},
			{Metric: "t", Time: testNow + 5, Kind: dunlin.Number, Num: 1e-9}}}, nil
	}
	path := "/v1/devices/d1/readings?metric=t&metric=open&from=-1h&to=2026-03-01T13:00:00+01:00&order=desc&limit=6"
	w := b.do("GET", path, "")
	golden(t, "testdata/readings.json", b.want(w, 200))
	want := dunlin.ReadingsQuery{DeviceKey: key("d1"), From: testNow - 3600_000000, To: testNow, Newest: true, Limit: 6}
	want.Metrics, asked.Metrics = nil, slices.Clip(asked.Metrics)
	if m := asked.Metrics; !slices.Equal(m, []string{"t", "open"}) {
		t.Errorf("asked for metrics %v", m)
	}
	asked.Metrics = nil
	if fmt.Sprint(asked) != fmt.Sprint(want) {
		t.Errorf("asked %+v, want %+v", asked, want)
	}
	// The next link names absolute times, so that all pages are of one range.
	next := parse[struct{ Next string }](t, w.Body.String()).Next
	b.want(b.do("GET", next, ""), 200)
	if asked.Cursor != "c+1/=" || asked.From != want.From || asked.To != want.To || asked.Limit != 6 || !asked.Newest {
		t.Errorf("the next page asks %+v (link %s)", asked, next)
	}
	w = b.do("GET", path, "", "Accept: text/csv")
	body := b.want(w, 200)
	golden(t, "testdata/readings.csv", body)
	rows, err := csv.NewReader(strings.NewReader(body)).ReadAll()
	if err != nil || len(rows) != 7 || rows[3][2] != "a \"b\",\nc <d>" {
		t.Errorf("CSV reads as %q, %v", rows, err)
	}
	if !strings.Contains(w.Header().Get("Link"), "cursor=c%2B1%2F%3D") {
		t.Errorf("CSV's Link is %s", w.Header().Get("Link"))
	}
	w = b.do("GET", path, "", "Accept: application/senml+json, application/json;q=0.5")
	golden(t, "testdata/readings.senml.json", b.want(w, 200))
	if ct := w.Header().Get("Content-Type"); ct != "application/senml+json" {
		t.Errorf("Content-Type %s", ct)
	}
	w = b.do("GET", "/v1/devices/d1/readings?bucket=1d", "")
	golden(t, "testdata/buckets.json", b.want(w, 200))
	if asked.Bucket.Hours() != 24 || asked.Limit != 1000 || asked.From != 0 {
		t.Errorf("asked %+v", asked)
	}
	golden(t, "testdata/buckets.csv", b.want(b.do("GET", "/v1/devices/d1/readings?bucket=1d", "", "Accept: text/csv"), 200))
}

func TestAlerts(t *testing.T) {
	b := newBed(t)
	b.alerts = []dunlin.Alert{
		{Device: "d1", Domain: "a", Rule: "hot", Severity: dunlin.Critical, State: dunlin.AlertRaised, RaisedAt: testNow, RaisedSeq: 1, At: testNow, Seq: 1, Value: new(9.5)},
		{Device: "d2", Domain: "a", Rule: "hot", Key: "probe-2", Severity: dunlin.Warning, State: dunlin.AlertCleared, RaisedAt: testNow, RaisedSeq: 1, At: testNow, Seq: 4, ClearedAt: testNow},
	}
	for path, want := range map[string]int{"/v1/alerts": 2, "/v1/alerts?active=true": 1, "/v1/alerts?state=cleared": 1, "/v1/alerts?severity=major": 1,
		"/v1/alerts?domain=b": 0, "/v1/devices/d2/alerts": 1, "/v1/devices/d2/alerts?active=true": 0} {
		if p := parse[listView[map[string]any]](t, b.want(b.do("GET", path, ""), 200)); len(p.Items) != want {
			t.Errorf("%s: %d alerts, want %d", path, len(p.Items), want)
		}
	}
	golden(t, "testdata/alerts.json", b.want(b.do("GET", "/v1/alerts", ""), 200))
	b.want(b.do("GET", "/v1/alerts?state=gone", ""), 422)
	b.dead = []dunlin.DeadLetter{{DeviceKey: key("d1"), Domain: "a", Seq: 3, At: testNow, Reason: "fuel", Input: dunlin.Input{Received: testNow,
		Records: []dunlin.Record{{Metric: "t", Time: testNow, Kind: dunlin.Number, Num: math.NaN()}}}}}
	golden(t, "testdata/deadletters.json", b.want(b.do("GET", "/v1/deadletters?device=d1", ""), 200))
}

// TestDomains puts a domain as YAML and as JSON and reads it back.
func TestDomains(t *testing.T) {
	b := newBed(t)
	b.plugins["cold-chain"] = dunlin.Plugin{Name: "cold-chain", Revision: 1}
	yaml := `# comments are welcome
id: fridges
owner: ops@example.org
description: Fridges of all shops
unknown_devices: register
skew_max: 24h
pipeline:
  - plugin: cold-chain
    config: {limit: 8.0, serial: 12345678901234567, names: [a, b]}
`
	w := b.do("PUT", "/v1/domains/fridges", yaml, "Content-Type: application/yaml")
	b.want(w, 201)
	got := b.domains["fridges"]
	if string(got.Pipeline[0].Config) != `{"limit":8,"names":["a","b"],"serial":12345678901234567}` || got.UnknownDevices != dunlin.UnknownRegister {
		t.Errorf("got %+v", got)
	}
	body := b.want(b.do("GET", "/v1/domains/fridges", ""), 200)
	b.want(b.do("PUT", "/v1/domains/fridges", body, `If-Match: "1"`), 200)
	b.want(b.do("PUT", "/v1/domains/other", body), 422)
	b.want(b.do("PUT", "/v1/domains/fridges", `{"unknown_devices":"maybe"}`), 422)
	b.want(b.do("PUT", "/v1/domains/fridges", `{"skew_max":"soon"}`), 422)
	if p := parse[listView[domainView]](t, b.want(b.do("GET", "/v1/domains", ""), 200)); len(p.Items) != 1 || p.Items[0].Owner != "ops@example.org" {
		t.Errorf("got %+v", p)
	}
	b.want(b.do("DELETE", "/v1/domains/fridges", "", "If-Match: *"), 204)
	b.want(b.do("GET", "/v1/domains/fridges", ""), 404)
}

func TestPlugins(t *testing.T) {
	b := newBed(t)
	b.want(b.do("PUT", "/v1/plugins/cold-chain", "\x00asm1", "Content-Type: application/wasm"), 201)
	b.want(b.do("PUT", "/v1/plugins/cold-chain", "\x00asm2", "Content-Type: application/octet-stream"), 200)
	p := parse[Problem](t, b.want(b.do("PUT", "/v1/plugins/cold-chain", "ELF", "Content-Type: application/wasm"), 422))
	if p.Check != "parse" || p.Type != "urn:dunlin:problem:bad-module" || !strings.Contains(p.Detail, "build it with") {
		t.Errorf("got %+v", p)
	}
	b.want(b.do("GET", "/v1/plugins/cold-chain", "", `If-None-Match: "2"`), 304)
	b.want(b.do("GET", "/v1/plugins/bad%20name", ""), 400)
	b.want(b.do("DELETE", "/v1/plugins/cold-chain", ""), 204)
	b.want(b.do("GET", "/v1/plugins/cold-chain", ""), 404)
}

// TestCredentials: the secret is in one answer, its hash in none.
func TestCredentials(t *testing.T) {
	b := newBed(t)
	w := b.do("PUT", "/v1/credentials/device/fridge-1", `{"domain":"cold-chain"}`)
	made := parse[secretView](t, b.want(w, 200))
	if made.Secret != "made-by-the-node" || made.Domain != "cold-chain" || w.Header().Get("Cache-Control") != "no-store" {
		t.Errorf("got %+v with %v", made, w.Header())
	}
	b.want(b.do("PUT", "/v1/credentials/operator/me", ""), 200)
	b.want(b.do("PUT", "/v1/credentials/root/me", ""), 422)
	list := b.want(b.do("GET", "/v1/credentials", ""), 200)
	if strings.Contains(list, "hash") || strings.Contains(list, "made-by") || !strings.Contains(list, "fridge-1") {
		t.Errorf("the list is %s", list)
	}
	b.want(b.do("DELETE", "/v1/credentials/operator/me", ""), 204)
	b.want(b.do("DELETE", "/v1/credentials/operator/me", ""), 404)
}

func TestHealthAndIndex(t *testing.T) {
	why := fmt.Errorf("shard 3 replays its log")
	b := newBed(t, func(c *Config) {
		c.Ready = func() error { return why }
		c.MetricsHandler = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, "up 1") })
	})
	p := parse[Problem](t, b.want(b.do("GET", "/readyz", ""), 503))
	if p.Detail != why.Error() || p.RetryAfter != 1 {
		t.Errorf("got %+v", p)
	}
	why = nil
	b.want(b.do("GET", "/readyz", ""), 200)
	b.want(b.do("GET", "/livez", ""), 200)
	if got := b.want(b.do("GET", "/metrics", ""), 200); got != "up 1\n" {
		t.Errorf("metrics: %s", got)
	}
	if v := parse[versionView](t, b.want(b.do("GET", "/v1/version", ""), 200)); v.Version.Version != "test" || v.API != "v1" || v.Tenant != "default" {
		t.Errorf("version %+v", v)
	}
	if got := b.want(b.do("GET", "/", ""), 200); !strings.Contains(got, "curl -N 'http://localhost:8080/v1/events") {
		t.Errorf("index: %s", got)
	}
	page := b.do("GET", "/", "", "Accept: text/html,*/*;q=0.8", `Host: x"><script>`)
	if got := b.want(page, 200); strings.Contains(got, "<script>") || !strings.Contains(got, "<h1>dunlin</h1>") {
		t.Errorf("index page: %s", got)
	}
}

// TestOpenAPI keeps api/openapi.yaml equal to what is served.
func TestOpenAPI(t *testing.T) {
	b := newBed(t)
	served := b.want(b.do("GET", "/openapi.yaml", ""), 200)
	golden(t, "../../api/openapi.yaml", served)
	doc := parse[struct {
		OpenAPI string                               `json:"openapi"`
		Paths   map[string]map[string]map[string]any `json:"paths"`
	}](t, b.want(b.do("GET", "/openapi.json", ""), 200))
	if doc.OpenAPI != "3.1.0" {
		t.Errorf("openapi %q", doc.OpenAPI)
	}
	for _, rt := range routeTable() {
		method, path, _ := strings.Cut(rt.pattern, " ")
		if path == "/{$}" || strings.HasPrefix(path, "/openapi") {
			continue
		}
		op := doc.Paths[path][strings.ToLower(method)]
		if op == nil {
			t.Errorf("%s is not described", rt.pattern)
			continue
		}
		if op["operationId"] == nil || op["summary"] == nil || op["responses"].(map[string]any)["default"] == nil {
			t.Errorf("%s lacks an id, a summary or its problem answer", rt.pattern)
		}
		if _, public := op["security"]; public != (rt.rule == rulePublic) {
			t.Errorf("%s: security overridden is %v, rule is %s", rt.pattern, public, rt.rule)
		}
	}
}
