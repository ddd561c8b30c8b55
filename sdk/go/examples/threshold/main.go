// Command threshold is a plugin that raises an alert when a metric is above a limit, and clears it when it is below another.
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -o threshold.wasm ./sdk/go/examples/threshold
//
// Settings, all optional:
//
//	metric    "temp"
//	above     8        raise when a value is above this
//	clear     7        clear when a value is below this
//	severity  "major"  or info, warning, critical
//
// The state is one byte: whether the alert is active. A device that never had one has no state.
package main

import (
	"errors"

	sdk "github.com/dunlin-iot/dunlin/sdk/go"
)

func main() {}

var _ = sdk.Register(newPlugin())

const rule = "threshold"

// threshold is the configuration, and the memory of the device whose turn it is.
type threshold struct {
	metric       *sdk.Metric
	above, clear float64
	severity     sdk.Severity

	active, known bool
}

func newPlugin() sdk.Plugin {
	t := &threshold{}
	return sdk.Plugin{Configure: t.configure, Begin: t.begin, Readings: t.readings, End: t.end}
}

func (t *threshold) configure(cfg *sdk.Config) error {
	t.metric = cfg.Metric("metric", "temp")
	t.above, t.clear = cfg.Float("above", 8), cfg.Float("clear", 7)
	severity, ok := sdk.SeverityOf(cfg.String("severity", "major"))
	switch t.severity = severity; {
	case !ok:
		return errors.New("setting severity must be info, warning, major or critical")
	case t.clear > t.above:
		return errors.New("setting clear must not be above above")
	}
	return nil
}

func (t *threshold) begin(ctx *sdk.Context) {
	r := ctx.Load()
	t.known = !r.Empty()
	t.active = r.Bool()
}

func (t *threshold) readings(ctx *sdk.Context, rs []sdk.Reading) {
	for i := range rs {
		r := &rs[i]
		if !r.Is(t.metric) || r.Kind != sdk.Number {
			continue
		}
		switch {
		case !t.active && r.Value > t.above:
			t.active, t.known = true, true
			ctx.Alert(rule, t.severity, "", r.Value)
		case t.active && r.Value < t.clear:
			t.active = false
			ctx.ClearWith(rule, "", r.Value)
		}
	}
}

func (t *threshold) end(ctx *sdk.Context) {
	if t.known {
		ctx.Save().Bool(t.active)
	}
}
