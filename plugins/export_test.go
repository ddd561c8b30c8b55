package plugins

import (
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/dunlin-iot/dunlin/plugins/abi"
	"github.com/dunlin-iot/dunlin/plugins/fuel"
	"github.com/dunlin-iot/dunlin/sdk/vectors"
)

// VectorGuests compiles a module as an upload is, and returns what opens instances of it that take frames as they are.
func (h *Host) VectorGuests(t testing.TB, wasm []byte) func(testing.TB) vectors.Guest {
	t.Helper()
	parsed, err := h.parse(wasm)
	if err != nil {
		t.Fatal(err)
	}
	compiled, err := h.compile(t.Context(), parsed)
	if err != nil {
		t.Fatal(err)
	}
	return func(t testing.TB) vectors.Guest {
		t.Helper()
		in := &instance{limits: &h.cfg.Limits}
		in.ctx.in = in
		in.setClock(vectors.Base)
		mod, err := h.rt.InstantiateModule(&in.ctx, compiled, wazero.NewModuleConfig().WithName("").WithStartFunctions())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(in.close)
		in.mod, in.memory = mod, mod.Memory()
		in.fuel = mod.ExportedGlobal(fuel.GlobalName).(api.MutableGlobal)
		in.buffer, in.process = mod.ExportedFunction(abi.ExportBuffer), mod.ExportedFunction(abi.ExportProcess)
		in.fuel.Set(uint64(in.limits.FuelInit))
		if f := mod.ExportedFunction(abi.ExportInitialize); f != nil {
			if err := f.CallWithStack(&in.ctx, in.stack[:]); err != nil {
				t.Fatal(err)
			}
		}
		return &vectorGuest{t: t, in: in}
	}
}

type vectorGuest struct {
	t  testing.TB
	in *instance
}

func (g *vectorGuest) Init(frame []byte) ([]byte, bool) {
	return g.call(g.in.mod.ExportedFunction(abi.ExportInit), frame, g.in.limits.FuelInit)
}

func (g *vectorGuest) Process(frame []byte) ([]byte, bool) {
	return g.call(g.in.process, frame, g.in.limits.FuelPerCall)
}

func (g *vectorGuest) call(f api.Function, frame []byte, fuel int64) ([]byte, bool) {
	g.t.Helper()
	g.in.fuel.Set(uint64(fuel))
	out, err := g.in.exchange(f, frame, fuel)
	if err == nil {
		return out, false
	}
	if stated, ok := err.(pluginError); ok {
		return []byte(stated), true
	}
	g.t.Fatalf("the instance is lost: %v", err)
	return nil, false
}
