package plugins

import (
	"fmt"
	"runtime"
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// gate is the shell around shares: goroutines wait here for their calls.
type gate struct {
	clock  func() time.Duration
	waited func(time.Duration) // nil: nobody counts
	mu     struct {
		sync.Mutex
		shares *shares
		closed bool
		inside int           // calls that wait or run
		empty  chan struct{} // closed when closed and nobody is inside
		timer  *time.Timer   // for domains and tenants beyond their budget
		swept  time.Duration
		uses   int64 // of pools so far: says which one was used last
	}
}

// flowUse is what Busy and Cost tell of a domain; the gate's lock guards it.
type flowUse struct {
	nanos, inputs, calls int64         // sums
	waited               time.Duration // mean of those calls that did
	log                  logBudget     // has its own

	swept     int64         // calls when the gate was swept
	at        time.Duration // of the last look
	was       [3]int64      // nanos, inputs, calls at that moment
	use       float64       // processors, since the look before
	perInput  float64       // nanoseconds, likewise
	busyUntil time.Duration
	dearUntil time.Duration // busy for what it takes, not for what it waits
}

func newGate(clock func() time.Duration, slots, most int, b budgets) *gate {
	g := &gate{clock: clock}
	g.mu.shares, g.mu.empty = newShares(slots, most, b), make(chan struct{})
	return g
}

// now is the clock, which only budgets need.
func (g *gate) now() time.Duration {
	if !g.mu.shares.budgets.any() {
		return 0
	}
	return g.clock()
}

// flow returns a domain's flow; flows stay for as long as they are used.
func (g *gate) flow(tenant dunlin.Tenant, domain dunlin.DomainID, share int) *flow {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.mu.shares.flow(flowKey{tenant, domain}, share, g.now())
}

// enter waits until the call may run. leave must follow if there is no error.
func (g *gate) enter(t *turn) error {
	g.mu.Lock()
	granted, err := g.enterLocked(t)
	g.mu.Unlock()
	if err == nil && !granted {
		g.wait(t)
	}
	return err
}

// enterLocked asks for a slot. If there is neither that nor an error, the caller has to wait for it, without the lock.
func (g *gate) enterLocked(t *turn) (granted bool, err error) {
	if g.mu.closed {
		return false, errClosed
	}
	// Of most domains it is known without a look at the clock.
	t.dear = givesWay && t.flow.dearUntil > 0 && g.clock() < t.flow.dearUntil
	granted, queued := g.mu.shares.enter(t, g.now())
	if !granted && !queued {
		return false, notRun{text: fmt.Sprintf("not tried: %d calls of the domain are waiting already", g.mu.shares.most)}
	}
	g.mu.inside++
	if granted {
		return true, nil
	}
	if t.granted == nil {
		t.granted = make(chan struct{}, 1) // one: who grants must not wait
	}
	g.alarmLocked()
	return false, nil
}

// wait waits for a slot.
func (g *gate) wait(t *turn) {
	began := g.clock()
	<-t.granted
	waited := g.clock() - began
	g.mu.Lock()
	t.flow.waited += (waited - t.flow.waited) / 8
	g.mu.Unlock()
	if g.waited != nil {
		g.waited(waited)
	}
}

// pause is called by a long call now and then: others may have to run.
func (g *gate) pause(t *turn, used time.Duration) {
	g.mu.Lock()
	shares := g.mu.shares
	// Also with nobody waiting: the tag has to grow, so that who comes next does not wait behind all of this call, and a second
	// long call has to leave its slot.
	if !shares.step(t, used, g.now()) {
		g.mu.Unlock()
		runtime.Gosched() // native code is not preempted: other goroutines wait for this
		return
	}
	if t.granted == nil {
		t.granted = make(chan struct{}, 1)
	}
	g.grantLocked()
	g.mu.Unlock()
	g.wait(t)
}

// leave ends a call that used so much time.
func (g *gate) leave(t *turn, used time.Duration, inputs int) {
	g.mu.Lock()
	g.leaveLocked(t, used, inputs)
	g.mu.Unlock()
}

func (g *gate) leaveLocked(t *turn, used time.Duration, inputs int) {
	s := g.mu.shares
	s.leave(t, used)
	t.flow.nanos += int64(used)
	t.flow.inputs += int64(inputs)
	t.flow.calls++
	if len(s.backlog) > 0 {
		g.grantLocked()
	}
	g.mu.inside--
	if g.mu.closed && g.mu.inside == 0 {
		close(g.mu.empty)
	}
}

// grantLocked begins what may begin.
func (g *gate) grantLocked() {
	for {
		t := g.mu.shares.next(g.now())
		if t == nil {
			break
		}
		t.granted <- struct{}{}
	}
	g.alarmLocked()
}

// alarmLocked sees to it that calls beyond their domain's budget go on in time.
func (g *gate) alarmLocked() {
	if !g.mu.shares.budgets.any() {
		return
	}
	after := g.mu.shares.wake(g.now())
	if after <= 0 {
		return
	}
	if g.mu.timer == nil {
		g.mu.timer = time.AfterFunc(after, func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.grantLocked()
		})
		return
	}
	g.mu.timer.Reset(after)
}

// close lets nobody in any more and waits for those inside.
func (g *gate) close() {
	g.mu.Lock()
	g.mu.closed = true
	g.mu.shares.budgets = budgets{} // who waits for it goes on
	if g.mu.inside == 0 {
		close(g.mu.empty)
	}
	g.grantLocked()
	if g.mu.timer != nil {
		g.mu.timer.Stop()
	}
	g.mu.Unlock()
	<-g.mu.empty
}

// What makes a domain busy. A plugin that takes less for an input than busyInput is never called slow, however many there are.
const (
	busyInput = 20 * time.Microsecond // processor time for an input, and
	busyCall  = time.Millisecond      // for a call,
	busyUse   = 0.5                   // or of a processor; or
	busyWait  = time.Millisecond      // what a call waits for its slot
	busyFor   = 2 * time.Second       // it stays busy for so long
	busyLook  = 100 * time.Millisecond
	flowIdle  = 10 * time.Minute
)

// look returns a domain's numbers, renewed if they are old.
func (g *gate) look(tenant dunlin.Tenant, domain dunlin.DomainID) (perInput time.Duration, use float64, busy bool) {
	now := g.clock()
	g.mu.Lock()
	defer g.mu.Unlock()
	f := g.mu.shares.flows[flowKey{tenant, domain}]
	if f == nil {
		return 0, 0, false
	}
	if since := now - f.at; since >= busyLook {
		nanos, inputs, calls := float64(f.nanos-f.was[0]), f.inputs-f.was[1], f.calls-f.was[2]
		f.at, f.was = now, [3]int64{f.nanos, f.inputs, f.calls}
		f.use = nanos / float64(since)
		if calls == 0 {
			f.waited = 0
		} else {
			f.perInput = nanos / float64(max(inputs, 1))
			long := nanos/float64(calls) >= float64(busyCall) || f.use >= busyUse
			if f.perInput >= float64(busyInput) && long {
				f.busyUntil, f.dearUntil = now+busyFor, now+busyFor
			}
			if f.waited >= busyWait {
				f.busyUntil = now + busyFor
			}
		}
	}
	return time.Duration(f.perInput), f.use, now < f.busyUntil
}

// sweep drops domains that were not seen for long; it reports whether it looked.
func (g *gate) sweep() bool {
	now := g.clock()
	g.mu.Lock()
	defer g.mu.Unlock()
	if now-g.mu.swept < flowIdle {
		return false
	}
	g.mu.swept = now
	g.mu.shares.forget(func(f *flow) bool {
		idle := f.swept == f.calls
		f.swept = f.calls
		return idle
	})
	return true
}

// Busy reports whether the domain's plugins take, or wait for, so much processor time that its turns belong into a lane of
// their own, where nobody waits for them.
func (h *Host) Busy(tenant dunlin.Tenant, domain dunlin.DomainID) bool {
	_, _, busy := h.gate.look(tenant, domain)
	return busy
}

// Cost returns what a domain's plugins took of late: processor time for an input, and how many processors.
func (h *Host) Cost(tenant dunlin.Tenant, domain dunlin.DomainID) (perInput time.Duration, processors float64) {
	perInput, processors, _ = h.gate.look(tenant, domain)
	return perInput, processors
}
