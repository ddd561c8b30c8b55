package column

import (
	"encoding/binary"
	"math"

	"github.com/dunlin-iot/dunlin"
)

// The head byte of a record in a report.
const (
	recKind     = 0x03 // kind − 1
	recSameTime = 0x04 // as the record before
	recSameUnit = 0x08 // likewise
	recForm     = 4    // shift: of a number, its scale, formFloat32 or formFloat64; of a boolean, its value

	formFloat32 = 14
	formFloat64 = 15
)

// report writes records as they come: u8 tag · varint time of the first · for each: u8 head, unless same time: varint µs
// after the record before, string metric, unless same unit: string unit, value.
func (w *writer) report(recs []dunlin.Record) {
	w.byte(tagReport)
	var last *dunlin.Record
	for i := range recs {
		r := &recs[i]
		if r.Kind < dunlin.Number || r.Kind > dunlin.Data {
			continue
		}
		head := uint8(r.Kind - 1)
		if last == nil {
			w.varint(int64(r.Time))
			head |= recSameTime
			if r.Unit == "" {
				head |= recSameUnit
			}
		} else {
			if r.Time == last.Time {
				head |= recSameTime
			}
			if r.Unit == last.Unit {
				head |= recSameUnit
			}
		}
		var m int64
		form := formFloat64
		switch r.Kind {
		case dunlin.Number:
			form, m = numberForm(r.Num)
			head |= uint8(form) << recForm
		case dunlin.Boolean:
			if r.Num != 0 {
				head |= 1 << recForm
			}
		}
		w.byte(head)
		if head&recSameTime == 0 {
			w.varint(int64(r.Time - last.Time))
		}
		w.string(r.Metric)
		if head&recSameUnit == 0 {
			w.string(r.Unit)
		}
		switch r.Kind {
		case dunlin.Number:
			w.number(form, m, r.Num)
		case dunlin.Text, dunlin.Data:
			w.string(r.Str)
		}
		last = r
	}
}

// numberForm picks a short form that gives back every bit of f.
func numberForm(f float64) (form int, m int64) {
	if f > -quickMax && f < quickMax {
		if _, ulps, ok := decimal(f, scaleMax); !ok || ulps != 0 {
			return floatForm(f), 0
		}
	}
	for s := range scaleMax + 1 {
		if m, ulps, ok := decimal(f, s); ok && ulps == 0 {
			return s, m
		}
	}
	return floatForm(f), 0
}

func floatForm(f float64) int {
	if float64(float32(f)) == f { // not for a NaN, whose payload the conversion may touch
		return formFloat32
	}
	return formFloat64
}

func (w *writer) number(form int, m int64, f float64) {
	switch form {
	case formFloat64:
		w.fixed64(math.Float64bits(f))
	case formFloat32:
		w.b = binary.LittleEndian.AppendUint32(w.b, math.Float32bits(float32(f)))
	default:
		w.varint(m)
	}
}

func (r *reader) number(form uint8) uint64 {
	switch {
	case form == formFloat64:
		return r.fixed64("number")
	case form == formFloat32:
		p := r.bytes(4, "number")
		if p == nil {
			return 0
		}
		return math.Float64bits(float64(math.Float32frombits(binary.LittleEndian.Uint32(p))))
	case form > scaleMax:
		r.fail("number")
		return 0
	}
	return math.Float64bits(float64(r.varint("number")) / pow10[form])
}

// report reads a report into the table.
func (t *table) report(r *reader, metrics []string) {
	if r.i == len(r.b) {
		return
	}
	at := r.varint("time")
	var unit string
	for r.i < len(r.b) {
		head := r.byte("record")
		if head&recSameTime == 0 {
			at += r.varint("time")
		}
		metric := r.string("metric")
		if head&recSameUnit == 0 {
			unit = r.string("unit")
		}
		kind := dunlin.ValueKind(head&recKind + 1)
		form := head >> recForm
		var val uint64
		var str string
		switch kind {
		case dunlin.Number:
			val = r.number(form)
		case dunlin.Boolean:
			if val = uint64(form); val > 1 {
				r.fail("boolean")
			}
		default:
			if form != 0 {
				r.fail("record")
			}
			str = r.string("text")
		}
		if r.what != "" {
			return
		}
		if !wanted(metrics, metric) || !r.claim(1, "number of readings") {
			continue
		}
		c := t.column(metric)
		if kind >= dunlin.Text {
			val = uint64(len(c.strs))
			c.strs = append(c.strs, str)
		}
		c.add(at, val, variant{kind, unit})
	}
}
