package registry

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/dunlin-iot/dunlin"
)

func TestTokensAndPasswords(t *testing.T) {
	w, ctx := newWorld(t, nil), t.Context()
	r := w.reg
	must(r.PutDomain(ctx, dunlin.Domain{ID: "cold", Owner: "o"}, 0))
	device := must(r.PutCredential(ctx, dunlin.Credential{Kind: dunlin.CredentialDevice, ID: "my_fridge_1", Domain: "cold"}, ""))
	gateway := must(r.PutCredential(ctx, dunlin.Credential{Kind: dunlin.CredentialGateway, ID: "hall"}, "a chosen secret"))
	same := must(r.PutCredential(ctx, dunlin.Credential{Kind: dunlin.CredentialApplication, ID: "hall"}, ""))
	if gateway != "a chosen secret" || !strings.HasPrefix(device, "dnl_d_my_fridge_1_") {
		t.Errorf("secrets %q, %q", gateway, device)
	}
	login := func(id, secret string) (dunlin.Principal, error) {
		return r.Authenticate(ctx, dunlin.LoginAttempt{ID: id, Secret: []byte(secret), Remote: "192.0.2.1:99"})
	}
	for _, c := range []struct {
		id, secret string
		kind       dunlin.PrincipalKind
	}{
		{"my_fridge_1", device, dunlin.PrincipalDevice},
		{"", device, dunlin.PrincipalDevice},
		{"hall", "a chosen secret", dunlin.PrincipalGateway},
		{"hall", "a chosen secret", dunlin.PrincipalGateway},
		{"hall", same, dunlin.PrincipalApplication},
		{"", same, dunlin.PrincipalApplication},
	} {
		p, err := login(c.id, c.secret)
		if err != nil || p.Kind != c.kind || p.Tenant != "default" || c.kind == dunlin.PrincipalDevice && p.Domain != "cold" {
			t.Errorf("%q with %q: %+v, %v", c.id, c.secret, p, err)
		}
	}
	for _, c := range [][2]string{
		{"my_fridge_1", ""}, {"my_fridge_1", "wrong"}, {"my_fridge_2", device}, {"hall", device}, {"", "a chosen secret"},
		{"", "dnl_d_my_fridge_1_"}, {"", "dnl_"}, {"", "dnl_x_hall_" + same[len(same)-43:]}, {"", device[:len(device)-1] + "*"},
		{"hall", strings.Repeat("x", 1000)}, {"", "dnl_o_hall_" + same[len(same)-43:]},
	} {
		_, err := login(c[0], c[1])
		want(t, fmt.Sprint(c), err, dunlin.ErrUnauthenticated)
	}
	// Another tenant has none of these.
	_, err := r.Authenticate(ctx, dunlin.LoginAttempt{Tenant: "other", Secret: []byte(device)})
	want(t, "another tenant", err, dunlin.ErrUnauthenticated)
	// A new secret ends the old one, also where that was remembered.
	must(r.PutCredential(ctx, dunlin.Credential{Kind: dunlin.CredentialGateway, ID: "hall"}, "another secret"))
	_, err = login("hall", "a chosen secret")
	want(t, "replaced", err, dunlin.ErrUnauthenticated)
	want(t, "delete", r.DeleteCredential(ctx, "", dunlin.CredentialDevice, "my_fridge_1"), nil)
	want(t, "again", r.DeleteCredential(ctx, "", dunlin.CredentialDevice, "my_fridge_1"), dunlin.ErrNotFound)
	_, err = login("", device)
	want(t, "deleted", err, dunlin.ErrUnauthenticated)
	for _, c := range must(r.Credentials(ctx, "")) {
		if c.Hash != "" || c.Revision == 0 {
			t.Errorf("listed %+v", c)
		}
	}
	_, err = r.PutCredential(ctx, dunlin.Credential{Kind: dunlin.CredentialGateway, ID: "x"}, "short")
	want(t, "short secret", err, dunlin.ErrInvalid)
	_, err = r.PutCredential(ctx, dunlin.Credential{Kind: "king", ID: "x"}, "")
	want(t, "kind", err, dunlin.ErrInvalid)
	_, err = r.PutCredential(ctx, dunlin.Credential{Kind: dunlin.CredentialDevice, ID: "x", Domain: "gone"}, "")
	want(t, "domain", err, dunlin.ErrInvalid)
}

func TestOpenAndStatic(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.Open = true })
	if p, err := w.reg.Authenticate(t.Context(), dunlin.LoginAttempt{ID: "anyone"}); err != nil || p.Kind != dunlin.PrincipalOpen {
		t.Errorf("open: %+v, %v", p, err)
	}
	w = newWorld(t, func(c *Config) {
		c.Static = []Static{{Kind: dunlin.CredentialOperator, Secret: "the configured token"},
			{Kind: dunlin.CredentialDevice, ID: "d", Secret: "the device's secret", Domain: "cold"}}
	})
	for _, c := range []struct {
		id, secret string
		kind       dunlin.PrincipalKind
	}{{"", "the configured token", dunlin.PrincipalOperator}, {"d", "the device's secret", dunlin.PrincipalDevice},
		{"e", "the device's secret", 0}, {"", "the configured", 0}} {
		p, err := w.reg.Authenticate(t.Context(), dunlin.LoginAttempt{ID: c.id, Secret: []byte(c.secret)})
		if p.Kind != c.kind || (c.kind == 0) != errors.Is(err, dunlin.ErrUnauthenticated) {
			t.Errorf("%q with %q: %+v, %v", c.id, c.secret, p, err)
		}
	}
	_, err := New(Config{Shards: 1, ShardOf: shardOf, Static: []Static{{Kind: dunlin.CredentialOperator, Secret: "short"}}}, Deps{Rows: w})
	want(t, "short static secret", err, dunlin.ErrInvalid)
}

// An address that keeps failing gets no more slow checks for a while; what is cheap to check is checked all the same.
func TestFailingLoginsAreLimited(t *testing.T) {
	w, ctx := newWorld(t, nil), t.Context()
	r := w.reg
	must(r.PutCredential(ctx, dunlin.Credential{Kind: dunlin.CredentialGateway, ID: "gw"}, "a chosen secret"))
	token := must(r.PutCredential(ctx, dunlin.Credential{Kind: dunlin.CredentialDevice, ID: "d"}, ""))
	login := func(secret, remote string) error {
		_, err := r.Authenticate(ctx, dunlin.LoginAttempt{ID: "gw", Secret: []byte(secret), Remote: remote})
		return err
	}
	for range failuresBurst {
		_, err := r.Authenticate(ctx, dunlin.LoginAttempt{ID: "nobody", Secret: []byte("guess"), Remote: "[2001:db8::1]:5"})
		want(t, "guess", err, dunlin.ErrUnauthenticated)
	}
	want(t, "right, but limited", login("a chosen secret", "[2001:db8::2]:7"), dunlin.ErrUnauthenticated)
	want(t, "right, from elsewhere", login("a chosen secret", "[2001:db8:1::2]:7"), nil)
	want(t, "right and remembered", login("a chosen secret", "[2001:db8::2]:7"), nil)
	if _, err := r.Authenticate(ctx, dunlin.LoginAttempt{Secret: []byte(token), Remote: "[2001:db8::1]:5"}); err != nil {
		t.Errorf("a token from a limited address: %v", err)
	}
	must(r.PutCredential(ctx, dunlin.Credential{Kind: dunlin.CredentialGateway, ID: "gw"}, "yet another one"))
	want(t, "limited still", login("yet another one", "2001:db8::2"), dunlin.ErrUnauthenticated)
	w.now += failureEvery
	want(t, "after a while", login("yet another one", "2001:db8::2"), nil)
	for i := range 3 * remotesMax { // hostile addresses take a bounded room
		r.auth.failed(fmt.Sprintf("10.%d.%d.%d:1", i>>16, i>>8&255, i&255))
	}
	if n := len(r.auth.mu.failures.young) + len(r.auth.mu.failures.old); n > 2*remotesMax {
		t.Errorf("%d remotes remembered", n)
	}
}

// A thousand reconnects with one chosen secret cost one slow hash.
func TestReconnectsDoNotMeltTheNode(t *testing.T) {
	w, ctx := newWorld(t, nil), t.Context()
	must(w.reg.PutCredential(ctx, dunlin.Credential{Kind: dunlin.CredentialGateway, ID: "gw"}, "a chosen secret"))
	var all sync.WaitGroup
	for i := range 200 {
		all.Go(func() {
			_, err := w.reg.Authenticate(ctx, dunlin.LoginAttempt{ID: "gw", Secret: []byte("a chosen secret"), Remote: fmt.Sprint("10.0.0.", i)})
			want(t, "login", err, nil)
		})
	}
	all.Wait()
	if n := len(w.reg.auth.mu.verified.young); n != 1 {
		t.Errorf("%d remembered", n)
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(makeToken(dunlin.CredentialDevice, "a_b"))
	f.Add("dnl_d__")
	f.Add("dnl_")
	f.Fuzz(func(t *testing.T, s string) {
		kind, id, ok := parseToken(s)
		if ok && (principalKind(kind) == dunlin.PrincipalNone || id == "" || !strings.Contains(s, "_"+id+"_")) {
			t.Errorf("%q: %s %q", s, kind, id)
		}
		matches(s, []byte(s))
	})
}

func BenchmarkAuthenticate(b *testing.B) {
	w := newWorld(new(testing.T), nil)
	token := []byte(must(w.reg.PutCredential(b.Context(), dunlin.Credential{Kind: dunlin.CredentialDevice, ID: "d"}, "")))
	must(w.reg.PutCredential(b.Context(), dunlin.Credential{Kind: dunlin.CredentialGateway, ID: "gw"}, "a chosen secret"))
	for name, a := range map[string]dunlin.LoginAttempt{"token": {Secret: token}, "chosen-again": {ID: "gw", Secret: []byte("a chosen secret")}} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				must(w.reg.Authenticate(b.Context(), a))
			}
		})
	}
}
