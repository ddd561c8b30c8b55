package mqtt

import (
	"bytes"
	"strings"

	mochi "github.com/mochi-mqtt/server/v2/packets"
)

// The packets that a connection sees once or seldom go through mochi's codec, each after a check of its shape: mochi's
// decoders index past the end of a SUBSCRIBE that lacks its last options byte, skip bytes behind a packet's end, refuse an
// empty will payload and password, drop a DISCONNECT's reason if it is all there is, and hand out strings that alias
// the read buffer (hence strings.Clone wherever one is kept).

// connectRequest is a CONNECT, copied out of the read buffer.
type connectRequest struct {
	v5        bool
	clean     bool
	keepAlive uint16
	client    string
	user      string
	secret    []byte
	named     bool // has a user name

	expiry         uint32 // session expiry interval in seconds; MQTT 3.1.1: 0 or expiryNever
	receiveMax     uint16 // 0: not given
	packetMax      uint32 // 0: not given
	quiet          bool   // Request Problem Information 0
	authMethod     bool
	will           *willMessage
	assignedClient bool // by us
}

// expiryNever is the session expiry interval that means "never" (§3.1.2.11.2).
const expiryNever = 0xFFFFFFFF

// willMessage is what a connection wants published should it break.
type willMessage struct {
	topic       string
	payload     []byte
	contentType string
	hasType     bool
	qos         byte
	retain      bool
	delay       uint32 // seconds
}

// connectVersion reads the protocol level of a CONNECT, which decides about everything after it.
func connectVersion(body []byte) (byte, *fault) {
	name, rest, ok := field(body)
	switch {
	case !ok || len(rest) < 1:
		return 0, malformed("CONNECT")
	case string(name) == "MQIsdp":
		return 3, nil
	case string(name) != "MQTT":
		return 0, violation("protocol name")
	}
	return rest[0], nil
}

// checkConnect walks a CONNECT of level 4 or 5 to its last byte.
func checkConnect(body []byte, v5 bool) *fault {
	b := body[2+4+1:]
	if len(b) < 3 {
		return malformed("CONNECT")
	}
	flags := b[0]
	b = b[3:]
	will := flags&4 != 0
	switch {
	case flags&1 != 0:
		return malformed("reserved flag of CONNECT")
	case !will && flags&0x38 != 0, flags>>3&3 == 3:
		return malformed("will flags of CONNECT")
	case !v5 && flags&0xC0 == 0x40:
		return malformed("password without a user name")
	}
	var err *fault
	if v5 {
		if b, err = checkProperties(typeConnect, b); err != nil {
			return err
		}
	}
	client, b, ok := field(b)
	if !ok || !validText(client) {
		return malformed("client identifier")
	}
	if will {
		if v5 {
			if b, err = checkProperties(typeWill, b); err != nil {
				return err
			}
		}
		var topic []byte
		if topic, b, ok = field(b); !ok || len(topic) == 0 || !validText(topic) || bytes.ContainsAny(topic, "+#") {
			return malformed("will topic")
		}
		if _, b, ok = field(b); !ok {
			return malformed("will payload")
		}
	}
	if flags&0x80 != 0 {
		var user []byte
		if user, b, ok = field(b); !ok || !validText(user) {
			return malformed("user name")
		}
	}
	if flags&0x40 != 0 {
		if _, b, ok = field(b); !ok {
			return malformed("password")
		}
	}
	if len(b) != 0 {
		return malformed("bytes behind CONNECT")
	}
	return nil
}

// parseConnect reads a CONNECT of level 4 or 5.
func parseConnect(f frame, v5 bool) (*connectRequest, *fault) {
	if err := checkConnect(f.body, v5); err != nil {
		return nil, err
	}
	pk, err := decode(f, v5)
	if err != nil {
		return nil, err
	}
	p := &pk.Connect
	r := &connectRequest{
		v5: v5, clean: p.Clean, keepAlive: p.Keepalive, client: strings.Clone(p.ClientIdentifier),
		user: string(p.Username), named: p.UsernameFlag, secret: bytes.Clone(p.Password),
		receiveMax: pk.Properties.ReceiveMaximum, packetMax: pk.Properties.MaximumPacketSize,
		expiry: pk.Properties.SessionExpiryInterval, authMethod: pk.Properties.AuthenticationMethod != "",
		quiet: pk.Properties.RequestProblemInfoFlag && pk.Properties.RequestProblemInfo == 0,
	}
	if !v5 && !r.clean {
		r.expiry = expiryNever
	}
	if p.WillFlag {
		w := &p.WillProperties
		r.will = &willMessage{topic: strings.Clone(p.WillTopic), payload: bytes.Clone(p.WillPayload), qos: p.WillQos,
			retain: p.WillRetain, delay: w.WillDelayInterval, contentType: strings.Clone(w.ContentType), hasType: w.ContentType != ""}
	}
	return r, nil
}

// filterRequest is one filter of a SUBSCRIBE or UNSUBSCRIBE.
type filterRequest struct {
	text    string
	qos     byte
	noLocal bool
	subID   uint32
}

// parseFilters reads a SUBSCRIBE or UNSUBSCRIBE.
func parseFilters(f frame, v5 bool) (id uint16, filters []filterRequest, err *fault) {
	if err := checkFilters(f, v5); err != nil {
		return 0, nil, err
	}
	pk, err := decode(f, v5)
	if err != nil {
		return 0, nil, err
	}
	filters = make([]filterRequest, len(pk.Filters))
	for i := range pk.Filters {
		s := &pk.Filters[i]
		filters[i] = filterRequest{text: strings.Clone(s.Filter), qos: s.Qos, noLocal: s.NoLocal, subID: uint32(s.Identifier)}
	}
	return pk.PacketID, filters, nil
}

func checkFilters(f frame, v5 bool) *fault {
	if f.head&0xF != 2 {
		return malformed("fixed header flags")
	}
	b := f.body
	if len(b) < 2 {
		return malformed("packet identifier")
	}
	if b[0]|b[1] == 0 {
		return violation("packet identifier 0")
	}
	b = b[2:]
	if v5 {
		var err *fault
		if b, err = checkProperties(f.kind(), b); err != nil {
			return err
		}
	}
	if len(b) == 0 {
		return violation("no topic filter")
	}
	for len(b) > 0 {
		var filter []byte
		var ok bool
		if filter, b, ok = field(b); !ok || !validText(filter) {
			return malformed("topic filter")
		}
		if f.kind() == typeUnsubscribe {
			continue
		}
		if len(b) == 0 {
			return malformed("subscription options")
		}
		o := b[0]
		if o&3 == 3 || v5 && (o&0xC0 != 0 || o>>4&3 == 3) || !v5 && o&0xFC != 0 {
			return malformed("subscription options")
		}
		b = b[1:]
	}
	return nil
}

// parseDisconnect reads a DISCONNECT: its reason, and the session expiry interval that it may change.
func parseDisconnect(f frame, v5 bool) (code byte, expiry uint32, hasExpiry bool, err *fault) {
	if !v5 && len(f.body) != 0 {
		return 0, 0, false, malformed("bytes behind DISCONNECT")
	}
	if len(f.body) < 2 {
		if len(f.body) == 1 {
			code = f.body[0]
		}
		return code, 0, false, nil
	}
	rest, err := checkProperties(typeDisconnect, f.body[1:])
	if err == nil && len(rest) > 0 {
		err = malformed("bytes behind DISCONNECT")
	}
	if err != nil {
		return 0, 0, false, err
	}
	pk, err := decode(f, v5)
	if err != nil {
		return 0, 0, false, err
	}
	p := &pk.Properties
	return f.body[0], p.SessionExpiryInterval, p.SessionExpiryIntervalFlag, nil
}

// decode runs mochi's decoder.
func decode(f frame, v5 bool) (*mochi.Packet, *fault) {
	pk := &mochi.Packet{ProtocolVersion: level(v5)}
	if err := pk.FixedHeader.Decode(f.head); err != nil {
		return nil, malformed("fixed header flags")
	}
	pk.FixedHeader.Remaining = len(f.body)
	var err error
	switch f.kind() {
	case typeConnect:
		err = pk.ConnectDecode(f.body)
	case typeSubscribe:
		err = pk.SubscribeDecode(f.body)
	case typeUnsubscribe:
		err = pk.UnsubscribeDecode(f.body)
	case typeDisconnect:
		err = pk.DisconnectDecode(f.body)
	}
	if err != nil {
		return nil, malformed(err.Error())
	}
	return pk, nil
}

func level(v5 bool) byte {
	if v5 {
		return 5
	}
	return 4
}

// connack is what a CONNACK says. A refusal has only code and why.
type connack struct {
	code    byte
	present bool
	why     string
	props   mochi.Properties
}

func appendConnack(dst []byte, a *connack, v5 bool) []byte {
	pk := mochi.Packet{ProtocolVersion: level(v5), FixedHeader: mochi.FixedHeader{Type: typeConnack},
		SessionPresent: a.present, ReasonCode: a.code, Properties: a.props}
	pk.Properties.ReasonString = clip(a.why, reasonBytesMax)
	if !v5 {
		if a.code != codeSuccess {
			pk.ReasonCode = connackV3(a.code)
			if pk.ReasonCode == 0 {
				return dst
			}
		}
	}
	return encode(dst, pk.ConnackEncode)
}

func appendSuback(dst []byte, kind byte, id uint16, codes []byte, v5 bool) []byte {
	pk := mochi.Packet{ProtocolVersion: level(v5), FixedHeader: mochi.FixedHeader{Type: kind}, PacketID: id, ReasonCodes: codes}
	if kind == typeSuback {
		return encode(dst, pk.SubackEncode)
	}
	return encode(dst, pk.UnsubackEncode)
}

// appendDisconnect writes the server's DISCONNECT, which MQTT 3.1.1 doesn't have.
func appendDisconnect(dst []byte, f *fault, quiet bool, v5 bool) []byte {
	if !v5 {
		return dst
	}
	pk := mochi.Packet{ProtocolVersion: 5, FixedHeader: mochi.FixedHeader{Type: typeDisconnect}, ReasonCode: f.code}
	if !quiet {
		pk.Properties.ReasonString = clip(f.why, reasonBytesMax)
	}
	return encode(dst, pk.DisconnectEncode)
}

func encode(dst []byte, to func(*bytes.Buffer) error) []byte {
	b := bytes.NewBuffer(dst)
	if err := to(b); err != nil {
		panic("mqtt: encoding a packet of our own: " + err.Error()) // only a packet id of 0 can fail
	}
	return b.Bytes()
}
