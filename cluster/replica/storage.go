package replica

import (
	"fmt"

	"github.com/dunlin-iot/dunlin"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
)

// storage is what Raft sees of one shard's log: the rows that are surely on disk. Rows that are not applied yet are kept in
// memory up to a bound, so that committing an entry does not read back what was just written.
//
// Raft has no way to hand an error of its storage on: it panics with it. Such a panic carries a readError, which the
// host's loop turns into an error again.
type storage struct {
	shard dunlin.ShardID
	log   Log

	hard hardState
	conf *pb.ConfState // as of the applied index at start; Raft asks once

	first, last uint64
	prevTerm    uint64 // term of row first−1

	// recent holds the rows (last−len(recent), last]. Its array is reused only when it is empty, since Raft and a batch
	// on its way to the state machine may hold slices of it.
	recent      []*pb.Entry
	recentBytes int
	bytesMax    int

	sizes logSizes

	// A snapshot for replicas that the log can't feed any more. Raft asks for it in the middle of a step, so it is made
	// beforehand: Snapshot notes that one is wanted, and has it the next time.
	exports   bool                 // there is somebody to make one
	export    *dunlin.SnapshotMeta // open at Config.Snapshots, and its entries are kept in the log from there on
	wanted    bool
	used      bool   // since core looked last
	confBytes []byte // the replica set now: a snapshot from before a change does not know who is to receive it
}

func newStorage(cfg *Config, sh dunlin.ShardID, first, last uint64) *storage {
	st := &storage{shard: sh, log: cfg.Log, first: max(first, 1), last: last, bytesMax: cfg.RecentBytesMax}
	st.sizes.guess(st.first, last)
	return st
}

// readError is the panic value for a log that cannot be read.
type readError struct{ err error }

func (e readError) Error() string { return e.err.Error() }
func (e readError) Unwrap() error { return e.err }

// caught, deferred, makes an error of such a panic again.
func caught(err *error) {
	if r := recover(); r != nil {
		re, ok := r.(readError)
		if !ok {
			panic(r)
		}
		*err = re
	}
}

func (s *storage) InitialState() (*pb.HardState, *pb.ConfState, error) {
	h := s.hard
	return &pb.HardState{Term: &h.term, Vote: &h.vote, Commit: &h.commit}, s.conf, nil
}

func (s *storage) FirstIndex() (uint64, error) { return s.first, nil }
func (s *storage) LastIndex() (uint64, error)  { return s.last, nil }

// Snapshot returns the snapshot that is open, or says "later" and sees to it that there will be one.
func (s *storage) Snapshot() (*pb.Snapshot, error) {
	if x := s.export; x != nil && x.Index+1 >= s.first && sameConf(x.Conf, s.confBytes) {
		cs, err := parseConf(x.Conf)
		if err != nil {
			return nil, readError{fmt.Errorf("snapshot of shard %d: %w", s.shard, err)}
		}
		s.used = true
		return &pb.Snapshot{Data: appendMeta(nil, x), Metadata: &pb.SnapshotMetadata{ConfState: cs, Index: &x.Index, Term: &x.Term}}, nil
	}
	s.wanted = s.exports
	return nil, raft.ErrSnapshotTemporarilyUnavailable
}

func (s *storage) recentFirst() uint64 { return s.last + 1 - uint64(len(s.recent)) }

func (s *storage) Term(i uint64) (uint64, error) {
	switch {
	case i+1 < s.first:
		return 0, raft.ErrCompacted
	case i > s.last:
		return 0, raft.ErrUnavailable
	case i+1 == s.first:
		return s.prevTerm, nil
	case i >= s.recentFirst():
		return s.recent[i-s.recentFirst()].GetTerm(), nil
	}
	t, err := s.log.Term(s.shard, i)
	if err != nil {
		return 0, readError{fmt.Errorf("term of entry %d of shard %d: %w", i, s.shard, err)}
	}
	return t, nil
}

func (s *storage) Entries(lo, hi, maxSize uint64) ([]*pb.Entry, error) {
	if lo < s.first {
		return nil, raft.ErrCompacted
	}
	if hi > s.last+1 {
		return nil, raft.ErrUnavailable
	}
	if rf := s.recentFirst(); lo >= rf {
		ents := s.recent[lo-rf : hi-rf]
		size, n := uint64(0), 0
		for n < len(ents) {
			if size += entryBytes(ents[n]); n > 0 && size > maxSize {
				break
			}
			n++
		}
		return ents[:n:n], nil
	}
	return s.read(lo, hi, maxSize)
}

// read fetches [lo, hi) from the log, as much as maxSize allows but at least one entry.
func (s *storage) read(lo, hi, maxSize uint64) ([]*pb.Entry, error) {
	bytesMax := int(min(maxSize, 1<<30))
	rows, err := s.log.Read(s.shard, lo, hi, bytesMax)
	if err == nil && (len(rows) == 0 || rows[0].Index != lo) {
		err = fmt.Errorf("%d rows, want the first of them", len(rows))
	}
	if err != nil {
		return nil, readError{fmt.Errorf("entries %d to %d of shard %d: %w", lo, hi-1, s.shard, err)}
	}
	ents := make([]*pb.Entry, 0, len(rows))
	for i := range rows {
		r := &rows[i]
		if r.Index != lo+uint64(i) {
			return nil, readError{fmt.Errorf("entries %d to %d of shard %d: row %d has index %d", lo, hi-1, s.shard, i, r.Index)}
		}
		ents = append(ents, &pb.Entry{Index: &r.Index, Term: &r.Term, Type: pb.EntryType(r.Type).Enum(), Data: r.Data})
	}
	return ents, nil
}

// entryBytes is near enough to what Raft counts.
func entryBytes(e *pb.Entry) uint64 { return uint64(len(e.Data)) + 16 }

// appended takes rows over that are on disk now.
func (s *storage) appended(ents []*pb.Entry) {
	if len(ents) == 0 {
		return
	}
	from := ents[0].GetIndex()
	if from > s.last+1 {
		panic(fmt.Sprintf("replica: shard %d: appended entry %d leaves a gap behind %d", s.shard, from, s.last))
	}
	if from <= s.last { // a new leader overwrites a suffix
		keep := s.recent[:0:0]
		if rf := s.recentFirst(); from > rf {
			keep = append(keep, s.recent[:from-rf]...)
		}
		s.recent, s.recentBytes = keep, 0
		for _, e := range keep {
			s.recentBytes += int(entryBytes(e))
		}
	}
	s.last = ents[len(ents)-1].GetIndex()
	s.recent = append(s.recent, ents...)
	for _, e := range ents {
		s.recentBytes += int(entryBytes(e))
	}
	s.sizes.add(ents)
	s.forget(s.recentFirst(), s.bytesMax, false)
}

// installed makes the log begin, and end, behind a snapshot.
func (s *storage) installed(index, term uint64) {
	s.first, s.last, s.prevTerm = index+1, index, term
	s.recent, s.recentBytes = nil, 0
	s.sizes.guess(s.first, s.last)
	s.export, s.wanted = nil, false
}

// forget drops the oldest rows from memory: those before index before, and more until at most bytesMax are left. With reuse
// set there is nobody whom rows are being sent to.
func (s *storage) forget(before uint64, bytesMax int, reuse bool) {
	n, rf := 0, s.recentFirst()
	for n < len(s.recent) && (rf+uint64(n) < before || s.recentBytes > bytesMax) {
		s.recentBytes -= int(entryBytes(s.recent[n]))
		n++
	}
	if n < len(s.recent) {
		s.recent = s.recent[n:]
		return
	}
	// Nobody holds a slice of the array if all that was in it is applied; if the bound emptied it, somebody may.
	if reuse && before > s.last && cap(s.recent) <= 1024 {
		clear(s.recent)
		s.recent = s.recent[:0]
	} else {
		s.recent = nil
	}
	s.recentBytes = 0
}

// compact makes Raft forget the rows up to upTo, before they are removed from the log.
func (s *storage) compact(upTo uint64) error {
	if upTo < s.first {
		return nil
	}
	t, err := s.Term(upTo)
	if err != nil {
		return err
	}
	s.first, s.prevTerm = upTo+1, t
	s.sizes.drop(upTo)
	s.forget(s.first, s.bytesMax, false)
	return nil
}
