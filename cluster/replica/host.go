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

	owned []atomic.Uint64 // by shard: the term in which this node owns it, 0 if it does not

	in struct {
		sync.Mutex
		closed      bool
		proposals   []proposal
		messages    []inbound
		truncations []*truncation
		node        load64
		shards      []load64
	}
	spareProposals []proposal // the loop's; swapped with in.proposals
	spareMessages  []inbound

	wake    chan struct{} // size 1: a set flag
	started atomic.Bool

	truncated []uint64 // maintain's; by shard

	writes  chan *appendBatch // to the writer; size 1: the loop never waits to hand one over
	writeOK chan error        // from the writer; size 1: the writer never waits for the loop
	writing *appendBatch
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

type inbound struct {
	shard dunlin.ShardID
	m     *pb.Message
}

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
		cfg: cfg, owned: make([]atomic.Uint64, cfg.Shards), wake: make(chan struct{}, 1),
		writes: make(chan *appendBatch, 1), writeOK: make(chan error, 1),
	}
	h.in.shards = make([]load64, cfg.Shards)
	if h.m, err = newMetrics(h, cfg.Metrics); err != nil {
		return nil, err
	}
	h.truncated = make([]uint64, cfg.Shards)
	for i, g := range groups {
		h.truncated[i] = g.st.first - 1
	}
	h.core = newCore(cfg.Node, groups)
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
	m := &pb.Message{}
	if err := proto.Unmarshal(data, m); err != nil {
		return fmt.Errorf("%w: raft message: %w", dunlin.ErrInvalid, err)
	}
	if int(sh) >= h.cfg.Shards || m.GetTo() != h.cfg.Node || m.GetFrom() == h.cfg.Node || m.GetFrom() == raft.None ||
		raft.IsLocalMsgTarget(m.GetFrom()) || raft.IsLocalMsg(m.GetType()) {
		return fmt.Errorf("%w: raft message %s from %d to %d for shard %d", dunlin.ErrInvalid, m.GetType(), m.GetFrom(), m.GetTo(), sh)
	}
	h.in.Lock()
	full := h.in.closed || len(h.in.messages) >= h.cfg.MessagesMax
	if !full {
		h.in.messages = append(h.in.messages, inbound{sh, m})
	}
	h.in.Unlock()
	if full {
		return dunlin.ErrOverloaded
	}
	h.Flush()
	return nil
}

// Run drives the groups until ctx ends or the log or the state machine fails, and returns once all it started has ended.
// What is being written when ctx ends is still applied and acknowledged; all else that is pending gets ErrUnavailable.
// Run may be called once.
func (h *Host) Run(ctx context.Context) error {
	if h.started.Swap(true) {
		return errors.New("replica host: Run was called twice")
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(h.writer)
	wg.Go(func() { h.maintain(ctx) })
	err := h.loop(ctx)
	h.close(err)
	cancel()
	close(h.writes)
	wg.Wait()
	if err != nil {
		h.cfg.Fatal(err)
	}
	return err
}

// writer appends to the log beside the loop.
func (h *Host) writer() {
	for b := range h.writes {
		h.writeOK <- h.write(b)
	}
}

func (h *Host) write(b *appendBatch) error {
	start := h.cfg.Clock()
	if err := h.cfg.Log.Append(b.rows, b.sync); err != nil {
		return fmt.Errorf("append to log: %w", err)
	}
	h.m.wrote(b, h.cfg.Clock().Sub(start))
	return nil
}

// loop is the node's one turn after the other.
func (h *Host) loop(ctx context.Context) (err error) {
	defer func() {
		if r := recover(); r != nil {
			re, ok := r.(readError)
			if !ok {
				panic(r)
			}
			err = re
		}
	}()
	var ticker *time.Ticker
	var ticks <-chan time.Time
	for {
		if err := h.turn(); err != nil {
			return err
		}
		switch ticking := h.core.ticking(); {
		case ticking && ticker == nil:
			ticker = time.NewTicker(h.cfg.TickEvery)
			defer ticker.Stop()
			ticks = ticker.C
		case ticking && ticks == nil:
			ticker.Reset(h.cfg.TickEvery)
			ticks = ticker.C
		case !ticking && ticks != nil:
			ticker.Stop()
			ticks = nil
		}
		select {
		case <-h.wake:
		case err := <-h.writeOK:
			if err := h.wrote(err); err != nil {
				return err
			}
		case <-ticks:
			h.core.tick()
		case <-ctx.Done():
			return h.drain()
		}
	}
}

// turn works until there is nothing to do but wait.
func (h *Host) turn() error {
	for {
		h.gather()
		if err := h.core.ready(); err != nil {
			return err
		}
		h.send()
		apply := h.core.takeApply()
		if h.writing == nil {
			if err := h.startWrite(apply != nil); err != nil {
				return err
			}
		}
		if apply != nil {
			if err := h.apply(apply); err != nil {
				return err
			}
		}
		h.deliver()
		if len(h.core.dirty) == 0 || h.writing != nil {
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

func (h *Host) apply(b *applyBatch) error {
	start := h.cfg.Clock()
	if err := h.cfg.StateMachine.Apply(b.entries); err != nil {
		return fmt.Errorf("apply to state: %w", err)
	}
	h.m.applied(b, h.cfg.Clock().Sub(start))
	return h.core.applied(b)
}

func (h *Host) send() {
	if s := h.core.takeSends(); len(s) > 0 && h.cfg.Transport != nil {
		h.cfg.Transport.Send(s)
	}
}

// gather feeds the core with what came in. Messages go first: a proposal that an old owner made must meet them.
func (h *Host) gather() {
	h.in.Lock()
	ps, ms, ts := h.in.proposals, h.in.messages, h.in.truncations
	h.in.proposals, h.in.messages, h.in.truncations = h.spareProposals, h.spareMessages, nil
	h.in.Unlock()
	for _, m := range ms {
		h.core.step(m.shard, m.m)
	}
	for _, p := range ps {
		h.core.propose(p)
	}
	for _, t := range ts {
		t.allow(h.core)
	}
	h.spareProposals, h.spareMessages = recycle(ps), recycle(ms)
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
		case e.done != nil:
			if e.err != nil {
				h.m.refused(e.err)
			}
			e.done(e.index, e.err)
		case e.owner:
			h.owned[e.shard].Store(e.term)
			h.cfg.OnOwner(e.shard, e.term, true)
		default:
			h.owned[e.shard].Store(0)
			h.cfg.OnOwner(e.shard, e.term, false)
		}
	}
	clear(events)
}

// drain ends the write that is under way, and the one gathered behind it, and acknowledges what they committed.
func (h *Host) drain() error {
	for h.writing != nil {
		if err := h.wrote(<-h.writeOK); err != nil {
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

// close refuses everything from now on, and answers all that is pending.
func (h *Host) close(err error) {
	h.in.Lock()
	h.in.closed = true
	h.in.Unlock()
	if h.writing != nil && err != nil { // the writer is not to be left with an answer nobody takes
		<-h.writeOK
		h.writing = nil
	}
	h.in.Lock()
	ps, ts := h.in.proposals, h.in.truncations
	h.in.proposals, h.in.messages, h.in.truncations = nil, nil, nil
	h.in.Unlock()
	for _, t := range ts {
		t.refuse()
	}
	for _, p := range ps {
		h.core.events = append(h.core.events, event{shard: p.shard, done: p.done, err: dunlin.ErrUnavailable, size: p.size})
	}
	h.core.close()
	h.deliver()
}
