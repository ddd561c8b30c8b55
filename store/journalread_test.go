package store

import (
	"errors"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/dunlin-iot/dunlin"
)

// A reader that asks again from where it got gets every entry with an effect, out of memory, the log and the archive; and one
// that watches is told of each.
func TestReadAndWatch(t *testing.T) {
	const shards = 2
	db := openTest(t, small(vfs.NewMem(), shards))
	all := story(7, shards, 5, 300)
	rng := rand.New(rand.NewPCG(7, 7))
	if err := feed(t.Context(), db, rng, all[:150], func() {}); err != nil {
		t.Fatal(err)
	}
	var told [shards]int
	var stops []func()
	for sh := range dunlin.ShardID(shards) {
		stops = append(stops, db.Journal().Watch(sh, func() { told[sh]++ }))
	}
	if err := feed(t.Context(), db, rng, all[150:], func() {}); err != nil {
		t.Fatal(err)
	}
	if db.Journal().tailBytes() == 0 {
		t.Error("nothing is in memory although somebody watches")
	}
	for sh := range dunlin.ShardID(shards) {
		var want, late []uint64
		for i, c := range all {
			row := logRow(c)
			if e, err := effective(&row); err != nil {
				t.Fatal(err)
			} else if e != nil && c.Shard == sh {
				want = append(want, c.Index)
				if i >= 150 {
					late = append(late, c.Index)
				}
			}
		}
		var got []uint64
		for next := uint64(0); ; {
			items, upTo, err := db.Journal().Read(sh, next)
			if err != nil {
				t.Fatal(err)
			}
			for _, it := range items {
				got = append(got, it.Index)
			}
			if upTo == next {
				break
			}
			next = upTo
		}
		if !slices.Equal(got, want) {
			t.Errorf("shard %d: got %v\nwant %v", sh, got, want)
		}
		if head, told := db.Journal().Head(sh), told[sh]; head != got[len(got)-1]+1 || told != len(late) {
			t.Errorf("shard %d: head %d, told %d times of %d", sh, head, told, len(late))
		}
		stops[sh]()
	}
	if n := db.Journal().tailBytes(); n != 0 {
		t.Errorf("%d bytes in memory for nobody", n)
	}
	if _, _, err := db.Journal().Read(shards, 1); !errors.Is(err, dunlin.ErrInvalid) {
		t.Errorf("got %v of a shard that is none, want ErrInvalid", err)
	}
}
