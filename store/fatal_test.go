package store

import (
	"errors"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/dunlin-iot/dunlin"
)

var errDisk = errors.New("input/output error")

// brokenDisk fails writes and syncs of write-ahead logs below a folder from a moment on.
type brokenDisk struct {
	folder string
	broken atomic.Bool
}

func (d *brokenDisk) String() string { return "broken disk" }

func (d *brokenDisk) MaybeError(op errorfs.Op) error {
	if d.broken.Load() && strings.Contains(op.Path, d.folder) && strings.HasSuffix(op.Path, ".log") {
		switch op.Kind {
		case errorfs.OpFileWrite, errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo, errorfs.OpFileFlush:
			return errDisk
		}
	}
	return nil
}

// A disk that does not keep what is written ends the node, before anything is acknowledged: Append fails, Config.Fatal is
// told once, and the store takes nothing more.
func TestBrokenDiskIsFatal(t *testing.T) {
	for _, c := range []struct {
		folder string
		use    func(db *DB, i uint64) error
	}{
		{"data/log", func(db *DB, i uint64) error {
			return db.Log().Append([]dunlin.LogRow{{Index: i, Term: 1, Data: []byte("x")}}, true)
		}},
		{"data/log", func(db *DB, i uint64) error {
			return db.Log().Append([]dunlin.LogRow{{Index: i, Term: 1, Data: make([]byte, 100_000)}}, false)
		}},
		{"data/state", func(db *DB, i uint64) error {
			if err := db.State().Apply([]dunlin.Committed{{Index: i, Term: 1, Conf: make([]byte, 100_000)}}); err != nil {
				return err
			}
			return db.Sync(t.Context())
		}},
		{"data/state", func(db *DB, i uint64) error { // nobody syncs: the broken log shows with one of the next batches
			return db.State().Apply([]dunlin.Committed{{Index: i, Term: 1, Conf: make([]byte, 100_000)}})
		}},
	} {
		disk := &brokenDisk{folder: c.folder}
		told := make(chan error, 8)
		cfg := small(errorfs.Wrap(vfs.NewMem(), disk), 2)
		cfg.ArchiveOff = true
		cfg.Fatal = func(err error) { told <- err }
		db, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		index := uint64(1)
		if err := c.use(db, index); err != nil {
			t.Fatalf("%s: before the disk broke: %v", c.folder, err)
		}
		disk.broken.Store(true)
		for err = nil; err == nil && index < 1000; {
			index++
			err = c.use(db, index)
		}
		if err == nil {
			t.Fatalf("%s: 1,000 writes to a broken disk succeeded", c.folder)
		}
		select {
		case fatal := <-told:
			if !strings.Contains(fatal.Error(), "input/output error") {
				t.Errorf("%s: told %v, want the disk's error", c.folder, fatal)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%s: failed with %v, but nobody was told", c.folder, err)
		}
		disk.broken.Store(false)
		if err := c.use(db, index); err == nil {
			t.Errorf("%s: it goes on after a write was lost", c.folder)
		}
		if err := db.State().Apply([]dunlin.Committed{{Shard: 1, Index: 1}}); err == nil {
			t.Errorf("%s: the state goes on after a write was lost", c.folder)
		}
		if err := db.Run(t.Context()); err == nil {
			t.Errorf("%s: Run goes on after a write was lost", c.folder)
		}
		if err := db.Close(); err != nil {
			t.Errorf("%s: close: %v", c.folder, err)
		}
		if len(told) > 0 {
			t.Errorf("%s: told twice: %v", c.folder, <-told)
		}
	}
}

// fullDisk refuses what takes space from a moment on, in all files below a folder.
type fullDisk struct {
	folder string
	full   atomic.Bool
}

func (d *fullDisk) String() string { return "full disk" }

func (d *fullDisk) MaybeError(op errorfs.Op) error {
	if d.full.Load() && strings.Contains(op.Path, d.folder) {
		switch op.Kind {
		case errorfs.OpCreate, errorfs.OpFileWrite, errorfs.OpFileWriteAt, errorfs.OpFilePreallocate, errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo:
			return syscall.ENOSPC
		}
	}
	return nil
}

// A disk that fills up ends the node before anything is acknowledged that it does not have; with space again, everything that
// was is there.
func TestFullDiskLosesNothing(t *testing.T) {
	for seed := range uint64(12) {
		disk := &fullDisk{folder: []string{"data/log", "data/state", "data"}[seed%3]}
		mem := vfs.NewCrashableMem()
		told := make(chan error, 8)
		cfg := small(errorfs.Wrap(mem, disk), 1)
		cfg.Fatal = func(err error) { told <- err }
		db, err := Open(cfg)
		if err != nil {
			t.Fatal(err)
		}
		all := story(seed, 1, 3, 3000)
		rng := rand.New(rand.NewPCG(seed, 4))
		acked := 0
		fill := 20 + rng.IntN(300)
		for err == nil && acked < len(all) {
			disk.full.Store(acked >= fill)
			n := min(1+rng.IntN(8), len(all)-acked)
			if err = db.Log().Append(rowsOf(all[acked:acked+n]), true); err == nil {
				if err = db.State().Apply(all[acked : acked+n]); err == nil {
					acked += n
				}
			}
			if err == nil && rng.IntN(10) == 0 {
				err = db.Maintain(t.Context())
			}
		}
		if err == nil {
			t.Fatalf("seed %d: %d entries went to a full disk", seed, acked-fill)
		}
		select {
		case fatal := <-told:
			if !errors.Is(fatal, syscall.ENOSPC) {
				t.Errorf("seed %d: told %v", seed, fatal)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("seed %d: failed with %v, but nobody was told", seed, err)
		}
		disk.full.Store(false)
		cfg.FS = mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
		if db, err = Open(cfg); err != nil {
			t.Fatalf("seed %d: with space again: %v", seed, err)
		}
		_, _, last, err := db.Log().Load(0)
		if err != nil || last < uint64(acked) {
			t.Fatalf("seed %d: the log ends at %d, %d was acknowledged; %v", seed, last, acked, err)
		}
		if err := db.State().Apply(all[:last]); err != nil {
			t.Fatal(err)
		}
		calm, done := openShort(t, small(vfs.NewMem(), 1))
		if err := calm.State().Apply(all[:last]); err != nil {
			t.Fatal(err)
		}
		if got, want := hashOf(t, db, 0), hashOf(t, calm, 0); got != want {
			t.Errorf("seed %d: hash %s, want %s", seed, got, want)
		}
		done()
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// A disk that fills up under an incoming snapshot costs the chunk, not the node.
func TestFullDiskRefusesAChunk(t *testing.T) {
	from := openTest(t, small(vfs.NewMem(), 2))
	bigStory(t, from)
	disk := &fullDisk{folder: "incoming"}
	db := openTest(t, small(errorfs.Wrap(vfs.NewMem(), disk), 2))
	meta, err := from.Export(1)
	if err != nil {
		t.Fatal(err)
	}
	failed := 0
	for last := false; !last; {
		have, err := db.Receive(meta)
		if err != nil {
			t.Fatal(err)
		}
		data, end, err := from.Chunk(meta.ID, have)
		if err != nil {
			t.Fatal(err)
		}
		disk.full.Store(failed <= have)
		if err := db.Add(meta, have, data, end); err != nil {
			if failed++; !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			disk.full.Store(false)
			continue
		}
		last = end
	}
	if err := db.Install(meta, nil); err != nil {
		t.Fatal(err)
	}
	if got, want := hashOf(t, db, 1), hashOf(t, from, 1); got != want || failed < 3 {
		t.Errorf("hash %s, want %s; %d chunks failed", got, want, failed)
	}
}
