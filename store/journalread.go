package store

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"github.com/dunlin-iot/dunlin"
)

// Head returns the position after the newest applied entry of a shard.
func (j *Journal) Head(shard dunlin.ShardID) uint64 {
	j.mu.Lock()
	defer j.mu.Unlock()
	if int(shard) >= j.shards {
		return 1
	}
	return j.mu.tails[shard].head
}

// Watch calls news whenever an entry with an effect was applied to the shard, until stop is called. While a shard is watched
// or followed its newest entries stay in memory. news is called with a lock held: it must neither block nor call the journal.
func (j *Journal) Watch(shard dunlin.ShardID, news func()) (stop func()) {
	if int(shard) >= j.shards {
		return func() {}
	}
	f := &follower{marked: make([]uint64, (j.shards+63)/64), news: news}
	j.mu.Lock()
	defer j.mu.Unlock()
	j.joinLocked(f, shard)
	return func() { j.leave(f) }
}

// Read returns what there is of a shard from index next on, without waiting: all entries with an effect from next up to, not
// with, upTo, which is next if there is nothing yet. It takes what comes easily at once, some 256 entries or 256 KiB; ask
// again from upTo. ErrCursorLost: what was at next is not kept here.
func (j *Journal) Read(shard dunlin.ShardID, next uint64) (items []dunlin.FeedItem, upTo uint64, err error) {
	if int(shard) >= j.shards {
		return nil, next, fmt.Errorf("read journal: %w: shard %d, there are %d", dunlin.ErrInvalid, shard, j.shards)
	}
	return j.read(shard, next, nil)
}

func (j *Journal) read(shard dunlin.ShardID, next uint64, items []dunlin.FeedItem) ([]dunlin.FeedItem, uint64, error) {
	next = max(next, 1)
	items, until, live := j.fromTail(shard, next, items)
	if live {
		return items, until, nil
	}
	return j.fromDisk(shard, next, until, items)
}

// fromTail appends what memory has from next on; until is behind it. If memory begins later, until is where.
func (j *Journal) fromTail(shard dunlin.ShardID, next uint64, items []dunlin.FeedItem) (_ []dunlin.FeedItem, until uint64, live bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	t := &j.mu.tails[shard]
	switch {
	case next >= t.head:
		return items, next, true
	case next < t.from:
		return items, t.from, false
	}
	i, _ := slices.BinarySearchFunc(t.items, next, func(it tailItem, n uint64) int { return cmp.Compare(it.index, n) })
	end := min(len(t.items), i+followItems)
	for _, it := range t.items[i:end] {
		items = append(items, dunlin.FeedItem{Index: it.index, Entry: it.entry})
	}
	if end < len(t.items) {
		return items, t.items[end].index, true
	}
	return items, t.head, true
}

// fromDisk appends entries from next on, at most to until, out of the log or one segment of the archive.
func (j *Journal) fromDisk(shard dunlin.ShardID, next, until uint64, items []dunlin.FeedItem) ([]dunlin.FeedItem, uint64, error) {
	rows, err := j.log.Read(shard, next, until, followBytes)
	if errors.Is(err, dunlin.ErrCursorLost) {
		return j.fromArchive(shard, next, until, items)
	}
	if err != nil {
		return items, next, err
	}
	if len(rows) == 0 {
		return items, next, fmt.Errorf("%w: the log of shard %d ends before %d, which was applied", dunlin.ErrInvalid, shard, next)
	}
	for i := range rows {
		e, err := effective(&rows[i])
		if err != nil {
			return items, next, err
		}
		if e != nil {
			items = append(items, dunlin.FeedItem{Index: rows[i].Index, Entry: e})
		}
	}
	return items, rows[len(rows)-1].Index + 1, nil
}

func (j *Journal) fromArchive(shard dunlin.ShardID, next, until uint64, items []dunlin.FeedItem) ([]dunlin.FeedItem, uint64, error) {
	found, end, err := j.archive.read(shard, next)
	if err != nil {
		return items, next, err
	}
	for _, it := range found {
		if it.index >= until {
			break
		}
		items = append(items, dunlin.FeedItem{Index: it.index, Entry: it.entry})
	}
	return items, min(end, until), nil
}
