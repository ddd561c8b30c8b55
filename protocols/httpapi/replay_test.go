package httpapi

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"mime/multipart"
	"net/http"
	"strings"
	"testing"

	"github.com/dunlin-iot/dunlin"
)

// fakePast answers what is asked of the past, and remembers it.
type fakePast struct {
	asked  dunlin.Backtest
	module []byte
	busy   bool
	fail   error
	letter string
}

func (p *fakePast) Backtest(ctx context.Context, b dunlin.Backtest, module []byte, progress func(dunlin.BacktestProgress)) (*dunlin.BacktestReport, error) {
	p.asked, p.module = b, module
	if p.busy {
		return nil, fmt.Errorf("%w: one is running", dunlin.ErrOverloaded)
	}
	progress(dunlin.BacktestProgress{Done: 0.5, Inputs: 10})
	if p.fail != nil {
		return nil, p.fail
	}
	return &dunlin.BacktestReport{Domain: b.Domain, Mode: dunlin.BacktestCandidate, Alerts: dunlin.BacktestAlerts{Added: 2}}, ctx.Err()
}

func (p *fakePast) Explain(_ context.Context, _ dunlin.Tenant, alert string) (*dunlin.Explanation, error) {
	if alert != "dev-1/hot/a/b/7" {
		return nil, fmt.Errorf("explain: %w: its entry was dropped by retention", dunlin.ErrCursorLost)
	}
	return &dunlin.Explanation{Alert: dunlin.Alert{Device: "dev-1", Rule: "hot", Key: "a/b", Severity: dunlin.Major, State: dunlin.AlertRaised, RaisedSeq: 7, RaisedAt: testNow},
		Inputs: []dunlin.Input{{Kind: dunlin.InputTimer, Timer: "watch", Received: testNow}, {Kind: dunlin.InputTelemetry, Received: testNow,
			Records: []dunlin.Record{{Metric: "temp", Kind: dunlin.Number, Num: 9, Time: testNow}}}}, Input: 1, Before: []byte{1}, After: []byte{2},
		StateFrom: "log", Same: true}, nil
}

func (p *fakePast) ReplayLetter(_ context.Context, _ dunlin.Tenant, id string) (string, error) {
	p.letter = id
	if id == "dev-1/0/13" {
		return "plugin: unlucky", nil
	}
	return "", nil
}

func (p *fakePast) DropLetter(_ context.Context, _ dunlin.Tenant, id string) error {
	p.letter = id
	if id != "dev-1/0/13" {
		return dunlin.ErrNotFound
	}
	return nil
}

func pastGateway(t *testing.T, p *fakePast) *bed {
	b := newBed(t)
	b.g.deps.Replay = p
	return b
}

func lines(t *testing.T, body string) (all []map[string]json.RawMessage) {
	t.Helper()
	for line := range strings.Lines(body) {
		var v map[string]json.RawMessage
		if err := json.Unmarshal([]byte(line), &v); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		all = append(all, v)
	}
	return all
}

func TestBacktestRoute(t *testing.T) {
	p := &fakePast{}
	g := pastGateway(t, p)
	post := func(query, contentType string, body []byte) (int, string, http.Header) {
		t.Helper()
		w := g.do(http.MethodPost, "/v1/backtests?"+query, string(body), "Content-Type: "+contentType)
		return w.Code, w.Body.String(), w.Header()
	}
	code, body, h := post("domain=cold&since=-30d&near=5m&warm_up=2d&stage=rule&device=dev-1", "application/wasm", []byte("\x00asm"))
	if code != 200 || h.Get("Content-Type") != "application/x-ndjson" {
		t.Fatalf("%d %s %s", code, h, body)
	}
	if ls := lines(t, body); len(ls) != 2 || ls[0]["progress"] == nil || !strings.Contains(string(ls[1]["report"]), `"added":2`) {
		t.Errorf("lines %s", body)
	}
	if a := p.asked; string(p.module) != "\x00asm" || a.Domain != "cold" || a.Stage != "rule" || a.Device != "dev-1" || a.Since != testNow.Add(-30*86_400e9) ||
		a.Near != dunlin.Duration(5*60e9) || a.WarmUp != dunlin.Duration(48*3600e9) || a.Tenant != dunlin.DefaultTenant {
		t.Errorf("asked %+v", p.asked)
	}
	if code, _, _ = post("domain=cold&since=2026-01-01T00:00:00Z", "application/json", []byte(`{"rules":[{"name":"a"}]}`)); code != 200 || string(p.asked.Rules) != `[{"name":"a"}]` || p.module != nil {
		t.Errorf("%d, rules %s", code, p.asked.Rules)
	}
	if code, _, _ = post("domain=cold&since=-1d&plugin=x&version=1.2.0&config="+"%7B%7D", "", nil); code != 200 || p.asked.Version != "1.2.0" || string(p.asked.Config) != "{}" {
		t.Errorf("%d, asked %+v", code, p.asked)
	}
	var form bytes.Buffer
	mw := multipart.NewWriter(&form)
	for name, content := range map[string]string{"module": "\x00asm2", "config": `{"above":9}`} {
		part, _ := mw.CreateFormFile(name, name)
		_, _ = part.Write([]byte(content))
	}
	_ = mw.Close()
	if code, body, _ = post("domain=cold&since=-1d", mw.FormDataContentType(), form.Bytes()); code != 200 || string(p.module) != "\x00asm2" || string(p.asked.Config) != `{"above":9}` {
		t.Errorf("%d %s, module %q", code, body, p.module)
	}
	for _, bad := range []struct{ query, contentType, body string }{{"since=-1d", "", ""}, {"domain=cold", "", ""}, {"domain=cold&since=x", "", ""},
		{"domain=cold&since=-1d&what=1", "", ""}, {"domain=cold&since=-1d&devices=0", "", ""}, {"domain=cold&since=-1d&config={", "", ""},
		{"domain=cold&since=-1d", "text/plain", "x"}, {"domain=cold&since=-1d", "application/json", `{"rule":1}`},
		{"domain=cold&since=-1d", "multipart/form-data; boundary=x", "--x\r\n"}} {
		if code, body, _ := post(bad.query, bad.contentType, []byte(bad.body)); code < 400 || code >= 500 {
			t.Errorf("%+v: %d %s", bad, code, body)
		}
	}
	p.fail = fmt.Errorf("shard 3: %w", dunlin.ErrUnavailable)
	if _, body, _ = post("domain=cold&since=-1d", "application/wasm", []byte("x")); !strings.Contains(body, `"problem"`) || !strings.Contains(body, "shard 3") {
		t.Errorf("a failure on the way: %s", body)
	}
	p.busy = true
	if code, _, h = post("domain=cold&since=-1d", "application/wasm", []byte("x")); code != http.StatusTooManyRequests || h.Get("Retry-After") == "" {
		t.Errorf("busy: %d %v", code, h)
	}
}

func TestExplainAndLetterRoutes(t *testing.T) {
	p := &fakePast{}
	g := pastGateway(t, p)
	w := g.do(http.MethodGet, "/v1/alerts/explanation?id=dev-1/hot/a/b/7", "")
	if w.Code != 200 || !strings.Contains(w.Body.String(), `"same":true`) || !strings.Contains(w.Body.String(), `"kind":"timer"`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w = g.do(http.MethodGet, "/v1/alerts/explanation?id=dev-1/hot/1", ""); w.Code != http.StatusGone || !strings.Contains(w.Body.String(), "retention") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w = g.do(http.MethodPost, "/v1/deadletters/dev-1/0/13/replay", ""); w.Code != 200 || p.letter != "dev-1/0/13" || !strings.Contains(w.Body.String(), "unlucky") {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w = g.do(http.MethodPost, "/v1/deadletters/dev-1/0/14/replay", ""); w.Code != 200 || !strings.Contains(w.Body.String(), `"succeeded":true`) {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	if w = g.do(http.MethodDelete, "/v1/deadletters/dev-1/0/13", ""); w.Code != 204 {
		t.Errorf("%d %s", w.Code, w.Body)
	}
	for path, want := range map[string]int{"/v1/deadletters/dev-1/0/14": 404, "/v1/deadletters/dev-1/x/14": 422, "/v1/deadletters/dev%201/0/14": 422} {
		if w = g.do(http.MethodDelete, path, ""); w.Code != want {
			t.Errorf("%s: %d %s", path, w.Code, w.Body)
		}
	}
}
