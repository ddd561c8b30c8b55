// Command fickle is a plugin for tests: alerts with hysteresis, a timer that notices silence, derived readings, and inputs
// that it refuses or breaks down on.
package main

import (
	"time"

	sdk "github.com/dunlin-iot/dunlin/sdk/go"
)

func main() {}

type fickle struct {
	above   float64
	silent  time.Duration
	now     bool // its timers count from the runtime's clock
	counts  bool // it counts how often it is called
	rule    string
	last    sdk.Time
	n       uint32
	hot     bool
	stale   bool
	watched bool
}

var _ = sdk.Register(plugin())

func plugin() sdk.Plugin {
	f := &fickle{}
	return sdk.Plugin{
		Configure: func(cfg *sdk.Config) error {
			f.above = cfg.Float("above", 8)
			f.silent = time.Duration(cfg.Float("silent_minutes", 10) * float64(time.Minute))
			f.now = cfg.Bool("now", false)
			f.counts = cfg.Bool("counts", false)
			f.rule = cfg.String("rule", "hot")
			return nil
		},
		Begin: func(ctx *sdk.Context) {
			r := ctx.Load()
			f.last, f.n = r.Time(), uint32(r.Uint())
			flags := r.Byte()
			f.hot, f.stale, f.watched = flags&1 != 0, flags&2 != 0, flags&4 != 0
			if f.counts {
				f.n++
			}
		},
		Readings: func(ctx *sdk.Context, rs []sdk.Reading) {
			f.last = ctx.Received()
			if f.stale {
				f.stale = false
				ctx.Clear("stale")
			}
			if !f.watched {
				f.watched = true
				from := f.last
				if f.now {
					from = ctx.Now()
				}
				ctx.SetTimer("watch", from.Add(f.silent))
			}
			for i := range rs {
				f.reading(ctx, rs[i].Value)
			}
		},
		Timer: func(ctx *sdk.Context, name string) {
			f.watched = false
			due := f.last.Add(f.silent)
			switch {
			case due > ctx.Received():
				f.watched = true
				ctx.SetTimer("watch", due)
			case !f.stale:
				f.stale = true
				ctx.Alert("stale", sdk.Warning, "nothing heard", sdk.NoValue())
			}
		},
		End: func(ctx *sdk.Context) {
			w := ctx.Save()
			flags := byte(0)
			for i, b := range []bool{f.hot, f.stale, f.watched} {
				if b {
					flags |= 1 << i
				}
			}
			w.Time(f.last)
			w.Uint(uint64(f.n))
			w.Byte(flags)
		},
	}
}

func (f *fickle) reading(ctx *sdk.Context, v float64) {
	switch {
	case v == 13:
		ctx.Fail("unlucky")
	case v == 666:
		panic("evil")
	}
	if !f.counts {
		f.n++
	}
	ctx.Emit("temp.twice", 2*v)
	switch {
	case v > f.above && !f.hot:
		f.hot = true
		ctx.Alert(f.rule, sdk.Major, "too hot", v)
	case v < f.above-1 && f.hot:
		f.hot = false
		ctx.ClearWith(f.rule, "cool again", v)
	}
}
