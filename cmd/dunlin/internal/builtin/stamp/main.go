// Command stamp puts what a plugin's dunlin.yaml says into its module, for `make plugins`, which can't use the binary that it builds for:
//
//	stamp FOLDER MODULE.wasm
//
// Part of the runtime; no compatibility promise before v1.
package main

import (
	"fmt"
	"os"

	"github.com/dunlin-iot/dunlin/cmd/dunlin/internal/scaffold"
	"github.com/dunlin-iot/dunlin/plugins"
)

func main() {
	if err := stamp(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "stamp:", err)
		os.Exit(1)
	}
}

func stamp(args []string) error {
	if len(args) != 2 {
		return fmt.Errorf("want a folder and a module, not %d arguments", len(args))
	}
	manifest, err := scaffold.Manifest(args[0])
	if err != nil {
		return err
	}
	wasm, err := os.ReadFile(args[1])
	if err != nil {
		return err
	}
	if wasm, err = plugins.WithManifest(wasm, manifest); err != nil {
		return err
	}
	return os.WriteFile(args[1], wasm, 0o644)
}
