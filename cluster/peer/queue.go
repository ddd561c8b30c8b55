package peer

import "encoding/binary"

const (
	raftFrameMax = 48 << 10 // bytes of a Raft frame of several messages: fits what the other side reads at a time
	copyMax      = 16 << 10 // bytes of a message that is copied into the frame; a longer one is referred to
	keepMax      = 1 << 20  // bytes of a buffer that is kept for later
)

// raftq holds Raft messages on their way to one node, as the frames that are to be written: small ones behind each other in
// buf, with long ones' data at their places. It is not safe for concurrent use.
//
//	buf   ┌──────┬─────┬─────┬─────┬──────┬─────────┬──────┬─────┐
//	      │ head │ msg │ msg │ msg │ head │ msghead │ head │ msg │
//	      └──────┴─────┴─────┴─────┴──────┴────────▲┴──────┴─────┘
//	refs                                           └── 1 MiB of entries
type raftq struct {
	buf   []byte
	refs  []ref
	open  int // where the frame begins that still grows; -1: none
	bytes int
	count int
}

// ref is data to write before buf[at:].
type ref struct {
	at   int
	data []byte
}

func (q *raftq) empty() bool { return q.bytes == 0 }

func (q *raftq) reset() {
	clear(q.refs)
	q.refs, q.open, q.bytes, q.count = q.refs[:0], -1, 0, 0
	if q.buf = q.buf[:0]; cap(q.buf) > keepMax {
		q.buf = nil
	}
}

// add appends a message. It keeps data if it is long.
func (q *raftq) add(sh uint16, data []byte) {
	size := messageHead + len(data)
	q.bytes += size
	q.count++
	if len(data) > copyMax {
		q.buf = appendHead(q.buf, frameRaft, size)
		q.message(sh, len(data))
		q.refs, q.open = append(q.refs, ref{len(q.buf), data}), -1
		return
	}
	if q.open < 0 || len(q.buf)-q.open-frameHead+size > raftFrameMax {
		q.open = len(q.buf)
		q.buf = appendHead(q.buf, frameRaft, 0)
	}
	q.message(sh, len(data))
	q.buf = append(q.buf, data...)
	putHead(q.buf[q.open:], frameRaft, len(q.buf)-q.open-frameHead)
}

func (q *raftq) message(sh uint16, n int) {
	q.buf = binary.LittleEndian.AppendUint16(q.buf, sh)
	q.buf = binary.LittleEndian.AppendUint32(q.buf, uint32(n))
}

// outflow is a body on its way out.
type outflow struct {
	key    flowKey
	head   []byte // opens it; nil once written
	body   []byte
	off    int
	credit int
	ready  bool   // in bulkq.ready
	age    int    // ticks without a byte written
	gone   func() // called when it is written or given up; nil: nobody cares
}

// bulkq holds the bodies on their way to one node. It is not safe for concurrent use.
type bulkq struct {
	all     map[flowKey]*outflow
	ready   []*outflow // have something to write now, in turn
	replies int        // bytes of answers in it
}

func (q *bulkq) add(o *outflow) {
	if q.all == nil {
		q.all = map[flowKey]*outflow{}
	}
	if o.key.reply {
		q.replies += len(o.body)
	}
	q.all[o.key] = o
	q.wake(o)
}

func (q *bulkq) wake(o *outflow) {
	if !o.ready {
		o.ready = true
		q.ready = append(q.ready, o)
	}
}

// grant lets more of a body go. False: nobody would ask for so much.
func (q *bulkq) grant(key flowKey, n int) bool {
	o := q.all[key]
	if o == nil { // given up meanwhile
		return true
	}
	if len(o.body) <= inlineMax || n > len(o.body)-o.off-o.credit {
		return false
	}
	o.credit += n
	q.wake(o)
	return true
}

// remove gives a body up.
func (q *bulkq) remove(key flowKey) {
	o := q.all[key]
	if o == nil {
		return
	}
	delete(q.all, key)
	if key.reply {
		q.replies -= len(o.body)
	}
	if o.gone != nil {
		o.gone()
	}
}

// next appends the head of the next piece to head and returns its body. False: nothing can be written.
func (q *bulkq) next(head []byte) (_, body []byte, ok bool) {
	for len(q.ready) > 0 {
		o := q.ready[0]
		q.ready[0] = nil
		q.ready = q.ready[1:]
		o.ready = false
		if q.all[o.key] != o {
			continue
		}
		o.age = 0
		if o.head != nil {
			head, o.head = append(head, o.head...), nil
			if len(o.body) <= inlineMax {
				body = o.body
				q.remove(o.key)
			}
			return head, body, true
		}
		n := min(chunkMax, o.credit, len(o.body)-o.off)
		if n == 0 {
			continue
		}
		typ := byte(frameCallPiece)
		if o.key.reply {
			typ = frameReplyPiece
		}
		head = binary.LittleEndian.AppendUint32(appendHead(head, typ, pieceHead+n), o.key.id)
		body = o.body[o.off : o.off+n]
		o.off, o.credit = o.off+n, o.credit-n
		if o.off == len(o.body) {
			q.remove(o.key)
		} else if o.credit > 0 {
			q.wake(o)
		}
		return head, body, true
	}
	return head, nil, false
}
