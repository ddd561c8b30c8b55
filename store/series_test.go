package store

import (
	"cmp"
	"encoding/csv"
	"flag"
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/dunlin-iot/dunlin"
)

var seriesFile = flag.String("store.csv", "", "a file of timestamp,value rows to keep and measure; default a made-up series")

// A real series of one metric, reported one value at a time, reads back to the bit, and costs few bytes once compacted.
//
//	go test ./store -run TestSeries -v -args -store.csv FILE
func TestSeriesReadsBackExactly(t *testing.T) {
	recs := readSeries(t)
	c := small(vfs.NewMem(), 1)
	c.StateMemTableBytes = 8 << 20
	db := openTest(t, c)
	key := dunlin.DeviceKey{Tenant: dunlin.DefaultTenant, Device: "series-1"}
	for i, r := range recs {
		e := &dunlin.Entry{Term: 1, At: r.Time, Changes: []dunlin.Change{{DeviceKey: key, Domain: "d", Version: uint64(i + 1), Created: i == 0,
			Inputs: []dunlin.Input{{Kind: dunlin.InputTelemetry, Received: r.Time, Records: []dunlin.Record{r}}}}}}
		if err := db.State().Apply([]dunlin.Committed{committed(e, uint64(i+1))}); err != nil {
			t.Fatal(err)
		}
	}
	if err := db.state.eng.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := db.state.eng.Compact(t.Context(), []byte{0}, []byte{0xff, 0xff}, false); err != nil {
		t.Fatal(err)
	}
	var got []dunlin.Record
	q := dunlin.ReadingsQuery{DeviceKey: key, Limit: 10_000}
	for {
		page, err := db.State().Readings(0, q)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, page.Rows...)
		if q.Cursor = page.Next; q.Cursor == "" {
			break
		}
	}
	want := lastOfEachMoment(recs)
	if len(got) != len(want) {
		t.Fatalf("%d readings came back, want %d", len(got), len(want))
	}
	for i := range want {
		if !got[i].Same(want[i]) {
			t.Fatalf("reading %d: got %+v, want %+v", i, got[i], want[i])
		}
	}
	head := appendHead(nil, 0, tabReadings)
	bytes, err := db.state.eng.EstimateDiskUsage(head, after(head))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("%d samples, %d bytes: %.2f bytes a sample", len(want), bytes, float64(bytes)/float64(len(want)))
}

// lastOfEachMoment is what history keeps, in order of time: of two readings of the same moment the later report. (The
// hour that a clock set back repeats is such a case in real files.)
func lastOfEachMoment(recs []dunlin.Record) []dunlin.Record {
	byTime := map[dunlin.Time]dunlin.Record{}
	for _, r := range recs {
		byTime[r.Time] = r
	}
	return slices.SortedFunc(maps.Values(byTime), func(a, b dunlin.Record) int { return cmp.Compare(a.Time, b.Time) })
}

func readSeries(t *testing.T) []dunlin.Record {
	t.Helper()
	if *seriesFile == "" {
		recs := make([]dunlin.Record, 3000)
		for i := range recs {
			at := time.Date(2020, 1, 1, 0, 5*i, 0, 0, time.UTC)
			v := math.Round((80+10*math.Sin(float64(i)/50)+math.Sin(float64(i*i)))*1e8) / 1e8
			recs[i] = dunlin.Record{Metric: "value", Kind: dunlin.Number, Num: v, Time: dunlin.TimeOf(at)}
		}
		return recs
	}
	f, err := os.Open(*seriesFile)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	rows, err := csv.NewReader(f).ReadAll()
	if err != nil {
		t.Fatal(err)
	}
	var recs []dunlin.Record
	for _, row := range rows[1:] {
		at, err := time.Parse(time.DateTime, row[0])
		if err != nil {
			t.Fatal(err)
		}
		v, err := strconv.ParseFloat(row[1], 64)
		if err != nil {
			t.Fatal(err)
		}
		recs = append(recs, dunlin.Record{Metric: "value", Kind: dunlin.Number, Num: v, Time: dunlin.TimeOf(at)})
	}
	return recs
}
