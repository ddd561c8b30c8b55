package column_test

import (
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/store/column"
)

func aggregate(t *rapid.T, b []byte, metrics []string, width time.Duration, from, to dunlin.Time) []column.Partial {
	var parts []column.Partial
	if err := column.Aggregate(b, metrics, width, from, to, func(p column.Partial) bool {
		parts = append(parts, p)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return parts
}

// bucketKey names an aggregate.
type bucketKey struct {
	start  dunlin.Time
	metric string
}

// dense draws a block whose readings are near each other, so that buckets have several, and a width of buckets.
func dense(t *rapid.T) ([]byte, time.Duration) {
	var blocks [][]byte
	for _, recs := range anyReports.Draw(t, "reports") {
		for i := range recs {
			recs[i].Time = t0 + (recs[i].Time-t0)%3600e6
		}
		blocks = append(blocks, report(recs...))
	}
	return merge(t, blocks...), time.Duration(rapid.SampledFrom([]int{1, 60, 600, 86400}).Draw(t, "seconds")) * time.Second
}

func TestAggregateCountsRecords(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, width := dense(t)
		type key = bucketKey
		want := map[key]dunlin.Bucket{}
		sums := map[key]float64{}
		for _, r := range decode(t, b) {
			if r.Kind > dunlin.Boolean || math.IsNaN(r.Num) {
				continue
			}
			us := width.Microseconds()
			k := key{r.Time - dunlin.Time(((int64(r.Time)%us)+us)%us), r.Metric}
			v, ok := want[k]
			if !ok {
				v = dunlin.Bucket{Metric: r.Metric, Start: k.start, Min: r.Num, Max: r.Num, First: r.Num}
			}
			v.Count, v.Min, v.Max, v.Last = v.Count+1, min(v.Min, r.Num), max(v.Max, r.Num), r.Num
			sums[k] += r.Num
			want[k] = v
		}
		parts := aggregate(t, b, nil, width, 0, 0)
		if len(parts) != len(want) {
			t.Fatalf("%d buckets, want %d", len(parts), len(want))
		}
		for i := range parts {
			got := parts[i].Bucket()
			k := key{got.Start, got.Metric}
			w := want[k]
			mean := sums[k] / float64(w.Count)
			if diff := math.Abs(got.Mean - mean); diff > 1e-9*math.Abs(mean)+1e-9 && w.Max < 1e12 && w.Min > -1e12 {
				t.Fatalf("mean %v, want %v", got.Mean, mean)
			}
			if got.Mean = 0; got != w {
				t.Fatalf("got %+v, want %+v", got, w)
			}
			if i > 0 && (parts[i-1].Start > got.Start || parts[i-1].Start == got.Start && parts[i-1].Metric >= got.Metric) {
				t.Fatal("out of order")
			}
		}
	})
}

// Cut anywhere, the parts of a bucket join to the whole.
func TestPartialsJoin(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b, width := dense(t)
		parts := aggregate(t, b, nil, width, 0, 0)
		type key = bucketKey
		cut := t0 + dunlin.Time(rapid.Int64Range(-3600e6, 3600e6).Draw(t, "cut"))
		joined := map[key]*column.Partial{}
		for _, p := range append(aggregate(t, b, nil, width, 0, cut), aggregate(t, b, nil, width, cut, 0)...) {
			k := key{p.Start, p.Metric}
			if have, ok := joined[k]; ok {
				have.Join(&p)
			} else {
				joined[k] = &p
			}
		}
		for i := range parts {
			got, w := joined[key{parts[i].Start, parts[i].Metric}].Bucket(), parts[i].Bucket()
			if diff := math.Abs(got.Mean - w.Mean); diff <= 1e-9*math.Abs(w.Mean)+1e-9 || w.Max >= 1e12 || w.Min <= -1e12 {
				got.Mean, w.Mean = 0, 0
			}
			if got != w {
				t.Fatalf("joined %+v, want %+v", got, w)
			}
		}
	})
}

func TestAggregateNeedsAWidth(t *testing.T) {
	if err := column.Aggregate(report(), nil, 0, 0, 0, nil); err == nil {
		t.Error("no error")
	}
}

// A few bytes that claim much are refused without making room for it.
func TestClaimsAllocateNothing(t *testing.T) {
	for _, b := range [][]byte{
		{0x12, 1, 1, 0, 0xff, 0xff, 0xff, 0x0f, 0, 1, 0},            // a set of 32 million times
		{0x12, 0xff, 0xff, 0xff, 0x0f, 1},                           // 32 million sets
		{0x12, 2, 0xff, 0xff, 0xff, 0x0f, 0, 1, 0},                  // 32 million columns
		{0x12, 1, 1, 0, 1, 0, 1, 0, 0, 1, 'a', 0, 4, 1, 1, 0, 0x0c}, // a scale that is none
	} {
		if n := testing.AllocsPerRun(10, func() {
			if err := column.Decode(b, nil); err == nil {
				t.Errorf("%x: no error", b)
			}
		}); n > 30 {
			t.Errorf("%x: %v allocations", b, n)
		}
	}
}

func BenchmarkAggregateDayByHours(b *testing.B) {
	whole, err := column.Merge(nil, operands(day(1440, 0)))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		if err := column.Aggregate(whole, nil, time.Hour, 0, 0, func(column.Partial) bool { n++; return true }); err != nil || n != 96 {
			b.Fatal(n, err)
		}
	}
}
