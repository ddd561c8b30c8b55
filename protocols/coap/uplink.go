package coap

import (
	"bytes"
	"sync/atomic"

	"github.com/cespare/xxhash/v2"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/coap/endpoint"
	"github.com/dunlin-iot/dunlin/protocols/payload"
)

// call is a request in work: an uplink on its way, or a job. Calls are used again, so that an uplink needs no allocation
// but its records.
type call struct {
	up      dunlin.Uplink
	rd      *reader
	ref     endpoint.Ref
	job     *job          // not nil: done by a worker
	pack    *payload.Pack // not nil: a gateway's, of several devices; up is only its address
	packSum uint64        // of its payload
	block1  block
	receipt dunlin.Receipt
	open    atomic.Bool // the ingestor has it: guards against a second Done
	next    *call       // free, or in the list of done ones
}

// Done implements dunlin.Waiter.
func (c *call) Done(_ *dunlin.Uplink, r dunlin.Receipt) {
	if c.open.CompareAndSwap(true, false) {
		c.receipt = r
		c.rd.push(c)
	}
}

func (rd *reader) newCall() *call {
	if n := len(rd.calls); n > 0 {
		c := rd.calls[n-1]
		rd.calls = rd.calls[:n-1]
		return c
	}
	return &call{rd: rd}
}

func (rd *reader) release(c *call) {
	c.up, c.receipt, c.ref, c.block1 = dunlin.Uplink{}, dunlin.Receipt{}, 0, block{}
	c.pack, c.packSum = nil, 0
	if c.job != nil {
		rd.releaseJob(c.job)
		c.job = nil
	}
	rd.calls = append(rd.calls, c)
}

// telemetry takes a POST on d/{id}/t or t.
func (rd *reader) telemetry(in *inbound) {
	if rd.blocked(in) {
		return
	}
	if len(in.Payload) > rd.g.cfg.PayloadBytesMax || in.Truncated {
		rd.tooLarge(in, "payload too large")
		return
	}
	if len(in.Payload) == 0 {
		rd.refuse(in, codes.BadRequest, "no payload")
		return
	}
	format, ok := formatOf(in)
	if !ok {
		rd.refuse(in, codes.UnsupportedMediaType, "no Content-Format, and neither a number nor JSON")
		return
	}
	if p, ok := rd.login(in, plan{}); ok {
		rd.uplink(in, p, format)
	}
}

// blocked answers uploads in blocks (RFC 7959), which this gateway does not put together. A whole payload in one block is
// none; of others the first is told that it is too large, and a later one that those before it are missing.
func (rd *reader) blocked(in *inbound) bool {
	switch b := in.block1; {
	case in.block2.set && in.block2.num > 0:
		rd.refuse(in, codes.BadOption, "no such block of the answer")
	case b.set && b.szx == 7:
		rd.refuse(in, codes.BadRequest, "block size 7 is reserved") // RFC 7959 §2.2
	case b.set && b.num > 0:
		rd.refuse(in, codes.RequestEntityIncomplete, "no blocks before this one")
	case b.set && b.more:
		rd.tooLarge(in, "send the payload in one message")
	default:
		return false
	}
	return true
}

// formatOf returns the payload's format. Without a Content-Format (RFC 7252 §5.5.1 leaves it to the receiver) it is JSON
// or a number if it looks so; anything else is not guessed.
func formatOf(in *inbound) (dunlin.ContentFormat, bool) {
	if in.format >= 0 {
		return dunlin.ContentFormat(in.format), true // whether it is supported is the decoder's to say
	}
	switch b := bytes.TrimLeft(in.Payload, " \t\r\n"); {
	case len(b) == 0:
		return 0, false
	case b[0] == '[':
		return dunlin.FormatSenMLJSON, true
	case b[0] == '{':
		return dunlin.FormatJSON, true
	case b[0] >= '0' && b[0] <= '9', b[0] == '-', b[0] == '+', b[0] == '.':
		return dunlin.FormatText, true
	}
	return 0, false
}

// uplink decodes the payload and puts the uplink into the chain that is handed over at the end of this turn.
func (rd *reader) uplink(in *inbound, p dunlin.Principal, format dunlin.ContentFormat) {
	dev, ok := rd.deviceOf(in, p)
	if !ok {
		return
	}
	key := dunlin.DeviceKey{Tenant: p.Tenant, Device: dev}
	if !p.MayWrite(key) {
		rd.refuse(in, codes.Forbidden, "not allowed")
		return
	}
	c := in.call
	if c == nil {
		if !rd.m.CanBegin(in.Request) { // before the payload is paid for
			rd.busy(in)
			return
		}
		c = rd.newCall()
	}
	u := &c.up
	u.DeviceKey, u.Sender, u.Waiter = key, p, c
	u.Flags = dunlin.FlagMayRepeat | dunlin.FlagExchange
	rd.stamped = max(rd.received, rd.stamped+1)
	u.Format, u.MessageID, u.Received = format, in.ID, rd.stamped
	if p.Kind != dunlin.PrincipalOpen && p.ID != string(dev) {
		u.Input.Sender = p.ID
	}
	if err := rd.take(in, c); err != nil {
		if in.call == nil {
			rd.release(c)
		}
		rd.badPayload(in, err)
		return
	}
	if in.call == nil {
		ref, ok := rd.m.Begin(rd.now, in.Request, c.pack != nil)
		if !ok {
			rd.release(c)
			rd.busy(in)
			return
		}
		c.ref = ref
		rd.remember(in.Peer, dev)
	}
	c.block1 = in.block1
	if c.pack != nil {
		c.packSum = xxhash.Sum64(in.Payload)
	}
	c.open.Store(true)
	if c.job != nil {
		rd.releaseJob(c.job) // its copy of the datagram is done with
		c.job = nil
	}
	first, last := u, u
	if c.pack != nil {
		first, last = c.pack.Offer()
	}
	if rd.first == nil {
		rd.first = first
	} else {
		rd.last.Next = first
	}
	rd.last = last
}

// take makes the payload a part of the call's uplink.
func (rd *reader) take(in *inbound, c *call) (err error) {
	u := &c.up
	if in.target == result {
		u.Kind, u.Timer, u.Payload = dunlin.InputResult, string(in.command), bytes.Clone(in.Payload)
		return nil
	}
	if u.Sender.Kind == dunlin.PrincipalGateway {
		if id := rd.g.packs.find(u, in.Payload); id != 0 {
			u.MessageID = id
		}
	}
	c.pack, err = rd.g.deps.Decoder.Take(u, in.Payload)
	return err
}

func (rd *reader) badPayload(in *inbound, err error) {
	switch code := codeOf(err); code {
	case codes.RequestEntityTooLarge:
		rd.tooLarge(in, err.Error())
	case codes.InternalServerError:
		rd.g.log.Error("decode failed", "error", err)
		rd.refuse(in, code, "")
	default:
		rd.refuse(in, code, err.Error())
	}
}

// deviceOf returns the device that the request is about: of the path, or of the credential.
func (rd *reader) deviceOf(in *inbound, p dunlin.Principal) (dunlin.DeviceID, bool) {
	if in.device == nil {
		if p.Kind != dunlin.PrincipalDevice {
			rd.refuse(in, codes.Unauthorized, "no credential names a device")
			return "", false
		}
		return dunlin.DeviceID(p.ID), true
	}
	if dev, ok := rd.recall(in); ok {
		return dev, true
	}
	dev := dunlin.DeviceID(in.device)
	if err := dev.Validate(); err != nil {
		rd.refuse(in, codes.BadRequest, err.Error())
		return "", false
	}
	rd.remember(in.Peer, dev)
	return dev, true
}

// finished answers a call that is done.
func (rd *reader) finished(c *call) {
	if c.job != nil {
		rd.jobDone(c)
		return
	}
	rd.ansOf(c)
	rd.codes[uint8(rd.ans.Code)].Add(1)
	rd.m.Finish(rd.now, c.ref, &rd.ans.Response)
	rd.release(c)
}

// ansOf makes the answer of a receipt.
func (rd *reader) ansOf(c *call) {
	a := &rd.ans
	err := c.receipt.Err
	if err == nil {
		a.reset(codes.Changed)
	} else {
		a.reset(codeOf(err))
	}
	if a.Code == codes.ServiceUnavailable {
		a.uint(message.MaxAge, uint32(max(c.receipt.RetryAfterSeconds, 1)))
	}
	if c.block1.set {
		a.uint(message.Block1, c.block1.value())
	}
	if c.pack != nil {
		rd.g.packs.answered(&c.up, c.packSum, a.Code == codes.ServiceUnavailable)
	}
	if err == nil {
		return
	}
	if c.pack == nil {
		a.text = append(a.text[:0], shortText(err)...)
	} else if a.Code != codes.InternalServerError {
		a.text = appendCut(a.text[:0], err.Error(), diagnosticBytesMax) // who gets this has logged in
	}
	a.Payload = a.text
	if a.Code == codes.InternalServerError {
		rd.g.log.Error("uplink failed", "device", string(c.up.Device), "error", err)
	}
}
