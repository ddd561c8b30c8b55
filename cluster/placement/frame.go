package placement

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/dunlin-iot/dunlin"
)

// A frame is what one node sends another, in the one protobuf message that crosses remote (google.protobuf.BytesValue):
//
//	 0  version u8    1
//	 1  kind u8       1 request, 2 answer, 3 error, 4 hello
//	 2  method u8     length of the method's name; a request's
//	 3  –             0
//	 4  arg u32       request: time left to answer, ms; error: which of errs it is, as bits
//	 8  from u64      sender's node id: must be that of its certificate
//	16  to u64        whom it is meant for
//	24  call u64      the sender's number of the call; an answer has the request's
//	32  method, then body (an error's is its text)
//
// All little-endian. The first 32 bytes stay as they are in later versions, so that those can be refused with an error.
type frame struct {
	version  byte
	kind     byte
	arg      uint32
	from, to dunlin.NodeID
	call     uint64
	method   string
	body     []byte // of the bytes that were parsed
}

const (
	frameVersion   = 1
	frameHeadBytes = 32

	kindRequest = 1
	kindAnswer  = 2
	kindError   = 3
	kindHello   = 4

	// frameOverhead is more than a frame is longer than its body, once it is wrapped.
	frameOverhead = frameHeadBytes + methodBytesMax + 64
)

// bytes returns the frame in memory of its own.
func (f *frame) bytes() []byte {
	b := make([]byte, frameHeadBytes, frameHeadBytes+len(f.method)+len(f.body))
	b[0], b[1], b[2] = f.version, f.kind, byte(len(f.method))
	binary.LittleEndian.PutUint32(b[4:], f.arg)
	binary.LittleEndian.PutUint64(b[8:], uint64(f.from))
	binary.LittleEndian.PutUint64(b[16:], uint64(f.to))
	binary.LittleEndian.PutUint64(b[24:], f.call)
	b = append(b, f.method...)
	return append(b, f.body...)
}

// parseFrame reads a frame; the bytes come from the network. Of another version it reads the head only.
func parseFrame(b []byte) (frame, error) {
	if len(b) < frameHeadBytes {
		return frame{}, fmt.Errorf("%w: frame of %d bytes", dunlin.ErrInvalid, len(b))
	}
	f := frame{version: b[0], kind: b[1], arg: binary.LittleEndian.Uint32(b[4:]),
		from: frameFrom(b), to: dunlin.NodeID(binary.LittleEndian.Uint64(b[16:])), call: binary.LittleEndian.Uint64(b[24:])}
	if f.version != frameVersion {
		return f, nil
	}
	method, rest := int(b[2]), b[frameHeadBytes:]
	if f.kind < kindRequest || f.kind > kindHello || method > len(rest) || (method > 0) != (f.kind == kindRequest) {
		return frame{}, fmt.Errorf("%w: frame of kind %d with a method of %d bytes and %d left", dunlin.ErrInvalid, f.kind, method, len(rest))
	}
	f.method, f.body = string(rest[:method]), rest[method:]
	return f, nil
}

// frameFrom reads the sender of a frame that is long enough.
func frameFrom(b []byte) dunlin.NodeID { return dunlin.NodeID(binary.LittleEndian.Uint64(b[8:])) }

// errs are the errors that callers branch on, by their bit in an error frame: at most 32. Only ever append.
func errs() [16]error {
	return [16]error{
		dunlin.ErrInvalid, dunlin.ErrBadPayload, dunlin.ErrFormat, dunlin.ErrTooLarge,
		dunlin.ErrUnauthenticated, dunlin.ErrForbidden, dunlin.ErrNotFound, dunlin.ErrUnknownDevice,
		dunlin.ErrConflict, dunlin.ErrPrecondition, dunlin.ErrOverloaded, dunlin.ErrUnavailable,
		dunlin.ErrNotOwner, dunlin.ErrCursorLost, context.DeadlineExceeded, context.Canceled,
	}
}

// ctxBits are the bits of a context's errors in errs.
const ctxBits = 1<<14 | 1<<15

// errorTextMax bounds an error's text on the wire.
const errorTextMax = 4 << 10

// packError says an error in an error frame's words.
func packError(err error) (bits uint32, text string) {
	all := errs()
	for i, is := range all {
		if errors.Is(err, is) {
			bits |= 1 << i
		}
	}
	if bits&^ctxBits == 0 && bits != 0 {
		bits |= 1 << slices.Index(all[:], dunlin.ErrUnavailable) // what ran out of time may or may not have been done
	}
	text = err.Error()
	if len(text) > errorTextMax {
		text = strings.ToValidUTF8(text[:errorTextMax], "")
	}
	return bits, text
}

// remoteError is an error that another node answered with. It is whatever it was there.
type remoteError struct {
	text string
	bits uint32
}

func unpackError(bits uint32, text []byte) error {
	e := &remoteError{bits: bits, text: string(text[:min(len(text), errorTextMax)])}
	if !utf8.ValidString(e.text) {
		e.text = strings.ToValidUTF8(e.text, "�")
	}
	return e
}

// Error implements error.
func (e *remoteError) Error() string { return e.text }

// Is makes errors.Is see the sentinels of the other side.
func (e *remoteError) Is(target error) bool {
	for i, is := range errs() {
		if is == target {
			return e.bits&(1<<i) != 0
		}
	}
	return false
}

func millis(d time.Duration) uint32 { return uint32(min(max(d, 0), timeoutMax) / time.Millisecond) }
