package fuel_test

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/dunlin-iot/dunlin/plugins/fuel"
)

// FuzzRewrite hands any bytes to the parser and rewriter: no panic, and what comes out is a module for wazero exactly if
// what went in was.
func FuzzRewrite(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b)
	}
	rt := wazero.NewRuntimeWithConfig(f.Context(), features().WithMemoryLimitPages(16))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := fuel.Parse(b)
		if err != nil {
			return
		}
		out, err := m.Rewrite(1 << 20)
		if err != nil {
			return
		}
		if before, after := compiles(t.Context(), rt, b), compiles(t.Context(), rt, out); before != after {
			t.Fatalf("valid before: %v, after: %v", before, after)
		}
	})
}

// FuzzRewriteKeepsMeaning runs what a module exports, as it is and rewritten, as far as little fuel goes: both return the same,
// or both trap.
func FuzzRewriteKeepsMeaning(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b)
	}
	rt := wazero.NewRuntimeWithConfig(f.Context(), features().WithMemoryLimitPages(16))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := fuel.Parse(b)
		if err != nil || len(m.Imports) > 0 {
			return
		}
		out, err := m.Rewrite(0)
		if err != nil {
			return
		}
		var names []string
		for _, e := range m.Exports {
			if e.Kind == fuel.KindFunc {
				names = append(names, e.Name)
			}
		}
		got, ended := meaning(t.Context(), rt, out, names, littleFuel)
		if !ended { // who knows how long it takes without fuel
			return
		}
		if want, _ := meaning(t.Context(), rt, b, names, 0); got != want {
			t.Fatalf("%s\nwant %s", got, want)
		}
	})
}

const littleFuel = 50_000

// meaning tells what a module's functions return for small arguments; ended is false if they had not enough fuel.
func meaning(ctx context.Context, rt wazero.Runtime, b []byte, names []string, units uint64) (said string, ended bool) {
	mod, err := rt.InstantiateWithConfig(ctx, b, wazero.NewModuleConfig().WithName("").WithStartFunctions())
	if err != nil {
		return "no instance", true
	}
	defer mod.Close(ctx)
	counter, _ := mod.ExportedGlobal(fuel.GlobalName).(api.MutableGlobal)
	call := func(name string) (string, bool) {
		f := mod.ExportedFunction(name)
		if f == nil {
			return "", true
		}
		if counter != nil {
			counter.Set(units)
		}
		args := make([]uint64, len(f.Definition().ParamTypes()))
		for i, t := range f.Definition().ParamTypes() {
			if t < api.ValueTypeF64 { // a reference: null; a vector's halves are lost
				continue
			}
			args[i] = uint64(i + 3)
		}
		results, err := f.Call(ctx, args...)
		if counter != nil && int64(counter.Get()) < 0 {
			return "", false
		}
		if err != nil {
			return "trap", true
		}
		for i, t := range f.Definition().ResultTypes() {
			if t < api.ValueTypeF64 && i < len(results) { // references are addresses
				return "", true
			}
		}
		return fmt.Sprint(results), true
	}
	if counter != nil {
		if s, ok := call(fuel.StartName); !ok {
			return "", false
		} else if s == "trap" {
			return "no instance", true
		}
	}
	for _, name := range names {
		s, ok := call(name)
		if !ok {
			return "", false
		}
		said += name + ": " + s + "\n"
	}
	return said, true
}

// seeds are small modules of the specification's tests, one of each file.
func seeds(f *testing.F) [][]byte {
	dir, err := exec.CommandContext(f.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/tetratelabs/wazero").Output()
	if err != nil {
		return [][]byte{[]byte("\x00asm\x01\x00\x00\x00")}
	}
	files, _ := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "internal/integration_test/spectest/v2/testdata/*.0.wasm"))
	var all [][]byte
	for _, name := range files {
		if b, err := os.ReadFile(name); err == nil && len(b) < 4096 {
			all = append(all, b)
		}
	}
	return all
}
