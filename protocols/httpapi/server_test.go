package httpapi

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/dunlin-iot/dunlin"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// serve runs a bed's gateway on a free port; the result stops it and gives what Serve returned.
func (b *bed) serve() (url string, stop func() error) {
	b.t.Helper()
	if err := b.g.Listen(); err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- b.g.Serve(ctx) }()
	return "http://" + b.g.Addr().String(), func() error {
		cancel()
		select {
		case err := <-done:
			return err
		case <-time.After(10 * time.Second):
			return fmt.Errorf("Serve does not return")
		}
	}
}

// TestServeEnds: open streams end at once, a request in work is answered, an idle connection is closed, and no goroutine
// is left (goleak looks at the end).
func TestServeEnds(t *testing.T) {
	b := newBed(t, func(c *Config) { c.DrainTimeout = 5 * time.Second })
	b.receipt = func(*dunlin.Uplink) (dunlin.Receipt, bool) { return dunlin.Receipt{}, false }
	url, stop := b.serve()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	if resp, err := client.Get(url + "/livez"); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	} else {
		resp.Body.Close()
	}
	events, err := client.Get(url + "/v1/events")
	if err != nil {
		t.Fatal(err)
	}
	defer events.Body.Close()
	answered := make(chan string, 1)
	go func() {
		resp, err := client.Post(url+"/v1/devices/d/t", "application/senml+json", strings.NewReader(`[{"n":"t","v":1}]`))
		if err != nil {
			answered <- err.Error()
			return
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		answered <- resp.Status + " " + string(body)
	}()
	for b.g.inFlight.Load() == 0 {
		select {
		case got := <-answered:
			t.Fatal(got)
		case <-time.After(time.Millisecond):
		}
	}
	stopped := make(chan error, 1)
	go func() { stopped <- stop() }()
	if _, err := io.ReadAll(events.Body); err != nil {
		t.Errorf("the stream ended with %v", err)
	}
	b.mu.Lock()
	u := b.held[0]
	b.mu.Unlock()
	u.Waiter.Done(u, dunlin.Receipt{Seq: 5})
	if got := <-answered; got != "200 OK {\"seq\":5,\"duplicate\":false}\n" {
		t.Errorf("the request in work got %s", got)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	if n := b.g.conns.Load(); n != 0 {
		t.Errorf("%d connections are left", n)
	}
}

// TestServeCutsWhatDrains too long: a commit that never comes holds the node up for DrainTimeout only.
func TestServeCutsWhatDrainsTooLong(t *testing.T) {
	b := newBed(t, func(c *Config) { c.DrainTimeout = 20 * time.Millisecond })
	b.receipt = func(*dunlin.Uplink) (dunlin.Receipt, bool) { return dunlin.Receipt{}, false }
	url, stop := b.serve()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	failed := make(chan error, 1)
	go func() {
		resp, err := client.Post(url+"/v1/devices/d/t", "application/senml+json", strings.NewReader(`[{"n":"t","v":1}]`))
		if err == nil {
			resp.Body.Close()
		}
		failed <- err
	}()
	for b.g.inFlight.Load() == 0 {
		<-time.After(time.Millisecond)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
	<-failed
}

// TestSlowBody: a client that sends its body a byte a minute gets 408, and its connection is closed.
func TestSlowBody(t *testing.T) {
	b := newBed(t, func(c *Config) { c.BodyTimeout = 30 * time.Millisecond })
	url, stop := b.serve()
	defer stop()
	for _, path := range []string{"POST /v1/devices/d/t", "POST /v1/ingest", "PUT /v1/devices/d"} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(conn, "%s HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/senml+json\r\nContent-Length: 100\r\n\r\n[", path)
		if err := conn.SetReadDeadline(time.Now().Add(5 * time.Second)); err != nil {
			t.Fatal(err)
		}
		all, err := io.ReadAll(conn)
		if err != nil || !strings.HasPrefix(string(all), "HTTP/1.1 408") {
			t.Errorf("%s: got %q, %v", path, all, err)
		}
		conn.Close()
	}
}

// TestStalledStream: a client that opens a stream and never reads is cut off by the write deadline.
func TestStalledStream(t *testing.T) {
	b := newBed(t, func(c *Config) { c.StreamTimeout = 50 * time.Millisecond })
	url, stop := b.serve()
	defer stop()
	big := change("d", 1, 1)
	big.Inputs[0].Records[0] = dunlin.Record{Metric: "t", Kind: dunlin.Text, Str: strings.Repeat("x", 1<<20)}
	for range 32 {
		b.feed.add(&dunlin.Entry{Shard: 0, Changes: []dunlin.Change{big}})
	}
	conn, err := net.Dial("tcp", strings.TrimPrefix(url, "http://"))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /v1/events?cursor=%s HTTP/1.1\r\nHost: localhost\r\n\r\n", dunlin.Cursor{1, 1, 1, 1})
	if _, err := bufio.NewReader(io.LimitReader(conn, 1000)).ReadString('\n'); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(5 * time.Second)
	for b.g.streams.Load() != 0 {
		if time.Now().After(deadline) {
			t.Fatal("the stream lives on")
		}
		<-time.After(time.Millisecond)
	}
}

func TestConnectionsAreBounded(t *testing.T) {
	b := newBed(t, func(c *Config) { c.ConnsMax = 1; c.Metrics = prometheus.NewRegistry() })
	url, stop := b.serve()
	defer stop()
	client := &http.Client{Transport: &http.Transport{}}
	defer client.CloseIdleConnections()
	first, err := client.Get(url + "/v1/events") // stays open
	if err != nil {
		t.Fatal(err)
	}
	defer first.Body.Close()
	if resp, err := client.Get(url + "/livez"); err == nil {
		resp.Body.Close()
		t.Error("a second connection was served")
	}
}

func TestPortTaken(t *testing.T) {
	b := newBed(t)
	_, stop := b.serve()
	defer stop()
	other := newBed(t, func(c *Config) { c.Addr = b.g.Addr().String() })
	if err := other.g.Listen(); err == nil || !strings.Contains(err.Error(), "address already in use") {
		t.Errorf("got %v", err)
	}
}

func TestMetrics(t *testing.T) {
	reg := prometheus.NewRegistry()
	b := newBed(t, func(c *Config) { c.Metrics = reg })
	b.want(b.do("GET", "/livez", ""), 200)
	b.want(b.do("GET", "/v1/devices/none", ""), 404)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.GetMetric() {
			if f.GetName() == "dunlin_http_requests_total" && m.GetCounter().GetValue() > 0 {
				labels := ""
				for _, l := range m.GetLabel() {
					labels += l.GetValue() + " "
				}
				got[labels] = m.GetCounter().GetValue()
			}
		}
	}
	if len(got) != 2 || got["2xx GET /livez "] != 1 || got["4xx GET /v1/devices/{id} "] != 1 {
		t.Errorf("got %v", got)
	}
	if _, err := New(Config{Metrics: reg}, b.g.deps); err == nil {
		t.Error("a second gateway on one registry is no error")
	}
}

// TestCurl does with curl what the index page says.
func TestCurl(t *testing.T) {
	curl, err := exec.LookPath("curl")
	if err != nil {
		t.Skip("curl is not installed")
	}
	b := newBed(t)
	b.devices[key("fridge-1")] = dunlin.Device{Tenant: dunlin.DefaultTenant, ID: "fridge-1", Domain: "cold", Revision: 1}
	b.twins[key("fridge-1")] = dunlin.Twin{Device: "fridge-1", Version: 1, Commands: []dunlin.Command{{ID: "1-0", Name: "reboot", At: testNow, Deadline: testNow}}}
	url, stop := b.serve()
	run := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), curl, append([]string{"-sS", "--max-time", "5", "-w", " %{http_code}"}, args...)...).CombinedOutput()
		if err != nil && !strings.Contains(string(out), "timed out") {
			t.Errorf("curl %v: %v: %s", args, err, out)
		}
		return string(out)
	}
	for _, line := range indexLines(url)[:3] { // the fourth never ends
		out, err := exec.CommandContext(t.Context(), "sh", "-c", strings.Replace(line, "curl ", "curl -fsS --max-time 5 ", 1)).CombinedOutput()
		if err != nil {
			t.Errorf("%s: %v: %s", line, err, out)
		}
	}
	if got := run("-T", "api_test.go", "-H", "Content-Type: application/wasm", url+"/v1/plugins/p"); !strings.Contains(got, "bad-module") || !strings.HasSuffix(got, " 422") {
		t.Errorf("upload: %s", got)
	}
	if got := run("-d", `{"t":1}`, url+"/v1/devices/d/t"); !strings.HasSuffix(got, " 415") {
		t.Errorf("form: %s", got)
	}
	if got := run(url + "/v1/devices/fridge-1/c"); !strings.Contains(got, `"name":"reboot"`) || !strings.HasSuffix(got, " 200") {
		t.Errorf("commands: %s", got)
	}
	for _, body := range [][]string{{"-X", "POST"}, {"-H", "Content-Type: application/json", "-d", `{"done":true}`}} {
		if got := run(append(body, url+"/v1/devices/fridge-1/c/1-0")...); !strings.HasPrefix(got, `{"seq":`) || !strings.HasSuffix(got, " 200") {
			t.Errorf("answer %v: %s", body, got)
		}
	}
	if got := run("-H", "Host: evil.example", url+"/v1/devices"); !strings.HasSuffix(got, " 421") {
		t.Errorf("rebinding: %s", got)
	}
	b.feed.add(fullEntry(1))
	if got := run("-N", "--max-time", "0.5", url+"/v1/events?types=alert&cursor="+(dunlin.Cursor{1, 1, 1, 1}).String()); !strings.Contains(got, "event: alert") {
		t.Errorf("events: %s", got)
	}
	if err := stop(); err != nil {
		t.Error(err)
	}
}
