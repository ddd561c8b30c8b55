package fuel_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"

	"github.com/dunlin-iot/dunlin/plugins/fuel"
)

// FuzzRewrite hands any bytes to the parser and rewriter: no panic, and what comes out is a module for wazero exactly if
// what went in was.
func FuzzRewrite(f *testing.F) {
	for _, b := range seeds(f) {
		f.Add(b)
	}
	rt := wazero.NewRuntimeWithConfig(f.Context(), features().WithMemoryLimitPages(16))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := fuel.Parse(b)
		if err != nil {
			return
		}
		out, err := m.Rewrite(1 << 20)
		if err != nil {
			return
		}
		if before, after := compiles(t.Context(), rt, b), compiles(t.Context(), rt, out); before != after {
			t.Fatalf("valid before: %v, after: %v", before, after)
		}
	})
}

// seeds are small modules of the specification's tests, one of each file.
func seeds(f *testing.F) [][]byte {
	dir, err := exec.CommandContext(f.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/tetratelabs/wazero").Output()
	if err != nil {
		return [][]byte{[]byte("\x00asm\x01\x00\x00\x00")}
	}
	files, _ := filepath.Glob(filepath.Join(strings.TrimSpace(string(dir)), "internal/integration_test/spectest/v2/testdata/*.0.wasm"))
	var all [][]byte
	for _, name := range files {
		if b, err := os.ReadFile(name); err == nil && len(b) < 4096 {
			all = append(all, b)
		}
	}
	return all
}
