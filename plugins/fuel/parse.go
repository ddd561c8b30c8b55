package fuel

import "bytes"

// Section ids.
const (
	secCustom    = 0
	secType      = 1
	secImport    = 2
	secFunction  = 3
	secTable     = 4
	secMemory    = 5
	secGlobal    = 6
	secExport    = 7
	secStart     = 8
	secElement   = 9
	secCode      = 10
	secData      = 11
	secDataCount = 12
)

// sectionOrder is where a section may stand: the data count comes before the code.
var sectionOrder = [...]int{secType: 1, secImport: 2, secFunction: 3, secTable: 4, secMemory: 5, secGlobal: 6,
	secExport: 7, secStart: 8, secElement: 9, secDataCount: 10, secCode: 11, secData: 12}

// Parse reads a module's structure. It does not check types; the compiler does. What it returns refers to b.
func Parse(b []byte) (*Module, error) {
	if len(b) < 8 || !bytes.Equal(b[:8], []byte("\x00asm\x01\x00\x00\x00")) {
		if len(b) >= 8 && bytes.Equal(b[:4], []byte("\x00asm")) {
			return nil, errAt(4, "version %d is not a core module of version 1 (a component? build a core module)", b[4])
		}
		return nil, errAt(0, "does not begin with \\0asm")
	}
	m := &Module{raw: b}
	r := &reader{b: b, pos: 8, end: len(b)}
	last := 0
	for r.more() {
		id := r.byte()
		n := r.u32()
		if r.err == nil && int64(n) > int64(len(b)-r.pos) {
			r.fail("section %d of %d bytes goes beyond the end", id, n)
		}
		if r.err != nil {
			break
		}
		if id != secCustom {
			if int(id) >= len(sectionOrder) {
				return nil, errAt(r.pos, "section %d is not of WebAssembly 2.0", id)
			}
			if sectionOrder[id] <= last {
				return nil, errAt(r.pos, "section %d is out of order", id)
			}
			last = sectionOrder[id]
		}
		s := section{id: id, off: r.pos, end: r.pos + int(n)}
		if err := m.parseSection(s); err != nil {
			return nil, err
		}
		m.sections = append(m.sections, s)
		r.pos = s.end
	}
	if r.err != nil {
		return nil, r.err
	}
	return m, m.resolve()
}

func (m *Module) parseSection(s section) error {
	r := &reader{b: m.raw, pos: s.off, end: s.end}
	switch s.id {
	case secCustom:
		m.parseCustom(r)
		return r.err
	case secType:
		m.parseTypes(r)
	case secImport:
		m.parseImports(r)
	case secFunction:
		for range r.count("functions") {
			m.funcTypes = append(m.funcTypes, r.u32())
		}
	case secTable:
		for range r.count("tables") {
			m.tables = append(m.tables, table{elem: r.valueType(), Limits: r.limits()})
		}
	case secMemory:
		for range r.count("memories") {
			m.Memories = append(m.Memories, r.limits())
		}
	case secGlobal:
		m.globals = r.count("globals")
		for range m.globals {
			r.valueType()
			r.byte()
			m.constExpr(r)
		}
	case secExport:
		for range r.count("exports") {
			m.Exports = append(m.Exports, Export{Name: r.name(), Kind: Kind(r.byte()), Index: r.u32()})
		}
	case secStart:
		m.HasStart, m.start = true, m.function(r)
	case secElement:
		m.parseElements(r)
	case secData:
		m.parseData(r)
	case secDataCount:
		r.u32()
	case secCode:
		return nil // Rewrite walks it
	}
	if r.err == nil && r.pos != s.end {
		r.fail("%d bytes too many in section %d", s.end-r.pos, s.id)
	}
	return r.err
}

func (m *Module) parseTypes(r *reader) {
	n := r.count("types")
	if n > TypesMax {
		r.fail("has %d types, at most %d are allowed", n, TypesMax)
	}
	for range n {
		if form := r.byte(); form != 0x60 {
			r.fail("type form %#x is not of WebAssembly 2.0", form)
		}
		var t FuncType
		t.Params = r.valueTypes("parameters")
		t.Results = r.valueTypes("results")
		if r.err != nil {
			return
		}
		m.Types = append(m.Types, t)
	}
}

func (r *reader) valueTypes(what string) []ValueType {
	n := r.count(what)
	if n > TypeArityMax {
		r.fail("a function type has %d %s, at most %d are allowed", n, what, TypeArityMax)
		return nil
	}
	ts := make([]ValueType, 0, n)
	for range n {
		ts = append(ts, r.valueType())
	}
	return ts
}

func (m *Module) parseImports(r *reader) {
	for range r.count("imports") {
		im := Import{Module: r.name(), Name: r.name(), Kind: Kind(r.byte())}
		switch im.Kind {
		case KindFunc:
			t := r.u32()
			if r.err == nil && int64(t) >= int64(len(m.Types)) {
				r.fail("import %s.%s has unknown type %d", im.Module, im.Name, t)
			}
			if r.err != nil {
				return
			}
			im.Type = m.Types[t]
			m.funcTypes = append(m.funcTypes, t)
			m.imported++
		default:
			// Imported globals would shift the index of ours; there is nothing to import but functions.
			r.fail("imports a %v, %s.%s: only functions can be imported", im.Kind, im.Module, im.Name)
			return
		}
		m.Imports = append(m.Imports, im)
	}
}

// constExpr walks a constant expression. What it names must be the module's own, so that none can come to mean what the
// rewriter adds.
func (m *Module) constExpr(r *reader) {
	for {
		switch op := r.byte(); op {
		case opEnd:
			return
		case opI32Const:
			r.sleb(5)
		case opI64Const:
			r.sleb(10)
		case opF32Const:
			r.skip(4)
		case opF64Const:
			r.skip(8)
		case opGlobalGet:
			if i := r.u32(); int64(i) >= int64(m.globals) {
				r.fail("global %d does not exist", i)
			}
		case opRefNull:
			r.byte()
		case opRefFunc:
			m.function(r)
		case opVector:
			if sub := r.u32(); sub != 12 {
				r.fail("instruction 0xfd %d is not constant", sub)
			}
			r.skip(16)
		default:
			r.pos--
			r.fail("instruction %#x is not constant", op)
		}
		if r.err != nil {
			return
		}
	}
}

func (m *Module) parseElements(r *reader) {
	for range r.count("element segments") {
		flags := r.u32()
		if flags > 7 {
			r.fail("element segment of kind %d", flags)
			return
		}
		if flags&1 == 0 { // active
			table := uint32(0)
			if flags&2 != 0 {
				table = r.u32()
			}
			if r.err == nil && int64(table) >= int64(len(m.tables)) {
				r.fail("table %d does not exist", table)
			}
			m.constExpr(r)
		}
		if flags&3 != 0 {
			r.byte() // element kind or reference type
		}
		for range r.count("elements") {
			if flags&4 != 0 {
				m.constExpr(r)
			} else {
				m.function(r)
			}
		}
		if r.err != nil {
			return
		}
	}
}

// function reads a function's index.
func (m *Module) function(r *reader) uint32 {
	f := r.u32()
	if r.err == nil && int64(f) >= int64(len(m.funcTypes)) {
		r.fail("function %d does not exist", f)
	}
	return f
}

func (m *Module) parseData(r *reader) {
	for range r.count("data segments") {
		switch flags := r.u32(); flags {
		case 0:
			m.constExpr(r)
		case 1:
		case 2:
			r.u32()
			m.constExpr(r)
		default:
			r.fail("data segment of kind %d", flags)
		}
		r.skip(int(r.u32()))
		if r.err != nil {
			return
		}
	}
}

// parseCustom reads the language and processor out of the producers section; that section is only told, so that what is
// odd in it is no error.
func (m *Module) parseCustom(r *reader) {
	if r.name() != "producers" || r.err != nil {
		return
	}
	p := *r
	for range p.count("fields") {
		field := p.name()
		for range p.count("values") {
			name, version := p.name(), p.name()
			if p.err == nil && field == "language" && m.Language == "" && len(name)+len(version) < 64 {
				m.Language = name
				if version != "" {
					m.Language += " " + version
				}
			}
		}
		if p.err != nil {
			return
		}
	}
}

// resolve checks what needs all sections, and fills the types of exports.
func (m *Module) resolve() error {
	if n := m.Functions(); n > FunctionsMax {
		return errAt(0, "has %d functions, at most %d are allowed", n, FunctionsMax)
	}
	for i, t := range m.funcTypes {
		if int64(t) >= int64(len(m.Types)) {
			return errAt(0, "function %d has unknown type %d", i, t)
		}
	}
	seen := make(map[string]bool, len(m.Exports))
	for i := range m.Exports {
		e := &m.Exports[i]
		if seen[e.Name] {
			return errAt(0, "export %q stands twice", e.Name)
		}
		seen[e.Name] = true
		n := 0
		switch e.Kind {
		case KindFunc:
			n = len(m.funcTypes)
		case KindTable:
			n = len(m.tables)
		case KindMemory:
			n = len(m.Memories)
		case KindGlobal:
			n = m.globals
		}
		if int64(e.Index) >= int64(n) {
			return errAt(0, "export %q: there is no %v %d", e.Name, e.Kind, e.Index)
		}
		if e.Kind == KindFunc {
			e.Type = m.Types[m.funcTypes[e.Index]]
		}
	}
	for _, name := range []string{GlobalName, ArmName, StartName} {
		if seen[name] {
			return errAt(0, "exports %q, which is the runtime's own name", name)
		}
	}
	if len(m.tables) > TablesMax {
		return errAt(0, "has %d tables, at most %d are allowed", len(m.tables), TablesMax)
	}
	elems := int64(0)
	for _, t := range m.tables {
		elems += int64(t.Min)
	}
	if elems > TableElementsMax {
		return errAt(0, "its tables have %d elements, at most %d are allowed", elems, TableElementsMax)
	}
	return nil
}
