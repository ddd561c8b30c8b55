// Package actors runs the devices: one protoactor actor for each shard that this node owns, with the shard's devices as
// its cells. It takes uplinks from the gateways, works them off in turns, has the plugins called once for each batch, and
// answers when what came of it is committed.
//
//	gateway ──Ingest──▶ mailbox ──▶ shard actor's turn: Accept · plugins · Propose ──entry──▶ committer
//	   ◀────Done────── waiter  ◀── shard actor: Apply, answer  ◀─────────────done──────────────┘
//
// Invariants:
//   - A shard's cells are touched by one goroutine at a time: whoever runs its mailbox (mailbox.run).
//   - An uplink is answered exactly once, and with success only after its entry was committed and applied.
//   - A device has at most one change on its way; a shard's activations of a term begin after all turns of an earlier one
//     have come back.
//   - Between Ingest and its answer an uplink holds a reservation; nothing here grows without one.
//
// Part of the runtime; no compatibility promise before v1.
package actors

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/asynkron/protoactor-go/actor"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/actors/device"
	"github.com/dunlin-iot/dunlin/actors/trial"
	"github.com/dunlin-iot/dunlin/entry"
)

// Config says how a Directory works. Shards and ShardOf must be given.
type Config struct {
	Shards  int                                   // of the cluster, 1 to 65,536
	ShardOf func(dunlin.DeviceKey) dunlin.ShardID // where a device lives; below Shards

	DefaultDomain dunlin.DomainID // of unknown devices whose sender's credential names none; "": they are refused

	WindowMax time.Duration // how long an uplink may wait for others to share its commit; 0: 4 ms, negative: not at all
	Workers   int           // goroutines that run shard actors; 0: GOMAXPROCS

	MailboxEvents int   // uplinks of a shard between Ingest and answer; 0: 4,096
	MailboxBytes  int64 // their bytes; 0: 2 MiB
	CellsMax      int   // active devices on this node; 0: 200,000
	CellBytesMax  int64 // their memory, estimated; 0: 256 MiB

	// EntryVersion is the version of entries that every node of the cluster reads; nil: entry.BaseVersion.
	EntryVersion func() uint32
	// Refuse, if it returns an error, refuses all uplinks with it: the disk is nearly full and nobody can take over. nil: never.
	Refuse func() error

	Clock   func() dunlin.Time    // nil: the system's
	Log     *slog.Logger          // nil: none
	Metrics prometheus.Registerer // nil: none
}

// Bounds of one entry.
const (
	turnUplinksMax = 512
	turnBytesMax   = 1 << 20
	turnTimersMax  = 256
	flyingMax      = 4 // turns of a shard in flight
)

func (c *Config) complete() error {
	if c.Shards < 1 || c.Shards > 1<<16 || c.ShardOf == nil {
		return fmt.Errorf("%w: actors need Shards (%d) and ShardOf", dunlin.ErrInvalid, c.Shards)
	}
	if c.WindowMax == 0 {
		c.WindowMax = 4 * time.Millisecond
	}
	c.WindowMax = max(c.WindowMax, 0)
	if c.Workers <= 0 {
		c.Workers = runtime.GOMAXPROCS(0)
	}
	if c.MailboxEvents <= 0 {
		c.MailboxEvents = 4096
	}
	if c.MailboxBytes <= 0 {
		c.MailboxBytes = 2 << 20
	}
	if c.CellsMax <= 0 {
		c.CellsMax = 200_000
	}
	if c.CellBytesMax <= 0 {
		c.CellBytesMax = 256 << 20
	}
	if c.EntryVersion == nil {
		c.EntryVersion = func() uint32 { return entry.BaseVersion }
	}
	if c.Refuse == nil {
		c.Refuse = func() error { return nil }
	}
	if c.Clock == nil {
		c.Clock = func() dunlin.Time { return dunlin.TimeOf(time.Now()) }
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return nil
}

// Processor runs plugins: *plugins.Host.
type Processor interface {
	// Process runs one stage of a domain's pipeline on one shard's batch and fills each Work's Outcome, whose memory is the
	// caller's then. It errs only if the host itself is closing.
	Process(domain dunlin.DomainID, st *dunlin.Stage, stage int, now dunlin.Time, work []*dunlin.Work) error
}

// Committer makes entries durable: *cluster.Cluster.
type Committer interface {
	// Propose queues an entry and never blocks. done is called exactly once, from any goroutine, after the entry was
	// applied; or with an error, and then the entry neither has nor will have an effect in that term as long as this node
	// owns the shard in it. data is the caller's again when done is called, and stays as it is until then.
	Propose(shard dunlin.ShardID, term uint64, data []byte, done func(index uint64, err error))
	// Flush tells that everything proposed so far should go to the log together, now.
	Flush()
}

// States is the applied state: *store.State.
type States interface {
	LoadDevice(shard dunlin.ShardID, key dunlin.DeviceKey) (*dunlin.DeviceState, bool, error)
	// TimersDue returns armed timers due before a moment, and when the next one is due after those (0: none).
	TimersDue(shard dunlin.ShardID, before dunlin.Time, limit int) ([]dunlin.DueTimer, dunlin.Time, error)
}

// History is what was: *store.State.
type History interface {
	Readings(shard dunlin.ShardID, q dunlin.ReadingsQuery) (*dunlin.ReadingsPage, error)
	Alerts(shards []dunlin.ShardID, q dunlin.AlertsQuery) (*dunlin.AlertsPage, error)
	DeadLetters(shards []dunlin.ShardID, q dunlin.DeadLettersQuery) ([]dunlin.DeadLetter, error)
}

// Deps are the rooms that a Directory works with.
type Deps struct {
	Processor Processor
	Committer Committer
	States    States
	History   History
	// Rules returns what holds in a domain now; nil if there is no such domain. It must not block.
	Rules func(t dunlin.Tenant, d dunlin.DomainID) *device.Rules
	// Slow says whether a domain's plugins take so long that its turns are to be taken beside others': plugins.Host.Busy. nil: never.
	Slow func(t dunlin.Tenant, d dunlin.DomainID) bool
	// Labels returns a device's labels, for trials that select by them; nil: devices have none.
	Labels func(shard dunlin.ShardID, key dunlin.DeviceKey) map[string]string
	Trials *trial.Book // what trials count; nil: a book of its own
}

// Directory is this node's shard actors. It implements dunlin.Ingestor and dunlin.Inspector.
type Directory struct {
	cfg    Config
	deps   Deps
	system *actor.ActorSystem
	parent *actor.PID
	beat   *beat
	shards []shard
	met    *metrics
	logs   logLimit

	elsewhere atomic.Pointer[Elsewhere] // nil: what is not owned here is refused

	lanes    sync.WaitGroup // goroutines of lanes
	turns    sync.Pool      // of *turn
	owned    atomic.Int64   // shards
	active   atomic.Int64   // cells
	entering atomic.Int64   // Ingest calls that may still post
	closing  atomic.Bool
	drained  chan struct{} // a token: some uplinks were answered while closing
}

var (
	_ dunlin.Ingestor  = (*Directory)(nil)
	_ dunlin.Inspector = (*Directory)(nil)
)

// New starts a Directory that owns nothing yet: see Own.
func New(cfg Config, deps Deps) (*Directory, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	if deps.Trials == nil {
		deps.Trials = new(trial.Book)
	}
	d := &Directory{cfg: cfg, deps: deps, drained: make(chan struct{}, 1)}
	d.turns.New = func() any { return new(turn) }
	met, err := newMetrics(cfg.Metrics, d)
	if err != nil {
		return nil, fmt.Errorf("metrics of actors: %w", err)
	}
	d.met = met
	d.beat = newBeat(cfg.WindowMax, cfg.Workers, deps.Committer.Flush, d.alarm)
	d.shards = make([]shard, cfg.Shards)
	for i := range d.shards {
		d.shards[i].init(d, dunlin.ShardID(i))
	}
	// MetricsProvider stays nil: protoactor would register a callback for each spawn, for ever. The throttle's interval is
	// for how long a goroutine of its own outlives a dead letter. What it says about panics the mailbox says better.
	d.system = actor.NewActorSystem(
		actor.WithLoggerFactory(func(*actor.ActorSystem) *slog.Logger { return slog.New(warnings{cfg.Log.Handler()}) }),
		actor.WithDeadLetterRequestLogging(false),
		actor.WithDeadLetterThrottleInterval(10*time.Millisecond))
	d.system.ProcessRegistry.RegisterAddressResolver(d.resolve)
	d.beat.start()
	d.parent, err = d.system.Root.SpawnNamed(actor.PropsFromProducer(
		func() actor.Actor { return &shardsActor{dir: d} },
		actor.WithDispatcher(d.beat),
		actor.WithSupervisor(actor.RestartingSupervisorStrategy())), "shards")
	if err != nil {
		d.beat.close()
		return nil, fmt.Errorf("spawn the shards' parent: %w", err)
	}
	return d, nil
}

// warnings is a log handler that leaves out what is less than a warning.
type warnings struct{ slog.Handler }

// Enabled implements slog.Handler.
func (w warnings) Enabled(ctx context.Context, l slog.Level) bool {
	return l >= slog.LevelWarn && w.Handler.Enabled(ctx, l)
}

// System returns the node's actor system.
func (d *Directory) System() *actor.ActorSystem { return d.system }

// Own makes this node run the shard's devices: it leads the shard's group in that term and has applied all there was before.
func (d *Directory) Own(shard dunlin.ShardID, term uint64) {
	d.system.Root.Send(d.parent, own{shard: shard, term: term})
}

// Disown ends what Own began: uplinks of the shard are refused from now on.
func (d *Directory) Disown(shard dunlin.ShardID) {
	d.shards[shard].open.Store(false)
	d.system.Root.Send(d.parent, disown{shard: shard})
}

// Owned returns the term in which this node takes the shard's uplinks, and whether it does.
func (d *Directory) Owned(shard dunlin.ShardID) (term uint64, ok bool) {
	s := &d.shards[shard]
	term = s.taking.Load()
	return term, s.open.Load()
}

// Holds reports whether this node has uplinks of the shard that are not answered: in its mailbox, its cells, or proposed.
func (d *Directory) Holds(shard dunlin.ShardID) bool { return d.shards[shard].box.events.Load() > 0 }

// Post takes uplinks of one shard as Ingest does, but without asking Elsewhere whether it holds older ones: they are those, or
// they are other nodes'. It returns what it did not take because this node does not own the shard any more.
func (d *Directory) Post(shard dunlin.ShardID, first *dunlin.Uplink) (left *dunlin.Uplink) {
	d.entering.Add(1)
	defer d.entering.Add(-1)
	s, n := &d.shards[shard], int64(0)
	var err error
	for u := first; u != nil && left == nil; {
		next := u.Next
		if err == nil {
			err = d.fault()
		}
		switch {
		case err == nil && !s.open.Load():
			left = u
		case err == nil && s.reserve(u):
			s.box.post(u)
			n++
		default: // what is behind an uplink that is refused must not be before it, when that comes again
			if err == nil {
				err = errMailbox
			}
			u.Next = nil
			d.tell(u, refusal(err))
		}
		u = next
	}
	if n > 0 {
		d.beat.posted(n)
	}
	return left
}

// Ingest implements dunlin.Ingestor. With an Elsewhere, uplinks of shards that this node does not own go there.
func (d *Directory) Ingest(first *dunlin.Uplink) {
	d.entering.Add(1)
	n, passed := int64(0), false
	for u := first; u != nil; {
		next := u.Next // from here on u may be answered, and reused, at any time
		switch d.admit(u) {
		case posted:
			n++
		case passedOn:
			passed = true
		}
		u = next
	}
	if n > 0 {
		d.beat.posted(n)
	}
	if passed {
		(*d.elsewhere.Load()).Flush()
	}
	d.entering.Add(-1)
}

// What admit did with an uplink.
const (
	answered = iota
	posted
	passedOn
)

// admit takes an uplink, or hands it to Elsewhere: what this node does not own, and what must not pass older uplinks of the shard
// that are still there although it does.
func (d *Directory) admit(u *dunlin.Uplink) int {
	s := &d.shards[d.cfg.ShardOf(u.DeviceKey)]
	e := d.elsewhere.Load()
	err := d.fault()
	switch {
	case errors.Is(err, errClosing):
	case e != nil && (*e).Holds(s.id), !s.open.Load():
		if e != nil {
			u.Next = nil
			if (*e).Take(s.id, u) {
				return passedOn
			}
		}
		err = errNotOwner
	case err != nil:
	case !s.reserve(u):
		err = errMailbox
	default:
		s.box.post(u)
		return posted
	}
	u.Next = nil
	d.tell(u, refusal(err))
	return answered
}

// fault is why no uplinks are to be taken now.
func (d *Directory) fault() error {
	if d.closing.Load() {
		return errClosing
	}
	return d.cfg.Refuse()
}

func (s *shard) reserve(u *dunlin.Uplink) bool {
	return s.box.reserve(cost(u), int64(s.dir.cfg.MailboxEvents), s.dir.cfg.MailboxBytes)
}

// Elsewhere is where uplinks and questions go whose shard this node does not own: *router.Router.
type Elsewhere interface {
	// Take takes an uplink over, with the duty to have its Waiter told, or returns false: then it is refused. It must not block.
	Take(shard dunlin.ShardID, u *dunlin.Uplink) bool
	// TakeBack is Take for an uplink that waited here when the shard went; it came before all of its sender's that Take was given
	// since, none of which may be sent anywhere as long as Holds of this Directory says that there are more such. tried says that it was proposed and may be committed all the same.
	TakeBack(shard dunlin.ShardID, u *dunlin.Uplink, tried bool) bool
	// Holds reports whether uplinks that Take or TakeBack took over are not answered and not back. It is asked for every uplink.
	Holds(shard dunlin.ShardID) bool
	// Flush tells that no more is coming together with what Take took over. It must not block.
	Flush()
	// AskTwin has answer called exactly once, from any goroutine, with the device's committed twin.
	AskTwin(key dunlin.DeviceKey, answer func(*dunlin.Twin, error))
}

// Attach gives the directory where to send what it does not own.
func (d *Directory) Attach(e Elsewhere) { d.elsewhere.Store(&e) }

// passBack offers Elsewhere an uplink that this node would refuse for not being the owner any more.
func (d *Directory) passBack(shard dunlin.ShardID, u *dunlin.Uplink, tried bool) bool {
	e := d.elsewhere.Load()
	return e != nil && !d.closing.Load() && (*e).TakeBack(shard, u, tried)
}

// tell answers an uplink: the one place where waiters are called.
func (d *Directory) tell(u *dunlin.Uplink, r dunlin.Receipt) {
	d.met.answered(r)
	if u.Waiter != nil {
		u.Waiter.Done(u, r)
	}
}

// cost is how many bytes an uplink holds in its shard's mailbox.
func cost(u *dunlin.Uplink) int64 {
	n := 256 + len(u.Payload) + 72*len(u.Records)
	for i := range u.Records {
		n += len(u.Records[i].Str)
	}
	return int64(n)
}

// The refusals, made once.
var (
	errClosing  = fmt.Errorf("%w: this node is closing", dunlin.ErrUnavailable)
	errNotOwner = fmt.Errorf("%w: %w", dunlin.ErrUnavailable, dunlin.ErrNotOwner)
	errMailbox  = fmt.Errorf("%w: the shard's mailbox is full", dunlin.ErrOverloaded)
	errFailed   = fmt.Errorf("%w: the shard's actor failed and restarts", dunlin.ErrUnavailable)
)

func refusal(err error) dunlin.Receipt { return dunlin.Receipt{Err: err, RetryAfterSeconds: 1} }

// quota returns what a shard's cells may number and take: its part of the node's budget. Devices are spread evenly.
func (d *Directory) quota() (cells int, bytes int64) {
	owned := max(d.owned.Load(), 1)
	return max(d.cfg.CellsMax/int(owned), 1), max(d.cfg.CellBytesMax/owned, 1)
}

// alarm enlists the shards whose device timers are due, and says when to ask for those of the others.
func (d *Directory) alarm() bool {
	now, next, fires := d.cfg.Clock(), dunlin.Time(0), false
	for i := range d.shards {
		s := &d.shards[i]
		switch due := dunlin.Time(s.due.Load()); {
		case due == 0 || !s.open.Load():
		case due <= now:
			d.beat.enlistTurn(&s.box)
			fires = true
		case next == 0 || due < next:
			next = due
		}
	}
	if next != 0 {
		d.beat.remind(next.Sub(now))
	}
	return fires
}

// Close refuses new uplinks and waits for the commits in flight; when ctx ends first, what is left is told ErrUnavailable.
// The committer must still run meanwhile.
func (d *Directory) Close(ctx context.Context) error {
	if d.closing.Swap(true) {
		return nil
	}
	err := d.drain(ctx)
	// The actors stop while there is still somebody to run them; what they leave behind is answered below.
	if stop := d.system.Root.StopFuture(d.parent).Wait(); stop != nil && err == nil {
		err = fmt.Errorf("stop shard actors: %w", stop)
	}
	d.beat.close()
	d.lanes.Wait()
	for i := range d.shards {
		d.shards[i].bury()
	}
	d.system.Shutdown()
	d.met.close()
	return err
}

// drain waits until every uplink is answered.
func (d *Directory) drain(ctx context.Context) error {
	tick := time.NewTicker(time.Millisecond) // for Ingest calls that end; answers say so themselves
	defer tick.Stop()
	for d.entering.Load() > 0 || d.outstanding() > 0 {
		select {
		case <-d.drained:
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("drain %d uplinks: %w", d.outstanding(), context.Cause(ctx))
		}
	}
	return nil
}

func (d *Directory) outstanding() (n int64) {
	for i := range d.shards {
		n += d.shards[i].box.events.Load()
	}
	return n
}

// shardsActor is the parent of the shard actors: it spawns them, and its supervision restarts one that panics.
type shardsActor struct{ dir *Directory }

// Receive implements actor.Actor.
func (a *shardsActor) Receive(ctx actor.Context) {
	switch m := ctx.Message().(type) {
	case own:
		if !a.dir.closing.Load() { // a child that is spawned while the parent stops would keep it from ever having stopped
			ctx.Send(a.child(ctx, m.shard), m)
		}
	case disown:
		if pid := a.dir.shards[m.shard].pid; pid != nil {
			ctx.Send(pid, m)
		}
	}
}

// child returns the shard's actor. Once spawned it stays: without a term it costs nothing but its refusals.
func (a *shardsActor) child(ctx actor.Context, id dunlin.ShardID) *actor.PID {
	s := &a.dir.shards[id]
	if s.pid == nil {
		pid, err := ctx.SpawnNamed(actor.PropsFromProducer(
			func() actor.Actor { return &shardActor{s} },
			actor.WithDispatcher(a.dir.beat),
			actor.WithMailbox(func() actor.Mailbox { return &s.box })), strconv.Itoa(int(id)))
		if err != nil {
			panic(fmt.Sprintf("spawn the actor of shard %d: %v", id, err))
		}
		s.pid = pid
	}
	return s.pid
}
