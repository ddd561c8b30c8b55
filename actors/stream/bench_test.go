package stream

import (
	"testing"

	"github.com/dunlin-iot/dunlin"
)

// BenchmarkPull is what it costs to bring an entry of 20 devices with four readings each to another node: encode, frame,
// decode.
func BenchmarkPull(b *testing.B) {
	e := &dunlin.Entry{Shard: 3, Term: 4, At: 1772366400_000000}
	for i := range 20 {
		var records []dunlin.Record
		for _, metric := range []string{"temperature", "humidity", "battery", "rssi"} {
			records = append(records, dunlin.Record{Metric: metric, Unit: "Cel", Time: e.At, Kind: dunlin.Number, Num: 4.25 + float64(i)})
		}
		e.Changes = append(e.Changes, dunlin.Change{DeviceKey: key(i), Domain: "cold-chain", Version: 7,
			Inputs: []dunlin.Input{{Received: e.At, MessageID: uint64(i), Records: records}},
			Stages: []dunlin.StageResult{{State: make([]byte, 60), StateSet: true}}})
	}
	p := &pull{max: 256 << 10, from: []position{{3, 1}}}
	b.ReportAllocs()
	n, bytes := 0, 0
	for b.Loop() {
		w := newReply(p.max)
		w.open(3, 1)
		next := uint64(1)
		for ; w.room(); next++ {
			w.item(dunlin.FeedItem{Index: next, Entry: e})
		}
		w.close(statusOK, next, next)
		a, err := decodeReply(w.b, p)
		if err != nil {
			b.Fatal(err)
		}
		n, bytes = n+len(a[0].items), bytes+len(w.b)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/entry")
	b.ReportMetric(float64(bytes)/float64(n), "B/entry")
}
