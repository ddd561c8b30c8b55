package actors

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/dunlin-iot/dunlin"
)

// TestASlowDomainWaitsForItselfAlone: while a domain's plugin is stuck, other domains' devices of the same shard are answered, its
// own come one after the other, in their order, and what is too much of them is refused.
func TestASlowDomainWaitsForItselfAlone(t *testing.T) {
	stuck := make(chan struct{})
	var seen atomic.Int64
	n := open(t, newStore(), func(n *node, c *Config) {
		n.slow = func(d dunlin.DomainID) bool { return d == "two" }
		n.plugin.f = func(d dunlin.DomainID, stage int, _ dunlin.Time, w *dunlin.Work) {
			if d == "two" && stage == 0 {
				seen.Add(1)
				<-stuck
			}
			w.Outcome.State = fmt.Append(w.State, stage, " ")
		}
	})
	defer n.close()
	slow, dev := in(1, 0), in(1, 1)
	box := newInbox(3 + laneWaitMax)
	n.send(uplinkIn("two", slow, 1, box)) // flies
	n.settle(func() bool { return seen.Load() == 1 })
	n.send(uplinkIn("two", slow, 2, box)) // waits in its device
	for i := range uint64(laneWaitMax) {  // wait in the lane
		n.send(uplinkIn("two", in(1, 2), 3+i, box))
	}
	for i := range uint64(50) {
		if r := n.one(uplinkIn("cold", dev, 10_000+i, nil)); r.Err != nil {
			t.Fatalf("another domain's uplink: %+v", r)
		}
	}
	over := newInbox(1)
	n.send(uplinkIn("two", in(1, 3), 9_999, over))
	wantErr(t, "one too many", over.wait()[9_999].Err, dunlin.ErrOverloaded)
	if got := len(box.answers()); got != 0 {
		t.Errorf("%d uplinks of the slow domain are answered while it is stuck", got)
	}
	n.send(uplinkIn("two", slow, 9_000, box))
	close(stuck)
	for tag, r := range box.wait() {
		if r.Err != nil {
			t.Errorf("uplink %d: %v", tag, r.Err)
		}
	}
	if a, b, c := box.got[1].Seq, box.got[2].Seq, box.got[9_000].Seq; a != 1 || b != 2 || c != 3 {
		t.Errorf("the slow device's uplinks are %d, %d, %d", a, b, c)
	}
	for i := range uint64(laneWaitMax) {
		if r := box.got[3+i]; r.Seq != i+1 {
			t.Fatalf("uplink %d of the other device has seq %d", i, r.Seq)
		}
	}
	st, _, _ := n.store.LoadDevice(1, key(slow))
	if len(st.Plugins) != 2 || string(st.Plugins[1].State) != "1 1 1 " && string(st.Plugins[1].State) != "1 1 " {
		t.Errorf("states %+v", st.Plugins)
	}
}

// TestALaneEndsWithItsTerm: what a lane was working on when the shard went elsewhere is refused, not proposed.
func TestALaneEndsWithItsTerm(t *testing.T) {
	stuck := make(chan struct{})
	var seen atomic.Int64
	n := open(t, newStore(), func(n *node, _ *Config) {
		n.slow = func(dunlin.DomainID) bool { return true }
		n.plugin.f = func(dunlin.DomainID, int, dunlin.Time, *dunlin.Work) {
			if seen.Add(1) == 1 {
				<-stuck
			}
		}
	})
	defer n.close()
	box := newInbox(2)
	n.send(uplinkIn("cold", in(2, 0), 1, box))
	n.settle(func() bool { return seen.Load() == 1 })
	n.send(uplinkIn("cold", in(2, 1), 2, box))
	n.Disown(2)
	n.Own(2, 7)
	close(stuck)
	got := box.wait()
	wantErr(t, "on its way", got[1].Err, dunlin.ErrUnavailable)
	if r := got[2]; r.Err != nil && r.Seq != 1 {
		t.Logf("behind it: %+v", r)
	}
	if r := n.one(uplinkIn("cold", in(2, 0), 3, nil)); r.Err != nil || r.Seq != 1 {
		t.Errorf("in the next term: %+v", r)
	}
}
