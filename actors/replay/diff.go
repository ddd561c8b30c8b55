package replay

import (
	"math"
	"slices"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

// The sides that are compared.
const (
	recorded  = 0
	candidate = 1
)

// Bounds of a comparison.
const (
	waitingMax     = 256 // occurrences of a condition that wait for their like
	differencesMax = 20  // of a device
)

// period is what is compared, and how.
type period struct {
	since, until dunlin.Time
	near         dunlin.Time // µs
}

// occurrence is an alert from raise to clear.
type occurrence struct {
	severity        dunlin.Severity
	raised, cleared dunlin.Time // cleared 0: active
	seq             uint64      // of the input that raised it
	text            string
	value           *float64
}

// diff compares a device's alerts on both sides, as they come in order of time on each.
type diff struct {
	conditions []condition
	counts     dunlin.BacktestAlerts
	list       []dunlin.BacktestDifference
}

// condition is the occurrences of one rule and key that are not settled.
type condition struct {
	rule, key string
	open      [2]*occurrence
	waiting   [2][]*occurrence // without their like, in order; the last may be open
	pairs     [][2]*occurrence // of which one is open
}

// add takes a transition of a side over. It keeps nothing of it.
func (d *diff) add(side int, a *dunlin.Alert) {
	c := d.condition(a.Rule, a.Key)
	open := c.open[side]
	switch a.State {
	case dunlin.AlertRaised:
		if open != nil && open.seq == a.RaisedSeq {
			open.severity = max(open.severity, a.Severity)
			return
		}
		if open != nil { // its clear was not heard of
			open.cleared = a.RaisedAt
		}
		c.begin(side, a)
	case dunlin.AlertCleared:
		if open == nil || open.seq != a.RaisedSeq {
			if open != nil {
				open.cleared = a.RaisedAt
			}
			open = c.begin(side, a)
		}
		open.cleared = max(a.ClearedAt, open.raised)
		c.open[side] = nil
	}
}

func (c *condition) begin(side int, a *dunlin.Alert) *occurrence {
	o := &occurrence{severity: a.Severity, raised: a.RaisedAt, seq: a.RaisedSeq, text: strings.Clone(a.Text)}
	if a.Value != nil && !math.IsInf(*a.Value, 0) && !math.IsNaN(*a.Value) { // the report has words for finite ones only
		o.value = new(*a.Value)
	}
	c.open[side] = o
	c.waiting[side] = append(c.waiting[side], o)
	return o
}

func (d *diff) condition(rule, key string) *condition {
	for i := range d.conditions {
		if c := &d.conditions[i]; c.rule == rule && c.key == key {
			return c
		}
	}
	d.conditions = append(d.conditions, condition{rule: strings.Clone(rule), key: strings.Clone(key)})
	return &d.conditions[len(d.conditions)-1]
}

// settle counts what is certain once both sides have come to a moment; at the end, all.
func (d *diff) settle(p *period, now dunlin.Time, end bool, key dunlin.DeviceKey) {
	kept := d.conditions[:0]
	for i := range d.conditions {
		c := &d.conditions[i]
		for c.match(d, p, now, end, key) {
		}
		c.pairs = slices.DeleteFunc(c.pairs, func(pair [2]*occurrence) bool {
			if !end && (pair[0].cleared == 0 || pair[1].cleared == 0) {
				return false
			}
			d.pair(p, c, pair[0], pair[1], key)
			return true
		})
		if !end && (c.open[0] != nil || c.open[1] != nil || len(c.pairs) > 0 || len(c.waiting[0]) > 0 || len(c.waiting[1]) > 0) {
			kept = append(kept, *c)
		}
	}
	clear(d.conditions[len(kept):])
	d.conditions = kept
}

// match settles what can be said of the earliest occurrence; false if nothing can.
func (c *condition) match(d *diff, p *period, now dunlin.Time, end bool, key dunlin.DeviceKey) bool {
	r, k := c.waiting[recorded], c.waiting[candidate]
	switch {
	case len(r) == 0 && len(k) == 0:
		return false
	case len(k) == 0:
		return c.alone(d, p, recorded, now, end, key)
	case len(r) == 0:
		return c.alone(d, p, candidate, now, end, key)
	}
	early, late := recorded, candidate
	if k[0].raised < r[0].raised {
		early, late = candidate, recorded
	}
	e, l := c.waiting[early], c.waiting[late]
	if e[0].raised != l[0].raised {
		// The like of the later one may be another.
		if len(e) > 1 && e[1].raised == l[0].raised || e[0].cleared != 0 && l[0].raised > e[0].cleared+p.near {
			c.single(d, p, early, key)
			return true
		}
	}
	c.pairs = append(c.pairs, [2]*occurrence{r[0], k[0]})
	c.waiting[recorded], c.waiting[candidate] = r[1:], k[1:]
	return true
}

// alone settles a side's earliest occurrence if nothing that is like it can come any more.
func (c *condition) alone(d *diff, p *period, side int, now dunlin.Time, end bool, key dunlin.DeviceKey) bool {
	o := c.waiting[side][0]
	if end || o.cleared != 0 && now > o.cleared+p.near || len(c.waiting[side]) > waitingMax {
		c.single(d, p, side, key)
		return true
	}
	return false
}

// single counts a side's earliest occurrence as one without its like.
func (c *condition) single(d *diff, p *period, side int, key dunlin.DeviceKey) {
	o := c.waiting[side][0]
	c.waiting[side] = c.waiting[side][1:]
	if !p.counts(o) {
		return
	}
	if side == recorded {
		d.counts.Recorded++
		d.counts.Removed++
		d.note(c, "removed", o, nil, key)
		return
	}
	d.counts.Candidate++
	d.counts.Added++
	d.note(c, "added", nil, o, key)
}

func (p *period) counts(o *occurrence) bool { return o.raised >= p.since && o.raised < p.until }

// pair counts two occurrences that are each other's like.
func (d *diff) pair(p *period, c *condition, r, k *occurrence, key dunlin.DeviceKey) {
	if !p.counts(r) && !p.counts(k) {
		return
	}
	if p.counts(r) {
		d.counts.Recorded++
	}
	if p.counts(k) {
		d.counts.Candidate++
	}
	kind := ""
	if r.severity != k.severity {
		d.counts.Changed++
		kind = "changed"
	}
	if r.raised != k.raised || r.cleared != k.cleared {
		d.counts.Moved++
		kind = "moved"
	} else {
		d.counts.Same++
	}
	if kind != "" {
		d.note(c, kind, r, k, key)
	}
}

func (d *diff) note(c *condition, kind string, r, k *occurrence, key dunlin.DeviceKey) {
	if len(d.list) >= differencesMax {
		return
	}
	n := dunlin.BacktestDifference{Kind: kind, Rule: c.rule, Key: c.key}
	if r != nil {
		n.Recorded = r.told()
		id := dunlin.Alert{Device: key.Device, Rule: c.rule, Key: c.key, RaisedSeq: r.seq}
		n.Recorded.ID = id.ID()
	}
	if k != nil {
		n.Candidate = k.told()
	}
	d.list = append(d.list, n)
}

func (o *occurrence) told() *dunlin.BacktestOccurrence {
	return &dunlin.BacktestOccurrence{Severity: o.severity, RaisedAt: o.raised, ClearedAt: o.cleared, Text: o.text, Value: o.value}
}

func addAlerts(a *dunlin.BacktestAlerts, b dunlin.BacktestAlerts) {
	a.Recorded += b.Recorded
	a.Candidate += b.Candidate
	a.Same += b.Same
	a.Added += b.Added
	a.Removed += b.Removed
	a.Moved += b.Moved
	a.Changed += b.Changed
}

// differ counts the differences.
func differ(a *dunlin.BacktestAlerts) uint64 { return a.Added + a.Removed + a.Moved + a.Changed }
