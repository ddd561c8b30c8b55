package sdk_test

import (
	"fmt"
	"testing"

	"github.com/dunlin-iot/dunlin/plugins/abi"
	sdk "github.com/dunlin-iot/dunlin/sdk/go"
)

// BenchmarkProcess measures the SDK natively: 100 devices with a report of four readings each.
func BenchmarkProcess(b *testing.B) {
	sum := 0.0
	g := sdk.NewGuest(sdk.Plugin{
		Begin:    func(ctx *sdk.Context) { r := ctx.Load(); r.Byte(); r.Time() },
		Readings: func(_ *sdk.Context, rs []sdk.Reading) { sum += rs[0].Value },
		End: func(ctx *sdk.Context) {
			w := ctx.Save()
			w.Byte(1)
			w.Time(ctx.Received())
		},
	})
	g.Init(abi.AppendText(nil, abi.KindConfig, 0, "{}"))
	frame := abi.AppendBatch(nil, 1, 100, 100)
	for i, n := range []string{"temp", "humidity", "door", "battery"} {
		frame = abi.AppendName(frame, uint32(i+1), n)
	}
	for d := range 100 {
		frame = abi.AppendDevice(frame, 1, fmt.Sprintf("device-%d", d), make([]byte, 39))
		start := len(frame)
		frame = abi.BeginTelemetry(frame, 5, 4, 0)
		for i := range 4 {
			frame = abi.AppendReading(frame, abi.Reading{Metric: uint32(i + 1), Kind: 1, Time: 7, Value: 4})
		}
		frame = abi.EndTelemetry(frame, start)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, failed := g.Process(frame); failed {
			b.Fatal("failed")
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/100, "ns/event")
}
