// Package gossip tells who is alive, where, and who is said to own what: memberlist behind a small door. It never decides
// ownership; that is Raft's.
//
//	memberlist's goroutines ──delegate: under its lock, so copy and poke──▶ view, hints ──one goroutine──▶ OnChange, OnRefused
//
// Refused are nodes with another cluster's id, with another secret, and the later of two living nodes with one name: each
// is told in words that say what to do, and the running cluster does not notice.
//
// Part of the runtime; no compatibility promise before v1.
package gossip

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/memberlist"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/dunlin-iot/dunlin"
)

// DefaultPort is where nodes gossip if a seed names no port.
const DefaultPort = 7946

// Config says who this node is and how it gossips. Self and Keys must be given.
type Config struct {
	Self Self

	Bind      string   // host:port to listen on, TCP and UDP; "": 0.0.0.0:7946; port 0: any
	Advertise string   // host or host:port at which others reach it; "": Bind, or a private address of the machine
	Keys      [][]byte // of 32 bytes each, the primary first; the others are only read with, for a rotation of the secret

	ProbeInterval time.Duration // one member is probed so often; 0: 300 ms
	ProbeTimeout  time.Duration // a probe without an answer goes the long way after this; 0: 150 ms
	SuspicionMult int           // a suspect has about this many ProbeIntervals to speak up; 0: 4
	DeadKeep      time.Duration // the dead stay in Members for this long; 0: 24 h
	Reconnect     time.Duration // one of the dead is called so often, in case the network was cut; 0: 5 s

	// OnChange is called when Members or Hints may have changed, from one goroutine; calls are merged.
	OnChange func()
	// OnRefused is called, from the same goroutine, when a node that was in may not stay: another living node has its name
	// or its id and was there first. The error says what to do. What is wrong when a node comes, Join says.
	OnRefused func(error)

	Resolver Resolver              // of seeds' names; nil: the system's
	Clock    func() dunlin.Time    // nil: the system's
	Log      *slog.Logger          // nil: none
	Metrics  prometheus.Registerer // nil: none
}

// Resolver looks up names: *net.Resolver.
type Resolver interface {
	LookupHost(ctx context.Context, host string) ([]string, error)
	LookupSRV(ctx context.Context, service, proto, name string) (cname string, addrs []*net.SRV, err error)
}

func (c *Config) complete() error {
	if c.Bind == "" {
		c.Bind = ":" + strconv.Itoa(DefaultPort)
	}
	if len(c.Keys) == 0 {
		return fmt.Errorf("%w: gossip needs a key: it is never sent in the clear", dunlin.ErrInvalid)
	}
	for _, k := range c.Keys {
		if len(k) != 32 {
			return fmt.Errorf("%w: gossip key of %d bytes, want 32", dunlin.ErrInvalid, len(k))
		}
	}
	if c.ProbeInterval <= 0 {
		c.ProbeInterval = 300 * time.Millisecond
	}
	if c.ProbeTimeout <= 0 {
		c.ProbeTimeout = c.ProbeInterval / 2
	}
	if c.SuspicionMult <= 0 {
		c.SuspicionMult = 4
	}
	if c.DeadKeep <= 0 {
		c.DeadKeep = 24 * time.Hour
	}
	if c.Reconnect <= 0 {
		c.Reconnect = 5 * time.Second
	}
	if c.Resolver == nil {
		c.Resolver = net.DefaultResolver
	}
	if c.Clock == nil {
		c.Clock = func() dunlin.Time { return dunlin.TimeOf(time.Now()) }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Self.Started == 0 {
		c.Self.Started = c.Clock()
	}
	return c.Self.validate()
}

// Gossip is this node's part in the gossip.
type Gossip struct {
	cfg   Config
	list  *memberlist.Memberlist
	wire  *transport
	log   *logs
	met   *metrics
	addr  string // of this node
	hints hints
	queue memberlist.TransmitLimitedQueue // of hints to tell

	self atomic.Pointer[told]
	view view

	refusals refusals
	poke     chan struct{} // a token: something changed
	done     chan struct{} // closed by Close
	wg       sync.WaitGroup
	life     struct {
		sync.Mutex
		left, closed bool
	}
}

// told is what this node says of itself, and its bytes.
type told struct {
	Self
	meta []byte
}

var errClosed = fmt.Errorf("%w: gossip is closed", dunlin.ErrUnavailable)

// Start listens, and gossips with nobody yet: see Join.
func Start(cfg Config) (*Gossip, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	g := &Gossip{cfg: cfg, poke: make(chan struct{}, 1), done: make(chan struct{})}
	g.log = newLogs(cfg.Log, cfg.Clock)
	g.self.Store(&told{cfg.Self, cfg.Self.meta()})
	g.view.init(cfg.DeadKeep)
	conf, err := g.memberlistConfig()
	if err != nil {
		return nil, err
	}
	g.queue.RetransmitMult, g.queue.NumNodes = conf.RetransmitMult, g.view.alive
	if g.met, err = newMetrics(cfg.Metrics, g); err != nil {
		_ = g.wire.Shutdown()
		return nil, fmt.Errorf("metrics of gossip: %w", err)
	}
	if g.list, err = memberlist.Create(conf); err != nil {
		_ = g.wire.Shutdown()
		g.met.close()
		return nil, fmt.Errorf("start gossip on %s: %w", cfg.Bind, err)
	}
	g.addr = g.list.LocalNode().Address()
	g.met.ready(g.list.GetHealthScore)
	g.wg.Go(g.run)
	g.wg.Go(g.reconnect)
	return g, nil
}

func (g *Gossip) memberlistConfig() (*memberlist.Config, error) {
	keys, err := memberlist.NewKeyring(g.cfg.Keys, g.cfg.Keys[0])
	if err != nil {
		return nil, fmt.Errorf("gossip keys: %w", err)
	}
	c := memberlist.DefaultLANConfig()
	c.Name = g.cfg.Self.Name
	c.Keyring = keys
	c.Delegate, c.Events, c.Conflict, c.Merge, c.Alive = (*delegate)(g), (*delegate)(g), (*delegate)(g), (*delegate)(g), (*delegate)(g)
	c.Logger = g.log.logger()
	c.ProbeInterval, c.ProbeTimeout, c.SuspicionMult = g.cfg.ProbeInterval, g.cfg.ProbeTimeout, g.cfg.SuspicionMult
	c.GossipInterval = 100 * time.Millisecond
	c.PushPullInterval = 3 * time.Second // what datagrams lost, such as a started node's addresses, is made good by this
	c.TCPTimeout = 3 * time.Second
	c.EnableCompression = false // messages are small
	// A node that is dead gives its name free at once: what came back under it may have another address.
	c.DeadNodeReclaimTime = time.Millisecond
	if g.wire, err = listen(g.cfg.Bind, c.Logger); err != nil {
		return nil, err
	}
	c.Transport = g.wire
	c.BindPort = g.wire.GetAutoBindPort()
	if c.AdvertiseAddr, c.AdvertisePort, err = g.advertise(c.BindPort); err != nil {
		_ = g.wire.Shutdown()
		return nil, err
	}
	return c, nil
}

// advertise finds the address that Advertise means; "": memberlist finds one.
func (g *Gossip) advertise(bound int) (ip string, port int, err error) {
	host, port := g.cfg.Advertise, bound
	if host == "" {
		if h, _, _ := net.SplitHostPort(g.cfg.Bind); h == "::" {
			return "", 0, fmt.Errorf("%w: gossip on %s needs an address to advertise", dunlin.ErrInvalid, g.cfg.Bind)
		}
		return "", bound, nil
	}
	if h, p, err := splitAddr(host); err == nil {
		host = h
		if p != 0 {
			port = int(p)
		}
	}
	if net.ParseIP(host) != nil {
		return host, port, nil
	}
	ctx, cancel := context.WithTimeout(until(g.done), 5*time.Second)
	defer cancel()
	ips, err := g.cfg.Resolver.LookupHost(ctx, host)
	if err != nil || len(ips) == 0 {
		return "", 0, fmt.Errorf("%w: gossip address %q to advertise: %w", dunlin.ErrInvalid, g.cfg.Advertise, err)
	}
	return ips[0], port, nil
}

// Addr returns host:port at which this node gossips.
func (g *Gossip) Addr() string { return g.addr }

// run tells what the delegate, under memberlist's lock, could only note.
func (g *Gossip) run() {
	for {
		select {
		case <-g.done:
			return
		case <-g.poke:
		}
		sighted, refused := g.refusals.take()
		if sighted != nil {
			g.log.refused(sighted)
		}
		if refused != nil && g.cfg.OnRefused != nil {
			g.cfg.OnRefused(refused)
		}
		if g.cfg.OnChange != nil {
			g.cfg.OnChange()
		}
	}
}

// reconnect calls the dead, one after the other. memberlist gives a dead node up after half a minute: without this, the two
// halves of a cluster whose network was cut for longer would never find each other again.
func (g *Gossip) reconnect() {
	tick := time.NewTicker(g.cfg.Reconnect)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-g.done:
			return
		case <-tick.C:
		}
		dead := g.view.lost(g.cfg.Clock())
		if len(dead) == 0 || g.gone() {
			continue
		}
		// Whoever is not there is still dead, which is no news.
		_, _ = g.list.Join([]string{dead[n%len(dead)]})
	}
}

// gone returns whether this node has left: it must not come back then.
func (g *Gossip) gone() bool {
	g.life.Lock()
	defer g.life.Unlock()
	return g.life.left || g.life.closed
}

func (g *Gossip) changed() {
	select {
	case g.poke <- struct{}{}:
	default:
	}
}

// Members lists all nodes seen, this one and the dead of late included, by name; the living before the dead of a name.
func (g *Gossip) Members() []Seen { return g.view.list(g.cfg.Clock()) }

// SetSelf changes what this node says of itself. Name, ID and Started stay.
func (g *Gossip) SetSelf(s Self) error {
	was := g.self.Load()
	if s.Name != was.Name || s.ID != was.ID {
		return fmt.Errorf("%w: node %s (%s) can't become %s (%s) while it gossips", dunlin.ErrInvalid, was.Name, was.ID, s.Name, s.ID)
	}
	s.Started = was.Started
	if err := s.validate(); err != nil {
		return err
	}
	if s == was.Self {
		return nil
	}
	g.life.Lock()
	defer g.life.Unlock()
	if g.life.closed || g.life.left {
		return errClosed
	}
	g.self.Store(&told{s, s.meta()})
	// That the news has left this node is all that UpdateNode can wait for, and nobody needs to know it.
	_ = g.list.UpdateNode(time.Nanosecond)
	return nil
}

// SetHints tells everybody who owns shards, as this node knows.
func (g *Gossip) SetHints(hs []Hint) { g.learn(hs) }

// learn keeps what is news and passes it on: a hint reaches all nodes in a few rounds, and each sends it only once or so.
func (g *Gossip) learn(hs []Hint) {
	news := g.hints.put(hs)
	if len(news) == 0 {
		return
	}
	for _, h := range news {
		g.queue.QueueBroadcast(&hintBroadcast{name: strconv.Itoa(int(h.Shard)), bytes: appendHints(make([]byte, 0, 1+hintBytesMax), []Hint{h})})
	}
	g.queue.Prune(hintsQueueMax)
	g.changed()
}

// Hints returns the newest hint of each shard, in order.
func (g *Gossip) Hints() []Hint { return g.hints.all() }

// Leave says goodbye: the others see this node as gone at once. It takes at most two seconds, or until ctx ends.
func (g *Gossip) Leave(ctx context.Context) error {
	g.life.Lock()
	defer g.life.Unlock()
	if g.life.closed || g.life.left {
		return nil
	}
	g.life.left = true
	wait := 2 * time.Second
	if end, ok := ctx.Deadline(); ok {
		wait = max(min(wait, time.Until(end)), time.Millisecond)
	}
	if err := g.list.Leave(wait); err != nil {
		return fmt.Errorf("%w: leave the gossip: %w", dunlin.ErrUnavailable, err)
	}
	return nil
}

// Close ends the gossip without a word.
func (g *Gossip) Close() error {
	g.life.Lock()
	was := g.life.closed
	g.life.closed = true
	g.life.Unlock() // the goroutines that are waited for below take it
	if was {
		return nil
	}
	close(g.done)
	g.met.close()
	err := g.list.Shutdown()
	g.wg.Wait()
	if err != nil {
		return fmt.Errorf("close gossip: %w", err)
	}
	return nil
}
