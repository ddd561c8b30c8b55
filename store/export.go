package store

import (
	"bytes"
	"cmp"
	"fmt"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"

	"github.com/dunlin-iot/dunlin"
)

// Bounds of what is under way between nodes.
const (
	exportsMax   = 16               // open at once: each keeps Pebble from forgetting what was overwritten since
	exportIdle   = 2 * time.Minute  // without a question, and it is closed
	incomingMax  = 64               // begun and not installed
	incomingIdle = 10 * time.Minute // without a chunk, and it is dropped
	sweepEvery   = 30 * time.Second
)

// snapshots is what is under way between this node and others.
type snapshots struct {
	sync.Mutex
	pack     *chunker
	exports  map[string]*export
	incoming map[dunlin.ShardID]*incoming
	made     uint64 // exports
}

// export is an open snapshot of a shard, of which chunks are made when they are asked for. Nothing of it is kept in memory
// but where each chunk begins, so that a chunk is the same each time.
type export struct {
	meta    dunlin.SnapshotMeta
	touched dunlin.Time // guarded by snapshots

	mu struct {
		sync.Mutex
		snap   *pebble.Snapshot // nil: released
		starts []chunkStart     // of the chunks that may be asked for
		done   bool             // the last of starts is the end
	}
}

// chunkStart is where a chunk begins: at a bound, or in the middle of the large row that is the first behind it.
type chunkStart struct {
	from   []byte
	row    []byte
	offset uint64
}

// Export opens a snapshot of a shard as it is applied now, for another node to fetch chunk by chunk. A newer export of a
// shard replaces an older one. It ends with Release, or when nobody has asked for a chunk for two minutes. ErrNotFound: there
// is no replica here, or an empty one. ErrOverloaded: too many are open.
//
// What was applied is archived first, all of it: the new replica's journal must not have a hole where this one's log was.
func (db *DB) Export(sh dunlin.ShardID) (meta dunlin.SnapshotMeta, err error) {
	if err := db.state.check(sh); err != nil {
		return meta, err
	}
	if err := db.die.failed(); err != nil {
		return meta, fmt.Errorf("export shard %d: %w", sh, err)
	}
	db.upkeep.Lock()
	defer db.upkeep.Unlock()
	if db.state.Applied(sh) == 0 {
		return meta, fmt.Errorf("export shard %d: %w: nothing of it was applied here", sh, dunlin.ErrNotFound)
	}
	if err := db.roomForExport(sh); err != nil {
		return meta, err
	}
	if err := db.archiveApplied(sh); err != nil { // most of it, while others apply
		return meta, fmt.Errorf("export shard %d: %w", sh, err)
	}
	e := &export{}
	if err := db.fix(e, sh); err != nil {
		return meta, fmt.Errorf("export shard %d: %w", sh, err)
	}
	target := make([]uint64, db.shards)
	target[sh] = e.meta.Index
	if err := db.keep(db.state.eng.NewBatch(), target, make([]uint64, db.shards)); err != nil {
		_ = e.mu.snap.Close()
		return meta, fmt.Errorf("export shard %d: %w", sh, err)
	}
	s := &db.snaps
	s.Lock()
	defer s.Unlock()
	s.made++
	now := db.cfg.Clock()
	e.touched = now
	e.meta.ID = fmt.Sprintf("%x-%d-%d-%x-%d", uint64(e.meta.From), sh, e.meta.Index, uint64(now), s.made)
	s.exports[e.meta.ID] = e
	db.metrics.exported()
	return e.meta, nil
}

// roomForExport closes the shard's export, and those that nobody wants any more.
func (db *DB) roomForExport(sh dunlin.ShardID) error {
	now := db.cfg.Clock()
	db.closeExports(func(e *export) bool { return e.meta.Shard == sh || now.Sub(e.touched) > exportIdle })
	db.snaps.Lock()
	defer db.snaps.Unlock()
	if n := len(db.snaps.exports); n >= exportsMax {
		return fmt.Errorf("export shard %d: %w: %d snapshots are on their way", sh, dunlin.ErrOverloaded, n)
	}
	return nil
}

// archiveApplied archives what was applied to the shard, without a sync: the log is not cut for it before keep. The caller
// holds upkeep.
func (db *DB) archiveApplied(sh dunlin.ShardID) error {
	a, target := db.archive, db.state.applied[sh].Load()
	if a.off || target <= a.done[sh].Load() {
		return nil
	}
	waits := a.pending[sh].Load()
	b := db.state.eng.NewBatch()
	upTo, _, err := a.collect(b, sh, target, true)
	if err != nil {
		return err
	}
	if err := db.state.eng.commit(b, pebble.NoSync); err != nil {
		return err
	}
	a.done[sh].Store(upTo)
	a.pending[sh].Add(-waits)
	return nil
}

// fix takes the picture: nothing is applied meanwhile, so that rows, index, term and replica set are of one moment.
func (db *DB) fix(e *export, sh dunlin.ShardID) error {
	s := db.state
	s.apply.Lock()
	defer s.apply.Unlock()
	if err := db.archiveApplied(sh); err != nil {
		return err
	}
	index := s.applied[sh].Load()
	term, err := db.log.Term(sh, index)
	if err != nil {
		return err
	}
	e.meta = dunlin.SnapshotMeta{Shard: sh, From: db.Identity().NodeID, Index: index, Term: term, Conf: bytes.Clone(s.Conf(sh))}
	e.mu.starts = []chunkStart{{from: shardSpan(sh).Start}}
	e.mu.snap = s.eng.NewSnapshot()
	return nil
}

// shardSpan is all rows of a shard in either engine.
func shardSpan(sh dunlin.ShardID) pebble.KeyRange {
	head := appendHead(nil, sh, 0)[:2]
	return pebble.KeyRange{Start: head, End: after(head)}
}

// Chunk returns the i-th chunk of an export, i counting from 0. It can be asked for again; one that no earlier answer has led
// to is refused. Asked for the one behind the last, it returns nothing, and last: so does a receiver that has them all and
// forgot, learn it. ErrNotFound: the export has ended, begin anew.
func (db *DB) Chunk(id string, i int) (data []byte, last bool, err error) {
	db.snaps.Lock()
	e := db.snaps.exports[id]
	if e != nil {
		e.touched = db.cfg.Clock()
	}
	db.snaps.Unlock()
	if e == nil {
		return nil, false, fmt.Errorf("snapshot %s: %w: it has ended", id, dunlin.ErrNotFound)
	}
	if err := db.die.failed(); err != nil {
		return nil, false, fmt.Errorf("snapshot %s: %w", id, err)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	switch {
	case e.mu.snap == nil:
		return nil, false, fmt.Errorf("snapshot %s: %w: it has ended", id, dunlin.ErrNotFound)
	case i < 0 || i >= len(e.mu.starts):
		return nil, false, fmt.Errorf("snapshot %s: %w: chunk %d, next is %d", id, dunlin.ErrInvalid, i, len(e.mu.starts)-1)
	case e.mu.done && i == len(e.mu.starts)-1:
		return nil, true, nil
	}
	data, next, err := e.build(db.snaps.pack, e.mu.starts[i], db.cfg.ChunkBytes)
	if err != nil {
		return nil, false, fmt.Errorf("snapshot %s: chunk %d: %w", id, i, err)
	}
	last = bytes.Equal(next.from, shardSpan(e.meta.Shard).End)
	if i == len(e.mu.starts)-1 {
		e.mu.starts = append(e.mu.starts, next)
		e.mu.done = last
	}
	db.metrics.sent(len(data))
	return data, last, nil
}

// build makes the chunk that begins at a place, and says where the next one does. The caller holds e.mu.
func (e *export) build(pack *chunker, at chunkStart, bytesMax int) (data []byte, next chunkStart, err error) {
	if at.offset > 0 {
		return e.buildPart(at)
	}
	span := shardSpan(e.meta.Shard)
	it, err := e.mu.snap.NewIter(&pebble.IterOptions{LowerBound: at.from, UpperBound: span.End})
	if err != nil {
		return nil, next, err
	}
	defer it.Close()
	own := appendHead(nil, e.meta.Shard, tabApplied)
	var rows rowsBody
	if bytes.Equal(at.from, span.Start) {
		rows.add(own, appliedRow(e.meta.Shard, e.meta.Index))
	}
	next.from = span.End
	for ok := it.First(); ok; ok = it.Next() {
		if bytes.Equal(it.Key(), own) { // an older snapshot's, from which this replica came
			continue
		}
		v, err := it.ValueAndErr()
		if err != nil {
			return nil, next, err
		}
		if len(v) > chunkRowMax && len(rows.b) == 0 {
			return e.buildPart(chunkStart{from: at.from, row: bytes.Clone(it.Key())})
		}
		if len(rows.b) >= bytesMax || len(v) > chunkRowMax {
			next.from = bytes.Clone(it.Key())
			break
		}
		rows.add(it.Key(), v)
	}
	if err := it.Error(); err != nil {
		return nil, next, err
	}
	return pack.sealRows(at.from, next.from, &rows), next, nil
}

// buildPart makes a chunk of a row that is too large for one.
func (e *export) buildPart(at chunkStart) (data []byte, next chunkStart, err error) {
	v, ok, err := get(e.mu.snap, at.row)
	if err != nil || !ok || at.offset >= uint64(len(v)) {
		return nil, next, cmp.Or(err, fmt.Errorf("%w: no row %x of more than %d bytes", dunlin.ErrInvalid, clip(at.row), at.offset))
	}
	total, end := uint64(len(v)), min(at.offset+chunkRowMax, uint64(len(v)))
	to := at.from
	next = chunkStart{from: at.from, row: at.row, offset: end}
	if end == total {
		to = append(bytes.Clone(at.row), 0)
		next = chunkStart{from: to}
	}
	return sealPart(at.from, to, at.row, total, at.offset, v[at.offset:end]), next, nil
}

// Release ends an export. An unknown id is nothing.
func (db *DB) Release(id string) {
	db.closeExports(func(e *export) bool { return e.meta.ID == id })
}

// closeExports closes those that is says.
func (db *DB) closeExports(is func(*export) bool) {
	var gone []*export
	db.snaps.Lock()
	for id, e := range db.snaps.exports {
		if is(e) {
			gone = append(gone, e)
			delete(db.snaps.exports, id)
		}
	}
	db.snaps.Unlock()
	for _, e := range gone {
		e.mu.Lock()
		if e.mu.snap != nil {
			_ = e.mu.snap.Close()
			e.mu.snap = nil
		}
		e.mu.Unlock()
	}
}

// sweep ends what nobody has touched for long: exports, and incoming snapshots whose sender is gone. The caller must not hold
// upkeep: whoever installs a snapshot holds that and waits for upkeep.
func (db *DB) sweep() {
	now := db.cfg.Clock()
	db.closeExports(func(e *export) bool { return now.Sub(e.touched) > exportIdle })
	var idle []dunlin.ShardID
	db.snaps.Lock()
	for sh, in := range db.snaps.incoming {
		if now.Sub(in.touched) > incomingIdle {
			idle = append(idle, sh)
		}
	}
	db.snaps.Unlock()
	for _, sh := range idle {
		if err := db.Drop(sh); err != nil {
			db.cfg.Log.Error("store: incoming snapshot was not dropped", "shard", sh, "err", err)
		}
	}
}
