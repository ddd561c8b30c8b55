package keys

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// Files are an operator's own certificates instead of those that a Secret makes. All of them are read again when they
// change, at the next handshake; files that don't parse leave the former ones in use.
//
// The authority must sign certificates of this cluster's nodes and of nobody else, or Name must be set: whoever has a
// certificate of the authority (with this name) is a node. A certificate may name its node by a URI dunlin://cluster/id/name
// as ours do, and is then good for this node alone; without one the node's Hello says who it is.
type Files struct {
	Cert, Key string // PEM; the certificate with its chain, good for servers and clients
	CA        string // PEM; one or more authorities
	Name      string // a DNS name that every node's certificate must carry; "": none
}

// FromFiles is Files{cert, key, ca, ""}.TLS(alpn...).
func FromFiles(cert, key, ca string, alpn ...string) (server, client *tls.Config, err error) {
	return Files{Cert: cert, Key: key, CA: ca}.TLS(alpn...)
}

// TLS returns the two sides' settings, as Secret.TLS does.
func (f Files) TLS(alpn ...string) (server, client *tls.Config, err error) {
	r := &reloader{files: f}
	if _, _, err := r.current(); err != nil {
		return nil, nil, err
	}
	base := tls.Config{
		MinVersion: tls.VersionTLS13, NextProtos: slices.Clone(alpn), SessionTicketsDisabled: true,
		ServerName: cmpName(f.Name), ClientAuth: tls.RequireAnyClientCert,
		// crypto/tls would check against authorities that were read once, and a server's name against the address dialled.
		// verify checks the same chain, for both sides, against those of now.
		InsecureSkipVerify: true,
		VerifyConnection:   r.verify,
	}
	server, client = base.Clone(), base.Clone()
	server.GetCertificate = func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
		cert, _, err := r.current()
		return cert, err
	}
	client.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		cert, _, err := r.current()
		return cert, err
	}
	return server, client, nil
}

func cmpName(name string) string {
	if name == "" {
		return serverName
	}
	return name
}

// reloader keeps what is in the files.
type reloader struct {
	files Files
	mu    struct {
		sync.Mutex
		seen  [3]stamp
		cert  *tls.Certificate
		roots *x509.CertPool
	}
}

type stamp struct {
	at   time.Time
	size int64
}

// current returns certificate and authorities, read again if a file has changed. Handshakes are rare, so each one looks.
func (r *reloader) current() (*tls.Certificate, *x509.CertPool, error) {
	var now [3]stamp
	var missing error
	for i, name := range []string{r.files.Cert, r.files.Key, r.files.CA} {
		st, err := os.Stat(name)
		if err != nil {
			missing = errors.Join(missing, err)
			continue
		}
		now[i] = stamp{st.ModTime(), st.Size()}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.mu.cert != nil && (missing != nil || now == r.mu.seen) {
		return r.mu.cert, r.mu.roots, nil
	}
	cert, roots, err := r.load()
	if err != nil {
		if r.mu.cert != nil { // in the middle of being replaced; the next handshake looks again
			return r.mu.cert, r.mu.roots, nil
		}
		return nil, nil, err
	}
	r.mu.seen, r.mu.cert, r.mu.roots = now, cert, roots
	return cert, roots, nil
}

func (r *reloader) load() (*tls.Certificate, *x509.CertPool, error) {
	cert, err := tls.LoadX509KeyPair(r.files.Cert, r.files.Key)
	if err != nil {
		return nil, nil, fmt.Errorf("certificate for nodes: %w", err)
	}
	pem, err := os.ReadFile(r.files.CA)
	if err != nil {
		return nil, nil, fmt.Errorf("authority for nodes: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, nil, fmt.Errorf("%w: authority for nodes: %s holds no certificate", dunlin.ErrInvalid, r.files.CA)
	}
	return &cert, roots, nil
}

// verify checks the other side's chain. A certificate must be good for both sides, because every node is both.
func (r *reloader) verify(cs tls.ConnectionState) error {
	if len(cs.PeerCertificates) == 0 {
		return fmt.Errorf("%w: the other side showed no certificate", dunlin.ErrUnauthenticated)
	}
	_, roots, err := r.current()
	if err != nil {
		return err
	}
	between := x509.NewCertPool()
	for _, c := range cs.PeerCertificates[1:] {
		between.AddCert(c)
	}
	for _, use := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{
			Roots: roots, Intermediates: between, DNSName: r.files.Name, KeyUsages: []x509.ExtKeyUsage{use},
		})
		if err != nil {
			return &tls.CertificateVerificationError{UnverifiedCertificates: cs.PeerCertificates, Err: err}
		}
	}
	_, err = IdentityOf(cs)
	return err
}
