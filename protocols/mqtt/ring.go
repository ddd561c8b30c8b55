package mqtt

import (
	"sync"
	"sync/atomic"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/payload"
)

// slot is one PUBLISH on its way: the uplink, who waits for it, and the place of its answer in the order of answers.
// Slots are pooled; between Done and the pool only the connection's flusher touches one.
type slot struct {
	u       dunlin.Uplink
	pack    *payload.Pack // not nil: a gateway's, of several devices; u is only its address
	c       *conn
	next    *slot // in its ring
	receipt dunlin.Receipt
	state   atomic.Uint32
	id      uint16
	qos     byte
}

const (
	slotPending = iota // the Ingestor has it, or it waits for its turn to be ingested
	slotDone           // receipt says what became of it
)

// Done is called by the commit for many connections in a row: it marks the slot, queues the connection for its flusher
// and does nothing else. As soon as the slot is marked it may be another PUBLISH's.
func (s *slot) Done(_ *dunlin.Uplink, r dunlin.Receipt) {
	c := s.c
	s.receipt = r
	if r.Err != nil && temporary(r.Err) {
		c.balked.Store(true) // before whoever refuses knows that it is told
	}
	s.state.Store(slotDone)
	c.queue()
}

// slotPool recycles slots; an uplink of a message costs no allocation but that of its records.
type slotPool struct{ p sync.Pool }

func (p *slotPool) get() *slot {
	if s, ok := p.p.Get().(*slot); ok {
		return s
	}
	return new(slot)
}

// put takes a slot back that nobody refers to any more.
func (p *slotPool) put(s *slot) {
	s.u = dunlin.Uplink{} // the receiver keeps records and payload; we don't
	s.receipt = dunlin.Receipt{}
	s.c, s.pack = nil, nil
	s.state.Store(slotPending)
	p.p.Put(s)
}

// ackRing is the PUBLISHes of a connection that aren't answered yet, oldest first: an answer leaves only when all
// before it have left, whatever order the commits come in ([MQTT-4.6.0-2]).
type ackRing struct {
	head, tail *slot
	n          int
}

func (r *ackRing) push(s *slot) {
	s.next = nil
	if r.tail == nil {
		r.head = s
	} else {
		r.tail.next = s
	}
	r.tail = s
	r.n++
}

func (r *ackRing) pop() *slot {
	s := r.head
	r.head, s.next = s.next, nil
	if r.head == nil {
		r.tail = nil
	}
	r.n--
	return s
}
