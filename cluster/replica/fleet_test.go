package replica

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"

	"github.com/dunlin-iot/dunlin"
)

// disk is what one node keeps: a log, a state, and the snapshots between them. It knows what a crash would leave.
type disk struct {
	id    uint64
	log   *memLog
	state *memState

	mu       sync.Mutex
	tombs    map[dunlin.ShardID][]byte
	incoming map[dunlin.ShardID]*memIncoming
	exports  map[string]*memExport // gone with the process
	serial   int
	installs int
	added    int // chunks
}

type memExport struct {
	meta   dunlin.SnapshotMeta
	chunks [][]byte
}

type memIncoming struct {
	meta   dunlin.SnapshotMeta
	chunks [][]byte
	whole  bool
}

const chunkEffects = 8 // of a snapshot in one chunk

func newDisk(id uint64, shards int) *disk {
	return &disk{id: id, log: newMemLog(shards), state: newMemState(shards), tombs: map[dunlin.ShardID][]byte{},
		incoming: map[dunlin.ShardID]*memIncoming{}, exports: map[string]*memExport{}}
}

// crash leaves what was synced, and of the batches that were not the first keep.
func (d *disk) crash(keep int) *disk {
	d.mu.Lock()
	defer d.mu.Unlock()
	return &disk{id: d.id, log: d.log.crash(keep), state: d.state.crash(), tombs: d.tombs, incoming: d.incoming,
		exports: map[string]*memExport{}, serial: d.serial, installs: d.installs, added: d.added}
}

func (d *disk) Export(sh dunlin.ShardID) (dunlin.SnapshotMeta, error) {
	d.state.mu.Lock()
	e := d.state.shards[sh]
	d.state.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	d.serial++
	x := &memExport{meta: dunlin.SnapshotMeta{Shard: sh, ID: fmt.Sprintf("%d-%d", d.id, d.serial), Index: e.applied, Conf: e.conf}}
	for c := range slices.Chunk(e.list, chunkEffects) {
		var list []json.RawMessage
		for _, f := range c {
			b, err := json.Marshal([]any{f.index, f.data})
			if err != nil {
				return x.meta, err
			}
			list = append(list, b)
		}
		b, err := json.Marshal(list)
		if err != nil {
			return x.meta, err
		}
		x.chunks = append(x.chunks, b)
	}
	if len(x.chunks) == 0 {
		x.chunks = [][]byte{[]byte("[]")}
	}
	for id, old := range d.exports {
		if old.meta.Shard == sh {
			delete(d.exports, id)
		}
	}
	d.exports[x.meta.ID] = x
	return x.meta, nil
}

func (d *disk) Release(id string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.exports, id)
}

// chunk is what another node is answered.
func (d *disk) chunk(id string, i int) ([]byte, bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	x := d.exports[id]
	switch {
	case x == nil:
		return nil, false, fmt.Errorf("%w: snapshot %s", dunlin.ErrNotFound, id)
	case i >= len(x.chunks):
		return nil, true, nil
	}
	return x.chunks[i], i == len(x.chunks)-1, nil
}

func (d *disk) Receive(meta dunlin.SnapshotMeta) (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	in := d.incoming[meta.Shard]
	if in == nil || in.meta.ID != meta.ID {
		in = &memIncoming{meta: meta}
		d.incoming[meta.Shard] = in
	}
	return len(in.chunks), nil
}

func (d *disk) Add(meta dunlin.SnapshotMeta, i int, chunk []byte, last bool) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	in := d.incoming[meta.Shard]
	if in == nil || in.meta.ID != meta.ID || i > len(in.chunks) {
		return fmt.Errorf("%w: chunk %d of %s", dunlin.ErrInvalid, i, meta.ID)
	}
	if i == len(in.chunks) {
		in.chunks = append(in.chunks, chunk)
		d.added++
	}
	in.whole = in.whole || last
	return nil
}

func (d *disk) Install(meta dunlin.SnapshotMeta, hard []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	in := d.incoming[meta.Shard]
	if in == nil || in.meta.ID != meta.ID || !in.whole {
		return fmt.Errorf("%w: install %s", dunlin.ErrInvalid, meta.ID)
	}
	e := memEffects{applied: meta.Index, conf: meta.Conf}
	for _, c := range in.chunks {
		var list [][2]any
		if err := json.Unmarshal(c, &list); err != nil {
			return err
		}
		for _, f := range list {
			e.list = append(e.list, effect{uint64(f[0].(float64)), f[1].(string)})
		}
	}
	d.state.mu.Lock()
	d.state.shards[meta.Shard], d.state.flushed[meta.Shard] = e, e
	d.state.mu.Unlock()
	d.log.reset(meta.Shard, memShard{hard: hard, first: meta.Index + 1, prev: meta.Term})
	delete(d.incoming, meta.Shard)
	d.installs++
	return nil
}

func (d *disk) Drop(sh dunlin.ShardID) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.incoming, sh)
	return nil
}

func (d *disk) Destroy(sh dunlin.ShardID, tomb []byte) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.state.mu.Lock()
	d.state.shards[sh], d.state.flushed[sh] = memEffects{}, memEffects{}
	d.state.mu.Unlock()
	d.log.reset(sh, memShard{first: 1})
	delete(d.incoming, sh)
	d.tombs[sh] = tomb
	return nil
}

func (d *disk) Tombstone(sh dunlin.ShardID) ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.tombs[sh], nil
}

// reset replaces all of a shard's log at once, on disk.
func (l *memLog) reset(sh dunlin.ShardID, s memShard) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sync(len(l.pending))
	l.shards[sh], l.stable[sh] = s, s
}

// lateLog leaves the fsync to who drives the machine.
type lateLog struct{ *memLog }

func (l lateLog) Append(rows []dunlin.LogRow, _ bool) error { return l.memLog.Append(rows, false) }

// fleetNode is a Machine with its disk, and what is under way.
type fleetNode struct {
	id   uint64
	disk *disk
	m    *Machine // nil: down
	now  dunlin.Time

	write   *Write
	done    bool // the write was done, and is not synced yet
	apply   *Apply
	stalled bool // its disk writes nothing
	fetches []dunlin.SnapshotMeta

	owns map[dunlin.ShardID]uint64
	out  []string
}

func (n *fleetNode) say(format string, v ...any) { n.out = append(n.out, fmt.Sprintf(format, v...)) }

// fleet is a cluster of machines in one goroutine.
type fleet struct {
	shards  int
	voters  []uint64
	nodes   []*fleetNode
	wires   []fleetWire
	cut     map[[2]uint64]bool // from, to
	seed    uint64
	lives   uint64
	tune    func(*Config)
	watch   func() // called whenever messages are about to be delivered
	onOwner func(n *fleetNode, sh dunlin.ShardID, term uint64, owner bool)
}

type fleetWire struct {
	from uint64
	Message
}

func newFleet(seed uint64, nodes, shards int, voters []uint64) *fleet {
	f := &fleet{shards: shards, voters: voters, cut: map[[2]uint64]bool{}, seed: seed}
	for i := range nodes {
		n := &fleetNode{id: uint64(i + 1), disk: newDisk(uint64(i+1), shards), owns: map[dunlin.ShardID]uint64{}}
		f.nodes = append(f.nodes, n)
	}
	return f
}

func (f *fleet) open(n *fleetNode) error {
	f.lives++
	cfg := Config{Node: n.id, Shards: f.shards, Seed: f.seed<<20 + f.lives, MaxEntryBytesPerRead: 4096, InflightBytesMax: 8192, Transport: noTransport{},
		Log: lateLog{n.disk.log}, StateMachine: n.disk.state, Snapshots: n.disk, TailBytes: 1, LagBytesMax: 4096,
		Fetch: func(context.Context, dunlin.SnapshotMeta, int) ([]byte, bool, error) {
			panic("the fleet fetches itself")
		},
		Logger: slog.New(slog.DiscardHandler),
		OnOwner: func(sh dunlin.ShardID, term uint64, owner bool) {
			delete(n.owns, sh)
			if owner {
				n.owns[sh] = term
			}
			if f.onOwner != nil {
				f.onOwner(n, sh, term, owner)
			}
		},
	}
	if slices.Contains(f.voters, n.id) {
		cfg.Voters, cfg.Bootstrap = f.voters, true
	}
	if f.tune != nil {
		f.tune(&cfg)
	}
	m, err := OpenMachine(cfg)
	n.disk.log.mu.Lock()
	n.disk.log.sync(len(n.disk.log.pending)) // births are synced before anything else happens
	n.disk.log.mu.Unlock()
	n.m, n.write, n.apply, n.done, n.fetches = m, nil, nil, false, nil
	clear(n.owns)
	return err
}

// fetch asks another node for a chunk.
func (f *fleet) fetch(n *fleetNode) Fetcher {
	return func(_ context.Context, meta dunlin.SnapshotMeta, i int) ([]byte, bool, error) {
		from := f.node(uint64(meta.From))
		if from.m == nil || f.cut[[2]uint64{n.id, from.id}] || f.cut[[2]uint64{from.id, n.id}] {
			return nil, false, fmt.Errorf("%w: node %d", dunlin.ErrNotFound, from.id) // the fleet has no time for retries
		}
		return from.disk.chunk(meta.ID, i)
	}
}

func (f *fleet) node(id uint64) *fleetNode { return f.nodes[id-1] }

func (f *fleet) crash(n *fleetNode, keep int) {
	n.disk = n.disk.crash(keep)
	n.m = nil
	clear(n.owns)
}

// collect takes what a machine wants sent.
func (f *fleet) collect(n *fleetNode) {
	for _, m := range n.m.TakeSends() {
		f.wires = append(f.wires, fleetWire{n.id, m})
	}
}

func (f *fleet) deliver(w fleetWire) {
	if n := f.node(w.To); n.m != nil && !f.cut[[2]uint64{w.from, w.To}] {
		if err := n.m.Deliver(w.Shard, w.Data); err != nil {
			panic(err)
		}
	}
}

// beginWrite takes a batch, doWrite brings it to the disk's cache, endWrite to the disk.
func (n *fleetNode) beginWrite() {
	if n.write == nil {
		n.write, n.done = n.m.TakeWrite(), false
	}
}

func (n *fleetNode) doWrite() error {
	if n.write == nil || n.done {
		return nil
	}
	n.done = true
	return n.write.Do()
}

func (n *fleetNode) endWrite() error {
	w := n.write
	if w == nil || !n.done {
		return nil
	}
	n.disk.log.mu.Lock()
	n.disk.log.sync(len(n.disk.log.pending))
	n.disk.log.mu.Unlock()
	n.write = nil
	return n.m.Written(w)
}

func (n *fleetNode) beginApply() error {
	if n.apply != nil {
		return nil
	}
	if n.apply = n.m.TakeApply(); n.apply == nil {
		return nil
	}
	return n.apply.Do()
}

func (n *fleetNode) endApply() error {
	a := n.apply
	if a == nil {
		return nil
	}
	n.apply = nil
	return n.m.Applied(a)
}

// files does what the machine has ordered with snapshots; fetches only if asked to.
func (f *fleet) files(n *fleetNode, fetch bool) error {
	for _, sh := range n.m.TakeExports() {
		meta, err := n.disk.Export(sh)
		if err := n.m.Exported(sh, meta, err); err != nil {
			n.say("%v", err)
		}
	}
	n.fetches = append(n.fetches, n.m.TakeFetches()...)
	if !fetch {
		return nil
	}
	for _, meta := range n.fetches {
		err := Pull(context.Background(), n.disk, f.fetch(n), meta, func() { n.m.Fetching(meta) })
		n.m.Fetched(meta, err)
	}
	n.fetches = nil
	return nil
}

// settle lets all nodes do all they have to do, but for time.
func (f *fleet) settle() error {
	for {
		busy := false
		for _, n := range f.nodes {
			if n.m == nil {
				continue
			}
			for range 4 {
				more, err := n.m.Turn(n.now)
				if err != nil {
					return fmt.Errorf("node %d: %w", n.id, err)
				}
				n.beginWrite()
				if !n.stalled {
					busy = busy || n.write != nil
					if err := errors.Join(n.doWrite(), n.endWrite()); err != nil {
						return fmt.Errorf("node %d: %w", n.id, err)
					}
				}
				if err := n.beginApply(); err != nil {
					return fmt.Errorf("node %d: %w", n.id, err)
				}
				busy = busy || more || n.apply != nil
				if err := n.endApply(); err != nil {
					return fmt.Errorf("node %d: %w", n.id, err)
				}
			}
			if err := f.files(n, true); err != nil {
				return err
			}
			f.collect(n)
		}
		if len(f.wires) == 0 && !busy {
			return nil
		}
		if f.watch != nil {
			f.watch()
		}
		wires := f.wires
		f.wires = nil
		for _, w := range wires {
			f.deliver(w)
		}
	}
}

const tickMicros = 30_000

// run lets so many ticks pass.
func (f *fleet) run(ticks int) error {
	for range ticks {
		for _, n := range f.nodes {
			if n.now += tickMicros; n.m != nil {
				n.m.Tick(n.now)
			}
		}
		if err := f.settle(); err != nil {
			return err
		}
	}
	return nil
}

// story is a fleet driven by a script.
type story struct {
	*fleet
}

// answer says what became of something that was asked for.
func (n *fleetNode) answer(what string) func(error) {
	return func(err error) {
		switch {
		case err == nil:
			n.say("%s: done", what)
		case errors.Is(err, dunlin.ErrNotOwner):
			n.say("%s: not the owner", what)
		default:
			n.say("%s: %v", what, err)
		}
	}
}

func (s *story) said() string {
	var out strings.Builder
	for _, n := range s.nodes {
		for _, l := range n.out {
			fmt.Fprintf(&out, "%d: %s\n", n.id, l)
		}
		n.out = nil
	}
	return out.String()
}

func confText(c Conf) string {
	ids := func(v []dunlin.NodeID) string {
		s := make([]string, len(v))
		for i, id := range v {
			s[i] = fmt.Sprint(uint64(id))
		}
		return strings.Join(s, " ")
	}
	t := "(" + ids(c.Voters) + ")"
	if len(c.Outgoing) > 0 {
		t += "&&(" + ids(c.Outgoing) + ")"
	}
	if len(c.Learners) > 0 {
		t += " learners (" + ids(c.Learners) + ")"
	}
	return t
}

func (s *story) status() string {
	var out strings.Builder
	for _, n := range s.nodes {
		fmt.Fprintf(&out, "%d: ", n.id)
		if n.m == nil {
			out.WriteString("down\n")
			continue
		}
		st := n.m.Status(0)
		switch {
		case !st.Present:
			out.WriteString("no replica\n")
			continue
		case !st.Initialised:
			out.WriteString("empty ")
		case st.Leader:
			out.WriteString("leads ")
		case st.Lead != 0:
			fmt.Fprintf(&out, "follows %d ", uint64(st.Lead))
		default:
			out.WriteString("waits ")
		}
		fmt.Fprintf(&out, "term %d, applied %d, log %d to %d, %s", st.Term, st.Applied, st.First, st.Last, confText(st.Conf))
		if st.Muted {
			out.WriteString(", muted")
		}
		out.WriteString("\n")
		for _, p := range st.Progress {
			fmt.Fprintf(&out, "   %d: %s, has %d\n", uint64(p.Node), p.State, p.Match)
		}
	}
	return out.String()
}
