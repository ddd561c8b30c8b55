package crash

import (
	"context"
	"encoding/binary"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/cluster/replica"
	"github.com/dunlin-iot/dunlin/entry"
	"github.com/dunlin-iot/dunlin/store"
)

const benchShards = 64

func cpu() time.Duration {
	var r syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

func benchEntry(sh dunlin.ShardID, term uint64) []byte {
	const now = 1_700_000_000_000_000
	c := dunlin.Change{DeviceKey: dunlin.DeviceKey{Tenant: dunlin.DefaultTenant, Device: dunlin.DeviceID(fmt.Sprint("bench-", sh))}, Domain: "bench", Version: 1}
	in := dunlin.Input{Kind: dunlin.InputTelemetry, Format: dunlin.FormatSenMLJSON, MessageID: 0x6d65737361676531, Received: now}
	for i, m := range []string{"temperature", "humidity", "pressure", "battery"} {
		in.Records = append(in.Records, dunlin.Record{Metric: m, Unit: "Cel", Kind: dunlin.Number, Time: now, Num: float64(i*200+7) / 10})
	}
	c.Inputs = []dunlin.Input{in}
	return entry.Append(nil, &dunlin.Entry{Shard: sh, Term: term, At: now, Changes: []dunlin.Change{c}})
}

// contestant commits bursts of one entry a shard.
type contestant struct {
	name  string
	burst func() // begins a burst; returns once another may begin
	flush func() // returns once all are committed

	rates []float64 // entries/s, by round
	used  time.Duration
	n     int
}

// BenchmarkDurable lets the host and raw synced Pebble batches of the same bytes take turns of some 20 ms, so that both see
// the same disk and the same neighbours, and reports medians and their ratio. cpu-µs is what the process used for an entry.
func BenchmarkDurable(b *testing.B) {
	dir := b.TempDir()
	all := []*contestant{rawPebble(b, dir)}
	for _, c := range []struct {
		name  string
		state bool
		depth int
	}{{"log-1", false, 1}, {"log-2", false, 2}, {"log-4", false, 4}, {"log+state-2", true, 2}} {
		all = append(all, hostOver(b, filepath.Join(dir, c.name), c.name, c.state, benchShards, c.depth))
	}
	rounds := 0
	for b.Loop() {
		for i := range all {
			all[(i+rounds)%len(all)].round(50)
		}
		rounds++
	}
	raw := all[0].median()
	for _, c := range all {
		b.ReportMetric(c.median(), c.name+"-entries/s")
		b.ReportMetric(c.median()/raw, c.name+"-ratio")
		b.ReportMetric(float64(c.used.Nanoseconds())/float64(c.n)/1000, c.name+"-cpu-µs")
	}
	b.ReportMetric(0, "ns/op")
}

func (c *contestant) round(bursts int) {
	start, used := time.Now(), cpu()
	for range bursts {
		c.burst()
	}
	c.flush()
	c.rates = append(c.rates, float64(bursts*benchShards)/time.Since(start).Seconds())
	c.used += cpu() - used
	c.n += bursts * benchShards
}

func (c *contestant) median() float64 {
	slices.Sort(c.rates)
	return c.rates[len(c.rates)/2]
}

func rawPebble(b *testing.B, dir string) *contestant {
	db, err := pebble.Open(filepath.Join(dir, "raw"), &pebble.Options{MemTableSize: 32 << 20, Logger: quiet{}})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = db.Close() })
	data := make([][]byte, benchShards)
	for sh := range data {
		data[sh] = benchEntry(dunlin.ShardID(sh), 2)
	}
	n := uint64(0)
	return &contestant{name: "raw", flush: func() {}, burst: func() {
		batch := db.NewBatch()
		for sh := range data {
			key := binary.BigEndian.AppendUint64([]byte{byte(sh >> 8), byte(sh)}, n)
			if err := batch.Set(key, data[sh], nil); err != nil {
				panic(err)
			}
		}
		n++
		if err := batch.Commit(pebble.Sync); err != nil {
			panic(err)
		}
	}}
}

type quiet struct{}

func (quiet) Infof(string, ...any)  {}
func (quiet) Errorf(string, ...any) {}
func (quiet) Fatalf(format string, args ...any) {
	panic(fmt.Sprintf(format, args...))
}

// noState applies nothing.
type noState struct{ replica.StateMachine }

func (noState) Apply([]dunlin.Committed) error { return nil }

// hostOver runs the host over the real log, and over the real state if asked to, with depth bursts under way.
func hostOver(b *testing.B, dir, name string, state bool, shards, depth int) *contestant {
	db, err := store.Open(store.Config{Dir: dir, Identity: store.Identity{Shards: benchShards}})
	if err != nil {
		b.Fatal(err)
	}
	sm := replica.StateMachine(db.State())
	if !state {
		sm = noState{sm}
	}
	owned := make(chan struct{}, benchShards)
	terms := make([]uint64, benchShards)
	cl, err := replica.Open(replica.Config{Bootstrap: true, Shards: benchShards, Log: db.Log(), StateMachine: sm, OnOwner: func(sh dunlin.ShardID, term uint64, owner bool) {
		if owner {
			terms[sh] = term
			owned <- struct{}{}
		}
	}})
	if err != nil {
		b.Fatal(err)
	}
	ctx, stop := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	wg.Go(func() { _ = cl.Run(ctx) })
	b.Cleanup(func() { stop(); wg.Wait(); _ = db.Close() })
	for range benchShards {
		<-owned
	}
	data := make([][]byte, shards)
	for sh := range data {
		data[sh] = benchEntry(dunlin.ShardID(sh), terms[sh])
	}
	free := make(chan *sync.WaitGroup, depth) // bursts under way, oldest first
	return &contestant{name: name, burst: func() {
		if len(free) == depth {
			(<-free).Wait()
		}
		left := &sync.WaitGroup{}
		left.Add(shards)
		done := func(_ uint64, err error) {
			if err != nil {
				panic(err)
			}
			left.Done()
		}
		for sh := range data {
			cl.Propose(dunlin.ShardID(sh), terms[sh], data[sh], done)
		}
		cl.Flush()
		free <- left
	}, flush: func() {
		for len(free) > 0 {
			(<-free).Wait()
		}
	}}
}

// BenchmarkLone is one proposal at a time on an idle node: what a commit takes next to a bare synced write.
func BenchmarkLone(b *testing.B) {
	dir := b.TempDir()
	db, err := pebble.Open(filepath.Join(dir, "raw"), &pebble.Options{Logger: quiet{}})
	if err != nil {
		b.Fatal(err)
	}
	defer db.Close()
	host := hostOver(b, filepath.Join(dir, "host"), "host", true, 1, 1)
	data := benchEntry(0, 2)
	var bare, whole []float64
	for b.Loop() {
		start := time.Now()
		if err := db.Set(data[:16], data, pebble.Sync); err != nil {
			b.Fatal(err)
		}
		mid := time.Now()
		host.burst()
		host.flush()
		bare, whole = append(bare, float64(mid.Sub(start).Microseconds())), append(whole, float64(time.Since(mid).Microseconds()))
	}
	slices.Sort(bare)
	slices.Sort(whole)
	b.ReportMetric(bare[len(bare)/2], "bare-µs-p50")
	b.ReportMetric(whole[len(whole)/2], "commit-µs-p50")
	b.ReportMetric(whole[len(whole)*99/100], "commit-µs-p99")
	b.ReportMetric(0, "ns/op")
}
