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

// logBudget is what may still be logged: tokens at a moment.
type logBudget struct {
	mu struct {
		sync.Mutex
		tokens float64
		at     dunlin.Time
	}
}

// lines splits text into the lines that may still be logged now, LogLinesPerSecond as a bucket of as many, and returns how
// many there were beyond.
func (b *logBudget) lines(text []byte, now dunlin.Time, l *Limits) (lines []string, dropped int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	rate := float64(l.LogLinesPerSecond)
	if b.mu.at == 0 {
		b.mu.tokens, b.mu.at = rate, now
	}
	if d := now.Sub(b.mu.at); d > 0 {
		b.mu.tokens = min(rate, b.mu.tokens+rate*d.Seconds())
		b.mu.at = now
	}
	for line := range bytes.Lines(text) {
		if line = bytes.TrimSpace(line); len(line) == 0 {
			continue
		}
		if b.mu.tokens < 1 {
			dropped++
			continue
		}
		b.mu.tokens--
		lines = append(lines, cleanText(line, l.TextBytes))
	}
	return lines, dropped
}
