package vectors

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins/abi"
)

// Source is a *.txt file: what happens, in words, with what must come of it. It knows both as frames and as what the host
// makes frames of, so that the host can be tested against the frames too.
type Source struct {
	Example string
	Config  json.RawMessage
	Calls   []SourceCall
}

// SourceCall is one call of dunlin_process.
type SourceCall struct {
	Call
	Now   dunlin.Time
	Works []*dunlin.Work // what the host makes In of; their Outcomes are what it makes of Out
	// ByHand says that there are records in the frame which the host doesn't make.
	ByHand bool

	wants []string // the lines behind "want"
}

// MadeNow is what a stage that runs the source marks states with. A device with a note has a state of somebody else's.
func MadeNow() dunlin.Made { return dunlin.Made{Module: 0xffff0001, Config: 0xffff0002} }

// Base is the moment that "+0" is in a source.
const Base = dunlin.Time(1_767_225_600_000_000) // 2026-01-01T00:00:00Z

// ParseSource reads a source; the grammar is in README.md.
func ParseSource(text string) (*Source, error) {
	p := parser{src: &Source{Config: json.RawMessage("{}")}}
	for i, line := range strings.Split(text, "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		if err := p.line(line); err != nil {
			return nil, fmt.Errorf("line %d: %s: %w", i+1, line, err)
		}
	}
	p.end()
	return p.src, nil
}

// File makes the *.json file.
func (s *Source) File() *File {
	f := &File{Example: s.Example, Config: s.Config}
	f.Calls = append(f.Calls, Call{What: "init", Init: true, In: abi.AppendText(nil, abi.KindConfig, 0, string(s.Config))})
	for i := range s.Calls {
		f.Calls = append(f.Calls, s.Calls[i].Call)
	}
	return f
}

// parser makes a Source, line by line. Frames are made at the end of a call, because BATCH counts what follows.
type parser struct {
	src   *Source
	call  *SourceCall
	wants bool // after "want"

	body    []byte // of the frame, behind BATCH
	devices int
	inputs  int
	names   []string
	told    bool // any frame before told names
	forget  bool // all ids are void, and the guest is still to be told
	reports bool // the readings of a telemetry record are being read
	report  []dunlin.Record
	cut     int
	pokes   map[int][]byte
	group   *dunlin.Work
}

func (p *parser) line(line string) error {
	word, rest, _ := strings.Cut(line, " ")
	rest = strings.TrimSpace(rest)
	switch word {
	case "example":
		p.src.Example = rest
		return nil
	case "config":
		p.src.Config = json.RawMessage(rest)
		if !json.Valid(p.src.Config) {
			return fmt.Errorf("no JSON")
		}
		return nil
	case "call":
		p.end()
		p.src.Calls = append(p.src.Calls, SourceCall{Now: Base})
		p.call = &p.src.Calls[len(p.src.Calls)-1]
		p.call.What = rest
		p.forget = p.told
		p.names = nil
		return nil
	}
	if p.call == nil {
		return fmt.Errorf("before the first call")
	}
	if word == "want" {
		p.endReport()
		p.wants = true
		return nil
	}
	a, err := split(rest)
	if err != nil {
		return err
	}
	if p.wants {
		p.call.wants = append(p.call.wants, line)
		return p.want(word, &a)
	}
	return p.input(word, rest, &a)
}

// end makes the frames of the call at hand.
func (p *parser) end() {
	c := p.call
	if c == nil {
		return
	}
	p.endReport()
	c.In = append(abi.AppendBatch(nil, int64(c.Now), p.devices, p.inputs), p.body...)
	for at, b := range p.pokes {
		copy(c.In[at:], b)
	}
	c.In = c.In[:len(c.In)-p.cut]
	if c.Error {
		c.Out = nil
	}
	p.told = p.told || len(p.names) > 0
	p.call, p.wants, p.body, p.devices, p.inputs, p.cut, p.pokes, p.group = nil, false, nil, 0, 0, 0, nil, nil
}

func (p *parser) device() (*dunlin.Work, error) {
	if n := len(p.call.Works); n > 0 {
		return p.call.Works[n-1], nil
	}
	return nil, fmt.Errorf("before any device")
}

// id tells a name's id, as the host does: counting up, with a NAME record before the first use.
func (p *parser) id(dst []byte, name string) ([]byte, uint32) {
	if name == "" {
		return dst, 0
	}
	for i, n := range p.names {
		if n == name {
			return dst, uint32(i + 1)
		}
	}
	if p.forget {
		p.forget = false
		dst = abi.AppendForget(dst)
	}
	p.names = append(p.names, name)
	return abi.AppendName(dst, uint32(len(p.names)), name), uint32(len(p.names))
}

// endReport encodes the telemetry record at hand.
func (p *parser) endReport() {
	if !p.reports {
		return
	}
	p.reports = false
	w := p.call.Works[len(p.call.Works)-1]
	in := &w.Inputs[len(w.Inputs)-1]
	in.Records = p.report
	p.report = nil
	for _, r := range in.Records {
		p.body, _ = p.id(p.body, r.Metric)
		p.body, _ = p.id(p.body, r.Unit)
	}
	start := len(p.body)
	p.body = abi.BeginTelemetry(p.body, int64(in.Received), len(in.Records), uint32(in.Flags))
	for _, r := range in.Records {
		var metric, unit uint32
		p.body, metric = p.id(p.body, r.Metric)
		p.body, unit = p.id(p.body, r.Unit)
		p.body = abi.AppendReading(p.body, abi.Reading{Metric: metric, Unit: uint16(unit), Kind: uint8(r.Kind),
			Time: int64(r.Time), Value: r.Num})
	}
	for i, r := range in.Records {
		if r.Kind >= dunlin.Text {
			p.body = abi.AppendValue(p.body, start, i, r.Str)
		}
	}
	p.body = abi.EndTelemetry(p.body, start)
}

// input takes a line of what goes to the guest.
func (p *parser) input(word, rest string, a *args) (err error) {
	if word != "reading" {
		p.endReport()
	}
	c := p.call
	switch word {
	case "carry":
		if len(p.src.Calls) < 2 {
			return fmt.Errorf("there is no call before it")
		}
		// Nothing was forgotten, then.
		c.Carry, p.forget = true, false
		p.names = p.src.namesBefore(len(p.src.Calls) - 1)
	case "now":
		c.Now = a.time()
	case "device":
		return p.beginDevice(a)
	case "reading":
		if !p.reports {
			return fmt.Errorf("before any telemetry")
		}
		r := dunlin.Record{Metric: a.word(), Unit: a.dash(), Time: a.time()}
		a.value(&r)
		p.report = append(p.report, r)
	case "forget", "name", "record":
		c.ByHand = true
		p.byHand(word, a)
	case "cut":
		c.ByHand, p.cut = true, int(a.int())
	case "poke":
		if p.pokes == nil {
			p.pokes = make(map[int][]byte)
		}
		c.ByHand = true
		p.pokes[int(a.int())] = a.bytes()
	default:
		return p.event(word, rest, a)
	}
	return a.end()
}

// event takes a line that is an input.
func (p *parser) event(word, rest string, a *args) error {
	w, err := p.device()
	if err != nil {
		return err
	}
	in := dunlin.Input{}
	switch word {
	case "telemetry":
		in.Kind, in.Received = dunlin.InputTelemetry, a.time()
		if a.is("skewed") {
			in.Flags = dunlin.FlagSkewed
		}
		p.reports, p.report = true, nil
	case "raw":
		in.Kind, in.Received, in.Format, in.Payload = dunlin.InputRaw, a.time(), dunlin.ContentFormat(a.int()), a.bytes()
		p.body = abi.AppendRaw(p.body, int64(in.Received), uint16(in.Format), 0, in.Payload)
	case "timer":
		in.Kind, in.Received, in.Timer = dunlin.InputTimer, a.time(), a.word()
		p.body = abi.AppendTimer(p.body, int64(in.Received), in.Timer)
	case "result":
		in.Kind, in.Received, in.Format, in.Timer = dunlin.InputResult, a.time(), dunlin.ContentFormat(a.int()), a.word()
		timedOut := a.is("timeout")
		if timedOut {
			in.Flags = dunlin.FlagTimedOut
		} else {
			in.Payload = a.bytes()
		}
		p.body = abi.AppendCommandResult(p.body, int64(in.Received), uint16(in.Format), timedOut, in.Timer, in.Payload)
	case "lifecycle":
		at, event, _ := strings.Cut(rest, " ")
		_ = a.word()
		a.rest = nil
		in.Kind, in.Received, in.Payload = dunlin.InputLifecycle, (&args{rest: []string{at}}).time(), []byte(event)
		p.body = abi.AppendLifecycle(p.body, int64(in.Received), in.Payload)
	default:
		return fmt.Errorf("unknown word")
	}
	w.Inputs = append(w.Inputs, in)
	p.inputs++
	return a.end()
}

// beginDevice takes "device ID SEQ [state …] [migrate MODULE] [configured]".
func (p *parser) beginDevice(a *args) error {
	w := &dunlin.Work{DeviceKey: dunlin.DeviceKey{Tenant: dunlin.DefaultTenant, Device: dunlin.DeviceID(a.word())}, Seq: uint64(a.int())}
	var notes []byte
	for len(a.rest) > 0 && a.err == nil {
		switch {
		case a.is("state"):
			for len(a.rest) > 0 && a.rest[0] != "migrate" && a.rest[0] != "configured" {
				w.State = append(w.State, a.atom()...)
			}
		case a.is("migrate"):
			module, err := strconv.ParseUint(a.word(), 16, 32)
			if err != nil {
				return err
			}
			w.Made.Module = uint32(module)
			notes = abi.AppendMigrate(notes, w.Made.Module)
		case a.is("configured"):
			w.Made.Config = 1
			notes = abi.AppendConfigured(notes)
		default:
			return fmt.Errorf("unknown word %s", a.rest[0])
		}
	}
	p.call.Works = append(p.call.Works, w)
	p.devices++
	p.body = append(abi.AppendDevice(p.body, w.Seq, w.Device, w.State), notes...)
	return a.end()
}

// byHand takes what the host wouldn't write, or not there.
func (p *parser) byHand(word string, a *args) {
	switch word {
	case "forget":
		p.body = abi.AppendForget(p.body)
		p.names = nil
	case "name":
		p.body, _ = p.id(p.body, a.word())
	case "record":
		kind, flags := abi.Kind(a.int()), uint16(a.int())
		p.body = abi.AppendText(p.body, kind, flags, a.bytes())
		switch {
		case kind == abi.KindDevice:
			p.devices++
		case kind > abi.KindDevice && kind <= abi.InputMax:
			p.inputs++
		}
	}
}

// namesBefore returns the names that an instance knows before the i-th call.
func (s *Source) namesBefore(i int) (names []string) {
	for j := range s.Calls[:i] {
		r := abi.NewReader(s.Calls[j].In)
		for {
			kind, _, rec, err := r.Next()
			if err != nil || rec == nil {
				break
			}
			switch kind {
			case abi.KindForget:
				names = nil
			case abi.KindName:
				if _, name, err := abi.Name(rec); err == nil {
					names = append(names, string(name))
				}
			}
		}
	}
	return names
}
