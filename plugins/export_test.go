package plugins

import (
	"testing"

	"github.com/tetratelabs/wazero/api"

	"github.com/dunlin-iot/dunlin/plugins/abi"
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
		in, err := h.instantiate(compiled, vectors.Base)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(in.close)
		return &vectorGuest{t: t, in: in}
	}
}

type vectorGuest struct {
	t  testing.TB
	in *instance
}

func (g *vectorGuest) Init(frame []byte) ([]byte, bool) {
	return g.call(g.in.mod.ExportedFunction(abi.ExportInit), frame)
}

func (g *vectorGuest) Process(frame []byte) ([]byte, bool) { return g.call(g.in.process, frame) }

func (g *vectorGuest) call(f api.Function, frame []byte) ([]byte, bool) {
	g.t.Helper()
	l := g.in.limits
	g.in.fuel.Set(uint64(g.in.meter.begin(l.StartTime, l.FuelInit, false)))
	out, err := g.in.exchange(f, frame)
	if err == nil {
		return out, false
	}
	if stated, ok := err.(pluginError); ok {
		return []byte(stated), true
	}
	g.t.Fatalf("the instance is lost: %v", err)
	return nil, false
}
