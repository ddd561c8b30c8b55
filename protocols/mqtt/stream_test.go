package mqtt

import (
	"slices"
	"testing"

	mochi "github.com/mochi-mqtt/server/v2/packets"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/payload"
)

func testDeps(s *shelf) Deps {
	return Deps{Ingestor: s, Auth: openAuth{}, Feed: newJournal(2), Decoder: payload.NewDecoder()}
}

// FuzzStream feeds a connection whatever comes, in pieces: it never panics, never keeps more than its bounds, answers
// only with packets that a client can decode, and is over after a fault.
func FuzzStream(f *testing.F) {
	for _, v5 := range []bool{false, true} {
		c := &client{v5: v5}
		connect := bytesOf(c.connectPacket("c1"))
		sub := c.packet(typeSubscribe)
		sub.PacketID, sub.Filters = 3, mochi.Subscriptions{{Filter: "d/+/t", Qos: 1}, {Filter: "x"}}
		will := bytesOf(c.connectPacket("c2", func(pk *mochi.Packet) {
			pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload = true, "d/d1/t", []byte("1")
			pk.Connect.UsernameFlag, pk.Connect.Username = true, []byte("u")
			pk.Connect.PasswordFlag, pk.Connect.Password = true, []byte("p")
		}))
		rel := c.packet(typePubrel)
		rel.PacketID = 9
		f.Add(slices.Concat(connect, bytesOf(c.publishPacket("d/d1/t", 1, 7, "21.5")), bytesOf(sub), bytesOf(c.packet(typePingreq))), byte(3), v5)
		f.Add(slices.Concat(will, bytesOf(c.publishPacket("d/d1/t", 2, 9, `{"a":1}`)), bytesOf(rel), bytesOf(c.packet(typeDisconnect))), byte(200), v5)
	}
	f.Fuzz(func(t *testing.T, data []byte, step byte, v5 bool) {
		s := &shelf{}
		g, c, w, tn := memConn(t, Config{PacketBytesMax: 4096}, testDeps(s))
		for len(data) > 0 {
			n := min(len(data), int(step)+1)
			feed(g, c, tn, data[:n:n])
			data = data[n:]
			if got := cap(c.mu.in); got > 3*4096 {
				t.Fatalf("keeps %d bytes", got)
			}
			if c.mu.m.ring.n > g.cfg.ringMax() {
				t.Fatalf("%d uplinks in flight", c.mu.m.ring.n)
			}
		}
		for s.count() > 0 {
			var err error
			if step%3 == 1 {
				err = dunlin.ErrForbidden
			}
			s.answer(s.take(0), err)
		}
		g.flushers[0].flush(tn)
		over := c.mu.m.phase == phaseOver
		c.mu.Lock()
		c.eofLocked(tn, nil)
		c.mu.Unlock()
		tn.ingest()
		g.work.Wait()
		if !over && !w.closed || c.mu.in != nil || g.inputBytes.Load() != 0 || g.half.n > 0 {
			t.Fatalf("closed %v, keeps %d bytes, %d counted, %d half open", w.closed, len(c.mu.in), g.inputBytes.Load(), g.half.n)
		}
		checkAnswers(t, w.sent, c.mu.m.v5)
	})
}

func checkAnswers(t *testing.T, b []byte, v5 bool) {
	for len(b) > 0 {
		fr, n, err := nextFrame(b, 1<<20)
		if err != nil || n == 0 {
			t.Fatalf("% X is no packet: %v", b, err)
		}
		if _, err := decodeServer(fr, v5); err != nil {
			t.Fatalf("% X: %v", b[:n], err)
		}
		b = b[n:]
	}
}

// TestPublishAllocs: a PUBLISH costs one allocation, its records, from the socket's bytes to the PUBACK's.
func TestPublishAllocs(t *testing.T) {
	s := &echo{}
	g, c, w, tn := memConn(t, Config{}, Deps{Ingestor: s, Auth: openAuth{}, Decoder: payload.NewDecoder()})
	cl := &client{}
	feed(g, c, tn, bytesOf(cl.connectPacket("c1")))
	b := bytesOf(cl.publishPacket("d/d1/t", 1, 7, benchBody[:0]+`[{"n":"a","v":1},{"n":"b","v":2}]`))
	n := testing.AllocsPerRun(1000, func() {
		w.sent = w.sent[:0]
		c.mu.Lock()
		c.inputLocked(tn, b)
		c.mu.Unlock()
		tn.ingest()
		g.flushers[0].flush(tn)
		if len(w.sent) != 4 {
			t.Fatalf("sent % X", w.sent)
		}
	})
	if n > 1 {
		t.Errorf("%v allocations a publish, want 1", n)
	}
}

// echo accepts everything at once.
type echo struct{}

func (*echo) Ingest(first *dunlin.Uplink) {
	for u := first; u != nil; {
		next := u.Next
		u.Next = nil
		u.Waiter.Done(u, dunlin.Receipt{Seq: 1})
		u = next
	}
}

func BenchmarkMachine(b *testing.B) {
	s := &echo{}
	g, c, w, tn := memConn(b, Config{}, Deps{Ingestor: s, Auth: openAuth{}, Decoder: payload.NewDecoder()})
	cl := &client{}
	feed(g, c, tn, bytesOf(cl.connectPacket("c1")))
	pk := bytesOf(cl.publishPacket("d/bench/t", 1, 7, benchBody))
	b.ReportAllocs()
	for b.Loop() {
		w.sent = w.sent[:0]
		c.mu.Lock()
		c.inputLocked(tn, pk)
		c.mu.Unlock()
		tn.ingest()
		g.flushers[0].flush(tn)
	}
}
