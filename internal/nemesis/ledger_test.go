package nemesis

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// What nodes say of owners is wrong once two of them are said to own a shard in one term, whoever says so, and however often.
func TestTwoOwners(t *testing.T) {
	l := newLedger()
	say := func(node dunlin.NodeID, replicas ...dunlin.OwnReplica) {
		l.reported(&dunlin.NodeReplicas{Node: node, Name: fmt.Sprintf("n%d", node), Replicas: replicas})
	}
	say(1, dunlin.OwnReplica{Shard: 4, Term: 7, Owns: 7, Leader: 1, LeaderTerm: 7})
	say(2, dunlin.OwnReplica{Shard: 4, Term: 7, Leader: 1, LeaderTerm: 7}, dunlin.OwnReplica{Shard: 5, Owns: 7})
	say(1, dunlin.OwnReplica{Shard: 4, Term: 7, Owns: 7, Leader: 2, LeaderTerm: 8}) // it stood still and does not know yet
	say(2, dunlin.OwnReplica{Shard: 4, Term: 8, Owns: 8})
	say(3, dunlin.OwnReplica{Shard: 4, LeaderTerm: 8}, dunlin.OwnReplica{Shard: 4, Leader: 3}) // nobody, and in no term
	l.activated(4, 8, 2, "n2-001.log")
	c, found := l.take()
	if c.Claims != 8 || c.Reigns != 3 || c.Activations != 1 || c.OwnedTwice != 0 || len(found) > 0 {
		t.Errorf("good claims: %+v, %v", c, found)
	}
	for _, lie := range []struct {
		claim func()
		want  string
	}{
		{func() { say(2, dunlin.OwnReplica{Shard: 4, Owns: 7}) }, "shard 4 in term 7: n1 owns it (n1 says so of itself), and n2 owns it (n2 says so of itself)"},
		{func() { say(3, dunlin.OwnReplica{Shard: 4, Leader: 1, LeaderTerm: 8}) }, "shard 4 in term 8: n2 owns it (as n1 has heard), and n1 owns it (as n3 has heard)"},
		{func() { l.activated(5, 7, 9, "n4-002.log") }, "shard 5 in term 7: n2 owns it (n2 says so of itself), and 0000000000000009 owns it (logged in n4-002.log)"},
	} {
		lie.claim()
		lie.claim()
		if c, found := l.take(); c.OwnedTwice != 1 || len(found) != 1 || found[0] != (wrong{"owned twice", lie.want}) {
			t.Errorf("got %+v, %q; want %q", c, found, lie.want)
		}
	}
}

// Replicas that have applied as much have one hash, over the whole run.
func TestDiverged(t *testing.T) {
	l := newLedger()
	say := func(node dunlin.NodeID, index uint64, hash string) {
		l.has(&dunlin.ShardHash{Shard: 4, Node: node, Applied: index, Hash: hash})
	}
	l.called(1, "n1")
	l.called(3, "n3")
	say(1, 10, "3f9a77c2aa")
	say(1, 10, "3f9a77c2aa") // itself again
	say(2, 11, "77c2aa3f9a")
	say(2, 10, "3f9a77c2aa")
	if c, found := l.take(); c.Hashes != 1 || c.Diverged != 0 || len(found) > 0 {
		t.Errorf("good hashes: %+v, %v", c, found)
	}
	say(3, 10, "bad0bad0bad0")
	want := wrong{"diverged", "shard 4 after entry 10 has hash 3f9a77c2… on n1, and bad0bad0… on n3"}
	if c, found := l.take(); c.Hashes != 0 || c.Diverged != 1 || len(found) != 1 || found[0] != want {
		t.Errorf("got %+v, %q; want %q", c, found, want)
	}
}

// nodes answer the bench as made up: by the name of the node, and the path.
type nodes func(name, path string) any

func (f nodes) RoundTrip(r *http.Request) (*http.Response, error) {
	name, _, _ := strings.Cut(r.URL.Host, ":")
	v := f(name, r.URL.Path)
	out := &http.Response{StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}}, Request: r}
	if v == nil {
		out.StatusCode, out.Header = http.StatusNotFound, http.Header{"Content-Type": {"application/problem+json"}}
		v = map[string]any{"type": "urn:dunlin:problem:not-found", "status": 404, "title": "Not found"}
	}
	b, err := json.Marshal(v)
	out.Body = io.NopCloser(strings.NewReader(string(b)))
	return out, err
}

// The witness hears it from the nodes and reads it in their logs, and a round with it has failed.
func TestWitness(t *testing.T) {
	dir := t.TempDir()
	ids := map[string]dunlin.NodeID{"n1": 1, "n2": 2, "n3": 3, "n4": 4}
	asked := map[string]int{}
	answer := func(name, path string) any {
		asked[name]++
		switch path {
		case "/v1/cluster":
			return dunlin.ClusterStatus{Shards: 3}
		case "/v1/cluster/replicas":
			return dunlin.NodeReplicas{Node: ids[name], Name: name, Replicas: []dunlin.OwnReplica{{Shard: 0, Owns: map[string]uint64{"n1": 5, "n2": 6}[name]}}}
		case "/v1/cluster/shards/0/hash": // n2 comes after
			if name == "n4" {
				return nil
			}
			return dunlin.ShardHash{Shard: 0, Node: ids[name], Applied: min(90+uint64(asked["n2"]), 100), Hash: "aaaaaaaa"}
		case "/v1/cluster/shards/1/hash":
			return dunlin.ShardHash{Shard: 1, Node: ids[name], Applied: 7, Hash: map[bool]string{false: "bbbbbbbb", true: "eeeeeeee"}[name == "n3"]}
		}
		return nil // nobody has shard 2
	}
	lock := make(chan struct{}, 1)
	b := &Bench{cfg: Config{Nodes: 3, Dir: dir, Out: io.Discard}, began: time.Now(), report: &Report{}}
	b.http = &http.Client{Transport: nodes(func(name, path string) any {
		lock <- struct{}{}
		defer func() { <-lock }()
		return answer(name, path)
	})}
	if err := os.Mkdir(filepath.Join(dir, "logs"), 0o700); err != nil {
		t.Fatal(err)
	}
	for i, lines := range []string{"time=x level=DEBUG msg=\"shard owned\" shard=0 term=5\nmsg=other\n", "time=x level=DEBUG msg=\"shard owned\" shard=0 term=6\nhalf a",
		"time=x level=DEBUG msg=\"shard owned\" shard=0 term=6\n", "time=x level=DEBUG msg=\"shard owned\" shard=2 term=6\n"} {
		p := &proc{b: b, i: i + 1, name: fmt.Sprintf("n%d", i+1), host: fmt.Sprintf("n%d", i+1)}
		p.mu.log = filepath.Join(dir, "logs", p.name+"-001.log")
		b.procs = append(b.procs, p)
		if err := os.WriteFile(p.mu.log, []byte(lines), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	w := newWitness(b)
	for _, p := range b.procs[:3] { // n4 has never told who it is
		w.ask(t.Context(), p)
	}
	w.patience = time.Second // nobody ever has shard 2
	if err := w.compare(t.Context(), b.procs); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second time there is nothing new
		if err := w.readLogs(); err != nil {
			t.Fatal(err)
		}
	}
	c, found := w.ledger.take()
	if c.Activations != 4 || c.Nameless != 1 || c.OwnedTwice != 1 || c.Diverged != 1 || c.States != 2 || c.Uncompared != 1 {
		t.Errorf("counted %+v", c)
	}
	var kinds []string
	for _, f := range found {
		kinds = append(kinds, f.kind)
	}
	if slices.Sort(kinds); !slices.Equal(kinds, []string{"diverged", "owned twice"}) {
		t.Errorf("found %q", found)
	}
}
