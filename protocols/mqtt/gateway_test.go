package mqtt

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	mochi "github.com/mochi-mqtt/server/v2/packets"

	"github.com/dunlin-iot/dunlin"
)

// wires runs a story over each kind of wire.
func wires(t *testing.T, story func(t *testing.T, cfg Config)) {
	for _, portable := range []bool{false, true} {
		t.Run(fmt.Sprintf("portable=%v", portable), func(t *testing.T) { story(t, Config{Portable: portable}) })
	}
}

// TestAckOrder: commits come in the opposite order, acks leave in the order of the publishes, and the last 60 in few writes.
func TestAckOrder(t *testing.T) {
	wires(t, func(t *testing.T, cfg Config) {
		s := &shelf{}
		g := serve(t, cfg, Deps{Ingestor: s})
		for _, v5 := range []bool{false, true} {
			c := dial(t, g, v5)
			c.connect("c1")
			var pks []*mochi.Packet
			for i := range 60 {
				pks = append(pks, c.publishPacket("d/d1/t", 1, uint16(i+1), "1"))
			}
			c.send(pks...)
			eventually(t, "60 uplinks", func() bool { return s.count() == 60 })
			next := dunlin.Time(1 << 62)
			for i := range 60 {
				u := s.take(59 - i)
				if u.Received >= next { // then of two readings without a time one is lost
					t.Errorf("publishes %d and %d were received at %v and %v", 59-i, 60-i, u.Received, next)
				}
				next = u.Received
				s.answer(u, nil)
			}
			for i := range 60 {
				if pk := c.expect(typePuback); int(pk.PacketID) != i+1 {
					t.Fatalf("ack %d is of packet %d", i+1, pk.PacketID)
				}
			}
		}
	})
}

// TestManyInFlight: a 3.1.1 client knows no Receive Maximum; what is above ours waits in its socket.
func TestManyInFlight(t *testing.T) {
	wires(t, func(t *testing.T, cfg Config) {
		s := &shelf{}
		g := serve(t, cfg, Deps{Ingestor: s})
		c := dial(t, g, false)
		c.connect("c1")
		const n = 2000
		go func() {
			var b []byte
			for i := range n {
				b = append(b, bytesOf(c.publishPacket("d/d1/t", 1, uint16(i+1), strings.Repeat(" ", 400)+"1"))...)
			}
			c.nc.Write(b)
		}()
		next := 1
		for next <= n {
			for u := s.take(0); u != nil; u = s.take(0) {
				if waiting := s.count(); waiting > g.cfg.ringMax() {
					t.Fatalf("%d uplinks in flight, want at most %d", waiting, g.cfg.ringMax())
				}
				s.answer(u, nil)
			}
			c.nc.SetReadDeadline(time.Now().Add(time.Millisecond))
			var buf [4096]byte
			k, _ := c.nc.Read(buf[:])
			for b := buf[:k]; len(b) >= 4; b = b[4:] { // acks are written whole
				if id := int(b[2])<<8 | int(b[3]); id != next {
					t.Fatalf("ack of %d, want %d", id, next)
				}
				next++
			}
		}
	})
}

// TestTakeOver: the old connection is told, closed and fenced; its publishes that commit later are acked to nobody.
func TestTakeOver(t *testing.T) {
	wires(t, func(t *testing.T, cfg Config) {
		s := &shelf{}
		j := newJournal(2)
		g := serve(t, cfg, Deps{Ingestor: s, Feed: j})
		keep := func(pk *mochi.Packet) {
			pk.Connect.Clean = false
			pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = 60, true
		}
		old := dial(t, g, true)
		old.connect("c1", keep)
		old.subscribe(1, mochi.Subscription{Filter: "d/+/t", Qos: 1})
		j.add(reading("d1", 1, "v", 1))
		old.expect(typePublish)
		old.publish("d/d1/t", 1, 9, "1")
		eventually(t, "the uplink", func() bool { return s.count() == 1 })

		young := dial(t, g, true)
		if pk := young.connect("c1", keep); !pk.SessionPresent {
			t.Error("no session present")
		}
		if pk := old.expect(typeDisconnect); pk.ReasonCode != codeTakenOver {
			t.Errorf("got DISCONNECT 0x%02X, want 0x8E", pk.ReasonCode)
		}
		s.answer(s.take(0), nil)
		ack := old.packet(typePuback)
		ack.PacketID = 1
		old.nc.Write(bytesOf(ack)) // too late
		old.gone()
		if pk := young.expect(typePublish); !pk.FixedHeader.Dup || pk.PacketID != 1 {
			t.Errorf("got %+v, want packet 1 again with DUP", pk.FixedHeader)
		}
		young.send(young.packet(typePingreq))
		young.expect(typePingresp) // and no ack for packet 9 before it
	})
}

// TestReceiveMaximum: with a Receive Maximum of 2 all of 50 messages come, never more than two unacknowledged.
func TestReceiveMaximum(t *testing.T) {
	wires(t, func(t *testing.T, cfg Config) {
		j := newJournal(4)
		g := serve(t, cfg, Deps{Ingestor: &shelf{}, Feed: j})
		c := dial(t, g, true)
		c.connect("c1", func(pk *mochi.Packet) { pk.Properties.ReceiveMaximum = 2 })
		c.subscribe(1, mochi.Subscription{Filter: "#", Qos: 1})
		for i := range 50 {
			j.add(reading("d1", uint64(i+1), "v", float64(i)))
		}
		var open []uint16
		for got := 0; got < 50; {
			pk := c.expect(typePublish)
			if want := fmt.Sprintf(`"v":%d}]`, got); !strings.HasSuffix(string(pk.Payload), want) {
				t.Fatalf("message %d is %s", got, pk.Payload)
			}
			got++
			open = append(open, pk.PacketID)
			if len(open) == 2 {
				c.send(c.packet(typePingreq))
				c.expect(typePingresp) // nothing else came
				c.puback(open[got%2])
				c.puback(open[1-got%2])
				open = nil
			}
		}
	})
}

// TestSlowSubscriber: 20,000 messages to a subscriber that reads and acknowledges slowly, breaks off twice and comes back:
// all arrive, in order but for repetitions, and the gateway never holds more than its window.
func TestSlowSubscriber(t *testing.T) {
	wires(t, func(t *testing.T, cfg Config) {
		const n = 20_000
		j := newJournal(1)
		cfg.WindowMax = 64
		g := serve(t, cfg, Deps{Ingestor: &shelf{}, Feed: j})
		keep := func(pk *mochi.Packet) { pk.Connect.Clean = false }
		c := dial(t, g, false)
		c.connect("c1", keep)
		c.subscribe(1, mochi.Subscription{Filter: "d/+/t", Qos: 1})
		for i := 0; i < n; i += 10 { // entries of ten
			var changes []dunlin.Change
			for k := range 10 {
				changes = append(changes, reading("d1", uint64(i+k+1), "v", float64(i+k)))
			}
			j.add(changes...)
		}
		next, dups, breaks := 0, 0, []int{5_000, 12_345}
		var acks []byte
		for next < n {
			pk := c.expect(typePublish)
			var v int
			if _, err := fmt.Sscanf(string(pk.Payload), `[{"bn":"d1/","bt":1700000000,"n":"v","v":%d}]`, &v); err != nil {
				t.Fatalf("%s: %v", pk.Payload, err)
			}
			switch {
			case v == next:
				next++
			case v < next && pk.FixedHeader.Dup:
				dups++
			default:
				t.Fatalf("got message %d (DUP %v), want %d", v, pk.FixedHeader.Dup, next)
			}
			acks = append(acks, typePuback<<4, 2, byte(pk.PacketID>>8), byte(pk.PacketID))
			if len(acks) >= 4*40 { // in bursts
				c.raw(acks)
				acks = acks[:0]
			}
			if len(breaks) > 0 && next == breaks[0] {
				breaks = breaks[1:]
				bounded(t, g)
				c.nc.Close()
				acks = nil
				c = dial(t, g, false)
				if pk := c.connect("c1", keep); !pk.SessionPresent {
					t.Fatal("no session present")
				}
			}
		}
		if dups > 4*64 {
			t.Errorf("%d repetitions, want at most the windows", dups)
		}
	})
}

// bounded checks that no session holds more than its window.
func bounded(t *testing.T, g *Gateway) {
	t.Helper()
	for _, c := range g.snapshot() {
		c.mu.Lock()
		s, n := c.mu.m.sess, len(c.mu.out)
		c.mu.Unlock()
		if n > 2*outMax {
			t.Errorf("%d bytes wait for the socket, want at most %d", n, 2*outMax)
		}
		if s == nil {
			continue
		}
		s.mu.Lock()
		if s.mu.flow != nil && s.mu.flow.box.n > g.cfg.WindowMax {
			t.Errorf("%d messages in the window, want at most %d", s.mu.flow.box.n, g.cfg.WindowMax)
		}
		s.mu.Unlock()
	}
}

// TestDeafSubscriber: one that reads nothing at all delays no one else and is cut off in the end; its session loses nothing.
func TestDeafSubscriber(t *testing.T) {
	wires(t, func(t *testing.T, cfg Config) {
		cfg.WriteTimeout = 300 * time.Millisecond
		cfg.WindowMax = 4096
		s := &shelf{auto: true}
		j := newJournal(1)
		s.log = j
		g := serve(t, cfg, Deps{Ingestor: s, Feed: j})
		deaf := dial(t, g, false)
		deaf.nc.(*net.TCPConn).SetReadBuffer(4 << 10)
		deaf.connect("deaf", func(pk *mochi.Packet) { pk.Connect.Clean = false })
		deaf.subscribe(1, mochi.Subscription{Filter: "#", Qos: 0})
		c := dial(t, g, false)
		c.connect("c1")
		body := `{"text":"` + strings.Repeat("x", 4000) + `"}`
		blocked := func() bool {
			for _, c := range g.snapshot() {
				c.mu.Lock()
				b := c.mu.blocked
				c.mu.Unlock()
				if b {
					return true
				}
			}
			return false
		}
		for i := 0; g.stats.open.Load() == 2; i++ {
			c.publish("d/d1/t", 1, uint16(i%65535+1), body)
			start := time.Now()
			c.expect(typePuback)
			if d := time.Since(start); d > 200*time.Millisecond && blocked() {
				t.Logf("an ack took %v", d)
			}
		}
		bounded(t, g)
	})
}

// TestHalfOpenFlood: silent connections displace each other, not those that log in.
func TestHalfOpenFlood(t *testing.T) {
	wires(t, func(t *testing.T, cfg Config) {
		cfg.HalfOpenMax = 8
		g := serve(t, cfg, Deps{Ingestor: &shelf{}})
		honest := dial(t, g, false)
		honest.connect("c1")
		var silent []*client
		for range 40 {
			silent = append(silent, dial(t, g, false))
			c := dial(t, g, false)
			c.connect("c2")
			c.nc.Close()
		}
		for _, c := range silent[:30] {
			c.gone()
		}
		honest.send(honest.packet(typePingreq))
		honest.expect(typePingresp)
	})
}

// TestSplitPackets: packets arrive byte by byte, many in one segment, and longer than the read buffer.
func TestSplitPackets(t *testing.T) {
	wires(t, func(t *testing.T, cfg Config) {
		s := &shelf{auto: true}
		g := serve(t, cfg, Deps{Ingestor: s})
		c := dial(t, g, true)
		for _, b := range bytesOf(c.connectPacket("c1")) {
			c.raw([]byte{b})
		}
		c.expect(typeConnack)
		big := c.publishPacket("d/d1/t/octets", 1, 1, strings.Repeat("x", 100_000))
		small := c.publishPacket("d/d1/t", 1, 2, "2")
		b := bytesOf(big)
		b = append(b, bytesOf(small)...)
		for len(b) > 0 {
			n := min(len(b), 30_001)
			c.raw(b[:n])
			b = b[n:]
		}
		for want := range uint16(2) {
			if pk := c.expect(typePuback); pk.PacketID != want+1 {
				t.Fatalf("ack of %d", pk.PacketID)
			}
		}
		eventually(t, "no bytes kept", func() bool { return g.inputBytes.Load() == 0 })
	})
}

// TestEndWithData: data and the end of the stream arrive together; both are seen at once.
func TestEndWithData(t *testing.T) {
	wires(t, func(t *testing.T, cfg Config) {
		s := &shelf{}
		g := serve(t, cfg, Deps{Ingestor: s})
		for i := range 50 {
			c := dial(t, g, false)
			c.connect(fmt.Sprint("c", i))
			c.publish("d/d1/t", 0, 0, "1")
			c.nc.Close()
		}
		eventually(t, "50 uplinks and no connection", func() bool { return s.count() == 50 && g.stats.open.Load() == 0 })
		if n := len(g.snapshot()); n > 0 {
			eventually(t, "all sockets closed", func() bool { return len(g.snapshot()) == 0 })
		}
	})
}

// TestClose: closing waits for the commits under way, says goodbye, and leaves nothing behind.
func TestClose(t *testing.T) {
	wires(t, func(t *testing.T, cfg Config) {
		s := &shelf{}
		j := newJournal(1)
		var c *client
		t.Run("serve", func(t *testing.T) {
			g := serve(t, cfg, Deps{Ingestor: s, Feed: j})
			nc, err := net.Dial("tcp", g.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			c = &client{t: t, nc: nc, v5: true, wait: 5 * time.Second}
			c.connect("c1")
			c.subscribe(1, mochi.Subscription{Filter: "#", Qos: 1})
			c.publish("d/d1/t", 1, 5, "1")
			eventually(t, "the uplink", func() bool { return s.count() == 1 })
			go func() {
				tick := time.NewTicker(time.Millisecond)
				defer tick.Stop()
				for !g.draining.Load() {
					<-tick.C
				}
				s.answer(s.take(0), nil)
			}()
		})
		defer c.nc.Close()
		if pk := c.expect(typePuback); pk.PacketID != 5 {
			t.Errorf("ack of %d", pk.PacketID)
		}
		if pk := c.expect(typeDisconnect); pk.ReasonCode != codeShuttingDown {
			t.Errorf("DISCONNECT 0x%02X", pk.ReasonCode)
		}
		c.gone()
	})
}

// TestHostileBytes: what no client sends is answered by the end of the connection, at the gateway's own choosing.
func TestHostileBytes(t *testing.T) {
	wires(t, func(t *testing.T, cfg Config) {
		g := serve(t, cfg, Deps{Ingestor: &shelf{}, Feed: newJournal(1)})
		connect := bytesOf((&client{v5: true}).connectPacket("c1"))
		for _, b := range [][]byte{
			{0}, {0xF0, 0}, {0x10, 0xFF, 0xFF, 0xFF, 0xFF}, {0x30, 0}, {0x82, 2, 0, 1}, {0xA2, 3, 0, 1, 0}, {0x40, 0}, {0x62, 1, 1}, {0xE0, 1, 0x80},
			{0x32, 6, 0, 1, 'a', 0, 1, 0x80}, {0x3B, 0x80, 0x80, 0x80, 0x01}, {0xC1, 0}, {0xC0, 1, 0}, bytes.Repeat([]byte{0xFF}, 100_000),
		} {
			for _, prefix := range [][]byte{nil, connect} {
				c := dial(t, g, true)
				c.nc.Write(slices.Concat(prefix, b, bytes.Repeat([]byte{0xF0, 0}, 50)))
				for {
					pk, err := c.next()
					var ne net.Error
					if errors.As(err, &ne) && ne.Timeout() {
						t.Errorf("% X leaves the connection open", b[:min(len(b), 8)])
					}
					if err != nil {
						break
					}
					if k := pk.FixedHeader.Type; k != typeConnack && k != typeDisconnect {
						t.Errorf("% X is answered with packet type %d", b[:min(len(b), 8)], k)
					}
				}
			}
		}
	})
}

// TestBrokenBeforeTheBeginning: a connection that ends between its SUBACK and the first read of the log leaves it to the next
// one to begin there; otherwise what came in between would be nobody's.
func TestBrokenBeforeTheBeginning(t *testing.T) {
	j := newJournal(1)
	g := serve(t, Config{}, Deps{Ingestor: &shelf{}, Feed: j})
	gone, next := &conn{g: g}, &conn{g: g}
	s := &session{g: g}
	s.mu.conn = next
	s.mu.subs = []subscription{{filter: filter{kinds: [newsKinds]bool{newsReadings: true}}, qos: 1}}
	s.mu.flow = &flow{wake: make(chan struct{}, 1), start: dunlin.Cursor{7}}
	w := &follower{g: g, c: gone, s: s, f: s.mu.flow, done: make(chan struct{})}
	w.run(t.Context())
	if err := (&follower{g: g, c: next, s: s, f: s.mu.flow}).place(t.Context()); err != nil || !slices.Equal(s.mu.flow.at.cur, dunlin.Cursor{7}) {
		t.Errorf("the next one begins at %v (%v), want 7", s.mu.flow.at.cur, err)
	}
}
