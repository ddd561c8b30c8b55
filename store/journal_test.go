package store

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

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/entry"
)

// feed appends and applies committed entries in batches, and moves what is old to the archive, as a host does.
func feed(ctx context.Context, db *DB, rng *rand.Rand, all []dunlin.Committed, pause func()) error {
	for len(all) > 0 {
		n := min(1+rng.IntN(10), len(all))
		if err := db.Log().Append(rowsOf(all[:n]), true); err != nil {
			return err
		}
		if err := db.State().Apply(all[:n]); err != nil {
			return err
		}
		all = all[n:]
		if rng.IntN(5) == 0 {
			if err := db.Maintain(ctx); err != nil {
				return err
			}
		}
		for sh := range db.shards {
			if rng.IntN(4) == 0 {
				if err := db.Log().Truncate(dunlin.ShardID(sh), db.State().Durable(dunlin.ShardID(sh))); err != nil {
					return err
				}
			}
		}
		pause()
	}
	return nil
}

// Followers that start anywhere, read at any pace and leave and come back with their position get every entry behind it,
// once and in order, wherever it is: in memory, in the log or in the archive.
func TestFollowersMissAndRepeatNothing(t *testing.T) {
	for seed := range uint64(6) {
		const shards = 3
		c := small(vfs.NewMem(), shards)
		c.TailBytes = 20 << 10
		c.ShardOf = func(k dunlin.DeviceKey) dunlin.ShardID {
			var n int
			_, _ = fmt.Sscanf(string(k.Device), "fridge-%d", &n)
			return dunlin.ShardID(n % shards)
		}
		db := openTest(t, c)
		all := story(seed, shards, 9, 600)
		rng := rand.New(rand.NewPCG(seed, 3))
		if err := feed(t.Context(), db, rng, all[:200], func() {}); err != nil {
			t.Fatal(err)
		}
		var wg sync.WaitGroup
		for i := range 6 {
			from := make(dunlin.Cursor, shards)
			switch i % 3 {
			case 1:
				from = db.Journal().heads()
			case 2:
				for sh, now := range db.Journal().heads() {
					from[sh] = rng.Uint64N(now + 1)
				}
			}
			var device *dunlin.DeviceKey
			if i >= 3 {
				device = &dunlin.DeviceKey{Tenant: "default", Device: "fridge-00004"}
			}
			frng := rand.New(rand.NewPCG(seed, uint64(i)))
			wg.Go(func() {
				if err := followTo(t.Context(), db, from, device, all, frng); err != nil {
					t.Errorf("seed %d follower %d: %v", seed, i, err)
				}
			})
		}
		if err := feed(t.Context(), db, rng, all[200:], func() {}); err != nil {
			t.Fatal(err)
		}
		wg.Wait()
		if db.Journal().tailBytes() != 0 {
			t.Errorf("seed %d: %d bytes in memory for nobody", seed, db.Journal().tailBytes())
		}
	}
}

// followTo follows until it has all that it should get, leaving and coming back at random.
func followTo(ctx context.Context, db *DB, from dunlin.Cursor, device *dunlin.DeviceKey, all []dunlin.Committed, rng *rand.Rand) error {
	var want [][]uint64
	left := 0
	for range from {
		want = append(want, nil)
	}
	for _, c := range all {
		row := logRow(c)
		e, err := effective(&row)
		if err != nil {
			return err
		}
		if e == nil || c.Index < from[c.Shard] || device != nil && !touches(e, *device) {
			continue
		}
		want[c.Shard] = append(want[c.Shard], c.Index)
		left++
	}
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	got := make([][]uint64, len(want))
	for left > 0 {
		for it, err := range db.Journal().Follow(ctx, &from, device) {
			if err != nil {
				return fmt.Errorf("%w: %d entries missing", err, left)
			}
			got[it.Entry.Shard] = append(got[it.Entry.Shard], it.Index)
			if from[it.Entry.Shard] != it.Index+1 {
				return fmt.Errorf("position %d after entry %d", from[it.Entry.Shard], it.Index)
			}
			if left--; left == 0 || rng.IntN(40) == 0 {
				break
			}
		}
	}
	for sh := range want {
		if !slices.Equal(got[sh], want[sh]) {
			return fmt.Errorf("shard %d: got %v\nwant %v", sh, got[sh], want[sh])
		}
	}
	return nil
}

func TestFollowerWaitsAndEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		db, err := Open(small(vfs.NewMem(), 3))
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		ctx, cancel := context.WithCancelCause(t.Context())
		got := make(chan dunlin.FeedItem, 10)
		ended := make(chan error, 1)
		go func() {
			var from dunlin.Cursor
			for it, err := range db.Journal().Follow(ctx, &from, nil) {
				if err != nil {
					ended <- err
					return
				}
				got <- it
			}
		}()
		synctest.Wait()
		e := &dunlin.Entry{Shard: 2, Term: 1, Puts: []dunlin.Put{{Table: "domains", Key: "default/x", Value: []byte("1")}}}
		batch := []dunlin.Committed{{Shard: 2, Index: 1, Term: 1}, {Shard: 2, Index: 2, Term: 1, Data: entry.Append(nil, e)}}
		if err := db.State().Apply(batch); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		if len(got) != 1 {
			t.Fatalf("got %d entries, want one", len(got))
		}
		if it := <-got; it.Index != 2 || it.Entry.Shard != 2 {
			t.Fatalf("got %+v", it)
		}
		cause := errors.New("enough")
		cancel(cause)
		synctest.Wait()
		if err := <-ended; !errors.Is(err, cause) {
			t.Fatalf("ended with %v, want %v", err, cause)
		}
	})
}

func TestFollowerIsToldWhatIsLost(t *testing.T) {
	c := small(vfs.NewMem(), 2)
	now := fleetStart
	c.Clock = func() dunlin.Time { return now }
	c.ArchiveAge = time.Hour
	db := openTest(t, c)
	f := newFleet(1, 2, 4)
	f.step = 60_000_000 // a minute
	var all []dunlin.Committed
	for i := range uint64(300) {
		all = append(all, committed(f.entry(1, 1), i+1))
	}
	rng := rand.New(rand.NewPCG(1, 1))
	if err := feed(t.Context(), db, rng, all, func() {}); err != nil {
		t.Fatal(err)
	}
	if err := db.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := db.Log().Truncate(1, db.State().Durable(1)); err != nil {
		t.Fatal(err)
	}
	if err := followAll(t, db, all); err != nil {
		t.Fatal(err)
	}
	now = f.at
	before := db.archive.total.Load()
	if err := db.Retain(t.Context()); err != nil {
		t.Fatal(err)
	}
	if after := db.archive.total.Load(); after <= 0 || after >= before {
		t.Fatalf("archive has %d bytes, had %d", after, before)
	}
	from := dunlin.Cursor{1, 1}
	for _, err := range db.Journal().Follow(t.Context(), &from, nil) {
		if !errors.Is(err, dunlin.ErrCursorLost) {
			t.Fatalf("got %v, want ErrCursorLost", err)
		}
	}
	// By bytes: nearly nothing may stay.
	db.cfg.ArchiveBytes = 1
	if err := db.Retain(t.Context()); err != nil || db.archive.total.Load() != 0 {
		t.Fatalf("archive has %d bytes, %v; want none", db.archive.total.Load(), err)
	}
	from = dunlin.Cursor{1, 301}
	next := committed(f.entry(1, 1), 301)
	if err := feed(t.Context(), db, rng, []dunlin.Committed{next}, func() {}); err != nil {
		t.Fatal(err)
	}
	for it, err := range db.Journal().Follow(t.Context(), &from, nil) {
		if err != nil || it.Index != 301 {
			t.Fatalf("got %d, %v", it.Index, err)
		}
		break
	}
}

func TestFollowRefusesPositionsOfOthers(t *testing.T) {
	db := openTest(t, small(vfs.NewMem(), 2))
	for _, err := range db.Journal().Follow(t.Context(), &dunlin.Cursor{1, 2, 3}, nil) {
		if !errors.Is(err, dunlin.ErrInvalid) {
			t.Fatalf("got %v, want ErrInvalid", err)
		}
	}
}
