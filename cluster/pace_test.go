package cluster

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// disk is how long a write to the log takes while so many bytes of snapshots come in a second.
type disk func(rate float64) time.Duration

// pull receives chunks for a while and returns the bytes in a second.
func pull(t *testing.T, p *pace, d disk, took *time.Duration, long time.Duration) float64 {
	t.Helper()
	const chunk = 1 << 20
	begin, n := time.Now(), 0
	for time.Since(begin) < long {
		at := time.Now()
		if err := p.wait(t.Context(), chunk); err != nil {
			t.Fatal(err)
		}
		n++
		*took = d(chunk / max(time.Since(at), time.Microsecond).Seconds())
	}
	return float64(n*chunk) / time.Since(begin).Seconds()
}

// TestPace: what a node receives of snapshots keeps to the rate, gives way while the log's writes are slow, and always goes on.
func TestPace(t *testing.T) {
	const most = 12 << 20
	ms := func(n float64) time.Duration { return time.Duration(n * float64(time.Millisecond)) }
	for _, c := range []struct {
		name    string
		disk    disk
		lo, hi  float64 // MiB/s
		unknown bool    // nothing was written to the log before
	}{
		{"a good disk", func(float64) time.Duration { return ms(1) }, 11.5, 12.1, false},
		{"no writes", func(float64) time.Duration { return 0 }, 11.5, 12.1, true},
		{"slow above 6 MiB/s", func(r float64) time.Duration {
			if r > 6<<20 {
				return ms(20)
			}
			return ms(2)
		}, 3.5, 7, false},
		{"slow with any snapshot", func(float64) time.Duration { return ms(50) }, 1.9, 2.6, false},
		{"always slow, which is not the snapshots' doing", func(float64) time.Duration { return ms(15) }, 8, 12.1, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				took := ms(1.5)
				if c.unknown {
					took = 0
				}
				p := newPace(most, func() time.Duration { return took }, time.Now)
				pull(t, p, c.disk, &took, 30*time.Second)
				if got := pull(t, p, c.disk, &took, 30*time.Second) / (1 << 20); got < c.lo || got > c.hi {
					t.Errorf("%.2f MiB/s, want %.1f to %.1f", got, c.lo, c.hi)
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		p := newPace(1, func() time.Duration { return 0 }, time.Now)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := p.wait(ctx, 1<<20); !errors.Is(err, dunlin.ErrUnavailable) {
			t.Errorf("a wait that ends with its context: %v", err)
		}
	})
}
