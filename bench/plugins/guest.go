package main

import (
	"context"
	"fmt"
	"math"
	"time"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	"github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"

	"github.com/dunlin-iot/dunlin/plugins/abi"
	"github.com/dunlin-iot/dunlin/plugins/fuel"
)

// fuelMost is what counting may cost, in percent. Pairs are short and many: what else the machine does comes and goes in seconds.
const (
	fuelMost  = 15.0
	fuelPairs = 61
	fuelSlice = 25 * time.Millisecond
)

// fuels compares guests alone, without the host's part of a crossing: with the counting of fuel and without.
func fuels(ctx context.Context, o options) error {
	fmt.Printf("Fuel: the guest's part of a crossing of 100 devices, with counting and without (medians of %d pairs of %v)\n", fuelPairs, fuelSlice)
	fmt.Printf("  %-26s %14s %14s %12s\n", "", "with, ns", "without, ns", "overhead")
	for _, l := range languages() {
		wasm, ok, err := l.module(o)
		if err != nil {
			return err
		}
		if !ok {
			fmt.Printf("  %-26s %s\n", l.name, l.notBuilt())
			continue
		}
		with, without, overhead, err := fuelPair(ctx, wasm)
		if err != nil {
			return fmt.Errorf("%s: %w", l.name, err)
		}
		fmt.Printf("  %-26s %14.0f %14.0f %+11.1f%%  %s\n", l.name, with, without, overhead, verdict(overhead <= fuelMost, "≤ +15 %"))
	}
	return nil
}

// fuelPair measures both in turn, so that what else the machine does hits both.
func fuelPair(ctx context.Context, wasm []byte) (with, without, overhead float64, err error) {
	m, err := fuel.Parse(wasm)
	if err != nil {
		return 0, 0, 0, err
	}
	var guests [2]*guest
	for i, rewrite := range []func(int64) ([]byte, error){m.Rewrite, m.Unmetered} {
		bin, err := rewrite(math.MaxInt64)
		if err != nil {
			return 0, 0, 0, err
		}
		if guests[i], err = openGuest(ctx, bin); err != nil {
			return 0, 0, 0, err
		}
		defer guests[i].close(ctx)
	}
	var all [2][]float64
	var ratios []float64
	for range fuelPairs {
		var ns [2]float64
		for i, g := range guests {
			if ns[i], err = g.measure(fuelSlice); err != nil {
				return 0, 0, 0, err
			}
			all[i] = append(all[i], ns[i])
		}
		ratios = append(ratios, 100*(ns[0]/ns[1]-1))
	}
	return medianOf(all[0]), medianOf(all[1]), medianOf(ratios), nil
}

// guest is an instance without the plugin host: frames in, frames out.
type guest struct {
	rt      wazero.Runtime
	mod     api.Module
	fuel    api.MutableGlobal
	process api.Function
	frame   []byte
	at      uint32
	stack   [2]uint64
}

func openGuest(ctx context.Context, bin []byte) (*guest, error) {
	g := &guest{rt: wazero.NewRuntime(ctx)}
	if _, err := wasi_snapshot_preview1.Instantiate(ctx, g.rt); err != nil {
		return nil, err
	}
	_, err := g.rt.NewHostModuleBuilder(abi.ImportModule).NewFunctionBuilder().
		WithGoModuleFunction(api.GoModuleFunc(func(context.Context, api.Module, []uint64) {}), []api.ValueType{api.ValueTypeI32, api.ValueTypeI32, api.ValueTypeI32}, nil).
		Export("log").Instantiate(ctx)
	if err != nil {
		return nil, err
	}
	if g.mod, err = g.rt.InstantiateWithConfig(ctx, bin, wazero.NewModuleConfig().WithName("").WithStartFunctions()); err != nil {
		return nil, err
	}
	g.fuel, _ = g.mod.ExportedGlobal(fuel.GlobalName).(api.MutableGlobal)
	for _, name := range []string{fuel.StartName, abi.ExportInitialize} {
		if f := g.mod.ExportedFunction(name); f != nil {
			if _, err := f.Call(ctx); err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
		}
	}
	g.frame = abi.AppendText(nil, abi.KindConfig, 0, "{}")
	if err := g.place(ctx); err != nil {
		return nil, err
	}
	if _, err := g.mod.ExportedFunction(abi.ExportInit).Call(ctx, uint64(len(g.frame))); err != nil {
		return nil, err
	}
	g.process = g.mod.ExportedFunction(abi.ExportProcess)
	g.frame = batch(100)
	return g, g.place(ctx)
}

// batch is a frame with a report of each of so many devices, whose alert is not active.
func batch(devices int) []byte {
	b := abi.AppendBatch(nil, int64(epoch), devices, devices)
	b = abi.AppendName(b, 1, "temp")
	b = abi.AppendName(b, 2, "Cel")
	for i := range devices {
		b = abi.AppendDevice(b, 1, fmt.Sprintf("device-%d", i), []byte{0})
		start := len(b)
		b = abi.BeginTelemetry(b, int64(epoch), 1, 0)
		b = abi.AppendReading(b, abi.Reading{Metric: 1, Unit: 2, Kind: abi.ValueNumber, Time: int64(epoch), Value: temperature(i)})
		b = abi.EndTelemetry(b, start)
	}
	return b
}

// place asks for room and writes the frame there.
func (g *guest) place(ctx context.Context) error {
	r, err := g.mod.ExportedFunction(abi.ExportBuffer).Call(ctx, uint64(len(g.frame)))
	if err != nil {
		return err
	}
	g.at = uint32(r[0])
	if !g.mod.Memory().Write(g.at, g.frame) {
		return fmt.Errorf("the buffer lies outside the memory")
	}
	return nil
}

// measure is nanoseconds of processor time for a device of the frame.
func (g *guest) measure(long time.Duration) (float64, error) {
	ctx := context.Background()
	began, cpu, n := time.Now(), cpuTime(), 0
	for time.Since(began) < long {
		for range 50 {
			g.fuel.Set(math.MaxInt64)
			g.mod.Memory().Write(g.at, g.frame)
			g.stack[0] = uint64(len(g.frame))
			if err := g.process.CallWithStack(ctx, g.stack[:]); err != nil {
				return 0, err
			}
			if g.stack[0]&abi.ResultError != 0 {
				return 0, fmt.Errorf("the guest refuses the frame")
			}
		}
		n += 50 * 100
	}
	return float64(cpuTime()-cpu) / float64(n), nil
}

func (g *guest) close(ctx context.Context) { _ = g.rt.Close(ctx) }
