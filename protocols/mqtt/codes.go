package mqtt

import (
	"errors"
	"fmt"

	"github.com/dunlin-iot/dunlin"
)

// Packet types (MQTT 5 §2.1.2).
const (
	typeConnect     = 1
	typeConnack     = 2
	typePublish     = 3
	typePuback      = 4
	typePubrec      = 5
	typePubrel      = 6
	typePubcomp     = 7
	typeSubscribe   = 8
	typeSuback      = 9
	typeUnsubscribe = 10
	typeUnsuback    = 11
	typePingreq     = 12
	typePingresp    = 13
	typeDisconnect  = 14
	typeAuth        = 15

	typeWill = 16 // not on the wire: a will's properties have rules of their own
)

// Reason codes of MQTT 5 (§2.4). MQTT 3.1.1 has codes in CONNACK and SUBACK alone; see connackV3.
const (
	codeSuccess           byte = 0x00
	codeDisconnectWill    byte = 0x04
	codeNoSubscription    byte = 0x11
	codeUnspecified       byte = 0x80
	codeMalformed         byte = 0x81
	codeProtocolError     byte = 0x82
	codeImplementation    byte = 0x83
	codeVersion           byte = 0x84
	codeClientID          byte = 0x85
	codeBadLogin          byte = 0x86
	codeNotAuthorized     byte = 0x87
	codeUnavailable       byte = 0x88
	codeServerBusy        byte = 0x89
	codeShuttingDown      byte = 0x8B
	codeBadAuthMethod     byte = 0x8C
	codeKeepAlive         byte = 0x8D
	codeTakenOver         byte = 0x8E
	codeTopicFilter       byte = 0x8F
	codeTopicName         byte = 0x90
	codePacketIDNotFound  byte = 0x92
	codeReceiveMaximum    byte = 0x93
	codeTopicAlias        byte = 0x94
	codePacketTooLarge    byte = 0x95
	codeQuotaExceeded     byte = 0x97
	codePayloadFormat     byte = 0x99
	codeRetainUnsupported byte = 0x9A
	codeNoSharedSubs      byte = 0x9E
)

// subackFailure is MQTT 3.1.1's only refusal of a subscription.
const subackFailure byte = 0x80

// fault is why a connection must end, or why a CONNECT is refused: a reason code and a sentence for the log and, in
// MQTT 5, for the client.
type fault struct {
	code byte
	why  string
}

func (f *fault) Error() string { return fmt.Sprintf("0x%02X: %s", f.code, f.why) }

// reason is err for the client: without the code, which goes out as itself.
func reason(err error) string {
	var f *fault
	if errors.As(err, &f) {
		return f.why
	}
	return err.Error()
}

func malformed(why string) *fault { return &fault{codeMalformed, why} }
func violation(why string) *fault { return &fault{codeProtocolError, why} }

// connackCode makes of a reason to end a connection one that a CONNACK may give.
func connackCode(code byte) byte {
	if code == codeTakenOver || code == codeShuttingDown {
		return codeUnavailable
	}
	return code
}

// connackV3 maps a reason code to the return codes of MQTT 3.1.1 (§3.2.2.3). 0 means that there is none: the connection is
// closed without a CONNACK.
func connackV3(code byte) byte {
	switch code {
	case codeVersion:
		return 1
	case codeClientID:
		return 2
	case codeServerBusy, codeQuotaExceeded, codeUnspecified, codeImplementation, codeUnavailable:
		return 3
	case codeBadLogin:
		return 4
	case codeNotAuthorized, codeTopicName, codeRetainUnsupported, codePayloadFormat:
		return 5
	}
	return 0
}

// loginCode is the CONNACK reason for what the Authenticator said.
func loginCode(err error, named bool) byte {
	switch {
	case errors.Is(err, dunlin.ErrUnauthenticated) && named:
		return codeBadLogin
	case errors.Is(err, dunlin.ErrUnauthenticated), errors.Is(err, dunlin.ErrForbidden):
		return codeNotAuthorized
	case errors.Is(err, dunlin.ErrUnavailable):
		return codeUnavailable
	}
	return codeServerBusy
}

// temporary reports whether the same uplink may be accepted later, so that it is held back instead of refused.
func temporary(err error) bool {
	return errors.Is(err, dunlin.ErrOverloaded) || errors.Is(err, dunlin.ErrUnavailable) || errors.Is(err, dunlin.ErrNotOwner)
}

// publishCode is the reason code that refuses a PUBLISH for good. ErrTooLarge is an administrative limit (§4.13: 0x97):
// 0x95 speaks of the packet and isn't a PUBACK's code.
func publishCode(err error) byte {
	var f *fault
	switch {
	case errors.As(err, &f):
		return f.code
	case errors.Is(err, dunlin.ErrForbidden), errors.Is(err, dunlin.ErrUnauthenticated):
		return codeNotAuthorized
	case errors.Is(err, dunlin.ErrUnknownDevice), errors.Is(err, dunlin.ErrNotFound):
		return codeTopicName
	case errors.Is(err, dunlin.ErrBadPayload), errors.Is(err, dunlin.ErrFormat), errors.Is(err, dunlin.ErrInvalid):
		return codePayloadFormat
	case errors.Is(err, dunlin.ErrTooLarge):
		return codeQuotaExceeded
	}
	return codeImplementation
}
