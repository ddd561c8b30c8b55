package httpapi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/sdk/client"
)

// fakeCluster is a cluster of three members and two shards that does at once what it is told.
type fakeCluster struct {
	sync.Mutex
	members []dunlin.Member
	shards  []dunlin.ShardReplicas
	problem error
}

func newFakeCluster() *fakeCluster {
	f := &fakeCluster{}
	for i := range 3 {
		f.members = append(f.members, dunlin.Member{ID: dunlin.NodeID(i + 1), Name: fmt.Sprintf("n%d", i+1), State: dunlin.MemberActive, Alive: i < 2,
			Peer: "10.0.0.1:7947", WireMin: 1, WireMax: 1, EntryMax: 1, Replicas: 2})
	}
	f.members[2].DownFor = dunlin.Duration(90 * time.Second)
	f.members = append(f.members, dunlin.Member{ID: 9, Name: "cold-chain", State: dunlin.MemberActive, Alive: true})
	for sh := range dunlin.ShardID(2) {
		f.shards = append(f.shards, dunlin.ShardReplicas{Shard: sh, Owner: 1, Term: 3, Commit: 100, Bytes: 1 << 20, Replicas: []dunlin.Replica{
			{Node: 1, Name: "n1", Role: dunlin.RoleVoter, Match: 100, Active: true}, {Node: 2, Name: "n2", Role: dunlin.RoleLearner, Match: 83, Behind: 17, Active: true}}})
	}
	f.shards[1].Moving = "catch-up 83 %"
	return f
}

func (f *fakeCluster) ClusterStatus(context.Context) (*dunlin.ClusterStatus, error) {
	f.Lock()
	defer f.Unlock()
	if f.problem != nil {
		return nil, f.problem
	}
	return &dunlin.ClusterStatus{Cluster: "c1", Node: 1, Name: "n1", Controller: 2, Shards: 2, Replication: 3, Owned: 2, Full: 1, Members: 4, Alive: 3,
		Entries: 1, Problems: []string{"n3 is down for 1m30s: start it again"}}, nil
}

func (f *fakeCluster) Members(context.Context) ([]dunlin.Member, error) {
	f.Lock()
	defer f.Unlock()
	return slices.Clone(f.members), f.problem
}

func (f *fakeCluster) ShardReplicas(context.Context) ([]dunlin.ShardReplicas, error) {
	f.Lock()
	defer f.Unlock()
	return slices.Clone(f.shards), f.problem
}

func (f *fakeCluster) OwnReplicas(context.Context) (*dunlin.NodeReplicas, error) {
	f.Lock()
	defer f.Unlock()
	return &dunlin.NodeReplicas{Node: 1, Name: "n1", Replicas: []dunlin.OwnReplica{
		{Shard: 0, Term: 3, Owns: 3, Leader: 1, LeaderTerm: 3, Applied: 100, Commit: 101}, {Shard: 1, Term: 2, LeaderTerm: 2, Applied: 7, Commit: 7}}}, f.problem
}

func (f *fakeCluster) ShardHash(_ context.Context, sh dunlin.ShardID, member string) (*dunlin.ShardHash, error) {
	f.Lock()
	defer f.Unlock()
	h := &dunlin.ShardHash{Shard: sh, Node: 1, Name: "n1", Applied: 100, Hash: "3f9a"}
	switch {
	case int(sh) >= len(f.shards):
		return nil, fmt.Errorf("%w: shard %d of %d", dunlin.ErrNotFound, sh, len(f.shards))
	case member == "n2":
		h.Node, h.Name = 2, "n2"
	case member != "":
		return nil, fmt.Errorf("%w: %s has no replica of shard %d", dunlin.ErrNotFound, member, sh)
	}
	return h, f.problem
}

func (f *fakeCluster) SetMember(_ context.Context, name string, state dunlin.MemberState) error {
	f.Lock()
	defer f.Unlock()
	for i := range f.members {
		if m := &f.members[i]; m.Name == name || m.ID.String() == name {
			if state == dunlin.MemberLeaving && name == "n3" {
				return fmt.Errorf("%w: shards have 3 replicas, and without n3 only 2 living members could take them", dunlin.ErrConflict)
			}
			m.State = state
			return nil
		}
	}
	return fmt.Errorf("member %q: %w", name, dunlin.ErrNotFound)
}

func (f *fakeCluster) MoveReplica(_ context.Context, shard dunlin.ShardID, from, to string) error {
	f.Lock()
	defer f.Unlock()
	if int(shard) >= len(f.shards) {
		return fmt.Errorf("%w: shard %d of %d", dunlin.ErrNotFound, shard, len(f.shards))
	}
	f.shards[shard].Moving = from + " to " + to
	return nil
}

// The client sees through HTTP what the cluster says, and its errors.
func TestClusterThroughTheClient(t *testing.T) {
	b := newBed(t)
	fake := newFakeCluster()
	b.g.deps.Cluster = fake
	url, stop := b.serve()
	defer stop()
	c, err := client.New(url, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	ctx := t.Context()
	want, _ := fake.ClusterStatus(ctx)
	want.Moves = []string{}
	if got, err := c.ClusterStatus(ctx); err != nil || fmt.Sprint(*got) != fmt.Sprint(*want) {
		t.Errorf("status: got %+v, %v\nwant %+v", got, err, want)
	}
	if got, err := c.Members(ctx); err != nil || !slices.Equal(got, fake.members) {
		t.Errorf("members: got %+v, %v\nwant %+v", got, err, fake.members)
	}
	if got, err := c.ShardReplicas(ctx); err != nil || fmt.Sprint(got) != fmt.Sprint(fake.shards) {
		t.Errorf("shards: got %+v, %v\nwant %+v", got, err, fake.shards)
	}
	own, _ := fake.OwnReplicas(ctx)
	if got, err := c.OwnReplicas(ctx); err != nil || fmt.Sprint(*got) != fmt.Sprint(*own) {
		t.Errorf("own replicas: got %+v, %v\nwant %+v", got, err, own)
	}
	for _, member := range []string{"", "n2"} {
		want, _ := fake.ShardHash(ctx, 1, member)
		if got, err := c.ShardHash(ctx, 1, member); err != nil || *got != *want {
			t.Errorf("hash on %q: got %+v, %v\nwant %+v", member, got, err, want)
		}
	}
	if _, err := c.ShardHash(ctx, 1, "n3"); !errors.Is(err, dunlin.ErrNotFound) {
		t.Errorf("hash of a replica that is not there: %v", err)
	}
	b.want(b.do("GET", "/v1/cluster/shards/70000/hash", ""), 422)
	if err := c.SetMember(ctx, "n2", dunlin.MemberDraining); err != nil || fake.members[1].State != dunlin.MemberDraining {
		t.Errorf("drain: %v, %+v", err, fake.members[1])
	}
	if err := c.SetMember(ctx, fake.members[1].ID.String(), dunlin.MemberActive); err != nil || fake.members[1].State != dunlin.MemberActive {
		t.Errorf("drain taken back by id: %v, %+v", err, fake.members[1])
	}
	if err := c.MoveReplica(ctx, 1, "n2", "n3"); err != nil || fake.shards[1].Moving != "n2 to n3" {
		t.Errorf("move: %v, %+v", err, fake.shards[1])
	}
	for what, err := range map[error]error{
		dunlin.ErrNotFound: c.SetMember(ctx, "n7", dunlin.MemberDraining),
		dunlin.ErrConflict: c.SetMember(ctx, "n3", dunlin.MemberLeaving),
		dunlin.ErrInvalid:  c.SetMember(ctx, "n1", "retired"),
	} {
		if !errors.Is(err, what) {
			t.Errorf("got %v, want %v", err, what)
		}
	}
	if err := c.MoveReplica(ctx, 7, "", "n3"); !errors.Is(err, dunlin.ErrNotFound) {
		t.Errorf("a shard that is not there: %v", err)
	}
	fake.Lock()
	fake.problem = dunlin.ErrUnavailable
	fake.Unlock()
	b.want(b.do("GET", "/v1/cluster", ""), 503)
	b.want(b.do("GET", "/v1/cluster/members", ""), 503)
	b.want(b.do("GET", "/v1/cluster/shards", ""), 503)
	b.want(b.do("GET", "/v1/cluster/replicas", ""), 503)
	b.want(b.do("GET", "/v1/cluster/shards/1/hash", ""), 503)
	if got := parse[memberView](t, b.want(b.do("PUT", "/v1/cluster/members/n2/state", `{"state":"draining"}`), 200)); got.Name != "n2" || got.State != dunlin.MemberDraining {
		t.Errorf("a change that is committed, with nobody to tell of the members: %+v", got)
	}
	b.want(b.do("POST", "/v1/cluster/shards/1/move", `{}`), 422)
	b.want(b.do("POST", "/v1/cluster/shards/70000/move", `{"to":"n1"}`), 422)
	b.g.deps.Cluster = nil
	for _, path := range []string{"/v1/cluster", "/v1/cluster/members", "/v1/cluster/shards", "/v1/cluster/replicas", "/v1/cluster/shards/0/hash"} {
		b.want(b.do("GET", path, ""), 404)
	}
	b.want(b.do("PUT", "/v1/cluster/members/n2/state", `{"state":"draining"}`), 404)
	b.want(b.do("POST", "/v1/cluster/shards/1/move", `{"to":"n1"}`), 404)
}
