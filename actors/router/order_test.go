package router

import (
	"fmt"
	"testing"

	"github.com/dunlin-iot/dunlin"
)

// TestOvertakenCalls: of a lane's calls only those count that are newer than all before; a Router that starts anew counts anew.
func TestOvertakenCalls(t *testing.T) {
	r := bareRouter(t, 2, instantly{}, nil)
	defer r.stop()
	l := &ledger{}
	serve := func(from dunlin.NodeID, life, seq uint64) string {
		p := []part{{shard: 3, term: 1, seq: seq, items: []item{{u: uplink("a", 1, l)}}}}
		reply, err := r.Serve(t.Context(), from, methodUplinks, appendBatch(nil, life, p))
		if err != nil {
			t.Fatal(err)
		}
		answers, err := r.decodeReply(reply, p)
		if err != nil {
			t.Fatal(err)
		}
		if answers[0].refused {
			return "refused"
		}
		return fmt.Sprint(answers[0].receipts[0].Seq)
	}
	for i, c := range []struct {
		from      dunlin.NodeID
		life, seq uint64
		want      string
	}{
		{1, 7, 1, "4711"},
		{1, 7, 1, "refused"}, // twice
		{1, 7, 3, "4711"},
		{1, 7, 2, "refused"}, // overtaken
		{3, 9, 1, "4711"},    // another node's
		{1, 8, 1, "4711"},    // started anew
		{1, 8, 1, "refused"},
	} {
		if got := serve(c.from, c.life, c.seq); got != c.want {
			t.Errorf("call %d: %s, want %s", i, got, c.want)
		}
	}
}

// TestTermIsChecked: who owns a shard in an earlier term than the sender knows of has been replaced.
func TestTermIsChecked(t *testing.T) {
	r := bareRouter(t, 2, instantly{}, nil) // owns everything in term 1
	defer r.stop()
	p := []part{{shard: 3, term: 2, seq: 1, items: []item{{u: uplink("a", 1, &ledger{})}}}, {shard: 4, term: 0, seq: 1, items: []item{{u: uplink("b", 2, &ledger{})}}}}
	reply, err := r.Serve(t.Context(), 1, methodUplinks, appendBatch(nil, 7, p))
	if err != nil {
		t.Fatal(err)
	}
	answers, err := r.decodeReply(reply, p)
	if err != nil || !answers[0].refused || answers[0].hint != 2 || answers[0].hintTerm != 1 || answers[1].refused {
		t.Errorf("%+v, %v", answers, err)
	}
}

// TestBackComesFirst: what waited here when the shard went, or was sent in vain, goes before what came since.
func TestBackComesFirst(t *testing.T) {
	var sent []string
	var dones []func([]byte, error)
	names := interner{}
	names.init()
	r := bareRouter(t, 1, nowhere{}, goFunc(func(_ string, body []byte, done func([]byte, error)) {
		_, sections, err := decodeBatch(body, &names, 8)
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range sections {
			line := ""
			for _, u := range s.uplinks {
				line += fmt.Sprint(" ", u.Records[0].Num)
			}
			sent = append(sent, line)
		}
		dones = append(dones, done)
	}))
	defer r.stop()
	l := &ledger{}
	take := func(v int) { r.Take(3, uplink("a", v, l)) }
	take(10)
	take(11)
	r.TakeBack(3, uplink("a", 1, l), true)
	r.TakeBack(3, uplink("a", 3, l), false)
	r.Flush() // 1 3 10 11
	take(12)
	r.Flush()
	if len(sent) != 1 {
		t.Fatalf("a lane has %d calls in flight", len(sent))
	}
	r.TakeBack(3, uplink("a", 4, l), true)
	dones[0](appendReply(nil, []answer{{refused: true, hint: 2, hintTerm: 5}}), nil) // not yet the owner
	r.mu.Lock()
	r.mu.lanes[3].avoid.until = 0
	r.mu.Unlock()
	r.tick()
	if fmt.Sprint(sent) != "[ 1 3 10 11  1 3 10 11 4 12]" {
		t.Errorf("sent %q", sent)
	}
	if r.TakeBack(3, uplink("a", 5, l), true) { // has no message id
		t.Error("what can't be told from a second message is tried elsewhere")
	}
}
