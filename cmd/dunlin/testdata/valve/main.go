// Command valve is a plugin that asks its device to close the valve when a reading is above 8, for as many seconds as the reading
// is, publishes what became of it, and refuses readings of the metric dirt.
package main

import (
	"time"

	sdk "github.com/dunlin-iot/dunlin/sdk/go"
)

func main() {}

const text, json = 0, 50 // content formats

var temp, dirt *sdk.Metric

var _ = sdk.Register(sdk.Plugin{
	Configure: func(cfg *sdk.Config) error {
		temp, dirt = cfg.Metric("temp", "temp"), cfg.Metric("dirt", "dirt")
		return nil
	},
	Readings: func(ctx *sdk.Context, rs []sdk.Reading) {
		for _, r := range rs {
			switch {
			case r.Is(dirt):
				ctx.FailInput("dirt")
			case r.Is(temp) && r.Value > 8:
				ctx.Command("close", json, []byte(`{"valve":1}`), ctx.Now().Add(time.Duration(r.Value)*time.Second))
				ctx.Publish("valve/asked", text, []byte("close"))
			}
		}
	},
	Result: func(ctx *sdk.Context, r sdk.Result) {
		if r.TimedOut {
			ctx.Publish("valve/lost", text, []byte(r.Command))
			return
		}
		ctx.Publish("valve/closed", r.Format, r.Payload)
	}})
