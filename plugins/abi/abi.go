// Package abi is what host and guest share of plugin ABI v1: names, numbers and the bytes of frames. api/plugin-abi.md
// describes the same for authors of other SDKs.
//
// A frame is a sequence of records, little-endian, each beginning at a multiple of 8:
//
//	 0       4       6       8
//	┌───────┬───────┬───────┬──────────────────┬─────────┐
//	│ len   │ kind  │ flags │ body …           │ padding │
//	│ u32   │ u16   │ u16   │ len−8 bytes      │ to 8    │
//	└───────┴───────┴───────┴──────────────────┴─────────┘
//
// len counts the header and the body, not the padding. Whoever reads a frame skips kinds that it does not know, so that
// new kinds of input do not change the ABI. To a guest, kinds up to InputMax are inputs, which count when inputs are
// numbered whether they are known or not; those up to NoteMax are notes, which never count.
//
// Version 1 is frozen: what is here stays as it is, and what is new gets new kinds, flags, or fields at a record's end.
//
// The package imports only the standard library and allocates nothing when reading: guests compile it too.
//
// Part of the runtime; no compatibility promise before v1. The bytes themselves are versioned by ExportMarker.
package abi

import (
	"encoding/binary"
	"errors"
)

// What a module exports.
const (
	ExportMemory     = "memory"
	ExportMarker     = "dunlin_abi_v1"  // () → (): its presence says which ABI the module speaks; never called
	ExportBuffer     = "dunlin_buffer"  // (size i32) → ptr i32: at least size bytes, 8-aligned, the host's until the next call
	ExportInit       = "dunlin_init"    // (len i32) → i64: the buffer holds a frame with KindConfig
	ExportProcess    = "dunlin_process" // (len i32) → i64: the buffer holds a frame that begins with KindBatch
	ExportInitialize = "_initialize"    // () → (), optional: called once after instantiation
)

// What a module may import, besides a part of wasi_snapshot_preview1.
const (
	ImportModule = "dunlin_v1"
	ImportLog    = "log" // (level i32, ptr i32, len i32) → ()
	ImportWASI   = "wasi_snapshot_preview1"
)

// Kind says what a record is.
type Kind uint16

// Records to the guest.
const (
	KindName      Kind = 1 // u32 id, then the name: what this id means in readings from now on
	KindForget    Kind = 2 // all ids are void; new KindName records follow
	KindConfig    Kind = 3 // the plugin's configuration, a JSON object; in the frame of ExportInit
	KindBatch     Kind = 4 // first in a frame of ExportProcess, see AppendBatch
	KindDevice    Kind = 5 // begins a device's inputs, see Device
	KindTelemetry Kind = 6 // an input: readings, see Telemetry
	KindRaw       Kind = 7 // an input: a payload as it came, see Raw
	KindTimer     Kind = 8 // an input: a timer is due, see Timer

	KindResult    Kind = 9  // an input: what became of a command, see CommandResult
	KindLifecycle Kind = 10 // an input: what happened to the device's registration, see Lifecycle

	// Notes stand behind KindDevice and before the first input.
	KindMigrate    Kind = 128 // u32 module, u32 0: the device's state was made by another version of the plugin, see Migrate
	KindConfigured Kind = 129 // no body: the device's state was made under another configuration
)

// Kinds to the guest, known or not, are inputs up to InputMax and notes from there to NoteMax.
const (
	InputMax Kind = 127
	NoteMax  Kind = 191
)

// Records from the guest.
const (
	KindGroup   Kind = 256 // u32 index of the device in the input frame: what follows is about it
	KindState   Kind = 257 // the device's new state
	KindAlert   Kind = 258 // see Alert
	KindReading Kind = 259 // a derived reading, see Derived
	KindSet     Kind = 260 // arms or cancels a timer, see AppendSet
	KindLog     Kind = 261 // flags: level; body: text
	KindError   Kind = 262 // body: why the plugin refuses this device's inputs; nothing else of the group counts. With FlagInput see AppendInputError
	KindCommand Kind = 263 // a command to the device, see Command
	KindPublish Kind = 264 // a message to applications, see Publication
)

// Value kinds of a reading: as dunlin.ValueKind.
const (
	ValueNumber  uint8 = 1
	ValueBoolean uint8 = 2
	ValueText    uint8 = 3
	ValueData    uint8 = 4
)

// Severities of an alert: as dunlin.Severity.
const (
	SeverityInfo     uint8 = 1
	SeverityWarning  uint8 = 2
	SeverityMajor    uint8 = 3
	SeverityCritical uint8 = 4
)

// Levels of a log record.
const (
	LogDebug uint16 = 0
	LogInfo  uint16 = 1
	LogWarn  uint16 = 2
	LogError uint16 = 3
)

// Flags of records, in the header.
const (
	FlagRaise    uint16 = 1 // KindAlert: raises; without it and FlagUpdate the record clears
	FlagUpdate   uint16 = 2 // KindAlert: text, value and severity of an alert that is active; never with FlagRaise
	FlagInput    uint16 = 1 // KindError: refuses one input alone
	FlagTimedOut uint16 = 1 // KindResult: nobody answered until the deadline
)

// Capabilities that a module's manifest asks for.
const (
	CapabilityCommand = "command" // KindCommand
	CapabilityPublish = "publish" // KindPublish
)

// ManifestSection is the custom section of a module that holds its manifest, a JSON object of at most ManifestBytesMax.
const (
	ManifestSection  = "dunlin.manifest"
	ManifestBytesMax = 64 << 10
)

// NaN is how "no value" is written: the quiet NaN whose payload is zero, as most languages have it (Go's math.NaN does not).
const NaN uint64 = 0x7ff8 << 48

// ResultError is the bit of an i64 result that says: the call failed as a whole, and ptr and len are a text that says why.
const ResultError uint64 = 1 << 63

// Result packs what ExportInit and ExportProcess return.
func Result(ptr, size uint32) uint64 { return uint64(ptr)<<32 | uint64(size) }

// Sizes of fixed parts, in bytes.
const (
	HeaderSize    = 8
	ReadingSize   = 24
	DeviceSize    = HeaderSize + 16
	TelemetrySize = HeaderSize + 16
	batchSize     = HeaderSize + 16
	rawSize       = HeaderSize + 16
	timerSize     = HeaderSize + 8
	resultSize    = HeaderSize + 16
	lifecycleSize = HeaderSize + 8
	migrateSize   = HeaderSize + 8
	alertSize     = HeaderSize + 24
	derivedSize   = HeaderSize + 24
	setSize       = HeaderSize + 8
	inputErrSize  = HeaderSize + 4
	commandSize   = HeaderSize + 16
	publishSize   = HeaderSize + 8
)

// ErrFrame is returned for bytes that are no frame.
var ErrFrame = errors.New("bad frame")

var le = binary.LittleEndian

// Align returns n rounded up to a multiple of 8.
func Align(n int) int { return (n + 7) &^ 7 }

// Reader walks a frame's records.
type Reader struct {
	b   []byte
	off int
}

// NewReader returns a Reader at the first record of b.
func NewReader(b []byte) Reader { return Reader{b: b} }

// Offset returns where the next record begins.
func (r *Reader) Offset() int { return r.off }

// Next returns the next record, header included and padding left out; rec is nil at the end. Bytes that are no record,
// such as a length beyond the frame, are ErrFrame.
func (r *Reader) Next() (kind Kind, flags uint16, rec []byte, err error) {
	rest := r.b[r.off:]
	if len(rest) == 0 {
		return 0, 0, nil, nil
	}
	if len(rest) < HeaderSize {
		return 0, 0, nil, ErrFrame
	}
	h := le.Uint64(rest)
	n := int(uint32(h))
	if n < HeaderSize || n > len(rest) {
		return 0, 0, nil, ErrFrame
	}
	// The last record's padding may be missing.
	r.off += min(Align(n), len(rest))
	return Kind(h >> 32), uint16(h >> 48), rest[:n:n], nil
}

// extend makes dst longer by n bytes, whose last eight are zero; the others are to be written by the caller. Encoders
// extend once and then store: every append is a branch more, and Go guests pay dearly for branches.
func extend(dst []byte, n int) []byte {
	if cap(dst)-len(dst) < n {
		dst = grow(dst, n)
	}
	dst = dst[:len(dst)+n]
	le.PutUint64(dst[len(dst)-8:], 0)
	return dst
}

func grow(dst []byte, n int) []byte {
	return append(make([]byte, 0, max(2*cap(dst), len(dst)+n, 256)), dst...)
}

// begin extends dst by a record of size bytes with its padding, and writes the header.
func begin(dst []byte, size int, kind Kind, flags uint16) (_ []byte, rec []byte) {
	at := len(dst)
	dst = extend(dst, Align(size))
	rec = dst[at:]
	le.PutUint64(rec, uint64(uint32(size))|uint64(kind)<<32|uint64(flags)<<48)
	return dst, rec
}

// AppendText appends a record whose body is s: KindConfig, KindState, KindLog, KindError. dst begins at a frame's start,
// as for every Append of this package.
func AppendText[T string | []byte](dst []byte, kind Kind, flags uint16, s T) []byte {
	dst, rec := begin(dst, HeaderSize+len(s), kind, flags)
	copy(rec[HeaderSize:], s)
	return dst
}

// Body returns the body of a record.
func Body(rec []byte) []byte { return rec[HeaderSize:] }
