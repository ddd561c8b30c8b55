package mqtt

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
)

// TestOutbox: against a plain list. Nothing is lost, sent twice on a connection, or sent beyond the Receive Maximum;
// what a connection leaves unacknowledged goes out first on the next, in order, with DUP.
func TestOutbox(t *testing.T) {
	type entry struct {
		id      uint16
		body    string
		sent    bool
		resumed bool
	}
	rapid.Check(t, func(t *rapid.T) {
		var o outbox
		o.lastID = rapid.SampledFrom([]uint16{0, 65530}).Draw(t, "lastID")
		var model []entry // not acknowledged
		receiveMax := rapid.IntRange(1, 6).Draw(t, "receiveMax")
		count := 0
		open := func() (n int) {
			for _, e := range model {
				if e.sent {
					n++
				}
			}
			return n
		}
		pump := func() {
			for it := o.next(receiveMax); it != nil; it = o.next(receiveMax) {
				i := slices.IndexFunc(model, func(e entry) bool { return !e.sent })
				if i < 0 || model[i].id != it.id || model[i].body != string(it.buf) || it.dup != model[i].resumed {
					t.Fatalf("sends %d %q dup=%v out of %+v", it.id, it.buf, it.dup, model)
				}
				model[i].sent = true
				if open() > receiveMax {
					t.Fatalf("%d in flight, want at most %d", open(), receiveMax)
				}
			}
			if i := slices.IndexFunc(model, func(e entry) bool { return !e.sent }); i >= 0 && open() < receiveMax {
				t.Fatalf("%d waits, though only %d are in flight", model[i].id, open())
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"add": func(t *rapid.T) {
				if !o.room(receiveMax, 10, 1000) {
					t.Skip("full")
				}
				count++
				body := fmt.Sprint("t", count)
				o.add(&message{topic: []byte(body[:1]), payload: []byte(body[1:])})
				model = append(model, entry{id: o.lastID, body: body})
				pump()
			},
			"ack": func(t *rapid.T) {
				id := uint16((int(o.lastID) + 65535 - rapid.IntRange(-2, 12).Draw(t, "back")) % 65535)
				i := slices.IndexFunc(model, func(e entry) bool { return e.id == id })
				if got := o.ack(id); got != (i >= 0) {
					t.Fatalf("ack %d: %v, want %v", id, got, i >= 0)
				}
				if i >= 0 {
					model = slices.Delete(model, i, i+1)
				}
				pump()
			},
			"restart": func(t *rapid.T) {
				o.restart()
				receiveMax = rapid.IntRange(1, 6).Draw(t, "receiveMax")
				for i := range model {
					model[i].sent, model[i].resumed = false, true
				}
				pump()
			},
			"": func(t *rapid.T) {
				var want []uint16
				bytes := 0
				for _, e := range model {
					want = append(want, e.id)
				}
				for i := range o.n {
					bytes += len(o.at(i).buf)
				}
				if got := o.ids(); !slices.Equal(got, want) || o.bytes != bytes || o.n > 10 {
					t.Fatalf("holds %v (%d of %d bytes), want %v", got, o.bytes, bytes, want)
				}
			},
		})
	})
}

type alarm struct {
	name int
	rang *[]int
}

func (a *alarm) wake(dunlin.Time) { *a.rang = append(*a.rang, a.name) }

// TestWheel: every timer fires once, not early, and at most two ticks late, however time jumps.
func TestWheel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		now := dunlin.Time(1e15)
		w := newWheel(now)
		var rang []int
		timers := make([]timer, 6)
		due := make([]dunlin.Time, len(timers)) // 0: off
		for i := range timers {
			timers[i].owner = &alarm{i, &rang}
		}
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				i := rapid.IntRange(0, len(timers)-1).Draw(t, "i")
				at := now.Add(time.Duration(rapid.IntRange(-500, 400_000).Draw(t, "ms")) * time.Millisecond)
				if rapid.Bool().Draw(t, "earlier") {
					w.earlier(&timers[i], at)
					if due[i] == 0 || at < due[i] {
						due[i] = max(at, now) // what is due already can only ring now
					}
				} else {
					w.set(&timers[i], at)
					due[i] = max(at, now)
				}
			},
			"stop": func(t *rapid.T) {
				i := rapid.IntRange(0, len(timers)-1).Draw(t, "i")
				w.stop(&timers[i])
				due[i] = 0
			},
			"advance": func(t *rapid.T) {
				now = now.Add(time.Duration(rapid.SampledFrom([]int{1, 99, 100, 1000, 30_000, 500_000}).Draw(t, "ms")) * time.Millisecond)
				rang = rang[:0]
				w.advance(now)
				for _, i := range rang {
					if due[i] == 0 || due[i] > now {
						t.Fatalf("timer %d rings at %d, due %d", i, now, due[i])
					}
					due[i] = 0
				}
				for i, d := range due {
					if d != 0 && now.Sub(d) >= 2*wheelTick {
						t.Fatalf("timer %d is late: %v", i, now.Sub(d))
					}
				}
			},
		})
	})
}

// memWire is a socket that takes all bytes, or none.
type memWire struct {
	sent    []byte
	full    bool
	resumed int
	closed  bool
}

func (w *memWire) write(b []byte) (int, error) {
	if w.full {
		return 0, errBlocked
	}
	w.sent = append(w.sent, b...)
	return len(b), nil
}
func (w *memWire) resume()        { w.resumed++ }
func (w *memWire) shutdown()      {}
func (w *memWire) close()         { w.closed = true }
func (w *memWire) remote() string { return "memory" }

// bench makes a gateway without goroutines and an open connection over memory.
func memConn(t testing.TB, cfg Config, deps Deps) (*Gateway, *conn, *memWire, *turn) {
	g, err := New(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	g.life = t.Context()
	w := &memWire{}
	c := &conn{g: g, fl: g.flushers[0], wire: w}
	c.timer.owner = c
	c.mu.m.cfg = &g.cfg
	return g, c, w, g.newTurn(g.now())
}

// feed runs bytes and the logins that they ask for.
func feed(g *Gateway, c *conn, t *turn, b []byte) {
	c.mu.Lock()
	t.now = g.now()
	c.inputLocked(t, b)
	c.mu.Unlock()
	t.ingest()
	for len(g.logins) > 0 {
		q := <-g.logins
		g.login(g.life, t, q.c, q.r)
		t.ingest()
	}
	for range 3 {
		if !c.mu.paused {
			c.mu.Lock()
			c.inputLocked(t, nil)
			c.mu.Unlock()
			t.ingest()
		}
	}
}

// TestRing: uplinks are answered in any order and any way; answers leave in order, one for each, none twice.
func TestRing(t *testing.T) {
	rapid.Check(t, func(r *rapid.T) {
		s := &shelf{}
		g, c, w, tn := memConn(t, Config{}, testDeps(s))
		cl := &client{v5: true}
		feed(g, c, tn, bytesOf(cl.connectPacket("c1")))
		w.sent = nil
		sent, next := uint16(0), uint16(1)
		refused := map[uint16]bool{}
		r.Repeat(map[string]func(*rapid.T){
			"publish": func(r *rapid.T) {
				if int(sent-next)+1 >= g.cfg.ReceiveMax {
					r.Skip("enough")
				}
				sent++
				body := "1"
				if rapid.IntRange(0, 5).Draw(r, "bad") == 0 {
					body, refused[sent] = "bad", true
				}
				feed(g, c, tn, bytesOf(cl.publishPacket("d/d1/t", 1, sent, body)))
			},
			"answer": func(r *rapid.T) {
				if s.count() == 0 {
					r.Skip("nothing waits")
				}
				u := s.take(rapid.IntRange(0, s.count()-1).Draw(r, "i"))
				s.answer(u, rapid.SampledFrom([]error{nil, nil, nil, dunlin.ErrOverloaded, dunlin.ErrUnavailable}).Draw(r, "err"))
			},
			"flush": func(r *rapid.T) { g.flushers[0].flush(tn) },
			"retry": func(r *rapid.T) {
				c.mu.Lock()
				if c.mu.m.held && c.mu.m.retryAt != 0 {
					c.mu.m.retryAt = 1
				}
				c.mu.Unlock()
				c.queue()
				g.flushers[0].flush(tn)
				feed(g, c, tn, nil)
			},
			"": func(r *rapid.T) {
				for len(w.sent) > 0 {
					fr, n, _ := nextFrame(w.sent, 1<<20)
					id, code, err := parseAck(fr, true)
					if err != nil || fr.kind() != typePuback || id != next || (code != 0) != refused[id] {
						r.Fatalf("got packet %d of %d, code 0x%02X (%v), want an ack of %d", fr.kind(), id, code, err, next)
					}
					next++
					w.sent = w.sent[n:]
				}
			},
		})
		for range 200 { // in the end all are answered
			for s.count() > 0 {
				s.answer(s.take(0), nil)
			}
			c.mu.m.retryAt = min(c.mu.m.retryAt, 1)
			c.queue()
			g.flushers[0].flush(tn)
			feed(g, c, tn, nil)
			if c.mu.m.ring.n == 0 {
				return
			}
		}
		r.Fatalf("%d are never answered", c.mu.m.ring.n)
	})
}
