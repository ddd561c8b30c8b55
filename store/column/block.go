package column

import (
	"math"
	"math/bits"
	"slices"

	"github.com/dunlin-iot/dunlin"
)

// How a time set is kept.
const (
	setOwn    = 0 // its times
	setBits   = 1 // a bit for each time of the first set
	setExcept = 2 // the places in the first set that are not in it
)

// Times are kept in the coarsest of these units that all of a set are whole in.
var timeUnits = [...]int64{1, 1e3, 1e6}

// inUnit returns t in a unit, and whether it is whole in it. Constants spare the division.
func inUnit(t int64, unit int) (int64, bool) {
	switch unit {
	case 1:
		q := t / 1e3
		return q, q*1e3 == t
	case 2:
		q := t / 1e6
		return q, q*1e6 == t
	}
	return t, true
}

// columns writes a settled table:
//
//	u8 tag · uvarint sets · uvarint columns · time sets · columns by name: string metric, uvarint set, uvarint length, body
//
// The first set is the largest, so that others can be parts of it, or all times, of which every set is a part, if that is
// shorter.
func (w *writer) columns(t *table) {
	sets, of := timeSets(t)
	w.byte(tagColumns)
	from := len(w.b)
	w.timeSets(sets, len(t.cols))
	if all := union(sets); all != nil {
		mid := len(w.b)
		w.timeSets(append([][]int64{all}, sets...), len(t.cols))
		if len(w.b)-mid < mid-from {
			w.b = append(w.b[:from], w.b[mid:]...)
			for i := range of {
				of[i]++
			}
		} else {
			w.b = w.b[:mid]
		}
	}
	for i := range t.cols {
		c := &t.cols[i]
		w.string(c.metric)
		w.uvarint(uint64(of[i]))
		from := len(w.b)
		w.body(c)
		w.wrapLength(from)
	}
}

// timeSets returns the distinct times of columns, the largest first, then by first column; and each column's place there.
func timeSets(t *table) (sets [][]int64, of []int) {
	of = make([]int, len(t.cols))
	for i := range t.cols {
		times := t.cols[i].times
		of[i] = slices.IndexFunc(sets, func(s []int64) bool { return sameTimes(s, times) })
		if of[i] < 0 {
			of[i] = len(sets)
			sets = append(sets, times)
		}
	}
	if len(sets) < 2 {
		return sets, of
	}
	order := make([]int, len(sets))
	for i := range order {
		order[i] = i
	}
	slices.SortStableFunc(order, func(a, b int) int { return len(sets[b]) - len(sets[a]) })
	sorted := make([][]int64, len(sets))
	place := make([]int, len(sets))
	for i, s := range order {
		sorted[i], place[s] = sets[s], i
	}
	for i := range of {
		of[i] = place[of[i]]
	}
	return sorted, of
}

func sameTimes(a, b []int64) bool {
	n := len(a)
	return n == len(b) && (n == 0 || &a[0] == &b[0] || a[n-1] == b[n-1] && a[n/2] == b[n/2] && slices.Equal(a, b))
}

// union returns all times of sets, the largest first, or nil if it is not worth a try: it is the first set, or, as of
// metrics that never meet, much larger than that.
func union(sets [][]int64) []int64 {
	if len(sets) < 2 {
		return nil
	}
	limit := 2 * len(sets[0])
	all := sets[0]
	for _, s := range sets[1:] {
		if all = unite(all, s, limit); all == nil {
			return nil
		}
	}
	if len(all) == len(sets[0]) {
		return nil
	}
	return all
}

// unite merges two ascending sets; nil if the result has more than limit times.
func unite(a, b []int64, limit int) []int64 {
	out := make([]int64, 0, limit)
	for len(a) > 0 || len(b) > 0 {
		if len(out) == limit {
			return nil
		}
		switch {
		case len(b) == 0 || len(a) > 0 && a[0] < b[0]:
			out, a = append(out, a[0]), a[1:]
		case len(a) == 0 || b[0] < a[0]:
			out, b = append(out, b[0]), b[1:]
		default:
			out, a, b = append(out, a[0]), a[1:], b[1:]
		}
	}
	return out
}

// timeSets writes uvarint sets · uvarint columns · time sets.
func (w *writer) timeSets(sets [][]int64, cols int) {
	w.uvarint(uint64(len(sets)))
	w.uvarint(uint64(cols))
	for i, times := range sets {
		from := len(w.b)
		w.ownTimes(times)
		if i == 0 {
			continue
		}
		if mid := len(w.b); w.part(times, sets[0]) && len(w.b)-mid < mid-from {
			w.b = append(w.b[:from], w.b[mid:]...)
		} else {
			w.b = w.b[:mid]
		}
	}
}

// ownTimes writes u8 setOwn, uvarint count, u8 unit, ints.
func (w *writer) ownTimes(times []int64) {
	w.byte(setOwn)
	w.uvarint(uint64(len(times)))
	unit := len(timeUnits) - 1
	w.ints = w.ints[:0]
	for i := 0; i < len(times); i++ {
		q, whole := inUnit(times[i], unit)
		if !whole {
			unit--
			w.ints, i = w.ints[:0], -1
			continue
		}
		w.ints = append(w.ints, q)
	}
	w.byte(uint8(unit))
	w.intStream(w.ints)
}

// part writes times as part of a set: u8 setBits, bits, the first in the lowest place; or, for want of few, u8 setExcept,
// uvarint count, ints. It returns false, and perhaps rubbish behind w.b, if they are not a part.
func (w *writer) part(times, of []int64) bool {
	missing := len(of) - len(times)
	few := missing < len(of)/8
	if missing < 0 {
		return false
	}
	at := len(w.b) + 1
	w.ints = w.ints[:0]
	if few {
		w.byte(setExcept)
		w.uvarint(uint64(missing))
	} else {
		w.byte(setBits)
		w.b = append(w.b, make([]byte, (len(of)+7)/8)...)
	}
	i := 0
	for j, t := range of {
		switch {
		case i < len(times) && times[i] == t:
			i++
			if !few {
				w.b[at+j/8] |= 1 << (j % 8)
			}
		case few:
			w.ints = append(w.ints, int64(j))
		}
	}
	if i < len(times) {
		return false
	}
	w.intStream(w.ints)
	return true
}

// body writes a column's values: uvarint variants, each u8 kind and string unit · of several: ints of variants · then, if
// there are such readings, numbers · booleans as ints · texts and data as dictionary and ints.
func (w *writer) body(c *column) {
	w.canonicalVariants(c)
	w.uvarint(uint64(len(c.variants)))
	for _, v := range c.variants {
		w.byte(uint8(v.kind))
		w.string(v.unit)
	}
	if len(c.variants) > 1 {
		w.ints = w.ints[:0]
		for _, v := range c.which {
			w.ints = append(w.ints, int64(v))
		}
		w.intStream(w.ints)
	}
	for class := classNumber; class <= classText; class++ {
		vals := c.of(class, &w.vals)
		if len(vals) == 0 {
			continue
		}
		switch class {
		case classNumber:
			w.numberStream(vals)
		case classBoolean:
			w.ints = w.ints[:0]
			for _, v := range vals {
				w.ints = append(w.ints, int64(v))
			}
			w.intStream(w.ints)
		case classText:
			w.texts(vals, c.strs)
		}
	}
}

// The classes of values that are kept together.
const (
	classNumber = iota
	classBoolean
	classText
)

func classOf(k dunlin.ValueKind) int {
	switch k {
	case dunlin.Number:
		return classNumber
	case dunlin.Boolean:
		return classBoolean
	}
	return classText
}

// canonicalVariants numbers the variants in the order in which they come first in time and forgets those that no reading
// has any more.
func (w *writer) canonicalVariants(c *column) {
	if len(c.variants) < 2 {
		return
	}
	place := make([]uint32, len(c.variants))
	var used []variant
	for i, v := range c.which {
		if place[v] == 0 {
			used = append(used, c.variants[v])
			place[v] = uint32(len(used))
		}
		c.which[i] = place[v] - 1
	}
	c.variants = used
	if len(used) == 1 {
		c.which = nil
	}
}

// of returns the column's values of a class, in room if they are not all of it.
func (c *column) of(class int, room *[]uint64) []uint64 {
	if c.which == nil {
		if len(c.variants) > 0 && classOf(c.variants[0].kind) == class {
			return c.vals
		}
		return nil
	}
	vals := (*room)[:0]
	for i, v := range c.which {
		if classOf(c.variants[v].kind) == class {
			vals = append(vals, c.vals[i])
		}
	}
	*room = vals
	return vals
}

// texts writes uvarint count, strings in the order in which they come first, and ints of places.
func (w *writer) texts(vals []uint64, strs []string) {
	if w.dict == nil {
		w.dict = make(map[string]int64)
	}
	clear(w.dict)
	w.ints = w.ints[:0]
	from := len(w.b)
	for _, v := range vals {
		s := strs[v]
		place, ok := w.dict[s]
		if !ok {
			place = int64(len(w.dict))
			w.dict[s] = place
			w.string(s)
		}
		w.ints = append(w.ints, place)
	}
	w.insertUvarint(from, uint64(len(w.dict)))
	w.intStream(w.ints)
}

// block reads a columnar block into the table.
func (t *table) block(r *reader, metrics []string) {
	nsets := r.count(2, "number of time sets")
	ncols := r.count(3, "number of columns")
	if r.what != "" {
		return
	}
	sets := make([][]int64, 0, min(nsets, 64))
	for i := range nsets {
		var largest []int64
		if i > 0 {
			largest = sets[0]
		}
		sets = append(sets, r.timeSet(largest, i))
		if r.what != "" {
			return
		}
	}
	last := ""
	for i := range ncols {
		metric := r.string("metric")
		if i > 0 && metric <= last {
			r.fail("metric")
		}
		last = metric
		set := r.uvarint("time set")
		body := r.bytes(r.uvarint("column"), "column")
		if set >= uint64(nsets) || len(sets[set]) == 0 {
			r.fail("time set")
		}
		if r.what != "" {
			return
		}
		if !wanted(metrics, metric) || !r.claim(uint64(len(sets[set])), "number of readings") {
			continue
		}
		b := reader{b: body, ints: r.ints}
		t.column(metric).body(&b, sets[set])
		r.ints = b.ints
		if b.what == "" && b.i != len(body) {
			b.fail("end of a column")
		}
		if b.what != "" {
			r.i -= len(body) - b.failedAt
			r.fail(b.what)
		}
	}
	if r.what == "" && r.i != len(r.b) {
		r.fail("end of the block")
	}
}

// timeSet reads one set. A byte of the block is at most 32 of its times, but for setExcept.
func (r *reader) timeSet(largest []int64, place int) []int64 {
	const what = "time set"
	switch kind := r.byte(what); {
	case kind == setOwn:
		n := r.uvarint(what)
		unit := r.byte(what)
		if n > uint64(len(r.b)-r.i)*frameLen || int(unit) >= len(timeUnits) || !r.claimTimes(int(n), what) {
			r.fail(what)
			return nil
		}
		times := r.intStream(int(n), make([]int64, 0, n), what)
		each := timeUnits[unit]
		low, high := math.MinInt64/each, math.MaxInt64/each
		for i, t := range times {
			times[i] = t * each
			if t < low || t > high || i > 0 && times[i] <= times[i-1] {
				r.fail(what)
				return nil
			}
		}
		return times
	case kind == setBits && place > 0:
		set := r.bytes(uint64(len(largest)+7)/8, what)
		if r.what != "" {
			return nil
		}
		n := 0
		for _, b := range set {
			n += bits.OnesCount8(b)
		}
		if len(largest)%8 != 0 && len(set) > 0 && set[len(set)-1]>>(len(largest)%8) != 0 {
			r.fail(what)
			return nil
		}
		if !r.claimTimes(n, what) {
			return nil
		}
		times := make([]int64, 0, n)
		for i, t := range largest {
			if set[i/8]>>(i%8)&1 != 0 {
				times = append(times, t)
			}
		}
		return times
	case kind == setExcept && place > 0:
		return r.timesExcept(largest)
	}
	r.fail(what)
	return nil
}

// timesExcept reads the places of the times that a set lacks.
func (r *reader) timesExcept(largest []int64) []int64 {
	const what = "time set"
	n := r.uvarint(what)
	if n > uint64(len(largest)/8) || !r.claimTimes(len(largest)-int(n), what) {
		r.fail(what)
		return nil
	}
	r.ints = r.intStream(int(n), r.ints[:0], what)
	times := make([]int64, 0, len(largest)-int(n))
	at := int64(0)
	for _, except := range r.ints {
		if except < at || except >= int64(len(largest)) {
			r.fail(what)
			return nil
		}
		times = append(times, largest[at:except]...)
		at = except + 1
	}
	return append(times, largest[at:]...)
}

// body reads a column's values for the given times and appends them to c.
func (c *column) body(r *reader, times []int64) {
	n := len(times)
	nv := r.count(2, "variants")
	if nv == 0 && n > 0 || nv > n {
		r.fail("variants")
		return
	}
	places := make([]uint32, 0, nv)
	classes := make([]uint8, 0, nv)
	for range nv {
		v := variant{kind: dunlin.ValueKind(r.byte("kind"))}
		v.unit = r.string("unit")
		if v.kind < dunlin.Number || v.kind > dunlin.Data {
			r.fail("kind")
			return
		}
		places = append(places, uint32(c.variant(v)))
		classes = append(classes, uint8(classOf(v.kind)))
	}
	var which []int64
	counts := [3]int{}
	if nv == 1 {
		counts[classes[0]] = n
	} else if nv > 1 {
		which = r.intStream(n, nil, "variants")
		for _, v := range which {
			if v < 0 || v >= int64(nv) {
				r.fail("variants")
				return
			}
			counts[classes[v]]++
		}
	}
	if r.what != "" {
		return
	}
	c.values(r, times, counts, func(i int) (uint32, uint8) {
		if which == nil {
			return places[0], classes[0]
		}
		return places[which[i]], classes[which[i]]
	})
}

// values reads the streams of a body and appends its readings; of returns a reading's variant and class.
func (c *column) values(r *reader, times []int64, counts [3]int, of func(i int) (uint32, uint8)) {
	var streams [3][]uint64
	if counts[classNumber] > 0 {
		streams[classNumber] = r.numberStream(counts[classNumber], nil)
	}
	if n := counts[classBoolean]; n > 0 {
		r.ints = r.intStream(n, r.ints[:0], "booleans")
		for _, v := range r.ints {
			if v != 0 && v != 1 {
				r.fail("booleans")
			}
			streams[classBoolean] = append(streams[classBoolean], uint64(v))
		}
	}
	if n := counts[classText]; n > 0 {
		streams[classText] = c.texts(r, n)
	}
	if r.what != "" || len(times) == 0 {
		return
	}
	if n := len(c.times); n > 0 && times[0] <= c.times[n-1] {
		c.unsorted = true
	}
	first, class := of(0)
	if counts[class] == len(times) && first == 0 && len(c.variants) == 1 {
		// All of one variant, as nearly always. The times may be other columns' too: appending to them makes a copy.
		if len(c.times) == 0 {
			c.times, c.vals = times[:len(times):len(times)], streams[class]
		} else {
			c.times, c.vals = append(c.times, times...), append(c.vals, streams[class]...)
		}
		return
	}
	c.split()
	for i, t := range times {
		place, class := of(i)
		c.which = append(c.which, place)
		c.times = append(c.times, t)
		c.vals = append(c.vals, streams[class][0])
		streams[class] = streams[class][1:]
	}
}

// texts reads n places in a dictionary as places in c.strs.
func (c *column) texts(r *reader, n int) []uint64 {
	words := r.count(1, "texts")
	if words > n {
		r.fail("texts")
		return nil
	}
	base := uint64(len(c.strs))
	for range words {
		c.strs = append(c.strs, r.string("texts"))
	}
	r.ints = r.intStream(n, r.ints[:0], "texts")
	vals := make([]uint64, 0, len(r.ints))
	for _, v := range r.ints {
		if v < 0 || v >= int64(words) {
			r.fail("texts")
			return nil
		}
		vals = append(vals, base+uint64(v))
	}
	return vals
}
