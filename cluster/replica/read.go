package replica

import (
	"encoding/binary"
	"fmt"

	"github.com/dunlin-iot/dunlin"
	"go.etcd.io/raft/v3"
)

// reads are the ReadIndex calls of a group. Those that come in while one question to the leader is under way wait for the next
// one, all together.
type reads struct {
	next  []read
	asked []read
	id    uint64 // of the question under way
	ticks int
	wait  []readAt // answered, and not applied yet; by index
}

// read is one call. over reports that nobody waits for it any more.
type read struct {
	done func(error)
	over func() bool
}

type readAt struct {
	index uint64
	reads []read
}

func (r *reads) count() int {
	n := len(r.next) + len(r.asked)
	for _, w := range r.wait {
		n += len(w.reads)
	}
	return n
}

// read takes a call.
func (c *core) read(sh dunlin.ShardID, r read) {
	g := c.groups[sh]
	switch {
	case g == nil:
		c.reply(r.done, fmt.Errorf("%w: there is no replica of shard %d here", dunlin.ErrNotOwner, sh))
		return
	case !g.member:
		c.reply(r.done, fmt.Errorf("%w: the replica of shard %d here is not in its replica set", dunlin.ErrUnavailable, sh))
		return
	}
	if g.reads.count() >= c.cfg.ReadsMax {
		g.reads.next, g.reads.asked = forsaken(g.reads.next), forsaken(g.reads.asked)
		for i := range g.reads.wait {
			g.reads.wait[i].reads = forsaken(g.reads.wait[i].reads)
		}
		if g.reads.count() >= c.cfg.ReadsMax {
			c.reply(r.done, dunlin.ErrOverloaded)
			return
		}
	}
	g.reads.next = append(g.reads.next, r)
	c.ask(g)
}

// forsaken drops calls nobody waits for.
func forsaken(rs []read) []read {
	rest := rs[:0]
	for _, r := range rs {
		if r.over == nil || !r.over() {
			rest = append(rest, r)
		}
	}
	clear(rs[len(rest):])
	return rest
}

// ask puts the next question to the leader, if there is one to ask. A leader that is no owner yet does not know for certain
// what was acknowledged before its time.
func (c *core) ask(g *group) {
	r := &g.reads
	if len(r.next) == 0 || len(r.asked) > 0 {
		return
	}
	if g.look(); g.role.lead == raft.None || g.role.leader && !g.owner() {
		return
	}
	c.settle(g)
	c.readSeq++
	r.asked, r.next, r.id, r.ticks = r.next, nil, c.readSeq, 0
	g.stale = true
	c.touch(g)
	g.rn.ReadIndex(binary.BigEndian.AppendUint64(nil, r.id))
}

// confirmed takes the leader's answers.
func (c *core) confirmed(g *group, states []raft.ReadState) {
	r := &g.reads
	for _, s := range states {
		if len(r.asked) == 0 || len(s.RequestCtx) != 8 || binary.BigEndian.Uint64(s.RequestCtx) != r.id {
			continue
		}
		r.wait = append(r.wait, readAt{s.Index, r.asked})
		r.asked = nil
	}
	c.release(g)
	c.ask(g)
}

// release answers calls that this replica has caught up with.
func (c *core) release(g *group) {
	r := &g.reads
	n := 0
	for n < len(r.wait) && r.wait[n].index <= g.applied {
		for _, rd := range r.wait[n].reads {
			c.reply(rd.done, nil)
		}
		n++
	}
	if n > 0 {
		r.wait = append(r.wait[:0:0], r.wait[n:]...)
	}
}

// moveReads asks the new leader what the old one did not answer.
func (c *core) moveReads(g *group) {
	r := &g.reads
	r.next, r.asked = append(r.asked, r.next...), nil
	c.ask(g)
}

// tickReads asks again: the question or its answer may be lost.
func (c *core) tickReads(g *group) {
	r := &g.reads
	if len(r.asked) == 0 {
		c.ask(g)
		return
	}
	if r.ticks++; r.ticks >= c.cfg.ElectionTicks {
		c.moveReads(g)
	}
}

func (c *core) endReads(g *group, err error) {
	r := &g.reads
	for _, rd := range append(r.asked, r.next...) {
		c.reply(rd.done, err)
	}
	for _, w := range r.wait {
		for _, rd := range w.reads {
			c.reply(rd.done, err)
		}
	}
	*r = reads{}
}
