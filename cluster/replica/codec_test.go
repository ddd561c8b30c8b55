package replica

import (
	"bytes"
	"reflect"
	"testing"

	"github.com/dunlin-iot/dunlin"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
	"pgregory.net/rapid"
)

func FuzzConf(f *testing.F) {
	b, _ := marshalConf(birthConf([]uint64{3, 1, 2}))
	f.Add(b)
	f.Fuzz(func(_ *testing.T, b []byte) {
		if cs, err := parseConf(b); err == nil {
			_, _ = afterChange(cs, &pb.ConfChangeV2{})
		}
	})
}

func FuzzMeta(f *testing.F) {
	f.Add(appendMeta(nil, &dunlin.SnapshotMeta{Shard: 7, ID: "a-b", From: 9, Index: 1 << 40, Term: 3, Conf: []byte{1, 2}}))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := parseMeta(b)
		if err != nil {
			return
		}
		if again, err := parseMeta(appendMeta(nil, &m)); err != nil || !reflect.DeepEqual(again, m) {
			t.Errorf("%+v became %+v, %v", m, again, err)
		}
	})
}

func FuzzTomb(f *testing.F) {
	f.Add(appendTomb(nil, tombstone{3, 2, 77}))
	f.Fuzz(func(t *testing.T, b []byte) {
		x, err := parseTomb(b)
		if err != nil {
			return
		}
		if again, err := parseTomb(appendTomb(nil, x)); err != nil || again != x {
			t.Errorf("%v became %v, %v", x, again, err)
		}
	})
}

// FuzzDeliver throws messages at a cluster of one, of three, and at an empty replica. A peer has shown a certificate, so this is
// about bytes that are broken rather than about lies.
func FuzzDeliver(f *testing.F) {
	add := func(m *pb.Message) {
		b, _ := proto.Marshal(m)
		f.Add(b)
	}
	to, from, term, index := uint64(1), uint64(2), uint64(3), uint64(2)
	for _, typ := range []pb.MessageType{pb.MsgApp, pb.MsgHeartbeat, pb.MsgHeartbeatResp, pb.MsgReadIndex, pb.MsgSnap, pb.MsgSnapStatus, pb.MsgVote, -1} {
		add(&pb.Message{Type: typ.Enum(), To: &to, From: &from, Term: &term, Index: &index, Snapshot: &pb.Snapshot{}, Entries: []*pb.Entry{{}}})
	}
	fl := newFleet(1, 1, 2, []uint64{1, 2, 3})
	f.Fuzz(func(t *testing.T, b []byte) {
		n := &fleetNode{id: 1, disk: newDisk(1, 2), owns: map[dunlin.ShardID]uint64{}}
		if err := fl.open(n); err != nil {
			t.Fatal(err)
		}
		m := &pb.Message{}
		if proto.Unmarshal(b, m) == nil && (m.GetCommit() > 1 || m.GetTerm() > 1<<62) {
			return // a commit index that this node does not have is the loss of its log: see Raft's panic
		}
		if n.m.Deliver(0, b) == nil {
			_, _ = n.m.Turn(1)
		}
	})
}

// TestLogSizes: what is behind an index is never underestimated, and by no more than one mark overestimated.
func TestLogSizes(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s logSizes
		s.guess(1, 0)
		sizes := []uint64{} // of rows from 1
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			if len(sizes) > 0 && rapid.IntRange(0, 9).Draw(t, "overwrite") == 0 {
				sizes = sizes[:rapid.IntRange(0, len(sizes)).Draw(t, "keep")]
			}
			var ents []*pb.Entry
			for range rapid.IntRange(1, 300).Draw(t, "rows") {
				i := uint64(len(sizes) + 1)
				e := &pb.Entry{Index: &i, Data: make([]byte, rapid.SampledFrom([]int{0, 10, 5000}).Draw(t, "size"))}
				ents, sizes = append(ents, e), append(sizes, entryBytes(e))
			}
			s.add(ents)
		}
		at := rapid.IntRange(0, len(sizes)).Draw(t, "at")
		want := uint64(0)
		for _, n := range sizes[at:] {
			want += n
		}
		if got := s.behind(uint64(at)); got < want {
			t.Fatalf("%d bytes behind %d of %d, want at least %d", got, at, len(sizes), want)
		}
		if tail := s.tail(1 << 16); tail > uint64(len(sizes)) {
			t.Fatalf("tail begins at %d of %d", tail, len(sizes))
		}
	})
}

func TestSameConf(t *testing.T) {
	a, _ := marshalConf(birthConf([]uint64{3, 1, 2}))
	b, _ := marshalConf(birthConf([]uint64{1, 2, 3}))
	c, _ := marshalConf(birthConf([]uint64{1, 2}))
	if !sameConf(a, b) || sameConf(a, c) || sameConf(a, nil) || !bytes.Equal(a, b) {
		t.Error("replica sets are not told apart")
	}
}
