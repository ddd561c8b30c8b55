// Package endpoint is the message layer of a CoAP server (RFC 7252 §4) as a pure machine: datagrams and time go in,
// requests and datagrams come out, and there is no goroutine, clock, socket or lock in it. It is a part of protocols/coap
// and imported by that room alone. Part of the runtime; no compatibility promise before v1.
//
//	              Receive ──▶ *Request ──▶ Reply            at once, nothing remembered: errors, .well-known/core
//	datagram ──▶ (duplicates, pings, ACKs   │
//	              and junk end here)        └▶ Begin ─▶ … ─▶ Finish     remembered for the exchange's lifetime
//	                                             │
//	              Tick ──────────────────────────┴▶ empty ACK after AckDelay, retransmissions
//
// What must hold:
//   - A request is handed out once within its lifetime (247 s confirmable, 145 s not), as long as the bounded window of
//     messages seen reaches back that far; a duplicate is answered with the bytes that its original was answered with.
//   - Nothing is remembered of a sender before Begin, so junk and refused requests cost no memory.
//   - Every table is bounded. Full means Begin says so, or, for the window of messages seen, that the oldest go.
package endpoint

import (
	"math/rand/v2"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
)

// The lifetimes of RFC 7252 §4.8.2 with its default transmission parameters.
const (
	ExchangeLifetime = 247 * time.Second // a confirmable message id may come again within this
	NonLifetime      = 145 * time.Second // a non-confirmable one within this
)

// Config are a Machine's parameters. The zero value of each field means its default.
type Config struct {
	AckDelay         time.Duration // unanswered confirmable requests get an empty ACK after this; default 1 s
	AckTimeout       time.Duration // ACK_TIMEOUT of our own confirmable messages; default 2 s
	RetransmitMax    int           // MAX_RETRANSMIT; default 4
	PeersMax         int           // endpoints remembered; default 65,536
	ExchangesMax     int           // requests being worked on, and answers not yet acknowledged; default 8,192
	PeerExchangesMax int           // of these, of one endpoint; default 256
	SeenMax          int           // messages in the duplicate window, rounded up to a power of two; default 65,536
	Seed             uint64        // of message ids and retransmission jitter
}

func (c Config) withDefaults() Config {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	if c.AckDelay <= 0 {
		c.AckDelay = time.Second
	}
	if c.AckTimeout <= 0 {
		c.AckTimeout = 2 * time.Second
	}
	def(&c.RetransmitMax, 4)
	def(&c.PeersMax, 1<<16)
	def(&c.ExchangesMax, 1<<13)
	def(&c.PeerExchangesMax, 256)
	c.PeerExchangesMax = min(c.PeerExchangesMax, 1<<16-1)
	def(&c.SeenMax, 1<<16)
	return c
}

// Addr is the other side of an exchange (and, on a socket bound to all addresses, our own side of it).
type Addr struct {
	IP    [16]byte // IPv4 as ::ffff:a.b.c.d
	Local [16]byte // our address that the datagram came to; zero if the socket is bound to one address
	Zone  uint32   // interface of a link-local address
	Port  uint16
}

// Response is what a request is answered with.
type Response struct {
	Code    codes.Code
	Options message.Options // in order of their numbers
	Payload []byte
}

// Peer names an endpoint's slot in the machine, for state that its user keeps alongside. A slot is used again with
// another generation.
type Peer struct {
	Slot uint32
	Gen  uint32 // never 0 for a peer that exists
}

// Ref names an exchange that was begun. Its low half is a slot below ExchangesMax, used again with another high half.
type Ref uint64

// Slot returns the exchange's slot.
func (r Ref) Slot() int { return int(uint32(r)) }

// Stats counts what the machine did. Gauges are Peers, Pending and Unacked.
type Stats struct {
	Requests, Duplicates, Pings, Malformed, Stray uint64 // what came
	Answers, EmptyAcks, Separate, Retransmits     uint64 // what was sent
	Acked, Resets, GaveUp, Refused, Evicted       uint64 // what became of it
	Peers, Pending, Unacked                       int
}

// Datagram is one datagram to send. B is valid until Sent.
type Datagram struct {
	To Addr
	B  []byte
}

// Machine is the message layer of one socket. It is not safe for concurrent use.
type Machine struct {
	cfg   Config
	rand  *rand.Rand
	mid   uint16 // for answers to endpoints that have no slot
	peers peers
	seen  window
	wheel wheel
	x     []exchange
	free  []int32 // slots of x
	stats Stats
	req   Request

	out   []Datagram
	arena []byte // the bytes of out; grown before use, never while B points into it
}

// New returns a machine whose time starts at 0.
func New(cfg Config) *Machine {
	cfg = cfg.withDefaults()
	m := &Machine{cfg: cfg, rand: rand.New(rand.NewPCG(cfg.Seed, 0x6475_6e6c_696e)), wheel: newWheel()}
	m.mid = uint16(m.rand.Uint32())
	m.peers = newPeers(cfg.PeersMax)
	m.seen = newWindow(cfg.SeenMax, m.rand.Uint64())
	return m
}

// Stats returns the counters as they are now.
func (m *Machine) Stats() Stats {
	s := m.stats
	s.Peers, s.Evicted = len(m.peers.index), m.peers.evicted
	return s
}

// Output returns the datagrams to send. They are valid until Sent.
func (m *Machine) Output() []Datagram { return m.out }

// Sent forgets the output.
func (m *Machine) Sent() {
	m.out, m.arena = m.out[:0], m.arena[:0]
}

// reserve returns n bytes of arena that stay valid until Sent. A full arena is replaced, not moved: datagrams of this
// batch keep pointing into the old one.
func (m *Machine) reserve(n int) []byte {
	if len(m.arena)+n > cap(m.arena) {
		m.arena = make([]byte, 0, max(16<<10, 2*cap(m.arena), n))
		if cap(m.arena) > 1<<20 { // a burst of large answers; the next batch starts small again
			m.arena = make([]byte, 0, max(16<<10, n))
		}
	}
	at := len(m.arena)
	m.arena = m.arena[:at+n]
	return m.arena[at : at+n : at+n]
}

func (m *Machine) emit(to *Addr, b []byte) { m.out = append(m.out, Datagram{*to, b}) }

// emitEmpty sends a message without token, options and payload: an empty ACK or a Reset.
func (m *Machine) emitEmpty(to *Addr, typ message.Type, mid uint16) {
	b := m.reserve(headerBytes)
	b[0], b[1], b[2], b[3] = 1<<6|byte(typ)<<4, 0, byte(mid>>8), byte(mid)
	m.emit(to, b)
}

// Pending returns how many exchanges wait for Finish.
func (m *Machine) Pending() int { return m.stats.Pending }

// Add adds o's counters and gauges to s.
func (s *Stats) Add(o *Stats) {
	s.Requests += o.Requests
	s.Duplicates += o.Duplicates
	s.Pings += o.Pings
	s.Malformed += o.Malformed
	s.Stray += o.Stray
	s.Answers += o.Answers
	s.EmptyAcks += o.EmptyAcks
	s.Separate += o.Separate
	s.Retransmits += o.Retransmits
	s.Acked += o.Acked
	s.Resets += o.Resets
	s.GaveUp += o.GaveUp
	s.Refused += o.Refused
	s.Evicted += o.Evicted
	s.Peers += o.Peers
	s.Pending += o.Pending
	s.Unacked += o.Unacked
}
