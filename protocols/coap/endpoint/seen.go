package endpoint

import (
	"math/bits"
	"time"
)

// answerBytesMax bounds the answer kept for duplicates: a 2.04 takes 4 to 12 bytes, a 5.03 with Max-Age 3 more.
const answerBytesMax = 32

type seenState uint8

const (
	forgotten seenState = iota // of no use any more
	pending                    // being worked on: duplicates need no answer yet
	answered                   // duplicates get the answer again; none if it is empty
)

// seenMessage is a request in the window; 64 bytes, no pointers.
type seenMessage struct {
	hash    uint64 // of the whole message
	slot    uint32 // sender
	gen     uint32
	expires uint32 // seconds
	next    uint32 // in the bucket, +1
	mid     uint16
	state   seenState
	n       uint8
	answer  [answerBytesMax]byte
}

// window remembers the last messages by sender and message id: a ring with a hash index. When the ring is full the oldest
// goes, possibly before its lifetime has ended. That is harmless: only the first minute has retransmissions in it, and an
// uplink that comes through twice is still caught by its device's own window (dunlin.DeviceState.Seen).
type window struct {
	ring    []seenMessage
	buckets []uint32 // index in ring, +1
	total   uint64   // messages ever added; the ring holds the last len(ring) of them
	seed    uint64
	shift   uint
}

func newWindow(limit int, seed uint64) window {
	n := 1 << bits.Len(uint(max(limit, 2)-1))
	// Pages of the ring that were never touched take no memory, so it is made at its full size.
	return window{ring: make([]seenMessage, n), buckets: make([]uint32, n), seed: seed | 1, shift: uint(64 - bits.Len(uint(n-1)))}
}

func (w *window) bucket(p Peer, mid uint16) *uint32 {
	key := uint64(p.Slot)<<32 | uint64(p.Gen)<<16 ^ uint64(mid)
	return &w.buckets[(key^key>>29)*w.seed>>w.shift]
}

// lookup returns the unexpired message, or nil.
func (w *window) lookup(p Peer, mid uint16, now time.Duration) *seenMessage {
	for i := *w.bucket(p, mid); i != 0; {
		s := &w.ring[i-1]
		if s.mid == mid && s.slot == p.Slot && s.gen == p.Gen && s.state != forgotten && seconds(now) <= s.expires {
			return s
		}
		i = s.next
	}
	return nil
}

// add remembers a message as pending and returns its number.
func (w *window) add(p Peer, mid uint16, hash uint64, expires time.Duration) uint64 {
	at := w.total % uint64(len(w.ring))
	s := &w.ring[at]
	if w.total >= uint64(len(w.ring)) {
		w.unlink(s, uint32(at)+1)
	}
	b := w.bucket(p, mid)
	*s = seenMessage{hash: hash, slot: p.Slot, gen: p.Gen, expires: seconds(expires) + 1, next: *b, mid: mid, state: pending}
	*b = uint32(at) + 1
	w.total++
	return w.total - 1
}

func (w *window) unlink(s *seenMessage, id uint32) {
	for link := w.bucket(Peer{s.slot, s.gen}, s.mid); *link != 0; link = &w.ring[*link-1].next {
		if *link == id {
			*link = s.next
			return
		}
	}
	panic("coap: a message in the window is not in its bucket")
}

// at returns message number n, or nil if the ring has moved on.
func (w *window) at(n uint64) *seenMessage {
	if w.total-n > uint64(len(w.ring)) {
		return nil
	}
	return &w.ring[n%uint64(len(w.ring))]
}

// answer keeps what message number n was answered with.
func (w *window) answer(n uint64, b []byte) {
	if s := w.at(n); s != nil {
		s.state, s.n = answered, uint8(copy(s.answer[:], b))
	}
}

// forget lets message number n come again.
func (w *window) forget(n uint64) {
	if s := w.at(n); s != nil {
		s.state = forgotten
	}
}
