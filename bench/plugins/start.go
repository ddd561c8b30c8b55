package main

import (
	"context"
	"fmt"
	"path/filepath"

	"github.com/dunlin-iot/dunlin/plugins"
)

// starts measures how long it takes until a module can run: compiled for the first time, taken from the disk cache, one more
// instance; and what an instance takes.
func starts(ctx context.Context, o options) error {
	fmt.Printf("Start: of the threshold example (medians of %d)\n", o.runs)
	fmt.Printf("  %-16s %12s %14s %14s %14s %12s %18s\n", "", "module, KiB", "compile, ms", "cached, ms", "instance, ms", "memory, KiB", "fuel an input")
	for _, l := range languages() {
		wasm, ok, err := l.module(o)
		if err != nil {
			return err
		}
		if !ok {
			fmt.Printf("  %-16s %s\n", l.name, l.notBuilt())
			continue
		}
		var cold, cached, start, memory, fuel []float64
		for i := range o.runs {
			dir := filepath.Join(o.work, fmt.Sprintf("start-%s-%d", l.name, i))
			for _, to := range []*[]float64{&cold, &cached} {
				rep, err := check(ctx, dir, wasm)
				if err != nil {
					return fmt.Errorf("%s: %w", l.name, err)
				}
				*to = append(*to, rep.CompileMS)
				start, memory, fuel = append(start, rep.StartMS), append(memory, float64(rep.MemoryBytes>>10)), append(fuel, float64(rep.FuelPerInput))
			}
		}
		fmt.Printf("  %-16s %12d %14.1f %14.1f %14.2f %12.0f %18.0f\n", l.name, len(wasm)>>10, medianOf(cold), medianOf(cached), medianOf(start), medianOf(memory), medianOf(fuel))
	}
	return nil
}

// check does what an upload does, with a host of its own: only what the folder keeps is there already.
func check(ctx context.Context, dir string, wasm []byte) (*plugins.Report, error) {
	h, err := openHost(dir, plugins.Limits{})
	if err != nil {
		return nil, err
	}
	defer h.Close()
	return h.Check(ctx, wasm)
}
