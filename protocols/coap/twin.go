package coap

import (
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/dunlin-iot/dunlin"
)

// twinMaxAge is how long a proxy may keep a twin, in seconds. The default of 60 would hide most changes.
const twinMaxAge = 1

// twin takes a GET on d/{id}/s or s.
func (rd *reader) twin(in *inbound) {
	format, ok := twinFormat(in.accept)
	if !ok {
		rd.refuse(in, codes.NotAcceptable, "formats are 110, 112, 50, 60")
		return
	}
	rd.question(in, plan{twin: true, format: format})
}

// twinFormat returns the format for an Accept option.
func twinFormat(accept int) (dunlin.ContentFormat, bool) {
	switch f := dunlin.ContentFormat(accept); {
	case accept < 0:
		return dunlin.FormatSenMLJSON, true
	case f == dunlin.FormatSenMLJSON, f == dunlin.FormatSenMLCBOR, f == dunlin.FormatJSON, f == dunlin.FormatCBOR:
		return f, true
	}
	return 0, false
}

// twinAnswer answers with the twin that a worker fetched.
func (rd *reader) twinAnswer(in *inbound, j *job) {
	switch {
	case j.twinErr == nil && j.device == "":
		rd.refuse(in, codes.Unauthorized, "no credential names a device")
	case j.twinErr == nil:
		rd.represent(in, j.format, j.body, twinMaxAge)
	default:
		code := codeOf(j.twinErr)
		if code == codes.ServiceUnavailable {
			rd.busy(in)
			return
		}
		if code == codes.InternalServerError {
			rd.g.log.Error("twin failed", "device", string(j.device), "error", j.twinErr)
		}
		rd.refuse(in, code, shortText(j.twinErr))
	}
}

// represent answers a GET with a representation: 2.03 if the client has it (RFC 7252 §5.10.6.2), else all of it or the
// block asked for (RFC 7959). Blocks are cut anew from each request's representation; the ETag tells clients whether
// they belong together. To who may be a forged address blocks are as small as its budget wants (RFC 7252 §11.3).
func (rd *reader) represent(in *inbound, format dunlin.ContentFormat, body []byte, maxAge uint32) {
	a := &rd.ans
	tag := etagOf(format, body)
	first := !in.block2.set || in.block2.num == 0
	if first && hasETag(in.Options, tag) {
		a.reset(codes.Valid)
		a.etag(tag)
		a.uint(message.MaxAge, maxAge)
		rd.answer(in)
		return
	}
	a.reset(codes.Content)
	a.etag(tag)
	a.uint(message.ContentFormat, uint32(format))
	a.uint(message.MaxAge, maxAge)
	const blockOption = 6
	part, blk, ok := cut(body, in.block2, rd.budget(in)-a.overhead(in)-blockOption)
	if !ok {
		rd.refuse(in, codes.BadRequest, "no such block")
		return
	}
	if blk.set {
		a.uint(message.Block2, blk.value())
	}
	a.Payload = part
	rd.answer(in)
}

func hasETag(opts message.Options, tag [etagBytes]byte) bool {
	for i := range opts {
		if opts[i].ID == message.ETag && string(opts[i].Value) == string(tag[:]) {
			return true
		}
	}
	return false
}

// cut returns the part of body that the request asks for, in a block of at most room bytes (but at least 16, the smallest
// there is). The server may choose smaller blocks than asked for; the offset stays (RFC 7959 §2.4).
func cut(body []byte, want block, room int) ([]byte, block, bool) {
	if !want.set && len(body) <= min(room, blockBytesMax) {
		return body, block{}, true
	}
	blk := block{set: true, num: want.num, szx: want.szx}
	if !want.set {
		blk.szx = 6
	}
	for blk.size() > room && blk.szx > 0 {
		blk.szx--
		blk.num *= 2
	}
	from := int(blk.num) * blk.size()
	if from >= len(body) && from > 0 || blk.num >= 1<<20 {
		return nil, block{}, false
	}
	to := min(from+blk.size(), len(body))
	blk.more = to < len(body)
	return body[from:to], blk, true
}
