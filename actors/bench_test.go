package actors

import (
	"fmt"
	"math/rand/v2"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/device"
)

// instant is a committer that commits at once, in Flush, without looking at the entries.
type instant struct {
	mu    sync.Mutex
	queue []func(uint64, error)
	bytes atomic.Int64
}

func (c *instant) Propose(_ dunlin.ShardID, _ uint64, data []byte, done func(uint64, error)) {
	c.bytes.Add(int64(len(data)))
	c.mu.Lock()
	c.queue = append(c.queue, done)
	c.mu.Unlock()
}

func (c *instant) Flush() {
	c.mu.Lock()
	q := c.queue
	c.queue = nil
	c.mu.Unlock()
	for _, done := range q {
		done(1, nil)
	}
}

// nowhere is a store without a device.
type nowhere struct{ store }

func (*nowhere) LoadDevice(dunlin.ShardID, dunlin.DeviceKey) (*dunlin.DeviceState, bool, error) {
	return nil, false, nil
}

func (*nowhere) TimersDue(dunlin.ShardID, dunlin.Time, int) ([]dunlin.DueTimer, dunlin.Time, error) {
	return nil, 0, nil
}

// mean is a plugin with a state of 48 bytes and a timer, as cheap as can be.
type mean struct{}

func (mean) Process(_ dunlin.DomainID, _ *dunlin.Stage, _ int, _ dunlin.Time, work []*dunlin.Work) error {
	for _, w := range work {
		w.Outcome.State = make([]byte, 48)
		w.Outcome.State[0] = byte(w.Seq)
	}
	return nil
}

// countdown is a waiter for a whole batch.
type countdown struct {
	left atomic.Int64
	zero chan struct{}
}

func (c *countdown) Done(*dunlin.Uplink, dunlin.Receipt) {
	if c.left.Add(-1) == 0 {
		c.zero <- struct{}{}
	}
}

func benchDirectory(b testing.TB, shards int, window time.Duration) *Directory {
	rules := &device.Rules{Domain: "cold", Register: true, Stages: []dunlin.Stage{{Plugin: "p"}}}
	d, err := New(Config{Shards: shards, DefaultDomain: "cold", WindowMax: window, ShardOf: func(k dunlin.DeviceKey) dunlin.ShardID {
		return dunlin.ShardID(int(k.Device[len(k.Device)-1])+int(k.Device[len(k.Device)-2])*7) % dunlin.ShardID(shards)
	}}, Deps{Processor: mean{}, Committer: &instant{}, States: &nowhere{}, Rules: func(dunlin.Tenant, dunlin.DomainID) *device.Rules { return rules }})
	if err != nil {
		b.Fatal(err)
	}
	for i := range shards {
		d.Own(dunlin.ShardID(i), 1)
	}
	for d.owned.Load() < int64(shards) {
		pause()
	}
	return d
}

func fourMetrics(devices int) []*dunlin.Uplink {
	us := make([]*dunlin.Uplink, devices)
	for i := range us {
		u := &dunlin.Uplink{DeviceKey: dunlin.DeviceKey{Tenant: "default", Device: dunlin.DeviceID(fmt.Sprintf("device-%07d", i))}}
		u.Kind, u.Format = dunlin.InputTelemetry, dunlin.FormatSenMLJSON
		u.Sender = dunlin.Principal{Kind: dunlin.PrincipalDevice, Tenant: "default", ID: string(u.Device)}
		for _, m := range []string{"temperature", "humidity", "battery", "rssi"} {
			u.Records = append(u.Records, dunlin.Record{Metric: m, Unit: "x", Kind: dunlin.Number, Num: 20.5})
		}
		us[i] = u
	}
	return us
}

// sendBatch sends a batch of the devices as one chain and waits for its answers.
func sendBatch(d *Directory, us []*dunlin.Uplink, w *countdown, at dunlin.Time) {
	for i, u := range us {
		u.Waiter, u.Next, u.Received, u.MessageID = w, nil, at, uint64(at)+uint64(i)
		for j := range u.Records {
			u.Records[j].Time = at
		}
		if i > 0 {
			us[i-1].Next = u
		}
	}
	w.left.Store(int64(len(us)))
	d.Ingest(us[0])
	<-w.zero
}

func cpu() time.Duration {
	var r syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &r)
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkDirectory is the room by itself, entries' encoding included: batches of uplinks of different devices over 1 and
// over 64 shards, committed instantly. cpu-ns/uplink is the process's CPU time.
func BenchmarkDirectory(b *testing.B) {
	for _, shards := range []int{1, 64} {
		for _, size := range []int{1, 8, 64, 500} {
			b.Run(fmt.Sprintf("shards=%d/batch=%d", shards, size), func(b *testing.B) {
				d := benchDirectory(b, shards, -1)
				us := fourMetrics(2000)
				w := &countdown{zero: make(chan struct{}, 1)}
				at := dunlin.Time(1e15)
				for i := 0; i < len(us); i += size {
					sendBatch(d, us[i:min(i+size, len(us))], w, at)
				}
				b.ReportAllocs()
				from, n, k := cpu(), 0, 0
				for b.Loop() {
					at += 1e6
					if k += size; k+size > len(us) {
						k = 0
					}
					sendBatch(d, us[k:k+size], w, at)
					n += size
				}
				b.ReportMetric(float64(cpu()-from)/float64(n), "cpu-ns/uplink")
				b.ReportMetric(float64(b.Elapsed())/float64(n), "ns/uplink")
				_ = d.Close(b.Context())
			})
		}
	}
}

// BenchmarkDevice is what an active device takes of the heap, after 40 uplinks of four metrics.
func BenchmarkDevice(b *testing.B) {
	for b.Loop() {
		const devices = 10000
		us := fourMetrics(devices)
		d := benchDirectory(b, 64, -1)
		w := &countdown{zero: make(chan struct{}, 1)}
		before := heap()
		for i := range 40 {
			for k := 0; k < devices; k += 500 {
				sendBatch(d, us[k:k+500], w, dunlin.Time(1e15+i*1e6))
			}
		}
		b.ReportMetric(float64(heap()-before)/devices, "B/device")
		var counted int64
		for i := range d.shards {
			counted += d.shards[i].cells.bytes
		}
		b.ReportMetric(float64(counted)/devices, "counted-B/device")
		b.ReportMetric(float64(d.active.Load()), "active")
		runtime.KeepAlive(us)
		_ = d.Close(b.Context())
	}
}

func heap() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// disk is a committer whose host commits, on its own goroutine, what was flushed: in 1.5 ms, as if it waited for a disk.
type disk struct {
	instant
	work    chan struct{}
	flushes atomic.Int64
}

func (c *disk) Flush() {
	c.flushes.Add(1)
	select {
	case c.work <- struct{}{}:
	default:
	}
}

func (c *disk) run() {
	for range c.work {
		<-time.After(1500 * time.Microsecond)
		c.instant.Flush()
	}
}

// latencies is a waiter that keeps how long each uplink took.
type latencies struct {
	mu   sync.Mutex
	sent []time.Time
	took []time.Duration
}

func (l *latencies) Done(u *dunlin.Uplink, _ dunlin.Receipt) {
	l.mu.Lock()
	l.took = append(l.took, time.Since(l.sent[u.Tag]))
	l.mu.Unlock()
}

// BenchmarkPaced sends 500 uplinks a second, at random moments, to a disk of 1.5 ms: how they share commits, how long they
// take, and what they cost the process beyond a sender that sends into the void (the last line).
func BenchmarkPaced(b *testing.B) {
	for _, c := range []struct {
		name   string
		window time.Duration
		void   bool
	}{{"window=4ms", 4 * time.Millisecond, false}, {"window=0", -1, false}, {"void", -1, true}} {
		b.Run(c.name, func(b *testing.B) {
			d, com := benchDirectory(b, 64, c.window), &disk{work: make(chan struct{}, 1)}
			d.deps.Committer, d.beat.flush = com, com.Flush
			go com.run()
			const n = 1000
			us := fourMetrics(n)
			l := &latencies{sent: make([]time.Time, n)}
			r := rand.New(rand.NewPCG(1, 1))
			for b.Loop() {
				var before, after syscall.Rusage
				_ = syscall.Getrusage(syscall.RUSAGE_SELF, &before)
				from, next := cpu(), time.Now()
				for i, u := range us {
					next = next.Add(time.Duration(r.ExpFloat64() * float64(2*time.Millisecond)))
					<-time.After(time.Until(next))
					u.Waiter, u.Tag = l, uint64(i)
					l.sent[i] = time.Now()
					if !c.void {
						d.Ingest(u)
					}
				}
				for !c.void && d.outstanding() > 0 {
					pause()
				}
				_ = syscall.Getrusage(syscall.RUSAGE_SELF, &after)
				b.ReportMetric(float64(cpu()-from)/n/1000, "cpu-µs/uplink")
				b.ReportMetric(float64(after.Nvcsw-before.Nvcsw)/n, "switches/uplink")
			}
			if !c.void {
				slices.Sort(l.took)
				b.ReportMetric(float64(l.took[len(l.took)/2])/1e6, "p50-ms")
				b.ReportMetric(float64(l.took[len(l.took)*99/100])/1e6, "p99-ms")
				b.ReportMetric(float64(len(l.took))/float64(com.flushes.Load()), "uplinks/flush")
			}
			_ = d.Close(b.Context())
			close(com.work)
		})
	}
}

// again is a waiter that sends the next uplink as soon as one is answered, until enough have been.
type again struct {
	d    *Directory
	left atomic.Int64
	out  atomic.Int64
	at   atomic.Int64
	end  chan struct{}
}

func (a *again) Done(u *dunlin.Uplink, _ dunlin.Receipt) {
	if a.left.Add(-1) <= 0 {
		if a.out.Add(-1) == 0 {
			a.end <- struct{}{}
		}
		return
	}
	at := dunlin.Time(a.at.Add(1000))
	u.Received, u.MessageID = at, uint64(at)
	for i := range u.Records {
		u.Records[i].Time = at
	}
	a.d.Ingest(u)
}

// BenchmarkSaturated has 64 and 1,000 devices that send as soon as they are answered, against a disk of 1.5 ms.
func BenchmarkSaturated(b *testing.B) {
	for _, devices := range []int{64, 1000} {
		b.Run(fmt.Sprintf("devices=%d", devices), func(b *testing.B) {
			d, com := benchDirectory(b, 64, 4*time.Millisecond), &disk{work: make(chan struct{}, 1)}
			d.deps.Committer, d.beat.flush = com, com.Flush
			go com.run()
			us := fourMetrics(devices)
			n := int64(devices) * 100
			for b.Loop() {
				a := &again{d: d, end: make(chan struct{}, 1)}
				a.left.Store(n)
				a.out.Store(int64(devices))
				a.at.Store(int64(dunlin.TimeOf(time.Now())))
				com.flushes.Store(0)
				from, began := cpu(), time.Now()
				for _, u := range us {
					u.Waiter = a
					d.Ingest(u)
				}
				<-a.end
				b.ReportMetric(float64(n)/time.Since(began).Seconds(), "uplinks/s")
				b.ReportMetric(float64(cpu()-from)/float64(n), "cpu-ns/uplink")
				b.ReportMetric(float64(n)/float64(com.flushes.Load()), "uplinks/flush")
			}
			_ = d.Close(b.Context())
			close(com.work)
		})
	}
}
