package entry

import (
	"encoding/binary"
	"math"

	"github.com/dunlin-iot/dunlin"
)

// lone is the one allocation of an entry with one change of one input.
type lone struct {
	entry  dunlin.Entry
	change [1]dunlin.Change
	input  [1]dunlin.Input
}

func (r *reader) entry() *dunlin.Entry {
	sh := r.uvarint("shard")
	if sh > math.MaxUint16 {
		r.fail("shard")
	}
	term := r.uvarint("term")
	r.at = dunlin.Time(r.varint("time"))
	changes := r.count("number of changes", 4)
	puts := r.count("number of puts", 3)
	var inputs, records, stages, timers int
	if changes > 0 {
		inputs = r.count("number of inputs", 3)
		records = r.count("number of records", 1)
		stages = r.count("number of stages", 2)
		timers = r.count("number of timers", 2)
	}
	var e *dunlin.Entry
	if changes == 1 && inputs == 1 {
		l := new(lone)
		e, r.inputs = &l.entry, l.input[:0]
		e.Changes = l.change[:0]
	} else {
		e = new(dunlin.Entry)
		if changes > 0 {
			e.Changes = room[dunlin.Change](r, changes)
		}
		if inputs > 0 {
			r.inputs = room[dunlin.Input](r, inputs)
		}
	}
	if records > 0 {
		r.records = room[dunlin.Record](r, records)
	}
	if stages > 0 {
		r.stages = room[dunlin.StageResult](r, stages)
	}
	if timers > 0 {
		r.timers = room[dunlin.TimerSet](r, timers)
	}
	e.Shard, e.Term, e.At = dunlin.ShardID(sh), term, r.at
	for range changes {
		e.Changes = append(e.Changes, dunlin.Change{})
		r.change(&e.Changes[len(e.Changes)-1])
		if r.what != "" {
			return nil
		}
	}
	for range puts {
		e.Puts = append(e.Puts, r.put())
		if r.what != "" {
			return nil
		}
	}
	return e
}

func (r *reader) change(c *dunlin.Change) {
	head := r.byte("change")
	if head&^r.changeBits != 0 {
		r.fail("change")
		return
	}
	if head&changeSame == 0 {
		r.key.Tenant = dunlin.Tenant(r.name("tenant"))
		r.domain = dunlin.DomainID(r.name("domain"))
	}
	r.key.Device = dunlin.DeviceID(r.string("device"))
	c.DeviceKey, c.Domain = r.key, r.domain
	c.Version = r.uvarint("version")
	c.Created = head&changeCreated != 0
	n := 1
	if head&changeOneInput == 0 {
		n = r.count("number of inputs", 3)
	}
	if n > 0 {
		c.Inputs = list(r, &r.inputs, n)
	}
	r.prev = r.at
	for range n {
		c.Inputs = append(c.Inputs, dunlin.Input{})
		r.input(&c.Inputs[len(c.Inputs)-1])
		if r.what != "" {
			return
		}
	}
	if head&changeStages != 0 {
		n := r.count("number of stages", 2)
		c.Stages = list(r, &r.stages, n)
		for i := range n {
			c.Stages = append(c.Stages, dunlin.StageResult{})
			r.stage(i, &c.Stages[i])
			if r.what != "" {
				return
			}
		}
	}
	if head&changeAlerts != 0 {
		c.Alerts = r.alerts()
	}
	if head&changeTimers != 0 {
		c.Timers = r.timerList()
	}
	if head&(changeCommands|changePublish) != 0 {
		r.sent(c, head)
	}
}

func (r *reader) input(in *dunlin.Input) {
	head := r.byte("input")
	odd := head&3 == inputOdd
	if odd && head>>inputFlagShift != 0 {
		r.fail("input")
		return
	}
	in.Received = r.time("receipt")
	r.prev = in.Received
	if head&inputSame == 0 {
		f := r.uvarint("content format")
		if f > math.MaxUint16 {
			r.fail("content format")
		}
		r.format = dunlin.ContentFormat(f)
	}
	in.Format = r.format
	if head&inputMessage != 0 {
		in.MessageID = r.fixed64("message id")
	}
	if head&inputSender != 0 {
		in.Sender = r.name("sender")
	}
	if odd {
		in.Kind = dunlin.InputKind(r.byte("kind of input"))
		in.Flags = dunlin.InputFlags(r.byte("flags of an input"))
	} else {
		in.Kind = dunlin.InputKind(head&3 + 1)
		in.Flags = dunlin.InputFlags(head >> inputFlagShift)
	}
	if odd || in.Kind == dunlin.InputTelemetry {
		in.Records = r.recordList(&r.first)
	}
	if odd || in.Kind == dunlin.InputRaw {
		in.Payload = r.bytes("payload")
	}
	if odd || in.Kind == dunlin.InputTimer {
		in.Timer = r.name("timer")
	}
}

// recordList reads records; first is where the series of the first record of the list before it is.
func (r *reader) recordList(first *int) []dunlin.Record {
	n := r.count("number of records", 1)
	if n == 0 {
		return nil
	}
	recs := list(r, &r.records, n)
	guess := *first
	for i := range n {
		recs = append(recs, dunlin.Record{})
		r.record(&recs[i], guess)
		if r.what != "" {
			return nil
		}
		if i == 0 {
			*first = r.last
		}
		guess = r.last + 1
	}
	return recs
}

func (r *reader) record(rec *dunlin.Record, guess int) {
	head := r.byte("record")
	switch {
	case head&recordNextSeries == 0:
		r.series()
	case guess >= r.known:
		r.fail("series")
	default:
		r.last = guess
	}
	if r.what != "" {
		return
	}
	p := r.nth(r.last)
	rec.Metric, rec.Unit = p.name, p.unit
	if head&recordSameTime == 0 {
		r.prev += dunlin.Time(r.varint("time of a record"))
	}
	rec.Time = r.prev
	form := head >> recordNumberShift
	if head&recordOdd != 0 {
		if head&^(recordOdd|recordSameTime|recordNextSeries) != 0 {
			r.fail("record")
		}
		rec.Kind = dunlin.ValueKind(r.byte("kind of record"))
		rec.Num = math.Float64frombits(r.fixed64("number"))
		rec.Str = r.string("text")
		return
	}
	switch rec.Kind = dunlin.ValueKind(head&3 + 1); rec.Kind {
	case dunlin.Number:
		rec.Num = r.number(form)
	case dunlin.Boolean:
		if form > 1 {
			r.fail("boolean")
		}
		rec.Num = float64(form)
	default:
		if form != 0 {
			r.fail("record")
		}
		rec.Str = r.string("text")
	}
}

// series reads the place of a record's metric and unit into last.
func (r *reader) series() {
	n := r.uvarint("series")
	if n > uint64(r.known) {
		r.fail("series")
		return
	}
	if n == 0 {
		metric := r.string("metric")
		r.add(pair{metric, r.string("unit")})
		n = uint64(r.known)
	}
	r.last = int(n - 1)
}

func (r *reader) number(form uint8) float64 {
	switch form {
	case numberFloat64:
		return math.Float64frombits(r.fixed64("number"))
	case numberFloat32:
		if len(r.b)-r.i < 4 {
			r.fail("number")
			return 0
		}
		v := math.Float32frombits(binary.LittleEndian.Uint32(r.b[r.i:]))
		r.i += 4
		return float64(v)
	}
	m := r.varint("number")
	if m <= -mantissaMax || m >= mantissaMax || form > numberDigitsMax {
		r.fail("number")
		return 0
	}
	return float64(m) / pow10[form]
}

func (r *reader) stage(place int, st *dunlin.StageResult) {
	head := r.byte("stage")
	if head&^r.stageBits != 0 {
		r.fail("stage")
		return
	}
	st.Stage = uint8(place)
	if head&stageInOrder == 0 {
		st.Stage = r.byte("number of a stage")
	} else if place > math.MaxUint8 {
		r.fail("number of a stage")
	}
	st.Hash = r.hash()
	st.StateSet = head&stageStateSet != 0
	if head&stageState != 0 {
		st.State = r.bytes("state")
	}
	if st.StateSet && st.State == nil {
		st.State = []byte{}
	}
	if head&stageRecords != 0 {
		st.Records = r.recordList(&r.derived)
	}
	if head&stageFailure != 0 {
		st.Failure = r.string("failure")
	}
	if head&stageRefused != 0 {
		st.Refused = r.refused()
	}
	if head&stageMade != 0 {
		st.Made = r.made()
	}
}

func (r *reader) hash() (h dunlin.ModuleHash) {
	n := r.uvarint("module hash")
	if n > uint64(len(r.hashes)) || n == 0 && len(r.b)-r.i < len(h) {
		r.fail("module hash")
		return h
	}
	if n > 0 {
		return r.hashes[n-1]
	}
	r.i += copy(h[:], r.b[r.i:])
	r.hashes = append(r.hashes, h)
	return h
}

func (r *reader) alerts() []dunlin.Alert {
	n := r.count("number of alerts", 8)
	if n == 0 {
		return nil
	}
	alerts := room[dunlin.Alert](r, n)
	for i := range n {
		alerts = append(alerts, dunlin.Alert{})
		r.alert(&alerts[i])
		if r.what != "" {
			return nil
		}
	}
	return alerts
}

func (r *reader) alert(a *dunlin.Alert) {
	head := r.byte("alert")
	if head&^alertKnownBits != 0 {
		r.fail("alert")
		return
	}
	a.Severity = dunlin.Severity(r.byte("severity"))
	a.State = dunlin.AlertState(r.byte("state of an alert"))
	if head&alertSame != 0 {
		a.Tenant, a.Device, a.Domain = r.key.Tenant, r.key.Device, r.domain
	} else {
		a.Tenant = dunlin.Tenant(r.name("tenant"))
		a.Device = dunlin.DeviceID(r.string("device"))
		a.Domain = dunlin.DomainID(r.name("domain"))
	}
	a.Rule = r.name("rule")
	if head&alertKey != 0 {
		a.Key = r.string("key of an alert")
	}
	if head&alertText != 0 {
		a.Text = r.string("text of an alert")
	}
	if head&alertValue != 0 {
		form := r.byte("number")
		if form > numberFloat64 {
			r.fail("number")
		}
		a.Value = new(r.number(form))
	}
	a.RaisedAt = r.time("time of an alert")
	a.RaisedSeq = r.uvarint("seq of an alert")
	a.At = r.time("time of an alert")
	a.Seq = r.uvarint("seq of an alert")
	if head&alertClearedAt != 0 {
		a.ClearedAt = r.time("time of an alert")
	}
}

func (r *reader) timerList() []dunlin.TimerSet {
	n := r.count("number of timers", 2)
	if n == 0 {
		return nil
	}
	timers := list(r, &r.timers, n)
	for range n {
		var t dunlin.TimerSet
		head := r.byte("timer")
		if head&^timerKnownBits != 0 {
			r.fail("timer")
		}
		t.Name = r.name("name of a timer")
		if head&timerDue != 0 {
			t.Due = r.time("due time")
		}
		if head&timerWas != 0 {
			t.Was = r.time("due time")
		}
		if r.what != "" {
			return nil
		}
		timers = append(timers, t)
	}
	return timers
}

func (r *reader) put() (p dunlin.Put) {
	p.Table = r.name("table")
	p.Key = r.string("key of a row")
	switch r.byte("value of a row") {
	case 0:
	case 1:
		if p.Value = r.bytes("value of a row"); p.Value == nil {
			p.Value = []byte{}
		}
	default:
		r.fail("value of a row")
	}
	return p
}

// state reads a state into s, in the memory that its lists have.
func (r *reader) state(s *dunlin.DeviceState, effects bool) {
	*s = dunlin.DeviceState{Reported: s.Reported[:0], Plugins: s.Plugins[:0], Timers: s.Timers[:0], Seen: s.Seen[:0],
		Commands: s.Commands[:0]}
	plugins, seen := s.Plugins, s.Seen
	r.records, r.timers = s.Reported, s.Timers
	s.Tenant = dunlin.Tenant(r.string("tenant"))
	s.Device = dunlin.DeviceID(r.string("device"))
	s.Domain = dunlin.DomainID(r.string("domain"))
	s.Version = r.uvarint("version")
	s.SeenAt = dunlin.Time(r.varint("time"))
	r.key, r.domain, r.at, r.prev = s.DeviceKey, s.Domain, s.SeenAt, s.SeenAt
	if l := r.recordList(&r.first); l != nil {
		s.Reported = l
	}
	if n := r.count("number of plugins", 2); n > 0 {
		s.Plugins = list(r, &plugins, n)
		for range n {
			stage, state := r.byte("number of a stage"), r.bytes("state")
			if state == nil {
				state = []byte{}
			}
			p := dunlin.StageState{Stage: stage, State: state}
			if effects {
				p.Made = r.pluginMade()
			}
			s.Plugins = append(s.Plugins, p)
			if r.what != "" {
				return
			}
		}
	}
	s.Alerts = r.alerts()
	if l := r.timerList(); l != nil {
		s.Timers = l
	}
	if n := r.count("dedupe window", 10); n > 0 {
		s.Seen = list(r, &seen, n)
		for range n {
			m := dunlin.SeenMessage{ID: r.fixed64("message id"), At: r.time("time of a message")}
			m.Seq = r.uvarint("seq of a message")
			s.Seen = append(s.Seen, m)
		}
	}
	if effects {
		s.Commands = r.commands(s.Commands)
	}
}
