package replica

import (
	"fmt"
	"log/slog"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	"github.com/dunlin-iot/dunlin"
)

// testNode is one node's core with a log and a state that can crash.
type testNode struct {
	id    uint64
	log   *memLog
	state *memState
	core  *core
	write *appendBatch // begun, not ended

	unsynced bool // a planted fault: the fsync is left out

	out []string // what happened since last asked
}

func testConfig(id uint64, voters []uint64, shards int) Config {
	cfg := Config{Node: id, Voters: voters, Shards: shards, Bootstrap: true, Seed: 1, ElectionTicks: 1 << 30, MaxEntryBytesPerRead: 4096,
		Transport: noTransport{}, Logger: slog.New(slog.DiscardHandler)}
	return cfg
}

type noTransport struct{}

func (noTransport) Send([]Message) {}

func (n *testNode) open(voters []uint64, shards int) error {
	cfg := testConfig(n.id, voters, shards)
	cfg.Log, cfg.StateMachine = n.log, n.state
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return err
	}
	groups, err := load(&cfg)
	if err != nil {
		return err
	}
	n.core, n.write = newCore(&cfg, groups), nil
	return nil
}

func (n *testNode) say(format string, v ...any) { n.out = append(n.out, fmt.Sprintf(format, v...)) }

func (n *testNode) said() string {
	s := strings.Join(n.out, "\n")
	n.out = nil
	return s
}

func (n *testNode) propose(sh dunlin.ShardID, term uint64, data string, done func(index uint64, err error)) {
	if done == nil {
		done = func(index uint64, err error) {
			if err != nil {
				n.say("%s: %v", data, err)
			} else {
				n.say("%s: committed at %d", data, index)
			}
		}
	}
	b := stamp(term, data)
	n.core.propose(proposal{shard: sh, term: term, data: b, size: len(b), done: done})
}

// tell delivers the core's events.
func (n *testNode) tell(owner func(sh dunlin.ShardID, term uint64, owner bool)) {
	for _, e := range n.core.takeEvents() {
		switch {
		case e.done != nil:
			e.done(e.index, e.err)
		case e.reply != nil:
			e.reply(e.err)
		case e.conf != nil || e.leader:
		default:
			if owner != nil {
				owner(e.shard, e.term, e.owner)
			}
			n.say("shard %d: owner in term %d: %v", e.shard, e.term, e.owner)
		}
	}
}

// beginWrite brings the next batch to the log, but not to the disk.
func (n *testNode) beginWrite() error {
	if n.write != nil {
		return nil
	}
	n.write = n.core.takeAppend()
	if n.write == nil || len(n.write.rows) == 0 {
		return nil
	}
	var rows []string
	for _, r := range n.write.rows {
		if r.Hard != nil {
			h, _ := parseHard(r.Hard)
			rows = append(rows, fmt.Sprintf("%d: term %d vote %d commit %d", r.Shard, h.term, h.vote, h.commit))
		} else {
			rows = append(rows, fmt.Sprintf("%d/%d: term %d %s", r.Shard, r.Index, r.Term, rowText(r.Type, r.Data)))
		}
	}
	n.say("write sync=%v [%s]", n.write.sync, strings.Join(rows, ", "))
	return n.log.Append(n.write.rows, false)
}

func rowText(typ uint8, data []byte) string {
	switch {
	case typ != 0:
		return "membership"
	case len(data) == 0:
		return "empty"
	}
	return string(data)
}

// endWrite is the fsync of the batch.
func (n *testNode) endWrite() error {
	b := n.write
	if b == nil {
		return nil
	}
	n.write = nil
	if b.sync && !n.unsynced {
		n.log.sync(len(n.log.pending))
	}
	return n.core.written(b)
}

func (n *testNode) apply() error {
	b := n.core.takeApply()
	if b == nil {
		return nil
	}
	var rows []string
	for _, e := range b.entries {
		what := rowText(0, e.Data)
		if e.Conf != nil {
			cs, err := parseConf(e.Conf)
			if err != nil {
				return err
			}
			what = fmt.Sprintf("voters %v", cs.Voters)
		}
		rows = append(rows, fmt.Sprintf("%d/%d: term %d %s", e.Shard, e.Index, e.Term, what))
	}
	n.say("apply [%s]", strings.Join(rows, ", "))
	if err := n.state.Apply(b.entries); err != nil {
		return err
	}
	return n.core.applied(b)
}

// settle works until nothing but messages is left to do.
func (n *testNode) settle() error {
	for {
		before := len(n.out)
		if err := n.core.ready(); err != nil {
			return err
		}
		for _, f := range []func() error{n.beginWrite, n.endWrite, n.apply} {
			if err := f(); err != nil {
				return err
			}
		}
		n.tell(nil)
		if len(n.out) == before && len(n.core.dirty) == 0 {
			return nil
		}
	}
}

// TestCore runs the scripts in testdata: what a core wants written, applied and told, one step at a time.
func TestCore(t *testing.T) {
	datadriven.Walk(t, "testdata/core", func(t *testing.T, path string) {
		w := &world{nodes: map[uint64]*testNode{}}
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			w.t = t
			out, err := w.run(d)
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

type world struct {
	t      *testing.T
	nodes  map[uint64]*testNode
	voters []uint64
	shards int
}

func (w *world) run(d *datadriven.TestData) (string, error) {
	id, sh, term, keep := uint64(1), uint64(0), uint64(2), 0
	d.MaybeScanArgs(w.t, "node", &id)
	d.MaybeScanArgs(w.t, "shard", &sh)
	d.MaybeScanArgs(w.t, "term", &term)
	d.MaybeScanArgs(w.t, "keep", &keep)
	n := w.nodes[id]
	if d.Cmd == "new" {
		return "", w.open(d)
	}
	err := error(nil)
	switch d.Cmd {
	case "propose":
		for data := range strings.FieldsSeq(d.Input) {
			n.propose(dunlin.ShardID(sh), term, data, nil)
		}
		n.tell(nil)
	case "ready":
		err = n.core.ready()
		n.tell(nil)
	case "begin-write":
		err = n.beginWrite()
	case "end-write":
		err = n.endWrite()
	case "apply":
		err = n.apply()
		n.tell(nil)
	case "settle":
		err = n.settle()
	case "tick":
		n.core.tick()
	case "campaign":
		g := n.core.groups[sh]
		g.rn.ForgetLeader()
		g.stale = true
		err = g.rn.Campaign()
		n.core.touch(g)
	case "forget":
		n.core.groups[sh].rn.ForgetLeader()
		n.core.groups[sh].stale = true
		n.core.touch(n.core.groups[sh])
	case "flush":
		n.state.flush()
	case "compact":
		var upTo uint64
		d.ScanArgs(w.t, "up-to", &upTo)
		upTo, err = n.core.compact(dunlin.ShardID(sh), upTo)
		n.say("truncate up to %d", upTo)
		if err == nil && upTo >= n.core.groups[sh].st.first-1 {
			err = n.log.Truncate(dunlin.ShardID(sh), upTo)
		}
	case "crash":
		n.log, n.state = n.log.crash(keep), n.state.crash()
		n.out = nil
		err = n.open(w.voters, w.shards)
	case "close":
		n.core.close()
		n.tell(nil)
	case "effects":
		for _, e := range n.state.effects(dunlin.ShardID(sh)) {
			n.say("%d %s", e.index, e.data)
		}
	case "status":
		n.say("ticking=%v dirty=%d reads=%d recent=%d", n.core.ticking(), len(n.core.dirty), n.log.reads, len(n.core.groups[sh].st.recent))
	case "deliver":
		return w.deliver(d)
	default:
		return "", fmt.Errorf("unknown command %s", d.Cmd)
	}
	return n.said(), err
}

func (w *world) open(d *datadriven.TestData) error {
	w.shards = 1
	count := 1
	d.MaybeScanArgs(w.t, "nodes", &count)
	d.MaybeScanArgs(w.t, "shards", &w.shards)
	for i := range count {
		w.voters = append(w.voters, uint64(i+1))
	}
	for _, id := range w.voters {
		w.nodes[id] = &testNode{id: id, log: newMemLog(w.shards), state: newMemState(w.shards)}
		if err := w.nodes[id].open(w.voters, w.shards); err != nil {
			return err
		}
	}
	return nil
}

// deliver settles all nodes and carries messages between them until none is left; those from or to the node in drop are
// lost, and so are all but those with the given from and to.
func (w *world) deliver(d *datadriven.TestData) (string, error) {
	var drop, onlyFrom, onlyTo uint64
	d.MaybeScanArgs(w.t, "drop", &drop)
	d.MaybeScanArgs(w.t, "from", &onlyFrom)
	d.MaybeScanArgs(w.t, "to", &onlyTo)
	var out strings.Builder
	for {
		var wires []Message
		from := []uint64{}
		for _, id := range w.voters {
			n := w.nodes[id]
			if err := n.settle(); err != nil {
				return out.String(), err
			}
			if s := n.said(); s != "" {
				fmt.Fprintf(&out, "node %d:\n  %s\n", id, strings.ReplaceAll(s, "\n", "\n  "))
			}
			for _, m := range n.core.takeSends() {
				wires, from = append(wires, m), append(from, id)
			}
		}
		if len(wires) == 0 {
			return out.String(), nil
		}
		for i, m := range wires {
			if m.To == drop || from[i] == drop || onlyTo != 0 && (m.To != onlyTo || from[i] != onlyFrom) {
				continue
			}
			to := w.nodes[m.To].core
			in, err := parseInbound(to.cfg, m.Shard, m.Data)
			if err != nil {
				return out.String(), err
			}
			in.feed(to)
		}
	}
}
