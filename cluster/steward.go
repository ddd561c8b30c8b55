package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/control"
	"github.com/dunlin-iot/dunlin/cluster/gossip"
	"github.com/dunlin-iot/dunlin/cluster/replica"
)

// steward is what the controller's shell remembers. The controller itself is package control: pure, and run by whoever owns
// the meta shard.
type steward struct {
	sync.Mutex
	reports map[dunlin.NodeID]*report
	busy    map[dunlin.ShardID]bool // a change or a transfer of the shard is under way
	hints   []gossip.Hint           // as told last; the follower's
}

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

// Paces of the controller.
const (
	controlEvery = time.Second
	reportWait   = 400 * time.Millisecond
	actionWait   = 10 * time.Second
)

// controlLoop is the controller's shell: while this node owns the meta shard it looks at the cluster, plans, and carries the
// plan out. A step that fails is planned again.
func (c *Cluster) controlLoop(ctx context.Context) {
	tick := time.NewTicker(controlEvery)
	defer tick.Stop()
	var brain *control.Controller
	var brainTerm uint64
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		case <-c.controls:
		}
		term, ok := c.host.Owned(dunlin.MetaShard)
		if !ok {
			brain = nil
			continue
		}
		if brain == nil || brainTerm != term {
			brain, brainTerm = control.New(c.limits), term
		}
		v, err := c.view(ctx)
		if err == nil {
			err = c.found(ctx, term)
		}
		if err != nil {
			c.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "the controller can't see the cluster", slog.Any("error", err))
			continue
		}
		c.carryOut(ctx, term, brain.Step(v))
	}
}

// found writes down, once, what was decided when the cluster began: whoever controls later goes by that, and not by its own
// configuration.
func (c *Cluster) found(ctx context.Context, term uint64) error {
	rows, err := c.cfg.Store.Rows(dunlin.MetaShard, dunlin.TableCluster, control.ClusterKey, "", 1)
	if err != nil || len(rows) > 0 && rows[0].Key == control.ClusterKey {
		return err
	}
	row := control.Cluster{ID: c.cfg.ClusterID, Shards: c.cfg.Shards, Replication: c.cfg.Replication, Born: c.cfg.Clock()}
	return c.put(ctx, term, []dunlin.Put{{Table: dunlin.TableCluster, Key: control.ClusterKey, Value: control.EncodeCluster(&row)}})
}

// carryOut does what the plan says. Rows are written in one entry; what owners are asked for runs beside.
func (c *Cluster) carryOut(ctx context.Context, term uint64, plan []control.Action) {
	var puts []dunlin.Put
	for _, a := range plan {
		attrs := []slog.Attr{slog.String("why", a.Why())}
		switch a := a.(type) {
		case *control.WritePlacement:
			puts = append(puts, dunlin.Put{Table: dunlin.TablePlacement, Key: control.PlacementKey(a.Row.Shard), Value: control.EncodePlacement(&a.Row)})
			attrs = append(attrs, slog.Int("shard", int(a.Row.Shard)))
		case *control.SetMemberState:
			put, err := c.memberPut(a.Member, func(m *control.Member) { m.State = a.State })
			if err != nil {
				c.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "a member's state was not changed", slog.Any("error", err))
				continue
			}
			puts = append(puts, put)
		case *control.EndRequest:
			puts = append(puts, dunlin.Put{Table: dunlin.TableCluster, Key: control.RequestKey(a.Shard)})
		case *control.Change:
			c.ask(ctx, a.Shard, a.Owner, methodChange, a)
			attrs = append(attrs, slog.Int("shard", int(a.Shard)))
		case *control.Transfer:
			c.ask(ctx, a.Shard, a.Owner, methodTransfer, a)
			attrs = append(attrs, slog.Int("shard", int(a.Shard)))
		}
		c.cfg.Logger.LogAttrs(ctx, slog.LevelDebug, "controller", append(attrs, slog.String("step", fmt.Sprintf("%T", a)))...)
	}
	if len(puts) == 0 {
		return
	}
	if err := c.put(ctx, term, puts); err != nil {
		c.cfg.Logger.LogAttrs(ctx, slog.LevelWarn, "the controller's rows were not written", slog.Any("error", err))
		return
	}
	poke(c.controls) // the next step follows from these
}

// ask has a shard's owner do something, one thing of a shard at a time.
func (c *Cluster) ask(ctx context.Context, sh dunlin.ShardID, owner dunlin.NodeID, method string, what any) {
	c.steward.Lock()
	busy := c.steward.busy[sh]
	c.steward.busy[sh] = true
	c.steward.Unlock()
	if busy {
		return
	}
	go func() {
		ctx, cancel := context.WithTimeout(ctx, actionWait)
		defer cancel()
		if err := c.call(ctx, owner, method, what, nil); err != nil && ctx.Err() == nil {
			level := slog.LevelInfo
			if errors.Is(err, dunlin.ErrConflict) || errors.Is(err, dunlin.ErrNotOwner) { // it came late
				level = slog.LevelDebug
			}
			c.cfg.Logger.LogAttrs(ctx, level, "a step of the controller failed and will be planned again",
				slog.Int("shard", int(sh)), slog.String("step", method), slog.Any("error", err))
		}
		c.steward.Lock()
		delete(c.steward.busy, sh)
		c.steward.Unlock()
		poke(c.controls)
	}()
}

// put writes rows of the meta shard, as its owner in term, and returns when they are committed and applied.
func (c *Cluster) put(ctx context.Context, term uint64, puts []dunlin.Put) error {
	data := c.cfg.Encode(&dunlin.Entry{Shard: dunlin.MetaShard, Term: term, At: c.cfg.Clock(), Puts: puts}, c.EntryVersion())
	done := make(chan error, 1)
	c.host.Propose(dunlin.MetaShard, term, data, func(_ uint64, err error) { done <- err })
	c.host.Flush()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", dunlin.ErrUnavailable, context.Cause(ctx))
	}
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
			sr.Bytes = c.cfg.Store.Bytes(id)
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

// gossipAddr is where a member gossips: as gossip sees it, else next to the links that its row names.
func (c *Cluster) gossipAddr(m *control.Member) string {
	if s, ok := c.net.Seen(m.ID); ok && s.Addr != "" {
		return s.Addr
	}
	host, port, err := net.SplitHostPort(m.Peer)
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
	for _, m := range c.places.Load().addrs {
		if addr := c.gossipAddr(&m); m.ID != c.cfg.NodeID && m.State != dunlin.MemberLeft && addr != "" && !slices.Contains(out, addr) {
			out = append(out, addr)
		}
	}
	return out
}

// memberPut changes a member's row.
func (c *Cluster) memberPut(id dunlin.NodeID, change func(*control.Member)) (dunlin.Put, error) {
	m, ok := c.places.Load().addrs[id]
	if !ok {
		return dunlin.Put{}, fmt.Errorf("member %s: %w", id, dunlin.ErrNotFound)
	}
	change(&m)
	return dunlin.Put{Table: dunlin.TableMembers, Key: control.MemberKey(id), Value: control.EncodeMember(&m)}, nil
}

// marshal makes the body of a call; what goes in can always be written.
func marshal(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic(fmt.Sprintf("cluster: encode a call: %v", err))
	}
	return b
}
