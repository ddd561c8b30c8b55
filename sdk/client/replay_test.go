package client_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/sdk/client"
)

// A back-test's progress comes as it goes, then the report; a problem on the way, or an answer that is cut, is an error.
func TestBacktest(t *testing.T) {
	answer := ""
	var asked *http.Request
	var body string
	c := node(t, client.Options{Retries: -1}, func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		asked, body = r, string(b)
		if answer == "" {
			problem(w, http.StatusTooManyRequests, "overloaded", "Retry-After: 10")
			return
		}
		w.Header().Set("Content-Type", "application/x-ndjson")
		fmt.Fprint(w, answer)
	})
	answer = `{"progress":{"done":0.5,"inputs":7}}` + "\n" + `{"report":{"domain":"cold","alerts":{"added":3}}}` + "\n"
	inputs := uint64(0)
	q := client.BacktestQuery{Domain: "cold", Since: "-30d", Stage: "rule"}
	rep, err := c.Backtest(t.Context(), q, []byte("\x00asm"), func(p dunlin.BacktestProgress) { inputs = p.Inputs })
	if err != nil || rep.Alerts.Added != 3 || inputs != 7 || body != "\x00asm" || asked.Header.Get("Content-Type") != "application/wasm" {
		t.Fatalf("%+v, %v, %d inputs, body %q", rep, err, inputs, body)
	}
	if got := asked.URL.Query(); got.Get("since") != "-30d" || got.Get("domain") != "cold" || got.Get("stage") != "rule" || got.Has("device") {
		t.Errorf("query %v", got)
	}
	q.Config = json.RawMessage(`{"above":9}`)
	if _, err := c.Backtest(t.Context(), q, []byte("\x00asm"), nil); err != nil || !strings.HasPrefix(asked.Header.Get("Content-Type"), "multipart/form-data") ||
		!strings.Contains(body, "\x00asm") || !strings.Contains(body, `{"above":9}`) || !strings.HasSuffix(strings.TrimSpace(body), "--") {
		t.Errorf("parts: %v, %q", err, body)
	}
	q.Rules, q.Config = json.RawMessage(`[{"name":"a"}]`), nil
	if _, err := c.Backtest(t.Context(), q, nil, nil); err != nil || body != `{"rules":[{"name":"a"}]}` {
		t.Errorf("rules: %v, %q", err, body)
	}
	answer = `{"progress":{"done":0.5}}` + "\n" + `{"problem":{"title":"Gone","status":503,"detail":"shard 3"}}` + "\n"
	var e *client.Error
	if _, err := c.Backtest(t.Context(), q, nil, nil); !errors.As(err, &e) || e.Status != 503 {
		t.Errorf("a problem: %v", err)
	}
	answer = `{"progress":{"done":0.5}}` + "\n"
	if _, err := c.Backtest(t.Context(), q, nil, nil); err == nil {
		t.Error("a cut answer is a report")
	}
	answer = ""
	if _, err := c.Backtest(t.Context(), q, nil, nil); !errors.As(err, &e) || e.Status != http.StatusTooManyRequests {
		t.Errorf("busy: %v", err)
	}
}

func TestExplainAndLetters(t *testing.T) {
	var path string
	c := node(t, client.Options{Retries: -1}, func(w http.ResponseWriter, r *http.Request) {
		path = r.Method + " " + r.URL.RequestURI()
		switch {
		case strings.Contains(path, "explanation"):
			fmt.Fprint(w, `{"alert":{"id":"d/r/7","severity":"major","state":"raised"},"inputs":[{"kind":"timer","timer":"t"}],"before":"AQ==","same":true}`)
		case strings.HasSuffix(path, "/replay"):
			fmt.Fprint(w, `{"succeeded":false,"reason":"plugin: unlucky"}`)
		default:
			w.WriteHeader(http.StatusNoContent)
		}
	})
	x, err := c.Explain(t.Context(), "d/r/a b/7")
	if err != nil || !x.Same || x.Inputs[0].Timer != "t" || string(x.Before) != "\x01" || !strings.HasSuffix(path, "/v1/alerts/explanation?id=d%2Fr%2Fa+b%2F7") {
		t.Errorf("%+v, %v, %s", x, err, path)
	}
	if again, err := c.ReplayLetter(t.Context(), "d:1/0/7"); err != nil || again != "plugin: unlucky" || !strings.HasSuffix(path, "/v1/deadletters/d:1/0/7/replay") {
		t.Errorf("%q, %v, %s", again, err, path)
	}
	if err := c.DropLetter(t.Context(), "d/0/7"); err != nil || !strings.HasPrefix(path, "DELETE ") || !strings.HasSuffix(path, "/v1/deadletters/d/0/7") {
		t.Errorf("%v, %s", err, path)
	}
}
