// Package scaffold begins plugins and builds them: `dunlin plugin new` and `dunlin plugin build`.
//
// A plugin lies in a folder outside this repository and has to build before the SDKs are anywhere to be had, and without a
// network. So it gets a copy of its SDK, from this binary, in its folder sdk/, and refers to it by path:
//
//	go    go.mod         replace github.com/dunlin-iot/dunlin => ./sdk     a module with the SDK's packages, under their own names
//	rust  Cargo.toml     dunlin = { path = "sdk" }
//	ts    package.json   "@dunlin/plugin": "file:sdk"                      the compiler itself comes from npm
//	c     plugin.c       #include "sdk/dunlin.h"
//
// The plugin's source is the same with a published SDK: only that line changes. What is written are the files of templates/,
// which are real ones, with NAME in place of "my-plugin"; what every language gets alike is in templates/common.
//
// Part of the runtime; no compatibility promise before v1.
package scaffold

import (
	"bytes"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"github.com/dunlin-iot/dunlin/plugins/abi"
	"github.com/dunlin-iot/dunlin/sdk"
)

//go:embed templates
var templates embed.FS

// placeholder is what the templates call the plugin.
const placeholder = "my-plugin"

// Languages returns what Write takes as lang.
func Languages() []string { return []string{"go", "rust", "ts", "c"} }

// names are those that Go modules, crates, npm packages and plugins may all have.
var names = regexp.MustCompile(`^[a-z][a-z0-9]*(-[a-z0-9]+)*$`)

const nameBytesMax = 64

// reserved are names that a toolchain wants for itself: crates of Rust's own, what the SDK's package is called.
var reserved = []string{"alloc", "core", "dunlin", "go", "main", "node-modules", "proc-macro", "sdk", "std", "test"}

// Write begins a plugin in the folder dir, which must be empty or not there yet.
func Write(dir, name, lang string) error {
	switch {
	case !names.MatchString(name) || len(name) > nameBytesMax:
		return fmt.Errorf("the name %.80q must be lower-case letters and digits, with single dashes between them, at most %d, such as too-warm",
			name, nameBytesMax)
	case slices.Contains(reserved, name):
		return fmt.Errorf("the name %s is taken by the toolchains; choose another, such as %s-rule", name, name)
	case !slices.Contains(Languages(), lang):
		return fmt.Errorf("there is no template for the language %q; there are %s", lang, strings.Join(Languages(), ", "))
	}
	if list, err := os.ReadDir(dir); err == nil && len(list) > 0 {
		return fmt.Errorf("the folder %s is not empty: it has %s", dir, list[0].Name())
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return err
	}
	w := writer{root: root, name: name}
	w.templates("templates/common")
	w.templates("templates/" + lang)
	w.sdk(lang)
	return errors.Join(w.err, root.Close())
}

// writer writes files below a folder. After an error it does nothing.
type writer struct {
	root *os.Root
	name string
	err  error
}

func (w *writer) put(name string, b []byte) {
	if w.err != nil {
		return
	}
	if dir := path.Dir(name); dir != "." {
		w.err = w.root.MkdirAll(dir, 0o777)
	}
	if w.err == nil {
		w.err = w.root.WriteFile(name, b, 0o666)
	}
}

// renamed are files that mean something to tools by their names, also where they are only templates.
var renamed = strings.NewReplacer("go.mod.txt", "go.mod", "gitignore", ".gitignore", "npmrc", ".npmrc", "cargo/config.toml", ".cargo/config.toml")

// templates writes a folder's files.
func (w *writer) templates(from string) {
	w.each(templates, from, func(name string, b []byte) {
		if name != "sdk.go.mod.txt" { // see goSDK
			w.put(renamed.Replace(name), bytes.ReplaceAll(b, []byte(placeholder), []byte(w.name)))
		}
	})
}

// each calls f for the files of a folder, with their names below it.
func (w *writer) each(fsys fs.FS, from string, f func(name string, b []byte)) {
	if w.err != nil {
		return
	}
	w.err = fs.WalkDir(fsys, from, func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := fs.ReadFile(fsys, name)
		if err == nil {
			f(strings.TrimPrefix(strings.TrimPrefix(name, from), "/"), b)
		}
		return err
	})
}

// sdk writes the copy of the SDK.
func (w *writer) sdk(lang string) {
	license, err := fs.ReadFile(sdk.FS(), "assemblyscript/LICENSE")
	if err != nil {
		w.err = errors.Join(w.err, err)
	}
	w.put("sdk/LICENSE", license)
	switch lang {
	case "go":
		w.goSDK()
	case "rust":
		w.each(sdk.FS(), "rust", func(name string, b []byte) {
			if name == "Cargo.toml" {
				b = withoutTables(b, "[[test]]", "[workspace]", "[profile.release]")
			}
			w.put("sdk/"+name, b)
		})
	case "ts":
		w.each(sdk.FS(), "assemblyscript", func(name string, b []byte) {
			switch name {
			case "package.json":
				b, err = withoutMembers(b, "scripts", "devDependencies")
				w.err = errors.Join(w.err, err)
			case "package-lock.json":
				return
			}
			w.put("sdk/"+name, b)
		})
	case "c":
		w.each(sdk.FS(), "c", func(name string, b []byte) { w.put("sdk/"+name, b) })
	}
}

// goSDK writes a module of the runtime's name that has the SDK's packages and nothing else.
func (w *writer) goSDK() {
	mod, err := templates.ReadFile("templates/go/sdk.go.mod.txt")
	w.err = errors.Join(w.err, err)
	w.put("sdk/go.mod", mod)
	source := func(name string, b []byte) {
		if strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go") {
			w.put("sdk/"+name, b)
		}
	}
	w.each(sdk.FS(), "go", func(name string, b []byte) { source("sdk/go/"+name, b) })
	w.each(abi.Source(), ".", func(name string, b []byte) { source("plugins/abi/"+name, b) })
}

// withoutTables returns a TOML text without some of its tables: what they speak of is not in the copy.
func withoutTables(text []byte, tables ...string) []byte {
	var out []byte
	drop := false
	for line := range bytes.Lines(text) {
		if line[0] == '[' {
			drop = slices.Contains(tables, string(bytes.TrimSpace(line)))
		}
		if !drop {
			out = append(out, line...)
		}
	}
	return out
}

// withoutMembers returns a JSON object without some of its members.
func withoutMembers(text []byte, members ...string) ([]byte, error) {
	var object map[string]json.RawMessage
	if err := json.Unmarshal(text, &object); err != nil {
		return nil, err
	}
	for _, m := range members {
		delete(object, m)
	}
	var out bytes.Buffer
	enc := json.NewEncoder(&out)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	err := enc.Encode(object)
	return out.Bytes(), err
}
