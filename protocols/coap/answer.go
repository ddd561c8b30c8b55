package coap

import (
	"encoding/binary"
	"errors"
	"math/bits"
	"strconv"
	"unicode/utf8"

	"github.com/cespare/xxhash/v2"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/coap/endpoint"
)

const (
	diagnosticBytesMax            = 200
	blockBytesMax                 = 1024 // of a payload in one answer (RFC 7252 §4.6); longer ones go in blocks
	amplificationMax              = 3    // answer bytes per request byte to who may be a forged address (RFC 9175 §2.3)
	conflict           codes.Code = 137  // 4.09, RFC 8132; go-coap has no name for it
)

// answer is a response in the making. Its memory is used again for the next one.
type answer struct {
	endpoint.Response
	opts [8]message.Option
	vals [8][8]byte
	text []byte // room for a diagnostic payload
}

// reset starts an answer. Options are to be added in the order of their numbers.
func (a *answer) reset(code codes.Code) {
	a.Code, a.Options, a.Payload = code, a.opts[:0], nil
}

// uint adds a uint option in its shortest form (RFC 7252 §3.2).
func (a *answer) uint(id message.OptionID, v uint32) {
	i := len(a.Options)
	binary.BigEndian.PutUint32(a.vals[i][:], v)
	a.Options = append(a.Options, message.Option{ID: id, Value: a.vals[i][bits.LeadingZeros32(v)/8 : 4]})
}

func (a *answer) etag(tag [etagBytes]byte) {
	i := len(a.Options)
	copy(a.vals[i][:], tag[:])
	a.Options = append(a.Options, message.Option{ID: message.ETag, Value: a.vals[i][:etagBytes]})
}

// etagBytes is a compromise between air time and the chance (2^-48) that a client keeps a stale representation.
const etagBytes = 6

// etagOf names a representation by its bytes: a twin's version alone does not tell formats apart, nor a device that was
// deleted and made again.
func etagOf(format dunlin.ContentFormat, body []byte) (tag [etagBytes]byte) {
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], xxhash.Sum64(body)+uint64(format)*0x9e3779b97f4a7c15)
	copy(tag[:], b[:])
	return tag
}

// overhead bounds the bytes of the answer without its payload.
func (a *answer) overhead(in *inbound) int {
	n := 4 + len(in.Token) + 1
	for i := range a.Options {
		n += 3 + len(a.Options[i].Value)
	}
	return n
}

// budget is how long an answer may be. Whoever has shown that it receives at its address gets what fits a datagram; so
// does this machine, whose addresses can't be forged from outside.
func (rd *reader) budget(in *inbound) int {
	if loopback(&in.From) || rd.m.Proven(in.Request) {
		return blockBytesMax + 128
	}
	return amplificationMax * in.Size
}

func loopback(a *endpoint.Addr) bool {
	if a.IP == [16]byte{15: 1} {
		return true
	}
	return a.IP[12] == 127 && [12]byte(a.IP[:12]) == [12]byte{10: 0xff, 11: 0xff}
}

// refuse answers with an error and a diagnostic payload (RFC 7252 §5.5.2), as much of it as the budget allows.
func (rd *reader) refuse(in *inbound, code codes.Code, text string) {
	rd.ans.reset(code)
	rd.finishRefusal(in, text)
}

func (rd *reader) finishRefusal(in *inbound, text string) {
	a := &rd.ans
	room := min(rd.budget(in)-a.overhead(in), diagnosticBytesMax)
	a.text = appendCut(a.text[:0], text, room)
	a.Payload = a.text
	rd.answer(in)
}

// appendCut appends at most n bytes of text, cut between runes.
func appendCut(dst []byte, text string, n int) []byte {
	if len(text) > n {
		n = max(n, 0)
		for n > 0 && !utf8.RuneStart(text[n]) {
			n--
		}
		text = text[:n]
	}
	if text == "" {
		return dst
	}
	return append(dst, text...)
}

// busy answers 5.03: come again in a second.
func (rd *reader) busy(in *inbound) {
	rd.ans.reset(codes.ServiceUnavailable)
	rd.ans.uint(message.MaxAge, 1)
	rd.answer(in)
}

// tooLarge answers 4.13 and says what would not have been (RFC 7252 §5.9.2.9).
func (rd *reader) tooLarge(in *inbound, text string) {
	rd.ans.reset(codes.RequestEntityTooLarge)
	rd.ans.uint(message.Size1, uint32(rd.g.cfg.PayloadBytesMax))
	rd.finishRefusal(in, text)
}

// answer sends rd.ans.
func (rd *reader) answer(in *inbound) {
	rd.codes[uint8(rd.ans.Code)].Add(1)
	if c := in.call; c != nil {
		rd.m.Finish(rd.now, c.ref, &rd.ans.Response)
		rd.release(c)
		return
	}
	rd.m.Reply(in.Request, &rd.ans.Response)
}

// codeOf is the table from the runtime's errors to CoAP's codes.
func codeOf(err error) codes.Code {
	switch {
	case errors.Is(err, dunlin.ErrOverloaded), errors.Is(err, dunlin.ErrUnavailable), errors.Is(err, dunlin.ErrNotOwner):
		return codes.ServiceUnavailable
	case errors.Is(err, dunlin.ErrTooLarge):
		return codes.RequestEntityTooLarge
	case errors.Is(err, dunlin.ErrFormat):
		return codes.UnsupportedMediaType
	case errors.Is(err, dunlin.ErrForbidden):
		return codes.Forbidden
	case errors.Is(err, dunlin.ErrUnauthenticated):
		return codes.Unauthorized
	case errors.Is(err, dunlin.ErrUnknownDevice), errors.Is(err, dunlin.ErrNotFound):
		return codes.NotFound
	case errors.Is(err, dunlin.ErrConflict):
		return conflict
	case errors.Is(err, dunlin.ErrPrecondition):
		return codes.PreconditionFailed
	case errors.Is(err, dunlin.ErrBadPayload), errors.Is(err, dunlin.ErrInvalid):
		return codes.BadRequest
	}
	return codes.InternalServerError
}

// shortText is what a late answer says. It must fit with a full token and Block1 or Max-Age in what the message layer keeps
// for duplicates (32 bytes), so that they get the same answer.
func shortText(err error) string {
	switch {
	case errors.Is(err, dunlin.ErrUnknownDevice):
		return "unknown device"
	case errors.Is(err, dunlin.ErrNotFound):
		return "not found"
	case errors.Is(err, dunlin.ErrForbidden):
		return "not allowed"
	case errors.Is(err, dunlin.ErrBadPayload):
		return "bad payload"
	}
	return ""
}

// badOption refuses a critical option that means nothing to us: with 4.02, or, in a non-confirmable request, with a Reset
// (RFC 7252 §5.4.1).
func (rd *reader) badOption(in *inbound, id message.OptionID) {
	if in.Type == message.NonConfirmable {
		rd.m.Reject(in.Request)
		return
	}
	rd.refuse(in, codes.BadOption, "option "+strconv.Itoa(int(id))+" is not understood, or malformed")
}
