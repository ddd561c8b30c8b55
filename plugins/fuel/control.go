package fuel

// control copies one of the instructions 0x00 to 0x0f and keeps the stack of blocks.
func (w *bodyWriter) control(op byte, start int) {
	in := &w.in
	top := &w.frames[len(w.frames)-1]
	switch op {
	case opUnreachable:
		w.parted = true
	case opNop:
	case opBlock, opLoop, opIf:
		w.block(op, start)
		return
	case opElse:
		if top.op != opIf {
			in.fail("else without if")
			return
		}
		// What the first arm began must not be charged with the second: they are alternatives.
		top.op, top.region = opElse, w.frames[len(w.frames)-2].region
	case opEnd:
		w.end()
		return
	case opBr:
		depth, values := w.label(false)
		w.cost(1 + w.branch + values)
		if in.err == nil {
			w.code = appendU32(append(w.code, opBr), w.shortcut(depth))
		}
		return
	case opBrIf:
		_, values := w.label(false)
		w.cost(1 + w.branch + values)
	case opBrTable:
		values := int64(0)
		n := in.count("branches of a table")
		if w.branches += n; w.branches > BranchesMax {
			in.fail("a function has more than %d branches in tables: split it", BranchesMax)
		}
		for range n + 1 {
			if in.err != nil {
				return
			}
			_, v := w.label(true)
			values = max(values, v)
		}
		w.cost(2 + w.branch + values)
	case opReturn:
		w.cost(1 + w.results)
		w.parted = true
	default:
		in.pos--
		in.fail("instruction %#x is not of WebAssembly 2.0", op)
		return
	}
	w.code = append(w.code, in.b[start:in.pos]...)
}

// label reads a branch's depth and how many values it takes along.
func (w *bodyWriter) label(table bool) (depth uint32, values int64) {
	d := w.in.u32()
	if w.in.err == nil && int64(d) >= int64(len(w.frames)) {
		w.in.fail("branch to block %d of %d", d, len(w.frames))
	}
	if w.in.err != nil {
		return 0, 0
	}
	w.parted = true
	f := &w.frames[len(w.frames)-1-int(d)]
	f.switched = f.switched || table
	return d, f.values
}

func (w *bodyWriter) block(op byte, start int) {
	in := &w.in
	params, results := w.blockType()
	w.bound(op)
	if in.err != nil {
		return
	}
	w.code = append(w.code, in.b[start:in.pos]...)
	w.cost(params + results)
	f := frame{op: op, region: w.frames[len(w.frames)-1].region, values: results, number: w.blocks}
	switch op {
	case opLoop:
		f.values = params
		if params == 0 {
			f.dispatch = w.lookAhead()
		}
		if f.dispatch != nil && !w.parted {
			w.first = len(w.regions)
		}
		w.straight = w.straight || !w.parted
		w.frames = append(w.frames, f)
		w.charge(costLoop+params+w.branch, true)
	case opIf:
		w.parted = true
		w.cost(1)
		w.frames = append(w.frames, f)
	default:
		w.frames = append(w.frames, f)
	}
}

// bound counts a block against what a function may have.
func (w *bodyWriter) bound(op byte) {
	in := &w.in
	if w.blocks++; op == opLoop {
		w.loops++
		w.depth++
	}
	switch {
	case w.blocks > BlocksMax:
		in.fail("a function has more than %d blocks: split it", BlocksMax)
	case len(w.frames) >= DepthMax:
		in.fail("blocks are nested deeper than %d", DepthMax)
	case w.loops > LoopsMax:
		in.fail("a function has more than %d loops: split it", LoopsMax)
	case w.depth > LoopDepthMax:
		in.fail("loops are nested deeper than %d", LoopDepthMax)
	case int64(w.locals)*int64(w.blocks+blockWorkLoop*w.loops) > BlockWorkMax:
		in.fail("a function has %d blocks, %d of them loops, over %d locals: split it", w.blocks, w.loops, w.locals)
	}
}

// blockType returns how many values the block takes and leaves.
func (w *bodyWriter) blockType() (params, results int64) {
	in := &w.in
	if in.pos < in.end {
		switch c := in.b[in.pos]; {
		case c == blockVoid:
			in.pos++
			return 0, 0
		case c&0xc0 == 0x40: // a negative number of one byte: a value type
			in.valueType()
			return 0, 1
		}
	}
	i := in.sleb(5)
	if in.err == nil && (i < 0 || i >= int64(len(w.m.Types))) {
		in.fail("block type %d does not exist", i)
	}
	if in.err != nil {
		return 0, 0
	}
	t := w.m.Types[i]
	return int64(len(t.Params)), int64(len(t.Results))
}

// end leaves a block. What follows a block that a br_table branches to is a region of its own: the arms of a switch are
// nested blocks, and who takes one must not pay for the others.
func (w *bodyWriter) end() {
	f := w.frames[len(w.frames)-1]
	w.frames = w.frames[:len(w.frames)-1]
	if f.op == opLoop {
		w.depth--
	}
	w.code = append(w.code, opEnd)
	if f.switched && f.op != opLoop && len(w.frames) > 0 {
		w.charge(0, false)
	}
}
