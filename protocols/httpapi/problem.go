package httpapi

import (
	"context"
	"errors"
	"net/http"
	"strconv"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dunlin-iot/dunlin"
)

// Problem is the body of every answer that is not a success (RFC 9457, application/problem+json).
type Problem struct {
	Type       string              `json:"type" doc:"What kind of problem; urn:dunlin:problem:… as listed in docs/protocols/http.md" example:"urn:dunlin:problem:unknown-device"`
	Title      string              `json:"title" doc:"The kind in words; the same for every occurrence"`
	Status     int                 `json:"status" doc:"HTTP status"`
	Detail     string              `json:"detail,omitempty" doc:"What was wrong this time, and what to do"`
	Instance   string              `json:"instance,omitempty" doc:"Path of the request"`
	RequestID  string              `json:"request_id,omitempty" doc:"Finds the request in the node's log"`
	Check      string              `json:"check,omitempty" doc:"Of a refused plugin module: the check that failed: size, parse, imports, exports, memory, abi or dry-run"`
	RetryAfter int                 `json:"retry_after,omitempty" doc:"Seconds to wait before trying again; also in the Retry-After header"`
	Errors     []*huma.ErrorDetail `json:"errors,omitempty" doc:"Each single error, with its place"`

	header http.Header
}

const problemURN = "urn:dunlin:problem:"

// problemKind is a row of the table from errors to answers.
type problemKind struct {
	err    error
	status int
	slug   string
	title  string
}

// problemKinds is the table from the dictionary's errors to HTTP. The first match wins.
func problemKinds() []problemKind {
	return []problemKind{
		{dunlin.ErrBadPayload, http.StatusBadRequest, "bad-payload", "The payload does not parse"},
		{dunlin.ErrFormat, http.StatusUnsupportedMediaType, "unsupported-format", "The payload's format is not supported"},
		{dunlin.ErrTooLarge, http.StatusRequestEntityTooLarge, "too-large", "Too large"},
		{dunlin.ErrUnauthenticated, http.StatusUnauthorized, "unauthenticated", "Not authenticated"},
		{dunlin.ErrForbidden, http.StatusForbidden, "forbidden", "Not allowed"},
		{dunlin.ErrUnknownDevice, http.StatusNotFound, "unknown-device", "The device is not registered"},
		{dunlin.ErrNotFound, http.StatusNotFound, "not-found", "Not found"},
		{dunlin.ErrConflict, http.StatusConflict, "conflict", "Conflict"},
		{dunlin.ErrPrecondition, http.StatusPreconditionFailed, "precondition-failed", "Changed by someone else in the meantime"},
		{dunlin.ErrOverloaded, http.StatusServiceUnavailable, "overloaded", "Overloaded"},
		{dunlin.ErrUnavailable, http.StatusServiceUnavailable, "unavailable", "Unavailable for the moment"},
		{dunlin.ErrNotOwner, http.StatusServiceUnavailable, "not-owner", "The device is moving to another node"},
		{dunlin.ErrCursorLost, http.StatusGone, "cursor-lost", "The position is no longer kept"},
		{dunlin.ErrInvalid, http.StatusBadRequest, "invalid", "Invalid request"},
		{context.DeadlineExceeded, http.StatusServiceUnavailable, "timeout", "Not answered in time"},
		{context.Canceled, http.StatusServiceUnavailable, "closing", "The node is closing"},
	}
}

// statusKinds are the problems that have no error in the dictionary, by status; huma's own are among them.
func statusKinds() []problemKind {
	return []problemKind{
		{nil, http.StatusBadRequest, "invalid", "Invalid request"},
		{nil, http.StatusNotFound, "not-found", "Not found"},
		{nil, http.StatusMethodNotAllowed, "method-not-allowed", "Method not allowed"},
		{nil, http.StatusNotAcceptable, "not-acceptable", "No such representation"},
		{nil, http.StatusRequestTimeout, "body-timeout", "The request's body took too long"},
		{nil, http.StatusRequestEntityTooLarge, "too-large", "Too large"},
		{nil, http.StatusUnsupportedMediaType, "unsupported-format", "The payload's format is not supported"},
		{nil, http.StatusMisdirectedRequest, "foreign-host", "Not the name of this node"},
		{nil, http.StatusUnprocessableEntity, "invalid-value", "A value breaks a rule"},
		{nil, http.StatusInternalServerError, "internal", "Internal error"},
		{nil, http.StatusServiceUnavailable, "unavailable", "Unavailable for the moment"},
	}
}

// newProblem makes a problem of a status without an error of the dictionary behind it.
func newProblem(status int, detail string) *Problem {
	for _, k := range statusKinds() {
		if k.status == status {
			return &Problem{Type: problemURN + k.slug, Title: k.title, Status: status, Detail: detail}
		}
	}
	return &Problem{Type: "about:blank", Title: http.StatusText(status), Status: status, Detail: detail}
}

// problemOf translates an error. A 500 does not tell the error's text: it may name paths or keys, and is logged instead.
func problemOf(err error) *Problem {
	if p, ok := errors.AsType[*Problem](err); ok {
		return p
	}
	if m, ok := errors.AsType[*dunlin.ModuleError](err); ok {
		return &Problem{Type: problemURN + "bad-module", Title: "The plugin module was refused", Status: http.StatusUnprocessableEntity,
			Detail: m.Detail, Check: m.Check, Errors: []*huma.ErrorDetail{{Message: m.Detail, Location: "body"}}}
	}
	for _, k := range problemKinds() {
		if errors.Is(err, k.err) {
			p := &Problem{Type: problemURN + k.slug, Title: k.title, Status: k.status, Detail: err.Error()}
			if k.status == http.StatusServiceUnavailable {
				p.RetryAfter = 1
			}
			if p.Detail == dunlin.ErrUnknownDevice.Error() { // the bare error, which says nothing of what to do
				p.Detail += "; register it (PUT /v1/devices/{id}, or `dunlin device add`), or let its domain register strangers (unknown_devices: register)"
			}
			return p
		}
	}
	return newProblem(http.StatusInternalServerError, "The node could not answer this; its log says why, under the request id.")
}

// Error makes a Problem an error that handlers can return.
func (p *Problem) Error() string { return p.Title + ": " + p.Detail }

// GetStatus makes it a huma.StatusError.
func (p *Problem) GetStatus() int { return p.Status }

// ContentType makes it a huma.ContentTypeFilter.
func (p *Problem) ContentType(string) string { return "application/problem+json" }

// GetHeaders makes it a huma.HeadersError.
func (p *Problem) GetHeaders() http.Header {
	h := p.header
	if p.RetryAfter > 0 {
		if h == nil {
			h = http.Header{}
		}
		h.Set("Retry-After", strconv.Itoa(p.RetryAfter))
	}
	return h
}

func (p *Problem) withHeader(key string, values ...string) *Problem {
	if p.header == nil {
		p.header = http.Header{}
	}
	p.header[http.CanonicalHeaderKey(key)] = values
	return p
}

func (p *Problem) at(location string, value any) *Problem {
	p.Errors = append(p.Errors, &huma.ErrorDetail{Message: p.Detail, Location: location, Value: value})
	return p
}

// invalidValue is the 422 of one query parameter, header or body field.
func invalidValue(location, message string, value any) *Problem {
	p := newProblem(http.StatusUnprocessableEntity, message)
	p.Errors = []*huma.ErrorDetail{{Message: message, Location: location, Value: value}}
	return p
}

// valueBytesMax bounds what of a wrong value is sent back: huma would echo a whole body.
const valueBytesMax = 200

// fromHuma makes one of ours of huma's own problems (validation, body limits, …).
func fromHuma(m *huma.ErrorModel) *Problem {
	p := newProblem(m.Status, m.Detail)
	for _, e := range m.Errors {
		if e == nil {
			continue
		}
		switch v := e.Value.(type) {
		case string:
			if len(v) > valueBytesMax {
				e.Value = v[:valueBytesMax] + "…"
			}
		case map[string]any, []any:
			e.Value = nil // the place says enough, and the value may hold a secret
		}
		if e.Location == "body" {
			e.Value = nil
		}
		p.Errors = append(p.Errors, e)
	}
	if len(p.Errors) > 0 {
		first := p.Errors[0]
		p.Detail = first.Location + ": " + first.Message
		if n := len(p.Errors); n > 1 {
			p.Detail += " (and " + strconv.Itoa(n-1) + " more)"
		}
	}
	return p
}

// fail answers with the problem that err is. It logs what is the node's fault.
func (c *call) fail(r *http.Request, err error) {
	p := c.problem(r.Context(), err)
	h := c.Header()
	for k, v := range p.GetHeaders() {
		h[k] = v
	}
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	body := marshal(p)
	if body == nil { // a value that JSON has no words for
		p.Errors = nil
		body = marshal(p)
	}
	c.WriteHeader(p.Status)
	_, _ = c.Write(append(body, '\n'))
}

// problem completes the problem that err is with the request's path and id, and logs it if it is the node's fault.
func (c *call) problem(ctx context.Context, err error) *Problem {
	p := *problemOf(err) // a copy: err may be shared
	p.Instance, p.RequestID = c.path, c.id()
	if p.Status == http.StatusInternalServerError {
		c.g.log.ErrorContext(ctx, "http: request failed", "request", c.id(), "route", c.route.pattern, "err", err)
	}
	return &p
}
