package store

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/dunlin-iot/dunlin"
)

// ImportRecording puts entries into a shard's archive as if they had left its log, in one segment. They must follow what the
// archive has, and the shard must never have had a log: this is for recordings that come from elsewhere, and for measuring.
func (db *DB) ImportRecording(shard dunlin.ShardID, items []dunlin.FeedItem) error {
	if err := db.state.check(shard); err != nil {
		return err
	}
	if len(items) == 0 {
		return nil
	}
	a := db.archive
	if head := db.log.span(shard); head.last > 0 || items[0].Index <= a.done[shard].Load() {
		return fmt.Errorf("import recording of shard %d: %w: index %d, the archive has %d, the log %d", shard, dunlin.ErrInvalid, items[0].Index,
			a.done[shard].Load(), head.last)
	}
	info := segmentInfo{shard: shard, first: items[0].Index, last: items[len(items)-1].Index, from: items[0].Entry.At, entries: uint64(len(items))}
	rows := make([]archived, len(items))
	for i, it := range items {
		rows[i] = archived{it.Index, it.Entry}
		info.to = max(info.to, it.Entry.At)
	}
	data, err := appendSegment(nil, a.pack, shard, info.first, rows)
	if err != nil {
		return fmt.Errorf("import recording of shard %d: %w", shard, err)
	}
	info.bytes = uint64(len(data))
	b := db.state.eng.NewBatch()
	defer b.Close()
	if err := b.Set(appendIndex(nil, shard, tabSegData, info.first), data, nil); err != nil {
		return err
	}
	if err := b.Set(appendIndex(nil, shard, tabSegment, info.first), info.append(nil), nil); err != nil {
		return err
	}
	if err := db.state.eng.commit(b, pebble.NoSync); err != nil {
		return fmt.Errorf("import recording of shard %d: %w", shard, err)
	}
	a.total.Add(int64(len(data)))
	a.done[shard].Store(info.last)
	return nil
}
