package mqtt

import (
	"sync"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// sessionKey names a session. The principal is part of it: a client identifier is only a client's own word, and must not
// get it at another sender's session.
type sessionKey struct {
	tenant dunlin.Tenant
	kind   dunlin.PrincipalKind
	owner  string
	client string
}

// session is what outlives a connection (§4.1): subscriptions, unacknowledged messages both ways, a delayed will. With
// Deps.Sessions it is here only while a connection has it and until it is saved (keep.go), and wills are said by whoever
// looks after the row. Without, it is in this node's memory, and ends with that.
//
// Locks are taken in the order conn.mu, sessions.mu, session.mu, wheel.mu.
type session struct {
	key   sessionKey
	g     *Gateway
	timer timer         // delayed will and expiry, while no connection has it; or the next try to save it
	over  chan struct{} // closed when a kept session leaves this node; guarded by sessions.mu

	mu struct {
		sync.Mutex
		conn     *conn // who has it; everyone else is fenced off
		expiry   uint32
		endsAt   dunlin.Time         // with no connection: when it goes; 0: never
		incoming map[uint16]struct{} // QoS 2 packet ids that are committed and wait for their PUBREL
		will     *lastWord           // delayed
		willAt   dunlin.Time
		subs     []subscription // replaced as a whole, never changed
		version  uint64         // of subs
		flow     *flow          // nil until the first subscription
		keep     keeping
	}
}

// sessions is the table of all sessions of this node.
type sessions struct {
	mu struct {
		sync.Mutex
		byKey  map[sessionKey]*session
		claims map[sessionKey]*claiming
	}
}

// attach gives the key's session to c and returns whom it was taken from. The caller closes that connection.
func (g *Gateway) attach(t *turn, key sessionKey, r *connectRequest) (s *session, present bool, old *conn, err *fault) {
	g.sessions.mu.Lock()
	defer g.sessions.mu.Unlock()
	s = g.sessions.mu.byKey[key]
	if s == nil {
		if len(g.sessions.mu.byKey) >= g.cfg.SessionsMax {
			return nil, false, nil, &fault{codeQuotaExceeded, "too many sessions on this node"}
		}
		s = &session{key: key, g: g}
		s.timer.owner = s
		g.sessions.mu.byKey[key] = s
	} else {
		present = !r.clean
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old, s.mu.conn = s.mu.conn, t.c
	g.wheel.stop(&s.timer)
	if w := s.mu.will; w != nil {
		s.mu.will = nil
		if r.clean { // the old session ends here, and with it the delay
			w.publish(t)
		}
	}
	if !present {
		s.clearLocked()
	}
	s.mu.expiry = clampExpiry(r.expiry, g.cfg.SessionExpiryMax)
	return s, present, old, nil
}

func clampExpiry(seconds uint32, limit time.Duration) uint32 {
	return uint32(min(int64(seconds), int64(limit/time.Second)))
}

func (s *session) clearLocked() {
	s.mu.subs, s.mu.incoming = nil, nil
	s.mu.version++
	if s.mu.flow != nil {
		s.mu.flow.stop()
		s.mu.flow = nil
	}
}

// detach takes the session from c when its connection ends; will is nil if c parted in peace. renewed says that c lost
// the session to a connection that started it afresh.
func (s *session) detach(t *turn, c *conn, will *lastWord, e *ending) {
	g := s.g
	g.sessions.mu.Lock()
	defer g.sessions.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.keep.epoch != 0 {
		if s.mu.conn == c {
			s.leaveLocked(e)
		}
		return
	}
	if s.mu.conn != c { // taken over; the client came back in time for a delayed will, unless its session ended ([MQTT-3.1.3-9])
		if will != nil && (will.delay == 0 || e.renewed) {
			will.publish(t)
		}
		return
	}
	s.mu.conn = nil
	if s.mu.flow != nil {
		s.mu.flow.stop()
	}
	if s.mu.expiry == 0 {
		s.dropLocked()
		if will != nil {
			will.publish(t)
		}
		return
	}
	s.mu.endsAt = t.now.Add(time.Duration(s.mu.expiry) * time.Second)
	due := s.mu.endsAt
	if will != nil && will.delay == 0 {
		will.publish(t)
	} else if will != nil {
		s.mu.will, s.mu.willAt = will, t.now.Add(time.Duration(will.delay)*time.Second)
		due = min(due, s.mu.willAt)
	}
	g.wheel.set(&s.timer, due)
}

// dropLocked ends the session. The caller holds sessions.mu too.
func (s *session) dropLocked() {
	s.clearLocked()
	if s.g.sessions.mu.byKey[s.key] == s {
		delete(s.g.sessions.mu.byKey, s.key)
	}
}

// wake is the timer of a session that nobody has.
func (s *session) wake(now dunlin.Time) {
	if s.g.deps.Sessions != nil {
		s.retry()
		return
	}
	t := s.g.newTurn(now)
	s.g.sessions.mu.Lock()
	s.mu.Lock()
	if s.mu.conn == nil {
		over := now >= s.mu.endsAt
		if w := s.mu.will; w != nil && (over || now >= s.mu.willAt) {
			s.mu.will = nil
			w.publish(t)
		}
		if over {
			s.dropLocked()
		} else {
			s.g.wheel.set(&s.timer, s.mu.endsAt)
		}
	}
	s.mu.Unlock()
	s.g.sessions.mu.Unlock()
	t.ingest()
}

// drop ends c's session, as when the node can't keep what it promised.
func (s *session) drop(c *conn) {
	s.g.sessions.mu.Lock()
	defer s.g.sessions.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.conn == c {
		s.mu.expiry = 0
		if s.mu.keep.epoch != 0 { // the end of the connection saves that
			s.clearLocked()
			return
		}
		s.dropLocked()
	}
}

// setExpiry is a DISCONNECT's new session expiry interval; false: it may not be raised from 0.
func (s *session) setExpiry(seconds uint32, limit time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.expiry == 0 && seconds != 0 {
		return false
	}
	s.mu.expiry = clampExpiry(seconds, limit)
	return true
}

// received reports whether a QoS 2 message with that id is committed and not yet released.
func (s *session) received(c *conn, id uint16) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.mu.incoming[id]
	return ok && s.mu.conn == c
}

// receive notes a committed QoS 2 message, so that it isn't taken again before its PUBREL.
func (s *session) receive(c *conn, id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.conn != c {
		return
	}
	if s.mu.incoming == nil {
		s.mu.incoming = make(map[uint16]struct{})
	}
	s.mu.incoming[id] = struct{}{}
}

// release takes a PUBREL; false: nothing was received under that id.
func (s *session) release(c *conn, id uint16) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	_, ok := s.mu.incoming[id]
	if ok && s.mu.conn == c {
		delete(s.mu.incoming, id)
	}
	return ok
}

// acked takes a subscriber's PUBACK. One that a connection sends after it lost the session changes nothing.
func (s *session) acked(c *conn, id uint16) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.conn == c && s.mu.flow != nil {
		s.mu.flow.box.ack(id)
		s.mu.flow.poke()
		s.touchLocked()
	}
}
