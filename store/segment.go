package store

import (
	"fmt"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/entry"
)

// archived is an entry in the archive. Entries there have all their parts but the plugins' states, which running the
// plugins again rebuilds (their inputs and module hashes are there) and which are half of an entry's bytes.
type archived struct {
	index uint64
	entry *dunlin.Entry
}

// The versions of a segment's data. One that says nothing new is written in the oldest, so that what an upgrade brings is
// unreadable to the build before only once it is used.
const (
	segmentPlain   = 1
	segmentEffects = 2 // commands, publications, refused inputs, what made a state
)

// appendSegment appends the bytes of a segment: a version and the packed columns.
func appendSegment(dst []byte, p *packer, shard dunlin.ShardID, first uint64, items []archived) ([]byte, error) {
	w := &segmentWalk{mem: &segmentMemory{}}
	n := uint64(len(items))
	w.uint(colEntry, &n)
	w.start(shard, first)
	for i := range items {
		w.item(&items[i])
	}
	if w.err != nil {
		return nil, w.err
	}
	return p.pack(append(dst, versionOf(items)), &w.columns), nil
}

func versionOf(items []archived) byte {
	for i := range items {
		if entry.Needs(items[i].entry) >= entry.VersionEffects {
			return segmentEffects
		}
	}
	return segmentPlain
}

// cutSegment reads what appendSegment wrote.
func cutSegment(b []byte, p *packer, shard dunlin.ShardID, first uint64) ([]archived, error) {
	w := &segmentWalk{mem: &segmentMemory{}}
	return w.items(nil, b, p, shard, first)
}

// items reads all entries of a segment and appends them to dst.
func (w *segmentWalk) items(dst []archived, b []byte, p *packer, shard dunlin.ShardID, first uint64) ([]archived, error) {
	if len(b) == 0 || b[0] < segmentPlain || b[0] > segmentEffects {
		return nil, fmt.Errorf("%w: archived segment of another version", dunlin.ErrInvalid)
	}
	w.plain = b[0] < segmentEffects
	if err := p.unpack(&w.columns, b[1:], w.mem); err != nil {
		return nil, err
	}
	n := 0
	w.count(colEntry, colAt, &n)
	w.start(shard, first)
	entries := w.mem.entries.list(n)
	for i := range entries {
		it := archived{entry: &entries[i]}
		w.item(&it)
		if w.err != nil {
			return nil, w.err
		}
		dst = append(dst, it)
	}
	return dst, w.err
}

// segmentWalk goes over entries and writes or reads them. What it knows of those before makes the next ones small.
type segmentWalk struct {
	columns
	mem   *segmentMemory // where what is read goes
	plain bool           // nothing of segmentEffects may come
	shard dunlin.ShardID
	next  uint64 // index
	term  uint64
	at    dunlin.Time

	names    []string
	nameAt   map[string]int
	series   []series
	seriesAt map[series]int
	devices  []*deviceTrack
	deviceAt map[dunlin.DeviceKey]int
	hash     int         // in names, the last stage's
	made     dunlin.Made // of the last state that had a mark
}

// series is what records have in common. A kind with seriesOdd is of records that have a number and a string.
type series struct {
	metric, unit string
	kind         dunlin.ValueKind
}

const seriesOdd dunlin.ValueKind = 1 << 7

// deviceTrack is what was last seen of a device.
type deviceTrack struct {
	key     dunlin.DeviceKey
	domain  int // in names
	version uint64
	last    []lastDecimals
	hint    int // where in last the next series probably is
	due     []lastDue
	inputs  int
	stages  int
}

// lastDecimals are the decimals of a device's series before, by digits.
type lastDecimals struct {
	series int
	m      [digitsMax + 1]int64
}

type lastDue struct {
	name int
	due  dunlin.Time
}

// guess returns the series that the device's next record probably belongs to.
func (d *deviceTrack) guess() int {
	if d.hint < len(d.last) {
		return d.last[d.hint].series
	}
	return 0
}

func (d *deviceTrack) decimals(series int) *[digitsMax + 1]int64 {
	if d.hint < len(d.last) && d.last[d.hint].series == series {
		d.hint++
		return &d.last[d.hint-1].m
	}
	for i := range d.last {
		if d.last[i].series == series {
			d.hint = i + 1
			return &d.last[i].m
		}
	}
	d.last = append(d.last, lastDecimals{series: series})
	d.hint = len(d.last)
	return &d.last[d.hint-1].m
}

func (d *deviceTrack) dueOf(name int) *dunlin.Time {
	for i := range d.due {
		if d.due[i].name == name {
			return &d.due[i].due
		}
	}
	d.due = append(d.due, lastDue{name: name})
	return &d.due[len(d.due)-1].due
}

func (w *segmentWalk) start(shard dunlin.ShardID, first uint64) {
	w.shard, w.next, w.made = shard, first, dunlin.Made{}
	if w.reading { // who reads is told the places
		return
	}
	w.nameAt = make(map[string]int)
	w.seriesAt = make(map[series]int)
	w.deviceAt = make(map[dunlin.DeviceKey]int)
}

const (
	entryRare  = 1 << 0 // has puts, or belongs to another shard
	entryIndex = 1 << 1 // index is not the next
	entryTerm  = 1 << 2 // term is not the last
)

func (w *segmentWalk) item(it *archived) {
	e := it.entry
	var flags uint8
	if len(e.Puts) > 0 || e.Shard != w.shard {
		flags |= entryRare
	}
	if it.index != w.next {
		flags |= entryIndex
	}
	if e.Term != w.term {
		flags |= entryTerm
	}
	w.byte(colEntry, &flags)
	if flags&entryIndex != 0 {
		step := it.index - w.next
		w.uint(colEntry, &step)
		w.next += step
	}
	if flags&entryTerm != 0 {
		step := e.Term - w.term
		w.uint(colEntry, &step)
		w.term += step
	}
	it.index, e.Term, e.Shard = w.next, w.term, w.shard
	w.next++
	w.time(colAt, &e.At, w.at)
	w.at = e.At
	if flags&entryRare != 0 {
		w.rarePuts(e)
	}
	n := len(e.Changes)
	w.count(colChanges, colDevice, &n)
	if w.reading && n > 0 {
		e.Changes = w.mem.changes.list(n)
	}
	for i := range e.Changes {
		if w.change(e, &e.Changes[i]); w.err != nil {
			return
		}
	}
}

// rare carries what is seldom there as an entry's bytes.
func (w *segmentWalk) rare(e *dunlin.Entry) *dunlin.Entry {
	var b []byte
	if !w.reading {
		b = entry.Append(nil, e)
	}
	w.bytes(colRare, &b)
	if !w.reading || w.err != nil {
		return e
	}
	got, err := entry.Decode(b)
	if err != nil {
		w.fail(colRare)
		return &dunlin.Entry{}
	}
	return got
}

func (w *segmentWalk) rarePuts(e *dunlin.Entry) {
	got := w.rare(&dunlin.Entry{Shard: e.Shard, Puts: e.Puts})
	if w.reading {
		e.Shard, e.Puts = got.Shard, got.Puts
	}
}

// name carries a name by its place in a table, which it joins when it is new.
func (w *segmentWalk) name(s *string) int {
	i, known := 0, false
	if !w.reading {
		i, known = w.nameAt[*s]
		if !known {
			i = len(w.names)
		}
	}
	u := uint64(i)
	w.uint(colName, &u)
	switch {
	case u < uint64(len(w.names)):
		*s = w.names[u]
	case u == uint64(len(w.names)):
		w.word(colNameNew, s)
		if !w.reading {
			w.nameAt[*s] = len(w.names)
		}
		w.names = append(w.names, *s)
	default:
		w.fail(colName)
		u, *s = 0, ""
	}
	return int(u)
}

func (w *segmentWalk) device(key *dunlin.DeviceKey) *deviceTrack {
	i, known := 0, false
	if !w.reading {
		i, known = w.deviceAt[*key]
		if !known {
			i = len(w.devices)
		}
	}
	u := uint64(i)
	w.uint(colDevice, &u)
	switch {
	case u < uint64(len(w.devices)):
		*key = w.devices[u].key
	case u == uint64(len(w.devices)):
		tenant, id := string(key.Tenant), string(key.Device)
		w.name(&tenant)
		w.word(colDeviceNew, &id)
		*key = dunlin.DeviceKey{Tenant: dunlin.Tenant(tenant), Device: dunlin.DeviceID(id)}
		if !w.reading {
			w.deviceAt[*key] = len(w.devices)
		}
		w.devices = append(w.devices, w.mem.track(*key))
	default:
		w.fail(colDevice)
		return &deviceTrack{}
	}
	return w.devices[u]
}
