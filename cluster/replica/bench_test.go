package replica

import (
	"sync"
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
