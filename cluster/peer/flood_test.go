package peer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

type atomicMax struct{ v atomic.Int64 }

func (m *atomicMax) add(d int64) int64 { return m.v.Add(d) }

func (m *atomicMax) see(v int64) int64 {
	for {
		old := m.v.Load()
		if v <= old || m.v.CompareAndSwap(old, v) {
			return max(old, v)
		}
	}
}

// drainSlowly reads a byte now and then.
func drainSlowly(c net.Conn, stop chan struct{}) {
	b := make([]byte, 1)
	for {
		if _, err := c.Read(b); err != nil {
			return
		}
		select {
		case <-time.After(10 * time.Millisecond):
		case <-stop:
			return
		}
	}
}

// A node that takes nothing more fills its own queue and no other's; what does not fit is counted; and it is given up.
func TestANodeThatStopsReading(t *testing.T) {
	lan := newLAN(t)
	quick := func(c *Config) { c.DeadAfter, c.QueueBytesMax = 200*time.Millisecond, 4<<20 }
	a, good := lan.node(1, quick), lan.node(2, quick)
	send(t, a, good, 1, []byte("x"))
	m := lan.member(a.Addr().String(), 3, kindLink)
	stop := make(chan struct{})
	var talker sync.WaitGroup
	defer talker.Wait()
	defer close(stop)
	talker.Go(func() { // it says that it lives, and reads nothing
		for {
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
				if _, err := m.Write(appendWord(nil, framePing, 1)); err != nil {
					return
				}
			}
		}
	})
	eventually(t, "it is linked", func() bool { return a.status(3).Connected })
	start := time.Now()
	var worst time.Duration
	for i := 0; a.status(3).Connected; i++ {
		begun := time.Now()
		a.Send([]Message{{3, 1, make([]byte, 64<<10)}, {2, 1, fmt.Appendf(nil, "%d", i)}, {3, 2, make([]byte, 100)}})
		worst = max(worst, time.Since(begun))
		if q := a.status(3).Queue; q > 4<<20 {
			t.Fatalf("%d bytes are queued", q)
		}
		for want := fmt.Sprint(i); ; {
			select {
			case msg := <-good.got:
				if string(msg.Data) == want {
					goto next
				}
			case <-time.After(5 * time.Second):
				t.Fatal("the good node hears nothing")
			}
		}
	next:
	}
	s := a.status(3)
	if s.Dropped == 0 || s.Queue != 0 {
		t.Errorf("status %+v", s)
	}
	t.Logf("given up after %s (%s), %d messages dropped, the longest Send took %s", time.Since(start).Round(time.Millisecond), s.Problem, s.Dropped, worst)
}

// Big bodies in both directions, more than may be received at a time, into a slow Serve: Raft messages pass them.
func TestBodiesDoNotDelayRaft(t *testing.T) {
	lan := newLAN(t)
	gate := make(chan struct{})
	serve := func(c *Config) {
		c.Serve = func(ctx context.Context, _ dunlin.NodeID, _ string, b []byte) ([]byte, error) {
			select {
			case <-gate:
			case <-ctx.Done():
			}
			return b, nil
		}
	}
	a, b := lan.node(1, serve), lan.node(2, serve)
	send(t, a, b, 1, []byte("x"))
	want, answered := body(BodyBytesMax), 0
	done := make(chan error, 12)
	for i := range 12 {
		from, to := a, b
		if i%2 == 0 {
			from, to = b, a
		}
		go func() {
			got, err := from.Call(within(t, 60*time.Second), to.id, "bulk", want)
			if err == nil && !bytes.Equal(got, want) {
				err = errors.New("other bytes")
			}
			done <- err
		}()
	}
	var worst time.Duration
	left := 12
	for i := 0; left > 0; i++ {
		if i == 100 {
			close(gate) // until then bodies fill what room there is, and stand
		}
		begun := time.Now()
		a.Send([]Message{{2, 1, fmt.Appendf(nil, "%d", i)}})
		for msg := range b.got {
			if string(msg.Data) == fmt.Sprint(i) {
				break
			}
		}
		worst = max(worst, time.Since(begun))
		select {
		case err := <-done:
			left--
			switch {
			case err == nil:
				answered++
			case !errors.Is(err, dunlin.ErrOverloaded): // answers that wait are bounded, too
				t.Error(err)
			}
		default:
			pass(time.Millisecond)
		}
		for _, n := range []*node{a, b} {
			for _, p := range *n.peers.Load() {
				c := p.cur.Load()
				c.mu.Lock()
				if f := c.mu.flows; f.reserved > f.budget || f.outstanding > f.window {
					t.Errorf("node %s has room for %d of %d bytes and asked for %d of %d", n.id, f.reserved, f.budget, f.outstanding, f.window)
				}
				c.mu.Unlock()
			}
		}
	}
	t.Logf("longest way of a Raft message past 12 × 8 MiB: %s; %d of them were answered", worst, answered)
	if answered < 4 {
		t.Errorf("%d calls were answered", answered)
	}
	if worst > 3*time.Second { // milliseconds when nobody else wants the processors
		t.Errorf("a Raft message took %s", worst)
	}
}

// Nobody says that a cable was pulled. Both sides find out in about DeadAfter, calls fail then, and the link is back when the
// cable is.
func TestAPulledCable(t *testing.T) {
	lan := newLAN(t)
	quick := func(c *Config) { c.DeadAfter = 250 * time.Millisecond; c.DialTimeout = 300 * time.Millisecond }
	a, b := lan.node(1, quick), lan.node(2, quick)
	pa, pb := newProxy(t, a.Addr().String()), newProxy(t, b.Addr().String())
	lan.set(1, pa.Addr().String())
	lan.set(2, pb.Addr().String())
	send(t, a, b, 1, []byte("x"))
	pass(2 * quickDead) // idle is not dead
	if p := (*a.peers.Load())[2]; p.connections.Load() != 1 {
		t.Errorf("an idle link was replaced %d times", p.connections.Load()-1)
	}
	pa.freeze()
	pb.freeze()
	begun := time.Now()
	_, err := a.Call(within(t, 10*time.Second), 2, "echo", nil)
	took := time.Since(begun)
	if !errors.Is(err, dunlin.ErrUnavailable) || errors.Is(err, context.DeadlineExceeded) || took > 2*time.Second {
		t.Errorf("after %s: %v", took, err)
	}
	eventually(t, "both sides know", func() bool { return !a.status(2).Connected && !b.status(1).Connected })
	t.Logf("a pulled cable was found after %s: %v", took.Round(time.Millisecond), err)
	pa.thaw()
	pb.thaw()
	begun = time.Now()
	send(t, b, a, 1, []byte("back"))
	t.Logf("the link was back %s after the cable", time.Since(begun).Round(time.Millisecond))
}

const quickDead = 250 * time.Millisecond

// A node that moved is found as soon as its new address is known, though the old one swallows whatever is sent there.
func TestANewAddress(t *testing.T) {
	lan := newLAN(t)
	a := lan.node(1, func(c *Config) { c.RetryMin, c.RetryMax = 30*time.Second, 30*time.Second })
	hole, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hole.Close()
	lan.set(2, hole.Addr().String())
	result := make(chan error, 1)
	go func() { _, err := a.Call(within(t, 20*time.Second), 2, "echo", nil); result <- err }()
	eventually(t, "it dials", func() bool { return a.status(2).Addr == hole.Addr().String() })
	b := lan.unlisted(2)
	begun := time.Now()
	lan.set(2, b.Addr().String())
	eventually(t, "it is linked", func() bool { return a.status(2).Connected })
	t.Logf("linked %s after the address changed", time.Since(begun).Round(time.Millisecond))
	<-result
	// The same from a pause of 30 s, and by Kick.
	b.stop()
	eventually(t, "the link is down", func() bool { return !a.status(2).Connected })
	c := lan.unlisted(2)
	eventually(t, "an attempt failed", func() bool { _, err := a.Call(within(t, time.Second), 2, "echo", nil); return err != nil })
	lan.set(2, c.Addr().String())
	eventually(t, "it is linked", func() bool { return a.status(2).Connected })
	if time.Since(begun) > 10*time.Second {
		t.Errorf("it took %s", time.Since(begun))
	}
}

// Deadlines and loss of interest travel.
func TestTheCallersContextTravels(t *testing.T) {
	lan := newLAN(t)
	ended := make(chan error, 1)
	var left time.Duration
	a := lan.node(1)
	b := lan.node(2, func(c *Config) {
		c.Serve = func(ctx context.Context, _ dunlin.NodeID, _ string, _ []byte) ([]byte, error) {
			if at, ok := ctx.Deadline(); ok {
				left = time.Until(at)
			}
			<-ctx.Done()
			ended <- context.Cause(ctx)
			return nil, ctx.Err()
		}
	})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	_, err := a.Call(ctx, 2, "wait", nil)
	cancel()
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, dunlin.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	<-ended
	if left <= 0 || left > 100*time.Millisecond {
		t.Errorf("the other side had %s left of 100ms", left)
	}
	ctx, cancel = context.WithCancel(t.Context())
	time.AfterFunc(20*time.Millisecond, cancel)
	if _, err = a.Call(ctx, 2, "wait", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	if cause := <-ended; !errors.Is(cause, context.Canceled) {
		t.Errorf("the other side's call ended with %v", cause)
	}
	go func() { _, _ = a.Call(t.Context(), 2, "wait", nil) }()
	eventually(t, "it is served", func() bool { return (*b.peers.Load())[1].serving.Load() == 1 })
	a.stop()
	<-ended
	eventually(t, "its place is free", func() bool { return (*b.peers.Load())[1].serving.Load() == 0 })
}
