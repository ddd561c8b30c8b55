package httpapi

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"iter"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// sseEvent is one event as a browser's EventSource understands the stream.
type sseEvent struct{ id, name, data string }

// sseReader takes an event stream apart, keeping the Last-Event-ID as HTML §9.2.6 says.
type sseReader struct {
	*bufio.Scanner
	lastID   string
	comments []string
}

func (r *sseReader) next() (ev sseEvent, ok bool) {
	for r.Scan() {
		line := r.Text()
		field, v, _ := strings.Cut(line, ":")
		v = strings.TrimPrefix(v, " ")
		switch {
		case line == "":
			if ev.id != "" {
				r.lastID = ev.id
			}
			if ev.data != "" {
				return ev, true
			}
			ev = sseEvent{}
		case field == "":
			r.comments = append(r.comments, v)
		case field == "id":
			ev.id = v
		case field == "event":
			ev.name = v
		case field == "data":
			ev.data += v
		}
	}
	return ev, false
}

// listener is a client of a bed's event stream over a real connection.
type listener struct {
	sseReader
	status int
	close  func()
}

func (b *bed) listen(srv *httptest.Server, query, lastID string) *listener {
	b.t.Helper()
	ctx, cancel := context.WithCancel(b.t.(*testing.T).Context())
	r, err := http.NewRequestWithContext(ctx, "GET", srv.URL+"/v1/events"+query, nil)
	if err != nil {
		b.t.Fatal(err)
	}
	if lastID != "" {
		r.Header.Set("Last-Event-ID", lastID)
	}
	resp, err := srv.Client().Do(r)
	if err != nil {
		b.t.Fatal(err)
	}
	l := &listener{sseReader: sseReader{Scanner: bufio.NewScanner(resp.Body)}, status: resp.StatusCode, close: func() { cancel(); resp.Body.Close() }}
	l.Buffer(nil, 1<<20)
	b.t.(*testing.T).Cleanup(l.close)
	return l
}

// change makes an entry's change of a device: n inputs, the last one at version.
func change(dev string, version uint64, n int) dunlin.Change {
	c := dunlin.Change{DeviceKey: key(dev), Domain: "cold", Version: version}
	for i := range n {
		c.Inputs = append(c.Inputs, dunlin.Input{Kind: dunlin.InputTelemetry, Received: testNow,
			Records: []dunlin.Record{{Metric: "t", Unit: "Cel", Time: testNow, Kind: dunlin.Number, Num: float64(i)}}})
	}
	return c
}

// fullEntry has every kind of event.
func fullEntry(shard dunlin.ShardID) *dunlin.Entry {
	c := change("fridge-1", 3, 3)
	c.Created = true
	c.Inputs[1] = dunlin.Input{Kind: dunlin.InputTimer, Timer: "silence", Received: testNow}
	c.Inputs[2].Flags, c.Inputs[2].Sender = dunlin.FlagSkewed, "gw-1"
	c.Stages = []dunlin.StageResult{{Stage: 0, Records: []dunlin.Record{{Metric: "t/mean", Time: testNow, Kind: dunlin.Number, Num: 2.5}}}}
	c.Alerts = []dunlin.Alert{{Tenant: dunlin.DefaultTenant, Device: "fridge-1", Domain: "cold", Rule: "hot", Severity: dunlin.Major, State: dunlin.AlertRaised,
		RaisedAt: testNow, RaisedSeq: 3, At: testNow, Seq: 3}}
	c.Commands = []dunlin.Command{{ID: "3-0", Name: "close-door", Payload: []byte(`{"gently":true}`), Format: dunlin.FormatJSON, At: testNow,
		Deadline: testNow.Add(time.Hour)}, {ID: "3-1", Name: "reboot", At: testNow, Deadline: testNow.Add(time.Minute)}}
	c.Publish = []dunlin.Publication{{Topic: "door/state", Payload: []byte("open"), Format: dunlin.FormatText}, {Topic: "door/raw", Payload: []byte{0, 255}, Format: dunlin.FormatOctets}}
	answers := change("cmd-1", 9, 0)
	answers.Inputs = []dunlin.Input{{Kind: dunlin.InputResult, Timer: "4-0", Received: testNow, Payload: []byte(`not JSON`), Format: dunlin.FormatJSON},
		{Kind: dunlin.InputResult, Flags: dunlin.FlagTimedOut, Timer: "4-1", Received: testNow}}
	raw := change("raw-1", 1, 0)
	raw.Inputs = []dunlin.Input{{Kind: dunlin.InputRaw, Received: testNow, Payload: []byte{1, 2, 3}}}
	foreign := change("fridge-1", 1, 1)
	foreign.Tenant = "other"
	doc, _ := json.Marshal(dunlin.Device{Tenant: dunlin.DefaultTenant, ID: "fridge-2", Domain: "cold", Revision: 1})
	return &dunlin.Entry{Shard: shard, At: testNow, Changes: []dunlin.Change{c, foreign, raw, answers}, Puts: []dunlin.Put{
		{Table: dunlin.TableDevices, Key: "default/fridge-2", Value: doc}, {Table: dunlin.TableDevices, Key: "default/old"},
		{Table: dunlin.TableDomains, Key: "default/cold", Value: []byte("{}")}}}
}

// TestEventStream shows every kind of event; the golden file is the stream.
func TestEventStream(t *testing.T) {
	b := newBed(t)
	srv := httptest.NewServer(b.g)
	defer srv.Close()
	l := b.listen(srv, "?cursor="+b.feed.now().String(), "")
	b.feed.add(fullEntry(2))
	var out strings.Builder
	for range 14 {
		ev, ok := l.next()
		if !ok {
			t.Fatal("the stream ended")
		}
		fmt.Fprintf(&out, "id: %s\nevent: %s\ndata: %s\n\n", ev.id, ev.name, ev.data)
	}
	golden(t, "testdata/events.txt", out.String())
	l.close()
}

// TestEventFilters counts what each query lets through of the full entry.
func TestEventFilters(t *testing.T) {
	b := newBed(t)
	srv := httptest.NewServer(b.g)
	defer srv.Close()
	b.feed.add(fullEntry(1))
	b.feed.add(&dunlin.Entry{Shard: 1, Changes: []dunlin.Change{change("end", 1, 1), change("fridge-1", 4, 1)}})
	for query, want := range map[string][]string{
		"":                                {"device", "device", "device", "reading", "reading", "reading", "alert", "command", "command", "publication", "publication", "reading", "command", "command", "reading", "reading"},
		"&types=alert":                    {"alert"},
		"&types=device":                   {"device", "device", "device"},
		"&types=alert,device&domain=cold": {"device", "device", "alert"},
		"&device=fridge-1":                {"device", "reading", "reading", "reading", "alert", "command", "command", "publication", "publication", "reading"},
		"&types=command":                  {"command", "command", "command", "command"},
		"&types=publication":              {"publication", "publication"},
		"&device=fridge-1&types=alert":    {"alert"},
		"&domain=cold&types=reading":      {"reading", "reading", "reading", "reading", "reading", "reading"},
	} {
		l := b.listen(srv, "?cursor="+dunlin.Cursor{1, 1, 1, 1}.String()+query, "")
		var got []string
		for range want {
			ev, _ := l.next()
			got = append(got, ev.name)
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s: got %v, want %v", query, got, want)
		}
		l.close()
	}
}

// TestEventsResumeExactly leaves the stream after every single event and comes back with the Last-Event-ID: over all
// the visits each event is there once, in order, also those in the middle of an entry and of several shards.
func TestEventsResumeExactly(t *testing.T) {
	b := newBed(t)
	srv := httptest.NewServer(b.g)
	defer srv.Close()
	start := b.feed.now().String()
	for sh := range dunlin.ShardID(4) {
		for i := range 3 {
			b.feed.add(&dunlin.Entry{Shard: sh, Changes: []dunlin.Change{
				change(fmt.Sprintf("a-%d", sh), uint64(2*i+2), 2), change(fmt.Sprintf("b-%d", sh), uint64(3*i+3), 3)}})
		}
	}
	all := b.listen(srv, "?cursor="+start, "")
	var want []string
	for range 4 * 3 * 5 {
		ev, _ := all.next()
		want = append(want, ev.data)
	}
	all.close()
	for _, step := range []int{1, 2, 3, 7} {
		last := ""
		var got []string
		for len(got) < len(want) {
			l := b.listen(srv, "?cursor="+start, last)
			for range min(step, len(want)-len(got)) {
				ev, ok := l.next()
				if !ok {
					t.Fatal("the stream ended")
				}
				got = append(got, ev.data)
			}
			last = l.lastID
			l.close()
		}
		if !slices.Equal(got, want) {
			t.Errorf("in steps of %d: got %d events %v, want %d %v", step, len(got), got, len(want), want)
		}
	}
}

// TestResumeInTheMiddleOfTwoEntries: between the half of one shard's entry and its rest, another shard's entry comes.
func TestResumeInTheMiddleOfTwoEntries(t *testing.T) {
	b := newBed(t)
	srv := httptest.NewServer(b.g)
	defer srv.Close()
	entry := func(sh dunlin.ShardID, dev string) *dunlin.Entry {
		return &dunlin.Entry{Shard: sh, Changes: []dunlin.Change{change(dev, 3, 3)}}
	}
	b.feed.add(entry(3, "late"))
	l := b.listen(srv, "?cursor="+dunlin.Cursor{1, 1, 1, 1}.String(), "")
	l.next()
	id := l.lastID // one of three events of shard 3's entry
	l.close()
	b.feed.add(entry(0, "early")) // the feed gives shard 0 first
	seen := []string{}
	for range 5 {
		l := b.listen(srv, "", id)
		ev, ok := l.next()
		if !ok {
			t.Fatal("the stream ended")
		}
		d := parse[struct {
			Device string
			Seq    int
		}](t, ev.data)
		seen = append(seen, fmt.Sprintf("%s/%d", d.Device, d.Seq))
		id = l.lastID
		l.close()
	}
	if want := []string{"early/1", "early/2", "early/3", "late/2", "late/3"}; !slices.Equal(seen, want) {
		t.Errorf("got %v, want %v; ids end with %s", seen, want, id)
	}
}

// TestCursorLost: the stream says so in an event, and puts the client where it can go on.
func TestCursorLost(t *testing.T) {
	b := newBed(t)
	srv := httptest.NewServer(b.g)
	defer srv.Close()
	for i := range 5 {
		b.feed.add(&dunlin.Entry{Shard: 0, Changes: []dunlin.Change{change("d", uint64(i+1), 1)}})
	}
	b.feed.lost = 2
	l := b.listen(srv, "", dunlin.Cursor{2, 1, 1, 1}.String())
	ev, ok := l.next()
	if !ok || ev.name != "error" {
		t.Fatalf("got %+v", ev)
	}
	if p := parse[Problem](t, ev.data); p.Type != "urn:dunlin:problem:cursor-lost" || p.Status != 410 {
		t.Errorf("got %+v", p)
	}
	if _, more := l.next(); more {
		t.Error("the stream goes on")
	}
	if want := b.feed.now().String(); l.lastID != want {
		t.Errorf("the client is at %s, want %s", l.lastID, want)
	}
}

// recorder is a client's end of a stream in a bubble of fake time.
type recorder struct {
	h  http.Header
	in chan string
}

func (w *recorder) Header() http.Header                { return w.h }
func (w *recorder) WriteHeader(int)                    {}
func (w *recorder) Write(b []byte) (int, error)        { w.in <- string(b); return len(b), nil }
func (w *recorder) Flush()                             {}
func (w *recorder) SetWriteDeadline(_ time.Time) error { return nil }

// drain takes what still comes until done.
func (w *recorder) drain(done <-chan struct{}) {
	for {
		select {
		case <-w.in:
		case <-done:
			return
		}
	}
}

// TestHeartbeats: silence is filled each Heartbeat, the id goes on when only others' events came, and a credential that
// is gone ends the stream.
func TestHeartbeats(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.feed.changed = make(chan struct{}) // of this bubble
		b.open = false
		b.tokens[":tok"] = dunlin.Principal{Kind: dunlin.PrincipalApplication, Tenant: dunlin.DefaultTenant, ID: "app"}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r := httptest.NewRequest("GET", "http://localhost/v1/events?types=alert", nil).WithContext(ctx)
		r.Header.Set("Authorization", "Bearer tok")
		w := &recorder{h: http.Header{}, in: make(chan string)}
		done := make(chan struct{})
		go func() { defer close(done); b.g.ServeHTTP(w, r) }()
		began := time.Now()
		if first := <-w.in; !strings.HasPrefix(first, "retry: ") || !strings.Contains(first, "id: AQEBAQ\n\n") {
			t.Errorf("first: %q", first)
		}
		if beat := <-w.in; beat != ": heartbeat\n\n" || time.Since(began) != 15*time.Second {
			t.Errorf("after %v: %q", time.Since(began), beat)
		}
		b.feed.add(&dunlin.Entry{Shard: 2, Changes: []dunlin.Change{change("d", 1, 1)}})
		if beat := <-w.in; beat != ": heartbeat\nid: AQECAQ\n\n" || time.Since(began) != 30*time.Second {
			t.Errorf("after %v: %q", time.Since(began), beat)
		}
		b.mu.Lock()
		clear(b.tokens)
		b.mu.Unlock()
		if last := <-w.in; !strings.HasPrefix(last, "event: error\n") || !strings.Contains(last, "unauthenticated") {
			t.Errorf("last: %q", last)
		}
		<-done
		if n := b.g.streams.Load(); n != 0 {
			t.Errorf("%d streams are left", n)
		}
	})
}

// TestLag: a client that reads slowly is told how far behind it is, and misses nothing.
func TestLag(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBed(t)
		b.feed.changed = make(chan struct{})
		const n = 3000
		for i := range n {
			b.feed.add(&dunlin.Entry{Shard: 0, Changes: []dunlin.Change{change("d", uint64(i+1), 1)}})
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		r := httptest.NewRequest("GET", "http://localhost/v1/events?cursor="+dunlin.Cursor{1, 1, 1, 1}.String(), nil).WithContext(ctx)
		w := &recorder{h: http.Header{}, in: make(chan string)}
		done := make(chan struct{})
		go func() { defer close(done); b.g.ServeHTTP(w, r) }()
		<-w.in
		events, lags := 0, 0
		for events < n {
			<-time.After(10 * time.Millisecond) // fake time: a slow reader
			s := <-w.in
			events += strings.Count(s, "event: reading")
			lags += strings.Count(s, ": lag ")
		}
		if lags < 3 || lags > 6 {
			t.Errorf("told %d times in 30 s of which 20 s were more than %d behind", lags, lagMin)
		}
		cancel()
		w.drain(done)
	})
}

// endlessFeed always has another entry, and never looks at its context.
type endlessFeed struct{ *fakeFeed }

func (f endlessFeed) Follow(_ context.Context, from *dunlin.Cursor, _ *dunlin.DeviceKey) iter.Seq2[dunlin.FeedItem, error] {
	return func(yield func(dunlin.FeedItem, error) bool) {
		for {
			n := (*from)[0]
			(*from)[0]++
			if !yield(dunlin.FeedItem{Index: n, Entry: &dunlin.Entry{Changes: []dunlin.Change{change("d", n, 1)}}}, nil) {
				return
			}
		}
	}
}

// TestLongReplay: a stream whose filter hides all of a long past still has heartbeats, and ends when its client does.
func TestLongReplay(t *testing.T) {
	b := newBed(t, func(c *Config) { c.Heartbeat = time.Millisecond })
	b.g.deps.Feed = endlessFeed{b.feed}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	w := &recorder{h: http.Header{}, in: make(chan string)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		b.g.ServeHTTP(w, httptest.NewRequest("GET", "http://localhost/v1/events?types=alert", nil).WithContext(ctx))
	}()
	ids := map[string]bool{}
	for len(ids) < 3 {
		ids[<-w.in] = true
	}
	cancel()
	w.drain(done)
}

func TestStreamsAreBounded(t *testing.T) {
	b := newBed(t, func(c *Config) { c.StreamsMax = 1 })
	srv := httptest.NewServer(b.g)
	defer srv.Close()
	l := b.listen(srv, "", "")
	if second := b.listen(srv, "", ""); second.status != 503 {
		t.Errorf("the second stream got %d", second.status)
	}
	l.close()
}

// A device that registers itself is one event, with its revision: its row of the registry is in the same entry.
func TestSelfRegistrationIsOneEvent(t *testing.T) {
	c := change("new-1", 1, 1)
	c.Created = true
	row, err := json.Marshal(dunlin.Device{Tenant: c.Tenant, ID: c.Device, Domain: c.Domain, Revision: 1})
	if err != nil {
		t.Fatal(err)
	}
	e := &dunlin.Entry{At: testNow, Changes: []dunlin.Change{c}, Puts: []dunlin.Put{{Table: dunlin.TableDevices, Key: c.DeviceKey.String(), Value: row}}}
	var got []uint64
	eachEvent(e, func(_ int, ev *event) {
		if ev.kind == eventDevice {
			got = append(got, ev.device.Revision)
		}
	})
	if !slices.Equal(got, []uint64{1}) {
		t.Errorf("device events with revisions %v, want one with 1", got)
	}
}
