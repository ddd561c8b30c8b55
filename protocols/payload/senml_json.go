package payload

import (
	"bytes"
	"encoding/base64"
	"unicode/utf8"

	"github.com/dunlin-iot/dunlin"
)

// labelOf returns the bit of a SenML label; 0 if it is not one of RFC 8428's.
func labelOf(key []byte) uint32 {
	switch string(key) {
	case "n":
		return hasN
	case "u":
		return hasU
	case "v":
		return hasV
	case "vs":
		return hasVS
	case "vb":
		return hasVB
	case "vd":
		return hasVD
	case "s":
		return hasS
	case "t":
		return hasT
	case "ut":
		return hasUT
	case "bn":
		return hasBN
	case "bt":
		return hasBT
	case "bu":
		return hasBU
	case "bv":
		return hasBV
	case "bs":
		return hasBS
	case "bver":
		return hasBVer
	}
	return 0
}

// see notes a label; false if the record has it already.
func (p *pack) see(label uint32, pos int) bool {
	if p.f.has&label != 0 {
		p.fail(pos, "a record has a label twice")
		return false
	}
	p.f.has |= label
	return true
}

// unknown refuses labels that must be understood (RFC 8428 §4.4); all others mean nothing to us.
func (p *pack) unknown(key []byte, pos int) {
	if len(key) > 0 && key[len(key)-1] == '_' {
		p.fail(pos, "a record has the label "+quoted(key)+", which must be understood, and is not")
	}
}

func (p *pack) senmlJSON(body []byte) {
	p.b = body
	s := (*scanner)(p)
	if !s.take('[', "a SenML pack, which is an array") {
		return
	}
	// The shortest record that makes sense has 8 bytes; counting braces saves growing the slice.
	p.expect = min(bytes.Count(body, []byte{'{'}), len(body)/8, RecordsMax)
	if !p.split {
		p.recs = make([]dunlin.Record, 0, p.expect)
	}
	for first := true; s.more(&first, ']'); {
		pos := s.i
		s.record()
		if p.err != nil {
			return
		}
		p.end(pos)
		if p.err != nil {
			return
		}
	}
	s.end()
}

// record reads one object into p.f.
func (s *scanner) record() {
	p := s.pack()
	p.f.has = 0
	if !s.take('{', "a SenML record, which is an object") {
		return
	}
	for first := true; s.more(&first, '}'); {
		pos := s.i
		key := s.string()
		s.take(':', "a colon")
		label := labelOf(key)
		if label == 0 {
			p.unknown(key, pos)
			s.skip(1)
		} else if p.see(label, pos) {
			s.field(label)
		}
		if p.err != nil {
			return
		}
	}
}

func (s *scanner) field(label uint32) {
	f := &s.f
	switch label {
	case hasN:
		f.n = s.string()
	case hasU:
		f.u = s.string()
	case hasV:
		f.v = s.float()
	case hasVS:
		s.next()
		pos := s.i
		if f.vs = s.string(); !utf8.Valid(f.vs) {
			s.pack().fail(pos, "a text is not UTF-8")
		}
	case hasVB:
		f.vb = s.bool()
	case hasVD:
		f.vd = s.data()
	case hasS:
		f.s = s.float()
	case hasT:
		f.t = s.micros()
	case hasUT:
		s.float() // when to expect the next record: a hint that nobody here takes
	case hasBN:
		f.bn = s.string()
	case hasBT:
		f.bt = s.micros()
	case hasBU:
		f.bu = s.string()
	case hasBV:
		f.bv = s.float()
	case hasBS:
		f.bs = s.float()
	case hasBVer:
		f.bver = s.float()
	}
}

// data reads base64url without padding (RFC 8428 §5); with padding it is understood too.
func (s *scanner) data() string {
	s.next()
	pos := s.i
	text := bytes.TrimRight(s.string(), "=")
	out := make([]byte, base64.RawURLEncoding.DecodedLen(len(text)))
	n, err := base64.RawURLEncoding.Strict().Decode(out, text)
	if err != nil || bytes.ContainsAny(text, "\r\n") { // which the decoder would pass over
		s.pack().fail(pos, "a data value is not base64url")
	}
	return owned(out[:n])
}
