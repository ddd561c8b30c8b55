// Package stream is the committed entries of all shards of a cluster as one stream, wherever their replicas are.
//
//	follower ──▶ the shard's replica here, if it has what is asked for ──▶ store.Journal: memory, log, archive
//	         └─▶ tail: the newest of a shard that is elsewhere ◀── one waiting pull a peer, for all followers of this node
//	         └─▶ fill: older than the tail ──▶ a pull of its own, from any replica that still keeps it
//
// An entry has the same index at every replica, so a position means the same everywhere and a follower may be moved from one
// source to another between any two entries: it always asks for what follows its position, and nothing else.
//
// Part of the runtime; no compatibility promise before v1.
package stream

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/dunlin-iot/dunlin"
)

// Local is the journal of the replicas on this node. Any goroutine may ask.
type Local interface {
	// Head is the position after the newest applied entry.
	Head(sh dunlin.ShardID) uint64
	// Read returns, without waiting, all entries with an effect from next up to, not with, upTo; upTo is next if there is
	// nothing yet. ErrCursorLost: what was at next is not kept here.
	Read(sh dunlin.ShardID, next uint64) (items []dunlin.FeedItem, upTo uint64, err error)
	// Watch calls news after entries were applied to the shard, until stop. news neither blocks nor calls the journal.
	Watch(sh dunlin.ShardID, news func()) (stop func())
}

// Replicas says where the shards are. Both answer at once, to any goroutine.
type Replicas interface {
	// Replicas lists the nodes with a replica of the shard, the best to ask first: its owner, if it is known. It may name
	// this node.
	Replicas(sh dunlin.ShardID) []dunlin.NodeID
	// Fresh says how long ago the replica here was known to have everything that was committed: 0 for an owner, little for one
	// that hears of its owner, also if the shard is quiet. false: there is none here, or none that ever caught up.
	Fresh(sh dunlin.ShardID) (time.Duration, bool)
}

// Caller asks another node, which hands the question to its Feed.Serve. It returns soon after ctx ended.
type Caller interface {
	Call(ctx context.Context, to dunlin.NodeID, method string, body []byte) ([]byte, error)
}

// Deps is what the feed works with. Without Replicas or Caller every shard is taken to be here.
type Deps struct {
	Local    Local
	Replicas Replicas
	Caller   Caller
}

// Config tunes a Feed; what is zero gets its default.
type Config struct {
	Self    dunlin.NodeID
	Shards  int
	ShardOf func(dunlin.DeviceKey) dunlin.ShardID

	FreshMax    time.Duration // a replica here that was up to date longer ago is not waited for; default 3 s
	Wait        time.Duration // how long a pull waits at the peer for news; default and bound 10 s
	CallTimeout time.Duration // of a pull beyond what it waits for; default 5 s
	HeadAge     time.Duration // how old the knowledge about a shard elsewhere may be that Now does not ask about; default 250 ms
	HeadTimeout time.Duration // of one round of asking in Now, of which there are two at the most; default 500 ms
	HeadWait    time.Duration // how long Now waits if of some shard nothing was ever heard; default 10 s
	HeadEvery   time.Duration // between questions where shards elsewhere end, if nobody else asks; default 30 s
	LostAfter   time.Duration // a position that no reachable replica keeps is lost, if the others stay away so long; default 1 min
	Linger      time.Duration // how long a shard is kept up after its last follower left; default 20 s
	Tick        time.Duration // between looks at where the shards are; default 250 ms
	ReplyBytes  int           // of entries in one reply, of which there is at least one; default 256 KiB
	TailBytes   int           // of entries from elsewhere in memory; default 8 MiB

	Clock   func() dunlin.Time    // nil: real
	Log     *slog.Logger          // nil: none
	Metrics prometheus.Registerer // nil: none
}

func (c *Config) setDefaults() error {
	if c.Shards < 1 || c.Shards > shardsMax {
		return fmt.Errorf("%w: feed: %d shards, want 1 to %d", dunlin.ErrInvalid, c.Shards, shardsMax)
	}
	c.FreshMax = cmp.Or(c.FreshMax, 3*time.Second)
	c.Wait = min(cmp.Or(c.Wait, waitMax), waitMax)
	c.CallTimeout = cmp.Or(c.CallTimeout, 5*time.Second)
	c.HeadAge = cmp.Or(c.HeadAge, 250*time.Millisecond)
	c.HeadTimeout = cmp.Or(c.HeadTimeout, 500*time.Millisecond)
	c.HeadWait = cmp.Or(c.HeadWait, 10*time.Second)
	c.HeadEvery = cmp.Or(c.HeadEvery, 30*time.Second)
	c.LostAfter = cmp.Or(c.LostAfter, time.Minute)
	c.Linger = cmp.Or(c.Linger, 20*time.Second)
	c.Tick = cmp.Or(c.Tick, 250*time.Millisecond)
	c.ReplyBytes = cmp.Or(c.ReplyBytes, 256<<10)
	c.TailBytes = cmp.Or(c.TailBytes, 8<<20)
	if c.Clock == nil {
		c.Clock = func() dunlin.Time { return dunlin.TimeOf(time.Now()) }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

const (
	shardsMax = 1 << 16
	waitMax   = 10 * time.Second // a peer's serving side waits no longer, whatever it is asked for

	// servingMax bounds a peer's questions at work here; of those only one waits.
	servingMax = 16
	// fillsMax bounds a follower's questions for what is older than memory, peerFillsMax those of all followers to one peer.
	fillsMax     = 4
	peerFillsMax = 8
	// readsMax bounds how often one question reads the journal: a device's rare entries are not searched for without end.
	readsMax = 32
	// tailItems is how many entries a follower takes from a tail at once.
	tailItems = 256
	// entryBytesMax bounds one entry on the way: a call carries 8 MiB.
	entryBytesMax = 15 << 19
)
