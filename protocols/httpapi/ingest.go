package httpapi

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/danielgtaylor/huma/v2"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/payload"
)

// pending is one uplink on its way, with what a request needs besides. It goes back to the pool only when the receipt
// came while somebody waited: after a client left, the uplink still belongs to the directory, and the garbage collector
// takes the pending when the directory lets go.
type pending struct {
	dunlin.Uplink
	pack  *payload.Pack // not nil: a gateway's, of several devices; Uplink is only its address
	count int           // uplinks to hand over: 1, or the pack's parts
	g     *Gateway
	done  chan dunlin.Receipt // size 1: told exactly once, so Done never blocks, also after the client left
	timer *time.Timer
	buf   []byte // the request's body, then the answer's
}

// bufferBytesMax is the largest buffer that goes back to the pool.
const bufferBytesMax = 64 << 10

func newPending(g *Gateway) *pending {
	p := &pending{g: g, done: make(chan dunlin.Receipt, 1), timer: time.NewTimer(time.Hour)}
	p.timer.Stop()
	return p
}

// Done makes pending a dunlin.Waiter.
func (p *pending) Done(_ *dunlin.Uplink, r dunlin.Receipt) {
	p.g.inFlight.Add(-int64(p.count))
	p.done <- r
}

func (p *pending) release() {
	p.Uplink, p.pack = dunlin.Uplink{}, nil
	if cap(p.buf) > bufferBytesMax {
		p.buf = nil
	}
	p.g.pendings.Put(p)
}

// errOutcomeUnknown is the answer when the wait for the commit ends first.
var errOutcomeUnknown = errors.New("outcome unknown")

// serveTelemetry is POST /v1/devices/{id}/t: one uplink, answered when it is committed.
func (g *Gateway) serveTelemetry(c *call, r *http.Request) {
	p := g.pendings.Get().(*pending)
	receipt, err := g.sendOne(c, r, p)
	if errors.Is(err, errOutcomeUnknown) { // p is the directory's now
		g.metrics.abandoned.Inc()
		c.fail(r, unknownOutcome(r.Header.Get("Idempotency-Key") != ""))
		return
	}
	if err != nil {
		c.fail(r, err)
		p.release()
		return
	}
	if receipt.Err != nil {
		c.fail(r, p.refusal(receipt))
		p.release()
		return
	}
	p.buf = appendReceipt(append(p.buf[:0], '{'), receipt)
	if p.pack != nil {
		p.buf = appendDevices(p.buf, p.pack)
	}
	p.buf = append(p.buf, "}\n"...)
	h := c.Header()
	h["Content-Type"] = g.jsonHeader
	_, _ = c.Write(p.buf)
	p.release()
}

// sendOne decodes the request to p's uplink, hands it over and waits.
func (g *Gateway) sendOne(c *call, r *http.Request, p *pending) (dunlin.Receipt, error) {
	var receipt dunlin.Receipt
	format, err := formatOf(r)
	if err != nil {
		return receipt, err
	}
	if p.buf, err = readBody(c, r, p.buf[:0], g.cfg.PayloadBytesMax); err != nil {
		return receipt, err
	}
	id, flags, err := messageID(c, r.Header.Get("Idempotency-Key"), 0)
	if err != nil {
		return receipt, err
	}
	u := &p.Uplink
	*u = dunlin.Uplink{DeviceKey: c.key(r.PathValue("id")), Sender: c.principal, Waiter: p}
	u.Input = dunlin.Input{Flags: flags, Format: format, MessageID: id, Received: g.cfg.Clock(), Sender: senderOf(c.principal, u.Device)}
	if p.pack, err = g.deps.Decoder.Take(u, p.buf); err != nil {
		return receipt, err
	}
	first := u
	p.count = 1
	if p.pack != nil {
		first, _ = p.pack.Offer()
		p.count = p.pack.Len()
	}
	return g.await(r, p, first)
}

// await hands p's uplinks over and waits for their receipt.
func (g *Gateway) await(r *http.Request, p *pending, first *dunlin.Uplink) (receipt dunlin.Receipt, err error) {
	if err := g.reserve(p.count); err != nil {
		return receipt, err
	}
	g.deps.Ingestor.Ingest(first)
	p.timer.Reset(g.cfg.CommitTimeout)
	defer p.timer.Stop()
	select {
	case receipt = <-p.done:
		return receipt, nil
	case <-p.timer.C:
	case <-r.Context().Done():
	}
	return receipt, errOutcomeUnknown
}

// reserve counts n uplinks as in flight, or refuses them.
func (g *Gateway) reserve(n int) error {
	if now := g.inFlight.Add(int64(n)); now > int64(g.cfg.InFlightMax) {
		g.inFlight.Add(-int64(n))
		return fmt.Errorf("%w: %d uplinks wait for their commit, at most %d may", dunlin.ErrOverloaded, now-int64(n), g.cfg.InFlightMax)
	}
	return nil
}

// readBody appends the request's body to dst, at most limit bytes, and takes the read deadline off: net/http keeps
// reading in the background while the handler works, and a deadline there would cancel the request.
func readBody(c *call, r *http.Request, dst []byte, limit int) ([]byte, error) {
	if r.ContentLength > int64(limit) {
		return dst, fmt.Errorf("%w: the body has %d bytes, at most %d are taken", dunlin.ErrTooLarge, r.ContentLength, limit)
	}
	if enc := r.Header.Get("Content-Encoding"); enc != "" && !strings.EqualFold(enc, "identity") {
		return dst, fmt.Errorf("%w: content encoding %q; send the body as it is", dunlin.ErrFormat, enc)
	}
	if want := int(max(r.ContentLength, 0)) + 1; cap(dst)-len(dst) < want {
		dst = append(make([]byte, 0, len(dst)+max(want, 1024)), dst...)
	}
	for {
		if len(dst) == cap(dst) {
			dst = append(dst, 0)[:len(dst)]
		}
		n, err := r.Body.Read(dst[len(dst):cap(dst)])
		dst = dst[:len(dst)+n]
		if len(dst) > limit {
			return dst, fmt.Errorf("%w: the body has more than the %d bytes that are taken", dunlin.ErrTooLarge, limit)
		}
		if err == io.EOF {
			_ = http.NewResponseController(c.ResponseWriter).SetReadDeadline(time.Time{})
			return dst, nil
		}
		if err != nil {
			if ne, ok := errors.AsType[net.Error](err); ok && ne.Timeout() || errors.Is(err, os.ErrDeadlineExceeded) {
				return dst, newProblem(http.StatusRequestTimeout, "The body did not arrive in time.").withHeader("Connection", "close")
			}
			return dst, fmt.Errorf("%w: the body ended early: %w", dunlin.ErrBadPayload, err)
		}
	}
}

// formatOf reads the Content-Type. curl -d sends a form's type unasked, so the refusal says what to write.
func formatOf(r *http.Request) (dunlin.ContentFormat, error) {
	ct := r.Header.Get("Content-Type")
	if f, ok := payload.FormatOf(ct); ok {
		return f, nil
	}
	if ct == "" {
		return 0, fmt.Errorf("%w: the request has no Content-Type; say for instance Content-Type: application/senml+json", dunlin.ErrFormat)
	}
	return 0, fmt.Errorf("%w: Content-Type %s; taken are application/senml+json, application/senml+cbor, application/json, application/cbor, "+
		"text/plain and application/octet-stream (with curl: -H 'Content-Type: application/senml+json')", dunlin.ErrFormat, quoted(ct))
}

const idempotencyKeyBytesMax = 255

// messageID hashes an Idempotency-Key to what the device's dedupe window knows messages by. The sender is in it, so that
// two senders' counters don't meet; so is the item's place in a batch.
func messageID(c *call, key string, item int) (uint64, dunlin.InputFlags, error) {
	if key == "" {
		return 0, 0, nil
	}
	if len(key) > idempotencyKeyBytesMax {
		return 0, 0, invalidValue("header.Idempotency-Key", fmt.Sprintf("the key has %d bytes, at most %d are taken", len(key), idempotencyKeyBytesMax), nil)
	}
	var buf [512]byte
	b := append(buf[:0], "http\x00"...)
	b = append(b, byte(c.principal.Kind))
	b = append(b, c.principal.ID...)
	b = append(b, 0)
	b = append(b, strings.Trim(key, `"`)...) // the header's draft writes the key as a quoted string; most clients don't
	if item > 0 {
		b = append(b, 0)
		b = strconv.AppendInt(b, int64(item), 10)
	}
	id := xxhash.Sum64(b)
	if id == 0 {
		id = 1
	}
	return id, dunlin.FlagMayRepeat, nil
}

// senderOf is Input.Sender: who sent it, if not the device itself.
func senderOf(p dunlin.Principal, dev dunlin.DeviceID) string {
	if p.Kind == dunlin.PrincipalOpen || p.Kind == dunlin.PrincipalDevice && p.ID == string(dev) {
		return ""
	}
	return p.ID
}

// appendReceipt appends the fields of a good receipt.
func appendReceipt(dst []byte, r dunlin.Receipt) []byte {
	dst = append(dst, `"seq":`...)
	dst = strconv.AppendUint(dst, r.Seq, 10)
	dst = append(dst, `,"duplicate":`...)
	dst = strconv.AppendBool(dst, r.Duplicate)
	if r.Created {
		dst = append(dst, `,"created":true`...)
	}
	return dst
}

// appendDevices appends the parts' receipts of a gateway's pack.
func appendDevices(dst []byte, pack *payload.Pack) []byte {
	sep := `,"devices":[{"device":`
	for dev, r := range pack.Receipts() {
		dst = append(appendString(append(dst, sep...), string(dev)), ',')
		dst = append(appendReceipt(dst, r), '}')
		sep = `,{"device":`
	}
	return append(dst, ']')
}

// refusal is a bad receipt's error; of a pack it lists every device that was refused.
func (p *pending) refusal(receipt dunlin.Receipt) error {
	err := receiptError(receipt)
	if p.pack == nil {
		return err
	}
	all := *problemOf(err)
	if all.Status == http.StatusInternalServerError {
		return err // as it is, for the log
	}
	for dev, r := range p.pack.Receipts() {
		if r.Err != nil {
			all.Errors = append(all.Errors, &huma.ErrorDetail{Message: problemOf(r.Err).Detail, Location: "device", Value: string(dev)})
		}
	}
	return &all
}

// receiptError is a bad receipt's error; a 503 says how long to wait.
func receiptError(r dunlin.Receipt) error {
	p := problemOf(r.Err)
	if p.Status != http.StatusServiceUnavailable {
		return r.Err
	}
	q := *p
	q.RetryAfter = max(1, r.RetryAfterSeconds)
	return &q
}

// unknownOutcome tells a client whose wait ended before the commit was known.
func unknownOutcome(hasKey bool) *Problem {
	p := &Problem{Type: problemURN + "outcome-unknown", Title: "Not confirmed in time", Status: http.StatusServiceUnavailable, RetryAfter: 1,
		Detail: "The uplink was taken but its commit is not confirmed yet; it may still be kept. Send it again with the same Idempotency-Key: it then counts once."}
	if !hasKey {
		p.Detail = "The uplink was taken but its commit is not confirmed yet; it may still be kept. Sent again it may count twice: give uplinks an Idempotency-Key."
	}
	return p
}

// waitFor waits for a channel as sendOne does, for batches.
func waitFor(ctx context.Context, done <-chan struct{}, limit time.Duration) bool {
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case <-done:
		return true
	case <-timer.C:
	case <-ctx.Done():
	}
	return false
}
