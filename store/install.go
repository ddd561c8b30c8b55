package store

import (
	"errors"

	"github.com/dunlin-iot/dunlin"
)

// Export opens a snapshot of a shard as it is applied now, for another node to fetch chunk by chunk. A newer export of a
// shard replaces an older one. It ends with Release, or when nobody has asked for a chunk for a while.
func (db *DB) Export(sh dunlin.ShardID) (dunlin.SnapshotMeta, error) {
	return dunlin.SnapshotMeta{}, errors.ErrUnsupported
}

// Chunk returns the i-th chunk of an export, i counting from 0. It can be asked for again; one that no earlier answer has led
// to is refused. Asked for the one behind the last, it returns nothing, and last.
func (db *DB) Chunk(id string, i int) (data []byte, last bool, err error) {
	return nil, false, errors.ErrUnsupported
}

// Release ends an export. An unknown id is nothing.
func (db *DB) Release(id string) {}

// Receive begins or resumes an incoming snapshot and returns how many of its chunks are on disk.
func (db *DB) Receive(meta dunlin.SnapshotMeta) (have int, err error) {
	return 0, errors.ErrUnsupported
}

// Add takes the i-th chunk of an incoming snapshot. It is verified, and on disk when Add returns. A chunk that is there
// already is nothing.
func (db *DB) Add(meta dunlin.SnapshotMeta, i int, chunk []byte, last bool) error {
	return errors.ErrUnsupported
}

// Install makes the shard's state and log the snapshot's.
func (db *DB) Install(meta dunlin.SnapshotMeta, hard []byte) error { return errors.ErrUnsupported }

// Drop throws an incoming snapshot away.
func (db *DB) Drop(sh dunlin.ShardID) error { return errors.ErrUnsupported }

// Destroy removes a replica and keeps tomb.
func (db *DB) Destroy(sh dunlin.ShardID, tomb []byte) error { return errors.ErrUnsupported }

// Tombstone returns what Destroy was given last, nil if it never was.
func (db *DB) Tombstone(sh dunlin.ShardID) ([]byte, error) { return nil, nil }

// Present reports whether this node has a replica of the shard, an empty one included.
func (db *DB) Present(sh dunlin.ShardID) bool { return true }

// Disk returns the bytes that the data folder takes, and those that are free on its disk.
func (db *DB) Disk() (used, free int64, err error) { return 0, 0, errors.ErrUnsupported }

// Bytes estimates what a shard takes on disk.
func (s *State) Bytes(sh dunlin.ShardID) int64 { return 0 }

// Hash sums up all that applying a shard's log has made, as of index: it is the same on all replicas.
func (s *State) Hash(sh dunlin.ShardID) (sum [32]byte, index uint64, err error) {
	return sum, 0, errors.ErrUnsupported
}
