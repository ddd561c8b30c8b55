package cluster

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// pace spreads what a node receives of snapshots over time: it goes to the disk that the log is synced to. While a write to the log
// takes more than twice what it takes in quiet times, the rate falls by a third every quarter of a second; otherwise it rises again.
// It never falls below paceFloor, so a snapshot ends on any disk. A node that had not written anything before takes for quiet what it
// sees at the floor, by and by: its disk may be a slow one.
type pace struct {
	most  int64                // bytes in a second at best
	wrote func() time.Duration // how long writes to the log take these days; 0: not known
	now   func() time.Time

	mu struct {
		sync.Mutex
		rate   float64       // bytes in a second
		quiet  time.Duration // what a write takes without snapshots
		known  bool          // quiet was measured, not guessed
		next   time.Time     // when the bytes so far are paid for
		judged time.Time     // when rate was looked at last
	}
}

const (
	paceFloor   = 2 << 20 // bytes in a second
	paceJudge   = 250 * time.Millisecond
	paceRest    = 2 * time.Second // without a chunk for so long, the log's writes are quiet again
	paceSlower  = 2.0 / 3
	paceFaster  = 1.1
	paceQuiet   = 4 * time.Millisecond // before it is known
	paceFastest = 2 * time.Millisecond // disks that are faster than that are not told apart
)

func newPace(most int64, wrote func() time.Duration, now func() time.Time) *pace {
	p := &pace{most: most, wrote: wrote, now: now}
	p.mu.rate, p.mu.quiet = float64(most), paceQuiet
	return p
}

// wait returns when n bytes more have been paid for.
func (p *pace) wait(ctx context.Context, n int) error {
	p.mu.Lock()
	now := p.now()
	p.judgeLocked(now)
	if p.mu.next.Before(now) {
		p.mu.next = now
	}
	p.mu.next = p.mu.next.Add(time.Duration(float64(n) / p.mu.rate * float64(time.Second)))
	pause := p.mu.next.Sub(now)
	p.mu.Unlock()
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", dunlin.ErrUnavailable, context.Cause(ctx))
	}
}

// judgeLocked brings the rate up to date.
func (p *pace) judgeLocked(now time.Time) {
	m := &p.mu
	since := now.Sub(m.judged)
	if since < paceJudge {
		return
	}
	m.judged = now
	took := max(p.wrote(), 0)
	if took == 0 {
		return
	}
	took = max(took, paceFastest)
	floor := float64(min(paceFloor, p.most))
	switch {
	case now.Sub(m.next) > paceRest:
		m.quiet, m.known, m.rate = took, true, float64(p.most)
	case took < m.quiet:
		m.quiet += (took - m.quiet) / 8
	case m.rate <= floor && !m.known:
		m.quiet += (took - m.quiet) / 64
	}
	if took > 2*m.quiet {
		m.rate = max(m.rate*paceSlower, floor)
	} else {
		m.rate = min(m.rate*paceFaster, float64(p.most))
	}
}
