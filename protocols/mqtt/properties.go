package mqtt

import (
	"bytes"
	"encoding/binary"
)

// Property identifiers that this package names (MQTT 5 §2.2.2.2).
const (
	propPayloadFormat   = 1
	propContentType     = 3
	propResponseTopic   = 8
	propCorrelationData = 9
	propSubscriptionID  = 11
	propReceiveMaximum  = 33
	propReasonString    = 31
	propTopicAlias      = 35
	propUser            = 38
	propMaxPacketSize   = 39
	propRequestProblem  = 23
	propRequestResponse = 25
)

type propKind uint8

const (
	kindNone propKind = iota
	kindByte
	kindBool  // a byte, 0 or 1
	kindTwo   // uint16
	kindTwo1  // uint16, not 0
	kindFour  // uint32
	kindFour1 // uint32, not 0
	kindVar1  // variable byte integer, not 0
	kindText
	kindBytes
	kindPair
)

// propRule says how a property is written and which packets from a client may carry it (bit n: packet type n).
type propRule struct {
	kind propKind
	in   uint32
}

const (
	inConnect    = 1 << typeConnect
	inPublish    = 1 << typePublish
	inSubscribe  = 1 << typeSubscribe
	inDisconnect = 1 << typeDisconnect
	inAuth       = 1 << typeAuth
	inWill       = 1 << typeWill
	inAcks       = 1<<typePuback | 1<<typePubrec | 1<<typePubrel | 1<<typePubcomp
)

// propRules is the table of MQTT 5 §2.2.2.2, for what a client may send.
func propRules(id byte) propRule {
	switch id {
	case propPayloadFormat:
		return propRule{kindBool, inPublish | inWill}
	case 2: // Message Expiry Interval
		return propRule{kindFour, inPublish | inWill}
	case propContentType, propResponseTopic:
		return propRule{kindText, inPublish | inWill}
	case 9: // Correlation Data
		return propRule{kindBytes, inPublish | inWill}
	case propSubscriptionID:
		return propRule{kindVar1, inPublish | inSubscribe}
	case 17: // Session Expiry Interval
		return propRule{kindFour, inConnect | inDisconnect}
	case 21: // Authentication Method
		return propRule{kindText, inConnect | inAuth}
	case 22: // Authentication Data
		return propRule{kindBytes, inConnect | inAuth}
	case propRequestProblem, propRequestResponse:
		return propRule{kindBool, inConnect}
	case 24: // Will Delay Interval
		return propRule{kindFour, inWill}
	case propReasonString:
		return propRule{kindText, inAcks | inDisconnect | inAuth}
	case propReceiveMaximum:
		return propRule{kindTwo1, inConnect}
	case 34: // Topic Alias Maximum
		return propRule{kindTwo, inConnect}
	case propTopicAlias:
		return propRule{kindTwo1, inPublish}
	case propUser:
		return propRule{kindPair, ^uint32(0)}
	case propMaxPacketSize:
		return propRule{kindFour1, inConnect}
	}
	return propRule{}
}

// propWalk reads properties one by one with the strictness that mochi's decoder lacks: it lets a property run past the
// end of the list into the payload, takes a repeated one, and doesn't tell 0 from absent.
type propWalk struct {
	seen uint64
	id   byte
	num  uint32
	text []byte // of text and bytes
}

// next reads the first property of b, which must end where the list ends, and returns what follows it.
func (w *propWalk) next(packet byte, b []byte) ([]byte, *fault) {
	w.id, b = b[0], b[1:]
	rule := propRules(w.id)
	if rule.kind == kindNone {
		return nil, malformed("unknown property")
	}
	if rule.in&(1<<packet) == 0 {
		return nil, violation("property not allowed in this packet")
	}
	if w.id != propUser {
		if w.seen&(1<<w.id) != 0 {
			return nil, violation("property given twice")
		}
		w.seen |= 1 << w.id
	}
	return w.value(rule.kind, b)
}

func (w *propWalk) value(kind propKind, b []byte) ([]byte, *fault) {
	var ok bool
	switch kind {
	case kindByte, kindBool:
		if len(b) < 1 {
			return nil, malformed("property")
		}
		w.num, b = uint32(b[0]), b[1:]
	case kindTwo, kindTwo1:
		if len(b) < 2 {
			return nil, malformed("property")
		}
		w.num, b = uint32(binary.BigEndian.Uint16(b)), b[2:]
	case kindFour, kindFour1:
		if len(b) < 4 {
			return nil, malformed("property")
		}
		w.num, b = binary.BigEndian.Uint32(b), b[4:]
	case kindVar1:
		v, used := varint(b)
		if used <= 0 {
			return nil, malformed("property")
		}
		w.num, b = uint32(v), b[used:]
	case kindText, kindBytes:
		if w.text, b, ok = field(b); !ok || kind == kindText && !validText(w.text) {
			return nil, malformed("property")
		}
		if w.id == propResponseTopic && bytes.ContainsAny(w.text, "+#") {
			return nil, violation("wildcard in the response topic")
		}
	case kindPair:
		for range 2 {
			if w.text, b, ok = field(b); !ok || !validText(w.text) {
				return nil, malformed("property")
			}
		}
	}
	switch {
	case kind == kindBool && w.num > 1:
		return nil, violation("property is neither 0 nor 1")
	case (kind == kindTwo1 || kind == kindFour1 || kind == kindVar1) && w.num == 0:
		if w.id == propTopicAlias {
			return nil, &fault{codeTopicAlias, "topic alias 0"}
		}
		return nil, violation("property must not be 0")
	}
	return b, nil
}

// checkProperties checks the property list that b begins with and returns what follows it.
func checkProperties(packet byte, b []byte) ([]byte, *fault) {
	n, used := varint(b)
	if used <= 0 || len(b) < used+n {
		return nil, malformed("properties")
	}
	list, rest := b[used:used+n], b[used+n:]
	var w propWalk
	for len(list) > 0 {
		var err *fault
		if list, err = w.next(packet, list); err != nil {
			return nil, err
		}
	}
	return rest, nil
}
