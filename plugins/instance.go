package plugins

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"time"
	"unsafe"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins/abi"
	"github.com/dunlin-iot/dunlin/plugins/fuel"
)

// errExit is what proc_exit panics with.
var errExit = errors.New("exit")

// callContext is the context that wazero hands to host functions: it says which instance calls. There is nothing to
// cancel, fuel bounds every call.
type callContext struct{ in *instance }

func (*callContext) Deadline() (time.Time, bool) { return time.Time{}, false }
func (*callContext) Done() <-chan struct{}       { return nil }
func (*callContext) Err() error                  { return nil }
func (*callContext) Value(any) any               { return nil }

// printedMax is how much of what a guest prints in one call is kept, in bytes.
const printedMax = 4 << 10

// instance is a live module. It serves one crossing at a time and knows nothing of devices; it is dropped when it traps.
type instance struct {
	mod     api.Module
	memory  api.Memory
	fuel    api.MutableGlobal
	buffer  api.Function
	process api.Function
	ctx     callContext
	stack   [2]uint64
	limits  *Limits
	meter   meter
	bytes   int64 // of its memory, as the host counts them

	ptr, size uint32 // the guest's buffer
	names     names

	wall, mono int64  // nanoseconds, for WASI
	random     uint64 // for WASI
	printed    []byte // in this call
	exited     bool
	exitCode   uint32
}

// failure is why a call came to nothing. It is the Outcome.Failure of a device, and no error of the host.
type failure string

func (f failure) Error() string { return string(f) }

// refusal reports whether the guest started and has an opinion on its configuration.
func (f failure) refusal() bool {
	return strings.HasPrefix(string(f), "configuration: ") || strings.HasPrefix(string(f), abi.ExportInit+": "+pluginErrorPrefix)
}

// start instantiates a compiled module, runs its start functions and hands it the configuration. A failure says what the
// guest did; any other error is the host's.
func (h *Host) start(m *module, config []byte, now dunlin.Time) (*instance, error) {
	in, err := h.instantiate(m.compiled, now)
	if err != nil {
		return nil, err
	}
	if err := in.configure(config); err != nil {
		in.close()
		return nil, err
	}
	return in, nil
}

// yield lets other goroutines run while an instance starts.
func yield(time.Duration) { runtime.Gosched() }

// instantiate makes an instance and runs its start functions; the time to start has begun.
func (h *Host) instantiate(m wazero.CompiledModule, now dunlin.Time) (*instance, error) {
	in := &instance{limits: &h.cfg.Limits, random: 0x64756e6c696e, meter: meter{clock: h.clock, pause: yield}}
	in.ctx.in = in
	in.setClock(now)
	// Anonymous, so that a module can have many instances; start functions are called below, with fuel.
	mod, err := h.rt.InstantiateModule(&in.ctx, m, wazero.NewModuleConfig().WithName("").WithStartFunctions())
	if err != nil {
		return nil, failure("instantiate: " + in.trapReason(err))
	}
	in.mod, in.memory = mod, mod.Memory()
	in.fuel = mod.ExportedGlobal(fuel.GlobalName).(api.MutableGlobal)
	in.buffer, in.process = mod.ExportedFunction(abi.ExportBuffer), mod.ExportedFunction(abi.ExportProcess)
	in.fuel.Set(uint64(in.meter.begin(in.limits.StartTime, in.limits.FuelInit, true)))
	in.stack[0] = h.refillRef
	for _, f := range [...]struct{ name, what string }{
		{fuel.ArmName, fuel.ArmName}, {fuel.StartName, "the module's start function"}, {abi.ExportInitialize, abi.ExportInitialize},
	} {
		fn := mod.ExportedFunction(f.name)
		if fn == nil {
			continue
		}
		if err := fn.CallWithStack(&in.ctx, in.stack[:]); err != nil {
			defer in.close()
			return nil, failure(f.what + ": " + in.reason(err))
		}
	}
	return in, nil
}

func (in *instance) configure(config []byte) error {
	if len(bytes.TrimSpace(config)) == 0 {
		config = []byte("{}")
	}
	frame := abi.AppendText(nil, abi.KindConfig, 0, config)
	out, err := in.exchange(in.mod.ExportedFunction(abi.ExportInit), frame)
	if err != nil {
		return failure(abi.ExportInit + ": " + err.Error())
	}
	r := abi.NewReader(out)
	for {
		kind, _, rec, err := r.Next()
		if err != nil {
			return failure(abi.ExportInit + ": " + badFrame(&r, "no record"))
		}
		if rec == nil {
			return nil
		}
		switch kind {
		case abi.KindError:
			return failure("configuration: " + in.text(abi.Body(rec)))
		case abi.KindLog:
			in.print(abi.Body(rec))
			in.print([]byte{'\n'})
		}
	}
}

// call hands a frame to dunlin_process and returns the answer, which is the guest's memory: valid until the next call.
// timed says to measure the time even if it is short. The error is a failure.
func (in *instance) call(frame []byte, now dunlin.Time, timed bool) (out []byte, burnt int64, used time.Duration, err error) {
	in.setClock(now)
	in.fuel.Set(uint64(in.meter.begin(in.limits.CallTime, in.limits.FuelPerCall, timed)))
	out, err = in.exchange(in.process, frame)
	burnt, used = in.meter.end(int64(in.fuel.Get()))
	return out, burnt, used, err
}

// exchange writes a frame to the guest, calls f and finds the answer.
func (in *instance) exchange(f api.Function, frame []byte) ([]byte, error) {
	in.printed = in.printed[:0]
	if uint32(len(frame)) > in.size {
		if err := in.growBuffer(len(frame)); err != nil {
			return nil, err
		}
	}
	if !in.memory.Write(in.ptr, frame) {
		return nil, failure(fmt.Sprintf("bad frame: %s gave a buffer outside the memory", abi.ExportBuffer))
	}
	in.stack[0] = uint64(len(frame))
	if err := f.CallWithStack(&in.ctx, in.stack[:]); err != nil {
		return nil, failure(in.reason(err))
	}
	result := in.stack[0]
	ptr, size := uint32(result>>32), uint32(result)
	if result&abi.ResultError != 0 {
		in.names.reset() // who knows what it has read
		text, ok := in.memory.Read(ptr&(1<<31-1), min(size, uint32(in.limits.TextBytes)))
		if !ok {
			return nil, failure("bad frame: the text of an error is outside the memory")
		}
		return nil, pluginError(in.text(text))
	}
	if uint64(size) > uint64(in.limits.OutputBytes) {
		return nil, failure(fmt.Sprintf("output too large: %d bytes, at most %d are allowed", size, in.limits.OutputBytes))
	}
	out, ok := in.memory.Read(ptr, size)
	if !ok {
		return nil, failure(fmt.Sprintf("bad frame: the answer at %d with %d bytes is outside the memory of %d bytes",
			ptr, size, in.memory.Size()))
	}
	return out, nil
}

// pluginError is a failure that the guest stated itself: the instance lives on.
type pluginError string

func (e pluginError) Error() string { return pluginErrorPrefix + string(e) }

// pluginErrorPrefix begins what a plugin says itself, also about a device (see decode).
const pluginErrorPrefix = "plugin: "

// growBuffer asks the guest for a buffer with some room to grow.
func (in *instance) growBuffer(n int) error {
	size := uint32(4096)
	for size < uint32(n) {
		size *= 2
	}
	in.stack[0] = uint64(size)
	if err := in.buffer.CallWithStack(&in.ctx, in.stack[:]); err != nil {
		return failure(abi.ExportBuffer + ": " + in.reason(err))
	}
	in.ptr, in.size = uint32(in.stack[0]), size
	if uint64(in.ptr)+uint64(size) > uint64(in.memory.Size()) {
		return failure(fmt.Sprintf("bad frame: %s(%d) = %d, but the memory has %d bytes",
			abi.ExportBuffer, size, in.ptr, in.memory.Size()))
	}
	return nil
}

func (in *instance) close() {
	// An error would be of a close hook; there is none.
	_ = in.mod.Close(&in.ctx)
}

func (in *instance) mem() api.Memory {
	if in.memory == nil { // in a start function, before Instantiate returned
		return noMemory{}
	}
	return in.memory
}

func (in *instance) setClock(now dunlin.Time) {
	in.wall = max(int64(now), 1) * 1000 // Go's run-time library takes a clock at zero for broken
	in.mono = max(in.mono, in.wall)
}

// burn charges a host call for work by size.
func (in *instance) burn(units int64) {
	if in.fuel != nil {
		in.fuel.Set(in.fuel.Get() - uint64(units))
	}
}

func (in *instance) print(b []byte) {
	if room := printedMax - len(in.printed); room > 0 {
		in.printed = append(in.printed, b[:min(len(b), room)]...)
	}
}

// reason turns wazero's error into a sentence.
func (in *instance) reason(err error) string {
	if in.meter.over {
		return in.meter.exhausted()
	}
	return in.trapReason(err)
}

func (in *instance) trapReason(err error) string {
	if in.exited {
		s := fmt.Sprintf("trap: exit status %d", in.exitCode)
		if p := in.panicLine(); p != "" {
			s += ": " + p
		}
		return s
	}
	// "wasm error: unreachable\nwasm stack trace:\n\t.name(i32)\n\t…", or "stack overflow …".
	msg, trace, _ := strings.Cut(err.Error(), "\n")
	if i := strings.LastIndex(msg, "wasm error: "); i >= 0 {
		msg = msg[i+len("wasm error: "):]
	}
	if i := strings.Index(msg, " (recovered by wazero)"); i >= 0 {
		msg = msg[:i]
	}
	s := "trap: " + msg
	if lines := strings.Split(trace, "\n\t"); len(lines) > 1 {
		if name, _, _ := strings.Cut(strings.TrimPrefix(lines[1], "."), "("); name != "" {
			s += " in " + name
		}
	}
	if p := in.panicLine(); p != "" {
		s += ": " + p
	}
	return in.text([]byte(s))
}

// panicLine finds in what was printed the line that says why: a panic's, or the last.
func (in *instance) panicLine() string {
	var last []byte
	for line := range bytes.Lines(in.printed) {
		if line = bytes.TrimSpace(line); len(line) > 0 {
			last = line
		}
		if bytes.HasPrefix(line, []byte("panic: ")) || bytes.HasPrefix(line, []byte("fatal error: ")) {
			break
		}
	}
	return in.text(last)
}

// text makes a guest's bytes fit for people: bounded, UTF-8.
func (in *instance) text(b []byte) string { return cleanText(b, in.limits.TextBytes) }

func cleanText(b []byte, most int) string {
	return strings.ToValidUTF8(string(b[:min(len(b), most)]), "\uFFFD")
}

func badFrame(r *abi.Reader, what string) string {
	return fmt.Sprintf("bad frame: at byte %d: %s", r.Offset(), what)
}

// names are the ids that an instance was told. A direct-mapped cache by the string's address answers for the few names
// that a batch repeats: the decoder interns them.
type names struct {
	ids    map[string]uint32
	cache  [64]nameID
	forget bool // the guest has to be told that all ids are void
}

type nameID struct {
	name string
	id   uint32
}

// namesMax bounds an instance's names; when there are more, all are forgotten and told anew as they come.
const namesMax = 4096

func (n *names) lookup(s string) (uint32, bool) {
	if s == "" {
		return 0, true
	}
	c := &n.cache[spread(uintptr(unsafe.Pointer(unsafe.StringData(s))))]
	if c.name == s {
		return c.id, true
	}
	id, ok := n.ids[s]
	if ok {
		*c = nameID{s, id}
	}
	return id, ok
}

// define gives s the next id and appends the record that tells the guest.
func (n *names) define(frame []byte, s string) []byte {
	if len(n.ids) >= namesMax {
		n.reset()
	}
	if n.forget {
		n.forget = false
		frame = abi.AppendForget(frame)
	}
	if n.ids == nil {
		n.ids = make(map[string]uint32)
	}
	s = strings.Clone(s)
	id := uint32(len(n.ids) + 1)
	n.ids[s] = id
	return abi.AppendName(frame, id, s)
}

func (n *names) reset() {
	clear(n.ids)
	n.cache = [64]nameID{}
	n.forget = true
}

// noMemory stands for the memory of an instance that isn't complete yet.
type noMemory struct{ api.Memory }

func (noMemory) Read(uint32, uint32) ([]byte, bool) { return nil, false }
func (noMemory) Write(uint32, []byte) bool          { return false }
func (noMemory) WriteUint32Le(uint32, uint32) bool  { return false }
func (noMemory) WriteUint64Le(uint32, uint64) bool  { return false }

var _ context.Context = (*callContext)(nil)
