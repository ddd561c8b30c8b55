package replica

import (
	"strings"
	"testing"

	"github.com/dunlin-iot/dunlin"
)

// forgetful loses tombstones.
type forgetful struct{ *disk }

func (forgetful) Tombstone(dunlin.ShardID) ([]byte, error) { return nil, nil }

// TestTombstoneKeepsWhatWasAcknowledged: {1 2 3} becomes {1 2 4} behind 1's back. 3 had acknowledged an entry together with 2; it is
// destroyed, and comes back as a learner. It has got the first entries when 2 and 4 fall away: its replica set is that of
// the birth certificate, and 1, which never had the acknowledged entry, asks for its vote. Without the tombstone one of
// the two is elected and writes something else in that place.
func TestTombstoneKeepsWhatWasAcknowledged(t *testing.T) {
	for _, forget := range []bool{false, true} {
		f := newFleet(1, 4, 1, []uint64{1, 2, 3})
		f.tune = func(c *Config) {
			c.MaxEntryBytesPerRead = 100 // an entry a message
			if forget {
				c.Snapshots = forgetful{f.node(c.Node).disk}
			}
		}
		must := func(err error) {
			t.Helper()
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, n := range f.nodes {
			must(f.open(n))
		}
		must(f.settle())
		n1, n2, n3 := f.node(1), f.node(2), f.node(3)
		for len(n2.owns) == 0 {
			n2.m.Campaign(0)
			must(f.run(10))
		}
		isolate := func(n *fleetNode, but ...uint64) {
			for _, o := range f.nodes {
				f.cut[[2]uint64{o.id, n.id}], f.cut[[2]uint64{n.id, o.id}] = true, true
			}
			for _, id := range but {
				delete(f.cut, [2]uint64{id, n.id})
				delete(f.cut, [2]uint64{n.id, id})
			}
		}
		isolate(n1)
		var acked uint64
		term := n2.owns[0]
		data := stamp(term, "acked"+strings.Repeat("!", 100))
		n2.m.Propose(0, term, data, func(index uint64, err error) { must(err); acked = index })
		must(f.run(2))
		change := func(c ...ReplicaChange) {
			n2.m.Change(0, c, must)
			must(f.run(10))
		}
		must(f.node(4).m.Ensure(0))
		change(ReplicaChange{4, AddLearner})
		change(ReplicaChange{4, AddVoter}, ReplicaChange{3, RemoveReplica})
		removed := n2.m.Status(0).Conf.Index
		for err := n3.m.Destroy(0, removed); err != nil; err = n3.m.Destroy(0, removed) {
			must(f.settle())
		}
		must(n3.m.Ensure(0))
		f.watch = func() {
			if n3.m.Status(0).Initialised { // it has the birth certificate, and little else
				isolate(n2)
				isolate(f.node(4))
				f.wires = nil
				delete(f.cut, [2]uint64{1, 3})
				delete(f.cut, [2]uint64{3, 1})
			}
		}
		change(ReplicaChange{3, AddLearner})
		if st := n3.m.Status(0); acked == 0 || !st.Initialised || st.Last >= acked {
			t.Fatalf("acknowledged at %d, node 3 has %+v: not what was meant to be", acked, st)
		}
		f.watch = nil
		must(f.run(60))
		if lost := n1.m.Status(0).Leader || n3.m.Status(0).Leader; lost != forget {
			t.Errorf("tombstone forgotten: %v, but:\n%s", forget, (&story{f}).status())
		}
	}
}
