package endpoint

import (
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
)

// Receive takes in datagram b, of which size bytes were on the wire. If it is a request that was not seen before, it is
// returned, to be answered with Reply or opened with Begin; it is valid until the next Receive, and only while b is.
// Everything else ends here: pings, acknowledgements, resets, duplicates, malformed messages.
func (m *Machine) Receive(now time.Duration, from *Addr, b []byte, size int) *Request {
	r := &m.req
	switch r.parse(b, size) {
	case ignore:
		m.stats.Malformed++
		return nil
	case malformed:
		m.stats.Malformed++
		m.reject(from, r)
		return nil
	}
	if r.Type == message.Acknowledgement || r.Type == message.Reset {
		m.acknowledged(from, r)
		return nil
	}
	class := r.Code >> 5
	if class != 0 || r.Code == codes.Empty {
		m.notRequest(from, r)
		return nil
	}
	r.From, r.ID = *from, hashOf(from, b)
	r.Peer, _ = m.peers.find(from)
	if m.duplicate(now, r) {
		m.stats.Duplicates++
		return nil
	}
	m.stats.Requests++
	return r
}

// reject answers a message that can't be processed (§4.2, §4.3): a confirmable one with a Reset, all others not at all.
func (m *Machine) reject(from *Addr, r *Request) {
	if r.Type == message.Confirmable {
		m.emitEmpty(from, message.Reset, r.MID)
	}
}

// notRequest handles confirmable and non-confirmable messages that are no requests: pings (an empty confirmable
// message, §4.3), responses nobody waits for, and codes of the reserved classes 1, 6 and 7.
func (m *Machine) notRequest(from *Addr, r *Request) {
	if r.Code == codes.Empty && r.Type == message.Confirmable {
		m.stats.Pings++
	} else {
		m.stats.Stray++
	}
	m.reject(from, r)
}

// acknowledged handles ACK and Reset, which are never answered. Only empty ones mean something to a server; an ACK with a
// code is a piggybacked response to a request that we never made (§4.2: silently ignored).
func (m *Machine) acknowledged(from *Addr, r *Request) {
	if r.Code != codes.Empty {
		m.stats.Stray++
		return
	}
	at, ok := m.peers.find(from)
	if !ok {
		m.stats.Stray++
		return
	}
	p := &m.peers.slots[at.Slot]
	for i := p.unacked; i != 0; i = m.x[i-1].nextUnacked {
		if m.x[i-1].mid != r.MID {
			continue
		}
		if r.Type == message.Reset {
			m.stats.Resets++
		} else {
			m.stats.Acked++
		}
		m.end(i - 1)
		return
	}
	m.stats.Stray++ // also a Reset to a non-confirmable answer: there is nothing to stop
}

// duplicate handles a request that was seen before. A message with the same id but other bytes is no retransmission: its
// sender has lost its memory (rebooted, woke up) and starts its message ids anew. It is a new message, since taking it for
// the old one would acknowledge a reading that was never stored.
func (m *Machine) duplicate(now time.Duration, r *Request) bool {
	if r.Peer.Gen == 0 {
		return false
	}
	s := m.seen.lookup(r.Peer, r.MID, now)
	if s == nil {
		return false
	}
	if s.hash != r.ID {
		s.state = forgotten
		return false
	}
	if s.state == answered && s.n > 0 {
		b := m.reserve(int(s.n))
		copy(b, s.answer[:s.n])
		m.emit(&r.From, b)
	}
	return true
}

// Reply answers a request at once, with nothing remembered: for answers that change nothing and cost nothing to give again.
func (m *Machine) Reply(r *Request, resp *Response) {
	m.stats.Answers++
	suppressed := suppress(noResponseOf(r.Options), resp.Code)
	switch {
	case r.Type != message.Confirmable && suppressed:
	case r.Type != message.Confirmable:
		m.emit(&r.From, m.encode(message.NonConfirmable, m.nextMID(m.peers.get(r.Peer)), r.Token, resp))
	case suppressed:
		m.emitEmpty(&r.From, message.Acknowledgement, r.MID)
	default:
		m.emit(&r.From, m.encode(message.Acknowledgement, r.MID, r.Token, resp))
	}
}

// Reject answers a request that must be rejected rather than answered (§4.2, §4.3, §5.4.1) with a Reset.
func (m *Machine) Reject(r *Request) {
	m.emitEmpty(&r.From, message.Reset, r.MID)
}

// nextMID returns the message id of our next own message to p. Each peer has its own sequence: with one for all, a busy
// node would give a peer the same id twice within its lifetime.
func (m *Machine) nextMID(p *peer) uint16 {
	if p == nil {
		m.mid++
		return m.mid
	}
	p.mid++
	return p.mid
}

// noResponseOf returns the value of the option No-Response (RFC 7967), 0 if it is absent or too long.
func noResponseOf(opts message.Options) uint8 {
	for i := len(opts) - 1; i >= 0 && opts[i].ID >= message.NoResponse; i-- {
		if o := &opts[i]; o.ID == message.NoResponse && len(o.Value) == 1 {
			return o.Value[0]
		}
	}
	return 0
}

// suppress reports whether No-Response value v wants no answer of the code's class: bit 1 for 2.xx, 3 for 4.xx, 4 for 5.xx.
func suppress(v uint8, code codes.Code) bool { return v>>(code>>5-1)&1 != 0 && code>>5 >= 2 }
