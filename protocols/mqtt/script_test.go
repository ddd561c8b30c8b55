package mqtt

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/datadriven"
	mochi "github.com/mochi-mqtt/server/v2/packets"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/payload"
)

// TestScripts runs a gateway over net.Pipe in a bubble of fake time, so that every line is the whole consequence of a
// command: what each client got, and what the Ingestor was given.
//
//	open auth=closed          a gateway; see script.open
//	connect NAME [v=5] …      a connection and its CONNECT
//	publish, subscribe, unsubscribe, puback, pubrel, ping, disconnect, raw, hangup
//	commit [i …] | refuse i ERROR   answers for the Ingestor's waiting uplinks
//	change DEVICE …           an entry in the log
//	advance 10s               time goes by
func TestScripts(t *testing.T) {
	datadriven.Walk(t, "testdata/scripts", func(t *testing.T, path string) {
		synctest.Test(t, func(t *testing.T) {
			s := &script{t: t, clients: map[string]*scriptClient{}}
			datadriven.RunTest(t, path, s.run)
			s.close()
		})
	})
}

// TestScriptsKept runs the same scripts with sessions that are kept in rows: a client can't tell.
func TestScriptsKept(t *testing.T) {
	datadriven.Walk(t, "testdata/scripts", func(t *testing.T, path string) {
		if strings.HasSuffix(path, "gateway.txt") {
			t.Skip("a kept will of several devices that one device's shard refuses for now is offered to all of them again")
		}
		synctest.Test(t, func(t *testing.T) {
			s := &script{t: t, clients: map[string]*scriptClient{}, kept: true}
			datadriven.RunTest(t, path, s.run)
			s.close()
		})
	})
}

// TestScriptsCluster runs scripts with several nodes.
//
//	open nodes=2              gateways A, B, …; A owns all shards
//	connect NAME at=B …       a connection to a node
//	kill A [owner=B] [quiet]  the node is cut off; quiet: nobody notices
//	restart A                 it comes back under its id, with nothing in memory
//	heal A                    a node that was cut off quietly is back
//	majority lost|back
//	own B                     B owns all shards from now on
//	rows                      what is kept
func TestScriptsCluster(t *testing.T) {
	datadriven.Walk(t, "testdata/cluster", func(t *testing.T, path string) {
		synctest.Test(t, func(t *testing.T) {
			s := &script{t: t, clients: map[string]*scriptClient{}, kept: true}
			datadriven.RunTest(t, path, s.run)
			s.close()
		})
	})
}

type pipeListener struct {
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case nc := <-l.conns:
		return nc, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error { l.once.Do(func() { close(l.done) }); return nil }

func (l *pipeListener) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }

// dial connects through the listener.
func (l *pipeListener) dial() net.Conn {
	ours, theirs := net.Pipe()
	l.conns <- theirs
	return ours
}

type script struct {
	t       *testing.T
	shelf   *shelf
	journal *journal
	kept    bool
	town    *town
	cfg     Config
	deps    Deps
	nodes   map[string]*scriptNode
	clients map[string]*scriptClient
	seq     uint64
}

// scriptNode is a gateway, and what keeps its sessions.
type scriptNode struct {
	g      *Gateway
	l      *pipeListener
	cancel context.CancelFunc
	served chan error
	node   *townNode
	swept  chan struct{}
	stop   context.CancelFunc
}

type scriptClient struct {
	name string
	at   string
	nc   net.Conn
	v5   bool
	mu   sync.Mutex
	buf  []byte
	err  error
	out  chan []byte
}

func (s *script) run(t *testing.T, d *datadriven.TestData) string {
	if d.Cmd == "rows" {
		return strings.Join(s.town.keys(), "\n")
	}
	if d.Cmd == "open" {
		s.open(d)
	} else if err := s.do(d); err != nil {
		return "error: " + err.Error()
	}
	synctest.Wait()
	out := s.output()
	if s.kept {
		lines := strings.SplitAfter(strings.ReplaceAll(out, " may-repeat id", ""), "\n")
		if strings.Join(slices.Compact(lines), "") == d.Expected {
			return d.Expected // a kept will may be said twice, and says so
		}
	}
	return out
}

func (s *script) open(d *datadriven.TestData) {
	s.close()
	cfg := Config{Portable: true, ReceiveMax: 4, SubscriptionsMax: 4, TopicAliasMax: 2, WindowMax: 8, PacketBytesMax: 2048, ConnectBytesMax: 1024,
		FirstWordMax: -1}
	if v := arg(d, "sessions", ""); v != "" {
		cfg.SessionsMax = number(v)
	}
	if v := arg(d, "connections", ""); v != "" {
		cfg.ConnectionsMax = number(v)
	}
	var auth dunlin.Authenticator = openAuth{}
	if arg(d, "auth", "open") == "closed" {
		auth = closedAuth{}
	}
	s.shelf, s.journal = &shelf{}, newJournal(4)
	deps := Deps{Ingestor: s.shelf, Auth: auth, Feed: s.journal, Decoder: payload.NewDecoder()}
	s.cfg, s.deps, s.nodes, s.town = cfg, deps, map[string]*scriptNode{}, newTown(4)
	for i := range number(arg(d, "nodes", "1")) {
		s.start(string(rune('A' + i)))
	}
}

func nodeID(name string) dunlin.NodeID { return dunlin.NodeID(name[0]-'A') + 1 }

func (s *script) start(name string) {
	n := &scriptNode{l: newPipeListener(), served: make(chan error, 1), swept: make(chan struct{})}
	deps := s.deps
	if s.kept {
		n.node = s.town.node(s.t, nodeID(name))
		deps.Sessions = n.node.s
	}
	g, err := New(s.cfg, deps)
	if err != nil {
		s.t.Fatal(err)
	}
	n.g = g
	g.Attach(n.l)
	ctx, cancel := context.WithCancel(s.t.Context())
	n.cancel = cancel
	go func() { n.served <- g.Serve(ctx) }()
	if s.kept {
		n.node.s.Attach(g)
		ctx, cancel := context.WithCancel(s.t.Context())
		n.stop = cancel
		go func() { defer close(n.swept); n.node.s.Run(ctx) }()
	}
	s.nodes[name] = n
}

// end closes a node; its clients see that.
func (s *script) end(name string) {
	n := s.nodes[name]
	n.cancel()
	if err := <-n.served; err != nil {
		s.t.Error(err)
	}
	if n.stop != nil {
		n.stop()
		<-n.swept
	}
	delete(s.nodes, name)
}

func (s *script) close() {
	for _, name := range slices.Sorted(maps.Keys(s.nodes)) {
		s.end(name)
	}
	for _, c := range s.clients {
		c.nc.Close()
		close(c.out)
	}
	s.clients = map[string]*scriptClient{}
}

// cluster runs the commands about nodes.
func (s *script) cluster(d *datadriven.TestData) bool {
	name := ""
	if len(d.CmdArgs) > 0 {
		name = d.CmdArgs[0].Key
	}
	switch d.Cmd {
	case "kill":
		s.town.set(func() {
			n := s.town.nodes[nodeID(name)]
			n.stale, n.dead = true, arg(d, "quiet", "") == ""
			if o := arg(d, "owner", ""); o != "" {
				s.town.owner, s.town.term = nodeID(o), s.town.term+1
			}
		})
		if arg(d, "quiet", "") == "" {
			for _, c := range s.clients {
				if c.at == name {
					c.nc.Close()
				}
			}
		}
	case "own":
		s.town.set(func() { s.town.owner, s.town.term = nodeID(name), s.town.term+1 })
	case "heal":
		s.town.set(func() { s.town.nodes[nodeID(name)].stale = false })
	case "close":
		s.end(name)
	case "restart":
		if s.nodes[name] != nil {
			s.end(name)
		}
		s.start(name)
	case "majority":
		s.town.set(func() { s.town.lost = name == "lost" })
	default:
		return false
	}
	return true
}

func arg(d *datadriven.TestData, key, def string) string {
	for _, a := range d.CmdArgs {
		if a.Key == key {
			if len(a.Vals) == 0 {
				return "true"
			}
			return a.Vals[0]
		}
	}
	return def
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		panic(err)
	}
	return n
}

func (s *script) dial(name, at string, v5 bool) *scriptClient {
	c := &scriptClient{name: name, at: at, nc: s.nodes[at].l.dial(), v5: v5, out: make(chan []byte, 64)}
	if old := s.clients[name]; old != nil {
		old.nc.Close()
		close(old.out)
	}
	s.clients[name] = c
	go func() {
		var b [4096]byte
		for {
			n, err := c.nc.Read(b[:])
			c.mu.Lock()
			c.buf = append(c.buf, b[:n]...)
			c.err = err
			c.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	go func() {
		for b := range c.out {
			c.nc.Write(b)
		}
	}()
	return c
}

func (s *script) do(d *datadriven.TestData) error {
	if s.cluster(d) {
		return nil
	}
	switch d.Cmd {
	case "advance":
		span, err := time.ParseDuration(d.CmdArgs[0].Key)
		if err != nil {
			return err
		}
		<-time.After(span)
		return nil
	case "commit", "refuse":
		return s.answer(d)
	case "change":
		s.change(d)
		return nil
	case "truncate":
		s.journal.truncate(number(d.CmdArgs[0].Key))
		return nil
	case "sessions":
		return nil
	}
	name := d.CmdArgs[0].Key
	c := s.clients[name]
	if d.Cmd == "connect" || d.Cmd == "dial" {
		c = s.dial(name, arg(d, "at", "A"), arg(d, "v", "4") == "5")
	}
	if c == nil {
		return fmt.Errorf("no client %s", name)
	}
	switch d.Cmd {
	case "dial":
	case "hangup":
		c.nc.Close()
	case "raw":
		b, err := hex.DecodeString(strings.Join(strings.Fields(d.Input), ""))
		if err != nil {
			return err
		}
		c.out <- b
	default:
		b, err := s.packet(d, c)
		if err != nil {
			return err
		}
		c.out <- b
	}
	return nil
}

var scriptErrors = map[string]error{
	"overloaded": dunlin.ErrOverloaded, "unavailable": dunlin.ErrUnavailable, "forbidden": dunlin.ErrForbidden,
	"unknown-device": dunlin.ErrUnknownDevice, "too-large": dunlin.ErrTooLarge, "not-found": dunlin.ErrNotFound, "other": errors.New("something else"),
}

// answer answers waiting uplinks: those with the given positions, by default all in order.
func (s *script) answer(d *datadriven.TestData) error {
	var err error
	var at []int
	for _, a := range d.CmdArgs {
		if n, bad := strconv.Atoi(a.Key); bad == nil {
			at = append(at, n)
		} else if err = scriptErrors[a.Key]; err == nil {
			return fmt.Errorf("unknown error %s", a.Key)
		}
	}
	if len(at) == 0 {
		for range s.shelf.count() {
			at = append(at, 0)
		}
	}
	for _, i := range at {
		u := s.shelf.take(i)
		if u == nil {
			return fmt.Errorf("no uplink %d waits", i)
		}
		s.shelf.answer(u, err)
	}
	return nil
}

// change commits an entry: change d1 readings=3 derived alert=raised command=name[:payload] publish=topic:payload tenant=other
func (s *script) change(d *datadriven.TestData) {
	dev := d.CmdArgs[0].Key
	s.seq++
	n := number(arg(d, "readings", "1"))
	ch := reading(dev, s.seq, "v", float64(s.seq))
	in := ch.Inputs[0]
	ch.Inputs = nil
	for i := range n {
		in.Records = slices.Clone(in.Records)
		in.Records[0].Num = float64(s.seq) + float64(i)/10
		ch.Inputs = append(ch.Inputs, in)
	}
	ch.Tenant = dunlin.Tenant(arg(d, "tenant", "default"))
	if arg(d, "derived", "") != "" {
		ch.Stages = []dunlin.StageResult{{Records: []dunlin.Record{{Metric: "mean", Kind: dunlin.Number, Num: 0.5, Time: 1e15}}}}
	}
	if st := arg(d, "alert", ""); st != "" {
		var state dunlin.AlertState
		if err := state.UnmarshalText([]byte(st)); err != nil {
			panic(err)
		}
		v := 9.5
		ch.Alerts = []dunlin.Alert{{Tenant: ch.Tenant, Device: ch.Device, Domain: "cold", Rule: "warm", Severity: dunlin.Major,
			State: state, Text: "too warm", Value: &v, RaisedAt: 1e15, RaisedSeq: 1, At: 1e15, Seq: s.seq}}
	}
	if name, payload, _ := strings.Cut(arg(d, "command", ""), ":"); name != "" {
		ch.Commands = []dunlin.Command{{ID: dunlin.CommandID(s.seq, 0), Name: name, Payload: []byte(payload), Format: dunlin.FormatText}}
	}
	if topic, payload, _ := strings.Cut(arg(d, "publish", ""), ":"); topic != "" {
		ch.Publish = []dunlin.Publication{{Topic: topic, Payload: []byte(payload), Format: dunlin.FormatOctets}}
	}
	s.journal.add(ch)
}

func (s *script) packet(d *datadriven.TestData, c *scriptClient) ([]byte, error) {
	kinds := map[string]byte{"connect": typeConnect, "publish": typePublish, "subscribe": typeSubscribe, "unsubscribe": typeUnsubscribe,
		"puback": typePuback, "pubrel": typePubrel, "ping": typePingreq, "disconnect": typeDisconnect}
	pk := (&client{v5: c.v5}).packet(kinds[d.Cmd])
	pk.PacketID = uint16(number(arg(d, "id", "0")))
	switch d.Cmd {
	case "connect":
		s.connectPacket(d, pk)
	case "publish":
		pk.FixedHeader.Qos = byte(number(arg(d, "qos", "0")))
		pk.FixedHeader.Dup, pk.FixedHeader.Retain = arg(d, "dup", "") != "", arg(d, "retain", "") != ""
		pk.TopicName, pk.Payload = arg(d, "topic", ""), []byte(d.Input)
		pk.Properties.ContentType = arg(d, "type", "")
		if a := number(arg(d, "alias", "0")); a > 0 {
			pk.Properties.TopicAlias, pk.Properties.TopicAliasFlag = uint16(a), true
		}
	case "subscribe", "unsubscribe":
		if n := number(arg(d, "subid", "0")); n > 0 {
			pk.Properties.SubscriptionIdentifier = []int{n}
		}
		for line := range strings.Lines(d.Input) {
			f := strings.Fields(line)
			sub := mochi.Subscription{Filter: f[0], NoLocal: slices.Contains(f, "no-local")}
			if len(f) > 1 {
				sub.Qos = byte(number(f[1]))
			}
			pk.Filters = append(pk.Filters, sub)
		}
	case "disconnect", "puback":
		pk.ReasonCode = byte(number(arg(d, "code", "0")))
		if v := arg(d, "expiry", ""); v != "" {
			pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = uint32(number(v)), true
		}
	case "pubrel", "ping":
	default:
		return nil, fmt.Errorf("unknown command %s", d.Cmd)
	}
	return bytesOf(pk), nil
}

func (s *script) connectPacket(d *datadriven.TestData, pk *mochi.Packet) {
	p := &pk.Connect
	*p = mochi.ConnectParams{ProtocolName: []byte("MQTT"), ClientIdentifier: arg(d, "client", ""), Clean: arg(d, "clean", "1") == "1",
		Keepalive: uint16(number(arg(d, "keepalive", "0")))}
	if u := arg(d, "user", ""); u != "" {
		p.UsernameFlag, p.Username = true, []byte(u)
		p.PasswordFlag, p.Password = true, []byte(arg(d, "pass", "secret"))
	}
	if v := arg(d, "expiry", ""); v != "" {
		pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = uint32(number(v)), true
	}
	pk.Properties.ReceiveMaximum = uint16(number(arg(d, "receivemax", "0")))
	pk.Properties.MaximumPacketSize = uint32(number(arg(d, "packetmax", "0")))
	pk.Properties.AuthenticationMethod = arg(d, "method", "")
	if topic := arg(d, "will", ""); topic != "" {
		p.WillFlag, p.WillTopic, p.WillPayload = true, topic, []byte(d.Input)
		p.WillProperties.WillDelayInterval = uint32(number(arg(d, "delay", "0")))
		p.WillRetain = arg(d, "willretain", "") != ""
	}
}

// output is what happened since the last command.
func (s *script) output() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s.clients)) {
		c := s.clients[name]
		c.mu.Lock()
		for {
			f, n, fault := nextFrame(c.buf, 1<<20)
			if n == 0 {
				if fault != nil {
					fmt.Fprintf(&b, "%s: %v\n", name, fault)
				}
				break
			}
			pk, err := decodeServer(f, c.v5)
			if err != nil {
				fmt.Fprintf(&b, "%s: undecodable %x: %v\n", name, f.body, err)
			} else {
				fmt.Fprintf(&b, "%s: %s\n", name, show(pk))
			}
			c.buf = c.buf[n:]
		}
		if c.err != nil {
			fmt.Fprintf(&b, "%s: closed\n", name)
			c.nc.Close()
			close(c.out)
			delete(s.clients, name)
		}
		c.mu.Unlock()
	}
	for _, l := range s.shelf.lines() {
		b.WriteString(l + "\n")
	}
	return b.String()
}

func show(pk *mochi.Packet) string {
	p := &pk.Properties
	var props []string
	add := func(ok bool, format string, args ...any) {
		if ok {
			props = append(props, fmt.Sprintf(format, args...))
		}
	}
	add(p.AssignedClientID != "", "assigned")
	add(p.ServerKeepAliveFlag, "keepalive=%d", p.ServerKeepAlive)
	add(p.SessionExpiryIntervalFlag, "expiry=%d", p.SessionExpiryInterval)
	add(p.ReceiveMaximum > 0, "receivemax=%d", p.ReceiveMaximum)
	add(p.MaximumPacketSize > 0, "packetmax=%d", p.MaximumPacketSize)
	add(p.TopicAliasMaximum > 0, "aliases=%d", p.TopicAliasMaximum)
	add(p.RetainAvailableFlag, "retain=%d", p.RetainAvailable)
	add(p.SharedSubAvailableFlag, "shared=%d", p.SharedSubAvailable)
	add(p.ContentType != "", "type=%s", p.ContentType)
	add(p.ResponseTopic != "", "response=%s", p.ResponseTopic)
	add(len(p.CorrelationData) > 0, "correlation=%s", p.CorrelationData)
	add(len(p.SubscriptionIdentifier) > 0, "subids=%v", p.SubscriptionIdentifier)
	add(p.ReasonString != "", "%q", p.ReasonString)
	tail := strings.Join(props, " ")
	name := mochi.PacketNames[pk.FixedHeader.Type]
	switch pk.FixedHeader.Type {
	case typeConnack:
		return strings.TrimSpace(fmt.Sprintf("%s 0x%02X present=%v %s", name, pk.ReasonCode, pk.SessionPresent, tail))
	case typePublish:
		return strings.TrimSpace(fmt.Sprintf("%s %s qos=%d id=%d dup=%v %s %s", name, pk.TopicName, pk.FixedHeader.Qos, pk.PacketID,
			pk.FixedHeader.Dup, pk.Payload, tail))
	case typeSuback, typeUnsuback:
		return strings.TrimSpace(fmt.Sprintf("%s %d [% X] %s", name, pk.PacketID, pk.ReasonCodes, tail))
	case typePingresp:
		return name
	case typeDisconnect:
		return strings.TrimSpace(fmt.Sprintf("%s 0x%02X %s", name, pk.ReasonCode, tail))
	}
	return strings.TrimSpace(fmt.Sprintf("%s %d 0x%02X %s", name, pk.PacketID, pk.ReasonCode, tail))
}
