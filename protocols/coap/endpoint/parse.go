package endpoint

import (
	"encoding/binary"
	"errors"

	"github.com/cespare/xxhash/v2"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/udp/coder"
)

const (
	headerBytes   = 4
	tokenBytesMax = 8
	optionsMax    = 32 // of one request; more are refused with 4.02
	payloadMarker = 0xff
)

// Request is a request as it came. Its slices point into the datagram.
type Request struct {
	From      Addr
	Peer      Peer // zero if nothing is remembered of the sender
	Type      message.Type
	Code      codes.Code
	MID       uint16
	Token     []byte
	Options   message.Options // as they came: lengths and repetitions are not checked
	Payload   []byte
	Datagram  []byte // all of it that was read
	ID        uint64 // hash of sender and datagram: equal for a retransmission, also after a restart; never 0
	Size      int    // of the datagram, which may be more than was read
	Truncated bool   // the end of the payload is missing
	Crowded   bool   // it has more options than Options holds

	room [optionsMax]message.Option
}

// verdict is what a datagram is before anything is known of its sender.
type verdict uint8

const (
	ignore    verdict = iota // too short, or of another version (§3): silently ignored
	malformed                // message format error
	wellFormed
)

// Parse reads datagram b, of which size bytes were on the wire, into r and reports whether it is a well-formed message.
func (r *Request) Parse(b []byte, size int) bool { return r.parse(b, size) == wellFormed }

// parse fills r as far as it gets; with verdict malformed, Type and MID are valid.
//
// Options are decoded without go-coap's table of known options: with it, options of a wrong length vanish, critical ones
// too, which RFC 7252 §5.4.3 wants refused. A payload marker with nothing behind it passes go-coap and is caught here.
func (r *Request) parse(b []byte, size int) verdict {
	if len(b) < headerBytes || b[0]>>6 != 1 {
		return ignore
	}
	r.Type = message.Type(b[0] >> 4 & 3)
	r.Code = codes.Code(b[1])
	r.MID = binary.BigEndian.Uint16(b[2:])
	r.Token, r.Options, r.Payload, r.Datagram = nil, r.room[:0], nil, b
	r.Size, r.Truncated, r.Crowded = size, size > len(b), false
	tkl := int(b[0] & 15)
	if tkl > tokenBytesMax || headerBytes+tkl > len(b) {
		return malformed
	}
	if r.Code == codes.Empty {
		if size > headerBytes { // §4.1: the empty message has no token and no byte behind the message id
			return malformed
		}
		return wellFormed
	}
	r.Token = b[headerBytes : headerBytes+tkl]
	rest := b[headerBytes+tkl : len(b) : len(b)]
	n, err := r.Options.Unmarshal(rest, nil)
	if errors.Is(err, message.ErrOptionsTooSmall) {
		r.Crowded = true
		return wellFormed
	}
	if err != nil || n > len(rest) {
		return malformed
	}
	r.Payload = rest[n:]
	if len(r.Payload) == 0 && !r.Truncated && endsInMarker(rest[:n], r.Options) {
		return malformed
	}
	return wellFormed
}

// endsInMarker reports whether the last byte of raw, which go-coap decoded to opts, is a payload marker rather than an
// option's: the last option's value knows how much lies behind it. go-coap leaves out options of the reserved number 0;
// raw that has only such is walked.
func endsInMarker(raw []byte, opts message.Options) bool {
	if len(raw) == 0 || raw[len(raw)-1] != payloadMarker {
		return false
	}
	if len(opts) > 0 {
		v := opts[len(opts)-1].Value
		return cap(v) > len(v)
	}
	for len(raw) > 0 && raw[0] != payloadMarker {
		n := int(raw[0] & 15) // the delta is 0, or there would be an option
		switch n {
		case 13:
			n = 13 + int(raw[1]) + 1
		case 14:
			n = 269 + int(binary.BigEndian.Uint16(raw[1:])) + 2
		}
		raw = raw[1+n:]
	}
	return len(raw) > 0
}

// hashOf identifies a message: sender, message id, token, options and payload. It is not seeded: a client that
// retransmits to a restarted node, or to the node that took over, must be recognised.
func hashOf(from *Addr, b []byte) uint64 {
	var ep [18]byte
	copy(ep[:], from.IP[:])
	binary.BigEndian.PutUint16(ep[16:], from.Port)
	h := xxhash.Sum64(b) ^ xxhash.Sum64(ep[:])*0x9e3779b97f4a7c15
	return max(h, 1)
}

// encode appends an answer to the output's arena.
func (m *Machine) encode(typ message.Type, mid uint16, token []byte, resp *Response) []byte {
	msg := message.Message{Token: token, Options: resp.Options, Code: resp.Code, Payload: resp.Payload,
		MessageID: int32(mid), Type: typ}
	bound := headerBytes + tokenBytesMax + 1 + len(resp.Payload)
	for i := range resp.Options {
		bound += 5 + len(resp.Options[i].Value)
	}
	at := len(m.arena)
	b := m.reserve(bound)
	n, err := coder.DefaultCoder.Encode(msg, b)
	if err != nil {
		// Only options that are out of order could do this, and they are written by this room.
		panic("coap: encode answer: " + err.Error())
	}
	if len(m.arena) == at+bound {
		m.arena = m.arena[:at+n] // give the rest back
	}
	return b[:n:n]
}
