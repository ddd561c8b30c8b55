package store

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/entry"
)

// archive keeps committed entries in the state engine after they left the log, as compressed segments of one shard each.
// Segments follow each other in order of their indexes; what a shard has of them is contiguous unless archiving was off for
// a while.
type archive struct {
	off     bool
	log     *Log
	state   *State
	pack    *packer
	bytes   int             // target of a segment, before compression
	done    []atomic.Uint64 // index up to which the shard is archived, on disk
	pending []atomic.Int64  // bytes of entries applied and not archived
	total   atomic.Int64    // bytes of all segments
}

// segmentInfo is a segment's row in the table of segments.
type segmentInfo struct {
	shard       dunlin.ShardID
	first, last uint64 // indexes that it covers, also those that had nothing to keep
	from, to    dunlin.Time
	bytes       uint64
	entries     uint64
}

const segmentInfoVersion = 1

func (s *segmentInfo) append(dst []byte) []byte {
	dst = append(dst, segmentInfoVersion)
	dst = binary.AppendUvarint(dst, s.last)
	dst = binary.AppendVarint(dst, int64(s.from))
	dst = binary.AppendVarint(dst, int64(s.to))
	dst = binary.AppendUvarint(dst, s.bytes)
	return binary.AppendUvarint(dst, s.entries)
}

func cutSegmentInfo(key, v []byte) (s segmentInfo, err error) {
	if s.first, err = cutIndex(key); err != nil {
		return s, err
	}
	s.shard = dunlin.ShardID(binary.BigEndian.Uint16(key))
	bad := fmt.Errorf("%w: row of archived segment %d of shard %d", dunlin.ErrInvalid, s.first, s.shard)
	if len(v) == 0 || v[0] != segmentInfoVersion {
		return s, bad
	}
	r := columns{reading: true}
	r.cols[0] = v[1:]
	r.uint(0, &s.last)
	r.int(0, (*int64)(&s.from))
	r.int(0, (*int64)(&s.to))
	r.uint(0, &s.bytes)
	r.uint(0, &s.entries)
	if r.err != nil || s.last < s.first {
		return s, bad
	}
	return s, nil
}

func openArchive(c *Config, log *Log, state *State) (*archive, error) {
	p, err := newPacker()
	if err != nil {
		return nil, err
	}
	a := &archive{off: c.ArchiveOff, log: log, state: state, pack: p, bytes: c.SegmentBytes}
	a.done = make([]atomic.Uint64, state.shards)
	a.pending = make([]atomic.Int64, state.shards)
	for i := range state.shards {
		shard := dunlin.ShardID(i)
		err := a.segments(shard, func(s segmentInfo) bool {
			a.total.Add(int64(s.bytes))
			a.done[i].Store(s.last)
			return true
		})
		if err != nil {
			return nil, fmt.Errorf("archive of shard %d: %w", i, err)
		}
		if a.done[i].Load() < state.durable[i].Load() {
			a.pending[i].Store(int64(a.bytes)) // how much there is in the log is not known: let the next step look
		}
		a.publish(shard)
	}
	return a, nil
}

// publish tells State.Durable how far the shard's log may be cut.
func (a *archive) publish(shard dunlin.ShardID) {
	upTo := a.state.durable[shard].Load()
	if !a.off {
		upTo = min(upTo, a.done[shard].Load())
	}
	a.state.cut[shard].Store(upTo)
}

// segments calls f for the shard's segments in order until it returns false.
func (a *archive) segments(shard dunlin.ShardID, f func(segmentInfo) bool) error {
	head := appendHead(nil, shard, tabSegment)
	var inner error
	err := a.state.keys(head, head, func(key, v []byte) bool {
		s, err := cutSegmentInfo(key, v)
		inner = err
		return err == nil && f(s)
	})
	return cmp.Or(err, inner)
}

// collect adds the shard's entries up to and with target to the batch as segments of about a.bytes. What is left at the end
// waits for more, unless all is set. It returns how far it came and how many bytes of entries that were.
func (a *archive) collect(b *pebble.Batch, shard dunlin.ShardID, target uint64, all bool) (upTo uint64, raw int64, err error) {
	upTo = max(a.done[shard].Load(), a.log.span(shard).first-1)
	for upTo < target {
		rows, err := a.log.Read(shard, upTo+1, target+1, a.bytes)
		if err != nil {
			return upTo, raw, err
		}
		if len(rows) == 0 {
			return upTo, raw, fmt.Errorf("archive shard %d: %w: the log ends before %d, which was applied", shard, dunlin.ErrInvalid, target)
		}
		size := 0
		for i := range rows {
			size += len(rows[i].Data)
		}
		last := rows[len(rows)-1].Index
		if last == target && size < a.bytes*3/4 && !all {
			return upTo, raw, nil
		}
		if err := a.put(b, shard, rows); err != nil {
			return upTo, raw, fmt.Errorf("archive entries %d to %d of shard %d: %w", upTo+1, last, shard, err)
		}
		upTo, raw = last, raw+int64(size)
	}
	return upTo, raw, nil
}

func (a *archive) put(b *pebble.Batch, shard dunlin.ShardID, rows []dunlin.LogRow) error {
	info := segmentInfo{shard: shard, first: rows[0].Index, last: rows[len(rows)-1].Index}
	items := make([]archived, 0, len(rows))
	for i := range rows {
		e, err := effective(&rows[i])
		if err != nil {
			return err
		}
		if e == nil {
			continue
		}
		if len(items) == 0 {
			info.from = e.At
		}
		info.to = max(info.to, e.At)
		items = append(items, archived{rows[i].Index, e})
	}
	data, err := appendSegment(nil, a.pack, shard, info.first, items)
	if err != nil {
		return err
	}
	info.bytes, info.entries = uint64(len(data)), uint64(len(items))
	a.total.Add(int64(len(data)))
	if err := b.Set(appendIndex(nil, shard, tabSegData, info.first), data, nil); err != nil {
		return err
	}
	return b.Set(appendIndex(nil, shard, tabSegment, info.first), info.append(nil), nil)
}

// effective decodes a row of the log; nil if applying it had no effect (see State.Apply).
func effective(r *dunlin.LogRow) (*dunlin.Entry, error) {
	if r.Type != 0 || len(r.Data) == 0 { // 0 is raftpb.EntryNormal
		return nil, nil
	}
	e, err := entry.Decode(r.Data)
	if err != nil {
		return nil, fmt.Errorf("entry %d: %w", r.Index, err)
	}
	if e.Term != r.Term {
		return nil, nil
	}
	return e, nil
}

// read returns the archived entries from index on that lie in one segment, and the first index behind it.
func (a *archive) read(shard dunlin.ShardID, index uint64) ([]archived, uint64, error) {
	head := appendHead(nil, shard, tabSegment)
	it, err := a.state.eng.NewIter(&pebble.IterOptions{LowerBound: head, UpperBound: after(head)})
	if err != nil {
		return nil, 0, err
	}
	defer it.Close()
	if !it.SeekLT(appendIndex(nil, shard, tabSegment, index+1)) {
		return nil, 0, cmp.Or(it.Error(), a.lost(shard, index))
	}
	info, err := cutSegmentInfo(it.Key(), it.Value())
	if err != nil {
		return nil, 0, err
	}
	if info.last < index {
		return nil, 0, a.lost(shard, index)
	}
	data, ok, err := get(a.state.eng, appendIndex(nil, shard, tabSegData, info.first))
	if err != nil {
		return nil, 0, err
	}
	if !ok {
		return nil, 0, a.lost(shard, index)
	}
	items, err := cutSegment(data, a.pack, shard, info.first)
	if err != nil {
		return nil, 0, fmt.Errorf("segment %d of shard %d: %w", info.first, shard, err)
	}
	from, _ := slices.BinarySearchFunc(items, index, func(it archived, i uint64) int { return cmp.Compare(it.index, i) })
	return items[from:], info.last + 1, nil
}

func (a *archive) lost(shard dunlin.ShardID, index uint64) error {
	return fmt.Errorf("entry %d of shard %d: %w", index, shard, dunlin.ErrCursorLost)
}

// retain deletes segments whose newest entry is older than a moment, and then the oldest until all fit the bytes (0: any
// number).
func (a *archive) retain(b *pebble.Batch, before dunlin.Time, bytesMax int64) error {
	var infos []segmentInfo
	for i := range a.state.shards {
		err := a.segments(dunlin.ShardID(i), func(s segmentInfo) bool {
			infos = append(infos, s)
			// Within a shard the oldest come first: by age there is no need to look further.
			return s.to < before || bytesMax > 0 && a.total.Load() > bytesMax
		})
		if err != nil {
			return fmt.Errorf("archive of shard %d: %w", i, err)
		}
	}
	// A shard's segments keep their order even if a clock went back: what is cut is always a shard's beginning.
	for i := 1; i < len(infos); i++ {
		if infos[i].shard == infos[i-1].shard {
			infos[i].to = max(infos[i].to, infos[i-1].to)
		}
	}
	slices.SortStableFunc(infos, func(x, y segmentInfo) int { return cmp.Compare(x.to, y.to) })
	cut := make(map[dunlin.ShardID]uint64) // last index to delete
	for _, s := range infos {
		if s.to >= before && (bytesMax <= 0 || a.total.Load() <= bytesMax) {
			break
		}
		if s.last > cut[s.shard] {
			cut[s.shard] = s.last
		}
		a.total.Add(-int64(s.bytes))
	}
	var errs []error
	for shard, last := range cut {
		for _, table := range []byte{tabSegment, tabSegData} {
			errs = append(errs, b.DeleteRange(appendHead(nil, shard, table), appendIndex(nil, shard, table, last+1), nil))
		}
	}
	return errors.Join(errs...)
}
