package fuel_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/dunlin-iot/dunlin/plugins/fuel"
)

func features() wazero.RuntimeConfig {
	return wazero.NewRuntimeConfigInterpreter().WithCoreFeatures(api.CoreFeaturesV2).WithDebugInfoEnabled(false)
}

// The specification's own test modules, which wazero ships with its source: whatever wazero takes is rewritten to
// something wazero takes, and nothing invalid becomes valid.
func TestRewriteKeepsTheSpecificationsModulesValid(t *testing.T) {
	dir, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", "github.com/tetratelabs/wazero").Output()
	if err != nil {
		t.Skip("wazero's source is not at hand:", err)
	}
	root := filepath.Join(strings.TrimSpace(string(dir)), "internal/integration_test/spectest")
	ctx := t.Context()
	rt := wazero.NewRuntimeWithConfig(ctx, features())
	defer rt.Close(ctx)
	valid, refused, invalid := 0, 0, 0
	for _, part := range []string{"v1", "v2"} {
		files, _ := filepath.Glob(filepath.Join(root, part, "testdata", "*.wasm"))
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			ok := compiles(ctx, rt, b)
			m, err := fuel.Parse(b)
			var out []byte
			if err == nil {
				out, err = m.Rewrite(1 << 20)
			}
			switch {
			case err == nil && compiles(ctx, rt, out) != ok:
				t.Errorf("%s: valid before: %v, after: %v", filepath.Base(f), ok, !ok)
			case err != nil && ok && !strings.Contains(err.Error(), "only functions can be imported"):
				t.Errorf("%s: valid, but %v", filepath.Base(f), err)
			case err != nil && ok:
				refused++
			case ok:
				valid++
			default:
				invalid++
			}
		}
	}
	t.Logf("%d valid modules rewritten, %d refused for their imports, %d invalid ones refused", valid, refused, invalid)
}

func compiles(ctx context.Context, rt wazero.Runtime, b []byte) bool {
	c, err := rt.CompileModule(ctx, b)
	if err != nil {
		return false
	}
	c.Close(ctx)
	return true
}
