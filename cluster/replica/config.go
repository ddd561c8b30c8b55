package replica

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/prometheus/client_golang/prometheus"
)

// Log keeps the groups' entries and hard states. Append and Read are called from one goroutine each, Truncate from another;
// they may run at the same time.
type Log interface {
	// Load returns a shard's last hard state (nil if there is none) and the range of its rows: first is the oldest row
	// that can be read, last the newest. A log without rows has last = first − 1; a new one has last 0.
	Load(sh dunlin.ShardID) (hard []byte, first, last uint64, err error)
	// Append writes the rows in one batch; with sync set they survive a crash once it returns.
	Append(rows []dunlin.LogRow, sync bool) error
	// Read returns the rows [lo, hi), or as many of the first of them as fit bytesMax, but at least one.
	Read(sh dunlin.ShardID, lo, hi uint64, bytesMax int) ([]dunlin.LogRow, error)
	// Term returns the term of a row that can be read, or of the one before the first.
	Term(sh dunlin.ShardID, index uint64) (uint64, error)
	// Truncate drops the rows up to and including upTo, but keeps upTo's term.
	Truncate(sh dunlin.ShardID, upTo uint64) error
}

// StateMachine is what committed entries act on.
type StateMachine interface {
	// Apply applies the entries, of many shards, in one batch with the applied indexes. Within a shard they come in order
	// and without gaps, but after a crash again from the one behind Applied. The entries' Data must not be changed.
	Apply(batch []dunlin.Committed) error
	// Applied is the index of the last entry applied.
	Applied(sh dunlin.ShardID) uint64
	// Durable is the applied index that surely survives a crash: the log is kept from there on.
	Durable(sh dunlin.ShardID) uint64
	// Conf is the last Committed.Conf applied, nil if none.
	Conf(sh dunlin.ShardID) []byte
}

// Archiver keeps what the log drops.
type Archiver interface {
	// Archive sees to it that the shard's entries up to upTo are archived, and returns up to where they are. It may take
	// its time.
	Archive(sh dunlin.ShardID, upTo uint64) (uint64, error)
}

// Transport carries messages to the other nodes' Host.Receive. It may lose, repeat and reorder them. Send must not block:
// what does not fit is lost. The slice is the transport's.
type Transport interface {
	Send(batch []Message)
}

// Message is a Raft message for another node's replica of a shard.
type Message struct {
	To    uint64 // node
	Shard dunlin.ShardID
	Data  []byte
}

// Snapshots keeps what travels when a replica can't be fed from the log: the shard's state as of an entry. All may be called
// from any goroutine, and beside what is done with other shards. For one shard Receive, Add, Install, Drop and Destroy come one
// after the other, and Install and Destroy never beside an Append or an Apply with rows of it.
type Snapshots interface {
	// Export opens a snapshot of what is applied. At most one is open for a shard; a newer one replaces an older. From and
	// Term may be left zero: the host knows them.
	Export(sh dunlin.ShardID) (dunlin.SnapshotMeta, error)
	// Receive begins or resumes an incoming snapshot: it returns the number of chunks that are on disk already.
	Receive(meta dunlin.SnapshotMeta) (have int, err error)
	// Add takes the i-th chunk and verifies it. A crash may take the last few; after the last one all are on disk.
	Add(meta dunlin.SnapshotMeta, i int, chunk []byte, last bool) error
	// Install makes state and log the snapshot's, all chunks of which were added; hard is the shard's hard state, to be written
	// with it. The log then begins behind meta.Index and is empty. It survives a crash once Install returns.
	Install(meta dunlin.SnapshotMeta, hard []byte) error
	// Drop throws an incoming snapshot away.
	Drop(sh dunlin.ShardID) error
	// Destroy removes a replica: log rows, state rows, archive. It keeps tomb.
	Destroy(sh dunlin.ShardID, tomb []byte) error
	// Tombstone returns what the last Destroy kept, nil if there was none.
	Tombstone(sh dunlin.ShardID) ([]byte, error)
}

// Fetcher asks meta.From for a chunk of a snapshot, counted from 0, and whether it is the last one.
type Fetcher func(ctx context.Context, meta dunlin.SnapshotMeta, chunk int) (data []byte, last bool, err error)

// Config says what a Host drives and within which bounds.
type Config struct {
	Node   uint64   // this node's id in every group; default 1
	Voters []uint64 // the first replicas of a new group, in any order; default Node alone. An existing log knows better.
	Shards int      // groups, 1 to 65,536; default 64. Fixed for the life of the log.
	// Bootstrap gives birth to every shard that the log does not have, with Voters. Without it a Host has the groups in the
	// log, and those that Ensure adds, empty, for others to fill.
	Bootstrap bool

	Log          Log
	StateMachine StateMachine
	Archiver     Archiver  // nil: nothing is archived
	Transport    Transport // nil: every group has one voter, this node
	Snapshots    Snapshots // nil: replicas are fed from the log only, and can't be destroyed
	Fetch        Fetcher   // needed with Snapshots to receive one

	// OnOwner tells that this node owns a shard in a term, having applied all that earlier owners acknowledged, or that it
	// no longer does. Called from the host's loop; must not block.
	OnOwner func(sh dunlin.ShardID, term uint64, owner bool)
	// OnLeader tells who leads a shard, as this node's replica knows (lead 0: unknown). A hint. Called as OnOwner is.
	OnLeader func(sh dunlin.ShardID, term uint64, lead dunlin.NodeID)
	// OnConf tells a replica set that was applied. Called as OnOwner is.
	OnConf func(sh dunlin.ShardID, conf Conf)
	// Fatal is told of an error of Log or StateMachine. Nothing is acknowledged after it; Run returns the same error.
	Fatal func(error)

	EntryBytesMax        int // of one proposal; default 8 MiB
	PendingMax           int // proposals of one shard whose fate is open; default 1,024
	PendingBytesMax      int // their bytes; default 16 MiB
	NodePendingMax       int // of all shards; default 16,384
	NodePendingBytesMax  int // default 64 MiB
	RecentBytesMax       int // log rows kept in memory for a shard; default 4 MiB
	MessagesMax          int // received and not yet worked off; more are lost; default 8,192
	MessagesBytesMax     int // their bytes; small ones, such as heartbeats and votes, are taken nevertheless; default 64 MiB
	TruncateEntriesMin   int // a truncation drops at least so many entries; default 1,024
	TruncateBytesMin     int // or, fewer of them, so many bytes; default 1 MiB
	ElectionTicks        int // default 10
	HeartbeatTicks       int // default 2
	MaxEntryBytesPerRead int // of one group's entries in one message or one batch to apply; default 1 MiB
	InflightMax          int // messages with entries of one group on their way to one replica; default 256
	InflightBytesMax     int // their bytes, at least MaxEntryBytesPerRead; default 2 MiB
	ReadsMax             int // ReadIndex calls of one shard whose answer is open; default 4,096
	FetchesMax           int // snapshots being received at once; default 2
	LagBytesMax          int // log rows kept for a replica that lags and was heard of lately, or for a snapshot on its way; default 32 MiB
	TailBytes            int // of the newest log rows kept for whoever lags a little, if a shard has several replicas; default 256 KiB
	LagTicks             int // lately is within so many ticks; default 2,000: a minute
	SnapshotTicks        int // a replica that is sent a snapshot and does not say that it is at it for so long is sent it again; default 150

	Seed uint64 // of election timeouts; 0: random

	TickEvery     time.Duration // default 30ms; only groups with other members tick
	TruncateEvery time.Duration // default 5s

	Clock   func() dunlin.Time    // for durations in metrics; nil: real
	Logger  *slog.Logger          // nil: discard
	Metrics prometheus.Registerer // nil: none
}

func (c *Config) setDefaults() {
	if c.Node == 0 {
		c.Node = 1
	}
	if len(c.Voters) == 0 {
		c.Voters = []uint64{c.Node}
	}
	for _, d := range []struct {
		p *int
		v int
	}{
		{&c.Shards, 64}, {&c.EntryBytesMax, 8 << 20}, {&c.PendingMax, 1024}, {&c.PendingBytesMax, 16 << 20},
		{&c.NodePendingMax, 16384}, {&c.NodePendingBytesMax, 64 << 20}, {&c.RecentBytesMax, 4 << 20},
		{&c.MessagesMax, 8192}, {&c.TruncateEntriesMin, 1024}, {&c.TruncateBytesMin, 1 << 20}, {&c.ElectionTicks, 10}, {&c.HeartbeatTicks, 2},
		{&c.MaxEntryBytesPerRead, 1 << 20}, {&c.MessagesBytesMax, 64 << 20}, {&c.InflightMax, 256}, {&c.InflightBytesMax, 2 << 20},
		{&c.ReadsMax, 4096}, {&c.FetchesMax, 2}, {&c.LagBytesMax, 32 << 20}, {&c.TailBytes, 256 << 10}, {&c.LagTicks, 2000},
		{&c.SnapshotTicks, 150},
	} {
		if *d.p == 0 {
			*d.p = d.v
		}
	}
	if c.TickEvery == 0 {
		c.TickEvery = 30 * time.Millisecond
	}
	if c.TruncateEvery == 0 {
		c.TruncateEvery = 5 * time.Second
	}
	if c.Clock == nil {
		c.Clock = func() dunlin.Time { return dunlin.TimeOf(time.Now()) }
	}
	if c.Seed == 0 {
		c.Seed = rand.Uint64()
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.OnOwner == nil {
		c.OnOwner = func(dunlin.ShardID, uint64, bool) {}
	}
	if c.OnLeader == nil {
		c.OnLeader = func(dunlin.ShardID, uint64, dunlin.NodeID) {}
	}
	if c.OnConf == nil {
		c.OnConf = func(dunlin.ShardID, Conf) {}
	}
	if c.Fatal == nil {
		c.Fatal = func(error) {}
	}
}

func (c *Config) validate() error {
	switch {
	case c.Log == nil || c.StateMachine == nil:
		return fmt.Errorf("%w: a replica host needs a log and a state machine", dunlin.ErrInvalid)
	case c.Shards < 1 || c.Shards > 1<<16:
		return fmt.Errorf("%w: %d shards, want 1 to 65536", dunlin.ErrInvalid, c.Shards)
	case c.ElectionTicks <= c.HeartbeatTicks || c.HeartbeatTicks < 1:
		return fmt.Errorf("%w: %d election ticks must exceed %d heartbeat ticks", dunlin.ErrInvalid, c.ElectionTicks, c.HeartbeatTicks)
	case c.InflightBytesMax < c.MaxEntryBytesPerRead:
		return fmt.Errorf("%w: %d bytes in flight must be at least the %d of one message", dunlin.ErrInvalid, c.InflightBytesMax, c.MaxEntryBytesPerRead)
	case c.Bootstrap && !slices.Contains(c.Voters, c.Node):
		return fmt.Errorf("%w: node %d is not among the first replicas %v", dunlin.ErrInvalid, c.Node, c.Voters)
	case len(c.Voters) > 1 && c.Transport == nil:
		return fmt.Errorf("%w: replicas on %v need a transport", dunlin.ErrInvalid, c.Voters)
	}
	return nil
}

// monotonic returns a clock that does not jump with the wall clock: a replica that seems fresher than it is would answer what
// is long outdated.
func monotonic() func() dunlin.Time {
	start := time.Now()
	return func() dunlin.Time { return dunlin.TimeOf(start.Add(time.Since(start))) }
}
