package replica

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/dunlin-iot/dunlin"
)

// TestStories runs the scripts in testdata/fleet: whole clusters, told from outside.
func TestStories(t *testing.T) {
	datadriven.Walk(t, "testdata/fleet", func(t *testing.T, path string) {
		s := &story{}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			out, err := s.do(d)
			if s.fleet != nil {
				out = s.said() + out
			}
			if err != nil {
				out += fmt.Sprintf("error: %v", err)
			}
			if out = strings.TrimSpace(out); out == "" {
				return "ok"
			}
			return out
		})
	})
}

// arg returns a number, def if it isn't given.
func arg(d *datadriven.TestData, key string, def int) int {
	for _, a := range d.CmdArgs {
		if a.Key == key {
			n, err := strconv.Atoi(a.Vals[0])
			if err != nil {
				panic(err)
			}
			return n
		}
	}
	return def
}

func (s *story) do(d *datadriven.TestData) (string, error) {
	if d.Cmd == "new" {
		return "", s.begin(d)
	}
	n := s.node(uint64(arg(d, "node", 1)))
	switch d.Cmd {
	case "run":
		return "", s.run(arg(d, "ticks", 1))
	case "propose":
		term := n.owns[0]
		for data := range strings.FieldsSeq(d.Input) {
			n.m.Propose(0, term, stamp(term, data), func(index uint64, err error) {
				if err == nil {
					n.say("%s: committed at %d", data, index)
				} else {
					n.say("%s: %v", data, err)
				}
			})
		}
		return "", s.settle()
	case "fill": // many proposals, silently
		term := n.owns[0]
		for i := range arg(d, "count", 100) {
			n.m.Propose(0, term, stamp(term, fmt.Sprintf("f%d", i)), func(_ uint64, err error) {
				if err != nil {
					n.say("f%d: %v", i, err)
				}
			})
		}
		return "", s.settle()
	case "change":
		return "", s.change(n, d)
	case "transfer":
		n.m.Transfer(0, dunlin.NodeID(arg(d, "to", 2)), n.answer("transfer"))
		return "", s.settle()
	case "abdicate":
		n.m.Abdicate(arg(d, "on", 1) == 1)
		return "", s.settle()
	case "read":
		n.m.ReadIndex(0, n.answer("read"))
		return "", s.settle()
	case "campaign":
		n.m.Campaign(0)
		return "", s.settle()
	case "ensure":
		return "", n.m.Ensure(0)
	case "destroy":
		return "", s.destroy(n, uint64(arg(d, "removed-at", 0)))
	case "status":
		return s.status(), nil
	case "effects":
		var out []string
		for _, e := range n.disk.state.effects(0) {
			out = append(out, fmt.Sprintf("%d %s", e.index, e.data))
		}
		return strings.Join(out, "\n"), nil
	}
	return s.world(n, d)
}

// world is what happens to a node from outside.
func (s *story) world(n *fleetNode, d *datadriven.TestData) (string, error) {
	switch d.Cmd {
	case "cut":
		for _, o := range s.nodes {
			if to := arg(d, "from", 0); to == 0 || uint64(to) == o.id {
				s.cut[[2]uint64{o.id, n.id}] = true
			}
			if to := arg(d, "to", 0); to == 0 || uint64(to) == o.id {
				s.cut[[2]uint64{n.id, o.id}] = true
			}
		}
	case "heal":
		clear(s.cut)
	case "stall":
		n.stalled = arg(d, "on", 1) == 1
	case "crash":
		s.crash(n, arg(d, "keep", 0))
	case "start":
		return "", s.open(n)
	case "close":
		n.m.Close()
		s.collect(n)
		n.m = nil
	case "flush":
		n.disk.state.flush()
	case "compact":
		upTo, err := n.m.Compact(0, min(uint64(arg(d, "up-to", 1<<30)), n.disk.state.Durable(0)))
		if err == nil && upTo > 0 {
			err = n.disk.log.Truncate(0, upTo)
		}
		return fmt.Sprintf("up to %d", upTo), err
	case "recover":
		got, err := Recover(Config{Node: n.id, Shards: s.shards, Log: n.disk.log, StateMachine: n.disk.state, Snapshots: n.disk})
		for _, r := range got {
			n.say("applied %d, committed %d, log to %d, was %s; term %d", r.Applied, r.Commit, r.Last, confText(r.Was), r.Term)
		}
		return "", err
	case "installs":
		return fmt.Sprintf("%d snapshots in %d chunks", n.disk.installs, n.disk.added), nil
	case "exports":
		return fmt.Sprintf("%d open", len(n.disk.exports)), nil
	default:
		return "", fmt.Errorf("unknown command %s", d.Cmd)
	}
	return "", nil
}

func (s *story) begin(d *datadriven.TestData) error {
	voters := []uint64{}
	for i := range arg(d, "voters", 3) {
		voters = append(voters, uint64(i+1))
	}
	s.fleet = newFleet(1, arg(d, "nodes", len(voters)), 1, voters)
	for _, n := range s.nodes {
		if err := s.open(n); err != nil {
			return err
		}
	}
	return s.settle()
}

func (s *story) change(n *fleetNode, d *datadriven.TestData) error {
	var changes []ReplicaChange
	for _, a := range d.CmdArgs {
		kind := map[string]ChangeKind{"learner": AddLearner, "voter": AddVoter, "remove": RemoveReplica}[a.Key]
		if kind == 0 {
			continue
		}
		for _, v := range a.Vals {
			id, err := strconv.Atoi(v)
			if err != nil {
				return err
			}
			changes = append(changes, ReplicaChange{dunlin.NodeID(id), kind})
		}
	}
	n.m.Change(0, changes, n.answer("change"))
	return s.settle()
}

func (s *story) destroy(n *fleetNode, removedAt uint64) error {
	for range 10 {
		err := n.m.Destroy(0, removedAt)
		if err == nil {
			return nil
		}
		if err := s.settle(); err != nil {
			return err
		}
	}
	return n.m.Destroy(0, removedAt)
}
