package cluster

import (
	"slices"
	"sync/atomic"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/gossip"
	"github.com/dunlin-iot/dunlin/cluster/peer"
	"github.com/dunlin-iot/dunlin/cluster/replica"
)

// owners is who leads which shard, as this node knows: from its replicas, from gossip, and from refusals. The newest term
// wins. It decides nothing: who is asked and does not own the shard refuses.
type owners struct {
	of []atomic.Pointer[owner]
}

type owner struct {
	node dunlin.NodeID // 0: nobody, as far as is known
	term uint64
}

// learn takes what somebody says. Within a term a leader does not change, and whoever says "nobody" knows less.
func (o *owners) learn(sh dunlin.ShardID, node dunlin.NodeID, term uint64) bool {
	if int(sh) >= len(o.of) {
		return false
	}
	next := &owner{node, term}
	for {
		old := o.of[sh].Load()
		if old != nil && (old.term > term || old.term == term && (node == 0 || old.node == node)) {
			return false
		}
		if o.of[sh].CompareAndSwap(old, next) {
			return true
		}
	}
}

// Owner returns the node that owns a shard, as far as this node knows, and the term.
func (c *Cluster) Owner(sh dunlin.ShardID) (node dunlin.NodeID, term uint64, ok bool) {
	if term, ok := c.host.Owned(sh); ok {
		return c.cfg.NodeID, term, true
	}
	if int(sh) >= len(c.owners.of) {
		return 0, 0, false
	}
	o := c.owners.of[sh].Load()
	if o == nil || o.node == 0 || o.node == c.cfg.NodeID { // not, or not yet, the owner itself
		return 0, 0, false
	}
	return o.node, o.term, true
}

// Hint takes over what a node that was asked said about a shard's owner.
func (c *Cluster) Hint(sh dunlin.ShardID, node dunlin.NodeID, term uint64) {
	c.owners.learn(sh, node, term)
}

// Replicas returns the nodes that have a replica of the shard: the owner first, those that are not alive last.
func (c *Cluster) Replicas(sh dunlin.ShardID) []dunlin.NodeID {
	p := c.placement(sh)
	out := make([]dunlin.NodeID, 0, len(p.Voters)+len(p.Learners)+1)
	lead, _, led := c.Owner(sh)
	if led {
		out = append(out, lead)
	}
	var dead []dunlin.NodeID
	for _, set := range [][]dunlin.NodeID{p.Voters, p.Learners} {
		for _, id := range set {
			switch {
			case led && id == lead:
			case c.Alive(id):
				out = append(out, id)
			default:
				dead = append(dead, id)
			}
		}
	}
	return append(out, dead...)
}

// Has reports whether this node has a replica of the shard that knows anything.
func (c *Cluster) Has(sh dunlin.ShardID) bool {
	s := c.host.Status(sh)
	return s.Present && s.Initialised
}

// Alive reports whether a node is alive, as gossip sees it. This node is.
func (c *Cluster) Alive(id dunlin.NodeID) bool {
	if id == c.cfg.NodeID {
		return true
	}
	if c.net == nil {
		return false
	}
	s, ok := c.net.Seen(id)
	return ok && s.Alive
}

func (c *Cluster) onOwner(sh dunlin.ShardID, term uint64, owns bool) {
	if owns {
		c.owners.learn(sh, c.cfg.NodeID, term)
	}
	if sh == dunlin.MetaShard {
		poke(c.controls)
	}
	poke(c.follows)
	c.cfg.OnOwner(sh, term, owns)
}

func (c *Cluster) onLeader(sh dunlin.ShardID, term uint64, lead dunlin.NodeID) {
	if c.owners.learn(sh, lead, term) {
		poke(c.follows)
		c.cfg.OnMoved()
	}
}

// membersMoved takes over the hints that gossip brought.
func (c *Cluster) membersMoved() {
	for _, h := range c.net.gossip.Hints() {
		c.owners.learn(h.Shard, h.Owner, h.Term)
	}
	poke(c.controls)
	poke(c.follows)
	c.cfg.OnMoved()
}

// hint tells the others what this node owns.
func (c *Cluster) hint() {
	var hs []gossip.Hint
	for sh := range c.cfg.Shards {
		if term, ok := c.host.Owned(dunlin.ShardID(sh)); ok {
			hs = append(hs, gossip.Hint{Shard: dunlin.ShardID(sh), Term: term, Owner: c.cfg.NodeID})
		}
	}
	if !slices.Equal(hs, c.steward.hints) {
		c.steward.hints = hs
		c.net.gossip.SetHints(hs)
	}
}

// transport hands the host's messages to the links.
type transport struct{ links *peer.Links }

// Send implements replica.Transport.
func (t transport) Send(batch []replica.Message) { peer.Send(t.links, batch) }

// Voters returns the nodes that vote in the shard, as placed.
func (c *Cluster) Voters(sh dunlin.ShardID) []dunlin.NodeID {
	if v := c.placement(sh).Voters; len(v) > 0 {
		return slices.Clone(v)
	}
	return []dunlin.NodeID{c.cfg.NodeID} // nobody has placed anything: a node alone
}

// Down reports whether a node is known to be dead, or gone for good.
func (c *Cluster) Down(id dunlin.NodeID) bool {
	if id == c.cfg.NodeID || c.net == nil {
		return false
	}
	m, known := c.places.Load().addrs[id]
	if s, ok := c.net.Seen(id); ok {
		return !s.Alive
	}
	return !known || m.State == dunlin.MemberLeft
}
