package sdk

import (
	"math"
	"unsafe"

	"github.com/dunlin-iot/dunlin/plugins/abi"
)

// Guest runs a Plugin over frames, as the module's exports do. Only tests need it; see package sdktest.
type Guest struct {
	p       Plugin
	ctx     Context
	names   []string  // by id; id 0 is ""
	metrics []*Metric // whose ids are kept up to date
	rs      []Reading

	frame              []byte
	off                int // of the record at hand
	report, reportSize int // the telemetry record at hand

	reader StateReader
	writer StateWriter
	out    []byte
}

// NewGuest returns a Guest for p.
func NewGuest(p Plugin) *Guest {
	g := &Guest{p: p, names: make([]string, 1, 64)}
	g.ctx.guest = g
	g.writer.b = make([]byte, stateRoom+slack)
	return g
}

// Init takes the frame of abi.ExportInit and returns the answer's frame; failed says that the answer is a text.
func (g *Guest) Init(frame []byte) (out []byte, failed bool) {
	g.out = g.out[:0]
	r := abi.NewReader(frame)
	for {
		kind, _, rec, err := r.Next()
		if err != nil {
			return []byte("bad frame"), true
		}
		if rec == nil {
			return g.out, false
		}
		switch kind {
		case abi.KindName:
			if !g.name(rec) {
				return []byte("bad frame"), true
			}
		case abi.KindConfig:
			if msg := g.configure(abi.Body(rec)); msg != "" {
				return []byte(msg), true
			}
		}
	}
}

func (g *Guest) configure(body []byte) (failure string) {
	if g.p.Configure == nil {
		return ""
	}
	defer func() {
		if p := recover(); p != nil {
			failure = panicText(p)
		}
	}()
	cfg, err := ParseConfig(string(body))
	if err == nil {
		cfg.guest = g
		err = g.p.Configure(cfg)
	}
	if err == nil {
		err = cfg.Err()
	}
	if err != nil {
		return err.Error()
	}
	if k := cfg.unread(); k != "" {
		g.out = abi.AppendText(g.out, abi.KindLog, abi.LogWarn, "the plugin has no setting "+k+": a typing error?")
	}
	return ""
}

// Process takes the frame of abi.ExportProcess and returns the answer's frame; failed says that the answer is a text.
// Nothing of frame is kept.
func (g *Guest) Process(frame []byte) (out []byte, failed bool) {
	g.out, g.frame, g.off = g.out[:0], frame, 0
	g.reader.b = frame
	g.ctx.flags, g.ctx.index, g.ctx.now = 0, -1, 0
	if len(frame) >= batchSize {
		if h := load64(frame, 0); h == batchSize|uint64(abi.KindBatch)<<32 {
			g.ctx.now, g.off = Time(load64(frame, 8)), batchSize
		}
	}
	for {
		switch g.run() {
		case ranToEnd:
			return g.out, false
		case ranIntoBytes:
			return []byte("bad frame"), true
		}
		// A handler panicked: what its device got is dropped, its other inputs are skipped, the next device goes on.
	}
}

// How run ends.
const (
	ranIntoPanic = iota
	ranToEnd
	ranIntoBytes // that are no frame
)

// run works off records to the frame's end, or to a panic. It and what it calls for each record pass offsets around, not
// slices, and read numbers without package abi: in a Go guest a call with slices costs as much as the work behind it.
func (g *Guest) run() (end int) {
	ctx := &g.ctx
	next, ending := g.off, false
	defer func() {
		if p := recover(); p != nil {
			ctx.fail(panicText(p))
			if !ending { // else the record at hand is the next device's: it is read again
				g.off = next
			}
		}
	}()
	for {
		at := g.off
		left := len(g.frame) - at
		if left < abi.HeaderSize {
			if left != 0 {
				return ranIntoBytes
			}
			ending = true
			ctx.end()
			return ranToEnd
		}
		h := load64(g.frame, at)
		n := int(uint32(h))
		if n < abi.HeaderSize || n > left {
			return ranIntoBytes
		}
		next = min(at+abi.Align(n), len(g.frame)) // the last record's padding may be missing
		ok := false
		switch kind := abi.Kind(h >> 32); kind {
		case abi.KindTelemetry:
			ok = g.telemetry(at, n)
		case abi.KindDevice:
			ending = true
			ctx.end()
			ending = false
			ok = ctx.begin(at, n)
		default:
			ok = g.seldom(kind, uint16(h>>48), g.frame[at:at+n])
		}
		if !ok {
			return ranIntoBytes
		}
		g.off = next
	}
}

// seldom works off a record of the other kinds.
func (g *Guest) seldom(kind abi.Kind, flags uint16, rec []byte) bool {
	ctx := &g.ctx
	switch kind {
	case abi.KindName:
		return g.name(rec)
	case abi.KindForget:
		g.forget()
	case abi.KindBatch:
		now, _, _, err := abi.Batch(rec)
		ctx.now = Time(now)
		return err == nil
	case abi.KindMigrate:
		module, err := abi.Migrate(rec)
		if err == nil && g.p.Migrate != nil {
			ctx.note(func() { g.p.Migrate(ctx, module) })
		}
		return err == nil
	case abi.KindConfigured:
		if g.p.Configured != nil {
			ctx.note(func() { g.p.Configured(ctx) })
		}
	default:
		if kind > abi.KindDevice && kind <= abi.InputMax {
			return g.input(kind, flags, rec) == nil
		}
	}
	return true
}

// input works off an input that is no telemetry.
func (g *Guest) input(kind abi.Kind, flags uint16, rec []byte) error {
	ctx := &g.ctx
	switch kind {
	case abi.KindTimer:
		due, name, err := abi.Timer(rec)
		if err == nil && ctx.next(Time(due)) && g.p.Timer != nil {
			g.p.Timer(ctx, string(name))
		}
		return err
	case abi.KindRaw:
		received, format, _, payload, err := abi.Raw(rec)
		if err == nil && ctx.next(Time(received)) && g.p.Raw != nil {
			g.p.Raw(ctx, format, payload)
		}
		return err
	case abi.KindResult:
		received, format, id, payload, err := abi.CommandResult(rec)
		if err == nil && ctx.next(Time(received)) && g.p.Result != nil {
			g.p.Result(ctx, Result{Command: string(id), TimedOut: flags&abi.FlagTimedOut != 0, Format: format, Payload: payload})
		}
		return err
	case abi.KindLifecycle:
		at, event, err := abi.Lifecycle(rec)
		if err == nil && ctx.next(Time(at)) && g.p.Lifecycle != nil {
			g.p.Lifecycle(ctx, eventOf(event))
		}
		return err
	default:
		ctx.next(ctx.received) // of a kind that is younger than this SDK
	}
	return nil
}

// eventOf reads what happened. An object that is none is an event without a name, which nobody knows.
func eventOf(text []byte) Event {
	c, err := ParseConfig(string(text))
	if err != nil {
		return Event{}
	}
	e := Event{Event: c.String("event", ""), Domain: c.String("domain", ""), Was: c.String("was", "")}
	if labels := c.Object("labels"); len(labels.fields) > 0 {
		e.Labels = make(map[string]string, len(labels.fields))
		for _, k := range labels.Keys() {
			e.Labels[k] = labels.String(k, "")
		}
	}
	return e
}

// keep appends what the state writer holds as the device's state, unless it is the state that came, and the record that
// names the device if it isn't opened yet: abi.AppendGroup and abi.AppendText in one step, since this is most of what most
// plugins answer.
func (g *Guest) keep() {
	c, w := &g.ctx, &g.writer
	n := w.n
	came, size := c.stateAt, c.stateSize
	if c.flags&migrated != 0 {
		lens := load64(g.frame, c.at+16)
		came, size = c.at+abi.Align(abi.DeviceSize+int(uint32(lens))), int(lens>>32)
	}
	if n == size && same(w.b, g.frame, came, n) {
		return
	}
	at := len(g.out)
	need := at + groupSize + abi.Align(abi.HeaderSize+n)
	if cap(g.out) < need+blindly {
		g.out = append(make([]byte, 0, 2*cap(g.out)+need+blindly), g.out...)
	}
	out := g.out[:cap(g.out)]
	if c.flags&opened == 0 {
		g.out = g.out[:need]
		store64(out, at, abi.HeaderSize+4|uint64(abi.KindGroup)<<32)
		store64(out, at+8, uint64(c.index))
		at += groupSize
	} else {
		g.out = g.out[:need-groupSize]
	}
	store64(out, at, uint64(abi.HeaderSize+n)|uint64(abi.KindState)<<32)
	at += abi.HeaderSize
	if n > blindly {
		copy(out[at:], w.b[:n])
	}
	store64(out, at, load64(w.b, 0))
	store64(out, at+8, load64(w.b, 8))
	store64(out, at+16, load64(w.b, 16))
	store64(out, at+24, load64(w.b, 24))
	store64(out, at+32, load64(w.b, 32))
	last := n &^ 7 // the word with the padding, or one behind the record that does not count
	store64(out, at+last, load64(w.b, last)&(1<<(8*uint(n&7))-1))
}

// blindly is how much of a state is copied without looking how long it is: both sides have that much.
const blindly = 40

// same reports whether the first n bytes of b are those at an offset of the frame. It goes word by word: states are small,
// and calls dear.
func same(b, frame []byte, at, n int) bool {
	i := 0
	for ; i+8 <= n; i += 8 {
		if load64(b, i) != load64(frame, at+i) {
			return false
		}
	}
	for ; i < n; i++ {
		if b[i] != frame[at+i] {
			return false
		}
	}
	return true
}

// Sizes of records with their padding.
const (
	batchSize = 24
	groupSize = 16
)

func (g *Guest) name(rec []byte) bool {
	id, name, err := abi.Name(rec)
	if err != nil {
		return false
	}
	// Ids count up from 1; anything else would be a host of another kind, and a gap must not cost memory.
	if int(id) == len(g.names) {
		g.names = append(g.names, string(name))
		clear(g.rs[:cap(g.rs)]) // they remember what ids mean
		for _, m := range g.metrics {
			if m.name == string(name) {
				m.id = id
			}
		}
	}
	return true
}

// forget voids all ids.
func (g *Guest) forget() {
	g.names = g.names[:1]
	clear(g.rs[:cap(g.rs)])
	for _, m := range g.metrics {
		m.id = 0
	}
}

func (g *Guest) lookup(id uint32) string {
	if int(id) < len(g.names) {
		return g.names[id]
	}
	return ""
}

// telemetry works off the record of size bytes at an offset of the frame.
func (g *Guest) telemetry(at, size int) bool {
	ctx := &g.ctx
	if size < abi.TelemetrySize {
		return false
	}
	n := int(load32(g.frame, at+16))
	if n > (size-abi.TelemetrySize)/abi.ReadingSize {
		return false
	}
	received := Time(load64(g.frame, at+8))
	if ctx.flags == inGroup { // the first input of most devices: as in next
		ctx.flags = inGroup | begun
		if g.p.Begin != nil {
			g.p.Begin(ctx)
		}
	}
	if ctx.flags&(inGroup|begun|failed|mute) == inGroup|begun {
		ctx.input++
		ctx.received = received
		ctx.mark = len(g.out)
	} else if !ctx.next(received) {
		return true
	}
	if g.p.Readings == nil {
		return true
	}
	if cap(g.rs) < n {
		g.rs = make([]Reading, n, 2*n)
	}
	rs := g.rs[:n]
	for i, from := 0, at+abi.TelemetrySize; i < len(rs); i, from = i+1, from+abi.ReadingSize {
		r := &rs[i]
		h := load64(g.frame, from)
		if r.id != uint32(h) { // storing a pointer costs a guest more than comparing
			g.rename(r, uint32(h))
		}
		r.take(h)
		r.Time = Time(load64(g.frame, from+8))
		r.Value = math.Float64frombits(load64(g.frame, from+16))
		r.at = int32(i)
		if r.Kind >= Text {
			r.noNumber()
		}
	}
	g.report, g.reportSize = at, size
	g.p.Readings(ctx, rs)
	return true
}

// rename and noNumber are calls, so that the compiler takes them for rare.
//
//go:noinline
func (g *Guest) rename(r *Reading, id uint32) { r.Metric = g.lookup(id) }

//go:noinline
func (r *Reading) noNumber() { r.Value = 0 }

// panicText says what a handler panicked with, without package fmt.
func panicText(p any) string {
	switch v := p.(type) {
	case error:
		return "panic: " + v.Error()
	case string:
		return "panic: " + v
	case interface{ String() string }:
		return "panic: " + v.String()
	}
	return "panic"
}

// address is where the host finds b in the module's memory.
func address(b []byte) uint32 {
	return uint32(uintptr(unsafe.Pointer(unsafe.SliceData(b))))
}
