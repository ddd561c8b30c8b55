//go:build unix

package peer

import (
	"fmt"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

func cpu() time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// BenchmarkRaft sends batches of 64 messages over loopback TLS: the heartbeats of 64 shards, or entries. CPU is that of both
// sides. The sender stays at most 32 batches ahead: alone is one batch at a time, and the round to its arrival.
func BenchmarkRaft(b *testing.B) {
	for _, ahead := range []int64{1, 32} {
		for _, size := range []int{40, 300, 4096} {
			b.Run(fmt.Sprintf("ahead=%d/bytes=%d", ahead, size), func(b *testing.B) {
				lan := newLAN(b)
				var got atomic.Int64
				arrived := make(chan struct{}, 1)
				a := lan.node(1)
				lan.node(2, func(c *Config) {
					c.OnMessages = func(dunlin.NodeID, dunlin.ShardID, []byte) {
						if got.Add(1)%64 == 0 {
							set(arrived)
						}
					}
				})
				batch := make([]Message, 64)
				for i := range batch {
					batch[i] = Message{2, dunlin.ShardID(i), make([]byte, size)}
				}
				if _, err := a.Call(within(b, 10*time.Second), 2, "echo", nil); err != nil {
					b.Fatal(err)
				}
				var sent int64
				b.ReportAllocs()
				b.SetBytes(int64(64 * size))
				begun := cpu()
				for b.Loop() {
					a.Send(batch)
					for sent += 64; sent-got.Load() >= 64*ahead; {
						<-arrived
					}
				}
				b.ReportMetric(float64((cpu()-begun).Nanoseconds())/float64(sent), "cpu-ns/msg")
				b.ReportMetric(float64(sent)/b.Elapsed().Seconds(), "msg/s")
			})
		}
	}
}

// BenchmarkCall is a small call and its answer, one at a time.
func BenchmarkCall(b *testing.B) {
	lan := newLAN(b)
	a := lan.node(1)
	lan.node(2)
	ask := body(100)
	b.ReportAllocs()
	begun := cpu()
	for b.Loop() {
		if _, err := a.Call(b.Context(), 2, "echo", ask); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64((cpu()-begun).Nanoseconds())/float64(b.N), "cpu-ns/op")
}

// BenchmarkBulk is an answer of 1 MiB, as a piece of a snapshot, one at a time.
func BenchmarkBulk(b *testing.B) {
	lan := newLAN(b)
	a := lan.node(1)
	lan.node(2)
	ask := body(1 << 20)
	b.SetBytes(2 << 20)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := a.Call(b.Context(), 2, "echo", ask); err != nil {
			b.Fatal(err)
		}
	}
}
