package store

import (
	"bytes"
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"sync"

	"github.com/cockroachdb/pebble/v2"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/entry"
	"github.com/dunlin-iot/dunlin/store/column"
)

// applier is the scratch of State.Apply, reused from batch to batch. Its lock makes appliers take turns.
type applier struct {
	sync.Mutex
	next    []shardStep // by shard
	touched []dunlin.ShardID
	entries []appliedEntry
	quick   *pebble.Batch
	batch   *pebble.Batch // quick, or an indexed one
	read    pebble.Reader // sees what was applied before, and the batch if it is indexed
	key     []byte
	end     []byte
	value   []byte
	recs    []dunlin.Record
	delta   dunlin.DeviceState
	alerts  map[string]alertPlace // of transitions in this batch, by their row's key
	timed   []timerMove
}

// shardStep is how far the batch brings a shard.
type shardStep struct {
	applied uint64
	conf    []byte
	seen    bool // in touched
}

// appliedEntry is what one Committed became. Entry is nil if it had no effect.
type appliedEntry struct {
	shard dunlin.ShardID
	index uint64
	entry *dunlin.Entry
	size  int // bytes of its data
}

// Apply brings the state to the batch's last indexes, in one Pebble batch. An index that was applied before is skipped; a
// gap is an error, and so are bytes that cannot be decoded, because to go on would make this replica differ from others.
// An entry of another term than it was committed in has no effect but to move the index. The entries' data must not be
// changed any more: what is decoded points into it.
func (s *State) Apply(batch []dunlin.Committed) error {
	a := &s.apply
	a.Lock()
	defer a.Unlock()
	defer a.reset(s)
	indexed := false
	for i := range batch {
		c := &batch[i]
		if err := s.check(c.Shard); err != nil {
			return err
		}
		use, err := a.step(c)
		if err != nil {
			return fmt.Errorf("apply entry %d of shard %d: %w", c.Index, c.Shard, err)
		}
		indexed = indexed || use
	}
	if len(a.touched) == 0 {
		return nil
	}
	if err := a.begin(s, indexed); err != nil {
		return err
	}
	for i := range a.entries {
		ap := &a.entries[i]
		if ap.entry == nil {
			continue
		}
		if err := a.apply(ap.shard, ap.entry); err != nil {
			return fmt.Errorf("apply entry %d of shard %d: %w", ap.index, ap.shard, err)
		}
	}
	return a.commit(s)
}

// step decodes c into entries and reports whether applying it has to read what the same batch writes.
func (a *applier) step(c *dunlin.Committed) (indexed bool, err error) {
	next := &a.next[c.Shard]
	if c.Index <= next.applied {
		return false, nil
	}
	if c.Index != next.applied+1 {
		return false, fmt.Errorf("%w: the last one applied is %d", dunlin.ErrInvalid, next.applied)
	}
	var e *dunlin.Entry
	if len(c.Data) > 0 {
		if e, err = entry.Decode(c.Data); err != nil {
			return false, err
		}
		if e.Term != c.Term {
			e = nil
		}
	}
	next.applied = c.Index
	if c.Conf != nil {
		next.conf = bytes.Clone(c.Conf)
	}
	if !next.seen {
		next.seen = true
		a.touched = append(a.touched, c.Shard)
	}
	a.entries = append(a.entries, appliedEntry{c.Shard, c.Index, e, len(c.Data)})
	return e != nil && registers(e), nil
}

// registers reports whether e registers, moves or deletes devices: only that reads rows of the registry.
func registers(e *dunlin.Entry) bool {
	for i := range e.Puts {
		if e.Puts[i].Table == dunlin.TableDevices {
			return true
		}
	}
	for i := range e.Changes {
		if e.Changes[i].Created {
			return true
		}
	}
	return false
}

func (a *applier) begin(s *State, indexed bool) error {
	if err := s.eng.die.failed(); err != nil {
		return fmt.Errorf("apply: %w", err)
	}
	if indexed {
		a.batch = s.eng.NewIndexedBatch()
		a.read = a.batch
		return nil
	}
	if a.quick == nil {
		a.quick = s.eng.NewBatch()
	}
	a.batch, a.read = a.quick, s.eng
	return nil
}

func (a *applier) commit(s *State) error {
	slices.Sort(a.touched)
	a.value = append(a.value[:0], opVersion)
	for _, shard := range a.touched {
		next := &a.next[shard]
		a.value = appendApplied(a.value, shard, next.applied)
		if next.conf != nil {
			a.key = appendHead(a.key[:0], shard, tabConf)
			if err := a.batch.Set(a.key, next.conf, nil); err != nil {
				return err
			}
		}
	}
	a.key = appendHead(a.key[:0], allShards, tabApplied)
	if err := a.batch.Merge(a.key, a.value, nil); err != nil {
		return err
	}
	if err := s.eng.commit(a.batch, pebble.NoSync); err != nil {
		return err
	}
	for i := range a.timed {
		s.hot[a.timed[i].shard].move(&a.timed[i])
	}
	for _, shard := range a.touched {
		next := &a.next[shard]
		s.applied[shard].Store(next.applied)
		if next.conf != nil {
			s.confs.Lock()
			s.confs.of[shard] = next.conf
			s.confs.Unlock()
		}
	}
	if s.onCommit != nil {
		s.onCommit(a.entries)
	}
	return nil
}

// reset forgets the batch: what was not committed was not applied.
func (a *applier) reset(s *State) {
	for _, shard := range a.touched {
		a.next[shard] = shardStep{applied: s.applied[shard].Load()}
	}
	a.touched = a.touched[:0]
	clear(a.entries)
	a.entries = a.entries[:0]
	clear(a.alerts)
	clear(a.timed)
	a.timed = a.timed[:0]
	if s.eng.die.failed() != nil {
		return // the batch may still be in a broken pipeline
	}
	switch {
	case a.batch == nil:
	case a.batch == a.quick:
		a.quick.Reset()
	default:
		_ = a.batch.Close()
	}
	a.batch, a.read = nil, nil
}

func (a *applier) apply(shard dunlin.ShardID, e *dunlin.Entry) error {
	for i := range e.Changes {
		if err := a.change(shard, e, &e.Changes[i]); err != nil {
			return err
		}
	}
	for i := range e.Puts {
		if err := a.put(shard, &e.Puts[i]); err != nil {
			return err
		}
	}
	return nil
}

func (a *applier) change(shard dunlin.ShardID, e *dunlin.Entry, c *dunlin.Change) error {
	delta := &a.delta
	delta.SetDelta(c)
	if len(delta.Seen) > dunlin.SeenMin {
		// A fold would trim the window: do it now, or a lone operand would differ from a folded one.
		delta = &dunlin.DeviceState{}
		delta.Merge(&a.delta, false)
	}
	if err := a.mergeState(shard, delta); err != nil {
		return err
	}
	if err := a.readings(shard, c); err != nil {
		return err
	}
	for i := range c.Alerts {
		if err := a.alert(shard, &c.Alerts[i]); err != nil {
			return err
		}
	}
	if err := a.timers(shard, c); err != nil {
		return err
	}
	if err := a.deadLetters(shard, e, c); err != nil {
		return err
	}
	if c.Created {
		return a.register(shard, e, c)
	}
	return nil
}

func (a *applier) mergeState(shard dunlin.ShardID, s *dunlin.DeviceState) error {
	a.key = appendDevice(a.key[:0], shard, tabDevice, s.DeviceKey)
	a.value = appendState(a.value[:0], s)
	return a.batch.Merge(a.key, a.value, nil)
}

// readings writes one operand for each bucket of time that the change's records fall in, which is nearly always one.
func (a *applier) readings(shard dunlin.ShardID, c *dunlin.Change) error {
	a.recs = a.recs[:0]
	for i := range c.Inputs {
		a.recs = append(a.recs, c.Inputs[i].Records...)
	}
	for i := range c.Stages {
		a.recs = append(a.recs, c.Stages[i].Records...)
	}
	if len(a.recs) == 0 {
		return nil
	}
	one := true
	first := bucketOf(a.recs[0].Time)
	for i := range a.recs {
		one = one && bucketOf(a.recs[i].Time) == first
	}
	if one {
		return a.report(shard, c.DeviceKey, first, a.recs)
	}
	slices.SortStableFunc(a.recs, func(x, y dunlin.Record) int {
		return cmp.Compare(bucketOf(x.Time), bucketOf(y.Time))
	})
	for from := 0; from < len(a.recs); {
		bucket, to := bucketOf(a.recs[from].Time), from
		for to < len(a.recs) && bucketOf(a.recs[to].Time) == bucket {
			to++
		}
		if err := a.report(shard, c.DeviceKey, bucket, a.recs[from:to]); err != nil {
			return err
		}
		from = to
	}
	return nil
}

func (a *applier) report(shard dunlin.ShardID, key dunlin.DeviceKey, bucket int64, recs []dunlin.Record) error {
	a.key = appendReadings(a.key[:0], shard, key, bucket)
	a.value = column.AppendReport(a.value[:0], recs)
	return a.batch.Merge(a.key, a.value, nil)
}

// alertPlace is where an alert's row of the time index is.
type alertPlace struct {
	time    dunlin.Time
	cleared bool
}

// alert writes a transition's two rows, and removes the row that the transition before it has in the index by time. That
// needs to be known: transitions are rare enough to read it. A raise has none before it: its seq is in the key.
func (a *applier) alert(shard dunlin.ShardID, al *dunlin.Alert) error {
	place := alertPlace{time: al.At, cleared: al.State == dunlin.AlertCleared}
	a.key = appendAlert(a.key[:0], shard, al)
	was, ok := a.alerts[string(a.key)]
	fresh := al.State == dunlin.AlertRaised && al.Seq == al.RaisedSeq
	ok = ok && !fresh // what the batch knows must not count, or the rows would depend on how entries came in batches
	if !ok && !fresh {
		v, found, err := get(a.read, a.key)
		if err != nil {
			return err
		}
		if ok = found; found {
			if was, _, err = cutAlert(v); err != nil {
				return err
			}
		}
	}
	if ok && was != place {
		a.end = appendAlertTime(a.end[:0], shard, al, was)
		if err := a.batch.Delete(a.end, nil); err != nil {
			return err
		}
	}
	if a.alerts == nil {
		a.alerts = make(map[string]alertPlace)
	}
	a.alerts[string(a.key)] = place
	a.value = appendAlertValue(a.value[:0], al)
	if err := a.batch.Set(a.key, a.value, nil); err != nil {
		return err
	}
	a.key = appendAlertTime(a.key[:0], shard, al, place)
	return a.batch.Set(a.key, a.value, nil)
}

// deadLetters keeps the inputs that a stage failed on, or refused.
func (a *applier) deadLetters(shard dunlin.ShardID, e *dunlin.Entry, c *dunlin.Change) error {
	var letters []letterItem
	for i := range c.Stages {
		st := &c.Stages[i]
		for _, r := range st.Refused {
			if r.Input >= 0 && r.Input < len(c.Inputs) && st.Failure == "" {
				letters = append(letters, letterItem{letter: appendLetter(nil, e, c, st, r.Reason, r.Input)})
			}
		}
		if st.Failure == "" {
			continue
		}
		for j := range c.Inputs {
			letters = append(letters, letterItem{letter: appendLetter(nil, e, c, st, st.Failure, j)})
		}
	}
	if letters == nil {
		return nil
	}
	a.key = appendDevice(a.key[:0], shard, tabDead, c.DeviceKey)
	a.value = appendLetters(a.value[:0], boundLetters(letters))
	return a.batch.Merge(a.key, a.value, nil)
}

// register gives a device that registered itself its row in the registry, unless the entry's owner puts one.
func (a *applier) register(shard dunlin.ShardID, e *dunlin.Entry, c *dunlin.Change) error {
	key := c.DeviceKey.String()
	for i := range e.Puts {
		if e.Puts[i].Table == dunlin.TableDevices && e.Puts[i].Key == key {
			return nil
		}
	}
	a.key = appendRow(a.key[:0], shard, dunlin.TableDevices, key)
	if _, found, err := get(a.read, a.key); err != nil || found {
		return err
	}
	row, err := json.Marshal(dunlin.Device{Tenant: c.Tenant, ID: c.Device, Domain: c.Domain, Revision: 1, CreatedAt: e.At, UpdatedAt: e.At})
	if err != nil {
		return err
	}
	return a.put(shard, &dunlin.Put{Table: dunlin.TableDevices, Key: key, Value: row})
}
