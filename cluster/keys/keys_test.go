package keys

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"io/fs"
	"log/slog"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

const (
	one = "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f"
	two = "f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff000102030405060708090a0b0c0d0e0f"
)

func parse(t testing.TB, text string) Secret {
	t.Helper()
	s, err := ParseSecret(text)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestParseSecret(t *testing.T) {
	raw, _ := hex.DecodeString(one)
	for _, c := range []struct{ text, want, err string }{
		{one, one, ""},
		{strings.ToUpper(one), one, ""},
		{base64.RawURLEncoding.EncodeToString(raw), one, ""},
		{base64.URLEncoding.EncodeToString(raw), one, ""},
		{" " + two + " ,\n# a comment\n" + one + "\n", two + "," + one, ""},
		{"", "", "no cluster secret"},
		{"# " + one, "", "no cluster secret"},
		{one[:63], "", "number 1 has 63 characters, want 64 hex digits or 43 of base64url"},
		{one + "," + "hunter2", "", "number 2 has 7 characters"},
		{one + "," + one, "", "number 2 is there twice"},
		{strings.Repeat("0", 64), "", "all zeros"},
		{one + "," + two + "," + NewSecret().String() + "," + NewSecret().String() + "," + NewSecret().String(), "", "more than 4"},
	} {
		s, err := ParseSecret(c.text)
		switch {
		case c.err == "" && (err != nil || s.String() != c.want):
			t.Errorf("%q: %s, %v", c.text, s, err)
		case c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err) || !errors.Is(err, dunlin.ErrInvalid)):
			t.Errorf("%q: %v, want %q", c.text, err, c.err)
		case err != nil && strings.Contains(err.Error(), "hunter2"):
			t.Errorf("the error quotes the secret: %v", err)
		}
	}
}

func FuzzParseSecret(f *testing.F) {
	f.Add(one + "," + two)
	f.Fuzz(func(t *testing.T, text string) {
		s, err := ParseSecret(text)
		if err != nil {
			return
		}
		again, err := ParseSecret(s.String())
		if err != nil || again.String() != s.String() || len(s.Gossip()) != len(s.keys) {
			t.Fatalf("%q came back as %q, %v", s, again, err)
		}
	})
}

// What is derived must never change: nodes of different releases would not know each other any more.
func TestWhatIsDerivedStays(t *testing.T) {
	s := parse(t, one+","+two)
	ca, err := newAuthority(s.keys[0])
	if err != nil {
		t.Fatal(err)
	}
	got := []string{hex.EncodeToString(s.Gossip()[0]), hex.EncodeToString(s.Gossip()[1]), s.Fingerprint(), hex.EncodeToString(ca.key.Seed()), ca.cert.Subject.CommonName}
	want := []string{ // by Python's hmac
		"8b96396b5d7c250dbcdc60c09b8b5cf1fb2bd73f86ce90834e63152961c8b881", "76af272bad6c898677ee7f14c63292fa6c7e0ebdd5815e6403f4d08f11efc00a", "c4542a9ae57a0485,a0358c530483f1bc", "e8768f00422118c644e34980bf29244727e572a472ef55733345b39062ca5759", "dunlin cluster c4542a9ae57a0485",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	again, err := newAuthority(s.keys[0])
	if err != nil || !bytes.Equal(ca.cert.Raw, again.cert.Raw) {
		t.Errorf("two nodes made different authorities of one secret: %v", err)
	}
}

func TestTheSecretStaysOutOfLogs(t *testing.T) {
	var b bytes.Buffer
	slog.New(slog.NewJSONHandler(&b, nil)).Info("x", slog.Any("secret", parse(t, one)))
	if strings.Contains(b.String(), one) || !strings.Contains(b.String(), parse(t, one).Fingerprint()) {
		t.Error(b.String())
	}
}

func TestFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "secret")
	if _, err := Load(file); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	if err := (Secret{}).Save(file); !errors.Is(err, dunlin.ErrInvalid) {
		t.Errorf("no secret: %v", err)
	}
	for _, s := range []Secret{NewSecret(), parse(t, one+","+two)} { // the second replaces the first
		if err := s.Save(file); err != nil {
			t.Fatal(err)
		}
		got, err := Load(file)
		if err != nil || got.String() != s.String() {
			t.Errorf("saved %s, loaded %s, %v", s, got, err)
		}
	}
	if names, _ := filepath.Glob(filepath.Join(filepath.Dir(file), "*")); len(names) != 1 {
		t.Errorf("left behind: %v", names)
	}
	if runtime.GOOS != "windows" {
		for _, mode := range []os.FileMode{0o604, 0o640, 0o644} {
			if err := os.Chmod(file, mode); err != nil {
				t.Fatal(err)
			}
			if _, err := Load(file); !errors.Is(err, dunlin.ErrForbidden) || !strings.Contains(err.Error(), "chmod 600 "+file) {
				t.Errorf("mode %o: %v", mode, err)
			}
		}
		if err := os.Chmod(file, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for text, want := range map[string]string{"": "no cluster secret", "what?": "want 64 hex", strings.Repeat("#", fileMax+1): "more than"} {
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Load(file); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), file) {
			t.Errorf("%.10q: %v", text, err)
		}
	}
}

// meet lets a client and a server shake hands over loopback and returns what each says of the other.
func meet(t *testing.T, server, client *tls.Config) (clientID, serverID Identity, serverErr, clientErr error) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := ln.Accept()
		if err != nil {
			serverErr = err
			return
		}
		defer raw.Close()
		c := tls.Server(raw, server)
		if serverErr = c.Handshake(); serverErr == nil {
			clientID, serverErr = IdentityOf(c.ConnectionState())
			_, _ = c.Write([]byte("x"))
		}
	}()
	raw, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer raw.Close()
	c := tls.Client(raw, client)
	if clientErr = c.Handshake(); clientErr == nil {
		serverID, clientErr = IdentityOf(c.ConnectionState())
		if _, err := c.Read(make([]byte, 1)); err != nil { // TLS 1.3: only now does a client know that it is let in
			clientErr = err
		}
	}
	raw.Close()
	<-done
	return clientID, serverID, serverErr, clientErr
}

type clock struct{ at time.Time }

func (c *clock) now() time.Time { return c.at }

// Every pair of secrets that rotation brings together meets; strangers don't. A is old, B is new; the rounds are "A", "A,B",
// "B,A", "B".
func TestRotation(t *testing.T) {
	rounds := []string{one, one + "," + two, two + "," + one, two}
	for i, a := range rounds {
		for j, b := range rounds {
			server, _, err := parse(t, a).TLS(1, "north", "c0ffee", "proto")
			if err != nil {
				t.Fatal(err)
			}
			_, client, err := parse(t, b).TLS(2, "süd / 2", "", "proto")
			if err != nil {
				t.Fatal(err)
			}
			clientID, serverID, serverErr, clientErr := meet(t, server, client)
			ok := serverErr == nil && clientErr == nil
			if near := max(i-j, j-i) <= 1; ok != near {
				t.Errorf("rounds %d and %d: %v, %v", i, j, serverErr, clientErr)
			}
			if ok && (clientID != Identity{"", 2, "süd / 2"} || serverID != Identity{"c0ffee", 1, "north"}) {
				t.Errorf("rounds %d and %d: %+v, %+v", i, j, clientID, serverID)
			}
		}
	}
}

func TestOnlyTLS13WithACertificate(t *testing.T) {
	server, client, err := parse(t, one).TLS(1, "n", "c", "proto")
	if err != nil {
		t.Fatal(err)
	}
	old := client.Clone()
	old.MinVersion, old.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
	bare := client.Clone()
	bare.GetClientCertificate = nil
	other := client.Clone()
	other.NextProtos = []string{"h2"}
	for name, c := range map[string]*tls.Config{"TLS 1.2": old, "no certificate": bare, "another protocol": other} {
		if _, _, _, err := meet(t, server, c); err == nil {
			t.Errorf("%s was let in", name)
		}
	}
}

// A leaf is made anew long before it ends, and a clock that is a day off does no harm.
func TestLeavesAreRenewed(t *testing.T) {
	c := &clock{time.Date(2026, 11, 23, 0, 0, 0, 0, time.UTC)}
	server, client, err := parse(t, one).tls(1, "n", "c", c.now, nil)
	if err != nil {
		t.Fatal(err)
	}
	serial := func() string {
		cert, err := server.GetCertificate(nil)
		if err != nil {
			t.Fatal(err)
		}
		if left := cert.Leaf.NotAfter.Sub(c.at); left < LeafLife/3-time.Second {
			t.Errorf("%s are left", left)
		}
		return cert.Leaf.SerialNumber.String()
	}
	seen := map[string]bool{}
	for day := range 100 {
		c.at = c.at.AddDate(0, 0, 1)
		seen[serial()] = true
		if day%10 == 0 {
			if _, _, serverErr, clientErr := meet(t, server, client); serverErr != nil || clientErr != nil {
				t.Errorf("day %d: %v, %v", day, serverErr, clientErr)
			}
		}
	}
	if len(seen) < 5 || len(seen) > 7 {
		t.Errorf("%d certificates in 100 days, want one in 20", len(seen))
	}
	c.at = c.at.AddDate(0, 0, -60) // set back
	serial()
	for _, off := range []time.Duration{-23 * time.Hour, 23 * time.Hour} {
		late := &clock{c.at.Add(off)}
		_, other, err := parse(t, one).tls(2, "late", "c", late.now, nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, serverErr, clientErr := meet(t, server, other); serverErr != nil || clientErr != nil {
			t.Errorf("clock off by %s: %v, %v", off, serverErr, clientErr)
		}
	}
}

func TestWhatACertificateNames(t *testing.T) {
	for _, c := range []struct {
		uris []string
		want Identity
		err  string
	}{
		{[]string{"dunlin://c0ffee/00000000000000ff/north"}, Identity{"c0ffee", 255, "north"}, ""},
		{[]string{"dunlin:///00000000000000ff/a/b"}, Identity{"", 255, "a/b"}, ""},
		{[]string{"https://example.com/", "spiffe://x/y"}, Identity{"", 0, "cn"}, ""},
		{nil, Identity{"", 0, "cn"}, ""},
		{[]string{"dunlin://c/00000000000000ff/n", "dunlin://c/00000000000000fe/n"}, Identity{}, "two nodes"},
		{[]string{"dunlin://c/ff/n"}, Identity{}, "no node id"},
		{[]string{"dunlin://c/0000000000000000/n"}, Identity{}, "no node id"},
		{[]string{"dunlin://c/none/n"}, Identity{}, "no node id"},
		{[]string{"dunlin://c/00000000000000ff"}, Identity{}, "want dunlin://"},
		{[]string{"dunlin://user@c/00000000000000ff/n"}, Identity{}, "want dunlin://"},
		{[]string{"dunlin:opaque"}, Identity{}, "want dunlin://"},
	} {
		cert := &x509.Certificate{Subject: pkix.Name{CommonName: "cn"}}
		for _, u := range c.uris {
			parsed, err := url.Parse(u)
			if err != nil {
				t.Fatal(err)
			}
			cert.URIs = append(cert.URIs, parsed)
		}
		got, err := IdentityOf(tls.ConnectionState{PeerCertificates: []*x509.Certificate{cert}})
		if got != c.want || (err == nil) != (c.err == "") || err != nil && (!strings.Contains(err.Error(), c.err) || !errors.Is(err, dunlin.ErrUnauthenticated)) {
			t.Errorf("%v: %+v, %v; want %+v, %q", c.uris, got, err, c.want, c.err)
		}
	}
	if _, _, err := PeerOf(tls.ConnectionState{}); !errors.Is(err, dunlin.ErrUnauthenticated) {
		t.Errorf("no certificate: %v", err)
	}
	for _, bad := range []struct {
		node    dunlin.NodeID
		name    string
		cluster string
	}{{0, "n", "c"}, {1, "", "c"}, {1, strings.Repeat("n", 256), "c"}, {1, "n", "c/d"}} {
		if _, _, err := parse(t, one).TLS(bad.node, bad.name, bad.cluster); !errors.Is(err, dunlin.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
	if _, _, err := (Secret{}).TLS(1, "n", "c"); !errors.Is(err, dunlin.ErrInvalid) {
		t.Errorf("no secret: %v", err)
	}
}

// operator is an authority as companies have them.
type operator struct {
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
}

func newOperator(t *testing.T) *operator {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca"}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &operator{key, cert}
}

// issue writes a certificate into dir.
func (o *operator) issue(t *testing.T, dir, cn, uri string, serial int64, uses ...x509.ExtKeyUsage) Files {
	t.Helper()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: cn}, DNSNames: []string{cn},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: uses}
	if uri != "" {
		u, err := url.Parse(uri)
		if err != nil {
			t.Fatal(err)
		}
		tmpl.URIs = []*url.URL{u}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, o.cert, key.Public(), o.key)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	f := Files{Cert: filepath.Join(dir, "cert"), Key: filepath.Join(dir, "key"), CA: filepath.Join(dir, "ca")}
	for name, block := range map[string]*pem.Block{f.Cert: {Type: "CERTIFICATE", Bytes: der}, f.Key: {Type: "PRIVATE KEY", Bytes: private}, f.CA: {Type: "CERTIFICATE", Bytes: o.cert.Raw}} {
		if err := os.WriteFile(name, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
		at := time.Unix(1_000_000+serial, 0) // no two are written at the same moment
		if err := os.Chtimes(name, at, at); err != nil {
			t.Fatal(err)
		}
	}
	return f
}

func TestAnOperatorsOwnCertificates(t *testing.T) {
	both := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	o, dirA, dirB := newOperator(t), t.TempDir(), t.TempDir()
	a, b := o.issue(t, dirA, "a.plant", "", 2, both...), o.issue(t, dirB, "b.plant", "dunlin://c0ffee/0000000000000007/b", 3, both...)
	server, _, err := FromFiles(a.Cert, a.Key, a.CA, "proto")
	if err != nil {
		t.Fatal(err)
	}
	_, client, err := b.TLS("proto")
	if err != nil {
		t.Fatal(err)
	}
	clientID, serverID, serverErr, clientErr := meet(t, server, client)
	if serverErr != nil || clientErr != nil || clientID.Node != 7 || serverID != (Identity{Name: "a.plant"}) {
		t.Errorf("%+v, %+v, %v, %v", clientID, serverID, serverErr, clientErr)
	}
	// Renewed in place: the next handshake shows the new one. In the middle of that, the old one stays in use.
	if err := os.WriteFile(b.Key, []byte("half"), 0o600); err != nil {
		t.Fatal(err)
	}
	if id, _, serverErr, clientErr := meet(t, server, client); serverErr != nil || clientErr != nil || id.Node != 7 {
		t.Errorf("half written: %v, %v", serverErr, clientErr)
	}
	o.issue(t, dirB, "b2.plant", "", 4, both...)
	if id, _, serverErr, clientErr := meet(t, server, client); serverErr != nil || clientErr != nil || id != (Identity{Name: "b2.plant"}) {
		t.Errorf("renewed: %+v, %v, %v", id, serverErr, clientErr)
	}
	// A certificate that is good for one side only, one of another authority, and one with another name.
	o.issue(t, dirB, "b3.plant", "", 5, x509.ExtKeyUsageClientAuth)
	if _, _, err, _ := meet(t, server, client); err == nil {
		t.Error("a client's certificate is good for a node")
	}
	newOperator(t).issue(t, dirB, "b4.plant", "", 6, both...)
	if _, _, err, _ := meet(t, server, client); err == nil {
		t.Error("another authority's certificate was taken")
	}
	a.Name = "node.plant"
	named, _, err := a.TLS("proto")
	if err != nil {
		t.Fatal(err)
	}
	for serial, cn := range map[int64]string{7: "b.plant", 8: "node.plant"} {
		o.issue(t, dirB, cn, "", serial, both...)
		if _, _, err, _ := meet(t, named, client); (err == nil) != (cn == a.Name) {
			t.Errorf("%s: %v", cn, err)
		}
	}
	if _, _, err := FromFiles(a.Cert, a.Key, a.Key); !errors.Is(err, dunlin.ErrInvalid) {
		t.Errorf("no authority in the file: %v", err)
	}
	if _, _, err := FromFiles(a.Cert, b.Key, a.CA); err == nil {
		t.Error("another's key was taken")
	}
}
