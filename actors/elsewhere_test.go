package actors

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// elsewhere takes everything, and says in which order what came.
type elsewhere struct {
	mu      sync.Mutex
	fresh   []uint64
	back    []uint64 // not tried
	tried   []uint64
	order   []uint64 // of all
	flushes int
	refuses bool
}

func (e *elsewhere) Take(_ dunlin.ShardID, u *dunlin.Uplink) bool { return e.take(&e.fresh, u) }

func (e *elsewhere) TakeBack(_ dunlin.ShardID, u *dunlin.Uplink, tried bool) bool {
	if tried {
		return e.take(&e.tried, u)
	}
	return e.take(&e.back, u)
}

func (e *elsewhere) take(to *[]uint64, u *dunlin.Uplink) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if u.Next != nil {
		panic("an uplink comes with its chain")
	}
	if !e.refuses {
		*to, e.order = append(*to, u.Tag), append(e.order, u.Tag)
		u.Waiter.Done(u, dunlin.Receipt{Seq: 99})
	}
	return !e.refuses
}

func (e *elsewhere) Holds(dunlin.ShardID) bool { return false }

func (e *elsewhere) Flush() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.flushes++
}

func (e *elsewhere) AskTwin(key dunlin.DeviceKey, answer func(*dunlin.Twin, error)) {
	answer(&dunlin.Twin{Device: key.Device, Version: 7}, nil)
}

// TestElsewhere: what is not owned here goes there, a whole chain with one flush; so does what waited here when the shard went,
// and what was proposed; what is owned here stays.
func TestElsewhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := open(t, newStore(), func(n *node, c *Config) { n.log.hand = true })
		defer func() { n.close(); after(50 * time.Millisecond) }()
		e := &elsewhere{}
		n.Attach(e)
		n.Disown(1)
		synctest.Wait()
		b := newInbox(6)
		n.send(uplink(in(0, 0), 1, b), uplink(in(1, 0), 2, b), uplink(in(0, 1), 3, b), uplink(in(1, 1), 4, b))
		synctest.Wait()
		if len(e.fresh) != 2 || e.flushes != 1 {
			t.Errorf("%d went elsewhere with %d flushes", len(e.fresh), e.flushes)
		}
		n.send(uplink(in(0, 0), 5, b), uplink(in(0, 1), 6, b)) // they wait for the commit of 1 and 3
		synctest.Wait()
		n.Disown(0)
		synctest.Wait()
		if len(e.back) > 0 || !n.Holds(0) {
			t.Errorf("%v went before what is in flight, holds %v", e.back, n.Holds(0))
		}
		for _, p := range n.log.take() {
			p.done(0, dunlin.ErrNotOwner)
		}
		b.wait()
		synctest.Wait()
		if len(e.order) != 6 || e.order[4]+e.order[5] != 5+6 || n.Holds(0) {
			t.Errorf("went elsewhere: %v, holds %v", e.order, n.Holds(0))
		}
		slices.Sort(e.back) // two devices'
		slices.Sort(e.tried)
		if !slices.Equal(e.back, []uint64{5, 6}) || !slices.Equal(e.tried, []uint64{1, 3}) || e.flushes < 2 {
			t.Errorf("tried %v, back %v, %d flushes", e.tried, e.back, e.flushes)
		}
		for tag, r := range b.answers() {
			if r.Seq != 99 {
				t.Errorf("uplink %d: %+v", tag, r)
			}
		}
		if a, err := n.System().Root.RequestFuture(NewPID(key(in(1, 0))), &Ask{}, time.Second).Result(); err != nil || a.(*Answer).Twin.Version != 7 {
			t.Errorf("asked elsewhere: %+v, %v", a, err)
		}
		if r, err := n.System().Root.RequestFuture(NewPID(key(in(1, 0))), &Tell{uplink("x", 7, nil)}, time.Second).Result(); err != nil || r.(*Told).Receipt.Seq != 99 {
			t.Errorf("told elsewhere: %+v, %v", r, err)
		}
		e.refuses = true
		if r := n.one(uplink(in(1, 0), 8, nil)); !errors.Is(r.Err, dunlin.ErrNotOwner) || !errors.Is(r.Err, dunlin.ErrUnavailable) {
			t.Errorf("nobody takes it: %+v", r)
		}
	})
}

// TestTooManyToTell: of a turn with more uplinks of a device than its dedupe window remembers, which may be committed, nothing is
// tried elsewhere.
func TestTooManyToTell(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := open(t, newStore(), func(n *node, c *Config) { n.log.hand, c.WindowMax = true, time.Millisecond })
		defer func() { n.close(); after(50 * time.Millisecond) }()
		e := &elsewhere{}
		n.Attach(e)
		b := newInbox(dunlin.SeenMax + 2)
		var us []*dunlin.Uplink
		for i := range dunlin.SeenMax + 1 {
			us = append(us, uplink(in(0, 0), uint64(i+1), b))
		}
		n.send(append(us, uplink(in(0, 1), 100, b))...)
		after(20 * time.Millisecond)
		for _, p := range n.log.take() {
			p.done(0, dunlin.ErrNotOwner)
		}
		b.wait()
		if len(e.tried) != 1 || e.tried[0] != 100 {
			t.Errorf("tried elsewhere: %v", e.tried)
		}
	})
}

// TestUpdateOfAnotherOwner: a change that was proposed may be made; one that was not may be made elsewhere.
func TestUpdateOfAnotherOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := open(t, newStore(), func(n *node, c *Config) { n.log.hand = true })
		defer func() { n.close(); after(50 * time.Millisecond) }()
		build := func(dunlin.Time, *dunlin.DeviceState) ([]dunlin.Put, error) {
			return []dunlin.Put{{Table: dunlin.TableDomains, Key: "default/x", Value: []byte("{}")}}, nil
		}
		done := make(chan error, 1)
		go func() { done <- n.Update(t.Context(), 0, nil, build) }()
		synctest.Wait()
		for _, p := range n.log.take() {
			p.done(0, dunlin.ErrNotOwner)
		}
		if err := <-done; !errors.Is(err, dunlin.ErrUnavailable) || errors.Is(err, dunlin.ErrNotOwner) {
			t.Errorf("proposed: %v", err)
		}
		if err := n.Update(t.Context(), 0, nil, build); !errors.Is(err, dunlin.ErrNotOwner) {
			t.Errorf("not proposed: %v", err)
		}
	})
}

// TestHandedOverInVain: a leader that hands over refuses proposals meanwhile. If nobody takes over it leads on in the same term, and
// so does the shard; but not if it was told that the term is over.
func TestHandedOverInVain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := open(t, newStore(), func(n *node, c *Config) { n.log.hand = true })
		defer func() { n.close(); after(100 * time.Millisecond) }()
		refuse := func(id dunlin.ShardID, tag uint64) {
			b := newInbox(1)
			n.Ingest(uplink(in(id, 0), tag, b))
			synctest.Wait()
			for _, p := range n.log.take() {
				p.done(0, dunlin.ErrNotOwner)
			}
			wantErr(t, "while it is handed over", b.wait()[tag].Err, dunlin.ErrNotOwner)
			synctest.Wait()
			if _, ok := n.Owned(id); ok {
				t.Error("the shard goes on")
			}
		}
		refuse(0, 1)
		refuse(1, 2)
		n.Disown(1)
		after(loseFor + time.Millisecond)
		synctest.Wait()
		if term, ok := n.Owned(0); !ok || term != 1 {
			t.Errorf("nobody took it over: term %d, %v", term, ok)
		}
		if _, ok := n.Owned(1); ok {
			t.Error("it was told that the term is over")
		}
		b := newInbox(1)
		n.Ingest(uplink(in(0, 0), 3, b))
		synctest.Wait()
		n.log.take()[0].commit(n.store)
		if r := b.wait()[3]; r.Err != nil || r.Seq != 1 {
			t.Errorf("afterwards: %+v", r)
		}
	})
}
