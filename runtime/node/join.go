package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster"
	"github.com/dunlin-iot/dunlin/cluster/keys"
	"github.com/dunlin-iot/dunlin/entry"
	"github.com/dunlin-iot/dunlin/store"
)

// keyFile keeps the cluster's secret in the data folder.
const keyFile = "cluster.key"

// membersFile keeps where the other members of the cluster gossip.
const membersFile = "members"

// identify finds out whose node this is: from the data folder, or, if that is new, from the configuration and the others.
func (n *Node) identify(ctx context.Context) error {
	if err := os.MkdirAll(n.cfg.Data, 0o700); err != nil {
		return fmt.Errorf("data folder: %w", err)
	}
	id, found, err := store.ReadIdentity(nil, n.folder())
	if err != nil {
		return err
	}
	if !found {
		id = store.Identity{NodeID: cluster.NewNodeID(), Shards: n.cfg.Shards}
	}
	id.Node = cmp.Or(n.cfg.Name, id.Node)
	if id.Node == "" {
		id.Node = n.defaultName()
	}
	n.identity, n.newborn = id, !found
	if n.cfg.Cluster == "" {
		n.bootstrap = true // a node alone; shards that are there are not born again
		n.identity.Cluster = cmp.Or(id.Cluster, cluster.NewClusterID())
		return nil
	}
	return n.connect(ctx)
}

func (n *Node) folder() string { return filepath.Join(n.cfg.Data, "db") }

// defaultName is the machine's, with the port where others reach the node if that is not the usual one.
func (n *Node) defaultName() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "node"
	}
	host, _, _ = strings.Cut(host, ".")
	if _, port, err := net.SplitHostPort(n.cfg.Cluster); err == nil && port != "7946" && port != "0" {
		host += "-" + port
	}
	clean := []byte(host)
	for i, c := range clean {
		if c != '-' && (c < '0' || c > '9') && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') {
			clean[i] = '-'
		}
	}
	name := strings.Trim(string(clean[:min(len(clean), dunlin.NameBytesMax)]), "-")
	return cmp.Or(name, "node")
}

// connect meets the other nodes, and learns from them which cluster this is if the data folder is new.
func (n *Node) connect(ctx context.Context) error {
	secret, err := n.secret()
	if err != nil {
		return err
	}
	id := &n.identity
	host, _, err := net.SplitHostPort(n.cfg.Cluster)
	if err != nil {
		return fmt.Errorf("%w: cluster address %q is not host:port", dunlin.ErrInvalid, n.cfg.Cluster)
	}
	if !n.newborn && id.Cluster == "" { // a node that was alone lets others join it
		id.Cluster = cluster.NewClusterID()
	}
	n.keys = secret
	n.network, err = cluster.Connect(cluster.NetworkConfig{Name: id.Node, Zone: n.cfg.Zone, Node: id.NodeID, Cluster: id.Cluster, Secret: secret,
		Bind: n.cfg.Cluster, Advertise: cmp.Or(n.cfg.Advertise, advertised(host)), Seeds: n.cfg.Join, Remember: filepath.Join(n.cfg.Data, membersFile), Expect: n.cfg.Expect,
		Version: n.cfg.Version, EntryMax: entry.Version, LinkChanged: n.linkChanged, Refused: n.refused, Log: n.obs.Log, Metrics: n.obs.Metrics})
	if err != nil {
		return err
	}
	n.net.run(n, n.network.Run)
	if !n.newborn {
		return n.network.Meet(ctx)
	}
	f, err := n.network.Found(ctx, func(what string) { n.obs.Log.Info("waiting for the cluster", "for", what) })
	if err != nil {
		return fmt.Errorf("join the cluster: %w", err)
	}
	id.Cluster, n.bootstrap = f.Cluster, f.Bootstrap
	if f.Shards != 0 {
		id.Shards = f.Shards
	}
	n.cfg.Replication = cmp.Or(f.Replication, n.cfg.Replication)
	return nil
}

// refused ends a node that the cluster will not have. One that is a member goes on, for it has met somebody else's, unless it
// is told that it has left: the others don't speak to it any more, so it can't read that itself. One that is closing ends
// anyway, and well.
func (n *Node) refused(err error) {
	if n.outer.ctx.Err() != nil {
		return
	}
	if n.ready.Load() && !errors.Is(err, dunlin.ErrForbidden) {
		n.obs.Log.Error("another node refuses this one", "error", err)
		return
	}
	n.fatal(err)
}

// linkChanged tells the door where what was sent before a cut may come late.
func (n *Node) linkChanged() {
	if m := n.mqtt.Load(); m != nil {
		m.LinkChanged()
	}
}

// advertised is the host that others dial if the node is bound to it, and nothing if it is bound to all.
func advertised(host string) string {
	if ip := net.ParseIP(host); host == "" || ip != nil && ip.IsUnspecified() {
		return ""
	}
	return host
}

// secret returns the cluster's: of the configuration, of the data folder, or, on the first node, a new one.
func (n *Node) secret() (keys.Secret, error) {
	file := filepath.Join(n.cfg.Data, keyFile)
	if n.cfg.ClusterKey != "" {
		s, err := keys.ParseSecret(n.cfg.ClusterKey)
		if err != nil {
			return s, fmt.Errorf("cluster_key: %w", err)
		}
		return s, s.Save(file)
	}
	s, err := keys.Load(file)
	if !errors.Is(err, fs.ErrNotExist) {
		return s, err
	}
	if len(n.cfg.Join) > 0 || n.cfg.Expect > 1 {
		return s, fmt.Errorf("%w: this node has no cluster key: show it with `dunlin cluster key --data DIR` on a node of the cluster "+
			"(or make one with `dunlin cluster key --new`), and give it to every node as DUNLIN_CLUSTER_KEY", dunlin.ErrUnauthenticated)
	}
	s = keys.NewSecret()
	return s, s.Save(file)
}
