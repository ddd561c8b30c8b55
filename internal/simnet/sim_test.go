package simnet

import (
	"flag"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

var (
	seedsFlag = flag.Int("seeds", 200, "how many worlds TestSeeds plays")
	seedFlag  = flag.Int64("seed", -1, "play this world only")
	firstFlag = flag.Uint64("first", 0, "the first of the worlds")
	traceFlag = flag.Bool("trace", false, "with -seed: say all that happens")
	plantFlag = flag.String("plant", "", "with -seed: the planted bug whose text begins so")
)

// TestSeeds plays worlds. A failure names its seed: go test ./internal/simnet -run TestSeeds -seed N -trace.
func TestSeeds(t *testing.T) {
	if *seedFlag >= 0 {
		w := newWorld(planFor(uint64(*seedFlag), plantedFlag()))
		if *traceFlag {
			w.print = func(line string) { fmt.Println(line) }
		}
		err := w.play()
		t.Logf("seed %d: %s; trace %016x", *seedFlag, w.stats, w.trace.Sum64())
		if err != nil {
			t.Fatal(err)
		}
		return
	}
	start := time.Now()
	var sum stats
	var mu sync.Mutex
	played := 0
	playAll(*firstFlag, *seedsFlag, sound, func(w *world, err error) bool {
		mu.Lock()
		defer mu.Unlock()
		sum.add(w.stats)
		played++
		if err != nil {
			t.Errorf("seed %d: %v\n%s\nto play it again: go test ./internal/simnet -run TestSeeds -seed %d -trace", w.seed, err,
				strings.Join(w.tail[max(0, len(w.tail)-40):], "\n"), w.seed)
		}
		return err == nil
	})
	t.Logf("%d worlds in %v: %s", played, time.Since(start).Round(time.Millisecond), sum)
}

func plantedFlag() planted {
	for _, b := range bugs {
		if *plantFlag != "" && strings.HasPrefix(string(b), *plantFlag) {
			return b
		}
	}
	return sound
}

// playAll plays worlds on all processors until f says no.
func playAll(first uint64, n int, p planted, f func(*world, error) bool) {
	var next atomic.Uint64
	var stop atomic.Bool
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			for !stop.Load() {
				i := next.Add(1) - 1
				if i >= uint64(n) {
					return
				}
				w := newWorld(planFor(first+i, p))
				if !f(w, w.play()) {
					stop.Store(true)
				}
			}
		})
	}
	wg.Wait()
}

// TestReplay: a seed plays the same again, event by event.
func TestReplay(t *testing.T) {
	for seed := range uint64(6) {
		a, b := newWorld(planFor(seed, sound)), newWorld(planFor(seed, sound))
		_, _ = a.play(), b.play()
		if a.trace.Sum64() != b.trace.Sum64() {
			for i := range min(len(a.tail), len(b.tail)) {
				if a.tail[i] != b.tail[i] {
					t.Fatalf("seed %d plays differently, from here on at the latest:\n%s\n%s", seed, a.tail[i], b.tail[i])
				}
			}
			t.Fatalf("seed %d plays differently: %s and %s", seed, a.stats, b.stats)
		}
	}
}

// plantedSeeds is how many worlds a planted bug may survive.
const plantedSeeds = 60

// TestPlantedBugs: what the worlds are there to find, they find.
func TestPlantedBugs(t *testing.T) {
	for _, bug := range bugs {
		t.Run(strings.ReplaceAll(string(bug), " ", "_"), func(t *testing.T) {
			var worlds atomic.Int64
			found := ""
			var mu sync.Mutex
			playAll(*firstFlag, plantedSeeds, bug, func(w *world, err error) bool {
				worlds.Add(1)
				mu.Lock()
				defer mu.Unlock()
				if err != nil && found == "" {
					found = fmt.Sprintf("seed %d: %v", w.seed, err)
				}
				return err == nil
			})
			if found == "" {
				t.Fatalf("%d worlds with %s, and none noticed", plantedSeeds, bug)
			}
			t.Logf("found after %d worlds: %.300s", worlds.Load(), found)
		})
	}
}
