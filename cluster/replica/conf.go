package replica

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// The versions of the bytes that doc.go draws.
const (
	hardVersion = 1
	confVersion = 1
)

// Index and term of a group's birth certificate.
const (
	birthIndex = 1
	birthTerm  = 1
)

var (
	errHard = errors.New("hard state is malformed")
	errConf = errors.New("replica set is malformed")
)

// hardState is Raft's persistent state by value.
type hardState struct{ term, vote, commit uint64 }

func appendHard(dst []byte, h hardState) []byte {
	dst = append(dst, hardVersion)
	dst = binary.AppendUvarint(dst, h.term)
	dst = binary.AppendUvarint(dst, h.vote)
	return binary.AppendUvarint(dst, h.commit)
}

func parseHard(b []byte) (hardState, error) {
	if len(b) == 0 || b[0] != hardVersion {
		return hardState{}, fmt.Errorf("%w: % x", errHard, b)
	}
	var v [3]uint64
	rest := b[1:]
	for i := range v {
		x, n := binary.Uvarint(rest)
		if n <= 0 {
			return hardState{}, fmt.Errorf("%w: % x", errHard, b)
		}
		v[i], rest = x, rest[n:]
	}
	if len(rest) != 0 {
		return hardState{}, fmt.Errorf("%w: % x", errHard, b)
	}
	return hardState{v[0], v[1], v[2]}, nil
}

// marshalConf is deterministic: the replicas of a group must write the same bytes.
func marshalConf(cs *pb.ConfState) ([]byte, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend([]byte{confVersion}, cs)
	if err != nil {
		return nil, fmt.Errorf("encode replica set: %w", err)
	}
	return b, nil
}

func parseConf(b []byte) (*pb.ConfState, error) {
	if len(b) == 0 || b[0] != confVersion {
		return nil, fmt.Errorf("%w: % x", errConf, b)
	}
	cs := &pb.ConfState{}
	if err := proto.Unmarshal(b[1:], cs); err != nil {
		return nil, fmt.Errorf("%w: %w", errConf, err)
	}
	return pb.EnsureConfState(cs), nil
}

// birthConf is the replica set of a new group.
func birthConf(voters []uint64) *pb.ConfState {
	voters = slices.Clone(voters)
	slices.Sort(voters)
	return pb.EnsureConfState(&pb.ConfState{Voters: voters})
}

// soleVoter reports whether id alone decides: no other voter, no learner to feed, no change of membership under way.
func soleVoter(cs *pb.ConfState, id uint64) bool {
	return len(cs.Voters) == 1 && cs.Voters[0] == id &&
		len(cs.Learners) == 0 && len(cs.VotersOutgoing) == 0 && len(cs.LearnersNext) == 0
}

// parseChange reads a membership change out of a log entry.
func parseChange(typ pb.EntryType, data []byte) (pb.ConfChangeI, error) {
	if typ == pb.EntryConfChange {
		cc := &pb.ConfChange{}
		if err := proto.Unmarshal(data, cc); err != nil {
			return nil, fmt.Errorf("membership change: %w", err)
		}
		return cc, nil
	}
	cc := &pb.ConfChangeV2{}
	if err := proto.Unmarshal(data, cc); err != nil {
		return nil, fmt.Errorf("membership change: %w", err)
	}
	return cc, nil
}
