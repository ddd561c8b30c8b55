package peer

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pki is an authority for the nodes of one test.
type pki struct {
	key  ed25519.PrivateKey
	cert *x509.Certificate
	pool *x509.CertPool
}

func newPKI(t testing.TB) *pki {
	t.Helper()
	pub, key, _ := ed25519.GenerateKey(rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, pub, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	p := &pki{key, cert, x509.NewCertPool()}
	p.pool.AddCert(cert)
	return p
}

// tls is what a node with that id is given.
func (p *pki) tls(t testing.TB, node dunlin.NodeID) *tls.Config {
	t.Helper()
	pub, key, _ := ed25519.GenerateKey(rand.Reader)
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(2), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"node"}, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	if node != 0 {
		tmpl.URIs = []*url.URL{{Scheme: "test", Host: node.String()}}
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, p.cert, pub, p.key)
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}, RootCAs: p.pool, ClientCAs: p.pool,
		ServerName: "node", ClientAuth: tls.RequireAndVerifyClientCert, MinVersion: tls.VersionTLS13, SessionTicketsDisabled: true}
}

func peerOf(cs tls.ConnectionState) (id dunlin.NodeID, name string, err error) {
	if uris := cs.PeerCertificates[0].URIs; len(uris) > 0 {
		err = id.UnmarshalText([]byte(uris[0].Host))
	}
	return id, "", err
}

// lan is where the nodes of a test find each other.
type lan struct {
	t   testing.TB
	pki *pki
	mu  struct {
		sync.Mutex
		addrs map[dunlin.NodeID]string
	}
}

func newLAN(t testing.TB) *lan {
	l := &lan{t: t, pki: newPKI(t)}
	l.mu.addrs = map[dunlin.NodeID]string{}
	return l
}

func (l *lan) set(node dunlin.NodeID, addr string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mu.addrs[node] = addr
}

func (l *lan) resolve(node dunlin.NodeID) (string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	addr, ok := l.mu.addrs[node]
	return addr, ok
}

// node is one node under test.
type node struct {
	*Links
	id   dunlin.NodeID
	log  *logs
	got  chan Message // Raft messages; To is whom it is from
	stop func()
}

type logs struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logs) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(b)
}

func (l *logs) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

func (l *lan) config(id dunlin.NodeID) Config {
	c := l.pki.tls(l.t, id)
	return Config{Self: Hello{Cluster: "c0ffee", Node: id, Name: fmt.Sprintf("n%d", id), Version: "1.0"}, Server: c, Client: c, PeerOf: peerOf, Resolve: l.resolve}
}

// node starts a node; change may alter its settings.
func (l *lan) node(id dunlin.NodeID, change ...func(*Config)) *node {
	l.t.Helper()
	n := l.unlisted(id, change...)
	l.set(id, n.Addr().String())
	return n
}

// unlisted is a node whose address nobody knows.
func (l *lan) unlisted(id dunlin.NodeID, change ...func(*Config)) *node {
	l.t.Helper()
	n := &node{id: id, log: &logs{}, got: make(chan Message, 1<<16)}
	cfg := l.config(id)
	cfg.Logger = slog.New(slog.NewTextHandler(n.log, nil))
	cfg.OnMessages = func(from dunlin.NodeID, sh dunlin.ShardID, data []byte) {
		select {
		case n.got <- Message{uint64(from), sh, bytes.Clone(data)}:
		default:
		}
	}
	cfg.Serve = func(_ context.Context, _ dunlin.NodeID, method string, body []byte) ([]byte, error) {
		if method != "echo" {
			return nil, fmt.Errorf("%w: %s", dunlin.ErrNotFound, method)
		}
		return body, nil
	}
	for _, f := range change {
		f(&cfg)
	}
	var err error
	if n.Links, err = Open(cfg); err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := n.Run(ctx); err != nil {
			l.t.Error(err)
		}
	}()
	n.stop = sync.OnceFunc(func() {
		cancel()
		select {
		case <-done:
		case <-time.After(10 * time.Second):
			l.t.Errorf("node %s does not stop", id)
		}
	})
	l.t.Cleanup(n.stop)
	return n
}

func (n *node) status(id dunlin.NodeID) PeerStatus {
	for _, s := range n.Peers() {
		if s.Node == id {
			return s
		}
	}
	return PeerStatus{}
}

// links counts the node's connections.
func (n *node) links() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.mu.conns)
}

// cut closes the connection to a node as a broken network does.
func (n *node) cut(id dunlin.NodeID) {
	if p := (*n.peers.Load())[id]; p != nil {
		if c := p.cur.Load(); c != nil {
			c.wire.Conn.Close()
		}
	}
}

// eventually waits for something that happens in other goroutines.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not within 10s: %s", what)
		}
	}
}

// pass lets time pass: for what must not happen meanwhile.
func pass(d time.Duration) { <-time.After(d) }

func within(t testing.TB, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), d)
	t.Cleanup(cancel)
	return ctx
}

// proxy stands before a node. It can be frozen: bytes then go nowhere, and nothing says so.
type proxy struct {
	net.Listener
	to  string
	wg  sync.WaitGroup
	gen struct {
		sync.Mutex
		frozen chan struct{} // closed: bytes flow
		conns  []net.Conn
	}
}

func newProxy(t testing.TB, to string) *proxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{Listener: ln, to: to}
	p.gen.frozen = make(chan struct{})
	close(p.gen.frozen)
	p.wg.Go(func() {
		for {
			in, err := ln.Accept()
			if err != nil {
				return
			}
			out, err := net.Dial("tcp", to)
			if err != nil {
				in.Close()
				continue
			}
			p.gen.Lock()
			p.gen.conns = append(p.gen.conns, in, out)
			p.gen.Unlock()
			p.wg.Go(func() { p.pump(in, out) })
			p.wg.Go(func() { p.pump(out, in) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		p.thaw()
		p.gen.Lock()
		for _, c := range p.gen.conns {
			c.Close()
		}
		p.gen.Unlock()
		p.wg.Wait()
	})
	return p
}

func (p *proxy) pump(from, to net.Conn) {
	defer to.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := from.Read(buf)
		p.gen.Lock()
		gate := p.gen.frozen
		p.gen.Unlock()
		<-gate
		if n > 0 {
			if _, werr := to.Write(buf[:n]); werr != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *proxy) freeze() {
	p.gen.Lock()
	defer p.gen.Unlock()
	p.gen.frozen = make(chan struct{})
}

func (p *proxy) thaw() {
	p.gen.Lock()
	defer p.gen.Unlock()
	select {
	case <-p.gen.frozen:
	default:
		close(p.gen.frozen)
	}
}

// stranger speaks TLS with a good certificate, and then what the test wants.
func (l *lan) stranger(addr string, id dunlin.NodeID) *tls.Conn {
	l.t.Helper()
	cfg := l.pki.tls(l.t, id)
	cfg.NextProtos = []string{alpn}
	c, err := tls.Dial("tcp", addr, cfg)
	if err != nil {
		l.t.Fatal(err)
	}
	l.t.Cleanup(func() { c.Close() })
	return c
}

// member is a stranger that has said Hello as a node.
func (l *lan) member(addr string, id dunlin.NodeID, k kind) *tls.Conn {
	l.t.Helper()
	c := l.stranger(addr, id)
	h := &hello{Hello: Hello{Cluster: "c0ffee", Node: id, Name: "fake", WireMin: 1, WireMax: 1, Version: "0"}, kind: k, boot: 4711}
	if _, err := c.Write(h.append(nil)); err != nil {
		l.t.Fatal(err)
	}
	if _, err := readHello(c); err != nil {
		l.t.Fatal(err)
	}
	return c
}

// drain reads until the other side ends the connection and returns the last refusal that it gave.
func drain(t testing.TB, c net.Conn) *Refusal {
	t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(10 * time.Second))
	var last *Refusal
	head := make([]byte, frameHead)
	for {
		if _, err := io.ReadFull(c, head); err != nil {
			return last
		}
		body := make([]byte, int(head[0])|int(head[1])<<8|int(head[2])<<16)
		if _, err := io.ReadFull(c, body); err != nil {
			return last
		}
		if head[3] == frameRefuse {
			last, _ = parseRefuse(body)
		}
	}
}
