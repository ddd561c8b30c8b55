package replica

import (
	"fmt"
	"slices"

	"github.com/dunlin-iot/dunlin"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
	"google.golang.org/protobuf/proto"
)

type progress = tracker.Progress

// confChange is a change of the replica set that this owner has proposed.
type confChange struct {
	term  uint64
	index uint64 // 0: Raft has not said yet
	final uint64 // the entry after which it is over, and was handed out to be applied; 0: not yet
	done  func(error)
}

// reconfigure proposes a change of a replica set.
func (c *core) reconfigure(sh dunlin.ShardID, changes []ReplicaChange, done func(error)) {
	if err := c.tryReconfigure(sh, changes, done); err != errUnderWay {
		c.reply(done, err)
	}
}

// errUnderWay: the answer comes later.
var errUnderWay = fmt.Errorf("under way")

func (c *core) reply(done func(error), err error) {
	c.events = append(c.events, event{reply: done, err: err})
}

func (c *core) tryReconfigure(sh dunlin.ShardID, changes []ReplicaChange, done func(error)) error {
	g := c.groups[sh]
	switch {
	case g == nil || !g.owner():
		return dunlin.ErrNotOwner
	case g.change != nil || len(g.conf.VotersOutgoing) > 0:
		return fmt.Errorf("%w: the replica set of shard %d is changing already", dunlin.ErrConflict, sh)
	}
	cc := &pb.ConfChangeV2{}
	for _, ch := range changes {
		id := uint64(ch.Node)
		typ := pb.ConfChangeAddNode
		switch ch.Kind {
		case AddVoter:
		case AddLearner:
			typ = pb.ConfChangeAddLearnerNode
		case RemoveReplica:
			typ = pb.ConfChangeRemoveNode
		default:
			return fmt.Errorf("%w: change of kind %d", dunlin.ErrInvalid, ch.Kind)
		}
		cc.Changes = append(cc.Changes, &pb.ConfChangeSingle{Type: typ.Enum(), NodeId: &id})
	}
	next, err := afterChange(g.conf, cc)
	if len(changes) == 0 || err != nil {
		return fmt.Errorf("%w: change %v of shard %d: %w", dunlin.ErrInvalid, changes, sh, err)
	}
	if next.VotersOutgoing, next.AutoLeave = nil, g.conf.AutoLeave; len(next.LearnersNext) == 0 && next.Equivalent(g.conf) == nil {
		return nil // nothing to do
	}
	c.settle(g)
	g.stale = true
	c.touch(g)
	g.change = &confChange{term: g.role.term, done: done}
	if err := g.rn.ProposeConfChange(cc); err != nil { // the leader is handing over
		g.change = nil
		return dunlin.ErrNotOwner
	}
	return errUnderWay
}

// endChange answers who asked for a change. One whose last entry is on its way to the state is over whoever leads now.
func (c *core) endChange(g *group, err error) {
	ch := g.change
	if ch == nil || err != nil && ch.final != 0 {
		return
	}
	g.change = nil
	c.reply(ch.done, err)
}

// tellConf tells the replica set as it is applied.
func (c *core) tellConf(g *group) {
	conf := exportConf(g.conf, g.applied)
	g.cell.conf.Store(&conf)
	c.events = append(c.events, event{shard: g.shard, conf: &conf})
	g.publishProgress()
}

// transfer is a leadership being handed over on somebody's wish.
type transfer struct {
	to    uint64
	term  uint64
	ticks int
	done  func(error)
}

func (c *core) transferTo(sh dunlin.ShardID, to uint64, done func(error)) {
	g := c.groups[sh]
	if g != nil {
		g.look()
	}
	switch {
	case g == nil || !g.role.leader:
		c.reply(done, dunlin.ErrNotOwner)
	case to == c.id:
		c.reply(done, nil)
	case !slices.Contains(g.conf.Voters, to):
		c.reply(done, fmt.Errorf("%w: node %s is no voter of shard %d", dunlin.ErrInvalid, dunlin.NodeID(to), sh))
	case g.transfer != nil:
		c.reply(done, fmt.Errorf("%w: shard %d is being handed over already", dunlin.ErrConflict, sh))
	default:
		g.transfer = &transfer{to: to, term: g.role.term, done: done}
		c.hand(g, to)
	}
}

func (c *core) hand(g *group, to uint64) {
	c.settle(g)
	g.stale = true
	c.touch(g)
	g.rn.TransferLeader(to)
}

func (c *core) endTransfer(g *group, err error) {
	if t := g.transfer; t != nil {
		g.transfer = nil
		c.reply(t.done, err)
	}
}

// moveTransfer sees whether somebody else leads now.
func (c *core) moveTransfer(g *group) {
	t := g.transfer
	if t == nil || g.told.lead == raft.None || g.told.term == t.term && g.told.leader {
		return
	}
	var err error
	if g.told.lead != t.to {
		err = fmt.Errorf("%w: node %s leads shard %d, not %s", dunlin.ErrUnavailable, dunlin.NodeID(g.told.lead), g.shard, dunlin.NodeID(t.to))
	}
	c.endTransfer(g, err)
}

// tickTransfer gives up: Raft itself gives up a bit earlier, and leads on.
func (c *core) tickTransfer(g *group) {
	if t := g.transfer; t != nil {
		if t.ticks++; t.ticks > 3*c.cfg.ElectionTicks {
			c.endTransfer(g, fmt.Errorf("%w: node %s did not take shard %d over", dunlin.ErrUnavailable, dunlin.NodeID(t.to), g.shard))
		}
	}
}

// abdicate makes this node lead nothing that somebody else can lead.
func (c *core) abdicate(on bool) {
	c.abdicating = on
	if !on {
		return
	}
	for _, g := range c.groups {
		if g == nil {
			continue
		}
		if g.look(); g.role.leader {
			c.giveAway(g)
		}
	}
}

// giveAway hands a group over to the voter that has most of it.
func (c *core) giveAway(g *group) {
	if g.alone || g.transfer != nil {
		return
	}
	if to, _ := c.heir(g); to != raft.None && g.rn.BasicStatus().LeadTransferee == raft.None {
		c.hand(g, to)
	}
}

// heir is the voter that is there and has most of the log.
func (c *core) heir(g *group) (id, most uint64) {
	g.rn.WithProgress(func(peer uint64, _ raft.ProgressType, p progress) {
		if peer != c.id && slices.Contains(g.conf.Voters, peer) && p.Match > most && c.active(g, peer) {
			id, most = peer, p.Match
		}
	})
	return id, most
}

// active reports whether a peer was heard of within an election timeout or two.
func (c *core) active(g *group, id uint64) bool {
	p := g.peer(id)
	return p != nil && c.ticks-p.tick <= uint64(2*c.cfg.ElectionTicks)
}

// farewell tells the heirs of all groups led here to take over now, without a word with Raft: this node can keep nothing any
// more.
func (c *core) farewell() {
	for _, g := range c.groups {
		if g == nil || g.alone {
			continue
		}
		if g.look(); !g.role.leader {
			continue
		}
		if to, _ := c.heir(g); to != raft.None {
			m := &pb.Message{Type: pb.MsgTimeoutNow.Enum(), To: &to, From: &c.id, Term: &g.role.term}
			if b, err := proto.Marshal(m); err == nil {
				c.sends = append(c.sends, Message{To: to, Shard: g.shard, Data: b})
			}
		}
	}
}

// leave is a group on its way out: it waits until nothing that has to do with it is under way.
type leave struct {
	g     *group
	reply func(error)
}

// detach takes a group out of the core. reply is called once nothing of it is under way; tomb is what must be kept of it.
func (c *core) detach(sh dunlin.ShardID, removedAt uint64, reply func(error)) (tomb tombstone, ok bool) {
	g := c.groups[sh]
	if g == nil {
		return tomb, false
	}
	// Its last promises may be on their way to the disk only, or not even that; nobody hears of those any more, but to keep
	// too much is safe.
	s := g.rn.BasicStatus()
	tomb = tombstone{term: s.HardState.GetTerm(), vote: s.HardState.GetVote(), floor: max(removedAt, g.floor, g.last, g.applied)}
	c.end(g, dunlin.ErrNotOwner)
	if g.fetch != nil {
		c.orders = append(c.orders, order{kind: orderCancel, shard: sh})
	}
	g.gone, g.held, g.fetch = true, nil, nil
	c.holding = slices.DeleteFunc(c.holding, func(h *group) bool { return h == g })
	g.cell.vanish()
	c.groups[sh] = nil
	c.leaving = append(c.leaving, &leave{g, reply})
	c.letGo()
	return tomb, true
}

// letGo tells of groups that nothing is under way of any more.
func (c *core) letGo() {
	if len(c.leaving) == 0 {
		return
	}
	rest := c.leaving[:0]
	for _, l := range c.leaving {
		if l.g.applying > 0 || l.g.appendSeq > c.writtenSeq || c.jobs[l.g.shard] > 0 {
			rest = append(rest, l)
			continue
		}
		c.reply(l.reply, nil)
	}
	clear(c.leaving[len(rest):])
	c.leaving = rest
}
