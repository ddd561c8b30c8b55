package vectors_test

import (
	"bytes"
	"encoding/json"
	"flag"
	"io/fs"
	"os"
	"strings"
	"testing"

	"github.com/dunlin-iot/dunlin/sdk/vectors"
)

var update = flag.Bool("update", false, "make the *.json files anew")

// The *.json files are what the *.txt files say.
func TestFilesAreOfTheirSources(t *testing.T) {
	names, err := fs.Glob(vectors.FS(), "*.txt")
	if err != nil || len(names) == 0 {
		t.Fatal(names, err)
	}
	for _, name := range names {
		text, err := fs.ReadFile(os.DirFS("."), name)
		if err != nil {
			t.Fatal(err)
		}
		src, err := vectors.ParseSource(string(text))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		check(t, strings.TrimSuffix(name, ".txt")+".json", src.File())
	}
	if *update {
		return
	}
	files, err := vectors.Load(vectors.FS())
	if err != nil || len(files) != len(names) {
		t.Fatalf("%d files of %d sources: %v", len(files), len(names), err)
	}
}

// So are the records for encoders.
func TestRecordsAreOfTheirSource(t *testing.T) {
	text, err := os.ReadFile("records/records.txt")
	if err != nil {
		t.Fatal(err)
	}
	src, err := vectors.ParseSource(string(text))
	if err != nil {
		t.Fatal(err)
	}
	check(t, "records/records.json", map[string]any{"records": src.Records()})
}

// check compares a file with what it should be as JSON, or makes it so.
func check(t *testing.T, name string, content any) {
	t.Helper()
	var want bytes.Buffer
	enc := json.NewEncoder(&want)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", " ")
	if err := enc.Encode(content); err != nil {
		t.Fatal(err)
	}
	if *update {
		if err := os.WriteFile(name, want.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if got, err := os.ReadFile(name); err != nil || !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%s is not what its source says: run go test ./sdk/vectors -update (%v)", name, err)
	}
}
