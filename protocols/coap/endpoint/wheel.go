package endpoint

import (
	"math/bits"
	"time"
)

const (
	wheelTick  = 16 * time.Millisecond
	wheelSlots = 4096 // × 16 ms = 65 s, above the longest default back-off of 48 s; what is due later goes round again
)

// timer is an exchange's place in the wheel.
type timer struct {
	due        time.Duration
	next, prev int32 // exchanges in the same slot, +1; 0: none
	slot       int32 // +1; 0: not armed
}

// wheel holds the timers of all exchanges: a timing wheel with one level, whose nodes are the exchanges themselves.
// Arming and disarming cost two writes; nothing fires early, and at most one tick late.
type wheel struct {
	heads []int32 // exchange +1
	used  [wheelSlots / 64]uint64
	tick  int64 // the next tick to work off; all earlier ones are empty
	armed int
}

func newWheel() wheel { return wheel{heads: make([]int32, wheelSlots)} }

// arm sets x[i]'s timer, which must not be armed.
func (w *wheel) arm(x []exchange, i int32, due time.Duration) {
	tick := max(int64((due+wheelTick-1)/wheelTick), w.tick)
	t := &x[i].timer
	slot := int32(tick % wheelSlots)
	*t = timer{due: due, next: w.heads[slot], slot: slot + 1}
	if t.next != 0 {
		x[t.next-1].timer.prev = i + 1
	}
	w.heads[slot] = i + 1
	w.used[slot/64] |= 1 << (slot % 64)
	w.armed++
}

// disarm stops x[i]'s timer, if it is armed.
func (w *wheel) disarm(x []exchange, i int32) {
	t := &x[i].timer
	if t.slot == 0 {
		return
	}
	slot := t.slot - 1
	if t.next != 0 {
		x[t.next-1].timer.prev = t.prev
	}
	if t.prev != 0 {
		x[t.prev-1].timer.next = t.next
	} else if w.heads[slot] = t.next; t.next == 0 {
		w.used[slot/64] &^= 1 << (slot % 64)
	}
	*t = timer{}
	w.armed--
}

// expired disarms one timer that is due and returns its exchange, or -1 if there is none.
func (w *wheel) expired(x []exchange, now time.Duration) int32 {
	last := int64(now / wheelTick)
	if w.armed == 0 {
		w.tick = max(w.tick, last)
		return -1
	}
	for w.tick <= last {
		if last-w.tick >= wheelSlots {
			w.tick = last - wheelSlots + 1 // slept through a whole turn: every slot is looked at once
		}
		slot := int32(w.tick % wheelSlots)
		for i := w.heads[slot]; i != 0; i = x[i-1].timer.next {
			if x[i-1].timer.due <= now {
				w.disarm(x, i-1)
				return i - 1
			}
		}
		if w.tick == last { // may still fill up within this tick
			return -1
		}
		w.tick++
	}
	return -1
}

// next returns when the wheel wants to be looked at again; it may be early for timers beyond one turn.
func (w *wheel) next() (time.Duration, bool) {
	if w.armed == 0 {
		return 0, false
	}
	start := w.tick % wheelSlots
	word, bit := start/64, start%64
	u := w.used[word] >> bit << bit
	for range wheelSlots/64 + 1 {
		if u != 0 {
			slot := word*64 + int64(bits.TrailingZeros64(u))
			return time.Duration(w.tick+(slot-start+wheelSlots)%wheelSlots) * wheelTick, true
		}
		word = (word + 1) % (wheelSlots / 64)
		u = w.used[word]
	}
	panic("coap: timers are armed, but no slot of the wheel is used")
}
