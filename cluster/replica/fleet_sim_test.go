package replica

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"testing"

	"github.com/dunlin-iot/dunlin"
)

// watched is a state that compares what is applied with what others have applied at the same place.
type watched struct {
	*memState
	check func(dunlin.Committed)
}

func (w watched) Apply(batch []dunlin.Committed) error {
	for _, c := range batch {
		w.check(c)
	}
	return w.memState.Apply(batch)
}

// fleetSim does everything to a fleet in an order drawn from a seed.
type fleetSim struct {
	*fleet
	rng   *rand.Rand
	now   dunlin.Time
	calm  bool // no faults any more
	fault planted

	next   int
	open   map[string]bool
	acked  []map[string]uint64 // by shard: data → index
	top    []uint64            // by shard: the highest index acknowledged
	log    []map[uint64]string // by shard: what was applied where
	owners map[string]uint64   // shard/term → node
	reads  int
	moves  int
	doomed []doom // replicas to be destroyed
}

// planted are faults that the simulation must find.
type planted struct {
	unsynced bool // no fsync
	eager    bool // the log is truncated to what is applied in memory
}

// doom is a replica that was removed from its shard with an entry.
type doom struct {
	node  uint64
	sh    dunlin.ShardID
	index uint64
}

func newFleetSim(seed uint64, nodes, voters, shards int, fault planted) (*fleetSim, error) {
	s := &fleetSim{fleet: newFleet(seed, nodes, shards, []uint64{1, 2, 3, 4, 5}[:voters]), rng: newRand(seed), fault: fault, open: map[string]bool{},
		owners: map[string]uint64{}, top: make([]uint64, shards)}
	for range shards {
		s.acked, s.log = append(s.acked, map[string]uint64{}), append(s.log, map[uint64]string{})
	}
	s.onOwner = s.owned
	s.tune = func(c *Config) {
		st := c.StateMachine.(*memState)
		c.StateMachine = watched{st, s.applying}
		c.LagBytesMax = []int{1, 2000, 1 << 20}[s.rng.IntN(3)]
		c.SnapshotTicks = 40
	}
	for _, n := range s.nodes {
		if err := s.fleet.open(n); err != nil {
			return nil, err
		}
	}
	return s, nil
}

// applying panics if two replicas apply different entries at one place.
func (s *fleetSim) applying(c dunlin.Committed) {
	what := fmt.Sprintf("%d %q %x", c.Term, c.Data, c.Conf)
	if was, ok := s.log[c.Shard][c.Index]; ok && was != what {
		panic(fmt.Sprintf("entry %d of shard %d is %s here and %s there", c.Index, c.Shard, what, was))
	}
	s.log[c.Shard][c.Index] = what
}

func (s *fleetSim) owned(n *fleetNode, sh dunlin.ShardID, term uint64, owner bool) {
	if !owner {
		return
	}
	key := fmt.Sprintf("%d/%d", sh, term)
	if other, ok := s.owners[key]; ok && other != n.id {
		panic(fmt.Sprintf("shard/term %s is owned by %d and %d", key, other, n.id))
	}
	s.owners[key] = n.id
	s.holds(n, sh, term)
}

// holds panics unless the node's state has all that was acknowledged in the term or before, in its place and once.
func (s *fleetSim) holds(n *fleetNode, sh dunlin.ShardID, term uint64) {
	seen := map[string]uint64{}
	for _, e := range n.disk.state.effects(sh) {
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

func (s *fleetSim) shard() dunlin.ShardID { return dunlin.ShardID(s.rng.IntN(s.shards)) }

func (s *fleetSim) propose(n *fleetNode) {
	sh := s.shard()
	term, ok := n.owns[sh]
	if !ok {
		return
	}
	for range 1 + s.rng.IntN(3) {
		s.next++
		data := fmt.Sprintf("p%d", s.next)
		s.open[data] = true
		n.m.Propose(sh, term, stamp(term, data), func(index uint64, err error) {
			if !s.open[data] {
				panic(data + " was answered twice")
			}
			delete(s.open, data)
			switch {
			case err == nil:
				s.acked[sh][string(stamp(term, data))] = index
				s.top[sh] = max(s.top[sh], index)
				if n.disk.state.Applied(sh) < index {
					panic(fmt.Sprintf("%s was acknowledged at %d and is not applied", data, index))
				}
			case !errors.Is(err, dunlin.ErrNotOwner) && !errors.Is(err, dunlin.ErrUnavailable):
				panic(err)
			}
		})
	}
}

// read asks a replica, which must then have all that was acknowledged before.
func (s *fleetSim) read(n *fleetNode) {
	sh := s.shard()
	top := s.top[sh]
	n.m.ReadIndex(sh, func(err error) {
		if err != nil {
			return
		}
		s.reads++
		if got := n.disk.state.Applied(sh); got < top {
			panic(fmt.Sprintf("a read of shard %d on node %d saw %d, %d was acknowledged before", sh, n.id, got, top))
		}
	})
}

// move is a controller: one learner in, then in its place of one voter, and the one that left is destroyed.
func (s *fleetSim) move(n *fleetNode) {
	sh := s.shard()
	st := n.m.Status(sh)
	if _, ok := n.owns[sh]; !ok || len(st.Conf.Outgoing) > 0 {
		return
	}
	if len(st.Conf.Learners) == 0 {
		in := st.Conf.Voters
		for range 10 {
			id := 1 + s.rng.Uint64N(uint64(len(s.nodes)))
			if slices.Contains(in, dunlin.NodeID(id)) || s.isDoomed(id, sh) {
				continue
			}
			if o := s.node(id); o.m != nil && o.m.Ensure(sh) == nil {
				n.m.Change(sh, []ReplicaChange{{dunlin.NodeID(id), AddLearner}}, func(error) {})
				return
			}
		}
		return
	}
	learner := st.Conf.Learners[0]
	for _, p := range st.Progress {
		if p.Node == learner && p.State == Replicating && p.Match+5 >= st.Commit {
			out := st.Conf.Voters[s.rng.IntN(len(st.Conf.Voters))]
			n.m.Change(sh, []ReplicaChange{{learner, AddVoter}, {out, RemoveReplica}}, func(err error) {
				if err == nil {
					s.moves++
				}
			})
			return
		}
	}
	if o := s.node(uint64(learner)); o.m != nil {
		_ = o.m.Ensure(sh) // it may have crashed before it wrote that it is there
	}
}

func (s *fleetSim) isDoomed(id uint64, sh dunlin.ShardID) bool {
	return slices.ContainsFunc(s.doomed, func(d doom) bool { return d.node == id && d.sh == sh })
}

// condemn finds replicas that an owner knows to be out: in the owner's applied replica set they are not.
func (s *fleetSim) condemn(n *fleetNode) {
	sh := s.shard()
	if _, ok := n.owns[sh]; !ok {
		return
	}
	conf := n.m.Status(sh).Conf
	if len(conf.Outgoing) > 0 {
		return
	}
	for _, o := range s.nodes {
		if id := dunlin.NodeID(o.id); !slices.Contains(conf.Voters, id) && !slices.Contains(conf.Learners, id) && !s.isDoomed(o.id, sh) {
			if o.m != nil && o.m.Status(sh).Present && !s.changing(sh) {
				s.doomed = append(s.doomed, doom{o.id, sh, conf.Index})
			}
		}
	}
}

// changing reports that a learner may be on its way in: what is present and in nobody's replica set may be the newest.
func (s *fleetSim) changing(sh dunlin.ShardID) bool {
	for _, n := range s.nodes {
		if n.m != nil && n.m.core.groups[sh] != nil && n.m.core.groups[sh].change != nil {
			return true
		}
	}
	return false
}

func (s *fleetSim) execute() error {
	rest := s.doomed[:0]
	for _, d := range s.doomed {
		n := s.node(d.node)
		if n.m == nil {
			rest = append(rest, d)
			continue
		}
		if err := n.m.Destroy(d.sh, d.index); errors.Is(err, dunlin.ErrUnavailable) {
			rest = append(rest, d)
		} else if err != nil {
			return err
		}
	}
	s.doomed = rest
	return nil
}

func (s *fleetSim) carry() {
	if len(s.wires) == 0 {
		return
	}
	i := s.rng.IntN(len(s.wires))
	if s.rng.IntN(3) > 0 {
		i = 0 // mostly in order
	}
	w := s.wires[i]
	if again := !s.calm && s.rng.IntN(20) == 0; !again {
		s.wires = slices.Delete(s.wires, i, i+1)
	}
	if !s.calm && s.rng.IntN(20) == 0 {
		return
	}
	s.deliver(w)
}

func (s *fleetSim) tick(n *fleetNode) {
	s.now += tickMicros / dunlin.Time(len(s.nodes))
	n.now = s.now
	n.m.Tick(n.now)
}

func (s *fleetSim) compact(n *fleetNode) error {
	sh := s.shard()
	if n.write != nil && n.done { // this log's truncation is a sync
		return nil
	}
	durable := n.disk.state.Durable(sh)
	if s.fault.eager {
		durable = n.disk.state.Applied(sh)
	}
	upTo, err := n.m.Compact(sh, durable)
	if err != nil || upTo == 0 {
		return err
	}
	return n.disk.log.Truncate(sh, upTo)
}

func (s *fleetSim) reopen(n *fleetNode) error {
	n.now = s.now
	return s.fleet.open(n)
}

func (s *fleetSim) endWrite(n *fleetNode) error {
	if !s.fault.unsynced || n.write == nil || !n.done {
		return n.endWrite()
	}
	w := n.write
	n.write = nil
	return n.m.Written(w)
}

// weather is what happens to nodes.
func (s *fleetSim) weather(n *fleetNode) error {
	switch r := s.rng.IntN(100); {
	case r < 40:
		s.crash(n, s.rng.IntN(3))
		s.doomed = slices.DeleteFunc(s.doomed, func(d doom) bool { return d.node == n.id })
	case r < 60:
		a, b := s.nodes[s.rng.IntN(len(s.nodes))], n
		s.cut[[2]uint64{a.id, b.id}] = true
		if s.rng.IntN(2) == 0 {
			s.cut[[2]uint64{b.id, a.id}] = true
		}
	case r < 70:
		for _, o := range s.nodes {
			s.cut[[2]uint64{o.id, n.id}], s.cut[[2]uint64{n.id, o.id}] = true, true
		}
	case r < 75:
		n.m.Abdicate(s.rng.IntN(2) == 0)
	default:
		clear(s.cut)
	}
	return nil
}

func (s *fleetSim) step() error {
	n := s.nodes[s.rng.IntN(len(s.nodes))]
	if n.m == nil {
		if s.calm || s.rng.IntN(40) == 0 {
			return s.reopen(n)
		}
		return nil
	}
	defer func() {
		if n.m != nil {
			s.collect(n)
		}
	}()
	_, err := n.m.Turn(s.now)
	if err != nil {
		return err
	}
	switch r := s.rng.IntN(1000); {
	case r < 450:
		s.carry()
	case r < 500:
		n.beginWrite()
	case r < 560:
		n.beginWrite()
		err = n.doWrite()
	case r < 640:
		err = s.endWrite(n)
	case r < 700:
		err = n.beginApply()
	case r < 760:
		err = n.endApply()
	case r < 880:
		s.tick(n)
	case r < 910:
		s.propose(n)
	case r < 920:
		s.read(n)
	case r < 935:
		err = s.files(n, true)
	case r < 945:
		n.disk.state.flush()
	case r < 955:
		err = s.compact(n)
	case r < 970:
		s.move(n)
	case r < 974:
		s.condemn(n)
		err = s.execute()
	case r < 976:
		sh := s.shard()
		if v := n.m.Status(sh).Conf.Voters; len(v) > 0 {
			n.m.Transfer(sh, v[s.rng.IntN(len(v))], func(error) {})
		}
	case r < 978 && !s.calm:
		err = s.weather(n)
	}
	return err
}

// heal ends all faults, lets time pass, and wants every shard owned, and all its replicas alike, in the end.
func (s *fleetSim) heal() error {
	s.calm = true
	clear(s.cut)
	for _, n := range s.nodes {
		if n.m == nil {
			if err := s.reopen(n); err != nil {
				return err
			}
		}
		n.m.Abdicate(false)
		if err := errors.Join(n.doWrite(), n.endWrite(), n.endApply()); err != nil {
			return err
		}
		n.now = s.now
	}
	for range 40 {
		if err := s.run(20); err != nil {
			return err
		}
		for _, n := range s.nodes { // a learner that crashed before it was written down
			for sh := range dunlin.ShardID(s.shards) {
				if _, ok := n.owns[sh]; ok {
					for _, l := range n.m.Status(sh).Conf.Learners {
						_ = s.node(uint64(l)).m.Ensure(sh)
					}
				}
			}
		}
	}
	for sh := range dunlin.ShardID(s.shards) {
		var owner *fleetNode
		for _, n := range s.nodes {
			if _, ok := n.owns[sh]; ok {
				owner = n
			}
		}
		if owner == nil {
			return fmt.Errorf("nobody owns shard %d after the faults have ended:\n%s", sh, s.picture(sh))
		}
		s.holds(owner, sh, 1<<60)
		want := owner.m.Status(sh)
		for _, id := range slices.Concat(want.Conf.Voters, want.Conf.Learners) {
			n := s.node(uint64(id))
			if got := n.m.Status(sh); got.Applied != want.Applied || !slices.Equal(n.disk.state.effects(sh), owner.disk.state.effects(sh)) {
				return fmt.Errorf("shard %d: node %d has not caught up:\n%s", sh, n.id, s.picture(sh))
			}
		}
	}
	return nil
}

func (s *fleetSim) picture(sh dunlin.ShardID) (out string) {
	for _, n := range s.nodes {
		st := n.m.Status(sh)
		out += fmt.Sprintf("%d: %+v\n", n.id, st)
	}
	return out
}

func runFleet(seed uint64, nodes, voters, steps int, fault planted) (s *fleetSim, err error) {
	if os.Getenv("REPLICA_PANIC") == "" {
		defer func() {
			if r := recover(); r != nil {
				err = fmt.Errorf("%v", r)
			}
		}()
	}
	if s, err = newFleetSim(seed, nodes, voters, 2, fault); err != nil {
		return nil, err
	}
	for range steps {
		if err := s.step(); err != nil {
			return s, err
		}
	}
	return s, s.heal()
}

// TestFleetSimulation runs clusters from seeds: shards of three replicas on the move between five nodes, and of five between six;
// messages lost, repeated and reordered, one-way cuts, crashes that lose what was not synced, snapshots. A failure names its
// seed; REPLICA_SEED runs one, REPLICA_SEEDS so many.
func TestFleetSimulation(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ nodes, voters, seeds int }{{5, 3, 60}, {6, 5, 20}} {
		t.Run(fmt.Sprintf("%d replicas on %d nodes", c.voters, c.nodes), func(t *testing.T) {
			t.Parallel()
			first := uint64(0)
			if v := os.Getenv("REPLICA_SEED"); v != "" {
				first, _ = strconv.ParseUint(v, 10, 64)
				c.seeds = 1
			}
			if v := os.Getenv("REPLICA_SEEDS"); v != "" {
				c.seeds, _ = strconv.Atoi(v)
			}
			acked, owners, moves, installs, reads := 0, 0, 0, 0, 0
			for i := range c.seeds {
				s, err := runFleet(first+uint64(i), c.nodes, c.voters, 12000, planted{})
				if err != nil {
					t.Fatalf("seed %d: %v", first+uint64(i), err)
				}
				for _, a := range s.acked {
					acked += len(a)
				}
				for _, n := range s.nodes {
					installs += n.disk.installs
				}
				owners, moves, reads = owners+len(s.owners), moves+s.moves, reads+s.reads
			}
			t.Logf("%d seeds: %d entries acknowledged, %d ownerships, %d replicas moved, %d snapshots installed, %d reads",
				c.seeds, acked, owners, moves, installs, reads)
			if n := c.seeds; n > 10 && (acked < 10*n || owners < 2*n || moves < n/2 || installs < n/2 || reads < n) {
				t.Error("that is too little to show anything")
			}
		})
	}
}

// TestFleetSimulationFindsPlantedFaults: a simulation that finds nothing proves nothing.
func TestFleetSimulationFindsPlantedFaults(t *testing.T) {
	t.Parallel()
	for name, fault := range map[string]planted{"no fsync": {unsynced: true}, "truncating to the index in memory": {eager: true}} {
		t.Run(name, func(t *testing.T) {
			for seed := range uint64(40) {
				if _, err := runFleet(seed, 5, 3, 12000, fault); err != nil {
					t.Logf("seed %d: %v", seed, err)
					return
				}
			}
			t.Error("40 seeds found nothing")
		})
	}
}
