// Package house holds the order of the house: which package may import which, how long things may grow and which calls
// have homes, written down in testdata/rooms.txt and checked by this package's test.
// Part of the runtime; no compatibility promise before v1.
package house

import (
	"bufio"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"
)

// Module is the import path of the root package.
const Module = "github.com/dunlin-iot/dunlin"

// Budgets: a longer function says why with //house:long; nothing excuses a longer file.
const (
	functionLinesMax = 70
	fileLinesMax     = 800
)

// Room is one line of rooms.txt.
type Room struct {
	Package string          // path below the module, "." for the root
	Imports map[string]bool // packages of the module that it may import
	Heavy   map[string]bool // heavy libraries (by their short name) that it may import
}

// Plan is rooms.txt.
type Plan struct {
	Rooms map[string]*Room
	Heavy map[string]string          // short name → import path prefix
	Homes map[string]map[string]bool // banned call → packages that may make it
}

// ReadPlan parses rooms.txt. Three kinds of line: "heavy NAME PREFIX", "home CALL PACKAGE…" and
// "PACKAGE | IMPORT… | HEAVY…".
func ReadPlan(file string) (*Plan, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	p := &Plan{Rooms: map[string]*Room{}, Heavy: map[string]string{}, Homes: map[string]map[string]bool{}}
	sc := bufio.NewScanner(f)
	for n := 1; sc.Scan(); n++ {
		line, _, _ := strings.Cut(sc.Text(), "#")
		if strings.TrimSpace(line) == "" {
			continue
		}
		if err := p.line(line); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", file, n, err)
		}
	}
	return p, sc.Err()
}

func (p *Plan) line(line string) error {
	words := strings.Fields(line)
	switch {
	case words[0] == "heavy" && len(words) == 3:
		p.Heavy[words[1]] = words[2]
	case words[0] == "home" && len(words) >= 2:
		p.Homes[words[1]] = set(words[2:])
	default:
		cols := strings.Split(line, "|")
		if len(cols) != 3 {
			return fmt.Errorf("want PACKAGE | IMPORTS | HEAVY, got %q", line)
		}
		name := strings.TrimSpace(cols[0])
		if p.Rooms[name] != nil {
			return fmt.Errorf("%s is listed twice", name)
		}
		p.Rooms[name] = &Room{Package: name, Imports: set(strings.Fields(cols[1])), Heavy: set(strings.Fields(cols[2]))}
	}
	return nil
}

func set(words []string) map[string]bool {
	m := make(map[string]bool, len(words))
	for _, w := range words {
		m[w] = true
	}
	return m
}

// Check walks the module at root and returns what breaks the plan, one sentence each.
func (p *Plan) Check(root string) ([]string, error) {
	c := &checker{plan: p, fset: token.NewFileSet(), seen: map[string]bool{}, commented: map[string]bool{}, edges: map[[2]string]string{}}
	err := filepath.WalkDir(root, func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(root, name)
		rel = filepath.ToSlash(rel)
		if d.IsDir() {
			base := d.Name()
			if rel != "." && (strings.HasPrefix(base, ".") || base == "testdata" || base == "node_modules" || base == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if strings.HasSuffix(rel, ".go") {
			return c.file(root, rel)
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	c.finish()
	return c.faults, nil
}

type checker struct {
	plan      *Plan
	fset      *token.FileSet
	seen      map[string]bool // packages met
	commented map[string]bool // packages with a package comment
	edges     map[[2]string]string
	faults    []string
}

func (c *checker) fault(format string, args ...any) {
	c.faults = append(c.faults, fmt.Sprintf(format, args...))
}

func (c *checker) file(root, rel string) error {
	src, err := os.ReadFile(filepath.Join(root, rel))
	if err != nil {
		return err
	}
	f, err := parser.ParseFile(c.fset, rel, src, parser.ParseComments)
	if err != nil {
		return err
	}
	pkg := path.Dir(rel)
	if lines := strings.Count(string(src), "\n"); lines > fileLinesMax && !ast.IsGenerated(f) {
		c.fault("%s has %d lines; a file has at most %d", rel, lines, fileLinesMax)
	}
	test := strings.HasSuffix(rel, "_test.go")
	if !test {
		c.seen[pkg] = true
		c.commented[pkg] = c.commented[pkg] || f.Doc != nil
		c.imports(pkg, rel, f)
		c.functions(rel, f)
	}
	c.calls(pkg, rel, f, test)
	return nil
}

func (c *checker) imports(pkg, rel string, f *ast.File) {
	room := c.plan.Rooms[pkg]
	if room == nil {
		return // reported once, in finish
	}
	for _, imp := range f.Imports {
		dep, _ := strconv.Unquote(imp.Path.Value)
		if dep == Module || strings.HasPrefix(dep, Module+"/") {
			short := strings.TrimPrefix(strings.TrimPrefix(dep, Module), "/")
			if short == "" {
				short = "."
			}
			if !room.Imports[short] {
				c.fault("%s imports %s, which rooms.txt does not allow %s", rel, short, pkg)
			}
			c.edges[[2]string{top(pkg), top(short)}] = rel
			continue
		}
		for name, prefix := range c.plan.Heavy {
			if (dep == prefix || strings.HasPrefix(dep, prefix+"/")) && !room.Heavy[name] {
				c.fault("%s imports %s: the library %s has other rooms", rel, dep, name)
			}
		}
	}
}

func (c *checker) functions(rel string, f *ast.File) {
	for _, d := range f.Decls {
		fn, ok := d.(*ast.FuncDecl)
		if !ok || fn.Body == nil {
			continue
		}
		lines := c.fset.Position(fn.End()).Line - c.fset.Position(fn.Pos()).Line + 1
		if lines <= functionLinesMax {
			continue
		}
		if fn.Doc != nil && strings.Contains(fn.Doc.Text()+rawDoc(fn.Doc), "house:long") {
			continue
		}
		c.fault("%s: %s has %d lines; a function has at most %d (or //house:long and why)", rel, fn.Name.Name, lines, functionLinesMax)
	}
}

func rawDoc(g *ast.CommentGroup) string {
	var b strings.Builder
	for _, l := range g.List {
		b.WriteString(l.Text)
	}
	return b.String()
}

// calls finds uses of pkg.Name that have homes elsewhere. Tests may use all of them but time.Sleep.
func (c *checker) calls(pkg, rel string, f *ast.File, test bool) {
	ast.Inspect(f, func(n ast.Node) bool {
		sel, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		id, ok := sel.X.(*ast.Ident)
		if !ok || id.Obj != nil {
			return true
		}
		call := id.Name + "." + sel.Sel.Name
		homes, banned := c.plan.Homes[call]
		if !banned || homes[pkg] || homes[rel] || test && call != "time.Sleep" {
			return true
		}
		c.fault("%s: %s is not at home here", c.fset.Position(sel.Pos()), call)
		return true
	})
}

func (c *checker) finish() {
	for pkg := range c.seen {
		if c.plan.Rooms[pkg] == nil {
			c.fault("package %s has no line in rooms.txt", pkg)
		}
		if !c.commented[pkg] {
			c.fault("package %s has no package comment", pkg)
		}
		switch path.Base(pkg) {
		case "pkg", "util", "utils", "common", "helpers", "models", "types", "test", "base", "manager":
			c.fault("package %s: the name says nothing", pkg)
		}
	}
	for pkg := range c.plan.Rooms {
		if !c.seen[pkg] {
			c.fault("rooms.txt lists %s, which is not there", pkg)
		}
	}
	for e, rel := range c.edges {
		back, mutual := c.edges[[2]string{e[1], e[0]}]
		if mutual && e[0] < e[1] && e[0] != "." {
			c.fault("%s and %s import each other (%s, %s)", e[0], e[1], rel, back)
		}
	}
}

// top returns a package's top-level folder.
func top(pkg string) string {
	first, _, _ := strings.Cut(pkg, "/")
	return first
}
