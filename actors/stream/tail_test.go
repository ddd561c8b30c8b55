package stream

import (
	"testing"

	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
)

// However a tail is filled and cut, a reader that goes on from where it got has every entry between, or is told that the tail
// begins later.
func TestTailLaw(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var tl tail
		effect := map[uint64]bool{}
		next := rapid.Uint64Range(1, 100).Draw(t, "begin")
		tl.add(&answer{next: next})
		reader := next
		for range rapid.IntRange(1, 30).Draw(t, "steps") {
			switch rapid.IntRange(0, 3).Draw(t, "what") {
			case 0, 1:
				a := answer{next: next}
				for range rapid.IntRange(0, 400).Draw(t, "entries") {
					if rapid.IntRange(0, 3).Draw(t, "effect") > 0 {
						effect[a.next] = true
						a.items = append(a.items, dunlin.FeedItem{Index: a.next})
						a.bytes += 10
					}
					a.next++
				}
				if news := tl.add(&a); news != (len(a.items) > 0) {
					t.Fatalf("news: %v for %d entries", news, len(a.items))
				}
				next = a.next
			case 2:
				tl.drop(rapid.IntRange(0, len(tl.items)).Draw(t, "drop"))
			case 3:
				items, upTo, behind := tl.read(reader, nil)
				if behind {
					if reader >= tl.from {
						t.Fatalf("behind at %d, the tail begins at %d", reader, tl.from)
					}
					reader = tl.from
					continue
				}
				if len(items) > tailItems || upTo < reader || upTo > next || len(items) < tailItems && upTo != next {
					t.Fatalf("%d entries from %d to %d of %d", len(items), reader, upTo, next)
				}
				for i := reader; i < upTo; i++ {
					if effect[i] {
						if len(items) == 0 || items[0].Index != i {
							t.Fatalf("entry %d is missing between %d and %d", i, reader, upTo)
						}
						items = items[1:]
					}
				}
				if len(items) > 0 {
					t.Fatalf("entry %d between %d and %d", items[0].Index, reader, upTo)
				}
				reader = upTo
			}
		}
		size := 0
		for _, it := range tl.items {
			size += it.size
		}
		if size != tl.bytes {
			t.Fatalf("%d bytes, counted %d", size, tl.bytes)
		}
	})
}

// still is a feed that nobody runs.
func still(t *testing.T, shards int) *Feed {
	w := &world{t: t, shards: shards}
	f, err := New(Config{Shards: shards, ShardOf: w.shardOf}, Deps{Local: &node{world: w, id: 1, replicas: make([]replica, shards)}})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Whoever stops waiting because of something else than news takes the news with it: the next mark has room again.
func TestAwakeTakesTheNews(t *testing.T) {
	f := still(t, 1)
	fl := f.join(nil, false)
	defer f.leave(fl)
	for range 3 {
		for ok := true; ok; {
			_, ok = f.next(fl)
		}
		f.news(0)
		f.awake(fl)
		f.news(0)
	}
}

// Pulls begin with another shard each time: a reply that is full has left out the last ones.
func TestPullsTakeTurns(t *testing.T) {
	f := still(t, 3)
	f.mu.Lock()
	p := f.peerLocked(2)
	for i := range f.mu.shards {
		f.mu.shards[i].peer = p
	}
	p.pulling = true // nobody else pulls
	f.mu.Unlock()
	first := make(map[dunlin.ShardID]int)
	for range 6 {
		_, req, ok := f.prepare(t.Context(), p)
		if !ok || len(req.from) != 3 {
			t.Fatalf("got %+v", req)
		}
		first[req.from[0].shard]++
	}
	if len(first) != 3 || first[0] != 2 || first[1] != 2 {
		t.Errorf("first were %v", first)
	}
}
