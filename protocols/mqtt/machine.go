package mqtt

import (
	"bytes"
	"fmt"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/dunlin-iot/dunlin"
)

// phase is where a connection is in its life.
type phase uint8

const (
	phaseNew   phase = iota // nothing but a CONNECT is welcome
	phaseLogin              // CONNECT is there, the Authenticator is asked; later packets wait
	phaseOpen               // CONNACK is sent
	phaseOver               // nothing is taken or said any more
)

// machine is one connection's protocol state: packets and time in, bytes and uplinks out (turn). It has no goroutine,
// clock or socket, and its conn's lock guards it.
//
//	phaseNew ──CONNECT──▶ phaseLogin ──admitted──▶ phaseOpen ──DISCONNECT, fault, end of stream──▶ phaseOver
type machine struct {
	cfg   *Config
	phase phase
	v5    bool
	quiet bool // the client wants no reason strings
	// failed: a PUBLISH in the ring was refused and its answer ends the connection; nothing behind it is taken.
	failed bool
	busy   bool // with a chore
	// held: the ring's oldest PUBLISHes were refused for now. Reading stops until all of them are accepted.
	held      bool
	heldSince dunlin.Time
	retryAt   dunlin.Time
	retries   int

	keepAlive  time.Duration // 1.5 × the agreed one; 0: none
	receiveMax int           // how many PUBLISHes of QoS 1 the client takes at a time
	packetMax  int           // the longest packet that the client takes
	unanswered int           // QoS 1 and 2 PUBLISHes of the client that aren't through: what our Receive Maximum bounds

	principal  dunlin.Principal
	client     string
	clientHash uint64
	stamped    dunlin.Time // receipt of the last PUBLISH
	sess       *session
	ring       ackRing
	route      route
	aliases    []string // by topic alias − 1
	will       *willMessage
}

// route is the topic of the last PUBLISH, resolved: most clients only ever use one.
type route struct {
	topic   string
	device  dunlin.DeviceID
	command string // that is answered; "": telemetry
	format  dunlin.ContentFormat
	named   bool
	media   string // the last Content Type and its format
	mediaOf dunlin.ContentFormat
}

// turn collects what a run over one or more connections produces. Each goroutine has one and uses it again and again.
type turn struct {
	now      dunlin.Time
	g        *Gateway
	c        *conn  // the connection at hand
	out      []byte // bytes for the connection at hand
	login    *connectRequest
	chore    *chore
	follow   bool // the session's subscriptions changed
	bye      bool // the client said DISCONNECT
	byeWill  bool // … and wants its will published
	settle   bool // a slot was answered without the Ingestor
	first    *dunlin.Uplink
	last     *dunlin.Uplink
	uplinks  int
	counters counters
}

func (t *turn) add(u *dunlin.Uplink) {
	if t.last == nil {
		t.first = u
	} else {
		t.last.Next = u
	}
	t.last = u
	t.uplinks++
}

// offer adds what is to be ingested for s: its uplink, or the parts of its pack that have no outcome yet.
func (t *turn) offer(s *slot) {
	if s.pack == nil {
		s.u.Next = nil
		t.add(&s.u)
		return
	}
	first, _ := s.pack.Offer()
	for u := first; u != nil; {
		next := u.Next
		u.Next = nil
		t.add(u)
		u = next
	}
}

// blocked reports whether the machine takes no packet now.
func (m *machine) blocked() bool {
	return m.phase == phaseLogin || m.busy || m.held || m.failed || m.ring.n >= m.cfg.ringMax()
}

// frameMax bounds a packet: before CONNECT is through, strangers don't get the full size.
func (m *machine) frameMax() int {
	if m.phase == phaseNew {
		return m.cfg.ConnectBytesMax
	}
	return m.cfg.PacketBytesMax
}

// packet takes one control packet. A fault ends the connection.
func (m *machine) packet(t *turn, f frame) *fault {
	switch m.phase {
	case phaseNew:
		if f.kind() != typeConnect {
			return violation("the first packet must be CONNECT")
		}
		return m.connect(t, f)
	case phaseOpen:
	default:
		return nil
	}
	switch f.kind() {
	case typePublish:
		return m.publish(t, f)
	case typePuback, typePubrel:
		return m.ack(t, f)
	case typePubrec, typePubcomp:
		return violation("answer to a QoS 2 message that was never sent")
	case typeSubscribe:
		return m.subscribe(t, f)
	case typeUnsubscribe:
		return m.unsubscribe(t, f)
	case typePingreq:
		if f.head&0xF != 0 || len(f.body) != 0 {
			return malformed("PINGREQ")
		}
		t.out = append(t.out, typePingresp<<4, 0)
		return nil
	case typeDisconnect:
		return m.disconnect(t, f)
	case typeConnect:
		return violation("second CONNECT")
	case typeAuth:
		return violation("AUTH without an authentication method")
	}
	return malformed("unknown packet type")
}

func (m *machine) connect(t *turn, f frame) *fault {
	if f.head&0xF != 0 {
		return malformed("fixed header flags")
	}
	version, err := connectVersion(f.body)
	if err != nil {
		return err
	}
	if version != 4 && version != 5 {
		m.v5 = version > 5
		return &fault{codeVersion, "protocol version"}
	}
	m.v5 = version == 5
	r, err := parseConnect(f, m.v5)
	if err != nil {
		return err
	}
	switch {
	case r.authMethod:
		return &fault{codeBadAuthMethod, "no authentication methods are supported"}
	case len(r.client) > m.cfg.ClientIDBytesMax:
		return &fault{codeClientID, "client identifier too long"}
	case r.client == "" && !m.v5 && !r.clean:
		return &fault{codeClientID, "a client without an identifier must ask for a clean session"}
	}
	m.quiet = r.quiet
	m.phase = phaseLogin
	t.login = r
	return nil
}

// publish takes a PUBLISH. What is wrong with its content is its answer's business; a fault is for what breaks the
// protocol itself.
func (m *machine) publish(t *turn, f frame) *fault {
	var p publish
	if err := p.parse(f, m.v5); err != nil {
		return err
	}
	if p.retain && m.v5 {
		return &fault{codeRetainUnsupported, "retained messages are not supported"} // [MQTT-3.2.2-14]
	}
	s := t.g.slots.get()
	s.c, s.id, s.qos = t.c, p.id, p.qos
	if p.qos > 0 {
		if p.qos == 2 && m.sess.received(t.c, p.id) { // sent again before its PUBREL: it is through already
			s.state.Store(slotDone)
			s.receipt.Duplicate = true
			m.ring.push(s)
			t.settle = true
			return nil
		}
		if m.unanswered++; m.v5 && m.unanswered > m.cfg.ReceiveMax || m.unanswered > receiveHardMax {
			t.g.slots.put(s)
			return &fault{codeReceiveMaximum, "more unanswered messages than the Receive Maximum"}
		}
	}
	err := m.fill(t, s, &p)
	if f, ok := err.(*fault); ok && f.code == codeTopicAlias {
		t.g.slots.put(s)
		return f
	}
	m.ring.push(s)
	if err != nil {
		s.receipt.Err = err
		s.state.Store(slotDone)
		m.failed = m.fatal(s)
		t.settle = true
		return nil
	}
	t.offer(s)
	return nil
}

// fill makes s the uplink of p.
func (m *machine) fill(t *turn, s *slot, p *publish) error {
	if p.alias > 0 || string(p.topic) != m.route.topic || m.route.topic == "" {
		if err := m.resolve(p); err != nil {
			return err
		}
	}
	format, err := m.format(p)
	if err != nil {
		return err
	}
	u := &s.u
	u.Tenant, u.Device = m.principal.Tenant, m.route.device
	u.Sender = m.principal
	// Several come in one read. Readings without a time have that of their receipt, and of two at one time only one is kept.
	m.stamped = max(t.now, m.stamped+1)
	u.Received = m.stamped
	u.Format = format
	if m.principal.ID != string(u.Device) {
		u.Input.Sender = m.principal.ID
	}
	if p.qos > 0 {
		u.MessageID = messageID(m.clientHash, p.id, p.payload)
		if p.dup || t.g.heart.stood(t.now) || t.g.heart.late(t.now, t.c.mu.since) {
			u.Flags = dunlin.FlagMayRepeat
		}
	}
	u.Waiter = s
	if m.route.command != "" {
		u.Kind, u.Timer, u.Payload = dunlin.InputResult, m.route.command, bytes.Clone(p.payload)
		return nil
	}
	s.pack, err = t.g.deps.Decoder.Take(u, p.payload)
	return err
}

// resolve makes m.route the route of p's topic.
func (m *machine) resolve(p *publish) error {
	topic := p.topic
	if p.alias > 0 {
		i := int(p.alias) - 1
		switch {
		case i >= m.cfg.TopicAliasMax:
			return &fault{codeTopicAlias, "topic alias above the maximum"}
		case len(topic) > 0:
			if i >= len(m.aliases) {
				m.aliases = append(m.aliases, make([]string, i+1-len(m.aliases))...)
			}
			if len(topic) > m.cfg.TopicBytesMax {
				return &fault{codeTopicName, "topic too long"}
			}
			m.aliases[i] = string(topic)
		case i >= len(m.aliases) || m.aliases[i] == "":
			return &fault{codeTopicAlias, "unknown topic alias"}
		default:
			topic = []byte(m.aliases[i])
		}
		if string(topic) == m.route.topic {
			return nil
		}
	}
	if len(topic) > m.cfg.TopicBytesMax {
		return &fault{codeTopicName, "topic too long"}
	}
	name := string(topic)
	a, err := parseTopic(name, &m.principal)
	if err != nil {
		return err
	}
	if !m.principal.MayWrite(dunlin.DeviceKey{Tenant: m.principal.Tenant, Device: a.device}) {
		return fmt.Errorf("publish as device %s: %w", a.device, dunlin.ErrForbidden)
	}
	m.route.topic, m.route.device, m.route.command, m.route.format, m.route.named = name, a.device, a.command, a.format, a.named
	return nil
}

// format says how p's payload is written: Content Type first, then the topic's last level, then its first byte.
func (m *machine) format(p *publish) (dunlin.ContentFormat, error) {
	switch {
	case p.hasType:
		if string(p.contentType) != m.route.media {
			f, ok := formatOf(string(p.contentType))
			if !ok {
				return 0, fmt.Errorf("content type %q: %w", clip(string(p.contentType), 80), dunlin.ErrFormat)
			}
			m.route.media, m.route.mediaOf = string(p.contentType), f
		}
		return m.route.mediaOf, nil
	case m.route.named:
		return m.route.format, nil
	case m.route.command != "":
		return dunlin.FormatOctets, nil
	}
	f, ok := sniff(p.payload)
	if !ok {
		return 0, fmt.Errorf("%w: neither SenML, JSON, CBOR nor a number; name its format in the topic or as content type", dunlin.ErrFormat)
	}
	return f, nil
}

// messageID hashes what a retransmission has in common with its original. Clients count packet ids up from 1, so the
// finish must spread neighbours over all bits.
func messageID(client uint64, id uint16, payload []byte) uint64 {
	x := xxhash.Sum64(payload) ^ (client + uint64(id)*0x9E3779B97F4A7C15)
	x = (x ^ x>>30) * 0xBF58476D1CE4E5B9
	x = (x ^ x>>27) * 0x94D049BB133111EB
	return max(x^x>>31, 1) // 0 means that there is none
}

// ack takes PUBACK and PUBREL.
func (m *machine) ack(t *turn, f frame) *fault {
	id, code, err := parseAck(f, m.v5)
	switch {
	case err != nil:
		return err
	case f.kind() == typePuback:
		if f.head&0xF != 0 {
			return malformed("fixed header flags")
		}
		if code >= 0x80 {
			t.counters.rejected++
		}
		m.sess.acked(t.c, id)
		return nil
	case f.head&0xF != 2:
		return malformed("fixed header flags")
	}
	code = codeSuccess
	if m.sess.release(t.c, id) {
		m.unanswered = max(0, m.unanswered-1) // one from the connection before doesn't count
	} else if m.v5 {
		code = codePacketIDNotFound
	}
	t.out = appendAck(t.out, typePubcomp, id, code, "", m.packetMax)
	return nil
}

func (m *machine) disconnect(t *turn, f frame) *fault {
	if f.head&0xF != 0 {
		return malformed("fixed header flags")
	}
	code, expiry, has, err := parseDisconnect(f, m.v5)
	if err != nil {
		return err
	}
	if has && !m.sess.setExpiry(expiry, m.cfg.SessionExpiryMax) {
		return violation("session expiry raised from 0") // [MQTT-3.1.2-23]
	}
	t.bye, t.byeWill = true, code != codeSuccess
	return nil
}
