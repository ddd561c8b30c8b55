package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"math/rand/v2"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// EventsQuery says which events to follow, and from where.
type EventsQuery struct {
	Device dunlin.DeviceID
	Domain dunlin.DomainID
	Types  []string // of reading, alert and device; empty: all
	From   string   // id of the last event seen; empty: now

	// Retrying, if set, is told before each wait for a reconnection, with what ended the connection.
	Retrying func(err error, wait time.Duration)
	// Lag, if set, is told when the stream falls behind, by how many entries of the log.
	Lag func(entries uint64)
	// Silence ends a connection on which nothing came for this long, heartbeats included; default 45 s.
	Silence time.Duration
}

// Event is one event. One of Reading, Alert and Device is set, by Type.
type Event struct {
	ID      string // to resume behind it: EventsQuery.From
	Type    string
	Data    json.RawMessage
	Reading *ReadingEvent
	Alert   *Alert
	Device  *DeviceEvent
}

// ReadingEvent is an uplink that was committed, or what a plugin derived from a device's uplinks up to Seq.
type ReadingEvent struct {
	Device   dunlin.DeviceID `json:"device"`
	Domain   dunlin.DomainID `json:"domain"`
	Seq      uint64          `json:"seq"`
	Received dunlin.Time     `json:"received,omitzero"`
	Sender   string          `json:"sender,omitempty"`
	Skewed   bool            `json:"skewed,omitempty"`
	RawBytes int             `json:"raw_bytes,omitempty"`
	Derived  bool            `json:"derived,omitempty"`
	Stage    int             `json:"stage,omitempty"`
	Records  []Reading       `json:"records"`
}

// DeviceEvent is a device that was registered, changed or removed.
type DeviceEvent struct {
	dunlin.Device
	Deleted bool `json:"deleted,omitempty"`
}

// eventBytesMax bounds one event.
const eventBytesMax = 16 << 20

// Waits between reconnections: doubled from the node's hint (or retryMin) to retryMax.
const (
	retryMin = 500 * time.Millisecond
	retryMax = 30 * time.Second
)

// Events follows what the node commits until ctx ends. When the connection breaks it connects again and goes on behind
// the last event, so that no event is missed or there twice. Two things are yielded as an error: what makes another try
// useless (refused credentials, a bad query, the first connection failing), after which the sequence ends; and
// dunlin.ErrCursorLost, when events in between are no longer kept: who goes on then gets the events from now on.
func (c *Client) Events(ctx context.Context, q EventsQuery) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		s := &stream{c: c, q: q, lastID: q.From, wait: retryMin}
		if s.q.Silence <= 0 {
			s.q.Silence = 45 * time.Second
		}
		for wait := s.wait; ; {
			before := s.events
			err := s.connect(ctx, yield)
			if ctx.Err() != nil || errors.Is(err, errStopped) {
				return
			}
			if errors.Is(err, dunlin.ErrCursorLost) {
				if !yield(Event{}, err) {
					return
				}
				continue
			}
			if !s.worthRetrying(err) {
				yield(Event{}, err)
				return
			}
			if s.events > before {
				wait = s.wait
			}
			pause := wait/2 + rand.N(wait/2+1) // not all clients of a node at once
			if q.Retrying != nil {
				q.Retrying(err, pause)
			}
			if !sleep(ctx, pause) {
				return
			}
			wait = min(2*wait, retryMax)
		}
	}
}

// stream is an event stream over its connections.
type stream struct {
	c         *Client
	q         EventsQuery
	lastID    string
	wait      time.Duration // the first pause, as the node hints
	connected bool          // once at least
	events    int
}

var (
	errStopped = errors.New("the caller has enough")
	errSilence = errors.New("nothing came for too long")
)

// worthRetrying: a connection that once was can come back; one that never was is the caller's to know about. A refusal
// other than "later" stays one.
func (s *stream) worthRetrying(err error) bool {
	if p, ok := errors.AsType[*Error](err); ok {
		return p.Status == http.StatusServiceUnavailable || p.Status == http.StatusTooManyRequests || s.connected && p.Status >= 500
	}
	return s.connected
}

// connect follows one connection to its end; the error says why it ended.
func (s *stream) connect(ctx context.Context, yield func(Event, error) bool) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(s.q.Silence, func() { cancel(errSilence) })
	defer watchdog.Stop()
	q := request{method: http.MethodGet, path: "/v1/events", header: http.Header{"Accept": {"text/event-stream"}},
		query: values("device", string(s.q.Device), "domain", string(s.q.Domain), "types", strings.Join(s.q.Types, ","))}
	if s.lastID != "" {
		q.header.Set("Last-Event-ID", s.lastID)
	}
	r, err := s.c.build(ctx, q)
	if err != nil {
		return err
	}
	resp, err := s.c.http.Do(r)
	if err != nil {
		return because(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		return errorOf(resp, body)
	}
	if ct := resp.Header.Get("Content-Type"); !strings.HasPrefix(ct, "text/event-stream") {
		return &Error{Status: http.StatusNotAcceptable, Title: "No event stream", Detail: fmt.Sprintf("%s answers with %q; is it a dunlin node?", s.c.base, ct)}
	}
	s.connected = true
	lines := bufio.NewReaderSize(resp.Body, 32<<10)
	for {
		raw, err := s.readEvent(lines, func() { watchdog.Reset(s.q.Silence) })
		if err != nil {
			return because(ctx, err)
		}
		if raw.name == "error" {
			p := &Error{}
			if json.Unmarshal(raw.data, p) != nil || p.Title == "" {
				return fmt.Errorf("the stream ended with an error that is no problem document: %.100q", raw.data)
			}
			return p
		}
		ev, err := raw.decode()
		if err != nil {
			return err
		}
		ev.ID = s.lastID
		s.events++
		// The caller may take its time; the connection is not silent for that.
		watchdog.Stop()
		if !yield(ev, nil) {
			return errStopped
		}
		watchdog.Reset(s.q.Silence)
	}
}

func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

// rawEvent is an event before its data is read.
type rawEvent struct {
	name string
	data []byte
}

func (r rawEvent) decode() (Event, error) {
	ev := Event{Type: r.name, Data: r.data}
	var err error
	switch r.name {
	case "reading":
		ev.Reading = new(ReadingEvent)
		err = json.Unmarshal(r.data, ev.Reading)
	case "alert":
		ev.Alert = new(Alert)
		err = json.Unmarshal(r.data, ev.Alert)
	case "device":
		ev.Device = new(DeviceEvent)
		err = json.Unmarshal(r.data, ev.Device)
	}
	if err != nil {
		return ev, fmt.Errorf("event %s: %w", r.name, err)
	}
	return ev, nil
}

// readEvent reads lines up to the end of an event with data (HTML §9.2.6), and keeps the last id as a browser does.
func (s *stream) readEvent(lines *bufio.Reader, alive func()) (ev rawEvent, err error) {
	var id string
	var gotID, gotData bool
	for {
		line, err := readLine(lines)
		if err != nil {
			return ev, err
		}
		alive()
		if len(line) == 0 {
			if gotID {
				s.lastID = id
			}
			if gotData {
				return ev, nil
			}
			ev, gotID = rawEvent{}, false
			continue
		}
		name, value, _ := bytes.Cut(line, []byte(":"))
		value = bytes.TrimPrefix(value, []byte(" "))
		switch string(name) {
		case "":
			s.comment(string(value))
		case "id":
			id, gotID = string(value), true
		case "event":
			ev.name = string(value)
		case "data":
			if gotData {
				ev.data = append(ev.data, '\n')
			}
			ev.data, gotData = append(ev.data, value...), true
			if len(ev.data) > eventBytesMax {
				return ev, fmt.Errorf("%w: an event has more than %d bytes", dunlin.ErrTooLarge, eventBytesMax)
			}
		case "retry":
			if ms, err := strconv.ParseUint(string(value), 10, 20); err == nil {
				s.wait = min(max(time.Duration(ms)*time.Millisecond, time.Millisecond), retryMax)
			}
		}
	}
}

func (s *stream) comment(text string) {
	if digits, ok := strings.CutPrefix(text, "lag "); ok && s.q.Lag != nil {
		if n, err := strconv.ParseUint(digits, 10, 64); err == nil {
			s.q.Lag(n)
		}
	}
}

// readLine reads one line without its end, of at most eventBytesMax bytes; it is valid until the next call.
func readLine(r *bufio.Reader) ([]byte, error) {
	line, err := r.ReadSlice('\n')
	if errors.Is(err, bufio.ErrBufferFull) {
		long := append([]byte(nil), line...)
		for errors.Is(err, bufio.ErrBufferFull) {
			if len(long) > eventBytesMax {
				return nil, fmt.Errorf("%w: a line has more than %d bytes", dunlin.ErrTooLarge, eventBytesMax)
			}
			line, err = r.ReadSlice('\n')
			long = append(long, line...)
		}
		line = long
	}
	if err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF // a stream has no end of its own
		}
		return nil, err
	}
	return bytes.TrimRight(line, "\r\n"), nil
}
