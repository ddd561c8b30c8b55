package router

import (
	"encoding/binary"
	"hash/maphash"
	"math"

	"github.com/dunlin-iot/dunlin"
)

// The versions of the bytes in calls; docs/formats/calls.md has them. A reader refuses what it does not know.
const (
	batchVersion = 1
	replyVersion = 1
)

// The bits of an uplink's head. Kind is 1 or 2, or 0 if all is spelled out.
const (
	upKindMask   = 3
	upSameSender = 1 << 2 // the principal of the uplink before
	upOwnSender  = 1 << 3 // the principal is the device itself
	upMessage    = 1 << 4
	upSender     = 1 << 5 // Input.Sender is not empty
	upSameFormat = 1 << 6
	upSameTenant = 1 << 7
)

// The bits of a record's head: its kind, then what is left out, then a number's form or a boolean's value.
const (
	recKindMask   = 7
	recSameTime   = 1 << 3 // of the record before, or of the uplink's receipt
	recNextSeries = 1 << 4 // the row behind the record before's
	recFormShift  = 5
	recFormMask   = 3
	formInteger   = 0 // zigzag
	formFloat32   = 1
	formFloat64   = 2
	formOdd       = 3 // number, then string: a record with parts that its kind doesn't have
)

// pair is a row of the name table: a metric with its unit, or a name with "".
type pair struct{ name, unit string }

const tableSlots = 512

// table is the names written so far. Those that its slots have no room for are written anew each time.
type table struct {
	seed  maphash.Seed
	rows  []pair
	slots [tableSlots]uint16 // row + 1, by hash
}

// find returns the row of p, or −1 after making it the next one.
func (t *table) find(p pair) int {
	h := maphash.String(t.seed, p.name)
	for i := range uint64(8) {
		slot := &t.slots[(h+i)%tableSlots]
		if *slot == 0 {
			if len(t.rows) < math.MaxUint16 {
				*slot = uint16(len(t.rows) + 1)
			}
			break
		}
		if t.rows[*slot-1] == p {
			return int(*slot) - 1
		}
	}
	t.rows = append(t.rows, p)
	return -1
}

// writer appends a batch.
type writer struct {
	b      []byte
	tenant dunlin.Tenant
	sender dunlin.Principal
	format dunlin.ContentFormat
	at     dunlin.Time // Received of the uplink before
	first  int         // row of the first record of the uplink before
	table
}

func (w *writer) uvarint(v uint64) {
	if v < 0x80 {
		w.b = append(w.b, byte(v))
		return
	}
	w.b = binary.AppendUvarint(w.b, v)
}

func (w *writer) varint(v int64) { w.uvarint(uint64(v)<<1 ^ uint64(v>>63)) }

func (w *writer) string(s string) {
	w.uvarint(uint64(len(s)))
	w.b = append(w.b, s...)
}

// name writes 0 and a name, or one more than its row.
func (w *writer) name(s string) {
	i := w.find(pair{name: s})
	w.uvarint(uint64(i + 1))
	if i < 0 {
		w.string(s)
	}
}

// appendBatch appends the uplinks of a call; life tells this Router from those before it on the same node.
func appendBatch(dst []byte, life uint64, parts []part) []byte {
	w := writer{b: append(dst, batchVersion), format: dunlin.FormatSenMLJSON}
	w.b = binary.LittleEndian.AppendUint64(w.b, life)
	w.table.seed = maphash.MakeSeed()
	uplinks, records := 0, 0
	for i := range parts {
		uplinks += len(parts[i].items)
		for j := range parts[i].items {
			records += len(parts[i].items[j].u.Records)
		}
	}
	w.uvarint(uint64(len(parts)))
	w.uvarint(uint64(uplinks))
	w.uvarint(uint64(records))
	for i := range parts {
		p := &parts[i]
		w.uvarint(uint64(p.shard))
		w.uvarint(p.term)
		w.uvarint(p.seq)
		w.uvarint(uint64(len(p.items)))
		for j := range p.items {
			w.uplink(p.items[j].u)
		}
	}
	return w.b
}

func (w *writer) uplink(u *dunlin.Uplink) {
	odd := u.Kind != dunlin.InputTelemetry && u.Kind != dunlin.InputRaw || u.Timer != "" ||
		u.Kind == dunlin.InputTelemetry && len(u.Payload) > 0 || u.Kind == dunlin.InputRaw && len(u.Records) > 0
	var head uint8
	if !odd {
		head = uint8(u.Kind)
	}
	own := u.Sender.Kind == dunlin.PrincipalDevice && u.Sender.Tenant == u.Tenant && u.Sender.ID == string(u.Device)
	same := !own && u.Sender == w.sender
	head |= bit(own, upOwnSender) | bit(same, upSameSender) | bit(u.MessageID != 0, upMessage) | bit(u.Input.Sender != "", upSender) |
		bit(u.Format == w.format, upSameFormat) | bit(u.Tenant == w.tenant, upSameTenant)
	w.b = append(w.b, head)
	if u.Tenant != w.tenant {
		w.name(string(u.Tenant))
		w.tenant = u.Tenant
	}
	w.string(string(u.Device))
	switch {
	case own:
		w.name(string(u.Sender.Domain))
	case !same:
		w.b = append(w.b, uint8(u.Sender.Kind))
		w.name(string(u.Sender.Tenant))
		w.name(u.Sender.ID)
		w.name(string(u.Sender.Domain))
		w.sender = u.Sender
	}
	w.b = append(w.b, uint8(u.Flags))
	w.varint(int64(u.Received - w.at))
	w.at = u.Received
	if u.Format != w.format {
		w.uvarint(uint64(u.Format))
		w.format = u.Format
	}
	if u.MessageID != 0 {
		w.b = binary.LittleEndian.AppendUint64(w.b, u.MessageID)
	}
	if u.Input.Sender != "" {
		w.name(u.Input.Sender)
	}
	if odd {
		w.b = append(w.b, uint8(u.Kind))
		w.string(u.Timer)
	}
	if odd || u.Kind == dunlin.InputTelemetry {
		w.records(u.Records)
	}
	if odd || u.Kind == dunlin.InputRaw {
		w.uvarint(uint64(len(u.Payload)))
		w.b = append(w.b, u.Payload...)
	}
}

func bit(is bool, b uint8) uint8 {
	if is {
		return b
	}
	return 0
}

// records writes a list. Devices of a kind report the same metrics in the same order: the first is guessed to be that of the
// list before, and each the row behind the one before.
func (w *writer) records(recs []dunlin.Record) {
	w.uvarint(uint64(len(recs)))
	guess, prev := w.first, w.at
	for i := range recs {
		rec := &recs[i]
		next := guess < len(w.rows) && w.rows[guess] == pair{rec.Metric, rec.Unit}
		form := formOf(rec)
		w.b = append(w.b, uint8(rec.Kind)&recKindMask|bit(rec.Time == prev, recSameTime)|bit(next, recNextSeries)|form<<recFormShift)
		row := guess
		if !next {
			if row = w.find(pair{rec.Metric, rec.Unit}); row < 0 {
				row = len(w.rows) - 1
				w.uvarint(0)
				w.string(rec.Metric)
				w.string(rec.Unit)
			} else {
				w.uvarint(uint64(row) + 1)
			}
		}
		if i == 0 {
			w.first = row
		}
		guess = row + 1
		if rec.Time != prev {
			w.varint(int64(rec.Time - prev))
			prev = rec.Time
		}
		switch {
		case form == formOdd:
			w.b = append(w.b, uint8(rec.Kind))
			w.b = binary.LittleEndian.AppendUint64(w.b, math.Float64bits(rec.Num))
			w.string(rec.Str)
		case rec.Kind == dunlin.Text || rec.Kind == dunlin.Data:
			w.string(rec.Str)
		case form == formInteger:
			w.varint(int64(rec.Num))
		case form == formFloat32:
			w.b = binary.LittleEndian.AppendUint32(w.b, math.Float32bits(float32(rec.Num)))
		default:
			w.b = binary.LittleEndian.AppendUint64(w.b, math.Float64bits(rec.Num))
		}
	}
}

// formOf picks the form that gives back every bit of the record.
func formOf(rec *dunlin.Record) uint8 {
	switch rec.Kind {
	case dunlin.Text, dunlin.Data:
		if math.Float64bits(rec.Num) != 0 {
			return formOdd
		}
		return formInteger
	case dunlin.Number, dunlin.Boolean:
		if rec.Str != "" {
			return formOdd
		}
	default:
		return formOdd
	}
	const most = 1 << 52 // so that every integer below is a float64, and its zigzag fits
	f := rec.Num
	if f > -most && f < most && f == math.Trunc(f) && (f != 0 || !math.Signbit(f)) {
		return formInteger
	}
	if float64(float32(f)) == f {
		return formFloat32
	}
	return formFloat64
}
