package coap

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/dunlin-iot/dunlin"
)

// TestDuplicate: a retransmission gets the same bytes and reaches nobody; a message of a rebooted device with the same id
// does.
func TestDuplicate(t *testing.T) {
	r := &rooms{}
	cl := dial(t, serve(t, Config{Open: true}, r))
	m := post(device, "21.5")
	m.MessageID, m.Token = 7, []byte{1}
	b := encode(t, m)
	cl.write(b)
	first, _ := cl.read(5 * time.Second)
	cl.write(b)
	second, _ := cl.read(5 * time.Second)
	if !bytes.Equal(first, second) || len(first) == 0 {
		t.Errorf("answered with %x, then with %x", first, second)
	}
	m.Payload = []byte("22.5")
	cl.write(encode(t, m))
	if a := cl.must(); a.Code != codes.Changed {
		t.Errorf("got %s", show(a))
	}
	if n := len(r.got()); n != 2 {
		t.Errorf("%d uplinks, want 2", n)
	}
}

// TestSlowCommit: after a second the request is acknowledged, and its answer is a confirmable message of its own that is
// repeated until it is acknowledged.
func TestSlowCommit(t *testing.T) {
	t.Parallel()
	r := &rooms{receipt: func(string) *receipt { return &receipt{hold: true} }}
	g := serve(t, Config{Open: true}, r)
	cl := dial(t, g)
	m := post(device, "21.5")
	m.MessageID, m.Token = 7, []byte{1, 2}
	start := time.Now()
	cl.write(encode(t, m))
	ack := cl.must()
	if ack.Type != message.Acknowledgement || ack.Code != codes.Empty || ack.MessageID != 7 || len(ack.Token) > 0 {
		t.Errorf("got %s, want an empty ACK", show(ack))
	}
	if d := time.Since(start); d < 900*time.Millisecond || d > 2500*time.Millisecond {
		t.Errorf("the empty ACK came after %v, want about 1 s", d)
	}
	if r.commit() != 1 {
		t.Error("nothing was held")
	}
	con := cl.must()
	again := cl.must() // not acknowledged yet
	if con.Type != message.Confirmable || con.Code != codes.Changed || !bytes.Equal(con.Token, m.Token) || show(again) != show(con) || again.MessageID != con.MessageID {
		t.Errorf("got %s and %s, want a confirmable 2.04, twice", show(con), show(again))
	}
	cl.write([]byte{0x60, 0, byte(con.MessageID >> 8), byte(con.MessageID)})
	cl.quiet()
	if st, _ := g.stats(); st.Unacked != 0 || st.Acked != 1 || st.Pending != 0 {
		t.Errorf("after the ACK: %+v", st)
	}
}

// TestLogin is the table of who may do what on a node that is not open.
func TestLogin(t *testing.T) {
	var log bytes.Buffer
	r := &rooms{
		secrets: map[string]dunlin.Principal{
			"fridge:s3cret": {Kind: dunlin.PrincipalDevice, Tenant: "default", ID: "fridge"},
			":tok3n":        {Kind: dunlin.PrincipalDevice, Tenant: "default", ID: "fridge"},
			"gw:gwpass":     {Kind: dunlin.PrincipalGateway, Tenant: "default", ID: "gw"},
			"app:viewer":    {Kind: dunlin.PrincipalApplication, Tenant: "default", ID: "app"},
		},
		twins: map[dunlin.DeviceID]*dunlin.Twin{"fridge": {Device: "fridge"}, "oven": {Device: "oven"}},
	}
	g := serve(t, Config{Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))}, r)
	for _, c := range []struct {
		name string
		ask  message.Message
		want codes.Code
	}{
		{"no credential", post(device, "1"), code(4, 1)},
		{"an empty one", post(device, "1", message.Option{ID: message.URIQuery, Value: []byte("k=")}), code(4, 1)},
		{"a wrong one", post("d/fridge/t?k=guess", "1"), code(4, 1)},
		{"another device's", post("d/oven/t?k=s3cret", "1"), code(4, 1)},
		{"its own", post("d/fridge/t?k=s3cret", "1"), code(2, 4)},
		{"its own, for another", post("d/oven/t?u=fridge&k=s3cret", "1"), code(4, 3)},
		{"the short path", post("t?k=tok3n", "1"), code(2, 4)},
		{"the short path with a name", post("t?u=fridge&k=s3cret", "1"), code(2, 4)},
		{"a gateway's", post("d/oven/t?u=gw&k=gwpass", "1"), code(2, 4)},
		{"a gateway has no short path", post("t?u=gw&k=gwpass", "1"), code(4, 1)},
		{"an application may not write", post("d/oven/t?u=app&k=viewer", "1"), code(4, 3)},
		{"bad payload behind a login", post("d/fridge/t?k=s3cret", "[", senml), code(4, 0)},
		{"twin without credential", get("d/fridge/s"), code(4, 1)},
		{"its own twin", get("d/fridge/s?k=s3cret"), code(2, 5)},
		{"its own twin, short", get("s?k=tok3n"), code(2, 5)},
		{"another's twin", get("d/oven/s?u=fridge&k=s3cret"), code(4, 3)},
		{"an application reads", get("d/oven/s?u=app&k=viewer"), code(2, 5)},
		{"but has no twin", get("s?u=app&k=viewer"), code(4, 1)},
		{"links need no credential", get(".well-known/core"), code(2, 5)},
		{"nor do errors", post("nowhere", "1"), code(4, 4)},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := dial(t, g)
			for range 2 { // the second one from the cache, if it was right
				if a := cl.ask(c.ask); a.Code != c.want {
					t.Errorf("got %s, want %d.%02d", show(a), c.want>>5, c.want&31)
				}
			}
		})
	}
	for _, u := range r.got() {
		if (u.Sender.ID == "gw") != (u.Input.Sender == "gw") {
			t.Errorf("uplink by %s has the sender %q", u.Sender.ID, u.Input.Sender)
		}
	}
	for _, secret := range []string{"s3cret", "tok3n", "gwpass", "viewer", "guess"} {
		if strings.Contains(log.String(), secret) {
			t.Errorf("the log has the secret %q", secret)
		}
	}
}

// TestLoginIsRemembered: a secret is checked once per endpoint, not per message, and who guesses must wait.
func TestLoginIsRemembered(t *testing.T) {
	r := &rooms{secrets: map[string]dunlin.Principal{"fridge:s3cret": {Kind: dunlin.PrincipalDevice, Tenant: "default", ID: "fridge"}}}
	g := serve(t, Config{}, r)
	cl := dial(t, g)
	for range 20 {
		if a := cl.ask(post("d/fridge/t?k=s3cret", "1")); a.Code != codes.Changed {
			t.Fatalf("got %s", show(a))
		}
	}
	if n := r.logins.Load(); n != 1 {
		t.Errorf("%d logins for 20 messages, want 1", n)
	}
	dial(t, g).ask(post("d/fridge/t?k=s3cret", "1"))
	if n := r.logins.Load(); n != 2 {
		t.Errorf("another endpoint made it %d logins, want 2", n)
	}
	thief := dial(t, g)
	var got []codes.Code
	for range 6 {
		got = append(got, thief.ask(post("d/fridge/t?k=guess", "1")).Code)
	}
	want := []codes.Code{code(4, 1), code(4, 1), code(4, 1), codes.TooManyRequests, codes.TooManyRequests, codes.TooManyRequests}
	if !slices.Equal(got, want) {
		t.Errorf("guesses were answered %v, want %v", got, want)
	}
	if n := r.logins.Load(); n != 5 {
		t.Errorf("%d logins, want 5", n)
	}
	if a := cl.ask(post("d/fridge/t?k=s3cret", "2")); a.Code != codes.Changed {
		t.Errorf("the device itself got %s", show(a))
	}
}

// TestStalledLogins: logins that hang take all workers and their queue; those who are known don't notice, the others are
// told to come again.
func TestStalledLogins(t *testing.T) {
	r := &rooms{secrets: map[string]dunlin.Principal{"fridge:s3cret": {Kind: dunlin.PrincipalDevice, Tenant: "default", ID: "fridge"}}}
	g := serve(t, Config{Workers: 2, JobsMax: 4, JobTimeout: 300 * time.Millisecond}, r)
	cl := dial(t, g)
	cl.ask(post("d/fridge/t?k=s3cret", "1"))
	stall := make(chan struct{})
	r.set(func() { r.stall = stall })
	defer close(stall)
	others := make([]*client, 12)
	for i := range others {
		others[i] = dial(t, g)
		others[i].write(encode(t, post("d/fridge/t?k=s3cret", "1")))
	}
	start := time.Now()
	if a := cl.ask(post("d/fridge/t?k=s3cret", "1")); a.Code != codes.Changed || time.Since(start) > 200*time.Millisecond {
		t.Errorf("got %s after %v", show(a), time.Since(start))
	}
	for _, o := range others {
		if a := o.must(); a.Code != codes.ServiceUnavailable || uintOption(a, message.MaxAge) < 1 {
			t.Errorf("got %s, want 5.03 with Max-Age", show(a))
		}
	}
}

// TestOverload: when all exchanges are taken the next request is told so, and room for one is enough again.
func TestOverload(t *testing.T) {
	r := &rooms{receipt: func(string) *receipt { return &receipt{hold: true} }}
	g := serve(t, Config{Open: true, Readers: 1, ExchangesMax: 4, PeerExchangesMax: 2}, r)
	greedy, modest := dial(t, g), dial(t, g)
	m := post(device, "1")
	for i := range 3 {
		m.MessageID = int32(i)
		greedy.write(encode(t, m))
	}
	if a := greedy.must(); a.Code != codes.ServiceUnavailable || a.MessageID != 2 || uintOption(a, message.MaxAge) != 1 {
		t.Errorf("the third of one endpoint got %s, want 5.03", show(a))
	}
	for i := range 2 {
		m.MessageID = int32(i)
		modest.write(encode(t, m))
	}
	modest.quiet()
	if a := dial(t, g).ask(post(device, "1")); a.Code != codes.ServiceUnavailable {
		t.Errorf("the fifth of all got %s, want 5.03", show(a))
	}
	if n := r.commit(); n != 4 {
		t.Errorf("%d committed, want 4", n)
	}
	for _, cl := range []*client{greedy, greedy, modest, modest} {
		if a := cl.must(); a.Code != codes.Changed {
			t.Errorf("got %s", show(a))
		}
	}
}

// TestHostilePeers: floods of junk, of duplicates, of wrong logins and of answers never acknowledged don't delay others.
func TestHostilePeers(t *testing.T) {
	if testing.Short() {
		t.Skip("takes two seconds")
	}
	r := &rooms{twins: map[dunlin.DeviceID]*dunlin.Twin{"fridge": {Device: "fridge"}}}
	g := serve(t, Config{Open: true}, r)
	var stop atomic.Bool
	var wg sync.WaitGroup
	for _, b := range [][]byte{
		encode(t, post(device, "1")), encode(t, get("d/fridge/s")), {0x40, 1, 0, 9, 0xff}, {0x40, 0, 0, 1},
		encode(t, post(device, strings.Repeat("[", 900), senml)),
	} {
		conn := dial(t, g).conn
		wg.Go(func() {
			for tick := time.Tick(2 * time.Millisecond); !stop.Load(); <-tick {
				for range 32 {
					_, _ = conn.Write(b)
				}
			}
		})
	}
	cl := dial(t, g)
	p99 := func(d time.Duration) time.Duration {
		var took []time.Duration
		for end := time.Now().Add(d); time.Now().Before(end); {
			start := time.Now()
			if a := cl.ask(post("d/modest/t", "1")); a.Code != codes.Changed {
				t.Fatalf("got %s", show(a))
			}
			took = append(took, time.Since(start))
		}
		slices.Sort(took)
		return took[len(took)*99/100]
	}
	flooded := p99(1200 * time.Millisecond)
	stop.Store(true)
	wg.Wait()
	// A machine that is busy with other things delays everything: then the flood may cost a multiple of that.
	if quiet := p99(300 * time.Millisecond); flooded > max(50*time.Millisecond, 5*quiet) {
		t.Errorf("p99 of the answers is %v, and %v without the floods; want under 50 ms", flooded, quiet)
	}
}

// TestDrain: what is in work when the gateway is told to end is answered; new requests are not taken.
func TestDrain(t *testing.T) {
	r := &rooms{receipt: func(string) *receipt { return &receipt{hold: true} }}
	g, stop := serveUntil(t, Config{Open: true, Readers: 1, DrainTimeout: 5 * time.Second}, r)
	cl, late := dial(t, g), dial(t, g)
	cl.write(encode(t, post(device, "1")))
	cl.quiet() // it has arrived
	done := make(chan struct{})
	go func() { stop(); close(done) }()
	for {
		m := post("d/late/t", "2")
		late.mid++
		m.MessageID = int32(late.mid)
		late.write(encode(t, m))
		if b, ok := late.read(20 * time.Millisecond); ok && decode(t, b).Code == codes.ServiceUnavailable {
			break
		}
	}
	r.commit()
	if a := cl.must(); a.Code != codes.Changed {
		t.Errorf("got %s", show(a))
	}
	<-done
}

// TestDrainEnds: an uplink that is never committed holds the gateway up for DrainTimeout and no longer, and its late
// receipt harms nobody.
func TestDrainEnds(t *testing.T) {
	r := &rooms{receipt: func(string) *receipt { return &receipt{hold: true} }}
	g, stop := serveUntil(t, Config{Open: true, DrainTimeout: 100 * time.Millisecond}, r)
	cl := dial(t, g)
	cl.write(encode(t, post(device, "1")))
	cl.quiet()
	start := time.Now()
	stop()
	if d := time.Since(start); d < 90*time.Millisecond || d > 2*time.Second {
		t.Errorf("Serve ended after %v, want about 100 ms", d)
	}
	r.commit()
}

// TestTakenPort: an address in use is an error, also if another gateway of the same user has it with SO_REUSEPORT.
func TestTakenPort(t *testing.T) {
	g := serve(t, Config{Open: true}, &rooms{})
	second, err := New(Config{Addr: g.Addr().String(), Open: true}, depsOf(&rooms{}))
	if err != nil {
		t.Fatal(err)
	}
	if err := second.Listen(); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("Listen on a gateway's port: %v, want EADDRINUSE", err)
	}
}

// TestWildcard: a node bound to all addresses answers from the one that was asked. A connected socket accepts no other.
func TestWildcard(t *testing.T) {
	for _, addr := range []string{":0", "0.0.0.0:0", "[::]:0"} {
		g := serve(t, Config{Open: true, Addr: addr}, &rooms{})
		_, port, _ := net.SplitHostPort(g.Addr().String())
		for _, host := range []string{"127.0.0.2", "127.0.0.1", "::1"} {
			if host == "::1" && (addr == "0.0.0.0:0" || !hasIPv6()) {
				continue
			}
			cl := dialAddr(t, net.JoinHostPort(host, port))
			if a := cl.ask(post(device, "1")); a.Code != codes.Changed {
				t.Errorf("%s at %s: got %s", host, addr, show(a))
			}
		}
	}
}

func hasIPv6() bool {
	c, err := net.ListenPacket("udp", "[::1]:0")
	if err == nil {
		_ = c.Close()
	}
	return err == nil
}

// TestMetrics: the counters are there and count.
func TestMetrics(t *testing.T) {
	reg := prometheus.NewPedanticRegistry()
	cl := dial(t, serve(t, Config{Open: true, Metrics: reg}, &rooms{}))
	cl.ask(post(device, "1"))
	cl.ask(post("nowhere", "1"))
	cl.quiet()
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, m := range f.Metric {
			name := f.GetName()
			for _, l := range m.Label {
				name += "/" + l.GetValue()
			}
			got[name] = m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	for name, want := range map[string]float64{"dunlin_coap_answers_total/2.04": 1, "dunlin_coap_answers_total/4.04": 1,
		"dunlin_coap_requests_total": 2, "dunlin_coap_pings_total": 1, "dunlin_coap_peers": 1} {
		if got[name] < want {
			t.Errorf("%s is %v, want at least %v", name, got[name], want)
		}
	}
}

// TestNew: what can't work is refused.
func TestNew(t *testing.T) {
	r := &rooms{}
	if _, err := New(Config{}, Deps{Ingestor: r, Inspector: r, Decoder: noDecoder{}}); !errors.Is(err, dunlin.ErrInvalid) {
		t.Errorf("a closed node without Auth: %v", err)
	}
	if _, err := New(Config{PayloadBytesMax: 70_000}, depsOf(r)); !errors.Is(err, dunlin.ErrInvalid) {
		t.Errorf("a payload that fits no datagram: %v", err)
	}
	if _, err := New(Config{Workers: -1}, depsOf(r)); !errors.Is(err, dunlin.ErrInvalid) {
		t.Errorf("negative workers: %v", err)
	}
	g, err := New(Config{Addr: "127.0.0.1:99999"}, depsOf(r))
	if err != nil {
		t.Fatal(err)
	}
	if err := g.Serve(context.Background()); err == nil {
		t.Error("Serve on an address that doesn't exist: no error")
	}
}
