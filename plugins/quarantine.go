package plugins

import (
	"bytes"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// A device that a plugin failed on strikesMax times in a row is not handed to it for a while, which doubles with each
// further failure: a trap costs a new instance, and one device must not use up the plugin's time. Its inputs are
// dead-lettered meanwhile, with this reason.
const (
	strikesMax       = 3
	quarantineMin    = 10 * time.Second
	quarantineMax    = 10 * time.Minute
	quarantinedLimit = 4096 // devices with strikes of one pool; more are not remembered
)

type quarantine struct {
	n  atomic.Int32 // devices with strikes: the usual answer, none, takes no lock
	mu struct {
		sync.Mutex
		devices map[dunlin.DeviceKey]strikes
	}
}

type strikes struct {
	count int
	until dunlin.Time
}

func (q *quarantine) empty() bool { return q.n.Load() == 0 }

// strike notes a failure and returns until when the device is left out, 0 if it isn't.
func (q *quarantine) strike(key dunlin.DeviceKey, now dunlin.Time) dunlin.Time {
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.mu.devices == nil {
		q.mu.devices = make(map[dunlin.DeviceKey]strikes)
	}
	s, known := q.mu.devices[key]
	if !known && len(q.mu.devices) >= quarantinedLimit {
		return 0
	}
	s.count++
	if over := s.count - strikesMax; over >= 0 {
		s.until = now.Add(min(quarantineMax, quarantineMin<<min(over, 16)))
	}
	q.mu.devices[key] = s
	q.n.Store(int32(len(q.mu.devices)))
	return s.until
}

// forgive forgets a device's failures.
func (q *quarantine) forgive(key dunlin.DeviceKey) {
	if q.empty() {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	delete(q.mu.devices, key)
	q.n.Store(int32(len(q.mu.devices)))
}

// until returns the end of a device's quarantine and how often the plugin failed on it; 0 if it is not in quarantine now.
func (q *quarantine) until(key dunlin.DeviceKey, now dunlin.Time) (dunlin.Time, int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	s := q.mu.devices[key]
	if s.until <= now {
		return 0, s.count
	}
	return s.until, s.count
}

// lines splits text into the lines that may still be logged now: LogLinesPerSecond, as a bucket of as many.
func (p *pool) lines(text []byte, now dunlin.Time) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.linesLocked(text, now)
}

func (p *pool) linesLocked(text []byte, now dunlin.Time) []string {
	rate := float64(p.h.cfg.Limits.LogLinesPerSecond)
	if d := now.Sub(p.mu.logAt); d > 0 {
		p.mu.logTokens = min(rate, p.mu.logTokens+rate*d.Seconds())
		p.mu.logAt = now
	}
	var lines []string
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		if p.mu.logTokens < 1 {
			break
		}
		p.mu.logTokens--
		lines = append(lines, cleanText(line, p.h.cfg.Limits.TextBytes))
	}
	return lines
}
