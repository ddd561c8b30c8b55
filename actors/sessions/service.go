package sessions

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// The methods that Serve answers.
const (
	MethodPrefix = "sess/"
	methodDo     = MethodPrefix + "do"   // a request, to the owner of its shard
	methodKick   = MethodPrefix + "kick" // to a holder
	methodHeld   = MethodPrefix + "held" // likewise: which of these do you hold?
)

// Open claims a session for a connection at this node. It fails with ErrUnavailable (also as long as nobody owns the shard)
// or ErrOverloaded.
func (s *Service) Open(ctx context.Context, key dunlin.DeviceKey, o dunlin.SessionOpen) (*dunlin.SessionOpened, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, s.cfg.OpenMax, errNobody)
	defer cancel()
	q := &request{kind: kindOpen, key: key, node: s.cfg.Self, clean: o.Clean, expiry: o.Expiry, will: o.Will, willDelay: o.WillDelay}
	if err := q.valid(); err != nil {
		return nil, err
	}
	q.epoch = s.holding(key) // clocks of owners differ
	wait, try := retryMin, s.cfg.OpenMax/tries
	for {
		a, err := s.ask(ctx, q, try)
		try = min(2*try, s.cfg.OpenMax/2)
		switch {
		case err == nil && a.status == statusHeld:
			s.kick(ctx, a.node, key, a.epoch, o.Clean)
			q.force = a.epoch
			if err := pause(ctx, 0); err != nil {
				return nil, fmt.Errorf("open session %s: %w", key, err)
			}
			continue
		case err == nil && a.status == statusDone:
			if a.volatile {
				s.hold(key, a.epoch)
			}
			return &dunlin.SessionOpened{Epoch: a.epoch, Present: a.present, Body: a.body, Exact: a.exact, Before: a.before}, nil
		case err == nil:
			err = a.err()
		}
		if !again(err) {
			return nil, fmt.Errorf("open session %s: %w", key, err)
		}
		if e := pause(ctx, wait); e != nil {
			return nil, fmt.Errorf("open session %s: %w: %w", key, e, err)
		}
		wait = min(2*wait, retryMax)
	}
}

// Save tells the shard's owner how a session stands. ErrConflict: somebody else has it.
func (s *Service) Save(ctx context.Context, n *dunlin.SessionSave) error {
	q := &request{kind: kindSave, key: n.Key, node: s.cfg.Self, epoch: n.Epoch, expiry: n.Expiry, body: n.Body, done: n.Done, fate: n.Will,
		grace: n.Grace}
	if err := q.valid(); err != nil {
		return err
	}
	a, err := s.ask(ctx, q, s.cfg.OpenMax/2)
	if err == nil {
		err = a.err()
	}
	if n.Done && (err == nil || errors.Is(err, dunlin.ErrConflict)) {
		s.unhold(n.Key, n.Epoch)
	}
	if err != nil {
		return fmt.Errorf("save session %s: %w", n.Key, err)
	}
	return nil
}

// How long a claim that nobody could grant waits before it is made again: doubling between the two.
const (
	retryMin = 20 * time.Millisecond
	retryMax = 500 * time.Millisecond
)

// tries: so much of the time for a claim its first try gets, and each one after that twice as much, up to half of the time. The
// answer of a node that does not see this one again yet gets lost, and asking once more is harmless; one that is slow is not to
// be asked again and again.
const tries = 8

var (
	errNobody   = fmt.Errorf("%w: no owner of the session's shard granted it in time", dunlin.ErrUnavailable)
	errTaken    = fmt.Errorf("%w: another connection has the session", dunlin.ErrConflict)
	errManyWait = fmt.Errorf("%w: too many sessions are being changed", dunlin.ErrOverloaded)
)

func (a *reply) err() error {
	switch a.status {
	case statusDone:
		return nil
	case statusFull:
		return errManyWait
	case statusElsewhere:
		return fmt.Errorf("%w: %w", dunlin.ErrUnavailable, dunlin.ErrNotOwner)
	}
	return errTaken
}

func again(err error) bool {
	return errors.Is(err, dunlin.ErrUnavailable) || errors.Is(err, dunlin.ErrNotOwner)
}

// pause waits, and fails with ErrUnavailable if the time is over.
func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
	if ctx.Err() != nil {
		return fmt.Errorf("%w: %w", dunlin.ErrUnavailable, context.Cause(ctx))
	}
	return nil
}

// ask brings a request to the owner of its shard: one try of at most so long, and one more where the first says.
func (s *Service) ask(ctx context.Context, q *request, try time.Duration) (reply, error) {
	shard := s.cfg.ShardOf(q.key)
	to := s.owner(shard)
	for asked := 0; ; asked++ {
		a, err := s.askNode(ctx, to, shard, q, try)
		switch {
		case err == nil && a.status != statusElsewhere:
			return a, nil
		case err != nil && !errors.Is(err, dunlin.ErrNotOwner) || asked > 0:
			return a, err
		}
		next := a.node
		if next == 0 || next == to {
			next = s.owner(shard)
		}
		if next == to {
			return a, err
		}
		to = next
	}
}

// owner returns who leads the shard, this node if it doesn't know: then the directory has the word.
func (s *Service) owner(shard dunlin.ShardID) dunlin.NodeID {
	if s.deps.Peers != nil {
		if node, _, ok := s.deps.Peers.Owner(shard); ok {
			return node
		}
	}
	return s.cfg.Self
}

func (s *Service) askNode(ctx context.Context, to dunlin.NodeID, shard dunlin.ShardID, q *request, try time.Duration) (reply, error) {
	if to == s.cfg.Self {
		a, err := s.lanes[shard].do(ctx, q)
		if err == nil {
			s.answered(ctx, q, a)
		}
		return a, err
	}
	one, cancel := context.WithTimeout(ctx, try)
	defer cancel()
	b, err := s.deps.Peers.Call(one, to, methodDo, appendRequest(nil, q))
	if err != nil {
		if one.Err() != nil && ctx.Err() == nil {
			err = fmt.Errorf("%w: %w", dunlin.ErrUnavailable, err)
		}
		return reply{}, err
	}
	return decodeReply(b)
}

// answered is the owner's part after a request: who lost a session without a row to a newer claim is told.
func (s *Service) answered(ctx context.Context, q *request, a reply) {
	if q.kind == kindNote && a.status == statusHeld {
		base := context.WithoutCancel(ctx)
		s.spawn(func() { s.kick(base, a.node, q.key, a.epoch, true) })
	}
}

// Serve answers what other nodes ask.
func (s *Service) Serve(ctx context.Context, from dunlin.NodeID, method string, body []byte) ([]byte, error) {
	switch method {
	case methodDo:
		return s.serveDo(ctx, from, body)
	case methodKick, methodHeld:
		list, err := decodeClaims(body)
		if err != nil {
			return nil, err
		}
		if method == methodHeld {
			return s.held(list), nil
		}
		for _, c := range list {
			if err := s.kickHere(ctx, c.key, c.epoch, c.renewed); err != nil {
				return nil, err
			}
		}
		return nil, nil
	}
	return nil, fmt.Errorf("%w: method %q", dunlin.ErrNotFound, method)
}

func (s *Service) serveDo(ctx context.Context, from dunlin.NodeID, body []byte) ([]byte, error) {
	q, err := decodeRequest(body)
	if err != nil {
		return nil, err
	}
	if q.kind > kindNote || q.node != from {
		return nil, fmt.Errorf("%w: session request of node %v", dunlin.ErrForbidden, from)
	}
	shard := s.cfg.ShardOf(q.key)
	a, err := s.lanes[shard].do(ctx, q)
	switch {
	case errors.Is(err, dunlin.ErrNotOwner):
		if a = (reply{status: statusElsewhere, node: s.owner(shard)}); a.node == s.cfg.Self {
			a.node = 0
		}
	case err != nil:
		return nil, err
	}
	s.answered(ctx, q, a)
	return appendReply(nil, &a), nil
}

// kick has a holder let go. If that fails, the claim that follows fences it off.
func (s *Service) kick(ctx context.Context, node dunlin.NodeID, key dunlin.DeviceKey, epoch uint64, renewed bool) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.KickMax)
	defer cancel()
	s.stats.kicks.Add(1)
	var err error
	switch {
	case node == s.cfg.Self:
		err = s.kickHere(ctx, key, epoch, renewed)
	case s.deps.Peers == nil || s.deps.Peers.Down(node):
		err = dunlin.ErrUnavailable
	default:
		_, err = s.deps.Peers.Call(ctx, node, methodKick, appendClaims(nil, []claim{{key, epoch, renewed}}))
	}
	if err != nil {
		s.stats.fenced.Add(1)
		s.logKick(ctx, node, key, err)
	}
}

func (s *Service) kickHere(ctx context.Context, key dunlin.DeviceKey, epoch uint64, renewed bool) error {
	h := s.holder.Load()
	if h == nil {
		return nil // nobody has connections here
	}
	return (*h).Kick(ctx, key, epoch, renewed)
}

// held says of each claim whether it stands here: a byte each.
func (s *Service) held(list []claim) []byte {
	h := s.holder.Load()
	b := make([]byte, len(list))
	for i, c := range list {
		if h != nil && (*h).Holds(c.key, c.epoch) {
			b[i] = 1
		}
	}
	return b
}

// hold notes a session of this node that has no row.
func (s *Service) hold(key dunlin.DeviceKey, epoch uint64) {
	shard := s.cfg.ShardOf(key)
	s.mine.Lock()
	defer s.mine.Unlock()
	h := &s.mine.byShard[shard]
	if h.epochs == nil {
		h.epochs = map[string]uint64{}
	}
	h.epochs[key.String()] = epoch
}

func (s *Service) holding(key dunlin.DeviceKey) uint64 {
	s.mine.Lock()
	defer s.mine.Unlock()
	return s.mine.byShard[s.cfg.ShardOf(key)].epochs[key.String()]
}

func (s *Service) unhold(key dunlin.DeviceKey, epoch uint64) {
	shard := s.cfg.ShardOf(key)
	s.mine.Lock()
	defer s.mine.Unlock()
	if h := &s.mine.byShard[shard]; h.epochs[key.String()] == epoch {
		delete(h.epochs, key.String())
	}
}
