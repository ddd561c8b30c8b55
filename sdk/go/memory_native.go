//go:build !wasm

package sdk

import (
	"encoding/binary"
	"math"
)

// take sets what the first 8 bytes of a reading in a frame say.
func (r *Reading) take(h uint64) {
	r.id, r.unit, r.Kind, r.flags = uint32(h), uint16(h>>32), Kind(h>>48), uint8(h>>56)
}

func getFloat32s(vs []float32, b []byte) {
	for i := range vs {
		vs[i] = math.Float32frombits(binary.LittleEndian.Uint32(b[4*i:]))
	}
}

func putFloat32s(b []byte, vs []float32) {
	for i, v := range vs {
		binary.LittleEndian.PutUint32(b[4*i:], math.Float32bits(v))
	}
}

func bit(v bool) byte {
	if v {
		return 1
	}
	return 0
}

func load64(b []byte, off int) uint64 { return binary.LittleEndian.Uint64(b[off:]) }
func load32(b []byte, off int) uint32 { return binary.LittleEndian.Uint32(b[off:]) }

func store64(b []byte, off int, v uint64) { binary.LittleEndian.PutUint64(b[off:], v) }
func store32(b []byte, off int, v uint32) { binary.LittleEndian.PutUint32(b[off:], v) }
