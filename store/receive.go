package store

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"strconv"
	"sync"

	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/dunlin-iot/dunlin"
)

// An incoming snapshot lies in dir/incoming/<shard>: a table for each chunk, and a list, INDEX, whose first line is the
// snapshot's meta and whose other lines are the chunks. A chunk is there once its line and its table are: the line is written
// after the table is on disk. A line begins with its checksum, so that a torn one is seen. Names and lines are synced now and then
// only, and at the end: what a crash takes of them is fetched again, and each fsync makes those of the write-ahead logs wait.
const (
	incomingFolder = "incoming"
	indexFile      = "INDEX"
	diskReserve    = 64 << 20  // bytes that an incoming snapshot leaves free
	chunksPerSync  = 8         // of names and lines
	tableSync      = 256 << 10 // bytes of a table after which the disk may begin to write them, so that its fsync has little left to do
)

// incoming is a snapshot on its way in.
type incoming struct {
	touched dunlin.Time // guarded by snapshots

	mu struct {
		sync.Mutex
		open   bool // the rest is set
		gone   bool // dropped or installed
		meta   dunlin.SnapshotMeta
		index  vfs.File
		chunks []incomingChunk
	}
}

// incomingChunk is a chunk on disk.
type incomingChunk struct {
	File string `json:"file,omitempty"` // "": it had no rows
	Size int64  `json:"size,omitempty"` // of the file
	Part bool   `json:"part,omitempty"` // the file is the chunk, a piece of a large row that is not whole yet
	UpTo []byte `json:"up_to"`          // rows before this are there
}

func (db *DB) incomingDir(sh dunlin.ShardID) string {
	return db.cfg.FS.PathJoin(db.cfg.Dir, incomingFolder, strconv.Itoa(int(sh)))
}

func (db *DB) checkMeta(meta *dunlin.SnapshotMeta) error {
	if err := db.state.check(meta.Shard); err != nil {
		return err
	}
	if meta.Index == 0 || meta.Term == 0 || meta.ID == "" || len(meta.ID) > 256 || len(meta.Conf) > chunkKeyMax {
		return fmt.Errorf("%w: snapshot %.40q of shard %d at entry %d", dunlin.ErrInvalid, meta.ID, meta.Shard, meta.Index)
	}
	return nil
}

// Receive begins or resumes an incoming snapshot and returns how many of its chunks are on disk. Another one of the shard
// that was on its way is dropped. ErrConflict: the shard is applied that far already. ErrOverloaded: too many are on their way.
func (db *DB) Receive(meta dunlin.SnapshotMeta) (have int, err error) {
	if err := db.checkMeta(&meta); err != nil {
		return 0, fmt.Errorf("receive: %w", err)
	}
	if err := db.die.failed(); err != nil {
		return 0, fmt.Errorf("receive snapshot of shard %d: %w", meta.Shard, err)
	}
	if applied := db.state.Applied(meta.Shard); meta.Index <= applied {
		return 0, fmt.Errorf("receive snapshot of shard %d: %w: it is of entry %d, entry %d is applied", meta.Shard, dunlin.ErrConflict, meta.Index, applied)
	}
	for {
		in, err := db.incomingOf(meta.Shard)
		if err != nil {
			return 0, err
		}
		in.mu.Lock()
		if in.mu.gone {
			in.mu.Unlock()
			continue
		}
		have, err = db.receive(in, meta)
		in.mu.Unlock()
		if err != nil {
			return 0, fmt.Errorf("receive snapshot of shard %d: %w", meta.Shard, err)
		}
		return have, nil
	}
}

// incomingOf returns the shard's place for an incoming snapshot.
func (db *DB) incomingOf(sh dunlin.ShardID) (*incoming, error) {
	s := &db.snaps
	s.Lock()
	defer s.Unlock()
	in := s.incoming[sh]
	if in == nil {
		if len(s.incoming) >= incomingMax {
			return nil, fmt.Errorf("receive snapshot of shard %d: %w: %d are on their way", sh, dunlin.ErrOverloaded, len(s.incoming))
		}
		in = &incoming{}
		s.incoming[sh] = in
	}
	in.touched = db.cfg.Clock()
	return in, nil
}

// receive resumes from memory or disk, or begins. The caller holds in.mu.
func (db *DB) receive(in *incoming, meta dunlin.SnapshotMeta) (int, error) {
	if in.mu.open && sameMeta(&in.mu.meta, &meta) {
		return len(in.mu.chunks), nil
	}
	if err := db.closeIncoming(in); err != nil {
		return 0, err
	}
	have, chunks, err := db.readIndex(meta.Shard)
	if err != nil {
		return 0, err
	}
	dir := db.incomingDir(meta.Shard)
	if have == nil || !sameMeta(have, &meta) {
		chunks = nil
		if err := db.cfg.FS.RemoveAll(dir); err != nil {
			return 0, err
		}
		if err := makeFolder(db.cfg.FS, db.cfg.FS.PathJoin(db.cfg.Dir, incomingFolder)); err != nil {
			return 0, err
		}
		if err := makeFolder(db.cfg.FS, dir); err != nil {
			return 0, err
		}
	}
	if in.mu.index, err = db.writeIndex(dir, &meta, chunks); err != nil {
		return 0, err
	}
	in.mu.meta, in.mu.chunks, in.mu.open = meta, chunks, true
	return len(chunks), nil
}

func sameMeta(a, b *dunlin.SnapshotMeta) bool {
	return a.Shard == b.Shard && a.ID == b.ID && a.Index == b.Index && a.Term == b.Term && bytes.Equal(a.Conf, b.Conf)
}

// closeIncoming forgets what is in memory. The caller holds in.mu.
func (db *DB) closeIncoming(in *incoming) error {
	f := in.mu.index
	in.mu.index, in.mu.chunks, in.mu.open = nil, nil, false
	if f == nil {
		return nil
	}
	return f.Close()
}

func indexLine(v any) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, err
	}
	return append(fmt.Appendf(nil, "%08x ", crc32.Checksum(b, castagnoli)), append(b, '\n')...), nil
}

func cutLine(line []byte, v any) bool {
	sum, text, ok := bytes.Cut(line, []byte(" "))
	if !ok || len(sum) != 8 {
		return false
	}
	want, err := strconv.ParseUint(string(sum), 16, 32)
	return err == nil && crc32.Checksum(text, castagnoli) == uint32(want) && json.Unmarshal(text, v) == nil
}

// writeIndex makes the list anew, and returns it open for what comes.
func (db *DB) writeIndex(dir string, meta *dunlin.SnapshotMeta, chunks []incomingChunk) (vfs.File, error) {
	text, err := indexLine(meta)
	if err != nil {
		return nil, err
	}
	for i := range chunks {
		line, err := indexLine(&chunks[i])
		if err != nil {
			return nil, err
		}
		text = append(text, line...)
	}
	fsys := db.cfg.FS
	tmp := fsys.PathJoin(dir, indexFile+".new")
	f, err := fsys.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return nil, err
	}
	if _, err = f.Write(text); err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = fsys.Rename(tmp, fsys.PathJoin(dir, indexFile))
	}
	if err == nil {
		err = syncFolder(fsys, dir)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// readIndex returns which snapshot lies in the shard's folder, nil if none, and its chunks up to the first that is not whole.
func (db *DB) readIndex(sh dunlin.ShardID) (*dunlin.SnapshotMeta, []incomingChunk, error) {
	fsys, dir := db.cfg.FS, db.incomingDir(sh)
	f, err := fsys.Open(fsys.PathJoin(dir, indexFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 4*chunkKeyMax)
	meta := &dunlin.SnapshotMeta{}
	if !lines.Scan() || !cutLine(lines.Bytes(), meta) {
		return nil, nil, lines.Err()
	}
	var chunks []incomingChunk
	for lines.Scan() {
		var c incomingChunk
		if !cutLine(lines.Bytes(), &c) || !db.whole(dir, &c) {
			break
		}
		chunks = append(chunks, c)
	}
	return meta, chunks, nil
}

// whole reports whether a chunk's file is there with all its bytes.
func (db *DB) whole(dir string, c *incomingChunk) bool {
	if c.File == "" {
		return true
	}
	st, err := db.cfg.FS.Stat(db.cfg.FS.PathJoin(dir, c.File))
	return err == nil && st.Size() == c.Size
}

// Add takes the i-th chunk of an incoming snapshot and verifies it. A crash may take the last few of them; after the last one
// all are on disk. A chunk that is there already is nothing, and so is the one behind the last, which has no bytes. ErrNotFound: begin with Receive. ErrInvalid: the
// chunk is damaged, not the next, or not the snapshot's. ErrUnavailable: the disk is nearly full.
func (db *DB) Add(meta dunlin.SnapshotMeta, i int, data []byte, last bool) error {
	if err := db.checkMeta(&meta); err != nil {
		return fmt.Errorf("add: %w", err)
	}
	s := &db.snaps
	s.Lock()
	in := s.incoming[meta.Shard]
	if in != nil {
		in.touched = db.cfg.Clock()
	}
	s.Unlock()
	err := fmt.Errorf("%w: it was not begun", dunlin.ErrNotFound)
	if in != nil {
		in.mu.Lock()
		defer in.mu.Unlock()
		if in.mu.open && sameMeta(&in.mu.meta, &meta) {
			err = db.add(in, i, data, last)
		}
	}
	if err != nil {
		return fmt.Errorf("chunk %d of snapshot %s of shard %d: %w", i, meta.ID, meta.Shard, err)
	}
	return nil
}

// upTo returns the bound behind the rows that are there. The caller holds in.mu.
func (in *incoming) upTo() []byte {
	if n := len(in.mu.chunks); n > 0 {
		return in.mu.chunks[n-1].UpTo
	}
	return shardSpan(in.mu.meta.Shard).Start
}

// complete reports whether all chunks are there. The caller holds in.mu.
func (in *incoming) complete() bool {
	return bytes.Equal(in.upTo(), shardSpan(in.mu.meta.Shard).End)
}

// add does the work of Add. The caller holds in.mu.
func (db *DB) add(in *incoming, i int, data []byte, last bool) error {
	have := len(in.mu.chunks)
	switch {
	case i >= 0 && i < have || i == have && in.complete() && last && len(data) == 0:
		return nil
	case i != have || in.complete():
		return fmt.Errorf("%w: %d are there", dunlin.ErrInvalid, have)
	}
	c, err := db.snaps.pack.parse(data)
	if err != nil {
		return err
	}
	end := shardSpan(in.mu.meta.Shard).End
	if !bytes.Equal(c.from, in.upTo()) || bytes.Compare(c.to, end) > 0 || last != bytes.Equal(c.to, end) {
		return fmt.Errorf("%w: rows %x to %x after %x", dunlin.ErrInvalid, clip(c.from), clip(c.to), clip(in.upTo()))
	}
	if free, err := db.cfg.FS.GetDiskUsage(db.cfg.Dir); err == nil && free.AvailBytes < diskReserve+4*uint64(len(data)) {
		return fmt.Errorf("%w: %d bytes free on the disk", dunlin.ErrUnavailable, free.AvailBytes)
	}
	dir := db.incomingDir(in.mu.meta.Shard)
	done := incomingChunk{UpTo: bytes.Clone(c.to)}
	if c.kind == chunkPart {
		err = db.addPart(in, dir, c, data, &done)
	} else {
		err = db.addRows(in, dir, c.rows, &done)
	}
	if err != nil {
		return err
	}
	line, err := indexLine(&done)
	if err != nil {
		return err
	}
	_, err = in.mu.index.Write(line)
	if err == nil && (last || (have+1)%chunksPerSync == 0) {
		err = cmp.Or(in.mu.index.Sync(), syncFolder(db.cfg.FS, dir))
	}
	if err != nil { // what is in the list now is not known: read it again
		return errors.Join(err, db.closeIncoming(in))
	}
	in.mu.chunks = append(in.mu.chunks, done)
	db.metrics.received(len(data))
	return nil
}

// addRows verifies rows and makes a table of them.
func (db *DB) addRows(in *incoming, dir string, rows []snapRow, done *incomingChunk) error {
	meta := &in.mu.meta
	own := appendHead(nil, meta.Shard, tabApplied)
	if len(in.mu.chunks) == 0 && (len(rows) == 0 || !bytes.Equal(rows[0].key, own)) {
		return fmt.Errorf("%w: it does not begin with the applied index", dunlin.ErrInvalid)
	}
	for i := range rows {
		if err := checkRow(meta, rows[i].key, rows[i].value); err != nil {
			return err
		}
	}
	if len(rows) == 0 {
		return nil
	}
	done.File = fmt.Sprintf("%06d.sst", len(in.mu.chunks))
	path := db.cfg.FS.PathJoin(dir, done.File)
	f, err := db.cfg.FS.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	f = vfs.NewSyncingFile(f, vfs.SyncingFileOptions{BytesPerSync: tableSync})
	w := sstable.NewWriter(objstorageprovider.NewFileWritable(f), db.tables)
	for i := range rows {
		if err = w.Set(rows[i].key, rows[i].value); err != nil {
			break
		}
	}
	if err = cmp.Or(w.Close(), err); err != nil { // closing it synced it
		return errors.Join(err, ignoreMissing(db.cfg.FS.Remove(path)))
	}
	return db.finishFile(dir, done)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// finishFile notes the size of a chunk's file.
func (db *DB) finishFile(dir string, done *incomingChunk) error {
	st, err := db.cfg.FS.Stat(db.cfg.FS.PathJoin(dir, done.File))
	if err != nil {
		return err
	}
	done.Size = st.Size()
	return nil
}

// addPart keeps a piece of a large row, or makes a table of the row if it is the last one.
func (db *DB) addPart(in *incoming, dir string, c *chunk, data []byte, done *incomingChunk) error {
	var before []byte // the pieces so far
	first := len(in.mu.chunks)
	for first > 0 && in.mu.chunks[first-1].Part {
		first--
	}
	for i := first; i < len(in.mu.chunks); i++ {
		old, err := db.readPart(dir, &in.mu.chunks[i])
		if err != nil {
			return err
		}
		if !bytes.Equal(old.key, c.key) || old.total != c.total || old.offset != uint64(len(before)) {
			return fmt.Errorf("%w: pieces of two large rows", dunlin.ErrInvalid)
		}
		before = append(before, old.piece...)
	}
	if c.offset != uint64(len(before)) || len(in.mu.chunks) == 0 {
		return fmt.Errorf("%w: piece of a large row from byte %d, %d are there", dunlin.ErrInvalid, c.offset, len(before))
	}
	if whole := append(before, c.piece...); uint64(len(whole)) == c.total {
		return db.addRows(in, dir, []snapRow{{c.key, whole}}, done)
	}
	done.Part = true
	done.File = fmt.Sprintf("%06d.part", len(in.mu.chunks))
	f, err := db.cfg.FS.Create(db.cfg.FS.PathJoin(dir, done.File), vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	if _, err = f.Write(data); err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	return db.finishFile(dir, done)
}

func (db *DB) readPart(dir string, c *incomingChunk) (*chunk, error) {
	f, err := db.cfg.FS.Open(db.cfg.FS.PathJoin(dir, c.File))
	if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(io.LimitReader(f, c.Size))
	if err = errors.Join(err, f.Close()); err != nil {
		return nil, err
	}
	return db.snaps.pack.parse(b)
}

// Drop throws an incoming snapshot away. None is nothing.
func (db *DB) Drop(sh dunlin.ShardID) error {
	if err := db.state.check(sh); err != nil {
		return err
	}
	in, err := db.incomingOf(sh)
	if err != nil { // too many are on their way, and this is none of them
		return db.removeIncoming(sh)
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.mu.gone { // somebody else ended it; what lies in the folder now is another one's
		return nil
	}
	return db.endIncoming(in, sh)
}

// endIncoming forgets an incoming snapshot and removes its files. The caller holds in.mu.
func (db *DB) endIncoming(in *incoming, sh dunlin.ShardID) error {
	in.mu.gone = true
	err := errors.Join(db.closeIncoming(in), db.removeIncoming(sh))
	db.snaps.Lock()
	defer db.snaps.Unlock()
	if db.snaps.incoming[sh] == in {
		delete(db.snaps.incoming, sh)
	}
	return err
}

func (db *DB) removeIncoming(sh dunlin.ShardID) error {
	if err := db.cfg.FS.RemoveAll(db.incomingDir(sh)); err != nil {
		return fmt.Errorf("store: drop incoming snapshot of shard %d: %w", sh, err)
	}
	return nil
}
