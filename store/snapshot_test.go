package store

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
)

// carry fetches a shard's snapshot from one store into another and leaves it ready to be installed.
func carry(from, to *DB, sh dunlin.ShardID) (meta dunlin.SnapshotMeta, chunks int, err error) {
	if meta, err = from.Export(sh); err != nil {
		return meta, 0, err
	}
	defer from.Release(meta.ID)
	i, err := to.Receive(meta)
	for last := false; !last && err == nil; i++ {
		var data []byte
		if data, last, err = from.Chunk(meta.ID, i); err == nil {
			err = to.Add(meta, i, data, last)
		}
	}
	return meta, i, err
}

// drive is what a host does with entries: log with a sync, apply.
func drive(db *DB, batch []dunlin.Committed) error {
	if err := db.Log().Append(rowsOf(batch), true); err != nil {
		return err
	}
	return db.State().Apply(batch)
}

// ofShard returns the entries of a shard up to and with an index.
func ofShard(all []dunlin.Committed, sh dunlin.ShardID, upTo uint64) (part []dunlin.Committed) {
	for _, c := range all {
		if c.Shard == sh && c.Index <= upTo {
			part = append(part, c)
		}
	}
	return part
}

func hashOf(t interface{ Fatal(...any) }, db *DB, sh dunlin.ShardID) string {
	sum, index, err := db.State().Hash(sh)
	if err != nil {
		t.Fatal(err)
	}
	return fmt.Sprintf("%d:%x", index, sum[:8])
}

// A replica that is too far behind for the log takes a snapshot: it has the rows, the log's beginning, the replica set, the
// timers and the whole past of the journal then, goes on applying, and has all that after a restart.
func TestSnapshotMakesAReplica(t *testing.T) {
	const shards, sh = 3, dunlin.ShardID(1)
	all := story(3, shards, 9, 400)
	whole := openTest(t, small(vfs.NewMem(), shards))
	if err := feed(t.Context(), whole, rand.New(rand.NewPCG(3, 3)), all, func() {}); err != nil {
		t.Fatal(err)
	}
	mine := ofShard(all, sh, 1<<60)
	last := mine[len(mine)-1].Index
	fs := vfs.NewMem()
	c := small(fs, shards)
	var told []dunlin.ShardID
	c.OnInstalled = func(sh dunlin.ShardID) { told = append(told, sh) }
	db, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if db.Present(sh) || db.Present(shards) {
		t.Error("a new folder has replicas")
	}
	if _, err := db.Export(sh); !errors.Is(err, dunlin.ErrNotFound) {
		t.Errorf("exported nothing: %v", err)
	}
	if err := drive(db, mine[:7]); err != nil { // a replica that stayed behind
		t.Fatal(err)
	}
	if _, _, err := db.State().TimersDue(sh, 1<<60, 10); err != nil {
		t.Fatal(err)
	}
	meta, _, err := carry(whole, db, sh)
	if err != nil {
		t.Fatal(err)
	}
	if err := db.Install(meta, []byte("hard")); err != nil {
		t.Fatal(err)
	}
	if len(told) != 1 || told[0] != sh {
		t.Errorf("told of %v", told)
	}
	check := func() {
		t.Helper()
		hard, first, end, err := db.Log().Load(sh)
		if err != nil || string(hard) != "hard" || first != last+1 || end != last {
			t.Fatalf("log: hard %q, %d to %d, %v; want it empty behind %d", hard, first, end, err, last)
		}
		if term, err := db.Log().Term(sh, last); err != nil || term != meta.Term {
			t.Errorf("term %d, %v, want %d", term, err, meta.Term)
		}
		s := db.State()
		if s.Applied(sh) != last || s.Durable(sh) != last || !bytes.Equal(s.Conf(sh), whole.State().Conf(sh)) {
			t.Errorf("applied %d, durable %d, want %d; replica set %x", s.Applied(sh), s.Durable(sh), last, s.Conf(sh))
		}
		if got, want := hashOf(t, db, sh), hashOf(t, whole, sh); got != want {
			t.Errorf("hash %s, want %s", got, want)
		}
		got, _, err := s.TimersDue(sh, 1<<60, 1000)
		if err != nil {
			t.Fatal(err)
		}
		want, _, _ := whole.State().TimersDue(sh, 1<<60, 1000)
		if fmt.Sprint(got) != fmt.Sprint(want) || len(want) == 0 {
			t.Errorf("timers %v,\nwant %v", got, want)
		}
		if got, want := journalOf(t, db, sh), journalOf(t, whole, sh); got != want {
			t.Errorf("journal %s,\nwant %s", got, want)
		}
		if !db.Present(sh) || db.Present(2) {
			t.Errorf("present: %v, %v", db.Present(sh), db.Present(2))
		}
	}
	check()
	if err := db.Close(); err != nil {
		t.Fatal(err)
	}
	if db, err = Open(c); err != nil {
		t.Fatal(err)
	}
	check()
	if names, _ := fs.List("data/incoming"); len(names) > 0 {
		t.Errorf("left: %v", names)
	}
	next := []dunlin.Committed{{Shard: sh, Index: last + 1, Term: 9}}
	if err := errors.Join(drive(db, next), drive(whole, next)); err != nil {
		t.Fatal(err)
	}
	if got, want := hashOf(t, db, sh), hashOf(t, whole, sh); got != want {
		t.Errorf("hash %s, want %s", got, want)
	}
	if _, err := db.Receive(meta); !errors.Is(err, dunlin.ErrConflict) {
		t.Errorf("takes a snapshot of what it has: %v", err)
	}
}

// journalOf is the indexes of a shard's journal.
func journalOf(t *testing.T, db *DB, sh dunlin.ShardID) string {
	t.Helper()
	var got []uint64
	for next := uint64(0); ; {
		items, upTo, err := db.Journal().Read(sh, next)
		if err != nil {
			t.Fatal(err)
		}
		for _, it := range items {
			got = append(got, it.Index)
		}
		if upTo == max(next, 1) {
			return fmt.Sprint(got)
		}
		next = upTo
	}
}

// The same entries make the same hash, whatever way a replica came to them: in other batches, with flushes and compactions,
// by a snapshot, by one after another, out of a replica that was destroyed before.
func TestHashIsTheSameOnAllReplicas(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		const shards = 2
		seed := rapid.Uint64().Draw(rt, "seed")
		all := story(seed, shards, 6, 80)
		rng := rand.New(rand.NewPCG(seed, 5))
		ref, done := openShort(rt, small(vfs.NewMem(), shards))
		defer done()
		var dbs []*DB
		for range 3 {
			db, done := openShort(rt, small(vfs.NewMem(), shards))
			defer done()
			dbs = append(dbs, db)
		}
		for n := 0; n < 12; n++ {
			sh, upTo := dunlin.ShardID(rng.IntN(shards)), uint64(1+rng.IntN(40))
			mine := ofShard(all, sh, upTo)
			advance(rt, rng, ref, sh, mine)
			db := dbs[rng.IntN(len(dbs))]
			switch rng.IntN(6) {
			case 0:
				if err := db.Destroy(sh, []byte("gone")); err != nil {
					rt.Fatal(err)
				}
			case 1, 2:
				from := append(dbs, ref)[rng.IntN(len(dbs)+1)]
				if from == db || from.State().Applied(sh) <= db.State().Applied(sh) {
					continue
				}
				meta, _, err := carry(from, db, sh)
				if err == nil {
					err = db.Install(meta, nil)
				}
				if err != nil {
					rt.Fatal(err)
				}
			default:
				advance(rt, rng, db, sh, mine)
			}
			index := db.State().Applied(sh)
			other, done := openShort(rt, small(vfs.NewMem(), shards))
			if err := other.State().Apply(ofShard(all, sh, index)); err != nil {
				rt.Fatal(err)
			}
			got, want := hashOf(rt, db, sh), hashOf(rt, other, sh)
			done()
			if got != want {
				rt.Fatalf("seed %d step %d shard %d: hash %s, want %s", seed, n, sh, got, want)
			}
		}
	})
}

// advance applies what a store lacks of a shard, in random batches, with flushes and compactions.
func advance(t interface{ Fatal(...any) }, rng *rand.Rand, db *DB, sh dunlin.ShardID, mine []dunlin.Committed) {
	for db.State().Applied(sh) < uint64(len(mine)) {
		from := int(db.State().Applied(sh))
		if err := drive(db, mine[from:min(len(mine), from+1+rng.IntN(12))]); err != nil {
			t.Fatal(err)
		}
		switch rng.IntN(8) {
		case 0:
			if err := db.State().eng.Flush(); err != nil {
				t.Fatal(err)
			}
		case 1:
			if err := db.State().eng.Compact(context.TODO(), []byte{0}, []byte{0xff}, false); err != nil {
				t.Fatal(err)
			}
		case 2:
			if err := db.Sync(context.TODO()); err != nil {
				t.Fatal(err)
			}
			if err := db.Log().Truncate(sh, db.State().Durable(sh)); err != nil {
				t.Fatal(err)
			}
		}
	}
}

// bigStory is a shard of many chunks, with a row that is larger than any.
func bigStory(t testing.TB, db *DB) (rows int) {
	t.Helper()
	rng := rand.New(rand.NewPCG(1, 1))
	blob := func(n int) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	sizes := []int{3 << 20, 9 << 20, 5 << 20, 1, 4<<20 + 1}
	for i := range 80 {
		size := 100_000
		if i%20 == 3 {
			size = sizes[i/20]
		}
		e := &dunlin.Entry{Shard: 1, Term: 1, At: 1, Puts: []dunlin.Put{{Table: dunlin.TablePlugins, Key: fmt.Sprintf("default/%03d", i), Value: blob(size)}}}
		if err := drive(db, []dunlin.Committed{committed(e, uint64(i+1))}); err != nil {
			t.Fatal(err)
		}
	}
	return 80
}

// A transfer goes on where it was: chunks can be asked for again, the receiver may be restarted, the disk may have kept half
// of the last chunk, and the sender answers what is behind the end.
func TestTransferIsResumed(t *testing.T) {
	from := openTest(t, small(vfs.NewMem(), 2))
	bigStory(t, from)
	meta, err := from.Export(1)
	if err != nil {
		t.Fatal(err)
	}
	fs := vfs.NewMem()
	c := small(fs, 2)
	db, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	rng := rand.New(rand.NewPCG(1, 2))
	have, restarts := 0, 0
	for last := false; !last; {
		if have, err = db.Receive(meta); err != nil {
			t.Fatal(err)
		}
		data, end, err := from.Chunk(meta.ID, have)
		if err != nil {
			t.Fatal(err)
		}
		if len(data) > 7<<20 {
			t.Fatalf("chunk %d has %d bytes", have, len(data))
		}
		again, _, err := from.Chunk(meta.ID, have)
		if err != nil || !bytes.Equal(again, data) {
			t.Fatalf("chunk %d is another one when asked for again: %v", have, err)
		}
		if err := db.Add(meta, have, data, end); err != nil {
			t.Fatal(err)
		}
		if err := db.Add(meta, have, data, end); err != nil {
			t.Fatal("the same chunk again: ", err)
		}
		last = end
		if rng.IntN(3) == 0 || end {
			restarts++
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
			if !end && rng.IntN(2) == 0 { // the crash took the last line of the list
				tear(t, fs, "data/incoming/1/INDEX")
				last = false
			}
			if db, err = Open(c); err != nil {
				t.Fatal(err)
			}
		}
	}
	if have, err = db.Receive(meta); err != nil {
		t.Fatal(err)
	}
	if data, last, err := from.Chunk(meta.ID, have); err != nil || !last || data != nil {
		t.Fatalf("behind the end: %d bytes, %v, %v", len(data), last, err)
	}
	if err := db.Add(meta, have, nil, true); err != nil {
		t.Fatal(err)
	}
	if err := db.Install(meta, nil); err != nil {
		t.Fatal(err)
	}
	if got, want := hashOf(t, db, 1), hashOf(t, from, 1); got != want {
		t.Errorf("hash %s, want %s", got, want)
	}
	if have < 6 || restarts < 2 {
		t.Errorf("%d chunks, %d restarts show little", have, restarts)
	}
}

// tear takes the last bytes of a file away.
func tear(t *testing.T, fs vfs.FS, name string) {
	t.Helper()
	f, err := fs.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	b := make([]byte, st.Size())
	if _, err := f.ReadAt(b, 0); err != nil {
		t.Fatal(err)
	}
	_ = f.Close()
	writeFile(t, fs, name, string(b[:len(b)-5]))
}

// What is not the next chunk of the snapshot that was begun is refused, and harms nothing.
func TestReceiverRefuses(t *testing.T) {
	from := openTest(t, small(vfs.NewMem(), 2))
	bigStory(t, from)
	meta, err := from.Export(1)
	if err != nil {
		t.Fatal(err)
	}
	var chunks [][]byte
	for i, last := 0, false; !last; i++ {
		var data []byte
		if data, last, err = from.Chunk(meta.ID, i); err != nil {
			t.Fatal(err)
		}
		chunks = append(chunks, data)
	}
	db := openTest(t, small(vfs.NewMem(), 2))
	other := meta
	other.ID = "another"
	is := func(what string, err, want error) {
		t.Helper()
		if !errors.Is(err, want) {
			t.Errorf("%s: got %v, want %v", what, err, want)
		}
	}
	is("not begun", db.Add(meta, 0, chunks[0], false), dunlin.ErrNotFound)
	is("not received", db.Install(meta, nil), dunlin.ErrNotFound)
	_, err = db.Receive(dunlin.SnapshotMeta{Shard: 2, ID: "x", Index: 1, Term: 1})
	is("no such shard", err, dunlin.ErrInvalid)
	_, err = db.Receive(dunlin.SnapshotMeta{Shard: 1, ID: "x", Term: 1})
	is("of entry 0", err, dunlin.ErrInvalid)
	if _, err := db.Receive(meta); err != nil {
		t.Fatal(err)
	}
	is("another's", db.Add(other, 0, chunks[0], false), dunlin.ErrNotFound)
	is("not the next", db.Add(meta, 1, chunks[1], false), dunlin.ErrInvalid)
	is("the second as the first", db.Add(meta, 0, chunks[1], false), dunlin.ErrInvalid)
	is("said to be the last", db.Add(meta, 0, chunks[0], true), dunlin.ErrInvalid)
	is("nothing", db.Add(meta, 0, nil, true), dunlin.ErrInvalid)
	for i := 0; i < len(chunks[0]); i += 1 + len(chunks[0])/200 {
		bad := bytes.Clone(chunks[0])
		bad[i] ^= 0x40
		is("damaged", db.Add(meta, 0, bad, false), dunlin.ErrInvalid)
	}
	if err := db.Add(meta, 0, chunks[0], false); err != nil {
		t.Fatal(err)
	}
	is("too early", db.Install(meta, nil), dunlin.ErrInvalid)
	if have, err := db.Receive(other); have != 0 || err != nil {
		t.Errorf("another snapshot begins with %d chunks, %v", have, err)
	}
	is("the one before", db.Add(meta, 1, chunks[1], false), dunlin.ErrNotFound)
	if err := db.Drop(1); err != nil {
		t.Fatal(err)
	}
	is("dropped", db.Add(other, 0, chunks[0], false), dunlin.ErrNotFound)
	if db.Present(1) {
		t.Error("something of it is there")
	}
}

// A destroyed replica is gone, but for its tombstone; what other shards have stays. It may come back.
func TestDestroy(t *testing.T) {
	const shards, sh = 3, dunlin.ShardID(1)
	all := story(8, shards, 9, 300)
	fs := vfs.NewMem()
	c := small(fs, shards)
	db, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = db.Close() }()
	if err := feed(t.Context(), db, rand.New(rand.NewPCG(3, 3)), all, func() {}); err != nil {
		t.Fatal(err)
	}
	if err := db.Log().Append([]dunlin.LogRow{{Shard: sh, Hard: []byte("vote")}}, true); err != nil {
		t.Fatal(err)
	}
	want0, want2 := hashOf(t, db, 0), hashOf(t, db, 2)
	if tomb, err := db.Tombstone(sh); tomb != nil || err != nil {
		t.Fatalf("tombstone %q, %v", tomb, err)
	}
	if _, err := db.Export(sh); err != nil {
		t.Fatal(err)
	}
	if err := db.Destroy(sh, []byte("tomb")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		hard, first, last, err := db.Log().Load(sh)
		if hard != nil || first != 1 || last != 0 || err != nil {
			t.Errorf("log: hard %q, %d to %d, %v", hard, first, last, err)
		}
		s := db.State()
		if s.Applied(sh) != 0 || s.Durable(sh) != 0 || s.Conf(sh) != nil || db.Present(sh) || db.Journal().Head(sh) != 1 {
			t.Errorf("applied %d, durable %d, conf %x, present %v", s.Applied(sh), s.Durable(sh), s.Conf(sh), db.Present(sh))
		}
		if tomb, err := db.Tombstone(sh); string(tomb) != "tomb" || err != nil {
			t.Errorf("tombstone %q, %v", tomb, err)
		}
		if due, _, err := s.TimersDue(sh, 1<<60, 10); len(due) > 0 || err != nil {
			t.Errorf("timers %v, %v", due, err)
		}
		empty := openTest(t, small(vfs.NewMem(), shards))
		if got, want := hashOf(t, db, sh), hashOf(t, empty, sh); got != want {
			t.Errorf("rows are left: %s, want %s", got, want)
		}
		if got0, got2 := hashOf(t, db, 0), hashOf(t, db, 2); got0 != want0 || got2 != want2 {
			t.Errorf("other shards changed")
		}
		if err := db.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := db.Retain(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if db, err = Open(c); err != nil {
			t.Fatal(err)
		}
	}
	if err := drive(db, ofShard(all, sh, 1<<60)[5:]); err == nil {
		t.Error("an empty replica applies entry 6")
	}
	if err := drive(db, ofShard(all, sh, 20)); err != nil {
		t.Fatal(err)
	}
	if got := db.State().Applied(sh); got != 20 || !db.Present(sh) {
		t.Errorf("applied %d, present %v", got, db.Present(sh))
	}
}

// Exports end when they are released, when nobody asks any more, and when there are too many the next is refused.
func TestExportsAreBounded(t *testing.T) {
	now := fleetStart
	c := small(vfs.NewMem(), exportsMax+2)
	c.Clock = func() dunlin.Time { return now }
	db := openTest(t, c)
	var first dunlin.SnapshotMeta
	for i := range exportsMax + 2 {
		sh := dunlin.ShardID(i)
		if err := drive(db, []dunlin.Committed{{Shard: sh, Index: 1, Term: 1}}); err != nil {
			t.Fatal(err)
		}
		meta, err := db.Export(sh)
		if i == 0 {
			first = meta
		}
		if want := i >= exportsMax; errors.Is(err, dunlin.ErrOverloaded) != want {
			t.Fatalf("export %d: %v", i, err)
		}
	}
	newer, err := db.Export(0)
	if err != nil || newer.ID == first.ID {
		t.Fatalf("a newer export of a shard: %v, id %s after %s", err, newer.ID, first.ID)
	}
	if _, _, err := db.Chunk(first.ID, 0); !errors.Is(err, dunlin.ErrNotFound) {
		t.Errorf("the older one is there: %v", err)
	}
	if _, _, err := db.Chunk(newer.ID, 1); !errors.Is(err, dunlin.ErrInvalid) {
		t.Errorf("a chunk that nothing led to: %v", err)
	}
	now = now.Add(exportIdle - time.Second)
	if _, _, err := db.Chunk(newer.ID, 0); err != nil {
		t.Fatal(err)
	}
	now = now.Add(2 * time.Second)
	if _, err := db.Export(exportsMax); err != nil {
		t.Fatal("idle ones are not closed: ", err)
	}
	if _, _, err := db.Chunk(newer.ID, 1); err != nil {
		t.Errorf("one that was asked lately is closed: %v", err)
	}
	db.Release(newer.ID)
	if _, _, err := db.Chunk(newer.ID, 0); !errors.Is(err, dunlin.ErrNotFound) {
		t.Errorf("released: %v", err)
	}
}

// Whoever follows the journal while a snapshot takes a shard forward gets all of it from the archive that came along; if
// the sender kept no archive, he is told what he lost.
func TestFollowersCrossAnInstall(t *testing.T) {
	for _, off := range []bool{false, true} {
		all := story(11, 1, 3, 200)
		c := small(vfs.NewMem(), 1)
		c.ArchiveOff = off
		from, db := openTest(t, c), openTest(t, small(vfs.NewMem(), 1))
		if err := feed(t.Context(), from, rand.New(rand.NewPCG(3, 3)), all, func() {}); err != nil {
			t.Fatal(err)
		}
		if err := drive(db, all[:20]); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		at := dunlin.Cursor{1}
		var got []uint64
		var lost error
		want := effects(t, all)[0]
		for it, err := range db.Journal().Follow(ctx, &at, nil) {
			if lost = err; err != nil {
				break
			}
			got = append(got, it.Index)
			if len(got) == 10 {
				meta, _, err := carry(from, db, 0)
				if err == nil {
					err = db.Install(meta, nil)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			if it.Index == want[len(want)-1] {
				break
			}
		}
		if off && !errors.Is(lost, dunlin.ErrCursorLost) {
			t.Errorf("without an archive: %v after %d entries", lost, len(got))
		}
		if !off && (lost != nil || fmt.Sprint(got) != fmt.Sprint(want)) {
			t.Errorf("got %v, %v,\nwant %v", got, lost, want)
		}
	}
}

func TestDiskAndBytes(t *testing.T) {
	fs := vfs.NewMem()
	fs.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 1 << 30, TotalBytes: 2 << 30, UsedBytes: 1 << 30})
	db := openTest(t, small(fs, 2))
	bigStory(t, db)
	if err := db.State().eng.Flush(); err != nil {
		t.Fatal(err)
	}
	if n := db.State().Bytes(1); n < 10<<20 || db.State().Bytes(0) > 1<<20 {
		t.Errorf("shard 1 has %d bytes, shard 0 %d", n, db.State().Bytes(0))
	}
	used, free, err := db.Disk()
	if err != nil || free != 1<<30 || used < 10<<20 {
		t.Errorf("used %d, free %d, %v", used, free, err)
	}
	meta, err := db.Export(1)
	if err != nil {
		t.Fatal(err)
	}
	data, last, err := db.Chunk(meta.ID, 0)
	if err != nil {
		t.Fatal(err)
	}
	full := vfs.NewMem()
	full.TestingSetDiskUsage(vfs.DiskUsage{AvailBytes: 1 << 20})
	to := openTest(t, small(full, 2))
	if _, err := to.Receive(meta); err != nil {
		t.Fatal(err)
	}
	if err := to.Add(meta, 0, data, last); !errors.Is(err, dunlin.ErrUnavailable) || !strings.Contains(err.Error(), "free on the disk") {
		t.Errorf("a full disk: %v", err)
	}
}

// While a shard comes, goes and is sent on, the other one is applied, followed, archived, truncated and summed up.
func TestShardsComeAndGoUnderLoad(t *testing.T) {
	all := story(21, 2, 6, 400)
	from := openTest(t, small(vfs.NewMem(), 2))
	if err := feed(t.Context(), from, rand.New(rand.NewPCG(1, 1)), all, func() {}); err != nil {
		t.Fatal(err)
	}
	c := small(vfs.NewMem(), 2)
	c.ChunkBytes = 8 << 10
	db := openTest(t, c)
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	errs := make(chan error, 8)
	run := func(f func() error) {
		wg.Go(func() {
			for ctx.Err() == nil {
				if err := f(); err != nil && ctx.Err() == nil {
					errs <- err
					return
				}
			}
		})
	}
	mine := ofShard(all, 0, 1<<60)
	run(func() error { return db.Maintain(ctx) })
	run(func() error { _, _, err := db.State().Hash(1); return err })
	run(func() error {
		at := dunlin.Cursor{1, 1}
		n := 0
		for it, err := range db.Journal().Follow(ctx, &at, nil) {
			if err != nil {
				return err
			}
			if n++; it.Entry.Shard == 0 && n > 20 {
				return nil
			}
		}
		return nil
	})
	run(func() error {
		meta, err := db.Export(0)
		if errors.Is(err, dunlin.ErrNotFound) {
			return nil
		}
		for i, last := 0, false; err == nil && !last; i++ {
			_, last, err = db.Chunk(meta.ID, i)
		}
		return err
	})
	for len(mine) > 0 {
		meta, _, err := carry(from, db, 1)
		if err == nil {
			err = db.Install(meta, []byte("hard"))
		}
		if err != nil {
			t.Fatal(err)
		}
		n := min(8, len(mine))
		if err := drive(db, mine[:n]); err != nil {
			t.Fatal(err)
		}
		mine = mine[n:]
		if err := db.Log().Truncate(0, db.State().Durable(0)); err != nil {
			t.Fatal(err)
		}
		if err := db.Destroy(1, []byte("tomb")); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	wg.Wait()
	select {
	case err := <-errs:
		t.Error(err)
	default:
	}
	if got, want := hashOf(t, db, 0), hashOf(t, from, 0); got != want {
		t.Errorf("hash %s, want %s", got, want)
	}
}
