// Command my-plugin is a plugin for dunlin: it raises an alert when a metric is above a limit, and clears it when it is below
// another one.
//
// Settings, all optional; dunlin.yaml describes them for people and tools:
//
//	metric    "temp"
//	above     8        raise when a value is above this
//	clear     7        clear when a value is below this
//	severity  "major"  or info, warning, critical
package main

import (
	"errors"

	sdk "github.com/dunlin-iot/dunlin/sdk/go"
)

func main() {}

// A plugin is registered when the module starts; the runtime then calls its handlers.
var _ = sdk.Register(newPlugin())

// threshold is the settings, and the memory of the device whose turn it is: Begin fills it from the device's state, End
// writes it back. Nothing else may be remembered about devices: one instance serves many, and may be replaced at any time.
type threshold struct {
	metric       *sdk.Metric
	above, clear float64
	severity     sdk.Severity

	active bool
	known  bool // the device has a state
}

func newPlugin() sdk.Plugin {
	t := &threshold{}
	return sdk.Plugin{Configure: t.configure, Begin: t.begin, Readings: t.readings, End: t.end}
}

// configure reads the settings. A value of the wrong type refuses them by itself; an error does, too.
func (t *threshold) configure(cfg *sdk.Config) error {
	t.metric = cfg.Metric("metric", "temp")
	t.above, t.clear = cfg.Float("above", 8), cfg.Float("clear", 7)
	severity, ok := sdk.SeverityOf(cfg.String("severity", "major"))
	switch t.severity = severity; {
	case !ok:
		return errors.New("setting severity must be info, warning, major or critical")
	case t.clear > t.above:
		return errors.New("setting clear must not be more than above")
	}
	return nil
}

// begin reads the device's state; for a device that is new every value is zero.
func (t *threshold) begin(ctx *sdk.Context) {
	r := ctx.Load()
	t.known = !r.Empty()
	t.active = r.Bool()
}

// readings takes one report.
func (t *threshold) readings(ctx *sdk.Context, rs []sdk.Reading) {
	for i := range rs {
		r := &rs[i]
		if !r.Is(t.metric) || r.Kind != sdk.Number {
			continue
		}
		switch {
		case !t.active && r.Value > t.above:
			t.active, t.known = true, true
			ctx.Alert("threshold", t.severity, "", r.Value)
		case t.active && r.Value < t.clear:
			t.active = false
			ctx.ClearWith("threshold", "", r.Value)
		}
	}
}

// end writes the state. It goes to disk when it changed: tens of bytes, not thousands.
func (t *threshold) end(ctx *sdk.Context) {
	if t.known {
		ctx.Save().Bool(t.active)
	}
}
