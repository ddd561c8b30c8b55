package stream

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// peer is another node as a source. Its fields are guarded by Feed.mu.
type peer struct {
	node    dunlin.NodeID
	pulling bool                    // a goroutine pulls
	cancel  context.CancelCauseFunc // of the pull under way
	since   dunlin.Time             // of the pull under way; 0: none
	turn    int                     // rotates which shard comes first: a busy one must not starve the others
	fails   int                     // in a row
	downTo  dunlin.Time             // not asked before
	slowTo  dunlin.Time             // Now does not wait for it before
	fills   chan struct{}           // size peerFillsMax: a slot each
}

// errChanged ends a waiting pull because another one is to be made.
var errChanged = errors.New("the pull is to be made anew")

// Back-off from a peer that failed, and from a replica that could not serve a shard.
const (
	downMin  = 250 * time.Millisecond
	downMax  = 8 * time.Second
	skipTime = time.Second
	// failsTold is from how many failures in a row on the log hears of it: a node that starts fails once or twice.
	failsTold = 3
	// emptyMin is how soon a pull that brought nothing may be followed by the next.
	emptyMin = 50 * time.Millisecond
)

func (f *Feed) peerLocked(node dunlin.NodeID) *peer {
	p := f.mu.peers[node]
	if p == nil {
		p = &peer{node: node, fills: make(chan struct{}, peerFillsMax)}
		f.mu.peers[node] = p
	}
	return p
}

// sourcesOf lists the other nodes with a replica.
func (f *Feed) sourcesOf(sh dunlin.ShardID) []dunlin.NodeID {
	if f.alone() {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(f.deps.Replicas.Replicas(sh)), func(n dunlin.NodeID) bool { return n == f.cfg.Self || n == 0 })
}

// assign decides for each shard that is wanted and not here which peer its tail is pulled from: the first in the order of
// Replicas that works. It returns the peers whose goroutine is to be started.
func (f *Feed) assign() (start []*peer) {
	sources := make([][]dunlin.NodeID, f.cfg.Shards)
	for i := range sources {
		sources[i] = f.sourcesOf(dunlin.ShardID(i))
	}
	now := f.cfg.Clock()
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.mu.shards {
		s := &f.mu.shards[i]
		_, wanted := f.wantedLocked(dunlin.ShardID(i), now)
		if s.fresh || !wanted {
			s.peer = nil // what its pull still brings is of no use, and does no harm
			f.clearLocked(s)
			continue
		}
		to := f.bestLocked(s, sources[i], now)
		if to == s.peer {
			continue
		}
		if to != nil {
			if s.peer != nil {
				f.metrics.moves.Inc()
			}
			to.interrupt()
		}
		s.peer = to
	}
	for i := range f.mu.shards {
		if p := f.mu.shards[i].peer; p != nil && !p.pulling {
			p.pulling = true
			start = append(start, p)
		}
	}
	f.forgetLocked(sources, now)
	return start
}

// bestLocked picks whom to ask about a shard; nil: nobody is worth it now.
func (f *Feed) bestLocked(s *shardState, sources []dunlin.NodeID, now dunlin.Time) *peer {
	for _, n := range sources {
		if p := f.peerLocked(n); now >= p.downTo && now >= s.skip[n] {
			return p
		}
	}
	return nil
}

// forgetLocked drops peers that have no replica any more.
func (f *Feed) forgetLocked(sources [][]dunlin.NodeID, now dunlin.Time) {
	if len(f.mu.peers) <= 64 {
		return
	}
	used := make(map[dunlin.NodeID]bool)
	for _, nodes := range sources {
		for _, n := range nodes {
			used[n] = true
		}
	}
	for n, p := range f.mu.peers {
		if !used[n] && !p.pulling && len(p.fills) == 0 && now >= p.downTo {
			delete(f.mu.peers, n)
		}
	}
}

// interrupt ends the peer's waiting pull. The caller holds Feed.mu.
func (p *peer) interrupt() {
	if p.cancel != nil {
		p.cancel(errChanged)
	}
}

// pull asks the peer for what follows the tails of its shards, over and over, until it has none or fails.
func (f *Feed) pull(ctx context.Context, p *peer) {
	for {
		call, req, ok := f.prepare(ctx, p)
		if !ok {
			return
		}
		began := f.cfg.Clock()
		answers, err := f.call(call, p, &req, f.cfg.Wait+f.cfg.CallTimeout)
		if err != nil && errors.Is(context.Cause(call), errChanged) {
			continue
		}
		if err != nil {
			f.stopPulling(p)
			return
		}
		f.metrics.pulls.Inc()
		if f.merge(p, &req, answers) || f.cfg.Clock().Sub(began) >= emptyMin {
			continue
		}
		// Nothing, and at once: a peer that misbehaves, or a newer pull ended this one. It must not become a busy loop.
		t := time.NewTimer(emptyMin)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
		}
	}
}

// prepare makes the peer's next pull. false: there is nothing to pull, and the goroutine is to end.
func (f *Feed) prepare(ctx context.Context, p *peer) (context.Context, pull, bool) {
	now := f.cfg.Clock()
	f.mu.Lock()
	defer f.mu.Unlock()
	req := pull{wait: f.cfg.Wait, max: f.cfg.ReplyBytes}
	for i := range f.mu.shards {
		if s := &f.mu.shards[i]; s.peer == p {
			req.from = append(req.from, position{dunlin.ShardID(i), s.tail.head})
		}
	}
	if p.cancel != nil {
		p.cancel(nil)
	}
	if len(req.from) == 0 || ctx.Err() != nil {
		p.pulling, p.cancel, p.since = false, nil, 0
		return nil, pull{}, false
	}
	p.turn = (p.turn + 1) % len(req.from)
	req.from = append(req.from[p.turn:], req.from[:p.turn]...)
	var call context.Context
	call, p.cancel = context.WithCancelCause(ctx)
	p.since = now
	return call, req, true
}

// stopPulling notes that the peer's goroutine ends because of an error: its shards look for other replicas.
func (f *Feed) stopPulling(p *peer) {
	f.mu.Lock()
	p.cancel(nil)
	p.pulling, p.cancel, p.since = false, nil, 0
	for i := range f.mu.shards {
		if s := &f.mu.shards[i]; s.peer == p {
			s.peer = nil
		}
	}
	f.mu.Unlock()
	f.Poke()
}

// merge takes over answers. It reports whether there was any progress.
func (f *Feed) merge(p *peer, req *pull, answers []answer) (progress bool) {
	asked := make(map[dunlin.ShardID]uint64, len(req.from))
	for _, at := range req.from {
		asked[at.shard] = at.next
	}
	now := f.cfg.Clock()
	look := false
	f.mu.Lock()
	for i := range answers {
		a := &answers[i]
		s := &f.mu.shards[a.shard]
		f.learnLocked(s, a, now)
		if s.peer == nil || s.fresh || s.tail.head != asked[a.shard] {
			continue // nobody wants it any more, or another peer's answer was sooner
		}
		switch a.status {
		case statusLost:
			// Those behind look for themselves; the tail begins anew at the present.
			f.clearLocked(s)
			f.markLocked(a.shard)
			progress = true
		case statusAbsent, statusStale:
			s.skipLocked(p.node, now)
			s.peer, look = nil, true
			if a.status == statusAbsent || a.next == asked[a.shard] && s.tail.head != 0 {
				break
			}
			fallthrough // what it has is as good as anybody's
		case statusOK:
			progress = progress || a.next > s.tail.head
			f.mu.tailBytes -= s.tail.bytes
			if s.tail.add(a) {
				f.markLocked(a.shard)
			}
			f.mu.tailBytes += s.tail.bytes
		}
	}
	f.boundLocked()
	f.mu.Unlock()
	if look {
		f.Poke()
	}
	return progress
}

// skipLocked leaves a replica alone for a while.
func (s *shardState) skipLocked(node dunlin.NodeID, now dunlin.Time) {
	for n, until := range s.skip {
		if now >= until {
			delete(s.skip, n)
		}
	}
	if s.skip == nil {
		s.skip = make(map[dunlin.NodeID]dunlin.Time)
	}
	s.skip[node] = now.Add(skipTime)
}

// learnLocked notes where a shard ends.
func (f *Feed) learnLocked(s *shardState, a *answer, now dunlin.Time) {
	if a.status != statusAbsent {
		s.known = max(s.known, a.head)
		s.knownAt = now
	}
}

// call asks a peer, and notes whether it works.
func (f *Feed) call(ctx context.Context, p *peer, req *pull, timeout time.Duration) ([]answer, error) {
	answers, err := f.ask(ctx, p, req, timeout)
	switch {
	case err == nil:
		f.works(p)
	case ctx.Err() == nil:
		f.failed(ctx, p, err)
	}
	return answers, err
}

// ask asks a peer. The error of a context that ended is its cause.
func (f *Feed) ask(ctx context.Context, p *peer, req *pull, timeout time.Duration) ([]answer, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, fmt.Errorf("%w: no answer within %s", dunlin.ErrUnavailable, timeout))
	defer cancel()
	body, err := f.deps.Caller.Call(ctx, p.node, MethodPull, req.append(nil))
	var answers []answer
	if err == nil {
		f.metrics.bytes.Add(float64(len(body)))
		answers, err = decodeReply(body, req)
	}
	if err != nil && ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("ask node %s: %w", p.node, err)
	}
	return answers, nil
}

func (f *Feed) works(p *peer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	p.fails, p.downTo, p.slowTo = 0, 0, 0
}

// failed puts the peer aside for a while, longer each time.
func (f *Feed) failed(ctx context.Context, p *peer, err error) {
	now := f.cfg.Clock()
	f.mu.Lock()
	told := p.fails == failsTold
	if now >= p.downTo { // several questions that fail at once are one failure
		p.downTo = now.Add(min(downMin<<min(p.fails, 10), downMax))
		p.fails++
	}
	f.mu.Unlock()
	f.metrics.failures.Inc()
	if told {
		f.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "feed: a node does not answer; its shards are read elsewhere", slog.String("node", p.node.String()), slog.Any("err", err))
	}
}
