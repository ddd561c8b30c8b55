package replica

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"

	"github.com/dunlin-iot/dunlin"
)

// memLog is a Log in memory that knows what a crash would leave of it: everything up to the last sync, and of what came
// after it any prefix.
type memLog struct {
	mu      sync.Mutex
	shards  []memShard
	stable  []memShard // as of the last sync
	pending [][]dunlin.LogRow
	fail    error
	appends int
	syncs   int
	reads   int
}

type memShard struct {
	hard  []byte
	first uint64 // index of rows[0]
	prev  uint64 // term of row first−1
	rows  []dunlin.LogRow
}

func (s memShard) last() uint64 { return s.first + uint64(len(s.rows)) - 1 }

func (s *memShard) put(r dunlin.LogRow) {
	if r.Hard != nil {
		s.hard = r.Hard
		return
	}
	if r.Index < s.first || r.Index > s.last()+1 {
		panic(fmt.Sprintf("row %d of shard %d on a log of %d to %d", r.Index, r.Shard, s.first, s.last()))
	}
	s.rows = append(s.rows[:r.Index-s.first:r.Index-s.first], r)
}

func (s *memShard) truncate(upTo uint64) {
	if upTo < s.first {
		return
	}
	s.prev = s.rows[upTo-s.first].Term
	s.rows = slices.Clone(s.rows[upTo-s.first+1:])
	s.first = upTo + 1
}

func newMemLog(shards int) *memLog {
	l := &memLog{shards: make([]memShard, shards)}
	for i := range l.shards {
		l.shards[i].first = 1
	}
	l.stable = slices.Clone(l.shards)
	return l
}

func (l *memLog) Load(sh dunlin.ShardID) ([]byte, uint64, uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &l.shards[sh]
	return s.hard, s.first, s.last(), nil
}

func (l *memLog) Append(rows []dunlin.LogRow, sync bool) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.fail != nil {
		return l.fail
	}
	l.appends++
	rows = slices.Clone(rows)
	for _, r := range rows {
		l.shards[r.Shard].put(r)
	}
	l.pending = append(l.pending, rows)
	if sync {
		l.syncs++
		l.sync(len(l.pending))
	}
	return nil
}

func (l *memLog) sync(n int) {
	for _, rows := range l.pending[:n] {
		for _, r := range rows {
			l.stable[r.Shard].put(r)
		}
	}
	l.pending = slices.Clone(l.pending[n:])
}

func (l *memLog) Read(sh dunlin.ShardID, lo, hi uint64, bytesMax int) ([]dunlin.LogRow, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.reads++
	s := &l.shards[sh]
	if lo < s.first || hi > s.last()+1 {
		return nil, fmt.Errorf("read %d to %d of %d to %d", lo, hi, s.first, s.last())
	}
	n, size := 0, 0
	rows := s.rows[lo-s.first : hi-s.first]
	for n < len(rows) && (n == 0 || size+len(rows[n].Data) <= bytesMax) {
		size += len(rows[n].Data)
		n++
	}
	return slices.Clone(rows[:n]), nil
}

func (l *memLog) Term(sh dunlin.ShardID, index uint64) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &l.shards[sh]
	switch {
	case index+1 == s.first:
		return s.prev, nil
	case index < s.first || index > s.last():
		return 0, fmt.Errorf("term %d of %d to %d", index, s.first, s.last())
	}
	return s.rows[index-s.first].Term, nil
}

func (l *memLog) Truncate(sh dunlin.ShardID, upTo uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sync(len(l.pending)) // a truncation behind rows that are not stable yet would be hard to undo
	l.shards[sh].truncate(upTo)
	l.stable[sh].truncate(upTo)
	return nil
}

// crash returns what is left of the log: of the batches that were not synced, the first keep.
func (l *memLog) crash(keep int) *memLog {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sync(min(keep, len(l.pending)))
	return &memLog{shards: slices.Clone(l.stable), stable: slices.Clone(l.stable)}
}

// memState is a StateMachine in memory. An entry's data is what stamp makes; its effect is to be listed.
type memState struct {
	mu      sync.Mutex
	shards  []memEffects
	flushed []memEffects
	fail    error
	batches int
}

type memEffects struct {
	applied uint64
	conf    []byte
	list    []effect
}

type effect struct {
	index uint64
	data  string
}

// stamp makes an entry's data that carries the owner's term, as dunlin.Entry does.
func stamp(term uint64, data string) []byte { return fmt.Appendf(nil, "%d:%s", term, data) }

func newMemState(shards int) *memState {
	return &memState{shards: make([]memEffects, shards), flushed: make([]memEffects, shards)}
}

var errGap = errors.New("gap between applied entries")

func (s *memState) Apply(batch []dunlin.Committed) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fail != nil {
		return s.fail
	}
	s.batches++
	for _, c := range batch {
		e := &s.shards[c.Shard]
		switch {
		case c.Index <= e.applied:
			continue
		case c.Index != e.applied+1:
			return fmt.Errorf("%w: shard %d: %d after %d", errGap, c.Shard, c.Index, e.applied)
		}
		e.applied = c.Index
		if c.Conf != nil {
			e.conf = c.Conf
		}
		if c.Data == nil {
			continue
		}
		var term uint64
		if _, err := fmt.Sscanf(string(c.Data), "%d:", &term); err != nil {
			return fmt.Errorf("data %q: %w", c.Data, err)
		}
		if term == c.Term {
			e.list = append(e.list[:len(e.list):len(e.list)], effect{c.Index, string(c.Data)})
		}
	}
	return nil
}

func (s *memState) Applied(sh dunlin.ShardID) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shards[sh].applied
}

func (s *memState) Durable(sh dunlin.ShardID) uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.flushed[sh].applied
}

func (s *memState) Conf(sh dunlin.ShardID) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shards[sh].conf
}

func (s *memState) flush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.flushed = slices.Clone(s.shards)
}

// crash returns the state as of the last flush.
func (s *memState) crash() *memState {
	s.mu.Lock()
	defer s.mu.Unlock()
	return &memState{shards: slices.Clone(s.flushed), flushed: slices.Clone(s.flushed)}
}

func (s *memState) effects(sh dunlin.ShardID) []effect {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.shards[sh].list
}

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 0x64756e6c696e)) }
