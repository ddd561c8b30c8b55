//go:build !wasm

package abi

import (
	"embed"
	"io/fs"
)

// Guests don't carry it: see the build constraint.
//
//go:embed *.go
var source embed.FS

// Source returns the files of this package: plugins in Go that are built without a network have a copy.
func Source() fs.FS { return source }
