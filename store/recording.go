package store

import (
	"cmp"
	"errors"
	"fmt"
	"io"

	"github.com/cockroachdb/pebble/v2"

	"github.com/dunlin-iot/dunlin"
)

// Recording reads what a shard has kept of its past, from a moment on, for those who work off much of it: what it reads lies
// in memory that is used again. It is one goroutine's at a time, and holds nobody up.
type Recording struct {
	j     *Journal
	shard dunlin.ShardID
	next  uint64
	end   uint64 // position at which it ends: the head when it began
	began dunlin.Time
	first uint64 // the oldest index that is kept
	since dunlin.Time
	log   bool // before the archive
	pack  *packer
	walk  segmentWalk
	found []archived
}

// Recording begins to read a shard's entries of since and later. What is applied from now on does not belong to it. With states
// set it takes from the log what is still there: plugins' states are not in the archive. Close ends it.
func (j *Journal) Recording(shard dunlin.ShardID, since dunlin.Time, states bool) (*Recording, error) {
	if int(shard) >= j.shards {
		return nil, fmt.Errorf("recording: %w: shard %d, there are %d", dunlin.ErrInvalid, shard, j.shards)
	}
	p, err := newUnpacker()
	if err != nil {
		return nil, err
	}
	r := &Recording{j: j, shard: shard, since: since, log: states, end: j.Head(shard), pack: p}
	r.walk.mem = reuse()
	r.walk.words = make(map[string]string)
	if err := r.seek(); err != nil {
		r.Close()
		return nil, fmt.Errorf("recording of shard %d: %w", shard, err)
	}
	return r, nil
}

// seek puts the position before the first entry that may be of since or later, and finds out how far back the shard reaches.
func (r *Recording) seek() error {
	found, last := false, uint64(0)
	err := r.j.archive.segments(r.shard, func(s segmentInfo) bool {
		if r.began == 0 && s.entries > 0 {
			r.began = s.from
		}
		if r.first == 0 {
			r.first = s.first
		}
		last = s.last
		if s.to < r.since {
			return true
		}
		r.next, found = s.first, true
		return false
	})
	if r.first == 0 {
		r.first = r.j.log.span(r.shard).first
	}
	if err != nil || found {
		return err
	}
	r.next = max(last+1, r.j.log.span(r.shard).first)
	return nil
}

// Begins returns the time of the oldest entry that the shard keeps, as far as is known: 0 if none was archived and nothing
// has been read yet. whole: there never was an older one.
func (r *Recording) Begins() (at dunlin.Time, whole bool) { return r.began, r.first == 1 }

// Next appends the entries that follow to items: those of one segment of the archive, or a piece of the log. They stay as
// they are until Reset. The error is io.EOF behind the last.
func (r *Recording) Next(items []dunlin.FeedItem) ([]dunlin.FeedItem, error) {
	for {
		n := len(items)
		var err error
		if items, err = r.more(items); err != nil || len(items) > n {
			return items, err
		}
	}
}

func (r *Recording) more(items []dunlin.FeedItem) ([]dunlin.FeedItem, error) {
	if r.log && r.next < r.end {
		if items, err := r.rows(items); !errors.Is(err, dunlin.ErrCursorLost) {
			return items, err
		}
	}
	info, ok, err := r.j.archive.covering(r.shard, r.next)
	if err != nil {
		return items, err
	}
	if ok {
		return r.segment(items, info)
	}
	if r.next >= r.end {
		return items, io.EOF
	}
	items, err = r.rows(items)
	if errors.Is(err, dunlin.ErrCursorLost) { // archived meanwhile, or gone
		return items, r.skip()
	}
	return items, err
}

// rows reads a piece of the log from the position on.
func (r *Recording) rows(items []dunlin.FeedItem) ([]dunlin.FeedItem, error) {
	rows, err := r.j.log.Read(r.shard, r.next, r.end, followBytes)
	if err != nil {
		return items, err
	}
	if len(rows) == 0 {
		return items, io.EOF
	}
	for i := range rows {
		e, err := effective(&rows[i])
		if err != nil {
			return items, err
		}
		if e == nil {
			continue
		}
		if r.began == 0 {
			r.began = e.At
		}
		if e.At >= r.since {
			items = append(items, dunlin.FeedItem{Index: rows[i].Index, Entry: e})
		}
	}
	r.next = rows[len(rows)-1].Index + 1
	return items, nil
}

// segment reads one segment from the position on.
func (r *Recording) segment(items []dunlin.FeedItem, info segmentInfo) ([]dunlin.FeedItem, error) {
	data, ok, err := get(r.j.archive.state.eng, appendIndex(nil, r.shard, tabSegData, info.first))
	if err != nil || !ok {
		return items, cmp.Or(err, r.j.archive.lost(r.shard, info.first))
	}
	r.walk.again()
	if r.found, err = r.walk.items(r.found[:0], data, r.pack, r.shard, info.first); err != nil {
		return items, fmt.Errorf("segment %d of shard %d: %w", info.first, r.shard, err)
	}
	for _, it := range r.found {
		if it.index >= r.next && it.entry.At >= r.since {
			items = append(items, dunlin.FeedItem{Index: it.index, Entry: it.entry})
		}
	}
	r.next = info.last + 1
	return items, nil
}

// skip goes to what is kept next.
func (r *Recording) skip() error {
	next := max(r.next+1, r.j.log.span(r.shard).first)
	err := r.j.archive.segments(r.shard, func(s segmentInfo) bool {
		if s.last < r.next {
			return true
		}
		next = min(next, max(r.next, s.first))
		return false
	})
	r.next = next
	return err
}

// Reset takes back the memory of all that Next returned from the archive.
func (r *Recording) Reset() { r.walk.mem.reset() }

// Close ends the recording.
func (r *Recording) Close() { r.pack.dec.Close() }

// again makes the walk ready for another segment, in the memory that it has.
func (w *segmentWalk) again() {
	clear(w.names)
	clear(w.series)
	clear(w.devices)
	*w = segmentWalk{columns: columns{words: w.words}, mem: w.mem, names: w.names[:0], series: w.series[:0], devices: w.devices[:0]}
}

// covering returns the segment that covers an index, if there is one.
func (a *archive) covering(shard dunlin.ShardID, index uint64) (info segmentInfo, ok bool, err error) {
	head := appendHead(nil, shard, tabSegment)
	it, err := a.state.eng.NewIter(&pebble.IterOptions{LowerBound: head, UpperBound: after(head)})
	if err != nil {
		return info, false, err
	}
	defer func() { err = cmp.Or(err, it.Close()) }()
	if !it.SeekLT(appendIndex(nil, shard, tabSegment, index+1)) {
		return info, false, it.Error()
	}
	if info, err = cutSegmentInfo(it.Key(), it.Value()); err != nil {
		return info, false, err
	}
	return info, info.last >= index, nil
}
