package entry

import (
	"encoding/binary"
	"hash/maphash"
	"math"

	"github.com/dunlin-iot/dunlin"
)

// indexed is how many names the table on the stack finds; the slots are four thirds of that.
const (
	indexSlots = 256
	indexed    = 192
)

// seed is only for finding names again while one entry is written; it has no part in the bytes.
var seed = maphash.MakeSeed()

// writer appends one entry or state. It lives on the stack, and as long as there are few names so do its tables.
type writer struct {
	b    []byte
	at   dunlin.Time // times of an entry are relative to this
	prev dunlin.Time // a record's time is relative to the one before

	key    dunlin.DeviceKey // of the change being written; its tenant and the domain are the last ones written
	domain dunlin.DomainID
	format dunlin.ContentFormat // of the last input

	last    int // where in names the last record's series is
	first   int // and that of the first record of the last input
	derived int // and that of the first record of the last stage
	hashes  []dunlin.ModuleHash
	mades   mades
	version uint8

	more  map[pair]int // where the names from the indexed-th on are; made when needed
	index [indexSlots]uint8
	names
}

func (w *writer) byte(v uint8)     { w.b = append(w.b, v) }
func (w *writer) varint(v int64)   { w.uvarint(uint64(v)<<1 ^ uint64(v>>63)) }
func (w *writer) fixed64(v uint64) { w.b = binary.LittleEndian.AppendUint64(w.b, v) }

func (w *writer) uvarint(v uint64) {
	if v < 0x80 {
		w.b = append(w.b, byte(v))
		return
	}
	w.b = binary.AppendUvarint(w.b, v)
}

func (w *writer) string(s string) {
	w.uvarint(uint64(len(s)))
	w.b = append(w.b, s...)
}

func (w *writer) bytes(p []byte) {
	w.uvarint(uint64(len(p)))
	w.b = append(w.b, p...)
}

// time writes t relative to the entry's. The difference may wrap, and wraps back when it is read.
func (w *writer) time(t dunlin.Time) { w.varint(int64(t - w.at)) }

// find returns where p is in names, or −1 after adding it at the end.
func (w *writer) find(p pair) int {
	slot := uint8(maphash.String(seed, p.name))
	for ; w.index[slot] != 0; slot++ {
		if i := int(w.index[slot]) - 1; *w.nth(i) == p {
			return i
		}
	}
	n := w.known
	if n < indexed {
		w.index[slot] = uint8(n + 1)
	} else {
		if i, ok := w.more[p]; ok {
			return i
		}
		if w.more == nil {
			w.more = make(map[pair]int)
		}
		w.more[p] = n
	}
	w.add(p)
	return -1
}

// name writes a name that may come again: 0 and the name, or one more than its place in the table.
func (w *writer) name(s string) {
	i := w.find(pair{name: s})
	w.uvarint(uint64(i + 1))
	if i < 0 {
		w.string(s)
	}
}

func (w *writer) change(c *dunlin.Change) {
	var head uint8
	if c.Created {
		head |= changeCreated
	}
	same := c.Tenant == w.key.Tenant && c.Domain == w.domain
	if same {
		head |= changeSame
	}
	if len(c.Inputs) == 1 {
		head |= changeOneInput
	}
	if len(c.Stages) > 0 {
		head |= changeStages
	}
	if len(c.Alerts) > 0 {
		head |= changeAlerts
	}
	if len(c.Timers) > 0 {
		head |= changeTimers
	}
	if w.version >= versionEffects {
		if len(c.Commands) > 0 {
			head |= changeCommands
		}
		if len(c.Publish) > 0 {
			head |= changePublish
		}
	}
	w.byte(head)
	w.key, w.domain = c.DeviceKey, c.Domain
	if !same {
		w.name(string(c.Tenant))
		w.name(string(c.Domain))
	}
	w.string(string(c.Device)) // a device has one change an entry: no name to find again
	w.uvarint(c.Version)
	if head&changeOneInput == 0 {
		w.uvarint(uint64(len(c.Inputs)))
	}
	w.prev = w.at
	for i := range c.Inputs {
		w.input(&c.Inputs[i])
	}
	if len(c.Stages) > 0 {
		w.uvarint(uint64(len(c.Stages)))
		for i := range c.Stages {
			w.stage(i, &c.Stages[i])
		}
	}
	if len(c.Alerts) > 0 {
		w.alerts(c.Alerts)
	}
	if len(c.Timers) > 0 {
		w.timers(c.Timers)
	}
	if head&changeCommands != 0 {
		w.commands(c.Commands)
	}
	if head&changePublish != 0 {
		w.publish(c.Publish)
	}
}

func (w *writer) input(in *dunlin.Input) {
	odd := in.Kind < dunlin.InputTelemetry || in.Kind > dunlin.InputTimer || in.Flags > inputFlagMask ||
		in.Kind != dunlin.InputTelemetry && len(in.Records) > 0 ||
		in.Kind != dunlin.InputRaw && len(in.Payload) > 0 || in.Kind != dunlin.InputTimer && in.Timer != ""
	var head uint8
	if odd {
		head = inputOdd
	} else {
		head = uint8(in.Kind-1) | uint8(in.Flags)<<inputFlagShift
	}
	if in.Format == w.format {
		head |= inputSame
	}
	if in.MessageID != 0 {
		head |= inputMessage
	}
	if in.Sender != "" {
		head |= inputSender
	}
	w.byte(head)
	w.time(in.Received)
	w.prev = in.Received
	if in.Format != w.format {
		w.format = in.Format
		w.uvarint(uint64(in.Format))
	}
	if in.MessageID != 0 {
		w.fixed64(in.MessageID)
	}
	if in.Sender != "" {
		w.name(in.Sender)
	}
	if odd {
		w.byte(uint8(in.Kind))
		w.byte(uint8(in.Flags))
	}
	if odd || in.Kind == dunlin.InputTelemetry {
		w.records(in.Records, &w.first)
	}
	if odd || in.Kind == dunlin.InputRaw {
		w.bytes(in.Payload)
	}
	if odd || in.Kind == dunlin.InputTimer {
		w.name(in.Timer)
	}
}

// records writes a list. Devices of a kind report the same metrics in the same order: first is where the list before this
// one began.
func (w *writer) records(recs []dunlin.Record, first *int) {
	w.uvarint(uint64(len(recs)))
	guess := *first
	for i := range recs {
		w.record(&recs[i], guess)
		if i == 0 {
			*first = w.last
		}
		guess = w.last + 1
	}
}

func (w *writer) record(r *dunlin.Record, guess int) {
	var head uint8
	var m int64
	bits := math.Float64bits(r.Num)
	switch r.Kind {
	case dunlin.Number:
		var form uint8
		form, m = numberForm(r.Num)
		head = form << recordNumberShift
		if r.Str != "" {
			head = recordOdd
		}
	case dunlin.Boolean:
		head = 1
		if bits == math.Float64bits(1) {
			head |= 1 << recordNumberShift
		} else if bits != 0 {
			head = recordOdd
		}
		if r.Str != "" {
			head = recordOdd
		}
	case dunlin.Text, dunlin.Data:
		head = uint8(r.Kind - 1)
		if bits != 0 {
			head = recordOdd
		}
	default:
		head = recordOdd
	}
	if r.Time == w.prev {
		head |= recordSameTime
	}
	known := guess < w.known && *w.nth(guess) == pair{r.Metric, r.Unit}
	if known {
		head |= recordNextSeries
	}
	w.byte(head)
	if known {
		w.last = guess
	} else {
		w.series(r)
	}
	if r.Time != w.prev {
		w.varint(int64(r.Time - w.prev))
		w.prev = r.Time
	}
	switch {
	case head&recordOdd != 0:
		w.byte(uint8(r.Kind))
		w.fixed64(bits)
		w.string(r.Str)
	case r.Kind == dunlin.Number:
		w.number(head>>recordNumberShift, m, r.Num)
	case r.Kind != dunlin.Boolean:
		w.string(r.Str)
	}
}

// series writes a record's metric and unit as a name with a second part.
func (w *writer) series(r *dunlin.Record) {
	i := w.find(pair{r.Metric, r.Unit})
	w.uvarint(uint64(i + 1))
	if i < 0 {
		i = w.known - 1
		w.string(r.Metric)
		w.string(r.Unit)
	}
	w.last = i
}

func (w *writer) number(form uint8, m int64, f float64) {
	switch form {
	case numberFloat64:
		w.fixed64(math.Float64bits(f))
	case numberFloat32:
		w.b = binary.LittleEndian.AppendUint32(w.b, math.Float32bits(float32(f)))
	default:
		w.varint(m)
	}
}

func (w *writer) stage(place int, st *dunlin.StageResult) {
	var head uint8
	if int(st.Stage) == place {
		head |= stageInOrder
	}
	if st.StateSet {
		head |= stageStateSet
	}
	if len(st.State) > 0 {
		head |= stageState
	}
	if len(st.Records) > 0 {
		head |= stageRecords
	}
	if st.Failure != "" {
		head |= stageFailure
	}
	if w.version >= versionEffects {
		if len(st.Refused) > 0 {
			head |= stageRefused
		}
		if st.Made != (dunlin.Made{}) {
			head |= stageMade
		}
	}
	w.byte(head)
	if head&stageInOrder == 0 {
		w.byte(st.Stage)
	}
	w.hash(st.Hash)
	if len(st.State) > 0 {
		w.bytes(st.State)
	}
	if len(st.Records) > 0 {
		w.records(st.Records, &w.derived)
	}
	if st.Failure != "" {
		w.string(st.Failure)
	}
	if head&stageRefused != 0 {
		w.refused(st.Refused)
	}
	if head&stageMade != 0 {
		w.made(st.Made)
	}
}

// hash writes a module's hash as name writes a name. An entry has a few of them: a linear search will do.
func (w *writer) hash(h dunlin.ModuleHash) {
	for i := range w.hashes {
		if w.hashes[i] == h {
			w.uvarint(uint64(i + 1))
			return
		}
	}
	w.hashes = append(w.hashes, h)
	w.byte(0)
	w.b = append(w.b, h[:]...)
}

func (w *writer) alerts(alerts []dunlin.Alert) {
	w.uvarint(uint64(len(alerts)))
	for i := range alerts {
		w.alert(&alerts[i])
	}
}

func (w *writer) alert(a *dunlin.Alert) {
	var head uint8
	same := a.Tenant == w.key.Tenant && a.Device == w.key.Device && a.Domain == w.domain
	if same {
		head |= alertSame
	}
	if a.Key != "" {
		head |= alertKey
	}
	if a.Text != "" {
		head |= alertText
	}
	if a.Value != nil {
		head |= alertValue
	}
	if a.ClearedAt != 0 {
		head |= alertClearedAt
	}
	w.b = append(w.b, head, uint8(a.Severity), uint8(a.State))
	if !same {
		w.name(string(a.Tenant))
		w.string(string(a.Device))
		w.name(string(a.Domain))
	}
	w.name(a.Rule)
	if a.Key != "" {
		w.string(a.Key)
	}
	if a.Text != "" {
		w.string(a.Text)
	}
	if a.Value != nil {
		form, m := numberForm(*a.Value)
		w.byte(form)
		w.number(form, m, *a.Value)
	}
	w.time(a.RaisedAt)
	w.uvarint(a.RaisedSeq)
	w.time(a.At)
	w.uvarint(a.Seq)
	if a.ClearedAt != 0 {
		w.time(a.ClearedAt)
	}
}

func (w *writer) timers(timers []dunlin.TimerSet) {
	w.uvarint(uint64(len(timers)))
	for _, t := range timers {
		var head uint8
		if t.Due != 0 {
			head |= timerDue
		}
		if t.Was != 0 {
			head |= timerWas
		}
		w.byte(head)
		w.name(t.Name)
		if t.Due != 0 {
			w.time(t.Due)
		}
		if t.Was != 0 {
			w.time(t.Was)
		}
	}
}

func (w *writer) put(p *dunlin.Put) {
	w.name(p.Table)
	w.string(p.Key)
	if p.Value == nil {
		w.byte(0)
		return
	}
	w.byte(1)
	w.bytes(p.Value)
}

func (w *writer) state(s *dunlin.DeviceState) {
	w.string(string(s.Tenant))
	w.string(string(s.Device))
	w.string(string(s.Domain))
	w.uvarint(s.Version)
	w.varint(int64(s.SeenAt))
	w.records(s.Reported, &w.first)
	w.uvarint(uint64(len(s.Plugins)))
	for _, p := range s.Plugins {
		w.byte(p.Stage)
		w.bytes(p.State)
		if w.version >= stateEffects {
			w.pluginMade(p.Made)
		}
	}
	w.alerts(s.Alerts)
	w.timers(s.Timers)
	w.uvarint(uint64(len(s.Seen)))
	for _, m := range s.Seen {
		w.fixed64(m.ID)
		w.time(m.At)
		w.uvarint(m.Seq)
	}
	if w.version >= stateEffects {
		w.commands(s.Commands)
	}
}
