//go:build unix

package store

import (
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/dunlin-iot/dunlin"
)

// A shard of 2,000 fridges with some 40,000 reports goes from one store on the disk to another. MB are of the chunks on
// their way; state-MB/s of what the shard takes on the sender's disk.
func BenchmarkSnapshot(b *testing.B) {
	from := openTest(b, Config{FS: vfs.Default, Dir: b.TempDir() + "/from", Identity: Identity{Shards: 1}})
	f := newFleet(1, 1, 2000)
	f.step = 1_000_000
	index := uint64(0)
	for range 500 {
		var batch []dunlin.Committed
		for range 20 {
			index++
			batch = append(batch, committed(f.entry(0, 4), index))
		}
		if err := drive(from, batch); err != nil {
			b.Fatal(err)
		}
	}
	if err := from.Sync(b.Context()); err != nil {
		b.Fatal(err)
	}
	if err := from.State().eng.Flush(); err != nil {
		b.Fatal(err)
	}
	var export, add, install time.Duration
	var sent, used float64
	n := 0
	for b.Loop() {
		to := openTest(b, Config{FS: vfs.Default, Dir: b.TempDir() + "/to", Identity: Identity{Shards: 1}})
		cpu0 := time.Now()
		meta, err := from.Export(0)
		if err != nil {
			b.Fatal(err)
		}
		if _, err := to.Receive(meta); err != nil {
			b.Fatal(err)
		}
		export += time.Since(cpu0)
		for i, last := 0, false; !last; i++ {
			at := time.Now()
			var data []byte
			if data, last, err = from.Chunk(meta.ID, i); err != nil {
				b.Fatal(err)
			}
			mid := time.Now()
			if err := to.Add(meta, i, data, last); err != nil {
				b.Fatal(err)
			}
			export, add, sent = export+mid.Sub(at), add+time.Since(mid), sent+float64(len(data))
		}
		at := time.Now()
		if err := to.Install(meta, nil); err != nil {
			b.Fatal(err)
		}
		install += time.Since(at)
		used += float64(from.State().Bytes(0))
		from.Release(meta.ID)
		n++
	}
	mb := sent / 1e6
	b.ReportMetric(mb/float64(n), "MB")
	b.ReportMetric(mb/export.Seconds(), "export-MB/s")
	b.ReportMetric(mb/add.Seconds(), "add-MB/s")
	b.ReportMetric(float64(install.Milliseconds())/float64(n), "install-ms")
	b.ReportMetric(mb/(export+add+install).Seconds(), "MB/s")
	b.ReportMetric(used/1e6/(export+add+install).Seconds(), "state-MB/s")
	b.ReportMetric(0, "ns/op")
}
