package store

import (
	"cmp"
	"context"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/dunlin-iot/dunlin"
)

// retainEvery is how often Run looks for history, archive and dead letters to drop.
const retainEvery = 10 * time.Minute

// archiveBatchBytes is how much of the archive is written at once.
const archiveBatchBytes = 4 << 20

// Run keeps the store in order until ctx ends: a step of Maintain whenever the log has grown enough, and Retain now and
// then. An error is one that the node cannot live with.
func (db *DB) Run(ctx context.Context) error {
	tick := time.NewTicker(retainEvery)
	defer tick.Stop()
	sweep := time.NewTicker(sweepEvery)
	defer sweep.Stop()
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-db.die.done:
			return db.die.err
		case <-db.grown:
			err = db.Maintain(ctx)
		case <-sweep.C:
			db.sweep()
		case <-tick.C:
			err = cmp.Or(db.Maintain(ctx), db.Retain(ctx))
		}
		if err != nil && ctx.Err() == nil {
			return fmt.Errorf("store: maintenance: %w", err)
		}
	}
}

// Maintain moves State.Durable on, so that the log can be truncated: it archives what was applied since the last time and
// syncs the state engine's write-ahead log, once for everything. Nothing waits for that on the way of an uplink, and no
// memtable is flushed for it: the synced write-ahead log keeps what was applied as surely as the Raft log did, and small
// flushes would only make Pebble compact more.
//
// Shards with little to archive wait for more, until all that waits exceeds Config.LogBytes. Applied says how far each
// shard had come before: the sync covers that, because one engine's batches reach its write-ahead log in their order.
func (db *DB) Maintain(ctx context.Context) error {
	db.upkeep.Lock()
	defer db.upkeep.Unlock()
	a, s := db.archive, db.state
	target := make([]uint64, s.shards)
	pending := int64(0)
	for i := range target {
		target[i] = s.applied[i].Load()
		pending += a.pending[i].Load()
	}
	logged := db.log.Bytes()
	average := pending / int64(2*s.shards)
	b := s.eng.NewBatch()
	done := make([]uint64, s.shards)
	for i := range target {
		shard, waits := dunlin.ShardID(i), a.pending[i].Load()
		all := pending > db.cfg.LogBytes && waits > average
		if a.off || !all && waits < int64(a.bytes) {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		upTo, raw, err := a.collect(b, shard, target[i], all)
		if err != nil {
			return err
		}
		done[i] = upTo
		if upTo == target[i] {
			raw = waits
		}
		a.pending[i].Add(-min(raw, waits))
		if b.Len() >= archiveBatchBytes {
			if err := db.keep(b, target, done); err != nil {
				return err
			}
			b = s.eng.NewBatch()
		}
	}
	if b.Empty() && logged-db.synced < db.cfg.LogBytes/4 {
		return nil
	}
	db.synced = logged
	return db.keep(b, target, done)
}

// keep commits the batch with a sync and publishes what is on disk now.
func (db *DB) keep(b *pebble.Batch, target, done []uint64) error {
	if b.Empty() {
		if err := b.LogData(nil, nil); err != nil {
			return err
		}
	}
	if err := db.state.eng.commit(b, pebble.Sync); err != nil {
		return err
	}
	for i := range target {
		db.state.durable[i].Store(max(db.state.durable[i].Load(), target[i]))
		if done[i] > 0 {
			db.archive.done[i].Store(max(db.archive.done[i].Load(), done[i]))
		}
		db.archive.publish(dunlin.ShardID(i))
	}
	return nil
}

// Sync makes everything that was applied durable and archives all of it, however little that is: before a node hands its
// data over, and in tests.
func (db *DB) Sync(ctx context.Context) error {
	db.upkeep.Lock()
	defer db.upkeep.Unlock()
	a, s := db.archive, db.state
	b := s.eng.NewBatch()
	target, done := make([]uint64, s.shards), make([]uint64, s.shards)
	for i := range target {
		target[i] = s.applied[i].Load()
		if a.off || target[i] <= a.done[i].Load() {
			continue
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		waits := a.pending[i].Load()
		upTo, _, err := a.collect(b, dunlin.ShardID(i), target[i], true)
		if err != nil {
			return err
		}
		done[i] = upTo
		a.pending[i].Add(-waits)
	}
	db.synced = db.log.Bytes()
	return db.keep(b, target, done)
}

// Retain drops what is older than its retention: the archive's segments by age and bytes, history by its domain's age, and
// dead letters of devices that had none for long, once all take too many bytes. It writes without a sync: what a crash
// brings back is dropped again.
func (db *DB) Retain(ctx context.Context) error {
	db.upkeep.Lock()
	defer db.upkeep.Unlock()
	now := db.cfg.Clock()
	b := db.state.eng.NewBatch()
	before := dunlin.Time(0)
	if db.cfg.ArchiveAge > 0 {
		before = now.Add(-db.cfg.ArchiveAge)
	}
	if err := db.archive.retain(b, before, db.cfg.ArchiveBytes); err != nil {
		return err
	}
	if err := db.retainHistory(ctx, b, now); err != nil {
		return err
	}
	if err := db.retainDead(ctx, b); err != nil {
		return err
	}
	if b.Empty() {
		return nil
	}
	return db.state.eng.commit(b, pebble.NoSync)
}
