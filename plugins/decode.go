package plugins

import (
	"bytes"
	"fmt"
	"math"
	"slices"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins/abi"
)

// timeMax bounds what a plugin may give as a time: the end of the year 9999, beyond which RFC 3339 has no words.
const timeMax = dunlin.Time(253402300799_999999)

// timerDelayMin is the least time between a batch and a timer that it arms: a timer in the past would fire at once, and a
// plugin that arms it again each time would keep the device's shard busy.
const timerDelayMin = dunlin.Time(100_000)

// decode reads an answer into the outcomes of works. An error (a failure) means that the answer is none, and all outcomes
// are void; what is wrong with one device's part is in that device's Outcome.Failure. Nothing of out is kept. allow says
// which lines may still be logged now.
func (w *worker) decode(out []byte, works []*dunlin.Work, now dunlin.Time, allow func([]byte, dunlin.Time) []string) error {
	for _, work := range works {
		work.Outcome = dunlin.Outcome{}
	}
	if len(out) == 0 && !w.noted { // most often there is nothing to say
		return nil
	}
	d := decoder{w: w, now: now, allow: allow}
	lines := len(w.lines)
	r := abi.NewReader(out)
	for {
		at := r.Offset()
		kind, flags, rec, err := r.Next()
		if err == nil && rec == nil {
			break
		}
		if err == nil && kind == abi.KindGroup {
			err = d.group(rec, works)
		} else if err == nil {
			err = d.record(kind, flags, rec)
		}
		if err != nil {
			for _, work := range works {
				work.Outcome = dunlin.Outcome{}
			}
			d.reset()
			w.lines = w.lines[:lines]
			return failure(fmt.Sprintf("bad frame: at byte %d of %d: record of kind %d: %s", at, len(out), kind, err))
		}
	}
	d.finish()
	if w.noted {
		w.accept(works)
	}
	return nil
}

// accept marks states that were handed over with a note and not answered with another as the plugin's own: they are kept
// anew, or the note would come again with every turn.
func (w *worker) accept(works []*dunlin.Work) {
	for _, work := range works {
		if o := &work.Outcome; o.State == nil && o.Failure == "" && (w.migrates(work) || w.reconfigures(work)) {
			if o.State = work.State; o.State == nil {
				o.State = []byte{}
			}
		}
	}
}

// decoder is where decode stands.
type decoder struct {
	w     *worker
	work  *dunlin.Work // nil before the first group
	now   dunlin.Time
	allow func([]byte, dunlin.Time) []string
	next  int // the next group's index is at least this
	emit  int // alerts, readings, timers and the like of the group
	why   string
}

func (d *decoder) group(rec []byte, works []*dunlin.Work) error {
	i, err := abi.Group(rec)
	if err != nil {
		return err
	}
	if int64(i) >= int64(len(works)) || int(i) < d.next {
		return fmt.Errorf("device %d of %d out of turn", i, len(works))
	}
	d.finish()
	d.work, d.next = works[i], int(i)+1
	return nil
}

func (d *decoder) reset() {
	w := d.w
	if d.emit > 0 {
		clear(w.records)
		clear(w.signals)
		w.records, w.signals, w.timers = w.records[:0], w.signals[:0], w.timers[:0]
		if len(w.commands)+len(w.publish)+len(w.refused) > 0 {
			clear(w.commands)
			clear(w.publish)
			clear(w.refused)
			w.commands, w.publish, w.refused = w.commands[:0], w.publish[:0], w.refused[:0]
		}
	}
	w.logs = w.logs[:0]
	d.work, d.why, d.emit = nil, "", 0
}

// finish moves what was collected for the device to its outcome.
func (d *decoder) finish() {
	if d.work == nil {
		return
	}
	w, o := d.w, &d.work.Outcome
	if d.why != "" {
		*o = dunlin.Outcome{Failure: d.why}
		d.reset()
		return
	}
	if len(w.logs) > 0 {
		o.Logs = slices.Clone(w.logs)
	}
	if d.emit > 0 { // most devices have a state to write and nothing else
		d.emitted(o)
	}
	d.reset()
}

// emitted moves what was counted as emissions.
func (d *decoder) emitted(o *dunlin.Outcome) {
	w := d.w
	o.Records, o.Signals = lay(&w.recordSlab, w.records, 64), lay(&w.signalSlab, w.signals, 8)
	o.Timers = seldom(w.timers)
	if len(w.commands)+len(w.publish)+len(w.refused) > 0 {
		o.Commands, o.Publish, o.Refused = seldom(w.commands), seldom(w.publish), refusals(w.refused)
	}
}

// lay copies a list to a slab of at least most items, which the lists of several devices share.
func lay[T any](slab *[]T, list []T, most int) []T {
	n := len(list)
	if n == 0 {
		return nil
	}
	if cap(*slab)-len(*slab) < n {
		*slab = make([]T, 0, max(most, n))
	}
	at := len(*slab)
	*slab = append(*slab, list...)
	return (*slab)[at : at+n : at+n]
}

// fail notes the first thing that is wrong with the device's part.
func (d *decoder) fail(format string, args ...any) {
	if d.why == "" {
		d.why = fmt.Sprintf(format, args...)
	}
}

func (d *decoder) record(kind abi.Kind, flags uint16, rec []byte) error {
	if d.work == nil {
		if kind == abi.KindLog { // about no device
			d.w.lines = append(d.w.lines, d.log(flags, abi.Body(rec))...)
			return nil
		}
		if kind >= abi.KindState && kind <= abi.KindPublish {
			return fmt.Errorf("before any device")
		}
		return nil // unknown kinds are skipped
	}
	switch kind {
	case abi.KindState:
		d.state(abi.Body(rec))
	case abi.KindAlert:
		return d.alert(flags, rec)
	case abi.KindReading:
		return d.reading(rec)
	case abi.KindSet:
		return d.timer(rec)
	case abi.KindLog:
		d.w.logs = append(d.w.logs, d.log(flags, abi.Body(rec))...)
	case abi.KindError:
		if flags&abi.FlagInput != 0 {
			return d.refuse(rec)
		}
		d.fail("plugin: %s", cleanText(abi.Body(rec), d.w.limits.TextBytes))
	case abi.KindCommand:
		return d.command(rec)
	case abi.KindPublish:
		return d.publish(rec)
	}
	return nil
}

// stateSlabBytes is how much memory one small state may keep alive with it: states are held by idle devices for long.
const stateSlabBytes = 512

func (d *decoder) state(b []byte) {
	if len(b) > d.w.limits.StateBytes {
		d.fail("state too large: %d bytes, at most %d are allowed", len(b), d.w.limits.StateBytes)
		return
	}
	o := &d.work.Outcome
	switch w := d.w; {
	case bytes.Equal(b, d.work.State):
		o.State = nil // as before
		if len(b) == 0 && d.work.State == nil {
			o.State = []byte{}
		}
	case len(b) == 0:
		o.State = []byte{}
	case len(b) > stateSlabBytes/4:
		o.State = bytes.Clone(b)
	default:
		if cap(w.stateSlab)-len(w.stateSlab) < len(b) {
			w.stateSlab = make([]byte, 0, stateSlabBytes)
		}
		at := len(w.stateSlab)
		w.stateSlab = append(w.stateSlab, b...)
		o.State = w.stateSlab[at:len(w.stateSlab):len(w.stateSlab)]
	}
}

// counted counts an emission against the device's allowance.
func (d *decoder) counted() bool {
	d.emit++
	most := d.w.limits.EmitsPerEvent * max(1, len(d.work.Inputs))
	if d.emit > most {
		d.fail("too many emissions: more than %d alerts, readings, timers and the like for %d inputs", most, len(d.work.Inputs))
		return false
	}
	return d.why == ""
}

func (d *decoder) alert(flags uint16, rec []byte) error {
	a, err := abi.ReadAlert(flags, rec)
	if err != nil {
		return err
	}
	if !d.counted() {
		return nil
	}
	s := dunlin.AlertSignal{Input: int(a.Input), Raise: a.Raise, Update: a.Update, Severity: dunlin.Severity(a.Severity)}
	switch {
	case int64(a.Input) >= int64(max(1, len(d.work.Inputs))):
		d.fail("an alert names input %d of %d", a.Input, len(d.work.Inputs))
		return nil
	case a.Raise && a.Update:
		d.fail("an alert has both flags, to raise and to update")
		return nil
	case !a.Raise && !a.Update:
		s.Severity = 0 // of what was raised
	case a.Severity < abi.SeverityInfo || a.Severity > abi.SeverityCritical:
		d.fail("an alert has severity %d, not 1 to 4", a.Severity)
		return nil
	}
	if s.Rule = d.w.rule; s.Rule != string(a.Rule) || s.Rule == "" { // mostly the one before, which is known to be valid
		s.Rule = d.w.intern(a.Rule)
		if err := dunlin.ValidatePluginName(s.Rule); err != nil {
			d.fail("an alert's rule: %v", err)
			return nil
		}
		d.w.rule = s.Rule
	}
	if s.Key = d.w.intern(a.Key); s.Key != "" {
		if err := dunlin.ValidateMetric(s.Key); err != nil {
			d.fail("the key of an alert %s: %v", s.Rule, err)
			return nil
		}
	}
	if len(a.Text) > 0 {
		s.Text = cleanText(a.Text, d.w.limits.TextBytes)
	}
	if !math.IsNaN(a.Value) {
		if math.IsInf(a.Value, 0) {
			d.fail("the value of an alert %s is not finite", s.Rule)
			return nil
		}
		s.Value = new(a.Value) // of its own: it may be kept for long, and all of the alert's record with it
	}
	d.w.signals = append(d.w.signals, s)
	return nil
}

func (d *decoder) reading(rec []byte) error {
	x, err := abi.ReadDerived(rec)
	if err != nil {
		return err
	}
	if !d.counted() {
		return nil
	}
	r := dunlin.Record{Kind: dunlin.ValueKind(x.Kind), Time: dunlin.Time(x.Time), Num: x.Value,
		Metric: d.w.intern(x.Metric), Unit: d.w.intern(x.Unit)}
	if err := dunlin.ValidateMetric(r.Metric); err != nil {
		d.fail("a derived reading: %v", err)
		return nil
	}
	if r.Unit != "" {
		if err := validateUnit(r.Unit); err != nil {
			d.fail("reading %s: %v", r.Metric, err)
			return nil
		}
	}
	switch r.Kind {
	case dunlin.Number:
		if math.IsNaN(r.Num) || math.IsInf(r.Num, 0) {
			d.fail("reading %s is not a finite number", r.Metric)
		}
	case dunlin.Boolean:
		if r.Num != 0 {
			r.Num = 1
		}
	case dunlin.Text, dunlin.Data:
		r.Num = 0
		if r.Str = string(x.Bytes); len(r.Str) > d.w.limits.StateBytes {
			d.fail("reading %s has %d bytes, at most %d are allowed", r.Metric, len(r.Str), d.w.limits.StateBytes)
		} else if r.Kind == dunlin.Text {
			r.Str = cleanText(x.Bytes, len(x.Bytes))
		}
	default:
		d.fail("reading %s has values of kind %d, not 1 to 4", r.Metric, x.Kind)
	}
	if r.Time == 0 {
		r.Time = d.now
		if n := len(d.work.Inputs); n > 0 {
			r.Time = d.work.Inputs[n-1].Received
		}
	}
	if r.Time <= 0 || r.Time > timeMax {
		d.fail("reading %s has time %d µs, not within 1970 to 9999", r.Metric, x.Time)
	}
	if d.why == "" {
		d.w.records = append(d.w.records, r)
	}
	return nil
}

func (d *decoder) timer(rec []byte) error {
	due, name, err := abi.ReadSet(rec)
	if err != nil {
		return err
	}
	if !d.counted() {
		return nil
	}
	t := dunlin.TimerSet{Name: d.w.intern(name), Due: dunlin.Time(due)}
	if err := dunlin.ValidatePluginName(t.Name); err != nil {
		d.fail("a timer's name: %v", err)
		return nil
	}
	if t.Due < 0 || t.Due > timeMax {
		d.fail("timer %s is set to %d µs, not within 1970 to 9999", t.Name, due)
		return nil
	}
	if t.Due != 0 {
		t.Due = max(t.Due, d.now+timerDelayMin)
	}
	for i := range d.w.timers { // the last word on a timer counts
		if d.w.timers[i].Name == t.Name {
			d.w.timers[i] = t
			return nil
		}
	}
	d.w.timers = append(d.w.timers, t)
	return nil
}

// log returns what may be logged of a text: its lines, as far as the plugin's allowance goes, with the level in front if
// it is more than news.
func (d *decoder) log(level uint16, b []byte) []string {
	if d.allow == nil || level == abi.LogDebug {
		return nil
	}
	lines := d.allow(b, d.now)
	for i := range lines {
		switch level {
		case abi.LogWarn:
			lines[i] = "warning: " + lines[i]
		case abi.LogError:
			lines[i] = "error: " + lines[i]
		}
	}
	return lines
}

// internedMax bounds the names of rules, metrics and timers that a worker keeps; when there are more, it begins anew.
const internedMax = 2048

// intern returns b as a string that equal ones share.
func (w *worker) intern(b []byte) string {
	if len(b) == 0 {
		return ""
	}
	if s, ok := w.interned[string(b)]; ok {
		return s
	}
	s := string(b)
	if len(s) > dunlin.MetricBytesMax {
		return s // will be refused
	}
	if len(w.interned) >= internedMax {
		clear(w.interned)
	}
	w.interned[s] = s
	return s
}

// validateUnit applies the alphabet of the SenML units registry (RFC 8428 §12.1), loosely: short and printable.
func validateUnit(u string) error {
	if len(u) > 32 {
		return fmt.Errorf("its unit has %d bytes, at most 32 are allowed", len(u))
	}
	for i := range len(u) {
		if u[i] < ' ' || u[i] > '~' || u[i] == '"' || u[i] == '\\' {
			return fmt.Errorf("its unit %q has a byte that is not allowed", u)
		}
	}
	return nil
}
