package sdk

import (
	"unsafe"

	"github.com/dunlin-iot/dunlin/plugins/abi"
)

// readings returns the readings of a telemetry record where they lie: WebAssembly is little-endian, records are aligned.
func readings(raw []byte) []abi.Reading {
	n := len(raw) / abi.ReadingSize
	return (*[1 << 20]abi.Reading)(unsafe.Pointer(unsafe.SliceData(raw)))[:n:n] // unsafe.Slice calls to check for overflow
}

// getFloat32s reads vs from b, which has at least 4 bytes for each: WebAssembly may read at any address.
func getFloat32s(vs []float32, b []byte) {
	copy(float32Bytes(vs), b)
}

func appendFloat32s(b []byte, vs []float32) []byte {
	return append(b, float32Bytes(vs)...)
}

func float32Bytes(vs []float32) []byte {
	n := 4 * len(vs)
	return (*[1 << 20]byte)(unsafe.Pointer(unsafe.SliceData(vs)))[:n:n]
}

// load64 and load32 read at an offset that has so many bytes.
func load64(b []byte, off int) uint64 { return *(*uint64)(unsafe.Pointer(&b[off])) }
func load32(b []byte, off int) uint32 { return *(*uint32)(unsafe.Pointer(&b[off])) }
