//go:build unix

package store

import (
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// What followers of all shards cost on top of appending and applying.
func BenchmarkFollow(b *testing.B) {
	for _, followers := range []int{0, 1, 10} {
		b.Run(fmt.Sprintf("followers=%d", followers), func(b *testing.B) {
			all := batches(max(b.N, 20), 1, 1024)
			db := openTest(b, Config{FS: vfs.NewMem(), Dir: "data", Identity: Identity{Shards: 64}})
			ctx, cancel := context.WithTimeout(b.Context(), time.Minute)
			defer cancel()
			ended := make(chan int, followers)
			for range followers {
				from := db.Journal().heads()
				go func() {
					n := 0
					for _, err := range db.Journal().Follow(ctx, &from, nil) {
						if n++; err != nil || n == len(all)*20 {
							break
						}
					}
					ended <- n
				}()
			}
			b.ResetTimer()
			start := cpu()
			for _, batch := range all {
				if err := db.Log().Append(rowsOf(batch), false); err != nil {
					b.Fatal(err)
				}
				if err := db.State().Apply(batch); err != nil {
					b.Fatal(err)
				}
			}
			for range followers {
				if n := <-ended; n != len(all)*20 {
					b.Fatalf("a follower got %d entries of %d", n, len(all)*20)
				}
			}
			b.StopTimer()
			b.ReportMetric((cpu()-start)/float64(len(all)*20), "cpu-ns/change")
		})
	}
}
