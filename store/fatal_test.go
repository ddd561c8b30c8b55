package store

import (
	"errors"
	"strings"
	"sync/atomic"
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
