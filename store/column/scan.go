package column

import (
	"math"
	"slices"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

// group is columns that have the same times, on the way through them.
type group struct {
	times []int64
	cols  []int
	at    int
}

// scan yields the readings of a settled table in [from, to), by time, then metric.
func (t *table) scan(from, to dunlin.Time, yield func(dunlin.Record) bool) {
	groups := t.groups(from, to)
	if len(groups) == 1 {
		g := &groups[0]
		for i := g.at; i < len(g.times); i++ {
			for _, c := range g.cols {
				if !yield(t.cols[c].record(i)) {
					return
				}
			}
		}
		return
	}
	heap := make([]*group, 0, len(groups))
	for i := range groups {
		heap = append(heap, &groups[i])
	}
	for i := len(heap)/2 - 1; i >= 0; i-- {
		siftDown(heap, i)
	}
	type reading struct{ col, at int }
	var now []reading
	for len(heap) > 0 {
		moment := heap[0].times[heap[0].at]
		now = now[:0]
		for len(heap) > 0 && heap[0].times[heap[0].at] == moment {
			g := heap[0]
			for _, c := range g.cols {
				now = append(now, reading{c, g.at})
			}
			if g.at++; g.at == len(g.times) {
				heap[0] = heap[len(heap)-1]
				heap = heap[:len(heap)-1]
			}
			if len(heap) > 0 {
				siftDown(heap, 0)
			}
		}
		slices.SortFunc(now, func(a, b reading) int { return a.col - b.col })
		for _, r := range now {
			if !yield(t.cols[r.col].record(r.at)) {
				return
			}
		}
	}
}

// groups returns the table's columns by their times, cut to [from, to), without empty ones. It also takes the strings that
// records will have out of the blocks.
func (t *table) groups(from, to dunlin.Time) []group {
	var groups []group
	for i := range t.cols {
		c := &t.cols[i]
		g := slices.IndexFunc(groups, func(g group) bool { return sameArray(g.times, c.times) })
		if g < 0 {
			g = len(groups)
			groups = append(groups, group{times: c.times})
		}
		groups[g].cols = append(groups[g].cols, i)
		c.metric = strings.Clone(c.metric)
		for j := range c.variants {
			c.variants[j].unit = strings.Clone(c.variants[j].unit)
		}
		for j := range c.strs {
			c.strs[j] = strings.Clone(c.strs[j])
		}
	}
	for i := range groups {
		g := &groups[i]
		if from != 0 {
			g.at, _ = slices.BinarySearch(g.times, int64(from))
		}
		if to != 0 {
			end, _ := slices.BinarySearch(g.times, int64(to))
			g.times = g.times[:max(end, g.at)]
		}
	}
	return slices.DeleteFunc(groups, func(g group) bool { return g.at == len(g.times) })
}

// sameArray reports whether a and b are the same memory, as the times of columns that were read from one set are.
func sameArray(a, b []int64) bool {
	return len(a) == len(b) && len(a) > 0 && &a[0] == &b[0]
}

func siftDown(heap []*group, i int) {
	for {
		least := i
		for c := 2*i + 1; c <= 2*i+2 && c < len(heap); c++ {
			if heap[c].times[heap[c].at] < heap[least].times[heap[least].at] {
				least = c
			}
		}
		if least == i {
			return
		}
		heap[i], heap[least] = heap[least], heap[i]
		i = least
	}
}

// record returns reading i.
func (c *column) record(i int) dunlin.Record {
	v := c.at(i)
	r := dunlin.Record{Metric: c.metric, Unit: v.unit, Time: dunlin.Time(c.times[i]), Kind: v.kind}
	switch classOf(v.kind) {
	case classNumber:
		r.Num = math.Float64frombits(c.vals[i])
	case classBoolean:
		r.Num = float64(c.vals[i])
	default:
		r.Str = c.strs[c.vals[i]]
	}
	return r
}
