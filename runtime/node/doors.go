package node

import (
	"context"
	"errors"
	"fmt"
	"io"
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
	n.mqtt.Store(m)
	var hosts []string
	if n.cfg.Insecure { // open on purpose: any name may lead here
		hosts = []string{"*"}
	}
	h, err := httpapi.New(httpapi.Config{Addr: n.cfg.HTTP, Hosts: hosts, Version: httpapi.Version{Version: n.cfg.Version, Node: n.identity.Node}, Ready: n.readiness,
		MetricsHandler: n.obs.MetricsHandler(), Metrics: metrics, Log: log, DrainTimeout: doorsGrace},
		httpapi.Deps{Ingestor: n.router, Inspector: n.router, Registrar: n.router, Auth: n.registry, Feed: n.feed, Decoder: n.decoder, Cluster: n.cluster,
			Plugins: n.router, Trials: n, Replay: n.replay})
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
	if n.network != nil { // the port may be known only now
		if err := n.network.SetServices(n.remote.Addr(), n.announced(n.addrs.HTTP)); err != nil {
			return err
		}
	}
	return n.openAdmin()
}

// vacant sees to it that the addresses where this node will listen are free, before others are told of it: a node that joins
// and then ends because its HTTP port is taken would leave a dead member behind.
func (n *Node) vacant(ctx context.Context) error {
	addrs := []struct{ name, network, addr string }{{"CoAP", "udp", n.cfg.CoAP}, {"MQTT", "tcp", n.cfg.MQTT}, {"HTTP", "tcp", n.cfg.HTTP}, {"admin", "tcp", n.cfg.Admin}}
	if n.cfg.Cluster != "" {
		calls, err := offset(n.cfg.Cluster, 2)
		if err != nil {
			return err
		}
		addrs = append(addrs, struct{ name, network, addr string }{"calls between nodes", "tcp", calls})
	}
	var lc net.ListenConfig
	for _, a := range addrs {
		var held io.Closer
		var err error
		switch {
		case a.addr == "":
			continue
		case a.network == "udp":
			held, err = lc.ListenPacket(ctx, a.network, a.addr)
		default:
			held, err = lc.Listen(ctx, a.network, a.addr)
		}
		if err == nil {
			err = held.Close()
		}
		if err != nil {
			return fmt.Errorf("%s: %w", a.name, err)
		}
	}
	return nil
}

// announced is an address of the HTTP API as others are told it: on the host where they reach this node, if it is bound to all.
func (n *Node) announced(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if err != nil || advertised(host) != "" {
		return addr
	}
	return net.JoinHostPort(hostOf(n.network.Addr()), port)
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
