package replica

import (
	"sync/atomic"

	"github.com/dunlin-iot/dunlin"
)

// Machine is the host without goroutines and without time: for simulations. Its caller feeds it (Propose, Deliver, Tick, …),
// calls Turn, and then takes what it wants done and does it when it likes: TakeSends, TakeWrite → Do → Written, TakeApply → Do →
// Applied, TakeExports → Exported, TakeFetches → Pull → Fetched. A crash is to throw the Machine away, with all that was not
// done, and to open another one. A Host is a shell around the same code.
//
// Writes must be done in the order taken, one at a time, and so must applies; both may be under way at once.
type Machine struct {
	cfg   Config
	core  *core
	owned []atomic.Uint64
	cells []cell

	exports  []dunlin.ShardID
	installs []order
	fetches  []dunlin.SnapshotMeta
	tombs    map[dunlin.ShardID]*tombstone // of replicas that are leaving
	left     map[dunlin.ShardID]bool       // nothing is under way of them any more
	now      dunlin.Time
	closed   bool
}

// A Write is one batch for the log, or a snapshot to be installed.
type Write struct {
	cfg     *Config
	b       *appendBatch
	install *order
}

// Do writes the batch to Config.Log or installs the snapshot with Config.Snapshots. It is what a crash may interrupt.
func (w *Write) Do() error {
	if w.install != nil {
		return w.install.install(w.cfg)
	}
	return w.b.write(w.cfg)
}

// An Apply is one batch for the state machine.
type Apply struct {
	cfg *Config
	b   *applyBatch
}

// Do applies the batch to Config.StateMachine.
func (a *Apply) Do() error { return a.b.apply(a.cfg) }

// OpenMachine loads all groups. Config.Seed decides all that is random in it.
func OpenMachine(cfg Config) (*Machine, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	m := &Machine{cfg: cfg, owned: make([]atomic.Uint64, cfg.Shards), cells: make([]cell, cfg.Shards),
		tombs: map[dunlin.ShardID]*tombstone{}, left: map[dunlin.ShardID]bool{}}
	groups, err := load(&m.cfg)
	if err != nil {
		return nil, err
	}
	for i, g := range groups {
		if g != nil {
			g.cell = &m.cells[i]
		}
	}
	m.core = newCore(&m.cfg, groups)
	return m, nil
}

// Propose is Host.Propose without its bounds; done is called by Turn.
func (m *Machine) Propose(sh dunlin.ShardID, term uint64, data []byte, done func(index uint64, err error)) {
	switch {
	case int(sh) >= m.cfg.Shards || len(data) == 0:
		done(0, dunlin.ErrInvalid)
	case len(data) > m.cfg.EntryBytesMax:
		done(0, dunlin.ErrTooLarge)
	case m.closed:
		done(0, dunlin.ErrUnavailable)
	default:
		m.core.propose(proposal{shard: sh, term: term, data: data, size: len(data), done: done})
	}
}

// Deliver takes a message of another node, as Host.Receive does.
func (m *Machine) Deliver(sh dunlin.ShardID, data []byte) (err error) {
	defer caught(&err)
	in, err := parseInbound(&m.cfg, sh, data)
	if err == nil {
		in.feed(m.core)
	}
	return err
}

// Tick tells that TickEvery has passed.
func (m *Machine) Tick(now dunlin.Time) {
	m.at(now)
	m.core.tick()
}

func (m *Machine) at(now dunlin.Time) {
	m.core.at(now)
	m.now = m.core.now
}

// Turn works off what was fed: afterwards there may be something to take. It calls Config's callbacks, and those given to
// Propose and others. It returns whether there is anything left to be worked off by another Turn.
func (m *Machine) Turn(now dunlin.Time) (more bool, err error) {
	defer caught(&err)
	m.at(now)
	if err := m.core.ready(); err != nil {
		return false, err
	}
	if err := m.obey(); err != nil {
		return false, err
	}
	m.tell()
	return len(m.core.dirty) > 0 && !m.core.full(), nil
}

// obey sorts orders out; those that need nobody's time are carried out.
func (m *Machine) obey() error {
	for _, o := range m.core.takeOrders() {
		switch o.kind {
		case orderExport:
			m.exports = append(m.exports, o.shard)
		case orderFetch:
			m.fetches = append(m.fetches, o.meta)
		case orderInstall:
			m.installs = append(m.installs, o)
		case orderDrop:
			if err := m.cfg.Snapshots.Drop(o.shard); err != nil {
				return err
			}
			m.core.dropped(o.shard)
		case orderRelease:
			release(m.cfg.Snapshots, &o.meta)
		case orderCancel: // the caller's fetch ends as it likes; its result is ignored
		}
	}
	return nil
}

func (m *Machine) tell() {
	events := m.core.takeEvents()
	for i := range events {
		events[i].tell(&m.cfg, m.owned)
	}
	clear(events)
}

// TakeSends returns messages to be carried to other nodes; they may be lost, repeated and reordered.
func (m *Machine) TakeSends() []Message { return m.core.takeSends() }

// TakeWrite returns the next batch for the log, nil if there is none.
func (m *Machine) TakeWrite() *Write {
	if len(m.installs) > 0 {
		w := &Write{cfg: &m.cfg, install: &m.installs[0]}
		m.installs = m.installs[1:]
		return w
	}
	if b := m.core.takeAppend(); b != nil {
		return &Write{cfg: &m.cfg, b: b}
	}
	return nil
}

// Written tells that Write.Do returned without an error, and that what it wrote survives a crash.
func (m *Machine) Written(w *Write) (err error) {
	defer caught(&err)
	if w.install != nil {
		return m.core.installed(&w.install.meta)
	}
	return m.core.written(w.b)
}

// TakeApply returns the next batch for the state, nil if there is none or one is under way.
func (m *Machine) TakeApply() *Apply {
	if b := m.core.takeApply(); b != nil {
		return &Apply{&m.cfg, b}
	}
	return nil
}

// Applied tells that Apply.Do returned without an error.
func (m *Machine) Applied(a *Apply) (err error) {
	defer caught(&err)
	return m.core.applied(a.b)
}

// TakeExports returns the shards whose state somebody needs: call Snapshots.Export, then Exported.
func (m *Machine) TakeExports() []dunlin.ShardID {
	x := m.exports
	m.exports = nil
	return x
}

// Exported tells what Export returned. An error is one that a Host would log: Raft asks again.
func (m *Machine) Exported(sh dunlin.ShardID, meta dunlin.SnapshotMeta, err error) error {
	return m.core.exported(sh, meta, err)
}

// TakeFetches returns snapshots to be received: call Pull, then Fetched. One whose shard is in a later one was given up.
func (m *Machine) TakeFetches() []dunlin.SnapshotMeta {
	f := m.fetches
	m.fetches = nil
	return f
}

// Fetching tells that a chunk has come.
func (m *Machine) Fetching(meta dunlin.SnapshotMeta) { m.core.fetching(&meta) }

// Fetched tells what became of a fetch.
func (m *Machine) Fetched(meta dunlin.SnapshotMeta, err error) { m.core.fetched(&meta, err) }

// Compact is what a Host does every TruncateEvery: it asks up to where rows of the shard may go, given that they are not
// needed up to upTo. Log.Truncate may then be called with the result, if it is not 0.
func (m *Machine) Compact(sh dunlin.ShardID, upTo uint64) (uint64, error) {
	return m.core.compact(sh, upTo)
}

// Ensure is Host.Ensure.
func (m *Machine) Ensure(sh dunlin.ShardID) error {
	switch {
	case int(sh) >= m.cfg.Shards:
		return dunlin.ErrInvalid
	case m.core.groups[sh] != nil:
		return nil
	case m.tombs[sh] != nil:
		return dunlin.ErrConflict
	}
	g, err := empty(&m.cfg, sh)
	if err != nil {
		return err
	}
	g.cell = &m.cells[sh]
	m.core.ensure(g)
	return nil
}

// Destroy is Host.Destroy. It fails with dunlin.ErrUnavailable, and begins, while something of the shard is under way: call it
// again after a Turn.
func (m *Machine) Destroy(sh dunlin.ShardID, removedAt uint64) error {
	if m.tombs[sh] == nil {
		tomb, ok := m.core.detach(sh, removedAt, func(error) { m.left[sh] = true })
		if !ok {
			return nil
		}
		m.tombs[sh] = &tomb
	}
	m.tell()
	if !m.left[sh] {
		return dunlin.ErrUnavailable
	}
	if err := m.cfg.Snapshots.Destroy(sh, appendTomb(nil, *m.tombs[sh])); err != nil {
		return err
	}
	delete(m.tombs, sh)
	delete(m.left, sh)
	return nil
}

// Change is Host.Change.
func (m *Machine) Change(sh dunlin.ShardID, changes []ReplicaChange, done func(error)) {
	m.core.reconfigure(sh, changes, done)
}

// Transfer is Host.Transfer.
func (m *Machine) Transfer(sh dunlin.ShardID, to dunlin.NodeID, done func(error)) {
	m.core.transferTo(sh, uint64(to), done)
}

// ReadIndex is Host.ReadIndex.
func (m *Machine) ReadIndex(sh dunlin.ShardID, done func(error)) { m.core.read(sh, read{done: done}) }

// Abdicate is Host.Abdicate.
func (m *Machine) Abdicate(on bool) { m.core.abdicate(on) }

// Status is Host.Status, as of the last Turn or Tick.
func (m *Machine) Status(sh dunlin.ShardID) Status {
	if int(sh) >= m.cfg.Shards {
		return Status{Shard: sh}
	}
	return m.cells[sh].status(sh, m.now)
}

// Owned is Host.Owned.
func (m *Machine) Owned(sh dunlin.ShardID) (term uint64, ok bool) {
	term = m.owned[sh].Load()
	return term, term != 0
}

// Campaign lets this node's replica of a shard stand for election now, as if its election timeout had passed.
func (m *Machine) Campaign(sh dunlin.ShardID) {
	g := m.core.groups[sh]
	if g == nil {
		return
	}
	if g.look(); g.role.leader {
		return
	}
	m.core.rest(g)
	_ = g.rn.ForgetLeader()
	m.core.stand(g)
}

// Close answers everything that is pending, as the end of Host.Run does: the other replicas are told to take over.
func (m *Machine) Close() {
	m.closed = true
	m.core.farewell()
	m.core.close()
	m.tell()
}
