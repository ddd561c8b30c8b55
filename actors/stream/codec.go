package stream

import (
	"encoding/binary"
	"fmt"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/entry"
)

// MethodPull is the only question between feeds; docs/formats/feed.md has its bytes.
const MethodPull = "feed/pull"

const pullVersion = 1

// pull asks for entries of shards.
type pull struct {
	wait   time.Duration     // for news, if there are none; whole milliseconds
	max    int               // bytes of entries in the reply
	device *dunlin.DeviceKey // leave out entries without it
	from   []position
}

// position is where one shard is to be read on; next 0 asks only where it ends.
type position struct {
	shard dunlin.ShardID
	next  uint64
}

// status is what a replica says about a shard.
type status byte

const (
	statusOK     status = 0
	statusLost   status = 1 // what was at the position is not kept here
	statusAbsent status = 2 // no replica here
	statusStale  status = 3 // nothing at the position, but the replica may lack the newest
)

// answer is what a reply has of one shard: all entries with an effect from the position asked for up to next.
type answer struct {
	shard  dunlin.ShardID
	status status
	next   uint64
	head   uint64 // where the replica ends
	items  []dunlin.FeedItem
	bytes  int // encoded size of items
}

func (p *pull) append(dst []byte) []byte {
	dst = append(dst, pullVersion)
	dst = binary.AppendUvarint(dst, uint64(p.wait/time.Millisecond))
	dst = binary.AppendUvarint(dst, uint64(p.max))
	if p.device == nil {
		dst = append(dst, 0)
	} else {
		dst = append(dst, 1)
		dst = appendText(dst, string(p.device.Tenant))
		dst = appendText(dst, string(p.device.Device))
	}
	dst = binary.AppendUvarint(dst, uint64(len(p.from)))
	for _, at := range p.from {
		dst = binary.AppendUvarint(dst, uint64(at.shard))
		dst = binary.AppendUvarint(dst, at.next)
	}
	return dst
}

func appendText(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// decodePull reads what append wrote. Each shard comes once, and is one of shards.
func decodePull(b []byte, shards int) (pull, error) {
	r := reader{b: b}
	var p pull
	if v := r.byte(); v != pullVersion {
		return p, fmt.Errorf("%w: pull of version %d, this build reads version %d", dunlin.ErrInvalid, v, pullVersion)
	}
	p.wait = time.Duration(r.uint(uint64(waitMax/time.Millisecond))) * time.Millisecond
	p.max = int(r.uint(entryBytesMax))
	if r.byte() != 0 {
		p.device = &dunlin.DeviceKey{Tenant: dunlin.Tenant(r.bytes(dunlin.NameBytesMax)), Device: dunlin.DeviceID(r.bytes(dunlin.NameBytesMax))}
	}
	n := int(r.uint(uint64(shards)))
	seen := make([]bool, shards)
	for i := 0; i < n && !r.bad; i++ {
		at := position{shard: dunlin.ShardID(r.uint(uint64(shards - 1))), next: r.uint(indexMax)}
		r.bad = r.bad || seen[at.shard]
		seen[at.shard] = true
		p.from = append(p.from, at)
	}
	if r.bad || len(r.b) > 0 || len(p.from) == 0 {
		return p, fmt.Errorf("%w: pull of %d bytes", dunlin.ErrInvalid, len(b))
	}
	return p, nil
}

// indexMax keeps sums of indexes from running over.
const indexMax = 1<<63 - 1

// replyWriter builds a reply. Shards are appended one after the other, each with its entries.
type replyWriter struct {
	b     []byte
	plain []byte // scratch
	full  int    // bytes of entries from which on the reply is full
	bytes int    // of entries so far

	at    answer
	items []byte // of at, encoded
	n     int
	last  uint64
}

func newReply(max int) *replyWriter { return &replyWriter{b: []byte{pullVersion}, full: max} }

func (w *replyWriter) open(sh dunlin.ShardID, next uint64) {
	w.at = answer{shard: sh, next: next}
	w.items, w.n, w.last = w.items[:0], 0, next
}

// item adds an entry without what its plugins remember: the archive does not keep it either, and it is half of the bytes.
// false: the entry is larger than a call may be.
func (w *replyWriter) item(it dunlin.FeedItem) bool {
	w.plain = entry.Append(w.plain[:0], withoutStates(it.Entry))
	if len(w.plain) > entryBytesMax {
		return false
	}
	w.items = binary.AppendUvarint(w.items, it.Index-w.last)
	w.items = binary.AppendUvarint(w.items, uint64(len(w.plain)))
	w.items = append(w.items, w.plain...)
	w.last = it.Index
	w.n++
	w.bytes += len(w.plain)
	return true
}

// room tells whether another entry may be added.
func (w *replyWriter) room() bool { return w.bytes < w.full }

func (w *replyWriter) close(st status, next, head uint64) {
	w.b = binary.AppendUvarint(w.b, uint64(w.at.shard))
	w.b = append(w.b, byte(st))
	w.b = binary.AppendUvarint(w.b, w.at.next)
	w.b = binary.AppendUvarint(w.b, next-w.at.next)
	w.b = binary.AppendUvarint(w.b, head)
	w.b = binary.AppendUvarint(w.b, uint64(w.n))
	w.b = append(w.b, w.items...)
}

func (w *replyWriter) empty() bool { return len(w.b) == 1 }

func withoutStates(e *dunlin.Entry) *dunlin.Entry {
	has := func(c *dunlin.Change) bool {
		for i := range c.Stages {
			if c.Stages[i].StateSet || c.Stages[i].State != nil {
				return true
			}
		}
		return false
	}
	var out *dunlin.Entry
	for i := range e.Changes {
		if !has(&e.Changes[i]) {
			continue
		}
		if out == nil {
			out = new(*e)
			out.Changes = append([]dunlin.Change(nil), e.Changes...)
		}
		c := &out.Changes[i]
		c.Stages = append([]dunlin.StageResult(nil), c.Stages...)
		for k := range c.Stages {
			c.Stages[k].State, c.Stages[k].StateSet = nil, false
		}
	}
	if out == nil {
		return e
	}
	return out
}

// decodeReply reads the answers to p. A shard that was not asked for, or asked for at another position, entries out of order
// or out of bounds make the whole reply invalid: then nothing of the peer is trusted.
func decodeReply(b []byte, p *pull) ([]answer, error) {
	asked := make(map[dunlin.ShardID]uint64, len(p.from))
	for _, at := range p.from {
		asked[at.shard] = at.next
	}
	r := reader{b: b}
	if v := r.byte(); v != pullVersion {
		return nil, fmt.Errorf("%w: reply of version %d, this build reads version %d", dunlin.ErrInvalid, v, pullVersion)
	}
	var out []answer
	for len(r.b) > 0 && !r.bad {
		a := answer{shard: dunlin.ShardID(r.uint(shardsMax - 1)), status: status(r.byte())}
		from := r.uint(indexMax)
		a.next = from + r.uint(indexMax-from)
		a.head = r.uint(indexMax)
		if next, ok := asked[a.shard]; !ok || next != from || a.status > statusStale {
			r.bad = true
		}
		delete(asked, a.shard)
		if err := a.decodeItems(&r, from); err != nil {
			return nil, err
		}
		out = append(out, a)
	}
	if r.bad {
		return nil, fmt.Errorf("%w: reply of %d bytes", dunlin.ErrInvalid, len(b))
	}
	return out, nil
}

func (a *answer) decodeItems(r *reader, from uint64) error {
	n := r.uint(uint64(len(r.b)))
	last := from
	for i := uint64(0); i < n && !r.bad; i++ {
		step := r.uint(indexMax - last)
		raw := r.bytes(entryBytesMax)
		if r.bad || i > 0 && step == 0 || last+step >= a.next {
			r.bad = true
			break
		}
		last += step
		// A copy, because the entry keeps its bytes, and one entry in a tail should not keep a whole reply.
		e, err := entry.Decode([]byte(string(raw)))
		if err != nil {
			return fmt.Errorf("entry %d of shard %d: %w", last, a.shard, err)
		}
		if e.Shard != a.shard {
			return fmt.Errorf("%w: entry %d of shard %d says it is of shard %d", dunlin.ErrInvalid, last, a.shard, e.Shard)
		}
		a.items = append(a.items, dunlin.FeedItem{Index: last, Entry: e})
		a.bytes += len(raw)
	}
	return nil
}

// reader takes numbers and texts from hostile bytes; after the first fault it gives zeros.
type reader struct {
	b   []byte
	bad bool
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

func (r *reader) uint(most uint64) uint64 {
	v, n := binary.Uvarint(r.b)
	if r.bad || n <= 0 || v > most {
		r.bad = true
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) bytes(most int) []byte {
	n := int(r.uint(uint64(most)))
	if r.bad || n > len(r.b) {
		r.bad = true
		return nil
	}
	v := r.b[:n]
	r.b = r.b[n:]
	return v
}
