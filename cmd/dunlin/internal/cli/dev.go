package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cmd/dunlin/internal/builtin"
	"github.com/dunlin-iot/dunlin/internal/sim"
	"github.com/dunlin-iot/dunlin/runtime/config"
	"github.com/dunlin-iot/dunlin/runtime/node"
	"github.com/spf13/cobra"
)

// exampleDomain is the domain that `dev` sets up: its limits suit the simulated fridges.
const exampleDomain = "cold-chain"

type devFlags struct {
	http, mqtt, coap, admin string
	data                    string
	sim                     int
	nodes                   int
	output                  string
	logLevel                string
}

func newDev(env Env) *cobra.Command {
	var f devFlags
	c := &cobra.Command{
		Use:   "dev",
		Short: "Start a node on this machine with simulated devices, to look around and to build against",
		Long: "dev starts a node that is open to everybody on this machine and to nobody else, with an example domain, its\n" +
			"plugin and simulated fridges that send over CoAP and MQTT. Unknown devices register themselves. A port that\n" +
			"is taken moves to the next free one. The data is thrown away at the end unless --data names a folder.",
		Example: "  dunlin dev\n  dunlin dev --nodes 3\n  dunlin dev --sim 0 --data ./my-data\n  dunlin dev --http 127.0.0.1:9000 -o json",
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return f.run(c, env) },
	}
	fl := c.Flags()
	def := config.Default()
	fl.StringVar(&f.http, "http", def.HTTP, "address of the HTTP API")
	fl.StringVar(&f.mqtt, "mqtt", def.MQTT, "address of the MQTT gateway")
	fl.StringVar(&f.coap, "coap", def.CoAP, "address of the CoAP gateway")
	fl.StringVar(&f.admin, "admin", "", "address of metrics and profiles; default none")
	fl.StringVar(&f.data, "data", "", "folder to keep the data in; default a temporary one")
	fl.IntVar(&f.sim, "sim", 25, "simulated fridges, 0 for none")
	fl.IntVar(&f.nodes, "nodes", 1, "nodes of the cluster: with 3, each shard is kept by three of them, all in this process")
	fl.StringVarP(&f.output, "output", "o", "text", "text, or json for one readiness line")
	fl.StringVar(&f.logLevel, "log-level", "warn", "debug, info, warn or error")
	return c
}

func (f *devFlags) run(c *cobra.Command, env Env) error {
	if f.output != "text" && f.output != "json" {
		return usageError{c.CommandPath(), fmt.Sprintf("output %q is neither text nor json", f.output)}
	}
	if f.sim < 0 || f.sim > 10_000 {
		return usageError{c.CommandPath(), fmt.Sprintf("--sim %d is not between 0 and 10000", f.sim)}
	}
	if f.nodes < 1 || f.nodes > nodesMax {
		return usageError{c.CommandPath(), fmt.Sprintf("--nodes %d is not between 1 and %d", f.nodes, nodesMax)}
	}
	began := time.Now()
	data := f.data
	if data == "" {
		dir, err := os.MkdirTemp("", "dunlin-dev-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		data = filepath.Join(dir, "data")
	}
	ns, moved, err := f.start(c.Context(), env, data)
	for range startsMax - 1 {
		if !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
		ns, moved, err = f.start(c.Context(), env, data)
	}
	if err != nil {
		return err
	}
	out := &lines{w: c.OutOrStdout()}
	if err := errors.Join(f.gather(c.Context(), ns, env), f.example(c.Context(), ns[0])); err != nil {
		return errors.Join(err, ns.Close())
	}
	if err := f.ready(out, ns, moved, time.Since(began)); err != nil {
		return errors.Join(err, ns.Close())
	}
	for _, n := range ns {
		n.Offer(builtin.Module)
	}
	f.play(c.Context(), ns, out)
	err = ns.Close()
	if f.output == "text" {
		f.goodbye(out)
	}
	return err
}

// startsMax is how often dev looks for free ports: one that was free may be taken, by another dev that starts just now,
// before the node binds it.
const startsMax = 4

// config makes the node's settings; moved lists the ports that were taken.
func (f *devFlags) config() (cfg config.Config, moved []string, err error) {
	cfg = config.Default()
	cfg.Open, cfg.DefaultDomain, cfg.Version = true, exampleDomain, version
	cfg.Admin, cfg.LogLevel = f.admin, f.logLevel
	for _, a := range []struct {
		name, network, from string
		to                  *string
	}{{"HTTP", "tcp", f.http, &cfg.HTTP}, {"MQTT", "tcp", f.mqtt, &cfg.MQTT}, {"CoAP", "udp", f.coap, &cfg.CoAP}} {
		if _, _, err := net.SplitHostPort(a.from); err != nil {
			return cfg, nil, fmt.Errorf("%s: %q is not host:port", a.name, a.from)
		}
		if !config.Loopback(a.from) {
			return cfg, nil, fmt.Errorf("%s: dev is open to everybody, so it only listens on loopback; for other machines use `dunlin server`", a.from)
		}
		if *a.to, err = freePort(a.network, a.from); err != nil {
			return cfg, nil, fmt.Errorf("%s: %w", a.name, err)
		}
		if _, port, _ := net.SplitHostPort(a.from); *a.to != a.from && port != "0" {
			moved = append(moved, fmt.Sprintf("%s is taken; %s moved to %s", a.from, a.name, *a.to))
		}
	}
	return cfg, moved, cfg.Validate()
}

// portsTried is how far a taken port moves.
const portsTried = 100

// freePort returns addr, or the same host with the next port that nobody listens on.
func freePort(network, addr string) (string, error) {
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		return "", err
	}
	port, err := strconv.Atoi(p)
	if err != nil || port < 0 || port > 65535 {
		return "", fmt.Errorf("port %q is not a number from 0 to 65535", p)
	}
	for try := port; try < min(port+portsTried, 65536); try++ {
		at := net.JoinHostPort(host, strconv.Itoa(try))
		if err = probe(network, at); err == nil {
			return at, nil
		}
	}
	return "", fmt.Errorf("no free port from %d to %d: %w", port, port+portsTried-1, err)
}

func probe(network, addr string) error {
	if network == "udp" {
		pc, err := net.ListenPacket(network, addr)
		if err == nil {
			err = pc.Close()
		}
		return err
	}
	ln, err := net.Listen(network, addr)
	if err == nil {
		err = ln.Close()
	}
	return err
}

// example sets up the example domain and its plugin, unless a kept data folder has them already.
func (f *devFlags) example(ctx context.Context, n *node.Node) error {
	reg := n.Registrar()
	module, err := builtin.Module(exampleDomain)
	if err != nil {
		return err
	}
	if _, err := reg.PutPlugin(ctx, dunlin.DefaultTenant, exampleDomain, module, dunlin.AnyRevision); err != nil {
		return fmt.Errorf("example plugin: %w", err)
	}
	_, err = reg.Domain(ctx, dunlin.DefaultTenant, exampleDomain)
	if !errors.Is(err, dunlin.ErrNotFound) {
		return err
	}
	_, err = reg.PutDomain(ctx, dunlin.Domain{ID: exampleDomain, Owner: "you", UnknownDevices: dunlin.UnknownRegister,
		Description: "Example: refrigerated boxes; too warm, door left open, silent",
		Pipeline: []dunlin.PluginUse{{Plugin: exampleDomain,
			Config: json.RawMessage(`{"max":8,"clear_below":7,"silent_minutes":15,"door_open_minutes":3}`)}}}, 0)
	if err != nil {
		return fmt.Errorf("example domain: %w", err)
	}
	return nil
}

// ready prints what there is and what to type next.
func (f *devFlags) ready(out *lines, ns nodes, moved []string, took time.Duration) error {
	a := ns[0].Addrs()
	if f.output == "json" {
		line, err := json.Marshal(struct {
			HTTP  string       `json:"http"`
			MQTT  string       `json:"mqtt"`
			CoAP  string       `json:"coap"`
			PID   int          `json:"pid"`
			Admin string       `json:"admin,omitempty"`
			Nodes []node.Addrs `json:"nodes,omitempty"`
		}{a.HTTP, a.MQTT, a.CoAP, os.Getpid(), a.Admin, ns.addrs()})
		if err != nil {
			return err
		}
		out.printf("%s\n", line)
		return nil
	}
	for _, m := range moved {
		out.printf("%s\n", m)
	}
	_, mqttPort, _ := net.SplitHostPort(a.MQTT)
	data := f.data
	if data == "" {
		data = "temporary; keep it with --data DIR"
	}
	out.printf("dunlin is ready after %.1f s. Ctrl-C ends it.\n\n", took.Seconds())
	out.printf("  HTTP    http://%-22s API, streams, http://%s/openapi.json\n", a.HTTP, a.HTTP)
	out.printf("  MQTT    mqtt://%-22s d/{device}/t\n", a.MQTT)
	out.printf("  CoAP    coap://%-22s d/{device}/t\n", a.CoAP)
	ns.describe(out)
	out.printf("  domain  %-29s plugin cold-chain: the mean of 5 temperatures above 8 °C raises an alert\n", exampleDomain)
	out.printf("  devices %-29s new ones register themselves\n", fmt.Sprintf("%d simulated", f.sim))
	out.printf("  data    %s\n\n", data)
	out.printf("Send readings and look at them, each line as it is:\n\n")
	out.printf("  %s -m post -t 110 -e '[{\"n\":\"temp\",\"u\":\"Cel\",\"v\":9.5}]' coap://%s/d/my-fridge/t\n", coapClient(), a.CoAP)
	out.printf("  mosquitto_pub -p %s -q 1 -t d/my-fridge/t -m '{\"temp\": 9.5}'\n", mqttPort)
	out.printf("  curl -s http://%s/v1/devices/my-fridge/state\n\n", a.HTTP)
	return nil
}

// coapClient is what libcoap's client is called here: Debian names it after its TLS library.
func coapClient() string {
	for _, name := range []string{"coap-client", "coap-client-notls", "coap-client-openssl", "coap-client-gnutls"} {
		if _, err := exec.LookPath(name); err == nil {
			return name
		}
	}
	return "coap-client"
}

// play runs the simulated fleet and tells of alerts until ctx ends or the node can't go on.
func (f *devFlags) play(ctx context.Context, ns nodes, out *lines) {
	n := ns[0]
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	a := n.Addrs()
	if f.sim > 0 {
		wg.Go(func() {
			err := sim.Run(ctx, sim.Config{MQTT: a.MQTT, CoAP: a.CoAP, Devices: f.sim, Seed: 1}, new(sim.Stats))
			if err != nil {
				out.printf("simulated devices: %v\n", err)
			}
		})
	}
	if f.output == "text" {
		wg.Go(func() { tellAlerts(ctx, n.Feed(), out) })
	}
	select {
	case <-ctx.Done():
	case <-ns.failed(ctx): // its disk, say: a node that can't go on must not look as if it did
	}
	cancel()
	wg.Wait()
}

// tellAlerts prints every alert transition as it is committed.
func tellAlerts(ctx context.Context, feed dunlin.Feed, out *lines) {
	from, err := feed.Now(ctx)
	if err != nil {
		return
	}
	for item, err := range feed.Follow(ctx, &from, nil) {
		if err != nil {
			return
		}
		for i := range item.Entry.Changes {
			for _, al := range item.Entry.Changes[i].Alerts {
				v := ""
				if al.Value != nil {
					v = "  " + strconv.FormatFloat(*al.Value, 'f', 1, 64)
				}
				out.printf("%s  alert %-8s %-9s %s  %s%s\n", al.At.Std().Format(time.TimeOnly), al.State, al.Severity, al.Device, printable(al.Rule), v)
			}
		}
	}
}

func (f *devFlags) goodbye(out *lines) {
	if f.data == "" {
		out.printf("\ndunlin has stopped; the data is gone. To keep it next time: dunlin dev --data ./dunlin-data\n")
		return
	}
	out.printf("\ndunlin has stopped; the data is in %s. The same command goes on with it.\n", f.data)
}

// lines serialises what several goroutines print.
type lines struct {
	mu sync.Mutex
	w  io.Writer
}

func (l *lines) printf(format string, args ...any) {
	l.mu.Lock()
	defer l.mu.Unlock()
	fmt.Fprintf(l.w, format, args...)
}
