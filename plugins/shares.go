package plugins

import (
	"math"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// shares decides whose call runs next: start-time fair queueing over the domains of all tenants, by processor time. It is
// pure: it knows no goroutine and no clock.
//
//	            ┌─ cold-chain   tag 17 ms ─ call ─ call
//	waiting ────┤                                        the smallest tag first; its tag grows by what the call takes,
//	            └─ vibration    tag 21 ms ─ call         divided by the domain's weight
//
// A tag is the time that the domain was served, in its own, weighted time. A domain that begins to call gets at least the
// tag of what ran last: it has no claim on the time when it had nothing to do. So while two domains have calls waiting,
// what they got differs by the weights and by no more than a call of each on each processor; who burns little doesn't wait
// behind who burns much; and nobody waits for ever, since tags only grow. Only long calls get less: one slot is not theirs.
type shares struct {
	slots   int // free ones
	long    int // long calls that may begin or go on, beside those that do
	most    int // calls of one domain that may wait
	budget  float64
	virtual float64 // the tag of what was begun last, at most
	flows   map[flowKey]*flow
	backlog []*flow // those with calls that wait
}

type flowKey struct {
	tenant dunlin.Tenant
	domain dunlin.DomainID
}

// flow is a domain as shares see it.
type flow struct {
	key     flowKey
	weight  float64 // 1: the default
	tag     float64 // weighted nanoseconds
	waiting []*turn // the next one first
	running int
	// With a budget: nanoseconds that the domain may still use, at a moment.
	tokens   float64
	tokensAt time.Duration

	flowUse // of the shell
}

// turn is one call on its way through shares.
type turn struct {
	flow    *flow
	charged float64       // nanoseconds, to the flow's tag: what it is known to have used
	long    bool          // it has used longCall
	busy    bool          // of the shell: the domain is busy
	granted chan struct{} // of the shell: poked when it may run
}

const (
	shareDefault = 100
	// budgetBurst is how long a budget may be saved up.
	budgetBurst = time.Second
	// longCall is what makes a call long. Native code is not preempted, so long calls leave a slot, and with it a processor, to
	// all others and to everything else in the process: what would have to wait for their next slice.
	longCall = 500 * time.Microsecond
)

func newShares(slots, most int, budget float64) *shares {
	return &shares{slots: slots, long: max(1, slots-1), most: most, budget: budget, flows: make(map[flowKey]*flow)}
}

// flow returns a domain's flow, with the weight that it has now.
func (s *shares) flow(key flowKey, share int, now time.Duration) *flow {
	f := s.flows[key]
	if f == nil {
		f = &flow{key: key, weight: 1, tag: s.virtual, tokens: s.budget * float64(budgetBurst), tokensAt: now}
		s.flows[key] = f
	}
	if share <= 0 {
		share = shareDefault
	}
	f.weight = float64(share) / shareDefault
	return f
}

// enter asks for a slot: granted at once, or queued, or neither since too many of the domain's calls wait.
func (s *shares) enter(t *turn, now time.Duration) (granted, queued bool) {
	f := t.flow
	if f.running == 0 && len(f.waiting) == 0 {
		f.tag = max(f.tag, s.virtual)
	}
	if s.slots > 0 && len(f.waiting) == 0 && s.affords(f, now) {
		if next := s.due(now); next == nil || next.tag >= f.tag { // others may wait for what is not theirs now
			s.begin(t)
			return true, false
		}
	}
	if len(f.waiting) >= s.most {
		return false, false
	}
	s.queue(t, false)
	return false, true
}

func (s *shares) queue(t *turn, first bool) {
	f := t.flow
	if len(f.waiting) == 0 {
		s.backlog = append(s.backlog, f)
	}
	f.waiting = append(f.waiting, t)
	if first {
		copy(f.waiting[1:], f.waiting)
		f.waiting[0] = t
	}
}

func (s *shares) begin(t *turn) {
	f := t.flow
	s.slots--
	if t.long {
		s.long--
	}
	f.running++
	s.virtual = max(s.virtual, f.tag)
}

// charge makes what the call is charged used nanoseconds.
func (s *shares) charge(t *turn, used float64) {
	f := t.flow
	f.tag += (used - t.charged) / f.weight
	if s.budget > 0 {
		f.tokens -= used - t.charged
	}
	t.charged = used
}

// step tells what a running call has used so far. It returns true if the call has to make room: then it waits as its
// domain's next.
func (s *shares) step(t *turn, used time.Duration, now time.Duration) bool {
	if float64(used) > t.charged {
		s.charge(t, float64(used))
	}
	over := !s.affords(t.flow, now)
	if t.long {
		s.long++ // whoever comes instead may have it
	} else if used >= longCall {
		t.long = true
		over = over || s.long == 0
	}
	if next := s.due(now); !over && (next == nil || next == t.flow || next.tag >= t.flow.tag) {
		if t.long {
			s.long--
		}
		return false
	}
	s.slots++
	t.flow.running--
	s.queue(t, true)
	return true
}

// leave ends a call.
func (s *shares) leave(t *turn, used time.Duration) {
	f := t.flow
	s.slots++
	if t.long {
		s.long++
	}
	f.running--
	s.charge(t, max(float64(used), t.charged))
}

// next begins the call that is due, if there is a slot; nil if there is none. It is the caller's to tell it.
func (s *shares) next(now time.Duration) *turn {
	if s.slots == 0 {
		return nil
	}
	f := s.due(now)
	if f == nil {
		return nil
	}
	t := f.waiting[0]
	s.unqueue(f, 0)
	s.begin(t)
	return t
}

// due returns the domain whose call is next.
func (s *shares) due(now time.Duration) *flow {
	var due *flow
	for _, f := range s.backlog {
		if (due == nil || f.tag < due.tag) && (s.long > 0 || !f.waiting[0].long) && s.affords(f, now) {
			due = f
		}
	}
	return due
}

func (s *shares) unqueue(f *flow, i int) {
	f.waiting = append(f.waiting[:i], f.waiting[i+1:]...)
	if len(f.waiting) > 0 {
		return
	}
	for i, other := range s.backlog {
		if other == f {
			s.backlog = append(s.backlog[:i], s.backlog[i+1:]...)
			return
		}
	}
}

// affords reports whether the domain has something left of its budget.
func (s *shares) affords(f *flow, now time.Duration) bool {
	if s.budget <= 0 {
		return true
	}
	if now > f.tokensAt {
		f.tokens = min(f.tokens+float64(now-f.tokensAt)*s.budget, s.budget*float64(budgetBurst))
		f.tokensAt = now
	}
	return f.tokens > 0
}

// wake returns how long it takes until a call that waits for its domain's budget can begin; 0 if none waits for that.
func (s *shares) wake(now time.Duration) time.Duration {
	least := math.Inf(1)
	for _, f := range s.backlog {
		if !s.affords(f, now) {
			least = min(least, -f.tokens/s.budget)
		}
	}
	if s.budget <= 0 || math.IsInf(least, 1) {
		return 0
	}
	return time.Duration(least) + time.Microsecond
}

// forget drops domains that were not seen of late. A tag behind the virtual time would be raised to it anyway.
func (s *shares) forget(idle func(*flow) bool) {
	for key, f := range s.flows {
		if f.running == 0 && len(f.waiting) == 0 && f.tag <= s.virtual && idle(f) {
			delete(s.flows, key)
		}
	}
}
