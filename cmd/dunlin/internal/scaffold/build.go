package scaffold

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"gopkg.in/yaml.v3"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/plugins"
)

// Where a build leaves the module, below the plugin's folder, and what describes it.
const (
	ModuleFile   = "build/plugin.wasm"
	ManifestFile = "dunlin.yaml"
)

// descriptionBytesMax bounds dunlin.yaml: YAML with aliases can be much more than it looks like, a manifest has 64 KiB.
const descriptionBytesMax = 64 << 10

// Language tells the language of the plugin in a folder by the files that its toolchain wants.
func Language(dir string) (string, error) {
	for _, l := range []struct{ pattern, lang string }{
		{"go.mod", "go"}, {"Cargo.toml", "rust"}, {"package.json", "ts"}, {"*.c", "c"},
	} {
		found, err := filepath.Glob(filepath.Join(escapeGlob(dir), l.pattern))
		if err != nil {
			return "", err
		}
		if len(found) > 0 {
			return l.lang, nil
		}
	}
	if _, err := os.Stat(dir); err != nil {
		return "", err
	}
	return "", fmt.Errorf("the folder %s has no plugin: neither go.mod nor Cargo.toml, package.json or a .c file; begin one with `dunlin plugin new`", dir)
}

// escapeGlob returns a path that a pattern can begin with.
func escapeGlob(s string) string {
	return strings.NewReplacer(`\`, `\\`, "*", `\*`, "?", `\?`, "[", `\[`).Replace(s)
}

// Build runs the toolchain of the plugin in dir, which prints to out, and puts dunlin.yaml, if there is one, into the module. The
// error says what is missing on this machine, or that the toolchain failed, having said why.
func Build(ctx context.Context, dir string, out io.Writer) (wasmPath string, err error) {
	lang, err := Language(dir)
	if err != nil {
		return "", err
	}
	manifest, err := Manifest(dir) // before the toolchain: a mistake in it is told at once
	if err != nil {
		return "", err
	}
	file := filepath.Join(dir, filepath.FromSlash(ModuleFile))
	if err := os.MkdirAll(filepath.Dir(file), 0o777); err != nil {
		return "", err
	}
	if err := os.Remove(file); err != nil && !errors.Is(err, fs.ErrNotExist) { // what a build leaves is its own
		return "", err
	}
	b := builder{ctx: ctx, dir: dir, out: out, file: file}
	switch lang {
	case "go":
		err = b.buildGo()
	case "rust":
		err = b.buildRust()
	case "ts":
		err = b.buildTS()
	case "c":
		err = b.buildC()
	}
	if err != nil {
		return "", err
	}
	wasm, err := os.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("the toolchain left no %s; that is where a plugin's build puts the module", ModuleFile)
	}
	if err != nil || manifest == nil {
		return file, err
	}
	if wasm, err = plugins.WithManifest(wasm, manifest); err != nil {
		return "", fmt.Errorf("%s: %w", ManifestFile, err)
	}
	return file, os.WriteFile(file, wasm, 0o666)
}

// Manifest returns what a plugin's dunlin.yaml says, as the JSON of a manifest; nil if there is none.
func Manifest(dir string) (json.RawMessage, error) {
	name := filepath.Join(dir, ManifestFile)
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if len(text) > descriptionBytesMax {
		return nil, fmt.Errorf("%s has %d bytes, at most %d are allowed", name, len(text), descriptionBytesMax)
	}
	var members map[string]any
	if err := yaml.Unmarshal(text, &members); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	for key := range members {
		switch key {
		case "name", "version", "description", "license", "source", "capabilities", "reads", "emits", "config":
		default: // a typing error would otherwise be noticed when it is missing
			return nil, fmt.Errorf("%s: there is no member %q; there are name, version, description, license, source, capabilities, reads, emits, config",
				name, key)
		}
	}
	manifest, err := json.Marshal(members)
	if err == nil && members == nil {
		manifest = json.RawMessage("{}")
	}
	if err == nil {
		_, err = plugins.ParseManifest(manifest)
	}
	if refused, ok := errors.AsType[*dunlin.ModuleError](err); ok {
		return nil, fmt.Errorf("%s: %s", name, refused.Detail)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return manifest, nil
}

// builder is one build.
type builder struct {
	ctx  context.Context
	dir  string
	out  io.Writer
	file string // where the module goes
}

// need says what to install if there is no such command.
func (b *builder) need(command, install string) error {
	if _, err := exec.LookPath(command); err != nil {
		return fmt.Errorf("there is no command %s on this machine; %s", command, install)
	}
	return nil
}

// command returns one that runs in the plugin's folder and prints to out.
func (b *builder) command(name string, args ...string) *exec.Cmd {
	c := exec.CommandContext(b.ctx, name, args...)
	c.Dir, c.Stdout, c.Stderr = b.dir, b.out, b.out
	return c
}

// run runs a command; hint is what may help if it fails.
func (b *builder) run(c *exec.Cmd, hint string) error {
	err := c.Run()
	if cause := context.Cause(b.ctx); cause != nil {
		return cause
	}
	if err != nil && hint != "" {
		hint = "; " + hint
	}
	if err != nil {
		return fmt.Errorf("%s: %w%s", filepath.Base(c.Args[0]), err, hint)
	}
	return nil
}

// module returns ModuleFile as a command in the plugin's folder names it.
func module() string { return filepath.FromSlash(ModuleFile) }

func (b *builder) buildGo() error {
	if err := b.need("go", "install Go 1.26 or later: https://go.dev/dl"); err != nil {
		return err
	}
	c := b.command("go", "build", "-trimpath", "-ldflags=-s -w", "-buildmode=c-shared", "-o", module(), ".")
	// A workspace around the plugin's folder would not know its module.
	c.Env = append(c.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0", "GOWORK=off")
	return b.run(c, "")
}

func (b *builder) buildRust() error {
	const target = "wasm32-unknown-unknown"
	if err := b.need("cargo", "install Rust: https://rustup.rs, then `rustup target add "+target+"`"); err != nil {
		return err
	}
	if libs, err := exec.CommandContext(b.ctx, "rustc", "--print", "target-libdir", "--target", target).Output(); err == nil {
		if list, err := os.ReadDir(strings.TrimSpace(string(libs))); err != nil || len(list) == 0 {
			return fmt.Errorf("rustc has no target %s; add it: `rustup target add %s`, or on Debian `apt-get install libstd-rust-dev-wasm32 lld`", target, target)
		}
	}
	// Where the module is depends on Cargo's settings; it tells in a line of JSON for each thing that it makes.
	c := b.command("cargo", "build", "--release", "--target", target, "--message-format", "json-render-diagnostics")
	var told bytes.Buffer
	c.Stdout = &told
	if err := b.run(c, ""); err != nil {
		return err
	}
	var modules []string
	lines := bufio.NewScanner(&told)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var artifact struct{ Filenames []string }
		if json.Unmarshal(lines.Bytes(), &artifact) != nil {
			continue
		}
		for _, f := range artifact.Filenames {
			if strings.HasSuffix(f, ".wasm") {
				modules = append(modules, f)
			}
		}
	}
	if len(modules) != 1 {
		return fmt.Errorf(`cargo made %d modules; Cargo.toml must have one library with crate-type = ["cdylib"]`, len(modules))
	}
	wasm, err := os.ReadFile(modules[0])
	if err != nil {
		return err
	}
	return os.WriteFile(b.file, wasm, 0o666)
}

func (b *builder) buildTS() error {
	const install = "install Node 20 or later, with npm: https://nodejs.org"
	for _, command := range []string{"node", "npm"} {
		if err := b.need(command, install); err != nil {
			return err
		}
	}
	if _, err := os.Stat(filepath.Join(b.dir, "node_modules", "assemblyscript")); err != nil {
		verb := "install"
		if _, err := os.Stat(filepath.Join(b.dir, "package-lock.json")); err == nil {
			verb = "ci"
		}
		c := b.command("npm", verb, "--no-audit", "--no-fund", "--loglevel=error")
		if err := b.run(c, "the compiler comes from the npm registry, once: is there a network?"); err != nil {
			return err
		}
	}
	return b.run(b.command("npm", "run", "--silent", "build"), "")
}

func (b *builder) buildC() error {
	const install = "install clang and lld; on Debian `apt-get install clang lld`"
	if err := b.need("clang", install); err != nil {
		return err
	}
	sources, err := filepath.Glob(filepath.Join(escapeGlob(b.dir), "*.c"))
	if err != nil {
		return err
	}
	args := []string{"--target=wasm32", "-O3", "-mbulk-memory", "-nostdlib", "-Wall", "-Wextra", "-Wl,--no-entry", "-o", module()}
	for _, s := range sources {
		args = append(args, filepath.Base(s))
	}
	hint := ""
	if b.need("wasm-ld", install) != nil { // clang says little about a linker that it doesn't find
		hint = "there is no wasm-ld on this machine; " + install
	}
	return b.run(b.command("clang", args...), hint)
}
