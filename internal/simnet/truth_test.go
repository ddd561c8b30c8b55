package simnet

import (
	"cmp"
	"crypto/sha256"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/entry"
)

// truth is what has been committed, as the first node to apply it saw it, and what that means. It knows nothing of how a
// store works.
type truth struct {
	shards   []history
	messages map[uint64]uint64 // message id → the number that it got
	owners   map[reign]dunlin.NodeID
	hashes   map[place][32]byte
	alerts   map[string]bool // ids that were raised

	entries, fenced int
}

type reign struct {
	shard dunlin.ShardID
	term  uint64
}

type place struct {
	shard dunlin.ShardID
	index uint64
}

// history is a shard's log from its birth.
type history struct {
	log     []committed
	devices map[dunlin.DeviceKey]*lifeOf
	order   []dunlin.DeviceKey
}

type committed struct {
	term uint64
	sum  [32]byte
	by   string
}

// lifeOf is a device as its changes make it.
type lifeOf struct {
	state    dunlin.DeviceState
	readings []dunlin.Record
	alerts   map[string]dunlin.Alert // by id
}

func newTruth(shards int) *truth {
	t := &truth{shards: make([]history, shards), messages: map[uint64]uint64{}, owners: map[reign]dunlin.NodeID{}, hashes: map[place][32]byte{}, alerts: map[string]bool{}}
	for i := range t.shards {
		t.shards[i].devices = map[dunlin.DeviceKey]*lifeOf{}
	}
	return t
}

// own notes who owns a shard in a term.
func (t *truth) own(w *world, n *node, sh dunlin.ShardID, term uint64) {
	r := reign{sh, term}
	if was, ok := t.owners[r]; ok && was != n.id {
		w.fail("shard %d is owned by %s and by %s in term %d", sh, w.node(was), n, term)
	}
	t.owners[r] = n.id
}

// record notes an entry on its way to a node's state.
func (t *truth) record(n *node, c *dunlin.Committed) {
	h := &t.shards[c.Shard]
	sum := sha256.Sum256(slices.Concat(c.Data, []byte{0}, c.Conf))
	switch {
	case c.Index <= uint64(len(h.log)):
		if was := h.log[c.Index-1]; was.term != c.Term || was.sum != sum {
			n.w.fail("shard %d: entry %d is of term %d for %s, and another of term %d for %s", c.Shard, c.Index, was.term, was.by, c.Term, n)
		}
		return
	case c.Index > uint64(len(h.log))+1:
		n.w.fail("shard %d: %s applies entry %d, nobody has applied %d", c.Shard, n, c.Index, len(h.log)+1)
		return
	}
	h.log = append(h.log, committed{c.Term, sum, n.String()})
	n.w.mark(uint64(c.Shard), c.Index, c.Term, uint64(len(c.Data)))
	if len(c.Data) == 0 {
		return
	}
	e, err := entry.Decode(slices.Clone(c.Data))
	if err != nil {
		n.w.fail("shard %d: entry %d: %w", c.Shard, c.Index, err)
		return
	}
	t.entries++
	if e.Term != c.Term {
		t.fenced++
		return
	}
	if t.owners[reign{c.Shard, c.Term}] == 0 {
		n.w.fail("shard %d: entry %d of term %d, in which nobody owned it", c.Shard, c.Index, c.Term)
	}
	for i := range e.Changes {
		if err := t.change(h, &e.Changes[i]); err != nil {
			n.w.fail("shard %d: entry %d: %w", c.Shard, c.Index, err)
			return
		}
	}
}

func (t *truth) change(h *history, c *dunlin.Change) error {
	d := h.devices[c.DeviceKey]
	if d == nil {
		d = &lifeOf{alerts: map[string]dunlin.Alert{}}
		h.devices[c.DeviceKey] = d
		h.order = append(h.order, c.DeviceKey)
	}
	if want := d.state.Version + uint64(len(c.Inputs)); c.Version != want {
		return fmt.Errorf("device %s comes to version %d with %d inputs, from %d", c.Device, c.Version, len(c.Inputs), d.state.Version)
	}
	for i := range c.Inputs {
		in := &c.Inputs[i]
		if in.Kind == dunlin.InputTimer {
			if !slices.ContainsFunc(d.state.Timers, func(s dunlin.TimerSet) bool { return s.Name == in.Timer && s.Due == in.Received }) {
				return fmt.Errorf("timer %s of %s fires, and is not armed for %s", in.Timer, c.Device, in.Received)
			}
			continue
		}
		if was, twice := t.messages[in.MessageID]; twice {
			return fmt.Errorf("message %x of %s has number %d, and now %d", in.MessageID, c.Device, was, c.Seq(i))
		}
		t.messages[in.MessageID] = c.Seq(i)
		d.readings = append(d.readings, in.Records...)
	}
	for i := range c.Alerts {
		a := &c.Alerts[i]
		_, active := d.alerts[a.ID()]
		other := slices.ContainsFunc(d.state.Alerts, func(o dunlin.Alert) bool { return o.Rule == a.Rule })
		if raised := a.State == dunlin.AlertRaised && a.Seq == a.RaisedSeq; raised && (active || t.alerts[a.ID()]) || !raised && !active {
			return fmt.Errorf("alert %s is %s; raised before: %t, active: %t, another: %t", a.ID(), a.State, t.alerts[a.ID()], active, other)
		}
		t.alerts[a.ID()] = true
		if d.alerts[a.ID()] = *a; a.State == dunlin.AlertCleared {
			delete(d.alerts, a.ID())
		}
	}
	delta := dunlin.DeltaOf(c)
	d.state.Merge(&delta, true)
	if len(c.Stages) == 1 && string(c.Stages[0].State) != fmt.Sprint(c.Version) {
		return fmt.Errorf("the plugin of %s has counted %s inputs, at version %d", c.Device, c.Stages[0].State, c.Version)
	}
	return nil
}

// promised checks an acknowledgement at the moment it is given.
func (t *truth) promised(l *letter, r dunlin.Receipt) {
	seq, ok := t.messages[l.id]
	if !ok {
		l.c.w.fail("message %x of %s is acknowledged, and in no entry that was applied", l.id, l.c.key.Device)
	} else if seq != r.Seq && (r.Seq != 0 || !r.Duplicate) {
		l.c.w.fail("message %x of %s is acknowledged with number %d, it has %d", l.id, l.c.key.Device, r.Seq, seq)
	}
}

// hash compares a replica with those that have applied as much.
func (t *truth) hash(n *node, sh dunlin.ShardID) {
	sum, index, err := n.db.State().Hash(sh)
	if err != nil {
		n.w.fail("%s: %w", n, err)
		return
	}
	at := place{sh, index}
	if was, ok := t.hashes[at]; ok && was != sum {
		n.w.fail("shard %d at entry %d has hash %x on %s, and %x elsewhere", sh, index, sum[:4], n, was[:4])
	}
	t.hashes[at] = sum
}

// check compares all that a replica shows of a shard with the truth.
func (t *truth) check(n *node, sh dunlin.ShardID) error {
	s, h := n.db.State(), &t.shards[sh]
	for _, key := range h.order {
		d := h.devices[key]
		got, known, err := s.LoadDevice(sh, key)
		if err != nil || !known {
			return fmt.Errorf("device %s: known %t: %w", key, known, err)
		}
		if !reflect.DeepEqual(tidy(*got), tidy(d.state)) {
			return fmt.Errorf("device %s is\n%+v, want\n%+v", key, *got, d.state)
		}
		page, err := s.Readings(sh, dunlin.ReadingsQuery{DeviceKey: key, Limit: 10_000})
		if err != nil {
			return fmt.Errorf("readings of %s: %w", key, err)
		}
		want := slices.Clone(d.readings)
		slices.SortFunc(want, func(a, b dunlin.Record) int { return cmp.Compare(a.Time, b.Time) })
		if !slices.EqualFunc(page.Rows, want, dunlin.Record.Same) {
			return fmt.Errorf("device %s has %d readings, want %d", key, len(page.Rows), len(want))
		}
	}
	return nil
}

// tidy makes states comparable.
func tidy(s dunlin.DeviceState) string {
	timers := slices.Clone(s.Timers)
	for i := range timers {
		timers[i].Was = 0
	}
	slices.SortFunc(timers, func(a, b dunlin.TimerSet) int { return strings.Compare(a.Name, b.Name) })
	alerts := slices.Clone(s.Alerts)
	slices.SortFunc(alerts, func(a, b dunlin.Alert) int { return strings.Compare(a.ID(), b.ID()) })
	return fmt.Sprint(s.DeviceKey, s.Domain, s.Version, s.SeenAt, s.Reported, s.Plugins, timers, alerts, s.Seen)
}
