package fuel

// Rewrite returns the module with the counter in it. start is what the counter holds at first. Custom sections go, except the names that make traps readable.
func (m *Module) Rewrite(start int64) ([]byte, error) { return m.rewrite(start, true) }

// Unmetered returns the module with the counter but without charges. Benchmarks compare with it; nothing else may run it.
func (m *Module) Unmetered(start int64) ([]byte, error) { return m.rewrite(start, false) }

// made are the sections that the rewritten module has in any case, in their order.
var made = [...]byte{secType, secFunction, secTable, secGlobal, secExport, secCode}

func (m *Module) rewrite(start int64, charge bool) ([]byte, error) {
	out := make([]byte, 0, len(m.raw)+len(m.raw)/3+256)
	out = append(out, m.raw[:8]...)
	w := sectionWriter{m: m, start: start, charge: charge}
	next := 0
	for _, s := range m.sections {
		if s.id == secCustom {
			r := &reader{b: m.raw, pos: s.off, end: s.end}
			if r.name() == "name" {
				out = appendSection(out, s.id, m.raw[s.off:s.end])
			}
			continue
		}
		for ; next < len(made) && sectionOrder[made[next]] < sectionOrder[s.id]; next++ {
			out = w.append(out, section{id: made[next]})
		}
		switch {
		case next < len(made) && made[next] == s.id:
			out = w.append(out, s)
			next++
		case s.id == secStart: // the host calls it, when it can be stopped
		default:
			out = appendSection(out, s.id, m.raw[s.off:s.end])
		}
	}
	for ; next < len(made); next++ {
		out = w.append(out, section{id: made[next]})
	}
	return out, w.err
}

// sectionWriter writes the sections that change.
type sectionWriter struct {
	m       *Module
	start   int64
	charge  bool
	scratch []byte
	err     error
}

// append writes a section, made of what stands in the module's own; one without content isn't there.
func (w *sectionWriter) append(out []byte, s section) []byte {
	if w.err != nil {
		return out
	}
	b := w.scratch[:0]
	switch m := w.m; s.id {
	case secType:
		b = m.typeSection(b, s)
	case secFunction:
		b = m.functionSection(b, s)
	case secTable:
		b = m.tableSection(b)
	case secGlobal:
		b = m.globalSection(b, s, w.start)
	case secExport:
		b = m.exportSection(b, s)
	case secCode:
		b, w.err = m.codeSection(b, s, w.charge)
	}
	w.scratch = b
	return appendSection(out, s.id, b)
}

// The functions that the rewritten module has behind its own.

// refill is the function that checks call when the counter is below zero.
func (m *Module) refill() uint32 { return uint32(len(m.funcTypes)) }

// arm is the function that takes the host's.
func (m *Module) arm() uint32 { return m.refill() + 1 }

// begin is the function that calls the start function.
func (m *Module) begin() uint32 { return m.refill() + 2 }

// extra is how many there are.
func (m *Module) extra() uint32 {
	if m.HasStart {
		return 3
	}
	return 2
}

func (m *Module) typeSection(b []byte, s section) []byte {
	b = appendU32(b, uint32(len(m.Types)+2))
	b = append(b, m.items(s)...)
	b = append(b, 0x60, 0, 0)
	return append(b, 0x60, 1, byte(FuncRef), 0)
}

func (m *Module) functionSection(b []byte, s section) []byte {
	b = appendU32(b, uint32(m.Functions())+m.extra())
	b = append(b, m.items(s)...)
	b = appendU32(b, uint32(len(m.Types)))
	b = appendU32(b, uint32(len(m.Types)+1))
	if m.HasStart {
		b = appendU32(b, uint32(len(m.Types)))
	}
	return b
}

// extraBodies appends the code of refill, arm and begin.
func (m *Module) extraBodies(b []byte) []byte {
	counter, table := uint32(m.globals), uint32(len(m.tables))
	body := appendU32([]byte{0, opI32Const, 0, opCallIndirect}, uint32(len(m.Types)))
	body = appendU32(append(appendU32(body, table), opGlobalGet), counter)
	body = append(body, opI64Const, 0, opI64LtS, opIf, 0x40, opUnreachable, opEnd, opEnd)
	b = append(appendU32(b, uint32(len(body))), body...)

	body = appendU32([]byte{0, opI32Const, 0, opLocalGet, 0, opTableSet}, table)
	body = append(body, opEnd)
	b = append(appendU32(b, uint32(len(body))), body...)

	if m.HasStart {
		body = append(appendU32([]byte{0, opCall}, m.start), opEnd)
		b = append(appendU32(b, uint32(len(body))), body...)
	}
	return b
}

func appendSection(out []byte, id byte, content []byte) []byte {
	out = append(out, id)
	out = appendU32(out, uint32(len(content)))
	return append(out, content...)
}

// items returns the bytes of a vector's items, without its count.
func (m *Module) items(s section) []byte {
	if s.id == 0 {
		return nil
	}
	r := &reader{b: m.raw, pos: s.off, end: s.end}
	r.u32()
	return m.raw[r.pos:s.end]
}

func (m *Module) globalSection(b []byte, s section, start int64) []byte {
	b = appendU32(b, uint32(m.globals+1))
	b = append(b, m.items(s)...)
	b = append(b, byte(I64), 1, opI64Const)
	b = appendS64(b, start)
	return append(b, opEnd)
}

func (m *Module) exportSection(b []byte, s section) []byte {
	n := len(m.Exports) + 2
	if m.HasStart {
		n++
	}
	b = append(appendU32(b, uint32(n)), m.items(s)...)
	b = appendExport(b, GlobalName, KindGlobal, uint32(m.globals))
	b = appendExport(b, ArmName, KindFunc, m.arm())
	if m.HasStart {
		b = appendExport(b, StartName, KindFunc, m.begin())
	}
	return b
}

func appendExport(b []byte, name string, k Kind, index uint32) []byte {
	b = append(appendU32(b, uint32(len(name))), name...)
	return appendU32(append(b, byte(k)), index)
}

// tableSection gives every table a maximum, so that table.grow is bounded as memory.grow is, and adds the runtime's.
func (m *Module) tableSection(b []byte) []byte {
	b = appendU32(b, uint32(len(m.tables)+1))
	for _, t := range m.tables {
		most := max(t.Min, uint32(TableElementsMax/TablesMax))
		if t.HasMax {
			most = min(most, t.Max)
		}
		b = append(b, byte(t.elem), 1)
		b = appendU32(b, t.Min)
		b = appendU32(b, most)
	}
	return append(b, byte(FuncRef), 1, 1, 1)
}

func (m *Module) codeSection(out []byte, s section, charge bool) ([]byte, error) {
	r := &reader{b: m.raw, pos: s.off, end: s.end}
	n := 0
	if s.end > 0 {
		n = r.count("function bodies")
	}
	if r.err == nil && n != m.Functions() {
		return nil, errAt(s.off, "%d function bodies for %d functions", n, m.Functions())
	}
	out = appendU32(out, uint32(n)+m.extra())
	w := &bodyWriter{m: m, fuel: uint32(m.globals)}
	for i := range n {
		size := int(r.u32())
		if r.err == nil && size > BodyBytesMax {
			r.fail("function %d has %d bytes of code, at most %d are allowed: split it", m.imported+i, size, BodyBytesMax)
		}
		at := r.pos
		r.skip(size)
		if r.err != nil {
			return nil, r.err
		}
		if !charge {
			out = append(appendU32(out, uint32(size)), m.raw[at:at+size]...)
			continue
		}
		w.in = reader{b: m.raw, pos: at, end: at + size}
		if err := w.rewrite(m.Types[m.funcTypes[m.imported+i]]); err != nil {
			return nil, err
		}
		out = appendU32(out, uint32(len(w.head)+len(w.code)))
		out = append(append(out, w.head...), w.code...)
	}
	if r.err == nil && r.pos != s.end {
		r.fail("%d bytes too many in the code section", s.end-r.pos)
	}
	return m.extraBodies(out), r.err
}
