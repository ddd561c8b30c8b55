package control

import (
	"errors"
	"reflect"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

func TestRowsComeBack(t *testing.T) {
	p := Placement{Shard: 3, Voters: []dunlin.NodeID{1, 2, 1<<62 + 9}, Learners: []dunlin.NodeID{4}, Epoch: 7, ConfIndex: 1234,
		Was: map[dunlin.NodeID]uint64{5: 99}, Move: &Move{From: 2, To: 4, Why: "n2 drains", Since: 5_000_000}}
	want := `{"shard":3,"voters":["0000000000000001","0000000000000002","4000000000000009"],"learners":["0000000000000004"],"epoch":7,` +
		`"conf_index":1234,"was":{"0000000000000005":99},"moving":{"from":"0000000000000002","to":"0000000000000004","why":"n2 drains","since":"1970-01-01T00:00:05Z"}}`
	if got := string(EncodePlacement(&p)); got != want {
		t.Errorf("placement row:\n%s\nwant\n%s", got, want)
	}
	if got, err := DecodePlacement([]byte(want)); err != nil || !reflect.DeepEqual(got, p) {
		t.Errorf("got %+v, %v, want %+v", got, err, p)
	}
	m := Member{Member: dunlin.Member{ID: 7, Name: "n7", Zone: "a", State: dunlin.MemberActive, Peer: "h:1", Calls: "h:2", HTTP: "h:3",
		Version: "v1", WireMin: 1, WireMax: 2, EntryMax: 3}, Joined: 9_000_000}
	seen := m
	seen.Alive, seen.Replicas, seen.DiskFree = true, 5, 77 // not kept
	if got, err := DecodeMember(EncodeMember(&seen)); err != nil || got != m {
		t.Errorf("got %+v, %v, want %+v", got, err, m)
	}
	c := Cluster{ID: "abcd", Shards: 64, Replication: 3, Born: 1_000_000}
	if got, err := DecodeCluster(EncodeCluster(&c)); err != nil || got != c {
		t.Errorf("got %+v, %v, want %+v", got, err, c)
	}
	r := Request{Shard: 4, From: 1, To: 2, Asked: 3_000_000}
	if got, err := DecodeRequest(EncodeRequest(&r)); err != nil || got != r {
		t.Errorf("got %+v, %v, want %+v", got, err, r)
	}
}

func TestBadRowsAreRefused(t *testing.T) {
	for _, b := range []string{``, `{}`, `[]`, `{"shard":1,"voters":[]}`, `{"shard":70000,"voters":["0000000000000001"]}`,
		`{"voters":["0000000000000001","0000000000000001"]}`, `{"voters":["none"]}`, `{"voters":["1"]}`,
		`{"voters":["0000000000000001"],"moving":{"why":"x"}}`} {
		if p, err := DecodePlacement([]byte(b)); !errors.Is(err, dunlin.ErrInvalid) {
			t.Errorf("placement %s: got %+v, %v", b, p, err)
		}
	}
	if _, err := DecodeMember([]byte(`{"id":"0000000000000001","name":"n1","state":"odd"}`)); !errors.Is(err, dunlin.ErrInvalid) {
		t.Errorf("member of an odd state: got %v", err)
	}
}

func FuzzRows(f *testing.F) {
	f.Add(EncodePlacement(&Placement{Shard: 1, Voters: []dunlin.NodeID{1}, Move: &Move{To: 2}}))
	f.Add(EncodeMember(&Member{Member: dunlin.Member{ID: 1, Name: "n", State: dunlin.MemberLeft}}))
	f.Add(EncodeCluster(&Cluster{ID: "a", Shards: 1, Replication: 3}))
	f.Add(EncodeRequest(&Request{To: 1}))
	f.Fuzz(func(t *testing.T, b []byte) {
		if p, err := DecodePlacement(b); err == nil {
			if q, err := DecodePlacement(EncodePlacement(&p)); err != nil || string(EncodePlacement(&q)) != string(EncodePlacement(&p)) {
				t.Errorf("placement %+v comes back as %+v, %v", p, q, err)
			}
			// What a row says must not upset the plan, whoever wrote it.
			v := &View{Now: 1e15, Replication: 3, Members: []Member{{Member: dunlin.Member{ID: 1, Name: "n1", State: dunlin.MemberActive, Alive: true}}}}
			v.Shards = []Shard{{ID: 0, Row: p, Owner: 1, Term: 1, Conf: Conf{Index: p.ConfIndex, Voters: p.Voters, Learners: p.Learners}}}
			Plan(v, Limits{})
			Health(v, Limits{})
		}
		if m, err := DecodeMember(b); err == nil {
			if n, err := DecodeMember(EncodeMember(&m)); err != nil || n != m {
				t.Errorf("member %+v comes back as %+v, %v", m, n, err)
			}
		}
		if c, err := DecodeCluster(b); err == nil {
			if d, err := DecodeCluster(EncodeCluster(&c)); err != nil || d != c {
				t.Errorf("cluster %+v comes back as %+v, %v", c, d, err)
			}
		}
		_, _ = DecodeRequest(b)
	})
}

// TestLateStates: a member's state is changed only from what the step was meant for.
func TestLateStates(t *testing.T) {
	a := SetMemberState{Member: 3, From: dunlin.MemberLeaving, State: dunlin.MemberLeft}
	if err := a.Check(dunlin.MemberLeaving); err != nil {
		t.Error(err)
	}
	if err := a.Check(dunlin.MemberActive); !errors.Is(err, dunlin.ErrConflict) {
		t.Errorf("a leave that was taken back: %v, want %v", err, dunlin.ErrConflict)
	}
}

// TestReplicasRest: who has just lost a shard's replica is no target for it, also for a controller that is new.
func TestReplicasRest(t *testing.T) {
	v := &View{Now: 1_000_000_000, Replication: 3}
	for id := range dunlin.NodeID(4) {
		m := Member{}
		m.Alive = true
		m.ID, m.Name, m.State = id+1, "n"+string(rune('1'+id)), dunlin.MemberActive
		v.Members = append(v.Members, m)
	}
	conf := Conf{Voters: []dunlin.NodeID{1, 2}, Index: 50}
	sh := Shard{ID: 1, Owner: 1, Term: 2, Commit: 50, Conf: conf, Row: Placement{Shard: 1, Epoch: 3, Voters: conf.Voters, ConfIndex: 50,
		Was: map[dunlin.NodeID]uint64{3: 40, 4: 40}},
		Replicas: []Progress{{Node: 1, Match: 50, Active: true}, {Node: 2, Match: 50, Active: true}}}
	v.Shards = []Shard{sh}
	c := New(Limits{})
	moves := func() (to dunlin.NodeID) {
		for _, a := range c.Step(v) {
			if w, ok := a.(*WritePlacement); ok && w.Row.Move != nil {
				to = w.Row.Move.To
			}
		}
		return to
	}
	if to := moves(); to != 0 {
		t.Errorf("a new controller gives it to %s", to)
	}
	v.Now = v.Now.Add(2 * time.Second)
	delete(v.Shards[0].Row.Was, 4) // it never had one
	if to := moves(); to != 4 {
		t.Errorf("it goes to %s, want 4", to)
	}
	v.Members[3].Alive = false
	if to := moves(); to != 0 {
		t.Errorf("it goes back to %s after 2 s", to)
	}
	v.Now = v.Now.Add(time.Second)
	if to := moves(); to != 3 {
		t.Errorf("it goes to %s after 3 s, want 3", to)
	}
}
