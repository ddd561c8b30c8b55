package simnet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/device"
	"github.com/dunlin-iot/dunlin/cluster/replica"
	"github.com/dunlin-iot/dunlin/store"
)

const (
	tickEvery   = 50 * time.Millisecond
	maintainPer = 300 * time.Millisecond
	reportEvery = 200 * time.Millisecond
)

// node is one life of a node: a data folder and what runs on it. A wiped node is another node under the same name.
type node struct {
	w    *world
	id   dunlin.NodeID
	name string
	zone string

	disk  *vfs.MemFS
	power *power
	skew  time.Duration // of its clock
	drift int           // of its ticks, in percent
	gives bool          // it gives birth to all shards if the log is new

	up   bool
	over bool // it has left, or was wiped: it does not come back
	run  int  // counts starts: what an earlier one left under way is nothing to a later one
	db   *store.DB
	m    *replica.Machine

	slow    time.Duration // what an fsync takes
	failing bool          // the disk takes nothing
	writing bool
	write   *replica.Write
	apply   *replica.Apply
	poked   bool
	recheck bool // placement may have changed

	owners []*owner // by shard; nil: not owned
	heard  map[dunlin.NodeID]dunlin.Time
	ctl    *controller

	leaving map[dunlin.ShardID]bool              // replicas being destroyed
	stale   map[dunlin.DeviceKey]*device.Machine // for a planted bug
}

func (n *node) String() string {
	if n.w.nextID > 1 && n.w.latest(n.name) != n {
		return fmt.Sprintf("%s/%d", n.name, n.id)
	}
	return n.name
}

// latest is the newest life of a name.
func (w *world) latest(name string) (last *node) {
	for _, n := range w.nodes {
		if n.name == name {
			last = n
		}
	}
	return last
}

// born makes a node with an empty folder and starts it.
func (w *world) born(name string, gives bool) *node {
	n := &node{w: w, id: w.nextID, name: name, zone: string(rune('a' + w.rng.IntN(w.zones))), disk: vfs.NewCrashableMem(), gives: gives,
		skew: w.between(-3*time.Second, 3*time.Second), drift: w.rng.IntN(11) - 5}
	w.nextID++
	w.nodes = append(w.nodes, n)
	n.start()
	return n
}

// wall is the node's idea of the time.
func (n *node) wall() dunlin.Time { return n.w.now.Add(n.skew) }

// mono is a clock of the node that only counts.
func (n *node) mono() dunlin.Time {
	d := n.w.now - epoch
	return epoch + d + d*dunlin.Time(n.drift)/100
}

// start opens the folder and sets everything going.
func (n *node) start() {
	w := n.w
	n.run++
	n.power = &power{fs: n.disk}
	n.slow, n.failing, n.writing, n.write, n.apply, n.poked, n.recheck = 300*time.Microsecond, false, false, nil, nil, false, true
	n.owners, n.heard, n.ctl = make([]*owner, w.shards), map[dunlin.NodeID]dunlin.Time{}, nil
	n.leaving, n.stale = map[dunlin.ShardID]bool{}, map[dunlin.DeviceKey]*device.Machine{}
	if err := n.open(); err != nil {
		w.fail("%s does not start: %w", n, err)
		return
	}
	n.up = true
	w.say("%s (%s) is up", n, n.id)
	if err := n.m.Ensure(dunlin.MetaShard); err != nil {
		w.fail("%s: ensure the meta shard: %w", n, err)
	}
	n.every(tickEvery+tickEvery*time.Duration(n.drift)/100, func() {
		n.m.Tick(n.mono())
		n.poke()
	})
	n.every(maintainPer, n.maintain)
	n.every(reportEvery, n.report)
	n.every(100*time.Millisecond, n.timers)
	n.poke()
}

func (n *node) open() (err error) {
	w := n.w
	n.db, err = store.Open(store.Config{
		Dir: "data", FS: errorfs.Wrap(n.disk, n.power), Identity: store.Identity{Cluster: "sim", Node: n.name, NodeID: n.id, Shards: w.shards},
		CacheBytes: 1 << 20, LogMemTableBytes: 4 << 20, StateMemTableBytes: 4 << 20,
		LogBytes: 2 << 10, SegmentBytes: 1 << 10, TailBytes: 4 << 10,
		Clock: n.wall, Planted: store.Planted{NoInstallMarker: w.planted == noMarker},
		OnApplied: func(sh dunlin.ShardID, _ uint64, e *dunlin.Entry) {
			n.recheck = n.recheck || sh == dunlin.MetaShard && len(e.Puts) > 0
		},
		OnInstalled: func(sh dunlin.ShardID) { n.recheck = n.recheck || sh == dunlin.MetaShard },
		Fatal:       func(err error) { panic(fmt.Sprintf("the store of %s: %v", n, err)) },
	})
	if err != nil {
		return err
	}
	cfg := replica.Config{
		Node: uint64(n.id), Shards: w.shards, Bootstrap: n.gives, Voters: []uint64{uint64(n.id)},
		Log: simLog{n.db.Log(), n}, StateMachine: simState{n.db.State(), n}, Snapshots: simSnaps{n.db, n}, Transport: nowhere{},
		Fetch:   func(context.Context, dunlin.SnapshotMeta, int) ([]byte, bool, error) { return nil, false, errCrashed },
		OnOwner: n.onOwner, Seed: w.seed<<16 + uint64(n.id)<<8 + uint64(n.run), TickEvery: tickEvery, Clock: n.mono,
		TailBytes: 256, LagBytesMax: 2 << 10, RecentBytesMax: 2 << 10, SnapshotTicks: 40, LagTicks: 100,
	}
	if n.gives && !w.alone {
		cfg.Voters = nil
		for i := range w.first {
			cfg.Voters = append(cfg.Voters, uint64(i+1))
		}
	}
	if n.m, err = replica.OpenMachine(cfg); err != nil {
		return errors.Join(err, n.db.Close())
	}
	return nil
}

type nowhere struct{}

func (nowhere) Send([]replica.Message) {}

// every calls f from time to time until this start of the node is over.
func (n *node) every(d time.Duration, f func()) {
	run := n.run
	var again func()
	again = func() {
		if n.up && n.run == run {
			f()
			n.w.after(d, again)
		}
	}
	n.w.after(time.Duration(n.w.rng.Int64N(int64(d)))+1, again)
}

// later calls f after d, if this start of the node is not over.
func (n *node) later(d time.Duration, f func()) {
	run := n.run
	n.w.after(d, func() {
		if n.up && n.run == run {
			f()
		}
	})
}

// crash takes the power away: what was not synced is gone, and so is all in memory.
func (n *node) crash(why string) {
	w := n.w
	if !n.up {
		return
	}
	if n.writing && n.write != nil && w.rng.IntN(2) == 0 && n.power.alive() == nil { // on disk already, and nobody was told
		if err := n.write.Do(); err != nil && !errors.Is(err, errDisk) && !errors.Is(err, errCrashed) {
			w.fail("%s: write: %w", n, err)
		}
	}
	w.stats.crashes++
	w.say("%s crashes: %s", n, why)
	left := n.power.off()
	n.stop()
	n.disk = left
	if w.planted == amnesiac && w.rng.IntN(2) == 0 {
		n.disk = vfs.NewCrashableMem()
	}
}

// stop ends what runs, without ado.
func (n *node) stop() {
	n.up = false
	n.m, n.owners, n.ctl, n.write, n.apply, n.writing = nil, nil, nil, nil, nil, false
	if err := n.db.Close(); err != nil {
		n.w.fail("%s: close: %w", n, err)
	}
	n.db = nil
}

// poke lets the Machine have a turn soon.
func (n *node) poke() {
	if !n.poked && n.up {
		n.poked = true
		n.later(0, n.pump)
	}
}

// pump lets the Machine work until there is nothing to do but wait.
func (n *node) pump() {
	n.poked = false
	for range 64 {
		more, err := n.m.Turn(n.mono())
		if err != nil {
			n.broken(err)
			return
		}
		n.takeSends()
		n.takeWrite()
		n.takeApply()
		n.takeSnapshots()
		if !more {
			break
		}
	}
	if n.recheck {
		n.recheck = false
		n.later(time.Millisecond, n.place)
	}
}

// broken ends the node by an error of its store; one that nobody planted is a fault of ours.
func (n *node) broken(err error) {
	if !errors.Is(err, errDisk) && !errors.Is(err, errCrashed) {
		n.w.fail("%s: %w", n, err)
		return
	}
	n.crash(err.Error())
	n.back()
}

// back starts the node again after a while.
func (n *node) back() {
	n.w.after(n.w.between(100*time.Millisecond, 3*time.Second), func() {
		if !n.up && !n.over {
			n.start()
		}
	})
}

func (n *node) takeSends() {
	w := n.w
	for _, msg := range n.m.TakeSends() {
		w.mark(uint64(n.id), msg.To, uint64(msg.Shard), uint64(len(msg.Data)))
		to, from := w.node(dunlin.NodeID(msg.To)), n.id
		w.send(n.id, dunlin.NodeID(msg.To), func() {
			if to == nil || !to.up {
				return
			}
			if err := to.m.Deliver(msg.Shard, msg.Data); err != nil {
				w.fail("%s: message from %s: %w", to, from, err)
			}
			to.poke()
		})
	}
}

// takeWrite writes to the log; the disk takes its time.
func (n *node) takeWrite() {
	if n.writing {
		return
	}
	wr := n.m.TakeWrite()
	if wr == nil {
		return
	}
	n.writing, n.write = true, wr
	n.later(n.w.between(n.slow/2, n.slow), func() {
		n.write = nil
		if err := wr.Do(); err != nil {
			n.broken(err)
			return
		}
		n.writing = false
		if err := n.m.Written(wr); err != nil {
			n.broken(err)
			return
		}
		n.poke()
	})
}

func (n *node) takeApply() {
	if n.apply != nil {
		return
	}
	if n.apply = n.m.TakeApply(); n.apply == nil {
		return
	}
	n.later(n.w.between(0, 400*time.Microsecond), func() {
		a := n.apply
		n.apply = nil
		if err := a.Do(); err != nil {
			n.broken(err)
			return
		}
		if err := n.m.Applied(a); err != nil {
			n.broken(err)
			return
		}
		n.poke()
	})
}

// maintain is what a node does from time to time: it makes what was applied durable, and cuts the log.
func (n *node) maintain() {
	if n.w.planted != eagerCut || n.w.rng.IntN(8) == 0 {
		if err := n.db.Maintain(context.Background()); err != nil {
			n.w.fail("%s: maintain: %w", n, err)
			return
		}
	}
	for i := range n.w.shards {
		sh := dunlin.ShardID(i)
		if !n.m.Status(sh).Present {
			continue
		}
		upTo, err := n.m.Compact(sh, simState{n.db.State(), n}.Durable(sh))
		if err == nil && upTo > 0 {
			err = n.db.Log().Truncate(sh, upTo)
		}
		if err != nil {
			n.w.fail("%s: truncate the log of shard %d: %w", n, sh, err)
		}
	}
}

// takeSnapshots makes and receives snapshots.
func (n *node) takeSnapshots() {
	for _, sh := range n.m.TakeExports() {
		n.later(n.w.between(time.Millisecond, 20*time.Millisecond), func() {
			meta, err := n.db.Export(sh)
			n.w.say("%s exports shard %d at %d: %v", n, sh, meta.Index, err)
			if err := n.m.Exported(sh, meta, err); err != nil {
				n.w.say("%s: export of shard %d: %v", n, sh, err)
			}
			n.poke()
		})
	}
	for _, meta := range n.m.TakeFetches() {
		n.fetch(meta, 0)
	}
}

// once is a context that is over: Pull tries once and does not wait.
var once = func() context.Context {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	return ctx
}()

// fetch pulls a snapshot, one chunk at a time; a chunk may be lost, and is asked for again.
func (n *node) fetch(meta dunlin.SnapshotMeta, tries int) {
	w := n.w
	n.later(w.between(2*time.Millisecond, 30*time.Millisecond), func() {
		from := w.node(meta.From)
		lost := w.net.blocked[link{n.id, meta.From}] || w.net.blocked[link{meta.From, n.id}] || w.chance(w.net.loss)
		came := 0
		err := replica.Pull(once, simSnaps{n.db, n}, func(_ context.Context, m dunlin.SnapshotMeta, i int) ([]byte, bool, error) {
			if lost || from == nil || !from.up || came == 1 {
				return nil, false, dunlin.ErrUnavailable
			}
			came++
			return from.db.Chunk(m.ID, i)
		}, meta, func() { n.m.Fetching(meta) })
		switch {
		case err != nil && came == 1 && errors.Is(err, dunlin.ErrUnavailable):
			n.fetch(meta, 0)
		case errors.Is(err, dunlin.ErrUnavailable) && tries < 5:
			n.fetch(meta, tries+1)
		default:
			w.say("%s has fetched the snapshot of shard %d at %d: %v", n, meta.Shard, meta.Index, err)
			n.m.Fetched(meta, err)
			n.poke()
		}
	})
}
