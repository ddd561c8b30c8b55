package fuel

// Rewrite returns the module with the counter in it. start is what the counter holds at first: what a start function may
// burn while the module is instantiated. Custom sections go, except the names that make traps readable.
func (m *Module) Rewrite(start int64) ([]byte, error) { return m.rewrite(start, true) }

// Unmetered returns the module with the counter but without charges. Benchmarks compare with it; nothing else may run it.
func (m *Module) Unmetered(start int64) ([]byte, error) { return m.rewrite(start, false) }

func (m *Module) rewrite(start int64, charge bool) ([]byte, error) {
	out := make([]byte, 0, len(m.raw)+len(m.raw)/3+64)
	out = append(out, m.raw[:8]...)
	var scratch []byte
	globalDone, exportDone := false, false
	for _, s := range m.sections {
		// The two sections that must be there are made up in front of the first section that comes after their place.
		if s.id != secCustom && sectionOrder[s.id] > sectionOrder[secGlobal] && !globalDone {
			out = appendSection(out, secGlobal, m.globalSection(scratch[:0], section{}, start))
			globalDone = true
		}
		if s.id != secCustom && sectionOrder[s.id] > sectionOrder[secExport] && !exportDone {
			out = appendSection(out, secExport, m.exportSection(scratch[:0], section{}))
			exportDone = true
		}
		content := m.raw[s.off:s.end]
		switch s.id {
		case secCustom:
			r := &reader{b: m.raw, pos: s.off, end: s.end}
			if r.name() != "name" {
				continue
			}
		case secTable:
			scratch = m.tableSection(scratch[:0])
			content = scratch
		case secGlobal:
			scratch, globalDone = m.globalSection(scratch[:0], s, start), true
			content = scratch
		case secExport:
			scratch, exportDone = m.exportSection(scratch[:0], s), true
			content = scratch
		case secCode:
			if !charge {
				break
			}
			var err error
			if scratch, err = m.codeSection(scratch[:0], s); err != nil {
				return nil, err
			}
			content = scratch
		}
		out = appendSection(out, s.id, content)
	}
	if !globalDone {
		out = appendSection(out, secGlobal, m.globalSection(nil, section{}, start))
	}
	if !exportDone {
		out = appendSection(out, secExport, m.exportSection(nil, section{}))
	}
	return out, nil
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
	b = appendU32(b, uint32(len(m.Exports)+1))
	b = append(b, m.items(s)...)
	b = appendU32(b, uint32(len(GlobalName)))
	b = append(b, GlobalName...)
	b = append(b, byte(KindGlobal))
	return appendU32(b, uint32(m.globals))
}

// tableSection gives every table a maximum, so that table.grow is bounded as memory.grow is.
func (m *Module) tableSection(b []byte) []byte {
	b = appendU32(b, uint32(len(m.tables)))
	for _, t := range m.tables {
		most := max(t.Min, uint32(TableElementsMax/TablesMax))
		if t.HasMax {
			most = min(most, t.Max)
		}
		b = append(b, byte(t.elem), 1)
		b = appendU32(b, t.Min)
		b = appendU32(b, most)
	}
	return b
}

func (m *Module) codeSection(out []byte, s section) ([]byte, error) {
	r := &reader{b: m.raw, pos: s.off, end: s.end}
	n := r.count("function bodies")
	if r.err == nil && n != m.Functions() {
		return nil, errAt(s.off, "%d function bodies for %d functions", n, m.Functions())
	}
	out = appendU32(out, uint32(n))
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
	return out, r.err
}
