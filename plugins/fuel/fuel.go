// Package fuel rewrites a WebAssembly module so that it pays for what it executes: a counter is charged where functions
// and loops begin, and when it is below zero the guest asks the host for more, or traps. It parses the binary itself and
// refuses what it does not know.
//
// wazero has no fuel, and its native code cannot be preempted: a guest that loops stops the garbage collector, and with
// it the whole process. Cancelling by context costs 3 to 12 times the guest's speed; this costs some ten percent.
//
// # How the charge works
//
// The rewritten module has one more mutable i64 global, exported as GlobalName, that the host fills before each call.
//
//	function entry, loop header:   fuel -= cost of the region; if fuel < 0 { refill() }
//	leaf function entry,
//	behind a br_table's block:     fuel -= cost of the region
//	memory.fill, table.copy, …:    fuel -= size/8; if fuel < 0 { refill() }
//
// A region is the code that runs at most once per pass over its charge: a function's body without its loops, a loop's
// body without inner loops. Where a block is the target of a br_table, what follows it is a region of its own; otherwise
// switches, and with them everything that the Go compiler makes of a function (one loop around one br_table), would pay
// for all their arms at each step. Every cycle of control flow passes a loop header or the entry of a function that
// calls, so every cycle is checked, and between two checks the counter can only sink by the size of one function.
//
// A jump of the Go compiler goes by way of that loop's header and br_table, with the arm's number in a local. Where it leads
// forward, the rewriter lets it branch there (see dispatch): no cycle is without a check for that, since back lead headers only.
// Such a header also pays for the function's entry, if it follows that in any case.
//
// # How more fuel comes
//
// refill is a function behind the module's own. It calls the first element of a table behind the module's own, which is a
// function of the host, and traps if the counter is still below zero, or if there is nothing in the table:
//
//	func refill() { table[0](); if fuel < 0 { unreachable } }
//
// The host puts its function there by calling ArmName with a reference to it. An import would be simpler, but it would move the
// numbers of all functions. So that nothing runs before that, the start function is taken off the module and exported as
// StartName. Functions, types and tables of the rewriter have numbers that the module could name: whatever names a number beyond
// the module's own is refused, as it is invalid.
//
// One unit is about one simple instruction: 0.08 to 0.36 ns in whatever a loop is made of, more where a guest takes pains to miss
// every cache or touches memory for the first time.
//
// Part of the runtime; no compatibility promise before v1.
package fuel

import (
	"errors"
	"fmt"
)

// Exports that the host finds in a rewritten module. A module that exports one of them already is refused.
const (
	GlobalName = "dunlin_fuel"       // the counter
	ArmName    = "dunlin_fuel_arm"   // a function (funcref) → (): takes what is called when the counter is below zero
	StartName  = "dunlin_fuel_start" // the module's start function, if it has one: nothing runs before the host calls it
)

// Bounds on a module, so that neither parsing nor compiling nor instantiating it can be made expensive: 14 KB of nested
// loops over a thousand locals kept wazero's compiler busy for minutes. What compilers make stays far below them; a big
// function of a Go program has a thousand blocks and a dozen locals.
const (
	ItemsMax         = 1_000_000 // entries of a section
	TypesMax         = 1_000     // function types; the compiler looks at all of them for each function
	TypeArityMax     = 1_000     // parameters, or results, of one function type
	FunctionsMax     = 50_000    //
	TablesMax        = 16        //
	TableElementsMax = 1 << 20   // of all tables, at any time

	// Of one function:
	BodyBytesMax  = 1 << 20
	LocalsMax     = 10_000 // wazero would allocate 4 billion
	BlocksMax     = 10_000 // blocks, ifs and loops
	DepthMax      = 8_000  // of nesting
	LoopsMax      = 2_000
	LoopDepthMax  = 64
	BranchesMax   = 50_000    // entries of br_table
	BlockWorkMax  = 2_000_000 // locals × (blocks + 8 × loops)
	blockWorkLoop = 8
)

// ErrModule is matched by every error of this package.
var ErrModule = errors.New("not a module this runtime takes")

// errAt is the error of a malformed or refused byte, with its offset in the module.
func errAt(off int, format string, args ...any) error {
	return fmt.Errorf("%w: at byte %d: %s", ErrModule, off, fmt.Sprintf(format, args...))
}

// ValueType is a WebAssembly value type's byte.
type ValueType byte

// The value types of core 2.0.
const (
	I32       ValueType = 0x7f
	I64       ValueType = 0x7e
	F32       ValueType = 0x7d
	F64       ValueType = 0x7c
	V128      ValueType = 0x7b
	FuncRef   ValueType = 0x70
	ExternRef ValueType = 0x6f
)

func (t ValueType) String() string {
	switch t {
	case I32:
		return "i32"
	case I64:
		return "i64"
	case F32:
		return "f32"
	case F64:
		return "f64"
	case V128:
		return "v128"
	case FuncRef:
		return "funcref"
	case ExternRef:
		return "externref"
	}
	return fmt.Sprintf("type(%#x)", byte(t))
}

// FuncType is a function's signature.
type FuncType struct {
	Params  []ValueType
	Results []ValueType
}

// String renders the signature as (i32, i32) → i64.
func (t FuncType) String() string {
	s := "("
	for i, p := range t.Params {
		if i > 0 {
			s += ", "
		}
		s += p.String()
	}
	s += ")"
	for i, r := range t.Results {
		if i == 0 {
			s += " → "
		} else {
			s += ", "
		}
		s += r.String()
	}
	return s
}

// Kind is what an import or export is.
type Kind byte

// The kinds of import and export.
const (
	KindFunc   Kind = 0
	KindTable  Kind = 1
	KindMemory Kind = 2
	KindGlobal Kind = 3
)

func (k Kind) String() string {
	switch k {
	case KindFunc:
		return "function"
	case KindTable:
		return "table"
	case KindMemory:
		return "memory"
	case KindGlobal:
		return "global"
	}
	return fmt.Sprintf("kind(%d)", byte(k))
}

// Import is one import of a module. Type is set for functions only.
type Import struct {
	Module, Name string
	Kind         Kind
	Type         FuncType
}

// Export is one export of a module. Type is set for functions only.
type Export struct {
	Name  string
	Kind  Kind
	Index uint32
	Type  FuncType
}

// Limits is the size range of a memory (in pages) or a table (in elements).
type Limits struct {
	Min    uint32
	Max    uint32
	HasMax bool
}

// Module is what Parse found.
type Module struct {
	Types    []FuncType
	Imports  []Import
	Exports  []Export
	Memories []Limits
	HasStart bool
	Language string // of the producers section, such as "Go go1.26"; "" if it doesn't say

	raw       []byte
	sections  []section
	funcTypes []uint32 // type of each function, imported ones first
	imported  int      // functions imported
	tables    []table
	globals   int
	start     uint32 // the start function, if HasStart
}

type section struct {
	id       byte
	off, end int // of the content, in raw
}

type table struct {
	elem ValueType
	Limits
}

// Export returns the export of that name and kind.
func (m *Module) Export(name string, k Kind) (Export, bool) {
	for _, e := range m.Exports {
		if e.Name == name && e.Kind == k {
			return e, true
		}
	}
	return Export{}, false
}

// Functions returns how many functions the module defines.
func (m *Module) Functions() int { return len(m.funcTypes) - m.imported }
