package fuel

// Opcodes that the rewriter treats by name; all others are copied with their immediates.
const (
	opUnreachable  = 0x00
	opNop          = 0x01
	opBlock        = 0x02
	opLoop         = 0x03
	opIf           = 0x04
	opElse         = 0x05
	opEnd          = 0x0b
	opBr           = 0x0c
	opBrIf         = 0x0d
	opBrTable      = 0x0e
	opReturn       = 0x0f
	opCall         = 0x10
	opCallIndirect = 0x11
	opDrop         = 0x1a
	opSelect       = 0x1b
	opSelectTyped  = 0x1c
	opLocalGet     = 0x20
	opLocalSet     = 0x21
	opLocalTee     = 0x22
	opGlobalGet    = 0x23
	opGlobalSet    = 0x24
	opTableGet     = 0x25
	opTableSet     = 0x26
	opLoadFirst    = 0x28
	opStoreLast    = 0x3e
	opMemorySize   = 0x3f
	opMemoryGrow   = 0x40
	opI32Const     = 0x41
	opI64Const     = 0x42
	opF32Const     = 0x43
	opF64Const     = 0x44
	opI32LtU       = 0x49
	opI64LtS       = 0x53
	opI64Sub       = 0x7d
	opI64Shl       = 0x86
	opI64ShrU      = 0x88
	opI64ExtendU   = 0xad
	opPlainLast    = 0xc4
	opRefNull      = 0xd0
	opRefIsNull    = 0xd1
	opRefFunc      = 0xd2
	opMisc         = 0xfc
	opVector       = 0xfd
)

// blockVoid is the type of a block that neither takes nor leaves anything.
const blockVoid = 0x40

// Instructions behind opMisc.
const (
	miscMemoryInit = 8
	miscDataDrop   = 9
	miscMemoryCopy = 10
	miscMemoryFill = 11
	miscTableInit  = 12
	miscElemDrop   = 13
	miscTableCopy  = 14
	miscTableGrow  = 15
	miscTableSize  = 16
	miscTableFill  = 17
)

// Costs, in units of one simple instruction, so that a unit takes much the same time in whatever a loop is made of (a test
// of the host measures that: 0.08 to 0.35 ns, unless the guest misses caches). What leaves native code for the host (calls of
// imports, growing, ref.func) costs what that takes.
const (
	costEntry    = 4   // of a function, besides parameters, results and locals
	costLoop     = 3   // of a pass over a loop's header
	costMemory   = 3   // load, store
	costCall     = 2   // besides the callee's entry
	costIndirect = 6   //
	costImport   = 250 // call of a host function
	costHost     = 250 // other exits into the host
	costDivide   = 10  // integer division
	costRoot     = 16  // float division and root
	costFloat    = 3   // float addition, subtraction, multiplication
	costRound    = 6   // rounding, minimum, maximum, conversion
	costVector   = 4
	costBulk     = 20 // besides the size
)

// entryMost is what an entry costs at most that a dispatch pays for, again at each jump back.
const entryMost = 40

// plainCost is the cost of the instructions 0x45 to 0xc4, which have no immediates.
func plainCost(op byte) int64 {
	switch {
	case op >= 0x6d && op <= 0x70, op >= 0x7f && op <= 0x82: // i32, i64 div and rem
		return costDivide
	case op == 0x91 || op == 0x95 || op == 0x9f || op == 0xa3: // f32, f64 sqrt and div
		return costRoot
	case op >= 0x92 && op <= 0x94, op >= 0xa0 && op <= 0xa2: // f32, f64 add, sub, mul
		return costFloat
	case op >= 0x8d && op <= 0x90, op >= 0x96 && op <= 0x98: // f32 ceil floor trunc nearest, min max copysign
		return costRound
	case op >= 0x9b && op <= 0x9e, op >= 0xa4 && op <= 0xa6: // f64 likewise
		return costRound
	case op >= 0xa8 && op <= 0xab, op >= 0xae && op <= 0xb1: // float to integer
		return costRound
	}
	return 1
}
