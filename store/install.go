package store

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/dunlin-iot/dunlin"
)

// How a shard comes whole from elsewhere, and how it goes, so that a crash at any moment leaves the replica before it or the
// one after it, never a half (docs/formats/snapshot.md):
//
//	Install   1 log engine, synced    a marker: which snapshot is being installed, with which hard state
//	          2 state engine          all rows of the shard give way to the snapshot's tables, atomically
//	          3 log engine, synced    entries gone, truncation row at the snapshot's entry, hard state, marker gone
//	Destroy   1 log engine, synced    entries, truncation row and hard state gone; tombstone; a marker
//	          2 state engine, synced  all rows of the shard gone, and its part of the applied row of all shards
//	          3 log engine            marker gone
//
// At Open a marker of an install whose tables are in the state is followed by 3, and any other is taken away: nothing was said
// to anybody before 3. A marker of a destruction is followed by 2 and 3: from 1 on the replica has no hard state to vote with.

// Install makes the shard's state and log the snapshot's, all chunks of which have been added, and hard its hard state (nil:
// it stays as it is). The log is empty then and begins behind meta.Index. It survives a crash once Install returns. An error
// that does not wrap Config.Fatal's leaves the replica as it was. ErrConflict: the shard is applied that far already.
//
// Nobody may append to the shard's log meanwhile; what reads the shard sees the old rows or the new ones.
func (db *DB) Install(meta dunlin.SnapshotMeta, hard []byte) error {
	if err := db.checkMeta(&meta); err != nil {
		return fmt.Errorf("install: %w", err)
	}
	db.snaps.Lock()
	in := db.snaps.incoming[meta.Shard]
	db.snaps.Unlock()
	err := fmt.Errorf("%w: it was not received", dunlin.ErrNotFound)
	if in != nil {
		err = db.installIncoming(in, &meta, hard)
	}
	if err != nil {
		return fmt.Errorf("install snapshot %s of shard %d: %w", meta.ID, meta.Shard, err)
	}
	db.metrics.installed()
	if db.cfg.OnInstalled != nil {
		db.cfg.OnInstalled(meta.Shard)
	}
	return nil
}

func (db *DB) installIncoming(in *incoming, meta *dunlin.SnapshotMeta, hard []byte) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	if !in.mu.open || !sameMeta(&in.mu.meta, meta) {
		return fmt.Errorf("%w: it was not received", dunlin.ErrNotFound)
	}
	if !in.complete() {
		return fmt.Errorf("%w: only %d chunks of it were added", dunlin.ErrInvalid, len(in.mu.chunks))
	}
	var paths []string
	for _, c := range in.mu.chunks {
		if !c.Part && c.File != "" {
			paths = append(paths, db.cfg.FS.PathJoin(db.incomingDir(meta.Shard), c.File))
		}
	}
	db.upkeep.Lock()
	defer db.upkeep.Unlock()
	if applied := db.state.Applied(meta.Shard); meta.Index <= applied {
		return fmt.Errorf("%w: it is of entry %d, entry %d is applied", dunlin.ErrConflict, meta.Index, applied)
	}
	if err := db.outgrow(); err != nil {
		return err
	}
	db.closeExports(func(e *export) bool { return e.meta.Shard == meta.Shard }) // their rows go, too
	if err := db.install(meta, hard, paths); err != nil {
		return err
	}
	if err := db.endIncoming(in, meta.Shard); err != nil { // Open takes away what is left
		db.cfg.Log.Warn("store: files of an installed snapshot were not removed", "shard", meta.Shard, "err", err)
	}
	return nil
}

// install does the three steps. The caller holds upkeep.
func (db *DB) install(meta *dunlin.SnapshotMeta, hard []byte, paths []string) error {
	s, l, sh := db.state, db.log, meta.Shard
	was, err := db.archive.bytesOf(sh)
	if err != nil {
		return err
	}
	if s.applied[sh].Load() > 0 {
		// Pebble flushes rows that give way before it takes the tables in, and nobody else commits meanwhile: do it here.
		if err := s.eng.Flush(); err != nil {
			return err
		}
	}
	marker, err := json.Marshal(installMarker{Meta: *meta, Hard: hard})
	if err != nil {
		return err
	}
	if !db.cfg.Planted.NoInstallMarker {
		if err := l.mark(sh, logInstall, marker); err != nil {
			return err
		}
	}
	if err := s.install(meta, paths); err != nil {
		return errors.Join(err, l.unmark(sh, logInstall))
	}
	if err := l.restart(meta, hard); err != nil {
		return err
	}
	if err := db.archive.restart(sh, was); err != nil {
		return db.die.fail(fmt.Errorf("read what was installed: %w", err))
	}
	db.journal.restart(sh, meta.Index+1)
	return nil
}

// installMarker says which snapshot is being installed.
type installMarker struct {
	Meta dunlin.SnapshotMeta `json:"meta"`
	Hard []byte              `json:"hard,omitempty"`
}

// Planted are faults for the suites that must find them: each breaks a promise of this package on purpose.
type Planted struct {
	NoInstallMarker bool // a crash in the middle of Install leaves a state and a log of two replicas
}

// Destroy removes this node's replica of a shard: log, hard state, rows, archive, and what is on its way of it. It keeps tomb,
// for ever or until the next Destroy: what the node must not forget of a replica that it no longer has. Without a replica
// only the tombstone is written. Nobody may use the replica meanwhile.
func (db *DB) Destroy(sh dunlin.ShardID, tomb []byte) error {
	if err := db.state.check(sh); err != nil {
		return err
	}
	if err := db.Drop(sh); err != nil {
		return err
	}
	db.upkeep.Lock()
	defer db.upkeep.Unlock()
	if err := db.outgrow(); err != nil {
		return err
	}
	db.closeExports(func(e *export) bool { return e.meta.Shard == sh })
	was, err := db.archive.bytesOf(sh)
	if err != nil {
		return fmt.Errorf("destroy shard %d: %w", sh, err)
	}
	db.journal.restart(sh, 1)
	if err := db.log.destroy(sh, tomb); err != nil {
		return fmt.Errorf("destroy shard %d: %w", sh, err)
	}
	if err := db.state.drop(sh); err != nil {
		return db.die.fail(fmt.Errorf("destroy shard %d: %w", sh, err)) // half there: Open does the rest
	}
	if err := db.archive.restart(sh, was); err != nil {
		return db.die.fail(fmt.Errorf("destroy shard %d: %w", sh, err))
	}
	if err := db.log.unmark(sh, logDestroy); err != nil {
		return fmt.Errorf("destroy shard %d: %w", sh, err)
	}
	return nil
}

// Tombstone returns what the last Destroy of the shard kept, nil if there was none.
func (db *DB) Tombstone(sh dunlin.ShardID) ([]byte, error) {
	if err := db.log.check(sh); err != nil {
		return nil, err
	}
	v, _, err := get(db.log.eng, appendHead(nil, sh, logTomb))
	if err != nil {
		return nil, fmt.Errorf("tombstone of shard %d: %w", sh, err)
	}
	return v, nil
}

// recover ends what a crash interrupted. It comes before anything reads the state.
func (db *DB) recover(state engine) error {
	for i := range db.shards {
		sh := dunlin.ShardID(i)
		if err := cmp.Or(db.recoverInstall(state, sh), db.recoverDestroy(state, sh)); err != nil {
			return fmt.Errorf("shard %d: %w", sh, err)
		}
		if err := db.recoverIncoming(state, sh); err != nil {
			return fmt.Errorf("incoming snapshot of shard %d: %w", sh, err)
		}
	}
	return nil
}

func (db *DB) recoverInstall(state engine, sh dunlin.ShardID) error {
	v, found, err := get(db.log.eng, appendHead(nil, sh, logInstall))
	if err != nil || !found {
		return err
	}
	var m installMarker
	if err := json.Unmarshal(v, &m); err != nil {
		return fmt.Errorf("%w: marker of an install: %w", dunlin.ErrInvalid, err)
	}
	index, err := installedIndex(state, sh)
	if err != nil {
		return err
	}
	if index < m.Meta.Index {
		return db.log.unmark(sh, logInstall)
	}
	return db.log.restart(&m.Meta, m.Hard)
}

// installedIndex returns the index of the snapshot that the shard's rows came with, 0 if they came with none.
func installedIndex(r pebble.Reader, sh dunlin.ShardID) (uint64, error) {
	v, found, err := get(r, appendHead(nil, sh, tabApplied))
	if err != nil || !found {
		return 0, err
	}
	rows, err := cutApplied(nil, v)
	if err != nil || len(rows) != 1 {
		return 0, cmp.Or(err, errKey)
	}
	return rows[0].index, nil
}

func (db *DB) recoverDestroy(state engine, sh dunlin.ShardID) error {
	_, found, err := get(db.log.eng, appendHead(nil, sh, logDestroy))
	if err != nil || !found {
		return err
	}
	if err := state.dropShard(sh); err != nil {
		return err
	}
	if err := state.Flush(); err != nil { // or openState would take the old applied index for what is on disk
		return err
	}
	if err := db.removeIncoming(sh); err != nil {
		return err
	}
	return db.log.unmark(sh, logDestroy)
}

// recoverIncoming removes a snapshot that brings nothing any more. Another one waits to be resumed.
func (db *DB) recoverIncoming(state engine, sh dunlin.ShardID) error {
	meta, _, err := db.readIndex(sh)
	if err != nil {
		return err
	}
	if meta == nil {
		return db.removeIncoming(sh)
	}
	index, err := installedIndex(state, sh)
	if err != nil {
		return err
	}
	if meta.Index <= index {
		return db.removeIncoming(sh)
	}
	in, err := db.incomingOf(sh)
	if err != nil { // more than the bound: those begin anew
		return db.removeIncoming(sh)
	}
	in.touched = db.cfg.Clock()
	return nil
}

// replace makes all rows of a span those of some tables, atomically and for good: Pebble syncs tables and manifest.
func (e *engine) replace(span pebble.KeyRange, tables []string) (err error) {
	if err := e.die.failed(); err != nil {
		return fmt.Errorf("%s engine: %w", e.name, err)
	}
	// No caller's deadline may stop this half way, and Pebble would not let it.
	if _, err := e.IngestAndExcise(context.TODO(), tables, nil, nil, span); err != nil {
		return fmt.Errorf("%s engine: ingest: %w", e.name, err)
	}
	return e.die.failed()
}

// dropShard removes all rows of a shard, and its part of the applied row of all shards. Nobody may be applying.
func (e *engine) dropShard(sh dunlin.ShardID) error {
	span := shardSpan(sh)
	b := e.NewBatch()
	if err := b.DeleteRange(span.Start, span.End, nil); err != nil {
		return err
	}
	all := appendHead(nil, allShards, tabApplied)
	v, found, err := get(e, all)
	if err != nil {
		return err
	}
	if found {
		rows, err := cutApplied(nil, v)
		if err != nil {
			return err
		}
		v = []byte{opVersion}
		for _, r := range rows {
			if r.shard != sh {
				v = appendApplied(v, r.shard, r.index)
			}
		}
		if err := b.Set(all, v, nil); err != nil {
			return err
		}
	}
	return e.commit(b, pebble.Sync)
}

// install makes a shard's rows those of the tables. Nothing is applied meanwhile.
func (s *State) install(meta *dunlin.SnapshotMeta, tables []string) error {
	s.apply.Lock()
	defer s.apply.Unlock()
	if err := s.eng.replace(shardSpan(meta.Shard), tables); err != nil {
		return err
	}
	s.restart(meta.Shard, meta.Index, meta.Conf)
	return nil
}

// drop removes a shard's rows. Nothing is applied meanwhile.
func (s *State) drop(sh dunlin.ShardID) error {
	s.apply.Lock()
	defer s.apply.Unlock()
	if err := s.eng.dropShard(sh); err != nil {
		return err
	}
	s.restart(sh, 0, nil)
	return nil
}

// restart makes what is in memory of a shard that of a replica that came whole, or went. The caller holds apply's lock.
func (s *State) restart(sh dunlin.ShardID, applied uint64, conf []byte) {
	s.apply.next[sh] = shardStep{applied: applied}
	s.hot[sh].restart()
	s.confs.Lock()
	s.confs.of[sh] = bytes.Clone(conf)
	s.confs.Unlock()
	s.applied[sh].Store(applied)
	s.durable[sh].Store(applied)
	s.cut[sh].Store(0) // until the archive says how far it goes
}

// restart forgets which timers are nearly due: they are read again.
func (h *hotTimers) restart() {
	h.Lock()
	defer h.Unlock()
	h.upTo, h.loaded, h.due, h.list, h.fresh = 0, false, nil, nil, nil
}

// bytesOf returns how many bytes the shard's segments have.
func (a *archive) bytesOf(sh dunlin.ShardID) (total int64, err error) {
	err = a.segments(sh, func(s segmentInfo) bool {
		total += int64(s.bytes)
		return true
	})
	return total, err
}

// restart counts the shard's segments anew; was is the bytes of those before.
func (a *archive) restart(sh dunlin.ShardID, was int64) error {
	last, total := uint64(0), int64(0)
	err := a.segments(sh, func(s segmentInfo) bool {
		last, total = s.last, total+int64(s.bytes)
		return true
	})
	a.total.Add(total - was)
	a.done[sh].Store(last)
	a.pending[sh].Store(0)
	a.publish(sh)
	return err
}

// restart moves the shard's end to head. What was in memory is dropped; who follows goes on from the archive.
func (j *Journal) restart(sh dunlin.ShardID, head uint64) {
	j.mu.Lock()
	defer j.mu.Unlock()
	t := &j.mu.tails[sh]
	j.dropLocked(t, len(t.items))
	t.from, t.head = head, head
	mark(j.mu.followers, sh)
	mark(t.followers, sh)
}
