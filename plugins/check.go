package plugins

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strings"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins/abi"
	"github.com/dunlin-iot/dunlin/plugins/fuel"
)

// Report is what Check found out about a module.
type Report struct {
	Hash         dunlin.ModuleHash `json:"hash"`
	Bytes        int64             `json:"bytes"`
	Language     string            `json:"language,omitempty"`
	Functions    int               `json:"functions"`
	Imports      []string          `json:"imports,omitempty"` // "module.name"
	MemoryBytes  int64             `json:"memory_bytes"`      // of an instance, after start
	CompileMS    float64           `json:"compile_ms"`        // of the rewritten module; little if it is in the disk cache
	StartMS      float64           `json:"start_ms"`          // of one instance
	FuelInit     int64             `json:"fuel_init"`         // to start
	FuelPerInput int64             `json:"fuel_per_input"`    // of the made-up batch
	NanosPerIn   int64             `json:"nanos_per_input"`   // of the same
	// What a unit of fuel takes here, and by what factor that is more than in a plain loop on this machine: fuel is charged for
	// what compilers make of C, so the factor says how the module's language fares.
	NanosPerFuel float64 `json:"nanos_per_fuel,omitempty"`
	FuelFactor   float64 `json:"fuel_factor,omitempty"`
	// InputsPerCall is how many such inputs go into one call: they take half of CallMS, the processor time after which a call
	// is stopped; FuelPerCall is about what the module burns in that time.
	InputsPerCall int64   `json:"inputs_per_call,omitempty"`
	CallMS        float64 `json:"call_ms"`
	FuelPerCall   int64   `json:"fuel_per_call,omitempty"`
	Note          string  `json:"note,omitempty"` // such as: needs a configuration
}

// The made-up batch of a dry run.
const (
	dryDevices = 25
	dryRounds  = 8
)

// Check says whether a module can be a plugin here, and what it costs. It parses, rewrites and compiles the module and
// runs it on a made-up batch. The error is a *dunlin.ModuleError that says what was found and what to do, or ctx's, or
// ErrUnavailable when the host is closing. The module is not installed by it.
func (h *Host) Check(ctx context.Context, wasm []byte) (*Report, error) {
	m, err := h.parse(wasm)
	if err != nil {
		return nil, err
	}
	rep := &Report{Hash: sha256.Sum256(wasm), Bytes: int64(len(wasm)), Language: m.Language, Functions: m.Functions()}
	for _, im := range m.Imports {
		rep.Imports = append(rep.Imports, im.Module+"."+im.Name)
	}
	t := h.cfg.Now()
	compiled, err := h.compile(ctx, m)
	if err != nil {
		return nil, err
	}
	rep.CompileMS = h.cfg.Now().Sub(t).Seconds() * 1000
	mod := &module{hash: rep.Hash, compiled: compiled, ready: make(chan struct{})}
	close(mod.ready)
	defer h.drop(mod)
	if mod.manifest, _, err = ReadManifest(wasm); err != nil {
		return nil, err
	}
	rep.CallMS = h.cfg.Limits.CallTime.Seconds() * 1000
	leave, err := h.admit()
	if err != nil {
		return nil, err
	}
	defer leave()
	return rep, h.dryRun(rep, mod)
}

// admit waits for the turn of what runs plugins for no domain: uploads and trials share one. Close waits for it.
func (h *Host) admit() (leave func(), err error) {
	t := &turn{flow: h.gate.flow("", "", 0)}
	if err := h.gate.enter(t); err != nil {
		return nil, err
	}
	began := h.clock()
	return func() { h.gate.leave(t, h.clock()-began, 0) }, nil
}

func (h *Host) dryRun(rep *Report, mod *module) error {
	t := h.cfg.Now()
	began := h.clock()
	in, err := h.start(mod, nil, t)
	if err != nil {
		f, ok := errors.AsType[failure](err)
		if !ok {
			return err
		}
		why := string(f)
		if f.refusal() {
			// It started and has an opinion: it only wants a configuration, which comes with the domain.
			rep.Note = "not run: it does not take an empty configuration: " + why
			return nil
		}
		return &dunlin.ModuleError{Check: "dry-run", Detail: "the module does not start: " + why}
	}
	defer in.close()
	rep.StartMS = (h.clock() - began).Seconds() * 1000
	rep.FuelInit, _ = in.meter.end(int64(in.fuel.Get()))
	w := newWorker(&h.cfg.Limits)
	w.serve(&dunlin.Stage{}, mod.manifest)
	works := dryWorks(t)
	inputs, best := 0, math.Inf(1)
	began = h.clock()
	for range dryRounds {
		n := w.encode(in, t, works)
		out, burnt, took, err := in.call(w.frame, t, true)
		best = min(best, float64(took)/float64(max(burnt, 1))) // others on the machine only make it longer
		if err == nil {
			err = w.decode(out, works, t, nil)
		}
		if err != nil {
			return &dunlin.ModuleError{Check: "dry-run", Detail: fmt.Sprintf(
				"on a made-up batch of %d devices the plugin failed with %q; run it on such readings in a test", len(works), err)}
		}
		for _, work := range works {
			if f := work.Outcome.Failure; f != "" {
				return &dunlin.ModuleError{Check: "dry-run", Detail: fmt.Sprintf(
					"on a made-up device with the metrics temp, humidity and door the plugin failed with %q; "+
						"a plugin must take readings that it doesn't know", f)}
			}
			if work.Outcome.State != nil {
				work.State = work.Outcome.State
			}
		}
		inputs += n
		rep.FuelPerInput += burnt
	}
	rep.FuelPerInput /= int64(inputs)
	rep.NanosPerIn = (h.clock() - began).Nanoseconds() / int64(inputs)
	rep.MemoryBytes = int64(in.memory.Size())
	rep.NanosPerFuel, rep.FuelFactor = best, best/h.reference()
	rep.FuelPerCall = min(int64(float64(h.cfg.Limits.CallTime)/best), h.cfg.Limits.FuelPerCall)
	rep.InputsPerCall = max(int64(h.cfg.Limits.CallTime)/2/max(rep.NanosPerIn, 1), 1)
	h.cfg.Log.Info("plugin module checked", slog.String("module", rep.Hash.String()), slog.String("language", rep.Language))
	return nil
}

func dryWorks(now dunlin.Time) []*dunlin.Work {
	works := make([]*dunlin.Work, dryDevices)
	for i := range works {
		works[i] = &dunlin.Work{DeviceKey: dunlin.DeviceKey{Tenant: dunlin.DefaultTenant,
			Device: dunlin.DeviceID(fmt.Sprintf("dry-run-%d", i))}, Seq: 1,
			Inputs: []dunlin.Input{{Kind: dunlin.InputTelemetry, Received: now, Records: []dunlin.Record{
				{Metric: "temp", Unit: "Cel", Kind: dunlin.Number, Num: 4 + float64(i)/10, Time: now},
				{Metric: "humidity", Unit: "%RH", Kind: dunlin.Number, Num: 55, Time: now},
				{Metric: "door", Kind: dunlin.Boolean, Time: now},
			}}}}
	}
	return works
}

// checkModule refuses what can't be a plugin: the wrong imports, exports, memory.
func checkModule(m *fuel.Module, l *Limits) error {
	known := make(map[string]fuel.FuncType)
	for _, f := range wasiFuncs() {
		known[abi.ImportWASI+"."+f.name] = f.signature()
	}
	for _, f := range dunlinFuncs() {
		known[abi.ImportModule+"."+f.name] = f.signature()
	}
	for _, im := range m.Imports {
		name := im.Module + "." + im.Name
		t, ok := known[name]
		if !ok {
			return &dunlin.ModuleError{Check: "imports", Detail: fmt.Sprintf(
				"the module imports %s %s, which the runtime does not offer; allowed are %s.%s and WASI preview 1%s",
				im.Kind, name, abi.ImportModule, abi.ImportLog, importHint(im))}
		}
		if t.String() != im.Type.String() {
			return &dunlin.ModuleError{Check: "imports", Detail: fmt.Sprintf(
				"the module imports %s as %v, it is %v; rebuild with bindings of this ABI", name, im.Type, t)}
		}
	}
	if len(m.Memories) != 1 {
		return &dunlin.ModuleError{Check: "memory", Detail: fmt.Sprintf(
			"the module has %d memories; it must have one of its own", len(m.Memories))}
	}
	if e, ok := m.Export(abi.ExportMemory, fuel.KindMemory); !ok || e.Index != 0 {
		return &dunlin.ModuleError{Check: "memory", Detail: "the module does not export its memory as \"memory\""}
	}
	if need := int64(m.Memories[0].Min) << 16; need > int64(l.MemoryBytes) {
		return &dunlin.ModuleError{Check: "memory", Detail: fmt.Sprintf(
			"the module begins with %d bytes of memory, at most %d are allowed; lower its initial memory", need, l.MemoryBytes)}
	}
	return checkExports(m)
}

func checkExports(m *fuel.Module) error {
	i32, i64 := []fuel.ValueType{fuel.I32}, []fuel.ValueType{fuel.I64}
	for _, want := range []struct {
		name     string
		t        fuel.FuncType
		optional bool
	}{
		{abi.ExportMarker, fuel.FuncType{}, false},
		{abi.ExportBuffer, fuel.FuncType{Params: i32, Results: i32}, false},
		{abi.ExportInit, fuel.FuncType{Params: i32, Results: i64}, false},
		{abi.ExportProcess, fuel.FuncType{Params: i32, Results: i64}, false},
		{abi.ExportInitialize, fuel.FuncType{}, true},
	} {
		e, ok := m.Export(want.name, fuel.KindFunc)
		switch {
		case !ok && want.optional:
		case !ok && want.name == abi.ExportMarker:
			detail := "the module does not export dunlin_abi_v1, so it is no plugin for this runtime; build it with an SDK"
			if _, command := m.Export("_start", fuel.KindFunc); command {
				detail = "the module is a program with _start, not a plugin; build it as a library (Go: -buildmode=c-shared) with an SDK"
			}
			return &dunlin.ModuleError{Check: "abi", Detail: detail}
		case !ok:
			return &dunlin.ModuleError{Check: "exports", Detail: fmt.Sprintf(
				"the module does not export the function %s %v", want.name, want.t)}
		case e.Type.String() != want.t.String():
			return &dunlin.ModuleError{Check: "exports", Detail: fmt.Sprintf(
				"the module exports %s as %v, it must be %v", want.name, e.Type, want.t)}
		}
	}
	return nil
}

// importHint knows where common strangers come from.
func importHint(im fuel.Import) string {
	switch {
	case im.Module == "env" && im.Name == "abort":
		return "; AssemblyScript: build with --use abort=…, as the SDK does"
	case im.Module == "env":
		return "; a function that is declared but not linked comes from env"
	case im.Module == "gojs" || im.Module == "go":
		return "; Go: build with GOOS=wasip1, not js"
	case strings.HasPrefix(im.Module, "wasi:"), im.Module == "wasi_unstable":
		return "; build for WASI preview 1"
	}
	return ""
}

func firstLine(err error) string {
	s, _, _ := strings.Cut(err.Error(), "\n")
	return cleanText([]byte(s), 500)
}
