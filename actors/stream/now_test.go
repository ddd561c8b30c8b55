package stream

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// What was acknowledged before somebody subscribes is no later than the position, what comes after it is behind: on a node
// with the shard, on one without, and when those with it are away.
func TestNow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 4, 3, nil)
		w.place(0, 1, 1, 2)
		w.place(1, 1, 2, 3)
		w.place(2, 1, 3, 1)
		w.beating()
		far := w.nodes[3]
		for i := range 30 {
			w.commit(dunlin.ShardID(i%3), 0, true, true)
		}
		expect(t, far.feed, "asked", 11, 11, 11)
		expect(t, w.nodes[0].feed, "two here, one asked", 11, 11, 11)
		w.commit(0, 0, true, true)
		expect(t, far.feed, "known a moment ago", 11, 11, 11)
		pause(t.Context(), time.Second)
		w.do(func() { w.nodes[0].frozen = true })
		began := time.Now()
		expect(t, far.feed, "the owner hangs, another replica answers", 12, 11, 11)
		if d := time.Since(began); d != 500*time.Millisecond {
			t.Errorf("took %s, want one timeout", d)
		}
		began = time.Now()
		expect(t, far.feed, "the owner is known to hang", 12, 11, 11)
		if d := time.Since(began); d != 0 {
			t.Errorf("took %s, want no time", d)
		}
		pause(t.Context(), time.Minute)
		w.do(func() { w.nodes[1].dead, w.nodes[2].cut = true, true })
		w.commit(0, 0, true, false)
		expect(t, far.feed, "nobody answers: what was known", 12, 11, 11)
	})
}

// A node that has just begun and reaches nobody does not know where to begin, and says so.
func TestNowOfWhatNobodyToldIsAnError(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, 2, nil)
		w.place(0, 1, 1)
		w.place(1, 1, 2)
		w.do(func() { w.nodes[0].dead = true })
		began := time.Now()
		if c, err := w.nodes[1].feed.Now(t.Context()); !errors.Is(err, dunlin.ErrUnavailable) {
			t.Errorf("got %v, %v, want ErrUnavailable", c, err)
		}
		if d := time.Since(began); d < 10*time.Second || d > 11*time.Second {
			t.Errorf("gave up after %s, want 10 s", d)
		}
		go func() { // the node with the shard comes up while somebody waits
			pause(t.Context(), 3*time.Second)
			w.do(func() { w.nodes[0].dead = false })
		}()
		early := newWorldNode(w, 2)
		if c, err := early.Now(t.Context()); err != nil || c[0] != 1 {
			t.Errorf("got %v, %v from a node that came up", c, err)
		}
		w.do(func() { w.nodes[0].dead = true })
		var from dunlin.Cursor
		lost := newWorldNode(w, 2)
		for _, err := range lost.Follow(t.Context(), &from, nil) {
			if !errors.Is(err, dunlin.ErrUnavailable) {
				t.Errorf("Follow: got %v, want ErrUnavailable", err)
			}
		}
		w.do(func() { w.nodes[0].dead, w.nodes[0].frozen = false, true })
		pause(t.Context(), time.Second)
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		if _, err := newWorldNode(w, 2).Now(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v, want the context's end", err)
		}
	})
}

// newWorldNode is another feed on a node, that nobody runs and that knows nothing yet.
func newWorldNode(w *world, id dunlin.NodeID) *Feed {
	n := w.nodes[id-1]
	f, err := New(Config{Self: id, Shards: w.shards, ShardOf: w.shardOf}, Deps{Local: n, Replicas: n, Caller: n})
	if err != nil {
		w.t.Fatal(err)
	}
	return f
}

// Ten thousand who subscribe at once are one question.
func TestNowAsksForAllAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, 2, 1, nil)
		w.place(0, 1, 1)
		w.commit(0, 0, true, true)
		var wg sync.WaitGroup
		for range 10_000 {
			wg.Go(func() {
				if c, err := w.nodes[1].feed.Now(t.Context()); err != nil || c[0] != 2 {
					t.Errorf("got %v, %v", c, err)
				}
			})
		}
		wg.Wait()
		if n := calls(w, 0); n > 2 {
			t.Errorf("%d questions", n)
		}
	})
}

func calls(w *world, n int) (c int) {
	w.do(func() { c = w.nodes[n].calls })
	return c
}

func expect(t *testing.T, f *Feed, what string, want ...uint64) {
	t.Helper()
	got, err := f.Now(t.Context())
	if err != nil || got.String() != dunlin.Cursor(want).String() {
		t.Errorf("%s: got %v, %v, want %v", what, got, err, want)
	}
}
