package client_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/sdk/client"
)

// sse answers with one connection's worth of a stream after another; the last one stays open.
func sse(seen *[]string, connections ...string) http.HandlerFunc {
	var n atomic.Int64
	return func(w http.ResponseWriter, r *http.Request) {
		i := int(n.Add(1)) - 1
		*seen = append(*seen, r.Header.Get("Last-Event-ID"))
		text := connections[min(i, len(connections)-1)]
		if status, ok := strings.CutPrefix(text, "status "); ok {
			problem(w, map[string]int{"503": 503, "401": 401}[status], map[string]string{"503": "unavailable", "401": "unauthenticated"}[status])
			return
		}
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, text)
		w.(http.Flusher).Flush()
		if i >= len(connections)-1 {
			<-r.Context().Done()
		}
	}
}

func reading(id string, seq int) string {
	return fmt.Sprintf("event: reading\ndata: {\"device\":\"d\",\"seq\":%d,\"records\":[]}\nid: %s\n\n", seq, id)
}

// TestEventsResume: a broken connection, a node that closes, and one that says later cost no event and repeat none.
func TestEventsResume(t *testing.T) {
	var ids []string
	c := node(t, client.Options{}, sse(&ids,
		"retry: 1\n: hello\nid: start\n\n"+reading("a", 1)+"event: reading\ndata: {\"half",
		"status 503",
		reading("b", 2)+": heartbeat\nid: b2\n\n: lag 1234\n\n",
		"retry: 1\n"+reading("c", 3)))
	var got []string
	var retries int
	var lag uint64
	for ev, err := range c.Events(t.Context(), client.EventsQuery{From: "0", Types: []string{"reading"},
		Retrying: func(error, time.Duration) { retries++ }, Lag: func(n uint64) { lag = n }}) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s=%d", ev.ID, ev.Reading.Seq))
		if len(got) == 3 {
			break
		}
	}
	if !slices.Equal(got, []string{"a=1", "b=2", "c=3"}) || retries != 3 || lag != 1234 {
		t.Errorf("got %v after %d retries, lag %d", got, retries, lag)
	}
	if !slices.Equal(ids, []string{"0", "a", "a", "b2"}) {
		t.Errorf("resumed from %v", ids)
	}
}

// TestEventsLost: the caller is told of the gap, and goes on from where the node says.
func TestEventsLost(t *testing.T) {
	var ids []string
	c := node(t, client.Options{}, sse(&ids,
		"event: error\ndata: {\"type\":\"urn:dunlin:problem:cursor-lost\",\"title\":\"Lost\",\"status\":410}\nid: now\n\n",
		reading("z", 9)))
	var got []string
	for ev, err := range c.Events(t.Context(), client.EventsQuery{From: "old"}) {
		if err != nil {
			got = append(got, fmt.Sprint(errors.Is(err, dunlin.ErrCursorLost)))
			continue
		}
		got = append(got, ev.ID)
		break
	}
	if !slices.Equal(got, []string{"true", "z"}) || !slices.Equal(ids, []string{"old", "now"}) {
		t.Errorf("got %v, resumed from %v", got, ids)
	}
}

// TestEventsRefused: what no retry mends ends the sequence with its error.
func TestEventsRefused(t *testing.T) {
	collect := func(c *client.Client) (last error) {
		for _, err := range c.Events(t.Context(), client.EventsQuery{}) {
			last = err
		}
		return last
	}
	var ids []string
	if err := collect(node(t, client.Options{}, sse(&ids, "status 401"))); !errors.Is(err, dunlin.ErrUnauthenticated) || len(ids) != 1 {
		t.Errorf("401: %v after %d tries", err, len(ids))
	}
	ids = nil
	if err := collect(node(t, client.Options{}, sse(&ids, "event: error\ndata: {\"type\":\"urn:dunlin:problem:unauthenticated\",\"title\":\"Gone\",\"status\":401}\n\n"))); !errors.Is(err, dunlin.ErrUnauthenticated) || len(ids) != 1 {
		t.Errorf("credential gone: %v after %d tries", err, len(ids))
	}
	if err := collect(node(t, client.Options{}, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>") })); err == nil || !strings.Contains(err.Error(), "is it a dunlin node") {
		t.Errorf("a stranger: %v", err)
	}
	nobody, err := client.New("http://127.0.0.1:1", client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := collect(nobody); err == nil {
		t.Error("a node that isn't there is no error")
	}
}

// TestEventsSilence: a connection on which nothing comes, no heartbeat either, is given up.
func TestEventsSilence(t *testing.T) {
	var ids []string
	c := node(t, client.Options{}, func(w http.ResponseWriter, r *http.Request) {
		ids = append(ids, r.Header.Get("Last-Event-ID"))
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "retry: 1\nid: a\n\n")
		w.(http.Flusher).Flush()
		<-r.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var why error
	for range c.Events(ctx, client.EventsQuery{Silence: 20 * time.Millisecond, Retrying: func(err error, _ time.Duration) { why = err; cancel() }}) {
		t.Error("an event")
	}
	if why == nil || !strings.Contains(why.Error(), "nothing came") {
		t.Errorf("ended by %v", why)
	}
}

// FuzzEvents: no stream of bytes makes the client panic or hang, and what it yields came complete.
func FuzzEvents(f *testing.F) {
	f.Add([]byte(reading("a", 1)))
	f.Add([]byte("data\n\n\r\n:\nid\nretry: 99999999999\nevent: alert\ndata: {}\n\n"))
	f.Add([]byte("event: error\ndata: {\"title\":\"x\",\"status\":503}\n\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := client.New("http://n", client.Options{HTTP: &http.Client{Transport: canned(b)}})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		tries := 0
		for ev, err := range c.Events(ctx, client.EventsQuery{Retrying: func(error, time.Duration) { cancel() }}) {
			if err == nil && (ev.Type == "reading") != (ev.Reading != nil) {
				t.Fatalf("an event without its data: %+v", ev)
			}
			if tries++; tries > 100 { // a lost cursor goes on at once, and this server says so for ever
				break
			}
		}
	})
}

// canned is a transport that answers every request with the same stream.
type canned []byte

func (c canned) RoundTrip(*http.Request) (*http.Response, error) {
	return &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {"text/event-stream"}}, Body: io.NopCloser(strings.NewReader(string(c)))}, nil
}
