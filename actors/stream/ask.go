package stream

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// fill is what was found of a shard that is neither here nor in a tail.
type fill struct {
	shard dunlin.ShardID
	items []dunlin.FeedItem
	upTo  uint64
	err   error // ErrCursorLost: nobody keeps it; errAway: nobody who might has it now
	lost  bool  // with errAway: those that were reached do not keep it
}

var errAway = errors.New("no replica that could have it is reachable")

// gapRequest is what a follower misses.
type gapRequest struct {
	shard  dunlin.ShardID
	next   uint64
	device *dunlin.DeviceKey
	local  error // what the replica here said about it
}

// fill asks the shard's replicas, one after the other, for what is at next.
func (f *Feed) fill(ctx context.Context, g *gapRequest) fill {
	sh, next := g.shard, g.next
	r := fill{shard: sh, upTo: next, err: errAway, lost: errors.Is(g.local, dunlin.ErrCursorLost)}
	away := false // somebody may have it who was not reached, or has not come so far
	for _, node := range f.sourcesOf(sh) {
		a, err := f.fillFrom(ctx, node, &pull{max: f.cfg.ReplyBytes, device: g.device, from: []position{{sh, next}}})
		switch {
		case ctx.Err() != nil:
			r.err = context.Cause(ctx)
			return r
		case err != nil:
			away = true
		case a.status == statusLost:
			r.lost = true
		case a.status == statusAbsent:
		case a.next > next:
			r.items, r.upTo, r.err = a.items, a.next, nil
			f.metrics.fills.Inc()
			return r
		default:
			away = true
		}
	}
	switch {
	case away:
	case r.lost:
		r.err = lost(sh, next)
	case g.local != nil: // nobody else has the shard
		r.err = g.local
	}
	return r
}

func lost(sh dunlin.ShardID, next uint64) error {
	return fmt.Errorf("entry %d of shard %d: %w", next, sh, dunlin.ErrCursorLost)
}

// fillFrom asks one node about one shard.
func (f *Feed) fillFrom(ctx context.Context, node dunlin.NodeID, req *pull) (*answer, error) {
	now := f.cfg.Clock()
	f.mu.Lock()
	p := f.peerLocked(node)
	down := now < p.downTo
	f.mu.Unlock()
	if down {
		return nil, errAway
	}
	select {
	case p.fills <- struct{}{}:
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	defer func() { <-p.fills }()
	answers, err := f.call(ctx, p, req, f.cfg.CallTimeout)
	if err != nil {
		return nil, err
	}
	if len(answers) != 1 {
		return nil, errAway
	}
	f.mu.Lock()
	f.learnLocked(&f.mu.shards[req.from[0].shard], &answers[0], now)
	f.mu.Unlock()
	return &answers[0], nil
}

// Now implements dunlin.Feed. A shard with a replica here that is up to date ends where that does. About the others those who
// have them are asked, unless what is known is no older than Config.HeadAge or is being pulled right now. Whoever does not
// answer in time is believed to be where it was last known to be: what was committed does not go back, so this is never ahead.
func (f *Feed) Now(ctx context.Context) (dunlin.Cursor, error) {
	f.look()
	began := f.cfg.Clock()
	for rounds := 0; ; rounds++ {
		missing := f.unknown()
		if len(missing) == 0 || rounds > 0 && (!slices.ContainsFunc(missing, f.unheard) || f.cfg.Clock().Sub(began) >= f.cfg.HeadWait) {
			break
		}
		if err := f.round(ctx, missing); err != nil {
			return nil, err
		}
	}
	return f.position()
}

// round asks for the ends of shards, or waits until another's round is over. A round of which nothing was heard is followed
// by a pause.
func (f *Feed) round(ctx context.Context, missing []dunlin.ShardID) error {
	mine, done := f.beginRound()
	if !mine {
		select {
		case <-done:
			return nil
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	f.askHeads(ctx, missing)
	f.endRound(done)
	if slices.ContainsFunc(missing, f.unheard) {
		pause := time.NewTimer(roundPause)
		defer pause.Stop()
		select {
		case <-pause.C:
		case <-ctx.Done():
		}
	}
	return context.Cause(ctx)
}

// slowTime is how long Now does not wait for a node that did not answer in time.
const slowTime = 2 * time.Second

// roundPause is between rounds for shards of which nothing was ever heard.
const roundPause = 200 * time.Millisecond

// unheard tells whether nothing is known of a shard.
func (f *Feed) unheard(sh dunlin.ShardID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.mu.shards[sh].known == 0 && !f.mu.shards[sh].present
}

// prime asks where the shards end that are elsewhere and of which nothing was heard for long, so that there is something to
// fall back on when their nodes go away, and connections to them are up when somebody subscribes.
func (f *Feed) prime(ctx context.Context) {
	now := f.cfg.Clock()
	missing := f.unknown()
	if !slices.ContainsFunc(missing, func(sh dunlin.ShardID) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		s := &f.mu.shards[sh]
		return s.known == 0 || now.Sub(s.knownAt) >= f.cfg.HeadEvery
	}) {
		return
	}
	if mine, done := f.beginRound(); mine {
		f.askHeads(ctx, missing)
		f.endRound(done)
	}
}

// position puts together what is known.
func (f *Feed) position() (dunlin.Cursor, error) {
	c := make(dunlin.Cursor, f.cfg.Shards)
	f.mu.Lock()
	for i := range c {
		if f.mu.shards[i].present {
			c[i] = 1
		}
	}
	f.mu.Unlock()
	for i := range c {
		if c[i] != 0 {
			c[i] = f.deps.Local.Head(dunlin.ShardID(i))
		}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range c {
		s := &f.mu.shards[i]
		if s.present { // of a replica that came or went meanwhile the head says nothing
			s.known = max(s.known, c[i])
		}
		if c[i] = max(s.known, s.tail.head); c[i] == 0 {
			return nil, fmt.Errorf("where shard %d ends: %w: no node with a replica of it has answered yet", i, dunlin.ErrUnavailable)
		}
	}
	return c, nil
}

// unknown lists the shards whose end is to be asked for.
func (f *Feed) unknown() (out []dunlin.ShardID) {
	if f.alone() {
		return nil
	}
	now := f.cfg.Clock()
	f.mu.Lock()
	defer f.mu.Unlock()
	for i := range f.mu.shards {
		s := &f.mu.shards[i]
		pulled := s.peer != nil && s.peer.since != 0 && s.tail.head != 0
		if !s.fresh && !pulled && (s.known == 0 || now.Sub(s.knownAt) > f.cfg.HeadAge) {
			out = append(out, dunlin.ShardID(i))
		}
	}
	return out
}

// beginRound begins a round of asking, or tells whom to wait for.
func (f *Feed) beginRound() (mine bool, done chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.mu.asking != nil {
		return false, f.mu.asking
	}
	f.mu.asking = make(chan struct{})
	return true, f.mu.asking
}

func (f *Feed) endRound(done chan struct{}) {
	f.mu.Lock()
	f.mu.asking = nil
	f.mu.Unlock()
	close(done)
}

// askHeads asks for the ends of shards: of each the best replica, and where that fails or is not up to date, once more of the
// next best.
func (f *Feed) askHeads(ctx context.Context, missing []dunlin.ShardID) {
	missing = slices.Clone(missing)
	tried := make(map[position]bool) // a node (as next) was asked about a shard
	for range 2 {
		by := make(map[*peer]*pull)
		patient := make(map[*peer]bool)
		for _, sh := range missing {
			p := f.headSource(sh, tried)
			if p == nil {
				continue
			}
			tried[position{sh, uint64(p.node)}] = true
			if by[p] == nil {
				by[p] = &pull{max: 1}
			}
			by[p].from = append(by[p].from, position{shard: sh})
			patient[p] = patient[p] || f.unheard(sh)
		}
		var wg sync.WaitGroup
		for p, req := range by {
			timeout := f.cfg.HeadTimeout
			if patient[p] { // there is nothing else to go by, and the first call to a node takes longer than others
				timeout = f.cfg.CallTimeout
			}
			wg.Go(func() { f.askHead(ctx, p, req, timeout) })
		}
		wg.Wait()
		missing = slices.DeleteFunc(missing, f.headKnown)
		if len(missing) == 0 || ctx.Err() != nil {
			return
		}
	}
}

func (f *Feed) headKnown(sh dunlin.ShardID) bool {
	now := f.cfg.Clock()
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &f.mu.shards[sh]
	return s.known != 0 && now.Sub(s.knownAt) <= f.cfg.HeadAge
}

func (f *Feed) headSource(sh dunlin.ShardID, tried map[position]bool) *peer {
	now := f.cfg.Clock()
	nodes := f.sourcesOf(sh)
	f.mu.Lock()
	defer f.mu.Unlock()
	s := &f.mu.shards[sh]
	for _, n := range nodes {
		if p := f.peerLocked(n); (now >= p.downTo && now >= p.slowTo || s.known == 0 && !s.present) && !tried[position{sh, uint64(n)}] {
			return p
		}
	}
	return nil
}

// askHead asks one node. One that is too slow for this may be good enough to be pulled from: it is only not waited for again
// for a while.
func (f *Feed) askHead(ctx context.Context, p *peer, req *pull, timeout time.Duration) {
	answers, err := f.ask(ctx, p, req, timeout)
	now := f.cfg.Clock()
	f.mu.Lock()
	defer f.mu.Unlock()
	if err != nil {
		if ctx.Err() == nil {
			p.slowTo = now.Add(slowTime)
		}
		return // others are asked, or what is known is good enough
	}
	p.slowTo = 0
	for i := range answers {
		f.learnLocked(&f.mu.shards[answers[i].shard], &answers[i], now)
	}
}

// backoff is how long a follower leaves a shard alone whose entries nobody could give it.
func backoff(fails int) time.Duration { return min(downMin<<min(fails, 10), 5*time.Second) }
