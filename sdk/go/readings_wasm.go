package sdk

import (
	"unsafe"

	"github.com/dunlin-iot/dunlin/plugins/abi"
)

// readings returns the readings of a telemetry record where they lie: WebAssembly is little-endian, records are aligned.
func readings(raw []byte) []abi.Reading {
	return unsafe.Slice((*abi.Reading)(unsafe.Pointer(unsafe.SliceData(raw))), len(raw)/abi.ReadingSize)
}
