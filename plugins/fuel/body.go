package fuel

// bodyWriter rewrites one function after another, keeping its buffers.
type bodyWriter struct {
	m    *Module
	fuel uint32 // index of the counter's global
	in   reader
	head []byte // result: locals and the entry's charge
	code []byte // result: the rest

	regions  []region
	frames   []frame
	locals   uint32 // parameters and locals of the function, ours not counted
	results  int64
	branch   int64 // cost of a branch besides its values: what may have to be moved where control flow merges
	checks   bool  // a check took the i64 local behind the function's own
	sizes    bool  // an instruction took the i32 local behind that
	calls    bool  // the function calls another that the module defines: only then can its entry be part of a cycle
	parted   bool  // an instruction could have led away from what follows
	straight bool  // a loop's header comes behind the entry whatever happens: its check is the entry's

	jump  jump // that the instructions before may have begun
	first int  // region of a dispatch that comes behind the entry whatever happens; 0: there is none

	blocks, loops, branches int // so far
	depth                   int // of loops
}

// region is code that is charged together.
type region struct {
	cost  int64
	patch int // where in code its cost is to be written; −1: in head
}

// frame is a block that the walk is in.
type frame struct {
	op       byte      // opBlock, opLoop, opIf, opElse; 0: the function
	region   int       // what the frame's next instruction is charged to
	values   int64     // that a branch to the label takes along
	switched bool      // a br_table branches to its end
	number   int       // of the block in the function
	dispatch *dispatch // of a loop that is nothing but one
}

// rewrite translates the body at in; what goes into the section is head and then code.
func (w *bodyWriter) rewrite(t FuncType) error {
	in := &w.in
	w.head, w.code, w.regions, w.frames = w.head[:0], w.code[:0], w.regions[:0], w.frames[:0]
	w.jump, w.first = jump{}, 0
	w.checks, w.sizes, w.calls, w.parted, w.straight = false, false, false, false, false
	w.results = int64(len(t.Results))
	w.blocks, w.loops, w.branches, w.depth = 0, 0, 0, 0

	groups := in.count("groups of locals")
	at, locals := in.pos, int64(0)
	for range groups {
		locals += int64(in.u32())
		in.valueType()
	}
	if in.err == nil && locals > LocalsMax {
		in.fail("a function has %d locals, at most %d are allowed: split it", locals, LocalsMax)
	}
	if in.err != nil {
		return in.err
	}
	declared := in.b[at:in.pos]
	w.locals = uint32(len(t.Params)) + uint32(locals)
	w.branch = int64(w.locals) / 32

	w.regions = append(w.regions, region{patch: -1, cost: costEntry + int64(len(t.Params)) + w.results + locals/8})
	w.frames = append(w.frames, frame{values: w.results})
	for len(w.frames) > 0 && in.err == nil {
		w.instruction()
	}
	if in.err == nil && in.pos != in.end {
		in.fail("code goes on after the function's end")
	}
	if in.err != nil {
		return in.err
	}

	check := w.calls && !w.straight
	paid := w.entryPaid()
	own := 0
	if check || w.checks {
		own = 1
	}
	if w.sizes {
		own = 2
	}
	w.head = append(appendU32(w.head, uint32(groups+own)), declared...)
	w.head = append(w.head, []byte{1, byte(I64), 1, byte(I32)}[:2*own]...)
	if !paid {
		w.head = append(w.head, opGlobalGet)
		w.head = append(appendU32(w.head, w.fuel), opI64Const)
		w.head = append(appendS64(w.head, min(w.regions[0].cost, costMax)), opI64Sub)
		w.head = w.appendPaid(w.head, check)
	}
	for _, r := range w.regions[1:] {
		putCost(w.code[r.patch:], r.cost)
	}
	return nil
}

// appendPaid keeps what is on the stack as the counter, and if that is negative calls for more.
func (w *bodyWriter) appendPaid(b []byte, check bool) []byte {
	if !check {
		return appendU32(append(b, opGlobalSet), w.fuel)
	}
	w.checks = true
	b = append(appendU32(append(b, opLocalTee), w.locals), opGlobalSet)
	b = append(appendU32(b, w.fuel), opLocalGet)
	b = append(appendU32(b, w.locals), opI64Const, 0, opI64LtS, opIf, 0x40, opCall)
	return append(appendU32(b, w.m.refill()), opEnd)
}

// charge begins a region here: the innermost frame's instructions from now on.
func (w *bodyWriter) charge(cost int64, check bool) {
	w.code = append(w.code, opGlobalGet)
	w.code = append(appendU32(w.code, w.fuel), opI64Const)
	w.frames[len(w.frames)-1].region = len(w.regions)
	w.regions = append(w.regions, region{cost: cost, patch: len(w.code)})
	w.code = append(w.code, make([]byte, costBytes)...)
	w.code = w.appendPaid(append(w.code, opI64Sub), check)
}

func (w *bodyWriter) cost(c int64) {
	w.regions[w.frames[len(w.frames)-1].region].cost += c
}

// chargeSize charges for the i32 on top of the stack, which stays there: shifted right for memory's bytes (8 to a unit)
// and a table's elements (2).
func (w *bodyWriter) chargeSize(shift byte) {
	w.sizes = true
	size := w.locals + 1
	w.code = append(w.code, opLocalTee)
	w.code = append(appendU32(w.code, size), opGlobalGet)
	w.code = append(appendU32(w.code, w.fuel), opLocalGet)
	w.code = append(appendU32(w.code, size), opI64ExtendU)
	if shift > 0 {
		w.code = append(w.code, opI64Const, shift, opI64ShrU)
	}
	w.code = w.appendPaid(append(w.code, opI64Sub), true)
}

// chargeGrow charges for the pages on top of the stack: each has to be zeroed and may have to be copied. A number that no
// memory could grow by only fails; guests that probe for memory must not die of it.
func (w *bodyWriter) chargeGrow() {
	const unitsShift, pagesMax = 13, 4096
	w.sizes = true
	pages := w.locals + 1
	w.code = append(w.code, opLocalTee)
	w.code = append(appendU32(w.code, pages), opGlobalGet)
	w.code = append(appendU32(w.code, w.fuel), opLocalGet)
	w.code = append(appendU32(w.code, pages), opI64ExtendU, opI64Const, unitsShift, opI64Shl)
	w.code = append(w.code, opI64Const, 0, opLocalGet)
	w.code = append(appendU32(w.code, pages), opI32Const)
	w.code = append(appendS64(w.code, pagesMax), opI32LtU, opSelect)
	w.code = w.appendPaid(append(w.code, opI64Sub), true)
}

// instruction copies one instruction, with the charges that belong in front of or behind it.
func (w *bodyWriter) instruction() {
	in := &w.in
	operand := uint32(0)
	start := in.pos
	op := in.byte()
	if in.err != nil {
		return
	}
	switch {
	case op <= opReturn:
		w.control(op, start)
		w.jump.stage = 0
		return
	case op == opMisc:
		w.misc(start)
		w.jump.stage = 0
		return
	case op == opVector:
		w.vector()
	case op >= opLoadFirst && op <= opStoreLast:
		in.u32()
		in.u32()
		w.cost(costMemory)
	case op > opF64Const && op <= opPlainLast:
		w.cost(plainCost(op))
	case op >= opLocalGet && op <= opLocalTee:
		if operand = in.u32(); operand >= w.locals {
			in.fail("local %d does not exist", operand)
		}
		w.cost(1)
	case op == opI32Const:
		operand = uint32(in.sleb(5))
		w.cost(1)
	default:
		w.other(op)
		if op == opMemoryGrow {
			w.chargeGrow()
		}
	}
	w.follow(op, operand)
	w.code = append(w.code, in.b[start:in.pos]...)
}

// other reads the remaining one-byte instructions and adds their costs.
func (w *bodyWriter) other(op byte) {
	in := &w.in
	cost := int64(1)
	switch op {
	case opCall:
		f := in.u32()
		switch {
		case int64(f) >= int64(len(w.m.funcTypes)):
			in.fail("function %d does not exist", f)
		case int64(f) < int64(w.m.imported):
			cost = costImport
		default:
			cost, w.calls = costCall, true
		}
		w.parted = true
	case opCallIndirect:
		if t := in.u32(); int64(t) >= int64(len(w.m.Types)) {
			in.fail("type %d does not exist", t)
		}
		w.table()
		cost, w.calls, w.parted = costIndirect, true, true
	case opDrop, opSelect, opRefIsNull:
	case opSelectTyped:
		in.valueTypes("types of a select")
	case opGlobalGet, opGlobalSet:
		if i := in.u32(); int64(i) >= int64(w.m.globals) {
			in.fail("global %d does not exist", i)
		}
	case opTableGet, opTableSet:
		w.table()
		cost = costMemory
	case opMemorySize:
		in.byte()
	case opMemoryGrow:
		in.byte()
		cost = costHost
	case opI64Const:
		in.sleb(10)
	case opF32Const:
		in.skip(4)
	case opF64Const:
		in.skip(8)
	case opRefNull:
		in.valueType()
	case opRefFunc:
		if f := in.u32(); int64(f) >= int64(len(w.m.funcTypes)) {
			in.fail("function %d does not exist", f)
		}
		cost = costHost
	default:
		in.pos--
		in.fail("instruction %#x is not of WebAssembly 2.0", op)
	}
	w.cost(cost)
}

// table reads a table's index. What the module doesn't define doesn't exist: behind its own there is the runtime's.
func (w *bodyWriter) table() {
	if i := w.in.u32(); int64(i) >= int64(len(w.m.tables)) {
		w.in.fail("table %d does not exist", i)
	}
}

// misc copies an instruction behind 0xfc, with a charge for the size it works on.
func (w *bodyWriter) misc(start int) {
	in := &w.in
	sub := in.u32()
	cost := int64(costBulk)
	switch sub {
	case 0, 1, 2, 3, 4, 5, 6, 7: // saturating float to integer
		cost = costRound
	case miscMemoryInit, miscMemoryCopy:
		in.u32()
		in.u32()
		w.chargeSize(3)
	case miscMemoryFill:
		in.u32()
		w.chargeSize(3)
	case miscTableInit:
		in.u32()
		w.table()
		w.chargeSize(0)
	case miscTableCopy:
		w.table()
		w.table()
		w.chargeSize(1)
	case miscTableFill:
		w.table()
		w.chargeSize(1)
	case miscTableGrow:
		w.table()
		cost = costHost
		w.chargeSize(0)
	case miscTableSize:
		w.table()
		cost = costMemory
	case miscDataDrop, miscElemDrop:
		in.u32()
		cost = costMemory
	default:
		in.fail("instruction 0xfc %d is not of WebAssembly 2.0", sub)
		return
	}
	w.cost(cost)
	w.code = append(w.code, in.b[start:in.pos]...)
}

// vector reads an instruction behind 0xfd.
func (w *bodyWriter) vector() {
	in := &w.in
	sub := in.u32()
	switch {
	case sub <= 11 || sub == 92 || sub == 93: // loads and stores
		in.u32()
		in.u32()
	case sub == 12 || sub == 13: // v128.const, i8x16.shuffle
		in.skip(16)
	case sub >= 21 && sub <= 34: // lanes
		in.byte()
	case sub >= 84 && sub <= 91: // loads and stores of lanes
		in.u32()
		in.u32()
		in.byte()
	case sub > 255:
		in.fail("instruction 0xfd %d (relaxed SIMD?) is not of WebAssembly 2.0", sub)
	}
	w.cost(costVector)
}
