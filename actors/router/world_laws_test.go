package router

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// after lets the bubble's clock go on.
func after(d time.Duration) { <-time.After(d) }

// TestEveryUplinkOnce sends from three to five nodes while owners move, entries are committed whose proposers hear nothing of it,
// and calls are lost, doubled and overtaken: each uplink is answered exactly once, what is acknowledged is stored, and nothing
// is stored twice.
func TestEveryUplinkOnce(t *testing.T) {
	for seed := range uint64(24) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { play(t, seed) })
		})
	}
}

func play(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 2))
	w := newWorld(t, 3+int(seed%3), seed)
	synctest.Wait()
	w.mu.Lock()
	w.faults = faults{lost: rng.IntN(10), replyLost: rng.IntN(10), doubled: rng.IntN(30), ambiguous: rng.IntN(2),
		delayMax: time.Duration(1+rng.IntN(20)) * time.Millisecond}
	w.mu.Unlock()
	l := &ledger{}
	var senders sync.WaitGroup
	sent := 0
	for i := range 12 {
		first, n, r := sent, 150, rand.New(rand.NewPCG(seed, uint64(10+i)))
		sent += n
		node := w.nodes[r.IntN(len(w.nodes))]
		senders.Go(func() { send(node, first, n, r, l) })
	}
	stop := make(chan struct{})
	var mover sync.WaitGroup
	mover.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(rng.IntN(80)) * time.Millisecond):
				w.move(dunlin.ShardID(rng.IntN(8)), dunlin.NodeID(1+rng.IntN(len(w.nodes))), rng.IntN(4) == 0)
			}
		}
	})
	senders.Wait()
	for i := 0; l.count() < sent; i++ {
		if i > 20_000 {
			t.Fatalf("%d uplinks of %d are answered", l.count(), sent)
		}
		after(time.Millisecond)
	}
	close(stop)
	mover.Wait()
	w.close()
	judge(t, w, l, sent)
}

// send sends bursts of uplinks of a few devices; now and then it waits.
func send(node *member, first, n int, r *rand.Rand, l *ledger) {
	for i := 0; i < n; {
		var burst []*dunlin.Uplink
		for range min(1+r.IntN(6), n-i) {
			burst = append(burst, uplink(fmt.Sprintf("dev-%d-%d", first, r.IntN(3)), first+i, l))
			i++
		}
		node.router.Ingest(chained(burst))
		after(time.Duration(r.IntN(8)) * time.Millisecond)
	}
}

func judge(t *testing.T, w *world, l *ledger, sent int) {
	t.Helper()
	w.mu.Lock()
	defer w.mu.Unlock()
	kept, refused := 0, 0
	for v := range sent {
		got, stored := l.got[float64(v)], w.stored[float64(v)]
		switch {
		case len(got) != 1:
			t.Errorf("uplink %d has %d answers", v, len(got))
		case stored > 1:
			t.Errorf("uplink %d is stored %d times", v, stored)
		case got[0].Err == nil && stored == 0:
			t.Errorf("uplink %d is acknowledged and not stored: %+v", v, got[0])
		case got[0].Err == nil:
			kept++
		default:
			refused++
			later := errors.Is(got[0].Err, dunlin.ErrUnavailable) || errors.Is(got[0].Err, dunlin.ErrNotOwner) || errors.Is(got[0].Err, dunlin.ErrOverloaded)
			if !later || got[0].RetryAfterSeconds < 1 {
				t.Errorf("uplink %d is refused with %+v", v, got[0])
			}
		}
	}
	inOrder(t, w, l)
	t.Logf("%d kept, %d refused", kept, refused)
	if kept < sent*3/4 {
		t.Errorf("only %d of %d are kept", kept, sent)
	}
}

// inOrder checks what was kept of each device: it has one sender, which counts, so its log must count, too. What was refused has
// no place, although it may have been committed all the same.
func inOrder(t *testing.T, w *world, l *ledger) {
	t.Helper()
	for key, order := range w.order {
		last := -1.0
		for _, v := range order {
			if l.got[v][0].Err != nil {
				continue
			}
			if v < last {
				t.Errorf("%s: uplink %v was committed after %v", key, v, last)
			}
			last = max(last, v)
		}
	}
}

// client sends its device's uplinks as the MQTT gateway does: several at a time, but nothing new once one was refused; when all of
// them have their answers, it sends again what was refused, in order, and then goes on.
type client struct {
	mu      sync.Mutex
	pending int
	balked  bool
	refused []*dunlin.Uplink
	many    int // refusals
}

// Done implements dunlin.Waiter.
func (c *client) Done(u *dunlin.Uplink, rec dunlin.Receipt) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.pending--
	if rec.Err != nil {
		c.balked = true
		c.refused = append(c.refused, u)
		c.many++
	}
}

// next returns what is to be sent now; nil: not yet.
func (c *client) next(fresh func() *dunlin.Uplink) (first *dunlin.Uplink) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.balked && c.pending > 0 || c.pending >= 16:
	case c.balked:
		slices.SortFunc(c.refused, func(a, b *dunlin.Uplink) int { return int(a.Received - b.Received) })
		for _, u := range c.refused {
			u.Flags |= dunlin.FlagMayRepeat
		}
		first, c.pending = chained(c.refused), len(c.refused)
		c.balked, c.refused = false, nil
	default:
		if first = fresh(); first != nil {
			c.pending++
		}
	}
	return first
}

func (c *client) idle() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.pending == 0 && !c.balked
}

// TestOrder: whatever happens to owners and calls, and whatever is refused on the way, the log has what a client sent in the order
// in which it was sent, and once.
func TestOrder(t *testing.T) {
	for seed := range uint64(24) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { playOrder(t, seed) })
		})
	}
}

func playOrder(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 3))
	w := newWorld(t, 3, seed)
	synctest.Wait()
	w.mu.Lock()
	w.faults = faults{lost: rng.IntN(15), replyLost: rng.IntN(15), doubled: rng.IntN(30), ambiguous: rng.IntN(3),
		delayMax: time.Duration(1+rng.IntN(20)) * time.Millisecond}
	w.mu.Unlock()
	for _, m := range w.nodes {
		m.router.cfg.WaitMax = time.Duration(20+rng.IntN(200)) * time.Millisecond // much is refused
	}
	const each = 200
	var senders sync.WaitGroup
	clients := make([]*client, 9)
	for i := range clients {
		c, r := &client{}, rand.New(rand.NewPCG(seed, uint64(10+i)))
		clients[i] = c
		senders.Go(func() {
			sent := 0
			fresh := func() *dunlin.Uplink {
				if sent == each {
					return nil
				}
				sent++
				u := uplink(fmt.Sprint("dev-", i), 1000*i+sent, nil)
				u.Waiter, u.MessageID = c, uint64(1_000_000+1000*i+sent)
				return u
			}
			for tries := 0; (sent < each || !c.idle()) && tries < 100_000; tries++ {
				if u := c.next(fresh); u != nil {
					w.nodes[i%3].router.Ingest(u)
				}
				if r.IntN(3) == 0 {
					after(time.Duration(r.IntN(5)) * time.Millisecond)
				}
			}
		})
	}
	stop := make(chan struct{})
	var mover sync.WaitGroup
	mover.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(rng.IntN(60)) * time.Millisecond):
				w.move(dunlin.ShardID(rng.IntN(8)), dunlin.NodeID(1+rng.IntN(3)), rng.IntN(4) == 0)
			}
		}
	})
	senders.Wait()
	close(stop)
	mover.Wait()
	w.close()
	many := 0
	for i, c := range clients {
		many += c.many
		order := w.order[dunlin.DeviceKey{Tenant: "default", Device: dunlin.DeviceID(fmt.Sprint("dev-", i))}]
		if len(order) != each || !slices.IsSorted(order) {
			t.Errorf("client %d, %d refusals: %d of %d: %v", i, c.many, len(order), each, order)
		}
	}
	t.Logf("%d refusals", many)
}

// TestFailover: the owner dies, its uplinks wait for the next one, and none is refused.
func TestFailover(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 1)
		synctest.Wait()
		w.mu.Lock()
		w.faults.dead[2] = true // owns shards 1, 4 and 7
		w.faults.delayMax = 2 * time.Millisecond
		w.mu.Unlock()
		l := &ledger{}
		for i := range 100 {
			w.nodes[0].router.Ingest(uplink(fmt.Sprint("dev-", i), i, l))
		}
		after(400 * time.Millisecond)
		if n := l.count(); n == 0 || n == 100 {
			t.Errorf("%d answers while a node is dead, want those of the others' shards", n)
		}
		for _, sh := range []dunlin.ShardID{1, 4, 7} {
			w.move(sh, 3, true)
		}
		after(100 * time.Millisecond)
		if l.count() != 100 {
			t.Fatalf("%d answers after the failover", l.count())
		}
		for v := range 100 {
			if rec := l.of(float64(v)); rec.Err != nil {
				t.Errorf("uplink %d: %v", v, rec.Err)
			}
		}
		w.close()
		judge(t, w, l, 100)
	})
}

// TestNobodyOwns: uplinks wait for an owner for a second, in a bounded number, and are refused with a time to come again.
func TestNobodyOwns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 3, 1)
		synctest.Wait()
		m := w.nodes[0]
		for _, sh := range []dunlin.ShardID{1, 2, 4, 5, 7} {
			m.views.Lock()
			m.views.owner[sh] = 0
			m.views.Unlock()
		}
		m.router.cfg.WindowUplinks = 10
		l := &ledger{}
		n := 0
		for i := range 100 {
			if _, ok := m.dir.Owned(shardOf(dunlin.DeviceKey{Device: dunlin.DeviceID(fmt.Sprint("dev-", i))})); !ok {
				m.router.Ingest(uplink(fmt.Sprint("dev-", i), n, l))
				n++
			}
		}
		if l.count() != n-10 {
			t.Errorf("%d of %d are refused at once, want all but 10", l.count(), n)
		}
		for v := range n {
			if rec := l.of(float64(v)); v >= 10 && !errors.Is(rec.Err, dunlin.ErrOverloaded) {
				t.Errorf("uplink %d: %v", v, rec.Err)
			}
		}
		after(900 * time.Millisecond)
		if l.count() != n-10 {
			t.Error("they don't wait for a second")
		}
		after(200 * time.Millisecond)
		if l.count() != n {
			t.Error("they wait for ever")
		}
		if rec := l.of(0); !errors.Is(rec.Err, dunlin.ErrUnavailable) || rec.RetryAfterSeconds < 1 {
			t.Errorf("refused with %+v", rec)
		}
		w.close()
	})
}

// TestSilentOwner: an owner that never answers holds an uplink up for two calls, and no longer.
func TestSilentOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var calls atomic.Int64
		r := bareRouter(t, 1, nowhere{}, goFunc(func(string, []byte, func([]byte, error)) { calls.Add(1) }))
		var all sync.WaitGroup
		ctx, stop := contextOf(t)
		all.Go(func() { _ = r.Run(ctx) })
		l := &ledger{}
		r.Take(3, uplink("a", 1, l))
		r.Flush()
		after(3 * time.Second)
		if calls.Load() != 1 || l.count() != 0 {
			t.Errorf("after 3 s: %d calls, %d answers", calls.Load(), l.count())
		}
		after(6 * time.Second)
		if rec := l.of(1); calls.Load() != 2 || !errors.Is(rec.Err, dunlin.ErrUnavailable) {
			t.Errorf("after 9 s: %d calls, %+v", calls.Load(), rec)
		}
		r.Take(3, uplink("a", 2, l))
		r.Flush()
		stop()
		all.Wait()
		if rec := l.of(2); !errors.Is(rec.Err, dunlin.ErrUnavailable) {
			t.Errorf("at the end: %+v", rec)
		}
		if r.Take(3, uplink("a", 3, l)) {
			t.Error("something is taken after the end")
		}
	})
}

// TestBatches: while a node's calls are under way, what comes gathers; a device that floods has few uplinks in a call.
func TestBatches(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sizes []int
		var dones []func()
		owner := bareRouter(t, 2, instantly{}, nil)
		r := bareRouter(t, 1, nowhere{}, goFunc(func(_ string, body []byte, done func([]byte, error)) {
			_, sections, err := decodeBatch(body, &owner.names, 8)
			if err != nil {
				t.Error(err)
			}
			n := 0
			for _, s := range sections {
				n += len(s.uplinks)
			}
			sizes = append(sizes, n)
			dones = append(dones, func() { done(owner.Serve(t.Context(), 1, methodUplinks, body)) })
		}))
		l := &ledger{}
		v := 0
		take := func(dev string) {
			u := uplink(dev, v, l)
			v++
			if !r.Take(shardOf(u.DeviceKey), u) {
				t.Fatal("not taken")
			}
		}
		for i := range 2000 { // one by one: lanes are busy, so calls are few
			take(fmt.Sprint("dev-", i))
			r.Flush()
		}
		if len(sizes) != callsYoung {
			t.Errorf("%d calls for one uplink each of many shards, want %d: %v", len(sizes), callsYoung, sizes)
		}
		for len(dones) > 0 {
			d := dones[0]
			dones = dones[1:]
			d()
		}
		if l.count() != v {
			t.Errorf("%d answers of %d", l.count(), v)
		}
		if len(sizes) > 25 {
			t.Errorf("%d calls: %v", len(sizes), sizes)
		}
		sizes = nil
		for range 100 {
			take("flood")
		}
		r.Flush()
		for len(dones) > 0 {
			d := dones[0]
			dones = dones[1:]
			d()
		}
		if l.count() != v || len(sizes) != 7 || sizes[0] != perDeviceMax {
			t.Errorf("a flood of 100: %v", sizes)
		}
		r.stop()
		owner.stop()
	})
}
