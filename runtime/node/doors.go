package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/registry"
	"github.com/dunlin-iot/dunlin/protocols/coap"
	"github.com/dunlin-iot/dunlin/protocols/httpapi"
	"github.com/dunlin-iot/dunlin/protocols/mqtt"
)

// door is a gateway.
type door interface {
	Listen() error
	Addr() net.Addr
	Serve(ctx context.Context) error
}

// openDoors lists the doors: a new protocol is a line here.
func (n *Node) openDoors(context.Context) error {
	log, metrics := n.obs.Log, n.obs.Metrics
	c, err := coap.New(coap.Config{Addr: n.cfg.CoAP, Open: n.cfg.Open, Log: log, Metrics: metrics, DrainTimeout: doorsGrace},
		coap.Deps{Ingestor: n.router, Inspector: n.router, Auth: n.registry, Decoder: n.decoder})
	if err != nil {
		return err
	}
	m, err := mqtt.New(mqtt.Config{Addr: n.cfg.MQTT, DrainMax: doorsGrace},
		mqtt.Deps{Ingestor: n.router, Auth: n.registry, Feed: n.feed, Decoder: n.decoder, Sessions: n.sessions, Log: log, Metrics: metrics})
	if err != nil {
		return err
	}
	n.sessions.Attach(m)
	var hosts []string
	if n.cfg.Insecure { // open on purpose: any name may lead here
		hosts = []string{"*"}
	}
	h, err := httpapi.New(httpapi.Config{Addr: n.cfg.HTTP, Hosts: hosts, Version: httpapi.Version{Version: n.cfg.Version, Node: n.identity.Node}, Ready: n.readiness,
		MetricsHandler: n.obs.MetricsHandler(), Metrics: metrics, Log: log, DrainTimeout: doorsGrace},
		httpapi.Deps{Ingestor: n.router, Inspector: n.router, Registrar: n.router, Auth: n.registry, Feed: n.feed, Decoder: n.decoder, Cluster: n.cluster})
	if err != nil {
		return err
	}
	for _, d := range []struct {
		door
		name string
		addr *string
	}{{c, "CoAP", &n.addrs.CoAP}, {m, "MQTT", &n.addrs.MQTT}, {h, "HTTP", &n.addrs.HTTP}} {
		if err := d.Listen(); err != nil {
			return fmt.Errorf("%s: %w", d.name, err)
		}
		*d.addr = d.Addr().String()
		n.outer.run(n, d.Serve)
	}
	return n.openAdmin()
}

func (n *Node) openAdmin() error {
	if n.cfg.Admin == "" {
		return nil
	}
	ln, err := net.Listen("tcp", n.cfg.Admin)
	if err != nil {
		return fmt.Errorf("admin: %w", err)
	}
	n.addrs.Admin = ln.Addr().String()
	n.outer.run(n, func(ctx context.Context) error { return n.obs.ServeAdmin(ctx, ln) })
	return nil
}

func (n *Node) readiness() error {
	select {
	case <-n.failed:
		return n.failure
	default:
	}
	if !n.ready.Load() {
		return errors.New("the node is starting or closing")
	}
	return n.cluster.Ready()
}

// static are the configuration's credentials.
func (n *Node) static() []registry.Static {
	var out []registry.Static
	if n.cfg.APIToken != "" {
		out = append(out, registry.Static{Kind: dunlin.CredentialOperator, Secret: n.cfg.APIToken})
	}
	for _, c := range n.cfg.Credentials {
		kind := dunlin.CredentialKind(c.Kind)
		if kind == "" {
			kind = dunlin.CredentialDevice
		}
		out = append(out, registry.Static{Kind: kind, ID: c.ID, Domain: dunlin.DomainID(c.Domain), Secret: c.Secret})
	}
	return out
}

// guard decides whether the node is open, and refuses to be reachable from other machines without credentials.
func (n *Node) guard(ctx context.Context) error {
	operators, senders := 0, 0
	creds, err := n.registry.Credentials(ctx, dunlin.DefaultTenant)
	if err != nil {
		return err
	}
	for _, c := range creds {
		count(c.Kind, &operators, &senders)
	}
	for _, s := range n.static() {
		count(s.Kind, &operators, &senders)
	}
	exposed := n.cfg.Exposed()
	switch {
	case n.cfg.Open, n.cfg.Insecure:
		n.cfg.Open = true
		if len(exposed) > 0 {
			n.obs.Log.Warn("the node is open to everybody who can reach it", "addresses", exposed)
		}
	case len(exposed) == 0:
		n.cfg.Open = operators+senders == 0
	case operators == 0 || senders == 0:
		return fmt.Errorf("%w: refusing to listen on %s, where other machines can reach it, %s.\n"+
			"  Set api_token (DUNLIN_API_TOKEN) for an operator, and give devices credentials under `credentials:` in the\n"+
			"  configuration or with `dunlin credential add device ID` while the node listens on 127.0.0.1.\n"+
			"  Or start it with --insecure, if everybody who can reach %s may do everything", dunlin.ErrForbidden,
			strings.Join(exposed, ", "), missing(operators, senders), hostOf(exposed[0]))
	}
	n.registry.SetOpen(n.cfg.Open)
	return nil
}

func count(kind dunlin.CredentialKind, operators, senders *int) {
	switch kind {
	case dunlin.CredentialOperator:
		*operators++
	case dunlin.CredentialDevice, dunlin.CredentialGateway:
		*senders++
	}
}

func missing(operators, senders int) string {
	switch {
	case operators == 0 && senders == 0:
		return "without a device credential and an API token"
	case operators == 0:
		return "without an API token"
	}
	return "without a device credential"
}
