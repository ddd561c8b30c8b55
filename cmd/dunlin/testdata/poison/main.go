// Command poison is a plugin that hangs on readings of the metric poison, and is fine otherwise.
package main

import sdk "github.com/dunlin-iot/dunlin/sdk/go"

func main() {}

var poison *sdk.Metric

var sink int

var _ = sdk.Register(sdk.Plugin{
	Configure: func(cfg *sdk.Config) error {
		poison = cfg.Metric("metric", "poison")
		return nil
	},
	Readings: func(_ *sdk.Context, rs []sdk.Reading) {
		for _, r := range rs {
			for r.Is(poison) {
				sink++
			}
		}
	}})
