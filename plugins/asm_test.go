package plugins_test

import (
	"encoding/binary"
	"math"

	"github.com/dunlin-iot/dunlin/plugins/abi"
)

// A tiny assembler: guests that no compiler would make.

func uleb(v uint64) []byte { return binary.AppendUvarint(nil, v) }

func sleb(v int64) []byte {
	var b []byte
	for {
		c := byte(v & 0x7f)
		v >>= 7
		if v == 0 && c&0x40 == 0 || v == -1 && c&0x40 != 0 {
			return append(b, c)
		}
		b = append(b, c|0x80)
	}
}

// code joins instructions: bytes, ints (one byte each), or pieces.
func code(parts ...any) []byte {
	var b []byte
	for _, p := range parts {
		switch p := p.(type) {
		case int:
			b = append(b, byte(p))
		case []byte:
			b = append(b, p...)
		}
	}
	return b
}

func i32c(v int32) []byte { return append([]byte{0x41}, sleb(int64(v))...) }
func i64c(v int64) []byte { return append([]byte{0x42}, sleb(v)...) }
func f64c(v float64) []byte {
	return binary.LittleEndian.AppendUint64([]byte{0x44}, math.Float64bits(v))
}
func get(l int) []byte           { return append([]byte{0x20}, uleb(uint64(l))...) }
func set(l int) []byte           { return append([]byte{0x21}, uleb(uint64(l))...) }
func mem(op int, off int) []byte { return append([]byte{byte(op), 0}, uleb(uint64(off))...) }
func call(f int) []byte          { return append([]byte{0x10}, uleb(uint64(f))...) }

const (
	unreachable = 0x00
	block       = 0x02
	loop        = 0x03
	ifop        = 0x04
	end         = 0x0b
	br          = 0x0c
	brIf        = 0x0d
	returnOp    = 0x0f
	drop        = 0x1a
	void        = 0x40

	i32, i64 = 0x7f, 0x7e
)

// fn is a function: its type, its locals (one group each) and its code without the last end.
type fn struct {
	params, results []byte
	locals          [][2]int // count, type
	body            []byte
	export          string
}

type imp struct {
	module, name    string
	params, results []byte
}

// wasm is a module in the making. Functions count on from the imports.
type wasm struct {
	imports []imp
	funcs   []fn
	memory  []byte // limits; nil: one page
	noMem   bool   // no memory at all
	table   []byte // element type and limits
	start   int    // function; −1: none
	data    []byte // at address dataAt
	custom  []byte
}

const (
	dataAt = 32 << 10
	bufAt  = 64 << 10
	outAt  = 1 << 20 // the answer
)

func vec(items ...[]byte) []byte {
	b := uleb(uint64(len(items)))
	for _, i := range items {
		b = append(b, i...)
	}
	return b
}

func str(s string) []byte { return append(uleb(uint64(len(s))), s...) }

func section(id byte, content []byte) []byte {
	return append(append([]byte{id}, uleb(uint64(len(content)))...), content...)
}

func (m *wasm) build() []byte {
	var types, imports, funcs, exports, bodies [][]byte
	typ := func(params, results []byte) []byte {
		types = append(types, code(0x60, uleb(uint64(len(params))), params, uleb(uint64(len(results))), results))
		return uleb(uint64(len(types) - 1))
	}
	for _, im := range m.imports {
		imports = append(imports, code(str(im.module), str(im.name), 0, typ(im.params, im.results)))
	}
	for i, f := range m.funcs {
		funcs = append(funcs, typ(f.params, f.results))
		if f.export != "" {
			exports = append(exports, code(str(f.export), 0, uleb(uint64(len(m.imports)+i))))
		}
		var locals [][]byte
		for _, l := range f.locals {
			locals = append(locals, code(uleb(uint64(l[0])), l[1]))
		}
		body := code(vec(locals...), f.body, end)
		bodies = append(bodies, append(uleb(uint64(len(body))), body...))
	}
	b := []byte("\x00asm\x01\x00\x00\x00")
	b = append(b, section(1, vec(types...))...)
	if len(imports) > 0 {
		b = append(b, section(2, vec(imports...))...)
	}
	b = append(b, section(3, vec(funcs...))...)
	if m.table != nil {
		b = append(b, section(4, vec(m.table))...)
	}
	if !m.noMem {
		limits := m.memory
		if limits == nil {
			limits = code(0, uleb(64))
		}
		b = append(b, section(5, vec(limits))...)
		exports = append(exports, code(str("memory"), 2, 0))
	}
	b = append(b, section(7, vec(exports...))...)
	if m.start >= 0 {
		b = append(b, section(8, uleb(uint64(m.start)))...)
	}
	b = append(b, section(10, vec(bodies...))...)
	if m.data != nil {
		b = append(b, section(11, vec(code(0, i32c(dataAt), end, uleb(uint64(len(m.data))), m.data)))...)
	}
	return append(b, m.custom...)
}

// Indexes of a plugin's functions, behind its imports.
const (
	fnMarker = iota
	fnBuffer
	fnInit
	fnProcess
	fnExtra
)

// plugin is a complete plugin by hand. For each device with a report it makes the sum of its readings the state; at a raw
// payload it runs bad, with the record's address in local 1.
func plugin(bad []byte, imports ...imp) *wasm {
	const p, n, r, out, dev, stop = 1, 2, 3, 4, 5, 6 // locals of process; 7 is an f64
	sum := code(
		// n readings at p+24: local 7 is their sum
		get(p), i32c(24), 0x6a, set(r),
		get(p), mem(0x28, 16), set(n),
		f64c(0), set(7),
		block, void, loop, void,
		get(n), 0x45, brIf, 1,
		get(7), get(r), mem(0x2b, 16), 0xa0, set(7),
		get(r), i32c(24), 0x6a, set(r),
		get(n), i32c(1), 0x6b, set(n),
		br, 0, end, end,
		// a KindGroup and a KindState record
		get(out), i64c(12|int64(abi.KindGroup)<<32), mem(0x37, 0),
		get(out), get(dev), 0xad, mem(0x37, 8),
		get(out), i64c(16|int64(abi.KindState)<<32), mem(0x37, 16),
		get(out), get(7), mem(0x39, 24),
		get(out), i32c(32), 0x6a, set(out),
	)
	process := code(
		i32c(bufAt), set(p), get(p), get(0), 0x6a, set(stop), i32c(outAt), set(out), i32c(-1), set(dev),
		block, void, loop, void,
		get(p), get(stop), 0x4f, brIf, 1, // i32.ge_u
		get(p), mem(0x2f, 4), i32c(int32(abi.KindDevice)), 0x46, ifop, void,
		get(dev), i32c(1), 0x6a, set(dev), end,
		get(p), mem(0x2f, 4), i32c(int32(abi.KindTelemetry)), 0x46, ifop, void, sum, end,
		get(p), mem(0x2f, 4), i32c(int32(abi.KindRaw)), 0x46, ifop, void, bad, end,
		get(p), get(p), mem(0x28, 0), i32c(7), 0x6a, i32c(-8), 0x71, 0x6a, set(p),
		br, 0, end, end,
		i64c(outAt<<32), get(out), i32c(outAt), 0x6b, 0xad, 0x84,
	)
	return &wasm{imports: imports, start: -1, funcs: []fn{
		fnMarker:  {export: abi.ExportMarker},
		fnBuffer:  {params: []byte{i32}, results: []byte{i32}, export: abi.ExportBuffer, body: i32c(bufAt)},
		fnInit:    {params: []byte{i32}, results: []byte{i64}, export: abi.ExportInit, body: i64c(0)},
		fnProcess: {params: []byte{i32}, results: []byte{i64}, export: abi.ExportProcess, locals: [][2]int{{6, i32}, {1, 0x7c}, {1, i64}}, body: process},
	}}
}

// answer returns code that ends process with a frame from the module's data.
func answer(frame []byte) []byte {
	return code(i64c(dataAt<<32|int64(len(frame))), returnOp)
}

// emit returns code that answers about the device at hand with n bytes of records from the module's data.
func emit(n int) []byte {
	const out, dev = 4, 5
	return code(
		get(out), i64c(12|int64(abi.KindGroup)<<32), mem(0x37, 0),
		get(out), get(dev), 0xad, mem(0x37, 8),
		get(out), i32c(16), 0x6a, set(out),
		get(out), i32c(dataAt), i32c(int32(n)), 0xfc, 10, 0, 0, // memory.copy
		get(out), i32c(int32(n)), 0x6a, set(out))
}
