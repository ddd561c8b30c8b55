package sessions

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
)

// TestOneHolder: whatever is asked in whatever order, also twice, only who claimed last can save; epochs only grow; and of
// each will it is known what became of it: said once it is due, or forgotten because its client said so or came back.
func TestOneHolder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var st state
		at := dunlin.Time(1e15)
		var newest hold                                    // the last claim that was granted, while it stands
		claims := []hold{{1, 1}}                           // all there ever were
		said, owed := map[string]bool{}, map[string]bool{} // wills
		bodies, last := 0, ""
		n := 0
		step := func(q *request) reply {
			next, a := st.step(q, at)
			if twice, _ := next.step(q, at); q.kind == kindSaid || q.kind == kindExpire || q.kind == kindOrphan {
				if fmt.Sprint(twice.row) != fmt.Sprint(next.row) {
					t.Fatalf("%+v twice: %+v, then %+v", q, next.row, twice.row)
				}
			}
			st = next
			return a
		}
		t.Repeat(map[string]func(*rapid.T){
			"open": func(t *rapid.T) {
				n++
				at += 10 // an entry takes longer than that
				q := &request{kind: kindOpen, node: dunlin.NodeID(rapid.IntRange(1, 3).Draw(t, "node")), clean: rapid.Bool().Draw(t, "clean"),
					expiry: rapid.SampledFrom([]uint32{0, 10, 1000}).Draw(t, "expiry"), willDelay: rapid.SampledFrom([]uint32{0, 20}).Draw(t, "delay")}
				if rapid.Bool().Draw(t, "will") {
					q.will = fmt.Append(nil, "will", n)
				}
				if rapid.Bool().Draw(t, "force") {
					q.force = st.holderOf().epoch
				}
				before := st
				a := step(q)
				if a.status == statusHeld {
					if q.force != 0 || newest == (hold{}) || a.node != newest.node || a.epoch != newest.epoch {
						t.Fatalf("held by %+v, though %+v has it", a, newest)
					}
					return
				}
				for _, c := range claims {
					if a.epoch <= c.epoch {
						t.Fatalf("epoch %d after %d", a.epoch, c.epoch)
					}
				}
				newest = hold{q.node, a.epoch}
				claims = append(claims, newest)
				if a.present && (q.clean || string(a.body) != last) {
					t.Fatalf("found %q (clean %v), want %q", a.body, q.clean, last)
				}
				if !a.present {
					last = ""
				}
				if a.volatile != (st.row == nil) {
					t.Fatalf("%+v without a row: %v", st, a.volatile)
				}
				if r := before.row; r != nil && len(r.will) > 0 && r.holder != 0 && (!a.present || r.willDelay == 0) {
					owed[string(r.will)] = true
				}
			},
			"save": func(t *rapid.T) {
				c := rapid.SampledFrom(claims).Draw(t, "claim")
				bodies++
				q := &request{kind: kindSave, node: c.node, epoch: c.epoch, expiry: 1000, body: fmt.Append(nil, bodies)}
				held := st.row != nil && st.row.holder != 0
				a := step(q)
				if (a.status == statusDone) != (c == newest && (held || st.hold == c)) {
					t.Fatalf("save of %+v: %+v, newest is %+v", c, a, newest)
				}
				if a.status == statusDone && st.row != nil {
					last = string(q.body)
				}
			},
			"leave": func(t *rapid.T) {
				c := rapid.SampledFrom(claims).Draw(t, "claim")
				bodies++
				q := &request{kind: kindSave, node: c.node, epoch: c.epoch, done: true, fate: dunlin.SessionWill(rapid.IntRange(0, 2).Draw(t, "fate")),
					expiry: rapid.SampledFrom([]uint32{0, 10, 1000}).Draw(t, "expiry"), body: fmt.Append(nil, bodies)}
				before := st
				held := before.row != nil && before.row.holder != 0
				a := step(q)
				if c == newest && a.status != statusDone || c != newest && a.status == statusDone && held {
					t.Fatalf("leave of %+v: %+v, newest is %+v", c, a, newest)
				}
				if c != newest {
					return
				}
				newest = hold{}
				if last = string(q.body); q.expiry == 0 {
					last = ""
				}
				if held && len(before.row.will) > 0 && q.fate == dunlin.WillSay {
					owed[string(before.row.will)] = true
				}
			},
			"orphan": func(t *rapid.T) {
				c := rapid.SampledFrom(claims).Draw(t, "claim")
				before := st
				step(&request{kind: kindOrphan, epoch: c.epoch})
				if before.row == nil || before.row.holder == 0 || before.row.epoch != c.epoch {
					if fmt.Sprint(before.row) != fmt.Sprint(st.row) {
						t.Fatalf("a claim that does not stand changed %+v to %+v", before.row, st.row)
					}
					return
				}
				newest = hold{}
				if before.row.expiry == 0 {
					last = ""
				}
			},
			"sweep": func(t *rapid.T) {
				at = at.Add(time.Duration(rapid.IntRange(0, 15).Draw(t, "seconds")) * time.Second)
				if st.row == nil {
					return
				}
				for _, w := range st.row.clone().wills {
					r := st.row.clone()
					r.settle(at)
					i := slices.IndexFunc(r.wills, func(o lateWill) bool { return o.epoch == w.epoch })
					if r.wills[i].at <= at {
						said[string(w.text)] = true
						step(&request{kind: kindSaid, epoch: w.epoch})
					}
					if st.row == nil {
						return
					}
				}
				step(&request{kind: kindExpire})
			},
			"": func(t *rapid.T) {
				if h := st.holderOf(); h != newest {
					t.Fatalf("held by %+v, want %+v", h, newest)
				}
				for text := range owed {
					if said[text] {
						continue
					}
					if st.row == nil || !slices.ContainsFunc(st.row.wills, func(w lateWill) bool { return string(w.text) == text }) {
						if st.row != nil && len(st.row.wills) == willsMax {
							delete(owed, text) // more than are kept
							continue
						}
						t.Fatalf("%s is neither said nor kept: %+v", text, st.row)
					}
				}
			},
		})
	})
}

// TestExpiryAndWills: what a moment does to a session that nobody has.
func TestExpiryAndWills(t *testing.T) {
	const t0 = dunlin.Time(1e15)
	sec := func(n int) dunlin.Time { return t0.Add(time.Duration(n) * time.Second) }
	open := func(st state, at dunlin.Time, expiry, delay uint32, clean bool) (state, reply) {
		return st.open(&request{node: 1, expiry: expiry, will: []byte("w"), willDelay: delay, clean: clean}, at)
	}
	for _, c := range []struct {
		name             string
		expiry, delay    uint32
		fate             dunlin.SessionWill
		grace            uint32
		due              int // seconds after it left; −1: never
		over             int // … and when nothing is left of it once that is said
		backAt           int // the client comes back then
		present, willDue bool
	}{
		{"goodbye", 100, 5, dunlin.WillForget, 0, -1, 100, 50, true, false},
		{"goodbye, no expiry", 0, 5, dunlin.WillForget, 0, -1, 0, 1, false, false},
		{"lost", 100, 5, dunlin.WillDelay, 0, 5, 100, 4, true, false},
		{"lost, back late", 100, 5, dunlin.WillDelay, 0, 5, 100, 6, true, true},
		{"lost, back after the end", 100, 200, dunlin.WillDelay, 0, 100, 100, 101, false, true},
		{"lost, no expiry", 0, 5, dunlin.WillDelay, 0, 0, 0, 1, false, true},
		{"renewed", 100, 5, dunlin.WillSay, 0, 0, 100, 1, true, true},
		{"the node went", 100, 0, dunlin.WillDelay, 10, 10, 100, 9, true, false},
		{"the node went, no expiry", 0, 0, dunlin.WillDelay, 10, 10, 10, 9, false, false},
		{"the node went, no expiry, back late", 0, 0, dunlin.WillDelay, 10, 10, 10, 11, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			st, a := open(state{}, t0, c.expiry, c.delay, false)
			st, _ = st.save(&request{node: 1, epoch: a.epoch, done: true, fate: c.fate, grace: c.grace, expiry: c.expiry}, t0)
			due, over := -1, -1
			for n := 0; n <= 300 && over < 0; n++ {
				if st.row == nil {
					over = n
					continue
				}
				r := st.row.clone()
				if r.settle(sec(n)); len(r.wills) > 0 && r.wills[0].at <= sec(n) {
					if due < 0 {
						due = n
					}
					if n == c.backAt {
						break
					}
				}
				if n >= c.backAt {
					break
				}
			}
			if c.due >= 0 && c.due <= c.backAt && due != c.due || c.due < 0 && due >= 0 {
				t.Errorf("due after %d s, want %d", due, c.due)
			}
			_, b := open(st, sec(c.backAt), 100, 0, false)
			st, _ = open(st, sec(c.backAt), 100, 0, false)
			if b.present != c.present || (len(st.row.wills) > 0) != c.willDue {
				t.Errorf("back: present %v, wills %+v; want %v, %v", b.present, st.row.wills, c.present, c.willDue)
			}
		})
	}
}
