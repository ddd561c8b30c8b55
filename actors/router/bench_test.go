package router

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// fleet is an uplink of four metrics of each of so many devices.
func fleet(devices int) []*dunlin.Uplink {
	us := make([]*dunlin.Uplink, devices)
	for i := range us {
		u := &dunlin.Uplink{DeviceKey: dunlin.DeviceKey{Tenant: "default", Device: dunlin.DeviceID(fmt.Sprintf("device-%07d", i))}}
		u.Kind, u.Format, u.Received, u.MessageID = dunlin.InputTelemetry, dunlin.FormatSenMLJSON, dunlin.Time(1_700_000_000_000_000+i*137), uint64(i)*7919+1
		u.Sender = dunlin.Principal{Kind: dunlin.PrincipalDevice, Tenant: "default", ID: string(u.Device)}
		for j, m := range []string{"temperature", "humidity", "battery", "rssi"} {
			u.Records = append(u.Records, dunlin.Record{Metric: m, Unit: "x", Kind: dunlin.Number, Num: []float64{20.37, 61.5, 3.29, -71}[j], Time: u.Received})
		}
		us[i] = u
	}
	return us
}

// instantly is a Directory that owns everything and commits at once.
type instantly struct{}

func (instantly) Owned(dunlin.ShardID) (uint64, bool) { return 1, true }
func (instantly) Holds(dunlin.ShardID) bool           { return false }
func (i instantly) Ingest(first *dunlin.Uplink)       { i.Post(0, first) }
func (instantly) Post(_ dunlin.ShardID, first *dunlin.Uplink) *dunlin.Uplink {
	for u := first; u != nil; {
		next := u.Next
		u.Next = nil
		u.Waiter.Done(u, dunlin.Receipt{Seq: 4711})
		u = next
	}
	return nil
}

// BenchmarkForward is what a forwarded uplink costs both nodes besides the call itself: it is taken, encoded, decoded, handed to
// the Directory, and its receipt goes the same way back.
func BenchmarkForward(b *testing.B) {
	for _, size := range []int{1, 16, 64, 256} {
		b.Run(fmt.Sprint("batch=", size), func(b *testing.B) {
			owner := bareRouter(b, 2, instantly{}, nil)
			var bytes int
			asker := bareRouter(b, 1, nowhere{}, goFunc(func(_ string, body []byte, done func([]byte, error)) {
				bytes = len(body)
				done(owner.Serve(b.Context(), 1, methodUplinks, body))
			}))
			us := fleet(size)
			w := &counting{}
			b.ReportAllocs()
			before := cpu()
			for b.Loop() {
				for _, u := range us {
					u.Waiter = w
					u.Flags = 0
					asker.Take(asker.cfg.ShardOf(u.DeviceKey), u)
				}
				asker.Flush()
			}
			if w.n != b.N*size || w.bad > 0 {
				b.Fatalf("%d answers, %d bad, of %d", w.n, w.bad, b.N*size)
			}
			b.ReportMetric(float64(cpu()-before)/float64(b.N*size), "cpu-ns/uplink")
			b.ReportMetric(float64(bytes)/float64(size), "bytes/uplink")
		})
	}
}

func cpu() time.Duration {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

type counting struct{ n, bad int }

func (c *counting) Done(_ *dunlin.Uplink, rec dunlin.Receipt) {
	c.n++
	if rec.Err != nil || rec.Seq != 4711 {
		c.bad++
	}
}
