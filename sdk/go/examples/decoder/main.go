// Command decoder is a plugin that reads a sensor's own octets: a version, 1, and then a channel and its value in hundredths
// as a little-endian i16, as often as there are.
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -o decoder.wasm ./sdk/go/examples/decoder
//
// It has no settings and no state.
package main

import sdk "github.com/dunlin-iot/dunlin/sdk/go"

func main() {}

var _ = sdk.Register(newPlugin())

func newPlugin() sdk.Plugin { return sdk.Plugin{Raw: decode} }

func decode(ctx *sdk.Context, _ uint16, payload []byte) {
	if len(payload) < 4 || payload[0] != 1 || len(payload)%3 != 1 {
		ctx.FailInput("bad payload")
		return
	}
	for p := payload[1:]; len(p) > 0; p = p[3:] {
		d := sdk.Derived{Value: float64(int16(uint16(p[1])|uint16(p[2])<<8)) / 100}
		switch p[0] {
		case 1:
			d.Metric, d.Unit = "temp", "Cel"
		case 2:
			d.Metric, d.Unit = "humidity", "%RH"
		case 3:
			d.Metric, d.Unit = "battery", "V"
		default:
			ctx.FailInput("bad payload") // what was made of it until here goes, too
			return
		}
		ctx.EmitDerived(d)
	}
}
