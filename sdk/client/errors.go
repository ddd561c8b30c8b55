package client

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// Error is a problem document (RFC 9457) that the node answered with. errors.Is matches it with the dictionary's errors:
// errors.Is(err, dunlin.ErrUnknownDevice).
type Error struct {
	Status     int           `json:"status"`
	Type       string        `json:"type"` // urn:dunlin:problem:…
	Title      string        `json:"title"`
	Detail     string        `json:"detail"`
	Instance   string        `json:"instance"`
	RequestID  string        `json:"request_id"`
	Check      string        `json:"check"` // of a refused module: the check that failed
	Errors     []FieldError  `json:"errors"`
	RetryAfter time.Duration `json:"-"` // 0: the node doesn't say
}

// FieldError is one wrong value.
type FieldError struct {
	Location string `json:"location"` // such as query.from or body.pipeline[0].plugin
	Message  string `json:"message"`
	Value    any    `json:"value"`
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString(e.Title)
	if e.Check != "" {
		fmt.Fprintf(&b, " (check %s)", e.Check)
	}
	// A detail often begins with its error's name, which is the title again: "Too large: too large: the body …".
	detail := e.Detail
	if n := len(e.Title); len(detail) > n+2 && strings.EqualFold(detail[:n], e.Title) && detail[n:n+2] == ": " {
		detail = detail[n+2:]
	}
	if detail != "" && !strings.EqualFold(detail, e.Title) {
		b.WriteString(": " + detail)
	}
	if len(e.Errors) > 1 {
		for _, f := range e.Errors {
			fmt.Fprintf(&b, "\n  %s: %s", f.Location, f.Message)
		}
	}
	if e.Status >= 500 && e.RequestID != "" {
		fmt.Fprintf(&b, " [request %s]", e.RequestID)
	}
	return b.String()
}

// Is matches the dictionary's error that the problem's type stands for.
func (e *Error) Is(target error) bool {
	switch strings.TrimPrefix(e.Type, "urn:dunlin:problem:") {
	case "bad-payload":
		return target == dunlin.ErrBadPayload
	case "unsupported-format":
		return target == dunlin.ErrFormat
	case "too-large":
		return target == dunlin.ErrTooLarge
	case "unauthenticated":
		return target == dunlin.ErrUnauthenticated
	case "forbidden":
		return target == dunlin.ErrForbidden
	case "not-found":
		return target == dunlin.ErrNotFound
	case "unknown-device":
		return target == dunlin.ErrUnknownDevice
	case "conflict":
		return target == dunlin.ErrConflict
	case "precondition-failed":
		return target == dunlin.ErrPrecondition
	case "overloaded":
		return target == dunlin.ErrOverloaded
	case "unavailable", "outcome-unknown", "not-ready", "timeout", "closing":
		return target == dunlin.ErrUnavailable
	case "not-owner":
		return target == dunlin.ErrNotOwner
	case "cursor-lost":
		return target == dunlin.ErrCursorLost
	case "invalid", "invalid-value", "bad-module":
		return target == dunlin.ErrInvalid
	}
	return false
}

// errorOf reads a problem document, or makes one of an answer that is none: a proxy's, or a stranger's.
func errorOf(resp *http.Response, body []byte) *Error {
	e := &Error{}
	if !strings.HasPrefix(resp.Header.Get("Content-Type"), "application/problem+json") || json.Unmarshal(body, e) != nil || e.Title == "" {
		text := strings.TrimSpace(string(body[:min(len(body), 200)]))
		if !strings.HasPrefix(resp.Header.Get("Content-Type"), "text/plain") {
			text = ""
		}
		e = &Error{Title: resp.Status, Detail: text}
	}
	e.Status = resp.StatusCode
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s >= 0 {
		e.RetryAfter = time.Duration(s) * time.Second
	}
	return e
}
