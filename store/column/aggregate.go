package column

import (
	"fmt"
	"math"
	"slices"
	"strings"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// Partial is the aggregate of one metric over the part of a bucket of time that one block covers. Join puts parts together.
type Partial struct {
	Metric    string
	Start     dunlin.Time // of the bucket
	Count     int
	Min, Max  float64
	First     float64
	Last      float64
	sum, lost float64 // Neumaier's sum: how a history was cut into blocks must not show in its mean
}

// Join adds what comes later in the same bucket.
func (p *Partial) Join(later *Partial) {
	p.Count += later.Count
	p.Min, p.Max, p.Last = min(p.Min, later.Min), max(p.Max, later.Max), later.Last
	p.addSum(later.sum)
	p.lost += later.lost
}

func (p *Partial) addSum(v float64) {
	t := p.sum + v
	if math.Abs(p.sum) >= math.Abs(v) {
		p.lost += (p.sum - t) + v
	} else {
		p.lost += (v - t) + p.sum
	}
	p.sum = t
}

// Bucket returns the aggregate as people see it.
func (p *Partial) Bucket() dunlin.Bucket {
	mean := (p.sum + p.lost) / float64(p.Count)
	if math.IsNaN(mean) { // an infinity makes what was lost a NaN
		mean = p.sum / float64(p.Count)
	}
	return dunlin.Bucket{Metric: p.Metric, Start: p.Start, Count: p.Count, Min: p.Min, Max: p.Max, Mean: mean, First: p.First, Last: p.Last}
}

// Aggregate calls yield for each bucket of width (aligned to the epoch; at least 1 µs) and metric of a block, by start,
// then metric, until it returns false. Metrics, from and to are as in Scan. Booleans count as 0 and 1; texts, data and
// NaNs don't count. No records are made on the way.
func Aggregate(block []byte, metrics []string, width time.Duration, from, to dunlin.Time, yield func(Partial) bool) error {
	w := width.Microseconds()
	if w < 1 {
		return fmt.Errorf("%w: bucket of %v", dunlin.ErrInvalid, width)
	}
	var t table
	if err := t.add(block, metrics); err != nil {
		return err
	}
	t.settle()
	var parts []Partial
	for _, g := range t.groups(from, to) {
		for _, c := range g.cols {
			parts = t.cols[c].aggregate(parts, g.at, len(g.times), w)
		}
	}
	slices.SortFunc(parts, func(a, b Partial) int {
		switch {
		case a.Start < b.Start:
			return -1
		case a.Start > b.Start:
			return 1
		}
		return strings.Compare(a.Metric, b.Metric)
	})
	for _, p := range parts {
		if !yield(p) {
			return nil
		}
	}
	return nil
}

// aggregate appends the column's partials of readings [from, to).
func (c *column) aggregate(parts []Partial, from, to int, width int64) []Partial {
	start, end := int64(math.MaxInt64), int64(math.MinInt64) // of the bucket being filled
	for i := from; i < to; i++ {
		var v float64
		switch classOf(c.at(i).kind) {
		case classNumber:
			v = math.Float64frombits(c.vals[i])
		case classBoolean:
			v = float64(c.vals[i])
		default:
			continue
		}
		if math.IsNaN(v) {
			continue
		}
		if t := c.times[i]; t < start || t > end {
			start = t - ((t%width)+width)%width
			end = start + (width - 1)
			parts = append(parts, Partial{Metric: c.metric, Start: dunlin.Time(start), Min: v, Max: v, First: v})
		}
		p := &parts[len(parts)-1]
		p.Count++
		p.Min, p.Max, p.Last = min(p.Min, v), max(p.Max, v), v
		p.addSum(v)
	}
	return parts
}
