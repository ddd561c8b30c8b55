package device

import (
	"fmt"
	"strings"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// The answers that need no details of their own are made once: refusing must be cheaper than accepting.
var (
	errQueue   = fmt.Errorf("%w: %d uplinks of this device wait for a commit", dunlin.ErrOverloaded, QueueMax)
	errForeign = fmt.Errorf("%w: the gateway and the device are of different domains", dunlin.ErrForbidden)
	errKind    = fmt.Errorf("%w: an uplink is telemetry, raw or a command's answer", dunlin.ErrInvalid)
	errAnswer  = fmt.Errorf("%w: no command of this id waits for an answer: it has one, its deadline has passed, or there never was one", dunlin.ErrNotFound)
	errMetrics = fmt.Errorf("%w: the device would have more than %d metrics", dunlin.ErrTooLarge, dunlin.MetricsPerDeviceMax)
)

// Accept decides what becomes of an uplink. r are the rules of the device's domain (see Domain; for a stranger, of the
// domain in which it would register), nil if there is no such domain. The receipt counts with the verdict Answered only.
//
// A message that may be a repetition is looked up in the dedupe window. If it is there, it is answered with the sequence
// number it got the first time; if its original is in this turn, the two are answered together; if its original is being
// committed, it queues as everything does and is looked up afterwards.
func (m *Machine) Accept(u *dunlin.Uplink, r *Rules) (Verdict, dunlin.Receipt) {
	if m.phase == Committing {
		if m.queued == QueueMax {
			return Answered, dunlin.Receipt{Err: errQueue, RetryAfterSeconds: 1}
		}
		m.queue.push(u)
		m.queued++
		return Queued, dunlin.Receipt{}
	}
	if err := m.admit(u, r); err != nil {
		return Answered, dunlin.Receipt{Err: err}
	}
	if (u.Flags&(dunlin.FlagMayRepeat|dunlin.FlagForwarded) != 0 || m.overtaken(u)) && u.MessageID != 0 {
		if seen, ok := m.seen(u); ok {
			return Answered, dunlin.Receipt{Seq: seen.Seq, Duplicate: true}
		}
		for v := m.turn.head; v != nil; v = v.Next {
			if v.MessageID == u.MessageID && repeats(u, v.Received) {
				m.repeats.push(u)
				return Repeats, dunlin.Receipt{}
			}
		}
	}
	if m.tooManyMetrics(u.Records) {
		return Answered, dunlin.Receipt{Err: errMetrics}
	}
	if u.Kind == dunlin.InputResult {
		if !m.waits(u.Timer) {
			return Answered, dunlin.Receipt{Err: errAnswer}
		}
		m.rare().results++
	}
	m.fresh += int32(len(u.Records))
	u.Flags &^= dunlin.FlagSkewed | dunlin.FlagForwarded | dunlin.FlagTimedOut
	if skewed(u, r) {
		u.Flags |= dunlin.FlagSkewed
	}
	if !m.Registered() {
		m.joining = r.Domain
	}
	m.turn.push(u)
	m.phase = Gathering
	return Taken, dunlin.Receipt{}
}

// admit says whether the device takes uplinks of this kind from this sender at all.
func (m *Machine) admit(u *dunlin.Uplink, r *Rules) error {
	if !m.Registered() && (r == nil || !r.Register) {
		return dunlin.ErrUnknownDevice
	}
	switch u.Kind {
	case dunlin.InputTelemetry, dunlin.InputRaw, dunlin.InputResult:
	case dunlin.InputLifecycle:
		if !u.Sender.MayAdmin() {
			return errKind
		}
	default:
		return errKind
	}
	if u.Sender.Kind == dunlin.PrincipalGateway {
		domain := m.state.Domain
		if domain == "" {
			domain = r.Domain
		}
		// A gateway whose credential names no domain speaks for its whole tenant.
		if u.Sender.Domain != "" && u.Sender.Domain != domain {
			return errForeign
		}
		if u.Input.Sender == "" {
			u.Input.Sender = u.Sender.ID
		}
	}
	if r != nil && r.PayloadBytesMax > 0 && len(u.Payload) > r.PayloadBytesMax {
		return fmt.Errorf("%w: payload has %d bytes, domain %s takes %d", dunlin.ErrTooLarge, len(u.Payload), r.Domain,
			r.PayloadBytesMax)
	}
	return nil
}

// seen finds u in the dedupe window: itself before one that it might be the original of.
func (m *Machine) seen(u *dunlin.Uplink) (found dunlin.SeenMessage, ok bool) {
	for i := len(m.state.Seen) - 1; i >= 0; i-- {
		switch s := m.state.Seen[i]; {
		case s.ID != u.MessageID:
		case s.At == u.Received && repeats(u, s.At):
			return s, true
		case !ok && repeats(u, s.At):
			found, ok = s, true
		}
	}
	return found, ok
}

// overtaken reports that something newer than u is here already. A device that got no answer sends again, to another node, and
// then the first node's uplink may come last: it does not say that it may be a repetition, because it is the original.
func (m *Machine) overtaken(u *dunlin.Uplink) bool {
	n := len(m.state.Seen)
	return n > 0 && m.state.Seen[n-1].At > u.Received || m.turn.tail != nil && m.turn.tail.Received > u.Received
}

// repeats reports that u is the message of the same id that was received at that time. What another node forwards may be the
// very same uplink once more; whether it may be a repetition by its sender is another question, with less exact an answer. And
// one that was received before a message of its id is that one's original: new ones are received after all that were.
func repeats(u *dunlin.Uplink, at dunlin.Time) bool {
	return u.Flags&dunlin.FlagForwarded != 0 && u.Received == at || u.Flags&dunlin.FlagMayRepeat != 0 && !stale(u, at) || at > u.Received
}

// stale reports that a message seen at that time is not the same as u although their ids are.
func stale(u *dunlin.Uplink, at dunlin.Time) bool {
	return u.Flags&dunlin.FlagExchange != 0 && u.Received.Sub(at) > dunlin.SeenAge
}

func skewed(u *dunlin.Uplink, r *Rules) bool {
	limit := SkewMaxDefault
	if r != nil && r.SkewMax > 0 {
		limit = r.SkewMax
	}
	most := dunlin.Time(limit / time.Microsecond)
	for i := range u.Records {
		if d := u.Records[i].Time - u.Received; d > most || d < -most {
			return true
		}
	}
	return false
}

// tooManyMetrics reports whether the twin would outgrow its bound. Counting is only needed close to it.
func (m *Machine) tooManyMetrics(records []dunlin.Record, more ...[]dunlin.Record) bool {
	n := len(m.state.Reported) + int(m.fresh) + len(records)
	for _, rs := range more {
		n += len(rs)
	}
	if n <= dunlin.MetricsPerDeviceMax {
		return false
	}
	metrics := make(map[string]struct{}, 2*dunlin.MetricsPerDeviceMax)
	for i := range m.state.Reported {
		metrics[m.state.Reported[i].Metric] = struct{}{}
	}
	add := func(rs []dunlin.Record) bool {
		for i := range rs {
			metrics[rs[i].Metric] = struct{}{}
			if len(metrics) > dunlin.MetricsPerDeviceMax {
				return true
			}
		}
		return false
	}
	for u := m.turn.head; u != nil; u = u.Next {
		if add(u.Records) {
			return true
		}
	}
	for _, rs := range more {
		if add(rs) {
			return true
		}
	}
	return add(records)
}

// Fire makes a due timer an input of the turn. It reports false for one that is not armed (any more) with that due time,
// is in the turn already, or whose device is committing: the store will show it again if it still matters then.
func (m *Machine) Fire(t dunlin.DueTimer) bool {
	if m.phase == Committing || m.phase == Gathering && m.turn.head != nil {
		return false // timers come first in a turn, so that an uplink's sequence number is known when it is taken
	}
	for _, f := range m.fired {
		if f.Name == t.Name {
			return false
		}
	}
	for _, armed := range m.state.Timers {
		if armed.Name == t.Name && armed.Due == t.Due {
			m.fired = append(m.fired, t)
			if strings.HasPrefix(t.Name, ownTimer) {
				m.rare().results++
			}
			m.phase = Gathering
			return true
		}
	}
	return false
}

// Inputs appends the turn's inputs to dst: timers and deadlines first, then what happened to the device, then uplinks in the
// order they were taken.
func (m *Machine) Inputs(dst []dunlin.Input) []dunlin.Input {
	for _, t := range m.fired {
		dst = append(dst, TimerInput(dunlin.TimerSet{Name: t.Name, Due: t.Due}))
	}
	if m.extra != nil {
		dst = append(dst, m.extra.occurred...)
	}
	for u := m.turn.head; u != nil; u = u.Next {
		dst = append(dst, u.Input)
	}
	return dst
}

func (m *Machine) mustBe(p Phase) {
	if m.phase != p {
		panic(fmt.Sprintf("device %s is %s, want %s", m.state.DeviceKey, m.phase, p))
	}
}
