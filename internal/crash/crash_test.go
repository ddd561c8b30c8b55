package crash

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/dunlin-iot/dunlin"
)

var (
	seedsFlag = flag.Int("seeds", 100, "crash seeds to run")
	firstFlag = flag.Uint64("first", 0, "the first of them, to run one again: -seeds=1 -first=N")
)

// Bounds of one seed.
const (
	shardsMax   = 4
	livesMax    = 4
	roundsMax   = 120
	opsMax      = 500
	tableOpsMax = 20
)

// score sums up what the seeds went through.
type score struct {
	acked, applied, truncated atomic.Int64

	mu      sync.Mutex
	crashes map[string]int // by what was being done
}

func (s *score) crashed(where string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.crashes == nil {
		s.crashes = map[string]int{}
	}
	s.crashes[where]++
}

// runSeed lives some lives on one disk, each ended by a crash, and checks at the start of each what the last one left.
func runSeed(ctx context.Context, seed uint64, open opener, planted faults, sc *score) error {
	rng := rand.New(rand.NewPCG(seed, 0x637261736873))
	shards := 1 + rng.IntN(shardsMax)
	m := newModel(shards)
	ld := newLoad(rand.New(rand.NewPCG(seed, 1)), shards)
	disk := vfs.NewCrashableMem()
	sz := size{shards, []int{16 << 10, 64 << 10, 1 << 20}[rng.IntN(3)], rng.IntN(2) == 0, []int{0, 10, 30}[rng.IntN(3)]}
	if planted.eager { // upkeep is what would keep the fault from doing harm
		sz.archive, sz.upkeep = false, 0
	}
	lives := 2 + rng.IntN(livesMax-1)
	for n := range lives {
		last := n == lives-1
		pw := &power{fs: disk, rng: rand.New(rand.NewPCG(seed, uint64(n)+2)), keep: []int{0, 0, 20, 50, 90, 100}[rng.IntN(6)]}
		if planted != (faults{}) {
			pw.keep = 0 // as little as a disk may keep
		}
		if !last {
			pw.mu.left = 1 + rng.IntN(opsMax)
			if pw.table = rng.IntN(3) == 0; pw.table {
				pw.mu.left = 1 + rng.IntN(tableOpsMax)
			}
		}
		l := &life{size: sz, model: m, faults: planted, rng: rng, power: pw}
		next, err := runLife(ctx, l, ld, open, last, sc)
		if err != nil {
			return fmt.Errorf("life %d of %d on %d shards: %w", n+1, lives, shards, err)
		}
		disk = next
	}
	for i := range m.shards {
		sc.acked.Add(int64(len(m.shards[i].acked)))
		sc.applied.Add(int64(len(m.shards[i].committed)))
	}
	return nil
}

// runLife starts a node on a disk, checks it, works it until the power fails, and returns the disk that is left. The last
// life only checks.
func runLife(ctx context.Context, l *life, ld *load, open opener, last bool, sc *score) (*vfs.MemFS, error) {
	ctx, off := context.WithCancelCause(ctx)
	defer off(nil)
	l.power.off = off
	ended, err := l.start(ctx, open)
	if err == nil {
		if err = l.wait(ctx); err == nil {
			err = l.check(ld)
		}
		if err == nil && !last {
			err = l.work(ctx, ld, roundsMax)
		}
		next := l.power.end() // no acknowledgement counts from here
		sc.crashed(l.power.mu.where)
		off(nil)
		runErr := <-ended
		for sh := range l.shards {
			if _, first, _, err := l.room.log.Load(dunlin.ShardID(sh)); err == nil && first > 1 {
				sc.truncated.Add(1)
			}
		}
		closeErr := l.room.close()
		l.mu.Lock()
		defer l.mu.Unlock()
		err = errors.Join(err, l.mu.broken)
		if errors.Is(err, errCrashed) && l.mu.broken == nil {
			err = nil
		}
		_, _ = runErr, closeErr // of a machine that is off
		return next, err
	}
	// The power may fail while the store is being opened: that is a crash like any other.
	if l.power.alive() != nil {
		sc.crashed("opening")
		return l.power.end(), nil
	}
	return nil, err
}

// forSeeds runs the seeds on all cores and returns the first failure.
func forSeeds(t *testing.T, n int, first uint64, run func(seed uint64) error) (seed uint64, err error) {
	var next atomic.Uint64
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for t.Context().Err() == nil {
				i := next.Add(1) - 1
				mu.Lock()
				stop := err != nil
				mu.Unlock()
				if i >= uint64(n) || stop {
					return
				}
				if e := run(first + i); e != nil {
					mu.Lock()
					if err == nil {
						seed, err = first+i, e
					}
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return seed, err
}

// TestCrash: whatever the moment of the crash, nothing acknowledged is lost, nothing is applied twice, no alert is there
// twice, and the state is what the log makes of nothing.
func TestCrash(t *testing.T) {
	var sc score
	seed, err := forSeeds(t, *seedsFlag, *firstFlag, func(seed uint64) error {
		return runSeed(t.Context(), seed, openStore, faults{}, &sc)
	})
	if err != nil {
		t.Fatalf("seed %d: %v\nagain: go test ./internal/crash -run TestCrash$ -seeds=1 -first=%d", seed, err, seed)
	}
	t.Logf("%d seeds: %d entries acknowledged, %d applied, %d logs truncated; crashes by what was being done: %v",
		*seedsFlag, sc.acked.Load(), sc.applied.Load(), sc.truncated.Load(), sc.crashes)
	if n := int64(*seedsFlag); n >= 100 && (sc.acked.Load() < 10*n || sc.truncated.Load() < n/4) {
		t.Errorf("that is too little to show anything")
	}
}

// TestCrashFindsPlantedFaults: a suite that finds nothing proves nothing.
func TestCrashFindsPlantedFaults(t *testing.T) {
	for name, planted := range map[string]faults{
		"acknowledging before the fsync":                 {unsynced: true},
		"truncating to the index applied in memory only": {eager: true},
	} {
		t.Run(name, func(t *testing.T) {
			const seeds = 40
			var sc score
			var found atomic.Int64
			_, _ = forSeeds(t, seeds, 0, func(seed uint64) error {
				if err := runSeed(t.Context(), seed, openStore, planted, &sc); err != nil {
					found.Add(1)
					t.Logf("seed %d: %v", seed, err)
				}
				return nil
			})
			t.Logf("%d of %d seeds found it", found.Load(), seeds)
			if found.Load() < seeds/8 {
				t.Errorf("%d of %d seeds found it", found.Load(), seeds)
			}
		})
	}
}
