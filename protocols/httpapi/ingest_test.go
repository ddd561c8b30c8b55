package httpapi

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/payload"
)

const senmlType = "Content-Type: application/senml+json"

// TestTelemetry sends one uplink in each format and looks at what the directory gets.
func TestTelemetry(t *testing.T) {
	packed, err := cbor.Marshal([]map[int]any{{0: "temperature", 2: 4.5, 1: "Cel"}})
	if err != nil {
		t.Fatal(err)
	}
	flat, err := cbor.Marshal(map[string]any{"temperature": 4.5})
	if err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct{ contentType, body, metric string }{
		{"application/senml+json", `[{"bn":"fridge-1/","n":"temperature","u":"Cel","v":4.5}]`, "temperature"},
		{"application/senml+json; charset=utf-8", `[{"n":"temperature","v":4.5}]`, "temperature"},
		{"application/senml+cbor", string(packed), "temperature"},
		{"application/json", `{"temperature":4.5}`, "temperature"},
		{"application/cbor", string(flat), "temperature"},
		{"text/plain", `4.5`, payload.NamelessMetric},
		{"application/octet-stream", "\x01\x02", ""},
	} {
		b := newBed(t)
		w := b.do("POST", "/v1/devices/fridge-1/t", tc.body, "Content-Type: "+tc.contentType)
		if body := b.want(w, 200); body != `{"seq":1,"duplicate":false}`+"\n" {
			t.Errorf("%s: answer %s", tc.contentType, body)
		}
		u := b.uplinks[0]
		if u.DeviceKey != (dunlin.DeviceKey{}) {
			t.Errorf("%s: the uplink was not cleared after its receipt", tc.contentType)
		}
	}
}

// TestUplink looks at the uplink while it is the directory's.
func TestUplink(t *testing.T) {
	b := newBed(t)
	b.open = false
	b.tokens["gw-1:secret"] = dunlin.Principal{Kind: dunlin.PrincipalGateway, Tenant: "acme", ID: "gw-1", Domain: "cold"}
	var got dunlin.Uplink
	b.receipt = func(u *dunlin.Uplink) (dunlin.Receipt, bool) {
		got = *u
		return dunlin.Receipt{Seq: 9, Created: true}, true
	}
	w := b.do("POST", "/v1/devices/fridge-1/t", `[{"n":"t","v":1}]`, senmlType, "Authorization: Basic Z3ctMTpzZWNyZXQ=", `Idempotency-Key: "k1"`)
	if body := b.want(w, 200); body != `{"seq":9,"duplicate":false,"created":true}`+"\n" {
		t.Errorf("answer %s", body)
	}
	if got.Tenant != "acme" || got.Device != "fridge-1" || got.Input.Sender != "gw-1" || got.Kind != dunlin.InputTelemetry ||
		got.Received != testNow || got.Flags != dunlin.FlagMayRepeat || got.MessageID == 0 || len(got.Records) != 1 || got.Format != dunlin.FormatSenMLJSON {
		t.Errorf("got %+v", got)
	}
	first := got.MessageID
	b.want(b.do("POST", "/v1/devices/fridge-1/t", `[{"n":"t","v":2}]`, senmlType, "Authorization: Basic Z3ctMTpzZWNyZXQ=", `Idempotency-Key: k1`), 200)
	if got.MessageID != first {
		t.Error("the key's quotes change the message id")
	}
	b.want(b.do("POST", "/v1/devices/fridge-1/t", `[{"n":"t","v":2}]`, senmlType, "Authorization: Basic Z3ctMTpzZWNyZXQ="), 200)
	if got.MessageID != 0 || got.Flags != 0 {
		t.Errorf("without a key: id %d, flags %d", got.MessageID, got.Flags)
	}
	b.want(b.do("POST", "/v1/devices/fridge-1/t", `[{"n":"t","v":2}]`, senmlType, "Authorization: Basic Z3ctMTpzZWNyZXQ=",
		"Idempotency-Key: "+strings.Repeat("k", 256)), 422)
}

func TestRepeatedUplinkCountsOnce(t *testing.T) {
	b := newBed(t)
	b.want(b.do("POST", "/v1/devices/d/t", `[{"n":"t","v":1}]`, senmlType, "Idempotency-Key: a"), 200)
	if body := b.want(b.do("POST", "/v1/devices/d/t", `[{"n":"t","v":1}]`, senmlType, "Idempotency-Key: a"), 200); body != `{"seq":1,"duplicate":true}`+"\n" {
		t.Errorf("the repetition got %s", body)
	}
	if body := b.want(b.do("POST", "/v1/devices/d/t", `[{"n":"t","v":1}]`, senmlType, "Idempotency-Key: b"), 200); body != `{"seq":2,"duplicate":false}`+"\n" {
		t.Errorf("the next got %s", body)
	}
}

const gatewayLogin = "Authorization: Basic Z3ctMTpzZWNyZXQ="

// TestPack: a gateway's payload with records of several devices is answered when all of them are committed.
func TestPack(t *testing.T) {
	b := newBed(t)
	b.open = false
	b.tokens["gw-1:secret"] = dunlin.Principal{Kind: dunlin.PrincipalGateway, Tenant: "acme", ID: "gw-1", Domain: "cold"}
	b.tokens["fridge-1:secret"] = dunlin.Principal{Kind: dunlin.PrincipalDevice, Tenant: "acme", ID: "fridge-1"}
	seen := map[string]bool{}
	refuse := map[dunlin.DeviceID]error{}
	came := ""
	b.receipt = func(u *dunlin.Uplink) (dunlin.Receipt, bool) {
		came += string(u.Device) + " "
		if u.Tenant != "acme" || u.Sender.ID != "gw-1" || u.Device != "gw-1" && u.Input.Sender != "gw-1" || len(u.Records) != 1 {
			t.Errorf("uplink %+v", u)
		}
		if err := refuse[u.Device]; err != nil {
			return dunlin.Receipt{Err: err, RetryAfterSeconds: 3}, true
		}
		key := fmt.Sprint(u.Device, u.MessageID)
		dup := seen[key] && u.Flags&dunlin.FlagMayRepeat != 0
		seen[key] = true
		return dunlin.Receipt{Seq: 4, Duplicate: dup, Created: u.Device == "b" && !dup}, true
	}
	send := func(status int, path, body string, headers ...string) string {
		t.Helper()
		return b.want(b.do("POST", "/v1/devices/"+path+"/t", body, append(headers, senmlType)...), status)
	}
	const two = `[{"bn":"urn:dev:ow:a:","n":"t","v":1},{"bn":"urn:dev:ow:b:","n":"t","v":2}]`
	const own = `[{"bn":"urn:dev:ow:a:","n":"t","v":1},{"bn":"","n":"t","v":2}]`
	if got := send(200, "gw-1", two, gatewayLogin); got !=
		`{"seq":0,"duplicate":false,"created":true,"devices":[{"device":"a","seq":4,"duplicate":false},{"device":"b","seq":4,"duplicate":false,"created":true}]}`+"\n" {
		t.Errorf("two devices: %s", got)
	}
	if got := send(200, "gw-1", own, gatewayLogin); got !=
		`{"seq":4,"duplicate":false,"devices":[{"device":"gw-1","seq":4,"duplicate":false},{"device":"a","seq":4,"duplicate":false}]}`+"\n" {
		t.Errorf("one device and its own: %s", got)
	}
	if got := send(200, "gw-1", `[{"n":"t","v":1}]`, gatewayLogin); got != `{"seq":4,"duplicate":false}`+"\n" {
		t.Errorf("its own: %s", got)
	}

	came = ""
	refuse["b"] = fmt.Errorf("%w: of another domain", dunlin.ErrForbidden)
	p := parse[Problem](t, send(403, "gw-1", two, gatewayLogin))
	if p.Detail != "device b: not allowed: of another domain (1 of 2 devices refused, the rest kept)" || len(p.Errors) != 1 || p.Errors[0].Value != "b" || came != "a b " {
		t.Errorf("one forbidden: %+v, came %s", p, came)
	}
	refuse["b"] = dunlin.ErrOverloaded
	w := b.do("POST", "/v1/devices/gw-1/t", two, gatewayLogin, senmlType, "Idempotency-Key: 17")
	if p := parse[Problem](t, b.want(w, 503)); w.Header().Get("Retry-After") != "3" || p.Type != "urn:dunlin:problem:overloaded" || p.Errors[0].Value != "b" {
		t.Errorf("one overloaded: %+v", p)
	}
	delete(refuse, "b")
	if got := send(200, "gw-1", two, gatewayLogin, "Idempotency-Key: 17"); !strings.Contains(got, `{"device":"a","seq":4,"duplicate":true},{"device":"b","seq":4,"duplicate":false`) {
		t.Errorf("sent again with its key: %s", got)
	}
	if got := send(200, "gw-1", two, gatewayLogin, "Idempotency-Key: 17"); !strings.HasPrefix(got, `{"seq":0,"duplicate":true,"devices":`) {
		t.Errorf("sent once more: %s", got)
	}
	if got := send(200, "a", `[{"n":"t","v":1}]`, gatewayLogin, "Idempotency-Key: 17"); got != `{"seq":4,"duplicate":false}`+"\n" {
		t.Errorf("a key used for the gateway's pack is taken for the device's own: %s", got)
	}

	came = ""
	if p := parse[Problem](t, send(403, "fridge-1", two, "Authorization: Basic ZnJpZGdlLTE6c2VjcmV0")); !strings.Contains(p.Detail, `another device ("a")`) || came != "" {
		t.Errorf("a device names others: %+v, came %s", p, came)
	}
	refuse["b"] = errors.New("disk on fire")
	if got := send(500, "gw-1", two, gatewayLogin); strings.Contains(got, "fire") {
		t.Errorf("the answer has what is the log's: %s", got)
	}
	if n := b.g.inFlight.Load(); n != 0 {
		t.Errorf("%d uplinks are counted in flight", n)
	}
}

// TestPackIsCountedByDevice: in flight are uplinks, whatever request they came in.
func TestPackIsCountedByDevice(t *testing.T) {
	b := newBed(t, func(c *Config) { c.InFlightMax = 1 })
	b.open = false
	b.tokens["gw-1:secret"] = dunlin.Principal{Kind: dunlin.PrincipalGateway, Tenant: "acme", ID: "gw-1"}
	b.want(b.do("POST", "/v1/devices/gw-1/t", `[{"bn":"urn:dev:ow:a:","n":"t","v":1},{"bn":"","n":"t","v":2}]`, gatewayLogin, senmlType), 503)
	b.want(b.do("POST", "/v1/devices/gw-1/t", `[{"bn":"urn:dev:ow:a:","n":"t","v":1}]`, gatewayLogin, senmlType), 200)
}

// TestClientLeaves: the uplink stays the directory's when nobody waits any more, its late receipt disturbs no other
// request, and what is in flight is counted until then.
func TestClientLeaves(t *testing.T) {
	b := newBed(t, func(c *Config) { c.InFlightMax = 3 })
	b.receipt = func(*dunlin.Uplink) (dunlin.Receipt, bool) { return dunlin.Receipt{}, false }
	gone := errors.New("gone")
	for range 3 {
		ctx, cancel := context.WithCancelCause(t.Context())
		r := httptest.NewRequest("POST", "http://localhost/v1/devices/d/t", strings.NewReader(`[{"n":"t","v":1}]`)).WithContext(ctx)
		r.Header.Set("Content-Type", "application/senml+json")
		cancel(gone)
		w := httptest.NewRecorder()
		b.g.ServeHTTP(w, r)
		if p := parse[Problem](t, b.want(w, 503)); p.Type != "urn:dunlin:problem:outcome-unknown" || !strings.Contains(p.Detail, "may count twice") {
			t.Errorf("got %+v", p)
		}
	}
	w := b.do("POST", "/v1/devices/d/t", `[{"n":"t","v":1}]`, senmlType)
	if p := parse[Problem](t, b.want(w, 503)); p.Type != "urn:dunlin:problem:overloaded" || w.Header().Get("Retry-After") != "1" {
		t.Errorf("got %+v", p)
	}
	for _, u := range b.held {
		if u.Device != "d" || len(u.Records) != 1 {
			t.Errorf("an abandoned uplink was touched: %+v", u)
		}
		u.Waiter.Done(u, dunlin.Receipt{Seq: 99})
	}
	if n := b.g.inFlight.Load(); n != 0 {
		t.Errorf("%d in flight at the end", n)
	}
	b.receipt = nil
	if body := b.want(b.do("POST", "/v1/devices/d/t", `[{"n":"t","v":1}]`, senmlType), 200); !strings.Contains(body, `"seq":1,`) {
		t.Errorf("a late receipt reached another request: %s", body)
	}
}

// TestCommitTakesTooLong answers 503 after CommitTimeout, and says what the client can do.
func TestCommitTakesTooLong(t *testing.T) {
	b := newBed(t, func(c *Config) { c.CommitTimeout = time.Millisecond })
	b.receipt = func(*dunlin.Uplink) (dunlin.Receipt, bool) { return dunlin.Receipt{}, false }
	w := b.do("POST", "/v1/devices/d/t", `[{"n":"t","v":1}]`, senmlType, "Idempotency-Key: k")
	if p := parse[Problem](t, b.want(w, 503)); p.Type != "urn:dunlin:problem:outcome-unknown" || !strings.Contains(p.Detail, "counts once") || p.RetryAfter != 1 {
		t.Errorf("got %+v", p)
	}
	w = b.do("POST", "/v1/ingest", `[{"device":"a","payload":{"t":1}},{"device":"-","payload":{"t":1}}]`, "Content-Type: application/json")
	res := parse[batchView](t, b.want(w, 207))
	if res.Kept != 0 || res.Items[0].Problem.Type != "urn:dunlin:problem:outcome-unknown" || res.Items[1].Problem.Status != 400 {
		t.Errorf("got %+v", res)
	}
	for _, u := range b.held {
		u.Waiter.Done(u, dunlin.Receipt{Seq: 1})
	}
	if n := b.g.inFlight.Load(); n != 0 {
		t.Errorf("%d in flight at the end", n)
	}
}

// TestBatch sends a mixed batch in each of its forms.
func TestBatch(t *testing.T) {
	array := `[{"device":"a","payload":[{"n":"t","v":1}]},
		{"device":"b","payload":{"t":2},"id":"own-key"},
		{"device":"c","payload":21.5},{"device":"c","payload":"22.5"},
		{"device":"d","payload_base64":"AQI=","format":"application/octet-stream"},
		{"device":"bad id","payload":{}},
		{"device":"e","payload":{"t":1},"format":"image/png"},
		{"device":"f"},
		{"device":"g","payload":[{"n":"t"}]}]`
	lines := strings.ReplaceAll(strings.ReplaceAll(strings.Trim(array, "[]"), "},\n", "}\n"), "},{", "}\n{")
	for name, body := range map[string]string{"application/json": array, "application/x-ndjson": lines} {
		b := newBed(t)
		var got []string
		b.receipt = func(u *dunlin.Uplink) (dunlin.Receipt, bool) {
			got = append(got, fmt.Sprintf("%s:%d:%d", u.Device, u.Format, len(u.Records)+len(u.Payload)))
			b.seq[u.DeviceKey]++
			return dunlin.Receipt{Seq: b.seq[u.DeviceKey]}, true
		}
		res := parse[batchView](t, b.want(b.do("POST", "/v1/ingest", body, "Content-Type: "+name, "Idempotency-Key: batch-1"), 207))
		if want := "[a:110:1 b:50:1 c:0:1 c:0:1 d:42:2]"; fmt.Sprint(got) != want {
			t.Errorf("%s: uplinks %v, want %s", name, got, want)
		}
		if res.Kept != 5 || res.Failed != 4 || res.Items[3].Seq != 2 {
			t.Errorf("%s: got %+v", name, res)
		}
		for i, want := range map[int]int{5: 400, 6: 415, 7: 400, 8: 400} {
			if p := res.Items[i].Problem; p == nil || p.Status != want {
				t.Errorf("%s: item %d: %+v, want a %d", name, i, p, want)
			}
		}
	}
	b := newBed(t)
	b.want(b.do("POST", "/v1/ingest", `{"device":"a","payload":{"t":1}}`, "Content-Type: application/json"), 200)
	b.want(b.do("POST", "/v1/ingest", `[]`, "Content-Type: application/json"), 200)
	b.want(b.do("POST", "/v1/ingest", `[{"device":"a","payload":{"t":1}}] x`, "Content-Type: application/json"), 400)
	b.want(b.do("POST", "/v1/ingest", `[{"device":"a"`, "Content-Type: application/json"), 400)
	b.want(b.do("POST", "/v1/ingest", `x`, "Content-Type: text/plain"), 415)
	if len(b.uplinks) != 1 {
		t.Errorf("%d uplinks were sent, want 1: a body that does not parse sends nothing", len(b.uplinks))
	}
}

// TestBatchRepeats: the batch's key tells its items apart, and repeats as a whole.
func TestBatchRepeats(t *testing.T) {
	b := newBed(t)
	body := `[{"device":"a","payload":{"t":1}},{"device":"a","payload":{"t":1}}]`
	for i, want := range []string{`"seq":1,"duplicate":false`, `"seq":1,"duplicate":true`} {
		got := b.want(b.do("POST", "/v1/ingest", body, "Content-Type: application/json", "Idempotency-Key: k"), 200)
		if !strings.Contains(got, want) || !strings.Contains(got, `"seq":2`) {
			t.Errorf("try %d: got %s", i, got)
		}
	}
}

func TestBatchIsBounded(t *testing.T) {
	b := newBed(t, func(c *Config) { c.BatchItemsMax = 3; c.BatchBytesMax = 1000; c.InFlightMax = 2 })
	item := `{"device":"a","payload":{"t":1}}`
	b.want(b.do("POST", "/v1/ingest", strings.Repeat(item, 4), "Content-Type: application/x-ndjson"), 413)
	b.want(b.do("POST", "/v1/ingest", strings.Repeat(" ", 1001), "Content-Type: application/x-ndjson"), 413)
	b.want(b.do("POST", "/v1/ingest", `[{"bn":"a/","n":"t","v":1},{"bn":"b/","n":"t","v":1},{"bn":"c/","n":"t","v":1},{"bn":"d/","n":"t","v":1}]`, senmlType), 413)
	b.want(b.do("POST", "/v1/ingest", strings.Repeat(item, 3), "Content-Type: application/x-ndjson"), 503)
	if len(b.uplinks) != 0 || b.g.inFlight.Load() != 0 {
		t.Errorf("%d uplinks, %d in flight, want none", len(b.uplinks), b.g.inFlight.Load())
	}
}

// TestBatchOfOthers: an item about a device that is not the sender's fails alone.
func TestBatchOfOthers(t *testing.T) {
	b := newBed(t)
	b.open = false
	b.tokens["a:pw"] = dunlin.Principal{Kind: dunlin.PrincipalDevice, Tenant: dunlin.DefaultTenant, ID: "a"}
	res := parse[batchView](t, b.want(b.do("POST", "/v1/ingest", `[{"device":"a","payload":{"t":1}},{"device":"b","payload":{"t":1}}]`,
		"Content-Type: application/json", "Authorization: Basic YTpwdw=="), 207))
	if res.Items[0].Seq != 1 || res.Items[1].Problem.Status != 403 || len(b.uplinks) != 1 {
		t.Errorf("got %+v", res)
	}
}

// TestBatchSenML splits packs by their base names; base fields hold across the split.
func TestBatchSenML(t *testing.T) {
	pack := []map[string]any{
		{"bn": "fridge-1/", "bt": 1772366000, "bu": "Cel", "n": "t", "v": 4}, {"n": "t2", "v": 5},
		{"bn": "urn:dev:ops:fridge-2/", "n": "t", "v": 6},
		{"bn": "urn:dev:ops:fridge-2:", "n": "t2", "v": 7},
		{"bn": "fridge-1", "bt": 1772366100, "n": "t3", "v": 8}}
	labels := map[string]int{"bn": -2, "bt": -3, "bu": -4, "n": 0, "v": 2}
	var packed []map[int]any
	for _, rec := range pack {
		m := map[int]any{}
		for k, v := range rec {
			m[labels[k]] = v
		}
		packed = append(packed, m)
	}
	asCBOR, err := cbor.Marshal(packed)
	if err != nil {
		t.Fatal(err)
	}
	for contentType, body := range map[string]string{"application/senml+json": string(marshal(pack)), "application/senml+cbor": string(asCBOR)} {
		b := newBed(t)
		var got []string
		b.receipt = func(u *dunlin.Uplink) (dunlin.Receipt, bool) {
			for _, r := range u.Records {
				got = append(got, fmt.Sprintf("%s %s %v %s %d", u.Device, r.Metric, r.Num, r.Unit, r.Time/1e6))
			}
			return dunlin.Receipt{Seq: 1}, true
		}
		b.want(b.do("POST", "/v1/ingest", body, "Content-Type: "+contentType), 200)
		want := []string{"fridge-1 t 4 Cel 1772366000", "fridge-1 t2 5 Cel 1772366000", "fridge-2 t 6 Cel 1772366000",
			"fridge-2 t2 7 Cel 1772366000", "fridge-1 t3 8 Cel 1772366100"}
		if strings.Join(got, "\n") != strings.Join(want, "\n") {
			t.Errorf("%s:\n got %q\nwant %q", contentType, got, want)
		}
	}
	b := newBed(t)
	b.want(b.do("POST", "/v1/ingest", `[{"n":"t","v":1}]`, senmlType), 400)
	b.want(b.do("POST", "/v1/ingest", `[{"bn":7,"n":"t","v":1}]`, senmlType), 400)
}

// FuzzBatch: no body of any type panics, and no more items come out than are allowed.
func FuzzBatch(f *testing.F) {
	types := []string{"application/json", "application/x-ndjson", "application/senml+json", "application/senml+cbor"}
	for i, s := range []string{`[{"device":"a","payload":{"t":1}}]`, `{"device":"a","payload":1}`, `[{"bn":"a/","n":"t","v":1},{"bn":"b","v":1}]`,
		"\x81\xa3\x21\x62a/\x00\x61t\x02\x01", "\x9f\xff", `[[[[`, `{"device":"a","payload":"\ud800"}`} {
		f.Add(uint8(i), []byte(s))
	}
	d := payload.NewDecoder()
	f.Fuzz(func(t *testing.T, kind uint8, body []byte) {
		items, err := splitBatch(types[int(kind)%len(types)], body, 10)
		if len(items) > 10 {
			t.Fatalf("%d items", len(items))
		}
		if err != nil && problemOf(err).Status >= 500 {
			t.Fatalf("a body makes a server error: %v", err)
		}
		for _, it := range items {
			if it.err == nil && it.device.Validate() == nil {
				u := &dunlin.Uplink{DeviceKey: key(string(it.device)), Input: dunlin.Input{Format: it.format, Received: testNow}}
				_ = d.Decode(u, it.body)
			}
		}
	})
}

// nullNode commits everything at once.
type nullNode struct{}

func (nullNode) Ingest(u *dunlin.Uplink) { u.Waiter.Done(u, dunlin.Receipt{Seq: 1}) }

// nullWriter is a response that goes nowhere.
type nullWriter struct{ h http.Header }

func (w *nullWriter) Header() http.Header         { return w.h }
func (w *nullWriter) Write(b []byte) (int, error) { return len(b), nil }
func (w *nullWriter) WriteHeader(int)             {}

// body is a request body that can be read again.
type rewindBody struct{ *strings.Reader }

func (rewindBody) Close() error { return nil }

// BenchmarkTelemetry is the raw handler's own cost: routing, authorization, decoding four metrics, the wait, the answer.
// Sockets and net/http's parsing are not in it.
func BenchmarkTelemetry(b *testing.B) {
	bed := newBed(b, func(c *Config) { c.Log = nil })
	bed.g.deps.Ingestor = nullNode{}
	const doc = `[{"bn":"fridge-1/","bt":1772366400.5,"n":"temperature","u":"Cel","v":4.25},{"n":"humidity","u":"%RH","v":51.5},{"n":"door","vb":false},{"n":"battery","u":"%EL","v":97}]`
	body := rewindBody{strings.NewReader(doc)}
	r := httptest.NewRequest("POST", "http://localhost/v1/devices/fridge-1/t", nil)
	r.ContentLength = int64(len(doc))
	r.Body = body
	r.Header.Set("Content-Type", "application/senml+json")
	w := &nullWriter{h: http.Header{}}
	b.ReportAllocs()
	for b.Loop() {
		body.Reset(doc)
		clear(w.h)
		bed.g.ServeHTTP(w, r)
	}
	if got := w.h.Get("Content-Type"); got != "application/json" {
		b.Fatalf("answer is %s", got)
	}
}

// BenchmarkTelemetryOverSockets is the same with net/http and a loopback connection; the client is a few bytes written and
// read, but its system calls are in the figure.
func BenchmarkTelemetryOverSockets(b *testing.B) {
	bed := newBed(b, func(c *Config) { c.Log = nil })
	bed.g.deps.Ingestor = nullNode{}
	_, stop := bed.serve()
	conn, err := net.Dial("tcp", bed.g.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	const doc = `[{"bn":"fridge-1/","bt":1772366400.5,"n":"temperature","u":"Cel","v":4.25},{"n":"humidity","u":"%RH","v":51.5},{"n":"door","vb":false},{"n":"battery","u":"%EL","v":97}]`
	request := fmt.Appendf(nil, "POST /v1/devices/fridge-1/t HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/senml+json\r\nContent-Length: %d\r\n\r\n%s", len(doc), doc)
	answer := make([]byte, 4096)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := conn.Write(request); err != nil {
			b.Fatal(err)
		}
		if n, err := conn.Read(answer); err != nil || !bytes.HasPrefix(answer[:n], []byte("HTTP/1.1 200")) {
			b.Fatalf("%s, %v", answer[:n], err)
		}
	}
	conn.Close()
	if err := stop(); err != nil {
		b.Fatal(err)
	}
}
