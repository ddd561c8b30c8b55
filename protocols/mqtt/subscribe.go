package mqtt

import (
	"slices"

	"github.com/dunlin-iot/dunlin"
)

// subscription is one granted filter of a session.
type subscription struct {
	filter
	qos   byte
	subID uint32
	since dunlin.Cursor // what was committed before isn't its business
}

// subscribe takes a SUBSCRIBE.
func (m *machine) subscribe(t *turn, f frame) *fault {
	id, reqs, err := parseFilters(f, m.v5)
	if err != nil {
		return err
	}
	if m.v5 && len(reqs) > 0 && reqs[0].subID > 1<<28-1 {
		return violation("subscription identifier")
	}
	codes := make([]byte, len(reqs))
	var granted []subscription
	for i, r := range reqs {
		sub, code := m.grant(t, r)
		codes[i] = code
		if code < 0x80 {
			granted = append(granted, sub)
		} else if !m.v5 {
			codes[i] = subackFailure
		}
	}
	if len(granted) > 0 && !m.sess.subscribed(t.c, granted) {
		m.busy = true
		t.chore = &chore{kind: typeSuback, id: id, codes: codes, granted: granted}
		return nil
	}
	t.out = appendSuback(t.out, typeSuback, id, codes, m.v5)
	return nil
}

// grant decides about one filter; code is the SUBACK's.
func (m *machine) grant(t *turn, r filterRequest) (sub subscription, code byte) {
	f, err := parseFilter(r.text)
	switch {
	case err != nil:
		return sub, err.code
	case len(r.text) > m.cfg.TopicBytesMax:
		return sub, codeTopicFilter
	case t.g.deps.Feed == nil, r.noLocal:
		// The log doesn't keep which connection a reading came by, so No Local can't be honoured; better said than ignored.
		return sub, codeImplementation
	case f.device == "" && !m.principal.MayReadAll(),
		f.device != "" && !m.principal.MayRead(dunlin.DeviceKey{Tenant: m.principal.Tenant, Device: f.device}):
		return sub, codeNotAuthorized
	}
	return subscription{filter: f, qos: min(r.qos, 1), subID: r.subID}, min(r.qos, 1)
}

func (m *machine) unsubscribe(t *turn, f frame) *fault {
	id, reqs, err := parseFilters(f, m.v5)
	if err != nil {
		return err
	}
	codes := make([]byte, len(reqs))
	for i, r := range reqs {
		if !m.sess.unsubscribe(t.c, r.text) {
			codes[i] = codeNoSubscription
		}
	}
	if t.g.deps.Sessions != nil {
		m.busy = true
		t.chore = &chore{kind: typeUnsuback, id: id, codes: codes}
		return nil
	}
	t.follow = true
	t.out = appendSuback(t.out, typeUnsuback, id, codes, m.v5)
	return nil
}

// subscribe adds or replaces subscriptions and returns how many of them there was room for. A replaced one goes on where
// it was.
func (s *session) subscribe(c *conn, granted []subscription, now dunlin.Cursor, subsMax int) (taken int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.conn != c {
		return 0
	}
	subs := slices.Clone(s.mu.subs)
	for _, sub := range granted {
		i := slices.IndexFunc(subs, func(o subscription) bool { return o.text == sub.text })
		sub.since = now
		switch {
		case i >= 0:
			sub.since = subs[i].since
			subs[i] = sub
		case len(subs) < subsMax:
			subs = append(subs, sub)
		default:
			s.mu.subs = subs
			s.mu.version++
			return taken
		}
		taken++
	}
	if s.mu.flow == nil {
		s.mu.flow = &flow{wake: make(chan struct{}, 1)}
	}
	if f := s.mu.flow; len(s.mu.subs) == 0 {
		f.start = now // the follower begins here, or jumps here if it still finishes what was before
	}
	s.mu.subs = subs
	s.mu.version++
	return taken
}

// subscribed reports whether the session has all of these subscriptions already, and has kept them. Clients that come back to a
// session subscribe anew. Their SUBACK needs nobody: a client that leaves with it unread takes with it what its socket has not
// sent yet.
func (s *session) subscribed(c *conn, granted []subscription) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.mu.conn != c || s.mu.keep.epoch != 0 && s.mu.expiry > 0 && s.mu.keep.version != s.mu.version {
		return false
	}
	for _, sub := range granted {
		if !slices.ContainsFunc(s.mu.subs, func(o subscription) bool {
			return o.text == sub.text && o.qos == sub.qos && o.subID == sub.subID
		}) {
			return false
		}
	}
	return true
}

// unsubscribe removes a subscription; false: there was none. Messages that were sent for it stay until acknowledged.
func (s *session) unsubscribe(c *conn, text string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.IndexFunc(s.mu.subs, func(o subscription) bool { return o.text == text })
	if i < 0 || s.mu.conn != c {
		return false
	}
	s.mu.subs = slices.Delete(slices.Clone(s.mu.subs), i, i+1)
	s.mu.version++
	return true
}

// scope is what a follower must read for subs: all devices (nil), or the only one that they name.
func scope(tenant dunlin.Tenant, subs []subscription) *dunlin.DeviceKey {
	dev := subs[0].device
	for i := range subs {
		if subs[i].device != dev {
			return nil
		}
	}
	if dev == "" {
		return nil
	}
	return &dunlin.DeviceKey{Tenant: tenant, Device: dev}
}

// match returns the greatest granted QoS and the subscription identifiers of those in subs that want the message;
// none: ok is false. A message that several want goes out once (§3.3.4).
func match(subs []subscription, n *news, sh dunlin.ShardID, index uint64, ids []uint32) (qos byte, _ []uint32, ok bool) {
	ids = ids[:0]
	for i := range subs {
		s := &subs[i]
		if !s.matches(n) || int(sh) < len(s.since) && index < s.since[sh] {
			continue
		}
		ok, qos = true, max(qos, s.qos)
		if s.subID != 0 {
			ids = append(ids, s.subID)
		}
	}
	return qos, ids, ok
}
