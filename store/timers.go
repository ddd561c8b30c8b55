package store

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"github.com/dunlin-iot/dunlin"
)

// The index of timers is coarse: a row says that a device's timer is due some time in a slot of slotWidth; the device's
// state says when. A timer that is set anew with every report, to tell of silence, is the usual one, and mostly stays in
// its slot: then applying writes nothing. What is nearly due is kept exactly, in memory (hotTimers).
const slotWidth = 1 << 25 // µs, about half a minute; part of the key format

func slotOf(due dunlin.Time) int64 { return int64(due) >> 25 }

// timers brings the index from what it was to what it is after the change.
func (a *applier) timers(shard dunlin.ShardID, c *dunlin.Change) error {
	for i := range c.Inputs {
		if in := &c.Inputs[i]; in.Kind == dunlin.InputTimer {
			a.key = appendTimer(a.key[:0], shard, in.Received, c.DeviceKey, in.Timer)
			if err := a.batch.Delete(a.key, nil); err != nil {
				return err
			}
			a.timed = append(a.timed, timerMove{shard, c.DeviceKey, in.Timer, 0})
		}
	}
	for i := range c.Timers {
		t := &c.Timers[i]
		a.timed = append(a.timed, timerMove{shard, c.DeviceKey, t.Name, t.Due})
		if t.Was != 0 && t.Due != 0 && slotOf(t.Was) == slotOf(t.Due) && !fired(c, t.Name) {
			continue
		}
		if t.Was != 0 {
			a.key = appendTimer(a.key[:0], shard, t.Was, c.DeviceKey, t.Name)
			if err := a.batch.Delete(a.key, nil); err != nil {
				return err
			}
		}
		if t.Due != 0 {
			a.key = appendTimer(a.key[:0], shard, t.Due, c.DeviceKey, t.Name)
			if err := a.batch.Set(a.key, nil, nil); err != nil {
				return err
			}
		}
	}
	return nil
}

// fired reports whether a timer of that name is among the change's inputs: then its row is gone already.
func fired(c *dunlin.Change, name string) bool {
	for i := range c.Inputs {
		if c.Inputs[i].Kind == dunlin.InputTimer && c.Inputs[i].Timer == name {
			return true
		}
	}
	return false
}

// timerMove is what became of a timer: when it is due now, 0 if never.
type timerMove struct {
	shard dunlin.ShardID
	key   dunlin.DeviceKey
	name  string
	due   dunlin.Time
}

// hotTimers are a shard's timers that are due in a slot that TimersDue has reached, by their exact times. They are read from
// the index and the devices' states when the slot is reached, and kept in step by Apply from then on.
type hotTimers struct {
	sync.Mutex
	upTo   int64 // slot; timers of later ones are not here
	loaded bool
	due    map[timerName]dunlin.Time
	list   []dunlin.DueTimer // by due; rows that due does not confirm are stale
	fresh  []dunlin.DueTimer // not yet in list
}

type timerName struct {
	dunlin.DeviceKey
	name string
}

// move brings a timer that Apply has moved up to date. Most are due later than what is hot, and were.
func (h *hotTimers) move(m *timerMove) {
	h.Lock()
	defer h.Unlock()
	if !h.loaded || len(h.due) == 0 && (m.due == 0 || slotOf(m.due) > h.upTo) {
		return
	}
	h.setLocked(timerName{m.key, m.name}, m.due)
}

func (h *hotTimers) setLocked(name timerName, due dunlin.Time) {
	if due == 0 || slotOf(due) > h.upTo {
		delete(h.due, name)
		return
	}
	if h.due == nil {
		h.due = make(map[timerName]dunlin.Time)
	}
	if was, ok := h.due[name]; ok && was == due {
		return
	}
	// The name's strings may point into an entry, or into a row: what stays here must not keep those.
	own := timerName{dunlin.DeviceKey{Tenant: dunlin.Tenant(strings.Clone(string(name.Tenant))), Device: dunlin.DeviceID(strings.Clone(string(name.Device)))}, strings.Clone(name.name)}
	delete(h.due, name)
	h.due[own] = due
	h.fresh = append(h.fresh, dunlin.DueTimer{DeviceKey: own.DeviceKey, Name: own.name, Due: due})
	if len(h.fresh) > 2*len(h.due)+1024 { // nobody asks, as on a replica that is not the owner
		h.sortLocked()
	}
}

// sortLocked brings fresh rows into the list and stale ones out of it.
func (h *hotTimers) sortLocked() {
	if len(h.fresh) == 0 && len(h.list) <= 2*len(h.due) {
		return
	}
	h.list = append(h.list, h.fresh...)
	h.fresh = h.fresh[:0]
	h.list = slices.DeleteFunc(h.list, func(t dunlin.DueTimer) bool { return !h.confirmsLocked(&t) })
	order := func(a, b dunlin.DueTimer) int {
		return cmp.Or(cmp.Compare(a.Due, b.Due), strings.Compare(string(a.Tenant), string(b.Tenant)),
			strings.Compare(string(a.Device), string(b.Device)), strings.Compare(a.Name, b.Name))
	}
	slices.SortFunc(h.list, order)
	h.list = slices.CompactFunc(h.list, func(a, b dunlin.DueTimer) bool { return order(a, b) == 0 })
}

func (h *hotTimers) confirmsLocked(t *dunlin.DueTimer) bool {
	due, ok := h.due[timerName{t.DeviceKey, t.Name}]
	return ok && due == t.Due
}

// TimersDue returns armed timers that are due before a moment, oldest first, at most limit, and when to ask again: the
// first one that it left out is not due before next (0: there is none). A timer is shown until a change that it fired in,
// or that sets it anew, is applied.
func (s *State) TimersDue(shard dunlin.ShardID, before dunlin.Time, limit int) (due []dunlin.DueTimer, next dunlin.Time, err error) {
	if err := s.check(shard); err != nil {
		return nil, 0, err
	}
	h := &s.hot[shard]
	h.Lock()
	defer h.Unlock()
	later, err := s.reachLocked(h, shard, slotOf(before))
	if err != nil {
		return nil, 0, fmt.Errorf("timers of shard %d: %w", shard, err)
	}
	h.sortLocked()
	for i := range h.list {
		t := &h.list[i]
		if !h.confirmsLocked(t) {
			continue
		}
		if t.Due >= before || len(due) >= limit {
			return due, t.Due, nil
		}
		due = append(due, *t)
	}
	return due, later, nil
}

// reachLocked makes the timers of all slots up to slot hot, and returns when the first slot behind has a timer, 0 if none has.
func (s *State) reachLocked(h *hotTimers, shard dunlin.ShardID, slot int64) (later dunlin.Time, err error) {
	head := appendHead(nil, shard, tabTimer)
	from := head
	if h.loaded {
		slot = max(slot, h.upTo)
		from = appendTime(head, dunlin.Time(h.upTo+1))
	}
	it, err := s.eng.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: after(head)})
	if err != nil {
		return 0, err
	}
	defer it.Close()
	was := h.upTo
	h.upTo = max(h.upTo, slot)
	if !h.loaded {
		h.upTo = slot
	}
	for ok := it.First(); ok; ok = it.Next() {
		t, at, err := cutTimer(it.Key())
		if err == nil && at > slot {
			h.loaded = true
			return dunlin.Time(max(at, math.MinInt64>>25) << 25), nil
		}
		if err == nil {
			err = s.heatLocked(h, shard, t)
		}
		if err != nil {
			h.upTo = was // what was read is no harm: it is read again
			return 0, err
		}
	}
	h.loaded = h.loaded || it.Error() == nil
	return 0, it.Error()
}

// heatLocked reads when a timer is due.
func (s *State) heatLocked(h *hotTimers, shard dunlin.ShardID, t timerName) error {
	st, found, err := s.LoadDevice(shard, t.DeviceKey)
	if err != nil || !found {
		return err
	}
	for i := range st.Timers {
		if st.Timers[i].Name == t.name {
			h.setLocked(t, st.Timers[i].Due)
		}
	}
	return nil
}

// cutTimer reads a key that appendTimer made.
func cutTimer(key []byte) (t timerName, slot int64, err error) {
	at, b, err := cutTime(key[keyHead:])
	if err != nil {
		return t, 0, err
	}
	var tenant, device string
	if tenant, b, err = cutName(b); err != nil {
		return t, 0, err
	}
	if device, b, err = cutName(b); err != nil {
		return t, 0, err
	}
	t.DeviceKey = dunlin.DeviceKey{Tenant: dunlin.Tenant(tenant), Device: dunlin.DeviceID(device)}
	t.name, _, err = cutName(b)
	return t, int64(at), err
}
