package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime/pprof"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/keys"
	"github.com/dunlin-iot/dunlin/cluster/peer"
	"github.com/dunlin-iot/dunlin/cluster/replica"
	"github.com/dunlin-iot/dunlin/entry"
	"github.com/dunlin-iot/dunlin/store"
)

// turnTime is how long one of them commits before the next has its turn.
const turnTime = 50 * time.Millisecond

// contestant commits bursts of one entry a shard.
type contestant struct {
	name  string
	burst func() // begins a burst; returns once another may begin
	flush func() // returns once all are committed
	close func()

	rates []float64 // entries/s, by turn
	used  time.Duration
	n     int
	syncs func() int64 // fsyncs of the logs so far
	sent  func() int64 // messages between the replicas so far
	lost  atomic.Int64 // entries that were not committed: the shard had another owner

	nSyncs, nSent int64
}

// durable lets raw synced Pebble batches, one replica and three take turns at committing the same bytes, so that all see the
// same disk and the same neighbours. The three replicas are stores and hosts of their own in this process, on one disk, with
// mutual TLS over loopback between them.
func durable(ctx context.Context, o options) error {
	dir, err := os.MkdirTemp("", "dunlin-bench-durable-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	raw, err := rawPebble(dir)
	if err != nil {
		return err
	}
	all := []*contestant{raw}
	defer func() {
		for _, c := range all {
			c.close()
		}
	}()
	for _, n := range []int{1, 3} {
		for _, depth := range []int{1, 4, 16} {
			var c *contestant
			pprof.Do(ctx, pprof.Labels("replicas", fmt.Sprint(n)), func(ctx context.Context) {
				c, err = replicas(ctx, filepath.Join(dir, fmt.Sprintf("r%d-%d", n, depth)), n, depth)
			})
			if err != nil {
				return fmt.Errorf("%d replicas: %w", n, err)
			}
			all = append(all, c)
		}
	}
	say("durable: %d systems taking turns", len(all))
	if o.profile != "" { // go tool pprof -tagfocus replicas=3
		out, err := os.Create(filepath.Join(o.profile, "durable-cpu.pprof"))
		if err != nil {
			return err
		}
		defer out.Close()
		if err := pprof.StartCPUProfile(out); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	for end, turns := time.Now().Add(time.Duration(o.runs)*o.duration), 0; time.Now().Before(end) && ctx.Err() == nil; turns++ {
		for i := range all {
			all[(i+turns)%len(all)].turn()
		}
	}
	fmt.Printf("Durable entries, %d shards, one entry of each to a burst (medians of %d turns of %v)\n", shards, len(raw.rates), turnTime)
	fmt.Printf("  %-38s %12s %10s %14s %14s %14s %6s\n", "", "entries/s", "of raw", "CPU-µs/entry", "entries/fsync", "messages/entry", "lost")
	base := quantile(raw.rates, 0.5)
	for _, c := range all {
		r := quantile(c.rates, 0.5)
		fmt.Printf("  %-38s %12.0f %10.2f %14.1f %14.1f %14.1f %6d\n", c.name, r, r/base, float64(c.used.Nanoseconds())/float64(c.n)/1000,
			float64(c.n)/float64(max(c.nSyncs, 1)), float64(c.nSent)/float64(c.n), c.lost.Load())
	}
	return ctx.Err()
}

func (c *contestant) turn() {
	start, used, syncs, sent, n := time.Now(), rusage(), c.syncs(), c.sent(), 0
	for time.Since(start) < turnTime {
		c.burst()
		n += shards
	}
	c.flush()
	c.rates = append(c.rates, float64(n)/time.Since(start).Seconds())
	c.used += rusage() - used
	c.nSyncs += c.syncs() - syncs
	c.nSent += c.sent() - sent
	c.n += n
}

func rusage() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// benchEntry is one reading of four metrics.
func benchEntry(sh dunlin.ShardID, term uint64) []byte {
	const now = 1_700_000_000_000_000
	c := dunlin.Change{DeviceKey: dunlin.DeviceKey{Tenant: dunlin.DefaultTenant, Device: dunlin.DeviceID(fmt.Sprint("bench-", sh))}, Domain: "bench", Version: 1}
	in := dunlin.Input{Kind: dunlin.InputTelemetry, Format: dunlin.FormatSenMLJSON, MessageID: 0x6d65737361676531, Received: now}
	for i, m := range []string{"temperature", "humidity", "pressure", "battery"} {
		in.Records = append(in.Records, dunlin.Record{Metric: m, Unit: "Cel", Kind: dunlin.Number, Time: now, Num: float64(i*200+7) / 10})
	}
	c.Inputs = []dunlin.Input{in}
	return entry.Append(nil, &dunlin.Entry{Shard: sh, Term: term, At: now, Changes: []dunlin.Change{c}})
}

func rawPebble(dir string) (*contestant, error) {
	db, err := pebble.Open(filepath.Join(dir, "raw"), &pebble.Options{MemTableSize: 32 << 20, Logger: quiet{}})
	if err != nil {
		return nil, err
	}
	data := make([][]byte, shards)
	for sh := range data {
		data[sh] = benchEntry(dunlin.ShardID(sh), 2)
	}
	n := uint64(0)
	return &contestant{name: fmt.Sprintf("raw: synced batches of %d", shards), flush: func() {}, close: func() { _ = db.Close() },
		syncs: func() int64 { return int64(n) }, sent: func() int64 { return 0 }, burst: func() {
			batch := db.NewBatch()
			for sh := range data {
				key := binary.BigEndian.AppendUint64([]byte{byte(sh >> 8), byte(sh)}, n)
				if err := batch.Set(key, data[sh], nil); err != nil {
					panic(fmt.Sprintf("raw batch %d: %v", n, err))
				}
			}
			n++
			if err := batch.Commit(pebble.Sync); err != nil {
				panic(fmt.Sprintf("raw commit %d: %v", n, err))
			}
			batch.Close()
		}}, nil
}

type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...))
}

// member is one of the replicas' nodes.
type member struct {
	db    *store.DB
	host  *replica.Host
	links *peer.Links
}

// group is the nodes that hold a contestant's replicas.
type group struct {
	members []*member
	syncs   atomic.Int64
	sent    atomic.Int64
	mu      struct {
		sync.Mutex
		of [shards]struct {
			host *replica.Host
			term uint64
			data []byte
		}
	}
	ctx  context.Context
	stop context.CancelFunc
	wg   sync.WaitGroup
}

// replicas is a contestant with n replicas, who keeps depth bursts under way.
func replicas(ctx context.Context, dir string, n, depth int) (*contestant, error) {
	g := &group{}
	g.ctx, g.stop = context.WithCancel(ctx)
	voters := make([]uint64, n)
	for i := range voters {
		voters[i] = uint64(i + 1)
	}
	secret := keys.NewSecret()
	for _, id := range voters {
		if err := g.join(filepath.Join(dir, fmt.Sprint(id)), id, voters, secret); err != nil {
			g.close()
			return nil, err
		}
	}
	for _, m := range g.members {
		if m.links != nil {
			g.wg.Go(func() { _ = m.links.Run(g.ctx) })
		}
		g.wg.Go(func() { _ = m.host.Run(g.ctx) })
	}
	if err := g.spread(); err != nil {
		g.close()
		return nil, err
	}
	plural := "replica"
	if n > 1 {
		plural = "replicas"
	}
	c := &contestant{name: fmt.Sprintf("%d %s, log and state, %d in flight", n, plural, depth), close: g.close, syncs: g.syncs.Load, sent: g.sent.Load}
	under := make(chan *sync.WaitGroup, depth) // bursts under way, oldest first
	c.burst = func() {
		if len(under) == depth {
			(<-under).Wait()
		}
		left := &sync.WaitGroup{}
		left.Add(shards)
		g.propose(func(_ uint64, err error) {
			if err != nil {
				c.lost.Add(1)
			}
			left.Done()
		})
		under <- left
	}
	c.flush = func() {
		for len(under) > 0 {
			(<-under).Wait()
		}
	}
	return c, nil
}

// join opens a node's store, its host, and its links if there are others.
func (g *group) join(dir string, id uint64, voters []uint64, secret keys.Secret) error {
	db, err := store.Open(store.Config{Dir: dir, Identity: store.Identity{Shards: shards, NodeID: dunlin.NodeID(id)}})
	if err != nil {
		return err
	}
	m := &member{db: db}
	g.members = append(g.members, m)
	cfg := replica.Config{Node: id, Voters: voters, Bootstrap: true, Shards: shards, Log: countedLog{db.Log(), &g.syncs}, StateMachine: db.State(),
		OnOwner: func(sh dunlin.ShardID, term uint64, owner bool) { g.onOwner(m, sh, term, owner) }}
	if len(voters) > 1 {
		server, client, err := secret.TLS(dunlin.NodeID(id), fmt.Sprint("n", id), "bench")
		if err != nil {
			return err
		}
		m.links, err = peer.Open(peer.Config{Self: peer.Hello{Cluster: "bench", Node: dunlin.NodeID(id), Name: fmt.Sprint("n", id)},
			Server: server, Client: client, PeerOf: keys.PeerOf, Resolve: g.resolve,
			OnMessages: func(_ dunlin.NodeID, sh dunlin.ShardID, data []byte) { _ = m.host.Receive(sh, data) }}) // what can't be taken is lost
		if err != nil {
			return err
		}
		cfg.Transport = transport{m.links, &g.sent}
	}
	m.host, err = replica.Open(cfg)
	return err
}

// countedLog counts the appends that are synced.
type countedLog struct {
	replica.Log
	syncs *atomic.Int64
}

// Append implements replica.Log.
func (l countedLog) Append(rows []dunlin.LogRow, sync bool) error {
	if sync {
		l.syncs.Add(1)
	}
	return l.Log.Append(rows, sync)
}

type transport struct {
	links *peer.Links
	sent  *atomic.Int64
}

// Send implements replica.Transport.
func (t transport) Send(batch []replica.Message) {
	t.sent.Add(int64(len(batch)))
	peer.Send(t.links, batch)
}

func (g *group) resolve(id dunlin.NodeID) (string, bool) {
	if int(id) > len(g.members) {
		return "", false
	}
	var addr net.Addr = g.members[id-1].links.Addr()
	return addr.String(), true
}

func (g *group) onOwner(m *member, sh dunlin.ShardID, term uint64, owner bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if o := &g.mu.of[sh]; owner && term > o.term {
		o.host, o.term, o.data = m.host, term, benchEntry(sh, term)
	}
}

// spread gives each node its share of the shards, and returns when each has an owner.
func (g *group) spread() error {
	return until(g.ctx, time.Minute, 20*time.Millisecond, "owner of every shard", func() bool {
		good := true
		for sh := range dunlin.ShardID(shards) {
			want := g.members[int(sh)%len(g.members)].host
			g.mu.Lock()
			owner := g.mu.of[sh].host
			g.mu.Unlock()
			if owner == want {
				continue
			}
			good = false
			if owner != nil {
				ctx, cancel := context.WithTimeout(g.ctx, time.Second)
				_ = owner.Transfer(ctx, sh, dunlin.NodeID(int(sh)%len(g.members)+1)) // asked again if it fails
				cancel()
			}
		}
		return good
	})
}

// propose proposes an entry of each shard to its owner.
func (g *group) propose(done func(uint64, error)) {
	g.mu.Lock()
	of := g.mu.of
	g.mu.Unlock()
	for sh := range of {
		of[sh].host.Propose(dunlin.ShardID(sh), of[sh].term, of[sh].data, done)
	}
	for _, m := range g.members {
		m.host.Flush()
	}
}

func (g *group) close() {
	g.stop()
	g.wg.Wait()
	for _, m := range g.members {
		_ = m.db.Close() // its folder goes, too
	}
}
