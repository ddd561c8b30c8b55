package store

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/store/column"
)

// checkRow refuses a row that applying could not have made: one that a peer sent must not be able to make a reader, a fold
// or a compaction fail later, when nobody can tell any more where it came from.
func checkRow(meta *dunlin.SnapshotMeta, key, value []byte) error {
	if len(key) < keyHead || dunlin.ShardID(binary.BigEndian.Uint16(key)) != meta.Shard {
		return fmt.Errorf("%w: row %x is not of shard %d", dunlin.ErrInvalid, clip(key), meta.Shard)
	}
	err := checkTable(meta, key[2], key, value)
	if err != nil {
		return fmt.Errorf("row %x of table %#x: %w", clip(key), key[2], err)
	}
	return nil
}

// clip keeps a key in an error short.
func clip(key []byte) []byte { return key[:min(len(key), 200)] }

func checkTable(meta *dunlin.SnapshotMeta, table byte, key, value []byte) error {
	rest := key[keyHead:]
	switch table {
	case tabApplied:
		if !bytes.Equal(value, appliedRow(meta.Shard, meta.Index)) || len(rest) > 0 {
			return fmt.Errorf("%w: it is not of entry %d", dunlin.ErrInvalid, meta.Index)
		}
		return nil
	case tabConf:
		if !bytes.Equal(value, meta.Conf) || len(rest) > 0 {
			return fmt.Errorf("%w: not the snapshot's replica set", dunlin.ErrInvalid)
		}
		return nil
	case tabDevice:
		var st dunlin.DeviceState
		if _, err := decodeState(&st, value); err != nil {
			return err
		}
		return checkKey(rest, 2, 0, 0)
	case tabReadings:
		if err := column.Scan(value, nil, timeMax-1, timeMax, func(dunlin.Record) bool { return false }); err != nil {
			return err
		}
		return checkKey(rest, 2, 8, 8)
	case tabAlert, tabAlertTime:
		return checkAlert(meta.Shard, table, key, value)
	case tabTimer:
		if _, _, err := cutTimer(key); err != nil || len(value) > 0 {
			return errKey
		}
		return checkKey(rest[8:], 3, 0, 0)
	case tabDead:
		items, err := cutLetters(nil, value)
		for i := 0; i < len(items) && err == nil; i++ {
			if items[i].kind == itemLetter {
				_, err = cutLetter(items[i].letter)
			}
		}
		if err != nil {
			return err
		}
		return checkKey(rest, 2, 0, 0)
	case tabRegistry:
		return checkKey(rest, 1, 0, chunkKeyMax)
	case tabDomain:
		if len(value) > 0 {
			return errKey
		}
		return checkKey(rest, 2, 1, chunkKeyMax)
	case tabSegment:
		_, err := cutSegmentInfo(key, value)
		return err
	case tabSegData: // its reader expects anything
		_, err := cutIndex(key)
		return err
	}
	return fmt.Errorf("%w: no table of a shard", dunlin.ErrInvalid)
}

// checkAlert sees to it that the row is where its alert says it is.
func checkAlert(shard dunlin.ShardID, table byte, key, value []byte) error {
	place, al, err := cutAlert(value)
	if err != nil {
		return err
	}
	want := appendAlert(nil, shard, al)
	if table == tabAlertTime {
		want = appendAlertTime(nil, shard, al, place)
	}
	if !bytes.Equal(key, want) {
		return errKey
	}
	return nil
}

// checkKey reads names off a key and looks how much is left.
func checkKey(b []byte, names, least, most int) error {
	for range names {
		var err error
		if _, b, err = cutName(b); err != nil {
			return err
		}
	}
	if len(b) < least || len(b) > most {
		return errKey
	}
	return nil
}

// appliedRow is the row that says how far a shard that came whole from elsewhere is applied.
func appliedRow(shard dunlin.ShardID, index uint64) []byte {
	return appendApplied([]byte{opVersion}, shard, index)
}
