package stream

import (
	"cmp"
	"slices"

	"github.com/dunlin-iot/dunlin"
)

// tail is the newest entries of a shard that is elsewhere: all that have an effect from from to head, not with it.
type tail struct {
	from, head uint64 // both 0: not placed yet
	items      []tailItem
	bytes      int
}

type tailItem struct {
	dunlin.FeedItem
	size int
}

// itemOverhead is what a decoded entry takes in memory for each byte of its encoding, about.
const itemOverhead = 4

// add appends an answer to a question for what follows head. It reports whether there is something to read that was not.
func (t *tail) add(a *answer) (news bool) {
	if t.head == 0 {
		t.from, t.head = a.next, a.next
		return true
	}
	each := 64
	if len(a.items) > 0 {
		each += itemOverhead * a.bytes / len(a.items)
	}
	for _, it := range a.items {
		t.items = append(t.items, tailItem{it, each})
		t.bytes += each
	}
	t.head = a.next
	return len(a.items) > 0
}

// drop forgets the n oldest entries.
func (t *tail) drop(n int) {
	for _, it := range t.items[:n] {
		t.bytes -= it.size
		t.from = it.Index + 1
	}
	if n == len(t.items) {
		t.items = nil
		return
	}
	t.items = slices.Clone(t.items[n:])
}

// read appends entries from next on to dst; upTo is behind them. behind: it is older than what the tail has.
func (t *tail) read(next uint64, dst []dunlin.FeedItem) (_ []dunlin.FeedItem, upTo uint64, behind bool) {
	switch {
	case next < t.from:
		return dst, next, true
	case next >= t.head: // or not placed
		return dst, next, false
	}
	i, _ := slices.BinarySearchFunc(t.items, next, func(it tailItem, n uint64) int { return cmp.Compare(it.Index, n) })
	end := min(len(t.items), i+tailItems)
	for _, it := range t.items[i:end] {
		dst = append(dst, it.FeedItem)
	}
	if end < len(t.items) {
		return dst, t.items[end].Index, false
	}
	return dst, t.head, false
}

// boundLocked drops the older half of the largest tail until all are within bounds.
func (f *Feed) boundLocked() {
	for f.mu.tailBytes > f.cfg.TailBytes {
		largest := &f.mu.shards[0].tail
		for i := range f.mu.shards {
			if t := &f.mu.shards[i].tail; t.bytes > largest.bytes {
				largest = t
			}
		}
		f.mu.tailBytes -= largest.bytes
		largest.drop((len(largest.items) + 1) / 2)
		f.mu.tailBytes += largest.bytes
	}
}

// clearLocked forgets a shard's tail.
func (f *Feed) clearLocked(s *shardState) {
	f.mu.tailBytes -= s.tail.bytes
	s.tail = tail{}
}
