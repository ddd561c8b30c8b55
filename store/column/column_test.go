package column_test

import (
	"bytes"
	"encoding/hex"
	"errors"
	"flag"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/store/column"
)

var rewrite = flag.Bool("rewrite", false, "rewrite the golden files; then read the diff, and raise the version if bytes changed")

const t0 dunlin.Time = 1_767_225_600_000_000 // 2026-01-01T00:00:00Z

func num(metric, unit string, at dunlin.Time, v float64) dunlin.Record {
	return dunlin.Record{Metric: metric, Unit: unit, Time: at, Kind: dunlin.Number, Num: v}
}

func decode(t interface{ Fatal(...any) }, b []byte) []dunlin.Record {
	var recs []dunlin.Record
	if err := column.Decode(b, func(r dunlin.Record) bool {
		recs = append(recs, r)
		return true
	}); err != nil {
		t.Fatal(err)
	}
	return recs
}

func merge(t interface{ Fatal(...any) }, blocks ...[]byte) []byte {
	b, err := column.Merge(nil, blocks)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func report(recs ...dunlin.Record) []byte { return column.AppendReport(nil, recs) }

// model is what a store of readings is: the last one of each metric and time.
type model map[[2]any]dunlin.Record

func (m model) add(recs []dunlin.Record) {
	for _, r := range recs {
		m[[2]any{r.Time, r.Metric}] = r
	}
}

func (m model) list() []dunlin.Record {
	var recs []dunlin.Record
	for _, r := range m {
		recs = append(recs, r)
	}
	slices.SortFunc(recs, func(a, b dunlin.Record) int {
		if a.Time != b.Time {
			if a.Time < b.Time {
				return -1
			}
			return 1
		}
		return strings.Compare(a.Metric, b.Metric)
	})
	return recs
}

func sameRecords(a, b []dunlin.Record) bool {
	return slices.EqualFunc(a, b, func(x, y dunlin.Record) bool { return x.Same(y) })
}

var (
	anyTime = rapid.Custom(func(t *rapid.T) dunlin.Time {
		switch rapid.IntRange(0, 5).Draw(t, "sort of time") {
		case 0:
			return dunlin.Time(rapid.Int64().Draw(t, "time"))
		case 1:
			return t0 + dunlin.Time(rapid.Int64Range(-5e6, 5e6).Draw(t, "µs"))
		}
		return t0 + dunlin.Time(rapid.Int64Range(0, 40).Draw(t, "minute"))*60e6
	})
	anyFloat = rapid.Custom(func(t *rapid.T) float64 {
		switch rapid.IntRange(0, 9).Draw(t, "sort of number") {
		case 0:
			return rapid.SampledFrom([]float64{0, math.Copysign(0, -1), math.Inf(1), math.Inf(-1), math.NaN(),
				math.Float64frombits(0x7ff8_dead_beef_0001), math.Float64frombits(0xfff0_0000_0000_0001), 5e-324, -5e-324,
				math.MaxFloat64, 1 << 53, 1<<53 + 2, -1 << 53, 9_999.999_999_99, 10_000, 0.1 + 0.2, 1e22, 1e-9}).Draw(t, "odd")
		case 1:
			return math.Float64frombits(rapid.Uint64().Draw(t, "bits"))
		case 2:
			return float64(rapid.Float32().Draw(t, "float32"))
		case 3: // a mean of decimals
			sum := 0.0
			for range 5 {
				sum += float64(rapid.IntRange(-400, 400).Draw(t, "tenths")) / 10
			}
			return sum / 5
		case 4:
			return float64(rapid.Int64Range(-1e12, 1e12).Draw(t, "n")) / math.Pow(10, float64(rapid.IntRange(0, 9).Draw(t, "scale")))
		}
		return float64(rapid.IntRange(-400, 400).Draw(t, "tenths")) / 10
	})
	anyRecord = rapid.Custom(func(t *rapid.T) dunlin.Record {
		r := dunlin.Record{Metric: rapid.SampledFrom([]string{"t", "h", "door", "a", "b", "c", "d", "e", "f", "g", "h/i", "j"}).Draw(t, "metric"),
			Time: anyTime.Draw(t, "time"), Kind: dunlin.Number}
		if rapid.IntRange(0, 3).Draw(t, "with unit") == 0 {
			r.Unit = rapid.SampledFrom([]string{"Cel", "%RH", "\x00"}).Draw(t, "unit")
		}
		if rapid.IntRange(0, 2).Draw(t, "other kind") == 0 {
			r.Kind = dunlin.ValueKind(rapid.IntRange(1, 4).Draw(t, "kind"))
		}
		switch r.Kind {
		case dunlin.Number:
			r.Num = anyFloat.Draw(t, "num")
		case dunlin.Boolean:
			r.Num = float64(rapid.IntRange(0, 1).Draw(t, "bool"))
		default:
			r.Str = rapid.SampledFrom([]string{"", "on", "off", "\xff\x00", "long text of a label"}).Draw(t, "str")
		}
		return r
	})
	anyReports = rapid.Custom(func(t *rapid.T) [][]dunlin.Record {
		return rapid.SliceOfN(rapid.SliceOfN(anyRecord, 0, 8), 2, 40).Draw(t, "reports")
	})
)

// Whatever reports are merged, in whatever grouping, the readings are those of the model and the bytes are the same.
func TestMergeIsTheModelAndAssociative(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		reports := anyReports.Draw(t, "reports")
		m := model{}
		var blocks [][]byte
		for _, recs := range reports {
			m.add(recs)
			blocks = append(blocks, report(recs...))
		}
		whole := merge(t, blocks...)
		if got, want := decode(t, whole), m.list(); !sameRecords(got, want) {
			t.Fatalf("got  %v\nwant %v", got, want)
		}
		// Some grouping, from any level of a tree of merges.
		grouped := slices.Clone(blocks)
		for len(grouped) > 1 {
			i := rapid.IntRange(0, len(grouped)-2).Draw(t, "from")
			n := rapid.IntRange(2, len(grouped)-i).Draw(t, "count")
			grouped = slices.Replace(grouped, i, i+n, merge(t, grouped[i:i+n]...))
		}
		if !bytes.Equal(grouped[0], whole) {
			t.Fatalf("the grouping shows:\n%x\n%x", grouped[0], whole)
		}
	})
}

func TestReportRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		recs := rapid.SliceOfN(anyRecord, 0, 12).Draw(t, "records")
		m := model{}
		m.add(recs)
		if got, want := decode(t, report(recs...)), m.list(); !sameRecords(got, want) {
			t.Fatalf("got  %v\nwant %v", got, want)
		}
	})
}

// Any float64 in a column of any others comes back with its bits.
func TestFloatsAreExact(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var blocks [][]byte
		var want []dunlin.Record
		for i, f := range rapid.SliceOfN(anyFloat, 2, 200).Draw(t, "numbers") {
			r := num("x", "", t0+dunlin.Time(i)*1e6, f)
			want = append(want, r)
			blocks = append(blocks, report(r))
		}
		if got := decode(t, merge(t, blocks...)); !sameRecords(got, want) {
			t.Fatalf("got  %v\nwant %v", got, want)
		}
	})
}

func TestScanIsDecodeFiltered(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		reports := anyReports.Draw(t, "reports")
		var blocks [][]byte
		for _, recs := range reports {
			blocks = append(blocks, report(recs...))
		}
		b := rapid.SampledFrom([][]byte{merge(t, blocks...), blocks[0]}).Draw(t, "block")
		metrics := rapid.SliceOfN(rapid.SampledFrom([]string{"t", "h", "door", "a", "none"}), 0, 3).Draw(t, "metrics")
		from, to := anyTime.Draw(t, "from"), anyTime.Draw(t, "to")
		var got, want []dunlin.Record
		limit := rapid.IntRange(1, 50).Draw(t, "limit")
		if err := column.Scan(b, metrics, from, to, func(r dunlin.Record) bool {
			got = append(got, r)
			return len(got) < limit
		}); err != nil {
			t.Fatal(err)
		}
		for _, r := range decode(t, b) {
			if (len(metrics) == 0 || slices.Contains(metrics, r.Metric)) && (from == 0 || r.Time >= from) && (to == 0 || r.Time < to) && len(want) < limit {
				want = append(want, r)
			}
		}
		if !sameRecords(got, want) {
			t.Fatalf("got  %v\nwant %v", got, want)
		}
	})
}

func TestLoneBlockStaysAsItIs(t *testing.T) {
	for _, b := range [][]byte{report(num("a", "", t0, 1)), merge(t, report(num("a", "", t0, 1)), report(num("a", "", t0, 2))), nil, {9, 9}} {
		if got := merge(t, b); !bytes.Equal(got, b) {
			t.Errorf("got %x, want %x", got, b)
		}
	}
	if got := merge(t); got != nil {
		t.Errorf("of nothing: %x", got)
	}
}

func TestRecordsOfNoKindAreLeftOut(t *testing.T) {
	if got := decode(t, report(dunlin.Record{Metric: "a", Time: t0}, num("b", "", t0, 1), dunlin.Record{Metric: "c", Kind: 5})); len(got) != 1 {
		t.Errorf("got %v", got)
	}
}

// day is a day of one reading a minute, as five fridges in a kitchen would make it: four metrics, one decimal.
func day(n int, jitter int64) [][]dunlin.Record {
	rnd := uint64(1)
	next := func(n uint64) int64 { // xorshift, so that the day is the same everywhere
		rnd ^= rnd << 13
		rnd ^= rnd >> 7
		rnd ^= rnd << 17
		return int64(rnd % n)
	}
	temp, hum, volt := int64(45), int64(612), int64(3021)
	reports := make([][]dunlin.Record, n)
	for i := range reports {
		temp, hum = temp+next(7)-3, hum+next(11)-5
		if i%50 == 0 {
			volt--
		}
		at := t0 + dunlin.Time(i)*60e6
		if jitter > 0 {
			at += dunlin.Time(next(uint64(jitter)))
		}
		door := dunlin.Record{Metric: "door", Time: at, Kind: dunlin.Boolean}
		if i%97 < 2 {
			door.Num = 1
		}
		reports[i] = []dunlin.Record{num("temperature", "Cel", at, float64(temp)/10), num("humidity", "%RH", at, float64(hum)/10),
			num("battery", "V", at, float64(volt)/1000), door}
	}
	return reports
}

func operands(reports [][]dunlin.Record) [][]byte {
	blocks := make([][]byte, len(reports))
	for i := range reports {
		blocks[i] = report(reports[i]...)
	}
	return blocks
}

// The bytes that history costs, which is what a device-day on disk is made of.
func TestSizes(t *testing.T) {
	mean := func() [][]dunlin.Record { // with what the cold-chain plugin derives: a mean of the last five
		reports := day(1440, 0)
		for i := range reports {
			sum := 0.0
			for j := max(0, i-4); j <= i; j++ {
				sum += reports[j][0].Num
			}
			reports[i] = append(reports[i], num("temperature/mean", "Cel", reports[i][0].Time, sum/float64(min(i+1, 5))))
		}
		return reports
	}()
	apart := func() [][]dunlin.Record { // metrics that never share a time
		reports := day(1440, 0)
		for i := range reports {
			for j := range reports[i] {
				reports[i][j].Time += dunlin.Time(j) * 7e6
			}
		}
		return reports
	}()
	gaps := day(1440, 0) // each metric missing now and then
	for i := range gaps {
		if i%7 == 3 {
			gaps[i] = slices.Delete(gaps[i], i%4, i%4+1)
		}
	}
	for _, c := range []struct {
		name    string
		reports [][]dunlin.Record
		max     float64 // bytes for each report
	}{
		{"a day at even times", day(1440, 0), 2.5},
		{"a day with seconds of jitter in microseconds", day(1440, 2e6), 5.5},
		{"a day with a derived mean", mean, 4},
		{"a day of metrics that never meet", apart, 2.7},
		{"a day with gaps", gaps, 3.2},
		{"an hour", day(60, 0), 4},
	} {
		b := merge(t, operands(c.reports)...)
		if got := float64(len(b)) / float64(len(c.reports)); got > c.max {
			t.Errorf("%s: %.2f bytes a report, want at most %.2f", c.name, got, c.max)
		} else {
			t.Logf("%s: %.2f bytes a report, %d in all", c.name, got, len(b))
		}
	}
	if n := len(report(day(1, 0)[0]...)); n > 70 {
		t.Errorf("a report has %d bytes", n)
	}
}

func TestGolden(t *testing.T) {
	mixed := [][]byte{
		report(num("a", "Cel", t0, 21.5), dunlin.Record{Metric: "note", Time: t0, Kind: dunlin.Text, Str: "on"}),
		report(num("a", "Cel", t0+60e6, 21.6), dunlin.Record{Metric: "note", Time: t0 + 60e6, Kind: dunlin.Data, Str: "\x00"}),
		report(num("a", "K", t0+120e6, 294.7), dunlin.Record{Metric: "door", Time: t0 + 90e6, Kind: dunlin.Boolean, Num: 1}),
		report(num("b", "", t0, math.Pi), num("b", "", t0+1, math.NaN()), num("c", "", t0, 0.1+0.2), num("c", "", t0+1, 5)),
		report(num("a", "Cel", t0, 22)),
	}
	for name, b := range map[string][]byte{
		"report_v1": mixed[0],
		"mixed_v1":  merge(t, mixed...),
		"hour_v1":   merge(t, operands(day(60, 0))...),
	} {
		path := filepath.Join("testdata", name+".hex")
		got := hex.Dump(b)
		if *rewrite {
			if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		want, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if got != string(want) {
			t.Errorf("%s: the format changed; got\n%swant\n%s", name, got, want)
		}
	}
}

func TestBrokenBlocksAreErrors(t *testing.T) {
	whole := merge(t, operands(day(100, 1e6))...)
	for _, b := range [][]byte{whole, report(day(1, 0)[0]...)} {
		for i := range b {
			// A report may end after any of its records.
			if err := column.Decode(b[:i], func(dunlin.Record) bool { return true }); err != nil && !errors.Is(err, dunlin.ErrInvalid) {
				t.Fatalf("the first %d of %d bytes: %v", i, len(b), err)
			} else if err == nil && b[0] == whole[0] {
				t.Fatalf("the first %d of %d bytes pass", i, len(b))
			}
		}
	}
	if err := column.Decode(append(slices.Clone(whole), 0), nil); !errors.Is(err, dunlin.ErrInvalid) {
		t.Errorf("a byte too many: %v", err)
	}
	_, err := column.Merge([]byte("kept"), [][]byte{whole, {0x22}})
	if !errors.Is(err, dunlin.ErrInvalid) || !strings.Contains(err.Error(), "block 2 of 2") || !strings.Contains(err.Error(), "version") {
		t.Errorf("a block of a later version: %v", err)
	}
}

// fuzz: no panic; what decodes can be merged, and comes back.
func fuzz(f *testing.F, seeds ...[]byte) {
	for _, s := range seeds {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var recs []dunlin.Record
		err := column.Decode(b, func(r dunlin.Record) bool {
			recs = append(recs, r)
			return len(recs) < 1e5
		})
		if len(recs) == 1e5 {
			return // few bytes can say millions of readings (ValuesMax); merging those would take the fuzzer's whole time
		}
		if err != nil {
			if !errors.Is(err, dunlin.ErrInvalid) {
				t.Fatalf("%v does not match ErrInvalid", err)
			}
			return
		}
		if again := decode(t, merge(t, b, report())); !sameRecords(again, recs) {
			t.Fatalf("got  %v\nwant %v", again, recs)
		}
	})
}

func FuzzColumns(f *testing.F) {
	gaps := day(40, 0)
	gaps[3], gaps[9] = gaps[3][:2], gaps[9][1:]
	odd := [][]byte{report(num("a", "", 1, math.Pi)), report(num("a", "u", 2, math.NaN())), report(dunlin.Record{Metric: "a", Time: 3, Kind: 3, Str: "x"})}
	fuzz(f, merge(f, operands(day(70, 1e6))...), merge(f, operands(gaps)...), merge(f, odd...), merge(f, report(), report()))
}

func FuzzReport(f *testing.F) {
	fuzz(f, report(), report(day(1, 0)[0]...), report(dunlin.Record{Metric: "a", Time: 3, Kind: 3, Str: "x"}, num("b", "u", 5, math.Pi)))
}
