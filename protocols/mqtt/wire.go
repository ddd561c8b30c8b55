package mqtt

import (
	"bytes"
	"encoding/binary"
	"unicode/utf8"

	"github.com/dunlin-iot/dunlin"
)

// What is parsed here by hand is what a PUBLISH costs: framing, PUBLISH itself and the four-byte acknowledgements. The
// codec of mochi decodes a PUBLISH into a struct of 700 bytes and copies its properties through a bytes.Buffer; the rest
// of the protocol goes through it (codec.go). FuzzAgainstMochi holds the two against each other.

// frame is one control packet: its first byte and what follows the remaining length. body aliases the read buffer.
type frame struct {
	head byte
	body []byte
}

func (f frame) kind() byte { return f.head >> 4 }

// nextFrame splits the first packet off b. n == 0 means that more bytes are needed. bytesMax bounds the whole packet; what
// is longer fails as soon as its header is there, before anything is buffered for it.
func nextFrame(b []byte, bytesMax int) (f frame, n int, err *fault) {
	if len(b) < 2 {
		return frame{}, 0, nil
	}
	if b[1] < 0x80 { // by far the most packets
		n = 2 + int(b[1])
		if n > bytesMax {
			return frame{}, 0, &fault{codePacketTooLarge, "packet too large"}
		}
		if len(b) < n {
			return frame{}, 0, nil
		}
		return frame{b[0], b[2:n:n]}, n, nil
	}
	length, used := varint(b[1:])
	switch {
	case used == 0:
		return frame{}, 0, nil
	case used < 0:
		return frame{}, 0, malformed("remaining length")
	}
	n = 1 + used + length
	if n > bytesMax {
		return frame{}, 0, &fault{codePacketTooLarge, "packet too large"}
	}
	if len(b) < n {
		return frame{}, 0, nil
	}
	return frame{b[0], b[1+used : n : n]}, n, nil
}

// varint reads a variable byte integer (§1.5.5): used is 0 if bytes are missing, negative if it is malformed. The standard
// wants the shortest encoding; only what decodes to more than four bytes is refused, as other brokers do.
func varint(b []byte) (v, used int) {
	for i := range 4 {
		if i >= len(b) {
			return 0, 0
		}
		v |= int(b[i]&0x7f) << (7 * i)
		if b[i] < 0x80 {
			return v, i + 1
		}
	}
	return 0, -1
}

func appendVarint(dst []byte, v int) []byte {
	for v >= 0x80 {
		dst, v = append(dst, byte(v)|0x80), v>>7
	}
	return append(dst, byte(v))
}

// field reads a two-byte length and that many bytes.
func field(b []byte) (val, rest []byte, ok bool) {
	if len(b) < 2 {
		return nil, nil, false
	}
	n := 2 + int(binary.BigEndian.Uint16(b))
	if len(b) < n {
		return nil, nil, false
	}
	return b[2:n], b[n:], true
}

func validText(b []byte) bool { return utf8.Valid(b) && bytes.IndexByte(b, 0) < 0 }

// publish is a parsed PUBLISH; its slices alias the frame.
type publish struct {
	topic       []byte
	payload     []byte
	contentType []byte
	id          uint16
	alias       uint16
	qos         byte
	dup, retain bool
	hasType     bool
}

func (p *publish) parse(f frame, v5 bool) *fault {
	*p = publish{qos: f.head >> 1 & 3, dup: f.head&8 != 0, retain: f.head&1 != 0}
	switch {
	case p.qos == 3:
		return malformed("QoS 3")
	case p.qos == 0 && p.dup:
		return violation("DUP without QoS")
	}
	var ok bool
	b := f.body
	if p.topic, b, ok = field(b); !ok || !validText(p.topic) {
		return malformed("topic")
	}
	if p.qos > 0 {
		if len(b) < 2 {
			return malformed("packet identifier")
		}
		if p.id = binary.BigEndian.Uint16(b); p.id == 0 {
			return violation("packet identifier 0")
		}
		b = b[2:]
	}
	if v5 {
		n, used := varint(b)
		if used <= 0 || len(b) < used+n {
			return malformed("properties")
		}
		if n > 0 {
			if err := p.properties(b[used : used+n]); err != nil {
				return err
			}
		}
		b = b[used+n:]
	}
	if bytes.IndexByte(p.topic, '+') >= 0 || bytes.IndexByte(p.topic, '#') >= 0 {
		return &fault{codeTopicName, "wildcard in a topic name"}
	}
	if len(p.topic) == 0 && p.alias == 0 {
		return violation("no topic")
	}
	p.payload = b
	return nil
}

func (p *publish) properties(b []byte) *fault {
	var w propWalk
	for len(b) > 0 {
		var err *fault
		if b, err = w.next(typePublish, b); err != nil {
			return err
		}
		switch w.id {
		case propContentType:
			p.contentType, p.hasType = w.text, true
		case propTopicAlias:
			p.alias = uint16(w.num)
		case propSubscriptionID:
			return violation("subscription identifier from a client")
		}
	}
	return nil
}

// parseAck reads PUBACK, PUBREC, PUBREL and PUBCOMP.
func parseAck(f frame, v5 bool) (id uint16, code byte, err *fault) {
	b := f.body
	if len(b) < 2 || !v5 && len(b) != 2 {
		return 0, 0, malformed("acknowledgement")
	}
	if id = binary.BigEndian.Uint16(b); id == 0 {
		return 0, 0, violation("packet identifier 0")
	}
	if len(b) > 2 {
		code = b[2]
	}
	if len(b) > 3 {
		rest, err := checkProperties(f.kind(), b[3:])
		if err != nil {
			return 0, 0, err
		}
		if len(rest) > 0 {
			return 0, 0, malformed("bytes behind the properties")
		}
	}
	return id, code, nil
}

// appendAck writes a PUBACK, PUBREC or PUBCOMP. why goes out as the Reason String, cut to what fits bytesMax; pass "" for
// MQTT 3.1.1, where code must be 0.
func appendAck(dst []byte, kind byte, id uint16, code byte, why string, bytesMax int) []byte {
	if code == codeSuccess {
		return append(dst, kind<<4, 2, byte(id>>8), byte(id))
	}
	why = clip(why, min(bytesMax-12, reasonBytesMax))
	if why == "" {
		return append(dst, kind<<4, 3, byte(id>>8), byte(id), code)
	}
	props := 3 + len(why)
	dst = append(dst, kind<<4)
	dst = appendVarint(dst, 3+len(appendVarint(nil, props))+props)
	dst = append(dst, byte(id>>8), byte(id), code)
	dst = appendVarint(dst, props)
	dst = append(dst, propReasonString, byte(len(why)>>8), byte(len(why)))
	return append(dst, why...)
}

// reasonBytesMax bounds a Reason String: it may quote what the client sent.
const reasonBytesMax = 250

// clip cuts s to n bytes at a rune's boundary and takes out what a UTF-8 string of MQTT must not hold.
func clip(s string, n int) string {
	if !utf8.ValidString(s) || bytes.IndexByte([]byte(s), 0) >= 0 {
		s = string(bytes.Map(func(r rune) rune {
			if r == 0 || r == utf8.RuneError {
				return '?'
			}
			return r
		}, []byte(s)))
	}
	if n <= 0 {
		return ""
	}
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

// message is what goes to a subscriber. topic and payload may alias a buffer that is reused.
type message struct {
	kind    newsKind
	topic   []byte
	payload []byte
	media   string // content type, MQTT 5
	subIDs  []uint32
	id      uint16
	qos     byte
	dup     bool
}

// sizeMax bounds the packet's length.
func (m *message) sizeMax() int {
	n := 64 + len(m.topic) + len(m.payload) + 5*len(m.subIDs)
	if m.kind == newsCommand {
		n += len(m.topic) + dunlin.CommandIDBytesMax // response topic and correlation data
	}
	return n
}

// appendPublish writes a PUBLISH.
func appendPublish(dst []byte, m *message, v5 bool) []byte {
	props := 0
	if v5 {
		props = m.propsLen()
	}
	n := 2 + len(m.topic) + len(m.payload)
	head := byte(typePublish<<4) | m.qos<<1
	if m.qos > 0 {
		n += 2
	}
	if m.dup {
		head |= 8
	}
	if v5 {
		n += varintLen(props) + props
	}
	dst = appendVarint(append(dst, head), n)
	dst = append(dst, byte(len(m.topic)>>8), byte(len(m.topic)))
	dst = append(dst, m.topic...)
	if m.qos > 0 {
		dst = append(dst, byte(m.id>>8), byte(m.id))
	}
	if v5 {
		dst = m.appendProps(appendVarint(dst, props))
	}
	return append(dst, m.payload...)
}

// ours reports that we wrote the payload: it is UTF-8. What a plugin wrote may be anything.
func (m *message) ours() bool { return m.kind == newsReadings || m.kind == newsAlert }

// propsLen is how long what appendProps appends is.
func (m *message) propsLen() (n int) {
	if m.ours() {
		n += 2
	}
	if m.media != "" {
		n += 3 + len(m.media)
	}
	if m.kind == newsCommand {
		topic, id := answerTopic(m.topic)
		n += 3 + len(topic) + len(answerLevel) + 3 + len(id)
	}
	for _, id := range m.subIDs {
		n += 1 + varintLen(int(id))
	}
	return n
}

// appendProps appends the properties of a PUBLISH (MQTT 5 §3.3.2.3). A command says where its answer goes; the id is there in
// full, so that an answer need not bring its correlation data back.
func (m *message) appendProps(dst []byte) []byte {
	if m.ours() {
		dst = append(dst, propPayloadFormat, 1)
	}
	if m.media != "" {
		dst = append(dst, propContentType, byte(len(m.media)>>8), byte(len(m.media)))
		dst = append(dst, m.media...)
	}
	if m.kind == newsCommand {
		topic, id := answerTopic(m.topic)
		n := len(topic) + len(answerLevel)
		dst = append(dst, propResponseTopic, byte(n>>8), byte(n))
		dst = append(append(dst, topic...), answerLevel...)
		dst = append(dst, propCorrelationData, byte(len(id)>>8), byte(len(id)))
		dst = append(dst, id...)
	}
	for _, id := range m.subIDs {
		dst = appendVarint(append(dst, propSubscriptionID), int(id))
	}
	return dst
}

func varintLen(v int) int {
	switch {
	case v < 1<<7:
		return 1
	case v < 1<<14:
		return 2
	case v < 1<<21:
		return 3
	}
	return 4
}
