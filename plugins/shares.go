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
//	            └─ vibration    tag 21 ms ─ call         divided by the domain's part of its tenant's weight
//
// A tag is the time that the domain was served, in its own, weighted time. A domain that begins to call gets at least the
// tag of what ran last: it has no claim on the time when it had nothing to do. So while two domains have calls waiting,
// what they got differs by the weights and by no more than a call of each on each processor; who burns little doesn't wait
// behind who burns much; and nobody waits for ever, since tags only grow. Only long calls get less: one slot is not theirs.
//
// Tenants are equal: a domain's weight tells its part among those domains of its tenant that have calls now. So what a tenant
// gets does not depend on into how many domains it divides its devices.
type shares struct {
	slots   int // free ones
	long    int // long calls that may begin or go on, beside those that do
	most    int // calls of one domain that may wait
	budgets budgets
	virtual float64 // the tag of what was begun last, at most
	flows   map[flowKey]*flow
	tenants map[dunlin.Tenant]*tenantShare
	backlog []*flow // those with calls that wait
}

type flowKey struct {
	tenant dunlin.Tenant
	domain dunlin.DomainID
}

// budgets are how many processors a domain, and a tenant with all its domains, may use at most; 0: all.
type budgets struct{ domain, tenant float64 }

func (b budgets) any() bool { return b.domain > 0 || b.tenant > 0 }

// tenantShare is a tenant as shares see it.
type tenantShare struct {
	flows  int // of it
	active int // sum of the shares of those with calls
	bucket
}

// bucket holds the nanoseconds that may still be used, at a moment. It is not looked at without a budget.
type bucket struct {
	tokens float64
	filled time.Duration // that moment
}

func newBucket(budget float64, now time.Duration) bucket {
	return bucket{tokens: budget * float64(budgetBurst), filled: now}
}

// fill adds what has come since, and reports whether there is anything.
func (b *bucket) fill(budget float64, now time.Duration) bool {
	if budget <= 0 {
		return true
	}
	if now > b.filled {
		b.tokens = min(b.tokens+float64(now-b.filled)*budget, budget*float64(budgetBurst))
		b.filled = now
	}
	return b.tokens > 0
}

// wait is how long it takes until there is something again.
func (b *bucket) wait(budget float64) float64 {
	if budget <= 0 || b.tokens > 0 {
		return 0
	}
	return -b.tokens / budget
}

// flow is a domain as shares see it.
type flow struct {
	key     flowKey
	tenant  *tenantShare
	share   int     // its weight: 100 is the default
	counted int     // in tenant.active
	tag     float64 // weighted nanoseconds
	waiting []*turn // the next one first
	running int
	bucket

	flowUse // of the shell
}

// turn is one call on its way through shares.
type turn struct {
	flow    *flow
	charged float64       // nanoseconds, to the flow's tag: what it is known to have used
	long    bool          // it has used longCall
	dear    bool          // of the shell: the domain's calls are, and give way
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

func newShares(slots, most int, b budgets) *shares {
	return &shares{slots: slots, long: max(1, slots-1), most: most, budgets: b, flows: make(map[flowKey]*flow),
		tenants: make(map[dunlin.Tenant]*tenantShare)}
}

// flow returns a domain's flow, with the weight that it has now.
func (s *shares) flow(key flowKey, share int, now time.Duration) *flow {
	f := s.flows[key]
	if f == nil {
		t := s.tenants[key.tenant]
		if t == nil {
			t = &tenantShare{bucket: newBucket(s.budgets.tenant, now)}
			s.tenants[key.tenant] = t
		}
		t.flows++
		f = &flow{key: key, tenant: t, tag: s.virtual, bucket: newBucket(s.budgets.domain, now)}
		s.flows[key] = f
	}
	if share <= 0 {
		share = shareDefault
	}
	f.share = share
	f.count()
	return f
}

// count keeps the sum of the tenant's active shares right, after any change of the flow.
func (f *flow) count() {
	n := 0
	if f.running > 0 || len(f.waiting) > 0 {
		n = f.share
	}
	f.tenant.active += n - f.counted
	f.counted = n
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
	f.count()
}

func (s *shares) begin(t *turn) {
	f := t.flow
	s.slots--
	if t.long {
		s.long--
	}
	f.running++
	f.count()
	s.virtual = max(s.virtual, f.tag)
}

// charge makes what the call is charged used nanoseconds.
func (s *shares) charge(t *turn, used float64) {
	f, more := t.flow, used-t.charged
	f.tag += more * float64(max(f.tenant.active, f.share)) / float64(f.share)
	f.tokens -= more
	f.tenant.tokens -= more
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
	f.count()
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

// affords reports whether the domain, and its tenant, have something left of their budgets.
func (s *shares) affords(f *flow, now time.Duration) bool {
	return f.fill(s.budgets.domain, now) && f.tenant.fill(s.budgets.tenant, now)
}

// wake returns how long it takes until a call that waits for a budget can begin; 0 if none waits for that.
func (s *shares) wake(now time.Duration) time.Duration {
	least := math.Inf(1)
	for _, f := range s.backlog {
		if !s.affords(f, now) {
			f.tenant.fill(s.budgets.tenant, now)
			least = min(least, max(f.wait(s.budgets.domain), f.tenant.wait(s.budgets.tenant)))
		}
	}
	if math.IsInf(least, 1) {
		return 0
	}
	return time.Duration(least) + time.Microsecond
}

// forget drops domains that were not seen of late. A tag behind the virtual time would be raised to it anyway.
func (s *shares) forget(idle func(*flow) bool) {
	for key, f := range s.flows {
		if f.running == 0 && len(f.waiting) == 0 && f.tag <= s.virtual && idle(f) {
			delete(s.flows, key)
			if f.tenant.flows--; f.tenant.flows == 0 {
				delete(s.tenants, key.tenant)
			}
		}
	}
}
