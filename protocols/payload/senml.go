package payload

import (
	"math"
	"unicode/utf8"
	"unsafe"

	"github.com/dunlin-iot/dunlin"
)

const (
	absoluteFrom = 1 << 28 * 1_000_000       // µs; smaller sums of bt and t are relative to now (RFC 8428 §4.5.3)
	timeEnd      = 253_402_300_800 * 1000000 // 10000-01-01: Time must stay printable as RFC 3339
	microsMax    = 1e18                      // of bt and of t, so that their sum fits an int64

	versionMax       = 10
	versionSecondary = 26 // version 10 with secondary units (RFC 9100, RFC 8798); to us, units are names
)

// end resolves the record in f, which began at pos (RFC 8428 §4.5, §4.6).
func (p *pack) end(pos int) {
	f := &p.f
	if f.has&hasBase != 0 {
		p.setBase(pos)
	}
	if f.has&^hasBase == 0 && f.has != 0 {
		return // only sets the base for those behind it
	}
	r := dunlin.Record{Unit: p.base.unit, Time: p.resolve(pos)}
	if f.has&hasU != 0 {
		r.Unit = p.unit(f.u, pos)
	}
	n := f.n
	if f.has&hasN == 0 {
		n = nil
	}
	if len(n) == 0 && len(p.base.name) == 0 {
		p.fail(pos, "a record has no name")
		return
	}
	var room [2 * dunlin.MetricBytesMax]byte
	name, other := p.metric(n, room[:0])
	into := p.target(name, other, pos)
	if p.err != nil {
		return
	}
	if len(name) == 0 {
		first := p.firstUnit(r.Unit, other, *into)
		name = nameless(r.Unit, first, room[:0])
	}
	r.Metric = p.metricString(name, pos)
	if p.values(&r, pos) && !p.tooMany() {
		*into = append(*into, r)
	}
	if sum := p.base.sum + f.s; f.has&hasS != 0 || p.base.has&hasBS != 0 {
		if f.has&hasS == 0 {
			sum = p.base.sum
		}
		p.addSum(into, &r, sum, pos)
	}
}

// values fills r with the record's value; false if it has none.
func (p *pack) values(r *dunlin.Record, pos int) bool {
	f := &p.f
	switch f.has & hasValues {
	case hasV:
		r.Kind, r.Num = dunlin.Number, f.v
		if p.base.has&hasBV != 0 {
			r.Num += p.base.value
		}
	case hasVB:
		r.Kind = dunlin.Boolean
		if f.vb {
			r.Num = 1
		}
	case hasVS:
		r.Kind, r.Str = dunlin.Text, string(f.vs)
	case hasVD:
		r.Kind, r.Str = dunlin.Data, f.vd
	case 0:
		if p.base.has&hasBV == 0 {
			if f.has&hasS == 0 && p.base.has&hasBS == 0 {
				p.fail(pos, "a record has no value")
			}
			return false
		}
		r.Kind, r.Num = dunlin.Number, p.base.value // a missing value is zero (RFC 8428 §4.5.4)
	default:
		p.fail(pos, "a record has more than one value")
		return false
	}
	if math.IsNaN(r.Num) || math.IsInf(r.Num, 0) {
		p.fail(pos, "a value is not a finite number")
	}
	return p.err == nil
}

// addSum keeps a record's sum, which is another quantity than its value, as a record of its own: "<metric>/sum", in the
// record's unit times seconds.
func (p *pack) addSum(into *[]dunlin.Record, r *dunlin.Record, sum float64, pos int) {
	if math.IsNaN(sum) || math.IsInf(sum, 0) {
		p.fail(pos, "a sum is not a finite number")
		return
	}
	var room [dunlin.MetricBytesMax + 8]byte
	metric := p.metricString(append(append(room[:0], r.Metric...), "/sum"...), pos)
	s := dunlin.Record{Metric: metric, Time: r.Time, Kind: dunlin.Number, Num: sum}
	if r.Unit != "" {
		s.Unit = p.unit(append(append(room[:0], r.Unit...), " s"...), pos)
	}
	if p.err == nil && !p.tooMany() {
		*into = append(*into, s)
	}
}

// setBase takes over the base fields of the record in f.
func (p *pack) setBase(pos int) {
	f, b := &p.f, &p.base
	if f.has&hasBVer != 0 {
		if f.bver > versionMax && f.bver != versionSecondary || f.bver < 1 || f.bver != math.Trunc(f.bver) {
			p.fail(pos, "its version (bver) is none that this decoder knows")
		}
		if b.versioned && b.version != f.bver {
			p.fail(pos, "its records have different versions (bver)")
		}
		b.version, b.versioned = f.bver, true
	}
	if f.has&hasBN != 0 {
		p.setName(f.bn)
	}
	if f.has&hasBU != 0 {
		b.unit = p.unit(f.bu, pos)
	}
	if f.has&hasBT != 0 {
		b.time = f.bt
	}
	if f.has&hasBV != 0 {
		b.value = f.bv
	}
	if f.has&hasBS != 0 {
		b.sum = f.bs
	}
	b.has |= f.has & hasBase
}

// resolve returns the time of the record in f.
func (p *pack) resolve(pos int) dunlin.Time {
	t := p.base.time
	if p.f.has&hasT != 0 {
		t += p.f.t
	}
	if t < absoluteFrom {
		t += int64(p.u.Received)
	}
	if t <= 0 || t >= timeEnd {
		p.fail(pos, "a time is before 1970 or after 9999")
	}
	return dunlin.Time(t)
}

// unit returns the unit's string.
func (p *pack) unit(b []byte, pos int) string {
	if len(b) == 0 {
		return ""
	}
	s, place, ok := p.d.units.find(b)
	if ok {
		return s
	}
	if len(b) > unitMax || !utf8.Valid(b) {
		p.fail(pos, "a unit is longer than 64 bytes or not UTF-8")
		return ""
	}
	s = string(b)
	p.d.units.add(s, place)
	return s
}

// metricString returns the metric's string, if it is a valid name.
func (p *pack) metricString(b []byte, pos int) string {
	s, place, ok := p.d.metrics.find(b)
	if ok {
		return s
	}
	s = string(b[:min(len(b), 2*dunlin.MetricBytesMax)]) // long enough to be refused
	if err := dunlin.ValidateMetric(s); err != nil {
		p.fail(pos, err.Error())
		return ""
	}
	p.d.metrics.add(s, place)
	return s
}

// nameless names a record whose name is the device's. RFC 8428 §5.1.3 has such packs with several units in them, position
// beside humidity: those that are not of the first one's unit carry it in their name, or they would be one metric.
func nameless(unit, first string, room []byte) []byte {
	name := append(room, NamelessMetric...)
	if unit == first {
		return name
	}
	name = append(name, '/')
	for i := range len(unit) {
		c := unit[i]
		if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '/' && i > 0 || c == '-' {
			name = append(name, c)
		}
	}
	return name
}

// firstUnit returns the unit of the device's first record without a name; recs are those of another device so far.
func (p *pack) firstUnit(unit string, other []byte, recs []dunlin.Record) string {
	if other != nil {
		for i := range recs {
			if recs[i].Metric == NamelessMetric {
				return recs[i].Unit
			}
		}
		return unit
	}
	b := &p.base
	if !b.unnamed {
		b.unnamed, b.nameless = true, unit
	}
	return b.nameless
}

// target returns where records of a device go: other, or u's if that is nil.
func (p *pack) target(metric, other []byte, pos int) *[]dunlin.Record {
	if other == nil {
		if p.recs == nil { // a gateway's: its payload may have none of u's
			p.recs = make([]dunlin.Record, 0, max(p.expect-p.count, 4))
		}
		return &p.recs
	}
	id := dunlin.DeviceID(other)
	if id.Validate() != nil {
		id = ""
	}
	if !p.split || id == "" {
		if p.err == nil {
			p.err = &OtherDevice{Device: id, Name: string(p.base.name) + string(p.f.n)}
		}
		return nil
	}
	for i := len(p.others) - 1; i >= 0; i-- { // records of a device mostly follow each other
		if u := p.others[i]; u.Device == id {
			return &u.Records
		}
	}
	u := *p.u
	u.Device, u.Kind, u.Records, u.Payload = id, dunlin.InputTelemetry, nil, nil
	u.Waiter, u.Tag, u.Next = nil, 0, nil
	p.others = append(p.others, &u)
	return &u.Records
}

// owned turns bytes that nobody else has into a string without copying them again.
func owned(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
