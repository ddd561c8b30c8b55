package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/dunlin-iot/dunlin"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is a cluster of feeds in one process: what was committed, which node has how much of it, and the way between them.
type world struct {
	t      *testing.T
	shards int
	nodes  []*node
	life   context.Context
	work   sync.WaitGroup

	mu struct {
		sync.Mutex
		log   [][]*dunlin.Entry // by shard; index i+1; nil: an entry without effect
		order [][]dunlin.NodeID // by shard: the placement, the owner first
		seq   uint64
	}
}

// node is a process with its replicas.
type node struct {
	*world
	id   dunlin.NodeID
	feed *Feed

	// Guarded by world.mu.
	replicas []replica
	dead     bool // calls to it fail at once
	frozen   bool // calls to it hang
	cut      bool // its calls and those to it hang
	calls    int  // that it was asked
	asked    map[dunlin.ShardID]int
	waiting  int // pulls that it serves
	mostWait int
	corrupt  func([]byte) []byte // of its replies
}

// replica is what a node has of a shard: entries from first to, not with, head.
type replica struct {
	present     bool
	first, head uint64
	freshAt     time.Time
	watchers    map[int]func()
	n           int
}

func newWorld(t *testing.T, nodes, shards int, tune func(*Config)) *world {
	w := &world{t: t, shards: shards}
	ctx, cancel := context.WithCancel(t.Context())
	w.life = ctx
	w.mu.log = make([][]*dunlin.Entry, shards)
	w.mu.order = make([][]dunlin.NodeID, shards)
	for i := range nodes {
		n := &node{world: w, id: dunlin.NodeID(i + 1), replicas: make([]replica, shards), asked: make(map[dunlin.ShardID]int)}
		for sh := range n.replicas {
			n.replicas[sh] = replica{first: 1, head: 1}
		}
		w.nodes = append(w.nodes, n)
	}
	for _, n := range w.nodes {
		c := Config{Self: n.id, Shards: shards, ShardOf: w.shardOf}
		if tune != nil {
			tune(&c)
		}
		f, err := New(c, Deps{Local: n, Replicas: n, Caller: n})
		if err != nil {
			t.Fatal(err)
		}
		n.feed = f
		w.work.Go(func() { _ = f.Run(ctx) })
	}
	t.Cleanup(func() { cancel(); w.work.Wait() })
	return w
}

func (w *world) shardOf(k dunlin.DeviceKey) dunlin.ShardID {
	var n int
	_, _ = fmt.Sscanf(string(k.Device), "d%d", &n)
	return dunlin.ShardID(n % w.shards)
}

func key(n int) dunlin.DeviceKey {
	return dunlin.DeviceKey{Tenant: "default", Device: dunlin.DeviceID(fmt.Sprintf("d%d", n))}
}

// place puts a shard on nodes, the owner first. New replicas have what is committed from index first on.
func (w *world) place(sh dunlin.ShardID, first uint64, ids ...dunlin.NodeID) {
	w.mu.Lock()
	w.placeLocked(sh, first, ids)
	w.mu.Unlock()
	for _, n := range w.nodes {
		n.feed.Poke()
	}
}

func (w *world) placeLocked(sh dunlin.ShardID, first uint64, ids []dunlin.NodeID) {
	w.mu.order[sh] = ids
	for _, n := range w.nodes {
		r := &n.replicas[sh]
		has := slices.Contains(ids, n.id)
		switch {
		case has && !r.present:
			r.present, r.first, r.head, r.freshAt = true, first, uint64(len(w.mu.log[sh]))+1, time.Now()
			r.tellLocked()
		case !has && r.present:
			r.present, r.first, r.head = false, 1, 1
		}
	}
}

// commit adds an entry of the shard's own device, or of device n of the shard; every living replica applies it if apply.
func (w *world) commit(sh dunlin.ShardID, device int, effect, apply bool) uint64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	var e *dunlin.Entry
	if effect {
		w.mu.seq++
		e = &dunlin.Entry{Shard: sh, Term: 1, At: dunlin.Time(w.mu.seq), Changes: []dunlin.Change{{
			DeviceKey: key(device*w.shards + int(sh)), Domain: "default", Version: w.mu.seq,
			Stages: []dunlin.StageResult{{State: []byte("remembered"), StateSet: true}},
			Inputs: []dunlin.Input{{Kind: dunlin.InputTelemetry, Received: dunlin.Time(w.mu.seq)}}}}}
	}
	w.mu.log[sh] = append(w.mu.log[sh], e)
	if apply {
		for _, n := range w.nodes {
			n.applyLocked(sh, 1<<30)
		}
	}
	return uint64(len(w.mu.log[sh]))
}

// applyLocked brings the replica forward by up to n entries, unless the node is cut off.
func (n *node) applyLocked(sh dunlin.ShardID, most int) {
	r := &n.replicas[sh]
	if !r.present || n.cut || n.frozen || n.dead {
		return
	}
	end := uint64(len(n.mu.log[sh])) + 1
	if r.head < end {
		r.head = min(end, r.head+uint64(most))
		r.tellLocked()
	}
	if r.head == end {
		r.freshAt = time.Now()
	}
}

// tellLocked tells the watchers, with the journal's lock held, as the store does.
func (r *replica) tellLocked() {
	for _, news := range r.watchers {
		news()
	}
}

// beat lets every replica hear of its owner.
func (w *world) beat() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for sh := range w.shards {
		for _, n := range w.nodes {
			if r := &n.replicas[sh]; r.present && !n.cut && !n.dead && !n.frozen && r.head == uint64(len(w.mu.log[sh]))+1 {
				r.freshAt = time.Now()
			}
		}
	}
}

// beating hears of owners for ever.
func (w *world) beating() {
	w.work.Go(func() {
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				w.beat()
			case <-w.life.Done():
				return
			}
		}
	})
}

// Head implements Local.
func (n *node) Head(sh dunlin.ShardID) uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.replicas[sh].head
}

// Read implements Local.
func (n *node) Read(sh dunlin.ShardID, next uint64) (items []dunlin.FeedItem, upTo uint64, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := &n.replicas[sh]
	switch {
	case next >= r.head:
		return nil, next, nil
	case next < r.first:
		return nil, next, fmt.Errorf("journal: %w", dunlin.ErrCursorLost)
	}
	for upTo = next; upTo < r.head && len(items) < 7; upTo++ {
		if e := n.mu.log[sh][upTo-1]; e != nil {
			items = append(items, dunlin.FeedItem{Index: upTo, Entry: e})
		}
	}
	return items, upTo, nil
}

// Watch implements Local.
func (n *node) Watch(sh dunlin.ShardID, news func()) (stop func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := &n.replicas[sh]
	if r.watchers == nil {
		r.watchers = make(map[int]func())
	}
	id := r.n
	r.n++
	r.watchers[id] = news
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(r.watchers, id)
	}
}

// Replicas implements Replicas.
func (n *node) Replicas(sh dunlin.ShardID) []dunlin.NodeID {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mu.order[sh]
}

// Fresh implements Replicas.
func (n *node) Fresh(sh dunlin.ShardID) (time.Duration, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	r := &n.replicas[sh]
	return time.Since(r.freshAt), r.present && !r.freshAt.IsZero()
}

var errRefused = errors.New("connection refused")

// Call implements Caller. A caller that gives up is not noticed by the other side.
func (n *node) Call(ctx context.Context, to dunlin.NodeID, method string, body []byte) ([]byte, error) {
	dst := n.nodes[to-1]
	type reply struct {
		body []byte
		err  error
	}
	done := make(chan reply, 1)
	n.mu.Lock()
	hangs, dead, life := n.cut || dst.cut || dst.frozen, dst.dead || n.dead, n.life
	n.mu.Unlock()
	if dead {
		return nil, errRefused
	}
	n.work.Go(func() {
		if hangs {
			return
		}
		b, err := dst.serve(life, n.id, method, body)
		n.mu.Lock()
		hangs := n.cut || dst.cut || dst.frozen || dst.dead
		n.mu.Unlock()
		if !hangs {
			done <- reply{b, err}
		}
	})
	select {
	case r := <-done:
		return r.body, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (n *node) serve(ctx context.Context, from dunlin.NodeID, method string, body []byte) ([]byte, error) {
	req, err := decodePull(body, n.shards)
	if err != nil {
		n.t.Errorf("a feed sent %x: %v", body, err)
	}
	n.mu.Lock()
	n.calls++
	for _, at := range req.from {
		n.asked[at.shard]++
	}
	if req.wait > 0 {
		n.waiting++
		n.mostWait = max(n.mostWait, n.waiting)
	}
	n.mu.Unlock()
	b, err := n.feed.Serve(ctx, from, method, body)
	n.mu.Lock()
	defer n.mu.Unlock()
	if req.wait > 0 {
		n.waiting--
	}
	if n.corrupt != nil && err == nil {
		b = n.corrupt(b)
	}
	return b, err
}

// do changes nodes with the lock held.
func (w *world) do(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// wants are the indexes of a shard from next on that a follower must get, of one device if it is set.
func (w *world) wants(sh dunlin.ShardID, next uint64, device *dunlin.DeviceKey) (out []uint64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, e := range w.mu.log[sh] {
		if uint64(i)+1 >= next && e != nil && (device == nil || touches(e, *device)) {
			out = append(out, uint64(i)+1)
		}
	}
	return out
}

// pause lets time pass.
func pause(ctx context.Context, d time.Duration) {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	<-ctx.Done()
}
