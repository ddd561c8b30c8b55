package plugins

import (
	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins/abi"
)

// worker is the memory that a call of Process works with; it is kept from call to call.
type worker struct {
	limits  *Limits
	frame   []byte
	works   []*dunlin.Work
	printed []byte
	lines   []string // to be logged, about no device

	// Of the device whose records are being decoded.
	records []dunlin.Record
	signals []dunlin.AlertSignal
	timers  []dunlin.TimerSet
	logs    []string

	recordSlab []dunlin.Record // readings of many devices lie in one piece
	stateSlab  []byte
	interned   map[string]string
}

func newWorker(l *Limits) *worker {
	return &worker{limits: l, interned: make(map[string]string)}
}

// take returns how many of the works fit one crossing: 0 if the first alone doesn't.
func (w *worker) take(works []*dunlin.Work, l *Limits) int {
	total := 0
	for i, work := range works {
		size := 64 + len(work.Device) + len(work.State)
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
	b := abi.AppendBatch(w.frame[:0], int64(now), len(works), inputs)
	for _, work := range works {
		b = abi.AppendDevice(b, work.Seq, work.Device, work.State)
		for i := range work.Inputs {
			switch input := &work.Inputs[i]; input.Kind {
			case dunlin.InputTelemetry:
				b = encodeTelemetry(b, &in.names, input)
			case dunlin.InputRaw:
				b = abi.AppendRaw(b, int64(input.Received), uint16(input.Format), uint32(input.Flags), input.Payload)
			case dunlin.InputTimer:
				b = abi.AppendTimer(b, int64(input.Received), input.Timer)
			default:
				// An input of a kind without a frame still counts, or the indexes of alerts would be off by one.
				b = abi.AppendText(b, abi.KindLifecycle, 0, "")
			}
		}
	}
	w.frame = b
	if cap(b) > 4*w.limits.FrameBytes { // one huge device must not cost this much for ever
		w.frame = b[:len(b):len(b)]
	}
	return inputs
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
