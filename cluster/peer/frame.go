package peer

import (
	"encoding/binary"

	"github.com/dunlin-iot/dunlin"
)

// The types of frames. Their numbers are on the wire: append only, with a new version.
const (
	frameRefuse      = 1  // u8 reason, text
	frameUse         = 2  // u64 number
	framePing        = 3  // u64 token
	framePong        = 4  // u64 token
	frameRaft        = 5  // (u16 shard, u32 length, bytes)…
	frameCall        = 6  // u32 id, u32 deadline in ms, u32 total, u8 length, method, body if total ≤ inlineMax
	frameCallPiece   = 7  // u32 id, bytes
	frameCallCredit  = 8  // u32 id, u32 bytes: who serves lets who calls send on
	frameCancel      = 9  // u32 id
	frameReply       = 10 // u32 id, u8 code, u32 total, body if total ≤ inlineMax
	frameReplyPiece  = 11 // u32 id, bytes
	frameReplyCredit = 12 // u32 id, u32 bytes: who calls lets who serves send on
)

const (
	frameHead   = 4         // u24 length, u8 type
	frameMax    = 1<<24 - 1 // bytes of a frame after its head
	messageHead = 6
	pieceHead   = 4
	callHead    = 13
	replyHead   = 9

	chunkMax  = 64 << 10 // bytes of a frame with a body or a piece of one
	inlineMax = 32 << 10 // bytes of a body that comes with its call or reply
	refuseMax = 1 << 10  // bytes of a refusal's text
	methodMax = 255      // bytes of a method's name
)

func appendHead(b []byte, typ byte, n int) []byte {
	return append(b, byte(n), byte(n>>8), byte(n>>16), typ)
}

func putHead(b []byte, typ byte, n int) {
	b[0], b[1], b[2], b[3] = byte(n), byte(n>>8), byte(n>>16), typ
}

func appendRefuse(b []byte, r *Refusal) []byte {
	text := r.Text
	if len(text) > refuseMax {
		text = text[:refuseMax]
	}
	b = appendHead(b, frameRefuse, 1+len(text))
	return append(append(b, byte(r.Reason)), text...)
}

func parseRefuse(b []byte) (*Refusal, error) {
	if len(b) < 1 || len(b) > 1+refuseMax {
		return nil, broken("refusal of %d bytes", len(b))
	}
	return &Refusal{Reason: Reason(b[0]), Text: printable(b[1:]), Theirs: true}, nil
}

// appendWord is a frame of one number: Use, ping, pong.
func appendWord(b []byte, typ byte, v uint64) []byte {
	return binary.LittleEndian.AppendUint64(appendHead(b, typ, 8), v)
}

func parseWord(b []byte) (uint64, error) {
	if len(b) != 8 {
		return 0, broken("a number of %d bytes", len(b))
	}
	return binary.LittleEndian.Uint64(b), nil
}

func appendCredit(b []byte, typ byte, id uint32, n int) []byte {
	b = binary.LittleEndian.AppendUint32(appendHead(b, typ, 8), id)
	return binary.LittleEndian.AppendUint32(b, uint32(n))
}

func parseCredit(b []byte) (id uint32, n int, err error) {
	if len(b) != 8 {
		return 0, 0, broken("credit of %d bytes", len(b))
	}
	id, grant := binary.LittleEndian.Uint32(b), binary.LittleEndian.Uint32(b[4:])
	if grant == 0 || grant > BodyBytesMax {
		return 0, 0, broken("credit for %d bytes", grant)
	}
	return id, int(grant), nil
}

func appendCancel(b []byte, id uint32) []byte {
	return binary.LittleEndian.AppendUint32(appendHead(b, frameCancel, 4), id)
}

func parseCancel(b []byte) (uint32, error) {
	if len(b) != 4 {
		return 0, broken("cancel of %d bytes", len(b))
	}
	return binary.LittleEndian.Uint32(b), nil
}

// nextMessage cuts the first message off a Raft frame.
func nextMessage(b []byte) (sh dunlin.ShardID, data, rest []byte, err error) {
	if len(b) < messageHead {
		return 0, nil, nil, broken("%d bytes at the end of a Raft frame", len(b))
	}
	n := uint64(binary.LittleEndian.Uint32(b[2:]))
	if n > uint64(len(b)-messageHead) {
		return 0, nil, nil, broken("Raft message of %d bytes in a frame with %d left", n, len(b)-messageHead)
	}
	end := messageHead + int(n)
	return dunlin.ShardID(binary.LittleEndian.Uint16(b)), b[messageHead:end:end], b[end:], nil
}

// request opens a call.
type request struct {
	id         uint32
	deadlineMS uint32 // 0: none
	total      int    // bytes of its body
	method     string
	body       []byte // all of it if total ≤ inlineMax
}

func (q *request) appendHead(b []byte) []byte {
	n := callHead + len(q.method)
	if q.total <= inlineMax {
		n += q.total
	}
	b = appendHead(b, frameCall, n)
	for _, v := range []uint32{q.id, q.deadlineMS, uint32(q.total)} {
		b = binary.LittleEndian.AppendUint32(b, v)
	}
	return append(append(b, byte(len(q.method))), q.method...)
}

func parseRequest(b []byte) (q request, err error) {
	if len(b) < callHead || len(b) < callHead+int(b[12]) {
		return q, broken("call of %d bytes", len(b))
	}
	le := binary.LittleEndian
	total := le.Uint32(b[8:])
	q = request{id: le.Uint32(b), deadlineMS: le.Uint32(b[4:]), total: int(total)}
	q.method, q.body = printable(b[callHead:callHead+int(b[12])]), b[callHead+int(b[12]):]
	return q, checkBody("call", total, q.body)
}

// reply opens the answer to a call.
type reply struct {
	id    uint32
	code  byte // of the error; 0: none
	total int
	body  []byte // the error's text if code is not 0
}

func (p *reply) appendHead(b []byte) []byte {
	n := replyHead
	if p.total <= inlineMax {
		n += p.total
	}
	b = binary.LittleEndian.AppendUint32(appendHead(b, frameReply, n), p.id)
	return binary.LittleEndian.AppendUint32(append(b, p.code), uint32(p.total))
}

func parseReply(b []byte) (p reply, err error) {
	if len(b) < replyHead {
		return p, broken("reply of %d bytes", len(b))
	}
	total := binary.LittleEndian.Uint32(b[5:])
	p = reply{id: binary.LittleEndian.Uint32(b), code: b[4], total: int(total), body: b[replyHead:]}
	if p.code != 0 && total > textBytesMax {
		return p, broken("error of %d bytes", total)
	}
	return p, checkBody("reply", total, p.body)
}

func checkBody(what string, total uint32, body []byte) error {
	switch {
	case total > BodyBytesMax:
		return broken("%s with a body of %d bytes, want at most %d", what, total, BodyBytesMax)
	case total <= inlineMax && len(body) != int(total), total > inlineMax && len(body) != 0:
		return broken("%s with %d bytes of a body of %d", what, len(body), total)
	}
	return nil
}

func parsePiece(b []byte) (id uint32, data []byte, err error) {
	if len(b) <= pieceHead || len(b) > pieceHead+chunkMax {
		return 0, nil, broken("piece of %d bytes", len(b)-pieceHead)
	}
	return binary.LittleEndian.Uint32(b), b[pieceHead:], nil
}

// bounds says how long a frame of a type may be; 0: there is no such type.
func bounds(typ byte, messageMax int) int {
	switch typ {
	case frameRefuse:
		return 1 + refuseMax
	case frameUse, framePing, framePong, frameCallCredit, frameReplyCredit:
		return 8
	case frameRaft:
		return max(messageMax+messageHead, raftFrameMax)
	case frameCall:
		return callHead + methodMax + inlineMax
	case frameReply:
		return replyHead + inlineMax
	case frameCallPiece, frameReplyPiece:
		return pieceHead + chunkMax
	case frameCancel:
		return 4
	}
	return 0
}
