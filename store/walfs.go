package store

import (
	"fmt"
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// walFS watches the write-ahead logs: the first write or sync of one that fails ends the process (Config.Fatal), at once,
// and no commit succeeds from then on, not even the one that is waiting for this sync (engine.commit looks again).
//
// The error stops here. Pebble would tell it only to a writer that waits for a sync; to an unsynced one, as Apply is, it
// would show as a panic in a later batch, with locks held, that nobody can recover from, and the process would end without
// having said why. What Pebble does with its memtables in the meantime is of no harm: it was committed, if not acknowledged.
type walFS struct {
	vfs.FS
	die *fatal
}

// Unwrap implements vfs.FS.
func (w walFS) Unwrap() vfs.FS { return w.FS }

func (w walFS) watch(name string, f vfs.File, err error) (vfs.File, error) {
	if !strings.HasSuffix(name, ".log") {
		return f, err
	}
	if err != nil {
		w.fail(walName(name), err)
		if f, err = vfs.NewMem().Create(w.PathBase(name), vfs.WriteCategoryUnspecified); err != nil {
			return nil, err
		}
	}
	return &walFile{File: f, fs: w, what: walName(name)}, nil
}

func walName(name string) string { return "write-ahead log " + name }

func (w walFS) fail(what string, err error) {
	_ = w.die.fail(fmt.Errorf("%s: %w", what, err))
}

// OpenDir implements vfs.FS: new logs are there once their folder is synced.
func (w walFS) OpenDir(name string) (vfs.File, error) {
	f, err := w.FS.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &walFile{File: f, fs: w, what: "folder " + name}, nil
}

// Create implements vfs.FS.
func (w walFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := w.FS.Create(name, c)
	return w.watch(name, f, err)
}

// ReuseForWrite implements vfs.FS.
func (w walFS) ReuseForWrite(oldname, newname string, c vfs.DiskWriteCategory) (vfs.File, error) {
	f, err := w.FS.ReuseForWrite(oldname, newname, c)
	return w.watch(newname, f, err)
}

// walFile is a write-ahead log that is being written, or the folder of some.
type walFile struct {
	vfs.File
	fs   walFS
	what string // for errors
}

// check notes an error and takes it away.
func (f *walFile) check(err error) error {
	if err != nil {
		f.fs.fail(f.what, err)
	}
	return nil
}

// Write implements vfs.File. After a failure nothing is written any more, though there may be space again: what came behind
// the lost bytes would close the gap, and the next start would replay a log that lacks a batch in its middle.
func (f *walFile) Write(b []byte) (int, error) {
	if f.fs.die.failed() != nil {
		return len(b), nil
	}
	_, err := f.File.Write(b)
	return len(b), f.check(err)
}

// Close implements vfs.File.
func (f *walFile) Close() error { return f.check(f.File.Close()) }

// Sync implements vfs.File.
func (f *walFile) Sync() error { return f.check(f.File.Sync()) }

// SyncData implements vfs.File.
func (f *walFile) SyncData() error { return f.check(f.File.SyncData()) }

// SyncTo implements vfs.File.
func (f *walFile) SyncTo(length int64) (bool, error) {
	full, err := f.File.SyncTo(length)
	if err != nil {
		return true, f.check(err)
	}
	return full, nil
}
