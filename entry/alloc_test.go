package entry_test

import (
	"runtime"
	"testing"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/entry"
)

func allocated(t *testing.T) uint64 {
	t.Helper()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.TotalAlloc
}

func TestAllocations(t *testing.T) {
	e := oneReading()
	b := entry.Append(nil, e)
	buf := make([]byte, 0, 4096)
	if n := testing.AllocsPerRun(100, func() { buf = entry.Append(buf[:0], e) }); n > 0 {
		t.Errorf("Append allocates %v times", n)
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = entry.Decode(b) }); n > 2 {
		t.Errorf("Decode allocates %v times, want 2: the entry and its records", n)
	}
	marked := batch(8) // with a plugin's state that says what made it, in the newest version
	for i := range marked.Changes {
		marked.Changes[i].Stages[0].Made = dunlin.Made{Module: 7, Config: 9}
	}
	if n := testing.AllocsPerRun(100, func() { buf = entry.AppendAs(buf[:0], marked, entry.Version) }); n > 1 {
		t.Errorf("Append of states allocates %v times, want 1: the table of hashes", n)
	}
}

func BenchmarkAppend(b *testing.B) {
	e := oneReading()
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		buf = entry.Append(buf[:0], e)
	}
	b.ReportMetric(float64(len(buf)), "bytes")
}

func BenchmarkDecode(b *testing.B) {
	buf := entry.Append(nil, oneReading())
	b.ReportAllocs()
	for b.Loop() {
		if _, err := entry.Decode(buf); err != nil {
			b.Fatal(err)
		}
	}
}

func batch(n int) *dunlin.Entry {
	e := oneReading()
	e.Changes = nil
	for i := range n {
		c := fridgeChange("fridge-"+string(rune('a'+i%26))+string(rune('a'+i/26)), uint64(i+100))
		c.Stages = []dunlin.StageResult{{Hash: dunlin.ModuleHash{1}, StateSet: true, State: make([]byte, 48)}}
		c.Timers = []dunlin.TimerSet{{Name: "silence", Due: t0.Add(900e9), Was: t0.Add(890e9)}}
		e.Changes = append(e.Changes, c)
	}
	return e
}

// As written when all nodes read version 2: each state says what made it.
func BenchmarkAppend100Marked(b *testing.B) {
	e := batch(100)
	for i := range e.Changes {
		e.Changes[i].Stages[0].Made = dunlin.Made{Module: 7, Config: 9}
	}
	buf := make([]byte, 0, 65536)
	b.ReportAllocs()
	for b.Loop() {
		buf = entry.AppendAs(buf[:0], e, 2)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/change")
	b.ReportMetric(float64(len(buf))/100, "bytes/change")
}

// Of 100 changes, each with a plugin's state and a timer.
func BenchmarkAppend100(b *testing.B) {
	e := batch(100)
	buf := make([]byte, 0, 65536)
	b.ReportAllocs()
	for b.Loop() {
		buf = entry.Append(buf[:0], e)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/change")
	b.ReportMetric(float64(len(buf))/100, "bytes/change")
}

func BenchmarkDecode100(b *testing.B) {
	buf := entry.Append(nil, batch(100))
	b.ReportAllocs()
	for b.Loop() {
		if _, err := entry.Decode(buf); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/change")
}

func BenchmarkAppendState(b *testing.B) {
	e := batch(1)
	buf := make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		d := dunlin.DeltaOf(&e.Changes[0])
		buf = entry.AppendState(buf[:0], &d)
	}
	b.ReportMetric(float64(len(buf)), "bytes")
}

func BenchmarkDecodeState(b *testing.B) {
	d := dunlin.DeltaOf(&batch(1).Changes[0])
	buf := entry.AppendState(nil, &d)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := entry.DecodeState(buf); err != nil {
			b.Fatal(err)
		}
	}
}
