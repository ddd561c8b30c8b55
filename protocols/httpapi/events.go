package httpapi

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// The event stream (GET /v1/events) is the feed of committed entries as server-sent events. One goroutine, the request's
// own, reads the feed and writes the connection: a slow client makes it read the feed later, and holds nobody up.
// Silence is bounded by following the feed for one heartbeat at a time.

// eventTypes is a set of the kinds of events.
type eventTypes uint8

const (
	eventReading eventTypes = 1 << iota
	eventAlert
	eventDevice
	eventCommand
	eventPublication

	eventsAll = eventReading | eventAlert | eventDevice | eventCommand | eventPublication
)

// eventFilter is what a client wants to see.
type eventFilter struct {
	types  eventTypes
	device *dunlin.DeviceKey
	domain dunlin.DomainID
	tenant dunlin.Tenant
}

// eventID is the id of an event: where to go on after it. Behind an entry's last event that is a cursor; between an
// entry's events it is the cursor in front of the entry, the entry's shard, and how many of its events are past. Events
// are numbered before they are filtered, in the order of eachEvent, so the number means the same whoever asks. Several
// entries can be half past at once: a client that resumes in the middle of one may see another shard's entry first.
type eventID struct {
	cursor dunlin.Cursor
	half   []halfEntry // each shard once, in no order
}

// halfEntry says that the first past events of the shard's next entry were delivered.
type halfEntry struct {
	shard dunlin.ShardID
	past  int
}

// parseEventID reads "cursor" or "cursor.shard.past", with as many pairs of shard and past as there are half entries.
func parseEventID(s string, shards int) (eventID, error) {
	if len(s) > cursorBytesMax {
		return eventID{}, fmt.Errorf("%w: event id has %d bytes", dunlin.ErrInvalid, len(s))
	}
	text, rest, partial := strings.Cut(s, ".")
	cursor, err := dunlin.ParseCursor(text, shards)
	id := eventID{cursor: cursor}
	if err != nil || !partial {
		return id, err
	}
	fields := strings.Split(rest, ".")
	if len(fields)%2 != 0 || len(fields) > 2*shards {
		return id, fmt.Errorf("%w: event id %q", dunlin.ErrInvalid, s)
	}
	for ; len(fields) > 0; fields = fields[2:] {
		sh, err1 := strconv.ParseUint(fields[0], 10, 16)
		past, err2 := strconv.ParseUint(fields[1], 10, 31)
		if err1 != nil || err2 != nil || int(sh) >= shards {
			return id, fmt.Errorf("%w: event id %q", dunlin.ErrInvalid, s)
		}
		id.half = append(id.half, halfEntry{dunlin.ShardID(sh), int(past)})
	}
	return id, nil
}

// serveEvents is GET /v1/events.
func (g *Gateway) serveEvents(c *call, r *http.Request) {
	filter, err := eventFilterOf(c, r)
	if err != nil {
		c.fail(r, err)
		return
	}
	from, err := g.eventStart(r)
	if err != nil {
		c.fail(r, err)
		return
	}
	if n := g.streams.Add(1); n > int64(g.cfg.StreamsMax) {
		g.streams.Add(-1)
		p := problemOf(fmt.Errorf("%w: %d event streams are open, no more are allowed", dunlin.ErrOverloaded, g.cfg.StreamsMax))
		p.RetryAfter = 10
		c.fail(r, p)
		return
	}
	defer g.streams.Add(-1)
	s := &stream{g: g, c: c, filter: filter, at: slices.Clone(from.cursor), resume: from, rc: http.NewResponseController(c.ResponseWriter)}
	s.run(r)
}

// eventFilterOf reads the query.
func eventFilterOf(c *call, r *http.Request) (eventFilter, error) {
	f := eventFilter{types: eventsAll, tenant: c.tenant()}
	q := r.URL.Query()
	for name := range q {
		if !slices.Contains([]string{"device", "domain", "types", "cursor"}, name) {
			return f, invalidValue("query."+name, "unknown query parameter", nil)
		}
	}
	if id := q.Get("device"); id != "" { // valid: the route's rule has looked
		key := c.key(id)
		f.device = &key
	}
	if f.domain = dunlin.DomainID(q.Get("domain")); f.domain != "" {
		if err := f.domain.Validate(); err != nil {
			return f, invalidValue("query.domain", err.Error(), string(f.domain))
		}
	}
	if types := q.Get("types"); types != "" {
		f.types = 0
		for name := range strings.SplitSeq(types, ",") {
			switch name {
			case "reading":
				f.types |= eventReading
			case "alert":
				f.types |= eventAlert
			case "device":
				f.types |= eventDevice
			case "command":
				f.types |= eventCommand
			case "publication":
				f.types |= eventPublication
			default:
				return f, invalidValue("query.types", "types is a list of reading, alert, command, publication and device", types)
			}
		}
	}
	return f, nil
}

// eventStart is where the stream begins: behind the Last-Event-ID, at the query's cursor, or now.
func (g *Gateway) eventStart(r *http.Request) (eventID, error) {
	now, err := g.deps.Feed.Now(r.Context())
	if err != nil {
		return eventID{}, err
	}
	id, place := r.Header.Get("Last-Event-ID"), "header.Last-Event-ID"
	if id == "" {
		id, place = r.URL.Query().Get("cursor"), "query.cursor"
	}
	if id == "" || id == "now" {
		return eventID{cursor: slices.Clone(now)}, nil
	}
	from, err := parseEventID(id, len(now))
	if err != nil {
		return from, invalidValue(place, err.Error()+"; take it from an event's id, or leave it out to start now", nil)
	}
	return from, nil
}

// stream is one open event stream.
type stream struct {
	g      *Gateway
	c      *call
	rc     *http.ResponseController
	filter eventFilter

	at     dunlin.Cursor // behind what was written
	sentID string        // the last id written
	resume eventID       // its half entries lose a row when their shard's next entry has come
	buf    []byte
	lagAt  time.Time // when lag was last told
}

var errStreamEnded = errors.New("event stream ended")

// lagEvery bounds how often a client is told how far behind it is; lagMin from how many entries on.
const (
	lagEvery = 5 * time.Second
	lagMin   = 1000
)

func (s *stream) run(r *http.Request) {
	h := s.c.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no") // nginx would hold events back otherwise
	s.c.WriteHeader(http.StatusOK)
	if r.Method == http.MethodHead {
		return
	}
	s.buf = append(s.buf, "retry: 2000\n: dunlin events; each id is where to resume\n"...)
	s.buf = s.appendID(s.buf)
	if s.write() != nil {
		return
	}
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	if closing, ok := ctx.Value(closingKey{}).(context.Context); ok {
		defer context.AfterFunc(closing, cancel)() // the client resumes at another node, or at this one's next life
	}
	for {
		err := s.follow(ctx)
		if err == nil { // a heartbeat's time has passed
			err = s.g.authorize(s.c, r) // the credential may be gone
		}
		if err == nil {
			err = s.beat()
		}
		switch {
		case err == nil:
		case errors.Is(err, dunlin.ErrCursorLost):
			s.lost(r, err)
			return
		case errors.Is(err, errStreamEnded), ctx.Err() != nil:
			return
		default:
			s.endWith(s.c.problem(ctx, err))
			return
		}
	}
}

// follow writes events for one heartbeat's time; nil says that this time has passed.
func (s *stream) follow(ctx context.Context) error {
	beat, cancel := context.WithTimeout(ctx, s.g.cfg.Heartbeat)
	defer cancel()
	from := slices.Clone(s.at)
	for item, err := range s.g.deps.Feed.Follow(beat, &from, s.filter.device) {
		if err != nil {
			if beat.Err() == nil || errors.Is(err, dunlin.ErrCursorLost) {
				return err
			}
			break
		}
		if err := s.entry(ctx, item); err != nil {
			return err
		}
		if beat.Err() != nil { // a feed with much to give need not look
			break
		}
	}
	if ctx.Err() != nil {
		return errStreamEnded
	}
	if beat.Err() == nil {
		return fmt.Errorf("%w: the feed ended", dunlin.ErrUnavailable)
	}
	// The feed also moves over entries that it leaves out; what we wrote is never behind from.
	for i := range s.at {
		s.at[i] = max(s.at[i], from[i])
	}
	return nil
}

// entry writes an entry's events.
func (s *stream) entry(ctx context.Context, item dunlin.FeedItem) error {
	sh := item.Entry.Shard
	if int(sh) >= len(s.at) {
		return fmt.Errorf("feed: entry of shard %d of %d", sh, len(s.at))
	}
	s.at[sh] = item.Index
	past := s.pastOf(sh, item.Index)
	before := s.appendPosition(nil)
	idAt := -1 // where the newest event's id is in buf: the last one's is replaced by the position behind the entry
	eachEvent(item.Entry, func(n int, ev *event) {
		if n < past || !s.filter.wants(ev) {
			return
		}
		s.g.metrics.streamEvents.Inc()
		s.buf = ev.append(s.buf)
		idAt = len(s.buf)
		s.buf = append(append(append(s.buf, "id: "...), before...), '.')
		s.buf = append(strconv.AppendUint(s.buf, uint64(sh), 10), '.')
		s.buf = append(strconv.AppendUint(s.buf, uint64(n+1), 10), "\n\n"...)
	})
	s.at[sh] = item.Index + 1
	if idAt < 0 {
		return nil
	}
	s.buf = s.appendID(s.buf[:idAt])
	if now := time.Now(); now.Sub(s.lagAt) >= lagEvery {
		s.lagAt = now
		if lag := s.lag(ctx, sh); lag >= lagMin {
			s.buf = fmt.Appendf(s.buf, ": lag %d\n\n", lag)
		}
	}
	return s.write()
}

// pastOf is how many events of the shard's entry the client has seen before it came back.
func (s *stream) pastOf(sh dunlin.ShardID, index uint64) (past int) {
	s.resume.half = slices.DeleteFunc(s.resume.half, func(h halfEntry) bool {
		if h.shard == sh && index == s.resume.cursor[sh] {
			past = h.past
		}
		return h.shard == sh
	})
	return past
}

// appendPosition appends the id of where the stream is.
func (s *stream) appendPosition(dst []byte) []byte {
	dst = append(dst, s.at.String()...)
	for _, h := range s.resume.half {
		dst = strconv.AppendUint(append(dst, '.'), uint64(h.shard), 10)
		dst = strconv.AppendUint(append(dst, '.'), uint64(h.past), 10)
	}
	return dst
}

// lag counts the entries between the stream and now; a device's stream reads one shard, that of its last entry.
func (s *stream) lag(ctx context.Context, sh dunlin.ShardID) (lag uint64) {
	now, err := s.g.deps.Feed.Now(ctx)
	if err != nil {
		return 0
	}
	for i, next := range now {
		if i < len(s.at) && next > s.at[i] && (s.filter.device == nil || i == int(sh)) {
			lag += next - s.at[i]
		}
	}
	return lag
}

// beat keeps the connection alive. An id without data moves the client's Last-Event-ID and makes no event (HTML §9.2.6),
// so a client whose filter lets little through does not resume from a position long gone.
func (s *stream) beat() error {
	if id := string(s.appendPosition(nil)); id != s.sentID {
		s.buf = s.appendID(append(s.buf, ": heartbeat\n"...))
	} else {
		s.buf = append(s.buf, ": heartbeat\n\n"...)
	}
	return s.write()
}

func (s *stream) appendID(dst []byte) []byte {
	s.sentID = string(s.appendPosition(nil))
	return append(append(append(dst, "id: "...), s.sentID...), "\n\n"...)
}

// lost tells that the position is gone, and puts the client's Last-Event-ID to now: if it just reconnects it goes on with
// a gap that it was told of, instead of failing for ever.
func (s *stream) lost(r *http.Request, err error) {
	s.g.metrics.streamLost.Inc()
	p := s.c.problem(r.Context(), err)
	p.Detail = "Events between the requested position and now are no longer kept; reconnecting goes on from now. Read what was missed from the readings and alerts."
	if now, err := s.g.deps.Feed.Now(r.Context()); err == nil {
		s.at, s.resume.half = slices.Clone(now), nil
	}
	s.endWith(p)
}

// endWith writes a last event named error whose data is a problem.
func (s *stream) endWith(p *Problem) {
	s.buf = append(append(append(s.buf, "event: error\ndata: "...), marshal(p)...), '\n')
	s.buf = s.appendID(s.buf)
	_ = s.write()
}

// write sends what is buffered. Its deadline is what a dead or stalled client runs into.
func (s *stream) write() error {
	_ = s.rc.SetWriteDeadline(time.Now().Add(s.g.cfg.StreamTimeout))
	_, err := s.c.Write(s.buf)
	if err == nil {
		err = s.rc.Flush()
	}
	if cap(s.buf) > bufferBytesMax {
		s.buf = nil
	}
	s.buf = s.buf[:0]
	if err != nil {
		return errStreamEnded
	}
	return nil
}
