package client_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/sdk/client"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// node is a server that answers with f, and a client of it.
func node(t *testing.T, o client.Options, f http.HandlerFunc) *client.Client {
	t.Helper()
	srv := httptest.NewServer(f)
	t.Cleanup(srv.Close)
	c, err := client.New(srv.URL+"/behind/a/proxy/", o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

func problem(w http.ResponseWriter, status int, slug string, headers ...string) {
	w.Header().Set("Content-Type", "application/problem+json")
	for _, h := range headers {
		k, v, _ := strings.Cut(h, ": ")
		w.Header().Set(k, v)
	}
	w.WriteHeader(status)
	fmt.Fprintf(w, `{"type":"urn:dunlin:problem:%s","title":"Title","detail":"detail","status":%d,"request_id":"r1"}`, slug, status)
}

func TestAddresses(t *testing.T) {
	for _, base := range []string{"http://a:1", "https://a", "a:1", "127.0.0.1:8080", "http://u:p@a/x"} {
		if _, err := client.New(base, client.Options{}); err != nil {
			t.Errorf("%s: %v", base, err)
		}
	}
	for _, base := range []string{"", "ftp://a", "http://", "http://a b", ":"} {
		if _, err := client.New(base, client.Options{}); err == nil {
			t.Errorf("%q is taken", base)
		}
	}
}

// TestRequests looks at what calls put on the wire.
func TestRequests(t *testing.T) {
	var got string
	c := node(t, client.Options{Token: "tok"}, func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		got = r.Method + " " + r.RequestURI
		for _, h := range []string{"Authorization", "Content-Type", "If-Match", "If-None-Match", "Idempotency-Key"} {
			if v := r.Header.Get(h); v != "" {
				got += " | " + h + ": " + v
			}
		}
		got += " | " + string(body)
		io.WriteString(w, "{}")
	})
	ctx := t.Context()
	for want, call := range map[string]func() error{
		"GET /behind/a/proxy/v1/devices/a%20b%2Fc/state | Authorization: Bearer tok | ": func() error {
			_, err := c.State(ctx, "a b/c")
			return err
		},
		"PUT /behind/a/proxy/v1/plugins/p | Authorization: Bearer tok | Content-Type: application/wasm | If-Match: \"7\" | wasm": func() error {
			_, err := c.PushPlugin(ctx, "p", []byte("wasm"), 7)
			return err
		},
		"PUT /behind/a/proxy/v1/domains/d | Authorization: Bearer tok | Content-Type: application/yaml | If-None-Match: * | owner: me": func() error {
			_, err := c.ApplyDomain(ctx, "d", "application/yaml", []byte("owner: me"), 0)
			return err
		},
		"DELETE /behind/a/proxy/v1/devices/d | Authorization: Bearer tok | ": func() error { return c.DeleteDevice(ctx, "d", dunlin.AnyRevision) },
		"POST /behind/a/proxy/v1/devices/d/t | Authorization: Bearer tok | Content-Type: text/plain | Idempotency-Key: k | 4.5": func() error {
			_, err := c.Send(ctx, "d", "text/plain", []byte("4.5"), "k")
			return err
		},
		"GET /behind/a/proxy/v1/devices/d/readings?bucket=5m&from=-1h&metric=a&metric=b&order=desc | Authorization: Bearer tok | ": func() error {
			for _, err := range c.Buckets(ctx, "d", client.ReadingsQuery{Metrics: []string{"a", "b"}, From: "-1h", Bucket: "5m", Newest: true}) {
				return err
			}
			return nil
		},
		"PUT /behind/a/proxy/v1/credentials/device/d | Authorization: Bearer tok | Content-Type: application/json | {\"domain\":\"x\"}": func() error {
			_, err := c.PutCredential(ctx, dunlin.Credential{Kind: dunlin.CredentialDevice, ID: "d", Domain: "x"}, "")
			return err
		},
	} {
		if err := call(); err != nil {
			t.Errorf("%s: %v", want, err)
		}
		if got != want {
			t.Errorf("got  %s\nwant %s", got, want)
		}
	}
}

func TestErrors(t *testing.T) {
	answer := func(http.ResponseWriter) {}
	c := node(t, client.Options{Retries: -1}, func(w http.ResponseWriter, _ *http.Request) { answer(w) })
	for slug, want := range map[string]error{"not-found": dunlin.ErrNotFound, "unknown-device": dunlin.ErrUnknownDevice, "conflict": dunlin.ErrConflict,
		"precondition-failed": dunlin.ErrPrecondition, "bad-module": dunlin.ErrInvalid, "overloaded": dunlin.ErrOverloaded, "forbidden": dunlin.ErrForbidden,
		"cursor-lost": dunlin.ErrCursorLost, "outcome-unknown": dunlin.ErrUnavailable, "bad-payload": dunlin.ErrBadPayload, "unsupported-format": dunlin.ErrFormat,
		"too-large": dunlin.ErrTooLarge, "unauthenticated": dunlin.ErrUnauthenticated, "not-owner": dunlin.ErrNotOwner} {
		answer = func(w http.ResponseWriter) { problem(w, 503, slug, "Retry-After: 7") }
		_, err := c.Version(t.Context())
		p, ok := errors.AsType[*client.Error](err)
		if !ok || !errors.Is(err, want) || p.RetryAfter != 7*time.Second || err.Error() != "Title: detail [request r1]" {
			t.Errorf("%s: got %v (%+v)", slug, err, p)
		}
	}
	answer = func(w http.ResponseWriter) {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(502)
		io.WriteString(w, "<html>a proxy's page")
	}
	if _, err := c.Version(t.Context()); err == nil || err.Error() != "502 Bad Gateway" {
		t.Errorf("a proxy's error: %v", err)
	}
	answer = func(w http.ResponseWriter) { io.WriteString(w, "<html>") }
	if _, err := c.Version(t.Context()); err == nil || !strings.Contains(err.Error(), "is there a dunlin node at") {
		t.Errorf("a stranger: %v", err)
	}
}

// TestRetries: what is harmless to repeat is repeated on 503, and nothing else.
func TestRetries(t *testing.T) {
	var calls atomic.Int64
	fail := int64(2)
	c := node(t, client.Options{WaitMax: time.Millisecond}, func(w http.ResponseWriter, _ *http.Request) {
		if calls.Add(1) <= fail {
			problem(w, 503, "overloaded", "Retry-After: 1")
			return
		}
		io.WriteString(w, `{"seq":4}`)
	})
	ctx := t.Context()
	for name, tc := range map[string]struct {
		call  func() error
		calls int64
	}{
		"read":                  {func() error { _, err := c.Version(ctx); return err }, 3},
		"unguarded change":      {func() error { _, err := c.PutDevice(ctx, dunlin.Device{ID: "d"}, dunlin.AnyRevision); return err }, 3},
		"guarded change":        {func() error { _, err := c.PutDevice(ctx, dunlin.Device{ID: "d"}, 3); return err }, 1},
		"uplink with a key":     {func() error { _, err := c.Send(ctx, "d", "text/plain", []byte("1"), "k"); return err }, 3},
		"uplink without a key":  {func() error { _, err := c.Send(ctx, "d", "text/plain", []byte("1"), ""); return err }, 1},
		"credential to be made": {func() error { _, err := c.PutCredential(ctx, dunlin.Credential{ID: "d"}, ""); return err }, 1},
	} {
		calls.Store(0)
		err := tc.call()
		if calls.Load() != tc.calls || (err == nil) != (tc.calls == 3) {
			t.Errorf("%s: %d calls, want %d; %v", name, calls.Load(), tc.calls, err)
		}
	}
	calls.Store(0)
	fail = 100
	if _, err := c.Version(ctx); calls.Load() != 4 || !errors.Is(err, dunlin.ErrOverloaded) {
		t.Errorf("%d calls, %v; want to give up after 3 retries", calls.Load(), err)
	}
	calls.Store(0)
	fail = 3
	if err := c.WaitReady(ctx, time.Millisecond); err != nil || calls.Load() != 4 {
		t.Errorf("WaitReady: %v after %d calls", err, calls.Load())
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Millisecond)
	defer cancel()
	calls.Store(-1 << 60)
	if err := c.WaitReady(ctx, time.Millisecond); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("WaitReady: %v", err)
	}
}

// TestPages walks links, stops when asked, and follows none to a stranger.
func TestPages(t *testing.T) {
	next := "/v1/devices?cursor=2"
	c := node(t, client.Options{}, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("cursor") == "" {
			fmt.Fprintf(w, `{"items":[{"id":"a"},{"id":"b"}],"next":%q}`, next)
			return
		}
		io.WriteString(w, `{"items":[{"id":"c"}]}`)
	})
	var got []string
	for d, err := range c.Devices(t.Context(), client.DevicesQuery{}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, string(d.ID))
	}
	if !slices.Equal(got, []string{"a", "b", "c"}) {
		t.Errorf("got %v", got)
	}
	for range c.Devices(t.Context(), client.DevicesQuery{}) {
		break
	}
	for _, bad := range []string{"http://evil.example/v1/devices", "//evil.example/v1/devices", "evil"} {
		next = bad
		var last error
		for _, err := range c.Devices(t.Context(), client.DevicesQuery{}) {
			last = err
		}
		if !errors.Is(last, dunlin.ErrInvalid) {
			t.Errorf("link %s: %v", bad, last)
		}
	}
}

// TestNumbers: every float64 comes back with its bits, NaN's but for its payload.
func TestNumbers(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		n := client.Number(rapid.Float64().Draw(t, "n"))
		doc, err := json.Marshal(n)
		if err != nil {
			t.Fatal(err)
		}
		var back client.Number
		if err := json.Unmarshal(doc, &back); err != nil || math.Float64bits(float64(back)) != math.Float64bits(float64(n)) && !math.IsNaN(float64(n)) {
			t.Fatalf("%v is %s, which reads as %v, %v", n, doc, back, err)
		}
	})
	for _, text := range []string{`"NaN"`, `"Infinity"`, `"-Infinity"`} {
		var n client.Number
		if err := json.Unmarshal([]byte(text), &n); err != nil {
			t.Error(err)
		}
		if doc, _ := json.Marshal(n); string(doc) != text {
			t.Errorf("%s comes back as %s", text, doc)
		}
	}
}

// A problem's detail often begins with its title; people read it once.
func TestErrorsDoNotStutter(t *testing.T) {
	for want, e := range map[string]client.Error{
		"Too large: the body has 9 bytes": {Title: "Too large", Detail: "too large: the body has 9 bytes"},
		"Not found: twin of x: not found": {Title: "Not found", Detail: "twin of x: not found"},
		"Not allowed":                     {Title: "Not allowed", Detail: "not allowed"},
		"Conflict":                        {Title: "Conflict"},
	} {
		if got := e.Error(); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// TestReadLevel: questions say how fresh the answers must be, also on next pages, and who listens hears of what is missing.
func TestReadLevel(t *testing.T) {
	var asked []string
	var missing []dunlin.MissingShard
	o := client.Options{Read: dunlin.ReadLevel{Stale: 10 * time.Second}, Missing: func(m []dunlin.MissingShard) { missing = append(missing, m...) }}
	c := node(t, o, func(w http.ResponseWriter, r *http.Request) {
		asked = append(asked, r.URL.Query().Get("read"))
		switch {
		case r.URL.Query().Get("cursor") == "" && strings.HasSuffix(r.URL.Path, "/v1/devices"):
			fmt.Fprint(w, `{"items":[{"id":"a"}],"next":"/v1/devices?cursor=a&read=stale%3D10s","missing":[{"shard":3,"reason":"gone"}]}`)
		default:
			fmt.Fprint(w, `{"items":[]}`)
		}
	})
	for _, err := range c.Devices(t.Context(), client.DevicesQuery{}) {
		if err != nil {
			t.Fatal(err)
		}
	}
	if _, err := c.State(t.Context(), "d"); err != nil {
		t.Fatal(err)
	}
	for _, err := range c.Readings(t.Context(), "d", client.ReadingsQuery{Newest: true}) {
		t.Fatal(err)
	}
	if want := []string{"stale=10s", "stale=10s", "stale=10s", "stale=10s"}; !slices.Equal(asked, want) {
		t.Errorf("asked at %q", asked)
	}
	if len(missing) != 1 || missing[0].Shard != 3 {
		t.Errorf("missing: %v", missing)
	}
}
