package nemesis

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/anishathalye/porcupine"
	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/sdk/client"
)

// checkMax is how long a question of a check may take to be answered by anybody.
const checkMax = 20 * time.Second

// count of what a check found.
type count struct {
	Acked      int `json:"acked"`
	Lost       int `json:"lost"`       // acked, and not in history with its value
	Duplicated int `json:"duplicated"` // twice in history, or a turn more than once
	Missing    int `json:"alerts_missing"`
	Twice      int `json:"alerts_twice"`
	Reads      int `json:"reads"`
	Stale      int `json:"not_linearizable"` // devices

	Claims      int `json:"claims"`            // that a node owns a shard in a term: heard from it or of it, or logged by it
	Reigns      int `json:"reigns"`            // shards' terms in which somebody was heard to own it
	Activations int `json:"activations"`       // of shards, as nodes logged them
	Nameless    int `json:"nameless"`          // of these: by nodes that ended before they had said who they are
	OwnedTwice  int `json:"owned_twice"`       // reigns with two owners
	States      int `json:"states_compared"`   // shards, all replicas of which were compared after one entry
	Uncompared  int `json:"states_uncompared"` // shards of which they could not be
	Hashes      int `json:"hashes"`            // of replicas that were equal to another one's
	Diverged    int `json:"states_diverged"`   // hashes that were not
}

func (c *count) add(o count) {
	c.Acked += o.Acked
	c.Lost += o.Lost
	c.Duplicated += o.Duplicated
	c.Missing += o.Missing
	c.Twice += o.Twice
	c.Reads += o.Reads
	c.Stale += o.Stale
	c.Claims += o.Claims
	c.Reigns += o.Reigns
	c.Activations += o.Activations
	c.Nameless += o.Nameless
	c.OwnedTwice += o.OwnedTwice
	c.States += o.States
	c.Uncompared += o.Uncompared
	c.Hashes += o.Hashes
	c.Diverged += o.Diverged
}

// mark is where each device's ledger stood.
type mark []int

func (f *fleet) mark() (m mark) {
	for _, d := range f.devices {
		d.mu.Lock()
		m = append(m, len(d.mu.writes))
		d.mu.Unlock()
	}
	return m
}

// ackedSince counts readings that were made and acked since.
func (f *fleet) ackedSince(since time.Duration) (n int) {
	for _, d := range f.devices {
		d.mu.Lock()
		for _, w := range d.mu.writes {
			if w.call > since && w.done != 0 {
				n++
			}
		}
		d.mu.Unlock()
	}
	return n
}

// check compares what the devices know with what the cluster says, for all that happened since the mark. Nobody writes meanwhile.
func (b *Bench) check(ctx context.Context, from mark) (total count, err error) {
	b.fleet.reads.Lock()
	reads := b.fleet.reads.ops
	b.fleet.reads.ops = nil
	b.fleet.reads.Unlock()
	byDevice := make([][]reading, len(b.fleet.devices))
	for _, r := range reads {
		byDevice[r.device] = append(byDevice[r.device], r)
	}
	for i, d := range b.fleet.devices {
		d.mu.Lock()
		all := slices.Clone(d.mu.writes)
		strange := d.mu.strange
		d.mu.strange = nil
		d.mu.Unlock()
		for _, s := range strange[:min(len(strange), 3)] {
			b.fail("strange answer", d.id+" at "+s)
		}
		c, err := b.checkDevice(ctx, d, all, from[i])
		if err != nil {
			return total, fmt.Errorf("check %s: %w", d.id, err)
		}
		b.checkRegister(d, all, from[i], byDevice[i], &c)
		total.add(c)
	}
	return total, nil
}

// checkDevice looks at a device's history, its number of turns, and its alerts.
func (b *Bench) checkDevice(ctx context.Context, d *device, all []write, from int) (c count, err error) {
	for _, w := range all[from:] {
		if w.done != 0 {
			c.Acked++
		}
	}
	if len(all) == 0 {
		return c, nil
	}
	if err := b.checkHistory(ctx, d, all, from, &c); err != nil {
		return c, err
	}
	var twin *client.Twin
	if err := b.anybody(ctx, checkMax, func(cl *client.Client) (err error) {
		twin, err = cl.State(ctx, dunlin.DeviceID(d.id))
		return err
	}); err != nil {
		return c, err
	}
	if more := int(twin.Version) - len(all) - d.more; more != 0 {
		text := fmt.Sprintf("%s had %d turns for %d readings, %+d since the last look", d.id, twin.Version, len(all), more)
		b.fail("turns", text+"\n    "+b.book.twice(d.id, uint64(from), all))
		c.Duplicated += max(more, 0)
		d.more += more
	}
	return c, b.checkAlerts(ctx, d, all, &c)
}

func (b *Bench) checkHistory(ctx context.Context, d *device, all []write, from int, c *count) error {
	if from == len(all) {
		return nil
	}
	q := client.ReadingsQuery{From: time.UnixMilli(all[from].at).UTC().Format(time.RFC3339Nano), Page: 5000}
	got := map[int64][]int64{}
	if err := b.anybody(ctx, checkMax, func(cl *client.Client) error {
		clear(got)
		for r, err := range cl.Readings(ctx, dunlin.DeviceID(d.id), q) {
			if err != nil {
				return err
			}
			v, _ := r.Value.(float64)
			at := r.Time.Std().UnixMilli()
			got[at] = append(got[at], scaled(v))
		}
		return nil
	}); err != nil {
		return err
	}
	for _, w := range all[from:] {
		there := got[w.at]
		delete(got, w.at)
		switch {
		case len(there) > 1:
			c.Duplicated++
			b.fail("duplicated", fmt.Sprintf("%s: the reading of %d is there %d times: %v", d.id, w.at, len(there), there))
		case w.done != 0 && (len(there) == 0 || there[0] != w.value):
			c.Lost++
			b.fail("lost", fmt.Sprintf("%s: reading %d of %s, acked at %.3f s after %d tries: want %d, there %v", d.id, w.at,
				time.UnixMilli(w.at).UTC().Format("15:04:05.000"), w.done.Seconds(), w.tries, w.value, there))
		}
	}
	if len(got) > 0 {
		b.fail("invented", fmt.Sprintf("%s: readings that nobody sent: %v", d.id, got))
	}
	return nil
}

// checkAlerts compares alerts with spikes, and what the subscriber heard with both.
func (b *Bench) checkAlerts(ctx context.Context, d *device, all []write, c *count) error {
	spikes := 0
	for i := range all {
		if all[i].spike() && all[i].done != 0 {
			spikes++
		}
	}
	raised := map[uint64]int{}
	if err := b.anybody(ctx, checkMax, func(cl *client.Client) error {
		clear(raised)
		for a, err := range cl.Alerts(ctx, client.AlertsQuery{Device: dunlin.DeviceID(d.id), Page: 1000}) {
			if err != nil {
				return err
			}
			if a.Rule == "too-warm" {
				raised[a.RaisedSeq]++
			}
		}
		return nil
	}); err != nil {
		return err
	}
	for seq, times := range raised {
		if times > 1 {
			c.Twice += times - 1
			b.fail("alert twice", fmt.Sprintf("%s: the alert of seq %d is there %d times", d.id, seq, times))
		}
	}
	more := len(raised) - spikes - d.alertsMore
	d.alertsMore += more
	c.Missing += max(-more, 0)
	c.Twice += max(more, 0)
	if more != 0 {
		b.fail("alerts", fmt.Sprintf("%s: %d spikes were acked, %d alerts raised; %+d since the last look", d.id, spikes, len(raised), more))
	}
	return b.checkHeard(ctx, d, raised, c)
}

// heardMax is how long after the last reading a subscriber may still wait for an alert.
const heardMax = 10 * time.Second

// checkHeard waits until the subscriber has heard of every alert raised, and sees that it heard of none under two numbers.
func (b *Bench) checkHeard(ctx context.Context, d *device, raised map[uint64]int, c *count) error {
	deadline := b.now() + heardMax
	for {
		heard := map[uint64]int{}
		b.subs.mu.Lock()
		for e := range b.subs.mu.heard {
			if e.Device == d.id && e.Rule == "too-warm" && e.State == "raised" {
				heard[e.RaisedSeq]++
			}
		}
		b.subs.mu.Unlock()
		lacking := 0
		for seq := range raised {
			if heard[seq] == 0 {
				lacking++
			}
		}
		if lacking > 0 && b.now() < deadline {
			if err := pause(ctx, 50*time.Millisecond); err != nil {
				return err
			}
			continue
		}
		if lacking > 0 {
			c.Missing += lacking
			b.subs.mu.Lock()
			b.fail("alert not heard", fmt.Sprintf("%s: the subscriber lacks %d of %d alerts; %d events in %d connections, %d without its session, the last ended with %v", d.id, lacking, len(raised),
				len(b.subs.mu.heard), b.subs.mu.sessions, b.subs.mu.fresh, b.subs.mu.lastErr))
			b.subs.mu.Unlock()
		}
		for seq, times := range heard {
			if times > 1 || raised[seq] == 0 {
				c.Twice++
				b.fail("alert heard twice", fmt.Sprintf("%s: the subscriber heard of alert %d in %d versions; it was raised %d times", d.id, seq, times, raised[seq]))
			}
		}
		return nil
	}
}

// checkRegister has porcupine find an order of the writes and reads that one register could have had.
func (b *Bench) checkRegister(d *device, all []write, from int, reads []reading, c *count) {
	first := int64(0)
	if from > 0 {
		first = all[from-1].value
	}
	c.Reads += len(reads)
	result, info := linearizable(first, all[from:], reads)
	if result == porcupine.Ok {
		return
	}
	c.Stale++
	file := fmt.Sprintf("%s/register-%s-%d.html", b.cfg.Dir, d.id, len(all))
	if err := porcupine.VisualizePath(registerModel(first), info, file); err != nil {
		file = err.Error()
	}
	b.fail("not linearizable", fmt.Sprintf("%s: porcupine says %s; %s; see %s", d.id, result, b.blame(first, all[from:], reads), file))
}
