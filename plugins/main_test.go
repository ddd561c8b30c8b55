package plugins_test

import (
	"crypto/sha256"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins"
)

// cacheDir is shared by all tests of a run: compiling a Go module takes a second.
var cacheDir = sync.OnceValue(func() string {
	dir, err := os.MkdirTemp("", "dunlin-plugins")
	if err != nil {
		panic(err)
	}
	return dir
})

func TestMain(m *testing.M) {
	code := m.Run()
	os.RemoveAll(cacheDir())
	os.Exit(code)
}

// coldChain builds the example plugin from source.
var coldChain = sync.OnceValues(func() ([]byte, error) {
	out := filepath.Join(cacheDir(), "cold-chain.wasm")
	if err := buildGo("../sdk/go/examples/cold-chain", out); err != nil {
		return nil, err
	}
	return os.ReadFile(out)
})

func buildColdChain(t testing.TB) []byte {
	t.Helper()
	b, err := coldChain()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// bench is a host with modules, for tests.
type bench struct {
	*plugins.Host
	modules map[dunlin.ModuleHash][]byte
}

func newBench(t testing.TB, cfg plugins.Config) *bench {
	t.Helper()
	b := &bench{modules: make(map[dunlin.ModuleHash][]byte)}
	cfg.CacheDir = cacheDir()
	cfg.Module = func(h dunlin.ModuleHash) ([]byte, error) {
		if m, ok := b.modules[h]; ok {
			return m, nil
		}
		return nil, dunlin.ErrNotFound
	}
	host, err := plugins.Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := host.Close(); err != nil {
			t.Error(err)
		}
	})
	b.Host = host
	return b
}

// stage returns a stage that runs the module.
func (b *bench) stage(wasm []byte, config string) *dunlin.Stage {
	h := dunlin.ModuleHash(sha256.Sum256(wasm))
	b.modules[h] = wasm
	return &dunlin.Stage{Plugin: "test", Hash: h, Config: []byte(config)}
}

const t0 = dunlin.Time(1_767_225_600_000_000)

// telemetry returns a device's work with one report.
func telemetry(device string, seq uint64, state []byte, at dunlin.Time, recs ...dunlin.Record) *dunlin.Work {
	for i := range recs {
		if recs[i].Time == 0 {
			recs[i].Time = at
		}
		if recs[i].Kind == 0 {
			recs[i].Kind = dunlin.Number
		}
	}
	return &dunlin.Work{DeviceKey: dunlin.DeviceKey{Tenant: dunlin.DefaultTenant, Device: dunlin.DeviceID(device)},
		Seq: seq, State: state, Inputs: []dunlin.Input{{Kind: dunlin.InputTelemetry, Received: at, Records: recs}}}
}

func process(t testing.TB, b *bench, st *dunlin.Stage, now dunlin.Time, works ...*dunlin.Work) {
	t.Helper()
	if err := b.Process("cold", st, 0, now, works); err != nil {
		t.Fatal(err)
	}
}
