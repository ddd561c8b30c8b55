package store

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/entry"
)

// While a cluster is upgraded its entries have version 1, and all builds make the same rows of them: this is what the build
// before version 2 made.
func TestRowsOfVersion1AreThoseOfTheBuildBefore(t *testing.T) {
	f := newFleet(11, 2, 12)
	f.plain = true
	db := openTest(t, small(vfs.NewMem(), 2))
	for i := range 300 {
		if err := db.State().Apply([]dunlin.Committed{committed(f.entry(dunlin.ShardID(i%2), 1+i%4), uint64(i/2+1))}); err != nil {
			t.Fatal(err)
		}
	}
	const want = "0806886f2275594327836168e2b97b5046c48b75de870f78b1433d9948fa3480"
	if got := fmt.Sprintf("%x", sha256.Sum256(dump(t, db.State()))); got != want {
		t.Errorf("the rows have the sum %s, want %s", got, want)
	}
}

// Rows depend on what entries say, not on the version they say it in: when the cluster goes on to version 2, replicas that
// applied the last entries in version 1 are still the same as those that get them in version 2.
func TestRowsDoNotDependOnTheVersionOfEntries(t *testing.T) {
	var rows [2][]byte
	for i, version := range []uint32{entry.BaseVersion, entry.VersionEffects} {
		f := newFleet(12, 2, 12)
		f.plain = true
		db := openTest(t, small(vfs.NewMem(), 2))
		for k := range 200 {
			e := f.entry(dunlin.ShardID(k%2), 1+k%4)
			c := dunlin.Committed{Shard: e.Shard, Index: uint64(k/2 + 1), Term: e.Term, Data: entry.AppendAs(nil, e, version)}
			if c.Data[0] != byte(version) {
				t.Fatalf("entry of version %d", c.Data[0])
			}
			if err := db.State().Apply([]dunlin.Committed{c}); err != nil {
				t.Fatal(err)
			}
		}
		rows[i] = dump(t, db.State())
	}
	if !bytes.Equal(rows[0], rows[1]) {
		t.Errorf("rows differ:\n%s", firstDifference(rows[1], rows[0]))
	}
}
