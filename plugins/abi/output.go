package abi

import "math"

// AppendGroup appends a KindGroup record: u32 index of the device in the input frame.
func AppendGroup(dst []byte, index uint32) []byte {
	dst, rec := begin(dst, HeaderSize+4, KindGroup, 0)
	le.PutUint32(rec[8:], index)
	return dst
}

// Group reads a KindGroup record.
func Group(rec []byte) (index uint32, err error) {
	if len(rec) < HeaderSize+4 {
		return 0, ErrFrame
	}
	return le.Uint32(rec[HeaderSize:]), nil
}

// Alert is what a plugin says about a condition. Strings alias the record.
type Alert struct {
	Input    uint32 // index of the device's input that caused it
	Raise    bool
	Update   bool
	Severity uint8
	Value    float64 // NaN: none
	Rule     []byte
	Key      []byte
	Text     []byte
}

// AppendAlert appends a KindAlert record; flags are FlagRaise, FlagUpdate or, to clear, 0. Any NaN is written as NaN:
//
//	 8       12         13   14         16        18   20         24          32
//	┌───────┬──────────┬────┬──────────┬─────────┬────┬──────────┬───────────┬──────┬─────┬──────┐
//	│ input │ severity │ 0  │ rule len │ key len │ 0  │ text len │ value f64 │ rule │ key │ text │
//	│ u32   │ u8       │ u8 │ u16      │ u16     │ u16│ u32      │ NaN: none │      │     │      │
//	└───────┴──────────┴────┴──────────┴─────────┴────┴──────────┴───────────┴──────┴─────┴──────┘
func AppendAlert(dst []byte, flags uint16, input uint32, severity uint8, value float64, rule, key, text string) []byte {
	rule, key = rule[:min(len(rule), math.MaxUint16)], key[:min(len(key), math.MaxUint16)]
	dst, rec := begin(dst, alertSize+len(rule)+len(key)+len(text), KindAlert, flags)
	le.PutUint64(rec[8:], uint64(input)|uint64(severity)<<32|uint64(len(rule))<<48)
	le.PutUint64(rec[16:], uint64(len(key))|uint64(uint32(len(text)))<<32)
	bits := math.Float64bits(value)
	if value != value {
		bits = NaN
	}
	le.PutUint64(rec[24:], bits)
	at := alertSize + copy(rec[alertSize:], rule)
	at += copy(rec[at:], key)
	copy(rec[at:], text)
	return dst
}

// ReadAlert reads a KindAlert record.
func ReadAlert(flags uint16, rec []byte) (a Alert, err error) {
	if len(rec) < alertSize {
		return a, ErrFrame
	}
	h, l := le.Uint64(rec[8:]), le.Uint64(rec[16:])
	rule, key, text := uint64(h>>48), l&0xffff, l>>32
	if alertSize+rule+key+text > uint64(len(rec)) {
		return a, ErrFrame
	}
	s := rec[alertSize:]
	return Alert{Input: uint32(h), Raise: flags&FlagRaise != 0, Update: flags&FlagUpdate != 0, Severity: uint8(h >> 32),
		Value: math.Float64frombits(le.Uint64(rec[24:])),
		Rule:  s[:rule], Key: s[rule : rule+key], Text: s[rule+key : rule+key+text]}, nil
}

// Derived is a reading that a plugin made. Metric, Unit and Bytes alias the record.
type Derived struct {
	Kind   uint8
	Time   int64 // µs; 0: when the last input of the turn was received
	Value  float64
	Metric []byte
	Unit   []byte
	Bytes  []byte // of a text or data
}

// AppendDerived appends a KindReading record:
//
//	 8      9    10           12         14   16          24          32
//	┌──────┬────┬────────────┬──────────┬────┬───────────┬───────────┬────────┬──────┬────────────┐
//	│ kind │ 0  │ metric len │ unit len │ 0  │ time i64  │ value f64 │ metric │ unit │ text, data │
//	│ u8   │ u8 │ u16        │ u16      │ u16│ µs        │           │        │      │            │
//	└──────┴────┴────────────┴──────────┴────┴───────────┴───────────┴────────┴──────┴────────────┘
func AppendDerived(dst []byte, kind uint8, time int64, value float64, metric, unit, bytes string) []byte {
	metric, unit = metric[:min(len(metric), math.MaxUint16)], unit[:min(len(unit), math.MaxUint16)]
	dst, rec := begin(dst, derivedSize+len(metric)+len(unit)+len(bytes), KindReading, 0)
	le.PutUint64(rec[8:], uint64(kind)|uint64(len(metric))<<16|uint64(len(unit))<<32)
	le.PutUint64(rec[16:], uint64(time))
	le.PutUint64(rec[24:], math.Float64bits(value))
	at := derivedSize + copy(rec[derivedSize:], metric)
	at += copy(rec[at:], unit)
	copy(rec[at:], bytes)
	return dst
}

// ReadDerived reads a KindReading record.
func ReadDerived(rec []byte) (d Derived, err error) {
	if len(rec) < derivedSize {
		return d, ErrFrame
	}
	h := le.Uint64(rec[8:])
	metric, unit := h>>16&0xffff, h>>32&0xffff
	s := rec[derivedSize:]
	if metric+unit > uint64(len(s)) {
		return d, ErrFrame
	}
	return Derived{Kind: uint8(h), Time: int64(le.Uint64(rec[16:])), Value: math.Float64frombits(le.Uint64(rec[24:])),
		Metric: s[:metric], Unit: s[metric : metric+unit], Bytes: s[metric+unit:]}, nil
}

// AppendSet appends a KindSet record: i64 due (µs; 0 cancels), name.
func AppendSet(dst []byte, due int64, name string) []byte {
	dst, rec := begin(dst, setSize+len(name), KindSet, 0)
	le.PutUint64(rec[8:], uint64(due))
	copy(rec[setSize:], name)
	return dst
}

// ReadSet reads a KindSet record.
func ReadSet(rec []byte) (due int64, name []byte, err error) {
	if len(rec) < setSize {
		return 0, nil, ErrFrame
	}
	return int64(le.Uint64(rec[8:])), rec[setSize:], nil
}

// AppendInputError appends a KindError record that refuses one input alone: u32 index of the device's input, then why.
func AppendInputError(dst []byte, input uint32, why string) []byte {
	dst, rec := begin(dst, inputErrSize+len(why), KindError, FlagInput)
	le.PutUint32(rec[8:], input)
	copy(rec[inputErrSize:], why)
	return dst
}

// ReadInputError reads a KindError record with FlagInput.
func ReadInputError(rec []byte) (input uint32, why []byte, err error) {
	if len(rec) < inputErrSize {
		return 0, nil, ErrFrame
	}
	return le.Uint32(rec[8:]), rec[inputErrSize:], nil
}

// Command asks the device to do something. Name and Payload alias the record.
type Command struct {
	Deadline int64 // µs; 0: a day from now
	Format   uint16
	Name     []byte
	Payload  []byte
}

// AppendCommand appends a KindCommand record:
//
//	 8              16           18           20              24
//	┌──────────────┬────────────┬────────────┬───────────────┬──────┬─────────┐
//	│ deadline i64 │ content    │ name bytes │ payload bytes │ name │ payload │
//	│ µs           │ format u16 │ u16        │ u32           │      │         │
//	└──────────────┴────────────┴────────────┴───────────────┴──────┴─────────┘
func AppendCommand(dst []byte, deadline int64, format uint16, name string, payload []byte) []byte {
	name = name[:min(len(name), math.MaxUint16)]
	dst, rec := begin(dst, commandSize+len(name)+len(payload), KindCommand, 0)
	le.PutUint64(rec[8:], uint64(deadline))
	le.PutUint64(rec[16:], uint64(format)|uint64(len(name))<<16|uint64(uint32(len(payload)))<<32)
	at := commandSize + copy(rec[commandSize:], name)
	copy(rec[at:], payload)
	return dst
}

// ReadCommand reads a KindCommand record.
func ReadCommand(rec []byte) (c Command, err error) {
	if len(rec) < commandSize {
		return c, ErrFrame
	}
	c.Deadline = int64(le.Uint64(rec[8:]))
	c.Format, c.Name, c.Payload, err = readNamed(rec[commandSize-8:])
	return c, err
}

// Publication is a message to applications. Topic and Payload alias the record.
type Publication struct {
	Format  uint16
	Topic   []byte
	Payload []byte
}

// AppendPublish appends a KindPublish record:
//
//	 8            10            12              16
//	┌────────────┬─────────────┬───────────────┬───────┬─────────┐
//	│ content    │ topic bytes │ payload bytes │ topic │ payload │
//	│ format u16 │ u16         │ u32           │       │         │
//	└────────────┴─────────────┴───────────────┴───────┴─────────┘
func AppendPublish(dst []byte, format uint16, topic string, payload []byte) []byte {
	topic = topic[:min(len(topic), math.MaxUint16)]
	dst, rec := begin(dst, publishSize+len(topic)+len(payload), KindPublish, 0)
	le.PutUint64(rec[8:], uint64(format)|uint64(len(topic))<<16|uint64(uint32(len(payload)))<<32)
	at := publishSize + copy(rec[publishSize:], topic)
	copy(rec[at:], payload)
	return dst
}

// ReadPublish reads a KindPublish record.
func ReadPublish(rec []byte) (p Publication, err error) {
	if len(rec) < publishSize {
		return p, ErrFrame
	}
	p.Format, p.Topic, p.Payload, err = readNamed(rec[publishSize-8:])
	return p, err
}

// readNamed reads u16 content format, u16 name bytes, u32 payload bytes, name, payload.
func readNamed(b []byte) (format uint16, name, payload []byte, err error) {
	h := le.Uint64(b)
	names, payloads := h>>16&0xffff, h>>32
	if b = b[8:]; names+payloads > uint64(len(b)) {
		return 0, nil, nil, ErrFrame
	}
	return uint16(h), b[:names], b[names : names+payloads], nil
}
