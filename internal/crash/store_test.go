package crash

import (
	"context"
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/dunlin-iot/dunlin/store"
)

// openStore opens the real store, with everything so small that flushes, compactions and archived segments come by in
// every life.
func openStore(ctx context.Context, fs vfs.FS, size size) (*room, error) {
	db, err := store.Open(store.Config{
		Dir: "data", FS: fs, Identity: store.Identity{Shards: size.shards},
		CacheBytes: 1 << 20, LogMemTableBytes: int64(size.memtable), StateMemTableBytes: int64(size.memtable),
		LogBytes: 16 << 10, SegmentBytes: 2 << 10, TailBytes: 16 << 10, ArchiveOff: !size.archive,
		Fatal: func(err error) { panic(fmt.Sprintf("no disk failed here: %v", err)) },
	})
	if err != nil {
		return nil, err
	}
	return &room{log: db.Log(), state: db.State(), views: db.State(),
		maintain: func() error { return db.Maintain(ctx) }, close: db.Close}, nil
}
