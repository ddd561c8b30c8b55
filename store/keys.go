package store

import (
	"bytes"
	"encoding/binary"
	"fmt"

	"github.com/dunlin-iot/dunlin"
)

// The tables of the state engine: the third byte of a key. docs/formats/keys.md has the rows; a table's number is never
// used again for something else.
const (
	tabApplied   byte = 0x01 // → applied index, of the shard alone or (shard FFFF) of those that batches touched (merge)
	tabConf      byte = 0x02 // → replica set after the last membership change
	tabDevice    byte = 0x10 // tenant device → state (merge)
	tabReadings  byte = 0x11 // tenant device bucket → columnar block (merge)
	tabAlert     byte = 0x12 // tenant device rule key seq → where the alert's row is
	tabAlertTime byte = 0x13 // tenant cleared ^at device rule key seq → alert
	tabTimer     byte = 0x14 // slot of due, tenant device name → nothing
	tabDead      byte = 0x15 // tenant device → newest dead letters (merge)
	tabRegistry  byte = 0x16 // table key → document
	tabDomain    byte = 0x17 // tenant domain device → nothing
	tabSegment   byte = 0x20 // first index → what the segment holds
	tabSegData   byte = 0x21 // first index → the segment's bytes
)

// Kinds of rows of the log engine, likewise the third byte.
const (
	logHard  byte = 0x01 // → the shard's hard state
	logTrunc byte = 0x02 // → index and term of the last entry that was dropped
	logEntry byte = 0x03 // index → term, type, data

	logInstall byte = 0x04 // → the snapshot that is being installed; gone once it is
	logDestroy byte = 0x05 // → nothing: the replica is being destroyed
	logTomb    byte = 0x06 // → what Destroy keeps of a replica
)

const keyHead = 3 // shard and table

func appendHead(dst []byte, shard dunlin.ShardID, table byte) []byte {
	return append(dst, byte(shard>>8), byte(shard), table)
}

// appendName appends s so that it sorts as itself, ends, and is no prefix of another name's bytes:
// 00 becomes 00 FF, and the end is 00 01.
func appendName[S ~string](dst []byte, s S) []byte {
	for i := range len(s) {
		if s[i] == 0 {
			return appendNameEscaped(dst, string(s))
		}
	}
	dst = append(dst, s...)
	return append(dst, 0, 1)
}

func appendNameEscaped(dst []byte, s string) []byte {
	for i := range len(s) {
		if s[i] == 0 {
			dst = append(dst, 0, 0xff)
			continue
		}
		dst = append(dst, s[i])
	}
	return append(dst, 0, 1)
}

// cutName reads what appendName wrote.
func cutName(b []byte) (name string, rest []byte, err error) {
	i := bytes.IndexByte(b, 0)
	if i >= 0 && i+1 < len(b) && b[i+1] == 1 {
		return string(b[:i]), b[i+2:], nil
	}
	var out []byte
	for i >= 0 && i+1 < len(b) {
		switch b[i+1] {
		case 1:
			return string(append(out, b[:i]...)), b[i+2:], nil
		case 0xff:
			out = append(append(out, b[:i]...), 0)
			b = b[i+2:]
		default:
			return "", nil, errKey
		}
		i = bytes.IndexByte(b, 0)
	}
	return "", nil, errKey
}

var errKey = fmt.Errorf("%w: key of the state engine", dunlin.ErrInvalid)

// appendTime appends t so that it sorts by time, also before 1970.
func appendTime(dst []byte, t dunlin.Time) []byte {
	return binary.BigEndian.AppendUint64(dst, uint64(t)^1<<63)
}

func cutTime(b []byte) (dunlin.Time, []byte, error) {
	if len(b) < 8 {
		return 0, nil, errKey
	}
	return dunlin.Time(binary.BigEndian.Uint64(b) ^ 1<<63), b[8:], nil
}

// appendTimeDown appends t so that the newest sorts first.
func appendTimeDown(dst []byte, t dunlin.Time) []byte {
	return binary.BigEndian.AppendUint64(dst, ^(uint64(t) ^ 1<<63))
}

// appendDevice appends head, tenant and device: the whole key of a device's row, and the prefix of its many.
func appendDevice(dst []byte, shard dunlin.ShardID, table byte, k dunlin.DeviceKey) []byte {
	dst = appendHead(dst, shard, table)
	dst = appendName(dst, k.Tenant)
	return appendName(dst, k.Device)
}

func appendReadings(dst []byte, shard dunlin.ShardID, k dunlin.DeviceKey, bucket int64) []byte {
	dst = appendDevice(dst, shard, tabReadings, k)
	return appendTime(dst, dunlin.Time(bucket))
}

func appendAlert(dst []byte, shard dunlin.ShardID, a *dunlin.Alert) []byte {
	dst = appendDevice(dst, shard, tabAlert, dunlin.DeviceKey{Tenant: a.Tenant, Device: a.Device})
	return appendAlertName(dst, a)
}

func appendAlertName(dst []byte, a *dunlin.Alert) []byte {
	dst = appendName(dst, a.Rule)
	dst = appendName(dst, a.Key)
	return binary.BigEndian.AppendUint64(dst, a.RaisedSeq)
}

func appendAlertTime(dst []byte, shard dunlin.ShardID, a *dunlin.Alert, at alertPlace) []byte {
	dst = appendAlertTimeHead(dst, shard, a.Tenant, at.cleared)
	dst = appendTimeDown(dst, at.time)
	dst = appendName(dst, a.Device)
	return appendAlertName(dst, a)
}

func appendAlertTimeHead(dst []byte, shard dunlin.ShardID, tenant dunlin.Tenant, cleared bool) []byte {
	dst = appendHead(dst, shard, tabAlertTime)
	dst = appendName(dst, tenant)
	if cleared {
		return append(dst, 1)
	}
	return append(dst, 0)
}

func appendTimer(dst []byte, shard dunlin.ShardID, due dunlin.Time, k dunlin.DeviceKey, name string) []byte {
	dst = appendHead(dst, shard, tabTimer)
	dst = appendTime(dst, dunlin.Time(slotOf(due)))
	dst = appendName(dst, k.Tenant)
	dst = appendName(dst, k.Device)
	return appendName(dst, name)
}

func appendRow(dst []byte, shard dunlin.ShardID, table, key string) []byte {
	dst = appendHead(dst, shard, tabRegistry)
	dst = appendName(dst, table)
	return append(dst, key...)
}

func appendDomain(dst []byte, shard dunlin.ShardID, t dunlin.Tenant, id dunlin.DomainID, d dunlin.DeviceID) []byte {
	dst = appendHead(dst, shard, tabDomain)
	dst = appendName(dst, t)
	dst = appendName(dst, id)
	return append(dst, d...)
}

func appendIndex(dst []byte, shard dunlin.ShardID, table byte, index uint64) []byte {
	dst = appendHead(dst, shard, table)
	return binary.BigEndian.AppendUint64(dst, index)
}

// cutIndex reads the index at the end of a key that appendIndex made.
func cutIndex(key []byte) (uint64, error) {
	if len(key) != keyHead+8 {
		return 0, errKey
	}
	return binary.BigEndian.Uint64(key[keyHead:]), nil
}

// after returns the first key behind all that begin with prefix. The prefix must not be all FF; ours begin with a shard
// below 65,535 or a table.
func after(prefix []byte) []byte {
	end := bytes.Clone(prefix)
	for i := len(end) - 1; i >= 0; i-- {
		if end[i] != 0xff {
			end[i]++
			return end[:i+1]
		}
	}
	return nil
}
