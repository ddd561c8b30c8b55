package cluster

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/control"
)

var _ dunlin.ClusterAdmin = (*Cluster)(nil)

// ClusterStatus implements dunlin.ClusterAdmin.
func (c *Cluster) ClusterStatus(ctx context.Context) (*dunlin.ClusterStatus, error) {
	v, err := c.view(ctx)
	if err != nil {
		return nil, err
	}
	st := control.Health(v, c.limits)
	st.Cluster, st.Node, st.Name = c.cfg.ClusterID, c.cfg.NodeID, c.cfg.Name
	return &st, nil
}

// Members implements dunlin.ClusterAdmin. Those that left are not listed.
func (c *Cluster) Members(ctx context.Context) ([]dunlin.Member, error) {
	v, err := c.view(ctx)
	if err != nil {
		return nil, err
	}
	var out []dunlin.Member
	for i := range v.Members {
		if v.Members[i].State != dunlin.MemberLeft {
			out = append(out, v.Members[i].Member)
		}
	}
	slices.SortFunc(out, func(a, b dunlin.Member) int { return strings.Compare(a.Name, b.Name) })
	return out, nil
}

// MembersSeen returns the members as this node knows them without asking anybody.
func (c *Cluster) MembersSeen() []dunlin.Member {
	places := c.places.Load()
	out := make([]dunlin.Member, 0, len(places.addrs))
	for _, m := range places.addrs {
		if m.State == dunlin.MemberLeft {
			continue
		}
		m.Alive = c.Alive(m.ID)
		if c.net != nil {
			// What gossip says is newer than the row, once it says something: a node that starts is seen before it has all its
			// addresses, and most often gets those that it had.
			if s, ok := c.net.Seen(m.ID); ok {
				m.Peer, m.Calls, m.HTTP = cmp.Or(s.Peer, m.Peer), cmp.Or(s.Calls, m.Calls), cmp.Or(s.HTTP, m.HTTP)
			}
		}
		out = append(out, m.Member)
	}
	slices.SortFunc(out, func(a, b dunlin.Member) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// ShardReplicas implements dunlin.ClusterAdmin.
func (c *Cluster) ShardReplicas(ctx context.Context) ([]dunlin.ShardReplicas, error) {
	v, err := c.view(ctx)
	if err != nil {
		return nil, err
	}
	names := map[dunlin.NodeID]string{}
	for i := range v.Members {
		names[v.Members[i].ID] = v.Members[i].Name
	}
	out := make([]dunlin.ShardReplicas, 0, len(v.Shards))
	for i := range v.Shards {
		out = append(out, describe(v, &v.Shards[i], names))
	}
	return out, nil
}

func describe(v *control.View, s *control.Shard, names map[dunlin.NodeID]string) dunlin.ShardReplicas {
	r := dunlin.ShardReplicas{Shard: s.ID, Owner: s.Owner, Term: s.Term, Commit: s.Commit, Bytes: s.Bytes,
		Replicas: []dunlin.Replica{}, Moving: control.Moving(v, s)}
	voters, learners := s.Conf.Voters, slices.Concat(s.Conf.Learners, s.Conf.LearnersNext)
	if s.Owner == 0 {
		r.Missing = "no owner"
		voters, learners = s.Row.Voters, s.Row.Learners
	}
	add := func(id dunlin.NodeID, role dunlin.ReplicaRole) {
		if slices.ContainsFunc(r.Replicas, func(x dunlin.Replica) bool { return x.Node == id }) {
			return
		}
		x := dunlin.Replica{Node: id, Name: names[id], Role: role}
		for _, p := range s.Replicas {
			if p.Node == id {
				x.Match, x.Active, x.Behind = p.Match, p.Active, s.Commit-min(p.Match, s.Commit)
			}
		}
		r.Replicas = append(r.Replicas, x)
	}
	for _, id := range voters {
		add(id, dunlin.RoleVoter)
	}
	for _, id := range s.Conf.Outgoing {
		add(id, dunlin.RoleOutgoing)
	}
	for _, id := range learners {
		add(id, dunlin.RoleLearner)
	}
	slices.SortFunc(r.Replicas, func(a, b dunlin.Replica) int { return strings.Compare(a.Name, b.Name) })
	return r
}

// SetMember implements dunlin.ClusterAdmin.
func (c *Cluster) SetMember(ctx context.Context, name string, state dunlin.MemberState) error {
	id, err := c.member(name)
	if err != nil {
		return err
	}
	return c.callController(ctx, methodState, &stateRequest{Member: id, State: state}, nil)
}

// MoveReplica implements dunlin.ClusterAdmin.
func (c *Cluster) MoveReplica(ctx context.Context, sh dunlin.ShardID, from, to string) error {
	if int(sh) >= c.cfg.Shards {
		return fmt.Errorf("%w: shard %d of %d", dunlin.ErrNotFound, sh, c.cfg.Shards)
	}
	r := control.Request{Shard: sh}
	var err error
	if r.To, err = c.member(to); err != nil {
		return err
	}
	if from != "" {
		if r.From, err = c.member(from); err != nil {
			return err
		}
	}
	return c.callController(ctx, methodMove, &r, nil)
}

// member finds a member by its name or id. Of two with one name it is the one that joined last.
func (c *Cluster) member(name string) (dunlin.NodeID, error) {
	if _, err := c.readPlacements(); err != nil {
		return 0, err
	}
	var found control.Member
	for id, m := range c.places.Load().addrs {
		if id.String() == name {
			return id, nil
		}
		if m.Name == name && m.State != dunlin.MemberLeft && (found.ID == 0 || m.Joined > found.Joined) {
			found = m
		}
	}
	if found.ID == 0 {
		return 0, fmt.Errorf("member %q: %w", name, dunlin.ErrNotFound)
	}
	return found.ID, nil
}
