package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"

	"github.com/dunlin-iot/dunlin"
)

// An operator's calls are those of the dictionary.
var _ dunlin.ClusterAdmin = (*Client)(nil)

// ClusterStatus says whether the cluster is well, and what is wrong or under way.
func (c *Client) ClusterStatus(ctx context.Context) (*dunlin.ClusterStatus, error) {
	return get[dunlin.ClusterStatus](ctx, c, "/v1/cluster", nil)
}

// Members lists the cluster's members by name.
func (c *Client) Members(ctx context.Context) ([]dunlin.Member, error) {
	l, err := get[list[dunlin.Member]](ctx, c, "/v1/cluster/members", nil)
	if err != nil {
		return nil, err
	}
	return l.Items, nil
}

// ShardReplicas lists the shards with their replicas.
func (c *Client) ShardReplicas(ctx context.Context) ([]dunlin.ShardReplicas, error) {
	l, err := get[list[dunlin.ShardReplicas]](ctx, c, "/v1/cluster/shards", nil)
	if err != nil {
		return nil, err
	}
	return l.Items, nil
}

// OwnReplicas says what the answering node knows of its own replicas; it asks no other node.
func (c *Client) OwnReplicas(ctx context.Context) (*dunlin.NodeReplicas, error) {
	return get[dunlin.NodeReplicas](ctx, c, "/v1/cluster/replicas", nil)
}

// ShardHash has a member sum up its replica of a shard; "" is the node that answers. Replicas that have applied as much have
// the same hash. It reads all of the shard.
func (c *Client) ShardHash(ctx context.Context, shard dunlin.ShardID, member string) (*dunlin.ShardHash, error) {
	q := url.Values{}
	if member != "" {
		q.Set("member", member)
	}
	return get[dunlin.ShardHash](ctx, c, path("v1", "cluster", "shards", strconv.Itoa(int(shard)), "hash"), q)
}

// SetMember drains a member (dunlin.MemberDraining), takes that back (MemberActive) or lets it leave (MemberLeaving). It
// returns once this is committed; Members and ShardReplicas show the progress.
func (c *Client) SetMember(ctx context.Context, name string, state dunlin.MemberState) error {
	body, err := json.Marshal(map[string]dunlin.MemberState{"state": state})
	if err != nil {
		return err
	}
	_, err = c.do(ctx, request{method: http.MethodPut, path: path("v1", "cluster", "members", name, "state"),
		header: http.Header{"Content-Type": {"application/json"}}, body: body, again: true}, nil)
	return err
}

// MoveReplica moves a shard's replica from one member to another; with to already a replica, it makes it the owner, and from
// may be empty.
func (c *Client) MoveReplica(ctx context.Context, shard dunlin.ShardID, from, to string) error {
	body, err := json.Marshal(struct {
		From string `json:"from,omitempty"`
		To   string `json:"to"`
	}{from, to})
	if err != nil {
		return err
	}
	_, err = c.do(ctx, request{method: http.MethodPost, path: path("v1", "cluster", "shards", strconv.Itoa(int(shard)), "move"),
		header: http.Header{"Content-Type": {"application/json"}}, body: body}, nil)
	return err
}
