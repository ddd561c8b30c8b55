package crash

import (
	"bytes"
	"cmp"
	"fmt"
	"reflect"
	"slices"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/entry"
)

// model is what must be true of a store: it is told what was acknowledged and what was applied, and knows nothing of how
// the store works.
type model struct {
	shards []shardModel
}

type shardModel struct {
	committed []dunlin.Committed // by index; what StateMachine.Apply was given, in this life or an earlier one
	acked     map[uint64]uint64  // index → message id of the entry's first input
}

func newModel(shards int) *model {
	m := &model{shards: make([]shardModel, shards)}
	for i := range m.shards {
		m.shards[i].acked = map[uint64]uint64{}
		m.shards[i].committed = make([]dunlin.Committed, 1)
	}
	return m
}

// apply records a batch on its way to the state machine. What was given before must be given alike again.
func (m *model) apply(batch []dunlin.Committed) error {
	for _, c := range batch {
		s := &m.shards[c.Shard]
		switch {
		case c.Index < uint64(len(s.committed)):
			if was := s.committed[c.Index]; was.Term != c.Term || !bytes.Equal(was.Data, c.Data) || !bytes.Equal(was.Conf, c.Conf) {
				return fmt.Errorf("shard %d: entry %d was of term %d with %d bytes, now it is of term %d with %d",
					c.Shard, c.Index, was.Term, len(was.Data), c.Term, len(c.Data))
			}
		case c.Index > uint64(len(s.committed)):
			return fmt.Errorf("shard %d: entry %d after %d", c.Shard, c.Index, len(s.committed)-1)
		default:
			c.Data = bytes.Clone(c.Data)
			s.committed = append(s.committed, c)
		}
	}
	return nil
}

// fold is the state of a shard that its log makes.
type fold struct {
	devices  map[dunlin.DeviceKey]*dunlin.DeviceState
	readings map[dunlin.DeviceKey]map[string]dunlin.Record // metric and time
	alerts   map[string]dunlin.Alert                       // by id
	timers   []dunlin.DueTimer
	rows     map[string]string
	messages map[uint64]uint64 // message id → index
}

func (m *model) fold(sh dunlin.ShardID) (*fold, error) {
	f := &fold{devices: map[dunlin.DeviceKey]*dunlin.DeviceState{}, readings: map[dunlin.DeviceKey]map[string]dunlin.Record{},
		alerts: map[string]dunlin.Alert{}, rows: map[string]string{}, messages: map[uint64]uint64{}}
	for _, c := range m.shards[sh].committed[1:] {
		if len(c.Data) == 0 {
			continue
		}
		e, err := entry.Decode(c.Data)
		if err != nil {
			return nil, err
		}
		if e.Term != c.Term {
			continue
		}
		for i := range e.Changes {
			if err := f.change(&e.Changes[i], c.Index); err != nil {
				return nil, fmt.Errorf("shard %d: entry %d: %w", sh, c.Index, err)
			}
		}
		for _, p := range e.Puts {
			f.rows[p.Key] = string(p.Value)
		}
	}
	for index, id := range m.shards[sh].acked {
		if f.messages[id] != index {
			return nil, fmt.Errorf("shard %d: message %d was acknowledged at entry %d, it is at %d", sh, id, index, f.messages[id])
		}
	}
	for key, d := range f.devices {
		for _, t := range d.Timers {
			f.timers = append(f.timers, dunlin.DueTimer{DeviceKey: key, Name: t.Name, Due: t.Due})
		}
	}
	sortTimers(f.timers)
	return f, nil
}

func (f *fold) change(c *dunlin.Change, index uint64) error {
	d := f.devices[c.DeviceKey]
	if d == nil {
		d = &dunlin.DeviceState{}
		f.devices[c.DeviceKey], f.readings[c.DeviceKey] = d, map[string]dunlin.Record{}
	}
	if want := d.Version + uint64(len(c.Inputs)); c.Version != want {
		return fmt.Errorf("device %s comes to version %d, want %d", c.Device, c.Version, want)
	}
	delta := dunlin.DeltaOf(c)
	d.Merge(&delta, true)
	keep := func(r dunlin.Record) { f.readings[c.DeviceKey][fmt.Sprint(r.Metric, "@", int64(r.Time))] = r }
	for i := range c.Inputs {
		in := &c.Inputs[i]
		if other, twice := f.messages[in.MessageID]; twice {
			return fmt.Errorf("message %d is in entry %d too", in.MessageID, other)
		}
		f.messages[in.MessageID] = index
		for _, r := range in.Records {
			keep(r)
		}
	}
	for i := range c.Stages {
		for _, r := range c.Stages[i].Records {
			keep(r)
		}
	}
	for _, a := range c.Alerts {
		f.alerts[a.ID()] = a
	}
	return nil
}

// views is what a store shows of a shard.
type views interface {
	LoadDevice(sh dunlin.ShardID, key dunlin.DeviceKey) (*dunlin.DeviceState, bool, error)
	TimersDue(sh dunlin.ShardID, before dunlin.Time, limit int) ([]dunlin.DueTimer, dunlin.Time, error)
	Row(sh dunlin.ShardID, table, key string) ([]byte, bool, error)
	Readings(sh dunlin.ShardID, q dunlin.ReadingsQuery) (*dunlin.ReadingsPage, error)
	Alerts(shards []dunlin.ShardID, q dunlin.AlertsQuery) (*dunlin.AlertsPage, error)
}

// check compares what a store shows with what the log makes.
func (f *fold) check(v views, sh dunlin.ShardID) error {
	for key, want := range f.devices {
		got, ok, err := v.LoadDevice(sh, key)
		if err != nil || !ok {
			return fmt.Errorf("device %s is not there: %w", key, err)
		}
		if g, w := plain(got), plain(want); !reflect.DeepEqual(g, w) {
			return fmt.Errorf("device %s:\n got %+v\nwant %+v", key, g, w)
		}
		if err := f.checkReadings(v, sh, key); err != nil {
			return err
		}
	}
	for key, want := range f.rows {
		got, ok, err := v.Row(sh, dunlin.TableDomains, key)
		if err != nil || !ok || string(got) != want {
			return fmt.Errorf("row %s: %q, %v, %v, want %q", key, got, ok, err, want)
		}
	}
	due, _, err := v.TimersDue(sh, 1<<60, 10000)
	if err != nil {
		return err
	}
	sortTimers(due)
	if !slices.Equal(due, f.timers) {
		return fmt.Errorf("timers:\n got %v\nwant %v", due, f.timers)
	}
	return f.checkAlerts(v, sh)
}

func (f *fold) checkReadings(v views, sh dunlin.ShardID, key dunlin.DeviceKey) error {
	left := len(f.readings[key])
	q := dunlin.ReadingsQuery{DeviceKey: key, Limit: 10000}
	for {
		page, err := v.Readings(sh, q)
		if err != nil {
			return err
		}
		for _, r := range page.Rows {
			want, ok := f.readings[key][fmt.Sprint(r.Metric, "@", int64(r.Time))]
			if !ok || want.Num != r.Num {
				return fmt.Errorf("reading of %s: got %+v, want %+v", key, r, want)
			}
			left--
		}
		if q.Cursor = page.Next; q.Cursor == "" {
			break
		}
	}
	if left != 0 {
		return fmt.Errorf("device %s: %d readings differ in number", key, left)
	}
	return nil
}

// checkAlerts: every alert is there once, as its last transition left it.
func (f *fold) checkAlerts(v views, sh dunlin.ShardID) error {
	got := map[string]dunlin.Alert{}
	q := dunlin.AlertsQuery{Tenant: dunlin.DefaultTenant, Limit: 1000}
	for {
		page, err := v.Alerts([]dunlin.ShardID{sh}, q)
		if err != nil {
			return err
		}
		for _, a := range page.Alerts {
			if _, twice := got[a.ID()]; twice {
				return fmt.Errorf("alert %s is there twice", a.ID())
			}
			got[a.ID()] = a
		}
		if q.Cursor = page.Next; q.Cursor == "" {
			break
		}
	}
	if !reflect.DeepEqual(got, f.alerts) {
		return fmt.Errorf("alerts of shard %d:\n got %+v\nwant %+v", sh, got, f.alerts)
	}
	return nil
}

// plain brings a state into one form: lists in order of their names, empty ones nil.
func plain(d *dunlin.DeviceState) dunlin.DeviceState {
	p := *d
	p.Reported = sorted(p.Reported, func(a, b dunlin.Record) int { return cmp.Compare(a.Metric, b.Metric) })
	p.Plugins = sorted(p.Plugins, func(a, b dunlin.StageState) int { return cmp.Compare(a.Stage, b.Stage) })
	p.Alerts = sorted(p.Alerts, func(a, b dunlin.Alert) int { return cmp.Compare(a.ID(), b.ID()) })
	p.Timers = sorted(p.Timers, func(a, b dunlin.TimerSet) int { return cmp.Compare(a.Name, b.Name) })
	for i := range p.Timers {
		p.Timers[i].Was = 0 // of a change, not of a state
	}
	p.Seen = sorted(p.Seen, func(_, _ dunlin.SeenMessage) int { return 0 })
	return p
}

func sorted[T any](s []T, by func(a, b T) int) []T {
	if len(s) == 0 {
		return nil
	}
	s = slices.Clone(s)
	slices.SortStableFunc(s, by)
	return s
}

func sortTimers(ts []dunlin.DueTimer) {
	slices.SortFunc(ts, func(a, b dunlin.DueTimer) int {
		return cmp.Or(cmp.Compare(a.Device, b.Device), cmp.Compare(a.Name, b.Name), cmp.Compare(a.Due, b.Due))
	})
}
