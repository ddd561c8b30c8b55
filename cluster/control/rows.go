package control

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

// RowBytesMax bounds a row that a decoder takes.
const RowBytesMax = 64 << 10

// nodesMax bounds the members that a row names.
const nodesMax = 1024

// Placement is a shard's row in dunlin.TablePlacement. A node makes an empty replica when the row names it, and destroys its
// replica when Drops says so. It must do neither while its own replica of the meta shard is behind, as it is after a start: a
// row of the past would let it destroy what was made since.
type Placement struct {
	Shard     dunlin.ShardID           `json:"shard"`
	Voters    []dunlin.NodeID          `json:"voters"`
	Learners  []dunlin.NodeID          `json:"learners,omitempty"`
	Epoch     uint64                   `json:"epoch"`            // counts the row's writes
	ConfIndex uint64                   `json:"conf_index"`       // the owner had applied so much when the row was written
	Was       map[dunlin.NodeID]uint64 `json:"was,omitempty"`    // the ConfIndex with which a member, still one, lost its replica
	Move      *Move                    `json:"moving,omitempty"` // the replica in motion
}

// Move is a replica in motion: To is among the learners, and takes the place of From, or just joins (From 0).
type Move struct {
	From  dunlin.NodeID `json:"from,omitzero"`
	To    dunlin.NodeID `json:"to"`
	Why   string        `json:"why"`
	Since dunlin.Time   `json:"since,omitzero"`
}

// Names reports whether the row gives the node a replica.
func (p *Placement) Names(id dunlin.NodeID) bool {
	return slices.Contains(p.Voters, id) || slices.Contains(p.Learners, id)
}

// Drops reports whether the node must destroy its replica of the shard, which has applied so much; member says whether the
// node is in the replica set as of then. A replica that was removed may have applied more than the row's writer had, but then
// it has applied its own removal; one that is on its way in is named.
func (p *Placement) Drops(id dunlin.NodeID, applied uint64, member bool) bool {
	return p.Epoch > 0 && !p.Names(id) && (applied <= p.ConfIndex || !member)
}

// Cluster is the one row of dunlin.TableCluster under ClusterKey: what was fixed at bootstrap, and the replication factor.
type Cluster struct {
	ID          string      `json:"id"` // random hex
	Shards      int         `json:"shards"`
	Replication int         `json:"replication"`
	Born        dunlin.Time `json:"born,omitzero"`
}

// ClusterKey is the key of the Cluster row.
const ClusterKey = "cluster"

// requestPrefix begins the keys of Requests in dunlin.TableCluster.
const requestPrefix = "move/"

// PlacementKey is a shard's key in dunlin.TablePlacement.
func PlacementKey(sh dunlin.ShardID) string { return strconv.Itoa(int(sh)) }

// MemberKey is a member's key in dunlin.TableMembers: its id, because the name of a wiped node has two rows until the old one
// is done with.
func MemberKey(id dunlin.NodeID) string { return id.String() }

// RequestKey is a Request's key in dunlin.TableCluster.
func RequestKey(sh dunlin.ShardID) string { return requestPrefix + strconv.Itoa(int(sh)) }

// IsRequestKey reports whether a row of dunlin.TableCluster is a Request.
func IsRequestKey(key string) bool { return strings.HasPrefix(key, requestPrefix) }

// memberRow is what is kept of a member; the rest is seen, not kept.
type memberRow struct {
	ID       dunlin.NodeID      `json:"id"`
	Name     string             `json:"name"`
	Zone     string             `json:"zone,omitempty"`
	State    dunlin.MemberState `json:"state"`
	Gossip   string             `json:"gossip,omitempty"`
	Peer     string             `json:"peer"`
	Calls    string             `json:"calls"`
	HTTP     string             `json:"http,omitempty"`
	Version  string             `json:"version,omitempty"`
	WireMin  uint32             `json:"wire_min"`
	WireMax  uint32             `json:"wire_max"`
	EntryMax uint32             `json:"entry_max"`
	Joined   dunlin.Time        `json:"joined,omitzero"`
}

// EncodeMember makes a member's row of what is kept of it.
func EncodeMember(m *Member) []byte {
	return encode(memberRow{m.ID, m.Name, m.Zone, m.State, m.Gossip, m.Peer, m.Calls, m.HTTP, m.Version, m.WireMin, m.WireMax, m.EntryMax, m.Joined})
}

// DecodeMember reads a member's row.
func DecodeMember(b []byte) (Member, error) {
	var r memberRow
	if err := decode("member", b, &r); err != nil {
		return Member{}, err
	}
	switch r.State {
	case dunlin.MemberActive, dunlin.MemberDraining, dunlin.MemberLeaving, dunlin.MemberLeft:
	default:
		return Member{}, fmt.Errorf("%w: member row: state %q", dunlin.ErrInvalid, r.State)
	}
	if r.ID == 0 || r.Name == "" || len(r.Name) > 255 || len(r.Zone) > 255 {
		return Member{}, fmt.Errorf("%w: member row of %s: name of %d bytes", dunlin.ErrInvalid, r.ID, len(r.Name))
	}
	return Member{Member: dunlin.Member{ID: r.ID, Name: r.Name, Zone: r.Zone, State: r.State, Gossip: r.Gossip, Peer: r.Peer, Calls: r.Calls, HTTP: r.HTTP,
		Version: r.Version, WireMin: r.WireMin, WireMax: r.WireMax, EntryMax: r.EntryMax}, Joined: r.Joined}, nil
}

// EncodePlacement makes a shard's row.
func EncodePlacement(p *Placement) []byte { return encode(p) }

// DecodePlacement reads a shard's row.
func DecodePlacement(b []byte) (Placement, error) {
	var p Placement
	if err := decode("placement", b, &p); err != nil {
		return Placement{}, err
	}
	all := append(slices.Clone(p.Voters), p.Learners...)
	if len(p.Voters) == 0 || len(all) > nodesMax || len(p.Was) > nodesMax || slices.Contains(all, 0) || len(slices.Compact(sorted(all))) != len(all) {
		return Placement{}, fmt.Errorf("%w: placement row of shard %d: %d voters, %d learners", dunlin.ErrInvalid, p.Shard, len(p.Voters), len(p.Learners))
	}
	if p.Move != nil && p.Move.To == 0 {
		return Placement{}, fmt.Errorf("%w: placement row of shard %d moves to nobody", dunlin.ErrInvalid, p.Shard)
	}
	return p, nil
}

// EncodeCluster makes the cluster's row.
func EncodeCluster(c *Cluster) []byte { return encode(c) }

// DecodeCluster reads the cluster's row.
func DecodeCluster(b []byte) (Cluster, error) {
	var c Cluster
	if err := decode("cluster", b, &c); err != nil {
		return Cluster{}, err
	}
	if c.ID == "" || len(c.ID) > 64 || c.Shards < 1 || c.Shards > 1<<16 || c.Replication < 1 || c.Replication > 9 {
		return Cluster{}, fmt.Errorf("%w: cluster row: %d shards, replication %d", dunlin.ErrInvalid, c.Shards, c.Replication)
	}
	return c, nil
}

// EncodeRequest makes a request's row.
func EncodeRequest(r *Request) []byte { return encode(r) }

// DecodeRequest reads a request's row.
func DecodeRequest(b []byte) (Request, error) {
	var r Request
	if err := decode("request", b, &r); err != nil {
		return Request{}, err
	}
	if r.To == 0 {
		return Request{}, fmt.Errorf("%w: request row of shard %d moves to nobody", dunlin.ErrInvalid, r.Shard)
	}
	return r, nil
}

func encode(v any) []byte {
	b, err := json.Marshal(v)
	if err != nil {
		panic("a row that doesn't marshal: " + err.Error())
	}
	return b
}

// decode is lenient about fields that it doesn't know: a newer build may have written them.
func decode(what string, b []byte, v any) error {
	if len(b) > RowBytesMax {
		return fmt.Errorf("%w: %s row of %d bytes", dunlin.ErrInvalid, what, len(b))
	}
	if err := json.NewDecoder(bytes.NewReader(b)).Decode(v); err != nil {
		return fmt.Errorf("%w: %s row: %w", dunlin.ErrInvalid, what, err)
	}
	return nil
}
