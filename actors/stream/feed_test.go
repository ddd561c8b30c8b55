package stream

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// reading is a Follow in the background.
type reading struct {
	sync.Mutex
	got []uint64 // of all shards, in order of coming
	err error
	at  dunlin.Cursor
	end context.CancelFunc
	wg  sync.WaitGroup
}

func read(t *testing.T, f *Feed, at dunlin.Cursor, device *dunlin.DeviceKey) *reading {
	ctx, cancel := context.WithCancel(t.Context())
	r := &reading{at: at, end: cancel}
	r.wg.Go(func() {
		for it, err := range f.Follow(ctx, &r.at, device) {
			r.Lock()
			if err != nil {
				r.err = err
			} else {
				r.got = append(r.got, it.Index)
			}
			r.Unlock()
		}
	})
	return r
}

func (r *reading) close() {
	r.end()
	r.wg.Wait()
}

func (r *reading) want(t *testing.T, what string, want ...uint64) {
	t.Helper()
	r.Lock()
	defer r.Unlock()
	if !slices.Equal(r.got, want) || r.err != nil {
		t.Errorf("%s: got %v, %v, want %v", what, r.got, r.err, want)
	}
}

func (r *reading) wantError(t *testing.T, what string, want error) {
	t.Helper()
	r.Lock()
	defer r.Unlock()
	if !errors.Is(r.err, want) || len(r.got) > 0 {
		t.Errorf("%s: got %v, %v, want %v", what, r.got, r.err, want)
	}
}

// A position is lost only when no replica keeps it: others are asked, one that is away is waited for a while.
func TestLostIsWhatNobodyKeeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 4, 1, nil)
		w.place(0, 1, 1, 2, 3)
		w.beating()
		for range 4 {
			w.commit(0, 0, true, true)
		}
		forget := func(first uint64, ids ...int) {
			w.do(func() {
				for _, id := range ids {
					w.nodes[id-1].replicas[0].first = first
				}
			})
		}
		begin := dunlin.Cursor{1}
		forget(4, 1)
		here, far := read(t, w.nodes[0].feed, slices.Clone(begin), nil), read(t, w.nodes[3].feed, slices.Clone(begin), nil)
		synctest.Wait()
		here.want(t, "forgotten here, kept elsewhere", 1, 2, 3, 4)
		far.want(t, "forgotten by the owner, kept elsewhere", 1, 2, 3, 4)
		here.close()
		far.close()

		forget(4, 2)
		w.do(func() { w.nodes[2].frozen = true })
		here, far = read(t, w.nodes[0].feed, slices.Clone(begin), nil), read(t, w.nodes[3].feed, slices.Clone(begin), nil)
		pause(t.Context(), 30*time.Second)
		here.want(t, "its only keeper hangs")
		far.want(t, "its only keeper hangs")
		w.do(func() { w.nodes[2].frozen = false })
		pause(t.Context(), 10*time.Second)
		here.want(t, "its keeper is back", 1, 2, 3, 4)
		far.want(t, "its keeper is back", 1, 2, 3, 4)
		here.close()
		far.close()

		w.do(func() { w.nodes[2].dead = true })
		here, far = read(t, w.nodes[0].feed, slices.Clone(begin), nil), read(t, w.nodes[3].feed, slices.Clone(begin), nil)
		pause(t.Context(), 2*time.Minute)
		here.wantError(t, "its keeper stays away", dunlin.ErrCursorLost)
		far.wantError(t, "its keeper stays away", dunlin.ErrCursorLost)

		w.do(func() { w.nodes[2].dead = false })
		forget(4, 3)
		pause(t.Context(), 10*time.Second)
		here, far = read(t, w.nodes[0].feed, slices.Clone(begin), nil), read(t, w.nodes[3].feed, slices.Clone(begin), nil)
		synctest.Wait()
		here.wantError(t, "nobody keeps it", dunlin.ErrCursorLost)
		far.wantError(t, "nobody keeps it", dunlin.ErrCursorLost)
	})
}

// However many follow on a node, of a peer only one pull waits, each entry comes over once, and what nobody follows does not
// come at all.
func TestFollowersShareOnePull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, 4, nil)
		for sh := range dunlin.ShardID(4) {
			w.place(sh, 1, 1)
		}
		w.beating()
		now, err := w.nodes[1].feed.Now(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		w.do(func() { w.nodes[0].calls = 0 })
		clear(w.nodes[0].asked)
		var all []*reading
		for i := range 500 {
			device := new(key(i % 3)) // of shards 0 to 2
			all = append(all, read(t, w.nodes[1].feed, slices.Clone(now), device))
		}
		pause(t.Context(), 5*time.Second)
		began := 0
		w.do(func() { began, w.nodes[0].mostWait = w.nodes[0].calls, 0 })
		for range 10 {
			for sh := range dunlin.ShardID(4) {
				w.commit(sh, 0, true, true)
			}
			pause(t.Context(), 10*time.Millisecond)
		}
		for i, r := range all {
			r.want(t, string(key(i%3).Device), 1, 2, 3, 4, 5, 6, 7, 8, 9, 10)
		}
		w.do(func() {
			if n := w.nodes[0].calls - began; n > 31 {
				t.Errorf("%d questions for 30 entries", n)
			}
			if n := w.nodes[0].asked[3]; n != 0 || w.nodes[0].asked[2] == 0 {
				t.Errorf("asked %v of shards", w.nodes[0].asked)
			}
			if n := w.nodes[0].mostWait; n > 2 { // the one that ends, and the one that ends it
				t.Errorf("%d pulls waited at once", n)
			}
		})
		for _, r := range all {
			r.close()
		}
		pause(t.Context(), 30*time.Second)
		w.do(func() { w.nodes[0].calls = 0 })
		pause(t.Context(), time.Minute)
		if n := calls(w, 0); n > 3 { // where the shards end, every 30 s
			t.Errorf("%d questions for nobody", n)
		}
		w.nodes[1].feed.mu.Lock()
		defer w.nodes[1].feed.mu.Unlock()
		if n := w.nodes[1].feed.mu.tailBytes; n != 0 {
			t.Errorf("%d bytes in memory for nobody", n)
		}
	})
}

// Far followers that are slower than memory read from their peers' disks, and memory stays within bounds.
func TestASlowFollowerIsNotWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, 2, func(c *Config) { c.TailBytes = 8 << 10 })
		w.place(0, 1, 1)
		w.place(1, 1, 1)
		w.beating()
		w.commit(0, 0, true, true)
		fast := read(t, w.nodes[1].feed, dunlin.Cursor{1, 1}, nil)
		at := dunlin.Cursor{1, 1}
		slow := 0
		for it, err := range w.nodes[1].feed.Follow(t.Context(), &at, new(key(0))) {
			if err != nil {
				t.Fatal(err)
			}
			if slow++; it.Index != uint64(slow) {
				t.Fatalf("got %d, want %d", it.Index, slow)
			}
			if slow == 1 {
				for range 999 {
					w.commit(0, 0, true, true)
				}
				pause(t.Context(), time.Second)
			}
			if slow == 1000 {
				break
			}
		}
		fast.close()
		if len(fast.got) != 1000 {
			t.Errorf("the fast one got %d, want 1000", len(fast.got))
		}
		w.nodes[1].feed.mu.Lock()
		defer w.nodes[1].feed.mu.Unlock()
		if n := w.nodes[1].feed.mu.tailBytes; n > 8<<10 {
			t.Errorf("%d bytes in memory", n)
		}
	})
}

// A peer that answers what it should not is not believed; the next replica is.
func TestAPeerThatLiesIsLeft(t *testing.T) {
	for name, corrupt := range map[string]func([]byte) []byte{
		"nothing": func([]byte) []byte { return nil },
		"version": func(b []byte) []byte { return append([]byte{9}, b[1:]...) },
		"cut":     func(b []byte) []byte { return b[:len(b)-1] },
		"other shard": func(b []byte) []byte {
			if len(b) > 1 {
				b[1] ^= 1
			}
			return b
		},
		"bits": func(b []byte) []byte {
			for i := range b {
				b[i] ^= 0x55
			}
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := newWorld(t, 3, 2, nil)
				w.place(0, 1, 1, 2)
				w.place(1, 1, 2)
				w.beating()
				w.do(func() { w.nodes[0].corrupt = corrupt })
				r := read(t, w.nodes[2].feed, dunlin.Cursor{1, 1}, nil)
				for range 3 {
					w.commit(0, 0, true, true)
					pause(t.Context(), time.Second)
				}
				r.want(t, "with a liar first", 1, 2, 3)
				r.close()
				if n := calls(w, 0); n > 20 {
					t.Errorf("the liar was asked %d times in 3 s", n)
				}
			})
		})
	}
}

func TestALoneNode(t *testing.T) {
	w := &world{t: t, shards: 2, life: t.Context()}
	w.mu.log = make([][]*dunlin.Entry, 2)
	w.mu.order = make([][]dunlin.NodeID, 2)
	n := &node{world: w, id: 1, replicas: []replica{{present: true, first: 1, head: 1}, {present: true, first: 1, head: 1}}}
	w.nodes = []*node{n}
	f, err := New(Config{Shards: 2, ShardOf: w.shardOf}, Deps{Local: n})
	if err != nil {
		t.Fatal(err)
	}
	w.commit(1, 0, true, true)
	if c, err := f.Now(t.Context()); err != nil || c[0] != 1 || c[1] != 2 {
		t.Errorf("now: %v, %v", c, err)
	}
	at := dunlin.Cursor{0, 0}
	for it, err := range f.Follow(t.Context(), &at, nil) {
		if err != nil || it.Index != 1 || at[1] != 2 {
			t.Errorf("got %d, %v at %v", it.Index, err, at)
		}
		break
	}
	n.replicas[1].first = 2
	at = dunlin.Cursor{0, 0}
	for _, err := range f.Follow(t.Context(), &at, nil) {
		if !errors.Is(err, dunlin.ErrCursorLost) {
			t.Errorf("got %v, want ErrCursorLost", err)
		}
	}
	at = dunlin.Cursor{1}
	for _, err := range f.Follow(t.Context(), &at, nil) {
		if !errors.Is(err, dunlin.ErrInvalid) {
			t.Errorf("got %v, want ErrInvalid", err)
		}
	}
}
