package cluster

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/control"
	"github.com/dunlin-iot/dunlin/cluster/replica"
)

// report is what a node says of itself and of the shards that it owns.
type report struct {
	Replicas int           `json:"replicas"`
	DiskUsed int64         `json:"disk_used"`
	DiskFree int64         `json:"disk_free"`
	Shards   []shardReport `json:"shards"`

	at dunlin.Time // by the clock of who asked
}

type shardReport struct {
	Shard    dunlin.ShardID     `json:"shard"`
	Term     uint64             `json:"term"`
	Commit   uint64             `json:"commit"`
	Bytes    int64              `json:"bytes"`
	Conf     replica.Conf       `json:"conf"`
	Progress []control.Progress `json:"progress"`
}

// view is the cluster as this node sees it.
func (c *Cluster) view(ctx context.Context) (*control.View, error) {
	members, err := c.memberRows()
	if err != nil {
		return nil, err
	}
	places, err := c.readPlacements()
	if err != nil {
		return nil, err
	}
	v := &control.View{Now: c.cfg.Clock(), Replication: c.cfg.Replication, Members: members}
	reports := c.gather(ctx, members)
	owns := make(map[dunlin.ShardID]*shardReport, c.cfg.Shards)
	from := make(map[dunlin.ShardID]dunlin.NodeID, c.cfg.Shards)
	for i := range v.Members {
		m := &v.Members[i]
		r := reports[m.ID]
		if r == nil {
			continue
		}
		m.Replicas, m.DiskUsed, m.DiskFree = r.Replicas, r.DiskUsed, r.DiskFree
		if m.Alive { // the dead own nothing, whatever they said last
			m.Leads = len(r.Shards)
		}
		for j := range r.Shards {
			s := &r.Shards[j]
			if old := owns[s.Shard]; old == nil || old.Term < s.Term {
				owns[s.Shard], from[s.Shard] = s, m.ID
			}
		}
	}
	for sh := range c.cfg.Shards {
		id := dunlin.ShardID(sh)
		s := control.Shard{ID: id, Row: places.of[sh]}
		if r := owns[id]; r != nil {
			r.fill(&s, from[id])
			s.Age = v.Now.Sub(reports[from[id]].at)
		}
		v.Shards = append(v.Shards, s)
	}
	requests, err := c.cfg.Store.Rows(dunlin.MetaShard, dunlin.TableCluster, "", "", 0)
	if err != nil {
		return nil, err
	}
	for _, p := range requests {
		if p.Key == control.ClusterKey {
			row, err := control.DecodeCluster(p.Value)
			if err != nil {
				return nil, err
			}
			v.Replication = row.Replication
		}
		if !control.IsRequestKey(p.Key) {
			continue
		}
		r, err := control.DecodeRequest(p.Value)
		if err != nil {
			return nil, err
		}
		v.Requests = append(v.Requests, r)
	}
	return v, nil
}

// gather asks all living members for their reports, all at once, and remembers the answers: the report of a node that does
// not answer in time grows old.
func (c *Cluster) gather(ctx context.Context, members []control.Member) map[dunlin.NodeID]*report {
	ctx, cancel := context.WithTimeout(ctx, reportWait)
	defer cancel()
	var wg sync.WaitGroup
	for i := range members {
		id := members[i].ID
		if !members[i].Alive || members[i].State == dunlin.MemberLeft {
			continue
		}
		wg.Go(func() {
			r := &report{}
			if err := c.call(ctx, id, methodReport, nil, r); err != nil {
				return
			}
			r.at = c.cfg.Clock()
			c.steward.Lock()
			c.steward.reports[id] = r
			c.steward.Unlock()
		})
	}
	wg.Wait()
	out := map[dunlin.NodeID]*report{}
	c.steward.Lock()
	defer c.steward.Unlock()
	for i := range members {
		if r := c.steward.reports[members[i].ID]; r != nil {
			out[members[i].ID] = r
		}
	}
	return out
}

// report says what this node owns.
func (c *Cluster) report() *report {
	r := &report{}
	if c.cfg.Disk != nil {
		if used, free, err := c.cfg.Disk(); err == nil {
			r.DiskUsed, r.DiskFree = used, free
		}
	}
	for sh := range c.cfg.Shards {
		id := dunlin.ShardID(sh)
		s := c.host.Status(id)
		if s.Present {
			r.Replicas++
		}
		if sr := c.shardReport(&s); sr != nil {
			sr.Bytes = c.sizes.of(id, c.cfg.Clock(), c.cfg.Store.Bytes)
			r.Shards = append(r.Shards, *sr)
		}
	}
	return r
}

// shardReport says what this node knows of a shard that it owns; nil if it doesn't.
func (c *Cluster) shardReport(s *replica.Status) *shardReport {
	term, ok := c.host.Owned(s.Shard)
	if !ok || term != s.Term {
		return nil
	}
	r := &shardReport{Shard: s.Shard, Term: term, Commit: s.Commit, Conf: s.Conf,
		Progress: []control.Progress{{Node: c.cfg.NodeID, Match: s.Last, Active: true}}}
	for _, p := range s.Progress {
		r.Progress = append(r.Progress, control.Progress{Node: p.Node, Match: p.Match, Active: p.Active, Snapshot: p.Snapshot})
	}
	return r
}

// fill completes a shard of the controller's view with its owner's report.
func (r *shardReport) fill(s *control.Shard, owner dunlin.NodeID) {
	s.Owner, s.Term, s.Commit, s.Bytes, s.Replicas = owner, r.Term, r.Commit, r.Bytes, r.Progress
	s.Conf = control.Conf{Index: r.Conf.Index, Voters: r.Conf.Voters, Outgoing: r.Conf.Outgoing, Learners: r.Conf.Learners, LearnersNext: r.Conf.LearnersNext}
}

// memberRows reads the members, with what gossip sees of them.
func (c *Cluster) memberRows() ([]control.Member, error) {
	rows, err := c.cfg.Store.Rows(dunlin.MetaShard, dunlin.TableMembers, "", "", 0)
	if err != nil {
		return nil, err
	}
	now := c.cfg.Clock()
	out := make([]control.Member, 0, len(rows))
	for _, p := range rows {
		m, err := control.DecodeMember(p.Value)
		if err != nil {
			return nil, fmt.Errorf("member %s: %w", p.Key, err)
		}
		m.Alive = c.Alive(m.ID)
		if c.net != nil {
			m.Gossip = c.gossipAddr(&m)
		}
		if c.net != nil && !m.Alive {
			if s, ok := c.net.Seen(m.ID); ok {
				m.DownFor = dunlin.Duration(max(now.Sub(s.Since), 0))
			} else {
				m.DownFor = dunlin.Duration(c.unseen(now))
			}
		}
		out = append(out, m)
	}
	return out, nil
}

// unseen is how long a member is down that gossip never saw: since this node started, for all it knows.
func (c *Cluster) unseen(now dunlin.Time) time.Duration {
	return max(now.Sub(dunlin.Time(c.started.Load())), 0)
}

// sizes remembers how large shards are: to estimate it costs more than all else in a report, and it does not change by the second.
type sizes struct {
	sync.Mutex
	known map[dunlin.ShardID]size
}

type size struct {
	bytes int64
	at    dunlin.Time
}

// sizeAge is how old an estimate may be.
const sizeAge = 10 * time.Second

func (s *sizes) of(sh dunlin.ShardID, now dunlin.Time, estimate func(dunlin.ShardID) int64) int64 {
	s.Lock()
	defer s.Unlock()
	k, ok := s.known[sh]
	if !ok || now.Sub(k.at) > sizeAge {
		if s.known == nil {
			s.known = map[dunlin.ShardID]size{}
		}
		k = size{estimate(sh), now}
		s.known[sh] = k
	}
	return k.bytes
}
