package mqtt

import (
	"encoding/binary"
	"fmt"
	"net/url"
	"slices"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

// A session that is kept beyond its node, in bytes: docs/formats/session.md. Messages are not in it: they are in the log,
// and places in the log are the same on every node.
const (
	recordVersion = 1
	wordVersion   = 1
)

// Bounds of what is read from a record.
const (
	recordShardsMax = 1 << 16
	recordSubsMax   = 1024
	recordItemsMax  = 4096
)

// place is where in the log a message comes from: the nth piece of news of an entry.
type place struct {
	shard dunlin.ShardID
	index uint64
	nth   int
}

// record is what is kept of a session.
type record struct {
	subs     []subscription
	at       position // cur nil: nothing was ever subscribed
	lastID   uint16   // of the packet ids to the client
	items    []keptItem
	incoming []uint16 // QoS 2 packet ids that wait for their PUBREL
}

// keptItem is a message in flight. Packet ids are consecutive; lastID is the last one's.
type keptItem struct {
	place
	device dunlin.DeviceID
	kind   newsKind
	acked  bool
}

func (it *keptItem) flags() byte {
	f := byte(it.kind) << 1
	if it.acked {
		f |= 1
	}
	return f
}

// appendCursor writes c against base, which it mostly equals.
func appendCursor(dst []byte, c, base dunlin.Cursor) []byte {
	for i, v := range c {
		dst = binary.AppendVarint(dst, int64(v-base[i]))
	}
	return dst
}

func appendString[S ~string | ~[]byte](dst []byte, s S) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

func appendFlags(dst []byte, bits ...bool) []byte {
	var b byte
	for i, on := range bits {
		if on {
			b |= 1 << i
		}
	}
	return append(dst, b)
}

// append writes r. A subscription's beginning is left out once the position is past it, as it soon is.
func (r *record) append(dst []byte) []byte {
	dst = append(dst, recordVersion)
	dst = binary.AppendUvarint(dst, uint64(len(r.at.cur)))
	for _, v := range r.at.cur {
		dst = binary.AppendUvarint(dst, v)
	}
	dst = appendFlags(dst, r.at.one)
	for _, v := range []uint64{uint64(r.at.shard), r.at.index, uint64(r.at.skip)} {
		dst = binary.AppendUvarint(dst, v)
	}
	dst = appendString(dst, r.at.device)
	if r.at.one {
		dst = appendCursor(dst, r.at.origin, r.at.cur)
	}
	dst = binary.AppendUvarint(dst, uint64(len(r.subs)))
	for i := range r.subs {
		s := &r.subs[i]
		since := !past(s.since, r.at.cur)
		same := since && i > 0 && slices.Equal(s.since, r.subs[i-1].since)
		dst = append(appendFlags(dst, since, same), s.qos)
		dst = binary.AppendUvarint(appendString(dst, s.text), uint64(s.subID))
		if since && !same {
			dst = appendCursor(dst, s.since, r.at.cur)
		}
	}
	dst = binary.AppendUvarint(dst, uint64(r.lastID))
	dst = binary.AppendUvarint(dst, uint64(len(r.items)))
	for i := range r.items {
		it := &r.items[i]
		dst = append(dst, it.flags())
		if it.acked {
			continue
		}
		for _, v := range []uint64{uint64(it.shard), it.index, uint64(it.nth)} {
			dst = binary.AppendUvarint(dst, v)
		}
		dst = appendString(dst, it.device)
	}
	dst = binary.AppendUvarint(dst, uint64(len(r.incoming)))
	for _, id := range r.incoming {
		dst = binary.AppendUvarint(dst, uint64(id))
	}
	return dst
}

// past reports whether nothing before since is still to be read at cur.
func past(since, cur dunlin.Cursor) bool {
	if len(since) != len(cur) {
		return len(since) == 0
	}
	for i := range since {
		if since[i] > cur[i] {
			return false
		}
	}
	return true
}

// parseRecord reads what append wrote.
func parseRecord(b []byte) (*record, error) {
	d := recordReader{b: b}
	d.version(recordVersion)
	r := &record{}
	shards := d.count(recordShardsMax)
	for range shards {
		r.at.cur = append(r.at.cur, d.uvarint())
	}
	r.at.one = d.byte()&1 != 0
	r.at.shard, r.at.index, r.at.skip = d.shard(), d.uvarint(), int(d.upTo(1<<31-1))
	r.at.device = dunlin.DeviceID(d.text())
	if r.at.one {
		r.at.origin = d.cursor(r.at.cur)
	}
	for range d.count(recordSubsMax) {
		d.subscription(r)
	}
	r.lastID = uint16(d.upTo(65535))
	for range d.count(recordItemsMax) {
		f := d.byte()
		it := keptItem{acked: f&1 != 0, kind: newsKind(f >> 1)}
		d.bad = d.bad || it.kind >= newsKinds
		if !it.acked {
			it.shard, it.index, it.nth = d.shard(), d.uvarint(), int(d.upTo(1<<31-1))
			it.device = dunlin.DeviceID(d.text())
			if int(it.shard) >= shards || it.device.Validate() != nil {
				d.bad = true
			}
		}
		r.items = append(r.items, it)
	}
	for range d.count(65535) {
		r.incoming = append(r.incoming, uint16(d.upTo(65535)))
	}
	if d.bad || len(d.b) > 0 {
		return nil, fmt.Errorf("%w: kept session", dunlin.ErrInvalid)
	}
	return r, nil
}

func (d *recordReader) subscription(r *record) {
	f := d.byte()
	s := subscription{qos: min(d.byte(), 1)}
	text := d.text()
	s.subID = uint32(d.upTo(1<<28 - 1))
	switch {
	case f&3 == 3 && len(r.subs) > 0:
		s.since = r.subs[len(r.subs)-1].since
	case f&1 != 0:
		s.since = d.cursor(r.at.cur)
	}
	var err *fault
	if s.filter, err = parseFilter(text); err != nil || d.bad {
		d.bad = true
		return
	}
	r.subs = append(r.subs, s)
}

// recordReader reads a record; what it returns after a fault is zero.
type recordReader struct {
	b   []byte
	bad bool
}

func (d *recordReader) version(want byte) {
	if d.byte() != want {
		d.bad = true
	}
}

func (d *recordReader) byte() byte {
	if d.bad || len(d.b) == 0 {
		d.bad = true
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *recordReader) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if d.bad || n <= 0 {
		d.bad = true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *recordReader) upTo(limit uint64) uint64 {
	v := d.uvarint()
	if v > limit {
		d.bad = true
		return 0
	}
	return v
}

// count reads how many follow: never more than there are bytes.
func (d *recordReader) count(limit int) int {
	n := d.upTo(uint64(limit))
	if n > uint64(len(d.b)) {
		d.bad = true
		return 0
	}
	return int(n)
}

func (d *recordReader) shard() dunlin.ShardID { return dunlin.ShardID(d.upTo(recordShardsMax - 1)) }

func (d *recordReader) cursor(base dunlin.Cursor) dunlin.Cursor {
	c := make(dunlin.Cursor, len(base))
	for i := range c {
		v, n := binary.Varint(d.b)
		if d.bad || n <= 0 {
			d.bad = true
			return nil
		}
		c[i], d.b = base[i]+uint64(v), d.b[n:]
	}
	return c
}

func (d *recordReader) text() string {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.bad = true
		return ""
	}
	v := string(d.b[:n])
	d.b = d.b[n:]
	return v
}

// word is a will for whoever says it.
type word struct {
	principal dunlin.Principal
	client    string
	msg       willMessage
}

func (w *word) append(dst []byte) []byte {
	dst = append(dst, wordVersion, byte(w.principal.Kind))
	for _, s := range []string{string(w.principal.Tenant), w.principal.ID, string(w.principal.Domain), w.client, w.msg.topic, w.msg.contentType} {
		dst = appendString(dst, s)
	}
	dst = appendFlags(dst, w.msg.hasType)
	return appendString(dst, w.msg.payload)
}

func parseWord(b []byte) (*word, error) {
	d := recordReader{b: b}
	d.version(wordVersion)
	w := &word{}
	w.principal.Kind = dunlin.PrincipalKind(d.byte())
	w.principal.Tenant, w.principal.ID, w.principal.Domain = dunlin.Tenant(d.text()), d.text(), dunlin.DomainID(d.text())
	w.client, w.msg.topic, w.msg.contentType = d.text(), d.text(), d.text()
	w.msg.hasType = d.byte()&1 != 0
	w.msg.payload = []byte(d.text())
	if d.bad || len(d.b) > 0 {
		return nil, fmt.Errorf("%w: kept will", dunlin.ErrInvalid)
	}
	return w, nil
}

// rowKey is the session's name in the cluster: kind and name of the credential, then the client identifier, which may hold
// anything.
func (k sessionKey) rowKey() dunlin.DeviceKey {
	return dunlin.DeviceKey{Tenant: k.tenant, Device: dunlin.DeviceID(fmt.Sprintf("%d/%s/%s", k.kind, url.PathEscape(k.owner), k.client))}
}

// parseRowKey reads what rowKey made.
func parseRowKey(k dunlin.DeviceKey) (sessionKey, bool) {
	kind, rest, ok := strings.Cut(string(k.Device), "/")
	owner, client, ok2 := strings.Cut(rest, "/")
	name, err := url.PathUnescape(owner)
	if !ok || !ok2 || err != nil || len(kind) != 1 || kind[0] < '0' || kind[0] > '9' {
		return sessionKey{}, false
	}
	return sessionKey{k.Tenant, dunlin.PrincipalKind(kind[0] - '0'), name, client}, true
}
