package mqtt

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// Sessions keeps sessions beyond this node; *sessions.Service is one. A session is claimed by a connection (Open) and
// belongs to it until somebody else claims it: then Save fails with ErrConflict.
type Sessions interface {
	Open(ctx context.Context, key dunlin.DeviceKey, o dunlin.SessionOpen) (*dunlin.SessionOpened, error)
	Save(ctx context.Context, n *dunlin.SessionSave) error
}

// keeping is how a session gets to Sessions; part of session.mu.
//
// What the client was promised is saved before it is told (SUBACK, UNSUBACK) or when its connection ends. How far it has
// read and acknowledged is saved now and then: what is lost of that is delivered again, never skipped.
type keeping struct {
	version uint64 // of the subscriptions that are saved
	epoch   uint64 // of the claim; 0: the session is in memory alone
	moved   bool   // in keeper.moved
	queued  bool   // in keeper.queue, being saved, or waiting for its next try
	waits   bool   // … the last of these: the session's timer is set
	again   bool   // it changed while it was being saved
	done    bool   // the connection is over
	gone    bool   // it isn't this node's any more
	fate    dunlin.SessionWill
	grace   uint32
	since   dunlin.Time // when saving began to fail; 0: it didn't
	tries   int
	waiting []chan error // for the next save; each has room for one
	passed  int          // entries without news for the subscriber since it was last saved
}

const (
	keepersMax  = 64               // saves under way at a time
	saveTimeout = 5 * time.Second  // of one try
	saveRetry   = 30 * time.Second // between tries for a session that nobody has
	saveHoldMax = 10 * time.Minute // how long a session that nobody has is tried to save; then what was saved before holds
	passedMax   = 8192             // entries that a subscriber may skip before its position is saved
	saveEvery   = 2 * time.Second  // how often the position of a connected session is saved at most
	savesMax    = 1000             // … of how many of them in that time
	goneWait    = time.Second      // how long closing waits for sessions to be saved
	willGrace   = 10               // seconds that wills of a node's clients wait at least if the node itself goes
)

// keeper saves sessions: few at a time, each once at a time.
type keeper struct {
	g  *Gateway
	mu struct {
		sync.Mutex
		queue   []*session
		moved   []*session
		workers int
		swept   dunlin.Time
	}
}

// push has s saved, soon. s.mu is held.
func (k *keeper) pushLocked(s *session) {
	if s.mu.keep.queued {
		s.mu.keep.again = true
		return
	}
	s.mu.keep.queued = true
	k.enqueue(s)
}

func (k *keeper) enqueue(s *session) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.mu.queue = append(k.mu.queue, s)
	if k.mu.workers < keepersMax {
		k.mu.workers++
		k.g.work.Go(k.run)
	}
}

func (k *keeper) run() {
	for {
		k.mu.Lock()
		if len(k.mu.queue) == 0 {
			k.mu.queue = nil
			k.mu.workers--
			k.mu.Unlock()
			return
		}
		s := k.mu.queue[0]
		k.mu.queue = k.mu.queue[1:]
		k.mu.Unlock()
		k.save(s)
	}
}

// idle reports whether everything is saved.
func (k *keeper) idle() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.mu.workers == 0
}

// touchLocked notes that a connected session has moved on. s.mu is held.
func (s *session) touchLocked() {
	if kp := &s.mu.keep; kp.epoch != 0 && !kp.moved && s.mu.expiry > 0 {
		kp.moved = true
		k := &s.g.keeper
		k.mu.Lock()
		k.mu.moved = append(k.mu.moved, s)
		k.mu.Unlock()
	}
}

// sweep has sessions saved that moved on, at most savesMax of them, those first that wait longest.
func (k *keeper) sweep(now dunlin.Time) {
	k.mu.Lock()
	if now.Sub(k.mu.swept) < saveEvery {
		k.mu.Unlock()
		return
	}
	k.mu.swept = now
	n := min(len(k.mu.moved), savesMax)
	list := k.mu.moved[:n:n]
	if k.mu.moved = k.mu.moved[n:]; len(k.mu.moved) == 0 {
		k.mu.moved = nil
	}
	k.mu.Unlock()
	for _, s := range list {
		s.mu.Lock()
		s.mu.keep.moved = false
		if s.mu.conn != nil && s.mu.expiry > 0 && !s.mu.keep.gone {
			k.pushLocked(s)
		}
		s.mu.Unlock()
	}
}

// newsLocked is what is to be saved of s. s.mu is held.
func (s *session) newsLocked() *dunlin.SessionSave {
	kp := &s.mu.keep
	n := &dunlin.SessionSave{Key: s.key.rowKey(), Epoch: kp.epoch, Expiry: s.mu.expiry, Done: kp.done, Will: kp.fate, Grace: kp.grace}
	if s.mu.expiry > 0 {
		n.Body = s.recordLocked().append(nil)
	}
	return n
}

// save saves s once.
func (k *keeper) save(s *session) {
	s.mu.Lock()
	kp := &s.mu.keep
	if kp.gone {
		s.mu.Unlock()
		return
	}
	n, version := s.newsLocked(), s.mu.version
	waiting := kp.waiting
	kp.waiting, kp.again, kp.passed = nil, false, 0
	s.mu.Unlock()
	ctx, cancel := context.WithTimeout(k.g.life, saveTimeout)
	err := k.g.deps.Sessions.Save(ctx, n)
	cancel()
	k.g.stats.saves.Add(1)
	k.saved(s, n, version, waiting, err)
}

// saved follows a try.
func (k *keeper) saved(s *session, n *dunlin.SessionSave, version uint64, waiting []chan error, err error) {
	g := k.g
	g.sessions.mu.Lock()
	s.mu.Lock()
	kp := &s.mu.keep
	if err == nil && n.Body != nil {
		kp.version = version
	}
	var loser *conn
	later := false
	switch {
	case kp.gone || kp.epoch != n.Epoch: // claimed again at this node meanwhile: that is the newer word
		kp.queued = false
		if !kp.gone && (kp.again || len(kp.waiting) > 0) {
			kp.queued = true
			k.enqueue(s)
		}
	case err == nil && n.Done, err != nil && n.Done && !temporary(err):
		s.goneLocked()
	case err == nil:
		kp.since, kp.tries, kp.queued = 0, 0, false
		if kp.again || kp.done {
			kp.queued = true
			k.enqueue(s)
		}
	case errors.Is(err, dunlin.ErrConflict):
		loser = s.mu.conn
		s.goneLocked()
	case !temporary(err):
		kp.queued = false
		g.log.LogAttrs(g.life, slog.LevelWarn, "mqtt: a session can't be kept", slog.String("client", s.key.client), slog.Any("err", err))
	default:
		later = k.laterLocked(s, n)
	}
	if later { // whoever waits goes on waiting
		kp.waiting = append(waiting, kp.waiting...)
		waiting = nil
	}
	s.mu.Unlock()
	g.sessions.mu.Unlock()
	if err != nil {
		g.stats.saveFailures.Add(1)
		g.log.LogAttrs(g.life, slog.LevelDebug, "mqtt: save session", slog.String("client", s.key.client), slog.Any("err", err))
	}
	for _, w := range waiting {
		w <- err
	}
	if loser != nil {
		g.stats.takeovers.Add(1)
		g.end(loser, ending{fault: errTakenOver})
	}
}

var errTakenOver = &fault{codeTakenOver, "another connection uses this client identifier"}

// laterLocked decides about a save that failed: it is tried again, of a session that nobody has not for ever. sessions.mu
// and s.mu are held.
func (k *keeper) laterLocked(s *session, n *dunlin.SessionSave) bool {
	g, kp, now := k.g, &s.mu.keep, k.g.now()
	if kp.since == 0 {
		kp.since = now
	}
	if n.Done && now.Sub(kp.since) > saveHoldMax || g.life.Err() != nil {
		s.goneLocked()
		return false
	}
	limit := retryMax
	if n.Done {
		limit = saveRetry // there may be very many, and nobody waits; who does calls retry
	}
	wait := min(retryMin<<min(kp.tries, 10), limit)
	kp.tries++
	kp.waits = true
	g.wheel.set(&s.timer, now.Add(wait))
	return true
}

// goneLocked takes s off this node. sessions.mu and s.mu are held.
func (s *session) goneLocked() {
	s.mu.keep.gone = true
	s.mu.keep.queued = false
	s.g.wheel.stop(&s.timer)
	if f := s.mu.flow; f != nil {
		f.stop()
	}
	if s.g.sessions.mu.byKey[s.key] == s {
		delete(s.g.sessions.mu.byKey, s.key)
	}
	if s.over != nil {
		close(s.over)
		s.over = nil
	}
}

// retry is the timer of a session that could not be saved.
func (s *session) retry() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.retryLocked()
}

func (s *session) retryLocked() {
	if kp := &s.mu.keep; kp.waits && !kp.gone {
		kp.waits = false
		s.g.wheel.stop(&s.timer)
		s.g.keeper.enqueue(s)
	}
}

// keep saves s and returns when that is done; at once if s doesn't outlive its connection or is in memory alone.
func (g *Gateway) keep(ctx context.Context, s *session, c *conn) error {
	s.mu.Lock()
	if s.mu.conn != c {
		s.mu.Unlock()
		return errGone
	}
	if s.mu.keep.epoch == 0 || s.mu.expiry == 0 {
		s.mu.Unlock()
		return nil
	}
	done := make(chan error, 1)
	s.mu.keep.waiting = append(s.mu.keep.waiting, done)
	g.keeper.pushLocked(s)
	s.mu.Unlock()
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// leaveLocked is detach for a session that is kept. s.mu is held.
func (s *session) leaveLocked(e *ending) {
	kp := &s.mu.keep
	s.mu.conn = nil
	if s.mu.flow != nil {
		s.mu.flow.stop()
	}
	if kp.gone {
		return
	}
	kp.done, kp.fate, kp.grace = true, dunlin.WillForget, 0
	switch {
	case e.renewed:
		kp.fate = dunlin.WillSay
	case e.closing:
		kp.fate, kp.grace = dunlin.WillDelay, willGrace
	case e.will:
		kp.fate = dunlin.WillDelay
	}
	s.g.keeper.pushLocked(s)
}

// recordLocked is what s consists of. s.mu is held.
func (s *session) recordLocked() *record {
	r := &record{subs: s.mu.subs}
	for id := range s.mu.incoming {
		r.incoming = append(r.incoming, id)
	}
	slices.Sort(r.incoming)
	f := s.mu.flow
	if f == nil {
		return r
	}
	r.at = f.mark
	if f.start != nil {
		r.at = position{cur: f.start}
	}
	r.lastID = f.box.lastID
	for i := range f.box.n {
		it := f.box.at(i)
		r.items = append(r.items, keptItem{place: it.place, device: it.device(), kind: it.kind, acked: it.acked})
	}
	return r
}

// restore makes s what r says. exact: its last holder left it so; otherwise that one may have sent more than r knows, and
// received more: of QoS 2 ids that r has, some are released by now and name other messages, which must not be taken for
// those. A message whose PUBREC got lost is sent again as a duplicate, and its device knows it.
func (s *session) restore(r *record, exact bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.mu.subs, s.mu.keep.version = r.subs, s.mu.version
	if exact && len(r.incoming) > 0 {
		s.mu.incoming = make(map[uint16]struct{}, len(r.incoming))
		for _, id := range r.incoming {
			s.mu.incoming[id] = struct{}{}
		}
	}
	if r.at.cur == nil && len(r.subs) == 0 {
		return
	}
	f := &flow{wake: make(chan struct{}, 1), at: r.at, repeats: !exact}
	f.mark = f.at.clone()
	f.box.restore(r.lastID, r.items)
	s.mu.flow = f
}
