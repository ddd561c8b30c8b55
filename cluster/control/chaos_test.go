package control

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

var seeds = flag.Int("seeds", 150, "how many worlds TestChaos plays")

// TestChaos plays worlds in which members come, die, are wiped, drain and leave, while steps are late or lost, views are old
// and controllers change; then everything heals, and the controller must come to rest with all in order.
func TestChaos(t *testing.T) {
	slowest := 0
	for seed := range *seeds {
		w := chaosWorld(uint64(seed))
		steps, err := w.play()
		if err != nil {
			t.Fatalf("seed %d: %v\n%s\n%s", seed, err, strings.Join(w.log[max(0, len(w.log)-60):], "\n"), w.table())
		}
		slowest = max(slowest, steps)
	}
	t.Logf("%d worlds; the slowest came to rest %d s after it was healed", *seeds, slowest)
}

func chaosWorld(seed uint64) *world {
	rng := rand.New(rand.NewPCG(seed, 7))
	w := newWorld(1+rng.IntN(12), []int{1, 3, 3, 3, 5}[rng.IntN(5)])
	w.rng, w.calm = rng, false
	w.lim = Limits{Grace: time.Duration(30+rng.IntN(120)) * time.Second}
	w.control = New(w.lim)
	for i := range w.shards {
		w.shards[i].Bytes = int64(rng.IntN(256)) << 20 / int64(1+rng.IntN(64))
	}
	zones := 1 + rng.IntN(4)
	for range 1 + rng.IntN(4) {
		w.join(fmt.Sprintf("n%d", w.next), zone(rng.IntN(zones)))
	}
	return w
}

func zone(i int) string { return string(rune('a' + i)) }

// play makes trouble, heals and waits; it returns the time to rest in s.
func (w *world) play() (int, error) {
	for range 300 + w.rng.IntN(600) {
		if w.rng.IntN(15) == 0 {
			w.trouble()
		}
		w.tick()
		if err := w.faulty(); err != nil {
			return 0, err
		}
	}
	w.heal()
	idle, steps := 0, 0
	for ; idle < 40; steps++ {
		w.tick()
		as := w.control.Step(w.view())
		if again := New(w.lim).Step(w.view()); len(as) == 0 && len(again) > 0 && idle > 35 {
			return 0, fmt.Errorf("at rest, a new controller wants %s", w.text(again[0]))
		}
		if idle++; len(as) > 0 {
			idle = 0
		}
		for _, a := range as {
			w.say("%s", w.text(a))
			if err := w.carryOut(a); err != nil {
				return 0, fmt.Errorf("%s: %w", w.text(a), err)
			}
		}
		if steps > 3000 {
			return 0, fmt.Errorf("no rest")
		}
	}
	return steps - 40, w.inOrder()
}

// faulty lets a controller step on a view that may be old, and its steps come late, or never.
func (w *world) faulty() error {
	w.views = append(w.views, w.view())
	if len(w.views) > 8 {
		w.views = w.views[1:]
	}
	if w.rng.IntN(40) == 0 {
		w.control = New(w.lim)
	}
	v := w.views[len(w.views)-1]
	if w.rng.IntN(4) == 0 {
		v = w.views[w.rng.IntN(len(w.views))]
	}
	if w.alive(w.shards[0].Owner) {
		for _, a := range w.control.Step(v) {
			if w.rng.IntN(10) > 0 {
				w.queue = append(w.queue, delayed{w.now.Add(time.Duration(w.rng.IntN(6)*w.rng.IntN(2)) * time.Second), a})
			}
		}
	}
	var rest []delayed
	for _, d := range w.queue {
		if d.at > w.now {
			rest = append(rest, d)
			continue
		}
		w.say("%s", w.text(d.a))
		if err := w.carryOut(d.a); err != nil {
			return fmt.Errorf("%s: %w", w.text(d.a), err)
		}
	}
	w.queue = rest
	return nil
}

// trouble does something to a member.
func (w *world) trouble() {
	b := w.nodes[w.rng.IntN(len(w.nodes))]
	if b.State == dunlin.MemberLeft {
		return
	}
	r := newRoster(w.view(), &Limits{})
	switch n := w.rng.IntN(20); {
	case n < 5 && b.Alive:
		w.say("%s dies", b.Name)
		w.down(b)
	case n < 10 && !b.Alive && r.replaced[b.ID] == 0:
		w.say("%s is back", b.Name)
		b.Alive = true
	case n < 12 && r.replaced[b.ID] == 0 && w.spare(b.ID):
		w.say("%s is wiped", b.Name)
		w.down(b)
		w.join(b.Name, b.Zone)
	case n < 14 && len(w.nodes) < 12:
		b = w.join(fmt.Sprintf("n%d", w.next), zone(w.rng.IntN(3)))
		w.say("%s joins", b.Name)
	case n < 18:
		state := []dunlin.MemberState{dunlin.MemberDraining, dunlin.MemberLeaving, dunlin.MemberActive}[w.rng.IntN(3)]
		if err := CanSet(w.view(), b.ID, state, w.lim); err == nil && r.replaced[b.ID] == 0 {
			w.say("%s is set %s", b.Name, state)
			b.State = state
		}
	default:
		q := Request{Shard: dunlin.ShardID(w.rng.IntN(len(w.shards))), From: w.nodes[w.rng.IntN(len(w.nodes))].ID, To: b.ID}
		if CanMove(w.view(), q.Shard, q.From, q.To, w.lim) == nil {
			w.say("shard %d is asked to %s", q.Shard, b.Name)
			w.wishes = append(w.wishes, q)
		}
	}
}

// spare reports whether every shard keeps a majority of replicas that are not lost for good without the member.
func (w *world) spare(id dunlin.NodeID) bool {
	r := newRoster(w.view(), &Limits{})
	keeps := func(ids []dunlin.NodeID) bool {
		n := 0
		for _, v := range ids {
			if v != id && !r.gone(v) {
				n++
			}
		}
		return len(ids) == 0 || n > len(ids)/2
	}
	for _, g := range w.shards {
		if !keeps(g.Conf.Voters) || !keeps(g.Conf.Outgoing) {
			return false
		}
	}
	return true
}

func (w *world) heal() {
	r := newRoster(w.view(), &Limits{})
	for _, b := range w.nodes {
		if b.State != dunlin.MemberLeft && r.replaced[b.ID] == 0 {
			b.Alive = true
		}
		if b.State == dunlin.MemberDraining {
			b.State = dunlin.MemberActive
		}
	}
	leaving := slices.ContainsFunc(w.nodes, func(b *body) bool { return b.State == dunlin.MemberLeaving })
	for leaving && len(newRoster(w.view(), &Limits{}).usable) < w.rf { // or they would stay for ever
		w.join(fmt.Sprintf("n%d", w.next), zone(w.rng.IntN(3)))
	}
	w.queue, w.calm = nil, true
	w.say("healed")
}

// inOrder checks what must hold at rest.
func (w *world) inOrder() error {
	v := w.view()
	l := w.lim.withDefaults()
	r := newRoster(v, &l)
	if st := Health(v, w.lim); !st.Healthy || len(st.Moves) > 0 {
		return fmt.Errorf("not healthy at rest: %v %v", st.Moves, st.Problems)
	}
	for _, m := range r.all {
		if m.State == dunlin.MemberLeaving || r.replaced[m.ID] != 0 {
			return fmt.Errorf("%s has not left", r.name(m.ID))
		}
	}
	zones := map[string]bool{}
	replicas := map[dunlin.NodeID]int{}
	for _, m := range r.usable {
		zones[m.Zone] = true
		replicas[m.ID] = 0
	}
	n := min(w.rf, len(r.usable))
	for _, g := range w.shards {
		if !sameIDs(g.Row.Voters, g.Conf.Voters) || !sameIDs(g.Row.Learners, g.Conf.Learners) || g.Row.Move != nil {
			return fmt.Errorf("shard %d: row and conf differ", g.ID)
		}
		if len(g.Conf.Voters) != n {
			return fmt.Errorf("shard %d has %d voters, want %d", g.ID, len(g.Conf.Voters), n)
		}
		if got, want := len(r.zones(g.Conf.Voters, 0)), min(n, len(zones)); got != want {
			return fmt.Errorf("shard %d is in %d zones, want %d", g.ID, got, want)
		}
		learners := 0
		if g.ID == dunlin.MetaShard {
			learners = len(r.usable) - n
		}
		if len(g.Conf.Learners) != learners {
			return fmt.Errorf("shard %d has %d learners, want %d", g.ID, len(g.Conf.Learners), learners)
		}
		if g.ID != dunlin.MetaShard {
			for _, id := range g.Conf.Voters {
				replicas[id]++
			}
		}
	}
	if least, most := minMax(replicas); len(zones) == 1 && most-least >= l.Imbalance {
		return fmt.Errorf("replicas are spread unevenly: %v", replicas)
	}
	return nil
}

func minMax(m map[dunlin.NodeID]int) (least, most int) {
	least = 1 << 30
	for _, n := range m {
		least, most = min(least, n), max(most, n)
	}
	return least, most
}

// TestDeterminism: the order in which a view lists members is nothing.
func TestDeterminism(t *testing.T) {
	for seed := range uint64(20) {
		w := chaosWorld(seed)
		for range 200 {
			if w.rng.IntN(10) == 0 {
				w.trouble()
			}
			w.tick()
			v := w.view()
			as := Plan(v, w.lim)
			w.rng.Shuffle(len(v.Members), reflect.Swapper(v.Members))
			for _, g := range v.Shards {
				w.rng.Shuffle(len(g.Conf.Voters), reflect.Swapper(g.Conf.Voters))
				w.rng.Shuffle(len(g.Replicas), reflect.Swapper(g.Replicas))
			}
			if bs := Plan(v, w.lim); !reflect.DeepEqual(as, bs) {
				t.Fatalf("seed %d: the same view, shuffled, makes another plan:\n%v\n%v", seed, as, bs)
			}
			for _, a := range as {
				if err := w.carryOut(a); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

// TestBudget: whatever is to be done, no more is in motion at once than the limits say.
func TestBudget(t *testing.T) {
	w := newWorld(64, 3)
	for i := range 5 {
		w.join(fmt.Sprintf("n%d", i+1), "")
	}
	most := 0
	for n := 0; n < 2000; n++ {
		w.tick()
		for _, a := range w.control.Step(w.view()) {
			if err := w.carryOut(a); err != nil {
				t.Fatal(err)
			}
		}
		moving, into := 0, map[dunlin.NodeID]int{}
		for _, g := range w.shards {
			if g.Row.Move != nil {
				moving++
				into[g.Row.Move.To]++
			}
		}
		_, in := minMax(into)
		if most = max(most, moving); moving > 4 || in > 2 {
			t.Fatalf("%d replicas in motion, %d into one member; want at most 4 and 2", moving, in)
		}
	}
	owns := map[dunlin.NodeID]int{}
	for _, g := range w.shards {
		owns[g.Owner]++
	}
	if least, uneven := minMax(owns); most < 2 || uneven-least > 2 || len(owns) != 5 {
		t.Errorf("%d moved at once; ownerships are %v, want them within 2", most, owns)
	}
	if err := w.inOrder(); err != nil {
		t.Error(err)
	}
	if slices.ContainsFunc(w.shards, func(g *group) bool { return g.Row.Epoch > 20 }) {
		t.Error("a shard's row was written more than 20 times")
	}
}
