package cluster

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/control"
	"github.com/dunlin-iot/dunlin/cluster/replica"
)

// The calls between the clusters' hosts and controllers; bodies are JSON but for chunks. Names are part of the wire.
const (
	methodHello    = "cluster/hello"    // → Founding
	methodReport   = "cluster/report"   // → report
	methodChange   = "cluster/change"   // control.Change, to the shard's owner
	methodTransfer = "cluster/transfer" // control.Transfer, likewise
	methodRegister = "cluster/register" // control.Member, to the controller
	methodState    = "cluster/state"    // stateRequest, likewise
	methodMove     = "cluster/move"     // control.Request, likewise
	methodHash     = "cluster/hash"     // hashRequest → dunlin.ShardHash
	methodChunk    = "snapshot/chunk"   // chunkRequest → u8 last, data
	methodRelease  = "snapshot/release" // chunkRequest
)

type stateRequest struct {
	Member dunlin.NodeID      `json:"member"`
	State  dunlin.MemberState `json:"state"`
}

type chunkRequest struct {
	ID    string `json:"id"`
	Chunk int    `json:"chunk"`
}

// call asks a node, this one included.
func (c *Cluster) call(ctx context.Context, to dunlin.NodeID, method string, in, out any) error {
	var body []byte
	if in != nil {
		body = marshal(in)
	}
	var b []byte
	var err error
	switch {
	case to == c.cfg.NodeID:
		b, err = c.serve(ctx, to, method, body)
	case c.net == nil:
		err = fmt.Errorf("%w: this node has no way to others", dunlin.ErrUnavailable)
	default:
		b, err = c.net.links.Call(ctx, to, method, body)
	}
	if err != nil || out == nil {
		return err
	}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%w: answer to %s: %w", dunlin.ErrInvalid, method, err)
	}
	return nil
}

// callController asks whoever owns the meta shard; if nobody is known to, or the one that was known does not any more, every
// living member is asked in turn.
func (c *Cluster) callController(ctx context.Context, method string, in, out any) error {
	err := error(fmt.Errorf("%w: nobody is known to be the controller", dunlin.ErrUnavailable))
	asked := map[dunlin.NodeID]bool{}
	try := func(id dunlin.NodeID) bool {
		if asked[id] || ctx.Err() != nil {
			return false
		}
		asked[id] = true
		one, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		err = c.call(one, id, method, in, out)
		return !errors.Is(err, dunlin.ErrNotOwner) && !errors.Is(err, dunlin.ErrUnavailable)
	}
	if id, _, ok := c.Owner(dunlin.MetaShard); ok && try(id) {
		return err
	}
	for _, id := range c.living() {
		if try(id) {
			return err
		}
	}
	if errors.Is(err, dunlin.ErrNotOwner) {
		return fmt.Errorf("%w: no member that can be reached is the controller: shard %d has no owner", dunlin.ErrUnavailable, dunlin.MetaShard)
	}
	return err
}

// living are the nodes that gossip sees alive.
func (c *Cluster) living() []dunlin.NodeID {
	out := []dunlin.NodeID{c.cfg.NodeID}
	if c.net == nil {
		return out
	}
	for id, s := range *c.net.seen.Load() {
		if s.Alive && id != c.cfg.NodeID {
			out = append(out, id)
		}
	}
	return out
}

// serve answers a call of a node.
func (c *Cluster) serve(ctx context.Context, from dunlin.NodeID, method string, body []byte) ([]byte, error) {
	switch method {
	case methodHello:
		return marshal(Founding{Cluster: c.cfg.ClusterID, Shards: c.cfg.Shards, Replication: c.cfg.Replication}), nil
	case methodReport:
		return marshal(c.report()), nil
	case methodChange:
		return nil, answer(ctx, body, c.serveChange)
	case methodTransfer:
		return nil, answer(ctx, body, c.serveTransfer)
	case methodRegister:
		return nil, answer(ctx, body, func(ctx context.Context, m *control.Member) error { return c.serveRegister(ctx, from, m) })
	case methodState:
		return nil, answer(ctx, body, c.serveState)
	case methodMove:
		return nil, answer(ctx, body, c.serveMove)
	case methodHash:
		return c.serveHash(ctx, body)
	case methodChunk:
		return c.serveChunk(body)
	case methodRelease:
		return nil, answer(ctx, body, func(_ context.Context, r *chunkRequest) error { c.cfg.Chunks.Release(r.ID); return nil })
	}
	return nil, fmt.Errorf("%w: call %q", dunlin.ErrNotFound, method)
}

// answer decodes a call's body and has it answered.
func answer[T any](ctx context.Context, body []byte, f func(context.Context, *T) error) error {
	in := new(T)
	if err := json.Unmarshal(body, in); err != nil {
		return fmt.Errorf("%w: body of a call: %w", dunlin.ErrInvalid, err)
	}
	return f(ctx, in)
}

func (c *Cluster) serveChange(ctx context.Context, a *control.Change) error {
	st := c.host.Status(a.Shard)
	r := c.shardReport(&st)
	if r == nil {
		return dunlin.ErrNotOwner
	}
	now := control.Shard{ID: a.Shard}
	r.fill(&now, c.cfg.NodeID)
	if err := a.Check(&now, c.limits); err != nil {
		return err
	}
	changes := make([]replica.ReplicaChange, 0, len(a.Replicas))
	for _, r := range a.Replicas {
		changes = append(changes, replica.ReplicaChange{Node: r.Node, Kind: replica.ChangeKind(r.Kind)})
	}
	return c.host.Change(ctx, a.Shard, changes)
}

func (c *Cluster) serveTransfer(ctx context.Context, a *control.Transfer) error {
	if term, ok := c.host.Owned(a.Shard); !ok || term != a.Term {
		return dunlin.ErrNotOwner
	}
	return c.host.Transfer(ctx, a.Shard, a.To)
}

// controller returns the term in which this node owns the meta shard.
func (c *Cluster) controller() (term uint64, err error) {
	term, ok := c.host.Owned(dunlin.MetaShard)
	if !ok {
		return 0, dunlin.ErrNotOwner
	}
	_, err = c.readPlacements()
	return term, err
}

// holdMembers waits until nobody else rewrites a member's row, and reads the rows; let ends that. Without it a node that
// registers writes back the state that it had before the operator's order that is just being written.
func (c *Cluster) holdMembers(ctx context.Context) (let func(), err error) {
	select {
	case c.members <- struct{}{}:
	case <-ctx.Done():
		return nil, fmt.Errorf("%w: %w", dunlin.ErrUnavailable, context.Cause(ctx))
	}
	let = func() { <-c.members }
	if _, err := c.readPlacements(); err != nil {
		let()
		return nil, err
	}
	return let, nil
}

func (c *Cluster) serveRegister(ctx context.Context, from dunlin.NodeID, m *control.Member) error {
	let, err := c.holdMembers(ctx)
	if err != nil {
		return err
	}
	defer let()
	term, err := c.controller()
	if err != nil {
		return err
	}
	if m.ID != from || m.ID == 0 {
		return fmt.Errorf("%w: node %s can't register %s", dunlin.ErrForbidden, from, m.ID)
	}
	if err := dunlin.DeviceID(m.Name).Validate(); err != nil {
		return fmt.Errorf("a node's name: %w", err)
	}
	members := c.places.Load().addrs
	others := false // a node alone may have been upgraded, and write what the newcomer can't read
	for id := range members {
		others = others || id != m.ID
	}
	if v := c.EntryVersion(); others && m.EntryMax < v {
		return fmt.Errorf("%w: the cluster writes entries of version %d and %s reads versions up to %d: start it with a newer dunlin",
			dunlin.ErrForbidden, v, m.Name, m.EntryMax)
	}
	for _, old := range members {
		if old.Name == m.Name && old.ID != m.ID && old.State != dunlin.MemberLeft && c.Alive(old.ID) {
			return fmt.Errorf("%w: another living node is called %s (%s): give this one another name", dunlin.ErrConflict, m.Name, old.ID)
		}
	}
	m.State, m.Joined = dunlin.MemberActive, c.cfg.Clock()
	if old, ok := members[m.ID]; ok {
		if old.State == dunlin.MemberLeft {
			return fmt.Errorf("%w: node %s has left the cluster for good: start it with an empty data folder", dunlin.ErrForbidden, m.Name)
		}
		m.State, m.Joined = old.State, old.Joined
	}
	err = c.put(ctx, term, []dunlin.Put{{Table: dunlin.TableMembers, Key: control.MemberKey(m.ID), Value: control.EncodeMember(m)}})
	poke(c.controls)
	return err
}

func (c *Cluster) serveState(ctx context.Context, r *stateRequest) error {
	term, err := c.controller()
	if err != nil {
		return err
	}
	v, err := c.view(ctx)
	if err != nil {
		return err
	}
	if err := control.CanSet(v, r.Member, r.State, c.limits); err != nil {
		return err
	}
	let, err := c.holdMembers(ctx)
	if err != nil {
		return err
	}
	defer let()
	put, err := c.memberPut(r.Member, func(m *control.Member) error {
		m.State = r.State
		return nil
	})
	if err != nil {
		return err
	}
	err = c.put(ctx, term, []dunlin.Put{put})
	poke(c.controls)
	return err
}

func (c *Cluster) serveMove(ctx context.Context, r *control.Request) error {
	term, err := c.controller()
	if err != nil {
		return err
	}
	v, err := c.view(ctx)
	if err != nil {
		return err
	}
	if err := control.CanMove(v, r.Shard, r.From, r.To, c.limits); err != nil {
		return err
	}
	r.Asked = c.cfg.Clock()
	err = c.put(ctx, term, []dunlin.Put{{Table: dunlin.TableCluster, Key: control.RequestKey(r.Shard), Value: control.EncodeRequest(r)}})
	poke(c.controls)
	return err
}

func (c *Cluster) serveChunk(body []byte) ([]byte, error) {
	if len(body) < 4 {
		return nil, fmt.Errorf("%w: request for a chunk of %d bytes", dunlin.ErrInvalid, len(body))
	}
	i, id := binary.BigEndian.Uint32(body), string(body[4:])
	data, last, err := c.cfg.Chunks.Chunk(id, int(i))
	if err != nil {
		return nil, err
	}
	out := make([]byte, 1, 1+len(data))
	if last {
		out[0] = 1
	}
	return append(out, data...), nil
}

// fetch asks the node that made a snapshot for a chunk of it.
func (c *Cluster) fetch(ctx context.Context, meta dunlin.SnapshotMeta, i int) (data []byte, last bool, err error) {
	body := append(binary.BigEndian.AppendUint32(nil, uint32(i)), meta.ID...)
	b, err := c.net.links.Call(ctx, meta.From, methodChunk, body)
	if err != nil {
		return nil, false, err
	}
	if len(b) < 1 || b[0] > 1 {
		return nil, false, fmt.Errorf("%w: chunk %d of snapshot %s", dunlin.ErrInvalid, i, meta.ID)
	}
	return b[1:], b[0] == 1, c.pace.wait(ctx, len(b))
}
