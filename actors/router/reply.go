package router

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

// The bits of a receipt's head.
const (
	recErr       = 1 << 0
	recDuplicate = 1 << 1
	recCreated   = 1 << 2
	recSameErr   = 1 << 3 // the error of the error before
	recKnown     = 1<<4 - 1
)

// errTextMax bounds the text of an error between nodes, in bytes.
const errTextMax = 512

// answer is what became of one part of a call.
type answer struct {
	err      error // of the call: nothing is known of its uplinks
	refused  bool  // by the node as a whole: nothing of it was tried
	hint     dunlin.NodeID
	hintTerm uint64
	receipts []dunlin.Receipt
}

// sentinels are the errors that keep their meaning on the way, by the bits of a mask. New ones go to the end.
func sentinels() [15]error {
	return [...]error{dunlin.ErrInvalid, dunlin.ErrBadPayload, dunlin.ErrFormat, dunlin.ErrTooLarge, dunlin.ErrUnauthenticated, dunlin.ErrForbidden,
		dunlin.ErrNotFound, dunlin.ErrUnknownDevice, dunlin.ErrConflict, dunlin.ErrPrecondition, dunlin.ErrOverloaded, dunlin.ErrUnavailable,
		dunlin.ErrNotOwner, dunlin.ErrCursorLost, errInternal}
}

// errInternal stands for errors that are in nobody's dictionary.
var errInternal = errors.New("internal error")

// maskOf says which sentinels an error matches.
func maskOf(err error) (mask uint64) {
	for i, s := range sentinels() {
		if errors.Is(err, s) {
			mask |= 1 << i
		}
	}
	return mask
}

// far is an error of another node.
type far struct {
	mask uint64
	text string
}

func (e *far) Error() string { return e.text }

// Is makes errors.Is see what the error was there.
func (e *far) Is(target error) bool {
	for i, s := range sentinels() {
		if e.mask&(1<<i) != 0 && s == target {
			return true
		}
	}
	return false
}

func cutText(s string) string {
	if len(s) > errTextMax {
		return strings.ToValidUTF8(s[:errTextMax], "") + "…"
	}
	return s
}

// appendReply appends the reply to a batch.
func appendReply(dst []byte, answers []answer) []byte {
	w := writer{b: append(dst, replyVersion)}
	var before error
	for i := range answers {
		a := &answers[i]
		if a.refused {
			w.b = append(w.b, 1)
			w.b = binary.LittleEndian.AppendUint64(w.b, uint64(a.hint))
			w.uvarint(a.hintTerm)
			continue
		}
		w.b = append(w.b, 0)
		for j := range a.receipts {
			rec := &a.receipts[j]
			same := rec.Err != nil && rec.Err == before
			w.b = append(w.b, bit(rec.Err != nil, recErr)|bit(rec.Duplicate, recDuplicate)|bit(rec.Created, recCreated)|bit(same, recSameErr))
			w.uvarint(rec.Seq)
			if rec.Err == nil {
				continue
			}
			w.uvarint(uint64(max(rec.RetryAfterSeconds, 0)))
			if !same {
				w.uvarint(maskOf(rec.Err))
				w.string(cutText(rec.Err.Error()))
				before = rec.Err
			}
		}
	}
	return w.b
}

// decodeReply reads the reply to a call with these parts.
func (r *Router) decodeReply(b []byte, parts []part) ([]answer, error) {
	if len(b) == 0 || b[0] != replyVersion {
		return nil, fmt.Errorf("%w: a reply of an unknown version", dunlin.ErrInvalid)
	}
	rd := &reader{b: b, i: 1}
	answers := make([]answer, len(parts))
	var before error
	for i := range parts {
		a := &answers[i]
		switch status := rd.byte("status"); status {
		case 0:
			a.receipts = make([]dunlin.Receipt, len(parts[i].items))
			for j := range a.receipts {
				rd.receipt(&a.receipts[j], &before)
			}
		case 1:
			a.refused = true
			a.hint = dunlin.NodeID(binary.LittleEndian.Uint64(rd.fixed("hint", 8)))
			a.hintTerm = rd.uvarint("hint")
		default:
			rd.fail("status")
		}
	}
	if rd.i != len(b) {
		rd.fail("end")
	}
	if rd.what != "" {
		return nil, fmt.Errorf("%w: reply: %s", dunlin.ErrInvalid, rd.what)
	}
	return answers, nil
}

func (r *reader) receipt(rec *dunlin.Receipt, before *error) {
	head := r.byte("receipt")
	if head&^recKnown != 0 {
		r.fail("receipt")
		return
	}
	rec.Duplicate, rec.Created = head&recDuplicate != 0, head&recCreated != 0
	rec.Seq = r.uvarint("seq")
	if head&recErr == 0 {
		return
	}
	rec.RetryAfterSeconds = int(min(r.uvarint("seconds"), 3600))
	if head&recSameErr == 0 {
		e := &far{mask: r.uvarint("error"), text: string(r.bytes("text of an error"))}
		if e.text == "" {
			e.text = "refused"
		}
		*before = e
	}
	if rec.Err = *before; rec.Err == nil {
		r.fail("error")
	}
}
