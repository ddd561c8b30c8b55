// Package client is a small client of dunlin's HTTP API, on the standard library alone: typed calls, pages as iterators,
// and event streams that resume by themselves. The dunlin command uses it; so can any Go program.
//
//	c, err := client.New("http://127.0.0.1:8080", client.Options{})
//	for alert, err := range c.Alerts(ctx, client.AlertsQuery{Active: true}) { … }
//
// docs/protocols/http.md describes the API, api/openapi.yaml has it for machines.
//
// Part of the runtime; no compatibility promise before v1.
package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// Options say who calls and how. The zero value is anonymous, which an open node takes.
type Options struct {
	Token    string // bearer token; goes before User
	User     string // HTTP Basic: a device's id or a user's name
	Password string
	Agent    string        // User-Agent; default dunlin-client
	HTTP     *http.Client  // default: one of its own, with a timeout of a minute but for event streams
	Retries  int           // of a request that the node asks to send again later (503, 429); default 3, below 0 none
	WaitMax  time.Duration // longest wait before such a retry; default 10 s

	Read    dunlin.ReadLevel            // how fresh answers must be; default leader
	Missing func([]dunlin.MissingShard) // told of shards that a page of a list lacks because they did not answer; nil: nobody
}

// Client calls one node. It is safe for concurrent use.
type Client struct {
	base *url.URL
	opts Options
	http *http.Client
}

// answerBytesMax bounds what is read of an answer.
const answerBytesMax = 64 << 20

// New makes a client of the node at base, such as http://127.0.0.1:8080; a path in base goes before every route.
func New(base string, o Options) (*Client, error) {
	if !strings.Contains(base, "://") {
		base = "http://" + base
	}
	u, err := url.Parse(base)
	if err != nil || u.Hostname() == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("%w: address %q: write it as http://host:port", dunlin.ErrInvalid, base)
	}
	u.Path = strings.TrimSuffix(u.Path, "/")
	u.RawQuery, u.Fragment = "", ""
	if u.User != nil && o.Token == "" && o.User == "" {
		o.User = u.User.Username()
		o.Password, _ = u.User.Password()
	}
	u.User = nil
	if o.Agent == "" {
		o.Agent = "dunlin-client"
	}
	if o.Retries == 0 {
		o.Retries = 3
	}
	if o.WaitMax == 0 {
		o.WaitMax = 10 * time.Second
	}
	c := &Client{base: u, opts: o, http: o.HTTP}
	if c.http == nil {
		c.http = &http.Client{Transport: http.DefaultTransport.(*http.Transport).Clone()}
	}
	return c, nil
}

// Close closes connections that nothing uses.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// request is one call before it is sent; it can be sent again.
type request struct {
	method, path string // path is escaped, and may have a query
	query        url.Values
	header       http.Header
	body         []byte
	again        bool // sending it twice is the same as once
}

// path joins escaped segments.
func path(segments ...string) string {
	var b strings.Builder
	for _, s := range segments {
		b.WriteByte('/')
		b.WriteString(url.PathEscape(s))
	}
	return b.String()
}

func (c *Client) build(ctx context.Context, q request) (*http.Request, error) {
	target := c.base.String() + q.path
	if len(q.query) > 0 {
		target += "?" + q.query.Encode()
	}
	var body io.Reader
	if q.body != nil {
		body = bytes.NewReader(q.body)
	}
	r, err := http.NewRequestWithContext(ctx, q.method, target, body)
	if err != nil {
		return nil, err
	}
	for k, v := range q.header {
		r.Header[k] = v
	}
	r.Header.Set("User-Agent", c.opts.Agent)
	switch {
	case c.opts.Token != "":
		r.Header.Set("Authorization", "Bearer "+c.opts.Token)
	case c.opts.User != "":
		r.SetBasicAuth(c.opts.User, c.opts.Password)
	}
	return r, nil
}

// do sends the request, again if the node asks for it and it is harmless, and reads a JSON answer, or bytes as they are, to out if that is not
// nil. A problem document becomes an *Error.
func (c *Client) do(ctx context.Context, q request, out any) (http.Header, error) {
	for try := 0; ; try++ {
		header, err := c.once(ctx, q, out)
		problem, ok := errors.AsType[*Error](err)
		later := ok && (problem.Status == http.StatusServiceUnavailable || problem.Status == http.StatusTooManyRequests)
		if !later || !q.again || try >= c.opts.Retries {
			return header, err
		}
		if !sleep(ctx, min(max(problem.RetryAfter, 100*time.Millisecond), c.opts.WaitMax)) {
			return header, err
		}
	}
}

func (c *Client) once(ctx context.Context, q request, out any) (http.Header, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	r, err := c.build(ctx, q)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(io.LimitReader(resp.Body, answerBytesMax+1))
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w", q.method, q.path, err)
	}
	if len(body) > answerBytesMax {
		return nil, fmt.Errorf("%s %s: %w: the answer has more than %d bytes", q.method, q.path, dunlin.ErrTooLarge, answerBytesMax)
	}
	if resp.StatusCode >= 300 {
		return resp.Header, errorOf(resp, body)
	}
	if raw, ok := out.(*[]byte); ok {
		*raw = body
		return resp.Header, nil
	}
	if out != nil {
		if err := json.Unmarshal(body, out); err != nil {
			return nil, fmt.Errorf("%s %s: the answer is no JSON of this API; is there a dunlin node at %s? (%w)", q.method, q.path, c.base, err)
		}
	}
	return resp.Header, nil
}

// get reads one thing.
func get[T any](ctx context.Context, c *Client, path string, query url.Values) (*T, error) {
	out := new(T)
	_, err := c.do(ctx, request{method: http.MethodGet, path: path, query: query, again: true}, out)
	if err != nil {
		return nil, err
	}
	return out, nil
}

// pages walks a list by its next links. A page is anything with items and a link.
func pages[P, T any](ctx context.Context, c *Client, path string, query url.Values, open func(*P) (items []T, next string)) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		for {
			page, err := get[P](ctx, c, path, query)
			if err != nil {
				var none T
				yield(none, err)
				return
			}
			if l, ok := any(page).(interface{ missing() []dunlin.MissingShard }); ok && c.opts.Missing != nil && len(l.missing()) > 0 {
				c.opts.Missing(l.missing())
			}
			items, next := open(page)
			for _, item := range items {
				if !yield(item, nil) {
					return
				}
			}
			if next == "" {
				return
			}
			if !strings.HasPrefix(next, "/") || strings.HasPrefix(next, "//") { // the credentials go where we were told, nowhere else
				var none T
				yield(none, fmt.Errorf("%w: the next page's link %q leads elsewhere", dunlin.ErrInvalid, next))
				return
			}
			path, query = next, nil
		}
	}
}

// list is the page of most lists.
type list[T any] struct {
	Items []T                   `json:"items"`
	Next  string                `json:"next"`
	Lacks []dunlin.MissingShard `json:"missing"`
}

func (l *list[T]) open() ([]T, string)            { return l.Items, l.Next }
func (l *list[T]) missing() []dunlin.MissingShard { return l.Lacks }

func listOf[T any](ctx context.Context, c *Client, path string, query url.Values) iter.Seq2[T, error] {
	return pages(ctx, c, path, c.fresh(query), (*list[T]).open)
}

// fresh adds to a question's query how fresh the answer must be.
func (c *Client) fresh(query url.Values) url.Values {
	if c.opts.Read.Stale > 0 {
		if query == nil {
			query = url.Values{}
		}
		query.Set("read", c.opts.Read.String())
	}
	return query
}

// conditional is the header that guards a change: dunlin.AnyRevision takes whatever is there, 0 only creates.
func conditional(ifRevision uint64) http.Header {
	switch ifRevision {
	case dunlin.AnyRevision:
		return http.Header{}
	case 0:
		return http.Header{"If-None-Match": {"*"}}
	}
	return http.Header{"If-Match": {`"` + strconv.FormatUint(ifRevision, 10) + `"`}}
}

// put sends a document and reads what became of it.
func put[T any](ctx context.Context, c *Client, path string, doc any, ifRevision uint64) (*T, error) {
	body, err := json.Marshal(doc)
	if err != nil {
		return nil, err
	}
	return putBytes[T](ctx, c, path, "application/json", body, ifRevision)
}

func putBytes[T any](ctx context.Context, c *Client, path, mediaType string, body []byte, ifRevision uint64) (*T, error) {
	header := conditional(ifRevision)
	header.Set("Content-Type", mediaType)
	out := new(T)
	// A guarded change that was made but whose answer was lost would fail its repetition: only an unguarded one goes twice.
	_, err := c.do(ctx, request{method: http.MethodPut, path: path, header: header, body: body, again: ifRevision == dunlin.AnyRevision}, out)
	if err != nil {
		return nil, err
	}
	return out, nil
}

func (c *Client) remove(ctx context.Context, path string, ifRevision uint64) error {
	_, err := c.do(ctx, request{method: http.MethodDelete, path: path, header: conditional(ifRevision)}, nil)
	return err
}

// sleep waits, and reports whether the whole time passed before ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
