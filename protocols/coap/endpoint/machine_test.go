package endpoint

import (
	"bytes"
	"testing"
	"time"
	"unsafe"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/udp/coder"
	"pgregory.net/rapid"
)

// TestPeerBytes holds a peer to its budget of 0.5 KiB: its slot, its row in the index (a map of 44-byte rows at a load of
// at least 7/16), and what the gateway keeps beside (at most 64 bytes).
func TestPeerBytes(t *testing.T) {
	const beside = 64
	row := (unsafe.Sizeof(Addr{}) + 4 + 1) * 16 / 7
	if got := unsafe.Sizeof(peer{}) + row + beside; got > 512 {
		t.Errorf("a peer takes %d bytes, want at most 512", got)
	}
	if got := unsafe.Sizeof(seenMessage{}); got != 64 {
		t.Errorf("a message in the window takes %d bytes, want 64", got)
	}
}

// TestWheel: whatever is armed and disarmed, timers fire once, not early, at most a tick late, and next never sleeps
// past one.
func TestWheel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		w := newWheel()
		x := make([]exchange, 16)
		due := map[int32]time.Duration{}
		now := time.Duration(0)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			i := int32(rapid.IntRange(0, len(x)-1).Draw(t, "i"))
			switch rapid.IntRange(0, 3).Draw(t, "do") {
			case 0, 1:
				if _, ok := due[i]; ok {
					w.disarm(x, i)
				}
				due[i] = now + time.Duration(rapid.Int64Range(0, int64(200*time.Second)).Draw(t, "in"))
				w.arm(x, i, due[i])
			case 2:
				w.disarm(x, i)
				delete(due, i)
			case 3:
				to := now + time.Duration(rapid.Int64Range(0, int64(150*time.Second)).Draw(t, "by"))
				now = walk(t, &w, x, due, now, to)
			}
			if w.armed != len(due) {
				t.Fatalf("%d armed, want %d", w.armed, len(due))
			}
		}
		walk(t, &w, x, due, now, now+400*time.Second)
		if len(due) > 0 {
			t.Fatalf("never fired: %v", due)
		}
	})
}

// walk goes from now to the end, stopping where the wheel wants to be looked at.
func walk(t *rapid.T, w *wheel, x []exchange, due map[int32]time.Duration, now, end time.Duration) time.Duration {
	for now < end {
		next, ok := w.next()
		if !ok || next > end {
			now = end
		} else {
			now = max(next, now+time.Millisecond)
		}
		for i := w.expired(x, now); i >= 0; i = w.expired(x, now) {
			if at, ok := due[i]; !ok || at > now || now > at+wheelTick+time.Millisecond {
				t.Fatalf("timer %d due at %v fired at %v", i, at, now)
			}
			delete(due, i)
		}
	}
	return now
}

// TestPeersExpire: a flood of strangers doesn't grow the table beyond its bound, nor throw out who has proven itself as
// long as there are others; silence empties it.
func TestPeersExpire(t *testing.T) {
	m := New(Config{PeersMax: 64, ExchangesMax: 8})
	talk := func(now time.Duration, port uint16, prove bool) {
		from := addr("a")
		from.Port = port
		b := encode(t, message.Message{Code: codes.POST, MessageID: 1})
		r := m.Receive(now, &from, b, len(b))
		if r == nil {
			return
		}
		ref, ok := m.Begin(now, r, false)
		if !ok {
			t.Fatalf("no room for port %d", port)
		}
		if prove {
			m.Prove(m.PeerOf(ref))
		}
		m.Finish(now, ref, &Response{Code: codes.Changed})
		m.Sent()
	}
	for port := range uint16(8) {
		talk(0, port, true)
	}
	for port := range uint16(100) {
		talk(time.Second, 1000+port, false)
	}
	if n := len(m.peers.index); n != 64 {
		t.Errorf("%d peers, want 64", n)
	}
	for port := range uint16(8) {
		from := addr("a")
		from.Port = port
		if _, ok := m.peers.find(&from); !ok {
			t.Errorf("the proven peer at port %d is gone", port)
		}
	}
	for port := range uint16(200) {
		talk(time.Duration(port)*10*time.Second+ExchangeLifetime*2, port+5000, false)
	}
	if n := len(m.peers.index); n > 40 {
		t.Errorf("%d peers at one newcomer each 10 s, want about 25", n)
	}
}

// TestHashSurvivesRestart pins the identity of a message: a client that retransmits to a restarted node is recognised by
// its device's dedupe window only if the hash is the same.
func TestHashSurvivesRestart(t *testing.T) {
	a := addr("a")
	if got, want := hashOf(&a, []byte("hello")), uint64(0x4a252641010cb965); got != want {
		t.Errorf("hashOf = %#x, want %#x", got, want)
	}
}

// FuzzParse compares our reading of a datagram with go-coap's.
func FuzzParse(f *testing.F) {
	for _, m := range []message.Message{
		{Code: codes.POST, Token: []byte{1, 2}, MessageID: 7, Payload: []byte("x"), Options: message.Options{{ID: message.URIPath, Value: []byte("t")}}},
		{Type: message.Acknowledgement, MessageID: 9}, {Code: codes.GET, Options: message.Options{{ID: 65000, Value: make([]byte, 300)}}},
	} {
		f.Add(encode(f, m))
	}
	f.Add([]byte{0x40, 1, 0, 1, 0, 0xff})
	f.Fuzz(func(t *testing.T, b []byte) {
		var r Request
		v := r.parse(b, len(b))
		m := message.Message{Options: make(message.Options, 0, 2000)}
		_, err := coder.DefaultCoder.Decode(b, &m)
		switch {
		case v == wellFormed && r.Crowded:
		case v == wellFormed && err != nil:
			t.Fatalf("we accept %x, go-coap does not: %v", b, err)
		case v == wellFormed:
			if m.Code != r.Code || m.MessageID != int32(r.MID) || m.Type != r.Type || !bytes.Equal(m.Token, r.Token) || !bytes.Equal(m.Payload, r.Payload) {
				t.Fatalf("%x: we read %+v, go-coap %+v", b, r, m)
			}
		case err == nil && m.Code != codes.Empty && !bytes.HasSuffix(b, []byte{payloadMarker}):
			t.Fatalf("we refuse %x, go-coap does not", b)
		}
	})
}

// FuzzMachine plays datagrams to a machine: nothing panics, an answer is no longer than the question allows, and time
// cleans up.
func FuzzMachine(f *testing.F) {
	f.Add(encode(f, message.Message{Code: codes.POST, Token: []byte{1, 2}, MessageID: 7, Payload: []byte("x")}), uint8(3))
	f.Add([]byte{0x40, 0, 0, 1, 0x60, 0, 0, 1}, uint8(0))
	f.Fuzz(func(t *testing.T, b []byte, how uint8) {
		m := New(Config{Seed: 1, ExchangesMax: 4, PeersMax: 2, SeenMax: 4, PeerExchangesMax: 3})
		now := time.Duration(0)
		for len(b) > 0 {
			n := min(len(b), 4+int(b[0]&31))
			from := addr(string('a' + rune(b[0]&3)))
			if r := m.Receive(now, &from, b[:n:n], n); r != nil {
				if ref, ok := m.Begin(now, r, how&1 != 0); ok && how&2 != 0 {
					m.Finish(now, ref, &Response{Code: codes.Changed})
				} else if !ok {
					m.Reply(r, &Response{Code: codes.ServiceUnavailable})
				}
			}
			b = b[n:]
			now += time.Duration(how) * 10 * time.Millisecond
			m.Tick(now, 8)
			for _, d := range m.Output() {
				if len(d.B) > 4+tokenBytesMax {
					t.Fatalf("an answer without options and payload has %d bytes", len(d.B))
				}
			}
			m.Sent()
		}
		m.Tick(now+time.Hour, 1000)
		m.Sent()
	})
}
