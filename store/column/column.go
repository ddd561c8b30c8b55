// Package column keeps the readings of one device and one stretch of time as a block of bytes: timestamps once for the
// metrics that share them, each metric a column of small differences. It is pure; package store makes a Merge operator
// of it. docs/formats/column.md shows the bytes as boxes.
//
// There are two sorts of block. A report is what one uplink adds, written as it comes and cheap to make; Merge folds
// reports and earlier blocks into one columnar block, sorts in what came late, and lets the later block win where two have
// a reading of one metric at one time. Merging is deterministic and associative: the bytes depend only on the order of the
// reports, not on how they were grouped, because a columnar block is a function of the readings in it.
//
// A record comes back as it went in, every bit of a float64 included, but for what a record of its kind does not have: a
// boolean is 0 or 1, a text has no number.
//
// Part of the runtime; no compatibility promise before v1.
package column

import (
	"fmt"

	"github.com/dunlin-iot/dunlin"
)

// The first byte of a block: its version and its sort.
const (
	tagReport  = 0x11
	tagColumns = 0x12
)

// ValuesMax bounds the readings of one block. In a day's block that is a device that reports 700 of them every second;
// Merge fails for more.
const ValuesMax = 1 << 26

// AppendReport appends a report of recs, which are in any order and may have several times, to dst. Records of no valid
// kind are left out.
func AppendReport(dst []byte, recs []dunlin.Record) []byte {
	w := writer{b: dst}
	w.report(recs)
	return w.b
}

// Merge appends to dst one block with the readings of all blocks, which are given from oldest to newest. A lone block is
// appended as it is. An error wraps dunlin.ErrInvalid and names the block, and dst is as it was.
func Merge(dst []byte, blocks [][]byte) ([]byte, error) {
	if len(blocks) == 0 {
		return dst, nil
	}
	if len(blocks) == 1 {
		return append(dst, blocks[0]...), nil
	}
	t := table{sizeHint: len(blocks)}
	for i, b := range blocks {
		if err := t.add(b, nil); err != nil {
			return dst, fmt.Errorf("merge block %d of %d: %w", i+1, len(blocks), err)
		}
	}
	t.settle()
	w := writer{b: dst}
	w.columns(&t)
	return w.b, nil
}

// Decode calls yield for each reading of a block, by time, then metric, until it returns false. The records don't share
// the block's memory.
func Decode(block []byte, yield func(dunlin.Record) bool) error {
	return Scan(block, nil, 0, 0, yield)
}

// Scan is Decode for the given metrics (none: all) and the times in [from, to); zero means unbounded. Columns that nobody
// asks for are not decoded.
func Scan(block []byte, metrics []string, from, to dunlin.Time, yield func(dunlin.Record) bool) error {
	var t table
	if err := t.add(block, metrics); err != nil {
		return err
	}
	t.settle()
	t.scan(from, to, yield)
	return nil
}
