package sessions

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// plant is a shard's log and its state on all nodes, with one owner.
type plant struct {
	mu      sync.Mutex
	rows    map[string][]byte
	owner   dunlin.NodeID
	nodes   map[dunlin.NodeID]*member
	dead    map[dunlin.NodeID]bool
	entries int
	largest int // rows of one entry
	calls   []string
	losses  int           // so many answers get lost
	gate    chan struct{} // not nil: an entry takes one from it
	fail    error
}

// member is a node of a plant: Updater, Rows, Peers and Holder.
type member struct {
	p     *plant
	id    dunlin.NodeID
	s     *Service
	turn  sync.Mutex    // of the shard's actor
	hint  dunlin.NodeID // whom it takes for the owner; 0: whoever is
	holds map[string]*dunlin.SessionOpened
	words []string
	mute  bool // does not let go
}

func newPlant(t *testing.T, nodes int, cfg Config) (*plant, []*member) {
	p := &plant{rows: map[string][]byte{}, owner: 1, nodes: map[dunlin.NodeID]*member{}, dead: map[dunlin.NodeID]bool{}}
	var ms []*member
	for i := range nodes {
		m := &member{p: p, id: dunlin.NodeID(i + 1), holds: map[string]*dunlin.SessionOpened{}}
		c := cfg
		c.Self, c.Shards, c.ShardOf = m.id, 1, func(dunlin.DeviceKey) dunlin.ShardID { return 0 }
		if c.SweepEvery == 0 {
			c.SweepEvery = 10 * time.Millisecond
		}
		s, err := New(c, Deps{Updates: m, Rows: m, Peers: m})
		if err != nil {
			t.Fatal(err)
		}
		s.Attach(m)
		m.s, p.nodes[m.id] = s, m
		ms = append(ms, m)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); s.Run(ctx) }()
		t.Cleanup(func() { cancel(); <-done })
	}
	return p, ms
}

func (p *plant) set(f func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	f()
}

func (m *member) Update(ctx context.Context, _ dunlin.ShardID, _ *dunlin.DeviceKey,
	build func(dunlin.Time, *dunlin.DeviceState) ([]dunlin.Put, error)) error {
	m.turn.Lock()
	defer m.turn.Unlock()
	m.p.mu.Lock()
	gate, owner, fail := m.p.gate, m.p.owner, m.p.fail
	m.p.mu.Unlock()
	if owner != m.id {
		return fmt.Errorf("%w: %w", dunlin.ErrUnavailable, dunlin.ErrNotOwner)
	}
	if gate != nil {
		select {
		case <-gate:
		case <-ctx.Done():
			go build(dunlin.TimeOf(time.Now()), nil) // too late, but it comes
			return context.Cause(ctx)
		}
	}
	puts, err := build(dunlin.TimeOf(time.Now()), nil)
	if err == nil {
		err = fail
	}
	if err != nil || len(puts) == 0 {
		return err
	}
	m.p.mu.Lock()
	defer m.p.mu.Unlock()
	m.p.entries++
	m.p.largest = max(m.p.largest, len(puts))
	for _, put := range puts {
		if put.Table != dunlin.TableSessions {
			return errors.New("another table")
		}
		if put.Value == nil {
			delete(m.p.rows, put.Key)
		} else {
			m.p.rows[put.Key] = put.Value
		}
	}
	return nil
}

func (m *member) Row(_ dunlin.ShardID, _, key string) ([]byte, bool, error) {
	m.p.mu.Lock()
	defer m.p.mu.Unlock()
	b, ok := m.p.rows[key]
	return b, ok, nil
}

func (m *member) Rows(_ dunlin.ShardID, table, prefix, after string, limit int) (puts []dunlin.Put, err error) {
	m.p.mu.Lock()
	defer m.p.mu.Unlock()
	for _, k := range slices.Sorted(maps.Keys(m.p.rows)) {
		if strings.HasPrefix(k, prefix) && k > after && len(puts) < limit {
			puts = append(puts, dunlin.Put{Table: table, Key: k, Value: m.p.rows[k]})
		}
	}
	return puts, nil
}

func (m *member) Owner(dunlin.ShardID) (dunlin.NodeID, uint64, bool) {
	m.p.mu.Lock()
	defer m.p.mu.Unlock()
	if m.hint != 0 {
		return m.hint, 1, true
	}
	return m.p.owner, uint64(m.p.owner), m.p.owner != 0
}

func (m *member) Down(n dunlin.NodeID) bool {
	m.p.mu.Lock()
	defer m.p.mu.Unlock()
	return m.p.dead[n]
}

func (m *member) Call(ctx context.Context, to dunlin.NodeID, method string, body []byte) ([]byte, error) {
	m.p.mu.Lock()
	o, cut := m.p.nodes[to], m.p.dead[to] || m.p.dead[m.id]
	m.p.calls = append(m.p.calls, fmt.Sprintf("%d %s", to, method))
	lost := m.p.losses > 0
	if lost {
		m.p.losses--
	}
	m.p.mu.Unlock()
	if cut {
		return nil, dunlin.ErrUnavailable
	}
	b, err := o.s.Serve(ctx, m.id, method, body)
	if lost {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	return b, err
}

func (m *member) Kick(ctx context.Context, key dunlin.DeviceKey, epoch uint64, renewed bool) error {
	m.p.mu.Lock()
	o, mute := m.holds[key.String()], m.mute
	if o != nil && o.Epoch == epoch && !mute {
		delete(m.holds, key.String())
	}
	m.p.mu.Unlock()
	switch {
	case mute:
		<-ctx.Done()
		return ctx.Err()
	case o == nil || o.Epoch != epoch:
		return nil
	}
	return m.s.Save(ctx, &dunlin.SessionSave{Key: key, Epoch: epoch, Expiry: 100, Done: true, Will: dunlin.WillDelay,
		Body: fmt.Appendf(nil, "left by %d", m.id)})
}

func (m *member) Holds(key dunlin.DeviceKey, epoch uint64) bool {
	m.p.mu.Lock()
	defer m.p.mu.Unlock()
	o := m.holds[key.String()]
	return o != nil && o.Epoch == epoch
}

func (m *member) LastWord(_ context.Context, _ dunlin.DeviceKey, _ uint64, will []byte) error {
	m.p.mu.Lock()
	defer m.p.mu.Unlock()
	m.words = append(m.words, string(will))
	return nil
}

func name(s string) dunlin.DeviceKey {
	return dunlin.DeviceKey{Tenant: "t", Device: dunlin.DeviceID(s)}
}

func (m *member) open(t *testing.T, client string, o dunlin.SessionOpen) *dunlin.SessionOpened {
	t.Helper()
	got, err := m.s.Open(t.Context(), name(client), o)
	if err != nil {
		t.Fatal(err)
	}
	m.p.set(func() { m.holds[name(client).String()] = got })
	return got
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(10 * time.Second)
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("never: %s", what)
		}
	}
}

// TestOneHintOneRetry: a node with an old idea of who owns the shard is set right by the one it asks.
func TestOneHintOneRetry(t *testing.T) {
	p, ms := newPlant(t, 3, Config{SweepEvery: time.Hour})
	p.set(func() { p.owner, ms[2].hint = 1, 2 })
	ms[2].open(t, "c", dunlin.SessionOpen{Expiry: 100})
	p.set(func() {
		if want := []string{"2 sess/do", "1 sess/do"}; !slices.Equal(p.calls, want) {
			t.Errorf("calls %v, want %v", p.calls, want)
		}
	})
	// A save is not tried for long: its caller does that.
	p.set(func() { p.owner, p.calls = 0, nil })
	err := ms[2].s.Save(t.Context(), &dunlin.SessionSave{Key: name("c"), Epoch: 1})
	if !errors.Is(err, dunlin.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
}

// TestClaimWaitsForAnOwner: between owners a claim is made again; for ever it isn't.
func TestClaimWaitsForAnOwner(t *testing.T) {
	p, ms := newPlant(t, 2, Config{OpenMax: 200 * time.Millisecond})
	p.set(func() { p.owner = 0 })
	if _, err := ms[0].s.Open(t.Context(), name("c"), dunlin.SessionOpen{}); !errors.Is(err, dunlin.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	timer := time.AfterFunc(50*time.Millisecond, func() { p.set(func() { p.owner = 2 }) })
	defer timer.Stop()
	if _, err := ms[0].s.Open(t.Context(), name("c"), dunlin.SessionOpen{}); err != nil {
		t.Error(err)
	}
}

// TestLostAnswers: a claim is made again before its time is over, also if the answer to the second one gets lost, too.
func TestLostAnswers(t *testing.T) {
	p, ms := newPlant(t, 2, Config{OpenMax: 2 * time.Second, SweepEvery: time.Hour})
	for _, losses := range []int{1, 2} {
		p.set(func() { p.losses = losses })
		began := time.Now()
		ms[1].open(t, "c", dunlin.SessionOpen{Expiry: 100})
		if d := time.Since(began); d > time.Duration(losses)*600*time.Millisecond {
			t.Errorf("%d answers lost: the session was there after %v", losses, d)
		}
	}
}

// TestManyInOneEntry: what comes while an entry is under way goes into the next one together; more than QueueMax is refused.
func TestManyInOneEntry(t *testing.T) {
	p, ms := newPlant(t, 1, Config{QueueMax: 200, SweepEvery: time.Hour})
	gate := make(chan struct{})
	p.set(func() { p.gate = gate })
	var wg sync.WaitGroup
	errs := make(chan error, 400)
	for i := range 400 {
		wg.Go(func() {
			_, err := ms[0].s.Open(t.Context(), name(fmt.Sprint("c", i)), dunlin.SessionOpen{Expiry: 100})
			errs <- err
		})
	}
	full := 0
	l := &ms[0].s.lanes[0]
	eventually(t, "the queue is full", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.mu.queue) == 200
	})
	p.set(func() { p.gate = nil })
	close(gate)
	wg.Wait()
	close(errs)
	for err := range errs {
		if errors.Is(err, dunlin.ErrOverloaded) {
			full++
		} else if err != nil {
			t.Error(err)
		}
	}
	p.set(func() {
		if p.largest < 200 || len(p.rows)+full != 400 {
			t.Errorf("%d rows in the largest entry, %d in all, %d refused", p.largest, len(p.rows), full)
		}
	})
}

// TestAnswerOfALateEntry: an entry that is decided after everybody gave up answers nobody, and what it did holds.
func TestAnswerOfALateEntry(t *testing.T) {
	p, ms := newPlant(t, 1, Config{UpdateMax: 20 * time.Millisecond, OpenMax: 50 * time.Millisecond})
	p.set(func() { p.gate = make(chan struct{}) })
	if _, err := ms[0].s.Open(t.Context(), name("c"), dunlin.SessionOpen{Expiry: 9}); !errors.Is(err, dunlin.ErrUnavailable) {
		t.Errorf("got %v", err)
	}
	p.set(func() { p.gate = nil })
	ms[0].open(t, "c", dunlin.SessionOpen{Expiry: 9})
}

// TestHolderLetsGo: the holder is told and saves; one that can't be told is fenced off.
func TestHolderLetsGo(t *testing.T) {
	p, ms := newPlant(t, 3, Config{KickMax: 20 * time.Millisecond, SweepEvery: time.Hour})
	a := ms[0].open(t, "c", dunlin.SessionOpen{Expiry: 100})
	b := ms[1].open(t, "c", dunlin.SessionOpen{Expiry: 100})
	if !b.Present || !b.Exact || string(b.Body) != "left by 1" || b.Epoch <= a.Epoch || b.Before != 0 {
		t.Errorf("got %+v", b)
	}
	if err := ms[0].s.Save(t.Context(), &dunlin.SessionSave{Key: name("c"), Epoch: a.Epoch}); !errors.Is(err, dunlin.ErrConflict) {
		t.Errorf("the old holder's save: %v", err)
	}
	if err := ms[1].s.Save(t.Context(), &dunlin.SessionSave{Key: name("c"), Epoch: b.Epoch, Expiry: 100, Body: []byte("running")}); err != nil {
		t.Error(err)
	}
	p.set(func() { ms[1].mute = true })
	c := ms[2].open(t, "c", dunlin.SessionOpen{Expiry: 100})
	if !c.Present || c.Exact || string(c.Body) != "running" || ms[2].s.stats.fenced.Load() != 1 {
		t.Errorf("got %+v", c)
	}
	// At one node nobody is told: the gateway knows.
	d := ms[2].open(t, "c", dunlin.SessionOpen{Expiry: 100})
	if d.Before != c.Epoch || !d.Present || ms[2].s.stats.kicks.Load() != 1 {
		t.Errorf("got %+v", d)
	}
}

// TestClean: sessions that end with their connections are known to one node at a time, and cost no entry.
func TestClean(t *testing.T) {
	p, ms := newPlant(t, 2, Config{})
	for i := range 20 {
		o := ms[i%2].open(t, "c", dunlin.SessionOpen{Clean: true})
		p.set(func() {
			if other := ms[1-i%2].holds["t/c"]; other != nil {
				t.Fatalf("round %d: the other one still has it", i)
			}
		})
		if i%4 == 3 {
			if err := ms[i%2].s.Save(t.Context(), &dunlin.SessionSave{Key: name("c"), Epoch: o.Epoch, Done: true}); err != nil {
				t.Error(err)
			}
			p.set(func() { delete(ms[i%2].holds, "t/c") })
		}
	}
	p.set(func() {
		if p.entries != 0 || len(p.rows) != 0 {
			t.Errorf("%d entries, %d rows", p.entries, len(p.rows))
		}
	})
}

// TestDeadHolders: sweeps let go for the dead, end what expires, and have wills said.
func TestDeadHolders(t *testing.T) {
	p, ms := newPlant(t, 2, Config{SweepRows: 3})
	for i := range 10 {
		ms[1].open(t, fmt.Sprint("c", i), dunlin.SessionOpen{Expiry: uint32(i % 2), Will: []byte("will"), WillDelay: 0})
	}
	p.set(func() { p.dead[2] = true })
	eventually(t, "all are gone", func() bool {
		p.mu.Lock()
		defer p.mu.Unlock()
		return len(p.rows) == 0
	})
	p.set(func() {
		if len(ms[0].words) < 10 {
			t.Errorf("%d wills", len(ms[0].words))
		}
	})
}

// TestHostileCalls: a peer can't act for another, nor with bytes that aren't ours.
func TestHostileCalls(t *testing.T) {
	_, ms := newPlant(t, 2, Config{})
	s := ms[0].s
	q := &request{kind: kindOpen, key: name("c"), node: 1}
	if _, err := s.Serve(t.Context(), 2, methodDo, appendRequest(nil, q)); !errors.Is(err, dunlin.ErrForbidden) {
		t.Errorf("for another node: %v", err)
	}
	q.kind, q.node = kindOrphan, 2
	if _, err := s.Serve(t.Context(), 2, methodDo, appendRequest(nil, q)); !errors.Is(err, dunlin.ErrForbidden) {
		t.Errorf("an owner's own business: %v", err)
	}
	for _, method := range []string{methodDo, methodKick, methodHeld, "sess/else"} {
		for _, b := range []string{"", "\x01", "\x01\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", strings.Repeat("\xff", 100)} {
			if _, err := s.Serve(t.Context(), 2, method, []byte(b)); err == nil {
				t.Errorf("%s takes %q", method, b)
			}
		}
	}
	if err := s.Save(t.Context(), &dunlin.SessionSave{Key: name("c"), Body: make([]byte, bodyBytesMax+1)}); !errors.Is(err, dunlin.ErrTooLarge) {
		t.Errorf("got %v", err)
	}
}

// TestDamagedRow: it costs its session, nothing else.
func TestDamagedRow(t *testing.T) {
	p, ms := newPlant(t, 1, Config{})
	p.set(func() { p.rows["t/c"] = []byte{99, 1, 2, 3} })
	if o := ms[0].open(t, "c", dunlin.SessionOpen{Expiry: 100}); o.Present {
		t.Errorf("got %+v", o)
	}
}

func BenchmarkClaims(b *testing.B) {
	for _, expiry := range []uint32{0, 100} {
		b.Run(fmt.Sprint("expiry=", expiry), func(b *testing.B) {
			p := &plant{rows: map[string][]byte{}, owner: 1}
			m := &member{p: p, id: 1}
			s, err := New(Config{Shards: 1, ShardOf: func(dunlin.DeviceKey) dunlin.ShardID { return 0 }}, Deps{Updates: m, Rows: m})
			if err != nil {
				b.Fatal(err)
			}
			b.ReportAllocs()
			b.SetParallelism(100)
			b.RunParallel(func(pb *testing.PB) {
				key := name(fmt.Sprintf("c%p", pb))
				for pb.Next() {
					o, err := s.Open(b.Context(), key, dunlin.SessionOpen{Clean: expiry == 0, Expiry: expiry})
					if err != nil {
						b.Fatal(err)
					}
					if err := s.Save(b.Context(), &dunlin.SessionSave{Key: key, Epoch: o.Epoch, Expiry: expiry, Done: true}); err != nil {
						b.Fatal(err)
					}
				}
			})
			b.ReportMetric(float64(s.stats.changes.Load())/float64(s.stats.entries.Load()), "changes/round")
		})
	}
}
