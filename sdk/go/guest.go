package sdk

import (
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
	report  []byte // the telemetry record at hand

	reader StateReader
	writer StateWriter
	out    []byte
}

// NewGuest returns a Guest for p.
func NewGuest(p Plugin) *Guest {
	g := &Guest{p: p, names: make([]string, 1, 64)}
	g.ctx.guest = g
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
			g.name(rec)
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
	g.out = g.out[:0]
	g.ctx = Context{guest: g, index: -1}
	r := abi.NewReader(frame)
	for {
		done, err := g.run(&r)
		if err != nil {
			return []byte("bad frame"), true
		}
		if done {
			return g.out, false
		}
		// A handler panicked: what its device got is dropped, its other inputs are skipped, the next device goes on.
	}
}

// run works off records to the frame's end, or to a panic.
func (g *Guest) run(r *abi.Reader) (done bool, err error) {
	ctx := &g.ctx
	before, ending := *r, false
	defer func() {
		if p := recover(); p != nil {
			ctx.fail(panicText(p))
			if ending {
				*r = before // the record at hand is the next device's: read it again
			}
		}
	}()
	for {
		before = *r
		kind, _, rec, err := r.Next()
		if err != nil {
			return true, err
		}
		if rec == nil || kind == abi.KindDevice {
			ending = true
			ctx.end()
			ending = false
		}
		if rec == nil {
			return true, nil
		}
		switch kind {
		case abi.KindTelemetry:
			err = g.telemetry(rec)
		case abi.KindDevice:
			err = ctx.begin(rec)
		case abi.KindTimer:
			err = g.timer(rec)
		case abi.KindRaw:
			err = g.raw(rec)
		case abi.KindName:
			g.name(rec)
		case abi.KindForget:
			g.forget()
		case abi.KindBatch:
			now, _, _, berr := abi.Batch(rec)
			ctx.now, err = Time(now), berr
		default:
			if kind > abi.KindTimer && kind < abi.KindGroup {
				ctx.input++ // an input of a kind that is younger than this SDK
			}
		}
		if err != nil {
			return true, err
		}
	}
}

func (g *Guest) name(rec []byte) {
	// Ids count up from 1; anything else would be a host of another kind, and a gap must not cost memory.
	if id, name, err := abi.Name(rec); err == nil && int(id) == len(g.names) {
		g.names = append(g.names, string(name))
		clear(g.rs[:cap(g.rs)]) // they remember what ids mean
		for _, m := range g.metrics {
			if m.name == string(name) {
				m.id = id
			}
		}
	}
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

func (g *Guest) telemetry(rec []byte) error {
	ctx := &g.ctx
	received, _, raw, err := abi.Telemetry(rec)
	if err != nil || ctx.failed {
		return err
	}
	ctx.received = Time(received)
	ctx.input++
	if g.p.Readings == nil {
		return nil
	}
	n := len(raw) / abi.ReadingSize
	if cap(g.rs) < n {
		g.rs = make([]Reading, n, 2*n)
	}
	rs := g.rs[:n]
	all := readings(raw)
	for i := range rs {
		a, r := &all[i], &rs[i]
		if r.id != a.Metric { // storing a pointer costs a guest more than comparing
			r.Metric, r.id = g.lookup(a.Metric), a.Metric
		}
		r.Time, r.Value, r.Kind, r.unit, r.at = Time(a.Time), a.Value, Kind(a.Kind), a.Unit, int32(i)
		if a.Kind >= abi.ValueText {
			r.Value = 0
		}
	}
	g.report = rec
	g.p.Readings(ctx, rs)
	return nil
}

func (g *Guest) timer(rec []byte) error {
	due, name, err := abi.Timer(rec)
	if err != nil || g.ctx.failed {
		return err
	}
	g.ctx.received = Time(due)
	g.ctx.input++
	if g.p.Timer != nil {
		g.p.Timer(&g.ctx, string(name))
	}
	return nil
}

func (g *Guest) raw(rec []byte) error {
	received, format, _, payload, err := abi.Raw(rec)
	if err != nil || g.ctx.failed {
		return err
	}
	g.ctx.received = Time(received)
	g.ctx.input++
	if g.p.Raw != nil {
		g.p.Raw(&g.ctx, format, payload)
	}
	return nil
}

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
