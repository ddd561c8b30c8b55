package replica

import (
	"context"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// nullLog and nullState cost nothing, so that what is measured is Raft and the host.
type nullLog struct {
	*memLog
	null bool
}

func (l *nullLog) Append(rows []dunlin.LogRow, sync bool) error {
	if l.null {
		return nil
	}
	return l.memLog.Append(rows, sync)
}

type nullState struct{ *memState }

func (s *nullState) Apply([]dunlin.Committed) error { return nil }

func cpu() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

// BenchmarkEntry is the CPU of one entry through Raft and the host: bursts of 64 entries over 64 groups, one each, each
// burst one turn.
func BenchmarkEntry(b *testing.B) {
	const shards = 64
	owned := make(chan dunlin.ShardID, shards)
	terms := make([]uint64, shards)
	log := &nullLog{memLog: newMemLog(shards)}
	h, err := Open(Config{Bootstrap: true, Log: log, StateMachine: &nullState{newMemState(shards)},
		OnOwner: func(sh dunlin.ShardID, term uint64, owner bool) {
			if owner {
				terms[sh] = term
				owned <- sh
			}
		}})
	if err != nil {
		b.Fatal(err)
	}
	log.null = true
	var wg sync.WaitGroup
	wg.Go(func() { h.Run(b.Context()) })
	for range shards {
		<-owned
	}
	data := make([]byte, 300)
	left := make(chan struct{}, shards)
	done := func(_ uint64, err error) {
		if err != nil {
			panic(err)
		}
		left <- struct{}{}
	}
	b.ReportAllocs()
	start, n := cpu(), 0
	for b.Loop() {
		for sh := range dunlin.ShardID(shards) {
			h.Propose(sh, terms[sh], data, done)
		}
		h.Flush()
		for range shards {
			<-left
		}
		n += shards
	}
	b.ReportMetric(float64((cpu()-start).Nanoseconds())/float64(n), "cpu-ns/entry")
	b.ReportMetric(0, "ns/op")
}

// BenchmarkIdle is what 64 shards with replicas on three nodes cost while nothing happens, all three nodes in this process, and
// without links between them: cores used.
func BenchmarkIdle(b *testing.B) {
	const shards = 64
	w := &wires{hosts: map[uint64]*testHost{}, cut: map[uint64]bool{}}
	ids := []uint64{1, 2, 3}
	var wg sync.WaitGroup
	ctx, stop := context.WithCancel(b.Context())
	owned := make(chan struct{}, 10*shards)
	for _, id := range ids {
		h, err := Open(Config{Node: id, Voters: ids, Bootstrap: true, Shards: shards, Log: newMemLog(shards), StateMachine: newMemState(shards), Transport: wire{w, id},
			OnOwner: func(_ dunlin.ShardID, _ uint64, owner bool) {
				if owner {
					owned <- struct{}{}
				}
			}})
		if err != nil {
			b.Fatal(err)
		}
		w.hosts[id] = &testHost{Host: h}
	}
	for _, h := range w.hosts {
		wg.Go(func() { h.Run(ctx) })
	}
	for range shards {
		<-owned
	}
	var used, passed time.Duration
	for b.Loop() {
		start, begin := cpu(), time.Now()
		<-time.After(time.Second)
		used, passed = used+cpu()-start, passed+time.Since(begin)
	}
	stop()
	wg.Wait()
	b.ReportMetric(used.Seconds()/passed.Seconds(), "cores")
	b.ReportMetric(float64(len(owned)), "elections")
	b.ReportMetric(0, "ns/op")
}

// termLog keeps the newest term of each shard, and no rows but the first.
type termLog struct {
	*memLog
	terms [64]atomic.Uint64
}

func (l *termLog) Append(rows []dunlin.LogRow, _ bool) error {
	for i := range rows {
		switch rows[i].Index {
		case 0:
		case birthIndex: // it is read back
			_ = l.memLog.Append(rows[i:i+1], true)
		default:
			l.terms[rows[i].Shard].Store(rows[i].Term)
		}
	}
	return nil
}

func (l *termLog) Term(sh dunlin.ShardID, index uint64) (uint64, error) {
	if index == birthIndex {
		return birthTerm, nil
	}
	return l.terms[sh].Load(), nil // as long as there is one election
}

// BenchmarkEntryThree is BenchmarkEntry with three replicas of every shard in one process, logs and states that cost nothing, and
// links that are function calls: what Raft and the hosts of all three take for an entry.
func BenchmarkEntryThree(b *testing.B) {
	const shards = 64
	w := &wires{hosts: map[uint64]*testHost{}, cut: map[uint64]bool{}}
	ids := []uint64{1, 2, 3}
	var wg sync.WaitGroup
	ctx, stop := context.WithCancel(b.Context())
	owned := make(chan struct{}, 10*shards)
	for _, id := range ids {
		log := &termLog{memLog: newMemLog(shards)}
		h, err := Open(Config{Fatal: func(err error) { panic(err) }, Node: id, Voters: ids, Bootstrap: true, Shards: shards, Log: log, StateMachine: &nullState{newMemState(shards)}, Transport: wire{w, id},
			OnOwner: func(_ dunlin.ShardID, _ uint64, owner bool) {
				if owner {
					owned <- struct{}{}
				}
			}})
		if err != nil {
			b.Fatal(err)
		}
		w.hosts[id] = &testHost{Host: h}
	}
	for _, h := range w.hosts {
		wg.Go(func() { h.Run(ctx) })
	}
	for range shards {
		<-owned
	}
	data := make([]byte, 300)
	left := make(chan error, shards)
	done := func(_ uint64, err error) { left <- err }
	b.ReportAllocs()
	start, n := cpu(), 0
	for b.Loop() {
		asked := 0
		for _, h := range w.hosts {
			for sh := range dunlin.ShardID(shards) {
				if term, ok := h.Owned(sh); ok {
					h.Propose(sh, term, data, done)
					asked++
				}
			}
			h.Flush()
		}
		for range asked {
			if err := <-left; err != nil {
				b.Fatal(err)
			}
		}
		n += asked
	}
	b.ReportMetric(float64((cpu()-start).Nanoseconds())/float64(n), "cpu-ns/entry")
	b.ReportMetric(0, "ns/op")
	stop()
	wg.Wait()
}
