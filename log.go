package dunlin

import (
	"encoding/base64"
	"encoding/binary"
	"fmt"
)

// Committed is a Raft log entry that a majority holds, on its way to a state machine. Data nil: an entry of Raft's own
// (a new leader's first, a membership change), which only moves the applied index on.
type Committed struct {
	Shard ShardID
	Index uint64
	Term  uint64
	Data  []byte // package entry
	Conf  []byte // not nil: the shard's replica set after this entry, to be kept in the same batch
}

// LogRow is one row to write to the Raft log: an entry (Index > 0), or a shard's hard state (Hard not nil).
// Writing index i deletes every row of the shard behind i first.
type LogRow struct {
	Shard ShardID
	Index uint64
	Term  uint64
	Type  uint8 // Raft's entry type
	Data  []byte
	Hard  []byte
}

// Cursor is a position in the Feed: for each shard the next index to read.
type Cursor []uint64

// String packs the cursor for an SSE id or a page token; ParseCursor reads it.
func (c Cursor) String() string {
	b := make([]byte, 0, 2*len(c)+4)
	for _, next := range c {
		b = binary.AppendUvarint(b, next)
	}
	return base64.RawURLEncoding.EncodeToString(b)
}

// ParseCursor reads what String wrote; shards is how many the node has.
func ParseCursor(s string, shards int) (Cursor, error) {
	b, err := base64.RawURLEncoding.DecodeString(s)
	if err != nil {
		return nil, fmt.Errorf("%w: cursor %q", ErrInvalid, s)
	}
	c := make(Cursor, 0, shards)
	for len(b) > 0 {
		v, n := binary.Uvarint(b)
		if n <= 0 || len(c) == shards {
			return nil, fmt.Errorf("%w: cursor %q", ErrInvalid, s)
		}
		c, b = append(c, v), b[n:]
	}
	if len(c) != shards {
		return nil, fmt.Errorf("%w: cursor %q has %d shards, this cluster %d", ErrInvalid, s, len(c), shards)
	}
	return c, nil
}
