// Package builtin carries plugins inside the binary: alarms, which every cluster gets, and the example of `dev`. `make plugins`
// builds the modules from source into modules/; a binary built without them works, but has no alarms and no example to show.
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
		return nil, fmt.Errorf("the plugin %s is not in this binary; build it with `make build`", name)
	}
	return b, nil
}
