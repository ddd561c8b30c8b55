package store

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/store/column"
)

// bucketWidth is how much of a device's history is one row. It is part of the key format. Measured with four metrics, bytes a
// reading after compaction and time to read the newest 100:
//
//	         report a minute    every 15 minutes    every second
//	 1 hour  4.6 B   86 µs      12.9 B  146 µs      3.2 B   0.3 ms
//	6 hours  4.2 B   61 µs       6.1 B   64 µs      3.2 B   7 ms
//	 a day   4.0 B  378 µs       5.0 B   86 µs      3.2 B  11 ms (of a third of a day)
const bucketWidth = dunlin.Time(6 * time.Hour / time.Microsecond)

// rowsPerPageMax bounds a page of raw history whatever its limit, at the end of a report.
const rowsPerPageMax = 100_000

// bucketOf returns which row of a device's history a time falls in.
func bucketOf(t dunlin.Time) int64 { return floorDiv(int64(t), int64(bucketWidth)) }

func floorDiv(a, b int64) int64 {
	q := a / b
	if a%b < 0 {
		q--
	}
	return q
}

// span is a range of time, from inclusive, to exclusive.
type span struct{ from, to dunlin.Time }

const (
	timeMin = dunlin.Time(math.MinInt64)
	timeMax = dunlin.Time(math.MaxInt64)
)

// Readings returns a page of a device's history. A page's limit counts moments: reports (all records of one time), or, with
// q.Bucket, starts of buckets, each with all its metrics. Records that are text, data or NaN are not aggregated. What a page
// needs in memory is bounded by its limit and one row of history.
func (s *State) Readings(shard dunlin.ShardID, q dunlin.ReadingsQuery) (*dunlin.ReadingsPage, error) {
	if err := s.check(shard); err != nil {
		return nil, err
	}
	if q.Bucket < 0 || q.Bucket > 0 && q.Bucket < time.Microsecond {
		return nil, fmt.Errorf("%w: bucket of %v", dunlin.ErrInvalid, q.Bucket)
	}
	q.Limit = limitOf(q.Limit, 1000, 10_000)
	sp, err := q2span(&q)
	if err != nil {
		return nil, err
	}
	w := &walk{s: s, shard: shard, q: &q, span: sp}
	page := &dunlin.ReadingsPage{}
	switch {
	case sp.from >= sp.to:
	case q.Bucket > 0:
		err = w.buckets(page)
	case q.Newest:
		err = w.newest(page)
	default:
		err = w.oldest(page)
	}
	if err != nil {
		return nil, wrapDevice("readings of", q.DeviceKey, err)
	}
	return page, nil
}

// q2span is the range that a query still has to read: a cursor is the moment at which the page before ended.
func q2span(q *dunlin.ReadingsQuery) (span, error) {
	sp := span{from: q.From, to: q.To}
	if q.From == 0 {
		sp.from = timeMin
	}
	if q.To == 0 {
		sp.to = timeMax
	}
	if q.Cursor == "" {
		return sp, nil
	}
	at, err := parseMoment(q.Cursor)
	if err != nil {
		return sp, err
	}
	if q.Newest {
		sp.to = min(sp.to, at)
	} else {
		sp.from = max(sp.from, at)
	}
	return sp, nil
}

func moment(t dunlin.Time) string {
	return pageCursor(cursorReadings, binary.AppendVarint(nil, int64(t)))
}

func parseMoment(s string) (dunlin.Time, error) {
	b, err := parsePageCursor(cursorReadings, s)
	if err != nil {
		return 0, err
	}
	v, n := binary.Varint(b)
	if n <= 0 || n != len(b) {
		return 0, badCursor(s)
	}
	return dunlin.Time(v), nil
}

// walk reads the rows of one device's history.
type walk struct {
	s     *State
	shard dunlin.ShardID
	q     *dunlin.ReadingsQuery
	span
}

// rows calls f for each row that may have something in the range, in time order or against it, until f returns errStop.
func (w *walk) rows(f func(block []byte) error) error {
	head := appendDevice(nil, w.shard, tabReadings, w.q.DeviceKey)
	o := &pebble.IterOptions{LowerBound: head, UpperBound: after(head)}
	if w.from != timeMin {
		o.LowerBound = appendReadings(nil, w.shard, w.q.DeviceKey, bucketOf(w.from))
	}
	if w.to != timeMax {
		o.UpperBound = appendReadings(nil, w.shard, w.q.DeviceKey, bucketOf(w.to-1)+1)
	}
	it, err := w.s.eng.NewIter(o)
	if err != nil {
		return err
	}
	defer it.Close()
	first, next := it.First, it.Next
	if w.q.Newest {
		first, next = it.Last, it.Prev
	}
	for ok := first(); ok; ok = next() {
		block, err := it.ValueAndErr()
		if err != nil {
			return err
		}
		if err := f(block); err != nil {
			if errors.Is(err, errStop) {
				return nil
			}
			return err
		}
	}
	return it.Error()
}

// oldest fills a page of records from the oldest on. Strings are interned: they must not keep Pebble's blocks.
func (w *walk) oldest(page *dunlin.ReadingsPage) error {
	names := interner{}
	reports := 0
	last := timeMin
	return w.rows(func(block []byte) error {
		full := false
		err := column.Scan(block, w.q.Metrics, w.from, w.to, func(r dunlin.Record) bool {
			if reports == 0 || r.Time != last {
				if reports == w.q.Limit || len(page.Rows) >= rowsPerPageMax {
					page.Next, full = moment(r.Time), true
					return false
				}
				reports++
				last = r.Time
			}
			page.Rows = append(page.Rows, names.own(r))
			return true
		})
		if err == nil && full {
			return errStop
		}
		return err
	})
}

// newest fills a page from the newest back. Blocks decode forwards only, so that of each row the last reports are kept in
// a ring and then turned round; within a report the order of metrics stays.
func (w *walk) newest(page *dunlin.ReadingsPage) error {
	names := interner{}
	reports := 0
	return w.rows(func(block []byte) error {
		room := w.q.Limit - reports
		tail := tailReports{keep: room + 1} // one more, to know that there is one
		err := column.Scan(block, w.q.Metrics, w.from, w.to, func(r dunlin.Record) bool {
			tail.add(names.own(r))
			return true
		})
		if err != nil {
			return err
		}
		for rep := tail.pop(); rep != nil; rep = tail.pop() {
			if reports == w.q.Limit || len(page.Rows) >= rowsPerPageMax {
				page.Next = moment(rep[0].Time + 1)
				return errStop
			}
			reports++
			page.Rows = append(page.Rows, rep...)
		}
		return nil
	})
}

// tailReports keeps the last reports of a run of records.
type tailReports struct {
	keep   int
	recs   []dunlin.Record
	starts []int // of each report in recs
}

func (t *tailReports) add(r dunlin.Record) {
	if n := len(t.recs); n == 0 || t.recs[n-1].Time != r.Time {
		t.starts = append(t.starts, n)
	}
	t.recs = append(t.recs, r)
	drop := 0 // whole reports, a batch of them at a time
	switch {
	case len(t.starts) > 2*t.keep+64:
		drop = len(t.starts) - t.keep
	case len(t.recs) > 2*rowsPerPageMax:
		for drop+1 < len(t.starts) && len(t.recs)-t.starts[drop+1] > rowsPerPageMax {
			drop++
		}
	}
	if drop == 0 {
		return
	}
	cut := t.starts[drop]
	t.recs = t.recs[:copy(t.recs, t.recs[cut:])]
	t.starts = t.starts[:copy(t.starts, t.starts[drop:])]
	for i := range t.starts {
		t.starts[i] -= cut
	}
}

// pop takes the last report; nil if there is none.
func (t *tailReports) pop() []dunlin.Record {
	n := len(t.starts)
	if n == 0 {
		return nil
	}
	rep := t.recs[t.starts[n-1]:]
	t.recs, t.starts = t.recs[:t.starts[n-1]], t.starts[:n-1]
	return rep
}

// interner owns the strings of records that are kept beyond the row they were read from.
type interner map[string]string

func (in interner) string(s string) string {
	if s == "" {
		return ""
	}
	if own, ok := in[s]; ok {
		return own
	}
	own := string(append([]byte(nil), s...))
	in[own] = own
	return own
}

func (in interner) own(r dunlin.Record) dunlin.Record {
	r.Metric, r.Unit = in.string(r.Metric), in.string(r.Unit)
	if r.Str != "" {
		r.Str = string(append([]byte(nil), r.Str...))
	}
	return r
}

// retainReadings deletes what is older than a moment of a device's history, in whole rows. It reports whether there was
// anything.
func (s *State) retainReadings(b *pebble.Batch, shard dunlin.ShardID, key dunlin.DeviceKey, before dunlin.Time) (bool, error) {
	from := appendDevice(nil, shard, tabReadings, key)
	to := appendReadings(nil, shard, key, bucketOf(before))
	it, err := s.eng.NewIter(&pebble.IterOptions{LowerBound: from, UpperBound: to})
	if err != nil {
		return false, err
	}
	found := it.First()
	if err := cmp.Or(it.Error(), it.Close()); err != nil || !found {
		return false, err
	}
	return true, b.DeleteRange(from, to, nil)
}
