package store

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/dunlin-iot/dunlin"
)

// Config says where a store is and how large its parts may grow. The zero value of a field means its default.
type Config struct {
	Dir      string
	FS       vfs.FS   // nil: the disk
	Identity Identity // whose data it must be; Shards is how many a new folder gets (default 64)

	// ShardOf maps a device to its shard, for questions about one device that do not come with it. nil: all are asked.
	ShardOf func(dunlin.DeviceKey) dunlin.ShardID
	// OnApplied is told each entry that had an effect after it was applied, in order within a shard, by the goroutine that
	// applies. The entry is shared: read only.
	OnApplied func(shard dunlin.ShardID, index uint64, e *dunlin.Entry)
	// OnInstalled is told that a shard's state was replaced by a snapshot's, after the fact: what was kept of its rows
	// elsewhere must be read again. nil: nobody.
	OnInstalled func(dunlin.ShardID)
	// Retention returns how long a domain's history is kept; 0: for ever. nil: all of it for ever.
	Retention func(dunlin.Tenant, dunlin.DomainID) time.Duration
	// Fatal is told once, by any goroutine, that the disk failed to keep what was written. The process must end soon:
	// everything in the store fails from then on, and some of Pebble's goroutines stand still. nil: panic.
	Fatal func(error)

	CacheBytes         int64 // blocks of both engines; default 32 MiB. Memtables come on top.
	LogMemTableBytes   int64 // default 16 MiB; in the worst case four of them are in memory, and mostly two
	StateMemTableBytes int64 // default 8 MiB; likewise
	LogBytes           int64 // of entries that may wait to be archived; the log is about as large. Default 16 MiB
	SegmentBytes       int   // of entries in an archived segment, before compression; default 128 KiB

	ArchiveOff   bool          // keep no entries that left the log
	ArchiveAge   time.Duration // how long they are kept; default 30 days, negative: for ever
	ArchiveBytes int64         // how many bytes of them; default 4 GiB, negative: any number
	TailBytes    int           // of entries in memory for followers of the journal; default 8 MiB

	ChunkBytes int // of rows in a chunk of a snapshot, before compression; default 2 MiB, at most 8 MiB

	DeadLetterBytes int64 // of all dead letters; default 64 MiB

	Planted Planted // for tests: promises to break; the zero value breaks none

	Clock   func() dunlin.Time    // nil: real
	Log     *slog.Logger          // nil: none
	Metrics prometheus.Registerer // nil: none
}

// ShardsMax bounds the number of shards: a shard's number has two bytes of a key, of which one value is kept free.
const ShardsMax = 1 << 12

func (c *Config) setDefaults() error {
	if c.Dir == "" {
		return fmt.Errorf("%w: store: no data folder named", dunlin.ErrInvalid)
	}
	if c.Identity.Shards < 0 || c.Identity.Shards > ShardsMax {
		return fmt.Errorf("%w: store: %d shards, want 1 to %d", dunlin.ErrInvalid, c.Identity.Shards, ShardsMax)
	}
	if c.FS == nil {
		c.FS = vfs.Default
	}
	if c.Clock == nil {
		c.Clock = func() dunlin.Time { return dunlin.TimeOf(time.Now()) }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Fatal == nil {
		c.Fatal = func(err error) { panic(err) }
	}
	c.CacheBytes = cmp.Or(c.CacheBytes, 32<<20)
	c.LogMemTableBytes = cmp.Or(c.LogMemTableBytes, 16<<20)
	c.StateMemTableBytes = cmp.Or(c.StateMemTableBytes, 8<<20)
	c.LogBytes = cmp.Or(c.LogBytes, 16<<20)
	c.SegmentBytes = cmp.Or(c.SegmentBytes, 128<<10)
	c.ArchiveAge = cmp.Or(c.ArchiveAge, 30*24*time.Hour)
	c.ArchiveBytes = cmp.Or(c.ArchiveBytes, 4<<30)
	c.TailBytes = cmp.Or(c.TailBytes, 8<<20)
	c.ChunkBytes = min(cmp.Or(c.ChunkBytes, 2<<20), chunkPlainMax/2)
	c.DeadLetterBytes = cmp.Or(c.DeadLetterBytes, 64<<20)
	return nil
}

// DB is an open data folder.
type DB struct {
	cfg      Config
	identity atomic.Pointer[Identity] // never nil once open
	shards   int
	die      *fatal
	lock     io.Closer
	engines  []*pebble.DB
	log      *Log
	state    *State
	archive  *archive
	journal  *Journal
	metrics  *metrics
	snaps    snapshots
	tables   sstable.WriterOptions // of what an incoming snapshot is written to

	grown  chan struct{} // size 1: the log has grown by what a step of Maintain is worth
	poked  int64         // Log.Bytes when grown was last sent to; the log's writer's
	upkeep sync.Mutex    // Maintain, Sync and Retain take turns
	synced int64         // Log.Bytes at the last sync of the state engine; guarded by upkeep
}

// Open opens or makes a data folder. It refuses one that belongs to something else, another node or a newer dunlin, and one
// that another process has open, with an error that says what to do.
func Open(c Config) (db *DB, err error) {
	if err := c.setDefaults(); err != nil {
		return nil, err
	}
	db = &DB{cfg: c, die: newFatal(c.Fatal), grown: make(chan struct{}, 1)}
	db.snaps.exports, db.snaps.incoming = make(map[string]*export), make(map[dunlin.ShardID]*incoming)
	defer func() {
		if err != nil {
			err = errors.Join(err, db.Close())
			db = nil
		}
	}()
	if err := makeFolder(c.FS, c.Dir); err != nil {
		return db, err
	}
	lock := c.FS.PathJoin(c.Dir, lockFile)
	if db.lock, err = c.FS.Lock(lock); err != nil {
		return db, fmt.Errorf("store: %s is in use by another process, or not ours to write (%w): stop the other one, or name another data folder", c.Dir, err)
	}
	want := c.Identity
	if want.Shards == 0 {
		if have, found, err := readFormat(c.FS, c.Dir); err == nil && !found {
			want.Shards = 64
		} else if found && err == nil {
			want.Shards = have.Shards
		}
	}
	id, err := claimFolder(c.FS, c.Dir, want)
	if err != nil {
		return db, err
	}
	db.identity.Store(&id)
	db.shards = id.Shards
	return db, db.open()
}

// makeFolder makes dir and sees to it that its name lasts.
func makeFolder(fsys vfs.FS, dir string) error {
	if err := fsys.MkdirAll(dir, 0o750); err != nil {
		return fmt.Errorf("store: make %s: %w", dir, err)
	}
	return syncFolder(fsys, fsys.PathDir(dir))
}

func (db *DB) open() error {
	c := &db.cfg
	// Pebble takes the memtables' bytes out of the cache's.
	cache := pebble.NewCache(c.CacheBytes + c.LogMemTableBytes + c.StateMemTableBytes)
	defer cache.Unref()
	log, err := db.engine("log", c.logOptions(db.die, cache))
	if err != nil {
		return err
	}
	stateOptions := c.stateOptions(db.die, cache)
	state, err := db.engine("state", stateOptions)
	if err != nil {
		return err
	}
	db.tables = stateOptions.MakeWriterOptions(len(stateOptions.Levels)-1, state.TableFormat())
	if db.snaps.pack, err = newChunker(); err != nil {
		return err
	}
	if db.log, err = openLog(log, db.shards, db.grew); err != nil {
		return fmt.Errorf("store: open log: %w", err)
	}
	if err := db.recover(state); err != nil {
		return fmt.Errorf("store: recover: %w", err)
	}
	if db.state, err = openState(state, db.shards); err != nil {
		return fmt.Errorf("store: open state: %w", err)
	}
	db.state.shardOf, db.state.clock, db.state.retention = c.ShardOf, c.Clock, c.Retention
	for i := range db.shards {
		first, applied := db.log.span(dunlin.ShardID(i)).first, db.state.applied[i].Load()
		if applied+1 < first {
			return fmt.Errorf("store: shard %d in %s was applied up to %d, but its log begins at %d: the folder's state was replaced or damaged; restore the whole folder, or start the node with an empty one",
				i, c.Dir, applied, first)
		}
	}
	if db.archive, err = openArchive(c, db.log, db.state); err != nil {
		return fmt.Errorf("store: open archive: %w", err)
	}
	db.journal = newJournal(c, db.log, db.state, db.archive)
	db.metrics = newMetrics(db, c.Metrics)
	db.state.onCommit = db.committed
	return nil
}

func (db *DB) engine(name string, o *pebble.Options) (engine, error) {
	dir := db.cfg.FS.PathJoin(db.cfg.Dir, name)
	if err := makeFolder(db.cfg.FS, dir); err != nil {
		return engine{}, err
	}
	e, err := pebble.Open(dir, o)
	if err != nil {
		return engine{}, fmt.Errorf("store: open %s: %w", dir, err)
	}
	db.engines = append(db.engines, e)
	if err := db.die.failed(); err != nil { // Pebble was not told: see walFS
		return engine{}, fmt.Errorf("store: open %s: %w", dir, err)
	}
	return engine{DB: e, name: name, die: db.die}, nil
}

// grew pokes Run. It is called by the log's writer with Log.Bytes.
func (db *DB) grew(total int64) {
	if total-db.poked < db.cfg.LogBytes/4 {
		return
	}
	db.poked = total
	select {
	case db.grown <- struct{}{}:
	default:
	}
}

// committed spreads what was applied; State.Apply calls it.
func (db *DB) committed(entries []appliedEntry) {
	for i := range entries {
		db.archive.pending[entries[i].shard].Add(int64(entries[i].size))
	}
	db.metrics.applied(entries)
	db.journal.push(entries)
	if f := db.cfg.OnApplied; f != nil {
		for i := range entries {
			if e := &entries[i]; e.entry != nil {
				f(e.shard, e.index, e.entry)
			}
		}
	}
}

// Close closes the folder. Nobody may be using it; a disk that failed is left as it is.
func (db *DB) Close() error {
	var errs []error
	db.metrics.close()
	db.closeExports(func(*export) bool { return true })
	for _, in := range db.snaps.incoming {
		errs = append(errs, db.closeIncoming(in))
	}
	if db.die.failed() == nil {
		for _, e := range db.engines {
			errs = append(errs, e.Close())
		}
	}
	db.engines = nil
	if db.lock != nil {
		errs = append(errs, db.lock.Close())
		db.lock = nil
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("store: close: %w", err)
	}
	return nil
}

// Identity returns whose data the folder holds.
func (db *DB) Identity() Identity { return *db.identity.Load() }

// Log returns the Raft log.
func (db *DB) Log() *Log { return db.log }

// State returns the applied state.
func (db *DB) State() *State { return db.state }

// Journal returns the stream of applied entries.
func (db *DB) Journal() *Journal { return db.journal }
