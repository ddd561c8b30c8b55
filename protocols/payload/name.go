package payload

import (
	"bytes"
)

// base is what the base name says about the records after it.
type base struct {
	name  []byte
	whole bool // it names u.Device and nothing else: the metric is the record's name
	open  bool // … and has no separator at its end

	unit  string
	time  int64 // µs
	value float64
	sum   float64
	has   uint32 // of the labels bv, bs

	version   float64
	versioned bool

	nameless string // the unit of the pack's first record without a name
	unnamed  bool   // there was one
}

// setName looks at a new base name once, so that its records need not.
func (p *pack) setName(bn []byte) {
	b := &p.base
	b.name, b.whole, b.open = bn, false, false
	dev := string(p.u.Device)
	stem := bn
	if n := len(bn); n > 0 && separates(bn[n-1]) && string(bn) != dev {
		stem = bn[:n-1]
	}
	if string(stem) == dev ||
		isURN(bn) && len(stem) > len(dev) && stem[len(stem)-len(dev)-1] == ':' && string(stem[len(stem)-len(dev):]) == dev {
		b.whole, b.open = true, len(stem) == len(bn)
	}
}

// separates reports whether c may stand between a device and its metric. The underscore is RFC 9039's, for parts of a
// device.
func separates(c byte) bool { return c == '/' || c == ':' || c == '_' }

func isURN(name []byte) bool {
	return len(name) > 4 && name[3] == ':' && name[0]|0x20 == 'u' && name[1]|0x20 == 'r' && name[2]|0x20 == 'n'
}

// metric resolves a record's name: the metric, and the device if that is not u.Device. An empty metric is a record
// without a name of its own. The result may lie in room.
func (p *pack) metric(n []byte, room []byte) (metric, other []byte) {
	b := &p.base
	if b.whole {
		if b.open && len(n) > 0 && separates(n[0]) {
			n = n[1:]
		}
		return n, nil
	}
	if len(b.name) > 0 {
		n = append(append(room, b.name...), n...)
	}
	dev := string(p.u.Device)
	if len(n) > len(dev) && (n[len(dev)] == '/' || n[len(dev)] == ':') && string(n[:len(dev)]) == dev {
		return n[len(dev)+1:], nil
	}
	if isURN(n) {
		return p.urn(n, len(b.name))
	}
	return n, nil
}

// urn takes a URN apart: urn:dev:<kind>:<device>… (RFC 9039), otherwise urn:<namespace>:<device>…. The device ends at a
// separator or where the base name ends.
func (p *pack) urn(n []byte, baseLen int) (metric, other []byte) {
	c := bytes.IndexByte(n[4:], ':')
	if c < 0 {
		return n, nil
	}
	start := 4 + c + 1
	if bytes.EqualFold(n[4:start-1], []byte("dev")) {
		start += bytes.IndexByte(n[start:], ':') + 1
	}
	dev := string(p.u.Device)
	if rest, ok := cutDevice(n, start, dev, baseLen); ok {
		return rest, nil
	}
	// An id with colons may reach to the left of that: "ow:10e2…", or be the whole URN.
	for at := start; at > 0 && bytes.IndexByte([]byte(dev), ':') >= 0; {
		at = bytes.LastIndexByte(n[:at-1], ':') + 1
		if rest, ok := cutDevice(n, at, dev, baseLen); ok {
			return rest, nil
		}
	}
	end := start
	for end < len(n) && !separates(n[end]) && (end != baseLen || end == start) {
		end++
	}
	rest := n[end:]
	if len(rest) > 0 && separates(rest[0]) {
		rest = rest[1:]
	}
	return rest, n[start:end]
}

// cutDevice returns what follows dev and a separator in n, if dev stands at that place.
func cutDevice(n []byte, at int, dev string, baseLen int) ([]byte, bool) {
	if len(n)-at < len(dev) || string(n[at:at+len(dev)]) != dev {
		return nil, false
	}
	rest := n[at+len(dev):]
	switch {
	case len(rest) == 0 || at+len(dev) == baseLen && !separates(rest[0]):
		return rest, true
	case separates(rest[0]):
		return rest[1:], true
	}
	return nil, false
}

// fields are the labels of one SenML record as they came. Only those in has are set.
type fields struct {
	has          uint32
	bn, bu, n, u []byte
	vs           []byte
	vd           string
	bv, bs, v, s float64
	bt, t        int64 // µs
	bver         float64
	vb           bool
}

// The labels, as bits of fields.has.
const (
	hasBN = 1 << iota
	hasBT
	hasBU
	hasBV
	hasBS
	hasBVer
	hasN
	hasU
	hasV
	hasVS
	hasVB
	hasVD
	hasS
	hasT
	hasUT

	hasBase   = hasBN | hasBT | hasBU | hasBV | hasBS | hasBVer
	hasValues = hasV | hasVS | hasVB | hasVD
)
