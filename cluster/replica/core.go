package replica

import (
	"errors"
	"fmt"

	"github.com/dunlin-iot/dunlin"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// core runs all groups of a node. It has no goroutine, no clock and does no I/O but reading back log rows that memory no
// longer holds. Its caller feeds it, then takes what it wants done:
//
//	propose, step, tick, compact             what came in
//	ready                                    let Raft answer
//	takeSends, takeAppend, takeApply, takeEvents   what is to be done now
//	written(batch), applied(batch)           what was done
//
// Append batches must be written one after the other in the order taken, and given back in that order; the next may begin
// before the last is given back. Apply batches come one at a time. A batch of each kind may be under way at once.
type core struct {
	id     uint64
	groups []*group
	dirty  []*group // in the order they became so: no group starves

	sends  []Message
	events []event

	append       *appendBatch // being gathered
	appendSpares []*appendBatch
	apply        *applyBatch
	applySpare   *applyBatch // nil: being applied

	prop pb.Message // reused: a leader keeps nothing of a proposal but copies of its entries
	free []*pb.Entry
}

// event is something to tell: the fate of a proposal, or a change of owner (done nil).
type event struct {
	shard dunlin.ShardID
	term  uint64
	owner bool

	done  func(index uint64, err error)
	index uint64
	err   error
	size  int
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

func newCore(id uint64, groups []*group) *core {
	c := &core{id: id, groups: groups, append: &appendBatch{}, apply: &applyBatch{}, applySpare: &applyBatch{}}
	c.prop.Type, c.prop.From = pb.MsgProp.Enum(), &c.id
	for _, g := range groups {
		g.stale = true
		c.campaign(g)
		c.touch(g)
	}
	return c
}

// touch makes ready look at the group, which has most likely something to say.
func (c *core) touch(g *group) {
	g.fed = true
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

// campaign lets the only voter of a group elect itself at once: there is nobody whose leadership the election timeout
// would have to outlast. Raft refuses while a committed membership change is not applied; applied asks again.
func (c *core) campaign(g *group) {
	if g.look(); !g.sole || g.role.lead != raft.None {
		return
	}
	if s := g.rn.BasicStatus(); s.RaftState != raft.StateFollower || s.Applied < s.GetCommit() {
		return
	}
	g.stale = true
	if err := g.rn.Campaign(); err != nil {
		panic(fmt.Sprintf("replica: shard %d: campaign of a lone voter: %v", g.shard, err))
	}
}

// propose takes a proposal. Its data is copied by settle.
func (c *core) propose(p proposal) {
	g := c.groups[p.shard]
	if g.look(); !g.role.leader || g.role.term != p.term {
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

// step takes a message from a peer.
func (c *core) step(sh dunlin.ShardID, m *pb.Message) {
	switch m.GetType() {
	case pb.MsgProp: // only owners propose, and only here: place counts on it
		return
	case pb.MsgSnap: // nothing here takes one yet; the sender keeps probing
		return
	}
	g := c.groups[sh]
	c.settle(g)
	g.stale = true
	c.touch(g)
	// Raft says which messages it drops and why; none of it is for us: a peer's loss is its own retry.
	_ = g.rn.Step(m)
}

// tick tells the groups that are not quiet that a tick passed.
func (c *core) tick() {
	for _, g := range c.groups {
		if !g.quiet() {
			c.settle(g)
			g.rn.Tick()
			g.stale = true
			c.touch(g)
		}
	}
}

// ticking reports whether any group needs ticks.
func (c *core) ticking() bool {
	for _, g := range c.groups {
		if !g.quiet() {
			return true
		}
	}
	return false
}

// compact must come before the rows up to upTo are removed from the log. It returns up to where they may be: the newest row
// stays, and so does all that is not applied.
func (c *core) compact(sh dunlin.ShardID, upTo uint64) (uint64, error) {
	g := c.groups[sh]
	upTo = min(upTo, g.applied, g.st.last-1)
	if err := g.st.compact(upTo); err != nil {
		return 0, err
	}
	return upTo, nil
}

// ready collects what the groups want written, applied, sent and told.
func (c *core) ready() error {
	n := 0
	for ; n < len(c.dirty) && c.append.bytes+c.apply.bytes < turnBytesMax; n++ {
		g := c.dirty[n]
		g.dirty = false
		if !g.fed && !g.rn.HasReady() {
			g.role, g.stale = g.told, false // neither has changed, or there would be something
			continue
		}
		g.fed = false
		c.settle(g)
		if err := c.absorb(g, g.rn.Ready()); err != nil {
			return err
		}
	}
	if n == len(c.dirty) {
		clear(c.dirty)
		c.dirty = c.dirty[:0]
	} else {
		c.dirty = append(c.dirty[:0:0], c.dirty[n:]...)
	}
	return nil
}

func (c *core) absorb(g *group, rd raft.Ready) error {
	was := g.told
	if rd.SoftState != nil {
		g.told.lead, g.told.leader = rd.SoftState.Lead, rd.SoftState.RaftState == raft.StateLeader
	}
	if rd.HardState != nil {
		g.told.term = rd.HardState.GetTerm()
	}
	g.role, g.stale = g.told, false
	if was.leader && (!g.role.leader || g.role.term != was.term) || !g.role.leader && len(g.fates) > 0 {
		c.lose(g)
	}
	for _, m := range rd.Messages {
		switch {
		case m.GetTo() == raft.LocalAppendThread:
			c.toAppend(g, m)
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

func (c *core) toAppend(g *group, m *pb.Message) {
	b := c.append
	if m.GetSnapshot() != nil {
		panic(fmt.Sprintf("replica: shard %d: Raft accepted a snapshot that step should have refused", g.shard))
	}
	if m.Term != nil && (m.GetTerm() != g.hard.term || m.GetVote() != g.hard.vote) {
		c.keepHard(g, hardState{m.GetTerm(), m.GetVote(), m.GetCommit()})
	}
	for _, e := range m.Entries {
		g.place(e)
		b.rows = append(b.rows, dunlin.LogRow{Shard: g.shard, Index: e.GetIndex(), Term: e.GetTerm(), Type: uint8(e.GetType()), Data: e.Data})
		b.bytes += int(entryBytes(e))
		b.sync = true
	}
	if len(m.Entries) > 0 || len(m.Responses) > 0 {
		b.parts = append(b.parts, appendPart{g, m.Entries, m.Responses})
	}
}

func (c *core) keepHard(g *group, h hardState) {
	g.hard = h
	c.append.rows = append(c.append.rows, dunlin.LogRow{Shard: g.shard, Hard: appendHard(nil, h)})
	c.append.sync = true
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
			conf, err := g.change(e)
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
	return nil
}

func (c *core) send(g *group, m *pb.Message) error {
	b, err := proto.Marshal(m)
	if err != nil {
		return fmt.Errorf("encode %s of shard %d: %w", m.GetType(), g.shard, err)
	}
	c.sends = append(c.sends, Message{To: m.GetTo(), Shard: g.shard, Data: b})
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
	s := c.sends
	c.sends = nil
	return s
}

// takeAppend returns what is to be written to the log, or nil. The caller must give it back to written.
func (c *core) takeAppend() *appendBatch {
	b := c.append
	if len(b.rows) == 0 && len(b.parts) == 0 {
		return nil
	}
	if n := len(c.appendSpares); n > 0 {
		c.append, c.appendSpares = c.appendSpares[n-1], c.appendSpares[:n-1]
	} else {
		c.append = &appendBatch{}
	}
	return b
}

// written must be called once the batch is on disk.
func (c *core) written(b *appendBatch) error {
	for i := range b.parts {
		p := &b.parts[i]
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
	return nil
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
	for i := range b.parts {
		p := &b.parts[i]
		g, last := p.g, p.entries[len(p.entries)-1]
		g.applied = last.GetIndex()
		c.acknowledge(g, p.entries)
		if err := c.after(g, p.after); err != nil {
			return err
		}
		if g.sole { // otherwise a peer that lags may want them
			g.st.forget(g.applied+1, g.st.bytesMax)
		}
		if g.look(); g.role.leader && g.announced != g.role.term && last.GetTerm() == g.role.term {
			c.announce(g)
		}
		c.campaign(g)
	}
	clear(b.entries)
	clear(b.parts)
	*b = applyBatch{entries: b.entries[:0], parts: b.parts[:0]}
	c.applySpare = b
	return nil
}

// announce tells the owner that it is one: its own term's first entry is applied, so the state holds all that earlier
// owners acknowledged.
func (c *core) announce(g *group) {
	if g.announced != 0 {
		c.lose(g)
	}
	g.announced = g.role.term
	c.events = append(c.events, event{shard: g.shard, term: g.role.term, owner: true})
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
		if g.announced != 0 {
			c.events = append(c.events, event{shard: g.shard, term: g.announced})
			g.announced = 0
		}
		c.fail(g, dunlin.ErrUnavailable)
	}
}
