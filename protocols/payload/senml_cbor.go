package payload

import "github.com/dunlin-iot/dunlin"

// cborLabels are RFC 8428's integer labels, from −6 (bs) to 8 (vd).
var cborLabels = [...]uint32{hasBS, hasBV, hasBU, hasBT, hasBN, hasBVer, hasN, hasU, hasV, hasVS, hasVB, hasS, hasT, hasUT, hasVD}

func (p *pack) senmlCBOR(body []byte) {
	p.b = body
	s := (*cborScanner)(p)
	h := s.head()
	if h.major == cborTag && h.arg == tagSelf {
		h = s.head()
	}
	if h.major != cborArray {
		s.fail(h.at, "want a SenML pack, which is an array")
		return
	}
	n := s.size(h, 1)
	if n > 0 {
		p.expect = min(n, len(body)/3, RecordsMax) // a record of sense has 3 bytes
	}
	if n > 0 && !p.split {
		p.recs = make([]dunlin.Record, 0, p.expect)
	}
	for i := 0; s.more(i, n); i++ {
		pos := s.i
		s.record()
		if p.err == nil {
			p.end(pos)
		}
	}
	s.end()
}

// record reads one map into p.f.
func (s *cborScanner) record() {
	p := s.pack()
	p.f.has = 0
	h := s.head()
	if h.major != cborMap {
		s.fail(h.at, "want a SenML record, which is a map")
		return
	}
	n := s.size(h, 2)
	for i := 0; s.more(i, n); i++ {
		key := s.head()
		var label uint32
		switch key.major {
		case cborUint:
			if key.arg <= 8 {
				label = cborLabels[6+key.arg]
			}
		case cborNegInt:
			if key.arg <= 5 {
				label = cborLabels[5-key.arg]
			}
		case cborText:
			name := s.string(key)
			if label = labelOf(name); label == 0 { // the text labels are JSON's, but mean the same
				p.unknown(name, key.at)
			}
		default:
			s.skipRest(key, 1)
		}
		if label == 0 {
			s.skip(1)
		} else if p.see(label, key.at) {
			s.field(label)
		}
	}
}

func (s *cborScanner) field(label uint32) {
	f := &s.f
	switch label {
	case hasN:
		f.n = s.text()
	case hasU:
		f.u = s.text()
	case hasV:
		f.v = s.float()
	case hasVS:
		f.vs = s.text()
	case hasVB:
		f.vb = s.bool()
	case hasVD:
		h := s.head()
		if h.major != cborBytes {
			s.fail(h.at, "want a byte string")
		}
		f.vd = string(s.string(h))
	case hasS:
		f.s = s.float()
	case hasT:
		f.t = s.micros()
	case hasUT:
		s.float() // as in JSON
	case hasBN:
		f.bn = s.text()
	case hasBT:
		f.bt = s.micros()
	case hasBU:
		f.bu = s.text()
	case hasBV:
		f.bv = s.float()
	case hasBS:
		f.bs = s.float()
	case hasBVer:
		f.bver = s.float()
	}
}
