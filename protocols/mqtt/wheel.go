package mqtt

import (
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// wheelTick is how exact the gateway's timeouts are; wheelSlots × wheelTick is how far the wheel sees. A timer beyond it
// waits in the last slot and is put on again from there.
const (
	wheelTick  = 100 * time.Millisecond
	wheelSlots = 1024
)

// wheel holds the timeouts of all connections and sessions: one ticker for all of them, no runtime timer each. An owner
// that only ever moves its deadline away leaves its timer where it is and looks again when it fires.
type wheel struct {
	mu struct {
		sync.Mutex
		slots [wheelSlots]*timer
		tick  int64 // the last one that was worked off
	}
}

// waker is who a timer wakes.
type waker interface{ wake(now dunlin.Time) }

// timer is an owner's place in the wheel; the zero value is off.
type timer struct {
	owner      waker
	due        dunlin.Time
	next, prev *timer
	slot       int32
	on         bool
}

func tickOf(t dunlin.Time) int64 { return int64(t) / wheelTick.Microseconds() }

func newWheel(now dunlin.Time) *wheel {
	w := &wheel{}
	w.mu.tick = tickOf(now)
	return w
}

// set arms t for due, or moves it.
func (w *wheel) set(t *timer, due dunlin.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unlinkLocked(t)
	t.due = due
	w.linkLocked(t)
}

// earlier arms t for due unless it fires before that anyway.
func (w *wheel) earlier(t *timer, due dunlin.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if t.on && t.due <= due {
		return
	}
	w.unlinkLocked(t)
	t.due = due
	w.linkLocked(t)
}

// stop disarms t. Its fire may be under way.
func (w *wheel) stop(t *timer) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.unlinkLocked(t)
}

func (w *wheel) linkLocked(t *timer) {
	tick := min(max(tickOf(t.due)+1, w.mu.tick+1), w.mu.tick+wheelSlots-1)
	t.slot, t.on = int32(tick%wheelSlots), true
	head := &w.mu.slots[t.slot]
	t.prev, t.next = nil, *head
	if t.next != nil {
		t.next.prev = t
	}
	*head = t
}

func (w *wheel) unlinkLocked(t *timer) {
	if !t.on {
		return
	}
	if t.next != nil {
		t.next.prev = t.prev
	}
	if t.prev != nil {
		t.prev.next = t.next
	} else {
		w.mu.slots[t.slot] = t.next
	}
	t.on, t.next, t.prev = false, nil, nil
}

// advance wakes the owners of what is due at now, without its lock, so that they may set timers.
func (w *wheel) advance(now dunlin.Time) {
	for {
		t, more := w.pop(now)
		if t != nil {
			t.owner.wake(now)
		} else if !more {
			return
		}
	}
}

// pop takes one timer that is due, or moves the wheel on by a tick.
func (w *wheel) pop(now dunlin.Time) (t *timer, more bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	slot := w.mu.tick % wheelSlots
	if t = w.mu.slots[slot]; t != nil {
		w.unlinkLocked(t)
		if tickOf(t.due) < w.mu.tick {
			return t, true
		}
		w.linkLocked(t) // from beyond the wheel's sight
		return nil, true
	}
	target := tickOf(now)
	if w.mu.tick >= target {
		return nil, false
	}
	w.mu.tick = max(w.mu.tick+1, target-wheelSlots+1) // after a long sleep every slot is looked at once
	return nil, true
}
