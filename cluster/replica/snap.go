package replica

import (
	"fmt"
	"slices"

	"github.com/dunlin-iot/dunlin"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// A replica that the log can't feed any more gets the state. Only its name travels through Raft; the receiver fetches what is
// in it from the node that made it, at its own pace:
//
//	leader                                  receiver
//	storage.Snapshot: "later", wanted
//	  export ──▶ Snapshots.Export
//	exported: its entries stay in the log
//	MsgSnap(name) ────────────────────────▶ offered: fetch ──▶ Snapshots.Receive, Fetch, Add, …
//	stays patient  ◀── MsgSnapStatus ─────── every second while it is at it
//	                                        fetched: MsgSnap is stepped, Raft accepts
//	                                        toAppend ──▶ Snapshots.Install, behind what is being written and applied
//	replicates again ◀──── MsgAppResp ────── installed
//
// A receiver that fails says so (MsgSnapStatus, rejected), one that falls silent is given up after SnapshotTicks; then the
// leader probes, and offers a snapshot again. The same one, if it is still good: its chunks that arrived stay.

// order is work with files for the caller.
type order struct {
	kind  orderKind
	shard dunlin.ShardID
	meta  dunlin.SnapshotMeta
	hard  []byte // orderInstall: the hard state to be written with it
}

type orderKind uint8

const (
	orderExport  orderKind = iota + 1 // give the result to exported
	orderFetch                        // give the result to fetched
	orderInstall                      // tell installed
	orderCancel                       // of the fetch that is under way
	orderDrop                         // what was received is of no use; tell dropped
	orderRelease                      // so is what was exported
)

// takeOrders returns them; they are the caller's.
func (c *core) takeOrders() []order {
	o := c.orders
	c.orders = nil
	return o
}

// exporter is a group's part in making snapshots.
type exporter struct {
	busy  bool
	from  uint64 // rows from here on stay in the log meanwhile
	after uint64 // tick before which it is not tried again
	tick  uint64 // when the open one was last of use
}

// Ticks after which a snapshot that nobody needs any more is given up. It costs: rows stay in the log for it, Pebble forgets nothing
// that was overwritten since, and a node has only so many of them open.
const (
	exportTicks     = 1000 // half a minute: whoever leads no more may still be asked for the rest of it
	exportTicksLead = 200  // six seconds: a leader knows who is at it
)

// tickExport ends an export that is of no use any more.
func (c *core) tickExport(g *group) {
	if g.st.export == nil || len(g.sent) > 0 {
		return
	}
	most := uint64(exportTicks)
	if g.role.leader {
		most = exportTicksLead
	}
	if c.ticks-g.exporter.tick > most {
		c.endExport(g)
	}
}

// wantExport orders a snapshot that Raft has asked for. It must know the replica set as it is now.
func (c *core) wantExport(g *group) {
	if g.st.used {
		g.st.used, g.exporter.tick = false, c.ticks
	}
	x := &g.exporter
	if !g.st.wanted || x.busy || c.ticks < x.after || g.applied < max(g.confIndex, birthIndex) {
		return
	}
	g.st.wanted, x.busy, x.from = false, true, g.applied
	g.st.export = nil // it is of no use any more, and the new one will replace it
	c.order(orderExport, g.shard, dunlin.SnapshotMeta{})
}

func (c *core) order(kind orderKind, sh dunlin.ShardID, meta dunlin.SnapshotMeta) {
	switch kind {
	case orderExport, orderFetch, orderInstall, orderDrop:
		c.jobs[sh]++
	}
	c.orders, c.stirred = append(c.orders, order{kind: kind, shard: sh, meta: meta}), true
}

// exported takes the snapshot that was ordered. Raft comes back for it with the next sign of life of whoever needs it.
func (c *core) exported(sh dunlin.ShardID, meta dunlin.SnapshotMeta, err error) error {
	c.jobs[sh]--
	defer c.letGo()
	g := c.groups[sh]
	if g == nil || !g.exporter.busy {
		c.order(orderRelease, sh, meta)
		return nil
	}
	x := &g.exporter
	x.busy, x.tick = false, c.ticks
	if err == nil {
		err = c.adoptExport(g, &meta)
	}
	if err != nil {
		x.after = c.ticks + uint64(c.cfg.ElectionTicks)
		return fmt.Errorf("snapshot of shard %d: %w", sh, err)
	}
	return nil
}

func (c *core) adoptExport(g *group, meta *dunlin.SnapshotMeta) error {
	// What is being applied just now may be in it already.
	if meta.Shard != g.shard || meta.Index < birthIndex || meta.Index > g.st.last || meta.Index+1 < g.st.first {
		c.order(orderRelease, g.shard, *meta)
		return fmt.Errorf("%w: it is of shard %d as of entry %d, and the log has %d to %d",
			errMeta, meta.Shard, meta.Index, g.st.first, g.st.last)
	}
	term, err := g.st.Term(meta.Index)
	if err != nil {
		return err
	}
	meta.From, meta.Term = dunlin.NodeID(c.id), term
	g.st.export = meta
	return nil
}

func (c *core) endExport(g *group) {
	if x := g.st.export; x != nil {
		g.st.export = nil
		c.order(orderRelease, g.shard, *x)
	}
}

// compact must come before the rows up to upTo are removed from the log. It returns up to where they may be: the newest row
// stays, and so does all that is not applied, or that somebody is likely to ask for soon. 0 means none.
func (c *core) compact(sh dunlin.ShardID, upTo uint64) (uint64, error) {
	g := c.groups[sh]
	if g == nil || g.installing || g.st.last < g.st.first {
		return 0, nil
	}
	upTo = min(upTo, g.applied, g.st.last-1)
	lag := uint64(c.cfg.LagBytesMax)
	if g.exporter.busy {
		upTo = min(upTo, g.exporter.from)
	}
	if x := g.st.export; x != nil {
		if g.st.sizes.behind(x.Index) > lag {
			c.endExport(g)
		} else {
			upTo = min(upTo, x.Index)
		}
	}
	if len(g.peers) > 0 {
		upTo = min(upTo, g.st.sizes.tail(uint64(c.cfg.TailBytes)))
	}
	if g.look(); g.role.leader {
		g.rn.WithProgress(func(id uint64, _ raft.ProgressType, p progress) {
			if w := g.peer(id); w != nil && c.ticks-w.tick <= uint64(c.cfg.LagTicks) && g.st.sizes.behind(p.Match) <= lag {
				upTo = min(upTo, p.Match)
			}
		})
	}
	if upTo < g.st.first {
		return 0, nil
	}
	if err := g.st.compact(upTo); err != nil {
		return 0, err
	}
	g.publish()
	return upTo, nil
}

// sentSnapshot is one that a leader has offered to a replica.
type sentSnapshot struct {
	to, index uint64
	tick      uint64 // when the replica was last known to be at it
}

func (c *core) sentSnap(g *group, m *pb.Message) {
	g.sent = slices.DeleteFunc(g.sent, func(s sentSnapshot) bool { return s.to == m.GetTo() })
	g.sent = append(g.sent, sentSnapshot{m.GetTo(), m.GetSnapshot().GetMetadata().GetIndex(), c.ticks})
}

// tickSent gives receivers up that do not say that they are at it, and forgets those that have it.
func (c *core) tickSent(g *group) {
	if len(g.sent) == 0 {
		return
	}
	g.rn.WithProgress(func(id uint64, _ raft.ProgressType, p progress) {
		if p.State.String() != "StateSnapshot" {
			g.sent = slices.DeleteFunc(g.sent, func(s sentSnapshot) bool { return s.to == id })
		}
	})
	g.sent = slices.DeleteFunc(g.sent, func(s sentSnapshot) bool {
		if g.peer(s.to) == nil {
			return true
		}
		late := c.ticks-s.tick > uint64(c.cfg.SnapshotTicks)
		if late {
			c.cfg.Logger.Warn("replica did not take its snapshot", "shard", int(g.shard), "node", dunlin.NodeID(s.to).String())
			g.rn.ReportSnapshot(s.to, raft.SnapshotFailure)
		}
		return late
	})
}

// snapStatus takes a receiver's word: it is at it, or it has given up.
func (c *core) snapStatus(g *group, m *pb.Message) {
	if g.look(); !g.role.leader {
		return
	}
	for i := range g.sent {
		s := &g.sent[i]
		if s.to != m.GetFrom() {
			continue
		}
		s.tick, g.exporter.tick = c.ticks, c.ticks
		if m.GetReject() && m.GetIndex() == s.index {
			c.settle(g)
			g.rn.ReportSnapshot(s.to, raft.SnapshotFailure)
			g.sent = slices.Delete(g.sent, i, i+1)
			c.touch(g)
		}
		break
	}
	c.heard(g, m)
}

// fetch is a snapshot that is being received.
type fetch struct {
	meta  dunlin.SnapshotMeta
	m     *pb.Message // that offered it last
	tick  uint64      // when its last chunk came
	ready bool        // all chunks are here; it waits for a leader to be known
}

// statusTicks is how often a receiver says that it is at it.
const statusTicks = 30

// offered takes a MsgSnap. What Raft would only use to look up who leads and what is committed it gets at once; all else must
// be fetched first.
func (c *core) offered(g *group, m *pb.Message) {
	meta, err := parseMeta(m.GetSnapshot().GetData())
	md := m.GetSnapshot().GetMetadata()
	cs, errConf := parseConf(meta.Conf)
	if err != nil || errConf != nil || meta.Shard != g.shard || meta.Index != md.GetIndex() || meta.Term != md.GetTerm() ||
		meta.Index < birthIndex || meta.Term > m.GetTerm() || meta.From == 0 {
		return
	}
	if g.look(); m.GetTerm() < g.role.term || g.role.leader {
		return
	}
	if g.offering || g.installing { // the last one: what came of it must stay as it is until then
		return
	}
	m.Snapshot.Metadata.ConfState = cs // what is kept is what counts
	if t, err := g.st.Term(meta.Index); meta.Index <= g.commit || err == nil && t == meta.Term {
		c.settle(g)
		g.stale = true
		c.touch(g)
		_ = g.rn.Step(m)
		return
	}
	if c.cfg.Snapshots == nil || c.cfg.Fetch == nil || !slices.Contains(members(cs), c.id) {
		c.sendStatus(g, m, meta.Index, true)
		return
	}
	g.elapsed = 0
	if f := g.fetch; f != nil {
		switch {
		case f.meta.ID == meta.ID && f.meta.From == meta.From:
			f.m = m
			return
		case f.meta.From != meta.From && c.ticks-f.tick < uint64(c.cfg.SnapshotTicks):
			return // another leader's, and it still comes in: it will do
		}
		c.order(orderCancel, g.shard, f.meta)
	}
	g.fetch = &fetch{meta: meta, m: m, tick: c.ticks}
	c.order(orderFetch, g.shard, meta)
}

// fetching notes that a chunk came.
func (c *core) fetching(meta *dunlin.SnapshotMeta) {
	if g := c.groups[meta.Shard]; g != nil && g.fetch != nil && g.fetch.meta.ID == meta.ID {
		g.fetch.tick = c.ticks
	}
}

func (c *core) tickFetch(g *group) {
	if f := g.fetch; f != nil && c.ticks%statusTicks == 0 {
		c.sendStatus(g, f.m, f.m.GetSnapshot().GetMetadata().GetIndex(), false)
	}
}

// sendStatus tells the leader, as far as it is known, how a snapshot gets on.
func (c *core) sendStatus(g *group, offer *pb.Message, index uint64, failed bool) {
	to, term := offer.GetFrom(), max(offer.GetTerm(), g.told.term)
	if g.told.lead != raft.None && g.told.term >= offer.GetTerm() {
		to = g.told.lead
	}
	if to == c.id {
		return
	}
	b, err := proto.Marshal(&pb.Message{Type: pb.MsgSnapStatus.Enum(), To: &to, From: &c.id, Term: &term, Index: &index, Reject: &failed})
	if err == nil {
		c.sends = append(c.sends, Message{To: to, Shard: g.shard, Data: b})
	}
}

// fetched must be called when a fetch has ended, however it did.
func (c *core) fetched(meta *dunlin.SnapshotMeta, err error) {
	c.jobs[meta.Shard]--
	defer c.letGo()
	g := c.groups[meta.Shard]
	if g == nil || g.fetch == nil || g.fetch.meta.ID != meta.ID || g.fetch.meta.From != meta.From {
		return
	}
	if err != nil {
		c.sendStatus(g, g.fetch.m, g.fetch.m.GetSnapshot().GetMetadata().GetIndex(), true)
		g.fetch = nil
		return
	}
	g.fetch.ready = true
	c.moveFetch(g)
}

// dropped must be called when what was received is thrown away.
func (c *core) dropped(sh dunlin.ShardID) {
	c.jobs[sh]--
	c.letGo()
}

// moveFetch gives Raft a snapshot that is here. It holds what is committed, so any leader might have sent it; the one that did
// may have been deposed meanwhile, and Raft listens to the present one only.
func (c *core) moveFetch(g *group) {
	f := g.fetch
	if f == nil || !f.ready {
		return
	}
	if g.look(); f.m.GetTerm() < g.role.term {
		if g.role.lead == raft.None {
			return
		}
		lead, term := g.role.lead, g.role.term
		f.m.From, f.m.Term = &lead, &term
	}
	g.fetch = nil
	m := f.m
	// The offer may have been repeated under another name meanwhile; what is here is what was fetched first.
	cs, err := parseConf(f.meta.Conf)
	if err != nil {
		return
	}
	m.Snapshot = &pb.Snapshot{Data: appendMeta(nil, &f.meta), Metadata: &pb.SnapshotMetadata{ConfState: cs, Index: &f.meta.Index, Term: &f.meta.Term}}
	if g.role.leader {
		c.order(orderDrop, g.shard, f.meta)
		return
	}
	c.settle(g)
	g.stale, g.offering = true, true
	c.touch(g)
	_ = g.rn.Step(m)
}

// installed must be called once a snapshot is in the place of state and log.
func (c *core) installed(meta *dunlin.SnapshotMeta) error {
	c.jobs[meta.Shard]--
	defer c.letGo()
	g := c.groups[meta.Shard]
	if g == nil || !g.busy {
		return nil
	}
	cs, err := parseConf(meta.Conf)
	if err != nil {
		return fmt.Errorf("snapshot of shard %d: %w", g.shard, err)
	}
	if applied := c.cfg.StateMachine.Applied(g.shard); applied != meta.Index {
		return fmt.Errorf("%w: shard %d: applied is %d after a snapshot of %d", errMismatch, g.shard, applied, meta.Index)
	}
	g.st.installed(meta.Index, meta.Term)
	g.applied, g.confIndex, g.installing, g.busy = meta.Index, meta.Index, false, false
	g.setConf(cs, meta.Conf, c.id)
	c.tellConf(g)
	c.fresh(g)
	c.release(g)
	c.appendNow(g, g.held[0]) // what else it says: entries behind the snapshot, and the answer
	g.held = g.held[1:]
	g.installing = len(g.held) > 0
	g.publish()
	return c.unhold()
}
