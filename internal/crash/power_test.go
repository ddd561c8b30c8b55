package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

var errCrashed = errors.New("the machine is off")

// power is a machine's: after so many operations of the file system, it fails. What the disk then has is random: all
// that was synced, and of the rest, by block, a share.
type power struct {
	fs    *vfs.MemFS
	rng   *rand.Rand
	off   context.CancelCauseFunc
	keep  int  // percent of what was not synced
	table bool // only operations on tables and manifests count: the power fails in a flush or a compaction

	mu struct {
		sync.Mutex
		left  int
		clone *vfs.MemFS // not nil: off
		where string     // what was being done when it failed
	}
}

// MaybeError implements errorfs.Injector; it injects nothing but the end.
func (p *power) MaybeError(op errorfs.Op) error {
	if op.Kind.ReadOrWrite() != errorfs.OpIsWrite {
		return nil
	}
	if op.Kind == errorfs.OpCreate && strings.HasPrefix(path.Base(op.Path), "marker.manifest.") {
		p.settle(path.Dir(op.Path))
	}
	switch {
	case strings.HasSuffix(op.Path, ".sst"):
		p.use("writing a table", true)
	case strings.Contains(op.Path, "MANIFEST"):
		p.use("writing a manifest", true)
	case strings.HasSuffix(op.Path, ".log"):
		p.use("writing a write-ahead log", false)
	default:
		p.use("other files", false)
	}
	return nil
}

func (p *power) String() string { return "power" }

// settle makes the names in a folder last. Pebble syncs a new manifest, makes a marker that points to it, and only then
// syncs the folder: it counts on a file's fsync to keep the file's name as well, or on names lasting in the order they were
// made. Linux file systems do that, POSIX does not promise it, and MemFS, which is free to keep the marker and forget the
// manifest, left a store that could not be opened.
func (p *power) settle(dir string) {
	d, err := p.fs.OpenDir(dir)
	if err == nil {
		err = errors.Join(d.Sync(), d.Close())
	}
	if err != nil {
		panic(fmt.Sprintf("sync folder %s: %v", dir, err))
	}
}

// use spends one operation.
func (p *power) use(what string, table bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.table && !table {
		return
	}
	if p.mu.left--; p.mu.left == 0 {
		p.fail(what)
	}
}

// fail takes the picture of the disk. The caller holds mu: nothing is acknowledged meanwhile.
func (p *power) fail(where string) {
	if p.mu.clone == nil {
		p.mu.where = where
		p.mu.clone = p.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: p.keep, RNG: p.rng})
		p.off(errCrashed)
	}
}

// end fails the power now, unless it has.
func (p *power) end() *vfs.MemFS {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.fail("idle")
	return p.mu.clone
}

// on runs f unless the power has failed.
func (p *power) on(f func() error) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.clone != nil {
		return errCrashed
	}
	return f()
}

func (p *power) alive() error { return p.on(func() error { return nil }) }
