// Command forgetful is a plugin that keeps a device's count in a variable instead of its state: what the amnesia test is for.
package main

import sdk "github.com/dunlin-iot/dunlin/sdk/go"

func main() {}

var count int

var _ = sdk.Register(sdk.Plugin{Readings: func(ctx *sdk.Context, rs []sdk.Reading) {
	if count += len(rs); count == 2 {
		ctx.Alert("second", sdk.Info, "", 2)
	}
}})
