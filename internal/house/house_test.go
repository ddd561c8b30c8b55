package house

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func TestTheHouseIsInOrder(t *testing.T) {
	plan, err := ReadPlan("testdata/rooms.txt")
	if err != nil {
		t.Fatal(err)
	}
	faults, err := plan.Check("../..")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(faults)
	for _, f := range faults {
		t.Error(f)
	}
}

// A check that finds nothing in a bad house would be no check: each fault is planted once.
func TestEachFaultIsFound(t *testing.T) {
	root := t.TempDir()
	write := func(name, text string) {
		t.Helper()
		file := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write("rooms.txt", "heavy boat example.com/boat\nhome time.Now a\nhome time.Sleep\na | b |\nb | a |\ngone | |\n")
	write("a/a.go", "// Package a is here.\npackage a\nimport _ \""+Module+"/b\"\nimport _ \"example.com/boat/oar\"\n")
	write("b/b.go", "package b\nimport _ \""+Module+"/a\"\nimport \"time\"\nvar T = time.Now\nfunc long() {\n"+strings.Repeat("\n", 80)+"}\n")
	write("b/c.go", "package b\nimport _ \""+Module+"/util\"\n"+strings.Repeat("//\n", 800))
	write("b/b_test.go", "package b\nimport \"time\"\nfunc f() { time.Sleep(1); time.Now() }\n")
	write("util/u.go", "// Package util is a bad name.\npackage util\n")
	plan, err := ReadPlan(filepath.Join(root, "rooms.txt"))
	if err != nil {
		t.Fatal(err)
	}
	faults, err := plan.Check(root)
	if err != nil {
		t.Fatal(err)
	}
	got := strings.Join(faults, "\n")
	for _, want := range []string{
		"a/a.go imports example.com/boat/oar",
		"b/b.go:4:9: time.Now is not at home here",
		"b/b_test.go:3:12: time.Sleep is not at home here",
		"b/c.go imports util, which rooms.txt does not allow b",
		"long has 82 lines",
		"b/c.go has 802 lines",
		"package b has no package comment",
		"package util has no line in rooms.txt",
		"package util: the name says nothing",
		"rooms.txt lists gone",
		"a and b import each other",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("not found: %s", want)
		}
	}
	if strings.Contains(got, "b_test.go:3:27") {
		t.Error("a test may ask the time")
	}
	if t.Failed() {
		t.Log(got)
	}
}
