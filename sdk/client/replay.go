package client

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"strings"

	"github.com/dunlin-iot/dunlin"
)

// BacktestQuery says what to try on the past. The candidate is a module, Rules, or a version of a plugin that the node knows.
type BacktestQuery struct {
	Domain  dunlin.DomainID
	Stage   string // of the pipeline; "": the only one
	Plugin  string
	Version string // semantic version or hash; "": the active one
	Rules   json.RawMessage
	Config  json.RawMessage // nil: the stage's
	Since   string          // RFC 3339, or a span before now such as -30d
	Until   string          // "": now
	Device  dunlin.DeviceID
	WarmUp  string // a span; "": the node's default
	Near    string // likewise
	Devices int    // told one by one; 0: the node's default
}

// backtestLineMax bounds a line of a back-test's answer.
const backtestLineMax = 64 << 20

// Backtest runs a candidate over what is recorded, without effects; module is nil if it is none. progress, if it is not nil, is
// called as the node tells how far it is. The back-test ends when ctx does.
func (c *Client) Backtest(ctx context.Context, q BacktestQuery, module []byte, progress func(dunlin.BacktestProgress)) (*dunlin.BacktestReport, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	body, contentType, err := q.body(module)
	if err != nil {
		return nil, err
	}
	req := request{method: http.MethodPost, path: "/v1/backtests", body: body, query: values("domain", string(q.Domain), "stage", q.Stage, "plugin", q.Plugin,
		"version", q.Version, "since", q.Since, "until", q.Until, "device", string(q.Device), "warm_up", q.WarmUp, "near", q.Near, "devices", number(q.Devices))}
	if contentType != "" {
		req.header = http.Header{"Content-Type": {contentType}}
	}
	r, err := c.build(ctx, req)
	if err != nil {
		return nil, err
	}
	resp, err := c.http.Do(r)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		b, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
		return nil, errorOf(resp, b)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, backtestLineMax)
	for lines.Scan() {
		var line struct {
			Progress *dunlin.BacktestProgress `json:"progress"`
			Report   *dunlin.BacktestReport   `json:"report"`
			Problem  *Error                   `json:"problem"`
		}
		switch err := json.Unmarshal(lines.Bytes(), &line); {
		case err != nil:
			return nil, fmt.Errorf("back-test: the answer is no JSON of this API: %w", err)
		case line.Problem != nil:
			return nil, line.Problem
		case line.Report != nil:
			return line.Report, nil
		case line.Progress != nil && progress != nil:
			progress(*line.Progress)
		}
	}
	if err := lines.Err(); err != nil {
		return nil, fmt.Errorf("back-test: %w", err)
	}
	return nil, errors.New("back-test: the answer ended before the report")
}

// body is the candidate as the route takes it.
func (q *BacktestQuery) body(module []byte) ([]byte, string, error) {
	if module == nil {
		if q.Rules == nil && q.Config == nil {
			return nil, "", nil
		}
		b, err := json.Marshal(struct {
			Rules  json.RawMessage `json:"rules,omitempty"`
			Config json.RawMessage `json:"config,omitempty"`
		}{q.Rules, q.Config})
		return b, "application/json", err
	}
	if q.Config == nil {
		return module, "application/wasm", nil
	}
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	for name, content := range map[string][]byte{"module": module, "config": q.Config} {
		part, err := w.CreateFormFile(name, name)
		if err != nil {
			return nil, "", err
		}
		if _, err := part.Write(content); err != nil {
			return nil, "", err
		}
	}
	err := w.Close()
	return b.Bytes(), w.FormDataContentType(), err
}

// Input is one input of a turn.
type Input struct {
	Kind     string      `json:"kind"` // telemetry, raw, timer, result, lifecycle, other
	Received dunlin.Time `json:"received"`
	Sender   string      `json:"sender,omitempty"`
	Skewed   bool        `json:"skewed,omitempty"`
	Records  []Reading   `json:"records,omitempty"`
	Format   uint16      `json:"format,omitempty"`
	Payload  []byte      `json:"payload,omitempty"`
	Timer    string      `json:"timer,omitempty"`
}

// Explanation tells how an alert came about: see dunlin.Explanation.
type Explanation struct {
	Alert      Alert             `json:"alert"`
	At         dunlin.Time       `json:"at"`
	Shard      dunlin.ShardID    `json:"shard"`
	Index      uint64            `json:"index"`
	Seq        uint64            `json:"seq"`
	Inputs     []Input           `json:"inputs"`
	Input      int               `json:"input"`
	Stage      int               `json:"stage"`
	Name       string            `json:"name,omitempty"`
	Hash       dunlin.ModuleHash `json:"hash"`
	Plugin     string            `json:"plugin,omitempty"`
	Version    string            `json:"version,omitempty"`
	Config     json.RawMessage   `json:"config,omitempty"`
	Rules      json.RawMessage   `json:"rules,omitempty"`
	Before     []byte            `json:"before"`
	After      []byte            `json:"after"`
	StateFrom  string            `json:"state_from"`
	Rebuilt    dunlin.Time       `json:"rebuilt,omitzero"`
	Turns      int               `json:"turns"`
	Whole      bool              `json:"whole,omitempty"`
	Same       bool              `json:"same"`
	Difference string            `json:"difference,omitempty"`
	Again      []Alert           `json:"again"`
	Logs       []string          `json:"logs,omitempty"`
	Fuel       uint64            `json:"fuel"`
}

// Explain tells how an alert came about, by its id. dunlin.ErrCursorLost: retention has dropped its entry.
func (c *Client) Explain(ctx context.Context, alert string) (*Explanation, error) {
	return get[Explanation](ctx, c, "/v1/alerts/explanation", c.fresh(url.Values{"id": {alert}}))
}

// letterPath is where a dead letter is, by its id.
func letterPath(id string) string {
	return path(append([]string{"v1", "deadletters"}, strings.Split(id, "/")...)...)
}
