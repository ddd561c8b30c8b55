package store

import (
	"bytes"
	"fmt"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
)

// Inputs that a stage failed on or refused alone are dead letters with their reasons, and a Put deletes exactly one.
func TestDeadLetters(t *testing.T) {
	db := openTest(t, small(vfs.NewMem(), 2))
	s := db.State()
	key := dunlin.DeviceKey{Tenant: "default", Device: "d"}
	input := func(payload string) dunlin.Input {
		return dunlin.Input{Kind: dunlin.InputRaw, Received: 5, Format: dunlin.FormatOctets, Payload: []byte(payload)}
	}
	index := uint64(0)
	apply := func(e dunlin.Entry) {
		t.Helper()
		index++
		e.Shard, e.Term, e.At = 1, 1, dunlin.Time(index)
		if err := s.Apply([]dunlin.Committed{committed(&e, index)}); err != nil {
			t.Fatal(err)
		}
	}
	list := func() (out string) {
		t.Helper()
		letters, err := s.DeadLetters(nil, dunlin.DeadLettersQuery{})
		if err != nil {
			t.Fatal(err)
		}
		for _, l := range letters {
			out += fmt.Sprintf("%s %q: %s\n", l.ID(), l.Input.Payload, l.Reason)
		}
		return out
	}
	forget := func(k string) dunlin.Entry {
		return dunlin.Entry{Puts: []dunlin.Put{{Table: dunlin.TableDeadLetters, Key: k}}}
	}
	apply(dunlin.Entry{Changes: []dunlin.Change{{DeviceKey: key, Domain: "x", Version: 3, Inputs: []dunlin.Input{input("a"), input("b"), input("c")},
		Stages: []dunlin.StageResult{
			{Stage: 0, Refused: []dunlin.InputError{{Input: 1, Reason: "bad payload"}, {Input: 7, Reason: "nowhere"}}},
			{Stage: 1, Failure: "trap", Refused: []dunlin.InputError{{Input: 0, Reason: "both"}}},
		}}}})
	want := "d/1/3 \"c\": trap\nd/0/2 \"b\": bad payload\nd/1/2 \"b\": trap\nd/1/1 \"a\": trap\n"
	if got := list(); got != want {
		t.Fatalf("got\n%swant\n%s", got, want)
	}
	apply(forget("default/d/1/2"))
	apply(forget("default/d/2/3"))    // another stage
	apply(forget("default/e/1/3"))    // another device
	apply(forget("no key of theirs")) // nobody's
	value := forget("default/d/1/1")
	value.Puts[0].Value = []byte("{}")
	apply(value)
	want = "d/1/3 \"c\": trap\nd/0/2 \"b\": bad payload\nd/1/1 \"a\": trap\n"
	if got := list(); got != want {
		t.Fatalf("after one was deleted: got\n%swant\n%s", got, want)
	}
	if err := s.eng.Flush(); err != nil {
		t.Fatal(err)
	}
	both := forget("default/d/1/3")
	both.Puts = append(both.Puts, forget("default/d/0/2").Puts...)
	apply(both)
	apply(forget("default/d/1/1"))
	if got := list(); got != "" {
		t.Fatalf("after all were deleted: got\n%s", got)
	}
	if rows, err := s.Rows(1, dunlin.TableDeadLetters, "", "", 0); err != nil || len(rows) != 0 {
		t.Errorf("deletions left rows: %v, %v", rows, err)
	}
	apply(dunlin.Entry{Changes: []dunlin.Change{{DeviceKey: key, Domain: "x", Version: 4, Inputs: []dunlin.Input{input("d")},
		Stages: []dunlin.StageResult{{Stage: 1, Failure: "trap"}}}}})
	if got, want := list(), "d/1/4 \"d\": trap\n"; got != want {
		t.Fatalf("got\n%swant\n%s", got, want)
	}
}

// However Pebble groups the operands of a row of dead letters, its bytes are the same, and its letters those that were not
// deleted of the newest that the bounds allow.
func TestDeadLettersFoldAssociatively(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var ops [][]byte
		var all []letterItem // in the order of the log, deleted ones as gaps
		seq := uint64(0)
		for range rapid.IntRange(1, 30).Draw(t, "operands") {
			var op []letterItem
			if seq > 0 && rapid.IntRange(0, 2).Draw(t, "delete?") == 0 {
				m := letterItem{kind: itemMark, stage: 1, seq: rapid.Uint64Range(max(seq, 120)-119, seq+1).Draw(t, "which")}
				op = append(op, m)
				after := append(slices.Clone(all), m)
				if err := deleteLetters(after, len(all)); err != nil {
					t.Fatal(err)
				}
				all = after[:len(all)]
			}
			most := rapid.SampledFrom([]int{1, 40, 130}).Draw(t, "burst")
			size := rapid.SampledFrom([]int{1, 1, 3000, 140_000}).Draw(t, "bytes")
			for range rapid.IntRange(0, most).Draw(t, "letters") {
				seq++
				c := dunlin.Change{DeviceKey: dunlin.DeviceKey{Tenant: "t", Device: "d"}, Version: seq,
					Inputs: []dunlin.Input{{Kind: dunlin.InputRaw, Payload: make([]byte, size)}}, Stages: []dunlin.StageResult{{Stage: 1}}}
				it := letterItem{letter: appendLetter(nil, &dunlin.Entry{}, &c, &c.Stages[0], "why", 0)}
				op, all = append(op, it), append(all, it)
			}
			ops = append(ops, appendLetters(nil, boundLetters(op)))
		}
		want := appendLetters(nil, settleLetters(boundLetters(slices.Clone(all))))
		for len(ops) > 1 && rapid.IntRange(0, 9).Draw(t, "on") > 0 {
			i := rapid.IntRange(0, len(ops)-2).Draw(t, "from")
			n := rapid.IntRange(2, min(4, len(ops)-i)).Draw(t, "n")
			folded, err := mergeDead(ops[i:i+n], i == 0 && rapid.Bool().Draw(t, "final"))
			if err != nil {
				t.Fatal(err)
			}
			ops = slices.Replace(ops, i, i+n, folded)
		}
		got, err := mergeDead(ops, true)
		if err != nil || !bytes.Equal(got, want) {
			t.Fatalf("%v: %d bytes %.40x, want %d bytes %.40x", err, len(got), got, len(want), want)
		}
	})
}
