package replica

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/dunlin-iot/dunlin"
)

// sim is a cluster in one goroutine that does everything in an order drawn from a seed: writes that take their time,
// messages lost, repeated and reordered, crashes with and without what was not synced.
type sim struct {
	rng    *rand.Rand
	shards int
	voters []uint64
	nodes  []*testNode
	wires  []Message
	owns   []map[dunlin.ShardID]uint64 // by node: the term it was told it owns the shard in

	next   int
	open   map[string]bool // proposals without an answer, in every crash's wake never to be answered
	acked  []map[string]uint64
	owners map[string]uint64 // shard/term → node
}

func newSim(seed uint64, nodes, shards int) (*sim, error) {
	s := &sim{rng: newRand(seed), shards: shards, open: map[string]bool{}, owners: map[string]uint64{}}
	for i := range nodes {
		s.voters = append(s.voters, uint64(i+1))
		s.owns = append(s.owns, map[dunlin.ShardID]uint64{})
	}
	for range shards {
		s.acked = append(s.acked, map[string]uint64{})
	}
	for _, id := range s.voters {
		n := &testNode{id: id, log: newMemLog(shards), state: newMemState(shards)}
		s.nodes = append(s.nodes, n)
		if err := n.open(s.voters, shards); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (s *sim) propose(i int) {
	sh := dunlin.ShardID(s.rng.IntN(s.shards))
	term, ok := s.owns[i][sh]
	if !ok {
		return
	}
	n := s.nodes[i]
	for range 1 + s.rng.IntN(3) {
		s.next++
		data := fmt.Sprintf("p%d", s.next)
		s.open[data] = true
		n.propose(sh, term, data, func(index uint64, err error) {
			if !s.open[data] {
				panic(data + " was answered twice")
			}
			delete(s.open, data)
			switch {
			case err == nil:
				s.acked[sh][string(stamp(term, data))] = index
				// Acknowledged means applied here.
				if !slices.Contains(n.state.effects(sh), effect{index, string(stamp(term, data))}) {
					panic(fmt.Sprintf("%s was acknowledged at %d of shard %d, the state has %v", data, index, sh, n.state.effects(sh)))
				}
			case !errors.Is(err, dunlin.ErrNotOwner) && !errors.Is(err, dunlin.ErrUnavailable):
				panic(err)
			}
		})
	}
	s.tell(i)
}

func (s *sim) tell(i int) {
	n := s.nodes[i]
	n.tell(func(sh dunlin.ShardID, term uint64, owner bool) {
		if !owner {
			delete(s.owns[i], sh)
			return
		}
		key := fmt.Sprintf("%d/%d", sh, term)
		if other, ok := s.owners[key]; ok {
			panic(fmt.Sprintf("shard/term %s is owned by %d and %d", key, other, n.id))
		}
		s.owners[key] = n.id
		s.owns[i][sh] = term
		// An owner starts with all that was ever acknowledged, but for what a later owner did: it may be one already.
		s.check(n, sh, term)
	})
	n.out = nil
}

// check panics unless the node's state has every entry of the shard in its place that was acknowledged in the term or before,
// and none twice.
func (s *sim) check(n *testNode, sh dunlin.ShardID, term uint64) {
	seen := map[string]uint64{}
	for _, e := range n.state.effects(sh) {
		if _, twice := seen[e.data]; twice {
			panic(fmt.Sprintf("%s is twice in shard %d of node %d", e.data, sh, n.id))
		}
		seen[e.data] = e.index
	}
	for data, index := range s.acked[sh] {
		var in uint64
		if _, err := fmt.Sscanf(data, "%d:", &in); err != nil {
			panic(err)
		}
		if in <= term && seen[data] != index {
			panic(fmt.Sprintf("%s was acknowledged at %d of shard %d, node %d has it at %d", data, index, sh, n.id, seen[data]))
		}
	}
}

func (s *sim) collect(n *testNode) { s.wires = append(s.wires, n.core.takeSends()...) }

func (s *sim) deliver(lossy bool) error {
	if len(s.wires) == 0 {
		return nil
	}
	i := s.rng.IntN(len(s.wires))
	m := s.wires[i]
	if again := lossy && s.rng.IntN(10) == 0; !again {
		s.wires = slices.Delete(s.wires, i, i+1)
	}
	if lossy && s.rng.IntN(10) == 0 {
		return nil
	}
	to := s.nodes[m.To-1].core
	in, err := parseInbound(to.cfg, m.Shard, m.Data)
	if err != nil {
		return err
	}
	in.feed(to)
	return nil
}

func (s *sim) campaign(i int) {
	sh := s.rng.IntN(s.shards)
	for _, n := range s.nodes { // stands for election timeouts
		n.core.settle(n.core.groups[sh])
		if s.rng.IntN(4) > 0 {
			_ = n.core.groups[sh].rn.ForgetLeader()
			n.core.groups[sh].stale = true
			n.core.touch(n.core.groups[sh])
		}
	}
	g := s.nodes[i].core.groups[sh]
	g.stale = true
	_ = g.rn.Campaign()
	s.nodes[i].core.touch(g)
}

// crash loses what is not synced, and some messages. Answers that were open stay open for ever.
func (s *sim) crash(i int) error {
	n := s.nodes[i]
	n.log, n.state = n.log.crash(s.rng.IntN(3)), n.state.crash()
	clear(s.owns[i])
	n.out = nil
	if err := n.open(s.voters, s.shards); err != nil {
		return fmt.Errorf("node %d: %w", n.id, err)
	}
	return nil
}

func (s *sim) compact(i int) error {
	sh := dunlin.ShardID(s.rng.IntN(s.shards))
	upTo := s.nodes[i].state.Durable(sh)
	for _, n := range s.nodes { // snapshots do not travel yet: nobody may need what goes
		upTo = min(upTo, n.state.Durable(sh))
	}
	n := s.nodes[i]
	if n.write != nil { // this log's truncation is a sync
		return nil
	}
	upTo, err := n.core.compact(sh, upTo)
	if err != nil || upTo == 0 {
		return err
	}
	return n.log.Truncate(sh, upTo)
}

func (s *sim) step() error {
	i := s.rng.IntN(len(s.nodes))
	n := s.nodes[i]
	defer s.collect(n)
	switch r := s.rng.IntN(1000); {
	case r < 400:
		return s.deliver(true)
	case r < 500:
		s.propose(i)
	case r < 620:
		err := n.core.ready()
		s.tell(i)
		return err
	case r < 720:
		return n.beginWrite()
	case r < 820:
		return n.endWrite()
	case r < 920:
		err := n.apply()
		s.tell(i)
		return err
	case r < 950:
		n.core.tick()
	case r < 960:
		n.state.flush()
	case r < 970:
		return s.compact(i)
	case r < 970+10*len(s.nodes)/3:
		s.campaign(i)
	case r > 995:
		return s.crash(i)
	}
	return nil
}

// heal carries everything everywhere until all is quiet.
func (s *sim) heal() error {
	for quiet := false; !quiet; {
		quiet = true
		for i, n := range s.nodes {
			for range 3 {
				for _, f := range []func() error{n.core.ready, n.beginWrite, n.endWrite, n.apply} {
					if err := f(); err != nil {
						return err
					}
				}
				s.tell(i)
				s.collect(n)
			}
			quiet = quiet && len(n.core.dirty) == 0
		}
		for len(s.wires) > 0 {
			quiet = false
			if err := s.deliver(false); err != nil {
				return err
			}
		}
	}
	return nil
}

// TestSimulation runs clusters of one and of three from seeds. A failure names its seed.
func TestSimulation(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		nodes, shards, seeds, steps int
	}{{1, 3, 300, 600}, {3, 2, 150, 8000}} {
		acked, takeovers := 0, 0
		for seed := range c.seeds {
			s, err := runSim(uint64(seed), c.nodes, c.shards, c.steps, false)
			if err != nil {
				t.Fatalf("%d nodes, seed %d: %v", c.nodes, seed, err)
			}
			for _, a := range s.acked {
				acked += len(a)
			}
			takeovers += len(s.owners)
		}
		t.Logf("%d nodes: %d seeds, %d entries acknowledged, %d ownerships", c.nodes, c.seeds, acked, takeovers)
		if acked < 20*c.seeds || takeovers < 2*c.seeds {
			t.Errorf("%d nodes: %d acknowledged and %d ownerships in %d seeds are too few to show anything", c.nodes, acked, takeovers, c.seeds)
		}
	}
}

// TestSimulationNoticesAMissingFsync plants the fault that the simulation is there to find.
func TestSimulationNoticesAMissingFsync(t *testing.T) {
	t.Parallel()
	for seed := range uint64(20) {
		if _, err := runSim(seed, 1, 3, 600, true); err != nil {
			t.Logf("seed %d: %v", seed, err)
			return
		}
	}
	t.Error("20 seeds without an fsync lost nothing")
}

func runSim(seed uint64, nodes, shards, steps int, unsynced bool) (s *sim, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("%v", r)
		}
	}()
	if s, err = newSim(seed, nodes, shards); err != nil {
		return nil, err
	}
	for _, n := range s.nodes {
		n.unsynced = unsynced
	}
	for range steps {
		if err := s.step(); err != nil {
			return nil, err
		}
	}
	s.wires = nil
	for range 10 * nodes { // elections may split or be refused
		if err := s.heal(); err != nil {
			return nil, err
		}
		if nodes > 1 && len(s.owns[0])+len(s.owns[1])+len(s.owns[2]) < shards {
			s.campaign(s.rng.IntN(nodes))
		}
		for range 4 { // heartbeats find out which messages were lost
			for _, n := range s.nodes {
				n.core.tick()
			}
		}
	}
	if err := s.heal(); err != nil {
		return nil, err
	}
	for sh := range dunlin.ShardID(shards) {
		for _, n := range s.nodes {
			s.check(n, sh, math.MaxUint64)
			if got, want := n.state.effects(sh), s.nodes[0].state.effects(sh); !slices.Equal(got, want) {
				return nil, fmt.Errorf("shard %d: node %d has %v, node 1 has %v", sh, n.id, got, want)
			}
		}
	}
	return s, nil
}
