package simnet

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/device"
	"github.com/dunlin-iot/dunlin/entry"
)

const (
	flyingMax = 4
	silence   = 600 * time.Millisecond // after which a device's timer finds it silent
)

var rules = &device.Rules{Domain: "sim", Register: true, Stages: []dunlin.Stage{{Plugin: "watch"}}}

// owner is what a node does for a shard that it owns in a term: what package actors does, without its actors.
type owner struct {
	n      *node
	shard  dunlin.ShardID
	term   uint64
	over   bool
	cells  map[dunlin.DeviceKey]*device.Machine
	mail   []*dunlin.Uplink
	flying int
	posted bool // a turn is coming
}

// turn is one entry on its way.
type turn struct {
	cells   []*device.Machine
	changes []dunlin.Change
}

// onOwner is told by the Machine.
func (n *node) onOwner(sh dunlin.ShardID, term uint64, is bool) {
	w := n.w
	was := n.owners[sh]
	if was != nil {
		was.over = true
		n.owners[sh] = nil
		for _, u := range was.mail {
			u.Waiter.Done(u, dunlin.Receipt{Err: dunlin.ErrNotOwner, RetryAfterSeconds: 1})
		}
		was.mail = nil
	}
	if !is {
		w.say("%s gives shard %d up", n, sh)
		return
	}
	w.stats.elections++
	w.say("%s owns shard %d in term %d", n, sh, term)
	w.truth.own(w, n, sh, term)
	o := &owner{n: n, shard: sh, term: term, cells: map[dunlin.DeviceKey]*device.Machine{}}
	if w.planted == staleCells {
		for _, c := range w.clients {
			if m := n.stale[c.key]; m != nil && c.shard == sh && m.Phase() == device.Idle {
				o.cells[c.key] = m
			}
		}
	}
	n.owners[sh] = o
	o.post(0)
}

// post lets the owner take a turn soon.
func (o *owner) post(d time.Duration) {
	if o.posted || o.over {
		return
	}
	o.posted = true
	o.n.later(d, func() {
		o.posted = false
		if !o.over {
			o.take()
		}
	})
}

// accept takes an uplink.
func (o *owner) accept(u *dunlin.Uplink) {
	o.mail = append(o.mail, u)
	o.post(2 * time.Millisecond)
}

// cell activates a device.
func (o *owner) cell(key dunlin.DeviceKey) *device.Machine {
	if m := o.cells[key]; m != nil {
		return m
	}
	st, known, err := o.n.db.State().LoadDevice(o.shard, key)
	if err != nil {
		o.n.w.fail("%s: %w", o.n, err)
	}
	if !known {
		st = &dunlin.DeviceState{DeviceKey: key}
	}
	m := device.Make(*st)
	o.cells[key] = &m
	if o.n.w.planted == staleCells {
		o.n.stale[key] = &m
	}
	return &m
}

// take makes one turn of due timers and the mail.
func (o *owner) take() {
	if o.flying >= flyingMax {
		return // settle posts again
	}
	t := &turn{}
	add := func(m *device.Machine) {
		if !slices.Contains(t.cells, m) {
			t.cells = append(t.cells, m)
		}
	}
	due, _, err := o.n.db.State().TimersDue(o.shard, o.n.wall()+1, 64)
	if err != nil {
		o.n.w.fail("%s: %w", o.n, err)
		return
	}
	for _, row := range due {
		if m := o.cell(row.DeviceKey); m.Fire(row) {
			add(m)
		}
	}
	mail := o.mail
	o.mail = nil
	for _, u := range mail {
		m := o.cell(u.DeviceKey)
		switch v, r := m.Accept(u, rules); v {
		case device.Taken:
			add(m)
		case device.Answered:
			u.Waiter.Done(u, r)
		}
	}
	if len(t.cells) > 0 {
		o.propose(t)
	}
}

func (o *owner) propose(t *turn) {
	now := o.n.wall()
	e := dunlin.Entry{Shard: o.shard, Term: o.term, At: now, Changes: make([]dunlin.Change, len(t.cells))}
	for i, m := range t.cells {
		c := &e.Changes[i]
		m.Propose(c, m.Inputs(nil))
		out := watch(m.PluginState(0), c.Inputs)
		m.Stage(c, 0, dunlin.ModuleHash{}, &out, now)
		if c.Created {
			row, err := json.Marshal(dunlin.Device{Tenant: c.Tenant, ID: c.Device, Domain: c.Domain, Revision: 1, CreatedAt: now})
			if err != nil {
				panic(err)
			}
			e.Puts = append(e.Puts, dunlin.Put{Table: dunlin.TableDevices, Key: c.DeviceKey.String(), Value: row})
		}
	}
	t.changes = e.Changes
	o.flying++
	o.n.m.Propose(o.shard, o.term, entry.Append(nil, &e), func(_ uint64, err error) { o.settle(t, err) })
	o.n.poke()
}

// settle ends a turn that has come back. One that was not committed for certain drops its cells: the store knows better.
func (o *owner) settle(t *turn, err error) {
	o.flying--
	lie := err != nil && o.n.w.planted == staleAcks && errors.Is(err, dunlin.ErrNotOwner)
	for i, m := range t.cells {
		var answers device.Answers
		if err == nil || lie {
			answers = m.Apply(&t.changes[i])
		} else {
			answers = m.Abort(dunlin.Receipt{Err: dunlin.ErrUnavailable, RetryAfterSeconds: 1})
		}
		for u, r := answers.Next(); u != nil; u, r = answers.Next() {
			u.Waiter.Done(u, r)
		}
		var waiting []*dunlin.Uplink
		for u, _ := m.Release(); u != nil; u = u.Next {
			waiting = append(waiting, u)
		}
		if err != nil || o.over {
			for _, u := range waiting {
				u.Next = nil
				u.Waiter.Done(u, dunlin.Receipt{Err: dunlin.ErrUnavailable, RetryAfterSeconds: 1})
			}
			delete(o.cells, m.Key())
			continue
		}
		o.mail = append(waiting, o.mail...)
	}
	o.post(time.Millisecond)
}

// timers lets owners look for timers that are due.
func (n *node) timers() {
	for _, o := range n.owners {
		if o != nil {
			o.post(0)
		}
	}
}

// watch is the plugin: it counts inputs, tells of values that end in 8 or 9, and of devices that are silent.
func watch(state []byte, inputs []dunlin.Input) dunlin.Outcome {
	count := 0
	if len(state) > 0 {
		if _, err := fmt.Sscan(string(state), &count); err != nil {
			panic(err)
		}
	}
	var out dunlin.Outcome
	for i := range inputs {
		in := &inputs[i]
		count++
		if in.Kind == dunlin.InputTimer {
			out.Signals = append(out.Signals, dunlin.AlertSignal{Input: i, Raise: true, Severity: dunlin.Info, Rule: "silent"})
			continue
		}
		hot := int(in.Records[0].Num)%10 >= 8
		out.Signals = append(out.Signals, dunlin.AlertSignal{Input: i, Rule: "silent"},
			dunlin.AlertSignal{Input: i, Raise: hot, Severity: dunlin.Major, Rule: "hot"})
		out.Timers = []dunlin.TimerSet{{Name: "silence", Due: in.Received.Add(silence)}}
	}
	out.State = fmt.Append(nil, count)
	return out
}
