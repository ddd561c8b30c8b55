package cluster

import (
	"fmt"
	"net"
	"slices"
	"strconv"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/control"
)

// placements are the rows of the placement table as of an applied index.
type placements struct {
	index uint64
	of    []control.Placement
	addrs map[dunlin.NodeID]control.Member
}

// readPlacements reads the placement table, if the meta shard has moved since.
func (c *Cluster) readPlacements() (*placements, error) {
	old := c.places.Load()
	index := c.cfg.State.Applied(dunlin.MetaShard)
	if index == old.index {
		return old, nil
	}
	rows, err := c.cfg.Store.Rows(dunlin.MetaShard, dunlin.TablePlacement, "", "", 0)
	if err != nil {
		return nil, err
	}
	next := &placements{index: index, of: make([]control.Placement, c.cfg.Shards), addrs: map[dunlin.NodeID]control.Member{}}
	for _, p := range rows {
		row, err := control.DecodePlacement(p.Value)
		if err != nil {
			return nil, fmt.Errorf("placement of shard %s: %w", p.Key, err)
		}
		if int(row.Shard) >= c.cfg.Shards || p.Key != strconv.Itoa(int(row.Shard)) {
			return nil, fmt.Errorf("%w: placement of shard %s names shard %d", dunlin.ErrInvalid, p.Key, row.Shard)
		}
		next.of[row.Shard] = row
	}
	members, err := c.cfg.Store.Rows(dunlin.MetaShard, dunlin.TableMembers, "", "", 0)
	if err != nil {
		return nil, err
	}
	for _, p := range members {
		m, err := control.DecodeMember(p.Value)
		if err != nil {
			return nil, fmt.Errorf("member %s: %w", p.Key, err)
		}
		next.addrs[m.ID] = m
		if m.State == dunlin.MemberLeft && c.net != nil && m.ID != c.cfg.NodeID {
			c.net.links.Forget(m.ID)
		}
	}
	c.places.Store(next)
	c.entries.Store(c.entryVersion(next.addrs))
	c.cfg.OnMoved()
	return next, nil
}

// EntryVersion is the newest version of entries that every member reads; 1 until this node knows them.
func (c *Cluster) EntryVersion() uint32 { return max(c.entries.Load(), 1) }

func (c *Cluster) entryVersion(members map[dunlin.NodeID]control.Member) uint32 {
	v := c.cfg.EntryMax
	for _, m := range members {
		if m.State != dunlin.MemberLeft {
			v = min(v, max(m.EntryMax, 1))
		}
	}
	if len(members) == 0 {
		return 1
	}
	return v
}

func (c *Cluster) placement(sh dunlin.ShardID) *control.Placement {
	p := c.places.Load()
	if int(sh) >= len(p.of) {
		return &control.Placement{}
	}
	return &p.of[sh]
}

func (c *Cluster) peerAddr(id dunlin.NodeID) (string, bool) {
	m, ok := c.places.Load().addrs[id]
	return m.Peer, ok && m.Peer != ""
}

// gossipAddr is where a member gossips: as gossip sees it, else as its row says.
func (c *Cluster) gossipAddr(m *control.Member) string {
	if s, ok := c.net.Seen(m.ID); ok && s.Addr != "" {
		return s.Addr
	}
	if m.Gossip != "" {
		return m.Gossip
	}
	host, port, err := net.SplitHostPort(m.Peer) // a row of an older build
	if err != nil {
		return ""
	}
	p, err := strconv.Atoi(port)
	if err != nil || p <= linksOffset {
		return ""
	}
	return net.JoinHostPort(host, strconv.Itoa(p-linksOffset))
}

// seeds are the members that this node knows of, for gossip to meet again.
func (c *Cluster) seeds() []string {
	out := slices.Clone(c.net.cfg.Seeds)
	if c.host.Status(dunlin.MetaShard).Lead == 0 { // the table may lack members
		out = c.net.callable()
	}
	for _, m := range c.places.Load().addrs {
		if addr := c.gossipAddr(&m); m.ID != c.cfg.NodeID && m.State != dunlin.MemberLeft && addr != "" && !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	return out
}

// memberPut changes a member's row.
func (c *Cluster) memberPut(id dunlin.NodeID, change func(*control.Member) error) (dunlin.Put, error) {
	m, ok := c.places.Load().addrs[id]
	if !ok {
		return dunlin.Put{}, fmt.Errorf("member %s: %w", id, dunlin.ErrNotFound)
	}
	if err := change(&m); err != nil {
		return dunlin.Put{}, err
	}
	return dunlin.Put{Table: dunlin.TableMembers, Key: control.MemberKey(id), Value: control.EncodeMember(&m)}, nil
}
