package coap

import (
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/coap/endpoint"
)

// deskReader is a reader without a socket: datagrams in, datagrams out, jobs done on the spot.
type deskReader struct {
	*reader
	jobs chan *job
}

func desk(cfg Config, r *rooms) *deskReader {
	cfg.Clock = func() dunlin.Time { return testNow }
	g, err := New(cfg, depsOf(r))
	if err != nil {
		panic(err)
	}
	rd := newReader(g, nil, 1, 1)
	return &deskReader{rd, g.jobs}
}

// play takes a datagram through the reader and returns what it would have sent.
func (d *deskReader) play(t testing.TB, from endpoint.Addr, b []byte) (out []endpoint.Datagram) {
	d.received = testNow
	if req := d.m.Receive(d.now, &from, b, len(b)); req != nil {
		d.handle(req)
	}
	d.handOver()
	d.drain()
	for len(d.jobs) > 0 {
		j := <-d.jobs
		d.g.do(t.Context(), j)
		d.push(j.call)
		d.drain()
	}
	d.m.Tick(d.now, 1000)
	for _, o := range d.m.Output() {
		out = append(out, endpoint.Datagram{To: o.To, B: append([]byte(nil), o.B...)})
	}
	d.m.Sent()
	return out
}

// stranger is an address that may be forged; loopback isn't.
func stranger(port uint16) endpoint.Addr {
	return endpoint.Addr{IP: [16]byte{10: 0xff, 11: 0xff, 12: 192, 14: 2, 15: 1}, Port: port}
}

// FuzzDatagram is the door itself: bytes from anyone. Nothing panics, nothing is left open, and who may be a forged
// address gets no more than three bytes for one (but the smallest block and header there is).
func FuzzDatagram(f *testing.F) {
	for _, m := range []message.Message{post(device, reading, senml), post("d/x/t?k=s3cret", "1"), get("d/fridge/s"), get("s?k=tok3n"),
		get(".well-known/core?rt=*"), get("d/fridge/s", option(message.Block2, 0x16), option(message.Accept, 60)),
		post(device, "1", option(message.Block1, 9)), get("d/fridge/s", option(message.ETag, 1, 2, 3)), post("d/x/t", "1", option(message.NoResponse, 26)),
		{Type: message.NonConfirmable, Code: 5, Token: []byte("12345678")}, {Type: message.Acknowledgement}} {
		f.Add(encode(f, m), true)
		f.Add(encode(f, m), false)
	}
	f.Fuzz(func(t *testing.T, b []byte, open bool) {
		r := &rooms{twins: map[dunlin.DeviceID]*dunlin.Twin{"fridge": fridge()}, secrets: map[string]dunlin.Principal{
			"x:s3cret": {Kind: dunlin.PrincipalDevice, ID: "x"}, ":tok3n": {Kind: dunlin.PrincipalDevice, ID: "fridge"}}}
		d := desk(Config{Open: open, SeenMax: 16, PeersMax: 4, ExchangesMax: 4}, r)
		for range 2 {
			for _, o := range d.play(t, stranger(1), b) {
				const smallest = 4 + 8 + 1 + 16 + 16 // header, token, marker, options, block
				if known := len(d.logins.known) > 0; !known && len(o.B) > max(3*len(b), smallest) {
					t.Errorf("%d bytes got %d: %x", len(b), len(o.B), o.B)
				}
				if len(o.B) > 1200 {
					t.Errorf("an answer of %d bytes", len(o.B))
				}
			}
		}
		if n := d.m.Pending(); n != 0 {
			t.Errorf("%d exchanges are left open by %x", n, b)
		}
	})
}

// TestAmplification: a stranger gets a twin in blocks that fit its budget; with a secret, or from this machine, at once.
func TestAmplification(t *testing.T) {
	r := &rooms{twins: map[dunlin.DeviceID]*dunlin.Twin{"fridge": fridge()},
		secrets: map[string]dunlin.Principal{"fridge:s3cret": {Kind: dunlin.PrincipalDevice, ID: "fridge"}}}
	ask := encode(t, get("d/fridge/s"))
	open := desk(Config{Open: true}, r)
	out := open.play(t, stranger(1), ask)
	if len(out) != 1 || len(out[0].B) > 3*len(ask) {
		t.Fatalf("a stranger asked with %d bytes and got %d", len(ask), len(out[0].B))
	}
	if a := decode(t, out[0].B); uintOption(a, message.Block2) != 8 { // more, size 16
		t.Errorf("got %s, want the first block of 16 bytes", show(a))
	}
	local := stranger(2)
	local.IP[12] = 127
	if a := decode(t, open.play(t, local, ask)[0].B); len(a.Payload) < 100 {
		t.Errorf("this machine got %s", show(a))
	}
	closed := desk(Config{}, r)
	if a := decode(t, closed.play(t, stranger(3), encode(t, get("d/fridge/s?k=s3cret")))[0].B); len(a.Payload) < 100 {
		t.Errorf("the device itself got %s", show(a))
	}
}

// TestNoAllocation: a reading costs no allocation of the gateway's own.
func TestNoAllocation(t *testing.T) {
	r := &counter{}
	d := desk(Config{Open: true, SeenMax: 1024}, &rooms{})
	d.g.deps.Ingestor, d.g.deps.Decoder = r, noDecoder{}
	b := encode(t, post(device, reading, senml))
	mid := uint16(0)
	from := stranger(1)
	once := func() {
		mid++
		b[2], b[3] = byte(mid>>8), byte(mid)
		d.handle(d.m.Receive(d.now, &from, b, len(b)))
		d.handOver()
		d.drain()
		d.m.Tick(d.now, outputMax)
		d.m.Sent()
	}
	for range 5000 {
		once()
	}
	if n := testing.AllocsPerRun(2000, once); n > 0 {
		t.Errorf("%v allocations per reading, want 0", n)
	}
	if r.n < 7000 {
		t.Errorf("%d uplinks", r.n)
	}
}

type counter struct{ n int }

func (c *counter) Ingest(first *dunlin.Uplink) {
	for u := first; u != nil; {
		next := u.Next
		c.n++
		u.Waiter.Done(u, dunlin.Receipt{})
		u = next
	}
}

// BenchmarkReading is the gateway's own part of a reading, without sockets: message layer, routing, decoding, answer.
func BenchmarkReading(b *testing.B) {
	d := desk(Config{Open: true}, &rooms{})
	d.g.deps.Ingestor = &counter{}
	m := encode(b, post("d/dev-00/t", `[{"bn":"dev-00/","bt":1700000000,"n":"temperature","u":"Cel","v":21.5},{"n":"humidity","u":"%RH","v":40.25},`+
		`{"n":"battery","u":"V","v":3.011},{"n":"rssi","u":"dBW","v":-71}]`, senml))
	from := stranger(1)
	mid := uint32(0)
	b.ReportAllocs()
	for b.Loop() {
		mid++
		m[2], m[3] = byte(mid>>8), byte(mid)
		if mid&0xffff == 0 {
			d.now += 300 * time.Second
		}
		d.handle(d.m.Receive(d.now, &from, m, len(m)))
		d.handOver()
		d.drain()
		d.m.Tick(d.now, outputMax)
		d.m.Sent()
	}
}
