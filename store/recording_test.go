package store

import (
	"errors"
	"io"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/entry"
)

// A recording tells what the journal tells, from memory that it uses again, wherever the entries are: in segments, in the log,
// or partly in both.
func TestRecordingIsTheJournal(t *testing.T) {
	db := openTest(t, small(vfs.NewMem(), 4))
	f := newFleet(3, 4, 40)
	var times []dunlin.Time
	next := uint64(1)
	grow := func(n int) {
		for range n {
			e := f.entry(2, 5)
			times = append(times, e.At)
			c := committed(e, next)
			if err := db.Log().Append([]dunlin.LogRow{logRow(c)}, false); err != nil {
				t.Fatal(err)
			}
			if err := db.State().Apply([]dunlin.Committed{c}); err != nil {
				t.Fatal(err)
			}
			next++
		}
	}
	check := func(since dunlin.Time) (n int) {
		t.Helper()
		var want []string
		for at := uint64(1); ; {
			items, upTo, err := db.Journal().Read(2, at)
			if err != nil {
				t.Fatal(err)
			}
			for _, it := range items {
				if it.Entry.At >= since {
					want = append(want, string(entry.Append(nil, withoutState(it.Entry))))
				}
			}
			if upTo == at {
				break
			}
			at = upTo
		}
		r, err := db.Journal().Recording(2, since, false)
		if err != nil {
			t.Fatal(err)
		}
		defer r.Close()
		var items []dunlin.FeedItem
		for {
			items, err = r.Next(items[:0])
			for _, it := range items {
				if n >= len(want) || string(entry.Append(nil, withoutState(it.Entry))) != want[n] {
					t.Fatalf("entry %d at index %d is another one", n, it.Index)
				}
				n++
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				t.Fatal(err)
			}
			r.Reset()
		}
		if n != len(want) {
			t.Fatalf("got %d entries, want %d", n, len(want))
		}
		if at, whole := r.Begins(); at != times[0] || !whole {
			t.Fatalf("begins at %s, whole %t, want %s", at, whole, times[0])
		}
		return n
	}
	grow(100)
	if n := check(0); n != 100 {
		t.Fatalf("got %d entries of the log", n)
	}
	grow(400)
	if err := db.Sync(t.Context()); err != nil {
		t.Fatal(err)
	}
	grow(50)
	segments := 0
	if err := db.archive.segments(2, func(segmentInfo) bool { segments++; return true }); err != nil || segments < 3 {
		t.Fatalf("%d segments, %v", segments, err)
	}
	if n := check(0); n != 550 {
		t.Fatalf("got %d entries", n)
	}
	for _, i := range []int{1, 99, 250, 499, 520, 549} {
		if n := check(times[i]); n != 550-i {
			t.Fatalf("from entry %d: got %d entries", i, n)
		}
	}
	if n := check(times[549] + 1); n != 0 {
		t.Fatalf("got %d entries of the future", n)
	}
}

// What reading a segment costs for each change, in new memory and in memory that is used again.
func BenchmarkReadSegment(b *testing.B) {
	f := newFleet(1, 1, 16)
	f.plain = true
	p, err := newPacker()
	if err != nil {
		b.Fatal(err)
	}
	var items []archived
	for i := range 1200 {
		items = append(items, archived{uint64(1 + i), f.entry(0, 1)})
	}
	data, err := appendSegment(nil, p, 0, 1, items)
	if err != nil {
		b.Fatal(err)
	}
	for name, mem := range map[string]*segmentMemory{"new": {}, "again": reuse()} {
		b.Run(name, func(b *testing.B) {
			w := &segmentWalk{mem: mem}
			w.words = map[string]string{}
			for b.Loop() {
				w.again()
				if items, err = w.items(items[:0], data, p, 0, 1); err != nil {
					b.Fatal(err)
				}
				mem.reset()
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(items)), "ns/change")
		})
	}
}
