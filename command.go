package dunlin

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds and defaults of what plugins send out.
const (
	CommandNameBytesMax    = 128            // of a command's name
	CommandBytesMax        = 4 << 10        // of a command's payload: it is part of its device's state while it waits
	CommandDeadlineDefault = 24 * time.Hour // if the plugin names none
	CommandIDBytesMax      = 32
	PublicationBytesMax    = 32 << 10 // of a publication's payload
	PublicationsPerTurnMax = 64       // of one device's turn
)

// ValidateCommandName reports whether name can name a command: 1 to 128 of [A-Za-z0-9:._-].
func ValidateCommandName(name string) error {
	if name == "" || len(name) > CommandNameBytesMax {
		return fmt.Errorf("%w: command name has %d bytes, want 1 to %d", ErrInvalid, len(name), CommandNameBytesMax)
	}
	for i := range len(name) {
		c := name[i]
		alnum := 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
		if !alnum && c != ':' && c != '.' && c != '_' && c != '-' {
			return fmt.Errorf("%w: command name %q: byte %d (%q) is not allowed there", ErrInvalid, name, i, c)
		}
	}
	return nil
}

// ValidateTopic reports whether topic can be a publication's: a metric's alphabet and length, with no empty level.
func ValidateTopic(topic string) error {
	if err := ValidateMetric(topic); err != nil {
		return fmt.Errorf("topic: %w", err)
	}
	if strings.Contains(topic, "//") || strings.HasSuffix(topic, "/") {
		return fmt.Errorf("%w: topic %q has an empty level", ErrInvalid, topic)
	}
	return nil
}

// CommandID is the id of the nth command, from 0, that an input made, which is unique at its device.
func CommandID(seq uint64, n int) string {
	return strconv.FormatUint(seq, 10) + "-" + strconv.Itoa(n)
}

// ParseCommandID reads what CommandID wrote, and nothing else.
func ParseCommandID(id string) (seq uint64, n int, err error) {
	a, b, ok := strings.Cut(id, "-")
	seq, err1 := strconv.ParseUint(a, 10, 64)
	m, err2 := strconv.ParseUint(b, 10, 31)
	if !ok || err1 != nil || err2 != nil || CommandID(seq, int(m)) != id {
		return 0, 0, fmt.Errorf("%w: command id %.40q: want two numbers, as in 1234-0", ErrInvalid, id)
	}
	return seq, int(m), nil
}

// SortCommands brings commands into the order in which they were made.
func SortCommands(cs []Command) {
	slices.SortFunc(cs, func(a, b Command) int {
		s, n, _ := ParseCommandID(a.ID)
		t, m, _ := ParseCommandID(b.ID)
		return cmp.Or(cmp.Compare(s, t), cmp.Compare(n, m), strings.Compare(a.ID, b.ID))
	})
}

// ID names a dead letter at its tenant: "device/stage/seq".
func (l *DeadLetter) ID() string { return fmt.Sprintf("%s/%d/%d", l.Device, l.Stage, l.Seq) }

// Key is the key of a Put that deletes the letter: "tenant/device/stage/seq".
func (l *DeadLetter) Key() string { return string(l.Tenant) + "/" + l.ID() }

// ParseDeadLetterKey reads what DeadLetter.Key wrote, and nothing else.
func ParseDeadLetterKey(key string) (k DeviceKey, stage uint8, seq uint64, err error) {
	bad := fmt.Errorf("%w: dead letter %.200q: want tenant/device/stage/seq", ErrInvalid, key)
	parts := strings.Split(key, "/")
	if len(parts) != 4 {
		return k, 0, 0, bad
	}
	k = DeviceKey{Tenant(parts[0]), DeviceID(parts[1])}
	st, err1 := strconv.ParseUint(parts[2], 10, 8)
	seq, err2 := strconv.ParseUint(parts[3], 10, 64)
	l := DeadLetter{DeviceKey: k, Stage: uint8(st & math.MaxUint8), Seq: seq}
	if err1 != nil || err2 != nil || k.Tenant == "" || k.Device == "" || l.Key() != key {
		return DeviceKey{}, 0, 0, bad
	}
	return k, l.Stage, seq, nil
}
