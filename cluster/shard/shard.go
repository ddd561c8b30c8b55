// Package shard says which slice of the device space a device lives in: one pure function, whose result is on every disk
// and in every peer's routing, and therefore never changes.
//
// Part of the runtime; no compatibility promise before v1.
package shard

import (
	"fmt"
	"math/bits"

	"github.com/cespare/xxhash/v2"

	"github.com/dunlin-iot/dunlin"
)

// ShardsMax bounds the number of shards of a cluster: dunlin.ShardID has 16 bits.
const ShardsMax = 1 << 16

// Of returns the shard of a device among shards many, which is fixed when a cluster is first started.
//
//	hash  = XXH64(tenant ‖ 0x00 ‖ device), seed 0
//	shard = ⌊hash · shards / 2⁶⁴⌋
//
// The zero byte keeps ("a", "bc") and ("ab", "c") apart; names cannot contain it. The product takes the hash's high bits,
// which are as good as the low ones and spare a division. This is a format for ever: a change would move devices away
// from their data. It panics unless 1 ≤ shards ≤ ShardsMax, because no input decides that number.
func Of(key dunlin.DeviceKey, shards int) dunlin.ShardID {
	if shards < 1 || shards > ShardsMax {
		panic(fmt.Sprintf("shard: %d shards, want 1 to %d", shards, ShardsMax))
	}
	var room [2*dunlin.NameBytesMax + 1]byte // longer names (never valid ones) move to the heap
	b := append(room[:0], key.Tenant...)
	b = append(b, 0)
	b = append(b, key.Device...)
	hi, _ := bits.Mul64(xxhash.Sum64(b), uint64(shards))
	return dunlin.ShardID(hi)
}
