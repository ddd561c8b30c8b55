package store

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"github.com/dunlin-iot/dunlin"
)

// Log is the Raft log of all shards in one engine. One goroutine appends and truncates at a time; any may read.
type Log struct {
	eng engine

	mu struct {
		sync.RWMutex
		spans []logSpan // by shard
	}
	write struct {
		sync.Mutex
		batch *pebble.Batch
		next  []logSpan // spans as the batch will leave them
		dirty []dunlin.ShardID
		key   []byte
		end   []byte
		value []byte
	}
	bytes atomic.Int64 // of data appended since the engine was opened
	poke  func(int64)  // told bytes after each append
}

// logSpan is which entries of a shard the log has: first to last, none if last is first−1.
type logSpan struct {
	first, last uint64
	truncTerm   uint64 // of entry first−1
	lastTerm    uint64
	hard        bool // there is a hard state
	seen        bool // scratch: in Log.write.dirty
}

// The layout of a log entry's value: uvarint term, one byte type, data.
func appendLogValue(dst []byte, r *dunlin.LogRow) []byte {
	dst = binary.AppendUvarint(dst, r.Term)
	dst = append(dst, r.Type)
	return append(dst, r.Data...)
}

func cutLogValue(b []byte) (r dunlin.LogRow, err error) {
	term, n := binary.Uvarint(b)
	if n <= 0 || n >= len(b) {
		return r, fmt.Errorf("%w: log row of %d bytes", dunlin.ErrInvalid, len(b))
	}
	return dunlin.LogRow{Term: term, Type: b[n], Data: b[n+1:]}, nil
}

func openLog(eng engine, shards int, poke func(int64)) (*Log, error) {
	l := &Log{eng: eng, poke: poke}
	l.mu.spans = make([]logSpan, shards)
	l.write.next = make([]logSpan, shards)
	for s := range shards {
		span, err := l.loadSpan(dunlin.ShardID(s))
		if err != nil {
			return nil, fmt.Errorf("log of shard %d: %w", s, err)
		}
		l.mu.spans[s] = span
	}
	copy(l.write.next, l.mu.spans)
	l.write.batch = eng.NewBatch()
	return l, nil
}

func (l *Log) loadSpan(shard dunlin.ShardID) (logSpan, error) {
	span := logSpan{first: 1}
	v, ok, err := get(l.eng, appendHead(nil, shard, logTrunc))
	if err != nil {
		return span, err
	}
	if ok {
		if len(v) != 16 {
			return span, fmt.Errorf("%w: truncation row of %d bytes", dunlin.ErrInvalid, len(v))
		}
		span.first = binary.BigEndian.Uint64(v) + 1
		span.truncTerm = binary.BigEndian.Uint64(v[8:])
	}
	if _, span.hard, err = get(l.eng, appendHead(nil, shard, logHard)); err != nil {
		return span, err
	}
	span.last, span.lastTerm = span.first-1, span.truncTerm
	head := appendHead(nil, shard, logEntry)
	it, err := l.eng.NewIter(&pebble.IterOptions{LowerBound: appendIndex(nil, shard, logEntry, span.first), UpperBound: after(head)})
	if err != nil {
		return span, err
	}
	defer it.Close()
	if !it.Last() {
		return span, it.Error()
	}
	if span.last, err = cutIndex(it.Key()); err != nil {
		return span, err
	}
	row, err := cutLogValue(it.Value())
	span.lastTerm = row.Term
	return span, err
}

// Load returns the shard's hard state (nil if none was written) and which entries the log has: first to last, none if
// last is first−1.
func (l *Log) Load(shard dunlin.ShardID) (hard []byte, first, last uint64, err error) {
	if err := l.check(shard); err != nil {
		return nil, 0, 0, err
	}
	hard, _, err = get(l.eng, appendHead(nil, shard, logHard))
	if err != nil {
		return nil, 0, 0, fmt.Errorf("log of shard %d: %w", shard, err)
	}
	span := l.span(shard)
	return hard, span.first, span.last, nil
}

func (l *Log) check(shard dunlin.ShardID) error {
	if int(shard) >= len(l.write.next) {
		return fmt.Errorf("%w: shard %d, there are %d", dunlin.ErrInvalid, shard, len(l.write.next))
	}
	return nil
}

func (l *Log) span(shard dunlin.ShardID) logSpan {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.mu.spans[shard]
}

// Append writes rows in one batch, with one fsync before it returns if sync is set. A row at or before the shard's last
// entry replaces it and all behind it. Entries of a shard must follow each other without a gap.
func (l *Log) Append(rows []dunlin.LogRow, sync bool) error {
	w := &l.write
	w.Lock()
	defer w.Unlock()
	if err := l.eng.die.failed(); err != nil {
		return fmt.Errorf("append to log: %w", err)
	}
	defer l.abandon()
	size := 0
	for i := range rows {
		r := &rows[i]
		if err := l.check(r.Shard); err != nil {
			return err
		}
		if err := l.put(r); err != nil {
			return fmt.Errorf("append to log of shard %d: %w", r.Shard, err)
		}
		size += len(r.Data)
	}
	opt := pebble.NoSync
	if sync {
		opt = pebble.Sync
	}
	if w.batch.Empty() && !sync {
		return nil
	}
	if err := l.eng.commit(w.batch, opt); err != nil {
		return err
	}
	l.publish()
	if size > 0 && l.poke != nil {
		l.poke(l.bytes.Add(int64(size)))
	}
	return nil
}

// put adds one row to the batch. The caller holds write.
func (l *Log) put(r *dunlin.LogRow) error {
	w := &l.write
	if r.Hard != nil {
		l.touch(r.Shard).hard = true
		w.key = appendHead(w.key[:0], r.Shard, logHard)
		return w.batch.Set(w.key, r.Hard, nil)
	}
	span := l.touch(r.Shard)
	switch {
	case r.Index < span.first || r.Index > span.last+1:
		return fmt.Errorf("%w: index %d, the log has %d to %d", dunlin.ErrInvalid, r.Index, span.first, span.last)
	case r.Index <= span.last:
		w.key = appendIndex(w.key[:0], r.Shard, logEntry, r.Index)
		w.end = appendIndex(w.end[:0], r.Shard, logEntry, span.last+1)
		if err := w.batch.DeleteRange(w.key, w.end, nil); err != nil {
			return err
		}
	}
	span.last, span.lastTerm = r.Index, r.Term
	w.key = appendIndex(w.key[:0], r.Shard, logEntry, r.Index)
	w.value = appendLogValue(w.value[:0], r)
	return w.batch.Set(w.key, w.value, nil)
}

// touch returns the shard's span as the batch will leave it. The caller holds write.
func (l *Log) touch(shard dunlin.ShardID) *logSpan {
	span := &l.write.next[shard]
	if !span.seen {
		span.seen = true
		l.write.dirty = append(l.write.dirty, shard)
	}
	return span
}

// publish makes what was committed visible. The caller holds write.
func (l *Log) publish() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range l.write.dirty {
		l.write.next[s].seen = false
		l.mu.spans[s] = l.write.next[s]
	}
	l.write.dirty = l.write.dirty[:0]
}

// abandon readies the batch for the next user, forgetting what was not published. The caller holds write.
func (l *Log) abandon() {
	for _, s := range l.write.dirty {
		l.write.next[s] = l.span(s)
	}
	l.write.dirty = l.write.dirty[:0]
	if l.eng.die.failed() == nil {
		l.write.batch.Reset()
	}
}

// Read returns the shard's entries lo to hi−1, or as many of them as fit bytesMax, but at least one. The rows' data are
// the caller's. An error that wraps dunlin.ErrCursorLost says that lo was truncated.
func (l *Log) Read(shard dunlin.ShardID, lo, hi uint64, bytesMax int) ([]dunlin.LogRow, error) {
	if err := l.check(shard); err != nil {
		return nil, err
	}
	span := l.span(shard)
	if lo < span.first {
		return nil, fmt.Errorf("read log of shard %d: %w: it begins at %d, not %d", shard, dunlin.ErrCursorLost, span.first, lo)
	}
	hi = min(hi, span.last+1)
	if lo >= hi {
		return nil, nil
	}
	it, err := l.eng.NewIter(&pebble.IterOptions{
		LowerBound: appendIndex(nil, shard, logEntry, lo), UpperBound: appendIndex(nil, shard, logEntry, hi)})
	if err != nil {
		return nil, fmt.Errorf("read log of shard %d: %w", shard, err)
	}
	defer it.Close()
	rows := make([]dunlin.LogRow, 0, min(hi-lo, 512))
	size, want := 0, lo
	for ok := it.First(); ok; ok = it.Next() {
		index, err := cutIndex(it.Key())
		if err != nil {
			return nil, err
		}
		if index != want {
			return nil, l.gap(shard, want, index)
		}
		size += len(it.Value())
		if size > bytesMax && len(rows) > 0 {
			return rows, nil
		}
		row, err := cutLogValue(append([]byte(nil), it.Value()...))
		if err != nil {
			return nil, fmt.Errorf("read log of shard %d at %d: %w", shard, index, err)
		}
		row.Shard, row.Index = shard, index
		rows = append(rows, row)
		want++
	}
	if err := it.Error(); err != nil {
		return nil, fmt.Errorf("read log of shard %d: %w", shard, err)
	}
	if len(rows) == 0 {
		return nil, l.gap(shard, lo, hi)
	}
	return rows, nil
}

// gap explains entries that should be there: the log was truncated while it was read, or it is damaged.
func (l *Log) gap(shard dunlin.ShardID, want, found uint64) error {
	if span := l.span(shard); want < span.first {
		return fmt.Errorf("read log of shard %d: %w: it begins at %d, not %d", shard, dunlin.ErrCursorLost, span.first, want)
	}
	return fmt.Errorf("read log of shard %d: %w: entry %d is missing before %d", shard, dunlin.ErrInvalid, want, found)
}

// Term returns the term of an entry that the log has, or of the last one that it dropped; 0 for index 0. An error that
// wraps dunlin.ErrCursorLost says that the entry was truncated, dunlin.ErrNotFound that it is not there yet.
func (l *Log) Term(shard dunlin.ShardID, index uint64) (uint64, error) {
	if err := l.check(shard); err != nil {
		return 0, err
	}
	span := l.span(shard)
	switch {
	case index == span.last:
		return span.lastTerm, nil
	case index+1 == span.first:
		return span.truncTerm, nil
	case index < span.first:
		return 0, fmt.Errorf("log of shard %d: %w: it begins at %d, not %d", shard, dunlin.ErrCursorLost, span.first, index)
	case index > span.last:
		return 0, fmt.Errorf("log of shard %d: %w: it ends at %d, before %d", shard, dunlin.ErrNotFound, span.last, index)
	}
	v, ok, err := get(l.eng, appendIndex(nil, shard, logEntry, index))
	if err != nil {
		return 0, fmt.Errorf("log of shard %d at %d: %w", shard, index, err)
	}
	if !ok {
		return 0, l.gap(shard, index, index+1)
	}
	row, err := cutLogValue(v)
	return row.Term, err
}

// Truncate drops the shard's entries up to and with upTo and keeps the term of that one. The caller must not go beyond
// State.Durable. It is not synced: after a crash the dropped entries may be there again.
func (l *Log) Truncate(shard dunlin.ShardID, upTo uint64) error {
	if err := l.check(shard); err != nil {
		return err
	}
	w := &l.write
	w.Lock()
	defer w.Unlock()
	if err := l.eng.die.failed(); err != nil {
		return fmt.Errorf("truncate log: %w", err)
	}
	if upTo < w.next[shard].first {
		return nil
	}
	if last := w.next[shard].last; upTo > last {
		return fmt.Errorf("truncate log of shard %d: %w: to %d, it ends at %d", shard, dunlin.ErrInvalid, upTo, last)
	}
	term, err := l.Term(shard, upTo)
	if err != nil {
		return fmt.Errorf("truncate: %w", err)
	}
	defer l.abandon()
	span := l.touch(shard)
	w.key = appendHead(w.key[:0], shard, logTrunc)
	w.value = binary.BigEndian.AppendUint64(w.value[:0], upTo)
	w.value = binary.BigEndian.AppendUint64(w.value, term)
	if err := w.batch.Set(w.key, w.value, nil); err != nil {
		return err
	}
	w.key = appendIndex(w.key[:0], shard, logEntry, span.first)
	w.end = appendIndex(w.end[:0], shard, logEntry, upTo+1)
	if err := w.batch.DeleteRange(w.key, w.end, nil); err != nil {
		return err
	}
	span.first, span.truncTerm = upTo+1, term
	if err := l.eng.commit(w.batch, pebble.NoSync); err != nil {
		return err
	}
	l.publish()
	return nil
}

// Bytes returns the bytes of entries appended since the log was opened.
func (l *Log) Bytes() int64 { return l.bytes.Load() }

// mark writes a row of a shard beside its log, with a sync.
func (l *Log) mark(shard dunlin.ShardID, kind byte, value []byte) error {
	return l.change(shard, func(b *pebble.Batch, _ *logSpan) error {
		return b.Set(appendHead(nil, shard, kind), value, nil)
	})
}

// unmark removes a row that mark wrote.
func (l *Log) unmark(shard dunlin.ShardID, kind byte) error {
	return l.change(shard, func(b *pebble.Batch, _ *logSpan) error {
		return b.Delete(appendHead(nil, shard, kind), nil)
	})
}

// restart empties the shard's log so that it begins behind a snapshot's entry, and takes the install's marker away.
func (l *Log) restart(meta *dunlin.SnapshotMeta, hard []byte) error {
	return l.change(meta.Shard, func(b *pebble.Batch, span *logSpan) error {
		head := appendHead(nil, meta.Shard, logEntry)
		errs := []error{b.DeleteRange(head, after(head), nil), b.Delete(appendHead(nil, meta.Shard, logInstall), nil)}
		at := binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(nil, meta.Index), meta.Term)
		errs = append(errs, b.Set(appendHead(nil, meta.Shard, logTrunc), at, nil))
		if hard != nil {
			errs = append(errs, b.Set(appendHead(nil, meta.Shard, logHard), hard, nil))
		}
		*span = logSpan{first: meta.Index + 1, last: meta.Index, truncTerm: meta.Term, lastTerm: meta.Term, hard: span.hard || hard != nil, seen: true}
		return errors.Join(errs...)
	})
}

// destroy removes all rows of the shard, and leaves a tombstone and a marker.
func (l *Log) destroy(shard dunlin.ShardID, tomb []byte) error {
	return l.change(shard, func(b *pebble.Batch, span *logSpan) error {
		all := shardSpan(shard)
		*span = logSpan{first: 1, seen: true}
		return errors.Join(b.DeleteRange(all.Start, all.End, nil), b.Set(appendHead(nil, shard, logDestroy), nil, nil),
			b.Set(appendHead(nil, shard, logTomb), tomb, nil))
	})
}

// change commits what f does to a shard in one batch, with a sync.
func (l *Log) change(shard dunlin.ShardID, f func(*pebble.Batch, *logSpan) error) error {
	w := &l.write
	w.Lock()
	defer w.Unlock()
	if err := l.eng.die.failed(); err != nil {
		return fmt.Errorf("log of shard %d: %w", shard, err)
	}
	defer l.abandon()
	if err := f(w.batch, l.touch(shard)); err != nil {
		return fmt.Errorf("log of shard %d: %w", shard, err)
	}
	if err := l.eng.commit(w.batch, pebble.Sync); err != nil {
		return err
	}
	l.publish()
	return nil
}
