//go:build unix

package store

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/dunlin-iot/dunlin"
)

// cpu is the process's CPU time: flushes, compactions and garbage collection are part of what a change costs.
func cpu() float64 {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return float64(r.Utime.Nano() + r.Stime.Nano())
}

// batches makes n entries of 64 shards with changes each, 20 entries a batch.
func batches(n, changes, devices int) (out [][]dunlin.Committed) {
	f := newFleet(1, 64, devices)
	f.plain, f.step = true, 2000
	for _, d := range f.devices {
		d.version = 1 // registered before
	}
	next := make([]uint64, 64)
	for len(out)*20 < n {
		var batch []dunlin.Committed
		for range 20 {
			sh := dunlin.ShardID(f.rng.IntN(64))
			next[sh]++
			batch = append(batch, committed(f.entry(sh, changes), next[sh]))
		}
		out = append(out, batch)
	}
	return out
}

func BenchmarkApply(b *testing.B) {
	for _, c := range []struct{ changes, devices int }{{1, 1024}, {8, 1024}, {1, 51200}} {
		b.Run(fmt.Sprintf("changes=%d/devices=%d", c.changes, c.devices), func(b *testing.B) {
			all := batches(max(b.N, 20), c.changes, c.devices)
			db := openTest(b, Config{Dir: b.TempDir() + "/data", Identity: Identity{Shards: 64}})
			b.ReportAllocs()
			b.ResetTimer()
			start := cpu()
			for _, batch := range all {
				if err := db.State().Apply(batch); err != nil {
					b.Fatal(err)
				}
			}
			b.StopTimer()
			b.ReportMetric((cpu()-start)/float64(len(all)*20*c.changes), "cpu-ns/change")
		})
	}
}

// The whole of the store's part: append with a sync (to a disk in memory: what an fsync takes is not ours), apply,
// archive, truncate.
func BenchmarkStore(b *testing.B) {
	for _, changes := range []int{1, 8} {
		b.Run(fmt.Sprintf("changes=%d", changes), func(b *testing.B) {
			all := batches(max(b.N, 20), changes, 1024)
			cfg := Config{FS: vfs.NewMem(), Dir: "data", Identity: Identity{Shards: 64}}
			db := openTest(b, cfg)
			b.ReportAllocs()
			b.ResetTimer()
			start := cpu()
			for _, batch := range all {
				if err := db.Log().Append(rowsOf(batch), true); err != nil {
					b.Fatal(err)
				}
				if err := db.State().Apply(batch); err != nil {
					b.Fatal(err)
				}
				select {
				case <-db.grown:
					if err := db.Maintain(b.Context()); err != nil {
						b.Fatal(err)
					}
					for sh := range dunlin.ShardID(64) {
						if err := db.Log().Truncate(sh, db.State().Durable(sh)); err != nil {
							b.Fatal(err)
						}
					}
				default:
				}
			}
			b.StopTimer()
			b.ReportMetric((cpu()-start)/float64(len(all)*20*changes), "cpu-ns/change")
		})
	}
}
