package coap

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"go.uber.org/goleak"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/payload"
)

// The benchmark's clients run in a process of their own (this test binary again), so that the CPU time measured is the
// server's alone: go test ./protocols/coap -run '^$' -bench Server -benchtime 100000x
const clientEnv = "DUNLIN_COAP_BENCH_CLIENT"

func TestMain(m *testing.M) {
	if spec := os.Getenv(clientEnv); spec != "" {
		benchClient(spec)
		return
	}
	goleak.VerifyTestMain(m)
}

const benchPayload = `[{"bn":"dev-%02d/","bt":1700000000,"n":"temperature","u":"Cel","v":21.5},{"n":"humidity","u":"%%RH","v":40.25},` +
	`{"n":"battery","u":"V","v":3.011},{"n":"rssi","u":"dBW","v":-71}]`

// benchClient sends n confirmable requests from sockets sockets, one in flight each, and prints the latencies.
func benchClient(spec string) {
	f := strings.Fields(spec)
	addr, method := f[0], f[1]
	sockets, _ := strconv.Atoi(f[2])
	n, _ := strconv.Atoi(f[3])
	rate, _ := strconv.Atoi(f[4])
	lat := make([][]time.Duration, sockets)
	start := time.Now()
	var wg sync.WaitGroup
	for s := range sockets {
		wg.Go(func() {
			lat[s] = benchSocket(addr, method, s, n/sockets, time.Duration(sockets)*time.Second/time.Duration(max(rate, 1))*time.Duration(min(rate, 1)))
		})
	}
	wg.Wait()
	took := time.Since(start)
	all := slices.Concat(lat...)
	slices.Sort(all)
	_ = json.NewEncoder(os.Stdout).Encode(map[string]float64{
		"n": float64(len(all)), "s": took.Seconds(),
		"p50": all[len(all)/2].Seconds() * 1e6, "p99": all[len(all)*99/100].Seconds() * 1e6})
}

// benchSocket sends one request after another; with a pace, one each pace.
func benchSocket(addr, method string, s, n int, pace time.Duration) []time.Duration {
	conn, err := net.Dial("udp", addr)
	if err != nil {
		panic(err)
	}
	defer conn.Close()
	m := message.Message{Code: codes.POST, Token: []byte{1, 2, 3, 4}, Payload: fmt.Appendf(nil, benchPayload, s),
		Options: message.Options{{ID: message.URIPath, Value: []byte("d")},
			{ID: message.URIPath, Value: fmt.Appendf(nil, "dev-%02d", s)}, {ID: message.URIPath, Value: []byte("t")},
			{ID: message.ContentFormat, Value: []byte{110}}}}
	if method == "PUT" {
		m.Code = codes.PUT
	}
	buf := encode(nil, m)
	in := make([]byte, 2048)
	lat := make([]time.Duration, 0, n)
	var due <-chan time.Time
	if pace > 0 {
		due = time.Tick(pace)
	}
	for i := range n {
		if due != nil {
			<-due
		}
		binary.BigEndian.PutUint16(buf[2:], uint16(i))
		at := time.Now()
		for try := range 5 {
			_, _ = conn.Write(buf)
			_ = conn.SetReadDeadline(time.Now().Add(2 * time.Second << try))
			for {
				k, err := conn.Read(in)
				if err != nil {
					break
				}
				if k >= 4 && binary.BigEndian.Uint16(in[2:]) == uint16(i) && in[1] != 0 {
					if in[1]>>5 != 2 {
						panic(fmt.Sprintf("answer %d.%02d", in[1]>>5, in[1]&31))
					}
					goto next
				}
			}
		}
		panic("no answer")
	next:
		lat = append(lat, time.Since(at))
	}
	return lat
}

func cpuOf(who int) time.Duration {
	var u syscall.Rusage
	_ = syscall.Getrusage(who, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func runClient(b *testing.B, addr, method string, n, rate int) map[string]float64 {
	b.Helper()
	exe, err := os.Executable()
	if err != nil {
		b.Fatal(err)
	}
	cmd := exec.CommandContext(b.Context(), exe)
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s %s 64 %d %d", clientEnv, addr, method, n, rate))
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		b.Fatalf("client: %v", err)
	}
	var r map[string]float64
	if err := json.Unmarshal(out, &r); err != nil {
		b.Fatalf("client said %q: %v", out, err)
	}
	return r
}

func report(b *testing.B, r map[string]float64, cpu time.Duration) {
	b.ReportMetric(cpu.Seconds()/r["n"]*1e6, "µs-cpu/msg")
	b.ReportMetric(cpu.Seconds()/r["n"]*1e5, "cpu-s/100k")
	b.ReportMetric(r["n"]/r["s"], "msg/s")
	b.ReportMetric(r["p50"], "p50-µs")
	b.ReportMetric(r["p99"], "p99-µs")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkServer: 64 client sockets with one confirmable 180-byte SenML reading in flight each.
func BenchmarkServer(b *testing.B) {
	cases := []struct {
		name  string
		every time.Duration
		rate  int // 0: as fast as answers come
		dec   Decoder
	}{
		{"at-once/undecoded", 0, 0, noDecoder{}},
		{"at-once", 0, 0, payload.NewDecoder()},
		{"after-2ms", 2 * time.Millisecond, 0, payload.NewDecoder()},
		{"5000per-s/at-once/undecoded", 0, 5000, noDecoder{}},
		{"5000per-s/after-2ms", 2 * time.Millisecond, 5000, payload.NewDecoder()},
	}
	for _, c := range cases {
		b.Run(c.name, func(b *testing.B) {
			in := &batchIngestor{every: c.every}
			ctx, cancel := context.WithCancel(b.Context())
			var wg sync.WaitGroup
			if c.every > 0 {
				in.ready = make(chan struct{}, 1)
				wg.Go(func() { in.run(ctx) })
			}
			g, err := New(Config{Addr: "127.0.0.1:0", Open: true}, Deps{Ingestor: in, Inspector: noInspector{}, Decoder: c.dec})
			if err != nil {
				b.Fatal(err)
			}
			if err := g.Listen(); err != nil {
				b.Fatal(err)
			}
			wg.Go(func() { _ = g.Serve(ctx) })
			runClient(b, g.Addr().String(), "POST", 6400, 0) // warm up
			n := max(b.N, 640)
			before := cpuOf(syscall.RUSAGE_SELF)
			r := runClient(b, g.Addr().String(), "POST", n, c.rate)
			report(b, r, cpuOf(syscall.RUSAGE_SELF)-before)
			cancel()
			wg.Wait()
		})
	}
	b.Run("libcoap", func(b *testing.B) { benchLibcoap(b, 0) })
	b.Run("5000per-s/libcoap", func(b *testing.B) { benchLibcoap(b, 5000) })
}

// benchLibcoap measures libcoap's example server with the same clients: it keeps the last payload of each resource.
func benchLibcoap(b *testing.B, rate int) {
	path, err := exec.LookPath("coap-server-notls")
	if err != nil {
		b.Skip("coap-server-notls is not installed (Debian: libcoap3-bin)")
	}
	port := freePort(b)
	cmd := exec.CommandContext(b.Context(), path, "-A", "127.0.0.1", "-p", port, "-d", "100")
	var log bytes.Buffer
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	defer func() { _ = cmd.Process.Kill(); _ = cmd.Wait() }()
	addr := "127.0.0.1:" + port
	runClient(b, addr, "PUT", 640, 0)
	n := max(b.N, 640)
	before := cpuOfPid(b, cmd.Process.Pid)
	r := runClient(b, addr, "PUT", n, rate)
	report(b, r, cpuOfPid(b, cmd.Process.Pid)-before)
}

func freePort(b *testing.B) string {
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	_, port, _ := net.SplitHostPort(c.LocalAddr().String())
	return port
}

// cpuOfPid reads user and system time in ticks of 10 ms.
func cpuOfPid(b *testing.B, pid int) time.Duration {
	raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		b.Fatal(err)
	}
	f := strings.Fields(string(raw[bytes.LastIndexByte(raw, ')')+1:]))
	user, _ := strconv.Atoi(f[11])
	system, _ := strconv.Atoi(f[12])
	return time.Duration(user+system) * 10 * time.Millisecond
}

// batchIngestor commits at once, or everything that came within every together.
type batchIngestor struct {
	every time.Duration
	ready chan struct{}
	mu    struct {
		sync.Mutex
		first, last *dunlin.Uplink
	}
}

func (in *batchIngestor) Ingest(first *dunlin.Uplink) {
	if in.every == 0 {
		commit(first)
		return
	}
	last := first
	for last.Next != nil {
		last = last.Next
	}
	in.mu.Lock()
	if in.mu.first == nil {
		in.mu.first = first
	} else {
		in.mu.last.Next = first
	}
	in.mu.last = last
	in.mu.Unlock()
	select {
	case in.ready <- struct{}{}:
	default:
	}
}

func commit(first *dunlin.Uplink) {
	for u := first; u != nil; {
		next := u.Next
		u.Waiter.Done(u, dunlin.Receipt{Seq: 1})
		u = next
	}
}

func (in *batchIngestor) run(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-in.ready:
		}
		select {
		case <-ctx.Done():
		case <-time.After(in.every):
		}
		in.mu.Lock()
		first := in.mu.first
		in.mu.first, in.mu.last = nil, nil
		in.mu.Unlock()
		commit(first)
	}
}

type noDecoder struct{}

func (noDecoder) Take(u *dunlin.Uplink, body []byte) (*payload.Pack, error) {
	u.Kind = dunlin.InputRaw
	return nil, nil
}

type noInspector struct{ dunlin.Inspector }
