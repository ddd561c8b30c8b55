package router

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors"
	"github.com/dunlin-iot/dunlin/actors/device"
	"github.com/dunlin-iot/dunlin/entry"
)

// world is a cluster in one process: real Directories and Routers, around a committer that knows who owns which shard in which
// term, one state that stands for all replicas, and a network with faults.
type world struct {
	t     testing.TB
	nodes []*member // node i has id i+1
	all   sync.WaitGroup
	stop  context.CancelFunc
	ctx   context.Context

	mu     sync.Mutex
	rng    *rand.Rand
	owner  [8]dunlin.NodeID // 0: nobody
	term   [8]uint64
	states map[dunlin.DeviceKey]*dunlin.DeviceState
	stored map[float64]int                // by the first record's value: how often
	order  map[dunlin.DeviceKey][]float64 // of each device, as committed

	faults faults
}

// faults are in percent.
type faults struct {
	lost, replyLost, doubled, ambiguous int
	delayMax                            time.Duration
	dead                                [8]bool // by node id: calls to it fail after a while
}

// member is one node of the world.
type member struct {
	w      *world
	id     dunlin.NodeID
	dir    *actors.Directory
	router *Router
	queue  []proposal // under w.mu

	views struct {
		sync.Mutex
		owner [8]dunlin.NodeID
		term  [8]uint64
	}
}

type proposal struct {
	shard dunlin.ShardID
	term  uint64
	data  []byte
	done  func(uint64, error)
}

func newWorld(t testing.TB, nodes int, seed uint64) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 1)), states: map[dunlin.DeviceKey]*dunlin.DeviceState{}, stored: map[float64]int{},
		order: map[dunlin.DeviceKey][]float64{}}
	w.ctx, w.stop = context.WithCancel(t.Context())
	for i := range nodes {
		m := &member{w: w, id: dunlin.NodeID(i + 1)}
		rules := &device.Rules{Domain: "plain", Register: true}
		dir, err := actors.New(actors.Config{Shards: 8, ShardOf: shardOf, DefaultDomain: "plain", WindowMax: time.Millisecond, Workers: 2},
			actors.Deps{Processor: noPlugins{}, Committer: m, States: w, Rules: func(dunlin.Tenant, dunlin.DomainID) *device.Rules { return rules }})
		if err != nil {
			t.Fatal(err)
		}
		m.dir = dir
		if m.router, err = New(Config{Self: m.id, Shards: 8, ShardOf: shardOf}, Deps{Local: dir, State: noState{}, Registry: noRegistry{}, Owners: m,
			Reads: noReads{}, Caller: m,
			MergeAlerts: func([]*dunlin.AlertsPage, dunlin.AlertsQuery) (*dunlin.AlertsPage, error) {
				return &dunlin.AlertsPage{}, nil
			}}); err != nil {
			t.Fatal(err)
		}
		dir.Attach(m.router)
		w.nodes = append(w.nodes, m)
		w.all.Go(func() { _ = m.router.Run(w.ctx) })
	}
	for sh := range dunlin.ShardID(8) {
		w.move(sh, dunlin.NodeID(int(sh)%nodes+1), true)
	}
	return w
}

// close ends the world. What is in flight is answered before.
func (w *world) close() {
	for _, m := range w.nodes {
		ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
		if err := m.router.Close(ctx); err != nil {
			w.t.Error("router:", err)
		}
		cancel()
	}
	for _, m := range w.nodes {
		if err := m.dir.Close(w.t.Context()); err != nil {
			w.t.Error("directory:", err)
		}
	}
	w.stop()
	w.all.Wait()
	<-time.After(50 * time.Millisecond) // protoactor's throttle of dead letters outlives its system
}

func (w *world) chance(percent int) bool { return percent > 0 && w.rng.IntN(100) < percent }

// move gives a shard to a node, in the next term. Nodes hear of it one after the other, the owner before whom not told first.
func (w *world) move(sh dunlin.ShardID, to dunlin.NodeID, atOnce bool) {
	w.mu.Lock()
	from := w.owner[sh]
	w.owner[sh], w.term[sh] = to, w.term[sh]+1
	term := w.term[sh]
	delays := make([]time.Duration, len(w.nodes))
	for i := range delays {
		if !atOnce {
			delays[i] = time.Duration(w.rng.Int64N(int64(60 * time.Millisecond)))
		}
	}
	w.mu.Unlock()
	for i, m := range w.nodes {
		w.all.Go(func() {
			if delays[i] > 0 {
				<-time.After(delays[i])
			}
			if m.id == from && from != to {
				m.dir.Disown(sh)
			}
			if m.id == to {
				m.dir.Own(sh, term)
			}
			m.Hint(sh, to, term)
			m.router.Changed()
		})
	}
}

// Propose implements actors.Committer.
func (m *member) Propose(sh dunlin.ShardID, term uint64, data []byte, done func(uint64, error)) {
	m.w.mu.Lock()
	defer m.w.mu.Unlock()
	m.queue = append(m.queue, proposal{sh, term, append([]byte(nil), data...), done})
}

// Flush commits what is proposed in the shard's term, a little later. Now and then the proposer is told that it is not the
// owner although the entry was committed; that is only said if the shard has another owner by then.
func (m *member) Flush() {
	w := m.w
	w.mu.Lock()
	queue := m.queue
	m.queue = nil
	delay := time.Duration(w.rng.Int64N(int64(4 * time.Millisecond)))
	w.mu.Unlock()
	w.all.Go(func() {
		<-time.After(delay)
		for _, p := range queue {
			w.mu.Lock()
			ok := w.owner[p.shard] == m.id && w.term[p.shard] == p.term
			if ok {
				w.applyLocked(p.data)
			}
			if ok && w.chance(w.faults.ambiguous) {
				w.mu.Unlock()
				w.move(p.shard, dunlin.NodeID(int(m.id)%len(w.nodes)+1), false)
				p.done(0, fmt.Errorf("%w: the term is over", dunlin.ErrNotOwner))
				continue
			}
			w.mu.Unlock()
			if ok {
				p.done(1, nil)
			} else {
				p.done(0, fmt.Errorf("%w: the term is over", dunlin.ErrNotOwner))
			}
		}
	})
}

func (w *world) applyLocked(data []byte) {
	e, err := entry.Decode(data)
	if err != nil {
		panic(err)
	}
	for i := range e.Changes {
		c := &e.Changes[i]
		st := w.states[c.DeviceKey]
		if st == nil {
			st = &dunlin.DeviceState{DeviceKey: c.DeviceKey}
			w.states[c.DeviceKey] = st
		}
		if c.Version != st.Version+uint64(len(c.Inputs)) {
			panic(fmt.Sprintf("%s: version %d after %d with %d inputs", c.DeviceKey, c.Version, st.Version, len(c.Inputs)))
		}
		for j := range c.Inputs {
			if c.Inputs[j].Flags&dunlin.FlagForwarded != 0 {
				panic("FlagForwarded in an entry")
			}
			v := c.Inputs[j].Records[0].Num
			w.stored[v]++
			w.order[c.DeviceKey] = append(w.order[c.DeviceKey], v)
		}
		d := dunlin.DeltaOf(c)
		st.Merge(&d, true)
	}
}

// LoadDevice implements actors.States.
func (w *world) LoadDevice(_ dunlin.ShardID, key dunlin.DeviceKey) (*dunlin.DeviceState, bool, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	st := w.states[key]
	if st == nil {
		return nil, false, nil
	}
	c, err := entry.DecodeState(entry.AppendState(nil, st))
	return c, err == nil, err
}

// TimersDue implements actors.States.
func (w *world) TimersDue(dunlin.ShardID, dunlin.Time, int) ([]dunlin.DueTimer, dunlin.Time, error) {
	return nil, 0, nil
}

// Owner implements Owners: as this node has heard.
func (m *member) Owner(sh dunlin.ShardID) (dunlin.NodeID, uint64, bool) {
	m.views.Lock()
	defer m.views.Unlock()
	return m.views.owner[sh], m.views.term[sh], m.views.owner[sh] != 0
}

// Hint implements Owners.
func (m *member) Hint(sh dunlin.ShardID, node dunlin.NodeID, term uint64) {
	m.views.Lock()
	defer m.views.Unlock()
	if term > m.views.term[sh] {
		m.views.owner[sh], m.views.term[sh] = node, term
	}
}

// Replicas implements Owners.
func (m *member) Replicas(dunlin.ShardID) []dunlin.NodeID { return nil }

// Voters implements Owners.
func (m *member) Voters(dunlin.ShardID) []dunlin.NodeID { return nil }

// Call implements Caller.
func (m *member) Call(context.Context, dunlin.NodeID, string, []byte) ([]byte, error) {
	return nil, dunlin.ErrUnavailable
}

// Go implements Caller, over a network that loses, delays, doubles and reorders.
func (m *member) Go(to dunlin.NodeID, method string, body []byte, done func([]byte, error)) {
	w := m.w
	w.mu.Lock()
	f := &w.faults
	lost, replyLost, copies := w.chance(f.lost) || f.dead[to], w.chance(f.replyLost), 1
	if w.chance(f.doubled) {
		copies = 2
	}
	var delays [4]time.Duration
	if f.delayMax > 0 {
		for i := range delays {
			delays[i] = time.Duration(w.rng.Int64N(int64(f.delayMax)))
		}
	}
	w.mu.Unlock()
	if lost {
		w.all.Go(func() {
			<-time.After(delays[0])
			done(nil, fmt.Errorf("%w: no way", dunlin.ErrUnavailable))
		})
		return
	}
	for i := range copies {
		w.all.Go(func() {
			<-time.After(delays[i])
			ctx, cancel := context.WithTimeout(w.t.Context(), 10*time.Second)
			defer cancel()
			reply, err := w.nodes[to-1].router.Serve(ctx, m.id, method, body)
			<-time.After(delays[2+i])
			if i > 0 {
				return // the network's own doing: nobody waits for it
			}
			if replyLost {
				reply, err = nil, fmt.Errorf("%w: the connection broke", dunlin.ErrUnavailable)
			}
			done(reply, err)
		})
	}
}

type noPlugins struct{}

func (noPlugins) Process(dunlin.DomainID, *dunlin.Stage, int, dunlin.Time, []*dunlin.Work) error {
	return nil
}

// ledger is what a sender was told: by the value that its uplinks carry.
type ledger struct {
	mu  sync.Mutex
	got map[float64][]dunlin.Receipt
	n   int
}

// Done implements dunlin.Waiter.
func (l *ledger) Done(u *dunlin.Uplink, rec dunlin.Receipt) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if u.Next != nil {
		panic("an answered uplink is still chained")
	}
	if l.got == nil {
		l.got = map[float64][]dunlin.Receipt{}
	}
	v := u.Records[0].Num
	l.got[v] = append(l.got[v], rec)
	l.n++
}

func (l *ledger) count() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.n
}

func (l *ledger) of(v float64) dunlin.Receipt {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.got[v]) == 0 {
		return dunlin.Receipt{Err: fmt.Errorf("no answer")}
	}
	return l.got[v][0]
}

// uplink makes the v-th uplink; every third is as MQTT's with QoS 1 are, with packet ids that come again, every third has an id
// of its own, and every third has none.
func uplink(dev string, v int, l *ledger) *dunlin.Uplink {
	u := &dunlin.Uplink{DeviceKey: dunlin.DeviceKey{Tenant: "default", Device: dunlin.DeviceID(dev)}, Waiter: l}
	u.Kind, u.Format, u.Received = dunlin.InputTelemetry, dunlin.FormatSenMLJSON, dunlin.Time(1_700_000_000_000_000+v)
	switch v % 3 {
	case 0:
		u.MessageID = uint64(4711 + v%1500) // an id comes again when the message before has its answer, not earlier
	case 1:
		u.MessageID, u.Flags = uint64(1_000_000+v), dunlin.FlagMayRepeat
	}
	u.Sender = dunlin.Principal{Kind: dunlin.PrincipalDevice, Tenant: "default", ID: dev}
	u.Records = []dunlin.Record{{Metric: "n", Kind: dunlin.Number, Num: float64(v), Time: u.Received}}
	return u
}

func chained(us []*dunlin.Uplink) *dunlin.Uplink {
	for i := range us[1:] {
		us[i].Next = us[i+1]
	}
	return us[0]
}
