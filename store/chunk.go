package store

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"

	"github.com/klauspost/compress/zstd"

	"github.com/dunlin-iot/dunlin"
)

// A snapshot of a shard travels as chunks of rows, not as Pebble's tables: nodes of two versions need not write the same
// tables, and what comes from a peer is read by this file alone before it becomes one. docs/formats/snapshot.md has the bytes.
const (
	chunkVersion  = 1
	chunkRows     = 1         // whole rows
	chunkPart     = 2         // a piece of one row that is larger than chunkRowMax
	chunkRowMax   = 4 << 20   // a row up to this is never cut
	chunkPlainMax = 16 << 20  // what a chunk of rows may decompress to
	chunkValueMax = 512 << 20 // a row that arrives in pieces
	chunkKeyMax   = 64 << 10
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// chunk is one step of a snapshot: all rows of [from, to), or a piece of the row at from.
type chunk struct {
	kind     byte
	from, to []byte
	rows     []snapRow // of chunkRows

	total, offset uint64 // of chunkPart: bytes of the row's value, and of those before the piece
	key, piece    []byte
}

// snapRow is a row of the state engine, folded.
type snapRow struct{ key, value []byte }

// chunker packs and unpacks chunks. Its methods may be called at the same time.
type chunker struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

func newChunker() (*chunker, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(256<<10),
		zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return nil, err
	}
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(chunkPlainMax))
	return &chunker{enc, dec}, err
}

func appendBytes(dst, b []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

func cutBytes(b []byte, most int) (field, rest []byte, ok bool) {
	size, n := binary.Uvarint(b)
	if n <= 0 || size > uint64(len(b)-n) || size > uint64(most) {
		return nil, nil, false
	}
	end := n + int(size)
	return b[n:end:end], b[end:], true
}

// rowsBody is the rows of a chunk before compression: each shares the beginning of its key with the one before.
type rowsBody struct {
	b    []byte
	last []byte
}

func (r *rowsBody) add(key, value []byte) {
	shared := 0
	for shared < len(key) && shared < len(r.last) && key[shared] == r.last[shared] {
		shared++
	}
	r.b = binary.AppendUvarint(r.b, uint64(shared))
	r.b = appendBytes(r.b, key[shared:])
	r.b = appendBytes(r.b, value)
	r.last = append(r.last[:0], key...)
}

func chunkHead(kind byte, from, to []byte) []byte {
	return appendBytes(appendBytes([]byte{chunkVersion, kind}, from), to)
}

func sealChunk(b []byte) []byte {
	return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

// sealRows makes a chunk of rows.
func (c *chunker) sealRows(from, to []byte, r *rowsBody) []byte {
	b := chunkHead(chunkRows, from, to)
	b = binary.AppendUvarint(b, uint64(len(r.b)))
	return sealChunk(c.enc.EncodeAll(r.b, b))
}

// sealPart makes a chunk of a piece of a row.
func sealPart(from, to, key []byte, total, offset uint64, piece []byte) []byte {
	b := appendBytes(chunkHead(chunkPart, from, to), key)
	b = binary.AppendUvarint(binary.AppendUvarint(b, total), offset)
	return sealChunk(append(b, piece...))
}

// parse reads a chunk as a peer sent it. The result may point into b.
func (c *chunker) parse(b []byte) (*chunk, error) {
	bad := func(what string) error {
		return fmt.Errorf("%w: chunk of a snapshot, %d bytes: %s", dunlin.ErrInvalid, len(b), what)
	}
	if len(b) < 6 {
		return nil, bad("too short")
	}
	body, sum := b[:len(b)-4], binary.BigEndian.Uint32(b[len(b)-4:])
	if crc32.Checksum(body, castagnoli) != sum {
		return nil, bad("its checksum is wrong")
	}
	if body[0] != chunkVersion {
		return nil, bad(fmt.Sprintf("version %d, this build reads %d", body[0], chunkVersion))
	}
	k := &chunk{kind: body[1]}
	var ok bool
	if k.from, body, ok = cutBytes(body[2:], chunkKeyMax); !ok {
		return nil, bad("first bound")
	}
	if k.to, body, ok = cutBytes(body, chunkKeyMax); !ok || bytes.Compare(k.from, k.to) > 0 {
		return nil, bad("second bound")
	}
	switch k.kind {
	case chunkRows:
		return k, c.parseRows(k, body, bad)
	case chunkPart:
		if k.key, body, ok = cutBytes(body, chunkKeyMax); !ok || bytes.Compare(k.key, k.from) < 0 {
			return nil, bad("key of a large row")
		}
		var n, m int
		if k.total, n = binary.Uvarint(body); n > 0 {
			k.offset, m = binary.Uvarint(body[n:])
		}
		if n <= 0 || m <= 0 || k.total > chunkValueMax || k.offset > k.total {
			return nil, bad("size of a large row")
		}
		if k.piece = body[n+m:]; len(k.piece) == 0 || uint64(len(k.piece)) > k.total-k.offset {
			return nil, bad("piece of a large row")
		}
		// Only the last piece leads on: the bound behind it is behind the row.
		if whole := k.offset+uint64(len(k.piece)) == k.total; whole != (bytes.Compare(k.to, k.key) > 0) || !whole && !bytes.Equal(k.to, k.from) {
			return nil, bad("bounds of a large row")
		}
		return k, nil
	}
	return nil, bad("of no known kind")
}

func (c *chunker) parseRows(k *chunk, body []byte, bad func(string) error) error {
	plain, n := binary.Uvarint(body)
	if n <= 0 || plain > chunkPlainMax {
		return bad("size")
	}
	body = body[n:]
	rows, err := c.dec.DecodeAll(body, make([]byte, 0, min(plain, 64*uint64(len(body))+1024)))
	if err != nil || uint64(len(rows)) != plain {
		return bad("compression")
	}
	var last []byte
	for len(rows) > 0 {
		shared, n := binary.Uvarint(rows)
		if n <= 0 || shared > uint64(len(last)) {
			return bad("key")
		}
		own, rest, ok := cutBytes(rows[n:], chunkKeyMax)
		if !ok {
			return bad("key")
		}
		value, rest, ok := cutBytes(rest, chunkPlainMax)
		if !ok {
			return bad("value")
		}
		key := append(append(make([]byte, 0, int(shared)+len(own)), last[:shared]...), own...)
		if len(k.rows) > 0 && bytes.Compare(key, last) <= 0 || bytes.Compare(key, k.from) < 0 || bytes.Compare(key, k.to) >= 0 {
			return bad("order of keys")
		}
		k.rows = append(k.rows, snapRow{key, value})
		last, rows = key, rest
	}
	if bytes.Compare(k.from, k.to) >= 0 {
		return bad("bounds")
	}
	return nil
}
