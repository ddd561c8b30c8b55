package plugins

import (
	"context"
	"encoding/binary"
	"fmt"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/dunlin-iot/dunlin/plugins/abi"
	"github.com/dunlin-iot/dunlin/plugins/fuel"
)

// The part of WASI preview 1 that compilers' run-time libraries need, our own: wazero's copies as many random bytes, walks
// as many vectors and waits for as many events as a guest asks for, without fuel. Here every call is bounded and charged.
// There are no files, arguments or environment; the clock stands at the batch's moment; random numbers are seeded.

// Errors of WASI.
const (
	wasiOK    = 0
	wasiBadF  = 8
	wasiFault = 21
	wasiInval = 28
)

const (
	vectorsMax       = 1024 // of one fd_write
	subscriptionsMax = 64   // of one poll_oneoff
)

// hostCall is one call of a host function: params in, result out.
type hostCall func(in *instance, p []uint64) (errno uint64)

// hostFunc is a host function. Its signature is written i for i32 and I for i64; all but those marked void return an i32.
type hostFunc struct {
	name, params string
	void         bool
	call         hostCall // nil: WASI's "bad file descriptor"
}

func (f *hostFunc) signature() fuel.FuncType {
	var t fuel.FuncType
	for i := range len(f.params) {
		t.Params = append(t.Params, map[byte]fuel.ValueType{'i': fuel.I32, 'I': fuel.I64}[f.params[i]])
	}
	if !f.void {
		t.Results = []fuel.ValueType{fuel.I32}
	}
	return t
}

// wasiFuncs lists all of preview 1: a run-time library may import what it never calls.
func wasiFuncs() []hostFunc {
	return []hostFunc{
		{name: "args_get", params: "ii", call: wasiNothing},
		{name: "args_sizes_get", params: "ii", call: wasiNoSizes},
		{name: "environ_get", params: "ii", call: wasiNothing},
		{name: "environ_sizes_get", params: "ii", call: wasiNoSizes},
		{name: "clock_res_get", params: "ii", call: wasiClockRes},
		{name: "clock_time_get", params: "iIi", call: wasiClockTime},
		{name: "fd_write", params: "iiii", call: wasiWrite},
		{name: "fd_fdstat_get", params: "ii", call: wasiFdstat},
		{name: "poll_oneoff", params: "iiii", call: wasiPoll},
		{name: "proc_exit", params: "i", void: true, call: wasiExit},
		{name: "random_get", params: "ii", call: wasiRandom},
		{name: "sched_yield", params: "", call: wasiNothing},
		{name: "fd_advise", params: "iIIi"}, {name: "fd_allocate", params: "iII"}, {name: "fd_close", params: "i"},
		{name: "fd_datasync", params: "i"}, {name: "fd_fdstat_set_flags", params: "ii"},
		{name: "fd_fdstat_set_rights", params: "iII"}, {name: "fd_filestat_get", params: "ii"},
		{name: "fd_filestat_set_size", params: "iI"}, {name: "fd_filestat_set_times", params: "iIIi"},
		{name: "fd_pread", params: "iiiIi"}, {name: "fd_prestat_get", params: "ii"},
		{name: "fd_prestat_dir_name", params: "iii"}, {name: "fd_pwrite", params: "iiiIi"},
		{name: "fd_read", params: "iiii"}, {name: "fd_readdir", params: "iiiIi"}, {name: "fd_renumber", params: "ii"},
		{name: "fd_seek", params: "iIii"}, {name: "fd_sync", params: "i"}, {name: "fd_tell", params: "ii"},
		{name: "path_create_directory", params: "iii"}, {name: "path_filestat_get", params: "iiiii"},
		{name: "path_filestat_set_times", params: "iiiiIIi"}, {name: "path_link", params: "iiiiiii"},
		{name: "path_open", params: "iiiiiIIii"}, {name: "path_readlink", params: "iiiiii"},
		{name: "path_remove_directory", params: "iii"}, {name: "path_rename", params: "iiiiii"},
		{name: "path_symlink", params: "iiiii"}, {name: "path_unlink_file", params: "iii"},
		{name: "proc_raise", params: "i"}, {name: "sock_accept", params: "iii"}, {name: "sock_recv", params: "iiiiii"},
		{name: "sock_send", params: "iiiii"}, {name: "sock_shutdown", params: "ii"},
	}
}

// dunlinFuncs lists what abi.ImportModule offers.
func dunlinFuncs() []hostFunc {
	return []hostFunc{{name: abi.ImportLog, params: "iii", void: true, call: hostLog}}
}

// instantiateHostModules makes the host functions known to the runtime.
func instantiateHostModules(ctx context.Context, rt wazero.Runtime) error {
	for module, funcs := range map[string][]hostFunc{abi.ImportWASI: wasiFuncs(), abi.ImportModule: dunlinFuncs()} {
		b := rt.NewHostModuleBuilder(module)
		for _, f := range funcs {
			t := f.signature()
			types := func(ts []fuel.ValueType) []api.ValueType {
				vs := make([]api.ValueType, len(ts))
				for i := range ts {
					vs[i] = api.ValueType(ts[i])
				}
				return vs
			}
			b.NewFunctionBuilder().WithGoModuleFunction(goFunc(f), types(t.Params), types(t.Results)).Export(f.name)
		}
		if _, err := b.Instantiate(ctx); err != nil {
			return fmt.Errorf("host functions %s: %w", module, err)
		}
	}
	return nil
}

func goFunc(f hostFunc) api.GoModuleFunc {
	n := len(f.params)
	return func(ctx context.Context, _ api.Module, stack []uint64) {
		in := ctx.(*callContext).in
		errno := uint64(wasiBadF)
		if f.call != nil {
			errno = f.call(in, stack[:n])
		}
		if !f.void {
			stack[0] = errno
		}
	}
}

func wasiNothing(*instance, []uint64) uint64 { return wasiOK }

// wasiNoSizes answers: none, of no bytes.
func wasiNoSizes(in *instance, p []uint64) uint64 {
	if !in.mem().WriteUint32Le(uint32(p[0]), 0) || !in.mem().WriteUint32Le(uint32(p[1]), 0) {
		return wasiFault
	}
	return wasiOK
}

func wasiClockRes(in *instance, p []uint64) uint64 {
	if !in.mem().WriteUint64Le(uint32(p[1]), 1000) {
		return wasiFault
	}
	return wasiOK
}

// wasiClockTime tells the batch's moment. The monotonic clock moves on by a nanosecond a call: Go's scheduler divides by
// differences.
func wasiClockTime(in *instance, p []uint64) uint64 {
	t := in.wall
	if uint32(p[0]) != 0 {
		in.mono++
		t = in.mono
	}
	if !in.mem().WriteUint64Le(uint32(p[2]), uint64(t)) {
		return wasiFault
	}
	return wasiOK
}

// wasiWrite keeps what goes to the standard streams: log lines, and a panic's text.
func wasiWrite(in *instance, p []uint64) uint64 {
	fd, vecs, n, out := uint32(p[0]), uint32(p[1]), uint32(p[2]), uint32(p[3])
	if fd != 1 && fd != 2 {
		return wasiBadF
	}
	if n > vectorsMax {
		return wasiInval
	}
	total := uint32(0)
	for i := range n {
		v, ok := in.mem().Read(vecs+8*i, 8)
		if !ok {
			return wasiFault
		}
		b, ok := in.mem().Read(binary.LittleEndian.Uint32(v), binary.LittleEndian.Uint32(v[4:]))
		if !ok {
			return wasiFault
		}
		total += uint32(len(b))
		in.print(b)
	}
	in.burn(int64(n)*8 + int64(total)/8)
	if !in.mem().WriteUint32Le(out, total) {
		return wasiFault
	}
	return wasiOK
}

// wasiFdstat says that the standard streams are character devices.
func wasiFdstat(in *instance, p []uint64) uint64 {
	if uint32(p[0]) > 2 {
		return wasiBadF
	}
	stat := [24]byte{0: 2}
	if !in.mem().Write(uint32(p[1]), stat[:]) {
		return wasiFault
	}
	return wasiOK
}

// wasiPoll lets time pass: clocks are due at once, files never.
func wasiPoll(in *instance, p []uint64) uint64 {
	subs, events, n, out := uint32(p[0]), uint32(p[1]), uint32(p[2]), uint32(p[3])
	if n == 0 || n > subscriptionsMax {
		return wasiInval
	}
	for i := range n {
		s, ok := in.mem().Read(subs+48*i, 48)
		if !ok {
			return wasiFault
		}
		var e [32]byte
		copy(e[:8], s) // the caller's tag
		e[10] = s[8]   // what kind of event
		if s[8] == 0 {
			timeout := binary.LittleEndian.Uint64(s[24:])
			if absolute := s[40]&1 != 0; absolute && timeout < 1<<62 {
				in.mono = max(in.mono, int64(timeout))
			} else if !absolute && timeout < 1<<53 {
				in.mono += int64(timeout)
			}
		} else {
			binary.LittleEndian.PutUint16(e[8:], wasiBadF)
		}
		if !in.mem().Write(events+32*i, e[:]) {
			return wasiFault
		}
	}
	if !in.mem().WriteUint32Le(out, n) {
		return wasiFault
	}
	return wasiOK
}

// wasiExit ends the call: an instance that exited is of no more use.
func wasiExit(in *instance, p []uint64) uint64 {
	in.exited, in.exitCode = true, uint32(p[0])
	panic(errExit)
}

func wasiRandom(in *instance, p []uint64) uint64 {
	b, ok := in.mem().Read(uint32(p[0]), uint32(p[1]))
	if !ok {
		return wasiFault
	}
	if in.burn(int64(len(b))); int64(in.fuel.Get()) < 0 {
		counter := in.meter.refill(int64(in.fuel.Get()))
		if in.fuel.Set(uint64(counter)); counter < 0 { // don't do the work that can't be paid for
			return wasiInval
		}
	}
	for len(b) > 0 { // splitmix64
		in.random += 0x9e3779b97f4a7c15
		z := in.random
		z = (z ^ z>>30) * 0xbf58476d1ce4e5b9
		z = (z ^ z>>27) * 0x94d049bb133111eb
		var word [8]byte
		binary.LittleEndian.PutUint64(word[:], z^z>>31)
		b = b[copy(b, word[:]):]
	}
	return wasiOK
}

// hostLog takes a line for the node's log.
func hostLog(in *instance, p []uint64) uint64 {
	b, ok := in.mem().Read(uint32(p[1]), uint32(p[2]))
	if !ok {
		return wasiFault
	}
	in.burn(int64(len(b)) / 8)
	in.print(b)
	in.print([]byte{'\n'})
	return wasiOK
}
