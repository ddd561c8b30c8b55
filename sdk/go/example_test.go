package sdk_test

import (
	"fmt"
	"testing"

	sdk "github.com/dunlin-iot/dunlin/sdk/go"
	"github.com/dunlin-iot/dunlin/sdk/go/sdktest"
)

// A plugin that tells when a tank's level falls by more than a setting between two reports.
func Example() {
	type memory struct {
		known bool
		level float64
	}
	newPlugin := func() sdk.Plugin {
		var level *sdk.Metric
		var drop float64
		var m memory
		return sdk.Plugin{
			Configure: func(cfg *sdk.Config) error {
				level = cfg.Metric("metric", "level")
				drop = cfg.Float("drop", 10)
				return nil
			},
			Begin: func(ctx *sdk.Context) {
				s := ctx.Load()
				m = memory{known: s.Bool(), level: s.Float()}
			},
			Readings: func(ctx *sdk.Context, rs []sdk.Reading) {
				for i := range rs {
					r := &rs[i]
					if !r.Is(level) {
						continue
					}
					if m.known && m.level-r.Value > drop {
						ctx.Alert("leak", sdk.Critical, "the level falls", m.level-r.Value)
					}
					m = memory{known: true, level: r.Value}
				}
			},
			End: func(ctx *sdk.Context) {
				s := ctx.Save()
				s.Bool(m.known)
				s.Float(m.level)
			},
		}
	}
	// In the plugin's package: func main() {} and var _ = sdk.Register(newPlugin()). In its test:
	h := sdktest.New(&testing.T{}, newPlugin, `{"drop": 5}`)
	d := h.Device("tank-7")
	for _, v := range []float64{80, 79, 71} {
		for _, a := range d.Send(sdktest.Number("level", v)).Alerts {
			fmt.Println(a.Rule, a.Severity == sdk.Critical, a.Text, a.Value)
		}
	}
	// Output: leak true the level falls 8
}
