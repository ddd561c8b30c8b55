// Package sdk carries the sources of the SDKs inside the binary, so that a plugin can be begun, and built, where there is no
// network.
//
// Part of the runtime; no compatibility promise before v1.
package sdk

import (
	"embed"
	"io/fs"
)

//go:embed go/*.go go/sdktest/*.go
//go:embed rust/Cargo.toml rust/README.md rust/src
//go:embed assemblyscript/*.ts assemblyscript/*.json assemblyscript/README.md assemblyscript/LICENSE assemblyscript/assembly
//go:embed c/dunlin.h
var files embed.FS

// FS returns the folders go, rust, assemblyscript and c, with what a plugin needs of each.
func FS() fs.FS { return files }
