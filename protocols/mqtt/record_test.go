package mqtt

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"

	mochi "github.com/mochi-mqtt/server/v2/packets"
	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
)

func anyCursor(t *rapid.T, shards int, from dunlin.Cursor) dunlin.Cursor {
	c := make(dunlin.Cursor, shards)
	for i := range c {
		c[i] = rapid.Uint64Range(1, 1<<40).Draw(t, "index")
		if from != nil && rapid.Bool().Draw(t, "same") {
			c[i] = from[i]
		}
	}
	return c
}

func anyRecord(t *rapid.T) *record {
	shards := rapid.IntRange(1, 5).Draw(t, "shards")
	r := &record{at: position{cur: anyCursor(t, shards, nil), one: rapid.Bool().Draw(t, "one"),
		shard: dunlin.ShardID(rapid.IntRange(0, shards-1).Draw(t, "shard")), index: rapid.Uint64().Draw(t, "at"), skip: rapid.IntRange(0, 9).Draw(t, "skip"), device: "d1"},
		lastID: rapid.Uint16().Draw(t, "last")}
	if r.at.one {
		r.at.origin = anyCursor(t, shards, r.at.cur)
	}
	for i := range rapid.IntRange(0, 4).Draw(t, "subs") {
		f, _ := parseFilter(fmt.Sprintf("d/x%d/%s", i, rapid.SampledFrom([]string{"t", "a", "+", "#"}).Draw(t, "what")))
		s := subscription{filter: f, qos: byte(rapid.IntRange(0, 1).Draw(t, "qos")), subID: rapid.Uint32Max(1<<28-1).Draw(t, "subid")}
		if s.since = anyCursor(t, shards, r.at.cur); past(s.since, r.at.cur) {
			s.since = nil
		} else if i > 0 && r.subs[i-1].since != nil && rapid.Bool().Draw(t, "again") {
			s.since = r.subs[i-1].since
		}
		r.subs = append(r.subs, s)
	}
	for range rapid.IntRange(0, 5).Draw(t, "items") {
		it := keptItem{acked: rapid.Bool().Draw(t, "acked"), kind: newsKind(rapid.IntRange(0, int(newsKinds)-1).Draw(t, "kind"))}
		if !it.acked {
			it.place = place{dunlin.ShardID(rapid.IntRange(0, shards-1).Draw(t, "shard")), rapid.Uint64().Draw(t, "index"), rapid.IntRange(0, 9).Draw(t, "nth")}
			it.device = "d1"
		}
		r.items = append(r.items, it)
	}
	for range rapid.IntRange(0, 3).Draw(t, "incoming") {
		r.incoming = append(r.incoming, rapid.Uint16().Draw(t, "id"))
	}
	return r
}

func TestKeptIsRead(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := anyRecord(t)
		if got, err := parseRecord(r.append(nil)); err != nil || !reflect.DeepEqual(got, r) {
			t.Fatalf("got %+v, %v\nwant %+v", got, err, r)
		}
		text := rapid.StringN(0, 20, 40)
		w := &word{principal: dunlin.Principal{Kind: dunlin.PrincipalGateway, Tenant: dunlin.Tenant(text.Draw(t, "tenant")), ID: text.Draw(t, "id")},
			client: text.Draw(t, "client"), msg: willMessage{topic: "d/x/t", payload: []byte(text.Draw(t, "payload")), contentType: "a/b", hasType: true}}
		if got, err := parseWord(w.append(nil)); err != nil || !reflect.DeepEqual(got, w) {
			t.Fatalf("got %+v, %v\nwant %+v", got, err, w)
		}
		k := sessionKey{"t", dunlin.PrincipalKind(rapid.IntRange(0, 5).Draw(t, "kind")), text.Draw(t, "owner"), text.Draw(t, "client id")}
		if got, ok := parseRowKey(k.rowKey()); !ok || got != k {
			t.Fatalf("%q: got %+v, %v, want %+v", k.rowKey(), got, ok, k)
		}
	})
}

// TestRecordBytes holds the format of kept sessions, which are on disks.
func TestRecordBytes(t *testing.T) {
	const want = "010203e8070001e8070102643101010105642f2b2f7407000a09020000e80701026431010109"
	f, _ := parseFilter("d/+/t")
	r := &record{at: position{cur: dunlin.Cursor{3, 1000}, shard: 1, index: 1000, skip: 1, device: "d1"}, lastID: 9, incoming: []uint16{9},
		subs:  []subscription{{filter: f, qos: 1, subID: 7, since: dunlin.Cursor{3, 1005}}},
		items: []keptItem{{place: place{0, 1000, 1}, device: "d1"}, {acked: true}}}
	b := r.append(nil)
	if got := hex.EncodeToString(b); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got, err := parseRecord(b); err != nil || !reflect.DeepEqual(got, r) {
		t.Errorf("got %+v, %v", got, err)
	}
}

func FuzzRecord(f *testing.F) {
	flt, _ := parseFilter("d/+/t")
	r := &record{at: position{cur: dunlin.Cursor{3, 1000}}, lastID: 9, subs: []subscription{{filter: flt, since: dunlin.Cursor{3, 1005}}},
		items: []keptItem{{place: place{0, 1000, 1}, device: "d1"}, {acked: true}}, incoming: []uint16{1}}
	f.Add(r.append(nil))
	f.Add((&word{client: "c", msg: willMessage{topic: "t"}}).append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if _, err := parseWord(b); err != nil && !errors.Is(err, dunlin.ErrInvalid) {
			t.Errorf("%v is not ErrInvalid", err)
		}
		r, err := parseRecord(b)
		if err != nil {
			if !errors.Is(err, dunlin.ErrInvalid) {
				t.Errorf("%v is not ErrInvalid", err)
			}
			return
		}
		// A session can be made of it, and its box works.
		s := &session{}
		s.restore(r, true)
		if fl := s.mu.flow; fl != nil {
			fl.box.restart()
			for range fl.box.n {
				fl.box.ack(fl.box.at(0).id)
			}
			if fl.box.n != 0 {
				t.Errorf("%d messages can't be acknowledged", fl.box.n)
			}
		}
		if _, err := parseRecord(s.recordLocked().append(nil)); err != nil {
			t.Errorf("%+v: %v", r, err)
		}
	})
}

// TestHopping: a subscriber that is at another node all the time, after a goodbye or by taking itself over, while readings
// go on. Of each device all come, in order but for repetitions; no acknowledgement of a
// connection that ended in peace is forgotten.
func TestHopping(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { hopping(t, seed) })
	}
}

func hopping(t *testing.T, seed uint64) {
	const n = 600
	j := newJournal(4)
	w, gs, _ := gateways(t, 3, Config{WindowMax: 4096, FirstWordMax: 1e6}, Deps{Ingestor: &shelf{}, Feed: j})
	rnd := rand.New(rand.NewPCG(seed, 2))
	keep := func(pk *mochi.Packet) {
		pk.Connect.Clean = false
		pk.Properties.SessionExpiryInterval, pk.Properties.SessionExpiryIntervalFlag = 600, true
		pk.Properties.ReceiveMaximum = 8
	}
	at := 0
	c := dial(t, gs[at], true)
	c.connect("app", keep)
	c.subscribe(1, mochi.Subscription{Filter: "d/+/t", Qos: 1})
	published, made, seen, acked := 0, [3]int{}, [3]int{}, map[string]bool{}
	var open []uint16
	var told []string // acknowledged on this connection
	texts := map[uint16]string{}
	hop := func() {
		open = nil
		old := c
		peace := rnd.IntN(2) == 0
		if peace {
			bye := c.packet(typeDisconnect)
			c.send(bye)
			for _, err := c.next(); err == nil; {
				_, err = c.next()
			}
			for _, k := range told {
				acked[k] = true
			}
		}
		told = nil
		at = (at + 1 + rnd.IntN(2)) % 3
		c = dial(t, gs[at], true)
		if pk := c.connect("app", keep); !pk.SessionPresent {
			t.Fatal("no session present")
		}
		old.nc.Close()
	}
	for total := 0; total < n; {
		for published-total < 40 && published < n {
			dev := rnd.IntN(3)
			ch := reading(fmt.Sprint("d", dev), uint64(made[dev]+1), "v", float64(made[dev]))
			made[dev]++
			published++
			for range rnd.IntN(3) { // entries of several messages, to be broken off in
				in := ch.Inputs[0]
				in.Records = slices.Clone(in.Records)
				in.Records[0].Num = float64(made[dev])
				ch.Inputs = append(ch.Inputs, in)
				made[dev]++
				published++
			}
			j.add(ch)
		}
		pk := c.expect(typePublish)
		var dev, v int
		if _, err := fmt.Sscanf(string(pk.Payload), `[{"bn":"d%d/","bt":1700000000,"n":"v","v":%d}]`, &dev, &v); err != nil {
			t.Fatalf("%s: %v", pk.Payload, err)
		}
		switch {
		case v == seen[dev]:
			seen[dev]++
			total++
		case v > seen[dev]:
			t.Fatalf("device %d: got %d, want %d", dev, v, seen[dev])
		case !pk.FixedHeader.Dup:
			t.Fatalf("device %d: %d comes again without DUP", dev, v)
		}
		key := fmt.Sprint(dev, " ", v)
		if acked[key] {
			t.Fatalf("device %d: %d comes again, though it was acknowledged", dev, v)
		}
		open, texts[pk.PacketID] = append(open, pk.PacketID), key
		if rnd.IntN(3) > 0 {
			k := rnd.IntN(len(open))
			c.puback(open[k])
			told = append(told, texts[open[k]])
			open = slices.Delete(open, k, k+1)
		}
		if len(open) == 8 || rnd.IntN(25) == 0 {
			hop()
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	t.Logf("%d rows were written in %d entries", w.puts, w.rounds)
}
