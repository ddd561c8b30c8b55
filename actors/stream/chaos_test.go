package stream

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// Followers on every node, of all shards or of one device, that start anywhere and leave and come back with their position,
// get every entry behind it once and in order, while nodes die, hang and are cut off, replicas lag, move and forget.
func TestFollowersMissAndRepeatNothing(t *testing.T) {
	seeds := uint64(24)
	if testing.Short() {
		seeds = 6
	}
	for seed := range seeds {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { chaos(t, seed) })
		})
	}
}

func chaos(t *testing.T, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 1))
	const shards = 6
	w := newWorld(t, 3+2*int(seed%2), shards, func(c *Config) {
		c.TailBytes, c.ReplyBytes, c.Linger = 4<<10, 1<<10, time.Duration(rng.IntN(3))*time.Second+time.Millisecond
	})
	for sh := range dunlin.ShardID(shards) {
		w.place(sh, 1, pick(rng, len(w.nodes), 1+min(2, rng.IntN(len(w.nodes)-1)))...)
	}
	w.beating()
	for range 200 {
		w.commit(dunlin.ShardID(rng.IntN(shards)), rng.IntN(2), rng.IntN(5) > 0, true)
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var followers []*witness
	var wg sync.WaitGroup
	for i := range 4 * len(w.nodes) {
		f := newWitness(w, w.nodes[i%len(w.nodes)], i, seed)
		followers = append(followers, f)
		wg.Go(func() { f.run(ctx) })
	}
	for range 400 {
		for range rng.IntN(6) {
			w.commit(dunlin.ShardID(rng.IntN(shards)), rng.IntN(2), rng.IntN(6) > 0, false)
		}
		w.do(func() {
			for _, n := range w.nodes {
				for sh := range dunlin.ShardID(shards) {
					if rng.IntN(3) > 0 {
						n.applyLocked(sh, 1+rng.IntN(8))
					}
				}
			}
		})
		if rng.IntN(12) == 0 {
			w.fault(rng)
		}
		pause(t.Context(), time.Duration(rng.IntN(150))*time.Millisecond)
	}
	w.do(func() {
		for _, n := range w.nodes {
			n.dead, n.cut, n.frozen = false, false, false
			for sh := range dunlin.ShardID(shards) {
				n.applyLocked(sh, 1<<30)
			}
		}
	})
	pause(t.Context(), 40*time.Second)
	cancel()
	wg.Wait()
	for _, f := range followers {
		f.check()
	}
}

func pick(rng *rand.Rand, nodes, n int) (ids []dunlin.NodeID) {
	for _, i := range rng.Perm(nodes)[:n] {
		ids = append(ids, dunlin.NodeID(i+1))
	}
	return ids
}

// fault does something to the cluster. Of each shard some replica keeps everything, and no more than one node is away.
func (w *world) fault(rng *rand.Rand) {
	n := w.nodes[rng.IntN(len(w.nodes))]
	sh := dunlin.ShardID(rng.IntN(w.shards))
	away := func() bool {
		return slices.ContainsFunc(w.nodes, func(o *node) bool { return o != n && (o.dead || o.cut || o.frozen) })
	}
	switch what := rng.IntN(6); what {
	case 0, 1, 2:
		w.do(func() {
			if !away() {
				n.dead, n.cut, n.frozen = what == 0 && !n.dead, what == 1 && !n.cut, what == 2 && !n.frozen
			}
		})
	case 3: // a replica moves; the new one begins with a snapshot
		w.do(func() {
			at := slices.Clone(w.mu.order[sh])
			i := rng.IntN(len(at))
			old := w.nodes[at[i]-1]
			if slices.Contains(at, n.id) || w.keepersLocked(sh, old) == 0 {
				return
			}
			at[i] = n.id
			w.placeLocked(sh, uint64(len(w.mu.log[sh]))+1, at)
		})
		for _, n := range w.nodes {
			if rng.IntN(2) == 0 {
				n.feed.Poke()
			}
		}
	case 4: // another owner
		w.do(func() {
			at := slices.Clone(w.mu.order[sh])
			rng.Shuffle(len(at), func(i, k int) { at[i], at[k] = at[k], at[i] })
			w.mu.order[sh] = at
		})
	case 5: // retention
		w.do(func() {
			if r := &n.replicas[sh]; r.present && w.keepersLocked(sh, n) > 0 {
				r.first = max(r.first, r.head-min(r.head-1, uint64(rng.IntN(20))))
			}
		})
	}
}

// keepersLocked counts replicas of a shard with all that was committed so far, beside one.
func (w *world) keepersLocked(sh dunlin.ShardID, beside *node) (n int) {
	for _, o := range w.nodes {
		if r := &o.replicas[sh]; o != beside && r.present && r.first == 1 && r.head == uint64(len(w.mu.log[sh]))+1 {
			n++
		}
	}
	return n
}

// witness is a follower that notes what it gets.
type witness struct {
	*world
	n      *node
	name   string
	device *dunlin.DeviceKey
	start  dunlin.Cursor
	at     dunlin.Cursor
	rng    *rand.Rand
	got    [][]uint64
}

func newWitness(w *world, n *node, i int, seed uint64) *witness {
	f := &witness{world: w, n: n, name: fmt.Sprintf("follower %d on node %d", i, n.id), rng: rand.New(rand.NewPCG(seed, uint64(i)+10)),
		got: make([][]uint64, w.shards), at: make(dunlin.Cursor, w.shards)}
	switch i % 3 {
	case 0: // from the beginning
	case 1: // from now
		now, err := n.feed.Now(w.t.Context())
		if err != nil {
			w.t.Errorf("%s: %v", f.name, err)
			return f
		}
		f.at = now
	case 2:
		for sh := range f.at {
			f.at[sh] = f.rng.Uint64N(uint64(len(w.mu.log[sh])) + 10)
		}
	}
	if i%4 == 3 {
		f.device = new(key(f.rng.IntN(2 * w.shards)))
	}
	f.start = slices.Clone(f.at)
	return f
}

// run follows until ctx ends, leaving and coming back at random.
func (f *witness) run(ctx context.Context) {
	for ctx.Err() == nil {
		some, cancel := context.WithTimeout(ctx, time.Duration(1+f.rng.IntN(10_000))*time.Millisecond)
		for it, err := range f.n.feed.Follow(some, &f.at, f.device) {
			if err != nil {
				if some.Err() == nil {
					f.t.Errorf("%s: %v", f.name, err)
					cancel()
					return
				}
				break
			}
			sh := it.Entry.Shard
			f.got[sh] = append(f.got[sh], it.Index)
			if f.at[sh] != it.Index+1 {
				f.t.Errorf("%s: position %d after entry %d", f.name, f.at[sh], it.Index)
			}
			if f.rng.IntN(60) == 0 {
				break
			}
		}
		cancel()
		if f.rng.IntN(4) == 0 {
			pause(ctx, time.Duration(f.rng.IntN(3000))*time.Millisecond)
		}
	}
}

func (f *witness) check() {
	for sh := range dunlin.ShardID(f.shards) {
		if f.device != nil && f.shardOf(*f.device) != sh {
			if len(f.got[sh]) > 0 {
				f.t.Errorf("%s of %s: got entries of shard %d", f.name, f.device, sh)
			}
			continue
		}
		if want := f.wants(sh, f.start[sh], f.device); !slices.Equal(f.got[sh], want) {
			i := 0
			for i < min(len(want), len(f.got[sh])) && want[i] == f.got[sh][i] {
				i++
			}
			f.t.Errorf("%s, shard %d from %d, at %d: after %d as they should be\ngot  %.60s\nwant %.60s", f.name, sh, f.start[sh], f.at[sh], i,
				fmt.Sprint(f.got[sh][i:]), fmt.Sprint(want[i:]))
		}
	}
}

// A hung owner is left as soon as another node is known to own the shard.
func TestAHungOwnerIsLeft(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 4, 1, nil)
		w.place(0, 1, 1, 2, 3)
		w.beating()
		got := make(chan dunlin.FeedItem, 100)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() {
			var at dunlin.Cursor
			for it, err := range w.nodes[3].feed.Follow(ctx, &at, nil) {
				if err != nil {
					if !errors.Is(err, context.Canceled) {
						t.Error(err)
					}
					return
				}
				got <- it
			}
		})
		pause(t.Context(), time.Second)
		w.commit(0, 0, true, true)
		synctest.Wait()
		if len(got) != 1 {
			t.Fatalf("got %d entries, want 1 at once", len(got))
		}
		w.do(func() { w.nodes[0].frozen = true })
		w.place(0, 1, 2, 1, 3)
		w.commit(0, 0, true, true)
		w.commit(0, 0, true, true)
		began := time.Now()
		for len(got) < 3 && time.Since(began) < time.Minute {
			pause(t.Context(), 10*time.Millisecond)
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("took %s to go on at another replica", d)
		}
		for i := range uint64(3) {
			if it := <-got; it.Index != i+1 {
				t.Errorf("got entry %d, want %d", it.Index, i+1)
			}
		}
		cancel()
		wg.Wait()
	})
}
