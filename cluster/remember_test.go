package cluster

import (
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/gossip"
)

// A node remembers where it met the members of its cluster, and with nobody there goes on remembering; a damaged file is nothing
// that it could not start with.
func TestANodeRemembersWhereOthersWere(t *testing.T) {
	file := filepath.Join(t.TempDir(), "members")
	sees := func(nodes ...gossip.Seen) *Network {
		n := &Network{cfg: NetworkConfig{Node: 1, Seeds: []string{"10.0.0.9"}, Remember: file, Log: slog.New(slog.DiscardHandler)}}
		seen := map[dunlin.NodeID]gossip.Seen{}
		for _, s := range nodes {
			seen[s.ID] = s
		}
		n.seen.Store(&seen)
		n.recall()
		return n
	}
	is := func(id dunlin.NodeID, name, cluster, addr string, alive bool) gossip.Seen {
		return gossip.Seen{Self: gossip.Self{ID: id, Name: name, Cluster: cluster}, Addr: addr, Alive: alive}
	}
	sees(is(1, "self", "c", "10.0.0.1:7946", true), is(3, "b", "c", "10.0.0.3:7946", true), is(2, "a", "c", "10.0.0.2:7946", true),
		is(4, "dead", "c", "10.0.0.4:7946", false), is(5, "new", "", "10.0.0.5:7946", true)).remember()
	want := []string{"10.0.0.9", "10.0.0.2:7946", "10.0.0.3:7946"}
	if got := sees().callable(); !slices.Equal(got, want) {
		t.Errorf("it calls %v, want %v", got, want)
	}
	sees().remember()
	if got := sees().callable(); !slices.Equal(got, want) {
		t.Errorf("after a life with nobody there it calls %v, want %v", got, want)
	}
	if err := os.WriteFile(file, []byte("file:/etc/passwd\n\x00\xff"), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := sees().callable(); !slices.Equal(got, want[:1]) {
		t.Errorf("with a damaged file it calls %v", got)
	}
	if err := Forget(file); err != nil {
		t.Fatal(err)
	}
	if err := Forget(file); err != nil {
		t.Errorf("there is nothing to forget: %v", err)
	}
}
