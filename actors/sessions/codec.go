package sessions

import (
	"encoding/binary"
	"fmt"

	"github.com/dunlin-iot/dunlin"
)

// The bytes of rows, requests and replies: docs/formats/session.md. Every one begins with its version.
const (
	rowVersion  = 1
	wireVersion = 1
)

// Bounds of what is read. A key is a tenant, and a client's name within it: kind, credential and client identifier.
const (
	keyBytesMax  = 2 * 1024
	willBytesMax = 192 << 10
	bodyBytesMax = dunlin.SessionBytesMax
)

// kind is what a request is for.
type kind uint8

const (
	kindOpen kind = 1 + iota
	kindSave
	kindNote
	// Those of a shard's owner to itself.
	kindOrphan
	kindSaid
	kindExpire
)

// request is one change of a session, on its way to the owner of its shard.
type request struct {
	kind      kind
	key       dunlin.DeviceKey
	node      dunlin.NodeID // who asks
	epoch     uint64        // the holding's that it is about. Open: the newest that the caller has heard of
	force     uint64        // open: the epoch of the holder that does not answer
	clean     bool
	done      bool
	fate      dunlin.SessionWill
	expiry    uint32
	willDelay uint32
	grace     uint32
	will      []byte
	body      []byte
}

func (q *request) bytes() int {
	return len(q.key.Tenant) + len(q.key.Device) + len(q.will) + len(q.body) + 64
}

func (q *request) valid() error {
	switch {
	case q.kind < kindOpen || q.kind > kindExpire || q.fate > dunlin.WillSay:
		return fmt.Errorf("%w: session request", dunlin.ErrInvalid)
	case len(q.key.Tenant) == 0 || len(q.key.Device) == 0 || len(q.key.Tenant)+len(q.key.Device) > keyBytesMax:
		return fmt.Errorf("%w: session key of %d bytes, want 2 to %d", dunlin.ErrInvalid, len(q.key.Tenant)+len(q.key.Device), keyBytesMax)
	case len(q.will) > willBytesMax || len(q.body) > bodyBytesMax:
		return fmt.Errorf("session of %d bytes, will of %d: %w", len(q.body), len(q.will), dunlin.ErrTooLarge)
	}
	return nil
}

// status is the outcome of a request.
type status uint8

const (
	statusDone      status = 1 + iota
	statusHeld             // by node, in epoch. To a note: it was, until now
	statusConflict         // a newer claim was granted
	statusElsewhere        // node leads the shard, as far as the one asked knows (0: it knows of nobody)
	statusFull             // too many wait
)

// reply answers a request.
type reply struct {
	status   status
	present  bool
	exact    bool
	volatile bool // the session has no row
	node     dunlin.NodeID
	epoch    uint64
	before   uint64
	body     []byte
}

func flags(bits ...bool) (b byte) {
	for i, on := range bits {
		if on {
			b |= 1 << i
		}
	}
	return b
}

func appendBytes[S ~string | ~[]byte](dst []byte, s S) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

func appendRequest(dst []byte, q *request) []byte {
	dst = append(dst, wireVersion, byte(q.kind), flags(q.clean, q.done), byte(q.fate))
	dst = appendBytes(appendBytes(dst, q.key.Tenant), q.key.Device)
	for _, v := range []uint64{uint64(q.node), q.epoch, q.force, uint64(q.expiry), uint64(q.willDelay), uint64(q.grace)} {
		dst = binary.AppendUvarint(dst, v)
	}
	return appendBytes(appendBytes(dst, q.will), q.body)
}

func decodeRequest(b []byte) (*request, error) {
	r := reader{b: b}
	r.version(wireVersion)
	q := &request{kind: kind(r.byte())}
	f := r.byte()
	q.clean, q.done = f&1 != 0, f&2 != 0
	q.fate = dunlin.SessionWill(r.byte())
	q.key = r.key()
	q.node, q.epoch, q.force = dunlin.NodeID(r.uvarint()), r.uvarint(), r.uvarint()
	q.expiry, q.willDelay, q.grace = r.uint32(), r.uint32(), r.uint32()
	q.will, q.body = r.bytes(willBytesMax), r.bytes(bodyBytesMax)
	if err := r.end("session request"); err != nil {
		return nil, err
	}
	return q, q.valid()
}

func appendReply(dst []byte, a *reply) []byte {
	dst = append(dst, wireVersion, byte(a.status), flags(a.present, a.exact, a.volatile))
	for _, v := range []uint64{uint64(a.node), a.epoch, a.before} {
		dst = binary.AppendUvarint(dst, v)
	}
	return appendBytes(dst, a.body)
}

func decodeReply(b []byte) (reply, error) {
	r := reader{b: b}
	r.version(wireVersion)
	a := reply{status: status(r.byte())}
	f := r.byte()
	a.present, a.exact, a.volatile = f&1 != 0, f&2 != 0, f&4 != 0
	a.node, a.epoch, a.before = dunlin.NodeID(r.uvarint()), r.uvarint(), r.uvarint()
	a.body = r.bytes(bodyBytesMax)
	if a.status < statusDone || a.status > statusFull {
		r.bad = true
	}
	return a, r.end("answer about a session")
}

func appendRow(dst []byte, r *row) []byte {
	dst = append(dst, rowVersion, flags(r.exact))
	for _, v := range []uint64{r.epoch, uint64(r.holder), uint64(r.expiry), uint64(r.since), uint64(r.endsAt), uint64(r.willDelay)} {
		dst = binary.AppendUvarint(dst, v)
	}
	dst = appendBytes(dst, r.will)
	dst = binary.AppendUvarint(dst, uint64(len(r.wills)))
	for _, w := range r.wills {
		dst = binary.AppendUvarint(binary.AppendUvarint(dst, w.epoch), uint64(w.at))
		dst = appendBytes(dst, w.text)
	}
	return appendBytes(dst, r.body)
}

func decodeRow(b []byte) (*row, error) {
	d := reader{b: b}
	d.version(rowVersion)
	r := &row{exact: d.byte()&1 != 0, epoch: d.uvarint(), holder: dunlin.NodeID(d.uvarint()), expiry: d.uint32(),
		since: dunlin.Time(d.uvarint()), endsAt: dunlin.Time(d.uvarint()), willDelay: d.uint32(), will: d.bytes(willBytesMax)}
	n := d.uvarint()
	if n > willsMax {
		d.bad, n = true, 0
	}
	for range n {
		r.wills = append(r.wills, lateWill{epoch: d.uvarint(), at: dunlin.Time(d.uvarint()), text: d.bytes(willBytesMax)})
	}
	r.body = d.bytes(bodyBytesMax)
	return r, d.end("session")
}

// reader reads what the functions above wrote; what it returns after a fault is zero.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) version(want byte) {
	if r.byte() != want {
		r.bad = true
	}
}

func (r *reader) byte() byte {
	if r.bad || len(r.b) == 0 {
		r.bad = true
		return 0
	}
	v := r.b[0]
	r.b = r.b[1:]
	return v
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if r.bad || n <= 0 {
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) uint32() uint32 {
	v := r.uvarint()
	if v > 1<<32-1 {
		r.bad = true
	}
	return uint32(v)
}

// bytes returns a copy, nil if there are none.
func (r *reader) bytes(bytesMax int) []byte {
	n := r.uvarint()
	if r.bad || n > uint64(len(r.b)) || n > uint64(bytesMax) {
		r.bad = true
		return nil
	}
	if n == 0 {
		return nil
	}
	v := append([]byte(nil), r.b[:n]...)
	r.b = r.b[n:]
	return v
}

func (r *reader) key() dunlin.DeviceKey {
	return dunlin.DeviceKey{Tenant: dunlin.Tenant(r.bytes(keyBytesMax)), Device: dunlin.DeviceID(r.bytes(keyBytesMax))}
}

func (r *reader) end(what string) error {
	if r.bad || len(r.b) > 0 {
		return fmt.Errorf("%w: %s", dunlin.ErrInvalid, what)
	}
	return nil
}
