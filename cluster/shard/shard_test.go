package shard_test

import (
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/shard"
)

func key(tenant, device string) dunlin.DeviceKey {
	return dunlin.DeviceKey{Tenant: dunlin.Tenant(tenant), Device: dunlin.DeviceID(device)}
}

// The rows below are on disks. If one of them changes, devices lose their history: never edit, only add.
func TestOfIsAFormatForEver(t *testing.T) {
	for _, c := range []struct {
		tenant, device string
		shards         int
		want           dunlin.ShardID
	}{
		{"default", "fridge-7", 1, 0},
		{"default", "fridge-7", 8, 3},
		{"default", "fridge-7", 64, 25},
		{"default", "fridge-7", 65536, 26395},
		{"default", "urn:dev:ow:10e2073a01080063", 64, 61},
		{"acme", "fridge-7", 64, 1},
		{"a", "bc", 65536, 12947},
		{"ab", "c", 65536, 38091},
		{"", "", 65536, 59700}, // XXH64 of one zero byte is e934…
		{strings.Repeat("t", 64), strings.Repeat("d", 64), 65536, 30132},
		{strings.Repeat("t", 64), strings.Repeat("d", 6400), 65536, 47290},
	} {
		if got := shard.Of(key(c.tenant, c.device), c.shards); got != c.want {
			t.Errorf("Of(%.20s/%.20s, %d) = %d, want %d", c.tenant, c.device, c.shards, got, c.want)
		}
	}
}

func TestOfSpreadsNumberedDevices(t *testing.T) {
	const shards, devices = 64, 64_000
	var load [shards]int
	for i := range devices {
		load[shard.Of(key("default", fmt.Sprintf("sensor-%06d", i)), shards)]++
	}
	// 1,000 a shard, standard deviation 31: five of them either way.
	for s, n := range load {
		if math.Abs(float64(n)-devices/shards) > 160 {
			t.Errorf("shard %d has %d devices of %d", s, n, devices)
		}
	}
}

func TestOfStaysInRange(t *testing.T) {
	for _, shards := range []int{1, 2, 3, 7, 8, 64, 1000, shard.ShardsMax} {
		for i := range 1000 {
			if got := int(shard.Of(key("t", fmt.Sprint(i)), shards)); got >= shards {
				t.Fatalf("Of(t/%d, %d) = %d", i, shards, got)
			}
		}
	}
}

func TestOfRefusesNoShards(t *testing.T) {
	for _, shards := range []int{-1, 0, shard.ShardsMax + 1} {
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("Of with %d shards did not panic", shards)
				}
			}()
			shard.Of(key("t", "d"), shards)
		}()
	}
}

func BenchmarkOf(b *testing.B) {
	b.ReportAllocs()
	k := key("default", "fridge-000007")
	for b.Loop() {
		shard.Of(k, 64)
	}
}
