package store

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/dunlin-iot/dunlin"
)

// chunksOf is all chunks of a shard's snapshot.
func chunksOf(t testing.TB, db *DB, sh dunlin.ShardID) (meta dunlin.SnapshotMeta, chunks [][]byte) {
	t.Helper()
	meta, err := db.Export(sh)
	if err != nil {
		t.Fatal(err)
	}
	defer db.Release(meta.ID)
	for last := false; !last; {
		var data []byte
		if data, last, err = db.Chunk(meta.ID, len(chunks)); err != nil {
			t.Fatal(err)
		}
		chunks = append(chunks, data)
	}
	return meta, chunks
}

func smallExport(t testing.TB) (dunlin.SnapshotMeta, [][]byte) {
	c := small(vfs.NewMem(), 1)
	c.ChunkBytes = 2 << 10
	db := openTest(t, c)
	if err := drive(db, story(4, 1, 4, 60)); err != nil {
		t.Fatal(err)
	}
	return chunksOf(t, db, 0)
}

// Rows that applying could not have made are refused, table by table.
func TestRowsAreChecked(t *testing.T) {
	meta, chunks := smallExport(t)
	p, err := newChunker()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[byte]int{}
	for i := range chunks {
		c, err := p.parse(chunks[i])
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range c.rows {
			if err := checkRow(&meta, r.key, r.value); err != nil {
				t.Fatal(err)
			}
			table := r.key[2]
			seen[table]++
			for what, bad := range map[string]snapRow{
				"another shard":  {append([]byte{0, 1}, r.key[2:]...), r.value},
				"no shard":       {r.key[:2], r.value},
				"no table":       {append([]byte{0, 0, 0x7f}, r.key[3:]...), r.value},
				"a shorter key":  {r.key[:len(r.key)-1], r.value},
				"another value":  {r.key, []byte{0xee}},
				"half the value": {r.key, r.value[:len(r.value)/2]},
			} {
				free := table == tabRegistry || table == tabDomain // names end where the key does, documents are anybody's; half of a report is one
				if what == "another value" && (table == tabSegData || free) || what == "half the value" && (table == tabSegData || table == tabReadings || len(r.value) == 0 || free) ||
					what == "a shorter key" && free {
					continue
				}
				if err := checkRow(&meta, bad.key, bad.value); !errors.Is(err, dunlin.ErrInvalid) {
					t.Errorf("table %#x, %s: %v", table, what, err)
				}
			}
		}
	}
	for _, table := range []byte{tabApplied, tabConf, tabDevice, tabReadings, tabAlert, tabAlertTime, tabTimer, tabDead, tabRegistry, tabDomain, tabSegment, tabSegData} {
		if seen[table] == 0 {
			t.Errorf("no row of table %#x was checked", table)
		}
	}
}

// FuzzChunk: whatever a peer sends, it is refused, or it is rows in their order, each of which its readers understand.
func FuzzChunk(f *testing.F) {
	meta, chunks := smallExport(f)
	for _, c := range chunks {
		f.Add(c[:len(c)-4])
	}
	p, err := newChunker()
	if err != nil {
		f.Fatal(err)
	}
	start, end := shardSpan(0).Start, shardSpan(0).End
	f.Add(chunkPartBody(sealPart(start, start, []byte{0, 0, tabRegistry, 'x', 0, 1, 'k'}, 100, 0, make([]byte, 10))))
	f.Add(chunkPartBody(sealPart(start, []byte{0, 0, tabRegistry, 'x', 0, 1, 'k', 0}, []byte{0, 0, tabRegistry, 'x', 0, 1, 'k'}, 10, 0, make([]byte, 10))))
	f.Fuzz(func(t *testing.T, body []byte) {
		if len(body) > 1<<16 {
			return
		}
		c, err := p.parse(sealChunk(bytes.Clone(body)))
		if err != nil {
			if !errors.Is(err, dunlin.ErrInvalid) {
				t.Fatalf("%v is not ErrInvalid", err)
			}
			return
		}
		if bytes.Compare(c.from, c.to) > 0 {
			t.Fatalf("from %x to %x", c.from, c.to)
		}
		var last []byte
		for i, r := range c.rows {
			if bytes.Compare(r.key, c.from) < 0 || bytes.Compare(r.key, c.to) >= 0 || i > 0 && bytes.Compare(r.key, last) <= 0 {
				t.Fatalf("row %x after %x in %x to %x", r.key, last, c.from, c.to)
			}
			last = r.key
			if len(r.value) > 0 && (r.value[0] == 0x12 || r.value[0] == opList) && len(r.value) > 4096 {
				continue // a few bytes may stand for millions of readings
			}
			if err := checkRow(&meta, r.key, r.value); err != nil {
				continue
			}
			if bytes.Compare(r.key, start) < 0 || bytes.Compare(r.key, end) >= 0 {
				t.Fatalf("row %x passed for one of the shard", r.key)
			}
			if merge := mergeOf(r.key[2]); merge != nil {
				if _, err := merge([][]byte{r.value}, true); err != nil {
					t.Fatalf("row %x passed and cannot be folded: %v", r.key, err)
				}
			}
		}
	})
}

func chunkPartBody(sealed []byte) []byte { return sealed[:len(sealed)-4] }

// A chunk says a size that it has not: nobody reserves memory for it.
func TestChunkThatLiesAboutItsSize(t *testing.T) {
	p, err := newChunker()
	if err != nil {
		t.Fatal(err)
	}
	span := shardSpan(0)
	for _, plain := range []uint64{1, chunkPlainMax, chunkPlainMax + 1, 1 << 60} {
		b := binary.AppendUvarint(chunkHead(chunkRows, span.Start, span.End), plain)
		if _, err := p.parse(sealChunk(append(b, p.enc.EncodeAll(make([]byte, 5000), nil)...))); !errors.Is(err, dunlin.ErrInvalid) {
			t.Errorf("size %d: %v", plain, err)
		}
	}
}
