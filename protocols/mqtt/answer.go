package mqtt

import (
	"errors"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// How long a PUBLISH that was refused for now waits before it is offered again: doubling between the two.
const (
	retryMin = 100 * time.Millisecond
	retryMax = 5 * time.Second
)

// settle answers what is done at the head of the ring, in the order in which it was published. A fault ends the
// connection once what was written before it is sent.
func (m *machine) settle(t *turn) *fault {
	for s := m.ring.head; s != nil && s.state.Load() == slotDone; s = m.ring.head {
		err := s.receipt.Err
		if err != nil && temporary(err) {
			m.hold(t, s)
			return nil
		}
		m.ring.pop()
		var end *fault
		if err == nil {
			m.accept(t, s)
		} else {
			end = m.refuse(t, s, err)
		}
		t.g.slots.put(s)
		if end != nil {
			return end
		}
	}
	if m.ring.head == nil {
		m.held = false // all of what was offered again is through
	}
	return nil
}

func (m *machine) accept(t *turn, s *slot) {
	t.counters.accepted++
	if m.held { // progress
		m.heldSince, m.retries = t.now, 0
	}
	switch s.qos {
	case 1:
		m.unanswered--
		t.out = append(t.out, typePuback<<4, 2, byte(s.id>>8), byte(s.id))
	case 2:
		m.sess.receive(t.c, s.id)
		t.out = append(t.out, typePubrec<<4, 2, byte(s.id>>8), byte(s.id))
	}
}

// fatal reports whether a refusal of s has no packet to say so and must end the connection: an ack would say "kept".
func (m *machine) fatal(s *slot) bool { return !m.v5 || s.qos == 0 }

func (m *machine) refuse(t *turn, s *slot, err error) *fault {
	t.counters.refused++
	code := publishCode(err)
	t.g.refusals.log(t, m, s, code, err)
	if m.fatal(s) && s.u.Kind == dunlin.InputResult && errors.Is(err, dunlin.ErrNotFound) {
		// An answer that comes too late, or a second time, is no fault that a device can be repaired of.
		t.counters.refused--
		m.accept(t, s)
		return nil
	}
	if m.fatal(s) {
		return &fault{code, reason(err)}
	}
	m.unanswered--
	why := ""
	if !m.quiet {
		why = reason(err)
	}
	kind := byte(typePuback)
	if s.qos == 2 {
		kind = typePubrec
	}
	t.out = appendAck(t.out, kind, s.id, code, why, m.packetMax)
	return nil
}

// hold is back-pressure: the head of the ring was refused for now. Nothing more is read, and as soon as everything that
// is under way has an answer, what was refused is offered again, in order.
func (m *machine) hold(t *turn, s *slot) {
	if !m.held {
		m.held, m.heldSince, m.retries = true, t.now, 0
		m.retryAt = 0
		t.counters.holds++
	}
	if m.retryAt == 0 {
		wait := min(retryMin<<min(m.retries, 10), retryMax)
		if a := time.Duration(s.receipt.RetryAfterSeconds) * time.Second; a > 0 {
			wait = min(wait, a)
		}
		m.retries++
		m.retryAt = t.now.Add(wait)
	}
	if t.now < m.retryAt {
		return
	}
	for p := m.ring.head; p != nil; p = p.next {
		if p.state.Load() == slotPending {
			return // its answer comes first: what is offered again must not overtake it more than it has
		}
	}
	m.retryAt = 0
	t.c.balked.Store(false)
	for p := m.ring.head; p != nil; p = p.next {
		if err := p.receipt.Err; err != nil && temporary(err) {
			if p.u.MessageID != 0 && !errors.Is(err, dunlin.ErrOverloaded) {
				p.u.Flags |= dunlin.FlagMayRepeat // what was proposed may commit all the same
			}
			p.receipt = dunlin.Receipt{}
			p.state.Store(slotPending)
			t.offer(p)
		}
	}
}
