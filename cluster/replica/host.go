package replica

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/dunlin-iot/dunlin"
	"go.etcd.io/raft/v3"
	pb "go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Host runs this node's replicas of all shards.
type Host struct {
	cfg  Config
	core *core // the loop's
	m    *metrics

	clock func() dunlin.Time

	owned []atomic.Uint64 // by shard: the term in which this node owns it, 0 if it does not
	cells []cell          // by shard: what Status tells
	took  atomic.Int64    // of writes to the log; see WriteTime

	in struct {
		sync.Mutex
		closed       bool
		proposals    []proposal
		messages     []inbound
		messageBytes int
		calls        []call
		truncations  []*truncation
		node         load64
		shards       []load64
	}
	spareProposals []proposal // the loop's; swapped with in.proposals
	spareMessages  []inbound

	wake    chan struct{} // size 1: a set flag
	started atomic.Bool
	ended   chan struct{} // closed when Run has ended all

	// replicas guards which replicas there are, against Ensure, Destroy and truncations that take their time: a token.
	replicas chan struct{} // size 1
	present  []bool        // by shard; guarded by replicas
	tombs    [][]byte      // by shard: of replicas that are out of the core and not destroyed yet; guarded by replicas

	clerk clerk // the loop's
	alarm alarm // the loop's

	writes   chan *appendBatch // to the writer; size 1: the loop never waits to hand one over
	writeOK  chan error        // from the writer; size 1: the writer never waits for the loop
	writing  *appendBatch
	applies  chan *applyBatch // likewise, to the applier
	applyOK  chan error
	applying *applyBatch
}

// call is a question to the core that is not a proposal.
type call struct {
	run    func(*core) error // an error is the host's end
	refuse func()            // called instead if the host ends before; nil: nobody waits
}

// load64 counts what is pending.
type load64 struct{ count, bytes int }

type proposal struct {
	shard dunlin.ShardID
	term  uint64
	data  []byte
	size  int
	done  func(index uint64, err error)
}

// inbound is a message of Raft's, or a frame of beats.
type inbound struct {
	shard dunlin.ShardID
	m     *pb.Message
	from  uint64
	beats []beat
}

func (m *inbound) feed(c *core) {
	if m.m != nil {
		c.step(m.shard, m.m)
	} else {
		c.stepBeats(m.from, m.beats)
	}
}

// smallMessage is one that is taken although the bytes are used up: heartbeats and votes.
const smallMessage = 1 << 10

// Open loads all groups, or gives birth to them on a new log. Nothing moves before Run.
func Open(cfg Config) (*Host, error) {
	cfg.setDefaults()
	if err := cfg.validate(); err != nil {
		return nil, err
	}
	groups, err := load(&cfg)
	if err != nil {
		return nil, err
	}
	h := &Host{
		cfg: cfg, clock: monotonic(), owned: make([]atomic.Uint64, cfg.Shards), cells: make([]cell, cfg.Shards), wake: make(chan struct{}, 1),
		ended: make(chan struct{}), replicas: make(chan struct{}, 1), present: make([]bool, cfg.Shards), tombs: make([][]byte, cfg.Shards),
		writes: make(chan *appendBatch, 1), writeOK: make(chan error, 1),
		applies: make(chan *applyBatch, 1), applyOK: make(chan error, 1),
	}
	h.in.shards = make([]load64, cfg.Shards)
	if h.m, err = newMetrics(h, cfg.Metrics); err != nil {
		return nil, err
	}
	for i, g := range groups {
		if g != nil {
			g.cell, h.present[i] = &h.cells[i], true
		}
	}
	h.core = newCore(&h.cfg, groups)
	return h, nil
}

// Propose asks for an entry in a shard's log, on behalf of its owner in the given term. It never blocks. Nothing is written
// before the next Flush, or before a turn begins for another reason. The host copies data when the turn begins: it must not
// change before done is called.
//
// done is called exactly once, possibly before Propose returns, otherwise from the host's loop, which it must not block:
//
//	err nil                    the entry is committed in this term at index, and applied here
//	dunlin.ErrNotOwner         this node does not own the shard in this term, or lost it before the entry was committed;
//	                           the entry may yet be committed by a later owner
//	dunlin.ErrOverloaded       too many proposals are pending; the entry will not be committed
//	dunlin.ErrUnavailable      the host is closing or failed; the entry may or may not survive
//	dunlin.ErrTooLarge, dunlin.ErrInvalid   the entry can't be proposed
func (h *Host) Propose(sh dunlin.ShardID, term uint64, data []byte, done func(index uint64, err error)) {
	if err := h.queue(sh, term, data, done); err != nil {
		h.m.refused(err)
		done(0, err)
	}
}

func (h *Host) queue(sh dunlin.ShardID, term uint64, data []byte, done func(index uint64, err error)) error {
	switch {
	case int(sh) >= h.cfg.Shards || len(data) == 0:
		return fmt.Errorf("%w: propose %d bytes to shard %d of %d", dunlin.ErrInvalid, len(data), sh, h.cfg.Shards)
	case len(data) > h.cfg.EntryBytesMax:
		return fmt.Errorf("%w: entry of %d bytes, want at most %d", dunlin.ErrTooLarge, len(data), h.cfg.EntryBytesMax)
	}
	h.in.Lock()
	defer h.in.Unlock()
	node, shard := &h.in.node, &h.in.shards[sh]
	switch {
	case h.in.closed:
		return dunlin.ErrUnavailable
	case node.count >= h.cfg.NodePendingMax || node.bytes+len(data) > h.cfg.NodePendingBytesMax,
		shard.count >= h.cfg.PendingMax || shard.bytes+len(data) > h.cfg.PendingBytesMax:
		return dunlin.ErrOverloaded
	}
	node.count, node.bytes = node.count+1, node.bytes+len(data)
	shard.count, shard.bytes = shard.count+1, shard.bytes+len(data)
	h.in.proposals = append(h.in.proposals, proposal{sh, term, data, len(data), done})
	return nil
}

// Flush wakes the host: all that was proposed so far goes into one log batch with one fsync.
func (h *Host) Flush() {
	select {
	case h.wake <- struct{}{}:
	default:
	}
}

// Owned returns the term in which this node owns the shard, and whether it does.
func (h *Host) Owned(sh dunlin.ShardID) (term uint64, ok bool) {
	if int(sh) >= len(h.owned) {
		return 0, false
	}
	term = h.owned[sh].Load()
	return term, term != 0
}

// Receive takes a message that another node's Transport was given for this one. It never blocks; what can't be queued is
// lost, which Raft expects of a network.
func (h *Host) Receive(sh dunlin.ShardID, data []byte) error {
	in, err := parseInbound(&h.cfg, sh, data)
	if err != nil {
		return err
	}
	h.in.Lock()
	full := h.in.closed || len(h.in.messages) >= h.cfg.MessagesMax ||
		len(data) > smallMessage && h.in.messageBytes+len(data) > h.cfg.MessagesBytesMax
	if !full {
		h.in.messages = append(h.in.messages, in)
		h.in.messageBytes += len(data)
	}
	h.in.Unlock()
	if full {
		h.m.lost.Inc()
		return dunlin.ErrOverloaded
	}
	h.Flush()
	return nil
}

func parseInbound(cfg *Config, sh dunlin.ShardID, data []byte) (in inbound, err error) {
	if isBeats(data) {
		in.from, in.beats, err = parseBeats(cfg, data)
	} else {
		in.shard = sh
		in.m, err = parseMessage(cfg, sh, data)
	}
	return in, err
}

// parseMessage reads a message from a peer for this node.
func parseMessage(cfg *Config, sh dunlin.ShardID, data []byte) (*pb.Message, error) {
	m := &pb.Message{}
	if err := proto.Unmarshal(data, m); err != nil {
		return nil, fmt.Errorf("%w: raft message: %w", dunlin.ErrInvalid, err)
	}
	if err := checkMessage(m); err != nil {
		return nil, fmt.Errorf("%w: %w of shard %d", dunlin.ErrInvalid, err, sh)
	}
	if int(sh) >= cfg.Shards || m.GetTo() != cfg.Node || m.GetFrom() == cfg.Node || m.GetFrom() == raft.None || raft.IsLocalMsgTarget(m.GetFrom()) {
		return nil, fmt.Errorf("%w: raft message %s from %d to %d for shard %d", dunlin.ErrInvalid, m.GetType(), m.GetFrom(), m.GetTo(), sh)
	}
	return m, nil
}

// Run drives the groups until ctx ends or the log or the state machine fails, and returns once all it started has ended.
// What is being written when ctx ends is still applied and acknowledged; all else that is pending gets ErrUnavailable.
// Run may be called once.
func (h *Host) Run(ctx context.Context) error {
	if h.started.Swap(true) {
		return errors.New("replica host: Run was called twice")
	}
	defer close(h.ended)
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(h.writer)
	wg.Go(h.applier)
	wg.Go(func() { h.maintain(ctx) })
	h.clerk = clerk{cfg: &h.cfg, m: h.m, slots: make(chan struct{}, h.cfg.FetchesMax), spawn: wg.Go, stop: map[dunlin.ShardID]context.CancelFunc{},
		last: map[dunlin.ShardID]chan struct{}{}, post: func(run func(*core) error) { h.call(call{run: run}) }}
	err := h.loop(ctx)
	h.close(err)
	cancel()
	close(h.writes)
	close(h.applies)
	wg.Wait()
	if err != nil {
		h.cfg.Fatal(err)
	}
	return err
}

// call hands a question to the loop. It returns false if the host has ended.
func (h *Host) call(c call) bool {
	h.in.Lock()
	closed := h.in.closed
	if !closed {
		h.in.calls = append(h.in.calls, c)
	}
	h.in.Unlock()
	if !closed {
		h.Flush()
	}
	return !closed
}

// writer appends to the log beside the loop.
func (h *Host) writer() {
	for b := range h.writes {
		h.writeOK <- h.write(b)
	}
}

// applier applies beside the loop, where others wait for this node's heartbeats: a state that stalls must not depose it.
func (h *Host) applier() {
	for b := range h.applies {
		h.applyOK <- h.doApply(b)
	}
}

func (h *Host) write(b *appendBatch) error {
	start := h.cfg.Clock()
	if err := b.write(&h.cfg); err != nil {
		return err
	}
	took := h.cfg.Clock().Sub(start)
	h.m.wrote(b, took)
	if b.sync {
		old := h.took.Load()
		h.took.Store(old + (int64(took)-old)/8)
	}
	return nil
}

// WriteTime is how long synced writes to the log take these days, smoothed over some ten of them; 0: there was none.
func (h *Host) WriteTime() time.Duration { return time.Duration(h.took.Load()) }

func (b *appendBatch) write(cfg *Config) error {
	if len(b.rows) == 0 {
		return nil
	}
	if err := cfg.Log.Append(b.rows, b.sync); err != nil {
		return fmt.Errorf("append to log: %w", err)
	}
	return nil
}

// loop is the node's one turn after the other.
func (h *Host) loop(ctx context.Context) (err error) {
	defer caught(&err)
	defer h.alarm.stop()
	for {
		if err := h.turn(ctx); err != nil {
			return err
		}
		h.alarm.plan(h.core, h.clock)
		select {
		case <-h.wake:
		case err := <-h.writeOK:
			if err := h.wrote(err); err != nil {
				return err
			}
		case err := <-h.applyOK:
			if err := h.appliedBeside(err); err != nil {
				return err
			}
		case <-h.alarm.c:
			// What came in while the loop was busy was in time.
			if err := h.gather(); err != nil {
				return err
			}
			h.alarm.rung(h.core, h.clock)
		case <-ctx.Done():
			return h.drain()
		}
	}
}

// alarm wakes the loop for the next tick in which there is something to do.
type alarm struct {
	t  *time.Timer
	c  <-chan time.Time // nil: no tick is needed
	in int              // ticks from core.lastTick to the one that it rings for
	at uint64           // core.ticks when it was set
}

// plan sets the alarm after a turn.
func (a *alarm) plan(c *core, clock func() dunlin.Time) {
	if !c.ticking() {
		a.stop()
		c.lastTick = 0
		return
	}
	in := a.in
	switch {
	case a.c == nil: // it rang, or was off
		if in = 1; c.lastTick == 0 {
			c.at(clock())
			c.lastTick = c.now
		}
		if !c.stirred {
			in = c.nap()
		}
	case c.stirred:
		in = 1
	case c.ticks != a.at:
		in = c.nap()
	}
	if a.c != nil && in == a.in {
		return
	}
	a.in, a.at = in, c.ticks
	wait := time.Duration(max(c.lastTick+dunlin.Time(in)*c.every()-clock(), 0)) * time.Microsecond
	if a.t == nil {
		a.t = time.NewTimer(wait)
	} else {
		a.t.Reset(wait)
	}
	a.c = a.t.C
}

// rung counts the ticks that it rang for.
func (a *alarm) rung(c *core, clock func() dunlin.Time) {
	a.c = nil
	c.at(clock())
	c.tickAfter(a.in)
	a.in = 0
}

// woken is called when the loop goes on for another reason.
func (a *alarm) woken(c *core) {
	if a.in > 1 {
		a.in -= c.pass(a.in - 1)
	}
}

func (a *alarm) stop() {
	if a.c != nil {
		a.t.Stop()
		a.c, a.in = nil, 0
	}
}

// turn works until there is nothing to do but wait.
func (h *Host) turn(ctx context.Context) error {
	for {
		if err := h.gather(); err != nil {
			return err
		}
		if err := h.core.ready(); err != nil {
			return err
		}
		h.send()
		// Where others wait for heartbeats nothing that may stall is done in the loop.
		beside := h.core.ticking()
		var apply *applyBatch
		if h.applying == nil {
			apply = h.core.takeApply()
		}
		if h.writing == nil {
			if err := h.startWrite(beside || apply != nil); err != nil {
				return err
			}
		}
		switch {
		case apply != nil && beside:
			h.applying = apply
			h.applies <- apply
		case apply != nil:
			if err := h.apply(apply); err != nil {
				return err
			}
		}
		for _, o := range h.core.takeOrders() {
			h.clerk.do(ctx, o)
		}
		h.deliver()
		if len(h.core.dirty) == 0 || h.writing != nil || h.applying != nil && h.core.full() {
			h.send()
			return nil
		}
	}
}

// startWrite writes the next batch: beside the loop if the loop has something else to do, in it otherwise, which saves two
// switches between goroutines.
func (h *Host) startWrite(beside bool) error {
	b := h.core.takeAppend()
	switch {
	case b == nil:
		return nil
	case len(b.rows) == 0: // nothing but answers to what is on disk already
		return h.core.written(b)
	case beside:
		h.writing = b
		h.writes <- b
		return nil
	}
	if err := h.write(b); err != nil {
		return err
	}
	return h.core.written(b)
}

// wrote ends the write beside the loop. What gathered meanwhile goes to the disk first: the loop has enough to do with what
// the last write committed, and the disk should not wait for that.
func (h *Host) wrote(err error) error {
	b := h.writing
	h.writing = nil
	if err != nil {
		return err
	}
	if len(h.core.append.rows) > 0 {
		if err := h.startWrite(true); err != nil {
			return err
		}
	}
	return h.core.written(b)
}

func (h *Host) doApply(b *applyBatch) error {
	start := h.cfg.Clock()
	if err := b.apply(&h.cfg); err != nil {
		return err
	}
	h.m.applied(b, h.cfg.Clock().Sub(start))
	return nil
}

func (b *applyBatch) apply(cfg *Config) error {
	if err := cfg.StateMachine.Apply(b.entries); err != nil {
		return fmt.Errorf("apply to state: %w", err)
	}
	return nil
}

func (h *Host) apply(b *applyBatch) error {
	if err := h.doApply(b); err != nil {
		return err
	}
	return h.core.applied(b)
}

// appliedBeside ends the apply beside the loop.
func (h *Host) appliedBeside(err error) error {
	b := h.applying
	h.applying = nil
	if err != nil {
		return err
	}
	return h.core.applied(b)
}

func (h *Host) send() {
	if s := h.core.takeSends(); len(s) > 0 && h.cfg.Transport != nil {
		h.m.sent.Add(float64(len(s)))
		h.cfg.Transport.Send(s)
	}
}

// gather feeds the core with what came in. Messages go first: a proposal that an old owner made must meet them.
func (h *Host) gather() error {
	h.in.Lock()
	ps, ms, cs, ts := h.in.proposals, h.in.messages, h.in.calls, h.in.truncations
	h.in.proposals, h.in.messages, h.in.calls, h.in.truncations = h.spareProposals, h.spareMessages, nil, nil
	h.in.messageBytes = 0
	h.in.Unlock()
	if len(ms) > 0 || h.core.lastTick != 0 {
		h.core.at(h.clock())
		h.alarm.woken(h.core)
	}
	for i := range ms {
		ms[i].feed(h.core)
	}
	for _, p := range ps {
		h.core.propose(p)
	}
	for i, c := range cs {
		if err := c.run(h.core); err != nil {
			for _, c := range cs[i+1:] {
				c.drop()
			}
			return err
		}
	}
	for _, t := range ts {
		t.allow(h.core)
	}
	h.spareProposals, h.spareMessages = recycle(ps), recycle(ms)
	return nil
}

func (c *call) drop() {
	if c.refuse != nil {
		c.refuse()
	}
}

// recycle empties a slice for its next use, unless a burst made it huge.
func recycle[T any](s []T) []T {
	if cap(s) > 4096 {
		return nil
	}
	clear(s)
	return s[:0]
}

// deliver tells what became of proposals and ownerships.
func (h *Host) deliver() {
	events := h.core.takeEvents()
	if len(events) == 0 {
		return
	}
	h.in.Lock()
	for i := range events {
		if e := &events[i]; e.done != nil {
			n, s := &h.in.node, &h.in.shards[e.shard]
			n.count, n.bytes = n.count-1, n.bytes-e.size
			s.count, s.bytes = s.count-1, s.bytes-e.size
		}
	}
	h.in.Unlock()
	for i := range events {
		switch e := &events[i]; {
		case e.done != nil && e.err != nil:
			h.m.refused(e.err)
		case e.owner:
			h.m.owners.Inc()
		}
		events[i].tell(&h.cfg, h.owned)
	}
	clear(events)
}

// tell calls whom it concerns.
func (e *event) tell(cfg *Config, owned []atomic.Uint64) {
	switch {
	case e.done != nil:
		e.done(e.index, e.err)
	case e.reply != nil:
		e.reply(e.err)
	case e.conf != nil:
		cfg.OnConf(e.shard, *e.conf)
	case e.leader:
		cfg.OnLeader(e.shard, e.term, dunlin.NodeID(e.lead))
	case e.owner:
		owned[e.shard].Store(e.term)
		cfg.OnOwner(e.shard, e.term, true)
	default:
		owned[e.shard].Store(0)
		cfg.OnOwner(e.shard, e.term, false)
	}
}

// drain ends the write that is under way, and the one gathered behind it, and acknowledges what they committed.
func (h *Host) drain() error {
	for h.writing != nil || h.applying != nil {
		var err error
		select {
		case err = <-h.writeOK:
			err = h.wrote(err)
		case err = <-h.applyOK:
			err = h.appliedBeside(err)
		}
		if err != nil {
			return err
		}
	}
	if err := h.core.ready(); err != nil {
		return err
	}
	h.send()
	for apply := h.core.takeApply(); apply != nil; apply = h.core.takeApply() {
		if err := h.apply(apply); err != nil {
			return err
		}
	}
	return nil
}

// close refuses everything from now on, answers all that is pending, and tells the other replicas to take over.
func (h *Host) close(err error) {
	h.in.Lock()
	h.in.closed = true
	h.in.Unlock()
	h.core.farewell()
	h.send()
	h.in.Lock()
	ps, cs, ts := h.in.proposals, h.in.calls, h.in.truncations
	h.in.proposals, h.in.messages, h.in.calls, h.in.truncations = nil, nil, nil, nil
	h.in.Unlock()
	for _, t := range ts {
		t.refuse()
	}
	for _, c := range cs {
		c.drop()
	}
	for _, p := range ps {
		h.core.events = append(h.core.events, event{shard: p.shard, done: p.done, err: dunlin.ErrUnavailable, size: p.size})
	}
	h.core.close()
	h.deliver()
}
