package plugins_test

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/dunlin-iot/dunlin/plugins"
	"github.com/dunlin-iot/dunlin/sdk/vectors"
)

// The examples of every SDK, as modules in the runtime's own host, answer the vectors byte by byte. Go's are built here; those
// of other languages are played if they were built.
func TestVectors(t *testing.T) {
	host := newBench(t, plugins.Config{})
	for _, lang := range []string{"go", "rust", "c", "assemblyscript"} {
		for _, example := range []string{"threshold", "rate", "absence", "decoder"} {
			t.Run(lang+"/"+example, func(t *testing.T) {
				vectors.Test(t, example, host.VectorGuests(t, buildExample(t, lang, example)))
			})
		}
	}
}

// buildExample returns an example's module, or skips the test if its SDK was not built.
func buildExample(t testing.TB, lang, example string) []byte {
	t.Helper()
	file := filepath.Join("..", "sdk", lang, "build", example+".wasm")
	if lang == "go" {
		file = filepath.Join(cacheDir(), example+".wasm")
		if err := buildGo("../sdk/go/examples/"+example, file); err != nil {
			t.Fatal(err)
		}
	}
	wasm, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		if os.Getenv("DUNLIN_FOREIGN") == "required" {
			t.Fatalf("%s is not there, and DUNLIN_FOREIGN=required: run make sdk-%s", file, lang)
		}
		t.Skipf("%s is not there: run make sdk-%s", file, lang)
	}
	if err != nil {
		t.Fatal(err)
	}
	return wasm
}

func buildGo(pkg, file string) error {
	cmd := exec.Command("go", "build", "-buildmode=c-shared", "-ldflags=-s -w", "-o", file, pkg)
	cmd.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "GOTOOLCHAIN=local")
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, text)
	}
	return nil
}
