package gossip

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"

	"github.com/hashicorp/memberlist"

	"github.com/dunlin-iot/dunlin"
)

// Hint says who owns a shard, as somebody heard: the leader of the shard's Raft group in a term. It may be out of date; a
// node that is asked for a shard which it does not own refuses.
type Hint struct {
	Shard dunlin.ShardID
	Term  uint64
	Owner dunlin.NodeID
}

// hints is the newest hint of each shard. The newest term wins; of one term the first, since a term has one leader.
type hints struct {
	sync.RWMutex
	by map[dunlin.ShardID]Hint // at most 65,536: shards are numbered in 16 bits
}

// put returns those of hs that were news.
func (t *hints) put(hs []Hint) (news []Hint) {
	t.Lock()
	defer t.Unlock()
	if t.by == nil {
		t.by = make(map[dunlin.ShardID]Hint)
	}
	for _, h := range hs {
		if h.Owner == 0 || h.Term <= t.by[h.Shard].Term {
			continue
		}
		t.by[h.Shard] = h
		news = append(news, h)
	}
	return news
}

// all returns the hints in the order of their shards.
func (t *hints) all() []Hint {
	t.RLock()
	defer t.RUnlock()
	hs := make([]Hint, 0, len(t.by))
	for _, h := range t.by {
		hs = append(hs, h)
	}
	slices.SortFunc(hs, func(a, b Hint) int { return int(a.Shard) - int(b.Shard) })
	return hs
}

// hintsVersion is the first byte of a message of hints; one of another version is left alone.
const hintsVersion = 1

// hintBytesMax bounds one hint on the wire.
const hintBytesMax = binary.MaxVarintLen16 + binary.MaxVarintLen64 + 8

// appendHints packs hints: version u8 | each: shard uvarint, term uvarint, owner u64.
func appendHints(b []byte, hs []Hint) []byte {
	b = append(b, hintsVersion)
	for _, h := range hs {
		b = binary.AppendUvarint(b, uint64(h.Shard))
		b = binary.AppendUvarint(b, h.Term)
		b = binary.LittleEndian.AppendUint64(b, uint64(h.Owner))
	}
	return b
}

// parseHints reads what appendHints wrote; the bytes come from the network. A message of a version that this node does not
// know holds nothing for it.
func parseHints(b []byte) ([]Hint, error) {
	if len(b) == 0 {
		return nil, fmt.Errorf("%w: hints without a version", dunlin.ErrInvalid)
	}
	if b[0] != hintsVersion {
		return nil, nil
	}
	r := reader{b: b[1:]}
	hs := make([]Hint, 0, min(len(r.b)/10, 1<<16))
	for len(r.b) > 0 {
		sh := r.uvarint()
		h := Hint{Shard: dunlin.ShardID(sh), Term: r.uvarint(), Owner: dunlin.NodeID(r.u64())}
		if r.bad || sh > 1<<16-1 || len(hs) == 1<<16 {
			return nil, fmt.Errorf("%w: hints (%d bytes) break off at %d", dunlin.ErrInvalid, len(b), len(hs))
		}
		hs = append(hs, h)
	}
	return hs, nil
}

func (t *hints) len() int {
	t.RLock()
	defer t.RUnlock()
	return len(t.by)
}

// hintsQueueMax bounds the hints that wait to be told; who misses one gets it with the next full exchange.
const hintsQueueMax = 1024

// hintBroadcast is a hint on its way out. A newer one of the shard takes its place.
type hintBroadcast struct {
	name  string
	bytes []byte
}

// Name implements memberlist.NamedBroadcast.
func (b *hintBroadcast) Name() string { return b.name }

// Invalidates implements memberlist.Broadcast.
func (b *hintBroadcast) Invalidates(memberlist.Broadcast) bool { return false }

// Message implements memberlist.Broadcast.
func (b *hintBroadcast) Message() []byte { return b.bytes }

// Finished implements memberlist.Broadcast.
func (b *hintBroadcast) Finished() {}
