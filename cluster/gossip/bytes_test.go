package gossip

import (
	"bytes"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
)

func TestSelfThereAndBack(t *testing.T) {
	addr := rapid.OneOf(rapid.Just(""), rapid.StringMatching(`[a-z0-9.-]{1,30}:[1-9][0-9]{0,3}`), rapid.Just("[fd00::1]:7946"), rapid.Just("same:1"))
	rapid.Check(t, func(t *rapid.T) {
		s := Self{
			Name: rapid.StringMatching(`[a-z0-9][a-zA-Z0-9.-]{0,63}`).Draw(t, "name"), ID: dunlin.NodeID(rapid.Uint64Min(1).Draw(t, "id")),
			Cluster: rapid.StringMatching(`[0-9a-f]{0,32}`).Draw(t, "cluster"), Zone: rapid.StringMatching(`[ -~]{0,64}`).Draw(t, "zone"),
			Version: rapid.StringMatching(`[ -~]{0,64}`).Draw(t, "version"),
			Peer:    addr.Draw(t, "peer"), Calls: addr.Draw(t, "calls"), HTTP: addr.Draw(t, "http"),
			WireMin: rapid.Uint32().Draw(t, "min"), WireMax: rapid.Uint32().Draw(t, "max"), EntryMax: rapid.Uint32().Draw(t, "entry"),
			Started: dunlin.Time(rapid.Int64().Draw(t, "started")),
		}
		if err := s.validate(); err != nil {
			t.Fatal(err)
		}
		// Of a later version, which has more to say.
		got, err := parseMeta(s.Name, append(s.meta(), "more"...))
		if err != nil || got != s {
			t.Fatalf("got %+v, %v\nwant %+v", got, err, s)
		}
	})
	usual := Self{Name: "n", ID: 1 << 62, Cluster: strings.Repeat("a", 32), Zone: "rack-1", Peer: "10.0.0.1:7947", Calls: "10.0.0.1:7948",
		HTTP: "10.0.0.1:8080", Version: "0.3.0", Started: 1 << 50}
	if n := len(usual.meta()); n > 128 {
		t.Errorf("usually %d bytes", n)
	}
}

func FuzzMeta(f *testing.F) {
	s := Self{Name: "n", ID: 5, Cluster: "c", Zone: "z", Peer: "h:1", Calls: "h:2", HTTP: "[::1]:3", Version: "v"}
	f.Add(s.meta())
	f.Add([]byte{1})
	f.Fuzz(func(t *testing.T, b []byte) {
		got, err := parseMeta("n", b)
		if err != nil {
			if !errors.Is(err, dunlin.ErrInvalid) {
				t.Fatal(err)
			}
			return
		}
		again, err := parseMeta("n", got.meta())
		if err != nil || again != got {
			t.Fatalf("%+v, then %+v, %v", got, again, err)
		}
	})
}

func FuzzHints(f *testing.F) {
	f.Add(appendHints(nil, []Hint{{1, 2, 3}, {65535, 1 << 63, 1<<64 - 1}}))
	f.Add([]byte{2, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		hs, err := parseHints(b)
		if err != nil {
			return
		}
		again, err := parseHints(appendHints(nil, hs))
		if err != nil || !slices.Equal(hs, again) {
			t.Fatalf("%v, then %v, %v", hs, again, err)
		}
	})
}

// However hints arrive, and however often, all who got them agree.
func TestHintsConvergeInAnyOrder(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		owner := map[[2]uint64]dunlin.NodeID{} // a term of a shard has one leader
		hs := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) Hint {
			h := Hint{Shard: dunlin.ShardID(rapid.IntRange(0, 3).Draw(t, "shard")), Term: rapid.Uint64Range(1, 5).Draw(t, "term")}
			k := [2]uint64{uint64(h.Shard), h.Term}
			if owner[k] == 0 {
				owner[k] = dunlin.NodeID(rapid.Uint64Range(1, 9).Draw(t, "owner"))
			}
			h.Owner = owner[k]
			return h
		}), 0, 20).Draw(t, "hints")
		var a, b hints
		a.put(hs)
		for _, h := range rapid.Permutation(hs).Draw(t, "order") {
			b.put([]Hint{h})
			if news := b.put([]Hint{h}); len(news) > 0 {
				t.Fatalf("%v is news twice", h)
			}
		}
		if !slices.Equal(a.all(), b.all()) {
			t.Fatalf("%v and %v", a.all(), b.all())
		}
	})
}

func TestTheDeadAreForgotten(t *testing.T) {
	var v view
	v.init(time.Hour)
	now := dunlin.Time(1)
	self := func(name string, id int) Self { return Self{Name: name, ID: dunlin.NodeID(id)} }
	v.came(self("a", 1), "x", now)
	v.came(self("a", 2), "x", now.Add(time.Minute)) // another life of it
	if got := v.list(now); len(got) != 2 || got[0].ID != 2 || !got[0].Alive || got[1].ID != 1 || got[1].Alive {
		t.Errorf("got %+v", got)
	}
	if v.alive() != 1 || v.dead() != 1 {
		t.Errorf("%d alive, %d dead", v.alive(), v.dead())
	}
	if got := v.list(now.Add(2 * time.Hour)); len(got) != 1 {
		t.Errorf("after two hours: %+v", got)
	}
	for i := range 3 * deadMax {
		v.came(self("b", 10+i), "x", now.Add(time.Duration(i)*time.Millisecond))
	}
	if n := len(v.list(now)); n > deadMax+2 {
		t.Errorf("%d remembered", n)
	}
	v.came(self("c", 2), "x", now) // a renamed node
	if v.alive() != 2 {
		t.Errorf("%d alive, want b and c", v.alive())
	}
	v.gone("nobody", now)
}

// The later of two that found each other late is told, but not before it is sure.
func TestAConflictIsToldOnceItLasts(t *testing.T) {
	var r refusals
	err := errors.New("x")
	at := dunlin.Time(0).Add(time.Hour)
	told := func() bool { _, p := r.take(); return p != nil }
	r.conflict(err, true, at)
	r.conflict(err, true, at.Add(4*time.Second))
	if told() {
		t.Error("told of what may be its own past")
	}
	r.conflict(err, true, at.Add(2*time.Minute)) // another one
	if told() {
		t.Error("two conflicts taken for one")
	}
	r.conflict(err, false, at.Add(2*time.Minute+6*time.Second))
	if told() {
		t.Error("the earlier one was told")
	}
	r.conflict(err, true, at.Add(2*time.Minute+12*time.Second))
	if !told() {
		t.Error("not told")
	}
}

func TestMemberlistsWordsAreLoggedSparsely(t *testing.T) {
	var out bytes.Buffer
	now := dunlin.Time(0).Add(time.Hour)
	l := newLogs(slog.New(slog.NewTextHandler(&out, nil)), func() dunlin.Time { return now })
	say := l.logger()
	for range 3 {
		say.Print("[ERR] memberlist: failed to receive: no installed keys could decrypt the message from=1.2.3.4:5")
		say.Print("[WARN] memberlist: Refuting a suspect message (from: b)")
		say.Print("[DEBUG] memberlist: Stream connection from=1.2.3.4:5")
	}
	now = now.Add(time.Minute)
	say.Print("[WARN] memberlist: Refuting a suspect message (from: c)")
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	if len(lines) != 3 || !strings.Contains(lines[0], "another cluster secret") || !strings.Contains(lines[2], "skipped=2") {
		t.Errorf("got\n%s", out.String())
	}
}

// The bytes are the cluster's: nodes of other builds read them.
func TestTheFormats(t *testing.T) {
	s := Self{Name: "n", ID: 5, Cluster: "c", Zone: "z", Peer: "h:1", Calls: "h:2", HTTP: "i:3", Version: "v", WireMin: 1, WireMax: 300, EntryMax: 2, Started: 7}
	if got, want := fmt.Sprintf("%x", s.meta()), "01"+"0500000000000000"+"0700000000000000"+"01"+"ac02"+"02"+"0163"+"017a"+"0176"+"03680100"+"010200"+"03690300"; got != want {
		t.Errorf("meta\ngot  %s\nwant %s", got, want)
	}
	if got, want := fmt.Sprintf("%x", appendHints(nil, []Hint{{Shard: 300, Term: 4, Owner: 5}})), "01"+"ac02"+"04"+"0500000000000000"; got != want {
		t.Errorf("hints\ngot  %s\nwant %s", got, want)
	}
}
