//go:build !wasm

package sdk

import (
	"encoding/binary"
	"math"

	"github.com/dunlin-iot/dunlin/plugins/abi"
)

// readings returns the n readings at an offset of a frame, on processors of any byte order.
func readings(frame []byte, at, n int) []abi.Reading {
	rs := make([]abi.Reading, n)
	for i := range rs {
		rs[i] = abi.ReadingAt(frame[at:], i)
	}
	return rs
}

func getFloat32s(vs []float32, b []byte) {
	for i := range vs {
		vs[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
}

func appendFloat32s(b []byte, vs []float32) []byte {
	for _, v := range vs {
		b = binary.LittleEndian.AppendUint32(b, math.Float32bits(v))
	}
	return b
}

func load64(b []byte, off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }
func load32(b []byte, off int) uint32 { return binary.LittleEndian.Uint32(b[off:]) }

func store64(b []byte, off int, v uint64) { binary.LittleEndian.PutUint64(b[off:], v) }
