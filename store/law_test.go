package store

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
)

// dump is every row of the state engine but the archive's, folded.
func dump(t testing.TB, s *State) []byte {
	t.Helper()
	it, err := s.eng.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	var b bytes.Buffer
	for ok := it.First(); ok; ok = it.Next() {
		if table := it.Key()[2]; table == tabSegment || table == tabSegData {
			continue
		}
		v, err := it.ValueAndErr()
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "%x = %x\n", it.Key(), v)
	}
	if err := it.Error(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// story makes entries of all shards in the order in which a node might apply them, with registrations, moves and deletions
// of devices, entries of an old term, and empty ones.
func story(seed uint64, shards, devices, entries int) []dunlin.Committed {
	f := newFleet(seed, shards, devices)
	next := make([]uint64, shards)
	var all []dunlin.Committed
	for range entries {
		shard := dunlin.ShardID(f.rng.IntN(shards))
		next[shard]++
		e := f.entry(shard, 1+f.rng.IntN(4))
		c := committed(e, next[shard])
		if f.rng.IntN(3) == 0 {
			d := f.devices[f.rng.IntN(devices/shards)*shards+int(shard)]
			e.Puts = append(e.Puts, f.forget(d)...)
			c = committed(e, next[shard])
		}
		switch f.rng.IntN(25) {
		case 0:
			c.Term++ // committed by another owner
		case 1:
			c.Data = nil
		case 2:
			c.Data, c.Conf = nil, []byte{byte(f.rng.Uint32())}
		case 3:
			d := f.devices[f.rng.IntN(devices/shards)*shards+int(shard)]
			e.Changes = append(e.Changes, f.change(&fridge{key: d.key, version: d.version + 50}))
			put := dunlin.Put{Table: dunlin.TableDevices, Key: d.key.String()}
			if f.rng.IntN(2) == 0 {
				put.Value = fmt.Appendf(nil, `{"id":%q,"domain":"domain-%d"}`, d.key.Device, f.rng.IntN(3))
			} else {
				*d = fridge{key: d.key, shard: shard, temp: d.temp}
			}
			e.Puts = append(e.Puts, put, dunlin.Put{Table: dunlin.TableDomains, Key: "default/x", Value: []byte{byte(f.rng.Uint32())}})
			c = committed(e, c.Index)
		}
		all = append(all, c)
	}
	return all
}

// The same entries make the same rows, however they are cut into batches, applied twice, flushed and compacted.
func TestApplyIsDeterministic(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		all := story(seed, 3, 9, 120)
		rng := rand.New(rand.NewPCG(seed, 1))
		want := func() []byte {
			db, done := openShort(rt, small(vfs.NewMem(), 3))
			defer done()
			for i := range all {
				if err := db.State().Apply(all[i : i+1]); err != nil {
					rt.Fatal(err)
				}
			}
			return dump(t, db.State())
		}()
		db, done := openShort(rt, small(vfs.NewMem(), 3))
		defer done()
		s := db.State()
		for from := 0; from < len(all); {
			to := from + 1 + rng.IntN(20)
			if to > len(all) {
				to = len(all)
			}
			batch := all[max(0, from-rng.IntN(5)):to] // some again
			if err := s.Apply(batch); err != nil {
				rt.Fatal(err)
			}
			from = to
			switch rng.IntN(8) {
			case 0:
				if err := s.eng.Flush(); err != nil {
					rt.Fatal(err)
				}
			case 1:
				if err := s.eng.Compact(t.Context(), []byte{0}, []byte{0xff}, false); err != nil {
					rt.Fatal(err)
				}
			}
		}
		if err := s.Apply(all); err != nil {
			rt.Fatal(err)
		}
		if got := dump(t, s); !bytes.Equal(got, want) {
			rt.Fatalf("seed %d: rows differ:\n%s", seed, firstDifference(got, want))
		}
	})
}

func firstDifference(got, want []byte) string {
	g, w := bytes.Split(got, []byte("\n")), bytes.Split(want, []byte("\n"))
	for i := range min(len(g), len(w)) {
		if !bytes.Equal(g[i], w[i]) {
			return fmt.Sprintf("got  %s\nwant %s", g[i], w[i])
		}
	}
	return fmt.Sprintf("got %d rows, want %d", len(g), len(w))
}

func TestApplyRefusesGapsAndRubbish(t *testing.T) {
	db := openTest(t, small(vfs.NewMem(), 2))
	s := db.State()
	if err := s.Apply([]dunlin.Committed{{Shard: 1, Index: 1}, {Shard: 1, Index: 2, Conf: []byte("conf")}}); err != nil {
		t.Fatal(err)
	}
	before := dump(t, s)
	for _, bad := range [][]dunlin.Committed{
		{{Shard: 1, Index: 3}, {Shard: 1, Index: 5}},
		{{Shard: 1, Index: 3}, {Shard: 0, Index: 1, Data: []byte("rubbish")}},
		{{Shard: 1, Index: 3}, {Shard: 2, Index: 1}},
	} {
		if err := s.Apply(bad); err == nil {
			t.Fatalf("applied %v", bad)
		}
		if got := dump(t, s); !bytes.Equal(got, before) || s.Applied(1) != 2 || string(s.Conf(1)) != "conf" {
			t.Fatalf("a refused batch left something: applied %d", s.Applied(1))
		}
	}
	if err := s.Apply([]dunlin.Committed{{Shard: 1, Index: 3}}); err != nil || s.Applied(1) != 3 {
		t.Fatalf("applied %d, %v; want 3", s.Applied(1), err)
	}
}
