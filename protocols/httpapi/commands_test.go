package httpapi

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/dunlin-iot/dunlin"
)

// TestCommands lists what waits for an answer, and answers.
func TestCommands(t *testing.T) {
	b := newBed(t)
	b.twins[key("fridge-1")] = dunlin.Twin{Device: "fridge-1", Commands: []dunlin.Command{
		{ID: "7-0", Name: "close-door", Payload: []byte(`{"gently":true}`), Format: dunlin.FormatJSON, At: testNow, Deadline: testNow.Add(time.Hour)},
		{ID: "7-1", Name: "say", Payload: []byte("hello"), Format: dunlin.FormatText, At: testNow, Deadline: testNow.Add(time.Hour)},
		{ID: "8-0", Name: "flash", Payload: []byte{1, 2}, Format: dunlin.FormatOctets, At: testNow, Deadline: testNow.Add(time.Hour)},
		{ID: "9-0", Name: "reboot", At: testNow, Deadline: testNow.Add(time.Hour)}}}
	golden(t, "testdata/commands.json", b.want(b.do("GET", "/v1/devices/fridge-1/c", ""), 200))
	b.want(b.do("GET", "/v1/devices/nobody/c", ""), 404)

	var got dunlin.Uplink
	b.receipt = func(u *dunlin.Uplink) (dunlin.Receipt, bool) {
		got = *u
		switch u.Timer {
		case "7-0":
			return dunlin.Receipt{Seq: 12}, true
		case "7-1":
			return dunlin.Receipt{Seq: 12, Duplicate: true}, true
		}
		return dunlin.Receipt{Err: fmt.Errorf("%w: no command of this id waits for an answer", dunlin.ErrNotFound)}, true
	}
	if body := b.want(b.do("POST", "/v1/devices/fridge-1/c/7-0", `{"ok":true}`, "Content-Type: application/json", "Idempotency-Key: k"), 200); body != `{"seq":12,"duplicate":false}`+"\n" {
		t.Errorf("answer %s", body)
	}
	if got.Kind != dunlin.InputResult || got.Timer != "7-0" || string(got.Payload) != `{"ok":true}` || got.Format != dunlin.FormatJSON ||
		got.MessageID == 0 || got.Flags != dunlin.FlagMayRepeat || got.Device != "fridge-1" || got.Received != testNow {
		t.Errorf("uplink %+v", got.Input)
	}
	if body := b.want(b.do("POST", "/v1/devices/fridge-1/c/7-1", ""), 200); body != `{"seq":12,"duplicate":true}`+"\n" {
		t.Errorf("answer %s", body)
	}
	if len(got.Payload) != 0 || got.Format != dunlin.FormatOctets {
		t.Errorf("an answer without a body: %+v", got.Input)
	}
	for _, tc := range []struct {
		command, body string
		status        int
		headers       []string
	}{
		{"9-9", "", 404, nil},
		{"now", "", 400, nil},
		{strings.Repeat("1", 300) + "-0", "", 400, nil},
		{"7-0", "x", 415, []string{"Content-Type: image/png"}},
		{"7-0", strings.Repeat("x", 70<<10), 413, nil},
	} {
		b.want(b.do("POST", "/v1/devices/fridge-1/c/"+tc.command, tc.body, tc.headers...), tc.status)
	}
	b.receipt = func(*dunlin.Uplink) (dunlin.Receipt, bool) {
		return dunlin.Receipt{Err: errors.Join(dunlin.ErrUnavailable), RetryAfterSeconds: 3}, true
	}
	if w := b.do("POST", "/v1/devices/fridge-1/c/7-0", ""); w.Code != 503 || w.Header().Get("Retry-After") != "3" {
		t.Errorf("%d, Retry-After %q", w.Code, w.Header().Get("Retry-After"))
	}
}
