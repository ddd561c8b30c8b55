package httpapi

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/payload"
)

// bodyView is the payload of a command, of its answer or of a publication: whichever field people can read it best in.
type bodyView struct {
	JSON        json.RawMessage `json:"json,omitempty" doc:"The payload, if it is JSON"`
	Text        string          `json:"text,omitempty" doc:"The payload, if it is plain text"`
	Payload     []byte          `json:"payload,omitempty" doc:"Otherwise, as base64"`
	ContentType string          `json:"content_type,omitempty" doc:"How the payload is written, if there is one"`
}

func bodyViewOf(b []byte, f dunlin.ContentFormat) bodyView {
	if len(b) == 0 {
		return bodyView{}
	}
	v := bodyView{ContentType: payload.MediaType(f)}
	switch {
	case (f == dunlin.FormatJSON || f == dunlin.FormatSenMLJSON) && utf8.Valid(b) && json.Valid(b):
		v.JSON = b
	case f == dunlin.FormatText && utf8.Valid(b):
		v.Text = string(b)
	default:
		v.Payload = b
	}
	return v
}

type commandView struct {
	ID       string      `json:"id" doc:"Unique for the device; answers go to /v1/devices/{id}/c/{command}"`
	Name     string      `json:"name" doc:"What is to be done"`
	At       dunlin.Time `json:"at" format:"date-time" doc:"When a plugin made it"`
	Deadline dunlin.Time `json:"deadline" format:"date-time" doc:"Until when an answer is taken"`
	bodyView
}

func commandViewOf(c *dunlin.Command) commandView {
	return commandView{ID: c.ID, Name: c.Name, At: c.At, Deadline: c.Deadline, bodyView: bodyViewOf(c.Payload, c.Format)}
}

func (a *api) registerCommands() {
	question(a, huma.Operation{OperationID: "list-commands", Method: http.MethodGet, Path: "/v1/devices/{id}/c", Tags: []string{"commands"},
		Summary: "List commands that wait for the device's answer, oldest first"},
		func(ctx context.Context, c *call, in *struct {
			DevicePath
			ReadInput
		}) (*listOutput[commandView], error) {
			twin, err := a.g.deps.Inspector.Twin(ctx, c.key(in.ID))
			if err != nil {
				return nil, err
			}
			items := make([]commandView, len(twin.Commands))
			for i := range twin.Commands {
				items[i] = commandViewOf(&twin.Commands[i])
			}
			return page(items, c.path, nil, ""), nil
		})
}

// serveResult is POST /v1/devices/{id}/c/{command}: a device's answer to a command, answered when it is committed.
func (g *Gateway) serveResult(c *call, r *http.Request) {
	p := g.pendings.Get().(*pending)
	receipt, err := g.sendResult(c, r, p)
	if errors.Is(err, errOutcomeUnknown) { // p is the directory's now
		g.metrics.abandoned.Inc()
		c.fail(r, unknownOutcome(r.Header.Get("Idempotency-Key") != ""))
		return
	}
	if err == nil && receipt.Err != nil {
		err = receiptError(receipt)
	}
	if err != nil {
		c.fail(r, err)
		p.release()
		return
	}
	p.buf = append(appendReceipt(append(p.buf[:0], '{'), receipt), "}\n"...)
	c.Header()["Content-Type"] = g.jsonHeader
	_, _ = c.Write(p.buf)
	p.release()
}

func (g *Gateway) sendResult(c *call, r *http.Request, p *pending) (receipt dunlin.Receipt, err error) {
	command := r.PathValue("command")
	if _, _, err := dunlin.ParseCommandID(command); err != nil {
		return receipt, fmt.Errorf("path: %w", err)
	}
	if p.buf, err = readBody(c, r, p.buf[:0], g.cfg.PayloadBytesMax); err != nil {
		return receipt, err
	}
	format := dunlin.FormatOctets
	if ct := r.Header.Get("Content-Type"); ct != "" { // curl -X POST without a body says none
		if format, err = formatOf(r); err != nil {
			return receipt, err
		}
	}
	id, flags, err := messageID(c, r.Header.Get("Idempotency-Key"), 0)
	if err != nil {
		return receipt, err
	}
	u := &p.Uplink
	*u = dunlin.Uplink{DeviceKey: c.key(r.PathValue("id")), Sender: c.principal, Waiter: p}
	u.Input = dunlin.Input{Kind: dunlin.InputResult, Flags: flags, Format: format, MessageID: id, Received: g.cfg.Clock(),
		Sender: senderOf(c.principal, u.Device), Timer: command, Payload: append([]byte(nil), p.buf...)} // the buffer is used again
	p.count = 1
	return g.await(r, p, u)
}
