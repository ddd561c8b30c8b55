package store

import (
	"encoding/binary"
	"fmt"

	"github.com/dunlin-iot/dunlin"
)

// A device's dead letters are one row, of merge operands, oldest letter first. A row keeps the newest of them: deadPerDevice, or
// as many as it takes to reach deadBytesMax. That the last one reaches it makes folding associative: an operand that had to
// leave letters out is full, and keeps out everything older.
const (
	deadPerDevice = 100
	deadBytesMax  = 128 << 10
)

// letterVersion begins an operand with nothing but letters, each a uvarint length and an entry (see appendLetter);
// letterMarks one with any letterItem.
const (
	letterVersion = opVersion
	letterMarks   = 3 // 2 is opList
)

// letterItem is one of a row's items, in the order of the log:
//   - a letter;
//   - the gap that a deleted one left, which takes as much room as it did, until newer letters have pushed it out;
//   - a mark that deletes a letter older than it: only in what has something older below, which may be that letter.
//
// If a deleted letter freed its room, an older one might be there or not depending on which operands were folded first: hence
// gaps. Those before all letters are of no use once nothing is below.
type letterItem struct {
	kind   byte
	letter []byte
	gap    int // bytes that the deleted letter had
	stage  uint8
	seq    uint64
}

// The kinds of items, and what an operand of letterMarks has behind each.
const (
	itemLetter = 0 // uvarint length, entry
	itemGap    = 1 // uvarint bytes
	itemMark   = 2 // u8 stage, uvarint seq
)

// dropLetter applies a Put that deletes a dead letter. A key that is none, or a value, has no effect.
func (a *applier) dropLetter(shard dunlin.ShardID, p *dunlin.Put) error {
	key, stage, seq, err := dunlin.ParseDeadLetterKey(p.Key)
	if err != nil || p.Value != nil {
		return nil
	}
	a.key = appendDevice(a.key[:0], shard, tabDead, key)
	a.value = appendLetters(a.value[:0], []letterItem{{kind: itemMark, stage: stage, seq: seq}})
	return a.batch.Merge(a.key, a.value, nil)
}

func mergeDead(ops [][]byte, final bool) ([]byte, error) {
	if len(ops) == 1 && (!final || len(ops[0]) > 0 && ops[0][0] == letterVersion) {
		return ops[0], nil
	}
	var items []letterItem
	for _, op := range ops {
		from := len(items)
		var err error
		if items, err = cutLetters(items, op); err != nil {
			return nil, err
		}
		if op[0] == letterMarks {
			if err := deleteLetters(items, from); err != nil {
				return nil, err
			}
		}
	}
	items = boundLetters(items)
	if final {
		items = settleLetters(items)
	}
	return appendLetters(nil, items), nil
}

// deleteLetters lets the marks from an item on delete the letters before them. A mark stays: what it means may lie below.
func deleteLetters(items []letterItem, from int) error {
	type id struct {
		stage uint8
		seq   uint64
	}
	at := make(map[id]int, len(items))
	for i := range items {
		it := &items[i]
		switch {
		case it.kind == itemLetter:
			l, err := cutLetter(it.letter)
			if err != nil {
				return err
			}
			at[id{l.Stage, l.Seq}] = i
		case it.kind == itemMark && i >= from:
			if k, ok := at[id{it.stage, it.seq}]; ok {
				items[k] = letterItem{kind: itemGap, gap: len(items[k].letter)}
				delete(at, id{it.stage, it.seq})
			}
		}
	}
	return nil
}

// boundLetters keeps what the bounds allow. Marks count nothing: they go when what lies below is
// folded in, or when it is out of bounds.
func boundLetters(items []letterItem) []letterItem {
	from, size, letters := len(items), 0, 0
	for ; from > 0 && letters < deadPerDevice && size < deadBytesMax; from-- {
		if it := &items[from-1]; it.kind != itemMark {
			size += len(it.letter) + it.gap
			letters++
		}
	}
	return items[from:]
}

// settleLetters takes out what is of no use when nothing is below: marks, and gaps before all letters.
func settleLetters(items []letterItem) []letterItem {
	kept := items[:0]
	for _, it := range items {
		if it.kind == itemLetter || it.kind == itemGap && len(kept) > 0 {
			kept = append(kept, it)
		}
	}
	return kept
}

// appendLetters writes items that are within bounds.
func appendLetters(dst []byte, items []letterItem) []byte {
	plain := true
	for i := range items {
		plain = plain && items[i].kind == itemLetter
	}
	if plain {
		dst = append(dst, letterVersion)
	} else {
		dst = append(dst, letterMarks)
	}
	for i := range items {
		it := &items[i]
		if !plain {
			dst = append(dst, it.kind)
		}
		switch it.kind {
		case itemLetter:
			dst = binary.AppendUvarint(dst, uint64(len(it.letter)))
			dst = append(dst, it.letter...)
		case itemGap:
			dst = binary.AppendUvarint(dst, uint64(it.gap))
		case itemMark:
			dst = binary.AppendUvarint(append(dst, it.stage), it.seq)
		}
	}
	return dst
}

// cutLetters appends the items of an operand to dst. Letters are parts of it.
func cutLetters(dst []letterItem, op []byte) ([]letterItem, error) {
	bad := func() error { return fmt.Errorf("%w: dead letters operand of %d bytes", dunlin.ErrInvalid, len(op)) }
	if len(op) == 0 || op[0] != letterVersion && op[0] != letterMarks {
		return nil, bad()
	}
	for b := op[1:]; len(b) > 0; {
		it := letterItem{kind: itemLetter}
		if op[0] == letterMarks {
			it.kind, b = b[0], b[1:]
		}
		if it.kind == itemMark {
			if len(b) == 0 {
				return nil, bad()
			}
			it.stage, b = b[0], b[1:]
		}
		v, n := binary.Uvarint(b)
		if n <= 0 {
			return nil, bad()
		}
		b = b[n:]
		switch {
		case it.kind == itemLetter && v > 0 && v <= uint64(len(b)):
			it.letter, b = b[:v:v], b[v:]
		case it.kind == itemGap && v > 0 && v <= segmentBytesMax:
			it.gap = int(v)
		case it.kind == itemMark:
			it.seq = v
		default:
			return nil, bad()
		}
		dst = append(dst, it)
	}
	return dst, nil
}
