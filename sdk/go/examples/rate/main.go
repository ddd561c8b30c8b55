// Command rate is a plugin that derives how fast a metric changes a minute, and raises an alert when that is too fast.
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -o rate.wasm ./sdk/go/examples/rate
//
// Settings, all optional:
//
//	metric      "level"
//	per_minute  5        raise when it rises or falls by more than this
//
// The state is the reading before: 17 bytes.
package main

import (
	"math"

	sdk "github.com/dunlin-iot/dunlin/sdk/go"
)

func main() {}

var _ = sdk.Register(newPlugin())

const rule = "rate"

// rate is the configuration, and the memory of the device whose turn it is.
type rate struct {
	metric  *sdk.Metric
	derived string
	limit   float64

	known  bool // the fields below are of a reading
	at     sdk.Time
	last   float64
	active bool
}

func newPlugin() sdk.Plugin {
	p := &rate{}
	return sdk.Plugin{Configure: p.configure, Begin: p.begin, Readings: p.readings, End: p.end}
}

func (p *rate) configure(cfg *sdk.Config) error {
	p.metric = cfg.Metric("metric", "level")
	p.derived = p.metric.Name() + ".rate"
	p.limit = cfg.Float("per_minute", 5)
	return nil
}

func (p *rate) begin(ctx *sdk.Context) {
	r := ctx.Load()
	p.at, p.last, p.active = r.Time(), r.Float(), r.Bool()
	p.known = r.OK()
}

func (p *rate) readings(ctx *sdk.Context, rs []sdk.Reading) {
	for i := range rs {
		if r := &rs[i]; r.Is(p.metric) && r.Kind == sdk.Number {
			p.reading(ctx, r)
		}
	}
}

func (p *rate) reading(ctx *sdk.Context, r *sdk.Reading) {
	if !p.known {
		p.known, p.at, p.last, p.active = true, r.Time, r.Value, false
		return
	}
	if r.Time <= p.at {
		return
	}
	perMinute := (r.Value - p.last) / (float64(r.Time-p.at) / 60e6)
	p.at, p.last = r.Time, r.Value
	ctx.EmitDerived(sdk.Derived{Metric: p.derived, Time: r.Time, Value: perMinute})
	switch fast := math.Abs(perMinute) > p.limit; {
	case fast && !p.active:
		p.active = true
		ctx.Alert(rule, sdk.Warning, "", perMinute)
	case !fast && p.active:
		p.active = false
		ctx.ClearWith(rule, "", perMinute)
	}
}

func (p *rate) end(ctx *sdk.Context) {
	if p.known {
		w := ctx.Save()
		w.Time(p.at)
		w.Float(p.last)
		w.Bool(p.active)
	}
}
