package simnet

import (
	"container/heap"
	"encoding/binary"
	"fmt"
	"hash"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/control"
)

// plan says what a world is made of. planFor draws one from a seed.
type plan struct {
	seed    uint64
	shards  int
	first   int           // nodes at the beginning
	alone   bool          // the first node gives birth to all shards by itself, the others join it; otherwise all do
	most    int           // nodes at once
	devices int           //
	chaos   time.Duration // how long faults come
	every   time.Duration // between two faults, on average
	pace    time.Duration // between two uplinks of a device
	zones   int
	loss    int // percent of messages
	planted planted
}

func planFor(seed uint64, p planted) plan {
	rng := rand.New(rand.NewPCG(seed, 0x706c616e))
	pl := plan{seed: seed, shards: 2 + rng.IntN(4), first: 3, alone: rng.IntN(3) == 0, most: 4 + rng.IntN(3), devices: 5 + rng.IntN(10),
		chaos: time.Duration(8+rng.IntN(13)) * time.Second, every: time.Duration(150+rng.IntN(700)) * time.Millisecond,
		pace: time.Duration(80+rng.IntN(220)) * time.Millisecond, zones: 1 + rng.IntN(3), loss: []int{0, 1, 3, 10}[rng.IntN(4)], planted: p}
	if rng.IntN(8) == 0 {
		pl.first = 1
	}
	return pl
}

// world is a cluster, its clients and its fate.
type world struct {
	plan
	rng    *rand.Rand
	now    dunlin.Time
	seq    uint64
	events events
	err    error // the first thing that was not as it must be
	trace  hash.Hash64
	print  func(string)
	tail   []string // the last lines

	nodes   []*node // every life, in the order of their birth
	nextID  dunlin.NodeID
	net     network
	truth   *truth
	clients []*client
	limits  control.Limits
	healed  bool
	stats   stats
}

// stats says what a world went through.
type stats struct {
	events, messages, acked, entries, fenced, crashes, snapshots, moves, reads, faults, destroyed, elections int
}

func (s *stats) add(o stats) {
	s.events, s.messages, s.acked, s.entries, s.fenced = s.events+o.events, s.messages+o.messages, s.acked+o.acked, s.entries+o.entries, s.fenced+o.fenced
	s.crashes, s.snapshots, s.moves, s.reads, s.faults = s.crashes+o.crashes, s.snapshots+o.snapshots, s.moves+o.moves, s.reads+o.reads, s.faults+o.faults
	s.destroyed, s.elections = s.destroyed+o.destroyed, s.elections+o.elections
}

func (s stats) String() string {
	return fmt.Sprintf("%d events, %d messages, %d faults, %d crashes, %d elections, %d moves of replicas, %d snapshots installed, %d replicas destroyed, "+
		"%d entries (%d without effect), %d uplinks acknowledged, %d reads", s.events, s.messages, s.faults, s.crashes, s.elections, s.moves, s.snapshots,
		s.destroyed, s.entries, s.fenced, s.acked, s.reads)
}

type event struct {
	at  dunlin.Time
	seq uint64
	do  func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].seq < e[j].seq
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	old[len(old)-1].do = nil
	*e = old[:len(old)-1]
	return x
}

const epoch = dunlin.Time(1_700_000_000_000_000)

func newWorld(p plan) *world {
	w := &world{plan: p, rng: rand.New(rand.NewPCG(p.seed, 0x73696d)), now: epoch, nextID: 1, trace: fnv.New64a(), truth: newTruth(p.shards)}
	w.limits = control.Limits{Grace: 3 * time.Second, TransferRest: 200 * time.Millisecond, ShardRest: 2 * time.Second, CatchUp: 32,
		Patience: 5 * time.Second, LearnerGrace: time.Second, Avoid: 3 * time.Second, ReportAge: 2 * time.Second, EndRest: 2 * time.Second}
	w.net.loss = p.loss
	return w
}

// after calls do once d has passed.
func (w *world) after(d time.Duration, do func()) {
	w.seq++
	heap.Push(&w.events, event{w.now.Add(d), w.seq, do})
}

// fail ends the world.
func (w *world) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
		w.say("FAILED: %v", w.err)
	}
}

// say notes what happens. The trace's hash covers it.
func (w *world) say(format string, args ...any) {
	line := fmt.Sprintf("%9.4f  ", float64(w.now-epoch)/1e6) + fmt.Sprintf(format, args...)
	_, _ = w.trace.Write([]byte(line))
	if w.print != nil {
		w.print(line)
	}
	if w.tail = append(w.tail, line); len(w.tail) > 400 {
		w.tail = slices.Delete(w.tail, 0, 200)
	}
}

// mark notes numbers, for what happens too often for words.
func (w *world) mark(ns ...uint64) {
	var b [8]byte
	for _, n := range ns {
		binary.LittleEndian.PutUint64(b[:], n)
		_, _ = w.trace.Write(b[:])
	}
}

// step works the next event off; it reports false when there is none, or the world has failed.
func (w *world) step() (more bool) {
	if w.err != nil || len(w.events) == 0 {
		return false
	}
	e := heap.Pop(&w.events).(event)
	w.now = max(w.now, e.at)
	w.stats.events++
	defer func() {
		if r := recover(); r != nil {
			w.fail("panic: %v", r)
			more = false
		}
	}()
	e.do()
	return w.err == nil
}

// run lets d pass, or until something is no longer wanted to wait for.
func (w *world) run(d time.Duration, until func() bool) bool {
	end := w.now.Add(d)
	for len(w.events) > 0 && w.events[0].at <= end {
		if !w.step() {
			return false
		}
		if until != nil && until() {
			return true
		}
	}
	if w.err == nil {
		w.now = end
	}
	return until == nil && w.err == nil
}

// chance is true in so many of a hundred cases.
func (w *world) chance(percent int) bool { return w.rng.IntN(100) < percent }

// between draws a duration.
func (w *world) between(lo, hi time.Duration) time.Duration {
	return lo + time.Duration(w.rng.Int64N(int64(hi-lo)+1))
}

// node returns a life of a node by its id, nil if there was none.
func (w *world) node(id dunlin.NodeID) *node {
	if id < 1 || int(id) > len(w.nodes) {
		return nil
	}
	return w.nodes[id-1]
}

// living returns the nodes that are up.
func (w *world) living() (up []*node) {
	for _, n := range w.nodes {
		if n.up {
			up = append(up, n)
		}
	}
	return up
}

// play is a whole history: birth, faults, healing, and the last checks.
func (w *world) play() error {
	defer w.end()
	for i := range w.first {
		w.born(fmt.Sprintf("n%d", i+1), i == 0 || !w.alone)
	}
	for i := range w.devices {
		w.addClient(i)
	}
	w.run(time.Second, nil)
	w.nextFault(w.now.Add(w.chaos))
	w.run(w.chaos, nil)
	w.heal()
	if !w.run(90*time.Second, w.atRest) && w.err == nil {
		w.fail("no rest 90 s after all was healed: %s", w.unrest())
	}
	if w.err == nil {
		w.finish()
	}
	return w.err
}

// end closes what is open.
func (w *world) end() {
	for _, n := range w.nodes {
		if n.up {
			n.stop()
		}
	}
	w.stats.entries, w.stats.fenced = w.truth.entries, w.truth.fenced
	w.events = nil
}
