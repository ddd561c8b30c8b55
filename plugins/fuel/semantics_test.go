package fuel_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/dunlin-iot/dunlin/plugins/fuel"
)

// The specification's assertions, run on rewritten modules: every function returns what it should, or traps, as if the
// counter weren't there; and no call is free.
func TestRewrittenModulesBehaveAsSpecified(t *testing.T) {
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/tetratelabs/wazero").Output()
	if err != nil {
		t.Skip("wazero's source is not at hand:", err)
	}
	files, _ := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "internal/integration_test/spectest/v2/testdata/*.json"))
	rt := wazero.NewRuntimeWithConfig(t.Context(), wazero.NewRuntimeConfigCompiler().WithCoreFeatures(api.CoreFeaturesV2))
	defer rt.Close(t.Context())
	s := &spec{rt: rt}
	for _, f := range files {
		if err := s.run(t.Context(), f); err != nil {
			t.Errorf("%s: %v", filepath.Base(f), err)
		}
	}
	t.Logf("%d returns and %d traps as specified in %d files", s.returns, s.traps, len(files))
}

type spec struct {
	rt             wazero.Runtime
	mod            api.Module
	fuel           api.MutableGlobal
	returns, traps int
}

type specCommand struct {
	Type, Filename, Text string
	Line                 int
	Action               struct {
		Type, Module, Field string
		Args                []specValue
	}
	Expected []specValue
}

type specValue struct {
	Type  string
	Value any
}

func (s *spec) run(ctx context.Context, file string) error {
	b, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var doc struct{ Commands []specCommand }
	if err := json.Unmarshal(b, &doc); err != nil {
		return err
	}
	s.mod = nil
	for _, c := range doc.Commands {
		switch c.Type {
		case "module":
			if s.mod != nil {
				s.mod.Close(ctx)
			}
			s.mod, s.fuel = nil, nil
			wasm, err := os.ReadFile(filepath.Join(filepath.Dir(file), c.Filename))
			if err != nil {
				return err
			}
			if m, err := fuel.Parse(wasm); err == nil && len(m.Imports) == 0 {
				if wasm, err = m.Rewrite(1 << 40); err != nil {
					return fmt.Errorf("line %d: %w", c.Line, err)
				}
				s.mod, err = s.rt.InstantiateWithConfig(ctx, wasm, wazero.NewModuleConfig().WithName("").WithStartFunctions())
				if err != nil {
					return fmt.Errorf("line %d: %w", c.Line, err)
				}
				s.fuel = s.mod.ExportedGlobal(fuel.GlobalName).(api.MutableGlobal)
				if begin := s.mod.ExportedFunction(fuel.StartName); begin != nil {
					if _, err := begin.Call(ctx); err != nil {
						return fmt.Errorf("line %d: start: %w", c.Line, err)
					}
				}
			}
		case "assert_return", "assert_trap", "assert_exhaustion", "action":
			if s.mod != nil && c.Action.Type == "invoke" && c.Action.Module == "" {
				if err := s.check(ctx, &c); err != nil {
					return fmt.Errorf("line %d: %s: %w", c.Line, c.Action.Field, err)
				}
			}
		}
	}
	return nil
}

func (s *spec) check(ctx context.Context, c *specCommand) error {
	var args []uint64
	for _, a := range c.Action.Args {
		v, ok := bits(a)
		if !ok { // a reference: what it would have done to the module is missing from now on
			s.mod.Close(ctx)
			s.mod = nil
			return nil
		}
		args = append(args, v...)
	}
	f := s.mod.ExportedFunction(c.Action.Field)
	if f == nil {
		return errors.New("not exported")
	}
	s.fuel.Set(1 << 40)
	got, err := f.Call(ctx, args...)
	if burnt := 1<<40 - int64(s.fuel.Get()); burnt < 4 {
		return fmt.Errorf("burnt %d", burnt)
	}
	if c.Type == "assert_trap" || c.Type == "assert_exhaustion" {
		if s.traps++; err == nil {
			return errors.New("does not trap")
		}
		return nil
	}
	if s.returns++; err != nil {
		return err
	}
	i := 0
	for _, e := range c.Expected {
		want, ok := bits(e)
		if !ok {
			return nil // NaN classes, references, lanes of floats
		}
		for _, w := range want {
			if e.Type == "i32" || e.Type == "f32" {
				got[i] &= 1<<32 - 1
			}
			if got[i] != w {
				return fmt.Errorf("result %d: %#x, want %#x", i, got[i], w)
			}
			i++
		}
	}
	return nil
}

// bits returns a value's bits: one word, or two of a vector of integers.
func bits(v specValue) ([]uint64, bool) {
	switch x := v.Value.(type) {
	case string:
		u, err := strconv.ParseUint(x, 10, 64)
		return []uint64{u}, err == nil && v.Type != "externref" && v.Type != "funcref"
	case []any:
		if v.Type != "v128" || 128%len(x) != 0 {
			return nil, false
		}
		width := 128 / len(x)
		words := make([]uint64, 2)
		for i, lane := range x {
			u, err := strconv.ParseUint(fmt.Sprint(lane), 10, 64)
			if err != nil {
				return nil, false
			}
			words[i*width/64] |= u << (i * width % 64)
		}
		return words, true
	}
	return nil, false
}
