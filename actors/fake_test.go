package actors

import (
	"cmp"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/device"
	"github.com/dunlin-iot/dunlin/entry"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// store is applied state in memory: what the real one does with an entry, folded by the dictionary's own rules.
type store struct {
	mu      sync.Mutex
	devices map[dunlin.DeviceKey]*dunlin.DeviceState
	rows    map[string][]byte // table/key
	entries []*dunlin.Entry
	loads   int
	fail    error // what LoadDevice says
}

func newStore() *store {
	return &store{devices: map[dunlin.DeviceKey]*dunlin.DeviceState{}, rows: map[string][]byte{}}
}

func (s *store) apply(data []byte) {
	e, err := entry.Decode(data)
	if err != nil {
		panic(err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.entries = append(s.entries, e)
	for i := range e.Changes {
		c := &e.Changes[i]
		st := s.devices[c.DeviceKey]
		if st == nil {
			st = &dunlin.DeviceState{DeviceKey: c.DeviceKey}
			s.devices[c.DeviceKey] = st
		}
		if c.Version != st.Version+uint64(len(c.Inputs)) {
			panic(fmt.Sprintf("%s: version %d after %d with %d inputs", c.DeviceKey, c.Version, st.Version, len(c.Inputs)))
		}
		d := dunlin.DeltaOf(c)
		st.Merge(&d, true)
	}
	for _, p := range e.Puts {
		s.rows[p.Table+"/"+p.Key] = p.Value
		if p.Table == dunlin.TableDevices && p.Value == nil {
			key, _ := parseKey(p.Key)
			delete(s.devices, key)
		}
	}
}

func (s *store) LoadDevice(_ dunlin.ShardID, key dunlin.DeviceKey) (*dunlin.DeviceState, bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.loads++
	st := s.devices[key]
	if s.fail != nil || st == nil {
		return nil, false, s.fail
	}
	c, err := entry.DecodeState(entry.AppendState(nil, st))
	return c, err == nil, err
}

func (s *store) TimersDue(id dunlin.ShardID, before dunlin.Time, limit int) (due []dunlin.DueTimer, next dunlin.Time, _ error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for key, st := range s.devices {
		if shardOf(key) != id {
			continue
		}
		for _, t := range st.Timers {
			due = append(due, dunlin.DueTimer{DeviceKey: key, Name: t.Name, Due: t.Due})
		}
	}
	slices.SortFunc(due, func(a, b dunlin.DueTimer) int { return cmp.Compare(a.Due, b.Due) })
	for i, t := range due {
		if t.Due >= before || i == limit {
			return due[:i], t.Due, nil
		}
	}
	return due, 0, nil
}

func (s *store) Readings(dunlin.ShardID, dunlin.ReadingsQuery) (*dunlin.ReadingsPage, error) {
	return &dunlin.ReadingsPage{}, nil
}

func (s *store) Alerts(shards []dunlin.ShardID, _ dunlin.AlertsQuery) (*dunlin.AlertsPage, error) {
	return &dunlin.AlertsPage{Next: fmt.Sprint(shards)}, nil
}

func (s *store) DeadLetters(shards []dunlin.ShardID, _ dunlin.DeadLettersQuery) ([]dunlin.DeadLetter, error) {
	return make([]dunlin.DeadLetter, len(shards)), nil
}

func (s *store) inputs() (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, e := range s.entries {
		for i := range e.Changes {
			n += len(e.Changes[i].Inputs)
		}
	}
	return n
}

// proposal is an entry that waits for its commit.
type proposal struct {
	shard dunlin.ShardID
	term  uint64
	data  []byte
	done  func(uint64, error)
}

// commit keeps a copy of the entry: its data are the proposer's again once it is done.
func (p proposal) commit(s *store) { s.apply(slices.Clone(p.data)); p.done(1, nil) }

// log is a committer. It commits each Flush's proposals with whatever commit does with them, by default at once.
type log struct {
	store   *store
	mu      sync.Mutex
	queue   []proposal
	flushes atomic.Int64
	hand    bool                              // flushed proposals stay in queue until the test takes them
	async   func(round []proposal, st *store) // instead of committing at once
}

func (l *log) Propose(id dunlin.ShardID, term uint64, data []byte, done func(uint64, error)) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.queue = append(l.queue, proposal{id, term, data, done})
}

func (l *log) Flush() {
	l.flushes.Add(1)
	if l.hand {
		return
	}
	round := l.take()
	if l.async != nil {
		l.async(round, l.store)
		return
	}
	for _, p := range round {
		p.commit(l.store)
	}
}

func (l *log) take() []proposal {
	l.mu.Lock()
	defer l.mu.Unlock()
	q := l.queue
	l.queue = nil
	return q
}

// plugin is a processor; the zero value's outcomes are empty.
type plugin struct {
	calls atomic.Int64
	f     func(domain dunlin.DomainID, stage int, now dunlin.Time, w *dunlin.Work)
	of    func(st *dunlin.Stage, work []*dunlin.Work) // before f
	err   error
}

func (p *plugin) Process(domain dunlin.DomainID, st *dunlin.Stage, stage int, now dunlin.Time, work []*dunlin.Work) error {
	p.calls.Add(1)
	if p.of != nil {
		p.of(st, work)
	}
	for _, w := range work {
		if p.f != nil {
			p.f(domain, stage, now, w)
		}
	}
	return p.err
}

// node is a Directory with everything around it.
type node struct {
	*Directory
	t      testing.TB
	store  *store
	log    *log
	plugin *plugin
	rules  map[dunlin.DomainID]*device.Rules
	slow   func(dunlin.DomainID) bool // nil: no domain is
	labels func(dunlin.DeviceKey) map[string]string
}

// open starts a node of 4 shards over a store; change may alter what it is made of.
func open(t testing.TB, st *store, change func(*node, *Config)) *node {
	n := &node{t: t, store: st, log: &log{store: st}, plugin: &plugin{}, rules: map[dunlin.DomainID]*device.Rules{
		"plain": {Domain: "plain", Register: true},
		"cold":  {Domain: "cold", Register: true, Stages: []dunlin.Stage{{Plugin: "p"}}},
		"two":   {Domain: "two", Register: true, Stages: []dunlin.Stage{{Plugin: "p"}, {Plugin: "q"}}},
		"shut":  {Domain: "shut"},
	}}
	cfg := Config{Shards: 4, ShardOf: shardOf,
		DefaultDomain: "plain", WindowMax: -1}
	if change != nil {
		change(n, &cfg)
	}
	deps := Deps{Processor: n.plugin, Committer: n.log, States: st, History: st,
		Rules:  func(_ dunlin.Tenant, d dunlin.DomainID) *device.Rules { return n.rules[d] },
		Labels: func(_ dunlin.ShardID, key dunlin.DeviceKey) map[string]string { return n.labels(key) }}
	if n.slow != nil {
		deps.Slow = func(_ dunlin.Tenant, d dunlin.DomainID) bool { return n.slow(d) }
	}
	dir, err := New(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	n.Directory = dir
	for i := range dunlin.ShardID(4) {
		n.Own(i, 1)
	}
	n.settle(func() bool { return n.owned.Load() == 4 })
	return n
}

// settle waits until something is so.
func (n *node) settle(ok func() bool) {
	n.t.Helper()
	for i := 0; !ok(); i++ {
		if i > 5000 {
			n.t.Fatal("it never came to be")
		}
		pause()
	}
}

func (n *node) close() {
	n.t.Helper()
	if err := n.Close(n.t.Context()); err != nil {
		n.t.Error(err)
	}
}

// inbox is a waiter that keeps the answers.
type inbox struct {
	mu   sync.Mutex
	got  map[uint64]dunlin.Receipt // by Tag
	all  chan struct{}
	want int
}

func newInbox(want int) *inbox {
	return &inbox{got: map[uint64]dunlin.Receipt{}, all: make(chan struct{}), want: want}
}

func (b *inbox) Done(u *dunlin.Uplink, r dunlin.Receipt) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if _, twice := b.got[u.Tag]; twice {
		panic(fmt.Sprintf("uplink %d answered twice", u.Tag))
	}
	if u.Next != nil {
		panic("an answered uplink is still chained")
	}
	b.got[u.Tag] = r
	if len(b.got) == b.want {
		close(b.all)
	}
}

func (b *inbox) wait() map[uint64]dunlin.Receipt {
	<-b.all
	return b.got
}

func (b *inbox) answers() map[uint64]dunlin.Receipt {
	b.mu.Lock()
	defer b.mu.Unlock()
	return maps.Clone(b.got)
}

func key(dev string) dunlin.DeviceKey {
	return dunlin.DeviceKey{Tenant: "default", Device: dunlin.DeviceID(dev)}
}

// shardOf spreads devices over four shards.
func shardOf(k dunlin.DeviceKey) dunlin.ShardID {
	h := fnv.New32a()
	_, _ = h.Write([]byte(k.Device))
	return dunlin.ShardID(h.Sum32() >> 7 % 4)
}

// in returns the n-th name of a device in a shard (of 4).
func in(id dunlin.ShardID, n int) string {
	for i := 0; ; i++ {
		if name := fmt.Sprint("d", i); shardOf(key(name)) == id {
			if n--; n < 0 {
				return name
			}
		}
	}
}

func uplink(dev string, tag uint64, w dunlin.Waiter) *dunlin.Uplink {
	u := &dunlin.Uplink{DeviceKey: key(dev), Waiter: w, Tag: tag}
	u.Kind, u.Received, u.MessageID = dunlin.InputTelemetry, dunlin.Time(1e15+tag), tag
	u.Sender = dunlin.Principal{Kind: dunlin.PrincipalOpen}
	u.Records = []dunlin.Record{{Metric: "temperature", Unit: "Cel", Kind: dunlin.Number, Num: float64(tag), Time: u.Received}}
	return u
}

// in a domain of its own choosing.
func uplinkIn(domain dunlin.DomainID, dev string, tag uint64, w dunlin.Waiter) *dunlin.Uplink {
	u := uplink(dev, tag, w)
	u.Sender.Domain = domain
	return u
}

// send ingests uplinks as one chain.
func (n *node) send(us ...*dunlin.Uplink) {
	for i := range us[1:] {
		us[i].Next = us[i+1]
	}
	n.Ingest(us[0])
}

// one sends an uplink and returns its receipt.
func (n *node) one(u *dunlin.Uplink) dunlin.Receipt {
	b := newInbox(1)
	u.Waiter = b
	n.Ingest(u)
	return b.wait()[u.Tag]
}

func wantErr(t testing.TB, what string, got, want error) {
	t.Helper()
	if want == nil && got != nil || !errors.Is(got, want) {
		t.Errorf("%s: got %v, want %v", what, got, want)
	}
}
