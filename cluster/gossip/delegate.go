package gossip

import (
	"fmt"
	"log/slog"

	"github.com/hashicorp/memberlist"

	"github.com/dunlin-iot/dunlin"
)

// delegate is what memberlist calls, most of it with its own lock held: it must never wait, nor call memberlist.
type delegate Gossip

var (
	_ memberlist.Delegate         = (*delegate)(nil)
	_ memberlist.EventDelegate    = (*delegate)(nil)
	_ memberlist.AliveDelegate    = (*delegate)(nil)
	_ memberlist.MergeDelegate    = (*delegate)(nil)
	_ memberlist.ConflictDelegate = (*delegate)(nil)
)

// NodeMeta implements memberlist.Delegate.
func (d *delegate) NodeMeta(int) []byte { return d.self.Load().meta }

// NotifyMsg implements memberlist.Delegate: hints on their way.
func (d *delegate) NotifyMsg(b []byte) {
	hs, err := parseHints(b)
	if err != nil {
		d.met.malformed.Inc()
		return
	}
	(*Gossip)(d).learn(hs)
}

// GetBroadcasts implements memberlist.Delegate.
func (d *delegate) GetBroadcasts(overhead, limit int) [][]byte {
	return d.queue.GetBroadcasts(overhead, limit)
}

// LocalState implements memberlist.Delegate: all hints, for whoever missed some.
func (d *delegate) LocalState(bool) []byte {
	hs := d.hints.all()
	return appendHints(make([]byte, 0, 1+len(hs)*hintBytesMax), hs)
}

// MergeRemoteState implements memberlist.Delegate. What is news here was told elsewhere already: it isn't passed on.
func (d *delegate) MergeRemoteState(b []byte, _ bool) {
	hs, err := parseHints(b)
	if err != nil {
		d.met.malformed.Inc()
		return
	}
	if len(d.hints.put(hs)) > 0 {
		(*Gossip)(d).changed()
	}
}

// NotifyJoin implements memberlist.EventDelegate.
func (d *delegate) NotifyJoin(n *memberlist.Node) { d.came(n) }

// NotifyUpdate implements memberlist.EventDelegate.
func (d *delegate) NotifyUpdate(n *memberlist.Node) { d.came(n) }

func (d *delegate) came(n *memberlist.Node) {
	s, err := parseMeta(n.Name, n.Meta)
	if err != nil {
		return // NotifyAlive has refused it
	}
	if d.view.came(s, n.Address(), d.cfg.Clock()) && n.Name != d.self.Load().Name {
		d.cfg.Log.Info("a node is here", slog.String("name", s.Name), slog.String("peer", s.ID.String()), slog.String("addr", n.Address()))
	}
	(*Gossip)(d).changed()
}

// NotifyLeave implements memberlist.EventDelegate: dead or left.
func (d *delegate) NotifyLeave(n *memberlist.Node) {
	if s := d.view.gone(n.Name, d.cfg.Clock()); s != nil {
		text := "a node is dead: nobody hears of it"
		if n.State == memberlist.StateLeft {
			text = "a node has stopped, and said so"
		}
		d.cfg.Log.Info(text, slog.String("name", s.Name), slog.String("peer", s.ID.String()), slog.String("addr", s.Addr))
	}
	(*Gossip)(d).changed()
}

// NotifyAlive implements memberlist.AliveDelegate: news of a living node. What it refuses is as if it had not been said.
func (d *delegate) NotifyAlive(n *memberlist.Node) error {
	self := d.self.Load()
	s, err := parseMeta(n.Name, n.Meta)
	if n.Name == self.Name {
		// About this node, or one that takes itself for it: memberlist refutes the one and reports the other as a conflict.
		return nil
	}
	if err != nil {
		d.met.malformed.Inc()
		return err
	}
	if err := d.foreign(&s, n.Address()); err != nil {
		return err
	}
	if _, other := d.view.find(s.Name, s.ID); other != nil && other.Name != s.Name {
		return sameID(&s, n.Address(), other)
	}
	return nil
}

// NotifyMerge implements memberlist.MergeDelegate: this node wants to join another, or another this one; peers is what the
// other knows. Both ends look at the other's list, so that the one that comes too late sees the reason itself.
func (d *delegate) NotifyMerge(peers []*memberlist.Node) error {
	self := d.self.Load()
	for _, n := range peers {
		if n.State != memberlist.StateAlive && n.State != memberlist.StateSuspect {
			continue
		}
		s, err := parseMeta(n.Name, n.Meta)
		if err == nil {
			err = d.foreign(&s, n.Address())
		}
		if err == nil && n.Address() != d.addr {
			err = d.clash(&self.Self, &s, n.Address())
		}
		if err != nil {
			d.met.refused.Inc()
			d.refusals.note(err)
			return err
		}
	}
	return nil
}

// foreign refuses a node of another cluster. One that has not joined any yet may come.
func (d *delegate) foreign(s *Self, addr string) error {
	ours := d.self.Load().Cluster
	if ours == "" {
		ours = d.view.cluster()
	}
	if ours == "" || s.Cluster == "" || s.Cluster == ours {
		return nil
	}
	return fmt.Errorf("%w: node %s at %s belongs to cluster %s, this one to %s: check the addresses to join; a node changes "+
		"clusters only with an empty data folder", dunlin.ErrConflict, s.Name, addr, s.Cluster, ours)
}

// clash refuses a second living node with a name or an id. A node at this node's own address is an earlier life of this one.
func (d *delegate) clash(self, s *Self, addr string) error {
	switch {
	case s.Name == self.Name && s.ID == self.ID:
		return sameID(s, addr, &Seen{Self: *self, Addr: d.addr})
	case s.Name == self.Name:
		return sameName(s, addr, &Seen{Self: *self, Addr: d.addr})
	case s.ID == self.ID:
		return sameID(s, addr, &Seen{Self: *self, Addr: d.addr})
	}
	byName, byID := d.view.find(s.Name, s.ID)
	if byID != nil && byID.Addr != addr {
		return sameID(s, addr, byID)
	}
	if byName != nil && byName.ID != s.ID && byName.Addr != addr {
		return sameName(s, addr, byName)
	}
	return nil
}

func sameName(a *Self, addr string, b *Seen) error {
	return fmt.Errorf("%w: the name %s is taken twice, by node %s at %s and by node %s at %s: give the later one another name; "+
		"if it replaces the other, stop that one and try again in a few seconds", dunlin.ErrConflict, a.Name, a.ID, addr, b.ID, b.Addr)
}

func sameID(a *Self, addr string, b *Seen) error {
	return fmt.Errorf("%w: node %s runs twice, as %s at %s and as %s at %s: two nodes can't share a data folder or a copy of it; "+
		"if the other is an earlier run of this one, try again in a few seconds", dunlin.ErrConflict, a.ID, a.Name, addr, b.Name, b.Addr)
}

// NotifyConflict implements memberlist.ConflictDelegate: two nodes live under one name, at two addresses. They met after
// both were in. Here it matters only if this node is one of them and came later; and only if it lasts: right after a node
// came back at another address, the others still take its former life for alive.
func (d *delegate) NotifyConflict(existing, other *memberlist.Node) {
	self := d.self.Load()
	if existing.Name != self.Name {
		return
	}
	s, err := parseMeta(other.Name, other.Meta)
	if err != nil {
		return
	}
	later := s.Started < self.Started || s.Started == self.Started && s.ID < self.ID
	clash := sameName(&s, other.Address(), &Seen{Self: self.Self, Addr: existing.Address()})
	if s.ID == self.ID {
		clash = sameID(&s, other.Address(), &Seen{Self: self.Self, Addr: existing.Address()})
	}
	d.met.refused.Inc()
	d.refusals.conflict(clash, later, d.cfg.Clock())
	(*Gossip)(d).changed()
}
