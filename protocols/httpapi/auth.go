package httpapi

import (
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

// authorize finds out who calls, and whether the route's rule lets them. It sets c.principal.
func (g *Gateway) authorize(c *call, r *http.Request) error {
	rt := c.route
	if rt.rule == rulePublic {
		return nil
	}
	attempt, scheme, err := loginAttempt(r)
	if err != nil {
		return challenge(err)
	}
	p, err := g.deps.Auth.Authenticate(r.Context(), attempt)
	if err != nil {
		return challenge(err)
	}
	if p.Kind == dunlin.PrincipalNone {
		return challenge(dunlin.ErrUnauthenticated)
	}
	// A bearer token is shown on purpose. The others are authority that a browser lends to any page: on an open node to
	// everyone who reaches it, with Basic to whoever makes the browser send its remembered password.
	if p.Kind == dunlin.PrincipalOpen || scheme == "basic" {
		if err := g.checkAmbient(r, p.Kind == dunlin.PrincipalOpen); err != nil {
			return err
		}
	}
	if p.Kind == dunlin.PrincipalOpen && p.Tenant == "" {
		p.Tenant = dunlin.DefaultTenant
	}
	c.principal = p
	return c.permit(r)
}

// permit checks the route's rule.
func (c *call) permit(r *http.Request) error {
	p := c.principal
	switch c.route.rule {
	case ruleAnyone:
		return nil
	case ruleWriteDevice, ruleReadDevice:
		key := c.key(r.PathValue("id"))
		if err := key.Device.Validate(); err != nil {
			return fmt.Errorf("path: %w", err)
		}
		if c.route.rule == ruleWriteDevice && !p.MayWrite(key) {
			return fmt.Errorf("%w: %q may not send as device %q", dunlin.ErrForbidden, p.ID, key.Device)
		}
		if c.route.rule == ruleReadDevice && !p.MayRead(key) {
			return fmt.Errorf("%w: %q may not read device %q", dunlin.ErrForbidden, p.ID, key.Device)
		}
		return nil
	case ruleReadQuery:
		id := r.URL.Query().Get("device")
		if id == "" {
			return permitAll(p)
		}
		key := c.key(id)
		if err := key.Device.Validate(); err != nil {
			return invalidValue("query.device", err.Error(), id)
		}
		if !p.MayRead(key) {
			return fmt.Errorf("%w: %q may not read device %q", dunlin.ErrForbidden, p.ID, key.Device)
		}
		return nil
	case ruleReadAll:
		return permitAll(p)
	case ruleAdmin:
		if !p.MayAdmin() {
			return fmt.Errorf("%w: this takes an operator's credential; %q has none", dunlin.ErrForbidden, p.ID)
		}
		return nil
	}
	return fmt.Errorf("%w: the route has no rule", dunlin.ErrForbidden)
}

func permitAll(p dunlin.Principal) error {
	if !p.MayReadAll() {
		return fmt.Errorf("%w: %q may read single devices only", dunlin.ErrForbidden, p.ID)
	}
	return nil
}

// loginAttempt reads the Authorization header: a bearer token, or HTTP Basic with a device's or user's name.
func loginAttempt(r *http.Request) (a dunlin.LoginAttempt, scheme string, err error) {
	a = dunlin.LoginAttempt{Protocol: "http", Remote: r.RemoteAddr}
	header := r.Header.Get("Authorization")
	if header == "" {
		return a, "", nil
	}
	scheme, rest, _ := strings.Cut(header, " ")
	switch {
	case strings.EqualFold(scheme, "bearer"):
		a.Secret = []byte(strings.TrimSpace(rest))
		if len(a.Secret) == 0 {
			return a, "bearer", fmt.Errorf("%w: the bearer token is empty", dunlin.ErrUnauthenticated)
		}
		return a, "bearer", nil
	case strings.EqualFold(scheme, "basic"):
		user, password, ok := r.BasicAuth()
		if !ok || user == "" {
			return a, "basic", fmt.Errorf("%w: the basic credentials do not parse as base64 of user:password", dunlin.ErrUnauthenticated)
		}
		a.ID, a.Secret = user, []byte(password)
		return a, "basic", nil
	}
	return a, "", fmt.Errorf("%w: the Authorization scheme is not known here; use Bearer or Basic", dunlin.ErrUnauthenticated)
}

// challenge adds what a 401 must say (RFC 9110 §11.6.1).
func challenge(err error) error {
	p := problemOf(err)
	if p.Status != http.StatusUnauthorized {
		return err
	}
	q := *p
	return q.withHeader("WWW-Authenticate", `Bearer realm="dunlin"`, `Basic realm="dunlin", charset="UTF-8"`)
}

// checkAmbient refuses requests that a web page in somebody's browser may have made with authority that isn't the page's:
// a foreign Origin (cross-site request forgery), and on an open node a Host that is a stranger's name resolved to our
// address (DNS rebinding: the browser then takes the page for same-origin, so only the Host header tells).
func (g *Gateway) checkAmbient(r *http.Request, open bool) error {
	if open && !g.knownHost(r) {
		p := newProblem(http.StatusMisdirectedRequest, "This node runs open and answers only to loopback names and to the address it is reached at, not to "+
			"Host "+quoted(r.Host)+". Use the address, or add the name to the http gateway's hosts.")
		return p
	}
	foreign := false
	if origin := r.Header.Get("Origin"); origin != "" {
		u, err := url.Parse(origin)
		foreign = err != nil || u.Host != r.Host
	} else if r.Method != http.MethodGet && r.Method != http.MethodHead {
		// Browsers from 2020 on say so themselves; other clients don't send it.
		site := r.Header.Get("Sec-Fetch-Site")
		foreign = site != "" && site != "same-origin" && site != "none"
	}
	if foreign {
		return fmt.Errorf("%w: a web page of another origin made this request; use a bearer token from there", dunlin.ErrForbidden)
	}
	return nil
}

// knownHost reports whether the Host header is a loopback name, the address that the connection came in on, or configured.
func (g *Gateway) knownHost(r *http.Request) bool {
	host := r.Host
	if h, _, err := net.SplitHostPort(host); err == nil {
		host = h
	}
	host = strings.ToLower(strings.TrimSuffix(strings.Trim(host, "[]"), "."))
	if host == "localhost" || strings.HasSuffix(host, ".localhost") {
		return true
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.IsLoopback() {
			return true
		}
		if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
			if at, err := netip.ParseAddrPort(local.String()); err == nil && at.Addr().Unmap() == ip.Unmap() {
				return true
			}
		}
	}
	return slices.Contains(g.cfg.Hosts, "*") || slices.ContainsFunc(g.cfg.Hosts, func(h string) bool { return strings.EqualFold(h, host) })
}
