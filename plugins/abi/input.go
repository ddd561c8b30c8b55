package abi

import "math"

// Reading is one reading of a telemetry record, as it lies in the frame: 24 bytes.
//
//	 0        4      6      7       8         16        24
//	┌────────┬──────┬──────┬───────┬─────────┬─────────┐
//	│ metric │ unit │ kind │ flags │ time    │ value   │
//	│ u32    │ u16  │ u8   │ u8    │ i64, µs │ f64     │
//	└────────┴──────┴──────┴───────┴─────────┴─────────┘
//
// Metric and Unit are ids that a KindName record defined; 0 is the empty name. Value is 0 or 1 for a boolean. For text
// and data its bits are u32 offset and u32 length of the bytes, from the start of the telemetry record. The fields stand
// where a Go compiler puts them, so that a little-endian guest may use the frame's bytes as a []Reading.
type Reading struct {
	Metric uint32
	Unit   uint16
	Kind   uint8
	Flags  uint8
	Time   int64
	Value  float64
}

// Span returns where the bytes of a text or data reading lie in its telemetry record.
func (r *Reading) Span() (off, size uint32) {
	bits := math.Float64bits(r.Value)
	return uint32(bits), uint32(bits >> 32)
}

// AppendName appends a KindName record.
func AppendName(dst []byte, id uint32, name string) []byte {
	dst, rec := begin(dst, HeaderSize+4+len(name), KindName, 0)
	le.PutUint32(rec[8:], id)
	copy(rec[12:], name)
	return dst
}

// Name reads a KindName record.
func Name(rec []byte) (id uint32, name []byte, err error) {
	if len(rec) < HeaderSize+4 {
		return 0, nil, ErrFrame
	}
	return le.Uint32(rec[HeaderSize:]), rec[HeaderSize+4:], nil
}

// AppendForget appends a KindForget record.
func AppendForget(dst []byte) []byte { return AppendText(dst, KindForget, 0, "") }

// AppendBatch appends a KindBatch record: i64 now (µs), u32 devices in the frame, u32 inputs in the frame.
func AppendBatch(dst []byte, now int64, devices, inputs int) []byte {
	dst, rec := begin(dst, batchSize, KindBatch, 0)
	le.PutUint64(rec[8:], uint64(now))
	le.PutUint64(rec[16:], uint64(uint32(devices))|uint64(inputs)<<32)
	return dst
}

// Batch reads a KindBatch record.
func Batch(rec []byte) (now int64, devices, inputs uint32, err error) {
	if len(rec) < batchSize {
		return 0, 0, 0, ErrFrame
	}
	return int64(le.Uint64(rec[8:])), le.Uint32(rec[16:]), le.Uint32(rec[20:]), nil
}

// AppendDevice appends a KindDevice record, which begins a device's inputs:
//
//	 8         16         20         24
//	┌─────────┬──────────┬──────────┬────┬─────────┬───────┐
//	│ seq u64 │ id len   │ state len│ id │ pad to 8│ state │
//	└─────────┴──────────┴──────────┴────┴─────────┴───────┘
//
// seq is the sequence number of the first input that follows; the others count on.
func AppendDevice[T ~string](dst []byte, seq uint64, id T, state []byte) []byte {
	at := Align(DeviceSize + len(id))
	dst, rec := begin(dst, at+len(state), KindDevice, 0)
	le.PutUint64(rec[8:], seq)
	le.PutUint64(rec[16:], uint64(uint32(len(id)))|uint64(len(state))<<32)
	le.PutUint64(rec[at-8:], 0) // padding of the id, unless the id is empty
	le.PutUint64(rec[16:], uint64(uint32(len(id)))|uint64(len(state))<<32)
	copy(rec[DeviceSize:], id)
	copy(rec[at:], state)
	return dst
}

// Device reads a KindDevice record.
func Device(rec []byte) (seq uint64, id, state []byte, err error) {
	if len(rec) < DeviceSize {
		return 0, nil, nil, ErrFrame
	}
	ids, states := uint64(le.Uint32(rec[16:])), uint64(le.Uint32(rec[20:]))
	at := (DeviceSize + ids + 7) &^ 7
	if at+states > uint64(len(rec)) {
		return 0, nil, nil, ErrFrame
	}
	return le.Uint64(rec[8:]), rec[DeviceSize : DeviceSize+ids], rec[at : at+states], nil
}

// BeginTelemetry appends the fixed part of a KindTelemetry record; readings and EndTelemetry follow:
//
//	 8              16         20      24
//	┌──────────────┬──────────┬───────┬──────────────────────┬──────────────┐
//	│ received i64 │ readings │ flags │ readings × 24 bytes  │ text, data … │
//	│ µs           │ u32      │ u32   │ see Reading          │              │
//	└──────────────┴──────────┴───────┴──────────────────────┴──────────────┘
//
// flags are those of a dunlin.Input.
func BeginTelemetry(dst []byte, received int64, readings int, flags uint32) []byte {
	dst, rec := begin(dst, TelemetrySize, KindTelemetry, 0)
	le.PutUint64(rec[8:], uint64(received))
	le.PutUint64(rec[16:], uint64(uint32(readings))|uint64(flags)<<32)
	return dst
}

// AppendReading appends one reading of a telemetry record.
func AppendReading(dst []byte, r Reading) []byte {
	at := len(dst)
	dst = extend(dst, ReadingSize)
	b := dst[at:][:ReadingSize]
	le.PutUint64(b, uint64(r.Metric)|uint64(r.Unit)<<32|uint64(r.Kind)<<48|uint64(r.Flags)<<56)
	le.PutUint64(b[8:], uint64(r.Time))
	le.PutUint64(b[16:], math.Float64bits(r.Value))
	return dst
}

// AppendValue appends the bytes of the i-th reading of the telemetry record that begins at start: a text or data, after
// all readings.
func AppendValue(dst []byte, start, i int, value string) []byte {
	at := start + TelemetrySize + i*ReadingSize + 16
	le.PutUint32(dst[at:], uint32(len(dst)-start))
	le.PutUint32(dst[at+4:], uint32(len(value)))
	return append(dst, value...)
}

// EndTelemetry completes the telemetry record that begins at start.
func EndTelemetry(dst []byte, start int) []byte {
	n := len(dst)
	le.PutUint32(dst[start:], uint32(n-start))
	if pad := Align(n) - n; pad > 0 {
		dst = extend(dst, 8)[:n+pad]
	}
	return dst
}

// Telemetry reads a KindTelemetry record; readings are n × ReadingSize bytes for ReadingAt.
func Telemetry(rec []byte) (received int64, flags uint32, readings []byte, err error) {
	if len(rec) < TelemetrySize {
		return 0, 0, nil, ErrFrame
	}
	n := uint64(le.Uint32(rec[16:]))
	if TelemetrySize+n*ReadingSize > uint64(len(rec)) {
		return 0, 0, nil, ErrFrame
	}
	return int64(le.Uint64(rec[8:])), le.Uint32(rec[20:]), rec[TelemetrySize : TelemetrySize+n*ReadingSize], nil
}

// ReadingAt reads the i-th of the readings that Telemetry returned.
func ReadingAt(readings []byte, i int) Reading {
	b := readings[i*ReadingSize:][:ReadingSize]
	h := le.Uint64(b)
	return Reading{Metric: uint32(h), Unit: uint16(h >> 32), Kind: uint8(h >> 48), Flags: uint8(h >> 56),
		Time: int64(le.Uint64(b[8:])), Value: math.Float64frombits(le.Uint64(b[16:]))}
}

// AppendRaw appends a KindRaw record: i64 received (µs), u32 content format, u32 flags, payload.
func AppendRaw(dst []byte, received int64, format uint16, flags uint32, payload []byte) []byte {
	dst, rec := begin(dst, rawSize+len(payload), KindRaw, 0)
	le.PutUint64(rec[8:], uint64(received))
	le.PutUint64(rec[16:], uint64(format)|uint64(flags)<<32)
	copy(rec[rawSize:], payload)
	return dst
}

// Raw reads a KindRaw record.
func Raw(rec []byte) (received int64, format uint16, flags uint32, payload []byte, err error) {
	if len(rec) < rawSize {
		return 0, 0, 0, nil, ErrFrame
	}
	return int64(le.Uint64(rec[8:])), uint16(le.Uint32(rec[16:])), le.Uint32(rec[20:]), rec[rawSize:], nil
}

// AppendTimer appends a KindTimer record: i64 due (µs), name.
func AppendTimer(dst []byte, due int64, name string) []byte {
	dst, rec := begin(dst, timerSize+len(name), KindTimer, 0)
	le.PutUint64(rec[8:], uint64(due))
	copy(rec[timerSize:], name)
	return dst
}

// Timer reads a KindTimer record.
func Timer(rec []byte) (due int64, name []byte, err error) {
	if len(rec) < timerSize {
		return 0, nil, ErrFrame
	}
	return int64(le.Uint64(rec[8:])), rec[timerSize:], nil
}

// AppendCommandResult appends a KindResult record; FlagTimedOut is in the header:
//
//	 8              16           20         24
//	┌──────────────┬────────────┬──────────┬────┬──────────┬─────────┐
//	│ received i64 │ content    │ id bytes │ id │ zeros    │ payload │
//	│ µs           │ format u32 │ u32      │    │ to 8     │         │
//	└──────────────┴────────────┴──────────┴────┴──────────┴─────────┘
func AppendCommandResult(dst []byte, received int64, format uint16, timedOut bool, id string, payload []byte) []byte {
	flags := uint16(0)
	if timedOut {
		flags = FlagTimedOut
	}
	at := Align(resultSize + len(id))
	dst, rec := begin(dst, at+len(payload), KindResult, flags)
	le.PutUint64(rec[8:], uint64(received))
	le.PutUint64(rec[at-8:], 0) // padding of the id, unless the id is empty
	le.PutUint64(rec[16:], uint64(format)|uint64(uint32(len(id)))<<32)
	copy(rec[resultSize:], id)
	copy(rec[at:], payload)
	return dst
}

// CommandResult reads a KindResult record. Whether it is one of the deadline is in the header's flags.
func CommandResult(rec []byte) (received int64, format uint16, id, payload []byte, err error) {
	if len(rec) < resultSize {
		return 0, 0, nil, nil, ErrFrame
	}
	ids := uint64(le.Uint32(rec[20:]))
	at := (resultSize + ids + 7) &^ 7
	if at > uint64(len(rec)) {
		return 0, 0, nil, nil, ErrFrame
	}
	return int64(le.Uint64(rec[8:])), uint16(le.Uint32(rec[16:])), rec[resultSize : resultSize+ids], rec[at:], nil
}

// AppendLifecycle appends a KindLifecycle record: i64 at (µs), then an object as JSON.
func AppendLifecycle(dst []byte, at int64, event []byte) []byte {
	dst, rec := begin(dst, lifecycleSize+len(event), KindLifecycle, 0)
	le.PutUint64(rec[8:], uint64(at))
	copy(rec[lifecycleSize:], event)
	return dst
}

// Lifecycle reads a KindLifecycle record.
func Lifecycle(rec []byte) (at int64, event []byte, err error) {
	if len(rec) < lifecycleSize {
		return 0, nil, ErrFrame
	}
	return int64(le.Uint64(rec[8:])), rec[lifecycleSize:], nil
}

// AppendMigrate appends a KindMigrate record: u32 module, the first four bytes of the hash of the module that made the
// device's state, as a big-endian number; u32 0.
func AppendMigrate(dst []byte, module uint32) []byte {
	dst, rec := begin(dst, migrateSize, KindMigrate, 0)
	le.PutUint64(rec[8:], uint64(module))
	return dst
}

// Migrate reads a KindMigrate record.
func Migrate(rec []byte) (module uint32, err error) {
	if len(rec) < migrateSize {
		return 0, ErrFrame
	}
	return le.Uint32(rec[8:]), nil
}

// AppendConfigured appends a KindConfigured record.
func AppendConfigured(dst []byte) []byte { return AppendText(dst, KindConfigured, 0, "") }
