package router

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"testing"

	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
)

func drawName(t *rapid.T, what string) string {
	return rapid.SampledFrom([]string{"", "a", "temperature", "Cel", "default", "fridge-07", "ß"}).Draw(t, what)
}

func drawRecord(t *rapid.T) dunlin.Record {
	r := dunlin.Record{Metric: drawName(t, "metric"), Unit: drawName(t, "unit"), Time: dunlin.Time(rapid.Int64().Draw(t, "time")),
		Kind: dunlin.ValueKind(rapid.SampledFrom([]int{1, 1, 1, 2, 3, 4, 0, 9, 255}).Draw(t, "kind"))}
	if rapid.Bool().Draw(t, "has number") {
		r.Num = rapid.SampledFrom([]float64{0, 1, -1, 20.5, 21.37, math.Copysign(0, -1), math.NaN(), math.Inf(1), 1 << 53, -1 << 52, math.Pi, 1e300}).Draw(t, "number")
	}
	if rapid.Bool().Draw(t, "has text") {
		r.Str = drawName(t, "text")
	}
	return r
}

func drawUplink(t *rapid.T) *dunlin.Uplink {
	u := &dunlin.Uplink{DeviceKey: dunlin.DeviceKey{Tenant: dunlin.Tenant(drawName(t, "tenant")), Device: dunlin.DeviceID(drawName(t, "device"))}}
	u.Sender = dunlin.Principal{Kind: dunlin.PrincipalKind(rapid.IntRange(0, 6).Draw(t, "principal")), Tenant: dunlin.Tenant(drawName(t, "of tenant")),
		ID: drawName(t, "id"), Domain: dunlin.DomainID(drawName(t, "domain"))}
	if rapid.Bool().Draw(t, "itself") {
		u.Sender = dunlin.Principal{Kind: dunlin.PrincipalDevice, Tenant: u.Tenant, ID: string(u.Device), Domain: u.Sender.Domain}
	}
	u.Input = dunlin.Input{Kind: dunlin.InputKind(rapid.SampledFrom([]int{1, 1, 1, 2, 3, 0, 7}).Draw(t, "input")),
		Flags: dunlin.InputFlags(rapid.Byte().Draw(t, "flags")), Format: dunlin.ContentFormat(rapid.SampledFrom([]int{110, 110, 60, 65535}).Draw(t, "format")),
		MessageID: rapid.SampledFrom([]uint64{0, 1, math.MaxUint64}).Draw(t, "message"), Received: dunlin.Time(rapid.Int64().Draw(t, "received")),
		Sender: drawName(t, "sender")}
	for range rapid.IntRange(0, 4).Draw(t, "records") {
		u.Records = append(u.Records, drawRecord(t))
	}
	if rapid.Bool().Draw(t, "payload") {
		u.Payload = []byte(drawName(t, "bytes") + "x")
	}
	if u.Kind != 1 && u.Kind != 2 {
		u.Timer = drawName(t, "timer")
	}
	return u
}

func sameUplink(a, b *dunlin.Uplink) bool {
	if len(a.Records) != len(b.Records) || len(a.Payload) != len(b.Payload) {
		return false
	}
	for i := range a.Records {
		if !a.Records[i].Same(b.Records[i]) {
			return false
		}
	}
	x, y := *a, *b
	x.Records, y.Records, x.Waiter, y.Waiter, x.Next, y.Next, x.Tag, y.Tag = nil, nil, nil, nil, nil, nil, 0, 0
	return string(x.Payload) == string(y.Payload) && func() bool { x.Payload, y.Payload = nil, nil; return reflect.DeepEqual(x, y) }()
}

// TestBatchComesAsItWent: every part of every uplink, whatever is in it.
func TestBatchComesAsItWent(t *testing.T) {
	var names interner
	names.init()
	rapid.Check(t, func(t *rapid.T) {
		parts := make([]part, rapid.IntRange(0, 4).Draw(t, "parts"))
		for i := range parts {
			parts[i].shard, parts[i].term = dunlin.ShardID(rapid.IntRange(0, 63).Draw(t, "shard")), rapid.Uint64().Draw(t, "term")
			parts[i].seq = rapid.Uint64().Draw(t, "seq")
			for range rapid.IntRange(1, 5).Draw(t, "uplinks") {
				parts[i].items = append(parts[i].items, item{u: drawUplink(t)})
			}
		}
		b := appendBatch(nil, 77, parts)
		life, sections, err := decodeBatch(b, &names, 64)
		if err != nil || life != 77 {
			t.Fatal(err)
		}
		if len(sections) != len(parts) {
			t.Fatalf("%d sections of %d parts", len(sections), len(parts))
		}
		for i, s := range sections {
			if s.shard != parts[i].shard || s.term != parts[i].term || s.seq != parts[i].seq || len(s.uplinks) != len(parts[i].items) {
				t.Fatalf("section %d: shard %d, term %d, %d uplinks", i, s.shard, s.term, len(s.uplinks))
			}
			for j := range s.uplinks {
				if !sameUplink(&s.uplinks[j], parts[i].items[j].u) {
					t.Fatalf("uplink %d/%d:\n got %+v\nwant %+v", i, j, s.uplinks[j], *parts[i].items[j].u)
				}
			}
		}
	})
}

// TestManyNames: the table does not need to know them all.
func TestManyNames(t *testing.T) {
	var names interner
	names.init()
	p := part{}
	for i := range 3000 {
		u := &dunlin.Uplink{DeviceKey: dunlin.DeviceKey{Device: "d"}}
		u.Kind = dunlin.InputTelemetry
		u.Records = []dunlin.Record{{Metric: fmt.Sprint("m", i%1500), Kind: dunlin.Number}}
		if i < uplinksReadMax {
			p.items = append(p.items, item{u: u})
		}
	}
	_, sections, err := decodeBatch(appendBatch(nil, 1, []part{p}), &names, 1)
	if err != nil {
		t.Fatal(err)
	}
	for i := range sections[0].uplinks {
		if got, want := sections[0].uplinks[i].Records[0].Metric, p.items[i].u.Records[0].Metric; got != want {
			t.Fatalf("uplink %d: %s, want %s", i, got, want)
		}
	}
}

func TestReplyComesAsItWent(t *testing.T) {
	r := &Router{}
	rapid.Check(t, func(t *rapid.T) {
		errs := []error{nil, nil, errWindow, errMoved, fmt.Errorf("%w: %w", dunlin.ErrForbidden, errors.New("x")), errors.New("odd")}
		var parts []part
		var answers []answer
		for range rapid.IntRange(0, 4).Draw(t, "parts") {
			a := answer{refused: rapid.Bool().Draw(t, "refused")}
			n := rapid.IntRange(1, 5).Draw(t, "uplinks")
			if a.refused {
				a.hint, a.hintTerm = dunlin.NodeID(rapid.Uint64().Draw(t, "hint")), rapid.Uint64().Draw(t, "term")
			} else {
				for range n {
					a.receipts = append(a.receipts, dunlin.Receipt{Err: rapid.SampledFrom(errs).Draw(t, "err"), Seq: rapid.Uint64().Draw(t, "seq"),
						Duplicate: rapid.Bool().Draw(t, "duplicate"), Created: rapid.Bool().Draw(t, "created"),
						RetryAfterSeconds: rapid.IntRange(0, 3600).Draw(t, "after")})
				}
			}
			answers, parts = append(answers, a), append(parts, part{items: make([]item, n)})
		}
		got, err := r.decodeReply(appendReply(nil, answers), parts)
		if err != nil {
			t.Fatal(err)
		}
		for i := range answers {
			w, g := answers[i], got[i]
			if w.refused != g.refused || w.hint != g.hint || w.hintTerm != g.hintTerm || len(w.receipts) != len(g.receipts) {
				t.Fatalf("answer %d: %+v, want %+v", i, g, w)
			}
			for j := range w.receipts {
				a, b := w.receipts[j], g.receipts[j]
				if a.Err != nil && (b.Err == nil || a.Err.Error() != b.Err.Error() || maskOf(a.Err) != maskOf(b.Err)) {
					t.Fatalf("error %v, want %v", b.Err, a.Err)
				}
				if a.Err == nil {
					a.RetryAfterSeconds = 0 // goes with an error only
				}
				a.Err, b.Err = nil, nil
				if a != b {
					t.Fatalf("receipt %+v, want %+v", b, a)
				}
			}
		}
	})
}

func FuzzBatch(f *testing.F) {
	u := fleet(1)[0]
	f.Add(appendBatch(nil, 1, []part{{shard: 1, term: 2, items: []item{{u: u}, {u: u}}}}))
	f.Add([]byte{batchVersion, 0, 0, 0, 0, 0, 0, 0, 0, 1, 255, 255, 255, 255, 255, 255, 255, 255, 255, 1, 255, 1, 0, 0, 0})
	var names interner
	names.init()
	f.Fuzz(func(t *testing.T, b []byte) {
		life, sections, err := decodeBatch(b, &names, 64)
		if err != nil {
			if !errors.Is(err, dunlin.ErrInvalid) && !errors.Is(err, dunlin.ErrTooLarge) {
				t.Fatalf("error %v", err)
			}
			return
		}
		parts := make([]part, len(sections))
		for i := range sections {
			parts[i].shard, parts[i].term = sections[i].shard, sections[i].term
			for j := range sections[i].uplinks {
				parts[i].items = append(parts[i].items, item{u: &sections[i].uplinks[j]})
			}
		}
		_, again, err := decodeBatch(appendBatch(nil, life, parts), &names, 64)
		if err != nil {
			t.Fatalf("what was read is written and not read: %v", err)
		}
		for i := range again {
			for j := range again[i].uplinks {
				if !sameUplink(&again[i].uplinks[j], parts[i].items[j].u) {
					t.Fatalf("uplink %d/%d: %+v, then %+v", i, j, *parts[i].items[j].u, again[i].uplinks[j])
				}
			}
		}
	})
}

func FuzzReply(f *testing.F) {
	r := &Router{}
	parts := []part{{items: make([]item, 2)}, {items: make([]item, 1)}, {items: make([]item, 3)}}
	f.Add(appendReply(nil, []answer{{receipts: []dunlin.Receipt{{Seq: 1}, refusal(errWindow)}}, {refused: true, hint: 3, hintTerm: 4},
		{receipts: []dunlin.Receipt{refusal(errWindow), refusal(errWindow), {Duplicate: true}}}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		answers, err := r.decodeReply(b, parts)
		if err != nil {
			return
		}
		if _, err := r.decodeReply(appendReply(nil, answers), parts); err != nil {
			t.Fatal(err)
		}
	})
}

func FuzzPages(f *testing.F) {
	r := &Router{}
	r.names.init()
	f.Add(appendReadings(&dunlin.ReadingsPage{Next: "x", Rows: fleet(1)[0].Records, Buckets: []dunlin.Bucket{{Metric: "t", Start: 5, Count: 2, Min: math.NaN()}}}))
	alerts, _ := appendAlerts(&dunlin.AlertsPage{Next: "n", Alerts: []dunlin.Alert{{Tenant: "t", Device: "d", Rule: "r"}}}, []dunlin.MissingShard{{Shard: 3, Reason: "x"}})
	f.Add(alerts)
	letters, _ := appendLetters([]dunlin.DeadLetter{{Seq: 3, Reason: "trap", Input: fleet(1)[0].Input}}, nil)
	f.Add(letters)
	f.Fuzz(func(_ *testing.T, b []byte) {
		_, _ = r.decodeReadings(b)
		_, _ = decodeAlerts(b)
		_, _ = decodeLetters(b)
	})
}
