package store

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/dunlin-iot/dunlin"
)

// What a page's cursor goes on with. The kind is in the sum, so that one list's cursor is none of another's.
const (
	cursorReadings = 'r'
	cursorAlerts   = 'a'
)

// pageCursor makes a position in a list a text for links: base64 of it and a sum. Nearly every short text is base64 of some
// position; without the sum a mistyped cursor would be answered with an empty page or a wrong one instead of an error.
func pageCursor(kind byte, at []byte) string {
	b := append(make([]byte, 0, len(at)+4), at...)
	return base64.RawURLEncoding.EncodeToString(binary.BigEndian.AppendUint32(b, cursorSum(kind, at)))
}

// parsePageCursor reads what pageCursor made.
func parsePageCursor(kind byte, s string) ([]byte, error) {
	b, err := base64.RawURLEncoding.Strict().DecodeString(s)
	if err != nil || len(b) <= 4 {
		return nil, badCursor(s)
	}
	at, sum := b[:len(b)-4], b[len(b)-4:]
	if binary.BigEndian.Uint32(sum) != cursorSum(kind, at) {
		return nil, badCursor(s)
	}
	return at, nil
}

func cursorSum(kind byte, at []byte) uint32 {
	return crc32.Update(crc32.ChecksumIEEE([]byte{kind}), crc32.IEEETable, at)
}

func badCursor(s string) error {
	return fmt.Errorf("%w: cursor %q is of no page of this list: take it from a page's next link", dunlin.ErrInvalid, s)
}
