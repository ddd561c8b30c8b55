package httpapi

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// requestFor makes a request that a route takes, about device fridge-1.
func requestFor(pattern string) (method, path, body string, headers []string) {
	method, path, _ = strings.Cut(pattern, " ")
	path = strings.NewReplacer("{$}", "", "{kind}", "device", "{name}", "cold-chain", "{shard}", "1", "{command}", "1-0").Replace(path)
	if strings.Contains(path, "devices/{id}") || strings.Contains(path, "credentials") {
		path = strings.Replace(path, "{id}", "fridge-1", 1)
	}
	path = strings.Replace(path, "{id}", "cold-chain", 1)
	switch {
	case strings.HasSuffix(path, "/t"):
		return method, path, `[{"n":"t","v":1}]`, []string{"Content-Type: application/senml+json"}
	case strings.HasSuffix(path, "/ingest"):
		return method, path, `[{"device":"fridge-1","payload":[{"n":"t","v":1}]}]`, []string{"Content-Type: application/json"}
	case strings.HasSuffix(path, "/state") && method == "PUT":
		return method, path, `{"state":"draining"}`, nil
	case strings.HasSuffix(path, "/move"):
		return method, path, `{"to":"n2"}`, nil
	case method == "PUT" && strings.Contains(path, "plugins"):
		return method, path, "\x00asm", []string{"Content-Type: application/wasm"}
	case method == "PUT" && strings.Contains(path, "devices"):
		return method, path, `{"domain":"cold-chain"}`, nil
	case method == "PUT" && strings.Contains(path, "domains"):
		return method, path, `{"owner":"ops"}`, nil
	}
	return method, path, "", nil
}

// TestRoutesByPrincipal asks every route in the table as everyone there can be. The golden file is the access matrix.
func TestRoutesByPrincipal(t *testing.T) {
	principals := []struct {
		name string
		auth string
		p    dunlin.Principal
	}{
		{"nobody", "", dunlin.Principal{}},
		{"wrong token", "Bearer wrong", dunlin.Principal{}},
		{"device itself", "Bearer self", dunlin.Principal{Kind: dunlin.PrincipalDevice, ID: "fridge-1"}},
		{"other device", "Bearer other", dunlin.Principal{Kind: dunlin.PrincipalDevice, ID: "fridge-2"}},
		{"gateway", "Bearer gw", dunlin.Principal{Kind: dunlin.PrincipalGateway, ID: "gw"}},
		{"application", "Bearer app", dunlin.Principal{Kind: dunlin.PrincipalApplication, ID: "app"}},
		{"operator", "Bearer op", dunlin.Principal{Kind: dunlin.PrincipalOperator, ID: "op"}},
	}
	var out strings.Builder
	fmt.Fprintf(&out, "%-40s %-20s", "route", "rule")
	for _, p := range principals {
		fmt.Fprintf(&out, " %-13s", p.name)
	}
	out.WriteString("\n")
	b := newBed(t, func(c *Config) { c.MetricsHandler = http.NotFoundHandler() })
	b.open, b.g.deps.Cluster = false, newFakeCluster()
	for _, p := range principals {
		if p.p.Kind != dunlin.PrincipalNone {
			p.p.Tenant = dunlin.DefaultTenant
			_, token, _ := strings.Cut(p.auth, " ")
			b.tokens[":"+token] = p.p
		}
	}
	for _, rt := range routeTable() {
		fmt.Fprintf(&out, "%-40s %-20s", rt.pattern, rt.rule)
		for _, p := range principals {
			b.devices[key("fridge-1")] = dunlin.Device{Tenant: dunlin.DefaultTenant, ID: "fridge-1", Domain: "cold", Revision: 1}
			b.twins[key("fridge-1")] = dunlin.Twin{Device: "fridge-1", Version: 1}
			b.domains["cold-chain"] = dunlin.Domain{ID: "cold-chain", Revision: 1}
			b.plugins["cold-chain"] = dunlin.Plugin{Name: "cold-chain", Revision: 1}
			b.creds = []dunlin.Credential{{ID: "fridge-1", Kind: dunlin.CredentialDevice}}
			method, path, body, headers := requestFor(rt.pattern)
			if p.auth != "" {
				headers = append(headers, "Authorization: "+p.auth)
			}
			if strings.HasSuffix(path, "/events") {
				method = http.MethodHead // the stream would not end
			}
			w := b.do(method, path, body, headers...)
			verdict := fmt.Sprint(w.Code)
			if w.Code == http.StatusUnauthorized && len(w.Header().Values("WWW-Authenticate")) != 2 {
				t.Errorf("%s as %s: a 401 without challenges", rt.pattern, p.name)
			}
			if w.Code >= 400 && w.Header().Get("Content-Type") != "application/problem+json" && !strings.HasSuffix(path, "/metrics") {
				t.Errorf("%s as %s: %d is no problem document: %s", rt.pattern, p.name, w.Code, w.Body)
			}
			fmt.Fprintf(&out, " %-13s", verdict)
		}
		out.WriteString("\n")
	}
	golden(t, "testdata/routes.txt", out.String())
}

// TestOnlyTheTable shows that a handler cannot be registered without a rule.
func TestOnlyTheTable(t *testing.T) {
	b := newBed(t)
	reg := &registration{g: b.g}
	reg.raw("GET /v1/secret", func(*call, *http.Request) {})
	if len(reg.errs) != 1 || !strings.Contains(reg.errs[0].Error(), "no rule") {
		t.Errorf("got %v, want one error about the missing rule", reg.errs)
	}
	for _, rt := range b.g.routes {
		if rt.rule == rulePublic && strings.HasPrefix(strings.TrimPrefix(rt.pattern, "GET "), "/v1") {
			t.Errorf("%s is public", rt.pattern)
		}
	}
}

// TestBrowsersCantBorrowAuthority is the table of what a web page may try against an open node, and with Basic.
func TestBrowsersCantBorrowAuthority(t *testing.T) {
	for _, tc := range []struct {
		name    string
		open    bool
		method  string
		headers []string
		want    int
	}{
		{"curl", true, "GET", nil, 200},
		{"by address", true, "GET", []string{"Host: 127.0.0.1:8080"}, 200},
		{"by IPv6 address", true, "GET", []string{"Host: [::1]:8080"}, 200},
		{"by a name under localhost", true, "GET", []string{"Host: dunlin.localhost"}, 200},
		{"by a configured name", true, "GET", []string{"Host: dunlin.lan:8080"}, 200},
		{"own console", true, "PUT", []string{"Origin: http://localhost:8080", "Sec-Fetch-Site: same-origin"}, 201},
		{"rebound name", true, "GET", []string{"Host: evil.example"}, 421},
		{"rebound name, same origin to the browser", true, "PUT", []string{"Host: evil.example", "Origin: http://evil.example"}, 421},
		{"other page reads", true, "GET", []string{"Origin: https://evil.example"}, 403},
		{"other page writes", true, "PUT", []string{"Origin: https://evil.example"}, 403},
		{"other port is another origin", true, "PUT", []string{"Origin: http://localhost:3000"}, 403},
		{"sandboxed page", true, "PUT", []string{"Origin: null"}, 403},
		{"form without Origin", true, "PUT", []string{"Sec-Fetch-Site: cross-site"}, 403},
		{"typed into the address bar", true, "GET", []string{"Sec-Fetch-Site: none"}, 200},
		{"link on another page", true, "GET", []string{"Sec-Fetch-Site: cross-site"}, 200},
		{"basic from another page", false, "PUT", []string{"Authorization: Basic b3A6c2VjcmV0", "Origin: https://evil.example"}, 403},
		{"basic from curl", false, "PUT", []string{"Authorization: Basic b3A6c2VjcmV0", "Host: node.example"}, 201},
		{"bearer from another page", false, "PUT", []string{"Authorization: Bearer tok", "Origin: https://app.example"}, 201},
	} {
		b := newBed(t, func(c *Config) { c.Hosts = []string{"dunlin.lan"} })
		b.open = tc.open
		op := dunlin.Principal{Kind: dunlin.PrincipalOperator, Tenant: dunlin.DefaultTenant, ID: "op"}
		b.tokens["op:secret"], b.tokens[":tok"] = op, op
		path, body := "/v1/devices", ""
		if tc.method == "PUT" {
			path, body = "/v1/devices/d1", `{"domain":"x"}`
		}
		if w := b.do(tc.method, path, body, tc.headers...); w.Code != tc.want {
			t.Errorf("%s: got %d, want %d: %s", tc.name, w.Code, tc.want, w.Body)
		}
	}
}

func TestUnknownPathsAndMethods(t *testing.T) {
	b := newBed(t)
	p := parse[Problem](t, b.want(b.do("GET", "/v2/nothing", ""), 404))
	if p.Type != "urn:dunlin:problem:not-found" {
		t.Errorf("got type %s", p.Type)
	}
	w := b.do("PATCH", "/v1/devices/d1", "")
	b.want(w, 405)
	if got := w.Header().Get("Allow"); got != "DELETE, GET, HEAD, PUT" {
		t.Errorf("Allow: %s", got)
	}
	w = b.do("GET", "/v1/devices/d1/t", "")
	b.want(w, 405)
	if got := w.Header().Get("Allow"); got != "POST" {
		t.Errorf("Allow: %s", got)
	}
}

// TestPanicIsA500 shows that a bug in a room behind costs one request.
func TestPanicIsA500(t *testing.T) {
	b := newBed(t)
	b.readings = func(dunlin.ReadingsQuery) (*dunlin.ReadingsPage, error) { panic("bug") }
	p := parse[Problem](t, b.want(b.do("GET", "/v1/devices/d1/readings", ""), 500))
	if p.RequestID == "" || strings.Contains(p.Detail, "bug") {
		t.Errorf("got %+v; want a request id and not the panic's text", p)
	}
	b.receipt = func(*dunlin.Uplink) (dunlin.Receipt, bool) { panic("bug") }
	b.want(b.do("POST", "/v1/devices/d1/t", `[{"n":"t","v":1}]`, "Content-Type: application/senml+json"), 500)
}

// TestRoomThatHangs: an answer that never comes is a 503 in time.
func TestRoomThatHangs(t *testing.T) {
	b := newBed(t, func(c *Config) { c.WriteTimeout = 20 * time.Millisecond })
	b.alertsHang = true
	if p := parse[Problem](t, b.want(b.do("GET", "/v1/alerts", ""), 503)); p.Type != "urn:dunlin:problem:timeout" {
		t.Errorf("got %+v", p)
	}
}

// TestHostileAccept: huma's own parser slices out of bounds on some of these.
func TestHostileAccept(t *testing.T) {
	for _, accept := range []string{"a;,bb", "x;", ";", ",", ";;;,", "application/json;q=", "text/csv;q=NaN,*/*;q=2", "\"", strings.Repeat("a;,", 1000)} {
		b := newBed(t)
		for _, path := range []string{"/v1/devices", "/v1/devices/d1/readings", "/v1/devices/none", "/"} {
			if w := b.do("GET", path, "", "Accept: "+accept); w.Code >= 500 {
				t.Errorf("Accept %q on %s: %d", accept, path, w.Code)
			}
		}
	}
}

func TestRequestIDs(t *testing.T) {
	b := newBed(t)
	w := b.do("GET", "/v1/devices/none", "", "X-Request-Id: mine-1")
	if p := parse[Problem](t, w.Body.String()); p.RequestID != "mine-1" || w.Header().Get("X-Request-Id") != "mine-1" {
		t.Errorf("the client's id is lost: %+v, header %q", p, w.Header().Get("X-Request-Id"))
	}
	w = b.do("GET", "/v1/devices/none", "", "X-Request-Id: bad id\x01")
	if p := parse[Problem](t, w.Body.String()); !strings.HasPrefix(p.RequestID, "req-") {
		t.Errorf("got id %q, want one of ours", p.RequestID)
	}
}

func TestRuleNames(t *testing.T) {
	for _, rt := range routeTable() {
		if rt.rule.String() == "" || slices.Contains([]rune(rt.rule.String()), '%') {
			t.Errorf("rule %d has no name", rt.rule)
		}
	}
}
