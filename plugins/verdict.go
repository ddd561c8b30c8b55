package plugins

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// A version that fails on one device may have met a broken device. One that fails on several, and on more than a few inputs, is
// broken itself: it is reported to be taken out of use, and until that has happened it is not called any more.
const (
	verdictWindow  = time.Minute
	verdictBuckets = 6 // the window moves by a sixth
	verdictShare   = 0.05
	verdictDevices = 64 // distinct ones that a bucket remembers
	// verdictRefuse is how long a version is refused: by then it is out of use, or somebody wants it to be tried again.
	verdictRefuse = time.Minute
)

// trial is the pure part: what a version did within the window, by buckets of a sixth of it.
type trial struct {
	devices int // that many have to fail
	buckets [verdictBuckets]trialBucket
	at      int64 // number of the newest bucket, counted since 1970
	last    dunlin.Time
	seen    int64 // inputs up to last
}

type trialBucket struct {
	inputs float64
	failed int64
	who    map[dunlin.DeviceKey]struct{}
}

const trialBucketTime = verdictWindow / verdictBuckets

// fail notes that the version failed on a device's inputs. inputs is how many it was given since it is known, these included.
// It returns true, and what to say, when that is too much.
func (t *trial) fail(key dunlin.DeviceKey, failed int, inputs int64, now dunlin.Time) (reason string, bad bool) {
	t.turn(inputs, now)
	b := &t.buckets[t.at%verdictBuckets]
	b.failed += int64(failed)
	if b.who == nil {
		b.who = make(map[dunlin.DeviceKey]struct{})
	}
	if len(b.who) < verdictDevices {
		b.who[key] = struct{}{}
	}
	return t.judge()
}

// turn moves the window. Inputs are only counted when something fails: those since the last time are spread evenly over the
// time since then, as far as it lies in the window.
func (t *trial) turn(inputs int64, now dunlin.Time) {
	at := int64(now) / trialBucketTime.Microseconds()
	if t.last == 0 || at < t.at { // the first failure, or a clock that went back
		*t = trial{devices: t.devices, at: at, last: now, seen: inputs}
		t.buckets[at%verdictBuckets].inputs = float64(min(inputs, 1<<20)) // all of them: nothing is known of their times
		return
	}
	for ; t.at < at && at-t.at <= verdictBuckets; t.at++ {
		t.buckets[(t.at+1)%verdictBuckets] = trialBucket{}
	}
	if t.at < at {
		t.buckets, t.at = [verdictBuckets]trialBucket{}, at
	}
	span := float64(now.Sub(t.last))
	more := float64(inputs - t.seen)
	t.last, t.seen = now, inputs
	if span <= float64(trialBucketTime) {
		t.buckets[at%verdictBuckets].inputs += more
		return
	}
	per := more * float64(trialBucketTime) / span
	for i := range min(verdictBuckets, int64(span/float64(trialBucketTime))+1) {
		t.buckets[(at-i+verdictBuckets)%verdictBuckets].inputs += per
	}
}

func (t *trial) judge() (string, bool) {
	inputs, failed := 0.0, int64(0)
	who := make(map[dunlin.DeviceKey]struct{})
	for i := range t.buckets {
		inputs += t.buckets[i].inputs
		failed += t.buckets[i].failed
		for key := range t.buckets[i].who {
			who[key] = struct{}{}
		}
	}
	inputs = max(inputs, float64(failed))
	if len(who) < t.devices || float64(failed) < verdictShare*inputs {
		return "", false
	}
	return fmt.Sprintf("failed on %d devices and on %d of %.0f inputs within a minute", len(who), failed, inputs), true
}

// verdict is what a node thinks of a version that a tenant runs.
type verdict struct {
	inputs  atomic.Int64
	more    int64 // which inputs does not have yet; the gate's lock guards it
	refusal atomic.Pointer[refusal]
	mu      struct {
		sync.Mutex
		trial trial
	}
}

type refusal struct {
	until  dunlin.Time
	reason string
}

// fail notes a failure; reason is not "" if the version turns out to be bad by it.
func (v *verdict) fail(key dunlin.DeviceKey, failed int, now dunlin.Time, devices int) (reason string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mu.trial.devices = devices
	reason, bad := v.mu.trial.fail(key, failed, v.inputs.Load(), now)
	if !bad || v.refused(now) != "" {
		return ""
	}
	v.mu.trial = trial{}
	v.inputs.Store(0)
	v.refusal.Store(&refusal{until: now.Add(verdictRefuse), reason: reason})
	return reason
}

// refused says why the version is not called; "" if it is.
func (v *verdict) refused(now dunlin.Time) string {
	if r := v.refusal.Load(); r != nil && now < r.until {
		return r.reason
	}
	return ""
}

// verdict returns what is thought of the module for a tenant.
func (m *module) verdict(t dunlin.Tenant) *verdict {
	v, ok := m.verdicts.Load(t)
	if !ok {
		v, _ = m.verdicts.LoadOrStore(t, new(verdict))
	}
	return v.(*verdict)
}
