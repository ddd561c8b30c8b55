// Package builtin carries the example plugins inside the binary. `make plugins` builds the modules from source into
// modules/; a binary built without them works, but its `dev` has no example to show.
// Part of the runtime; no compatibility promise before v1.
package builtin

import (
	"embed"
	"fmt"
)

//go:embed modules
var modules embed.FS

// Module returns the .wasm of a plugin by name.
func Module(name string) ([]byte, error) {
	b, err := modules.ReadFile("modules/" + name + ".wasm")
	if err != nil {
		return nil, fmt.Errorf("the example plugin %s is not in this binary; build it with `make build`", name)
	}
	return b, nil
}
