package actors

import "time"

// Bounds of the pace.
const (
	// paceEnough uplinks share a commit so well that waiting for more gains little: the fsync's cost for each is then
	// below that of its socket.
	paceEnough = 32
	// paceProbe rounds pass before a wait that gained nothing is tried again.
	paceProbe = 16
	// paceSame rounds of the same size in a row mean that this many senders are all there are.
	paceSame = 3
)

// pace decides when the next round of turns begins: it trades the first uplink's patience for the number of uplinks that
// share one entry, one fsync and one wake-up. It is a pure machine: time is a parameter, and nothing happens by itself.
//
//   - While a commit is in flight, gather: what comes meanwhile makes the next round as soon as the commit is back, if it
//     is enough or has waited for a window already; or even before, once it is as much as is in flight. So at saturation
//     the uplinks are in two equal batches, as large as can be: one at the disk, the other at the plugins behind it.
//   - With nothing in flight, the first uplink opens a window, but only if companions may be expected: the rate says that
//     at least one more comes within it, and recent windows gained some. (A lone client that sends when it is answered
//     has a rate too, yet waiting for its next message gains nothing.)
//   - A window ends early when as many wait as made up each of the last rounds: they are clients that wait for their
//     answers, and nobody else will come.
type pace struct {
	window time.Duration // 0: none
	first  time.Duration // when the oldest waiting uplink came; negative: none waits
	last   time.Duration // when the last round began
	gap    time.Duration // between uplinks, smoothed: falls fast, rises slowly
	gain   int           // companions that recent windows brought, in eighths, smoothed the other way round
	alone  int           // rounds since a window was waited for to its end
	size   int64         // of the last round
	same   int           // rounds in a row of that size
	waited bool          // the round to come was waited for
}

func makePace(window time.Duration) pace {
	return pace{window: window, first: -1, last: -time.Hour, gap: 8 * window, gain: 16}
}

// hold, as a wait, means until something happens.
const hold = time.Duration(-1)

// flight is what is on its way to the disk and back: the turns, their uplinks, and whether a round is still being played.
type flight struct {
	turns, uplinks int64
	round          bool
}

// enough is how many waiting uplinks make a round begin at once.
func (f flight) enough() int64 {
	if f.turns > 0 {
		return max(paceEnough, f.uplinks)
	}
	return paceEnough
}

// next says whether a round begins now, and if not, for how long to wait. waiting counts uplinks that came since the last
// round began.
func (p *pace) next(now time.Duration, waiting int64, f flight) (start bool, wait time.Duration) {
	if waiting <= 0 {
		p.first = -1
		return false, hold
	}
	if p.first < 0 {
		p.first = now
	}
	if f.round {
		return false, hold
	}
	if f.turns > 0 {
		return waiting >= f.enough(), hold
	}
	if waiting >= p.crowd() || p.window <= 0 || !p.hopeful() {
		return true, hold
	}
	if left := p.first + p.window - now; left > 0 {
		p.waited = true
		return false, min(left, p.window)
	}
	return true, hold
}

// crowd is how many waiting uplinks end a window: enough of them, or everyone there is.
func (p *pace) crowd() int64 {
	if p.same >= paceSame && p.alone < paceProbe {
		return min(max(p.size, 1), paceEnough)
	}
	return paceEnough
}

// hopeful reports whether a window is worth its wait.
func (p *pace) hopeful() bool {
	return p.waited || p.gap <= p.window && (p.gain >= 8 || p.alone >= paceProbe)
}

// began tells that a round has begun with n uplinks.
func (p *pace) began(now time.Duration, n int64) {
	if n <= 0 {
		return
	}
	gap := min(now-p.last, 8*p.window) / time.Duration(n)
	if gap < p.gap {
		p.gap = (p.gap + gap) / 2
	} else {
		p.gap += (gap - p.gap) / 8
	}
	if p.same++; n != p.size {
		p.size, p.same = n, 1
	}
	p.alone++
	if p.waited {
		if now-p.first >= p.window {
			p.alone = 0
		}
		if got := int(min(n-1, paceEnough)) * 8; got > p.gain {
			p.gain = got
		} else {
			p.gain -= (p.gain - got + 7) / 8
		}
	}
	p.first, p.last, p.waited = -1, now, false
}
