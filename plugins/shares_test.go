package plugins

import (
	"fmt"
	"math"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
)

// world simulates processors that work off what shares hand to them: time is the number of the nanosecond.
type world struct {
	s       *shares
	now     time.Duration
	running []*call
	served  map[*flow]float64
	longest map[*flow]float64
	waited  map[*flow]time.Duration // the longest wait of a call
}

// call is a turn with the time that it is going to take.
type call struct {
	turn
	length, done time.Duration
	since        time.Duration // it has been waiting
}

func newWorld(s *shares) *world {
	return &world{s: s, served: make(map[*flow]float64), longest: make(map[*flow]float64), waited: make(map[*flow]time.Duration)}
}

// grant begins what is due.
func (w *world) grant(calls map[*turn]*call) {
	for t := w.s.next(w.now); t != nil; t = w.s.next(w.now) {
		w.begin(calls[t])
	}
}

func (w *world) begin(c *call) {
	w.running = append(w.running, c)
	w.waited[c.flow] = max(w.waited[c.flow], w.now-c.since)
}

// enter adds a call, which begins at once if it may.
func (w *world) enter(f *flow, length time.Duration, calls map[*turn]*call) {
	c := &call{turn: turn{flow: f}, since: w.now, length: length}
	calls[&c.turn] = c
	if granted, _ := w.s.enter(&c.turn, w.now); granted {
		w.begin(c)
	}
}

// slice lets each running call work for a while; it returns those that ended.
func (w *world) slice(d time.Duration, calls map[*turn]*call) (ended []*call) {
	w.now += d
	for _, c := range append([]*call(nil), w.running...) {
		c.done += d
		w.served[c.flow] += float64(d)
		w.longest[c.flow] = max(w.longest[c.flow], float64(c.length))
		switch {
		case c.done >= c.length:
			w.s.leave(&c.turn, c.done)
			ended = append(ended, c)
		case w.s.step(&c.turn, c.done, w.now):
			c.since = w.now
		default:
			continue
		}
		for i := range w.running {
			if w.running[i] == c {
				w.running = append(w.running[:i], w.running[i+1:]...)
				break
			}
		}
		w.grant(calls)
	}
	return ended
}

// The law: while domains have calls waiting all the time, what each is served, by its weight, differs by no more than a call of
// each on each processor, whatever the weights and lengths; and nobody waits longer than it takes to serve the others that.
func TestSharesFollowTheWeights(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		slots := rapid.IntRange(1, 4).Draw(t, "slots")
		domains := rapid.IntRange(2, 6).Draw(t, "domains")
		w := newWorld(newShares(slots, 1000, budgets{}))
		w.s.long = slots // long calls are another story
		calls := make(map[*turn]*call)
		var flows []*flow
		length := make(map[*flow]int)
		spawn := func(f *flow) {
			c := &call{turn: turn{flow: f}, since: w.now,
				length: time.Duration(rapid.IntRange(1, length[f]).Draw(t, "length")) * 10 * time.Microsecond}
			calls[&c.turn] = c
			if granted, queued := w.s.enter(&c.turn, w.now); granted {
				w.begin(c)
			} else if !queued {
				t.Fatal("refused")
			}
		}
		for i := range domains {
			share := rapid.SampledFrom([]int{1, 10, 50, 100, 100, 300, 1000}).Draw(t, "share")
			f := w.s.flow(flowKey{"t", dunlin.DomainID(fmt.Sprint(i))}, share, 0)
			flows, length[f] = append(flows, f), rapid.SampledFrom([]int{1, 10, 100, 1000}).Draw(t, "longest")
		}
		for _, f := range flows {
			for range 2*slots + 1 { // the backlog never ends
				spawn(f)
			}
		}
		from := make(map[*flow]float64)
		for step := range 3000 {
			for _, c := range w.slice(20*time.Microsecond, calls) {
				delete(calls, &c.turn)
				spawn(c.flow)
			}
			w.grant(calls)
			if step == 500 {
				for _, f := range flows {
					from[f] = w.served[f]
				}
			}
		}
		for i, a := range flows {
			for _, b := range flows[:i] {
				got := math.Abs((w.served[a]-from[a])/a.weight() - (w.served[b]-from[b])/b.weight())
				if most := 2 * float64(slots) * (w.longest[a]/a.weight() + w.longest[b]/b.weight() + 40_000*(1/a.weight()+1/b.weight())); got > most {
					t.Fatalf("%s and %s differ by %.0f weighted ns, at most %.0f", a.key.domain, b.key.domain, got, most)
				}
			}
		}
	})
}

// A domain that calls seldom and little doesn't wait behind one that burns its full time with many calls: a slice at most.
func TestLittleDoesNotWaitBehindMuch(t *testing.T) {
	const slice = 100 * time.Microsecond
	w := newWorld(newShares(2, 1000, budgets{}))
	calls := make(map[*turn]*call)
	much, little := w.s.flow(flowKey{"t", "much"}, 0, 0), w.s.flow(flowKey{"t", "little"}, 0, 0)
	for range 8 {
		w.enter(much, 9*time.Millisecond, calls)
	}
	for step := range 20_000 {
		for _, c := range w.slice(slice, calls) {
			delete(calls, &c.turn)
			if c.flow == much {
				w.enter(much, 9*time.Millisecond, calls)
			}
		}
		if step%7 == 3 {
			w.enter(little, slice, calls)
		}
		w.grant(calls)
	}
	if got := w.waited[little]; got > slice {
		t.Errorf("little waited %v, a slice is %v", got, slice)
	}
	if share := w.served[much] / float64(w.now) / 2; share < 0.45 { // long calls leave one of two processors
		t.Errorf("much got %.2f of the processors", share)
	}
}

// Whatever enters, ends and gives way in whatever order: nothing is lost, slots are neither lost nor won, and all end.
func TestSharesLoseNothing(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		slots, most := rapid.IntRange(1, 3).Draw(t, "slots"), rapid.IntRange(1, 5).Draw(t, "most")
		budget := budgets{rapid.SampledFrom([]float64{0, 0.5}).Draw(t, "budget"), rapid.SampledFrom([]float64{0, 0.7}).Draw(t, "tenant's")}
		s := newShares(slots, most, budget)
		running, waiting := map[*turn]bool{}, map[*turn]bool{}
		now := time.Duration(0)
		grant := func() {
			for n := s.next(now); n != nil; n = s.next(now) {
				if !waiting[n] || n.flow == nil {
					t.Fatal("granted what does not wait")
				}
				delete(waiting, n)
				running[n] = true
			}
		}
		any := func() (n *turn) {
			keys := make([]*turn, 0, len(running))
			for r := range running {
				keys = append(keys, r)
			}
			return keys[rapid.IntRange(0, len(keys)-1).Draw(t, "which")]
		}
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			now += time.Duration(rapid.IntRange(0, 1000).Draw(t, "time")) * time.Microsecond
			switch op := rapid.IntRange(0, 2).Draw(t, "op"); {
			case op == 0:
				f := s.flow(flowKey{dunlin.Tenant(rapid.SampledFrom([]string{"t", "u"}).Draw(t, "tenant")), dunlin.DomainID(rapid.SampledFrom([]string{"a", "b", "c"}).Draw(t, "domain"))}, 0, now)
				n := &turn{flow: f}
				before := len(f.waiting)
				granted, queued := s.enter(n, now)
				switch {
				case granted:
					running[n] = true
				case queued:
					waiting[n] = true
				case before < most:
					t.Fatalf("refused with %d of %d waiting", before, most)
				}
			case op == 1 && len(running) > 0:
				n := any()
				if s.step(n, time.Duration(rapid.IntRange(0, 9000).Draw(t, "used"))*time.Microsecond, now) {
					delete(running, n)
					waiting[n] = true
				}
			case op == 2 && len(running) > 0:
				n := any()
				delete(running, n)
				s.leave(n, time.Duration(rapid.IntRange(0, 9000).Draw(t, "used"))*time.Microsecond)
			}
			grant()
			if s.slots != slots-len(running) || s.slots < 0 {
				t.Fatalf("%d slots free, %d of %d are taken", s.slots, len(running), slots)
			}
			long := 0
			for r := range running {
				if r.long {
					long++
				}
			}
			if s.long != max(1, slots-1)-long || s.long < 0 {
				t.Fatalf("%d long ones of %d slots, %d may come", long, slots, s.long)
			}
			for r := range waiting {
				if s.slots > 0 && !budget.any() && (s.long > 0 || !r.flow.waiting[0].long) {
					t.Fatal("a slot is free and somebody waits")
				}
			}
		}
		for guard := 0; len(running)+len(waiting) > 0; guard++ {
			if guard > 10_000 {
				t.Fatal("somebody waits for ever")
			}
			now += max(s.wake(now), time.Microsecond)
			for n := range running {
				delete(running, n)
				s.leave(n, time.Microsecond)
			}
			grant()
		}
		if len(s.backlog) != 0 || s.slots != slots {
			t.Fatalf("at the end: %d domains in the backlog, %d slots", len(s.backlog), s.slots)
		}
		for name, tenant := range s.tenants {
			if tenant.active != 0 {
				t.Fatalf("at the end tenant %s has active domains of weight %d", name, tenant.active)
			}
		}
		if s.forget(func(*flow) bool { return true }); len(s.flows) > 0 && len(s.tenants) == 0 || len(s.flows) == 0 && len(s.tenants) > 0 {
			t.Fatalf("%d domains, %d tenants are remembered", len(s.flows), len(s.tenants))
		}
	})
}

// What tenants get does not depend on how many domains they have, and each divides its part by its domains' weights.
func TestTenantsAreEqual(t *testing.T) {
	w := newWorld(newShares(2, 1000, budgets{}))
	w.s.long = 2
	calls := make(map[*turn]*call)
	enter := func(f *flow) { w.enter(f, 300*time.Microsecond, calls) }
	var flows []*flow
	for i, share := range []int{100, 100, 200, 400} {
		flows = append(flows, w.s.flow(flowKey{"many", dunlin.DomainID(fmt.Sprint(i))}, share, 0))
	}
	flows = append(flows, w.s.flow(flowKey{"one", "0"}, 10, 0))
	for _, f := range flows {
		for range 6 {
			enter(f)
		}
	}
	for w.now < time.Second {
		for _, c := range w.slice(50*time.Microsecond, calls) {
			delete(calls, &c.turn)
			enter(c.flow)
		}
		w.grant(calls)
	}
	for i, want := range []float64{0.125, 0.125, 0.25, 0.5, 1} { // of two processors
		if got := w.served[flows[i]] / 1e9; math.Abs(got-want) > 0.01 {
			t.Errorf("domain %s of tenant %s got %.3f processors, want %.3f", flows[i].key.domain, flows[i].key.tenant, got, want)
		}
	}
}

// A domain, or a tenant, with a budget gets that much in a second and not more, alone on the machine, too.
func TestBudgetIsKept(t *testing.T) {
	for _, b := range []budgets{{domain: 0.2}, {tenant: 0.2}, {domain: 0.5, tenant: 0.2}} {
		testBudget(t, b)
	}
}

func testBudget(t *testing.T, b budgets) {
	w := newWorld(newShares(2, 1000, b))
	calls := make(map[*turn]*call)
	domains := 1
	if b.tenant > 0 {
		domains = 3
	}
	enter := func(f *flow) { w.enter(f, 3*time.Millisecond, calls) }
	var flows []*flow
	for i := range domains {
		f := w.s.flow(flowKey{"t", dunlin.DomainID(fmt.Sprint(i))}, 0, 0)
		flows = append(flows, f)
		for range 4 {
			enter(f)
		}
	}
	for w.now < 10*time.Second {
		for _, c := range w.slice(time.Millisecond, calls) {
			delete(calls, &c.turn)
			enter(c.flow)
		}
		w.grant(calls)
	}
	used := 0.0
	for _, f := range flows {
		used += w.served[f] / 1e9
	}
	if used < 1.9 || used > 2.3 { // and what was saved up at first
		t.Errorf("budgets %+v: %.2f s of 10 used, the least is a fifth", b, used)
	}
}

// weight is what the flow's part of its tenant's time is in proportion to.
func (f *flow) weight() float64 { return float64(f.share) / shareDefault }
