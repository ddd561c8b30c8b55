package store

import (
	"fmt"

	"github.com/dunlin-iot/dunlin"
)

// Present reports whether this node has a replica of the shard, be it an empty one that has only voted. Of a shard without
// one the store says what it says of an empty shard: the log has entries 1 to 0 and no hard state, nothing is applied or
// durable, there are no rows, and the journal ends at 1.
func (db *DB) Present(sh dunlin.ShardID) bool {
	if db.log.check(sh) != nil {
		return false
	}
	span := db.log.span(sh)
	return span.hard || span.last > 0 || db.state.applied[sh].Load() > 0
}

// Disk returns the bytes that the data folder takes, and those that are free on its disk. A file system that cannot tell
// what is free gives an error that wraps errors.ErrUnsupported.
func (db *DB) Disk() (used, free int64, err error) {
	if err := db.die.failed(); err != nil {
		return 0, 0, fmt.Errorf("store: disk: %w", err)
	}
	for _, e := range db.engines {
		used += int64(e.Metrics().DiskSpaceUsage())
	}
	d, err := db.cfg.FS.GetDiskUsage(db.cfg.Dir)
	if err != nil {
		return used, 0, fmt.Errorf("store: disk of %s: %w", db.cfg.Dir, err)
	}
	return used, int64(min(d.AvailBytes, 1<<62)), nil
}

// Bytes estimates what a shard's state takes on disk, archive included. It is cheap, and does not see what is in memtables.
func (s *State) Bytes(sh dunlin.ShardID) int64 {
	if s.check(sh) != nil || s.eng.die.failed() != nil {
		return 0
	}
	span := shardSpan(sh)
	n, err := s.eng.EstimateDiskUsage(span.Start, span.End)
	if err != nil {
		return 0
	}
	return int64(n)
}
