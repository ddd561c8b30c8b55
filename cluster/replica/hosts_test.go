package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// hosts are running Hosts with disks, connected by wires.
type hosts struct {
	t      *testing.T
	w      *wires
	disks  map[uint64]*disk
	shards int
}

func newHosts(t *testing.T, shards int) *hosts {
	return &hosts{t: t, w: &wires{hosts: map[uint64]*testHost{}, cut: map[uint64]bool{}}, disks: map[uint64]*disk{}, shards: shards}
}

// start runs a node; one without voters is empty.
func (hs *hosts) start(id uint64, voters []uint64, tune func(*Config)) *testHost {
	hs.t.Helper()
	d := hs.disks[id]
	if d == nil {
		d = newDisk(id, hs.shards)
		hs.disks[id] = d
	}
	cfg := Config{Node: id, Shards: hs.shards, Log: d.log, StateMachine: d.state, Snapshots: d, Transport: wire{hs.w, id}, Fetch: hs.fetch(id),
		Bootstrap: len(voters) > 0, Voters: voters, TailBytes: 1}
	if tune != nil {
		tune(&cfg)
	}
	h := startHost(hs.t, cfg)
	h.log, h.state = d.log, d.state
	hs.w.mu.Lock()
	hs.w.hosts[id] = h
	hs.w.mu.Unlock()
	return h
}

func (hs *hosts) fetch(id uint64) Fetcher {
	return func(_ context.Context, meta dunlin.SnapshotMeta, i int) ([]byte, bool, error) {
		hs.w.mu.Lock()
		cut := hs.w.cut[id] || hs.w.cut[uint64(meta.From)]
		hs.w.mu.Unlock()
		if cut {
			return nil, false, dunlin.ErrUnavailable
		}
		return hs.disks[uint64(meta.From)].chunk(meta.ID, i)
	}
}

// until waits in a bubble, where waiting costs nothing.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for range 2000 {
		synctest.Wait()
		if ok() {
			return
		}
		<-time.After(10 * time.Millisecond)
	}
	t.Fatalf("20 s passed without: %s", what)
}

// fill commits n entries in a shard.
func (h *testHost) fill(t *testing.T, sh dunlin.ShardID, n int) {
	t.Helper()
	for i := range n {
		c := h.ask(sh, fmt.Sprint("e", i))
		h.Flush()
		if a := <-c; a.err != nil {
			t.Fatal(a.err)
		}
	}
}

// TestHostsGrowShrinkAndServe: a lone node takes two others in, one of them from a snapshot that breaks off once; leadership
// moves, reads are answered everywhere, and the node that began it all leaves.
func TestHostsGrowShrinkAndServe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := newHosts(t, 1)
		h1 := hs.start(1, []uint64{1}, func(c *Config) {
			c.TruncateEvery, c.TruncateEntriesMin, c.LagBytesMax = 100*time.Millisecond, 10, 1
		})
		h1.wait(1)
		h1.fill(t, 0, 100)
		hs.disks[1].state.flush()
		until(t, "a truncated log", func() bool { return h1.Status(0).First > 50 })
		h2 := hs.start(2, nil, nil)
		h3 := hs.start(3, nil, nil)
		if err := h2.Ensure(0); err != nil {
			t.Fatal(err)
		}
		if err := h3.Ensure(0); err != nil {
			t.Fatal(err)
		}
		ctx := t.Context()
		if err := h1.Change(ctx, 0, []ReplicaChange{{2, AddLearner}, {3, AddLearner}}); err != nil {
			t.Fatal(err)
		}
		caught := func(h *testHost) func() bool {
			return func() bool { st := h.Status(0); return st.Initialised && st.Applied == h1.Status(0).Applied }
		}
		until(t, "2 has caught up", caught(h2))
		until(t, "3 has caught up", caught(h3))
		if n := hs.disks[2].installs; n != 1 {
			t.Errorf("2 installed %d snapshots, want 1", n)
		}
		if err := h1.Change(ctx, 0, []ReplicaChange{{2, AddVoter}, {3, AddVoter}}); err != nil {
			t.Fatal(err)
		}
		h1.fill(t, 0, 3)
		for _, h := range []*testHost{h1, h2, h3} {
			if err := h.ReadIndex(ctx, 0); err != nil {
				t.Errorf("read: %v", err)
			}
			if st := h.Status(0); st.Applied < h1.Status(0).Applied-1 || st.Heard < 0 || st.Heard > time.Second {
				t.Errorf("%+v", st)
			}
		}
		if err := h2.Transfer(ctx, 0, 3); !errors.Is(err, dunlin.ErrNotOwner) {
			t.Errorf("transfer by a follower: %v", err)
		}
		h1.Abdicate(true)
		until(t, "1 leads no more", func() bool { st := h1.Status(0); return !st.Leader && st.Lead != 0 })
		now := hs.w.hosts[uint64(h1.Status(0).Lead)]
		now.wait(1)
		if err := now.Change(ctx, 0, []ReplicaChange{{1, RemoveReplica}}); err != nil {
			t.Fatal(err)
		}
		if err := h1.Destroy(ctx, 0, now.Status(0).Conf.Index); err != nil {
			t.Fatal(err)
		}
		if st := h1.Status(0); st.Present {
			t.Errorf("destroyed: %+v", st)
		}
		if err := h1.Destroy(ctx, 0, 1); err != nil {
			t.Errorf("destroyed again: %v", err)
		}
		now.fill(t, 0, 3)
		if tomb, err := parseTomb(hs.disks[1].tombs[0]); err != nil || tomb.floor < 100 {
			t.Errorf("tombstone %+v, %v", tomb, err)
		}
		if err := h1.Ensure(0); err != nil {
			t.Fatal(err)
		}
		if st := h1.Status(0); !st.Present {
			t.Errorf("recreated: %+v", st)
		}
		for _, h := range hs.w.hosts {
			h.stop()
		}
	})
}

// slowLog is a log whose fsync takes its time.
type slowLog struct {
	*memLog
	mu   sync.Mutex
	lags time.Duration
}

func (l *slowLog) set(d time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lags = d
}

func (l *slowLog) Append(rows []dunlin.LogRow, sync bool) error {
	l.mu.Lock()
	d := l.lags
	l.mu.Unlock()
	if d > 0 {
		<-time.After(d)
	}
	return l.memLog.Append(rows, sync)
}

// slowState likewise.
type slowState struct {
	*memState
	*slowLog
}

func (s *slowState) Apply(batch []dunlin.Committed) error {
	s.slowLog.mu.Lock()
	d := s.lags
	s.slowLog.mu.Unlock()
	if d > 0 {
		<-time.After(d)
	}
	return s.memState.Apply(batch)
}

// TestHostsWithSlowDisksKeepTheirOwner: writes and applies of a second are no reason to elect anybody.
func TestHostsWithSlowDisksKeepTheirOwner(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := newHosts(t, 2)
		ids := []uint64{1, 2, 3}
		logs := map[uint64]*slowLog{}
		for _, id := range ids {
			hs.start(id, ids, func(c *Config) {
				logs[id] = &slowLog{memLog: hs.disks[id].log}
				c.Log, c.StateMachine = logs[id], &slowState{hs.disks[id].state, logs[id]}
			})
		}
		var owner *testHost
		until(t, "an owner", func() bool {
			for _, h := range hs.w.hosts {
				if _, ok := h.Owned(0); ok {
					owner = h
				}
			}
			return owner != nil
		})
		term, _ := owner.Owned(0)
		for _, l := range logs {
			l.set(time.Second)
		}
		for range 5 {
			c := owner.ask(0, "slow")
			owner.Flush()
			if a := <-c; a.err != nil {
				t.Fatal(a.err)
			}
		}
		if now, ok := owner.Owned(0); !ok || now != term {
			t.Errorf("owner in term %d (%v), want still in %d", now, ok, term)
		}
		for _, l := range logs {
			l.set(0)
		}
		for _, h := range hs.w.hosts {
			h.stop()
		}
	})
}

// TestHostThatFailsHandsOver: the disk of the owner breaks, and another one owns its shards long before a timeout.
func TestHostThatFailsHandsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := newHosts(t, 2)
		ids := []uint64{1, 2, 3}
		for _, id := range ids {
			hs.start(id, ids, func(c *Config) { c.ElectionTicks = 1000 })
		}
		var owner *testHost
		for range 100 {
			<-time.After(time.Second) // timeouts are of half a minute here
			synctest.Wait()
			for _, h := range hs.w.hosts {
				if len(h.owned) == 2 {
					owner = h
				}
			}
			if owner != nil {
				break
			}
			for _, h := range hs.w.hosts {
				h.Abdicate(h.cfg.Node != 1)
			}
		}
		if owner == nil {
			t.Fatal("nobody owns both shards")
		}
		for _, h := range hs.w.hosts {
			h.Abdicate(false)
		}
		synctest.Wait()
		owner.log.mu.Lock()
		owner.log.fail = errors.New("input/output error")
		owner.log.mu.Unlock()
		c := owner.ask(0, "lost")
		owner.Flush()
		if a := <-c; !errors.Is(a.err, dunlin.ErrUnavailable) {
			t.Errorf("answer %v", a.err)
		}
		<-time.After(time.Second)
		synctest.Wait()
		owned := 0
		for _, h := range hs.w.hosts {
			if h != owner {
				owned += len(h.owned)
			}
		}
		if owned != 2 {
			t.Errorf("%d shards were taken over within a second, want 2", owned)
		}
		for _, h := range hs.w.hosts {
			h.stop()
		}
	})
}

// TestReadIndexWithoutAMajority ends with its context.
func TestReadIndexWithoutAMajority(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		hs := newHosts(t, 1)
		h := hs.start(1, []uint64{1, 2, 3}, nil)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := h.ReadIndex(ctx, 0); !errors.Is(err, dunlin.ErrUnavailable) {
			t.Errorf("read: %v, want ErrUnavailable", err)
		}
		if err := h.ReadIndex(t.Context(), 9); !errors.Is(err, dunlin.ErrInvalid) {
			t.Errorf("read of no shard: %v, want ErrInvalid", err)
		}
		ended := make(chan error, 1)
		go func() { ended <- h.ReadIndex(t.Context(), 0) }()
		synctest.Wait()
		h.stop()
		if err := <-ended; !errors.Is(err, dunlin.ErrUnavailable) {
			t.Errorf("read when the host ends: %v, want ErrUnavailable", err)
		}
	})
}
