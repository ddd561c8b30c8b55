package keys

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"fmt"
	"math/big"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin"
)

const (
	// LeafLife is how long a node's own certificate lasts; a third before its end the next one is made.
	LeafLife = 30 * 24 * time.Hour
	// leafSlack is how far apart two nodes' clocks may be: a leaf is valid from so long before it was made. Small machines
	// wake up in the past.
	leafSlack = 24 * time.Hour
	// serverName is the name that every leaf carries and every client asks for: nodes are known by their URI, not by where
	// they are.
	serverName = "node.dunlin.internal"
	scheme     = "dunlin"
	nameMax    = 255 // bytes of a name in a certificate
)

// TLS returns the two sides' settings for connections between nodes: TLS 1.3, both sides show a certificate that one of the
// secret's authorities has signed, this node's own is made in memory by the primary's. The cluster's id may be "": a node
// that has not joined yet has none, and its certificate then says nothing about it. alpn are the protocols to negotiate.
func (s Secret) TLS(self dunlin.NodeID, name, cluster string, alpn ...string) (server, client *tls.Config, err error) {
	return s.tls(self, name, cluster, time.Now, alpn)
}

func (s Secret) tls(self dunlin.NodeID, name, cluster string, now func() time.Time, alpn []string) (server, client *tls.Config, err error) {
	switch {
	case s.IsZero():
		return nil, nil, fmt.Errorf("%w: certificate: there is no cluster secret", dunlin.ErrInvalid)
	case self == 0:
		return nil, nil, fmt.Errorf("%w: certificate: a node needs an id", dunlin.ErrInvalid)
	case name == "" || len(name) > nameMax || len(cluster) > nameMax || strings.ContainsAny(cluster, "/?#@:%[] "):
		return nil, nil, fmt.Errorf("%w: certificate: name %q, cluster %q", dunlin.ErrInvalid, name, cluster)
	}
	roots := x509.NewCertPool()
	var first *authority
	for i, k := range s.keys {
		a, err := newAuthority(k)
		if err != nil {
			return nil, nil, fmt.Errorf("certificate authority number %d: %w", i+1, err)
		}
		roots.AddCert(a.cert)
		if first == nil {
			first = a
		}
	}
	l := &leaf{ca: first, uri: identityURI(Identity{cluster, self, name}), now: now}
	if _, err := l.current(); err != nil {
		return nil, nil, err
	}
	base := tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: slices.Clone(alpn), Time: now, SessionTicketsDisabled: true,
		RootCAs: roots, ClientCAs: roots, ServerName: serverName, ClientAuth: tls.RequireAndVerifyClientCert,
		VerifyConnection: func(cs tls.ConnectionState) error {
			id, err := IdentityOf(cs)
			if err == nil && id.Node == 0 {
				err = fmt.Errorf("%w: the certificate names no node", dunlin.ErrUnauthenticated)
			}
			return err
		},
	}
	server, client = base.Clone(), base.Clone()
	server.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return l.current() }
	client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return l.current() }
	return server, client, nil
}

// authority is the CA that a secret stands for.
type authority struct {
	key  ed25519.PrivateKey
	cert *x509.Certificate
}

// newAuthority makes it. Ed25519 signs deterministically and nothing here asks clock or chance: every node has the same bytes.
func newAuthority(k [keyBytes]byte) (*authority, error) {
	key := ed25519.NewKeyFromSeed(derive(k, "dunlin ca v1", ed25519.SeedSize))
	sum := sha256.Sum256(key.Public().(ed25519.PublicKey))
	tmpl := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(append([]byte{1}, sum[:15]...)),
		Subject:      pkix.Name{CommonName: "dunlin cluster " + hex.EncodeToString(derive(k, "dunlin fingerprint v1", 8))},
		SubjectKeyId: sum[:20],
		NotBefore:    time.Date(2020, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280's "no end": it ends with the secret
		IsCA:         true, BasicConstraintsValid: true, MaxPathLenZero: true,
		KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(nil, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return nil, err
	}
	cert, err := x509.ParseCertificate(der)
	return &authority{key, cert}, err
}

// leaf is this node's own certificate, made anew before it ends. Key and certificate never leave memory.
type leaf struct {
	ca  *authority
	uri *url.URL
	now func() time.Time

	mu struct {
		sync.Mutex
		cert *tls.Certificate
		made time.Time
	}
}

func (l *leaf) current() (*tls.Certificate, error) {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	// A clock that was set back far enough makes a new one, too.
	if l.mu.cert != nil && now.Before(l.mu.made.Add(LeafLife*2/3)) && now.After(l.mu.made.Add(-leafSlack/2)) {
		return l.mu.cert, nil
	}
	cert, err := l.sign(now)
	if err != nil {
		return nil, fmt.Errorf("certificate for %s: %w", l.uri, err)
	}
	l.mu.cert, l.mu.made = cert, now
	return cert, nil
}

func (l *leaf) sign(now time.Time) (*tls.Certificate, error) {
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		return nil, err
	}
	serial := make([]byte, 16)
	rand.Read(serial)
	tmpl := &x509.Certificate{
		SerialNumber: new(big.Int).SetBytes(append([]byte{1}, serial...)),
		Subject:      pkix.Name{CommonName: serverName},
		NotBefore:    now.Add(-leafSlack), NotAfter: now.Add(LeafLife),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		BasicConstraintsValid: true, DNSNames: []string{serverName}, URIs: []*url.URL{l.uri},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, l.ca.cert, pub, l.ca.key)
	if err != nil {
		return nil, err
	}
	parsed, err := x509.ParseCertificate(der)
	return &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: parsed}, err
}

// Identity is whom a certificate names.
type Identity struct {
	Cluster string        // "": not said; only a Hello decides
	Node    dunlin.NodeID // 0: not said, as an operator's own certificates may leave it
	Name    string
}

func identityURI(id Identity) *url.URL {
	return &url.URL{Scheme: scheme, Host: id.Cluster, Path: "/" + id.Node.String() + "/" + id.Name}
}

// IdentityOf reads whom the other side's verified certificate names. A certificate without a dunlin:// URI names no node:
// then Node is 0 and Name is the certificate's common name.
func IdentityOf(cs tls.ConnectionState) (Identity, error) {
	if len(cs.PeerCertificates) == 0 {
		return Identity{}, fmt.Errorf("%w: the other side showed no certificate", dunlin.ErrUnauthenticated)
	}
	return identityOf(cs.PeerCertificates[0])
}

func identityOf(cert *x509.Certificate) (id Identity, err error) {
	id.Name = cert.Subject.CommonName
	seen := false
	for _, u := range cert.URIs {
		if u.Scheme != scheme {
			continue
		}
		if seen {
			return Identity{}, fmt.Errorf("%w: the certificate names two nodes", dunlin.ErrUnauthenticated)
		}
		seen = true
		if id, err = parseURI(u); err != nil {
			return Identity{}, err
		}
	}
	return id, nil
}

func parseURI(u *url.URL) (id Identity, err error) {
	hexID, name, ok := strings.Cut(strings.TrimPrefix(u.Path, "/"), "/")
	if !ok || name == "" || u.User != nil || u.RawQuery != "" || u.Fragment != "" || len(name) > nameMax || len(u.Host) > nameMax {
		return Identity{}, fmt.Errorf("%w: certificate of %q, want dunlin://cluster/node/name", dunlin.ErrUnauthenticated, u.String())
	}
	if err := id.Node.UnmarshalText([]byte(hexID)); err != nil || id.Node == 0 {
		return Identity{}, fmt.Errorf("%w: certificate of %q: %q is no node id", dunlin.ErrUnauthenticated, u.String(), hexID)
	}
	id.Cluster, id.Name = u.Host, name
	return id, nil
}

// PeerOf returns the node that the other side's verified certificate names: 0 if it names none, which only an operator's own
// certificates do.
func PeerOf(cs tls.ConnectionState) (dunlin.NodeID, string, error) {
	id, err := IdentityOf(cs)
	return id.Node, id.Name, err
}
