// Package httpapi is the HTTP door: it turns requests to uplinks and receipts to responses, answers questions about
// devices, alerts, domains and plugins under /v1, and streams what was committed as server-sent events.
//
// Hot ingest runs on plain net/http handlers; everything else is described by, and served through, huma, so that
// /openapi.json never differs from what the node does. docs/protocols/http.md tells what clients see.
//
// Part of the runtime; no compatibility promise before v1.
package httpapi

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"html/template"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/payload"
)

// Config bounds the gateway. The zero value of a field means its default.
type Config struct {
	Addr string      // to listen on; default 127.0.0.1:8080; port 0 takes a free one
	TLS  *tls.Config // nil: plain HTTP

	// Hosts are names (without port) under which an open node may be addressed besides loopback names and the address
	// that the connection came in on; "*" allows every name. See checkAmbient for what this guards against.
	Hosts []string

	Version Version // told by GET /v1/version

	PayloadBytesMax  int   // of one uplink; default 64 KiB
	BatchBytesMax    int   // body of POST /v1/ingest; default 4 MiB
	BatchItemsMax    int   // uplinks in one batch; default 1,000
	DocumentBytesMax int   // body of a PUT other than a module; default 256 KiB
	ModuleBytesMax   int64 // body of PUT /v1/plugins/{name}; default 32 MiB
	InFlightMax      int   // uplinks waiting for their commit; more are refused with 503; default 8,192
	StreamsMax       int   // event streams at once; more are refused with 503; default 256
	ConnsMax         int   // connections at once; more are closed unanswered; default 16,384

	HeaderTimeout time.Duration // to read a request's header; default 10 s
	BodyTimeout   time.Duration // to read a request's body; default 30 s
	WriteTimeout  time.Duration // to work off a request and write its answer; default 60 s
	IdleTimeout   time.Duration // of a kept-alive connection; default 2 min
	CommitTimeout time.Duration // to wait for an uplink's commit; default 10 s
	StreamTimeout time.Duration // to get one write into an event stream's connection; default 10 s
	Heartbeat     time.Duration // silence on an event stream before a comment is sent; default 15 s
	DrainTimeout  time.Duration // for requests in work when Serve's context ends; default 500 ms

	Ready          func() error          // why the node is not ready, nil when it is; nil: always ready
	MetricsHandler http.Handler          // GET /metrics; nil: 404
	Metrics        prometheus.Registerer // nil: none
	Log            *slog.Logger          // nil: discard
	Clock          func() dunlin.Time    // nil: the real one
}

// Version says what runs.
type Version struct {
	Version string `json:"version" doc:"Version of the dunlin binary"`
	Commit  string `json:"commit,omitempty" doc:"Commit that it was built from"`
	Go      string `json:"go,omitempty" doc:"Go release that it was built with"`
	Node    string `json:"node,omitempty" doc:"Name of the node that answers"`
}

// Deps are the rooms behind the door. All but Cluster must be set.
type Deps struct {
	Ingestor  dunlin.Ingestor
	Inspector dunlin.Inspector
	Registrar dunlin.Registrar
	Auth      dunlin.Authenticator
	Feed      dunlin.Feed
	Decoder   Decoder
	Cluster   dunlin.ClusterAdmin // nil: /v1/cluster is not found
	Plugins   dunlin.Plugins      // nil: plugins have no versions
	Trials    TrialCounter        // nil: trials are not counted
	Replay    dunlin.Replayer     // nil: the past can't be asked
}

// Decoder turns payloads to records: a *payload.Decoder.
type Decoder interface {
	Decode(u *dunlin.Uplink, body []byte) error
	Take(u *dunlin.Uplink, body []byte) (*payload.Pack, error)
}

// Gateway is the HTTP door of one node.
type Gateway struct {
	cfg  Config
	deps Deps
	log  *slog.Logger

	handler  http.Handler // of the whole server
	mux      *http.ServeMux
	routes   map[string]*route // by pattern
	metrics  *metrics
	openAPI  documents
	index    *template.Template
	listener net.Listener

	pendings   sync.Pool    // of *pending
	inFlight   atomic.Int64 // uplinks handed over and not told the outcome yet
	streams    atomic.Int64 // open event streams
	conns      atomic.Int64
	requests   atomic.Uint64
	jsonHeader []string // shared by all answers of the hot path, so that they allocate none
	idPrefix   string   // of generated request ids, unlike on every start
}

// New builds the gateway and its routes; it listens on nothing yet.
func New(cfg Config, deps Deps) (*Gateway, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	if deps.Ingestor == nil || deps.Inspector == nil || deps.Registrar == nil || deps.Auth == nil || deps.Feed == nil || deps.Decoder == nil {
		return nil, fmt.Errorf("http gateway: %w: a dependency is nil", dunlin.ErrInvalid)
	}
	var prefix [6]byte
	_, _ = rand.Read(prefix[:]) // never fails since Go 1.24
	g := &Gateway{index: indexTemplate(), cfg: cfg, deps: deps, log: cfg.Log, idPrefix: hex.EncodeToString(prefix[:]), jsonHeader: []string{"application/json"}}
	g.pendings.New = func() any { return newPending(g) }
	if g.metrics, err = newMetrics(cfg.Metrics, g); err != nil {
		return nil, fmt.Errorf("http gateway: metrics: %w", err)
	}
	if err := g.buildRoutes(); err != nil {
		return nil, fmt.Errorf("http gateway: routes: %w", err)
	}
	return g, nil
}

func (c Config) withDefaults() (Config, error) {
	setDefault(&c.Addr, "127.0.0.1:8080")
	setDefault(&c.PayloadBytesMax, 64<<10)
	setDefault(&c.BatchBytesMax, 4<<20)
	setDefault(&c.BatchItemsMax, 1000)
	setDefault(&c.DocumentBytesMax, 256<<10)
	setDefault(&c.ModuleBytesMax, 32<<20)
	setDefault(&c.InFlightMax, 8192)
	setDefault(&c.StreamsMax, 256)
	setDefault(&c.ConnsMax, 16384)
	setDefault(&c.HeaderTimeout, 10*time.Second)
	setDefault(&c.BodyTimeout, 30*time.Second)
	setDefault(&c.WriteTimeout, time.Minute)
	setDefault(&c.IdleTimeout, 2*time.Minute)
	setDefault(&c.CommitTimeout, 10*time.Second)
	setDefault(&c.StreamTimeout, 10*time.Second)
	setDefault(&c.Heartbeat, 15*time.Second)
	setDefault(&c.DrainTimeout, 500*time.Millisecond)
	for _, n := range []int64{int64(c.PayloadBytesMax), int64(c.BatchBytesMax), int64(c.BatchItemsMax), int64(c.DocumentBytesMax),
		c.ModuleBytesMax, int64(c.InFlightMax), int64(c.StreamsMax), int64(c.ConnsMax), int64(c.HeaderTimeout), int64(c.BodyTimeout),
		int64(c.WriteTimeout), int64(c.IdleTimeout), int64(c.CommitTimeout), int64(c.StreamTimeout), int64(c.Heartbeat), int64(c.DrainTimeout)} {
		if n < 0 {
			return c, fmt.Errorf("http gateway: %w: a bound or timeout is negative (%d)", dunlin.ErrInvalid, n)
		}
	}
	if c.Clock == nil {
		c.Clock = func() dunlin.Time { return dunlin.TimeOf(time.Now()) }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Ready == nil {
		c.Ready = func() error { return nil }
	}
	return c, nil
}

func setDefault[T comparable](v *T, def T) {
	var zero T
	if *v == zero {
		*v = def
	}
}

// Listen binds Config.Addr.
func (g *Gateway) Listen() error {
	if g.listener != nil {
		return nil
	}
	l, err := net.Listen("tcp", g.cfg.Addr)
	if err != nil {
		return fmt.Errorf("http gateway: %w", err)
	}
	g.listener = l
	return nil
}

// Addr is the bound address, nil before Listen.
func (g *Gateway) Addr() net.Addr {
	if g.listener == nil {
		return nil
	}
	return g.listener.Addr()
}

// ServeHTTP answers one request. Serve calls it; tests and a node that brings its own server may, too.
func (g *Gateway) ServeHTTP(w http.ResponseWriter, r *http.Request) { g.handler.ServeHTTP(w, r) }

// closingKey finds, in a request's context, the context whose end means that the node is closing: event streams end with
// it, while other requests may finish.
type closingKey struct{}

// Serve answers requests until ctx ends; then it stops listening, lets requests in work finish within DrainTimeout, and
// returns when every connection's goroutine has ended. It binds Config.Addr if Listen has not.
func (g *Gateway) Serve(ctx context.Context) error {
	if err := g.Listen(); err != nil {
		return err
	}
	// Requests outlive ctx by the drain; base is what ends them for good.
	base, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var conns sync.WaitGroup
	srv := &http.Server{
		Handler:           g,
		TLSConfig:         g.cfg.TLS,
		ReadHeaderTimeout: g.cfg.HeaderTimeout,
		// No ReadTimeout: its deadline would also hit net/http's background read while a handler waits for a commit, and
		// cancel the request. Bodies get a deadline of their own in serveRoute, and event streams renew the write deadline.
		WriteTimeout:   g.cfg.WriteTimeout,
		IdleTimeout:    g.cfg.IdleTimeout,
		MaxHeaderBytes: 32 << 10,
		ErrorLog:       slog.NewLogLogger(g.log.Handler(), slog.LevelDebug), // TLS handshakes of strangers and the like
		BaseContext: func(net.Listener) context.Context {
			return context.WithValue(base, closingKey{}, ctx)
		},
		ConnState: func(conn net.Conn, state http.ConnState) {
			switch state {
			case http.StateNew:
				conns.Add(1)
				if g.conns.Add(1) > int64(g.cfg.ConnsMax) {
					g.metrics.connsRefused.Inc()
					_ = conn.Close()
				}
			case http.StateClosed, http.StateHijacked:
				g.conns.Add(-1)
				conns.Done()
			}
		},
	}
	served := make(chan error, 1)
	go func() {
		if g.cfg.TLS != nil {
			served <- srv.ServeTLS(g.listener, "", "")
			return
		}
		served <- srv.Serve(g.listener)
	}()

	var err error
	select {
	case <-ctx.Done():
		drain, stop := context.WithTimeout(base, g.cfg.DrainTimeout)
		if srv.Shutdown(drain) != nil {
			cut()
			_ = srv.Close()
		}
		stop()
		<-served
	case err = <-served: // the listener failed
		cut()
		_ = srv.Close()
	}
	conns.Wait()
	if err != nil && !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("http gateway: serve %s: %w", g.listener.Addr(), err)
	}
	return nil
}
