package router

import (
	"encoding/binary"
	"fmt"
	"math"
	"strings"
	"unsafe"

	"github.com/dunlin-iot/dunlin"
)

// Bounds of what is read.
const (
	batchReadMax   = 2 << 20 // bytes; what is sent is far below
	uplinksReadMax = 4 * batchUplinksMax
)

// section is one shard's uplinks of a batch, as read.
type section struct {
	shard   dunlin.ShardID
	term    uint64
	seq     uint64
	uplinks []dunlin.Uplink
}

// reader reads what writer wrote. The first failure moves it to the end, where all reads give zero values.
type reader struct {
	b      []byte
	i      int
	what   string // what could not be read; "": all is well
	intern *interner
	rows   []pair

	tenant  dunlin.Tenant
	sender  dunlin.Principal
	format  dunlin.ContentFormat
	at      dunlin.Time
	first   int
	records []dunlin.Record // room for all of the batch
}

func (r *reader) fail(what string) {
	if r.what == "" {
		r.what = fmt.Sprintf("%s, byte %d of %d", what, r.i, len(r.b))
	}
	r.i = len(r.b)
}

func (r *reader) byte(what string) uint8 {
	if r.i >= len(r.b) {
		r.fail(what)
		return 0
	}
	r.i++
	return r.b[r.i-1]
}

func (r *reader) uvarint(what string) uint64 {
	if r.i < len(r.b) && r.b[r.i] < 0x80 {
		r.i++
		return uint64(r.b[r.i-1])
	}
	v, n := binary.Uvarint(r.b[r.i:])
	if n <= 0 {
		r.fail(what)
		return 0
	}
	r.i += n
	return v
}

func (r *reader) varint(what string) int64 {
	v := r.uvarint(what)
	return int64(v>>1) ^ -int64(v&1)
}

func (r *reader) fixed(what string, n int) []byte {
	if len(r.b)-r.i < n {
		r.fail(what)
		return make([]byte, n)
	}
	r.i += n
	return r.b[r.i-n : r.i]
}

// bytes returns a part of b without copying; nil if it is empty.
func (r *reader) bytes(what string) []byte {
	n := r.uvarint(what)
	if n == 0 {
		return nil
	}
	if n > uint64(len(r.b)-r.i) {
		r.fail(what)
		return nil
	}
	p := r.b[r.i : r.i+int(n) : r.i+int(n)]
	r.i += int(n)
	return p
}

// count reads the length of a list whose elements have at least one byte each.
func (r *reader) count(what string, most int) int {
	n := r.uvarint(what)
	if n > uint64(min(most, len(r.b)-r.i)) {
		r.fail(what)
		return 0
	}
	return int(n)
}

func (r *reader) name(what string) string {
	n := r.uvarint(what)
	if n == 0 {
		s := r.intern.string(r.bytes(what))
		r.rows = append(r.rows, pair{name: s})
		return s
	}
	if n > uint64(len(r.rows)) {
		r.fail(what)
		return ""
	}
	return r.rows[n-1].name
}

// decodeBatch reads a batch. Payloads and device ids are parts of b, which is never changed; all else is its own.
func decodeBatch(b []byte, intern *interner, shards int) (life uint64, sections []section, err error) {
	if len(b) > batchReadMax {
		return 0, nil, fmt.Errorf("%w: a batch of %d bytes, at most %d", dunlin.ErrTooLarge, len(b), batchReadMax)
	}
	if len(b) == 0 || b[0] != batchVersion {
		return 0, nil, fmt.Errorf("%w: a batch of an unknown version", dunlin.ErrInvalid)
	}
	r := &reader{b: b, i: 1, intern: intern, format: dunlin.FormatSenMLJSON}
	life = binary.LittleEndian.Uint64(r.fixed("life", 8))
	parts := r.count("number of shards", shards)
	uplinks := r.count("number of uplinks", uplinksReadMax)
	records := r.count("number of records", len(b))
	// A head lies at no more than the price of its bytes: an uplink has at least five of them, a record two.
	all := make([]dunlin.Uplink, min(uplinks, (len(b)-r.i)/5))
	r.records = make([]dunlin.Record, 0, min(records, (len(b)-r.i)/2))
	sections = make([]section, 0, parts)
	for range parts {
		sh := r.uvarint("shard")
		if sh >= uint64(shards) {
			r.fail("shard")
		}
		s := section{shard: dunlin.ShardID(sh), term: r.uvarint("term"), seq: r.uvarint("number of a call")}
		n := r.count("number of uplinks of a shard", len(all))
		s.uplinks, all = all[:n:n], all[n:]
		for i := range s.uplinks {
			if r.uplink(&s.uplinks[i]); r.what != "" {
				break
			}
		}
		if r.what != "" {
			break
		}
		sections = append(sections, s)
	}
	if r.i != len(r.b) || len(all) > 0 {
		r.fail("end")
	}
	if r.what != "" {
		return 0, nil, fmt.Errorf("%w: batch of uplinks: %s", dunlin.ErrInvalid, r.what)
	}
	return life, sections, nil
}

func (r *reader) uplink(u *dunlin.Uplink) {
	head := r.byte("uplink")
	if head&upSameTenant == 0 {
		r.tenant = dunlin.Tenant(r.name("tenant"))
	}
	dev := r.bytes("device")
	u.DeviceKey = dunlin.DeviceKey{Tenant: r.tenant, Device: dunlin.DeviceID(unsafe.String(unsafe.SliceData(dev), len(dev)))}
	switch {
	case head&upOwnSender != 0:
		u.Sender = dunlin.Principal{Kind: dunlin.PrincipalDevice, Tenant: r.tenant, ID: string(u.Device), Domain: dunlin.DomainID(r.name("domain"))}
	case head&upSameSender == 0:
		r.sender = dunlin.Principal{Kind: dunlin.PrincipalKind(r.byte("sender")), Tenant: dunlin.Tenant(r.name("sender")), ID: r.name("sender"),
			Domain: dunlin.DomainID(r.name("sender"))}
		u.Sender = r.sender
	default:
		u.Sender = r.sender
	}
	u.Flags = dunlin.InputFlags(r.byte("flags"))
	r.at += dunlin.Time(r.varint("time"))
	u.Received = r.at
	if head&upSameFormat == 0 {
		f := r.uvarint("format")
		if f > math.MaxUint16 {
			r.fail("format")
		}
		r.format = dunlin.ContentFormat(f)
	}
	u.Format = r.format
	if head&upMessage != 0 {
		u.MessageID = binary.LittleEndian.Uint64(r.fixed("message id", 8))
	}
	if head&upSender != 0 {
		u.Input.Sender = r.name("sender")
	}
	kind := head & upKindMask
	odd := kind == 0
	if odd {
		kind = r.byte("kind")
		u.Timer = strings.Clone(string(r.bytes("timer")))
	} else if kind > uint8(dunlin.InputRaw) {
		r.fail("kind")
	}
	u.Kind = dunlin.InputKind(kind)
	if odd || u.Kind == dunlin.InputTelemetry {
		u.Records = r.recordList()
	}
	if odd || u.Kind == dunlin.InputRaw {
		u.Payload = r.bytes("payload")
	}
}

func (r *reader) recordList() []dunlin.Record {
	n := r.count("number of records", len(r.b))
	if n == 0 {
		return nil
	}
	var list []dunlin.Record
	if from := len(r.records); n <= cap(r.records)-from {
		r.records = r.records[:from+n]
		list = r.records[from : from+n : from+n]
	} else if list = make([]dunlin.Record, min(n, (len(r.b)-r.i)/2+1)); len(list) < n {
		r.fail("number of records")
		return nil
	}
	guess, prev := r.first, r.at
	for i := range list {
		guess = r.record(&list[i], guess, &prev)
		if r.what != "" {
			return nil
		}
		if i == 0 {
			r.first = guess - 1
		}
	}
	return list
}

// record reads a record and returns the row behind its series.
func (r *reader) record(rec *dunlin.Record, guess int, prev *dunlin.Time) int {
	head := r.byte("record")
	row := guess
	if head&recNextSeries == 0 {
		n := r.uvarint("series")
		if row = int(n) - 1; n > uint64(len(r.rows)) {
			r.fail("series")
			return 0
		}
		if n == 0 {
			row = len(r.rows)
			r.rows = append(r.rows, pair{r.intern.string(r.bytes("metric")), r.intern.string(r.bytes("unit"))})
		}
	}
	if row >= len(r.rows) {
		r.fail("series")
		return 0
	}
	rec.Metric, rec.Unit = r.rows[row].name, r.rows[row].unit
	if head&recSameTime == 0 {
		*prev += dunlin.Time(r.varint("time of a record"))
	}
	rec.Time = *prev
	rec.Kind = dunlin.ValueKind(head & recKindMask)
	form := head >> recFormShift & recFormMask
	switch {
	case form == formOdd:
		rec.Kind = dunlin.ValueKind(r.byte("kind of a value"))
		rec.Num = math.Float64frombits(binary.LittleEndian.Uint64(r.fixed("number", 8)))
		rec.Str = string(r.bytes("text"))
	case rec.Kind == dunlin.Text || rec.Kind == dunlin.Data:
		rec.Str = string(r.bytes("text")) // a copy: the device's twin keeps it
	case form == formInteger:
		rec.Num = float64(r.varint("number"))
	case form == formFloat32:
		rec.Num = float64(math.Float32frombits(binary.LittleEndian.Uint32(r.fixed("number", 4))))
	default:
		rec.Num = math.Float64frombits(binary.LittleEndian.Uint64(r.fixed("number", 8)))
	}
	return row + 1
}
