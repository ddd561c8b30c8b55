package coap

import (
	"encoding/base64"
	"encoding/json"
	"unicode/utf8"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/dunlin-iot/dunlin"
)

// commands takes a GET on d/{id}/c or c: what waits for the device's answer.
func (rd *reader) commands(in *inbound) {
	format := dunlin.FormatJSON
	switch in.accept {
	case -1, int(dunlin.FormatJSON):
	case int(dunlin.FormatCBOR):
		format = dunlin.FormatCBOR
	default:
		rd.refuse(in, codes.NotAcceptable, "formats are 50, 60")
		return
	}
	rd.question(in, plan{twin: true, commands: true, format: format})
}

// result takes a POST on d/{id}/c/{command} or c/{command}: the device's answer. Its payload is the plugins' alone.
func (rd *reader) result(in *inbound) {
	if rd.blocked(in) {
		return
	}
	if len(in.Payload) > rd.g.cfg.PayloadBytesMax || in.Truncated {
		rd.tooLarge(in, "payload too large")
		return
	}
	if _, _, err := dunlin.ParseCommandID(string(in.command)); err != nil {
		rd.refuse(in, codes.BadRequest, err.Error())
		return
	}
	format := dunlin.FormatOctets
	if in.format >= 0 {
		format = dunlin.ContentFormat(in.format)
	}
	if p, ok := rd.login(in, plan{}); ok {
		rd.uplink(in, p, format)
	}
}

// commandJSON is a command as a client reads it; in CBOR the names and their order are the same.
type commandJSON struct {
	ID       string          `json:"id"`
	Name     string          `json:"name"`
	Deadline int64           `json:"deadline"` // seconds since 1970
	Format   *uint16         `json:"ct,omitempty"`
	Payload  json.RawMessage `json:"payload,omitempty"`
}

// appendCommands renders the commands that wait, oldest first: an array of maps. In JSON a payload that is JSON or text is
// itself, and others are base64 without padding, as data is in SenML; in CBOR it is a byte string.
func appendCommands(dst []byte, cs []dunlin.Command, f dunlin.ContentFormat) []byte {
	if f == dunlin.FormatCBOR {
		return appendCommandsCBOR(dst, cs)
	}
	dst = append(dst, '[')
	for i := range cs {
		c := &cs[i]
		v := commandJSON{ID: c.ID, Name: c.Name, Deadline: int64(c.Deadline) / 1e6}
		if len(c.Payload) > 0 {
			v.Format = new(uint16(c.Format))
			switch {
			case (c.Format == dunlin.FormatJSON || c.Format == dunlin.FormatSenMLJSON) && utf8.Valid(c.Payload) && json.Valid(c.Payload):
				v.Payload = c.Payload
			case c.Format == dunlin.FormatText && utf8.Valid(c.Payload):
				v.Payload = appendText(nil, string(c.Payload))
			default:
				v.Payload = append(base64.RawURLEncoding.AppendEncode([]byte{'"'}, c.Payload), '"')
			}
		}
		b, err := json.Marshal(&v)
		if err != nil {
			panic("coap: a command has no JSON: " + err.Error())
		}
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(dst, b...)
	}
	return append(dst, ']')
}

func appendCommandsCBOR(dst []byte, cs []dunlin.Command) []byte {
	dst = cborHead(dst, cborArray, uint64(len(cs)))
	for i := range cs {
		c := &cs[i]
		fields := uint64(3)
		if len(c.Payload) > 0 {
			fields = 5
		}
		dst = cborHead(dst, cborMap, fields)
		dst = cborText(cborText(dst, "id"), c.ID)
		dst = cborText(cborText(dst, "name"), c.Name)
		dst = cborInt(cborText(dst, "deadline"), int64(c.Deadline)/1e6)
		if len(c.Payload) > 0 {
			dst = cborInt(cborText(dst, "ct"), int64(c.Format))
			dst = append(cborHead(cborText(dst, "payload"), cborBytes, uint64(len(c.Payload))), c.Payload...)
		}
	}
	return dst
}

// question begins a GET that a device's state answers.
func (rd *reader) question(in *inbound, want plan) {
	switch {
	case in.block1.set:
		rd.badOption(in, message.Block1)
		return
	case in.block2.set && in.block2.szx == 7:
		rd.refuse(in, codes.BadRequest, "block size 7 is reserved")
		return
	}
	want.device = dunlin.DeviceID(in.device)
	if in.device != nil {
		if err := want.device.Validate(); err != nil {
			rd.refuse(in, codes.BadRequest, err.Error())
			return
		}
	}
	p, known := rd.login(in, want) // a login that isn't known goes on with the question
	if !known {
		return
	}
	if in.device == nil {
		if want.device, known = rd.deviceOf(in, p); !known {
			return
		}
	}
	want.principal = p
	rd.beginJob(in, want)
}
