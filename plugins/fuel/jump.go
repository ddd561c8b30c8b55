package fuel

// The Go compiler makes one loop around one br_table of a function, and a jump to another part of it sets a local and branches
// to the loop's header:
//
//	loop block block … local.get L br_table 0 1 2 …
//	end (arm 0) … i32.const 5 local.set L br loop … end (arm 1) … end (arm 2) …
//
// Where such a jump leads is plain. If its arm comes behind it, the jump goes there at once, and passes neither the header's
// charge nor the br_table: that is more than charging the arms costs. Back to an arm before it leads the header only, so each
// cycle passes that as ever.

// dispatch is a loop's header that does nothing but branch to an arm.
type dispatch struct {
	local  uint32   // that says to which
	blocks int      // that begin between the header and the br_table
	labels []uint32 // of the br_table, seen from there; the last one is the default
}

// jump is what the last two instructions did: put a constant into a local.
type jump struct {
	constant, local uint32
	stage           byte // 0: nothing of the kind, 1: there is the constant, 2: it is in the local
}

// lookAhead tells whether the loop that begins here is nothing but a dispatch up to its br_table.
func (w *bodyWriter) lookAhead() *dispatch {
	in := w.in
	d := &dispatch{}
	op := in.byte()
	for ; op == opBlock && in.byte() == blockVoid; op = in.byte() {
		d.blocks++
	}
	if op != opLocalGet {
		return nil
	}
	d.local = in.u32()
	if in.byte() != opBrTable {
		return nil
	}
	n := in.count("branches of a table")
	if in.err != nil || n > BranchesMax {
		return nil
	}
	d.labels = make([]uint32, n+1)
	for i := range d.labels {
		d.labels[i] = in.u32()
	}
	if in.err != nil {
		return nil
	}
	return d
}

// entryPaid lets the header of a dispatch pay for the function's entry, if it always comes behind it and that is little: a jump
// back pays it again.
func (w *bodyWriter) entryPaid() bool {
	entry := w.regions[0].cost
	if w.first == 0 || entry > entryMost {
		return false
	}
	w.regions[w.first].cost += entry
	return true
}

// follow keeps what the instruction just read does to the jump that may be under way.
func (w *bodyWriter) follow(op byte, operand uint32) {
	switch {
	case op == opI32Const:
		w.jump = jump{constant: operand, stage: 1}
	case op == opLocalSet && w.jump.stage == 1:
		w.jump.local, w.jump.stage = operand, 2
	default:
		w.jump.stage = 0
	}
}

// shortcut takes a branch's depth and returns that of the arm it leads to in the end, if that lies behind it; else the same depth.
func (w *bodyWriter) shortcut(depth uint32) uint32 {
	at := len(w.frames) - 1 - int(depth)
	loop := &w.frames[at]
	d := loop.dispatch
	if d == nil || w.jump.stage != 2 || w.jump.local != d.local {
		return depth
	}
	label := d.labels[min(int64(w.jump.constant), int64(len(d.labels)-1))]
	if int64(label) >= int64(d.blocks) { // the loop itself, or beyond it
		return depth
	}
	arm := d.blocks - int(label) // the blocks are numbered behind the loop
	if at+arm >= len(w.frames) || w.frames[at+arm].number != loop.number+arm {
		return depth // it has ended: its arm lies before
	}
	return uint32(len(w.frames) - 1 - at - arm)
}
