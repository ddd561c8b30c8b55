package actors

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// host commits rounds on a goroutine of its own, as the real one does, and fails some of them.
type host struct {
	rounds chan []proposal
	store  *store
	fails  atomic.Int64 // percent
	all    sync.WaitGroup
}

func newHost(st *store) *host {
	h := &host{rounds: make(chan []proposal, 1000), store: st}
	h.all.Go(func() {
		r := rand.New(rand.NewPCG(3, 4))
		for round := range h.rounds {
			for _, p := range round {
				switch {
				case r.Int64N(100) >= h.fails.Load():
					p.commit(st)
				case r.IntN(2) == 0:
					p.done(0, dunlin.ErrOverloaded)
				default:
					p.done(0, dunlin.ErrUnavailable)
				}
			}
		}
	})
	return h
}

// TestChaos sends from many goroutines while commits fail, plugins panic and shards come and go; at the end every uplink
// has one answer, and the store holds exactly those that were acknowledged, each device's without a hole or a double (which
// the store checks as it applies).
func TestChaos(t *testing.T) { chaos(t, nil) }

// TestChaosInLanes is the same while domains' turns go in and out of lanes at random.
func TestChaosInLanes(t *testing.T) {
	var n atomic.Uint64
	chaos(t, func(dunlin.DomainID) bool { return n.Add(1)%7 < 4 })
}

func chaos(t *testing.T, slow func(dunlin.DomainID) bool) {
	st := newStore()
	h := newHost(st)
	h.fails.Store(5)
	n := open(t, st, func(n *node, c *Config) {
		n.log.async = func(round []proposal, _ *store) { h.rounds <- round }
		c.CellsMax, c.MailboxEvents, c.WindowMax, c.Workers = 60, 200, 300*time.Microsecond, 3
		n.slow = slow
	})
	var panics atomic.Int64
	n.plugin.f = func(_ dunlin.DomainID, _ int, _ dunlin.Time, w *dunlin.Work) {
		w.Outcome.State = fmt.Append(nil, w.Seq)
		if w.Inputs[0].MessageID%997 == 0 && panics.Add(1) < 6 {
			panic("poison")
		}
	}
	const senders, each = 8, 500
	boxes := make([]*inbox, senders)
	var all sync.WaitGroup
	for i := range senders {
		boxes[i] = newInbox(each)
		all.Go(func() { n.sender(i, each, boxes[i]) })
	}
	stop := make(chan struct{})
	var ownership sync.WaitGroup
	ownership.Go(func() {
		for term := uint64(2); ; term++ {
			select {
			case <-stop:
				return
			case <-time.After(3 * time.Millisecond):
				id := dunlin.ShardID(term % 4)
				n.Disown(id)
				n.Own(id, term)
			}
		}
	})
	all.Wait()
	acked, failed := 0, 0
	for _, b := range boxes {
		for _, r := range b.wait() {
			switch {
			case r.Err == nil && !r.Duplicate:
				acked++
			case r.Err != nil && !errors.Is(r.Err, dunlin.ErrUnavailable) && !errors.Is(r.Err, dunlin.ErrOverloaded):
				t.Errorf("answer %+v", r)
			case r.Err != nil:
				failed++
			}
		}
	}
	close(stop)
	ownership.Wait()
	n.close()
	close(h.rounds)
	h.all.Wait()
	// A batch that panicked while it was settled may be committed and not acknowledged; the plugin's panics are before that.
	if kept := st.inputs(); kept != acked {
		t.Errorf("%d acknowledged, %d kept", acked, kept)
	}
	if o := n.outstanding(); o != 0 {
		t.Errorf("%d reservations left", o)
	}
	t.Logf("%d acknowledged, %d refused, %d panics, %d loads", acked, failed, panics.Load(), st.loads)
	if acked < senders*each/100 {
		t.Errorf("only %d of %d were acknowledged", acked, senders*each)
	}
}

// sender sends that many uplinks in chains of random length; every fifth has the message id of its successor.
func (n *node) sender(no, each int, box *inbox) {
	r := rand.New(rand.NewPCG(uint64(no), 1))
	for i := 0; i < each; {
		var chain []*dunlin.Uplink
		for range min(1+r.IntN(20), each-i) {
			u := uplinkIn("cold", fmt.Sprint("dev", r.IntN(150)), uint64(no*each+i+1), box)
			if i%5 == 0 {
				u.Flags |= dunlin.FlagMayRepeat
				u.MessageID++
			}
			chain = append(chain, u)
			i++
		}
		n.send(chain...)
		if r.IntN(3) == 0 {
			pause()
		}
	}
}

// TestFewAtATime has so few uplinks in flight that the committer's goroutine answers them, while the drummer runs the same
// actor for others and for those who ask: the race detector and the store watch.
func TestFewAtATime(t *testing.T) {
	st := newStore()
	h := newHost(st)
	n := open(t, st, func(n *node, _ *Config) {
		n.log.async = func(round []proposal, _ *store) { h.rounds <- round }
	})
	const devices, each = 8, 300
	var all sync.WaitGroup
	for i := range devices {
		all.Go(func() {
			dev := in(1, i)
			for k := range uint64(each) {
				if r := n.one(uplinkIn("cold", dev, k+1, nil)); r.Err != nil || r.Seq != k+1 {
					t.Errorf("%s: %+v, want seq %d", dev, r, k+1)
					return
				}
				if k%10 == uint64(i) {
					a, err := n.System().Root.RequestFuture(NewPID(key(dev)), &Ask{}, 5*time.Second).Result()
					if err != nil || a.(*Answer).Twin.Version != k+1 {
						t.Errorf("%s asked after its answer: %+v, %v", dev, a, err)
					}
				}
			}
		})
	}
	all.Wait()
	n.close()
	close(h.rounds)
	h.all.Wait()
	if kept := st.inputs(); kept != devices*each {
		t.Errorf("%d kept, want %d", kept, devices*each)
	}
}
