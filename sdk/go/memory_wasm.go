package sdk

import (
	"unsafe"

	"github.com/dunlin-iot/dunlin/plugins/abi"
)

// readings returns the n readings at an offset of a frame where they lie: WebAssembly is little-endian and records are
// aligned. The frame has them all.
func readings(frame []byte, at, n int) []abi.Reading {
	return (*[1 << 20]abi.Reading)(unsafe.Pointer(&frame[at]))[:n:n] // unsafe.Slice calls to check for overflow
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

// load64, load32 and store64 read and write at an offset that has so many bytes.
func load64(b []byte, off int) uint64 { return *(*uint64)(unsafe.Pointer(&b[off])) }
func load32(b []byte, off int) uint32 { return *(*uint32)(unsafe.Pointer(&b[off])) }

func store64(b []byte, off int, v uint64) { *(*uint64)(unsafe.Pointer(&b[off])) = v }
