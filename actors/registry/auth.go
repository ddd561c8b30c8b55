package registry

import (
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/dunlin-iot/dunlin"
)

// Bounds of the gate.
const (
	slowAtOnce    = 2       // argon2id runs at a time: 19 MiB and a core each
	slowWaiting   = 256     // logins that wait for that
	verifiedMax   = 1 << 15 // logins remembered, twice that for a while
	remotesMax    = 1 << 13 // remotes with failed logins remembered, twice that for a while
	failuresBurst = 10      // failed logins of a remote until it has to wait
	failureEvery  = 6_000_000
)

// gate checks secrets. What it does for anybody who asks is cheap: a slow hash is computed only for an existing
// credential, for few at a time, not again for a secret that was right before, and not for a remote that keeps failing.
type gate struct {
	clock   func() dunlin.Time
	key     [32]byte // of this process: what is remembered is of no use elsewhere
	statics []static
	slots   chan struct{}
	waiting atomic.Int32

	mu struct {
		sync.Mutex
		verified generations[[32]byte, struct{}]
		failures generations[netip.Prefix, bucket]
	}
}

// static is a credential of the configuration, its secret as a digest under the gate's key.
type static struct {
	credential dunlin.Credential
	digest     [32]byte
}

// bucket counts a remote's failures: one is forgiven every failureEvery microseconds.
type bucket struct {
	failures int
	at       dunlin.Time
}

// generations is a map that forgets: when it is full it becomes the old generation, and the old one before goes.
type generations[K comparable, V any] struct{ young, old map[K]V }

func (g *generations[K, V]) get(k K) (V, bool) {
	v, ok := g.young[k]
	if !ok {
		v, ok = g.old[k]
	}
	return v, ok
}

func (g *generations[K, V]) put(k K, v V, most int) {
	if g.young == nil || len(g.young) >= most {
		g.old, g.young = g.young, make(map[K]V)
	}
	g.young[k] = v
}

func newGate(statics []Static, clock func() dunlin.Time) (*gate, error) {
	g := &gate{clock: clock, slots: make(chan struct{}, slowAtOnce)} // a slot is held for one hash
	_, _ = rand.Read(g.key[:])
	for _, s := range statics {
		if principalKind(s.Kind) == dunlin.PrincipalNone || len(s.Secret) < secretBytesMin {
			return nil, fmt.Errorf("%w: credential %q of the configuration: kind %q and %d bytes of secret (want at least %d)",
				dunlin.ErrInvalid, s.ID, s.Kind, len(s.Secret), secretBytesMin)
		}
		g.statics = append(g.statics, static{digest: g.digest("static", []byte(s.Secret)), credential: dunlin.Credential{
			Tenant: tenant(s.Tenant), ID: s.ID, Kind: s.Kind, Domain: s.Domain}})
	}
	return g, nil
}

// digest is of the parts, each of which is fenced by its length.
func (g *gate) digest(what string, parts ...[]byte) (d [32]byte) {
	h := hmac.New(sha256.New, g.key[:])
	h.Write([]byte(what))
	for _, p := range parts {
		n := len(p)
		h.Write([]byte{0, byte(n >> 16), byte(n >> 8), byte(n)})
		h.Write(p)
	}
	h.Sum(d[:0])
	return d
}

// Authenticate implements dunlin.Authenticator. With an id the secret is a password; without, a bearer token. An id may
// name credentials of several kinds; the secret decides.
func (r *Registry) Authenticate(ctx context.Context, a dunlin.LoginAttempt) (dunlin.Principal, error) {
	a.Tenant = tenant(a.Tenant)
	if r.open.Load() {
		return dunlin.Principal{Kind: dunlin.PrincipalOpen, Tenant: a.Tenant, ID: a.ID}, nil
	}
	if len(a.Secret) == 0 || len(a.Secret) > 2*secretBytesMax {
		return dunlin.Principal{}, unauthenticated("no secret")
	}
	if c, ok := r.auth.static(&a); ok {
		return principalOf(c), nil
	}
	why := "unknown id or wrong secret"
	for _, c := range r.candidates(&a) {
		ok, err := r.auth.verify(ctx, &c, &a)
		if err != nil {
			return dunlin.Principal{}, err
		}
		if ok {
			return principalOf(&c), nil
		}
	}
	r.auth.failed(a.Remote)
	return dunlin.Principal{}, unauthenticated(why)
}

func unauthenticated(why string) error { return fmt.Errorf("%w: %s", dunlin.ErrUnauthenticated, why) }

func principalOf(c *dunlin.Credential) dunlin.Principal {
	return dunlin.Principal{Kind: principalKind(c.Kind), Tenant: c.Tenant, ID: c.ID, Domain: c.Domain}
}

// candidates returns the credentials that the attempt may mean, fast ones first.
func (r *Registry) candidates(a *dunlin.LoginAttempt) []dunlin.Credential {
	only, id := dunlin.CredentialKind(""), a.ID
	if id == "" {
		var ok bool
		if only, id, ok = parseToken(string(a.Secret)); !ok {
			return nil
		}
	}
	r.mu.RLock()
	defer r.mu.RUnlock()
	var fast, late []dunlin.Credential
	for _, k := range kindLetters {
		if only != "" && k.kind != only {
			continue
		}
		c, ok := r.mu.credentials[credentialKey{a.Tenant, k.kind, id}]
		switch {
		case !ok:
		case slow(c.Hash):
			late = append(late, c)
		default:
			fast = append(fast, c)
		}
	}
	return append(fast, late...)
}

// static finds the attempt among the credentials of the configuration. All are compared, whichever it is.
func (g *gate) static(a *dunlin.LoginAttempt) (found *dunlin.Credential, ok bool) {
	if len(g.statics) == 0 {
		return nil, false
	}
	d := g.digest("static", a.Secret)
	for i := range g.statics {
		s := &g.statics[i]
		same := subtle.ConstantTimeCompare(s.digest[:], d[:]) == 1
		if same && s.credential.Tenant == a.Tenant && (a.ID == "" || s.credential.ID == a.ID) {
			found, ok = &s.credential, true
		}
	}
	return found, ok
}

// verify checks the secret against one credential.
func (g *gate) verify(ctx context.Context, c *dunlin.Credential, a *dunlin.LoginAttempt) (bool, error) {
	if !slow(c.Hash) {
		return matches(c.Hash, a.Secret), nil
	}
	// The stored hash is part of what is remembered: a new secret makes the old one forgotten.
	d := g.digest("verified", []byte(c.Hash), a.Secret)
	if g.remembers(d) {
		return true, nil
	}
	if g.limited(a.Remote) {
		return false, unauthenticated("too many failed logins from this address; try again in a minute")
	}
	if err := g.slot(ctx); err != nil {
		return false, err
	}
	defer func() { <-g.slots }()
	if g.remembers(d) { // somebody with the same secret was faster: 1,000 connections of one application, say
		return true, nil
	}
	if !matches(c.Hash, a.Secret) {
		return false, nil
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mu.verified.put(d, struct{}{}, verifiedMax)
	return true, nil
}

// slot waits for leave to compute a slow hash.
func (g *gate) slot(ctx context.Context) error {
	defer g.waiting.Add(-1)
	if g.waiting.Add(1) <= slowWaiting {
		select {
		case g.slots <- struct{}{}:
			return nil
		case <-ctx.Done():
		}
	}
	return fmt.Errorf("%w: too many logins at once", dunlin.ErrOverloaded)
}

func (g *gate) remembers(d [32]byte) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	_, ok := g.mu.verified.get(d)
	if ok {
		g.mu.verified.put(d, struct{}{}, verifiedMax) // young again
	}
	return ok
}

// limited reports whether a remote has failed too often lately for a slow check. Fast checks are always made: nobody
// guesses what they guard, and others behind the same address must not suffer from one that tries.
func (g *gate) limited(remote string) bool {
	p, ok := network(remote)
	if !ok {
		return false
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	b, _ := g.mu.failures.get(p)
	return b.now(g.clock()).failures >= failuresBurst
}

func (g *gate) failed(remote string) {
	p, ok := network(remote)
	if !ok {
		return
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	b, _ := g.mu.failures.get(p)
	b = b.now(g.clock())
	b.failures = min(b.failures+1, failuresBurst)
	g.mu.failures.put(p, b, remotesMax)
}

// now is the bucket with what time has forgiven.
func (b bucket) now(t dunlin.Time) bucket {
	forgiven := int64(t-b.at) / failureEvery
	if b.failures == 0 || forgiven < 0 || forgiven >= int64(b.failures) {
		return bucket{at: t}
	}
	return bucket{failures: b.failures - int(forgiven), at: b.at + dunlin.Time(forgiven*failureEvery)}
}

// network is whom a failure is put down to: an IPv4 address, or the /64 that an IPv6 host can choose its addresses from.
func network(remote string) (netip.Prefix, bool) {
	ip, err := netip.ParseAddr(remote)
	if err != nil {
		ap, err := netip.ParseAddrPort(remote)
		if err != nil {
			return netip.Prefix{}, false
		}
		ip = ap.Addr()
	}
	ip = ip.Unmap().WithZone("")
	bits := 32
	if ip.Is6() {
		bits = 64
	}
	p, err := ip.Prefix(bits)
	return p, err == nil
}
