package sessions

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// verifyAfter is how old a holding must be before its holder is asked about it: a claim's answer needs its time to get
// there.
const verifyAfter = 15 * time.Second

// dueWill is a will whose time has come.
type dueWill struct {
	shard dunlin.ShardID
	key   dunlin.DeviceKey
	epoch uint64
	text  []byte
}

// offer passes wills on that are due.
func (s *Service) offer(shard dunlin.ShardID, key string, r *row, now dunlin.Time) {
	for _, w := range r.wills {
		k, ok := cutKey(key)
		if w.at > now || !ok {
			continue
		}
		select {
		case s.due <- dueWill{shard, k, w.epoch, w.text}:
		default: // a sweep comes by
		}
	}
}

// say has a will said, and forgets it then. A node that dies in between leaves it to the next owner: the device that it
// is for takes it once.
func (s *Service) say(ctx context.Context, d dueWill) {
	h := s.holder.Load()
	if h == nil {
		return
	}
	id := claim{key: d.key, epoch: d.epoch}
	s.saying.Lock()
	defer s.saying.Unlock()
	if s.saying.now[id] || len(s.saying.now) >= saysMax {
		return
	}
	if s.spawn(func() { s.sayNow(ctx, *h, d) }) {
		s.saying.now[id] = true
	}
}

func (s *Service) sayNow(ctx context.Context, h Holder, d dueWill) {
	defer func() {
		s.saying.Lock()
		defer s.saying.Unlock()
		delete(s.saying.now, claim{key: d.key, epoch: d.epoch})
	}()
	ctx, cancel := context.WithTimeout(ctx, s.cfg.UpdateMax)
	defer cancel()
	if err := h.LastWord(ctx, d.key, d.epoch, d.text); err != nil {
		return // "not now": the next sweep tries again
	}
	s.stats.wills.Add(1)
	_, _ = s.lanes[d.shard].do(ctx, &request{kind: kindSaid, key: d.key, epoch: d.epoch})
}

// sweep looks after the shards that this node owns.
func (s *Service) sweep(ctx context.Context) {
	for i := range s.lanes {
		if ctx.Err() != nil {
			return
		}
		shard := dunlin.ShardID(i)
		s.tellOwner(ctx, shard)
		if s.owner(shard) != s.cfg.Self {
			s.lanes[i].forget()
			continue
		}
		if err := s.sweepShard(ctx, &s.lanes[i]); err != nil && !errors.Is(err, dunlin.ErrNotOwner) && ctx.Err() == nil {
			s.cfg.Log.LogAttrs(ctx, slog.LevelWarn, "sessions: sweep", slog.Int("shard", i), slog.Any("error", err))
		}
	}
}

// sweepShard looks at the next rows of a shard, and at its sessions without a row.
func (s *Service) sweepShard(ctx context.Context, l *lane) error {
	now := s.cfg.Clock()
	rows, err := s.deps.Rows.Rows(l.shard, dunlin.TableSessions, "", l.swept, s.cfg.SweepRows)
	if err != nil {
		return err
	}
	if l.swept == "" { // a round begins
		if l.verify = now.Sub(l.verified) >= s.cfg.VerifyEvery; l.verify {
			l.verified = now
		}
	}
	l.swept = ""
	if len(rows) == s.cfg.SweepRows {
		l.swept = rows[len(rows)-1].Key
	}
	ask := map[dunlin.NodeID][]claim{}
	for i := range rows {
		key, ok := cutKey(rows[i].Key)
		r, err := decodeRow(rows[i].Value)
		if err != nil || !ok {
			continue // told when its client comes
		}
		switch {
		case r.holder != 0 && s.down(r.holder):
			s.settle(ctx, l, &request{kind: kindOrphan, key: key, epoch: r.epoch})
		case r.holder != 0 && l.verify && now.Sub(r.since) > verifyAfter:
			ask[r.holder] = append(ask[r.holder], claim{key: key, epoch: r.epoch})
		case r.settle(now):
			s.settle(ctx, l, &request{kind: kindExpire, key: key})
		}
		s.offer(l.shard, rows[i].Key, r, now)
	}
	for node, list := range ask {
		s.verify(ctx, l, node, list)
	}
	if l.verify {
		s.sweepHolds(ctx, l)
	}
	return nil
}

func (s *Service) down(node dunlin.NodeID) bool {
	return node != s.cfg.Self && (s.deps.Peers == nil || s.deps.Peers.Down(node))
}

// settle puts a change of the sweep's own in the queue, without waiting for it: what fails is found again.
func (s *Service) settle(ctx context.Context, l *lane, q *request) {
	s.stats.swept.Add(1)
	s.spawn(func() {
		ctx, cancel := context.WithTimeout(ctx, s.cfg.UpdateMax)
		defer cancel()
		_, _ = l.do(ctx, q)
	})
}

// verify asks a holder about its sessions: one that was restarted has forgotten them, and nobody else would notice.
func (s *Service) verify(ctx context.Context, l *lane, node dunlin.NodeID, list []claim) {
	for len(list) > 0 {
		part := list[:min(len(list), claimsMax)]
		list = list[len(part):]
		held, err := s.askHeld(ctx, node, part)
		if err != nil {
			return // alive, they say, and doesn't answer: not for us to decide
		}
		for i, c := range part {
			if held[i] == 0 {
				s.settle(ctx, l, &request{kind: kindOrphan, key: c.key, epoch: c.epoch})
			}
		}
	}
}

var errHeld = errors.New("answer about claims")

func (s *Service) askHeld(ctx context.Context, node dunlin.NodeID, list []claim) ([]byte, error) {
	if node == s.cfg.Self {
		if s.holder.Load() == nil {
			return nil, dunlin.ErrUnavailable // not yet
		}
		return s.held(list), nil
	}
	if s.deps.Peers == nil {
		return nil, dunlin.ErrUnavailable
	}
	ctx, cancel := context.WithTimeout(ctx, s.cfg.KickMax)
	defer cancel()
	b, err := s.deps.Peers.Call(ctx, node, methodHeld, appendClaims(nil, list))
	if err == nil && len(b) != len(list) {
		err = errHeld
	}
	return b, err
}

// sweepHolds forgets sessions without a row whose holders are gone: some, and others the next time.
func (s *Service) sweepHolds(ctx context.Context, l *lane) {
	ask := map[dunlin.NodeID][]claim{}
	n := 0
	l.mu.Lock()
	for k, h := range l.mu.holds {
		if n++; n > s.cfg.SweepRows {
			break
		}
		if s.down(h.node) {
			delete(l.mu.holds, k)
		} else if key, ok := cutKey(k); ok {
			ask[h.node] = append(ask[h.node], claim{key: key, epoch: h.epoch})
		}
	}
	l.mu.Unlock()
	for node, list := range ask {
		list = list[:min(len(list), claimsMax)]
		held, err := s.askHeld(ctx, node, list)
		if err != nil {
			continue
		}
		l.mu.Lock()
		for i, c := range list {
			if k := c.key.String(); held[i] == 0 && l.mu.holds[k].epoch == c.epoch {
				delete(l.mu.holds, k)
			}
		}
		l.mu.Unlock()
	}
}

// tellOwner tells a shard's new owner which sessions without a row this node holds. Who lost one meanwhile lets go.
func (s *Service) tellOwner(ctx context.Context, shard dunlin.ShardID) {
	if s.deps.Peers == nil {
		return
	}
	owner, term, ok := s.deps.Peers.Owner(shard)
	s.mine.Lock()
	h := &s.mine.byShard[shard]
	if !ok || h.owner == owner && h.term == term || len(h.epochs) == 0 {
		if ok && len(h.epochs) == 0 {
			h.owner, h.term = owner, term
		}
		s.mine.Unlock()
		return
	}
	list := make([]claim, 0, len(h.epochs))
	for k, epoch := range h.epochs {
		if key, ok := cutKey(k); ok {
			list = append(list, claim{key: key, epoch: epoch})
		}
	}
	s.mine.Unlock()
	for _, c := range list {
		short, cancel := context.WithTimeout(ctx, s.cfg.KickMax)
		a, err := s.askNode(short, owner, shard, &request{kind: kindNote, key: c.key, node: s.cfg.Self, epoch: c.epoch}, s.cfg.OpenMax/2)
		cancel()
		switch {
		case err != nil || a.status == statusElsewhere || a.status == statusFull:
			return // it has changed again; the next sweep begins anew
		case a.status == statusConflict:
			s.unhold(c.key, c.epoch)
			s.spawn(func() { s.kick(ctx, s.cfg.Self, c.key, c.epoch, true) })
		}
	}
	s.mine.Lock()
	h.owner, h.term = owner, term
	s.mine.Unlock()
}
