package replica

import pb "go.etcd.io/raft/v3/raftpb"

// logSizes estimates the bytes of log rows behind an index, to decide whom to keep rows for. It remembers one sum for every
// so many rows or bytes.
type logSizes struct {
	total uint64 // bytes of all rows ever seen
	marks []sizeMark
}

// sizeMark says that rows up to index took so many bytes.
type sizeMark struct{ index, total uint64 }

const (
	sizeMarkRows  = 512
	sizeMarkBytes = 128 << 10
	sizeGuess     = 512 // bytes of a row that was there before the start
)

// guess begins anew with rows whose sizes are unknown.
func (s *logSizes) guess(first, last uint64) {
	s.total += (last + 1 - first) * sizeGuess
	s.marks = append(s.marks[:0], sizeMark{first - 1, s.total - (last+1-first)*sizeGuess}, sizeMark{last, s.total})
}

func (s *logSizes) add(ents []*pb.Entry) {
	if from := ents[0].GetIndex(); from <= s.marks[len(s.marks)-1].index { // a suffix was overwritten
		for len(s.marks) > 1 && s.marks[len(s.marks)-1].index >= from {
			s.marks = s.marks[:len(s.marks)-1]
		}
	}
	for _, e := range ents {
		s.total += entryBytes(e)
		if m := s.marks[len(s.marks)-1]; e.GetIndex()-m.index >= sizeMarkRows || s.total-m.total >= sizeMarkBytes {
			s.marks = append(s.marks, sizeMark{e.GetIndex(), s.total})
		}
	}
}

// drop forgets the rows up to index.
func (s *logSizes) drop(index uint64) {
	n := 0
	for n+1 < len(s.marks) && s.marks[n+1].index <= index {
		n++
	}
	if n > 0 {
		s.marks = append(s.marks[:0], s.marks[n:]...)
	}
}

// behind returns about how many bytes the rows behind index take; rather too many.
func (s *logSizes) behind(index uint64) uint64 {
	at := s.marks[0].total
	for _, m := range s.marks {
		if m.index > index {
			break
		}
		at = m.total
	}
	return s.total - at
}

// tail returns the index behind which the newest rows take about so many bytes.
func (s *logSizes) tail(bytes uint64) uint64 {
	for i := len(s.marks) - 1; i >= 0; i-- {
		if s.total-s.marks[i].total >= bytes {
			return s.marks[i].index
		}
	}
	return s.marks[0].index
}
