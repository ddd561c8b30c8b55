package peer

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
	"pgregory.net/rapid"
)

// Whatever comes, goes and is given up: no more is asked for than the window, no more has room than the budget, the books
// agree, and what is left is received in the end.
func TestLawsOfFlows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := newFlows(1<<20, chunkMax*rapid.IntRange(1, 4).Draw(t, "window"))
		granted, sent, totals := map[flowKey]int{}, map[flowKey]int{}, map[flowKey]int{}
		held := 0 // complete, not released
		var holding []int
		pump := func() {
			for _, g := range f.pump() {
				granted[g.key] += g.n
			}
		}
		piece := func(key flowKey) {
			n := min(granted[key]-sent[key], chunkMax)
			if n == 0 {
				return
			}
			body, done, err := f.data(key, make([]byte, n))
			if err != nil {
				t.Fatal(err)
			}
			if sent[key] += n; done != (sent[key] == totals[key]) || done && len(body) != totals[key] {
				t.Fatalf("%v: %d of %d bytes, done %v", key, sent[key], totals[key], done)
			}
			if done {
				held, holding = held+len(body), append(holding, len(body))
				delete(totals, key)
			}
		}
		id := uint32(0)
		for range rapid.IntRange(1, 100).Draw(t, "steps") {
			switch rapid.IntRange(0, 5).Draw(t, "step") {
			case 0:
				id++
				key := flowKey{id, rapid.Bool().Draw(t, "reply")}
				totals[key] = rapid.IntRange(inlineMax+1, 1<<20).Draw(t, "total")
				if !f.add(key, totals[key]) || f.add(key, 1) {
					t.Fatal("add")
				}
			case 1:
				if key := (flowKey{rapid.Uint32Range(1, id+1).Draw(t, "id"), rapid.Bool().Draw(t, "reply")}); totals[key] != 0 {
					f.remove(key)
					delete(totals, key)
				}
			case 2:
				if len(holding) > 0 {
					f.release(holding[0])
					held, holding = held-holding[0], holding[1:]
				}
			default:
				if key := (flowKey{rapid.Uint32Range(1, id+1).Draw(t, "id"), rapid.Bool().Draw(t, "reply")}); totals[key] != 0 {
					piece(key)
				}
			}
			pump()
			onTheWay := 0
			for key := range totals {
				onTheWay += granted[key] - sent[key]
			}
			if f.outstanding != onTheWay || f.outstanding > f.window || f.reserved > f.budget || f.reserved < held || len(f.all) != len(totals) {
				t.Fatalf("outstanding %d (%d) of %d, reserved %d of %d, held %d, %d bodies (%d)", f.outstanding, onTheWay, f.window, f.reserved, f.budget, held, len(f.all), len(totals))
			}
		}
		for rounds := 0; len(totals) > 0; rounds++ {
			if rounds > 1_000_000 {
				t.Fatalf("%d bodies never come: %+v", len(totals), f)
			}
			for _, n := range holding {
				f.release(n)
			}
			holding = nil
			pump()
			for key := range totals {
				piece(key)
			}
		}
		for _, n := range holding {
			f.release(n)
		}
		if f.reserved != 0 || f.outstanding != 0 {
			t.Fatalf("in the end %d bytes have room and %d were asked for", f.reserved, f.outstanding)
		}
	})
}

// The queue's bytes are frames that give back the messages in their order.
func TestLawsOfTheQueue(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		q := raftq{open: -1}
		var want []Message
		for range rapid.IntRange(0, 60).Draw(t, "messages") {
			n := rapid.OneOf(rapid.IntRange(0, 100), rapid.IntRange(copyMax-2, copyMax+2)).Draw(t, "bytes")
			m := Message{Shard: dunlin.ShardID(rapid.Uint16().Draw(t, "shard")), Data: body(n)}
			want = append(want, m)
			q.add(uint16(m.Shard), m.Data)
		}
		var wire []byte
		at := 0
		for _, r := range q.refs {
			wire = append(append(wire, q.buf[at:r.at]...), r.data...)
			at = r.at
		}
		wire = append(wire, q.buf[at:]...)
		got := 0
		for len(wire) > 0 {
			n := int(wire[0]) | int(wire[1])<<8 | int(wire[2])<<16
			if wire[3] != frameRaft || n > bounds(frameRaft, 12<<20) {
				t.Fatalf("frame of type %d with %d bytes", wire[3], n)
			}
			b := wire[frameHead : frameHead+n]
			for len(b) > 0 {
				sh, data, rest, err := nextMessage(b)
				if err != nil || got == len(want) || sh != want[got].Shard || !bytes.Equal(data, want[got].Data) {
					t.Fatalf("message %d of %d: shard %d, %d bytes, %v", got, len(want), sh, len(data), err)
				}
				got, b = got+1, rest
			}
			wire = wire[frameHead+n:]
		}
		if got != len(want) || q.count != len(want) {
			t.Fatalf("%d messages of %d", got, len(want))
		}
		if q.reset(); !q.empty() || q.open != -1 || len(q.buf) != 0 || len(q.refs) != 0 {
			t.Fatalf("after reset %+v", q)
		}
	})
}

func TestWhichConnectionCounts(t *testing.T) {
	const me = 99
	link := func(dialled bool, boot uint64, seq uint64) *conn {
		return &conn{dialled: dialled, seq: seq, them: &hello{boot: boot}, done: make(chan struct{})}
	}
	for _, c := range []struct {
		name           string
		oldDialled     bool
		dialled        bool
		boot           uint64
		seenBoot, seen uint64
		dead           bool
		want           bool
	}{
		{name: "both dialled, the other has not heard of ours: ours stays", oldDialled: true},
		{name: "the other has heard of ours and dials: it has lost it", oldDialled: true, seenBoot: me, seen: 5, want: true},
		{name: "the other has heard of an older one of ours", oldDialled: true, seenBoot: me, seen: 4},
		{name: "the other has heard of our former life", oldDialled: true, seenBoot: 98, seen: 7},
		{name: "the other dials again: it has lost its own", want: true},
		{name: "our own comes late", dialled: true},
		{name: "the old one is dead", oldDialled: true, dialled: true, dead: true, want: true},
		{name: "the other lives again", oldDialled: true, boot: 8, want: true},
	} {
		old, next := link(c.oldDialled, 7, 5), link(c.dialled, 7+c.boot, 0)
		next.them.seenBoot, next.them.seen = c.seenBoot, c.seen
		if c.dead {
			close(old.done)
		}
		if got := replaces(old, next, me); got != c.want {
			t.Errorf("%s: %v", c.name, got)
		}
	}
}

func FuzzHello(f *testing.F) {
	h := &hello{Hello: Hello{Cluster: "c", Node: 1, Name: "n", WireMin: 1, WireMax: 2, Version: "v"}, kind: kindLink, boot: 1, seenBoot: 2, seen: 3}
	f.Add(h.append(nil))
	f.Add([]byte(magic + "\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := readHello(bytes.NewReader(b))
		if err != nil {
			return
		}
		again, err := readHello(bytes.NewReader(h.append(nil)))
		if err != nil || *again != *h {
			t.Fatalf("%+v came back as %+v, %v", h, again, err)
		}
		self := &hello{Hello: Hello{Cluster: "c", Node: 9, Name: "n", WireMin: 1, WireMax: 2}, boot: 9}
		if v, r := greet(self, h, h.kind, 0); (v == 0) == (r == nil) {
			t.Fatalf("version %d, %v", v, r)
		}
	})
}

// FuzzFrames gives a connection without a network whatever the other side may send.
func FuzzFrames(f *testing.F) {
	q := request{id: 1, total: 3, method: "m", deadlineMS: 1}
	big := request{id: 2, total: inlineMax + 1, method: "m"}
	p := reply{id: 1, total: 2}
	raft := raftq{open: -1}
	raft.add(7, []byte("data"))
	raft.add(8, nil)
	for _, b := range [][]byte{
		append(q.appendHead(nil), "abc"...), append(big.appendHead(nil), appendCancel(nil, 2)...), append(p.appendHead(nil), "ok"...),
		raft.buf, appendWord(nil, framePing, 1), appendWord(nil, frameUse, 1), appendCredit(nil, frameReplyCredit, 1, 10),
		appendRefuse(nil, refuse(RefusedLeft, "text")), append(big.appendHead(nil), append(appendHead(nil, frameCallPiece, 6), 2, 0, 0, 0, 'x', 'y')...),
	} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		l := offline(t)
		c := newConn(l, nil, &wire{})
		c.them, c.kind, c.p, c.version = &hello{Hello: Hello{Node: 2}, boot: 1}, kindLink, l.peer(2), 1
		ctx, cancel := context.WithCancel(t.Context())
		c.mu.calls[1] = &call{method: "m", done: make(chan struct{})}
		for len(b) >= frameHead {
			n := int(b[0]) | int(b[1])<<8 | int(b[2])<<16
			if limit := bounds(b[3], l.cfg.MessageBytesMax); n > limit || n > len(b)-frameHead {
				break
			}
			if err := c.frame(ctx, b[3], b[frameHead:frameHead+n]); err != nil {
				break
			}
			b = b[frameHead+n:]
		}
		c.mu.Lock()
		if s := c.p.serving.Load(); int(s) > l.cfg.CallsMax || c.mu.flows.reserved > c.mu.flows.budget {
			t.Errorf("%d calls, %d bytes", s, c.mu.flows.reserved)
		}
		c.mu.Unlock()
		cancel()
		c.cause = errClosing
		c.abandon()
		l.serving.Wait()
		if s := c.p.serving.Load(); s != 0 {
			t.Errorf("%d calls are left", s)
		}
	})
}

// offline are links without a network.
func offline(t testing.TB) *Links {
	l := &Links{boot: 1}
	l.cfg = Config{OnMessages: func(dunlin.NodeID, dunlin.ShardID, []byte) {}, Self: Hello{Node: 1}, DeadAfter: time.Second}
	l.cfg.setDefaults()
	l.cfg.Serve = func(_ context.Context, _ dunlin.NodeID, _ string, b []byte) ([]byte, error) { return b, nil }
	l.wake = make(chan struct{}, 1)
	l.guest = newPeer(l, 0)
	l.peers.Store(&map[dunlin.NodeID]*peer{})
	l.mu.left = map[dunlin.NodeID]bool{}
	var err error
	if l.m, err = newMetrics(l, nil); err != nil {
		t.Fatal(err)
	}
	return l
}

func TestExplainLeavesTheRest(t *testing.T) {
	if err := fmt.Errorf("odd"); explain(err) != err {
		t.Error("changed")
	}
}
