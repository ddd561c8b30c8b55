package mqtt

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"
	"time"

	mochi "github.com/mochi-mqtt/server/v2/packets"

	"github.com/dunlin-iot/dunlin"
)

// A client that acknowledges, says DISCONNECT and is gone before its SUBACK, or before what was on its way to it, has said all that:
// nothing that it acknowledged comes again, its subscription stands, and its will is not said. The node learns of it by a write
// that fails, with all of this still in the socket.
func TestWhatWasSaidBeforeLeavingIsHeard(t *testing.T) {
	for _, portable := range []bool{false, true} {
		t.Run(fmt.Sprint("portable=", portable), func(t *testing.T) {
			j := newJournal(4)
			in := &shelf{auto: true}
			_, gs, ns := gateways(t, 2, Config{Portable: portable}, Deps{Ingestor: in, Feed: j})
			c := dial(t, gs[0], false)
			c.connect("app", func(pk *mochi.Packet) {
				pk.Connect.Clean, pk.Connect.WillFlag, pk.Connect.WillTopic, pk.Connect.WillPayload = false, true, "d/w/t", []byte("1")
			})
			c.subscribe(1, mochi.Subscription{Filter: "d/+/t", Qos: 1})
			for v := range 11 {
				j.add(reading("d1", uint64(v+1), "t", float64(v)))
			}
			var last bytes.Buffer
			again := c.packet(typeSubscribe)
			again.PacketID, again.Filters = 2, mochi.Subscriptions{{Filter: "d/other/a", Qos: 1}}
			last.Write(bytesOf(again))
			for range 10 {
				ack := c.packet(typePuback)
				ack.PacketID = c.expect(typePublish).PacketID
				last.Write(bytesOf(ack))
			}
			last.Write(bytesOf(c.packet(typeDisconnect)))
			eventually(t, "the eleventh is on its way", func() bool { return gs[0].stats.delivered.Load() == 11 })
			c.nc.SetReadDeadline(time.Now().Add(c.wait))
			if len(c.buf) == 0 { // it is in the client's socket, and stays there
				if _, err := c.nc.Read(make([]byte, 1)); err != nil {
					t.Fatal(err)
				}
			}

			unlock := sync.OnceFunc(ns[0].lock.Unlock)
			defer unlock()
			ns[0].lock.Lock() // the SUBACK waits, and nothing is read before it is out
			c.raw(last.Bytes())
			eventually(t, "the second SUBSCRIBE is there", func() bool { return busy(gs[0]) })
			c.nc.(*net.TCPConn).SetLinger(0) // no FIN, but a reset: as with bytes unread
			c.nc.Close()
			unlock()
			eventually(t, "the connection has ended", func() bool { return gs[0].stats.open.Load() == 0 })

			c = dial(t, gs[1], false)
			if ack := c.connect("app", func(pk *mochi.Packet) { pk.Connect.Clean = false }); !ack.SessionPresent {
				t.Error("the session is not present")
			}
			j.add(reading("other", 1, "t", 1)) // shows that nothing comes before it
			for i, want := range []struct {
				topic string
				dup   bool
			}{{"d/d1/t", true}, {"d/other/t", false}} {
				if pk := c.expect(typePublish); pk.TopicName != want.topic || pk.FixedHeader.Dup != want.dup || pk.PacketID != uint16(11+i) {
					t.Errorf("message %d: %s %s, dup %v", pk.PacketID, pk.TopicName, pk.Payload, pk.FixedHeader.Dup)
				}
			}
			key := sessionKey{dunlin.DefaultTenant, dunlin.PrincipalOpen, "", "app"}
			gs[1].sessions.mu.Lock()
			s := gs[1].sessions.mu.byKey[key]
			gs[1].sessions.mu.Unlock()
			s.mu.Lock()
			if len(s.mu.subs) != 2 {
				t.Errorf("subscriptions %+v", s.mu.subs)
			}
			s.mu.Unlock()
			if said := in.lines(); len(said) > 0 {
				t.Errorf("the will was said: %q", said)
			}
		})
	}
}

// busy reports whether a connection waits for a chore.
func busy(g *Gateway) bool {
	for _, c := range g.snapshot() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if c.mu.m.busy {
			return true
		}
	}
	return false
}

// dumb is a socket that takes nothing.
type dumb struct {
	wire
	closed bool
}

var errDumb = errors.New("broken pipe")

func (d *dumb) write([]byte) (int, error) { return 0, errDumb }
func (d *dumb) resume()                   {}
func (d *dumb) remote() string            { return "nowhere" }
func (d *dumb) close()                    { d.closed = true }

// A peer that takes nothing is not heard for ever, nor without end.
func TestWhatIsHeardOfWhoLeftIsBounded(t *testing.T) {
	for _, endless := range []bool{false, true} {
		g := serve(t, Config{}, Deps{Ingestor: &shelf{auto: true}})
		dial(t, g, false).connect("somebody") // it serves
		w := &dumb{}
		c := &conn{g: g, fl: g.flushers[0], wire: w}
		c.timer.owner = c
		c.mu.m.cfg, c.mu.m.phase, c.mu.m.sess = &g.cfg, phaseOpen, &session{g: g}
		g.stats.open.Add(1)
		tn := g.newTurn(g.now())
		c.mu.Lock()
		ping := bytesOf((&client{}).packet(typePingreq))
		c.inputLocked(tn, ping)
		if c.mu.mute == 0 || w.closed {
			t.Fatal("a write that fails ends the connection at once")
		}
		if endless {
			for n := 0; n <= leftMax && !w.closed; n += 1 << 16 {
				c.inputLocked(tn, bytes.Repeat(ping, 1<<15))
			}
		} else {
			tn.now = tn.now.Add(lingerTime)
			c.checkLocked(tn)
		}
		if !w.closed || c.mu.m.phase != phaseOver {
			t.Errorf("endless %v: the connection goes on", endless)
		}
		c.mu.Unlock()
	}
}

// What comes behind a PUBLISH that was refused for now waits until that is offered again, also as long as nobody can say so to the
// client because an older one has no answer yet.
func TestNothingPassesWhatWasRefused(t *testing.T) {
	in := &shelf{}
	g := serve(t, Config{}, Deps{Ingestor: in})
	c := dial(t, g, false)
	c.connect("d1")
	c.publish("d/d1/t", 1, 1, "1")
	c.publish("d/d1/t", 1, 2, "2")
	eventually(t, "two are offered", func() bool { return in.count() == 2 })
	in.answer(in.take(1), dunlin.ErrUnavailable)
	c.send(c.publishPacket("d/d1/t", 1, 3, "3"), c.packet(typePingreq))
	c.expect(typePingresp)
	if n := in.count(); n != 1 {
		t.Errorf("%d are offered while the second waits, want the first alone", n)
	}
	in.answer(in.take(0), nil)
	for id := uint16(1); id <= 3; id++ {
		if id > 1 {
			eventually(t, "the next is offered", func() bool { return in.count() > 0 })
			in.answer(in.take(0), nil)
		}
		if ack := c.expect(typePuback); ack.PacketID != id {
			t.Errorf("PUBACK %d, want %d", ack.PacketID, id)
		}
	}
	want := []string{"uplink default/d1 id value=1", "uplink default/d1 id value=2", "uplink default/d1 may-repeat id value=2", "uplink default/d1 id value=3"}
	if got := in.lines(); !slices.Equal(got, want) {
		t.Errorf("offered %q", got)
	}
}
