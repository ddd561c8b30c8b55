package column

import (
	"encoding/binary"
	"fmt"
	"slices"
	"unsafe"

	"github.com/dunlin-iot/dunlin"
)

// reader reads a block. The first failure moves it to the end, where all reads give zero values.
type reader struct {
	b        []byte
	i        int
	what     string
	failedAt int
	values   int // that the block may still have
	times    int // that its time sets may still have
	ints     []int64
}

func (r *reader) fail(what string) {
	if r.what == "" {
		r.what, r.failedAt = what, r.i
	}
	r.i = len(r.b)
}

func (r *reader) err() error {
	if r.what == "" {
		return nil
	}
	return fmt.Errorf("%w: block of %d bytes: byte %d: no valid %s", dunlin.ErrInvalid, len(r.b), r.failedAt, r.what)
}

func (r *reader) byte(what string) uint8 {
	if r.i >= len(r.b) {
		r.fail(what)
		return 0
	}
	r.i++
	return r.b[r.i-1]
}

func (r *reader) uvarint(what string) uint64 {
	if r.i < len(r.b) && r.b[r.i] < 0x80 {
		r.i++
		return uint64(r.b[r.i-1])
	}
	v, n := binary.Uvarint(r.b[r.i:])
	if n <= 0 {
		r.fail(what)
		return 0
	}
	r.i += n
	return v
}

func (r *reader) varint(what string) int64 { return unzigzag(r.uvarint(what)) }

func (r *reader) fixed64(what string) uint64 {
	if len(r.b)-r.i < 8 {
		r.fail(what)
		return 0
	}
	r.i += 8
	return binary.LittleEndian.Uint64(r.b[r.i-8:])
}

// bytes returns the next n bytes of the block.
func (r *reader) bytes(n uint64, what string) []byte {
	if n > uint64(len(r.b)-r.i) {
		r.fail(what)
		return nil
	}
	r.i += int(n)
	return r.b[r.i-int(n) : r.i : r.i]
}

// string returns a string that is a part of the block.
func (r *reader) string(what string) string {
	p := r.bytes(r.uvarint(what), what)
	return unsafe.String(unsafe.SliceData(p), len(p))
}

// count reads how many elements of at least bytesMin bytes follow.
func (r *reader) count(bytesMin int, what string) int {
	n := r.uvarint(what)
	if n > uint64(len(r.b)-r.i)/uint64(bytesMin) {
		r.fail(what)
		return 0
	}
	return int(n)
}

// claim takes n values off what the block may have; false if that is too many.
func (r *reader) claim(n uint64, what string) bool {
	if n > uint64(r.values) {
		r.fail(what)
		return false
	}
	r.values -= int(n)
	return true
}

// claimTimes is claim for times. A set is of use to a column, whose values take a byte for 32 of them, or itself takes
// that; so the times of a good block are at most 32 times its bytes.
func (r *reader) claimTimes(n int, what string) bool {
	if r.times -= n; r.times < 0 {
		r.fail(what)
		return false
	}
	return true
}

func zigzag(v int64) uint64   { return uint64(v)<<1 ^ uint64(v>>63) }
func unzigzag(v uint64) int64 { return int64(v>>1) ^ -int64(v&1) }

// writer appends a block. Its scratch slices serve one column after the other.
type writer struct {
	b    []byte
	ints []int64
	ulps []int64
	gaps []int
	vals []uint64
	dict map[string]int64
}

func (w *writer) byte(v uint8)     { w.b = append(w.b, v) }
func (w *writer) varint(v int64)   { w.uvarint(zigzag(v)) }
func (w *writer) fixed64(v uint64) { w.b = binary.LittleEndian.AppendUint64(w.b, v) }

func (w *writer) uvarint(v uint64) {
	if v < 0x80 {
		w.b = append(w.b, byte(v))
		return
	}
	w.b = binary.AppendUvarint(w.b, v)
}

func (w *writer) string(s string) {
	w.uvarint(uint64(len(s)))
	w.b = append(w.b, s...)
}

// wrapLength puts the length of what was appended since from before it.
func (w *writer) wrapLength(from int) { w.insertUvarint(from, uint64(len(w.b)-from)) }

func (w *writer) insertUvarint(at int, v uint64) {
	var room [binary.MaxVarintLen64]byte
	n := binary.PutUvarint(room[:], v)
	w.b = slices.Insert(w.b, at, room[:n]...)
}
