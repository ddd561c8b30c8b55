package replica

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/raft/v3/confchange"
	pb "go.etcd.io/raft/v3/raftpb"
	"go.etcd.io/raft/v3/tracker"
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

// isCertificate reports whether an entry names a whole replica set: the birth of a group, or what Recover decreed. No
// ConfChange begins with these bytes: they would be of a field with number 0.
func isCertificate(e *pb.Entry) bool {
	return e.GetType() == pb.EntryConfChange && len(e.Data) > 0 && e.Data[0] == confVersion
}

// members lists all nodes of a replica set, whatever they are in it.
func members(cs *pb.ConfState) []uint64 {
	all := slices.Concat(cs.Voters, cs.VotersOutgoing, cs.Learners, cs.LearnersNext)
	slices.Sort(all)
	return slices.Compact(all)
}

// between returns the changes that lead from one replica set to another, neither of which is joint.
func between(from, to *pb.ConfState) []*pb.ConfChangeSingle {
	var out []*pb.ConfChangeSingle
	add := func(typ pb.ConfChangeType, id uint64) {
		out = append(out, &pb.ConfChangeSingle{Type: typ.Enum(), NodeId: &id})
	}
	for _, id := range to.Voters {
		if !slices.Contains(from.Voters, id) {
			add(pb.ConfChangeAddNode, id)
		}
	}
	for _, id := range to.Learners {
		if !slices.Contains(from.Learners, id) {
			add(pb.ConfChangeAddLearnerNode, id)
		}
	}
	keep := members(to)
	for _, id := range members(from) {
		if !slices.Contains(keep, id) {
			add(pb.ConfChangeRemoveNode, id)
		}
	}
	return out
}

// afterChange returns the replica set after a change, without touching Raft, which panics at a change that can't be.
func afterChange(cs *pb.ConfState, cc *pb.ConfChangeV2) (*pb.ConfState, error) {
	changer := confchange.Changer{Tracker: tracker.MakeProgressTracker(1, 0), LastIndex: 1}
	cfg, trk, err := confchange.Restore(changer, cs)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errConf, err)
	}
	changer.Tracker.Config, changer.Tracker.Progress = cfg, trk
	for _, c := range cc.Changes {
		if c.GetNodeId() == 0 || c.GetType() < pb.ConfChangeAddNode || c.GetType() > pb.ConfChangeAddLearnerNode {
			return nil, fmt.Errorf("%w: change %v", errConf, c)
		}
	}
	switch autoLeave, joint := cc.EnterJoint(); {
	case cc.LeaveJoint():
		cfg, trk, err = changer.LeaveJoint()
	case joint:
		cfg, trk, err = changer.EnterJoint(autoLeave, cc.Changes...)
	default:
		cfg, trk, err = changer.Simple(cc.Changes...)
	}
	if err != nil {
		return nil, fmt.Errorf("%w: %w", errConf, err)
	}
	changer.Tracker.Config, changer.Tracker.Progress = cfg, trk
	return changer.Tracker.ConfState(), nil
}

// sameConf compares replica sets by what they say.
func sameConf(a, b []byte) bool {
	if bytes.Equal(a, b) {
		return true
	}
	x, errX := parseConf(a)
	y, errY := parseConf(b)
	return errX == nil && errY == nil && x.Equivalent(y) == nil
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
