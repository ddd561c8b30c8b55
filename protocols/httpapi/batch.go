package httpapi

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync/atomic"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/payload"
)

// batchItem is one uplink of a batch before it is decoded.
type batchItem struct {
	device dunlin.DeviceID
	key    string // the item's own idempotency key, if it has one
	format dunlin.ContentFormat
	body   []byte
	err    error // the item can't be sent; the others can
}

// jsonItem is a batchItem as JSON writes it.
type jsonItem struct {
	Device        string          `json:"device" doc:"Whose data it is"`
	ID            string          `json:"id,omitempty" doc:"The item's own idempotency key"`
	Format        string          `json:"format,omitempty" doc:"Media type of the payload; left out: application/senml+json for an array, application/json for an object, text/plain for a number or string"`
	Payload       json.RawMessage `json:"payload,omitempty" doc:"The payload, if it is JSON"`
	PayloadBase64 *string         `json:"payload_base64,omitempty" doc:"The payload in base64, for other formats"`
}

// batch is a POST /v1/ingest in work: the Waiter of all its uplinks.
type batch struct {
	g     *Gateway
	items []batchItem
	slots []batchSlot
	left  atomic.Int64
	done  chan struct{} // closed by the last receipt
}

type batchSlot struct {
	receipt dunlin.Receipt
	told    atomic.Bool // receipt is complete; until then only Done touches it
}

// Done makes batch a dunlin.Waiter; the uplink's Tag is its slot.
func (b *batch) Done(u *dunlin.Uplink, r dunlin.Receipt) {
	b.g.inFlight.Add(-1)
	slot := &b.slots[u.Tag]
	slot.receipt = r
	slot.told.Store(true)
	if b.left.Add(-1) == 0 {
		close(b.done)
	}
}

// serveBatch is POST /v1/ingest: many uplinks, each with its own result, answered when the last one's outcome is known.
func (g *Gateway) serveBatch(c *call, r *http.Request) {
	body, err := readBody(c, r, nil, g.cfg.BatchBytesMax)
	if err != nil {
		c.fail(r, err)
		return
	}
	items, err := splitBatch(r.Header.Get("Content-Type"), body, g.cfg.BatchItemsMax)
	if err != nil {
		c.fail(r, err)
		return
	}
	b := &batch{g: g, items: items, slots: make([]batchSlot, len(items)), done: make(chan struct{})}
	first, n, err := b.uplinks(c, r.Header.Get("Idempotency-Key"))
	if err == nil && n > 0 {
		err = g.reserve(n)
	}
	if err != nil {
		c.fail(r, err)
		return
	}
	if n > 0 {
		b.left.Store(int64(n))
		g.deps.Ingestor.Ingest(first)
		if !waitFor(r.Context(), b.done, g.cfg.CommitTimeout) {
			g.metrics.abandoned.Inc()
		}
	}
	b.answer(c, r)
}

// uplinks decodes the items that can be sent and chains them in order; the others keep their error.
func (b *batch) uplinks(c *call, key string) (first *dunlin.Uplink, n int, err error) {
	ups := make([]dunlin.Uplink, len(b.items))
	received := b.g.cfg.Clock() // of the first; each differs, or of two readings without a time one is lost
	next := &first
	for i := range b.items {
		item := &b.items[i]
		if item.err != nil {
			continue
		}
		dev := c.key(string(item.device))
		if item.err = dev.Device.Validate(); item.err != nil {
			continue
		}
		if !c.principal.MayWrite(dev) {
			item.err = fmt.Errorf("%w: %q may not send as device %q", dunlin.ErrForbidden, c.principal.ID, dev.Device)
			continue
		}
		id, flags, err := messageID(c, item.key, 0)
		if err == nil && item.key == "" {
			id, flags, err = messageID(c, key, i+1)
		}
		if err != nil {
			return nil, 0, err
		}
		u := &ups[i]
		u.DeviceKey, u.Sender, u.Waiter, u.Tag = dev, c.principal, b, uint64(i)
		u.Input = dunlin.Input{Flags: flags, Format: item.format, MessageID: id, Received: received + dunlin.Time(n), Sender: senderOf(c.principal, dev.Device)}
		if item.err = b.g.deps.Decoder.Decode(u, item.body); item.err != nil {
			continue
		}
		*next, next = u, &u.Next
		n++
	}
	return first, n, nil
}

// answer writes the results in the items' order: 200 if all were kept, 207 if not.
func (b *batch) answer(c *call, r *http.Request) {
	out := make([]byte, 0, 64+64*len(b.items))
	kept := 0
	out = append(out, `{"items":[`...)
	for i := range b.items {
		item, slot := &b.items[i], &b.slots[i]
		if i > 0 {
			out = append(out, ',')
		}
		out = append(out, `{"device":`...)
		out = appendString(out, string(item.device))
		out = append(out, ',')
		err := item.err
		switch {
		case err != nil:
		case !slot.told.Load():
			err = unknownOutcome(item.key != "" || r.Header.Get("Idempotency-Key") != "")
		case slot.receipt.Err != nil:
			err = receiptError(slot.receipt)
		default:
			kept++
			out = appendReceipt(out, slot.receipt)
		}
		if err != nil {
			doc := marshal(c.problem(r.Context(), err))
			out = append(append(out, `"problem":`...), doc...)
		}
		out = append(out, '}')
	}
	out = fmt.Appendf(out, `],"kept":%d,"failed":%d}`+"\n", kept, len(b.items)-kept)
	c.Header().Set("Content-Type", "application/json")
	if kept < len(b.items) {
		c.WriteHeader(http.StatusMultiStatus)
	}
	_, _ = c.Write(out)
}

// splitBatch takes a batch's body apart, at most limit items. An error refuses the whole batch, before anything was sent.
func splitBatch(contentType string, body []byte, limit int) ([]batchItem, error) {
	switch mediaTypeOf(contentType) {
	case "application/senml+json":
		return splitSenMLJSON(body, limit)
	case "application/senml+cbor":
		return splitSenMLCBOR(body, limit)
	case "application/json", "application/x-ndjson", "application/jsonl", "application/json-seq":
		return splitItems(body, limit)
	}
	return nil, fmt.Errorf("%w: Content-Type %s; a batch is application/json (an array of {device, payload}), application/x-ndjson (one per line), "+
		"application/senml+json or application/senml+cbor (base names name the devices)", dunlin.ErrFormat, quoted(contentType))
}

func tooMany(limit int) error {
	return fmt.Errorf("%w: the batch has more than %d items", dunlin.ErrTooLarge, limit)
}

// splitItems reads an array of items, or items one after the other.
func splitItems(body []byte, limit int) ([]batchItem, error) {
	dec := json.NewDecoder(bytes.NewReader(body))
	trimmed := bytes.TrimLeft(body, " \t\r\n")
	array := len(trimmed) > 0 && trimmed[0] == '['
	if array {
		if _, err := dec.Token(); err != nil {
			return nil, badBatch(0, dec.InputOffset(), err)
		}
	}
	var items []batchItem
	for !array || dec.More() {
		var it jsonItem
		err := dec.Decode(&it)
		if err == io.EOF && !array {
			return items, nil
		}
		if err != nil {
			return nil, badBatch(len(items), dec.InputOffset(), err)
		}
		if len(items) == limit {
			return nil, tooMany(limit)
		}
		items = append(items, it.item())
	}
	if _, err := dec.Token(); err != nil { // the closing bracket
		return nil, badBatch(len(items), dec.InputOffset(), err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, badBatch(len(items), dec.InputOffset(), errors.New("there is more behind the array's end"))
	}
	return items, nil
}

func badBatch(item int, offset int64, err error) error {
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		err = errors.New("it ends early")
	}
	p := problemOf(fmt.Errorf("%w: item %d, near byte %d: %w; nothing of the batch was taken", dunlin.ErrBadPayload, item, offset, err))
	return p.at(fmt.Sprintf("body[%d]", item), nil)
}

// item checks a JSON item and finds its format.
func (it *jsonItem) item() batchItem {
	out := batchItem{device: dunlin.DeviceID(it.Device), key: it.ID}
	if len(it.ID) > idempotencyKeyBytesMax {
		out.err = fmt.Errorf("%w: the item's id has %d bytes, at most %d are taken", dunlin.ErrInvalid, len(it.ID), idempotencyKeyBytesMax)
		return out
	}
	if (it.PayloadBase64 == nil) == (len(it.Payload) == 0) {
		out.err = fmt.Errorf("%w: an item has either a payload or a payload_base64", dunlin.ErrBadPayload)
		return out
	}
	out.body = it.Payload
	out.format = dunlin.FormatJSON
	if it.PayloadBase64 != nil {
		out.format = dunlin.FormatOctets
		var err error
		if out.body, err = base64.StdEncoding.DecodeString(*it.PayloadBase64); err != nil {
			out.err = fmt.Errorf("%w: payload_base64: %w", dunlin.ErrBadPayload, err)
			return out
		}
	} else {
		switch it.Payload[0] {
		case '{':
		case '[':
			out.format = dunlin.FormatSenMLJSON
		case '"':
			var text string
			_ = json.Unmarshal(it.Payload, &text) // the decoder has seen that it is a string
			out.format, out.body = dunlin.FormatText, []byte(text)
		default:
			out.format = dunlin.FormatText
		}
	}
	if it.Format != "" {
		f, ok := payload.FormatOf(it.Format)
		if !ok {
			out.err = fmt.Errorf("%w: %s", dunlin.ErrFormat, quoted(it.Format))
			return out
		}
		out.format = f
	}
	return out
}
