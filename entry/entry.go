// Package entry has the bytes of what the log and the store keep: dunlin.Entry, one proposal of a shard's owner, and
// dunlin.DeviceState, a device's state or a delta of it. docs/formats/entry.md shows them as boxes.
//
// The bytes are compact because every one of them is written to disk by every replica and sent to two peers: names are
// spelled once an entry, a metric and its unit are one reference that is mostly predicted, times are relative, and
// numbers that are short decimals (nearly all that sensors send) are small integers. Nothing is lost: any float64 comes
// back with its bits, and Decode(Append(e)) is e, but for empty slices, which come back nil.
//
// Bytes from a disk or a peer are not trusted: Decode and DecodeState refuse what they cannot read with an error that
// wraps dunlin.ErrInvalid, never panic, and never allocate on the word of a length alone.
//
// Part of the runtime; no compatibility promise before v1.
package entry

import (
	"fmt"

	"github.com/dunlin-iot/dunlin"
)

// Version is the newest first byte of an entry that this build reads and writes, and StateVersion that of a state. A build
// reads all versions up to its own; it never guesses at a later one. What a replica keeps for itself must be the same on all
// of them, whatever their builds: it has the oldest version that says it, BaseVersion mostly. What only a later one can say
// is not there before every node reads that.
const (
	BaseVersion  = 1
	StateVersion = stateEffects

	stateBase    = 1
	stateEffects = 2
)

// Append appends the bytes of e to dst, in the oldest version that says all of it. The same entry always has the same bytes.
func Append(dst []byte, e *dunlin.Entry) []byte { return AppendAs(dst, e, Needs(e)) }

// AppendAs appends the bytes of e in a version that everybody who is to read it knows: while a cluster is upgraded, the
// oldest of its nodes' newest. What the version has no place for is left out; see Needs.
func AppendAs(dst []byte, e *dunlin.Entry, version uint32) []byte {
	w := writer{b: dst, at: e.At, format: dunlin.FormatSenMLJSON}
	version = min(max(version, BaseVersion), Version)
	w.version = uint8(version)
	w.byte(w.version)
	if version >= versionFeatures {
		w.uvarint(features)
	}
	w.uvarint(uint64(e.Shard))
	w.uvarint(e.Term)
	w.varint(int64(e.At))
	w.uvarint(uint64(len(e.Changes)))
	w.uvarint(uint64(len(e.Puts)))
	if len(e.Changes) > 0 {
		var inputs, records, stages, timers int
		for i := range e.Changes {
			c := &e.Changes[i]
			inputs += len(c.Inputs)
			stages += len(c.Stages)
			timers += len(c.Timers)
			for j := range c.Inputs {
				records += len(c.Inputs[j].Records)
			}
			for j := range c.Stages {
				records += len(c.Stages[j].Records)
			}
		}
		w.uvarint(uint64(inputs))
		w.uvarint(uint64(records))
		w.uvarint(uint64(stages))
		w.uvarint(uint64(timers))
	}
	for i := range e.Changes {
		w.change(&e.Changes[i])
	}
	for i := range e.Puts {
		w.put(&e.Puts[i])
	}
	return w.b
}

// Decode reads what Append wrote. The entry's strings and byte slices are b itself, not copies: b must never change
// afterwards, and whoever keeps a string of the entry keeps b; clone what is to outlive the entry.
func Decode(b []byte) (*dunlin.Entry, error) {
	if len(b) == 0 {
		return nil, fmt.Errorf("%w: entry of no bytes", dunlin.ErrInvalid)
	}
	if b[0] < BaseVersion || b[0] > Version {
		return nil, fmt.Errorf("%w: entry of version %d, this build reads versions %d to %d", dunlin.ErrInvalid, b[0], BaseVersion, Version)
	}
	r := reader{b: b, i: 1, budget: budgetFor(b), format: dunlin.FormatSenMLJSON}
	r.changeBits, r.stageBits = knownBits(b[0])
	if b[0] >= versionFeatures && r.uvarint("features") != features {
		return nil, fmt.Errorf("%w: entry with features that this build does not know", dunlin.ErrInvalid)
	}
	e := r.entry()
	if r.what == "" && r.i != len(b) {
		r.fail("end of the entry")
	}
	if r.what != "" {
		return nil, fmt.Errorf("%w: entry of %d bytes: byte %d: no valid %s", dunlin.ErrInvalid, len(b), r.failedAt, r.what)
	}
	return e, nil
}

// AppendState appends the bytes of s, a whole state or a delta with its tombstones (cleared alerts, timers due at 0, commands
// with deadline 0), to dst, in the oldest version that says all of it. The same state always has the same bytes.
func AppendState(dst []byte, s *dunlin.DeviceState) []byte {
	w := writer{b: dst, at: s.SeenAt, prev: s.SeenAt, key: s.DeviceKey, domain: s.Domain}
	w.version = stateNeeds(s)
	w.byte(w.version)
	w.state(s)
	return w.b
}

// DecodeState reads what AppendState wrote. The state's strings and byte slices are b itself, as Decode's are.
func DecodeState(b []byte) (*dunlin.DeviceState, error) {
	s := new(dunlin.DeviceState)
	if err := DecodeStateInto(s, b); err != nil {
		return nil, err
	}
	return s, nil
}

// DecodeStateInto is DecodeState into the memory of s, which loses what it held, also if there is an error.
func DecodeStateInto(s *dunlin.DeviceState, b []byte) error {
	if len(b) == 0 {
		return fmt.Errorf("%w: state of no bytes", dunlin.ErrInvalid)
	}
	if b[0] < stateBase || b[0] > StateVersion {
		return fmt.Errorf("%w: state of version %d, this build reads versions %d to %d", dunlin.ErrInvalid, b[0], stateBase, StateVersion)
	}
	r := reader{b: b, i: 1, budget: budgetFor(b)}
	r.state(s, b[0] >= stateEffects)
	if r.what == "" && r.i != len(b) {
		r.fail("end of the state")
	}
	if r.what != "" {
		return fmt.Errorf("%w: state of %d bytes: byte %d: no valid %s", dunlin.ErrInvalid, len(b), r.failedAt, r.what)
	}
	return nil
}
