// Command burn is a plugin that takes as much time for each input as it is told to: {"rounds": 1000}; 0 never ends.
package main

import sdk "github.com/dunlin-iot/dunlin/sdk/go"

func main() {}

var _ = sdk.Register(newPlugin())

func newPlugin() sdk.Plugin {
	rounds := 0
	return sdk.Plugin{
		Configure: func(cfg *sdk.Config) error {
			rounds = cfg.Int("rounds", 1)
			return nil
		},
		Readings: func(ctx *sdk.Context, _ []sdk.Reading) {
			x := uint64(ctx.Received()) | 1
			for i := 0; rounds == 0 || i < rounds; i++ {
				for range 1000 {
					x ^= x << 13
					x ^= x >> 7
					x ^= x << 17
				}
			}
			if x == 0 { // never, but the compiler doesn't know
				ctx.Log("zero")
			}
		},
	}
}
