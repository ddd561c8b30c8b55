package store

import (
	"cmp"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
)

// past is the model of a device's history: what was sent, in order.
type past struct {
	key  dunlin.DeviceKey
	recs []dunlin.Record
}

// rows is what a query for everything should return, oldest first.
func (p *past) rows(q *dunlin.ReadingsQuery) (rows []dunlin.Record) {
	type id struct {
		metric string
		at     dunlin.Time
	}
	last := map[id]dunlin.Record{}
	for _, r := range p.recs {
		last[id{r.Metric, r.Time}] = r
	}
	for _, r := range last {
		if (len(q.Metrics) == 0 || slices.Contains(q.Metrics, r.Metric)) && (q.From == 0 || r.Time >= q.From) && (q.To == 0 || r.Time < q.To) {
			rows = append(rows, r)
		}
	}
	slices.SortFunc(rows, func(a, b dunlin.Record) int {
		return cmp.Or(cmp.Compare(a.Time, b.Time), cmp.Compare(a.Metric, b.Metric))
	})
	return rows
}

func (p *past) buckets(q *dunlin.ReadingsQuery) (out []dunlin.Bucket) {
	width := dunlin.Time(q.Bucket / time.Microsecond)
	type id struct {
		start  dunlin.Time
		metric string
	}
	at := map[id]int{}
	sum := map[id]float64{}
	for _, r := range p.rows(q) {
		if r.Kind != dunlin.Number && r.Kind != dunlin.Boolean {
			continue
		}
		k := id{r.Time - ((r.Time%width)+width)%width, r.Metric}
		i, ok := at[k]
		if !ok {
			i = len(out)
			at[k] = i
			out = append(out, dunlin.Bucket{Metric: r.Metric, Start: k.start, Min: r.Num, Max: r.Num, First: r.Num})
		}
		b := &out[i]
		b.Count++
		b.Min, b.Max, b.Last = min(b.Min, r.Num), max(b.Max, r.Num), r.Num
		sum[k] += r.Num
		b.Mean = sum[k] / float64(b.Count)
	}
	slices.SortFunc(out, func(a, b dunlin.Bucket) int {
		return cmp.Or(cmp.Compare(a.Start, b.Start), cmp.Compare(a.Metric, b.Metric))
	})
	return out
}

// pages reads a query to its end.
func pages(s *State, q dunlin.ReadingsQuery) (rows []dunlin.Record, buckets []dunlin.Bucket, err error) {
	for range 10_000 {
		p, err := s.Readings(0, q)
		if err != nil {
			return nil, nil, err
		}
		moments := map[dunlin.Time]bool{}
		for _, r := range p.Rows {
			moments[r.Time] = true
		}
		for _, b := range p.Buckets {
			moments[b.Start] = true
		}
		if len(moments) > q.Limit || p.Next != "" && len(moments) != q.Limit {
			return nil, nil, fmt.Errorf("page of %d moments, limit %d, next %q", len(moments), q.Limit, p.Next)
		}
		rows, buckets = append(rows, p.Rows...), append(buckets, p.Buckets...)
		if q.Cursor = p.Next; q.Cursor == "" {
			return rows, buckets, nil
		}
	}
	return nil, nil, errors.New("no end")
}

// turned turns a list round by moments, keeping the order of metrics within one.
func turned[T any](list []T, at func(T) dunlin.Time) []T {
	slices.SortStableFunc(list, func(a, b T) int { return cmp.Compare(at(b), at(a)) })
	return list
}

func TestReadingsAreWhatWasSent(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		rng := rand.New(rand.NewPCG(seed, 5))
		db, done := openShort(rt, small(vfs.NewMem(), 1))
		defer done()
		p := &past{key: dunlin.DeviceKey{Tenant: "default", Device: "d"}}
		fill(rt, db, p, rng)
		for range 6 {
			q := dunlin.ReadingsQuery{DeviceKey: p.key, Newest: rng.IntN(2) == 0, Limit: 1 + rng.IntN(30)}
			if rng.IntN(2) == 0 {
				q.From = fleetStart + dunlin.Time(rng.Int64N(5*86_400_000_000)) - 86_400_000_000
			}
			if rng.IntN(2) == 0 {
				q.To = fleetStart + dunlin.Time(rng.Int64N(5*86_400_000_000))
			}
			if rng.IntN(2) == 0 {
				q.Metrics = []string{"a", "nothing", "c"}[:1+rng.IntN(3)]
			}
			if rng.IntN(2) == 0 {
				q.Bucket = []time.Duration{time.Millisecond, time.Minute, 7 * time.Hour, 50 * time.Hour, 100_000 * time.Hour}[rng.IntN(5)]
			}
			rows, buckets, err := pages(db.State(), q)
			if err != nil {
				rt.Fatalf("seed %d %+v: %v", seed, q, err)
			}
			if q.Bucket == 0 {
				want := p.rows(&q)
				if q.Newest {
					want = turned(want, func(r dunlin.Record) dunlin.Time { return r.Time })
				}
				if !slices.EqualFunc(rows, want, dunlin.Record.Same) {
					rt.Fatalf("seed %d %+v:\n got %v\nwant %v", seed, q, rows, want)
				}
				continue
			}
			want := p.buckets(&q)
			if q.Newest {
				want = turned(want, func(b dunlin.Bucket) dunlin.Time { return b.Start })
			}
			if !slices.EqualFunc(buckets, want, sameBucket) {
				rt.Fatalf("seed %d %+v:\n got %v\nwant %v", seed, q, buckets, want)
			}
		}
	})
}

func sameBucket(a, b dunlin.Bucket) bool {
	near := math.Abs(a.Mean-b.Mean) <= 1e-9*max(1, math.Abs(b.Mean))
	a.Mean, b.Mean = 0, 0
	return near && a == b
}

// fill sends reports in order, late, twice, from before 1970 and of all kinds.
func fill(t *rapid.T, db *DB, p *past, rng *rand.Rand) {
	at := fleetStart
	for i := range uint64(150) {
		at += dunlin.Time(rng.Int64N(2 * 3600_000_000))
		var recs []dunlin.Record
		for range 1 + rng.IntN(4) {
			r := dunlin.Record{Metric: string(rune('a' + rng.IntN(4))), Time: at, Kind: dunlin.Number, Num: round(rng.NormFloat64()*20, 10)}
			switch rng.IntN(12) {
			case 0:
				r.Time -= dunlin.Time(rng.Int64N(3 * 86_400_000_000))
			case 1:
				r.Time = -r.Time
			case 2:
				r.Kind, r.Num = dunlin.Boolean, float64(rng.IntN(2))
			case 3:
				r.Kind, r.Num, r.Str = dunlin.Text, 0, "open"
			case 4:
				if len(p.recs) > 0 {
					r.Time = p.recs[rng.IntN(len(p.recs))].Time
				}
			}
			recs = append(recs, r)
		}
		p.recs = append(p.recs, recs...)
		e := &dunlin.Entry{Term: 1, At: at, Changes: []dunlin.Change{{DeviceKey: p.key, Domain: "x", Version: i + 1,
			Inputs: []dunlin.Input{{Kind: dunlin.InputTelemetry, Received: at, Records: recs[:1]}, {Kind: dunlin.InputTelemetry, Received: at, Records: recs[1:]}}}}}
		if err := db.State().Apply([]dunlin.Committed{committed(e, i+1)}); err != nil {
			t.Fatal(err)
		}
		if rng.IntN(50) == 0 {
			if err := db.state.eng.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestReadingsRefuseBadQueries(t *testing.T) {
	db := openTest(t, small(vfs.NewMem(), 1))
	for _, q := range []dunlin.ReadingsQuery{{Cursor: "?"}, {Cursor: "_"}, {Bucket: -1}, {Bucket: 1}} {
		if _, err := db.State().Readings(0, q); !errors.Is(err, dunlin.ErrInvalid) {
			t.Errorf("%+v: got %v, want ErrInvalid", q, err)
		}
	}
	if _, err := db.State().Readings(7, dunlin.ReadingsQuery{}); !errors.Is(err, dunlin.ErrInvalid) {
		t.Errorf("shard 7 of 1: got %v, want ErrInvalid", err)
	}
	p, err := db.State().Readings(0, dunlin.ReadingsQuery{DeviceKey: dunlin.DeviceKey{Tenant: "default", Device: "nobody"}})
	if err != nil || len(p.Rows) > 0 || p.Next != "" {
		t.Errorf("an unknown device has %+v, %v", p, err)
	}
}

// History that is older than its domain keeps goes, in whole rows; the rest and other domains stay.
func TestHistoryIsRetained(t *testing.T) {
	c := small(vfs.NewMem(), 2)
	const day = dunlin.Time(86_400_000_000)
	now := fleetStart + 10*day
	c.Clock = func() dunlin.Time { return now }
	c.Retention = func(_ dunlin.Tenant, d dunlin.DomainID) time.Duration {
		if d == "short" {
			return 4 * 24 * time.Hour
		}
		return 0
	}
	db := openTest(t, c)
	for i, domain := range []dunlin.DomainID{"short", "long"} {
		key := dunlin.DeviceKey{Tenant: "default", Device: dunlin.DeviceID("d-" + domain)}
		for n := range uint64(10) {
			at := fleetStart + dunlin.Time(n)*day
			e := &dunlin.Entry{Shard: dunlin.ShardID(i), Term: 1, At: at, Changes: []dunlin.Change{{DeviceKey: key, Domain: domain, Version: n + 1, Created: n == 0,
				Inputs: []dunlin.Input{{Kind: dunlin.InputTelemetry, Received: at, Records: []dunlin.Record{{Metric: "a", Kind: dunlin.Number, Num: 1, Time: at}}}}}}}
			if err := db.State().Apply([]dunlin.Committed{committed(e, n+1)}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for range 2 {
		if err := db.Retain(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	for i, want := range []struct {
		device dunlin.DeviceID
		rows   int
	}{{"d-short", 4}, {"d-long", 10}} {
		p, err := db.State().Readings(dunlin.ShardID(i), dunlin.ReadingsQuery{DeviceKey: dunlin.DeviceKey{Tenant: "default", Device: want.device}})
		if err != nil || len(p.Rows) != want.rows {
			t.Errorf("%s has %d rows, %v; want %d", want.device, len(p.Rows), err, want.rows)
		}
	}
}

// The goal is 8 bytes for each report of four metrics, and one that a plugin derived, once it is compacted.
func TestHistoryBytesPerReading(t *testing.T) {
	c := small(vfs.NewMem(), 1)
	c.StateMemTableBytes = 8 << 20
	db := openTest(t, c)
	f := newFleet(1, 1, 12)
	f.plain, f.step = true, 10_000_000 // a report a minute or so
	changes := 0
	for i := range uint64(8000) {
		e := f.entry(0, 1)
		changes += len(e.Changes)
		if err := db.State().Apply([]dunlin.Committed{committed(e, i+1)}); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.state.eng.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := db.state.eng.Compact(t.Context(), []byte{0}, []byte{0xff, 0xff}, false); err != nil {
		t.Fatal(err)
	}
	head := appendHead(nil, 0, tabReadings)
	bytes, err := db.state.eng.EstimateDiskUsage(head, after(head))
	if err != nil {
		t.Fatal(err)
	}
	per := float64(bytes) / float64(changes)
	t.Logf("%.1f bytes a reading", per)
	if per > 8 {
		t.Errorf("%.1f bytes a reading, want at most 8", per)
	}
}
