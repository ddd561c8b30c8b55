package httpapi

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dunlin-iot/dunlin"
)

// backtestLine is a line of a back-test's answer: one of the three.
type backtestLine struct {
	Progress *dunlin.BacktestProgress `json:"progress,omitempty" doc:"How far it is; several lines a second"`
	Report   *dunlin.BacktestReport   `json:"report,omitempty" doc:"The last line, if it succeeds"`
	Problem  *Problem                 `json:"problem,omitempty" doc:"The last line, if it doesn't"`
}

// backtestBody is a JSON body, which no module goes with.
type backtestBody struct {
	Rules  json.RawMessage `json:"rules,omitempty"`
	Config json.RawMessage `json:"config,omitempty"`
}

// serveBacktest is POST /v1/backtests.
func (g *Gateway) serveBacktest(c *call, r *http.Request) {
	past, err := g.replayer()
	if err != nil {
		c.fail(r, err)
		return
	}
	b, err := backtestOf(r.URL.Query(), g.cfg.Clock())
	if err != nil {
		c.fail(r, err)
		return
	}
	module, err := g.backtestBody(c, r, &b)
	if err != nil {
		c.fail(r, err)
		return
	}
	b.Tenant = c.tenant()
	w := &lineWriter{c: c, rc: http.NewResponseController(c.ResponseWriter), within: g.cfg.StreamTimeout, clock: func() time.Time { return g.cfg.Clock().Std() }}
	_ = w.rc.SetReadDeadline(time.Time{}) // the body is here; a back-test takes its time
	rep, err := past.Backtest(r.Context(), b, module, func(p dunlin.BacktestProgress) { w.line(backtestLine{Progress: &p}) })
	switch {
	case err == nil:
		w.line(backtestLine{Report: rep})
	case c.status == 0:
		if errors.Is(err, dunlin.ErrOverloaded) {
			p := problemOf(err)
			p.Status, p.RetryAfter = http.StatusTooManyRequests, 10
			err = p
		}
		c.fail(r, err)
	default:
		w.line(backtestLine{Problem: c.problem(r.Context(), err)})
	}
}

// lineWriter writes lines of JSON as they come. Each has its own deadline: a back-test may take longer than an answer otherwise may.
type lineWriter struct {
	c      *call
	rc     *http.ResponseController
	within time.Duration
	clock  func() time.Time
}

func (w *lineWriter) line(v backtestLine) {
	b, err := json.Marshal(v)
	if err != nil {
		return
	}
	_ = w.rc.SetWriteDeadline(w.clock().Add(w.within))
	if w.c.status == 0 {
		w.c.Header().Set("Content-Type", "application/x-ndjson")
		w.c.Header().Set("Cache-Control", "no-store")
	}
	if _, err := w.c.Write(append(b, '\n')); err == nil {
		_ = w.rc.Flush()
	}
}

// backtestOf reads the query.
func backtestOf(q url.Values, now dunlin.Time) (b dunlin.Backtest, err error) {
	known := []string{"domain", "stage", "plugin", "version", "since", "until", "device", "warm_up", "near", "devices", "config"}
	for name, values := range q {
		if !slices.Contains(known, name) {
			return b, invalidValue("query."+name, "unknown query parameter", nil)
		}
		if len(values) > 1 {
			return b, invalidValue("query."+name, "given more than once", nil)
		}
	}
	b.Domain, b.Stage, b.Plugin, b.Version, b.Device = dunlin.DomainID(q.Get("domain")), q.Get("stage"), q.Get("plugin"), q.Get("version"), dunlin.DeviceID(q.Get("device"))
	if err := b.Domain.Validate(); err != nil {
		return b, invalidValue("query.domain", err.Error(), string(b.Domain))
	}
	if b.Device != "" {
		if err := b.Device.Validate(); err != nil {
			return b, invalidValue("query.device", err.Error(), string(b.Device))
		}
	}
	for _, t := range []struct {
		name string
		to   *dunlin.Time
	}{{"since", &b.Since}, {"until", &b.Until}} {
		if s := q.Get(t.name); s != "" {
			var p timeParam
			if err := p.UnmarshalText([]byte(s)); err != nil {
				return b, invalidValue("query."+t.name, err.Error(), s)
			}
			*t.to = p.resolve(now)
		}
	}
	if b.Since == 0 {
		return b, invalidValue("query.since", "since when? RFC 3339, or a span before now such as -30d", nil)
	}
	for _, t := range []struct {
		name string
		to   *dunlin.Duration
	}{{"warm_up", &b.WarmUp}, {"near", &b.Near}} {
		if s := q.Get(t.name); s != "" {
			d, err := parseSpan(s)
			if err != nil {
				return b, invalidValue("query."+t.name, err.Error(), s)
			}
			*t.to = dunlin.Duration(d)
		}
	}
	if s := q.Get("devices"); s != "" {
		if b.DevicesMax, err = strconv.Atoi(s); err != nil || b.DevicesMax < 1 || b.DevicesMax > 1000 {
			return b, invalidValue("query.devices", "devices is a number from 1 to 1000", s)
		}
	}
	if s := q.Get("config"); s != "" {
		if b.Config = json.RawMessage(s); !json.Valid(b.Config) {
			return b, invalidValue("query.config", "config is a JSON object", nil)
		}
	}
	return b, nil
}

// backtestBody reads the candidate: a module, a JSON document with rules, or parts with either and a configuration.
func (g *Gateway) backtestBody(c *call, r *http.Request, b *dunlin.Backtest) ([]byte, error) {
	contentType := r.Header.Get("Content-Type")
	mt := mediaTypeOf(contentType)
	body, err := readBody(c, r, nil, int(g.cfg.ModuleBytesMax))
	if err != nil {
		return nil, err
	}
	switch {
	case len(body) == 0:
		return nil, nil
	case mt == "application/wasm" || mt == "application/octet-stream":
		return body, nil
	case mt == "application/json":
		var doc backtestBody
		d := json.NewDecoder(bytes.NewReader(body))
		d.DisallowUnknownFields()
		if err := d.Decode(&doc); err != nil {
			return nil, fmt.Errorf("%w: a body in JSON has rules and config: %v", dunlin.ErrInvalid, err)
		}
		b.Rules = doc.Rules
		if doc.Config != nil {
			b.Config = doc.Config
		}
		return nil, nil
	case mt == "multipart/form-data":
		return backtestParts(contentType, body, b)
	}
	return nil, fmt.Errorf("%w: Content-Type %s; a candidate is application/wasm, application/json with rules, or multipart/form-data with either",
		dunlin.ErrFormat, quoted(contentType))
}

func backtestParts(contentType string, body []byte, b *dunlin.Backtest) (module []byte, err error) {
	_, params, err := mime.ParseMediaType(contentType)
	if err != nil {
		return nil, fmt.Errorf("%w: %v", dunlin.ErrInvalid, err)
	}
	parts := multipart.NewReader(bytes.NewReader(body), params["boundary"])
	for {
		p, err := parts.NextPart()
		if errors.Is(err, io.EOF) && (module != nil || b.Rules != nil || b.Config != nil) {
			return module, nil
		}
		if err != nil {
			return nil, fmt.Errorf("%w: parts of the body: %v", dunlin.ErrInvalid, err)
		}
		content, err := io.ReadAll(p) // bounded by the body
		if err != nil {
			return nil, fmt.Errorf("%w: part %q: %v", dunlin.ErrInvalid, p.FormName(), err)
		}
		switch name := strings.ToLower(p.FormName()); name {
		case "module":
			module = content
		case "rules", "config":
			if !json.Valid(content) {
				return nil, invalidValue("body."+name, "not JSON", nil)
			}
			if name == "rules" {
				b.Rules = content
			} else {
				b.Config = content
			}
		default:
			return nil, invalidValue("body."+name, "parts are module, rules and config", nil)
		}
	}
}

// describeBacktests documents POST /v1/backtests.
func (a *api) describeBacktests() {
	query := func(name, description string) *huma.Param {
		return &huma.Param{Name: name, In: "query", Description: description, Schema: &huma.Schema{Type: huma.TypeString}, Required: name == "domain" || name == "since"}
	}
	a.add(huma.Operation{OperationID: "run-backtest", Method: http.MethodPost, Path: "/v1/backtests", Tags: []string{"plugins"},
		Summary: "Try a module or rules on recorded inputs, without effects",
		Description: "The body is the candidate: a module, or rules, or nothing if plugin and version name one that is known. The answer is a stream of " +
			"lines: progress, and at last the report of alerts that would have been added, removed or moved, with what it cost. " +
			"The back-test ends when the client leaves. 429: one runs on this node already.",
		Parameters: []*huma.Param{query("domain", "Whose devices' inputs"), query("since", "From when on alerts are compared: RFC 3339, or a span before now such as -30d"),
			query("until", "Until when; default now"), query("stage", "Name of the pipeline's stage that the candidate takes the place of; default the only one"),
			query("plugin", "A candidate that is known: the plugin's name"), query("version", "Its semantic version or hash; default the active one"),
			query("config", "Configuration, a JSON object; default the stage's"), query("device", "Only this device"),
			query("warm_up", "How much earlier it begins, to have a state by then; default 24h"),
			query("near", "How far apart two alerts may be that count as one that moved; default 15m"),
			query("devices", "How many devices are told one by one; default 100")},
		RequestBody: &huma.RequestBody{Content: map[string]*huma.MediaType{"application/wasm": {}, "application/json": {Schema: schemaOf[backtestBody](a)},
			"multipart/form-data": {}}},
		Responses: map[string]*huma.Response{"200": {Description: "Lines", Content: map[string]*huma.MediaType{"application/x-ndjson": {Schema: schemaOf[backtestLine](a)}}}}})
}
