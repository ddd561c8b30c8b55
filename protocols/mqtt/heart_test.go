package mqtt

import (
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// What is read after the process stood still may have come before, until it has caught up.
func TestHeart(t *testing.T) {
	var h heart
	at := func(d time.Duration) dunlin.Time { return dunlin.Time(1e15).Add(d) }
	stood := func(now time.Duration, want bool) {
		t.Helper()
		if got := h.stood(at(now)); got != want {
			t.Errorf("at %v stood is %v, want %v", now, got, want)
		}
	}
	stood(0, false) // before the first beat nothing is known
	for d := time.Duration(0); d <= time.Second; d += wheelTick {
		h.beat(at(d))
	}
	stood(1050*time.Millisecond, false)
	stood(5*time.Second, true) // a reader that wakes before the beat
	h.beat(at(5 * time.Second))
	stood(5010*time.Millisecond, true)
	h.beat(at(5100 * time.Millisecond))
	stood(6900*time.Millisecond, true)
	for d := 5200 * time.Millisecond; d <= 8*time.Second; d += wheelTick {
		h.beat(at(d))
	}
	stood(8050*time.Millisecond, false)
}

// A cut makes repetitions likely on connections from before it, for a while, and on no others.
func TestALateOriginal(t *testing.T) {
	var h heart
	at := func(s int) dunlin.Time { return dunlin.Time(1_700_000_000_000_000).Add(time.Duration(s) * time.Second) }
	if h.late(at(5), at(0)) {
		t.Error("there was no cut")
	}
	h.cut.Store(int64(at(10)))
	for _, c := range []struct {
		now, since int
		want       bool
	}{{11, 0, true}, {19, 9, true}, {20, 9, false}, {12, 11, false}} {
		if got := h.late(at(c.now), at(c.since)); got != c.want {
			t.Errorf("at %d s, connected at %d s: %v", c.now, c.since, got)
		}
	}
}
