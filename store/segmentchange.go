package store

import (
	"encoding/binary"
	"math"

	"github.com/dunlin-iot/dunlin"
)

const (
	segCreated = 1 << 0
	segDomain  = 1 << 1 // another domain than the device's last, or its first
	segInputs  = 1 << 2 // another number of inputs
	segStages  = 1 << 3 // another number of stages
	segAlerts  = 1 << 4
	segTimers  = 1 << 5
	segSent    = 1 << 6 // commands, publications
)

func (w *segmentWalk) change(e *dunlin.Entry, c *dunlin.Change) {
	d := w.device(&c.DeviceKey)
	var flags uint8
	if !w.reading {
		flags = w.changeFlags(d, c)
	}
	if w.byte(colChange, &flags); w.plain && flags >= segSent {
		w.fail(colChange)
	}
	c.Created = flags&segCreated != 0
	if flags&segDomain != 0 {
		s := string(c.Domain)
		d.domain = w.name(&s)
		c.Domain = dunlin.DomainID(s)
	} else if w.reading && d.domain >= 0 && d.domain < len(w.names) {
		c.Domain = dunlin.DomainID(w.names[d.domain])
	}
	if flags&segInputs != 0 {
		w.length(colChange, &d.inputs, len(c.Inputs))
	}
	if flags&segStages != 0 {
		w.length(colChange, &d.stages, len(c.Stages))
	}
	step := int64(c.Version - d.version - uint64(d.inputs))
	w.int(colVersion, &step)
	d.version += uint64(d.inputs) + uint64(step)
	c.Version = d.version
	if w.reading && w.roomFor(colInput, d.inputs) && w.roomFor(colStage, d.stages) {
		c.Inputs, c.Stages = w.mem.inputs.list(d.inputs), w.mem.stages.list(d.stages)
	}
	base := e.At
	for i := range c.Inputs {
		w.input(e, d, &c.Inputs[i])
		base = c.Inputs[i].Received
	}
	for i := range c.Stages {
		w.stage(d, &c.Stages[i], base)
	}
	if flags&segAlerts != 0 {
		got := w.rare(&dunlin.Entry{At: e.At, Changes: []dunlin.Change{{DeviceKey: c.DeviceKey, Domain: c.Domain, Alerts: c.Alerts}}})
		if w.reading && len(got.Changes) == 1 {
			c.Alerts = got.Changes[0].Alerts
		}
	}
	if flags&segTimers != 0 {
		w.timers(d, c, base)
	}
	if flags&segSent != 0 {
		got := w.rare(&dunlin.Entry{At: e.At, Changes: []dunlin.Change{{DeviceKey: c.DeviceKey, Domain: c.Domain, Commands: c.Commands, Publish: c.Publish}}})
		if w.reading && len(got.Changes) == 1 {
			c.Commands, c.Publish = got.Changes[0].Commands, got.Changes[0].Publish
		}
	}
}

func (w *segmentWalk) changeFlags(d *deviceTrack, c *dunlin.Change) (flags uint8) {
	if c.Created {
		flags |= segCreated
	}
	if d.domain < 0 || w.names[d.domain] != string(c.Domain) {
		flags |= segDomain
	}
	if len(c.Inputs) != d.inputs {
		flags |= segInputs
	}
	if len(c.Stages) != d.stages {
		flags |= segStages
	}
	if len(c.Alerts) > 0 {
		flags |= segAlerts
	}
	if len(c.Timers) > 0 {
		flags |= segTimers
	}
	if len(c.Commands)+len(c.Publish) > 0 {
		flags |= segSent
	}
	return flags
}

// length carries a length into *n. What it makes room for is checked by roomFor.
func (w *segmentWalk) length(col int, n *int, is int) {
	u := uint64(is)
	w.uint(col, &u)
	if u > segmentBytesMax {
		w.fail(col)
		u = 0
	}
	*n = int(u)
}

// roomFor checks that n elements of a list, each of which has at least a byte of col, can still come.
func (w *segmentWalk) roomFor(col, n int) bool {
	if n > len(w.cols[col]) {
		w.fail(col)
	}
	return w.err == nil
}

const (
	inFormat  = 1 << 0 // is not SenML JSON
	inMessage = 1 << 1
	inSender  = 1 << 2
	inPayload = 1 << 3
	inTimer   = 1 << 4
)

func (w *segmentWalk) input(e *dunlin.Entry, d *deviceTrack, in *dunlin.Input) {
	var has uint8
	if in.Format != dunlin.FormatSenMLJSON {
		has |= inFormat
	}
	if in.MessageID != 0 {
		has |= inMessage
	}
	if in.Sender != "" {
		has |= inSender
	}
	if len(in.Payload) > 0 {
		has |= inPayload
	}
	if in.Timer != "" {
		has |= inTimer
	}
	w.byte(colInput, &has)
	w.byte(colInput, (*uint8)(&in.Kind))
	w.byte(colInput, (*uint8)(&in.Flags))
	w.time(colReceived, &in.Received, e.At)
	format := uint64(dunlin.FormatSenMLJSON)
	if has&inFormat != 0 {
		format = uint64(in.Format)
		w.uint(colInput, &format)
	}
	in.Format = dunlin.ContentFormat(format)
	if has&inMessage != 0 {
		w.fixed(colMessage, &in.MessageID, 8)
	}
	if has&inSender != 0 {
		w.name(&in.Sender)
	}
	if has&inPayload != 0 {
		w.bytes(colBytes, &in.Payload)
	}
	if has&inTimer != 0 {
		w.name(&in.Timer)
	}
	d.hint = 0
	w.records(colInput, d, &in.Records, in.Received)
}

func (w *segmentWalk) records(col int, d *deviceTrack, recs *[]dunlin.Record, prev dunlin.Time) {
	n := len(*recs)
	w.count(col, colSeries, &n)
	if w.reading {
		*recs = w.mem.records.list(n)
	}
	for i := range *recs {
		r := &(*recs)[i]
		s, odd := w.seriesOf(d, r)
		w.time(colTime, &r.Time, prev)
		prev = r.Time
		text := r.Kind == dunlin.Text || r.Kind == dunlin.Data
		last := d.decimals(s)
		if !text || odd {
			w.number(s, &r.Num, last)
		}
		if text || odd {
			w.string(colBytes, &r.Str)
		}
	}
}

func (w *segmentWalk) seriesOf(d *deviceTrack, r *dunlin.Record) (place int, odd bool) {
	i, known := 0, false
	s := series{r.Metric, r.Unit, r.Kind}
	if !w.reading {
		text := r.Kind == dunlin.Text || r.Kind == dunlin.Data
		if text && math.Float64bits(r.Num) != 0 || !text && r.Str != "" {
			s.kind |= seriesOdd
		}
		// A device mostly reports the same series in the same order.
		if i = d.guess(); i < len(w.series) && w.series[i] == s {
			known = true
		} else {
			i, known = w.seriesAt[s]
		}
		if !known {
			i = len(w.series)
		}
	}
	u := uint64(i)
	w.uint(colSeries, &u)
	switch {
	case u < uint64(len(w.series)):
		s = w.series[u]
	case u == uint64(len(w.series)):
		w.word(colSeriesNew, &s.metric)
		w.word(colSeriesNew, &s.unit)
		w.byte(colSeriesNew, (*uint8)(&s.kind))
		if !w.reading {
			w.seriesAt[s] = len(w.series)
		}
		w.series = append(w.series, s)
	default:
		w.fail(colSeries)
		return 0, false
	}
	r.Metric, r.Unit, r.Kind = s.metric, s.unit, s.kind&^seriesOdd
	return int(u), s.kind&seriesOdd != 0
}

func (w *segmentWalk) stage(d *deviceTrack, st *dunlin.StageResult, base dunlin.Time) {
	w.byte(colStage, &st.Stage)
	if guess := uint64(w.hash); !w.reading && w.hash < len(w.names) && w.names[w.hash] == string(st.Hash[:]) {
		w.uint(colName, &guess)
	} else {
		hash := string(st.Hash[:])
		w.hash = w.name(&hash)
		if w.reading && copy(st.Hash[:], hash) != len(st.Hash) {
			w.fail(colName)
		}
	}
	var has uint8
	if !w.reading {
		has = w.stageHas(st)
	}
	if w.byte(colStage, &has); w.plain && has > stageFailed {
		w.fail(colStage)
	}
	if has&stageFailed != 0 {
		w.name(&st.Failure)
	}
	if has&stageRefused != 0 {
		w.refused(&st.Refused)
	}
	if has&stageMarkNew != 0 {
		w.mark(st.Made)
	}
	if has&(stageMark|stageMarkNew) != 0 {
		st.Made = w.made
	}
	w.records(colStage, d, &st.Records, base)
}

const (
	stageFailed  = 1 << 0
	stageRefused = 1 << 1
	stageMark    = 1 << 2 // says what made its state: the same as that of the last one that did
	stageMarkNew = 1 << 3 // something else
)

func (w *segmentWalk) stageHas(st *dunlin.StageResult) (has uint8) {
	if st.Failure != "" {
		has |= stageFailed
	}
	if len(st.Refused) > 0 {
		has |= stageRefused
	}
	switch {
	case st.Made == (dunlin.Made{}):
	case st.Made == w.made:
		has |= stageMark
	default:
		has |= stageMarkNew
	}
	return has
}

func (w *segmentWalk) refused(es *[]dunlin.InputError) {
	n := len(*es)
	w.count(colStage, colName, &n)
	if w.reading {
		*es = make([]dunlin.InputError, n)
	}
	for i := range *es {
		r := &(*es)[i]
		input := int64(r.Input)
		w.int(colStage, &input)
		r.Input = int(input)
		w.name(&r.Reason)
	}
}

// mark carries what made a state as a name.
func (w *segmentWalk) mark(m dunlin.Made) {
	b := binary.LittleEndian.AppendUint64(nil, uint64(m.Config)<<32|uint64(m.Module))
	s := string(b)
	if w.name(&s); len(s) != 8 {
		w.fail(colName)
		return
	}
	v := binary.LittleEndian.Uint64([]byte(s))
	w.made = dunlin.Made{Module: uint32(v), Config: uint32(v >> 32)}
}

const (
	timerHasDue = 1 << 0
	timerHasWas = 1 << 1
	timerKnown  = 1 << 2 // was is the due time that the segment had for it last
)

func (w *segmentWalk) timers(d *deviceTrack, c *dunlin.Change, base dunlin.Time) {
	n := len(c.Timers)
	w.count(colTimer, colName, &n)
	if w.reading {
		c.Timers = w.mem.timers.list(n)
	}
	for i := range c.Timers {
		t := &c.Timers[i]
		name := w.name(&t.Name)
		due := d.dueOf(name)
		var has uint8
		if t.Due != 0 {
			has |= timerHasDue
		}
		if t.Was != 0 {
			has |= timerHasWas
			if t.Was == *due {
				has |= timerKnown
			}
		}
		w.byte(colTimer, &has)
		switch {
		case has&timerKnown != 0:
			t.Was = *due
		case has&timerHasWas != 0:
			w.time(colDue, &t.Was, base)
		}
		if has&timerHasDue != 0 {
			w.time(colDue, &t.Due, base)
		}
		*due = t.Due
	}
}
