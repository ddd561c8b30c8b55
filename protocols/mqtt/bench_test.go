package mqtt

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/dunlin-iot/dunlin"
)

// The benchmarks' clients run in another process (this binary again), so that the process's CPU time is the gateway's.
var (
	loadAddr  = flag.String("mqtt.load", "", "be the benchmark's clients of this address")
	loadConns = flag.Int("mqtt.conns", 1000, "with mqtt.load: connections")
	loadMsgs  = flag.Int("mqtt.msgs", 0, "with mqtt.load: publishes in all; 0: stay idle until the input ends")
	loadRate  = flag.Int("mqtt.rate", 0, "with mqtt.load: publishes a second; 0: as fast as one in flight each allows")
)

func TestMain(m *testing.M) {
	flag.Parse()
	if *loadAddr != "" {
		if err := load(); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	goleak.VerifyTestMain(m)
}

const benchBody = `[{"bn":"urn:dev:bench","bt":1.7e9,"n":"temperature","u":"Cel","v":4.25},{"n":"humidity","u":"%RH","v":61.5},` +
	`{"n":"door","vb":false},{"n":"battery","u":"V","v":3.01}]`

// load is the clients: it connects all, prints a line, waits for one, publishes, prints how long that took.
func load() error {
	conns := make([]net.Conn, *loadConns)
	for i := range conns {
		nc, err := net.Dial("tcp", *loadAddr)
		if err != nil {
			return err
		}
		conns[i] = nc
		id := "bench" + strconv.Itoa(i)
		b := append([]byte{typeConnect << 4, byte(12 + len(id)), 0, 4, 'M', 'Q', 'T', 'T', 4, 2, 0, 0, 0, byte(len(id))}, id...)
		if _, err := nc.Write(b); err != nil {
			return err
		}
		var ack [4]byte
		if _, err := io.ReadFull(nc, ack[:]); err != nil {
			return err
		}
	}
	fmt.Println("connected")
	in := bufio.NewScanner(os.Stdin)
	in.Scan()
	start := time.Now()
	var left atomic.Int64
	left.Store(int64(*loadMsgs))
	var wg sync.WaitGroup
	if *loadMsgs == 0 {
		fmt.Println("idle")
		in.Scan()
	} else {
		for i, nc := range conns {
			wg.Go(func() { loadOne(nc, i, &left) })
		}
	}
	wg.Wait()
	fmt.Println("done", time.Since(start).Nanoseconds())
	in.Scan()
	return nil
}

func loadOne(nc net.Conn, i int, left *atomic.Int64) {
	topic := "d/bench" + strconv.Itoa(i) + "/t"
	m := message{topic: []byte(topic), payload: []byte(strings.Replace(benchBody, "urn:dev:bench", "bench"+strconv.Itoa(i)+"/", 1)), qos: 1}
	var ack [4]byte
	var b []byte
	pace := time.NewTimer(0)
	start := time.Now()
	for k := 0; left.Add(-1) >= 0; k++ {
		if *loadRate > 0 {
			due := time.Duration(k**loadConns+i) * time.Second / time.Duration(*loadRate)
			pace.Reset(time.Until(start.Add(due)))
			<-pace.C
		}
		m.id = m.id%65535 + 1
		b = appendPublish(b[:0], &m, false)
		if _, err := nc.Write(b); err != nil {
			fmt.Println(err)
			return
		}
		if _, err := io.ReadFull(nc, ack[:]); err != nil {
			fmt.Println(err)
			return
		}
	}
}

// pulse is an Ingestor that answers in batches, as a commit does.
type pulse struct {
	mu    sync.Mutex
	first *dunlin.Uplink
	last  *dunlin.Uplink
	every time.Duration
}

func (p *pulse) Ingest(first *dunlin.Uplink) {
	last := first
	for last.Next != nil {
		last = last.Next
	}
	p.mu.Lock()
	if p.last == nil {
		p.first = first
	} else {
		p.last.Next = first
	}
	p.last = last
	p.mu.Unlock()
}

func (p *pulse) run(ctx context.Context) {
	tick := time.NewTicker(p.every)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		p.mu.Lock()
		u := p.first
		p.first, p.last = nil, nil
		p.mu.Unlock()
		for u != nil {
			next := u.Next
			u.Next = nil
			u.Waiter.Done(u, dunlin.Receipt{Seq: 1})
			u = next
		}
	}
}

func cpu() time.Duration {
	var r unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &r); err != nil {
		panic(err)
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// child starts the clients and waits until they are connected.
func child(b *testing.B, addr string, args ...string) (step func() string) {
	cmd := exec.Command(os.Args[0], append([]string{"-mqtt.load", addr}, args...)...)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		b.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { in.Close(); cmd.Wait() })
	lines := bufio.NewScanner(out)
	read := func() string {
		if !lines.Scan() {
			b.Fatal("the clients ended")
		}
		return lines.Text()
	}
	if l := read(); l != "connected" {
		b.Fatal(l)
	}
	return func() string {
		fmt.Fprintln(in)
		return read()
	}
}

// BenchmarkPublish: 1,000 connections, one QoS 1 PUBLISH in flight each, commits every 1.5 ms, as fast
// as that goes and at 5,000 a second. The bare server reads and
// answers four bytes from a goroutine a connection, and does nothing else: what the sockets alone cost in plain Go.
func BenchmarkPublish(b *testing.B) {
	for _, rate := range []int{0, 5000} {
		name := fmt.Sprintf("/rate=%d", rate)
		b.Run("server=epoll"+name, func(b *testing.B) { benchGateway(b, Config{}, rate) })
		b.Run("server=portable"+name, func(b *testing.B) { benchGateway(b, Config{Portable: true}, rate) })
		b.Run("server=bare-go"+name, func(b *testing.B) { benchBare(b, rate) })
	}
}

func benchGateway(b *testing.B, cfg Config, rate int) {
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	p := &pulse{every: 1500 * time.Microsecond}
	go p.run(ctx)
	g := serve(b, cfg, Deps{Ingestor: p})
	measure(b, g.Addr().String(), rate)
}

func benchBare(b *testing.B, rate int) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { bare(nc) })
		}
	})
	b.Cleanup(func() { l.Close(); wg.Wait() })
	measure(b, l.Addr().String(), rate)
}

func bare(nc net.Conn) {
	defer nc.Close()
	buf := make([]byte, 1024)
	for {
		n, err := nc.Read(buf)
		if err != nil {
			return
		}
		ack := []byte{typeConnack << 4, 2, 0, 0}
		if buf[0]>>4 == typePublish {
			f, _, _ := nextFrame(buf[:n], 1024)
			var p publish
			p.parse(f, false)
			ack = []byte{typePuback << 4, 2, byte(p.id >> 8), byte(p.id)}
		}
		nc.Write(ack)
	}
}

func measure(b *testing.B, addr string, rate int) {
	step := child(b, addr, "-mqtt.msgs", strconv.Itoa(b.N), "-mqtt.rate", strconv.Itoa(rate))
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	spent := cpu()
	b.ResetTimer()
	line := step()
	b.StopTimer()
	spent = cpu() - spent
	runtime.ReadMemStats(&after)
	ns, err := strconv.ParseInt(strings.TrimPrefix(line, "done "), 10, 64)
	if err != nil {
		b.Fatal(line)
	}
	b.ReportMetric(spent.Seconds()*1e5/float64(b.N), "cpu-s/100k")
	b.ReportMetric(float64(b.N)/time.Duration(ns).Seconds(), "acked/s")
	b.ReportMetric(float64(after.Mallocs-before.Mallocs)/float64(b.N), "allocs/msg")
}

// BenchmarkIdle: what an idle connection costs this process, kernel buffers aside.
func BenchmarkIdle(b *testing.B) {
	for _, portable := range []bool{false, true} {
		b.Run(fmt.Sprintf("portable=%v", portable), func(b *testing.B) {
			const n = 5000
			g := serve(b, Config{Portable: portable}, Deps{Ingestor: &shelf{}})
			runtime.GC()
			rss, used := resident(b), inUse()
			step := child(b, g.Addr().String(), "-mqtt.conns", strconv.Itoa(n))
			for b.Loop() {
				step()
			}
			runtime.GC()
			runtime.GC()
			b.ReportMetric(float64(resident(b)-rss)/n, "RSS-B/conn")
			b.ReportMetric(float64(inUse()-used)/n, "heap+stack-B/conn")
		})
	}
}

func inUse() int64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapInuse + m.StackInuse)
}

func resident(b *testing.B) int64 {
	data, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		b.Skip("needs /proc")
	}
	pages, _ := strconv.ParseInt(strings.Fields(string(data))[1], 10, 64)
	return pages * int64(os.Getpagesize())
}
