package simnet

import (
	"errors"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/replica"
	"github.com/dunlin-iot/dunlin/store"
)

// planted is a bug put into a world, to see that the world finds it.
type planted string

const (
	sound      planted = ""
	unsynced   planted = "an acknowledgement before the fsync"
	staleAcks  planted = "an owner that acknowledges what it proposed in a term that it lost"
	staleCells planted = "an owner that keeps its devices' states over a change of term"
	eagerCut   planted = "a log truncated to the index applied in memory"
	noMarker   planted = "a snapshot installed without a marker"
	amnesiac   planted = "a node that comes back from a crash with an empty folder and its old id"
	staleReads planted = "a read without ReadIndex"
)

var bugs = []planted{unsynced, staleAcks, staleCells, eagerCut, noMarker, amnesiac, staleReads}

var (
	errCrashed = errors.New("the machine is off")
	errDisk    = errors.New("the disk failed")
)

// simLog, simState and simSnaps are the store as a node's Machine sees it, with faults in between.
type simLog struct {
	replica.Log
	n *node
}

func (l simLog) Append(rows []dunlin.LogRow, sync bool) error {
	if l.n.failing {
		return errDisk
	}
	err := l.Log.Append(rows, sync && l.n.w.planted != unsynced)
	return errors.Join(err, l.n.power.alive())
}

type simState struct {
	*store.State
	n *node
}

func (s simState) Apply(batch []dunlin.Committed) error {
	for i := range batch {
		s.n.w.truth.record(s.n, &batch[i])
	}
	return errors.Join(s.State.Apply(batch), s.n.power.alive())
}

func (s simState) Durable(sh dunlin.ShardID) uint64 {
	if s.n.w.planted == eagerCut {
		return s.Applied(sh)
	}
	return s.State.Durable(sh)
}

type simSnaps struct {
	*store.DB
	n *node
}

func (s simSnaps) Install(meta dunlin.SnapshotMeta, hard []byte) error {
	w := s.n.w
	if !w.healed && w.chance(20) {
		s.n.power.arm(1+w.rng.IntN(2), "/log/")
	}
	err := s.DB.Install(meta, hard)
	s.n.power.disarm()
	w.stats.snapshots++
	w.say("%s installs the snapshot of shard %d at %d: %v", s.n, meta.Shard, meta.Index, err)
	return errors.Join(err, s.n.power.alive())
}

func (s simSnaps) Destroy(sh dunlin.ShardID, tomb []byte) error {
	w := s.n.w
	if !w.healed && w.chance(20) {
		s.n.power.arm(1+w.rng.IntN(2), "/")
	}
	err := s.DB.Destroy(sh, tomb)
	s.n.power.disarm()
	w.stats.destroyed++
	w.say("%s destroys its replica of shard %d: %v", s.n, sh, err)
	return errors.Join(err, s.n.power.alive())
}

// power is a machine's. Armed, it fails before the given sync of a write-ahead log.
type power struct {
	fs *vfs.MemFS
	mu struct {
		sync.Mutex
		left  int // 0: not armed
		where string
		clone *vfs.MemFS // not nil: it has failed
	}
}

// MaybeError implements errorfs.Injector; it injects nothing but the end.
func (p *power) MaybeError(op errorfs.Op) error {
	switch op.Kind {
	case errorfs.OpFileSync, errorfs.OpFileSyncData, errorfs.OpFileSyncTo:
	default:
		return nil
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.left == 0 || !strings.HasSuffix(op.Path, ".log") || !strings.Contains(op.Path, p.mu.where) {
		return nil
	}
	if p.mu.left--; p.mu.left == 0 {
		p.mu.clone = p.fs.CrashClone(vfs.CrashCloneCfg{})
	}
	return nil
}

func (p *power) String() string { return "power" }

func (p *power) arm(left int, where string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.left, p.mu.where = left, where
}

func (p *power) disarm() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.mu.left = 0
}

func (p *power) alive() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.clone != nil {
		return errCrashed
	}
	return nil
}

// off returns what a crash leaves of the disk.
func (p *power) off() *vfs.MemFS {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.mu.clone == nil {
		p.mu.clone = p.fs.CrashClone(vfs.CrashCloneCfg{})
	}
	return p.mu.clone
}

func (s simSnaps) Drop(sh dunlin.ShardID) error {
	s.n.w.say("%s drops the snapshot of shard %d", s.n, sh)
	return s.DB.Drop(sh)
}

func (s simSnaps) Receive(meta dunlin.SnapshotMeta) (int, error) {
	have, err := s.DB.Receive(meta)
	s.n.w.say("%s receives the snapshot of shard %d at %d, %s: has %d chunks, %v", s.n, meta.Shard, meta.Index, meta.ID, have, err)
	return have, err
}
