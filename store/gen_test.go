package store

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/entry"
)

// fleet makes entries as a fleet of fridges would: four metrics and a derived one a report, a timer set anew each time, now
// and then an alert, a late report, a plugin that fails or refuses an input, a command with its answer or its deadline, a
// publication, a dead letter that is deleted. It keeps what the owner's machines would: versions, due times, open commands.
type fleet struct {
	rng     *rand.Rand
	shards  int
	at      dunlin.Time
	devices []*fridge
	step    int // µs between entries, at most
	plain   bool
}

type fridge struct {
	key     dunlin.DeviceKey
	shard   dunlin.ShardID
	version uint64
	temp    float64
	due     dunlin.Time
	alerts  [2]*dunlin.Alert
	daily   dunlin.Time
	open    []dunlin.Command
	failed  []uint64 // seqs of inputs that became dead letters
}

var fleetStart = dunlin.TimeOf(time.Date(2026, 3, 1, 8, 0, 0, 0, time.UTC))

func newFleet(seed uint64, shards, devices int) *fleet {
	f := &fleet{rng: rand.New(rand.NewPCG(seed, 7)), shards: shards, at: fleetStart, step: 20_000}
	for i := range devices {
		f.devices = append(f.devices, &fridge{key: dunlin.DeviceKey{Tenant: "default", Device: dunlin.DeviceID(fmt.Sprintf("fridge-%05d", i))},
			shard: dunlin.ShardID(i % shards), temp: 4 + f.rng.Float64()})
	}
	return f
}

// entry makes the next entry of a shard, with up to changes devices in it.
func (f *fleet) entry(shard dunlin.ShardID, changes int) *dunlin.Entry {
	f.at += dunlin.Time(1 + f.rng.IntN(f.step))
	e := &dunlin.Entry{Shard: shard, Term: 1, At: f.at}
	seen := map[*fridge]bool{}
	for range changes {
		d := f.devices[f.rng.IntN(len(f.devices)/f.shards)*f.shards+int(shard)]
		if !seen[d] {
			seen[d] = true
			e.Changes = append(e.Changes, f.change(d))
		}
	}
	return e
}

func round(v, scale float64) float64 { return math.Round(v*scale) / scale }

func (f *fleet) change(d *fridge) dunlin.Change {
	c := dunlin.Change{DeviceKey: d.key, Domain: "cold-chain", Created: d.version == 0}
	received := f.at - dunlin.Time(f.rng.IntN(1500))
	if !f.plain && d.due != 0 && f.rng.IntN(20) == 0 {
		c.Inputs = append(c.Inputs, dunlin.Input{Kind: dunlin.InputTimer, Timer: "silence", Received: d.due})
		d.due = 0
	}
	var timers []dunlin.TimerSet
	if !f.plain && len(d.open) > 0 && f.rng.IntN(5) == 0 {
		c.Inputs = append(c.Inputs, f.result(d, received))
		timers = append(timers, dunlin.TimerSet{Name: "!" + d.open[0].ID, Was: d.open[0].Deadline})
		d.open = d.open[1:]
	}
	n := 1
	if !f.plain && f.rng.IntN(10) == 0 {
		n += f.rng.IntN(12)
	}
	var derived []dunlin.Record
	for i := range n {
		at := received - received%1000 - dunlin.Time(f.rng.IntN(250)*1000)
		if !f.plain && f.rng.IntN(30) == 0 {
			at -= dunlin.Time(f.rng.Int64N(3 * 86_400_000_000)) // late
		}
		d.temp += f.rng.NormFloat64() * 0.1
		mean := 0.0
		for range 5 {
			mean += round(d.temp+f.rng.Float64()/5, 100)
		}
		c.Inputs = append(c.Inputs, dunlin.Input{Kind: dunlin.InputTelemetry, Format: dunlin.FormatSenMLJSON,
			MessageID: f.rng.Uint64(), Received: received + dunlin.Time(i), Records: []dunlin.Record{
				{Metric: "temperature", Unit: "Cel", Time: at, Num: round(d.temp, 100), Kind: dunlin.Number},
				{Metric: "humidity", Unit: "%RH", Time: at, Num: round(45+2*f.rng.NormFloat64(), 10), Kind: dunlin.Number},
				{Metric: "battery", Unit: "V", Time: at, Num: round(3.6-float64(d.version)/1e5, 1000), Kind: dunlin.Number},
				{Metric: "door", Time: at, Num: float64(f.rng.IntN(40) / 39), Kind: dunlin.Boolean},
			}})
		derived = append(derived, dunlin.Record{Metric: "temperature.mean5", Unit: "Cel", Time: at, Num: mean / 5, Kind: dunlin.Number})
	}
	d.version += uint64(len(c.Inputs))
	c.Version = d.version
	state := make([]byte, 44)
	for i := range state {
		state[i] = byte(f.rng.Uint32())
	}
	st := dunlin.StageResult{Hash: dunlin.ModuleHash{1, 2, 3}, State: state, StateSet: true, Records: derived}
	switch {
	case f.plain:
	case f.rng.IntN(25) == 0:
		st = dunlin.StageResult{Hash: st.Hash, Failure: "out of fuel"}
		for i := range c.Inputs {
			d.failed = append(d.failed, c.Seq(i))
		}
	default:
		st.Made = dunlin.Made{Module: 0x01020300, Config: uint32(f.rng.IntN(2))}
		if f.rng.IntN(25) == 0 {
			st.Refused = []dunlin.InputError{{Input: len(c.Inputs) - 1, Reason: "bad payload"}}
			d.failed = append(d.failed, c.Version)
		}
	}
	c.Stages = []dunlin.StageResult{st}
	if !f.plain && len(d.open) < 5 && f.rng.IntN(10) == 0 {
		cmd := dunlin.Command{ID: dunlin.CommandID(c.Version, 0), Name: "defrost", Payload: []byte("now"), At: f.at, Deadline: f.at.Add(time.Hour)}
		d.open = append(d.open, cmd)
		c.Commands = append(c.Commands, cmd)
		timers = append(timers, dunlin.TimerSet{Name: "!" + cmd.ID, Due: cmd.Deadline})
		c.Publish = append(c.Publish, dunlin.Publication{Topic: "defrost/asked", Payload: []byte(`{}`), Format: dunlin.FormatJSON})
	}
	if !f.plain && f.rng.IntN(4) == 0 {
		f.alert(d, &c, received)
	}
	c.Timers = append(timers, dunlin.TimerSet{Name: "silence", Due: received + 600_000_000, Was: d.due})
	d.due = received + 600_000_000
	if !f.plain && f.rng.IntN(4) == 0 {
		t := dunlin.TimerSet{Name: "daily", Was: d.daily}
		if d.daily == 0 || f.rng.IntN(2) == 0 {
			t.Due = received + 86_400_000_000
		}
		d.daily = t.Due
		c.Timers = append(c.Timers, t)
	}
	return c
}

// result is the answer to the device's oldest command, or that there was none.
func (f *fleet) result(d *fridge, at dunlin.Time) dunlin.Input {
	in := dunlin.Input{Kind: dunlin.InputResult, Timer: d.open[0].ID, Received: at, MessageID: f.rng.Uint64(), Payload: []byte("done")}
	if f.rng.IntN(3) == 0 {
		in = dunlin.Input{Kind: dunlin.InputResult, Flags: dunlin.FlagTimedOut, Timer: d.open[0].ID, Received: d.open[0].Deadline}
	}
	return in
}

// forget deletes one of the device's dead letters, if there are any.
func (f *fleet) forget(d *fridge) []dunlin.Put {
	if len(d.failed) == 0 {
		return nil
	}
	i := f.rng.IntN(len(d.failed))
	l := dunlin.DeadLetter{DeviceKey: d.key, Seq: d.failed[i]}
	d.failed = append(d.failed[:i:i], d.failed[i+1:]...)
	return []dunlin.Put{{Table: dunlin.TableDeadLetters, Key: l.Key()}}
}

func (f *fleet) alert(d *fridge, c *dunlin.Change, at dunlin.Time) {
	value := d.temp
	rule := f.rng.IntN(2)
	alert := &d.alerts[rule]
	switch {
	case *alert == nil:
		*alert = &dunlin.Alert{Tenant: d.key.Tenant, Device: d.key.Device, Domain: c.Domain, Rule: []string{"too-warm", "open"}[rule], Severity: dunlin.Major,
			State: dunlin.AlertRaised, Text: "mean of 5 above 8 Cel", Value: &value, RaisedAt: at, RaisedSeq: c.Version, At: at, Seq: c.Version}
		c.Alerts = append(c.Alerts, **alert)
	case f.rng.IntN(2) == 0: // updated
		a := **alert
		a.At, a.Seq, a.Severity = at, c.Version, dunlin.Critical
		*alert = &a
		c.Alerts = append(c.Alerts, a)
	default:
		a := **alert
		a.State, a.At, a.ClearedAt, a.Seq = dunlin.AlertCleared, at, at, c.Version
		*alert = nil
		c.Alerts = append(c.Alerts, a)
	}
}

func committed(e *dunlin.Entry, index uint64) dunlin.Committed {
	return dunlin.Committed{Shard: e.Shard, Index: index, Term: e.Term, Data: entry.Append(nil, e)}
}

func logRow(c dunlin.Committed) dunlin.LogRow {
	return dunlin.LogRow{Shard: c.Shard, Index: c.Index, Term: c.Term, Data: c.Data}
}

// small is a store with small parts, so that short tests reach flushes, segments and the ends of queues.
func small(fs vfs.FS, shards int) Config {
	return Config{FS: fs, Dir: "data", Identity: Identity{Cluster: "c", Node: "n", Shards: shards},
		CacheBytes: 1 << 20, LogMemTableBytes: 256 << 10, StateMemTableBytes: 256 << 10, LogBytes: 256 << 10, SegmentBytes: 8 << 10,
		TailBytes: 64 << 10}
}

func openTest(t testing.TB, c Config) *DB {
	t.Helper()
	db, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return db
}

// openShort is openTest for one round of a property test.
func openShort(t interface{ Fatal(...any) }, c Config) (db *DB, done func()) {
	db, err := Open(c)
	if err != nil {
		t.Fatal(err)
	}
	return db, func() {
		if err := db.Close(); err != nil {
			t.Fatal(err)
		}
	}
}
