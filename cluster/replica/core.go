package replica

import (
	"errors"
	"fmt"
	"math/rand/v2"

	"github.com/dunlin-iot/dunlin"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"
)

// core runs all groups of a node. It has no goroutine, no clock and does no I/O but reading back log rows that memory no
// longer holds. Its caller feeds it, then takes what it wants done:
//
//	propose, step, tick, compact, reconfigure, handOver, read, …   what came in
//	ready                                                          let Raft answer
//	takeSends, takeAppend, takeApply, takeOrders, takeEvents       what is to be done now
//	written(batch), applied(batch), exported, fetched              what was done
//
// Append batches must be written one after the other in the order taken, and given back in that order; the next may begin
// before the last is given back. Apply batches come one at a time. A batch of each kind may be under way at once.
type core struct {
	cfg    *Config
	id     uint64
	groups []*group // by shard; nil: none here
	dirty  []*group // in the order they became so: no group starves

	now        dunlin.Time // when the caller last fed it
	ticks      uint64
	lastTick   dunlin.Time
	nextBeat   uint64 // tick of the next heartbeats; see beat.go
	beats      []beatsTo
	stirred    bool // since the last tick something came in that may need ticks; see nap
	slack      int  // sixteenths of a tick that elections are put off by: see elect.go
	rng        *rand.Rand
	abdicating bool

	sends     []Message
	sendBytes int
	events    []event
	orders    []order

	append       *appendBatch // being gathered
	appendSeq    uint64       // its number
	writtenSeq   uint64       // of the last one given back
	writingSince uint64       // the tick since when the log has been writing the one after it
	appendSpares []*appendBatch
	apply        *applyBatch
	applySpare   *applyBatch // nil: being applied

	holding []*group // that have something held
	leaving []*leave // on their way out
	jobs    []int    // by shard: exports and fetches under way
	readSeq uint64

	prop pb.Message // reused: a leader keeps nothing of a proposal but copies of its entries
	free []*pb.Entry
}

// event is something to tell: the fate of a proposal (done), the answer to another question (reply), who leads (leader), a
// replica set (conf), or a change of owner.
type event struct {
	shard dunlin.ShardID
	term  uint64
	owner bool

	done  func(index uint64, err error)
	index uint64
	err   error
	size  int

	reply  func(error)
	leader bool
	lead   uint64
	conf   *Conf
}

// appendBatch is one write to the log.
type appendBatch struct {
	rows  []dunlin.LogRow
	sync  bool
	bytes int
	parts []appendPart
}

// appendPart is one group's part: what is on disk after the write, and what may be said then.
type appendPart struct {
	g       *group
	entries []*pb.Entry
	after   []*pb.Message
}

// applyBatch is one write to the state machine.
type applyBatch struct {
	entries []dunlin.Committed
	bytes   int
	parts   []applyPart
}

type applyPart struct {
	g       *group
	entries []*pb.Entry
	after   []*pb.Message
}

// turnBytesMax is where a turn stops taking more groups in; the next turn starts with those left over.
const turnBytesMax = 8 << 20

func newCore(cfg *Config, groups []*group) *core {
	c := &core{cfg: cfg, id: cfg.Node, groups: groups, append: &appendBatch{}, appendSeq: 1, apply: &applyBatch{}, applySpare: &applyBatch{},
		rng: rand.New(rand.NewPCG(cfg.Seed, cfg.Node)), jobs: make([]int, len(groups))}
	c.readSeq = c.rng.Uint64() // an answer to a question of an earlier life must not be taken for one to ours
	c.prop.Type, c.prop.From = pb.MsgProp.Enum(), &c.id
	for _, g := range groups {
		if g != nil {
			c.welcome(g)
		}
	}
	return c
}

// welcome takes a group in.
func (c *core) welcome(g *group) {
	if g.cell == nil {
		g.cell = &cell{}
	}
	g.stale = true
	c.rest(g)
	c.campaign(g)
	c.touch(g)
	g.publish()
}

// ensure takes a new group in, and writes down that it is there.
func (c *core) ensure(g *group) {
	if c.groups[g.shard] != nil {
		return
	}
	c.groups[g.shard] = g
	c.keepHard(g, g.hard)
	c.welcome(g)
}

// touch makes ready look at the group, which has most likely something to say.
func (c *core) touch(g *group) {
	g.fed, c.stirred = true, true
	c.mark(g)
}

// mark makes ready look at the group if it has something to say. A Ready with nothing in it costs Raft a dozen
// allocations, asking it costs four.
func (c *core) mark(g *group) {
	if !g.dirty {
		g.dirty = true
		c.dirty = append(c.dirty, g)
	}
}

// propose takes a proposal. Its data is copied by settle.
func (c *core) propose(p proposal) {
	g := c.groups[p.shard]
	if g != nil {
		g.look()
	}
	if g == nil || !g.role.leader || g.role.term != p.term {
		c.events = append(c.events, event{done: p.done, err: dunlin.ErrNotOwner, shard: p.shard, size: p.size})
		return
	}
	var e *pb.Entry
	if n := len(c.free); n > 0 {
		e, c.free = c.free[n-1], c.free[:n-1]
	} else {
		e = &pb.Entry{}
	}
	e.Data = p.data
	g.fresh = append(g.fresh, e)
	g.fates = append(g.fates, fate{term: p.term, size: p.size, done: p.done})
	c.touch(g)
}

// settle hands a group's fresh proposals to Raft, all in one message. It must run before anything else is fed to the
// group, so that they enter the log in the term that propose compared.
func (c *core) settle(g *group) {
	if len(g.fresh) == 0 {
		return
	}
	c.prop.Entries = g.fresh
	err := g.rn.Step(&c.prop)
	c.prop.Entries = nil
	if err != nil { // the leader is handing over: Raft takes nothing more
		n := len(g.fates) - len(g.fresh)
		for _, f := range g.fates[n:] {
			c.resolve(g, f, dunlin.ErrNotOwner)
		}
		clear(g.fates[n:])
		g.fates = g.fates[:n]
	}
	for _, e := range g.fresh {
		e.Data = nil
	}
	c.free = append(c.free, g.fresh...)
	clear(g.fresh)
	g.fresh = g.fresh[:0]
}

// ready collects what the groups want written, applied, sent and told.
func (c *core) ready() error {
	n := 0
	for ; n < len(c.dirty) && !c.full(); n++ {
		g := c.dirty[n]
		g.dirty = false
		switch {
		case g.gone:
			continue
		case !g.fed && !g.rn.HasReady():
			g.role, g.stale = g.told, false // neither has changed, or there would be something
		default:
			g.fed = false
			c.settle(g)
			if err := c.absorb(g, g.rn.Ready()); err != nil {
				return err
			}
			g.publish()
		}
		c.wantExport(g)
	}
	if n == len(c.dirty) {
		clear(c.dirty)
		c.dirty = c.dirty[:0]
	} else {
		c.dirty = append(c.dirty[:0:0], c.dirty[n:]...)
	}
	return nil
}

// full reports whether a turn has gathered enough.
func (c *core) full() bool { return c.append.bytes+c.apply.bytes+c.sendBytes >= turnBytesMax }

func (c *core) absorb(g *group, rd raft.Ready) error {
	was, vote, offered := g.told, g.hard.vote, g.offering
	if rd.SoftState != nil {
		g.told.lead, g.told.leader = rd.SoftState.Lead, rd.SoftState.RaftState == raft.StateLeader
	}
	if rd.HardState != nil {
		g.told.term, g.commit = rd.HardState.GetTerm(), rd.HardState.GetCommit()
		if vote != rd.HardState.GetVote() {
			c.rest(g)
		}
	}
	g.role, g.stale = g.told, false
	if was.leader && (!g.role.leader || g.role.term != was.term) || !g.role.leader && len(g.fates) > 0 {
		c.lose(g)
	}
	if was != g.told {
		c.moved(g, was)
	}
	if len(rd.ReadStates) > 0 {
		c.confirmed(g, rd.ReadStates)
	}
	for _, m := range rd.Messages {
		switch {
		case m.GetTo() == raft.LocalAppendThread:
			if err := c.toAppend(g, m); err != nil {
				return err
			}
		case m.GetTo() == raft.LocalApplyThread:
			if err := c.toApply(g, m); err != nil {
				return err
			}
		default:
			if err := c.send(g, m); err != nil {
				return err
			}
		}
	}
	if offered { // before this Ready was made, that is
		g.offering = false
		if !g.installing { // the log was faster, or the leader another
			c.order(orderDrop, g.shard, dunlin.SnapshotMeta{})
		}
	}
	return nil
}

// lose ends an ownership. What was proposed may still be committed by the next owner; nobody here will know in time, so
// the proposer is told now, and finds out by reading the state once somebody owns the shard again.
func (c *core) lose(g *group) {
	if g.announced != 0 {
		c.events = append(c.events, event{shard: g.shard, term: g.announced})
		g.announced = 0
	}
	c.fail(g, dunlin.ErrNotOwner)
	c.endChange(g, dunlin.ErrNotOwner)
}

func (c *core) fail(g *group, err error) {
	for _, f := range g.fates {
		c.resolve(g, f, err)
	}
	clear(g.fates)
	g.fates, g.unplaced = g.fates[:0], 0
}

func (c *core) resolve(g *group, f fate, err error) {
	index := f.index
	if err != nil {
		index = 0
	}
	c.events = append(c.events, event{shard: g.shard, done: f.done, index: index, err: err, size: f.size})
}

// toAppend takes what Raft wants written. A snapshot takes the place of state and log, so nothing of the group may be being
// written or applied while it is installed: what comes behind it waits, and so does it, for what comes before. Other groups
// do not wait for either.
func (c *core) toAppend(g *group, m *pb.Message) error {
	if m.GetSnapshot() == nil && len(g.held) == 0 {
		c.appendNow(g, m)
		return nil
	}
	if len(g.held) == 0 {
		c.holding = append(c.holding, g)
	}
	g.held, g.installing = append(g.held, m), true
	return c.unhold()
}

// unhold goes on where a snapshot had to wait.
func (c *core) unhold() error {
	if len(c.holding) == 0 {
		return nil
	}
	rest := c.holding[:0]
	for _, g := range c.holding {
		if err := c.unholdGroup(g); err != nil {
			return err
		}
		if len(g.held) > 0 {
			rest = append(rest, g)
		}
	}
	clear(c.holding[len(rest):])
	c.holding = rest
	return nil
}

func (c *core) unholdGroup(g *group) error {
	for len(g.held) > 0 && !g.busy {
		m := g.held[0]
		if m.GetSnapshot() == nil {
			c.appendNow(g, m)
			g.held = g.held[1:]
			g.installing = len(g.held) > 0 // what came behind the snapshot is the last that it held up
			continue
		}
		if g.applying > 0 || g.appendSeq > c.writtenSeq {
			return nil
		}
		meta, err := parseMeta(m.GetSnapshot().GetData())
		if err != nil {
			return fmt.Errorf("snapshot of shard %d: %w", g.shard, err)
		}
		if m.Term != nil {
			g.hard.term, g.hard.vote = m.GetTerm(), m.GetVote()
		}
		g.hard.commit = max(m.GetCommit(), meta.Index)
		g.busy, g.last = true, meta.Index
		c.order(orderInstall, g.shard, meta)
		c.orders[len(c.orders)-1].hard = appendHard(nil, g.hard)
	}
	return nil
}

// appendNow puts what is to be written into the batch.
func (c *core) appendNow(g *group, m *pb.Message) {
	b := c.append
	if m.Term != nil && (m.GetTerm() != g.hard.term || m.GetVote() != g.hard.vote) {
		c.keepHard(g, hardState{m.GetTerm(), m.GetVote(), m.GetCommit()})
	}
	for _, e := range m.Entries {
		g.place(e)
		g.last = e.GetIndex()
		b.rows = append(b.rows, dunlin.LogRow{Shard: g.shard, Index: e.GetIndex(), Term: e.GetTerm(), Type: uint8(e.GetType()), Data: e.Data})
		b.bytes += int(entryBytes(e))
		b.sync = true
	}
	if len(m.Entries) > 0 || len(m.Responses) > 0 {
		b.parts = append(b.parts, appendPart{g, m.Entries, m.Responses})
		g.appendSeq = c.appendSeq
	}
}

func (c *core) keepHard(g *group, h hardState) {
	g.hard = h
	c.append.rows = append(c.append.rows, dunlin.LogRow{Shard: g.shard, Hard: appendHard(nil, h)})
	c.append.sync = true
	g.appendSeq = c.appendSeq
}

func (c *core) toApply(g *group, m *pb.Message) error {
	b := c.apply
	for _, e := range m.Entries {
		d := dunlin.Committed{Shard: g.shard, Index: e.GetIndex(), Term: e.GetTerm()}
		if e.GetType() == pb.EntryNormal {
			if len(e.Data) > 0 {
				d.Data = e.Data
			}
		} else {
			conf, err := g.reconfigure(e, c.id)
			if err != nil {
				return err
			}
			d.Conf = conf
			// Known to be committed must survive with the log: a node that forgets it could campaign in a replica set
			// that the others have long left. The write is ahead of any later entry's.
			if e.GetIndex() > g.hard.commit {
				c.keepHard(g, hardState{g.hard.term, g.hard.vote, e.GetIndex()})
			}
		}
		b.entries = append(b.entries, d)
		b.bytes += int(entryBytes(e))
	}
	b.parts = append(b.parts, applyPart{g, m.Entries, m.Responses})
	g.applying++
	return nil
}

func (c *core) send(g *group, m *pb.Message) error {
	switch m.GetType() {
	case pb.MsgHeartbeat:
		// Raft tells a replica what is committed of what that replica has. How fresh it is it can tell by what is committed at all.
		m.Index = &g.commit
	case pb.MsgSnap:
		c.sentSnap(g, m)
	}
	if c.sendBeat(g, m) {
		return nil
	}
	b, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %s of shard %d: %w", m.GetType(), g.shard, err)
	}
	c.sends = append(c.sends, Message{To: m.GetTo(), Shard: g.shard, Data: b})
	c.sendBytes += len(b)
	return nil
}

// after delivers what had to wait for a write.
func (c *core) after(g *group, ms []*pb.Message) error {
	c.settle(g)
	for _, m := range ms {
		if m.GetTo() != c.id {
			if err := c.send(g, m); err != nil {
				return err
			}
			continue
		}
		if err := g.rn.Step(m); err != nil && !errors.Is(err, raft.ErrStepPeerNotFound) {
			return fmt.Errorf("shard %d: %s: %w", g.shard, m.GetType(), err)
		}
	}
	// The owner of a group of one stays that whatever comes back from its own disk.
	g.stale = g.stale || !g.sole || !g.role.leader
	c.mark(g)
	return nil
}

// takeSends returns the messages for peers; they are the caller's.
func (c *core) takeSends() []Message {
	c.sendBeats()
	s := c.sends
	c.sends, c.sendBytes = nil, 0
	return s
}

// takeAppend returns what is to be written to the log, or nil. The caller must give it back to written.
func (c *core) takeAppend() *appendBatch {
	b := c.append
	if len(b.rows) == 0 && len(b.parts) == 0 {
		return nil
	}
	if c.writtenSeq+1 == c.appendSeq {
		c.writingSince = c.ticks
	}
	c.appendSeq++
	if n := len(c.appendSpares); n > 0 {
		c.append, c.appendSpares = c.appendSpares[n-1], c.appendSpares[:n-1]
	} else {
		c.append = &appendBatch{}
	}
	return b
}

// written must be called once the batch is on disk.
func (c *core) written(b *appendBatch) error {
	c.writtenSeq++
	c.writingSince = c.ticks
	defer c.letGo()
	for i := range b.parts {
		p := &b.parts[i]
		if p.g.gone {
			continue
		}
		p.g.st.appended(p.entries)
		if err := c.after(p.g, p.after); err != nil {
			return err
		}
		c.touch(p.g)
	}
	clear(b.rows)
	clear(b.parts)
	*b = appendBatch{rows: b.rows[:0], parts: b.parts[:0]}
	c.appendSpares = append(c.appendSpares, b)
	return c.unhold()
}

// takeApply returns what is to be applied, or nil. The caller must give it back to applied.
func (c *core) takeApply() *applyBatch {
	b := c.apply
	if len(b.parts) == 0 || c.applySpare == nil {
		return nil
	}
	c.apply, c.applySpare = c.applySpare, nil
	return b
}

// applied must be called once the state machine has applied the batch.
func (c *core) applied(b *applyBatch) error {
	defer c.letGo()
	for i := range b.parts {
		p := &b.parts[i]
		p.g.applying--
		if p.g.gone {
			continue
		}
		if err := c.appliedPart(p); err != nil {
			return err
		}
	}
	clear(b.entries)
	clear(b.parts)
	*b = applyBatch{entries: b.entries[:0], parts: b.parts[:0]}
	c.applySpare = b
	return c.unhold()
}

func (c *core) appliedPart(p *applyPart) error {
	g, last := p.g, p.entries[len(p.entries)-1]
	g.applied = last.GetIndex()
	c.acknowledge(g, p.entries)
	if err := c.after(g, p.after); err != nil {
		return err
	}
	if g.look(); g.role.leader && g.announced != g.role.term && last.GetTerm() == g.role.term {
		c.announce(g)
	}
	for _, e := range p.entries {
		if e.GetType() != pb.EntryNormal {
			c.tellConf(g)
			break
		}
	}
	if ch := g.change; ch != nil && ch.final != 0 && ch.final <= g.applied {
		c.endChange(g, nil)
	}
	c.fresh(g)
	c.release(g)
	c.campaign(g)
	c.remember(g) // and forget the others: nothing looks at p.entries from here on
	g.publish()
	return nil
}

// remember keeps rows in memory that somebody may still want to be sent.
func (c *core) remember(g *group) {
	keep := g.applied
	if g.role.leader && !g.sole {
		g.rn.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
			if p.State == tracker.StateReplicate {
				keep = min(keep, p.Match)
			}
		})
	}
	g.st.forget(keep+1, g.st.bytesMax, g.sole)
}

// announce tells the owner that it is one: its own term's first entry is applied, so the state holds all that earlier
// owners acknowledged.
func (c *core) announce(g *group) {
	if g.announced != 0 {
		c.lose(g)
	}
	g.announced = g.role.term
	c.events = append(c.events, event{shard: g.shard, term: g.role.term, owner: true})
	c.ask(g)
	if c.abdicating {
		c.giveAway(g)
	}
}

// acknowledge tells the proposers of applied entries. Two lists in index order are merged; an entry of another term in a
// proposal's place means that the proposal was overwritten.
func (c *core) acknowledge(g *group, ents []*pb.Entry) {
	n, last := 0, ents[len(ents)-1].GetIndex()
	first := ents[0].GetIndex()
	for n < g.unplaced && g.fates[n].index <= last {
		f := g.fates[n]
		var err error
		if f.index < first || ents[f.index-first].GetTerm() != f.term {
			err = dunlin.ErrNotOwner
		}
		c.resolve(g, f, err)
		n++
	}
	if n > 0 {
		rest := copy(g.fates, g.fates[n:])
		clear(g.fates[rest:])
		g.fates, g.unplaced = g.fates[:rest], g.unplaced-n
	}
}

// takeEvents returns what is to be told; valid until the core is fed again.
func (c *core) takeEvents() []event {
	e := c.events
	c.events = c.events[:0]
	return e
}

// close tells all proposers that nobody will know, and all owners that they are none.
func (c *core) close() {
	for _, g := range c.groups {
		if g != nil {
			c.end(g, dunlin.ErrUnavailable)
		}
	}
	for _, l := range c.leaving {
		c.events = append(c.events, event{reply: l.reply, err: dunlin.ErrUnavailable})
	}
	c.leaving = nil
}

// end answers all that is pending in a group.
func (c *core) end(g *group, err error) {
	if g.announced != 0 {
		c.events = append(c.events, event{shard: g.shard, term: g.announced})
		g.announced = 0
	}
	c.fail(g, err)
	if g.change != nil {
		g.change.final = 0
		c.endChange(g, err)
	}
	c.endTransfer(g, err)
	c.endReads(g, err)
}
