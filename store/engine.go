package store

import (
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
)

// formatMajor is Pebble's own format. Sync chunks in the write-ahead log (part of it) tell a torn tail from rot.
const formatMajor = pebble.FormatValueSeparation

// engine is a Pebble instance whose commits report a broken disk as an error and to Config.Fatal.
type engine struct {
	*pebble.DB
	name string
	die  *fatal
}

// fatal remembers the first thing that must end the process.
type fatal struct {
	call func(error)
	done chan struct{} // closed once err is set
	once sync.Once
	err  error
}

func newFatal(call func(error)) *fatal { return &fatal{call: call, done: make(chan struct{})} }

// failed returns what ended the store, or nil.
func (f *fatal) failed() error {
	select {
	case <-f.done:
		return f.err
	default:
		return nil
	}
}

// fail records the first failure, tells Config.Fatal, and returns it.
func (f *fatal) fail(err error) error {
	f.once.Do(func() {
		f.err = err
		close(f.done)
		if f.call != nil {
			f.call(err)
		}
	})
	<-f.done
	return f.err
}

// commit commits b. When a disk fails, or Pebble panics or wants to end the process because it cannot go on, Config.Fatal is
// told, once, and the engine is never written again: its commit pipeline may be stuck with its lock held.
func (e *engine) commit(b *pebble.Batch, o *pebble.WriteOptions) (err error) {
	if err := e.die.failed(); err != nil {
		return fmt.Errorf("%s engine: %w", e.name, err)
	}
	defer func() {
		if p := recover(); p != nil {
			cause, ok := p.(error)
			if !ok {
				cause = fmt.Errorf("%v\n%s", p, debug.Stack())
			}
			err = e.die.fail(fmt.Errorf("%s engine: commit: %w", e.name, cause))
		}
	}()
	if err := b.Commit(o); err != nil {
		return e.die.fail(fmt.Errorf("%s engine: commit: %w", e.name, err))
	}
	if err := e.die.failed(); err != nil { // perhaps by this very commit: see walFS
		return fmt.Errorf("%s engine: %w", e.name, err)
	}
	return nil
}

// get is DB.Get with the value copied out.
func get(r pebble.Reader, key []byte) ([]byte, bool, error) {
	v, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	v = append(make([]byte, 0, len(v)), v...)
	return v, true, closer.Close()
}

// engineLogger hands Pebble's log to slog, and its Fatalf to Config.Fatal.
type engineLogger struct {
	name string
	log  *slog.Logger
	die  *fatal
}

// Infof implements pebble.Logger. Pebble tells every flush and compaction; that is for Debug.
func (l engineLogger) Infof(format string, args ...any) {
	l.log.Debug("pebble", "engine", l.name, "text", lazyText{format, args})
}

// lazyText is formatted only if somebody logs it.
type lazyText struct {
	format string
	args   []any
}

// LogValue implements slog.LogValuer.
func (t lazyText) LogValue() slog.Value { return slog.StringValue(fmt.Sprintf(t.format, t.args...)) }

// Errorf implements pebble.Logger.
func (l engineLogger) Errorf(format string, args ...any) {
	l.log.Error("pebble", "engine", l.name, "text", fmt.Sprintf(format, args...))
}

// Fatalf implements pebble.Logger. Pebble does not expect it to return. A failed commit is on its caller's goroutine and
// goes to engine.commit as a panic; everything else happens on Pebble's own goroutines, which are parked while the
// process ends.
func (l engineLogger) Fatalf(format string, args ...any) {
	told := pebbleFailure{text: l.name + " engine: " + fmt.Sprintf(format, args...)}
	for _, a := range args {
		if cause, ok := a.(error); ok {
			told.cause = cause
		}
	}
	err := l.die.fail(told)
	if strings.HasPrefix(format, "pebble: fatal commit error") {
		panic(err)
	}
	select {}
}

// pebbleFailure is why Pebble can't go on, in its words, with the error that it put into them.
type pebbleFailure struct {
	text  string
	cause error
}

func (f pebbleFailure) Error() string { return f.text }

func (f pebbleFailure) Unwrap() error { return f.cause }

func (c *Config) engineOptions(name string, die *fatal, cache *pebble.Cache) *pebble.Options {
	o := &pebble.Options{
		FS:                 walFS{c.FS, die},
		Cache:              cache,
		FormatMajorVersion: formatMajor,
		Logger:             engineLogger{name, c.Log, die},
		MaxOpenFiles:       512,
		// The table of a flush is small; two compactions at a time are all that a small machine wants to give.
		CompactionConcurrencyRange: func() (int, int) { return 1, 2 },
		// Spread the writing of write-ahead logs, or the next fsync has to do all of it.
		WALBytesPerSync: 512 << 10,
		// A slow or full disk shows in the metrics; these events are noise in a log.
		EventListener: &pebble.EventListener{BackgroundError: func(err error) {
			c.Log.Error("store: background work failed, it will be tried again", "engine", name, "err", err)
		}},
	}
	return o
}

// logOptions: what the log engine keeps is cut off again soon, mostly while it still is in the memtable, so that little of
// it is ever written a second time.
func (c *Config) logOptions(die *fatal, cache *pebble.Cache) *pebble.Options {
	o := c.engineOptions("log", die, cache)
	o.MemTableSize = uint64(c.LogMemTableBytes)
	o.MemTableStopWritesThreshold = 4
	o.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionFastest })
	o.EnsureDefaults()
	return o
}

// stateOptions: history and archive are small already, zstd finds little more in them; it is for states and for the history
// of devices that seldom report, of which larger blocks put more side by side.
func (c *Config) stateOptions(die *fatal, cache *pebble.Cache) *pebble.Options {
	o := c.engineOptions("state", die, cache)
	o.Merger = newMerger()
	o.MemTableSize = uint64(c.StateMemTableBytes)
	o.MemTableStopWritesThreshold = 4
	// A compaction folds what came of each device since the last one: fewer of them fold more at once.
	o.L0CompactionThreshold = 8
	o.L0StopWritesThreshold = 32
	// Timers come and go: a table of many deletions is no reason to write history again.
	o.Experimental.TombstoneDenseCompactionThreshold = -1
	// Pebble 2.1.7 may note tables that it ingests in the write-ahead log. Replaying such a log can leave a large batch behind it
	// unflushed while Open goes on to a new log; the old one's torn end is then no longer at the end, and after the next crash the
	// folder does not open any more ("unexpected EOF"; seen by internal/crash). Flushing first is slower and safe.
	o.Experimental.DisableIngestAsFlushable = func() bool { return true }
	for i := range o.Levels {
		o.Levels[i].BlockSize = stateBlockBytes
		o.Levels[i].IndexBlockSize = 256 << 10
		o.Levels[i].FilterPolicy = bloom.FilterPolicy(10)
	}
	o.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionBalanced })
	o.EnsureDefaults()
	return o
}

const stateBlockBytes = 16 << 10
