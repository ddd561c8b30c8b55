package replica

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/dunlin-iot/dunlin"
	pb "go.etcd.io/raft/v3/raftpb"
)

// The versions of the bytes below; doc.go draws them.
const (
	metaVersion = 1
	tombVersion = 1
)

// Bounds of what a peer may say in a SnapshotMeta.
const (
	metaIDBytesMax   = 256
	metaConfBytesMax = 1 << 16
)

var (
	errMeta = errors.New("snapshot's name is malformed")
	errTomb = errors.New("tombstone is malformed")
)

// appendMeta makes a SnapshotMeta's bytes in a message.
func appendMeta(dst []byte, m *dunlin.SnapshotMeta) []byte {
	dst = append(dst, metaVersion)
	for _, v := range [...]uint64{uint64(m.Shard), uint64(m.From), m.Index, m.Term, uint64(len(m.ID))} {
		dst = binary.AppendUvarint(dst, v)
	}
	dst = append(dst, m.ID...)
	dst = binary.AppendUvarint(dst, uint64(len(m.Conf)))
	return append(dst, m.Conf...)
}

// parseMeta is strict: there is one way to write a SnapshotMeta, but for the length of its numbers.
func parseMeta(b []byte) (m dunlin.SnapshotMeta, err error) {
	if len(b) == 0 || b[0] != metaVersion {
		return m, errMeta
	}
	var v [5]uint64
	rest := b[1:]
	for i := range v {
		x, n := binary.Uvarint(rest)
		if n <= 0 {
			return m, errMeta
		}
		v[i], rest = x, rest[n:]
	}
	if v[0] > 1<<16-1 || v[4] > metaIDBytesMax || uint64(len(rest)) < v[4] {
		return m, errMeta
	}
	m = dunlin.SnapshotMeta{Shard: dunlin.ShardID(v[0]), From: dunlin.NodeID(v[1]), Index: v[2], Term: v[3], ID: string(rest[:v[4]])}
	rest = rest[v[4]:]
	size, n := binary.Uvarint(rest)
	if n <= 0 || size > metaConfBytesMax || uint64(len(rest)-n) != size {
		return m, errMeta
	}
	m.Conf = append([]byte(nil), rest[n:]...)
	return m, nil
}

// tombstone is what stays of a replica that was destroyed: its promises. It may have acknowledged entries up to floor that it
// no longer has, and given its vote.
type tombstone struct{ term, vote, floor uint64 }

func appendTomb(dst []byte, t tombstone) []byte {
	dst = append(dst, tombVersion)
	dst = binary.AppendUvarint(dst, t.term)
	dst = binary.AppendUvarint(dst, t.vote)
	return binary.AppendUvarint(dst, t.floor)
}

func parseTomb(b []byte) (tombstone, error) {
	if len(b) == 0 || b[0] != tombVersion {
		return tombstone{}, fmt.Errorf("%w: % x", errTomb, b)
	}
	h, err := parseHard(append([]byte{hardVersion}, b[1:]...)) // three numbers, too
	if err != nil {
		return tombstone{}, fmt.Errorf("%w: % x", errTomb, b)
	}
	return tombstone{h.term, h.vote, h.commit}, nil
}

// loadTomb returns a shard's tombstone, the zero one if it has none.
func loadTomb(cfg *Config, sh dunlin.ShardID) (tombstone, bool, error) {
	if cfg.Snapshots == nil {
		return tombstone{}, false, nil
	}
	b, err := cfg.Snapshots.Tombstone(sh)
	if err != nil || b == nil {
		if err != nil {
			err = fmt.Errorf("tombstone of shard %d: %w", sh, err)
		}
		return tombstone{}, false, err
	}
	t, err := parseTomb(b)
	if err != nil {
		return tombstone{}, false, fmt.Errorf("shard %d: %w", sh, err)
	}
	return t, true, nil
}

// exportConf is a replica set for other rooms.
func exportConf(cs *pb.ConfState, index uint64) Conf {
	ids := func(v []uint64) []dunlin.NodeID {
		out := make([]dunlin.NodeID, 0, len(v))
		for _, id := range v {
			out = append(out, dunlin.NodeID(id))
		}
		return out
	}
	return Conf{Voters: ids(cs.GetVoters()), Outgoing: ids(cs.GetVotersOutgoing()), Learners: ids(cs.GetLearners()),
		LearnersNext: ids(cs.GetLearnersNext()), Index: index}
}
