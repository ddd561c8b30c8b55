package sdk

import "unsafe"

// take sets what the first 8 bytes of a reading in a frame say: they lie in a Reading as they do there.
func (r *Reading) take(h uint64) { *(*uint64)(unsafe.Pointer(&r.id)) = h }

// getFloat32s reads vs from b, which has at least 4 bytes for each: WebAssembly may read at any address.
func getFloat32s(vs []float32, b []byte) {
	copy(float32Bytes(vs), b)
}

func putFloat32s(b []byte, vs []float32) { copy(b, float32Bytes(vs)) }

// bit is v's byte: a branch would cost more.
func bit(v bool) byte { return *(*byte)(unsafe.Pointer(&v)) }

func float32Bytes(vs []float32) []byte {
	n := 4 * len(vs)
	return (*[1 << 20]byte)(unsafe.Pointer(unsafe.SliceData(vs)))[:n:n]
}

// load64 and the like read and write at an offset that has so many bytes: the caller knows, and nobody checks.
func load64(b []byte, off int) uint64 {
	return *(*uint64)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(b)), off))
}

func load32(b []byte, off int) uint32 {
	return *(*uint32)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(b)), off))
}

func store64(b []byte, off int, v uint64) {
	*(*uint64)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(b)), off)) = v
}

func store32(b []byte, off int, v uint32) {
	*(*uint32)(unsafe.Add(unsafe.Pointer(unsafe.SliceData(b)), off)) = v
}
