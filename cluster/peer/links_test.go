package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

func body(n int) []byte {
	b := make([]byte, n)
	r := rand.NewChaCha8([32]byte{byte(n)})
	_, _ = r.Read(b)
	return b
}

// send sends until it arrives: the first ones find no connection and are lost, as is Raft's way.
func send(t *testing.T, from, to *node, sh dunlin.ShardID, data []byte) {
	t.Helper()
	eventually(t, fmt.Sprintf("%s hears from %s", to.id, from.id), func() bool {
		if from.status(to.id).Connected {
			return true
		}
		from.Send([]Message{{To: uint64(to.id), Shard: sh, Data: []byte("knock")}})
		return false
	})
	from.Send([]Message{{To: uint64(to.id), Shard: sh, Data: data}})
	eventually(t, "the message arrives", func() bool {
		select {
		case m := <-to.got:
			return m.To == uint64(from.id) && m.Shard == sh && bytes.Equal(m.Data, data)
		default:
			return false
		}
	})
}

func TestThreeNodesTalk(t *testing.T) {
	lan := newLAN(t)
	nodes := []*node{lan.node(1), lan.node(2), lan.node(3)}
	for _, a := range nodes {
		for _, b := range nodes {
			if a == b {
				continue
			}
			send(t, a, b, 7, body(100))
			send(t, a, b, 65535, body(copyMax+1))
			send(t, a, b, 0, body(3<<20))
			for _, n := range []int{0, 1, inlineMax, inlineMax + 1, 1 << 20, BodyBytesMax} {
				got, err := a.Call(within(t, 10*time.Second), b.id, "echo", body(n))
				if err != nil || !bytes.Equal(got, body(n)) {
					t.Fatalf("echo of %d bytes from %s to %s: %d bytes, %v", n, a.id, b.id, len(got), err)
				}
			}
		}
	}
	for _, a := range nodes {
		eventually(t, "round trips measured", func() bool {
			for _, s := range a.Peers() {
				if s.RTT == 0 {
					return false
				}
			}
			return true
		})
		for _, s := range a.Peers() {
			if !s.Connected || s.Wire != 1 || s.Version != "1.0" || s.Problem != "" || s.RTT > 5*time.Second || s.Queue != 0 {
				t.Errorf("node %s sees %+v", a.id, s)
			}
		}
		if a.links() != 2 {
			t.Errorf("node %s has %d connections, want 2", a.id, a.links())
		}
	}
	if got, err := nodes[0].Call(t.Context(), 1, "echo", []byte("me")); err != nil || string(got) != "me" {
		t.Errorf("a node that calls itself: %q, %v", got, err)
	}
}

// A batch for several nodes keeps its order for each, with long and short messages mixed.
func TestMessagesKeepTheirOrder(t *testing.T) {
	lan := newLAN(t)
	a, b, c := lan.node(1), lan.node(2), lan.node(3)
	send(t, a, b, 1, []byte("x"))
	send(t, a, c, 1, []byte("x"))
	r := rand.New(rand.NewPCG(1, 2))
	want := map[dunlin.NodeID][]Message{}
	for range 200 {
		var batch []Message
		for range r.IntN(100) {
			to := dunlin.NodeID(2 + r.IntN(2))
			n := r.IntN(200)
			if r.IntN(50) == 0 {
				n = copyMax - 10 + r.IntN(20)
			}
			m := Message{uint64(to), dunlin.ShardID(r.IntN(64)), body(n)}
			batch = append(batch, m)
			want[to] = append(want[to], m)
		}
		a.Send(batch)
	}
	for _, n := range []*node{b, c} {
		for i, w := range want[n.id] {
			select {
			case m := <-n.got:
				if m.Shard != w.Shard || !bytes.Equal(m.Data, w.Data) {
					t.Fatalf("message %d to %s: shard %d, %d bytes; want shard %d, %d bytes", i, n.id, m.Shard, len(m.Data), w.Shard, len(w.Data))
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("message %d of %d to %s did not come; %+v", i, len(want[n.id]), n.id, a.status(n.id))
			}
		}
	}
}

type boxed struct{ error } // for atomic.Value, which wants one type

func TestErrorsKeepTheirMeaning(t *testing.T) {
	lan := newLAN(t)
	a := lan.node(1)
	var fail atomic.Value
	lan.node(2, func(c *Config) {
		c.Serve = func(context.Context, dunlin.NodeID, string, []byte) ([]byte, error) {
			return nil, fail.Load().(boxed).error
		}
	})
	for _, want := range codes() {
		fail.Store(boxed{fmt.Errorf("shard 7: %w", want.err)})
		_, err := a.Call(within(t, 10*time.Second), 2, "ask", nil)
		if !errors.Is(err, want.err) {
			t.Errorf("%v came as %v", want.err, err)
		}
		var r *Remote
		if !errors.As(err, &r) || r.Node != 2 || r.Text != "shard 7: "+want.err.Error() {
			t.Errorf("%v came as %#v", want.err, err)
		}
	}
	fail.Store(boxed{errors.New("odd\x1b[31m")})
	if _, err := a.Call(within(t, 10*time.Second), 2, "ask", nil); err == nil || errors.Unwrap(err) != nil || err.Error() != "ask at node 0000000000000002: odd?[31m" {
		t.Errorf("an error without a sentinel came as %v", err)
	}
}

// Both dial at the same moment, many times over: one connection is left, no call is lost, nothing is exchanged later.
func TestBothDialAtOnce(t *testing.T) {
	for round := range 15 {
		lan := newLAN(t)
		a, b := lan.node(1), lan.node(2)
		var wg sync.WaitGroup
		for _, pair := range [][2]*node{{a, b}, {b, a}} {
			for range 3 {
				wg.Go(func() {
					if _, err := pair[0].Call(within(t, 10*time.Second), pair[1].id, "echo", body(100)); err != nil {
						t.Errorf("round %d: %v", round, err)
					}
				})
			}
		}
		wg.Wait()
		eventually(t, "one connection", func() bool { return a.links() == 1 && b.links() == 1 })
		if round%5 == 0 { // nothing flaps
			links := func() uint64 {
				return (*a.peers.Load())[2].connections.Load() + (*b.peers.Load())[1].connections.Load()
			}
			before := links()
			pass(300 * time.Millisecond)
			if links() != before || a.links() != 1 || b.links() != 1 {
				t.Errorf("round %d: %d connections after %d", round, links(), before)
			}
		}
		a.stop()
		b.stop()
	}
}

// Connections are cut on either side while messages and calls of all sizes are under way. Every call ends, with the right
// answer or with ErrUnavailable, and the link comes back each time.
func TestConnectionsDieInTheMiddle(t *testing.T) {
	lan := newLAN(t)
	soon := func(c *Config) { c.RetryMax = 20 * time.Millisecond } // 40 cuts within seconds
	a, b := lan.node(1, soon), lan.node(2, soon)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	var good, bad atomic.Int64
	for i, pair := range [][2]*node{{a, b}, {b, a}, {a, b}, {b, a}} {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(i), 1))
			for {
				select {
				case <-stop:
					return
				default:
				}
				pair[0].Send([]Message{{uint64(pair[1].id), 1, body(r.IntN(1000))}})
				want := body(1 + r.IntN(400<<10)>>r.IntN(10))
				got, err := pair[0].Call(within(t, 10*time.Second), pair[1].id, "echo", want)
				switch {
				case err == nil && bytes.Equal(got, want):
					good.Add(1)
				case errors.Is(err, dunlin.ErrUnavailable) && !errors.Is(err, context.DeadlineExceeded):
					bad.Add(1)
					pass(time.Millisecond)
				default:
					t.Errorf("%d bytes, %v", len(got), err)
					return
				}
			}
		})
	}
	r := rand.New(rand.NewPCG(7, 7))
	for i := range 40 {
		before := good.Load()
		eventually(t, "calls get through again", func() bool { return good.Load() > before+4 })
		pass(time.Duration(r.IntN(3000)) * time.Microsecond)
		if i%2 == 0 {
			a.cut(2)
		} else {
			b.cut(1)
		}
	}
	close(stop)
	wg.Wait()
	eventually(t, "one connection", func() bool { return a.links() == 1 && b.links() == 1 })
	t.Logf("%d calls answered, %d failed as unavailable", good.Load(), bad.Load())
	for _, n := range []*node{a, b} {
		for id, p := range *n.peers.Load() {
			if s := p.serving.Load(); s != 0 {
				t.Errorf("node %s still counts %d calls of %s", n.id, s, id)
			}
		}
	}
}
