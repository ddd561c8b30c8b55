package plugins

import (
	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins/abi"
)

// worker is the memory that a call of Process works with; it is kept from call to call.
type worker struct {
	limits *Limits
	made   dunlin.Made // what the stage marks states with
	grants grants      // what the stage's module may do
	noted  bool        // a device of the frame got a note on its state
	frame  []byte
	lines  []string // to be logged, about no device

	// Of the device whose records are being decoded.
	records []dunlin.Record
	signals []dunlin.AlertSignal
	timers  []dunlin.TimerSet
	logs    []string

	commands []dunlin.Command
	publish  []dunlin.Publication
	refused  []dunlin.InputError

	recordSlab []dunlin.Record // readings of many devices lie in one piece
	signalSlab []dunlin.AlertSignal
	stateSlab  []byte
	interned   map[string]string
	rule       string // of the last alert that had a valid one
}

func newWorker(l *Limits) *worker {
	return &worker{limits: l, interned: make(map[string]string)}
}

// take returns how many of the works fit one crossing: 0 if the first alone doesn't.
func (w *worker) take(works []*dunlin.Work, l *Limits) int {
	total := 0
	for i, work := range works {
		size := 96 + len(work.Device) + len(work.State)
		for j := range work.Inputs {
			in := &work.Inputs[j]
			size += 40 + len(in.Payload) + len(in.Timer) + abi.ReadingSize*len(in.Records)
			for k := range in.Records {
				size += len(in.Records[k].Str)
			}
		}
		if i == 0 && size > l.InputBytes {
			return 0
		}
		if total += size; i > 0 && total > l.FrameBytes {
			return i
		}
	}
	return len(works)
}

// encode writes the frame of a crossing to w.frame and returns how many inputs it has.
func (w *worker) encode(in *instance, now dunlin.Time, works []*dunlin.Work) (inputs int) {
	for _, work := range works {
		inputs += len(work.Inputs)
	}
	w.noted = false
	b := abi.AppendBatch(w.frame[:0], int64(now), len(works), inputs)
	for _, work := range works {
		b = abi.AppendDevice(b, work.Seq, work.Device, work.State)
		if work.Made != w.made {
			b = w.notes(b, work)
		}
		for i := range work.Inputs {
			switch input := &work.Inputs[i]; input.Kind {
			case dunlin.InputTelemetry:
				b = encodeTelemetry(b, &in.names, input)
			case dunlin.InputRaw:
				b = abi.AppendRaw(b, int64(input.Received), uint16(input.Format), uint32(input.Flags), input.Payload)
			case dunlin.InputTimer:
				b = abi.AppendTimer(b, int64(input.Received), input.Timer)
			case dunlin.InputResult:
				timedOut := input.Flags&dunlin.FlagTimedOut != 0
				b = abi.AppendCommandResult(b, int64(input.Received), uint16(input.Format), timedOut, input.Timer, input.Payload)
			case dunlin.InputLifecycle:
				b = abi.AppendLifecycle(b, int64(input.Received), input.Payload)
			default:
				// An input of a kind without a record still counts, or the indexes of alerts would be off by one.
				b = abi.AppendText(b, abi.InputMax, 0, "")
			}
		}
	}
	w.frame = b
	if cap(b) > 4*w.limits.FrameBytes { // one huge device must not cost this much for ever
		w.frame = b[:len(b):len(b)]
	}
	return inputs
}

// serve tells the worker whose crossings come next.
func (w *worker) serve(st *dunlin.Stage, m *Manifest) { w.made, w.grants = st.Made, m.grants() }

// notes appends what is to be told about who made the device's state.
func (w *worker) notes(b []byte, work *dunlin.Work) []byte {
	if w.migrates(work) {
		b = abi.AppendMigrate(b, work.Made.Module)
		w.noted = true
	}
	if w.reconfigures(work) {
		b = abi.AppendConfigured(b)
		w.noted = true
	}
	return b
}

func (w *worker) migrates(work *dunlin.Work) bool {
	return work.Made.Module != 0 && w.made.Module != 0 && work.Made.Module != w.made.Module
}

func (w *worker) reconfigures(work *dunlin.Work) bool {
	return work.Made.Config != 0 && w.made.Config != 0 && work.Made.Config != w.made.Config
}

// encodeTelemetry appends a report's readings. A name that the instance doesn't know yet is rare: the record is begun
// again behind the name's definition.
func encodeTelemetry(b []byte, n *names, input *dunlin.Input) []byte {
	start := len(b)
again:
	b = abi.BeginTelemetry(b, int64(input.Received), len(input.Records), uint32(input.Flags))
	text := false
	for i := range input.Records {
		r := &input.Records[i]
		metric, ok := n.lookup(r.Metric)
		if !ok {
			b = n.define(b[:start], r.Metric)
			start = len(b)
			goto again
		}
		unit, ok := n.lookup(r.Unit)
		if !ok {
			b = n.define(b[:start], r.Unit)
			start = len(b)
			goto again
		}
		b = abi.AppendReading(b, abi.Reading{Metric: metric, Unit: uint16(unit), Kind: uint8(r.Kind), Time: int64(r.Time),
			Value: r.Num})
		text = text || r.Kind >= dunlin.Text
	}
	if text {
		for i := range input.Records {
			if r := &input.Records[i]; r.Kind >= dunlin.Text {
				b = abi.AppendValue(b, start, i, r.Str)
			}
		}
	}
	return abi.EndTelemetry(b, start)
}
