package actors

import (
	"sync"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"
)

// beat is the node's dispatcher: few goroutines that run all shard actors in bursts, and tell the committer once a burst
// that it has something to do. One goroutine, the drummer, sleeps until there is a reason; helpers join it for big bursts.
//
//	Ingest ─▶ mailbox ─▶ enlistTurn, posted ──(pace: now, or when the window ends)──▶ drummer ─▶ round: turns ─▶ Flush
//	committer's done ─▶ mailbox ─▶ few uplinks: answered right there ·  many: enlistMail ──▶ drummer
//
// Sleeping and waking cost more than the work they are for: at 500 uplinks a second there are two wake-ups for each
// window, the drummer's by its timer and the committer's by Flush, however many uplinks share it.
type beat struct {
	flush func()              // the committer's
	alarm func() (fires bool) // enlists the shards whose timers are due
	began time.Time           // time is measured from here, by the monotonic clock

	onMail, onTurn atomic.Pointer[mailbox] // lists of the mailboxes that have something to do
	waiting        atomic.Int64            // uplinks posted since the last round began
	crowd          atomic.Int64            // pace.crowd, for posted
	turns          atomic.Int64            // proposed, and not back from the committer
	uplinks        atomic.Int64            // in those turns
	rounds         atomic.Int64            // being played
	proposed       atomic.Bool             // something was proposed since the last Flush
	signalled      atomic.Bool             // the drummer has been woken and has not looked yet

	mu struct {
		sync.Mutex
		pace  pace
		alarm time.Duration // when the next device timer is due, as far as is known; negative: none
		armed time.Duration // when the timer goes off; negative: it doesn't
		funcs []func()      // of protoactor's Schedule
	}
	bursts  sync.Pool // of *burst: no round of turns allocates one
	timer   *time.Timer
	awake   chan struct{} // one token wakes the drummer; more would be for nothing
	help    chan *burst   // one invitation for each helper; none waits behind a busy one
	helpers int
	stop    chan struct{}
	all     sync.WaitGroup
}

var _ actor.Dispatcher = (*beat)(nil)

// burstHelp is how many uplinks are worth waking a helper for.
const burstHelp = 64

// burstMax is for how long entries of a burst are kept from the committer to share its fsync with the rest of it.
const burstMax = 2 * time.Millisecond

// inlineMax is how many uplinks the committer's goroutine answers itself, to spare a wake-up, before it leaves that to the
// drummer, to get on with the next fsync.
const inlineMax = 16

func newBeat(window time.Duration, workers int, flush func(), alarm func() bool) *beat {
	b := &beat{flush: flush, alarm: alarm, began: time.Now(), helpers: workers - 1,
		timer: time.NewTimer(time.Hour), awake: make(chan struct{}, 1), help: make(chan *burst, workers-1),
		stop: make(chan struct{})}
	b.bursts.New = func() any { return new(burst) }
	b.timer.Stop()
	b.mu.pace, b.mu.alarm, b.mu.armed = makePace(window), hold, hold
	b.crowd.Store(b.mu.pace.crowd())
	return b
}

func (b *beat) now() time.Duration { return time.Since(b.began) }

// start starts the goroutines; close ends them and waits for that.
func (b *beat) start() {
	b.all.Go(b.drum)
	for range b.helpers {
		b.all.Go(b.assist)
	}
}

func (b *beat) close() {
	close(b.stop)
	b.all.Wait()
}

// Throughput implements actor.Dispatcher.
func (b *beat) Throughput() int { return 300 }

// Schedule implements actor.Dispatcher, for the mailboxes of protoactor's own making (that of the shards' parent).
func (b *beat) Schedule(f func()) {
	b.mu.Lock()
	b.mu.funcs = append(b.mu.funcs, f)
	b.mu.Unlock()
	b.wake()
}

// enlistMail puts the mailbox on the list of those to be run at once, and wakes the drummer.
func (b *beat) enlistMail(m *mailbox) {
	if !m.onMail.Swap(true) {
		for {
			m.nextMail = b.onMail.Load()
			if b.onMail.CompareAndSwap(m.nextMail, m) {
				break
			}
		}
	}
	b.wake()
}

// enlistTurn puts the mailbox on the list of the next round. It wakes nobody: see posted.
func (b *beat) enlistTurn(m *mailbox) {
	if !m.onTurn.Swap(true) {
		for {
			m.nextTurn = b.onTurn.Load()
			if b.onTurn.CompareAndSwap(m.nextTurn, m) {
				break
			}
		}
	}
}

// wake makes the drummer look around soon.
func (b *beat) wake() {
	if !b.signalled.Load() && !b.signalled.Swap(true) {
		select {
		case b.awake <- struct{}{}:
		default:
		}
	}
}

// posted tells that n uplinks more are in mailboxes. Only the first of a round, and those that make it enough or everyone,
// cost more than an addition.
func (b *beat) posted(n int64) {
	is := b.waiting.Add(n)
	f := b.flight()
	was, enough := is-n, f.enough()
	if f.turns == 0 {
		enough = min(enough, b.crowd.Load())
	}
	if was <= 0 && is > 0 || was < enough && is >= enough {
		b.consider()
	}
}

func (b *beat) flight() flight {
	return flight{turns: b.turns.Load(), uplinks: b.uplinks.Load(), round: b.rounds.Load() > 0}
}

// consider asks the pace, for those who can't run a round themselves.
func (b *beat) consider() {
	b.mu.Lock()
	now := b.now()
	start, wait := b.mu.pace.next(now, b.waiting.Load(), b.flight())
	if !start && wait != hold {
		b.armLocked(now, now+wait)
	}
	b.mu.Unlock()
	if start {
		b.wake()
	}
}

// returned tells that turns have come back from the committer, with so many uplinks.
func (b *beat) returned(turns, uplinks int64) {
	b.uplinks.Add(-uplinks)
	if b.turns.Add(-turns) == 0 && b.waiting.Load() > 0 {
		b.consider()
	}
}

// remind makes the drummer ask for due device timers in that time from now.
func (b *beat) remind(in time.Duration) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	at := now + max(in, 0)
	if b.mu.alarm < 0 || at < b.mu.alarm {
		b.mu.alarm = at
		b.armLocked(now, at)
	}
}

// armLocked makes the timer go off at that time, or before if it would anyway.
func (b *beat) armLocked(now, at time.Duration) {
	if b.mu.armed < 0 || at < b.mu.armed {
		b.mu.armed = at
		b.timer.Reset(at - now)
	}
}

// drum is the drummer's loop.
func (b *beat) drum() {
	for {
		select {
		case <-b.awake:
		case <-b.timer.C:
		case <-b.stop:
			return
		}
		for b.once() {
		}
	}
}

// once looks around and does what there is; it reports whether it should look again before sleeping.
func (b *beat) once() bool {
	b.signalled.Store(false)
	for f := b.function(); f != nil; f = b.function() {
		f()
	}
	busy := b.mail()
	fires := b.due() && b.alarm()
	n, start := b.pacing(fires)
	if start {
		b.round(n)
	}
	return busy || start || b.signalled.Load()
}

func (b *beat) function() (f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.mu.funcs) > 0 {
		f, b.mu.funcs = b.mu.funcs[0], b.mu.funcs[1:]
	}
	return f
}

// due reports whether the next device timer may be due, and forgets it then: whoever looks calls remind for the next.
func (b *beat) due() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.mu.alarm < 0 || b.now() < b.mu.alarm {
		return false
	}
	b.mu.alarm = hold
	return true
}

// pacing asks the pace whether a round of n uplinks begins now (it does if it must), and sets the timer if not.
func (b *beat) pacing(must bool) (n int64, start bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := b.now()
	start, wait := b.mu.pace.next(now, b.waiting.Load(), b.flight())
	if b.mu.armed >= 0 && (start || b.mu.armed <= now) {
		b.timer.Stop() // a timer for nothing would be a wake-up for nothing
		b.mu.armed = hold
	}
	if start || must {
		n = b.waiting.Swap(0)
		b.mu.pace.began(now, n)
		b.crowd.Store(b.mu.pace.crowd())
		return n, true // and before sleeping we come here again
	}
	if wait != hold {
		b.armLocked(now, now+wait)
	}
	if b.mu.alarm >= 0 {
		b.armLocked(now, b.mu.alarm)
	}
	return 0, false
}

// mail runs the mailboxes that have letters or committed turns.
func (b *beat) mail() bool {
	m := b.onMail.Swap(nil)
	if m == nil {
		return false
	}
	if b.uplinks.Load() >= burstHelp && m.nextMail != nil {
		bu := b.burst(forMail)
		for ; m != nil; m = bu.add(m) {
		}
		b.play(bu, b.uplinks.Load())
		return true
	}
	for m != nil {
		next := m.nextMail
		m.onMail.Store(false)
		m.run(forMail, false)
		m = next
	}
	b.flushIf()
	return true
}

// round lets every mailbox of the list take a turn, and then flushes.
func (b *beat) round(n int64) {
	b.rounds.Add(1) // what comes back meanwhile starts no other
	bu := b.burst(forTurn)
	for m := b.onTurn.Swap(nil); m != nil; m = bu.add(m) {
	}
	b.play(bu, n)
}

// play runs a burst of n uplinks, with helpers if that is worth it.
func (b *beat) play(bu *burst, n int64) {
	if len(bu.list) == 0 {
		b.played(bu)
		b.free(bu)
		return
	}
	bu.start.Store(int64(b.now()))
	bu.left.Store(int64(len(bu.list)))
	invited := min(int64(b.helpers), n/burstHelp, int64(len(bu.list))-1)
	bu.refs.Store(invited + 1)
	for range invited {
		select {
		case b.help <- bu:
		default:
			bu.refs.Add(-1)
		}
	}
	b.join(bu)
}

// join runs mailboxes of the burst until none is left to take. Who finishes the last one ends the burst.
func (b *beat) join(bu *burst) {
	for {
		i := int(bu.taken.Add(1)) - 1
		if i >= len(bu.list) {
			break
		}
		m := bu.list[i]
		m.run(bu.what, false)
		if bu.left.Add(-1) == 0 {
			b.played(bu)
		} else if b.proposed.Load() {
			if now := int64(b.now()); now-bu.start.Load() > int64(burstMax) {
				bu.start.Store(now)
				b.flushIf()
			}
		}
	}
	if bu.refs.Add(-1) == 0 {
		b.free(bu)
	}
}

// played ends a burst.
func (b *beat) played(bu *burst) {
	b.flushIf()
	if bu.what == forTurn && b.rounds.Add(-1) == 0 && b.waiting.Load() > 0 {
		b.consider() // nothing may have been proposed, or enough have come
	}
}

func (b *beat) flushIf() {
	if b.proposed.Load() && b.proposed.Swap(false) {
		b.flush()
	}
}

// assist is a helper's loop.
func (b *beat) assist() {
	for {
		select {
		case bu := <-b.help:
			b.join(bu)
		case <-b.stop:
			return
		}
	}
}
