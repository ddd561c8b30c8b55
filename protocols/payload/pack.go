package payload

import (
	"errors"
	"fmt"
	"iter"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"

	"github.com/dunlin-iot/dunlin"
)

// Take is what a door calls: Decode, or, for a sender that is a gateway, Split. If the payload has records of u.Device
// alone, the pack is nil and u is to be handed over. Otherwise u is only the pack's address: the door hands over what
// Pack.Offer gives instead, and u.Waiter is told once, when the outcome of the last part is known.
//
// Whether a gateway may speak for a device is decided by the device's shard, part by part.
func (d *Decoder) Take(u *dunlin.Uplink, body []byte) (*Pack, error) {
	if u.Sender.Kind != dunlin.PrincipalGateway {
		return nil, d.Decode(u, body)
	}
	others, err := d.Split(u, body)
	if err != nil || len(others) == 0 {
		return nil, err
	}
	return newPack(u, others)
}

// Pack is a gateway's payload with records of other devices than the one it was sent for: an uplink for each device, and
// the Waiter of all of them, which makes one receipt of theirs.
//
//	lead ──Take──▶ part a ─┐                   ┌─▶ Done(a)─┐
//	               part b ─┼─Offer──▶ Ingestor ┼─▶ Done(b)─┼─▶ lead.Waiter.Done(lead, the worst of them)
//	               part c ─┘      ▲            └─▶ Done(c)─┘         │
//	                              └── those that were refused for now ┘
type Pack struct {
	lead  *dunlin.Uplink
	parts []part
	left  atomic.Int32 // parts on their way
}

type part struct {
	u       *dunlin.Uplink
	receipt dunlin.Receipt // Done's, until the last part is told; the door's afterwards
	settled bool           // kept, or refused for good; guarded as receipt is
	waits   atomic.Bool    // on its way: guards against a second Done
}

// PartError is the receipt's error of a pack that was not kept as a whole: the worst of its parts' errors, which it wraps.
type PartError struct {
	Device      dunlin.DeviceID // whose part it is
	Refused, Of int             // parts
	Err         error
}

func (e *PartError) Error() string {
	rest := ""
	if e.Refused < e.Of && !forNow(e.Err) {
		rest = ", the rest kept"
	}
	return fmt.Sprintf("device %s: %v (%d of %d devices refused%s)", e.Device, e.Err, e.Refused, e.Of, rest)
}

// Unwrap returns the part's own error.
func (e *PartError) Unwrap() error { return e.Err }

func newPack(lead *dunlin.Uplink, others []*dunlin.Uplink) (*Pack, error) {
	p := &Pack{lead: lead}
	if len(lead.Records) > 0 {
		own := *lead
		own.Next = nil
		others = append([]*dunlin.Uplink{&own}, others...)
		lead.Records = nil
	}
	p.parts = make([]part, len(others))
	for i, u := range others {
		if !u.Sender.MayWrite(u.DeviceKey) {
			return nil, &OtherDevice{Device: u.Device, Name: string(u.Device)}
		}
		if u.Device != lead.Device {
			u.MessageID = partID(u.MessageID, lead.Device)
		}
		u.Input.Sender = u.Sender.ID
		if u.Sender.ID == string(u.Device) {
			u.Input.Sender = ""
		}
		u.Waiter, u.Tag = p, uint64(i)
		p.parts[i].u = u
	}
	return p, nil
}

// partID is the message id of another device's part. A device's dedupe window is its own, so the parts may share an id;
// but what was sent for the gateway must not be taken for what was sent for the device with the same packet id or key.
func partID(id uint64, addressed dunlin.DeviceID) uint64 {
	if id == 0 {
		return 0
	}
	return max(id^xxhash.Sum64String(string(addressed)), 1)
}

// Len is how many devices the pack has records of.
func (p *Pack) Len() int { return len(p.parts) }

// Offer chains the parts that are to be handed over: at first all, and once the pack was refused for now those that were.
// The caller must not offer again before the lead's Waiter was told.
func (p *Pack) Offer() (first, last *dunlin.Uplink) {
	n := int32(0)
	for i := range p.parts {
		pt := &p.parts[i]
		if pt.settled {
			continue
		}
		if err := pt.receipt.Err; err != nil && pt.u.MessageID != 0 && !errors.Is(err, dunlin.ErrOverloaded) {
			pt.u.Flags |= dunlin.FlagMayRepeat // what was proposed may commit all the same
		}
		pt.receipt = dunlin.Receipt{}
		pt.waits.Store(true)
		pt.u.Next = nil
		if first == nil {
			first = pt.u
		} else {
			last.Next = pt.u
		}
		last = pt.u
		n++
	}
	p.left.Store(n)
	return first, last
}

// Done makes a Pack the dunlin.Waiter of its parts.
func (p *Pack) Done(u *dunlin.Uplink, r dunlin.Receipt) {
	pt := &p.parts[u.Tag]
	if !pt.waits.CompareAndSwap(true, false) {
		return
	}
	pt.receipt, pt.settled = r, !forNow(r.Err)
	if p.left.Add(-1) == 0 {
		p.lead.Waiter.Done(p.lead, p.receipt())
	}
}

// receipt is the parts' receipts as one. Refused for now goes before refused for good: the sender comes again, and is told
// what is wrong when nothing of the pack is left that could be kept.
func (p *Pack) receipt() dunlin.Receipt {
	all := dunlin.Receipt{Duplicate: true}
	var worst *part
	refused := 0
	for i := range p.parts {
		pt := &p.parts[i]
		r := &pt.receipt
		all.Created = all.Created || r.Created
		all.Duplicate = all.Duplicate && r.Duplicate
		all.RetryAfterSeconds = max(all.RetryAfterSeconds, r.RetryAfterSeconds)
		if pt.u.Device == p.lead.Device {
			all.Seq = r.Seq
		}
		if r.Err == nil {
			continue
		}
		refused++
		if worst == nil || badness(r.Err) > badness(worst.receipt.Err) {
			worst = pt
		}
	}
	if worst == nil {
		return all
	}
	err := &PartError{Device: worst.u.Device, Refused: refused, Of: len(p.parts), Err: worst.receipt.Err}
	return dunlin.Receipt{Err: err, RetryAfterSeconds: all.RetryAfterSeconds}
}

// Receipts yields each device with its part's receipt, in the order of the payload, the addressed device first. It is for
// after the lead's Waiter was told.
func (p *Pack) Receipts() iter.Seq2[dunlin.DeviceID, dunlin.Receipt] {
	return func(yield func(dunlin.DeviceID, dunlin.Receipt) bool) {
		for i := range p.parts {
			if !yield(p.parts[i].u.Device, p.parts[i].receipt) {
				return
			}
		}
	}
}

// forNow reports whether the same uplink may be accepted later.
func forNow(err error) bool {
	return errors.Is(err, dunlin.ErrOverloaded) || errors.Is(err, dunlin.ErrUnavailable) || errors.Is(err, dunlin.ErrNotOwner)
}

// badness ranks errors for the answer to a pack. An error that isn't in the dictionary is the node's fault, which must not
// hide behind the sender's.
func badness(err error) int {
	switch {
	case forNow(err):
		return 6
	case errors.Is(err, dunlin.ErrForbidden), errors.Is(err, dunlin.ErrUnauthenticated):
		return 4
	case errors.Is(err, dunlin.ErrUnknownDevice), errors.Is(err, dunlin.ErrNotFound):
		return 3
	case errors.Is(err, dunlin.ErrTooLarge):
		return 2
	case errors.Is(err, dunlin.ErrBadPayload), errors.Is(err, dunlin.ErrFormat), errors.Is(err, dunlin.ErrInvalid):
		return 1
	}
	return 5
}
