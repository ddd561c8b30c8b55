package coap

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net/netip"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/coap/endpoint"
)

// session is what a reader keeps of a peer beside the message layer.
type session struct {
	gen    uint32          // of the peer whose it is
	fails  uint8           // refused logins in a row
	retry  time.Duration   // no login before this
	device dunlin.DeviceID // that it spoke of last: its string is used again
}

// sessionOf returns the session of a peer that the message layer knows, or nil.
func (rd *reader) sessionOf(p endpoint.Peer) *session {
	if p.Gen == 0 {
		return nil
	}
	for int(p.Slot) >= len(rd.sessions) {
		rd.sessions = append(rd.sessions, session{})
	}
	s := &rd.sessions[p.Slot]
	if s.gen != p.Gen {
		*s = session{gen: p.Gen}
	}
	return s
}

// recall returns the device of the path if it is the one that the peer spoke of last: valid, and its string is there.
func (rd *reader) recall(in *inbound) (dunlin.DeviceID, bool) {
	if s := rd.sessionOf(in.Peer); s != nil && s.device != "" && string(s.device) == string(in.device) {
		return s.device, true
	}
	return "", false
}

func (rd *reader) remember(p endpoint.Peer, dev dunlin.DeviceID) {
	if s := rd.sessionOf(p); s != nil {
		s.device = dev
	}
}

// loginKey identifies a login that succeeded: a keyed hash of endpoint, name and secret. The secret itself is not kept.
type loginKey [sha256.Size]byte

type knownLogin struct {
	principal dunlin.Principal
	until     time.Duration
}

// logins is a reader's bounded table of logins that succeeded.
type logins struct {
	known map[loginKey]knownLogin
	max   int
	buf   []byte
}

func newLogins(limit int) logins { return logins{known: map[loginKey]knownLogin{}, max: limit} }

func (l *logins) key(secretOfOurs *[32]byte, from *endpoint.Addr, name, secret []byte) loginKey {
	b := append(l.buf[:0], secretOfOurs[:]...)
	b = append(b, from.IP[:]...)
	b = binary.BigEndian.AppendUint16(b, from.Port)
	b = binary.BigEndian.AppendUint16(b, uint16(len(name)))
	b = append(b, name...)
	b = append(b, secret...)
	l.buf = b
	return sha256.Sum256(b)
}

func (l *logins) put(k loginKey, e knownLogin, now time.Duration) {
	if _, ok := l.known[k]; !ok && len(l.known) >= l.max {
		l.makeRoom(now)
	}
	l.known[k] = e
}

// makeRoom drops one login: an expired one if a short look finds any, or else the one of these that expires first. Maps
// iterate from a random place.
func (l *logins) makeRoom(now time.Duration) {
	const looks = 8
	var oldest loginKey
	until, n := never, 0
	for k, e := range l.known {
		if e.until < until {
			oldest, until = k, e.until
		}
		if n++; n == looks || until <= now {
			break
		}
	}
	delete(l.known, oldest)
}

// login returns the request's principal if it is known. If not, it has answered the request or begun a job that does what
// is next and brings it back; it is known then.
func (rd *reader) login(in *inbound, next plan) (dunlin.Principal, bool) {
	if rd.g.cfg.Open {
		return dunlin.Principal{Kind: dunlin.PrincipalOpen, Tenant: dunlin.DefaultTenant}, true
	}
	if c := in.call; c != nil && c.job != nil {
		return c.job.principal, true
	}
	name := in.user
	if name == nil {
		name = in.device // a device's own credential has its id
	}
	if len(in.secret) == 0 {
		rd.refuse(in, codes.Unauthorized, "no k= in the query")
		return dunlin.Principal{}, false
	}
	key := rd.logins.key(&rd.g.hashKey, &in.From, name, in.secret)
	if e, ok := rd.logins.known[key]; ok && e.until > rd.now {
		return e.principal, true
	}
	if s := rd.sessionOf(in.Peer); s != nil && s.retry > rd.now {
		rd.ans.reset(codes.TooManyRequests) // RFC 8516
		rd.ans.uint(message.MaxAge, uint32((s.retry-rd.now)/time.Second)+1)
		rd.finishRefusal(in, "too many refused logins")
		return dunlin.Principal{}, false
	}
	next.login, next.key = true, key
	next.attempt = dunlin.LoginAttempt{ID: string(name), Secret: append([]byte(nil), in.secret...), Protocol: "coap",
		Remote: netip.AddrPortFrom(netip.AddrFrom16(in.From.IP).Unmap(), in.From.Port).String()}
	rd.beginJob(in, next)
	return dunlin.Principal{}, false
}

// loggedIn takes in the outcome of a job's login. False means that the request was answered.
func (rd *reader) loggedIn(in *inbound, j *job) bool {
	s := rd.sessionOf(in.Peer)
	if j.loginErr == nil {
		rd.logins.put(j.key, knownLogin{j.principal, rd.now + rd.g.cfg.LoginFor}, rd.now)
		rd.m.Prove(in.Peer) // who knows a secret may have long answers
		if s != nil {
			s.fails, s.retry = 0, 0
		}
		return true
	}
	code := codeOf(j.loginErr)
	text := ""
	switch {
	case code == codes.Unauthorized:
		text = "bad credential"
		// A wrong secret costs us a hash each time. After three in a row the endpoint must wait, up to 32 s.
		if s != nil {
			if s.fails++; s.fails >= 3 {
				s.fails = min(s.fails, 8)
				s.retry = rd.now + time.Second<<(s.fails-3)
			}
		}
	case code == codes.ServiceUnavailable, errors.Is(j.loginErr, errTimeout):
		rd.busy(in)
		return false
	case code == codes.InternalServerError:
		rd.g.log.Error("authentication failed", "remote", j.attempt.Remote, "error", j.loginErr)
	}
	rd.refuse(in, code, text)
	return false
}

// tenantOf is p's tenant; a principal of an open node may have none.
func tenantOf(p dunlin.Principal) dunlin.Tenant { return cmp.Or(p.Tenant, dunlin.DefaultTenant) }
