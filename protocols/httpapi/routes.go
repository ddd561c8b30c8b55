package httpapi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// rule says who may use a route.
type rule uint8

// The rules. Each route has one; see routeTable.
const (
	rulePublic      rule = iota // nobody is asked who they are
	ruleAnyone                  // any authenticated principal
	ruleWriteDevice             // Principal.MayWrite of the device {id}
	ruleReadDevice              // Principal.MayRead of the device {id}
	ruleReadQuery               // Principal.MayRead of the device in the query, MayReadAll without one
	ruleReadAll                 // Principal.MayReadAll
	ruleAdmin                   // Principal.MayAdmin
)

func (r rule) String() string {
	return [...]string{"public", "anyone", "write device", "read device", "read device or all", "read all", "admin"}[r]
}

// route is one row of the table: a method and path with who may use it.
type route struct {
	pattern string // of http.ServeMux
	rule    rule
	used    bool // a handler was registered
	metrics routeMetrics
}

// routeTable lists every route. A handler without a row here, and a row without a handler, is an error of New.
func routeTable() []route {
	return []route{
		{pattern: "GET /{$}", rule: rulePublic},
		{pattern: "GET /livez", rule: rulePublic},
		{pattern: "GET /readyz", rule: rulePublic},
		{pattern: "GET /openapi.json", rule: rulePublic},
		{pattern: "GET /openapi.yaml", rule: rulePublic},
		{pattern: "GET /metrics", rule: ruleReadAll},
		{pattern: "GET /v1/version", rule: ruleAnyone},

		{pattern: "POST /v1/devices/{id}/t", rule: ruleWriteDevice},
		{pattern: "GET /v1/devices/{id}/c", rule: ruleReadDevice},
		{pattern: "POST /v1/devices/{id}/c/{command}", rule: ruleWriteDevice},
		{pattern: "POST /v1/ingest", rule: ruleAnyone}, // each item is checked with MayWrite
		{pattern: "GET /v1/events", rule: ruleReadQuery},

		{pattern: "GET /v1/devices", rule: ruleReadAll},
		{pattern: "GET /v1/devices/{id}", rule: ruleReadDevice},
		{pattern: "PUT /v1/devices/{id}", rule: ruleAdmin},
		{pattern: "DELETE /v1/devices/{id}", rule: ruleAdmin},
		{pattern: "GET /v1/devices/{id}/state", rule: ruleReadDevice},
		{pattern: "GET /v1/devices/{id}/readings", rule: ruleReadDevice},
		{pattern: "GET /v1/devices/{id}/alerts", rule: ruleReadDevice},
		{pattern: "GET /v1/alerts", rule: ruleReadAll},
		{pattern: "GET /v1/alerts/explanation", rule: ruleReadAll},
		{pattern: "POST /v1/backtests", rule: ruleAdmin},
		{pattern: "GET /v1/deadletters", rule: ruleReadAll},
		{pattern: "DELETE /v1/deadletters/{device}/{stage}/{seq}", rule: ruleAdmin},
		{pattern: "POST /v1/deadletters/{device}/{stage}/{seq}/replay", rule: ruleAdmin},

		{pattern: "GET /v1/domains", rule: ruleReadAll},
		{pattern: "GET /v1/domains/{id}", rule: ruleReadAll},
		{pattern: "PUT /v1/domains/{id}", rule: ruleAdmin},
		{pattern: "DELETE /v1/domains/{id}", rule: ruleAdmin},
		{pattern: "GET /v1/plugins", rule: ruleReadAll},
		{pattern: "GET /v1/plugins/{name}", rule: ruleReadAll},
		{pattern: "PUT /v1/plugins/{name}", rule: ruleAdmin},
		{pattern: "DELETE /v1/plugins/{name}", rule: ruleAdmin},
		{pattern: "POST /v1/plugins/{name}/activate", rule: ruleAdmin},
		{pattern: "POST /v1/plugins/{name}/rollback", rule: ruleAdmin},
		{pattern: "GET /v1/plugins/{name}/trial", rule: ruleReadAll},
		{pattern: "PUT /v1/plugins/{name}/trial", rule: ruleAdmin},
		{pattern: "DELETE /v1/plugins/{name}/trial", rule: ruleAdmin},
		{pattern: "GET /v1/plugins/{name}/modules/{version}", rule: ruleAdmin},
		{pattern: "GET /v1/credentials", rule: ruleAdmin},
		{pattern: "PUT /v1/credentials/{kind}/{id}", rule: ruleAdmin},
		{pattern: "DELETE /v1/credentials/{kind}/{id}", rule: ruleAdmin},
		{pattern: "GET /v1/cluster", rule: ruleAdmin},
		{pattern: "GET /v1/cluster/members", rule: ruleAdmin},
		{pattern: "GET /v1/cluster/shards", rule: ruleAdmin},
		{pattern: "GET /v1/cluster/shards/{shard}/hash", rule: ruleAdmin},
		{pattern: "GET /v1/cluster/replicas", rule: ruleAdmin},
		{pattern: "PUT /v1/cluster/members/{name}/state", rule: ruleAdmin},
		{pattern: "POST /v1/cluster/shards/{shard}/move", rule: ruleAdmin},
	}
}

// call is one request in work: its answer's writer, and what every handler needs to know.
type call struct {
	http.ResponseWriter
	g         *Gateway
	route     *route
	principal dunlin.Principal
	path      string
	accept    string // the Accept header, which huma must not see
	requestID string
	status    int // 0: nothing written yet
	bytes     int64
}

// callKey finds the call in a huma handler's context.
type callKey struct{}

func callOf(ctx context.Context) *call { return ctx.Value(callKey{}).(*call) }

// WriteHeader remembers the status for the log and the metrics.
func (c *call) WriteHeader(code int) {
	if c.status == 0 {
		c.status = code
	}
	c.ResponseWriter.WriteHeader(code)
}

func (c *call) Write(b []byte) (int, error) {
	if c.status == 0 {
		c.status = http.StatusOK
	}
	n, err := c.ResponseWriter.Write(b)
	c.bytes += int64(n)
	return n, err
}

// Unwrap lets http.ResponseController find the connection.
func (c *call) Unwrap() http.ResponseWriter { return c.ResponseWriter }

// id is the request's id: the client's, or one made when first asked for, so that a good uplink costs none.
func (c *call) id() string {
	if c.requestID == "" {
		c.requestID = c.g.idPrefix + "-" + strconv.FormatUint(c.g.requests.Add(1), 36)
		if c.status == 0 {
			c.Header().Set("X-Request-Id", c.requestID)
		}
	}
	return c.requestID
}

// tenant is whose data the call is about.
func (c *call) tenant() dunlin.Tenant { return c.principal.Tenant }

func (c *call) key(id string) dunlin.DeviceKey {
	return dunlin.DeviceKey{Tenant: c.tenant(), Device: dunlin.DeviceID(id)}
}

// rawHandler answers a call without huma.
type rawHandler func(c *call, r *http.Request)

// buildRoutes registers every handler and checks that table and handlers match one to one.
func (g *Gateway) buildRoutes() error {
	g.mux = http.NewServeMux()
	g.routes = map[string]*route{}
	for _, rt := range routeTable() {
		rt.metrics = g.metrics.route(rt.pattern)
		g.routes[rt.pattern] = &rt
	}
	reg := &registration{g: g}
	g.registerRaw(reg)
	g.registerAPI(reg)
	for _, rt := range g.routes {
		if !rt.used {
			reg.errs = append(reg.errs, fmt.Errorf("route %q has no handler", rt.pattern))
		}
	}
	lost := &route{pattern: "unknown", metrics: g.metrics.route("unknown")}
	g.mux.HandleFunc("/", g.serveRoute(lost, g.serveUnknown))
	g.handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { g.mux.ServeHTTP(w, r) })
	return errors.Join(reg.errs...)
}

// registration is the one way to the mux; it is also huma's mux.
type registration struct {
	g    *Gateway
	errs []error
}

func (reg *registration) raw(pattern string, h rawHandler) {
	rt := reg.g.routes[pattern]
	if rt == nil {
		reg.errs = append(reg.errs, fmt.Errorf("handler for %q has no row in the route table, so no rule", pattern))
		return
	}
	rt.used = true
	reg.g.mux.HandleFunc(pattern, reg.g.serveRoute(rt, h))
}

// HandleFunc makes registration a humago.Mux.
func (reg *registration) HandleFunc(pattern string, h func(http.ResponseWriter, *http.Request)) {
	reg.raw(pattern, func(c *call, r *http.Request) {
		// huma's parser of Accept slices out of bounds on "a;,bb" (v2.39.1), and we speak one format there anyway.
		c.accept = strings.Join(r.Header.Values("Accept"), ",")
		r.Header.Del("Accept")
		c.Header().Set("X-Content-Type-Options", "nosniff")
		// A room that does not answer ends as a 503, before the connection's write deadline ends it without a word.
		ctx, cancel := context.WithTimeout(r.Context(), reg.g.cfg.WriteTimeout/10*9)
		defer cancel()
		h(c, r.WithContext(context.WithValue(ctx, callKey{}, c)))
	})
}

// ServeHTTP makes registration a humago.Mux.
func (reg *registration) ServeHTTP(w http.ResponseWriter, r *http.Request) { reg.g.mux.ServeHTTP(w, r) }

// serveRoute is what happens around every handler: deadlines, who is it, may they, panics, metrics, the access log.
func (g *Gateway) serveRoute(rt *route, h rawHandler) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		began := time.Now()
		c := &call{ResponseWriter: w, g: g, route: rt, path: r.URL.Path}
		defer c.finish(r, began)
		if id := r.Header.Get("X-Request-Id"); id != "" && validRequestID(id) {
			c.requestID = id
			c.Header().Set("X-Request-Id", id)
		}
		if r.ContentLength != 0 {
			// Also bounds the drain that net/http does when a handler leaves the body unread.
			_ = http.NewResponseController(w).SetReadDeadline(began.Add(g.cfg.BodyTimeout))
		}
		if err := g.authorize(c, r); err != nil {
			c.fail(r, err)
			return
		}
		h(c, r)
	}
}

// finish counts and logs the call, and turns a panic to a 500.
func (c *call) finish(r *http.Request, began time.Time) {
	if p := recover(); p != nil {
		if p == http.ErrAbortHandler {
			panic(p)
		}
		c.g.metrics.panics.Inc()
		c.g.log.ErrorContext(r.Context(), "http: handler panicked", "request", c.id(), "route", c.route.pattern, "panic", p,
			"stack", string(debug.Stack()))
		if c.status != 0 {
			c.route.metrics.observe(http.StatusInternalServerError, time.Since(began))
			panic(http.ErrAbortHandler) // half an answer is out: only a cut connection can still say that it is wrong
		}
		c.fail(r, newProblem(http.StatusInternalServerError, "The node could not answer this; its log says why, under the request id."))
	}
	if c.status == 0 {
		c.status = http.StatusOK
	}
	took := time.Since(began)
	c.route.metrics.observe(c.status, took)
	if c.g.log.Enabled(r.Context(), slog.LevelDebug) {
		c.g.log.LogAttrs(r.Context(), slog.LevelDebug, "http: request", slog.String("method", r.Method), slog.String("path", r.URL.Path),
			slog.Int("status", c.status), slog.Int64("bytes", c.bytes), slog.Duration("took", took), slog.String("remote", r.RemoteAddr),
			slog.String("principal", c.principal.ID), slog.String("request", c.requestID))
	}
}

func validRequestID(s string) bool {
	if len(s) > 64 {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && c != '-' && c != '_' && c != '.' {
			return false
		}
	}
	return true
}

// serveUnknown answers what no route takes: 405 with Allow if the path is known with another method, else 404.
func (g *Gateway) serveUnknown(c *call, r *http.Request) {
	var allow []string
	probe := r.Clone(r.Context())
	for _, m := range []string{http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodDelete} {
		probe.Method = m
		if _, pattern := g.mux.Handler(probe); pattern != "/" && pattern != "" {
			allow = append(allow, m)
		}
	}
	if len(allow) == 0 {
		c.fail(r, newProblem(http.StatusNotFound, "There is nothing at this path; GET / lists what there is."))
		return
	}
	slices.Sort(allow)
	list := strings.Join(allow, ", ")
	c.fail(r, newProblem(http.StatusMethodNotAllowed, "This path takes "+list+".").withHeader("Allow", list))
}
