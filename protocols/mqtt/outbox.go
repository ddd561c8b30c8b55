package mqtt

import (
	"bytes"
	"slices"

	"github.com/dunlin-iot/dunlin"
)

// outbox is the QoS 1 messages to one subscriber that it hasn't acknowledged, oldest first. It is bounded: what doesn't
// fit stays in the log. It outlives connections; on a new one, what is left goes out again, in order and with DUP.
//
//	 head                       sent                 n
//	  ▼                          ▼                   ▼
//	[open][acked][open][open]  [to be sent again] …
//
// Packet ids are dealt in turn, so an id's place follows from the head's.
type outbox struct {
	items  []inflight // a ring; its messages' memory is used again
	head   int
	n      int
	sent   int // of n, on this connection
	open   int // of sent, without an ack: what the client's Receive Maximum bounds
	bytes  int
	lastID uint16
}

// inflight is one message.
type inflight struct {
	buf    []byte // topic, payload
	topic  int
	subIDs []uint32
	id     uint16
	kind   newsKind
	media  string
	acked  bool
	dup    bool
	hollow bool // known by its place alone: what it says is still to be read from the log
	place  place
	of     dunlin.DeviceID // of a hollow one
}

// device is whose message it is.
func (it *inflight) device() dunlin.DeviceID {
	if it.hollow {
		return it.of
	}
	topic := it.buf[len("d/"):it.topic] // or p/; the device is the next level
	return dunlin.DeviceID(topic[:bytes.IndexByte(topic, '/')])
}

// restore makes o of what was kept: hollow messages, to be filled before they are sent again.
func (o *outbox) restore(lastID uint16, items []keptItem) {
	o.lastID = lastID
	if len(items) == 0 {
		return
	}
	o.items, o.n = make([]inflight, len(items)), len(items)
	for i := range items {
		it := &items[i]
		id := (int(lastID)+65535-(len(items)-i))%65535 + 1
		o.items[i] = inflight{id: uint16(id), kind: it.kind, acked: it.acked, hollow: true, place: it.place, of: it.device}
	}
	o.trim()
}

// fill makes a hollow message whole.
func (o *outbox) fill(it *inflight, m *message) {
	it.buf = append(append(it.buf[:0], m.topic...), m.payload...)
	it.topic = len(m.topic)
	it.subIDs = append(it.subIDs[:0], m.subIDs...)
	it.hollow, it.media = false, m.media
	o.bytes += len(it.buf)
}

func (o *outbox) at(i int) *inflight { return &o.items[(o.head+i)%len(o.items)] }

// room reports whether another message may be added and sent at once.
func (o *outbox) room(receiveMax, window, bytesMax int) bool {
	return o.sent == o.n && o.open < receiveMax && o.n < window && (o.bytes < bytesMax || o.n == 0)
}

// add takes a copy of m. The caller asked room.
func (o *outbox) add(m *message) {
	if o.n == len(o.items) {
		o.grow()
	}
	it := o.at(o.n)
	o.n++
	o.lastID = o.lastID%65535 + 1
	it.buf = append(append(it.buf[:0], m.topic...), m.payload...)
	it.topic = len(m.topic)
	it.subIDs = append(it.subIDs[:0], m.subIDs...)
	it.id, it.kind, it.media, it.acked, it.dup, it.hollow = o.lastID, m.kind, m.media, false, false, false
	o.bytes += len(it.buf)
}

func (o *outbox) grow() {
	items := make([]inflight, max(8, 2*len(o.items)))
	for i := range o.n {
		items[i] = *o.at(i)
	}
	o.items, o.head = items, 0
}

// next returns the next message to send on this connection, nil if there is none or the client has enough.
func (o *outbox) next(receiveMax int) *inflight {
	for o.sent < o.n {
		it := o.at(o.sent)
		if it.acked {
			o.sent++
			continue
		}
		if o.open >= receiveMax {
			return nil
		}
		o.sent++
		o.open++
		return it
	}
	return nil
}

// ack takes a PUBACK in whatever order it comes; false: no such message.
func (o *outbox) ack(id uint16) bool {
	if o.n == 0 || id == 0 {
		return false
	}
	i := int(id) - int(o.at(0).id)
	if i < 0 {
		i += 65535
	}
	if i >= o.n || o.at(i).acked {
		return false
	}
	o.at(i).acked = true
	if i < o.sent {
		o.open--
	}
	o.trim()
	return true
}

// trim lets go of what is acknowledged at the head.
func (o *outbox) trim() {
	for o.n > 0 && o.at(0).acked {
		o.bytes -= len(o.at(0).buf)
		o.head = (o.head + 1) % len(o.items)
		o.n--
		o.sent = max(0, o.sent-1)
	}
	if o.n == 0 && len(o.items) > 32 {
		o.items, o.head = nil, 0 // a burst is over
	}
}

// restart prepares for a new connection: what isn't acknowledged is to be sent again.
func (o *outbox) restart() {
	o.sent, o.open = 0, 0
	for i := range o.n {
		o.at(i).dup = true
	}
}

// ids lists the packet ids that wait for an ack, for tests and logs.
func (o *outbox) ids() []uint16 {
	var ids []uint16
	for i := range o.n {
		if !o.at(i).acked {
			ids = append(ids, o.at(i).id)
		}
	}
	return slices.Clip(ids)
}
