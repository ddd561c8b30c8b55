package store

import (
	"slices"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/store/column"
)

// bucketRow is the aggregates of all metrics over one bucket of time, by metric.
type bucketRow struct {
	start dunlin.Time
	parts []column.Partial
}

// buckets fills a page of aggregates, at most q.Limit starts of buckets.
func (w *walk) buckets(page *dunlin.ReadingsPage) error {
	names := interner{}
	var done []bucketRow // in the order of the page; the last one may go on in the next row of history
	err := w.rows(func(block []byte) error {
		rows, err := w.aggregate(block, w.q.Limit+2, names)
		if err != nil || len(rows) == 0 {
			return err
		}
		if w.q.Newest {
			slices.Reverse(rows)
		}
		if n := len(done); n > 0 && done[n-1].start == rows[0].start {
			done[n-1] = joinRows(done[n-1], rows[0], w.q.Newest)
			rows = rows[1:]
		}
		done = append(done, rows...)
		if len(done) > w.q.Limit {
			return errStop
		}
		return nil
	})
	if err != nil {
		return err
	}
	if len(done) > w.q.Limit {
		at := done[w.q.Limit].start
		if w.q.Newest {
			width := dunlin.Time(w.q.Bucket.Microseconds())
			at = min(at, timeMax-width) + width // the cursor is the end of what is left
		}
		page.Next = moment(at)
		done = done[:w.q.Limit]
	}
	for i := range done {
		for j := range done[i].parts {
			page.Buckets = append(page.Buckets, done[i].parts[j].Bucket())
		}
	}
	return nil
}

// joinRows puts two parts of one bucket together, which are in the order of the walk.
func joinRows(a, b bucketRow, newest bool) bucketRow {
	if newest {
		a, b = b, a
	}
	var parts []column.Partial
	for len(a.parts) > 0 || len(b.parts) > 0 {
		switch {
		case len(b.parts) == 0 || len(a.parts) > 0 && a.parts[0].Metric < b.parts[0].Metric:
			parts, a.parts = append(parts, a.parts[0]), a.parts[1:]
		case len(a.parts) == 0 || b.parts[0].Metric < a.parts[0].Metric:
			parts, b.parts = append(parts, b.parts[0]), b.parts[1:]
		default:
			a.parts[0].Join(&b.parts[0])
			parts, a.parts, b.parts = append(parts, a.parts[0]), a.parts[1:], b.parts[1:]
		}
	}
	return bucketRow{a.start, parts}
}

// aggregate folds one row of history, oldest first, keeping at most keep buckets: the first ones, or with q.Newest the
// last ones.
func (w *walk) aggregate(block []byte, keep int, names interner) ([]bucketRow, error) {
	var rows []bucketRow
	err := column.Aggregate(block, w.q.Metrics, w.q.Bucket, w.from, w.to, func(p column.Partial) bool {
		p.Metric = names.string(p.Metric)
		if n := len(rows); n == 0 || rows[n-1].start != p.Start {
			if n == keep && !w.q.Newest {
				return false
			}
			if n >= 2*keep+64 { // drop the oldest, many at a time
				rows = rows[:copy(rows, rows[n-keep:])]
			}
			rows = append(rows, bucketRow{start: p.Start})
		}
		last := &rows[len(rows)-1]
		last.parts = append(last.parts, p)
		return true
	})
	if len(rows) > keep && w.q.Newest {
		rows = rows[len(rows)-keep:]
	}
	return rows, err
}
