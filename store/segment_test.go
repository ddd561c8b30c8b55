package store

import (
	"encoding/hex"
	"errors"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"testing"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/entry"
)

// withoutState is what the archive keeps of an entry.
func withoutState(e *dunlin.Entry) *dunlin.Entry {
	copied, err := entry.Decode(entry.Append(nil, e))
	if err != nil {
		panic(err)
	}
	for i := range copied.Changes {
		for j := range copied.Changes[i].Stages {
			st := &copied.Changes[i].Stages[j]
			st.State, st.StateSet = nil, false
		}
	}
	return copied
}

func roundTrip(t *testing.T, items []archived) []byte {
	t.Helper()
	p, err := newPacker()
	if err != nil {
		t.Fatal(err)
	}
	first := uint64(10)
	b, err := appendSegment(nil, p, 3, first, items)
	if err != nil {
		t.Fatal(err)
	}
	got, err := cutSegment(b, p, 3, first)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != len(items) {
		t.Fatalf("got %d entries, want %d", len(got), len(items))
	}
	for i := range got {
		want := withoutState(items[i].entry)
		if got[i].index != items[i].index || string(entry.Append(nil, got[i].entry)) != string(entry.Append(nil, want)) {
			t.Fatalf("entry %d at %d:\n got %+v\nwant %+v", i, got[i].index, got[i].entry, want)
		}
	}
	return b
}

func TestSegmentKeepsAllButStates(t *testing.T) {
	f := newFleet(1, 4, 40)
	f.rng = rand.New(rand.NewPCG(5, 6))
	var items []archived
	for i := range 300 {
		e := f.entry(3, 1+f.rng.IntN(8))
		e.Term = uint64(1 + i/100)
		items = append(items, archived{uint64(10 + i + i/50), e})
	}
	odd := &dunlin.Entry{Shard: 2, Term: 9, At: -5, Puts: []dunlin.Put{{Table: "devices", Key: "default/x", Value: []byte("{}")}, {Table: "domains", Key: "default/y"}},
		Changes: []dunlin.Change{{DeviceKey: dunlin.DeviceKey{Tenant: "t\x00", Device: "d"}, Version: 3, Created: true,
			Inputs: []dunlin.Input{{Kind: 7, Flags: 255, Format: 60, Sender: "gateway-1", Payload: []byte{1, 2}, Timer: "x", Received: 4,
				Records: []dunlin.Record{
					{Metric: "a", Kind: dunlin.Text, Str: "open", Num: math.Inf(1), Time: 1},
					{Metric: "a", Kind: dunlin.Text, Str: "shut", Time: 1},
					{Metric: "b", Kind: dunlin.Number, Str: "odd", Num: math.NaN(), Time: math.MaxInt64},
					{Metric: "b", Kind: dunlin.Number, Num: math.Copysign(0, -1), Time: math.MinInt64},
					{Metric: "c", Kind: 9, Num: 1e300},
					{Metric: "d", Kind: dunlin.Data, Str: "\xff\x00"},
				}}}}}}
	items = append(items, archived{1000, odd}, archived{1001, &dunlin.Entry{}})
	roundTrip(t, items)
	roundTrip(t, nil)
}

func TestSegmentNumbersKeepTheirBits(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	var items []archived
	for i := range 2000 {
		v := math.Float64frombits(rng.Uint64())
		switch i % 4 {
		case 1:
			v = float64(rng.IntN(1e6)) / 1e3
		case 2:
			v = (float64(rng.IntN(1e4))/100 + float64(rng.IntN(1e4))/100 + float64(rng.IntN(1e4))/100) / 3
		case 3:
			v = float64(float32(rng.Float64()))
		}
		items = append(items, archived{uint64(10 + i), &dunlin.Entry{Changes: []dunlin.Change{{DeviceKey: dunlin.DeviceKey{Device: "d"},
			Inputs: []dunlin.Input{{Kind: dunlin.InputTelemetry, Records: []dunlin.Record{{Metric: "m", Kind: dunlin.Number, Num: v}}}}}}}})
	}
	roundTrip(t, items)
}

// The goal is 40 bytes for each report of four metrics and what came of it.
func TestSegmentBytesPerReading(t *testing.T) {
	for _, devices := range []int{16, 800} {
		f := newFleet(1, 4, 4*devices)
		f.plain = true
		var items []archived
		raw, changes := 0, 0
		for raw < 128<<10 { // as Config.SegmentBytes is
			e := f.entry(3, 1+f.rng.IntN(8))
			raw += len(entry.Append(nil, e))
			changes += len(e.Changes)
			items = append(items, archived{uint64(10 + len(items)), e})
		}
		b := roundTrip(t, items)
		per := float64(len(b)) / float64(changes)
		t.Logf("%d devices: %d readings, %.1f bytes each in the log, %.1f in the archive", devices, changes, float64(raw)/float64(changes), per)
		if per > 40 {
			t.Errorf("%d devices: %.1f bytes a reading in the archive, want at most 40", devices, per)
		}
	}
}

func TestSegmentReadsLikeAnEntry(t *testing.T) {
	f := newFleet(2, 1, 3)
	e := f.entry(0, 3)
	p, _ := newPacker()
	b, err := appendSegment(nil, p, 0, 1, []archived{{1, e}})
	if err != nil {
		t.Fatal(err)
	}
	got, err := cutSegment(b, p, 0, 1)
	if err != nil {
		t.Fatal(err)
	}
	if want := withoutState(e); !reflect.DeepEqual(got[0].entry, want) {
		t.Fatalf("got %+v\nwant %+v", got[0].entry, want)
	}
}

// A segment without what version 2 brought is version 1, to the byte, and what was archived before can be read.
func TestSegmentOfVersion1(t *testing.T) {
	f := newFleet(7, 4, 8)
	f.plain = true
	var items []archived
	for i := range 6 {
		items = append(items, archived{uint64(10 + i), f.entry(3, 1+i%3)})
	}
	b := roundTrip(t, items)
	want, err := os.ReadFile("testdata/segment_v1.hex")
	if err != nil {
		t.Fatal(err)
	}
	if got := hex.Dump(b); got != string(want) {
		t.Errorf("the format changed; got\n%swant\n%s", got, want)
	}
	items[3].entry.Changes[0].Publish = []dunlin.Publication{{Topic: "x"}}
	if b := roundTrip(t, items); b[0] != segmentEffects {
		t.Errorf("a segment with a publication has version %d", b[0])
	} else {
		b[0] = segmentPlain
		p, _ := newPacker()
		if _, err := cutSegment(b, p, 3, 10); !errors.Is(err, dunlin.ErrInvalid) {
			t.Errorf("read as version 1: %v", err)
		}
	}
}

func FuzzSegment(f *testing.F) {
	p, _ := newPacker()
	fl := newFleet(2, 1, 3)
	var items []archived
	for i := range 20 {
		items = append(items, archived{uint64(i + 1), fl.entry(0, 3)})
	}
	b, _ := appendSegment(nil, p, 0, 1, items)
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		items, err := cutSegment(b, p, 0, 1)
		if err != nil {
			return
		}
		if _, err := appendSegment(nil, p, 0, 1, items); err != nil {
			t.Fatal(err)
		}
	})
}

func BenchmarkSegment(b *testing.B) {
	f := newFleet(1, 4, 64)
	f.plain = true
	var items []archived
	changes := 0
	for range 500 {
		e := f.entry(3, 4)
		changes += len(e.Changes)
		items = append(items, archived{uint64(10 + len(items)), e})
	}
	p, _ := newPacker()
	var out []byte
	b.Run("write", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			out, _ = appendSegment(out[:0], p, 3, 10, items)
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*changes), "ns/change")
	})
	b.Run("read", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := cutSegment(out, p, 3, 10); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*changes), "ns/change")
	})
}
