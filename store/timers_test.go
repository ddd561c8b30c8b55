package store

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
)

// What TimersDue says is what the devices' states say, at any moment: after timers were set, moved within their slot and
// out of it, cancelled, fired, set anew as they fired, after devices were deleted, and after a restart.
func TestTimersDueAreThoseOfTheDevices(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		rng := rand.New(rand.NewPCG(seed, 11))
		fs := vfs.NewMem()
		db, done := openShort(rt, small(fs, 1))
		defer func() { done() }()
		w := &timerWorld{rng: rng, due: map[timerName]dunlin.Time{}, version: map[dunlin.DeviceID]uint64{}, now: fleetStart}
		for index := uint64(1); index <= 200; index++ {
			if err := db.State().Apply([]dunlin.Committed{committed(w.entry(), index)}); err != nil {
				rt.Fatal(err)
			}
			if rng.IntN(40) == 0 {
				done()
				db, done = openShort(rt, small(fs, 1))
			}
			if rng.IntN(4) == 0 {
				w.now += dunlin.Time(rng.Int64N(slotWidth))
				limit := 1 + rng.IntN(6)
				due, next, err := db.State().TimersDue(0, w.now, limit)
				if err != nil {
					rt.Fatal(err)
				}
				if what := w.wrong(due, next, limit); what != "" {
					rt.Fatalf("seed %d, entry %d: %s", seed, index, what)
				}
			}
		}
	})
}

// timerWorld is the model: when each timer is due.
type timerWorld struct {
	rng     *rand.Rand
	now     dunlin.Time
	due     map[timerName]dunlin.Time
	version map[dunlin.DeviceID]uint64
}

func (w *timerWorld) entry() *dunlin.Entry {
	e := &dunlin.Entry{Term: 1, At: w.now}
	key := dunlin.DeviceKey{Tenant: "default", Device: dunlin.DeviceID(fmt.Sprintf("d%d", w.rng.IntN(5)))}
	if w.rng.IntN(15) == 0 {
		e.Puts = []dunlin.Put{{Table: dunlin.TableDevices, Key: key.String()}}
		for name := range w.due {
			if name.DeviceKey == key {
				delete(w.due, name)
			}
		}
		delete(w.version, key.Device)
		return e
	}
	c := dunlin.Change{DeviceKey: key, Domain: "x", Version: w.version[key.Device] + 1, Created: w.version[key.Device] == 0}
	w.version[key.Device]++
	c.Inputs = []dunlin.Input{{Kind: dunlin.InputTelemetry, Received: w.now}}
	for _, n := range []string{"a", "b"}[:1+w.rng.IntN(2)] {
		name := timerName{key, n}
		was := w.due[name]
		if was != 0 && was <= w.now && w.rng.IntN(2) == 0 {
			c.Inputs[0] = dunlin.Input{Kind: dunlin.InputTimer, Timer: n, Received: was}
			delete(w.due, name)
			if w.rng.IntN(2) == 0 {
				return w.add(e, c)
			}
		}
		due := w.now + dunlin.Time(w.rng.Int64N(3*slotWidth))
		if w.rng.IntN(6) == 0 {
			due = 0
		}
		c.Timers = append(c.Timers, dunlin.TimerSet{Name: n, Due: due, Was: was})
		if w.due[name] = due; due == 0 {
			delete(w.due, name)
		}
	}
	return w.add(e, c)
}

func (w *timerWorld) add(e *dunlin.Entry, c dunlin.Change) *dunlin.Entry {
	e.Changes = append(e.Changes, c)
	return e
}

func (w *timerWorld) wrong(got []dunlin.DueTimer, next dunlin.Time, limit int) string {
	var want []dunlin.DueTimer
	for name, due := range w.due {
		want = append(want, dunlin.DueTimer{DeviceKey: name.DeviceKey, Name: name.name, Due: due})
	}
	slices.SortFunc(want, func(a, b dunlin.DueTimer) int {
		return cmp.Or(cmp.Compare(a.Due, b.Due), cmp.Compare(a.Device, b.Device), cmp.Compare(a.Name, b.Name))
	})
	n := 0
	for n < len(want) && n < limit && want[n].Due < w.now {
		n++
	}
	if !slices.Equal(got, want[:n]) {
		return fmt.Sprintf("at %v, limit %d: got %v\nwant %v", w.now, limit, got, want[:n])
	}
	switch {
	case n == len(want):
		if next != 0 {
			return fmt.Sprintf("next %v, want none", next)
		}
	case next == 0 || next > want[n].Due:
		return fmt.Sprintf("next %v, but the next one is due at %v", next, want[n].Due)
	case next < w.now && next != want[n].Due:
		return fmt.Sprintf("next %v is past, the next one is due at %v", next, want[n].Due)
	}
	return ""
}
