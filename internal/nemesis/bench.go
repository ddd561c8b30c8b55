package nemesis

import (
	"cmp"
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/sdk/client"
)

// domain is the one that all devices are in.
const domain = "cold-chain"

// Config says what is done to what. Binary and Module must be given.
type Config struct {
	Binary   string   // the dunlin to be tried
	Module   string   // the .wasm of the example plugin
	Dir      string   // for logs and data; default a temporary one, removed unless something failed
	Isolated bool     // this process is in namespaces of its own (see Inside); otherwise nodes stand on loopback addresses
	Nodes    int      // default 3
	Rounds   int      // default 10; every fault in turn
	Seed     uint64   // what is done to whom, and for how long; default 1
	Faults   []string // names; default all that can be done here
	Devices  int      // default 36, half of them CoAP, half MQTT
	Readers  int      // of twins at level leader; default 3
	// Pace is the mean time between a device's ack and its next reading; default 300 ms. A device's messages are known again
	// among the last 32 (see dunlin.SeenMax): a pace that gets more into the longest fault makes repetitions that are taken twice.
	Pace     time.Duration
	Calm     time.Duration // load without fault before each; default 2 s
	DiskMB   int64         // size of a node's file system; default 2048, sparse
	LogLevel string        // of the nodes; default debug
	KeepOn   bool          // go on after a failed round
	Out      io.Writer     // told what happens; nil: nobody
}

func (c *Config) defaults() error {
	if c.Binary == "" || c.Module == "" {
		return errors.New("nemesis: want a binary and a module")
	}
	c.Nodes, c.Rounds, c.Seed = cmp.Or(c.Nodes, 3), cmp.Or(c.Rounds, 10), cmp.Or(c.Seed, 1)
	c.Devices, c.Readers = cmp.Or(c.Devices, 36), cmp.Or(c.Readers, 3)
	c.Pace, c.Calm = cmp.Or(c.Pace, 300*time.Millisecond), cmp.Or(c.Calm, 2*time.Second)
	c.DiskMB, c.LogLevel = cmp.Or(c.DiskMB, 2048), cmp.Or(c.LogLevel, "debug")
	if c.Out == nil {
		c.Out = io.Discard
	}
	if c.Nodes != 3 && c.Nodes != 5 {
		return fmt.Errorf("nemesis: %d nodes, want 3 or 5", c.Nodes)
	}
	for _, name := range c.Faults {
		if !slices.ContainsFunc(faults(), func(f fault) bool { return f.name == name }) {
			return fmt.Errorf("nemesis: no fault is called %q", name)
		}
	}
	return nil
}

// Bench is a cluster with everything around it.
type Bench struct {
	cfg   Config
	began time.Time
	key   string
	host  string // the bench's own address
	net   *network
	procs []*proc // the cluster's, and one more that may join
	fleet *fleet
	subs  *subscriber
	book  *chronicle
	eyes  *witness
	rng   *rand.Rand
	http  *http.Client
	wg    sync.WaitGroup // watchers of processes

	// Of the goroutine that does the rounds.
	report *Report
	fault  string        // of this round
	from   mark          // where this round's ledger begins
	healed time.Duration // when the cluster was whole again

	mu struct {
		sync.Mutex
		deaths []string // processes that ended and were not to
	}
}

// now is the bench's clock.
func (b *Bench) now() time.Duration { return time.Since(b.began) }

func (b *Bench) say(format string, args ...any) {
	fmt.Fprintf(b.cfg.Out, "%7.1fs  %s\n", b.now().Seconds(), fmt.Sprintf(format, args...))
}

// ended is told of the end of every process.
func (b *Bench) ended(p *proc, expected bool, err error, last string) {
	if expected {
		return
	}
	text := fmt.Sprintf("%s ended by itself: %v: %s", p.name, err, last)
	b.say("%s", text)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.mu.deaths = append(b.mu.deaths, text)
}

// Run does the rounds. The report is there also with an error, as far as it got; the error is about the bench or a cluster
// that does not come up, while what the cluster did wrong is in Report.Failures.
func Run(ctx context.Context, cfg Config) (*Report, error) {
	if err := cfg.defaults(); err != nil {
		return nil, err
	}
	temporary := cfg.Dir == ""
	if temporary {
		dir, err := os.MkdirTemp("", "dunlin-nemesis-")
		if err != nil {
			return nil, err
		}
		cfg.Dir = dir
	}
	b := &Bench{cfg: cfg, began: time.Now(), rng: rand.New(rand.NewPCG(cfg.Seed, 0)),
		http: &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{MaxIdleConnsPerHost: 8, DisableKeepAlives: true}}}
	r := &Report{Seed: cfg.Seed, Nodes: cfg.Nodes, Isolated: cfg.Isolated, Dir: cfg.Dir}
	err := b.run(ctx, r)
	r.Seconds = b.now().Seconds()
	if temporary && err == nil && len(r.Failures) == 0 {
		r.Dir = ""
		err = os.RemoveAll(cfg.Dir)
	}
	return r, err
}

func (b *Bench) run(ctx context.Context, r *Report) (err error) {
	defer func() { err = errors.Join(err, b.close()) }()
	if err := b.build(ctx); err != nil {
		return err
	}
	if err := b.found(ctx); err != nil {
		return err
	}
	play, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	defer wg.Wait()
	defer stop()
	if b.fleet, err = newFleet(b); err != nil {
		return err
	}
	b.subs = newSubscriber(b)
	b.book = &chronicle{b: b}
	b.book.mu.turns = map[string]map[uint64]turn{}
	b.eyes = newWitness(b)
	wg.Go(func() { b.eyes.run(play) })
	wg.Go(func() { b.subs.run(play) })
	wg.Go(func() { b.book.run(play) })
	wg.Go(func() { b.fleet.run(play) })
	return b.rounds(ctx, r)
}

// build makes the places where nodes stand.
func (b *Bench) build(ctx context.Context) error {
	if err := os.MkdirAll(filepath.Join(b.cfg.Dir, "logs"), 0o700); err != nil {
		return err
	}
	var secret [32]byte
	for i := range secret {
		secret[i] = byte(b.rng.Uint32())
	}
	b.key = hex.EncodeToString(secret[:])
	b.host = "127.0.0.1"
	if b.cfg.Isolated {
		if err := settle(); err != nil {
			return err
		}
		net, err := newNetwork(b.cfg.Seed, b.cfg.Nodes+1)
		if err != nil {
			return err
		}
		b.net, b.host = net, address(0).String()
	}
	pid := os.Getpid()
	for i := 1; i <= b.cfg.Nodes+1; i++ {
		p := &proc{b: b, i: i, name: fmt.Sprintf("n%d", i), data: filepath.Join(b.cfg.Dir, fmt.Sprintf("n%d", i))}
		p.host = fmt.Sprintf("127.%d.%d.%d", 1+pid>>8&0x7F%126, pid&0xFF, i) // benches side by side don't meet
		if b.cfg.Isolated {
			var err error
			p.host = address(i).String()
			if p.disk, err = newDisk(ctx, p.data, p.data+".img", b.cfg.DiskMB<<20); err != nil {
				b.say("no file system of its own for %s, so no faults of disks: %v", p.name, err)
			} else {
				p.data = filepath.Join(p.data, "data")
			}
		}
		b.procs = append(b.procs, p)
	}
	return nil
}

// start starts a node's process in its place.
func (b *Bench) start(i int, cmd *exec.Cmd) error {
	if b.net != nil {
		return b.net.start(i, cmd)
	}
	return cmd.Start()
}

// found brings the cluster up and sets up the domain.
func (b *Bench) found(ctx context.Context) error {
	for _, p := range b.procs[:b.cfg.Nodes] {
		if err := p.start(ctx); err != nil {
			return err
		}
	}
	if err := b.healthy(ctx, time.Minute); err != nil {
		return fmt.Errorf("the cluster does not come up: %w", err)
	}
	module, err := os.ReadFile(b.cfg.Module)
	if err != nil {
		return err
	}
	c, err := client.New(b.procs[0].addr(portHTTP), client.Options{})
	if err != nil {
		return err
	}
	defer c.Close()
	if _, err = c.PushPlugin(ctx, domain, module, dunlin.AnyRevision); err != nil {
		return fmt.Errorf("push the plugin: %w", err)
	}
	_, err = c.PutDomain(ctx, dunlin.Domain{ID: domain, Owner: "nemesis", UnknownDevices: dunlin.UnknownRegister,
		Pipeline: []dunlin.PluginUse{{Plugin: domain, Config: json.RawMessage(`{"max":8,"clear_below":7,"silent_minutes":0,"door_open_minutes":0}`)}}}, 0)
	if err != nil {
		return fmt.Errorf("put the domain: %w", err)
	}
	if err := b.known(ctx); err != nil {
		return err
	}
	b.say("%d nodes are up", b.cfg.Nodes)
	return nil
}

// known waits until every node knows the domain: who sends before is told 4.04, and for that message for good (RFC 7252 §4.5).
func (b *Bench) known(ctx context.Context) error {
	for _, p := range b.procs {
		if !p.running() {
			continue
		}
		c, err := client.New(p.addr(portHTTP), client.Options{})
		if err != nil {
			return err
		}
		_, err = c.Domain(ctx, domain)
		c.Close()
		if err != nil {
			return fmt.Errorf("%s does not know the domain: %w", p.name, err)
		}
	}
	return nil
}

// close ends everything that the bench started.
func (b *Bench) close() error {
	var errs []error
	for _, p := range b.procs {
		_ = p.signal(syscall.SIGCONT) // one that stands still would not end
		if p.running() {
			errs = append(errs, p.end(syscall.SIGKILL))
		}
	}
	b.wg.Wait()
	for _, p := range b.procs {
		if p.disk != nil {
			if err := p.disk.close(); err != nil {
				errs = append(errs, fmt.Errorf("unmount: %w", err))
			}
		}
	}
	if b.net != nil {
		b.net.close()
	}
	b.http.CloseIdleConnections()
	return errors.Join(errs...)
}
