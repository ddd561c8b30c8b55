package replica

import (
	"fmt"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

func FuzzBeats(f *testing.F) {
	some := []beat{{shard: 3, term: 7, commit: 9, index: 12}, {shard: 5, kind: beatUrgent, term: 1, index: 2}, {shard: 0, kind: beatAnswer, term: 2}}
	good, _ := appendBeats(nil, 2, 1, some)
	f.Add(good)
	f.Add([]byte{beatsMark, beatsVersion})
	cfg := &Config{Node: 1, Shards: 64}
	f.Fuzz(func(t *testing.T, b []byte) {
		from, list, err := parseBeats(cfg, b)
		if err != nil {
			return
		}
		again, rest := appendBeats(nil, from, cfg.Node, list)
		if len(rest) > 0 {
			return // longer than any that is sent
		}
		if from2, list2, err := parseBeats(cfg, again); err != nil || from2 != from || !slices.Equal(list, list2) {
			t.Errorf("%d %v became %d %v, %v", from, list, from2, list2, err)
		}
	})
}

// TestBeatFrames: what does not fit one frame comes in several, whole.
func TestBeatFrames(t *testing.T) {
	var list, got []beat
	for i := range 1 << 14 {
		list = append(list, beat{shard: dunlin.ShardID(i), term: 1 << 40, commit: uint64(i) << 20, index: uint64(i)<<20 + 1})
	}
	cfg := &Config{Node: 1, Shards: 1 << 14}
	frames := 0
	for rest := list; len(rest) > 0; frames++ {
		var b []byte
		b, rest = appendBeats(nil, 2, 1, rest)
		if len(b) > beatsBytesMax+64 {
			t.Fatalf("a frame of %d bytes", len(b))
		}
		_, more, err := parseBeats(cfg, b)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, more...)
	}
	if frames < 2 || !slices.Equal(got, list) {
		t.Errorf("%d beats in %d frames, want %d", len(got), frames, len(list))
	}
}

// TestBeatsAreShared: an idle round between three nodes is one frame each way, however many shards there are, and whoever
// gets heartbeats shortly before its own sends them along.
func TestBeatsAreShared(t *testing.T) {
	const shards = 12
	f := newFleet(1, 3, shards, []uint64{1, 2, 3})
	f.tune = func(c *Config) { c.HeartbeatTicks = 3 }
	for i, n := range f.nodes {
		if err := f.open(n); err != nil {
			t.Fatal(err)
		}
		n.now = dunlin.Time(1_000_000 + i)
	}
	tick := func() {
		t.Helper()
		for _, n := range f.nodes {
			n.now += 30_000
			n.m.Tick(n.now)
			if err := f.settle(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for sh := range dunlin.ShardID(shards) {
		f.nodes[int(sh)%3].m.Campaign(sh)
		if err := f.settle(); err != nil {
			t.Fatal(err)
		}
	}
	for range 60 { // whoever was not elected at once
		tick()
	}
	frames := map[string]int{}
	f.watch = func() {
		for _, w := range f.wires {
			if !isBeats(w.Data) {
				t.Errorf("%d to %d: a message that is no frame of beats", w.from, w.To)
			}
			frames[fmt.Sprint(w.from, " to ", w.To)]++
		}
	}
	for range 30 { // ten rounds
		tick()
	}
	for pair, n := range frames {
		if n > 13 {
			t.Errorf("%d frames from %s in ten rounds", n, pair)
		}
	}
	if len(frames) != 6 {
		t.Errorf("frames between %v", frames)
	}
	for sh := range dunlin.ShardID(shards) {
		for _, n := range f.nodes {
			st := n.m.Status(sh)
			if st.Lead == 0 || st.Heard > 200*time.Millisecond || st.Heard < 0 {
				t.Errorf("shard %d on %d: leader %v, heard of %v ago", sh, n.id, st.Lead, st.Heard)
			}
			for _, p := range st.Progress {
				if !p.Active {
					t.Errorf("shard %d: %d is not active", sh, p.Node)
				}
			}
		}
	}
}

// napping is one core that is told of every tick, or only of those that nap says are due.
type napping struct {
	n    *testNode
	naps bool
	in   int // ticks from core.lastTick to the next that is due
	rung int
	sent []string
}

func openNapping(t *rapid.T, naps bool, shards int, start dunlin.Time) *napping {
	n := &testNode{id: 1, log: newMemLog(shards), state: newMemState(shards)}
	cfg := testConfig(1, []uint64{1, 2, 3}, shards)
	cfg.Log, cfg.StateMachine, cfg.ElectionTicks, cfg.HeartbeatTicks = n.log, n.state, 10, 3
	cfg.setDefaults()
	groups, err := load(&cfg)
	if err != nil {
		t.Fatal(err)
	}
	n.core = newCore(&cfg, groups)
	n.core.at(start)
	n.core.lastTick = start
	return &napping{n: n, naps: naps, in: 1}
}

// until lets time pass up to a moment.
func (p *napping) until(t *rapid.T, at dunlin.Time) {
	c := p.n.core
	for {
		due := c.lastTick + dunlin.Time(p.in)*c.every()
		if due > at {
			break
		}
		c.at(due)
		c.tickAfter(p.in)
		p.rung++
		p.settle(t)
		p.plan()
	}
	c.at(at)
	if p.in > 1 {
		p.in -= c.pass(p.in - 1)
	}
}

func (p *napping) plan() {
	if p.in = 1; p.naps && !p.n.core.stirred {
		p.in = p.n.core.nap()
	}
}

func (p *napping) feed(t *rapid.T, sh dunlin.ShardID, data []byte) {
	in, err := parseInbound(p.n.core.cfg, sh, data)
	if err != nil {
		t.Fatal(err)
	}
	in.feed(p.n.core)
	p.settle(t)
	p.plan()
}

func (p *napping) settle(t *rapid.T) {
	if err := p.n.settle(); err != nil {
		t.Fatal(err)
	}
	for _, m := range p.n.core.takeSends() {
		p.sent = append(p.sent, fmt.Sprintf("%d: to %d, shard %d: %x", p.n.core.now, m.To, m.Shard, m.Data))
	}
}

// TestNapsChangeNothing: a core that sleeps over the ticks in which nothing is due sends the same at the same moments as one
// that is told of all of them.
func TestNapsChangeNothing(t *testing.T) {
	slept := 0
	rapid.Check(t, func(t *rapid.T) {
		const shards = 6
		start := dunlin.Time(1_000_000)
		a, b := openNapping(t, false, shards, start), openNapping(t, true, shards, start)
		both := func(sh dunlin.ShardID, data []byte) {
			a.feed(t, sh, data)
			b.feed(t, sh, data)
		}
		now := start
		for range rapid.IntRange(5, 60).Draw(t, "events") {
			now += dunlin.Time(rapid.IntRange(1, 200_000).Draw(t, "pause"))
			a.until(t, now)
			b.until(t, now)
			sh := dunlin.ShardID(rapid.IntRange(0, shards-1).Draw(t, "shard"))
			from, to, term := uint64(rapid.IntRange(2, 3).Draw(t, "from")), uint64(1), a.n.core.groups[sh].told.term
			switch rapid.SampledFrom([]string{"beats", "beats", "beats", "vote", "nothing"}).Draw(t, "event") {
			case "beats": // of shards that others lead, and answers for those that this one does
				var list []beat
				for i, g := range a.n.core.groups {
					if g.told.leader {
						list = append(list, beat{shard: dunlin.ShardID(i), kind: beatAnswer, term: g.told.term})
					} else if uint64(i%2+2) == from {
						list = append(list, beat{shard: dunlin.ShardID(i), term: max(g.told.term, 2), commit: 1, index: 1})
					}
				}
				frame, _ := appendBeats(nil, from, 1, list)
				both(0, frame)
			case "vote": // this one is elected, if it stands
				for _, typ := range []pb.MessageType{pb.MsgPreVoteResp, pb.MsgVoteResp} {
					if typ == pb.MsgPreVoteResp {
						term++
					}
					m, err := proto.Marshal(&pb.Message{Type: typ.Enum(), From: &from, To: &to, Term: &term})
					if err != nil {
						t.Fatal(err)
					}
					both(sh, m)
				}
			}
		}
		if !reflect.DeepEqual(a.sent, b.sent) {
			t.Fatalf("told of all ticks: %q\nnapping: %q", a.sent, b.sent)
		}
		if a.n.core.ticks != b.n.core.ticks {
			t.Fatalf("%d ticks, napping %d", a.n.core.ticks, b.n.core.ticks)
		}
		slept += a.rung - b.rung
	})
	if slept < 100 {
		t.Errorf("only %d ticks were slept over", slept)
	}
}
