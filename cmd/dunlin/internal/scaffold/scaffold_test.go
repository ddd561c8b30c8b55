package scaffold_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/dunlin-iot/dunlin/cmd/dunlin/internal/scaffold"
	"github.com/dunlin-iot/dunlin/plugins"
)

// toolchain skips if the language's toolchain isn't there, or fails if it has to be.
func toolchain(t *testing.T, lang string) {
	t.Helper()
	for _, command := range map[string][]string{"go": {"go"}, "rust": {"cargo", "rustc"}, "ts": {"node", "npm"}, "c": {"clang", "wasm-ld"}}[lang] {
		if _, err := exec.LookPath(command); err == nil {
			continue
		}
		if os.Getenv("DUNLIN_FOREIGN") == "required" {
			t.Fatalf("%s is not installed, and DUNLIN_FOREIGN=required", command)
		}
		t.Skipf("%s is not installed", command)
	}
}

// What `dunlin plugin new` writes builds with the language's toolchain, passes its own native tests, is a module that a node takes,
// says what its dunlin.yaml says, and does what its cases say.
func TestEveryLanguageBuildsAndPassesItsOwnTests(t *testing.T) {
	for _, lang := range scaffold.Languages() {
		t.Run(lang, func(t *testing.T) {
			t.Parallel()
			toolchain(t, lang)
			dir := filepath.Join(t.TempDir(), "too-warm")
			if err := scaffold.Write(dir, "too-warm", lang); err != nil {
				t.Fatal(err)
			}
			if found, err := scaffold.Language(dir); err != nil || found != lang {
				t.Fatalf("language %s, %v", found, err)
			}
			noPlaceholders(t, dir)
			link(t, lang, dir)
			wasm := build(t, dir)
			native(t, lang, dir)
			m, _, err := plugins.ReadManifest(wasm)
			if err != nil || m.Name != "too-warm" || m.Version != "0.1.0" || !slices.Equal(m.Reads, []string{"temp"}) || len(m.Config) == 0 {
				t.Fatalf("manifest %+v, %v", m, err)
			}
			if n := playAll(t, dir, wasm); n < 2 {
				t.Fatalf("%d cases", n)
			}
		})
	}
}

// build builds the plugin in dir.
func build(t *testing.T, dir string) []byte {
	t.Helper()
	var out bytes.Buffer
	file, err := scaffold.Build(t.Context(), dir, &out)
	if err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	wasm, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return wasm
}

// link saves the compiler's way from the registry, where this repository has it.
func link(t *testing.T, lang, dir string) {
	if lang != "ts" {
		return
	}
	have, err := filepath.Abs("../../../../sdk/assemblyscript/node_modules")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(have, "assemblyscript")); err != nil {
		return // npm ci, then
	}
	modules := filepath.Join(dir, "node_modules")
	if err := os.MkdirAll(filepath.Join(modules, "@dunlin"), 0o777); err != nil {
		t.Fatal(err)
	}
	for _, l := range [][2]string{{"../../sdk", "@dunlin/plugin"}, {filepath.Join(have, ".bin"), ".bin"},
		{filepath.Join(have, "assemblyscript"), "assemblyscript"}} {
		if err := os.Symlink(l[0], filepath.Join(modules, l[1])); err != nil {
			t.Fatal(err)
		}
	}
}

// native runs the tests that the plugin has in its own language.
func native(t *testing.T, lang, dir string) {
	args := map[string][]string{"go": {"go", "test", "."}, "rust": {"cargo", "test", "--quiet", "--offline"}}[lang]
	if args == nil {
		return
	}
	c := exec.CommandContext(t.Context(), args[0], args[1:]...)
	c.Dir, c.Env = dir, append(os.Environ(), "GOWORK=off")
	if out, err := c.CombinedOutput(); err != nil {
		t.Fatalf("%v: %v\n%s", args, err, out)
	}
}

// noPlaceholders looks for the templates' own name in what was written.
func noPlaceholders(t *testing.T, dir string) {
	err := filepath.WalkDir(dir, func(name string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || strings.Contains(name, "/sdk/") {
			return err
		}
		b, err := os.ReadFile(name)
		if strings.Contains(string(b), "my-plugin") || strings.Contains(string(b), "my_plugin") || strings.Contains(name, ".txt") {
			t.Errorf("%s speaks of my-plugin", name)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
}

func TestNames(t *testing.T) {
	for _, name := range []string{"", "Too-Warm", "too warm", "-x", "x-", "a--b", "9lives", "../x", "a/b", "dunlin", "core", strings.Repeat("a", 65)} {
		if err := scaffold.Write(filepath.Join(t.TempDir(), "x"), name, "go"); err == nil {
			t.Errorf("%q was taken", name)
		}
	}
	err := scaffold.Write(t.TempDir(), "too-warm", "cobol")
	if err == nil || err.Error() != `there is no template for the language "cobol"; there are go, rust, ts, c` {
		t.Error(err)
	}
}

func TestAFolderThatIsNotEmptyIsLeftAlone(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "notes.txt"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := scaffold.Write(dir, "too-warm", "go"); err == nil || !strings.HasSuffix(err.Error(), "is not empty: it has notes.txt") {
		t.Error(err)
	}
	if list, _ := os.ReadDir(dir); len(list) != 1 {
		t.Error(list)
	}
}

func TestMistakesAreTold(t *testing.T) {
	build := func(files map[string]string) string {
		dir := t.TempDir()
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		_, err := scaffold.Build(t.Context(), dir, &bytes.Buffer{})
		if err == nil {
			t.Fatalf("%v was built", files)
		}
		return strings.ReplaceAll(err.Error(), dir, "DIR")
	}
	for _, c := range []struct {
		files map[string]string
		want  string
	}{
		{nil, "the folder DIR has no plugin: neither go.mod nor Cargo.toml, package.json or a .c file; begin one with `dunlin plugin new`"},
		{map[string]string{"go.mod": "", "dunlin.yaml": "version: 1.0"}, "DIR/dunlin.yaml: the manifest's version must be a text"},
		{map[string]string{"go.mod": "", "dunlin.yaml": `version: "1.0"`}, "is not a semantic version"},
		{map[string]string{"go.mod": "", "dunlin.yaml": "capabilites: [command]"}, `DIR/dunlin.yaml: there is no member "capabilites"`},
		{map[string]string{"go.mod": "", "dunlin.yaml": "[1]"}, "DIR/dunlin.yaml: "},
		{map[string]string{"go.mod": "", "dunlin.yaml": "a: b: c"}, "DIR/dunlin.yaml: yaml: "},
		{map[string]string{"go.mod": "", "dunlin.yaml": "x: &a [b]\nreads: [" + strings.Repeat("*a, ", 20000) + "]"}, "bytes, at most 65536 are allowed"},
	} {
		if got := build(c.files); !strings.Contains(got, c.want) {
			t.Errorf("%v: %s, want %s", c.files, got, c.want)
		}
	}
}

func TestMissingToolchains(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	for file, want := range map[string]string{
		"go.mod":       "there is no command go on this machine; install Go 1.26 or later: https://go.dev/dl",
		"Cargo.toml":   "there is no command cargo on this machine; install Rust: https://rustup.rs, then `rustup target add wasm32-unknown-unknown`",
		"package.json": "there is no command node on this machine; install Node 20 or later, with npm: https://nodejs.org",
		"plugin.c":     "there is no command clang on this machine; install clang and lld; on Debian `apt-get install clang lld`",
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, file), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := scaffold.Build(t.Context(), dir, &bytes.Buffer{}); err == nil || err.Error() != want {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// A build that fails says so with the toolchain's own words, and leaves no module of an older build behind.
func TestAFailedBuild(t *testing.T) {
	dir := t.TempDir()
	if err := scaffold.Write(dir, "too-warm", "go"); err != nil {
		t.Fatal(err)
	}
	old := filepath.Join(dir, "build", "plugin.wasm")
	if err := os.MkdirAll(filepath.Dir(old), 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{old: "old", filepath.Join(dir, "main.go"): "package main\n\nfunc main() { mistake }\n"} {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var out bytes.Buffer
	_, err := scaffold.Build(t.Context(), dir, &out)
	if err == nil || !strings.Contains(out.String(), "undefined: mistake") {
		t.Errorf("%v\n%s", err, &out)
	}
	if _, err := os.Stat(old); err == nil {
		t.Error("the old module is still there")
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(fmt.Errorf("enough"))
	if _, err := scaffold.Build(ctx, dir, &out); err == nil || err.Error() != "enough" {
		t.Error(err)
	}
}
