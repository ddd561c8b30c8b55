package column

import (
	"slices"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

// variant is what a reading has beside its time and value. Nearly always a column has one.
type variant struct {
	kind dunlin.ValueKind
	unit string
}

// column is a metric's readings. While blocks are added they are in the order of arrival; settle sorts them.
type column struct {
	metric   string
	times    []int64
	vals     []uint64 // a number's bits, 0 or 1, or a place in strs
	variants []variant
	which    []uint32 // each reading's variant; nil while there is but one
	strs     []string // texts and data
	unsorted bool     // a time is not after the one before it
}

// table is blocks in memory. Its strings are parts of the blocks.
type table struct {
	cols     []column
	byName   map[string]int // made when there are more than a few columns
	last     int            // the column found last
	values   int
	sizeHint int // readings that a column has if each block is a report of it
}

// add adds a block's readings, of the given metrics or (none given) of all.
func (t *table) add(b []byte, metrics []string) error {
	r := reader{b: b, values: ValuesMax - t.values, times: frameLen * len(b)}
	switch tag := r.byte("first byte"); {
	case r.what != "":
	case tag == tagReport:
		t.report(&r, metrics)
	case tag == tagColumns:
		t.block(&r, metrics)
	default:
		r.i = 0
		r.fail("version (this build reads 0x11 and 0x12)")
	}
	t.values = ValuesMax - r.values
	return r.err()
}

func wanted(metrics []string, metric string) bool {
	return len(metrics) == 0 || slices.Contains(metrics, metric)
}

// column finds or makes the column of a metric. Reports of a device name the same metrics in the same order.
func (t *table) column(metric string) *column {
	n := len(t.cols)
	if next := t.last + 1; next < n && t.cols[next].metric == metric {
		t.last = next
		return &t.cols[next]
	}
	if n > 0 && t.cols[0].metric == metric {
		t.last = 0
		return &t.cols[0]
	}
	if n <= 8 {
		for i := range t.cols {
			if t.cols[i].metric == metric {
				t.last = i
				return &t.cols[i]
			}
		}
	} else {
		if t.byName == nil {
			t.byName = make(map[string]int)
			for i := range t.cols {
				t.byName[t.cols[i].metric] = i
			}
		}
		if i, ok := t.byName[metric]; ok {
			t.last = i
			return &t.cols[i]
		}
		t.byName[metric] = n
	}
	c := column{metric: metric}
	if n < 8 && t.sizeHint > 0 {
		c.times, c.vals = make([]int64, 0, t.sizeHint), make([]uint64, 0, t.sizeHint)
	}
	t.cols = append(t.cols, c)
	t.last = n
	return &t.cols[n]
}

// add appends one reading.
func (c *column) add(at int64, val uint64, v variant) {
	if n := len(c.times); n > 0 && at <= c.times[n-1] {
		c.unsorted = true
	}
	i := len(c.variants) - 1
	if i < 0 || c.variants[i] != v {
		i = c.variant(v)
	}
	if i > 0 || c.which != nil {
		c.split()
		c.which = append(c.which, uint32(i))
	}
	c.times = append(c.times, at)
	c.vals = append(c.vals, val)
}

// variant returns the place of v among the column's variants.
func (c *column) variant(v variant) int {
	if i := slices.Index(c.variants, v); i >= 0 {
		return i
	}
	c.variants = append(c.variants, v)
	return len(c.variants) - 1
}

// split gives every reading so far its variant, which is the first.
func (c *column) split() {
	if c.which == nil {
		c.which = make([]uint32, len(c.times), max(cap(c.times), 8))
	}
}

// at returns the variant of reading i.
func (c *column) at(i int) variant {
	if c.which == nil {
		return c.variants[0]
	}
	return c.variants[c.which[i]]
}

// settle sorts columns by metric and readings by time; of those of one time the last one added stays.
func (t *table) settle() {
	for i := range t.cols {
		if t.cols[i].unsorted {
			t.cols[i].sort()
		}
	}
	slices.SortFunc(t.cols, func(a, b column) int { return strings.Compare(a.metric, b.metric) })
	t.byName = nil
}

// sort sorts a column by merging its ascending runs: blocks are sorted in themselves, and reports mostly come in order,
// so there are few of them. At equal times the later run's reading comes behind, and then alone stays.
func (c *column) sort() {
	n := len(c.times)
	order := make([]uint32, n)
	runs := []int{0}
	for i := range order {
		order[i] = uint32(i)
		if i > 0 && c.times[i] < c.times[i-1] {
			runs = append(runs, i)
		}
	}
	runs = append(runs, n)
	spare := make([]uint32, n)
	for len(runs) > 2 {
		kept := runs[:1]
		for i := 0; i+1 < len(runs); i += 2 {
			lo, mid := runs[i], runs[i+1]
			hi := mid
			if i+2 < len(runs) {
				hi = runs[i+2]
			}
			c.merge(spare[lo:hi], order[lo:mid], order[mid:hi])
			kept = append(kept, hi)
		}
		if kept[len(kept)-1] != n {
			kept = append(kept, n)
		}
		runs = kept
		order, spare = spare, order
	}
	times, vals := make([]int64, 0, n), make([]uint64, 0, n)
	var which []uint32
	for i, at := range order {
		if i+1 < n && c.times[order[i+1]] == c.times[at] {
			continue
		}
		times = append(times, c.times[at])
		vals = append(vals, c.vals[at])
		if c.which != nil {
			which = append(which, c.which[at])
		}
	}
	c.times, c.vals, c.which, c.unsorted = times, vals, which, false
}

// merge merges two runs of places, both ascending in time, into out.
func (c *column) merge(out, a, b []uint32) {
	for i := range out {
		if len(b) == 0 || len(a) > 0 && c.times[a[0]] <= c.times[b[0]] {
			out[i], a = a[0], a[1:]
		} else {
			out[i], b = b[0], b[1:]
		}
	}
}
