// Package payload turns what devices send into records and records into what readers see: SenML in JSON and CBOR
// (RFC 8428), plain JSON and CBOR, a number as text, and octets for a decoder plugin. docs/payloads.md is its manual.
//
// All doors share one Decoder. It works in one pass over the bytes, makes one allocation for the records of a usual
// payload, and finds metric names and units again in a bounded table without a lock. It reads hostile bytes: every length,
// depth and count has a limit, and whatever is refused says where and why.
//
// Part of the runtime; no compatibility promise before v1.
package payload

import (
	"bytes"
	"fmt"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

// The limits of one payload. Gateways may set lower ones for bytes.
const (
	BytesMax   = 1 << 20 // of a payload
	RecordsMax = 512     // of an uplink
	depthMax   = 16      // nested arrays and maps
	unitMax    = 64      // bytes of a unit
)

// NamelessMetric is the metric of a value that comes without a name of its own: text/plain, or a SenML record whose name
// is the device's.
const NamelessMetric = "value"

var mediaTypes = [...]struct {
	format dunlin.ContentFormat
	name   string
}{
	{dunlin.FormatSenMLJSON, "application/senml+json"},
	{dunlin.FormatSenMLCBOR, "application/senml+cbor"},
	{dunlin.FormatJSON, "application/json"},
	{dunlin.FormatCBOR, "application/cbor"},
	{dunlin.FormatText, "text/plain"},
	{dunlin.FormatOctets, "application/octet-stream"},
}

// FormatOf returns the content format of a media type. Case and parameters (";charset=utf-8") do not matter.
func FormatOf(mediaType string) (dunlin.ContentFormat, bool) {
	name, _, _ := strings.Cut(mediaType, ";")
	name = strings.TrimSpace(name)
	for _, m := range mediaTypes {
		if strings.EqualFold(m.name, name) {
			return m.format, true
		}
	}
	return 0, false
}

// MediaType returns the media type of a content format that FormatOf knows, and application/octet-stream for others.
func MediaType(f dunlin.ContentFormat) string {
	for _, m := range mediaTypes {
		if m.format == f {
			return m.name
		}
	}
	return "application/octet-stream"
}

// Decoder decodes payloads. It is safe for concurrent use; one serves a whole node.
type Decoder struct {
	metrics interner // valid metric names
	units   interner
}

// NewDecoder returns a Decoder with empty tables.
func NewDecoder() *Decoder {
	d := new(Decoder)
	d.metrics.init()
	d.units.init()
	return d
}

// OtherDevice is the error for a record that names another device than the uplink's. It matches dunlin.ErrForbidden.
type OtherDevice struct {
	Device dunlin.DeviceID // the one named; "" if that is no valid id
	Name   string          // the record's whole name
}

func (e *OtherDevice) Error() string {
	return fmt.Sprintf("not allowed: record %q names another device (%q) than the one it was sent for", e.Name, e.Device)
}

// Is makes errors.Is(err, dunlin.ErrForbidden) true.
func (e *OtherDevice) Is(target error) bool { return target == dunlin.ErrForbidden }

// Decode decodes body by u.Format. It fills u.Kind and u.Records, or for octets u.Payload with a copy of body. Record
// times are resolved against u.Received, and a name that begins with u.Device loses that part. The records don't share
// body's memory. On an error, which wraps ErrBadPayload, ErrFormat, ErrTooLarge or ErrForbidden, u is as it was.
//
// A record that names another device is an *OtherDevice, whoever sent it. Doors call Take, which lets gateways speak for
// several devices in one pack.
func (d *Decoder) Decode(u *dunlin.Uplink, body []byte) error {
	p := pack{d: d, u: u}
	return p.decode(body)
}

// Split is Decode for a sender that speaks for other devices too. Records that name another device do not fail; they are
// returned as uplinks of their own, in the order in which the payload names the devices: copies of u (but for Waiter, Tag
// and Next) with that device and its records. u keeps its own, perhaps none. Whether the sender may write to those
// devices is for the caller to ask, for each of them.
func (d *Decoder) Split(u *dunlin.Uplink, body []byte) ([]*dunlin.Uplink, error) {
	p := pack{d: d, u: u, split: true}
	err := p.decode(body)
	return p.others, err
}

func (p *pack) decode(body []byte) error {
	u := p.u
	if len(body) > BytesMax {
		return fmt.Errorf("%w: payload of %d bytes, at most %d", dunlin.ErrTooLarge, len(body), BytesMax)
	}
	switch u.Format {
	case dunlin.FormatSenMLJSON:
		p.senmlJSON(body)
	case dunlin.FormatSenMLCBOR:
		p.senmlCBOR(body)
	case dunlin.FormatJSON:
		p.flatJSON(body)
	case dunlin.FormatCBOR:
		p.flatCBOR(body)
	case dunlin.FormatText:
		p.text(body)
	case dunlin.FormatOctets:
		u.Kind, u.Records, u.Payload = dunlin.InputRaw, nil, bytes.Clone(body)
		return nil
	default:
		return fmt.Errorf("%w: %d", dunlin.ErrFormat, u.Format)
	}
	if p.err == nil && len(p.recs) == 0 && len(p.others) == 0 {
		p.fail(len(body), "no values")
	}
	if p.err != nil {
		p.others = nil
		return p.err
	}
	u.Kind, u.Records, u.Payload = dunlin.InputTelemetry, p.recs, nil
	return nil
}

// pack is one payload being decoded. The first error stays, and ends all loops.
type pack struct {
	b []byte // the payload
	i int    // the next byte

	d      *Decoder
	u      *dunlin.Uplink
	split  bool
	err    error
	recs   []dunlin.Record
	others []*dunlin.Uplink
	count  int // records of all uplinks
	expect int // records of the payload, roughly, where recs is not made before the first of them

	base base
	f    fields
}

func (p *pack) fail(pos int, why string) {
	if p.err == nil {
		p.err = fmt.Errorf("%w: %s: byte %d: %s", dunlin.ErrBadPayload, MediaType(p.u.Format), pos, why)
	}
}

// tooMany reports, and fails, if there is no place for one more record.
func (p *pack) tooMany() bool {
	if p.count < RecordsMax {
		p.count++
		return false
	}
	if p.err == nil {
		p.err = fmt.Errorf("%w: more than %d records", dunlin.ErrTooLarge, RecordsMax)
	}
	return true
}
