package store

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/klauspost/compress/zstd"

	"github.com/dunlin-iot/dunlin"
)

// The columns of an archived segment. Values of one kind lie together, where zstd sees how alike they are; from
// colNumber on there is one column for each series' decimals. docs/formats/journal.md lists them.
const (
	colEntry     = iota // index step, term step, what else the entry has
	colAt               // entry's time after the one before
	colChanges          // changes in the entry
	colDevice           // place in the table of devices
	colDeviceNew        // names of new devices
	colChange           // flags of a change, and its counts when they are not the usual
	colVersion          // version after the device's last one
	colInput            // kind, flags, format, sender, counts
	colReceived         // received after the entry's time
	colMessage          // message ids
	colSeries           // place in the table of metric, unit and kind
	colSeriesNew        // new series
	colTime             // record time after the one before
	colForm             // how a number is kept
	colUlps             // number after the decimal that it nearly is
	colFloatHigh        // other numbers, upper 16 bits
	colFloatLow         // other numbers, lower 48 bits
	colBytes            // texts, data and payloads
	colStage            // number, hash, counts
	colName             // place in the table of names: domains, timers, senders, failures
	colNameNew          // new names, hashes
	colTimer            // flags
	colDue              // due after received
	colRare             // alerts and puts, as an entry's bytes
	colNumber           // decimals after the same device's and series' last one
	columnsMax   = colNumber + 64
)

// segmentBytesMax bounds what a segment may decompress to.
const segmentBytesMax = 64 << 20

// columns is a set of byte streams that one walk over entries either writes or reads, so that the two cannot differ.
// Reading past an end, or any other damage, makes err and zero values.
type columns struct {
	cols    [columnsMax][]byte
	reading bool
	words   map[string]string // not nil: those that are read often, so that each is made once
	err     error
}

func (c *columns) fail(col int) {
	if c.err == nil {
		c.err = fmt.Errorf("%w: archived segment: column %d", dunlin.ErrInvalid, col)
	}
}

func (c *columns) uint(col int, v *uint64) {
	if !c.reading {
		c.cols[col] = binary.AppendUvarint(c.cols[col], *v)
		return
	}
	x, n := binary.Uvarint(c.cols[col])
	if n <= 0 || c.err != nil {
		c.fail(col)
		*v = 0
		return
	}
	*v, c.cols[col] = x, c.cols[col][n:]
}

func (c *columns) int(col int, v *int64) {
	u := uint64(*v)<<1 ^ uint64(*v>>63)
	c.uint(col, &u)
	*v = int64(u>>1) ^ -int64(u&1)
}

// time carries v as its distance from base. It may wrap, and wraps back.
func (c *columns) time(col int, v *dunlin.Time, base dunlin.Time) {
	d := int64(*v - base)
	c.int(col, &d)
	*v = base + dunlin.Time(d)
}

func (c *columns) byte(col int, v *uint8) {
	u := uint64(*v)
	c.uint(col, &u)
	*v = uint8(u)
}

func (c *columns) fixed(col int, v *uint64, size int) {
	if !c.reading {
		for i := range size {
			c.cols[col] = append(c.cols[col], byte(*v>>(8*i)))
		}
		return
	}
	*v = 0
	if len(c.cols[col]) < size {
		c.fail(col)
		return
	}
	for i := range size {
		*v |= uint64(c.cols[col][i]) << (8 * i)
	}
	c.cols[col] = c.cols[col][size:]
}

// count carries the length of a list of which every element takes at least a byte of column from.
func (c *columns) count(col, from int, n *int) {
	u := uint64(*n)
	c.uint(col, &u)
	if c.reading && u > uint64(len(c.cols[from])) {
		c.fail(col)
		u = 0
	}
	*n = int(u)
}

func (c *columns) bytes(col int, b *[]byte) {
	n := len(*b)
	u := uint64(n)
	c.uint(col, &u)
	if !c.reading {
		c.cols[col] = append(c.cols[col], *b...)
		return
	}
	if u > uint64(len(c.cols[col])) {
		c.fail(col)
		*b = nil
		return
	}
	*b, c.cols[col] = c.cols[col][:u:u], c.cols[col][u:]
}

func (c *columns) string(col int, s *string) {
	var b []byte
	if !c.reading {
		b = []byte(*s)
	}
	c.bytes(col, &b)
	*s = string(b)
}

// wordsMax bounds the words that are kept.
const wordsMax = 1 << 16

// word is string for texts that come again and again, as names do.
func (c *columns) word(col int, s *string) {
	if !c.reading || c.words == nil {
		c.string(col, s)
		return
	}
	var b []byte
	c.bytes(col, &b)
	w, known := c.words[string(b)]
	if !known {
		w = string(b)
		if len(c.words) >= wordsMax {
			clear(c.words)
		}
		c.words[w] = w
	}
	*s = w
}

// The forms of a number: the digits behind the point of a decimal, that decimal and a few ulps, or all bits.
const (
	digitsMax = 5
	formUlps  = 8
	formBits  = 15
	ulpsMax   = 64
)

var pow10 = [digitsMax + 1]float64{1, 1e1, 1e2, 1e3, 1e4, 1e5}

// decimalOf finds m and digits so that m / 10^digits is f, or misses it by few ulps, as means of decimals do.
func decimalOf(f float64) (digits uint8, m, ulps int64, ok bool) {
	const exact = 1 << 53
	if !(f > -exact && f < exact) || f == 0 && math.Signbit(f) {
		return 0, 0, 0, false
	}
	near, nearM, nearBy := uint8(0), int64(0), int64(0)
	for d := range pow10 {
		x := f * pow10[d]
		if x <= -exact || x >= exact {
			break
		}
		m := int64(math.RoundToEven(x))
		g := float64(m) / pow10[d]
		if g == f {
			return uint8(d), m, 0, true
		}
		by := int64(math.Float64bits(f)) - int64(math.Float64bits(g))
		if !ok && m != 0 && by >= -ulpsMax && by <= ulpsMax {
			near, nearM, nearBy, ok = uint8(d), m, by, true
		}
	}
	return near, nearM, nearBy, ok
}

// number carries a float64 with all its bits; last is the decimal of the same series before it, at the same digits.
func (c *columns) number(series int, f *float64, last *[digitsMax + 1]int64) {
	var form uint8
	var m, ulps int64
	if !c.reading {
		digits, dec, by, ok := decimalOf(*f)
		switch form, m, ulps = digits, dec, by; {
		case !ok:
			form = formBits
		case by != 0:
			form |= formUlps
		}
	}
	c.byte(colForm, &form)
	if form == formBits {
		bits := math.Float64bits(*f)
		high, low := bits>>48, bits&(1<<48-1)
		c.fixed(colFloatHigh, &high, 2)
		c.fixed(colFloatLow, &low, 6)
		*f = math.Float64frombits(high<<48 | low)
		return
	}
	digits := form &^ formUlps
	if digits > digitsMax {
		c.fail(colForm)
		return
	}
	step := m - last[digits]
	c.int(colNumber+series%(columnsMax-colNumber), &step)
	m = last[digits] + step
	last[digits] = m
	if form&formUlps != 0 {
		c.int(colUlps, &ulps)
	}
	if c.reading {
		*f = math.Float64frombits(uint64(int64(math.Float64bits(float64(m)/pow10[digits])) + ulps))
	}
}

// packer compresses columns. Its window is small: what is alike is near.
type packer struct {
	enc *zstd.Encoder
	dec *zstd.Decoder
}

func newPacker() (*packer, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithLowerEncoderMem(true), zstd.WithWindowSize(64<<10),
		zstd.WithEncoderCRC(false), zstd.WithSingleSegment(true), zstd.WithEncoderLevel(zstd.SpeedFastest))
	if err != nil {
		return nil, err
	}
	p, err := newUnpacker()
	if err == nil {
		p.enc = enc
	}
	return p, err
}

// newUnpacker makes a packer that only unpacks.
func newUnpacker() (*packer, error) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderLowmem(true), zstd.WithDecoderMaxMemory(segmentBytesMax))
	return &packer{dec: dec}, err
}

// pack appends the columns, each as uvarint packed size, uvarint size (0: not compressed) and bytes. Each is compressed by
// itself: one table of codes for all would fit none of them.
func (p *packer) pack(dst []byte, c *columns) []byte {
	for i := range c.cols {
		col := c.cols[i]
		packed := p.enc.EncodeAll(col, nil)
		if len(packed) >= len(col) {
			dst = append(binary.AppendUvarint(dst, uint64(len(col))), 0)
			dst = append(dst, col...)
			continue
		}
		dst = binary.AppendUvarint(dst, uint64(len(packed)))
		dst = binary.AppendUvarint(dst, uint64(len(col)))
		dst = append(dst, packed...)
	}
	return dst
}

// unpack reads what pack appended, into memory of mem (nil: new memory).
func (p *packer) unpack(c *columns, b []byte, mem *segmentMemory) error {
	bad := func(i int) error { return fmt.Errorf("%w: archived segment: column %d", dunlin.ErrInvalid, i) }
	*c = columns{reading: true, words: c.words}
	total := uint64(0)
	for i := range c.cols {
		size, n := binary.Uvarint(b)
		if n <= 0 {
			return bad(i)
		}
		b = b[n:]
		plain, n := binary.Uvarint(b)
		if n <= 0 || size > uint64(len(b)-n) {
			return bad(i)
		}
		col := b[n : n+int(size) : n+int(size)]
		b = b[n+int(size):]
		if total += plain; total > segmentBytesMax {
			return bad(i)
		}
		if plain != 0 {
			var err error
			// The frame says its size again, and the decoder refuses to write more than it has room for.
			if col, err = p.dec.DecodeAll(col, mem.room(min(plain, 64*size+1024))); err != nil || uint64(len(col)) != plain {
				return bad(i)
			}
		}
		c.cols[i] = col
	}
	if len(b) > 0 {
		return bad(columnsMax)
	}
	return nil
}
