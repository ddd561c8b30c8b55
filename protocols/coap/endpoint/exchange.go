package endpoint

import (
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
)

type exchangeState uint8

const (
	free     exchangeState = iota
	working                // the request has no answer yet; if it is confirmable, its ACK is due at the timer
	acked                  // as working, and the empty ACK was sent: the answer will be a message of its own
	separate               // the answer was sent as a confirmable message and waits for its ACK
)

// exchange is a request being worked on, then its answer until that is acknowledged.
type exchange struct {
	timer
	seen        uint64 // its number in the window
	peer        Peer
	gen         uint32
	timeout     time.Duration // of the last transmission
	nextUnacked int32         // the peer's next exchange in state separate, +1
	mid         uint16        // the request's; in state separate, the answer's
	state       exchangeState
	tries       uint8 // retransmissions so far
	confirmable bool
	repeatable  bool // a duplicate may as well be worked on again (GET): long answers aren't kept
	noResponse  uint8
	tokenLen    uint8
	token       [tokenBytesMax]byte
	answer      []byte // state separate: the bytes to retransmit
}

// CanBegin reports whether Begin would find room for an exchange with this request's sender.
func (m *Machine) CanBegin(r *Request) bool {
	if len(m.free) == 0 && len(m.x) >= m.cfg.ExchangesMax {
		return false
	}
	p := m.peers.get(r.Peer)
	return p == nil || int(p.open) < m.cfg.PeerExchangesMax
}

// Begin remembers the request until Finish, and that it was seen for its lifetime. repeatable says that working on it
// twice would do no harm. False means that there is no room: answer 5.03.
func (m *Machine) Begin(now time.Duration, r *Request, repeatable bool) (Ref, bool) {
	if !m.CanBegin(r) {
		m.stats.Refused++
		return 0, false
	}
	p := m.peers.get(r.Peer)
	if p == nil {
		at, ok := m.peers.add(&r.From, now, uint16(m.rand.Uint32()))
		if !ok {
			m.stats.Refused++
			return 0, false
		}
		r.Peer, p = at, &m.peers.slots[at.Slot]
	}
	p.open++
	p.lastSeen, p.recent = seconds(now), true
	i := m.allocate()
	x := &m.x[i]
	*x = exchange{peer: r.Peer, gen: max(x.gen+1, 1), mid: r.MID, state: working, confirmable: r.Type == message.Confirmable,
		repeatable: repeatable, noResponse: noResponseOf(r.Options), tokenLen: uint8(len(r.Token)), answer: x.answer[:0]}
	copy(x.token[:], r.Token)
	lifetime := NonLifetime
	if x.confirmable {
		lifetime = ExchangeLifetime
		m.wheel.arm(m.x, i, now+m.cfg.AckDelay)
	}
	x.seen = m.seen.add(r.Peer, r.MID, r.ID, now+lifetime)
	m.stats.Pending++
	return Ref(x.gen)<<32 | Ref(i), true
}

func (m *Machine) allocate() int32 {
	if n := len(m.free); n > 0 {
		i := m.free[n-1]
		m.free = m.free[:n-1]
		return i
	}
	m.x = append(m.x, exchange{})
	return int32(len(m.x) - 1)
}

// lookup returns the exchange if it still waits for its answer.
func (m *Machine) lookup(ref Ref) (int32, *exchange) {
	i := ref.Slot()
	if i >= len(m.x) || m.x[i].gen != uint32(ref>>32) || m.x[i].state != working && m.x[i].state != acked {
		return 0, nil
	}
	return int32(i), &m.x[i]
}

// PeerOf returns the sender of the exchange's request.
func (m *Machine) PeerOf(ref Ref) Peer {
	if _, x := m.lookup(ref); x != nil {
		return x.peer
	}
	return Peer{}
}

// Finish answers an exchange: in its ACK if that was not sent yet, otherwise in a confirmable message that is
// retransmitted until it is acknowledged. A non-confirmable request is answered by a non-confirmable message.
func (m *Machine) Finish(now time.Duration, ref Ref, resp *Response) {
	i, x := m.lookup(ref)
	if x == nil {
		panic("coap: answer to an exchange that is not open") // its user's bug: each exchange is finished once
	}
	m.stats.Answers++
	m.stats.Pending--
	m.wheel.disarm(m.x, i)
	if resp.Code == codes.ServiceUnavailable {
		// Nothing was done, or nobody knows: a repetition is worked off anew, or it would hear the same for EXCHANGE_LIFETIME
		// (§4.2 lets a server relax here; an uplink is known again by its identity).
		defer m.seen.forget(x.seen)
	}
	p := &m.peers.slots[x.peer.Slot]
	suppressed := suppress(x.noResponse, resp.Code)
	token := x.token[:x.tokenLen]
	switch {
	case !x.confirmable:
		// §4.5: a duplicate of a non-confirmable message is silently ignored, so there is no answer to keep.
		m.seen.answer(x.seen, nil)
		if !suppressed {
			m.emit(&p.addr, m.encode(message.NonConfirmable, m.nextMID(p), token, resp))
		}
		m.end(i)
	case x.state == acked:
		if suppressed {
			m.end(i)
			return
		}
		m.separate(now, i, resp)
	case suppressed:
		m.emitEmpty(&p.addr, message.Acknowledgement, x.mid)
		m.seen.answer(x.seen, m.out[len(m.out)-1].B)
		m.end(i)
	default:
		m.piggyback(i, resp)
		m.end(i)
	}
}

// piggyback answers in the ACK. An answer too long to be kept is either given anew to a duplicate, or shortened.
func (m *Machine) piggyback(i int32, resp *Response) {
	x := &m.x[i]
	to := &m.peers.slots[x.peer.Slot].addr
	token := x.token[:x.tokenLen]
	b := m.encode(message.Acknowledgement, x.mid, token, resp)
	switch {
	case len(b) <= answerBytesMax:
		m.seen.answer(x.seen, b)
	case x.repeatable:
		m.seen.forget(x.seen)
	default:
		b = m.encode(message.Acknowledgement, x.mid, token, &Response{Code: resp.Code})
		m.seen.answer(x.seen, b)
	}
	m.emit(to, b)
}

// separate sends the answer as a confirmable message.
func (m *Machine) separate(now time.Duration, i int32, resp *Response) {
	x := &m.x[i]
	p := &m.peers.slots[x.peer.Slot]
	x.state, x.mid = separate, m.nextMID(p)
	b := m.encode(message.Confirmable, x.mid, x.token[:x.tokenLen], resp)
	x.answer = append(x.answer, b...)
	x.nextUnacked, p.unacked = p.unacked, i+1
	// §4.2: the first timeout is between ACK_TIMEOUT and ACK_TIMEOUT × ACK_RANDOM_FACTOR (1.5), doubled each time.
	x.timeout = m.cfg.AckTimeout + time.Duration(m.rand.Int64N(int64(m.cfg.AckTimeout/2)+1))
	m.wheel.arm(m.x, i, now+x.timeout)
	m.emit(&p.addr, b)
	m.stats.Separate++
	m.stats.Unacked++
}

// end frees an exchange.
func (m *Machine) end(i int32) {
	x := &m.x[i]
	m.wheel.disarm(m.x, i)
	p := &m.peers.slots[x.peer.Slot]
	if x.state == separate {
		m.stats.Unacked--
		link := &p.unacked
		for *link != i+1 {
			link = &m.x[*link-1].nextUnacked
		}
		*link = x.nextUnacked
	}
	p.open--
	x.state = free
	if cap(x.answer) > 256 {
		x.answer = nil // not a kilobyte for every slot that once had a long answer
	}
	m.free = append(m.free, i)
}

// Tick sends what is due at now: empty ACKs and retransmissions. It stops when the output holds limit datagrams; then
// Next is not after now.
func (m *Machine) Tick(now time.Duration, limit int) {
	for len(m.out) < limit {
		i := m.wheel.expired(m.x, now)
		if i < 0 {
			return
		}
		x := &m.x[i]
		to := &m.peers.slots[x.peer.Slot].addr
		switch {
		case x.state == working:
			x.state = acked
			m.emitEmpty(to, message.Acknowledgement, x.mid)
			m.seen.answer(x.seen, m.out[len(m.out)-1].B)
			m.stats.EmptyAcks++
		case int(x.tries) < m.cfg.RetransmitMax:
			x.tries++
			x.timeout *= 2
			m.wheel.arm(m.x, i, now+x.timeout)
			b := m.reserve(len(x.answer))
			copy(b, x.answer)
			m.emit(to, b)
			m.stats.Retransmits++
		default:
			m.stats.GaveUp++
			m.end(i)
		}
	}
}

// Next returns when Tick has work to do; false if nothing is to come.
func (m *Machine) Next() (time.Duration, bool) { return m.wheel.next() }

// Prove records that the exchange's sender receives at its address, as opposed to a forged one.
func (m *Machine) Prove(p Peer) {
	if p := m.peers.get(p); p != nil {
		p.proven = true
	}
}

// Proven reports whether Prove was called for the request's sender.
func (m *Machine) Proven(r *Request) bool {
	p := m.peers.get(r.Peer)
	return p != nil && p.proven
}
