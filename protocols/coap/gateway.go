// Package coap is the CoAP door (RFC 7252 over UDP): it turns requests on d/{id}/t to uplinks and receipts to responses,
// and answers questions about a device's twin. docs/protocols/coap.md tells what clients see.
//
//	socket 0 ─▶ reader 0: endpoint.Machine ──┐ one chain of uplinks       ┌─▶ calls done: a lock-free list per reader
//	socket 1 ─▶ reader 1: endpoint.Machine ──┴▶ a batch ──▶ Ingestor ─────┘   wakes its reader, which answers in batches
//	   …                                   └──▶ jobs (bounded) ──▶ workers: Authenticate, Twin
//
// Each reader owns a socket of its own (SO_REUSEPORT: the kernel gives a peer's datagrams to one of them), the message
// layer behind it and all its state: nothing on the way of a datagram takes a lock or waits. What may wait (credential
// hashes, twins) is done by workers. There is no goroutine, channel or timer per peer or request.
//
// Part of the runtime; no compatibility promise before v1.
package coap

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/payload"
)

// Config bounds the gateway. The zero value of a field means its default.
type Config struct {
	Addr string // to listen on, UDP; default 127.0.0.1:5683; port 0 takes a free one
	Open bool   // everyone may do everything (dunlin.PrincipalOpen); credentials are not asked for

	Readers         int // sockets, each with a goroutine; default GOMAXPROCS; 1 on systems other than Linux
	PayloadBytesMax int // of one uplink; larger ones are answered 4.13; default 4 KiB, at most 60,000

	// The following are bounds of the whole gateway; a reader gets its share.
	PeersMax         int // endpoints remembered, about 250 B each; default 131,072
	ExchangesMax     int // requests in work or not yet acknowledged by their peer; more are answered 5.03; default 32,768
	PeerExchangesMax int // of these, of one endpoint; default 256
	SeenMax          int // messages remembered to recognise duplicates, 72 B each; default 131,072
	JobsMax          int // logins and twins in work; more are answered 5.03; default 1,024
	Workers          int // goroutines for those; default 4
	LoginsMax        int // logins remembered, so that a secret is not hashed for each message; default 65,536

	LoginFor     time.Duration // for how long a login is remembered; default 1 min: so long a revoked credential still works
	JobTimeout   time.Duration // for a login or a twin; default 5 s
	DrainTimeout time.Duration // for requests in work when Serve's context ends; default 500 ms

	Metrics prometheus.Registerer // nil: none
	Log     *slog.Logger          // nil: discard
	Clock   func() dunlin.Time    // of Uplink.Received; nil: the real one
}

// Deps are the rooms behind the door. Auth may be nil if the node is open; all others must be set.
type Deps struct {
	Ingestor  dunlin.Ingestor
	Inspector dunlin.Inspector
	Auth      dunlin.Authenticator
	Decoder   Decoder
}

// Decoder turns payloads to records: a *payload.Decoder.
type Decoder interface {
	Take(u *dunlin.Uplink, body []byte) (*payload.Pack, error)
}

// Gateway is the CoAP door of one node.
type Gateway struct {
	cfg     Config
	deps    Deps
	log     *slog.Logger
	start   time.Time // the zero of the readers' monotonic time
	hashKey [32]byte  // of remembered logins
	jobs    chan *job
	readers atomic.Pointer[[]*reader] // set by Listen
	closing atomic.Bool
	packs   unfinished
	drained atomic.Int64 // time.Duration since start at which draining ends
}

func (c Config) withDefaults() (Config, error) {
	setDefault(&c.Addr, "127.0.0.1:5683")
	setDefault(&c.Readers, runtime.GOMAXPROCS(0))
	setDefault(&c.PayloadBytesMax, 4<<10)
	setDefault(&c.PeersMax, 1<<17)
	setDefault(&c.ExchangesMax, 1<<15)
	setDefault(&c.PeerExchangesMax, 256)
	setDefault(&c.SeenMax, 1<<17)
	setDefault(&c.JobsMax, 1024)
	setDefault(&c.Workers, 4)
	setDefault(&c.LoginsMax, 1<<16)
	setDefault(&c.LoginFor, time.Minute)
	setDefault(&c.JobTimeout, 5*time.Second)
	setDefault(&c.DrainTimeout, 500*time.Millisecond)
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Clock == nil {
		c.Clock = func() dunlin.Time { return dunlin.TimeOf(time.Now()) }
	}
	for name, v := range map[string]int{"readers": c.Readers, "payload bytes": c.PayloadBytesMax, "peers": c.PeersMax,
		"exchanges": c.ExchangesMax, "exchanges per peer": c.PeerExchangesMax, "seen": c.SeenMax, "jobs": c.JobsMax,
		"workers": c.Workers, "logins": c.LoginsMax} {
		if v < 0 {
			return c, fmt.Errorf("%w: %s: %d is negative", dunlin.ErrInvalid, name, v)
		}
	}
	if c.PayloadBytesMax > 60_000 {
		return c, fmt.Errorf("%w: payload bytes: %d do not fit a datagram, want at most 60000", dunlin.ErrInvalid, c.PayloadBytesMax)
	}
	return c, nil
}

func setDefault[T comparable](v *T, d T) {
	var zero T
	if *v == zero {
		*v = d
	}
}

// New builds the gateway; it listens on nothing yet.
func New(cfg Config, deps Deps) (*Gateway, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, fmt.Errorf("coap gateway: %w", err)
	}
	if deps.Ingestor == nil || deps.Inspector == nil || deps.Decoder == nil || deps.Auth == nil && !cfg.Open {
		return nil, fmt.Errorf("coap gateway: %w: a dependency is nil", dunlin.ErrInvalid)
	}
	g := &Gateway{cfg: cfg, deps: deps, log: cfg.Log, start: time.Now(), jobs: make(chan *job, cfg.JobsMax)}
	_, _ = rand.Read(g.hashKey[:]) // never fails since Go 1.24
	if cfg.Metrics != nil {
		if err := cfg.Metrics.Register(newCollector(g)); err != nil {
			return nil, fmt.Errorf("coap gateway: metrics: %w", err)
		}
	}
	return g, nil
}

// now is the readers' time: monotonic, so that a step of the clock neither fires nor stalls timers.
func (g *Gateway) now() time.Duration { return time.Since(g.start) }

// Listen binds Config.Addr. From then on datagrams wait for Serve.
func (g *Gateway) Listen() error {
	sockets, err := listen(g.cfg.Addr, g.cfg.Readers, datagramBytesMax(g.cfg.PayloadBytesMax))
	if err != nil {
		return fmt.Errorf("coap gateway: listen on %s: %w", g.cfg.Addr, err)
	}
	var readers []*reader
	for _, s := range sockets {
		var seed [8]byte
		_, _ = rand.Read(seed[:])
		readers = append(readers, newReader(g, s, len(sockets), binary.LittleEndian.Uint64(seed[:])))
	}
	g.readers.Store(&readers)
	return nil
}

// listening returns the readers; none before Listen.
func (g *Gateway) listening() []*reader {
	if p := g.readers.Load(); p != nil {
		return *p
	}
	return nil
}

// datagramBytesMax leaves room for header, token and options before the payload; what is longer is read in part and
// refused by its length.
func datagramBytesMax(payload int) int { return payload + 1024 }

// Addr returns the address that Listen bound.
func (g *Gateway) Addr() net.Addr {
	if all := g.listening(); len(all) > 0 {
		return all[0].sock.localAddr()
	}
	return nil
}

// Serve answers datagrams until ctx ends, then new requests with 5.03 until those in work are answered or DrainTimeout is
// over. It closes the sockets and returns when everything it started has ended; a Gateway serves once.
func (g *Gateway) Serve(ctx context.Context) error {
	if len(g.listening()) == 0 {
		if err := g.Listen(); err != nil {
			return err
		}
	}
	// Jobs outlive ctx by the time of draining: what is in work is answered.
	jobs, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	var readers, workers sync.WaitGroup
	for range g.cfg.Workers {
		workers.Go(func() { g.work(jobs) })
	}
	for _, rd := range g.listening() {
		readers.Go(rd.run)
	}
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { g.close(); close(closed) })
	readers.Wait() // until ctx ended and everything is drained, or a socket failed
	if !stop() {
		<-closed
	}
	cancel(dunlin.ErrUnavailable)
	close(g.jobs) // its only senders, the readers, have ended
	workers.Wait()
	for _, rd := range g.listening() {
		rd.sock.close()
	}
	if ctx.Err() == nil { // a reader has logged why
		return fmt.Errorf("coap gateway: %w: its sockets failed", dunlin.ErrUnavailable)
	}
	return nil
}

// close makes the readers drain and end.
func (g *Gateway) close() {
	g.drained.Store(int64(g.now() + g.cfg.DrainTimeout))
	g.closing.Store(true)
	for _, rd := range g.listening() {
		rd.wake()
	}
}
