package column_test

import (
	"testing"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/store/column"
)

func BenchmarkAppendReport(b *testing.B) {
	recs := day(1, 0)[0]
	buf := make([]byte, 0, 256)
	b.ReportAllocs()
	for b.Loop() {
		buf = column.AppendReport(buf[:0], recs)
	}
	b.ReportMetric(float64(len(buf)), "bytes")
}

func benchMerge(b *testing.B, blocks [][]byte, reports int) {
	var buf []byte
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if buf, err = column.Merge(buf[:0], blocks); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(reports), "ns/report")
	b.ReportMetric(float64(len(buf))/float64(reports), "bytes/report")
}

func BenchmarkMerge1000Reports(b *testing.B) { benchMerge(b, operands(day(1000, 0)), 1000) }

func BenchmarkMerge1000ReportsWithJitter(b *testing.B) { benchMerge(b, operands(day(1000, 2e6)), 1000) }

// A day and one more report, which is a read of a device that is reporting.
func BenchmarkMergeDayAndReport(b *testing.B) {
	ops := operands(day(1440, 0))
	whole, err := column.Merge(nil, ops[:1439])
	if err != nil {
		b.Fatal(err)
	}
	benchMerge(b, [][]byte{whole, ops[1439]}, 1440)
}

func BenchmarkMergeDayAndLateReport(b *testing.B) {
	ops := operands(day(1440, 0))
	whole, err := column.Merge(nil, append(append([][]byte{}, ops[:700]...), ops[701:]...))
	if err != nil {
		b.Fatal(err)
	}
	benchMerge(b, [][]byte{whole, ops[700]}, 1440)
}

func BenchmarkDecodeDay(b *testing.B) {
	whole, err := column.Merge(nil, operands(day(1440, 0)))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		if err := column.Decode(whole, func(dunlin.Record) bool { n++; return true }); err != nil || n != 4*1440 {
			b.Fatal(n, err)
		}
	}
}

func BenchmarkScanOneMetricOfDay(b *testing.B) {
	whole, err := column.Merge(nil, operands(day(1440, 0)))
	if err != nil {
		b.Fatal(err)
	}
	metrics := []string{"temperature"}
	b.ReportAllocs()
	for b.Loop() {
		n := 0
		if err := column.Scan(whole, metrics, 0, 0, func(dunlin.Record) bool { n++; return true }); err != nil || n != 1440 {
			b.Fatal(n, err)
		}
	}
}
