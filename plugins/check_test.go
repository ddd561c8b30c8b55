package plugins_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"strings"
	"testing"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins"
)

// What is refused at upload, and in what words: each names what was found, and what to do where there is something to do.
func TestUploadIsRefusedWithAReason(t *testing.T) {
	change := func(f func(m *wasm)) []byte {
		m := plugin(nil)
		f(m)
		return m.build()
	}
	imports := func(im imp) []byte { return plugin(nil, im).build() }
	for _, c := range []struct {
		name         string
		module       []byte
		check, wants string
	}{
		{"nothing", nil, "parse", "does not begin with \\0asm"},
		{"text", []byte("#!/bin/sh\necho hello"), "parse", "does not begin with \\0asm"},
		{"a component", []byte("\x00asm\x0d\x00\x01\x00"), "parse", "build a core module"},
		{"half a module", plugin(nil).build()[:100], "parse", "goes beyond the end"},
		{"too large", make([]byte, 17<<20), "size", "17825792 bytes, at most 16777216"},
		{"an import of env", imports(imp{module: "env", name: "fetch"}), "imports", "imports function env.fetch"},
		{"AssemblyScript's abort", imports(imp{module: "env", name: "abort"}), "imports", "--use abort"},
		{"another runtime", imports(imp{module: "wasi_unstable", name: "fd_write"}), "imports", "WASI preview 1"},
		{"wrong signature", imports(imp{module: "dunlin_v1", name: "log", params: []byte{i32}}), "imports",
			"imports dunlin_v1.log as (i32), it is (i32, i32, i32)"},
		{"a program", change(func(m *wasm) { m.funcs[fnMarker].export = "_start" }), "abi", "program with _start"},
		{"no marker", change(func(m *wasm) { m.funcs[fnMarker].export = "" }), "abi", "dunlin_abi_v1"},
		{"no process", change(func(m *wasm) { m.funcs[fnProcess].export = "" }), "exports", "dunlin_process (i32) → i64"},
		{"wrong init", change(func(m *wasm) { m.funcs[fnInit] = fn{export: "dunlin_init"} }), "exports",
			"exports dunlin_init as (), it must be (i32) → i64"},
		{"no memory", change(func(m *wasm) { m.noMem = true }), "memory", "0 memories"},
		{"shared memory", change(func(m *wasm) { m.memory = code(3, 1, 2) }), "parse", "shared"},
		{"much memory", change(func(m *wasm) { m.memory = code(0, uleb(1025)) }), "memory", "67174400 bytes of memory"},
		{"a huge table", change(func(m *wasm) { m.table = code(0x70, 0, uleb(1<<27)) }), "parse", "134217728 elements"},
		{"many locals", change(func(m *wasm) { m.funcs[fnProcess].locals = append(m.funcs[fnProcess].locals, [2]int{1 << 30, i64}) }),
			"parse", "locals"},
		{"nested loops", bomb(bytes.Repeat(code(loop, void), 65), bytes.Repeat(code(end), 65), 1), "parse", "nested deeper than 64"},
		{"many loops", bomb(nil, bytes.Repeat(code(loop, void, end), 2001), 1), "parse", "more than 2000 loops"},
		{"many blocks", bomb(nil, bytes.Repeat(code(block, void, end), 10_001), 1), "parse", "more than 10000 blocks"},
		{"loops over locals", bomb(nil, bytes.Repeat(code(loop, void, end), 1000), 1000), "parse", "over 1000 locals"},
		{"a large function", bomb(nil, bytes.Repeat(code(1), 1<<20), 1), "parse", "bytes of code, at most 1048576"},
		{"our own name", change(func(m *wasm) { m.funcs = append(m.funcs, fn{export: "dunlin_fuel"}) }), "parse", "dunlin_fuel"},
		{"the counter's global", change(func(m *wasm) { m.funcs[fnMarker].body = code(i64c(1<<60), 0x24, 0) }), "parse",
			"global 0 does not exist"},
		{"a type error", change(func(m *wasm) { m.funcs[fnInit].body = i32c(0) }), "parse", "does not validate"},
		{"threads", change(func(m *wasm) { m.funcs[fnMarker].body = code(0xfe, 3, 0) }), "parse", "0xfe is not of WebAssembly 2.0"},
		{"tail calls", change(func(m *wasm) { m.funcs[fnMarker].body = code(0x12, 0) }), "parse", "0x12 is not of WebAssembly 2.0"},
		{"a trap in the dry run", change(func(m *wasm) { m.funcs[fnProcess].body = code(unreachable) }), "dry-run", "trap: unreachable"},
	} {
		t.Run(strings.ReplaceAll(c.name, " ", "-"), func(t *testing.T) {
			b := newBench(t, plugins.Config{})
			_, err := b.Check(t.Context(), c.module)
			e, ok := errors.AsType[*dunlin.ModuleError](err)
			if !ok || e.Check != c.check || !strings.Contains(e.Detail, c.wants) || !errors.Is(err, dunlin.ErrInvalid) {
				t.Errorf("%v, want %s: … %s …", err, c.check, c.wants)
			}
		})
	}
}

// bomb is a module that would keep the compiler busy for minutes.
func bomb(first, rest []byte, locals int) []byte {
	m := plugin(nil)
	m.funcs = append(m.funcs, fn{locals: [][2]int{{locals, i64}}, body: append(first, rest...)})
	return m.build()
}

// A module that was never installed, or is not what its hash says, fails its devices and nothing else.
func TestModuleThatIsNotThere(t *testing.T) {
	b := newBench(t, plugins.Config{})
	works := batchOf(1)
	process(t, b, &dunlin.Stage{Plugin: "gone"}, t0, works...)
	if got := works[0].Outcome.Failure; !strings.Contains(got, "not found") {
		t.Errorf("failure %q", got)
	}
	module := plugin(nil).build()
	if err := b.Install(t.Context(), dunlin.ModuleHash{1}, module); !errors.Is(err, dunlin.ErrInvalid) {
		t.Errorf("installing under a wrong hash: %v", err)
	}
	st := b.stage(module, "")
	if err := b.Install(t.Context(), st.Hash, module); err != nil {
		t.Fatal(err)
	}
	delete(b.modules, st.Hash)
	if process(t, b, st, t0, works...); works[0].Outcome.Failure != "" {
		t.Errorf("an installed module: %q", works[0].Outcome.Failure)
	}
	b.Remove(st.Hash)
	if process(t, b, st, t0, works...); !strings.Contains(works[0].Outcome.Failure, "not found") {
		t.Errorf("a removed module: %q", works[0].Outcome.Failure)
	}
}

func TestCloseEndsProcess(t *testing.T) {
	b := newBench(t, plugins.Config{})
	st := b.stage(plugin(nil).build(), "")
	process(t, b, st, t0, batchOf(1)...)
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := b.Process("cold", st, 0, t0, batchOf(1)); !errors.Is(err, dunlin.ErrUnavailable) {
		t.Errorf("after Close: %v", err)
	}
	if _, err := b.Check(t.Context(), plugin(nil).build()); !errors.Is(err, dunlin.ErrUnavailable) {
		t.Errorf("Check after Close: %v", err)
	}
}

// TestStatesOfAnotherVersionAreTried: on copies, behind the note that another version made them; what the plugin has against one
// is said with the device.
func TestStatesOfAnotherVersionAreTried(t *testing.T) {
	b := newBench(t, plugins.Config{})
	good := b.stage(plugin(nil).build(), "{}")
	work := func() []*dunlin.Work {
		return []*dunlin.Work{{DeviceKey: dunlin.DeviceKey{Tenant: "default", Device: "d1"}, Seq: 7, State: []byte{1, 2, 3}, Made: dunlin.Made{Module: 5, Config: 6}}}
	}
	if err := b.TryStates(t.Context(), good, work()); err != nil {
		t.Errorf("a plugin that takes it: %v", err)
	}
	trap := plugin(nil)
	trap.funcs[fnProcess].body = code(unreachable)
	bad := b.stage(trap.build(), "{}")
	if err := b.TryStates(t.Context(), bad, work()); !errors.Is(err, dunlin.ErrInvalid) || !strings.Contains(err.Error(), "device d1") {
		t.Errorf("a plugin that traps: %v", err)
	}
	doc := []byte(`[{"name":"a","when":"temp > 8"}]`)
	rules := &dunlin.Stage{Plugin: "r", Hash: sha256.Sum256(doc), Rules: doc}
	if err := b.TryStates(t.Context(), rules, work()); !errors.Is(err, dunlin.ErrInvalid) || !strings.Contains(err.Error(), "cut state") {
		t.Errorf("rules with another's state: %v", err)
	}
}
