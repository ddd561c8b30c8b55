// Command absence is a plugin that raises an alert when a device is not heard of for some time.
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -o absence.wasm ./sdk/go/examples/absence
//
// Settings, all optional:
//
//	after_s  60  raise when nothing was heard for so many seconds
//
// The state is when the device was heard of last, whether the alert is active, and whether the timer is armed: 10 bytes.
package main

import (
	"time"

	sdk "github.com/dunlin-iot/dunlin/sdk/go"
)

func main() {}

var _ = sdk.Register(newPlugin())

const (
	rule    = "absence"
	silence = "silence" // the timer
)

// absence is the configuration, and the memory of the device whose turn it is.
type absence struct {
	after time.Duration

	last          sdk.Time
	active, armed bool
	known         bool // there is something to keep
}

func newPlugin() sdk.Plugin {
	a := &absence{}
	return sdk.Plugin{
		Configure: func(cfg *sdk.Config) error {
			a.after = time.Duration(cfg.Float("after_s", 60)*1e6) * time.Microsecond
			return nil
		},
		Begin:    a.begin,
		Readings: func(ctx *sdk.Context, _ []sdk.Reading) { a.heard(ctx) },
		Raw:      func(ctx *sdk.Context, _ uint16, _ []byte) { a.heard(ctx) },
		Timer:    a.timer,
		End:      a.end,
	}
}

func (a *absence) begin(ctx *sdk.Context) {
	r := ctx.Load()
	a.known = !r.Empty()
	a.last, a.active, a.armed = r.Time(), r.Bool(), r.Bool()
}

// heard notes that there was a sign of life. The timer is not moved: it looks at the note when it fires. Moving it would
// cost the store two rows for every sign.
func (a *absence) heard(ctx *sdk.Context) {
	if a.active {
		a.active = false
		ctx.Clear(rule)
	}
	a.last, a.known = ctx.Received(), true
	if !a.armed {
		a.arm(ctx)
	}
}

func (a *absence) arm(ctx *sdk.Context) {
	a.armed = true
	ctx.SetTimer(silence, a.last.Add(a.after))
}

func (a *absence) timer(ctx *sdk.Context, name string) {
	if name != silence {
		return
	}
	a.armed, a.known = false, true
	if ctx.Received().Sub(a.last) < a.after {
		a.arm(ctx)
		return
	}
	a.active = true
	ctx.Alert(rule, sdk.Major, "", sdk.NoValue())
}

func (a *absence) end(ctx *sdk.Context) {
	if a.known {
		w := ctx.Save()
		w.Time(a.last)
		w.Bool(a.active)
		w.Bool(a.armed)
	}
}
