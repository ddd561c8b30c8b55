package mqtt

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
	kept "github.com/dunlin-iot/dunlin/actors/sessions"
)

// town is the rest of a cluster: rows that every node sees as soon as they are committed, and who owns which shard.
type town struct {
	mu     sync.Mutex
	rows   []map[string][]byte // by shard
	owner  dunlin.NodeID       // of all shards
	term   uint64
	nodes  map[dunlin.NodeID]*townNode
	lost   bool // there is no majority
	puts   int
	rounds int
	clock  func() dunlin.Time
}

// townNode is one node: its Updater, Rows and Peers.
type townNode struct {
	town  *town
	id    dunlin.NodeID
	s     *kept.Service
	dead  bool // cut off, and known to be
	stale bool // cut off, and nobody has noticed
	lock  sync.Mutex
}

func newTown(shards int) *town {
	w := &town{rows: make([]map[string][]byte, shards), owner: 1, term: 1, nodes: map[dunlin.NodeID]*townNode{},
		clock: func() dunlin.Time { return dunlin.TimeOf(time.Now()) }}
	for i := range w.rows {
		w.rows[i] = map[string][]byte{}
	}
	return w
}

// node makes a node; one with the same id is replaced.
func (w *town) node(t testing.TB, id dunlin.NodeID) *townNode {
	n := &townNode{town: w, id: id}
	s, err := kept.New(kept.Config{Self: id, Shards: len(w.rows), ShardOf: func(k dunlin.DeviceKey) dunlin.ShardID {
		return dunlin.ShardID(len(k.Device) % len(w.rows))
	}, SweepEvery: 500 * time.Millisecond}, kept.Deps{Updates: n, Rows: n, Peers: n})
	if err != nil {
		t.Fatal(err)
	}
	n.s = s
	w.mu.Lock()
	w.nodes[id] = n
	w.mu.Unlock()
	return n
}

func (w *town) set(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

func (n *townNode) Update(_ context.Context, shard dunlin.ShardID, _ *dunlin.DeviceKey,
	build func(dunlin.Time, *dunlin.DeviceState) ([]dunlin.Put, error)) error {
	n.lock.Lock()
	defer n.lock.Unlock()
	w := n.town
	w.mu.Lock()
	owner, lost := w.owner, w.lost || n.dead || n.stale
	w.mu.Unlock()
	if lost {
		return dunlin.ErrUnavailable
	}
	if owner != n.id {
		return dunlin.ErrNotOwner
	}
	puts, err := build(w.clock(), nil)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.puts += len(puts)
	if len(puts) > 0 {
		w.rounds++
	}
	for _, p := range puts {
		if p.Value == nil {
			delete(w.rows[shard], p.Key)
		} else {
			w.rows[shard][p.Key] = p.Value
		}
	}
	return nil
}

func (n *townNode) Row(shard dunlin.ShardID, _, key string) ([]byte, bool, error) {
	n.town.mu.Lock()
	defer n.town.mu.Unlock()
	b, ok := n.town.rows[shard][key]
	return b, ok, nil
}

func (n *townNode) Rows(shard dunlin.ShardID, table, prefix, after string, limit int) ([]dunlin.Put, error) {
	n.town.mu.Lock()
	defer n.town.mu.Unlock()
	var puts []dunlin.Put
	for _, k := range slices.Sorted(maps.Keys(n.town.rows[shard])) {
		if strings.HasPrefix(k, prefix) && k > after && len(puts) < limit {
			puts = append(puts, dunlin.Put{Table: table, Key: k, Value: n.town.rows[shard][k]})
		}
	}
	return puts, nil
}

func (n *townNode) Owner(dunlin.ShardID) (dunlin.NodeID, uint64, bool) {
	n.town.mu.Lock()
	defer n.town.mu.Unlock()
	return n.town.owner, n.town.term, true
}

func (n *townNode) Down(id dunlin.NodeID) bool {
	n.town.mu.Lock()
	defer n.town.mu.Unlock()
	o := n.town.nodes[id]
	return o == nil || o.dead
}

func (n *townNode) Call(ctx context.Context, to dunlin.NodeID, method string, body []byte) ([]byte, error) {
	n.town.mu.Lock()
	o := n.town.nodes[to]
	cut := o == nil || o.dead || o.stale || n.dead || n.stale
	n.town.mu.Unlock()
	if cut {
		return nil, dunlin.ErrUnavailable
	}
	return o.s.Serve(ctx, n.id, method, body)
}

// run runs the node's service until the test ends.
func (n *townNode) run(t testing.TB) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); n.s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
}

// keys lists all rows.
func (w *town) keys() (keys []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, rows := range w.rows {
		keys = append(keys, slices.Collect(maps.Keys(rows))...)
	}
	slices.Sort(keys)
	return keys
}

// gateways runs n gateways over one town, feed and ingestor.
func gateways(t *testing.T, n int, cfg Config, deps Deps) (*town, []*Gateway, []*townNode) {
	w := newTown(4)
	var gs []*Gateway
	var ns []*townNode
	for i := range n {
		node := w.node(t, dunlin.NodeID(i+1))
		node.run(t)
		d := deps
		d.Sessions = node.s
		if testing.Verbose() {
			d.Log = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", i+1)
		}
		g := serve(t, cfg, d)
		node.s.Attach(g)
		gs, ns = append(gs, g), append(ns, node)
	}
	return w, gs, ns
}

// TestMosquittoMoves: mosquitto_sub leaves a session at one node and finds it at another, with all that came meanwhile, in
// order, and once. It leaves as soon as it has its last message.
func TestMosquittoMoves(t *testing.T) {
	tool(t, "mosquitto_sub")
	for _, version := range []string{"mqttv311", "mqttv5"} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			j := newJournal(4)
			_, gs, _ := gateways(t, 2, Config{}, Deps{Ingestor: &shelf{auto: true, log: j}, Feed: j})
			args := []string{"-V", version, "-i", "app", "-q", "1", "-t", "d/+/t", "-c"}
			if version == "mqttv5" {
				args = append(args, "-x", "600")
			}
			if out, err := mosquitto(t, gs[0], "mosquitto_sub", append(args, "-E")...); err != nil {
				t.Fatalf("%v: %s", err, out)
			}
			for from := 0; from < 40; from += 20 { // half of them at each node
				for i := range 20 {
					if out, err := mosquitto(t, gs[i%2], "mosquitto_pub", "-q", "1", "-t", "d/d1/t", "-m", fmt.Sprint(from+i)); err != nil {
						t.Fatalf("%v: %s", err, out)
					}
				}
				out, _ := mosquitto(t, gs[1-from/20], "mosquitto_sub", append(args, "-C", "20", "-W", "5")...)
				lines := strings.Split(strings.TrimSpace(out), "\n")
				if len(lines) < 20 {
					t.Fatalf("got %d messages: %s", len(lines), out)
				}
				for i, line := range lines[:20] {
					if !strings.HasSuffix(line, fmt.Sprintf(`"v":%d}]`, from+i)) {
						t.Fatalf("message %d is %s", from+i, line)
					}
				}
			}
		})
	}
}
