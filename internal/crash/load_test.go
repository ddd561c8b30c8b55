package crash

import (
	"fmt"
	"math/rand/v2"
	"sync"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/entry"
)

// load makes entries as shard actors do: a device's next change waits for its last one, and builds on it.
type load struct {
	rng    *rand.Rand
	term   []uint64 // by shard, 0: not owned
	now    dunlin.Time
	nextID uint64

	mu struct {
		sync.Mutex
		devices [][]*device // by shard
	}
}

type device struct {
	key   dunlin.DeviceKey
	state *dunlin.DeviceState
	busy  bool
}

const devicesPerShard = 4

func newLoad(rng *rand.Rand, shards int) *load {
	l := &load{rng: rng, term: make([]uint64, shards), now: 1_700_000_000_000_000}
	l.mu.devices = make([][]*device, shards)
	return l
}

// activate loads a shard's devices as the log left them.
func (l *load) activate(sh dunlin.ShardID, term uint64, f *fold) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.term[sh] = term
	l.mu.devices[sh] = nil
	for i := range devicesPerShard {
		key := dunlin.DeviceKey{Tenant: dunlin.DefaultTenant, Device: dunlin.DeviceID(fmt.Sprintf("d%d-%d", sh, i))}
		st := f.devices[key]
		if st == nil {
			st = &dunlin.DeviceState{}
		}
		l.mu.devices[sh] = append(l.mu.devices[sh], &device{key: key, state: st})
	}
}

// turn is one entry on its way.
type turn struct {
	shard   dunlin.ShardID
	id      uint64 // message id of the first input
	devices []*device
	changes []dunlin.Change
}

// next makes an entry of some of a shard's idle devices, nil if there are none.
func (l *load) next(sh dunlin.ShardID) (*turn, []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.now += dunlin.Time(1+l.rng.IntN(1000)) * 1000
	e := dunlin.Entry{Shard: sh, Term: l.term[sh], At: l.now}
	t := &turn{shard: sh, id: l.nextID + 1}
	for _, d := range l.mu.devices[sh] {
		if !d.busy && l.rng.IntN(2) == 0 {
			d.busy = true
			t.devices = append(t.devices, d)
			e.Changes = append(e.Changes, l.change(d))
		}
	}
	if len(t.devices) == 0 {
		return nil, nil
	}
	if l.rng.IntN(8) == 0 {
		e.Puts = append(e.Puts, dunlin.Put{Table: dunlin.TableDomains, Key: fmt.Sprintf("default/x%d", l.rng.IntN(3)), Value: fmt.Appendf(nil, "{%d}", t.id)})
	}
	t.changes = e.Changes
	return t, entry.Append(nil, &e)
}

func (l *load) change(d *device) dunlin.Change {
	c := dunlin.Change{DeviceKey: d.key, Domain: "crash", Created: d.state.Version == 0, Version: d.state.Version}
	for range 1 + l.rng.IntN(2) {
		l.nextID++
		in := dunlin.Input{Kind: dunlin.InputTelemetry, Format: dunlin.FormatSenMLJSON, MessageID: l.nextID, Received: l.now}
		at := l.now
		if l.rng.IntN(6) == 0 { // late, perhaps for a moment that has a reading
			at -= dunlin.Time(l.rng.IntN(20)) * 1_000_000
		}
		for _, m := range []string{"temperature", "humidity", "door"}[:1+l.rng.IntN(3)] {
			in.Records = append(in.Records, dunlin.Record{Metric: m, Unit: "Cel", Kind: dunlin.Number, Time: at, Num: float64(l.rng.IntN(500)) / 10})
		}
		c.Inputs = append(c.Inputs, in)
		c.Version++
	}
	if l.rng.IntN(2) == 0 {
		c.Stages = append(c.Stages, dunlin.StageResult{Stage: 0, StateSet: true, State: fmt.Appendf(nil, "s%d", c.Version),
			Records: []dunlin.Record{{Metric: "mean", Kind: dunlin.Number, Time: l.now, Num: float64(c.Version)}}})
	}
	l.alert(d, &c)
	l.timer(d, &c)
	return c
}

// alert raises the device's alert, or clears it.
func (l *load) alert(d *device, c *dunlin.Change) {
	if l.rng.IntN(3) > 0 {
		return
	}
	if len(d.state.Alerts) > 0 {
		a := d.state.Alerts[0]
		a.State, a.At, a.ClearedAt, a.Seq = dunlin.AlertCleared, l.now, l.now, c.Version
		c.Alerts = append(c.Alerts, a)
		return
	}
	c.Alerts = append(c.Alerts, dunlin.Alert{Tenant: d.key.Tenant, Device: d.key.Device, Domain: "crash", Rule: "too-warm",
		Severity: dunlin.Major, State: dunlin.AlertRaised, Text: "too warm", RaisedAt: l.now, At: l.now, RaisedSeq: c.Version, Seq: c.Version})
}

// timer arms the device's timer, moves it or cancels it.
func (l *load) timer(d *device, c *dunlin.Change) {
	if l.rng.IntN(3) > 0 {
		return
	}
	t := dunlin.TimerSet{Name: "absent"}
	for _, armed := range d.state.Timers {
		t.Was = armed.Due
	}
	if t.Was == 0 || l.rng.IntN(3) > 0 {
		t.Due = l.now + dunlin.Time(1+l.rng.IntN(100))*1_000_000
	}
	c.Timers = append(c.Timers, t)
}

// done takes the turn's fate; acknowledged changes are what the devices build on.
func (l *load) done(t *turn, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i, d := range t.devices {
		if err == nil {
			delta := dunlin.DeltaOf(&t.changes[i])
			d.state.Merge(&delta, true)
			d.busy = false
		}
	}
}
