package coap

import (
	"encoding/hex"
	"fmt"
	"os/exec"
	"strings"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/dunlin-iot/dunlin"
)

func waiting() []dunlin.Command {
	return []dunlin.Command{
		{ID: "7-0", Name: "set", Payload: []byte(`{"max": 8}`), Format: dunlin.FormatJSON, Deadline: testNow + 999_999},
		{ID: "7-1", Name: "say", Payload: []byte("βeta"), Format: dunlin.FormatText, Deadline: testNow},
		{ID: "7-2", Name: "raw", Payload: []byte{1, 255}, Format: dunlin.FormatOctets, Deadline: testNow},
		{ID: "8-0", Name: "off", Deadline: testNow}}
}

// TestCommandFormats: the representations, byte by byte.
func TestCommandFormats(t *testing.T) {
	want := `[{"id":"7-0","name":"set","deadline":1700000000,"ct":50,"payload":{"max":8}},{"id":"7-1","name":"say","deadline":1700000000,"ct":0,"payload":"βeta"},` +
		`{"id":"7-2","name":"raw","deadline":1700000000,"ct":42,"payload":"Af8"},{"id":"8-0","name":"off","deadline":1700000000}]`
	if got := string(appendCommands(nil, waiting(), dunlin.FormatJSON)); got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	const head, name, deadline = "62 6964 63", "64 6e616d65 63", "68 646561646c696e65 1a6553f100"
	wantHex := strings.ReplaceAll("84"+
		"a5"+head+"372d30"+name+"736574"+deadline+"62 6374 1832 67 7061796c6f6164 4a 7b226d6178223a20387d"+
		"a5"+head+"372d31"+name+"736179"+deadline+"62 6374 00 67 7061796c6f6164 45 ceb2657461"+
		"a5"+head+"372d32"+name+"726177"+deadline+"62 6374 182a 67 7061796c6f6164 42 01ff"+
		"a3"+head+"382d30"+name+"6f6666"+deadline, " ", "")
	if got := hex.EncodeToString(appendCommands(nil, waiting(), dunlin.FormatCBOR)); got != wantHex {
		t.Errorf("got  %s\nwant %s", got, wantHex)
	}
	if got := string(appendCommands(nil, nil, dunlin.FormatJSON)); got != "[]" {
		t.Errorf("none: %s", got)
	}
	broken := []dunlin.Command{{ID: "1-0", Name: "x", Payload: []byte("{\xff"), Format: dunlin.FormatJSON}}
	if got := string(appendCommands(nil, broken, dunlin.FormatJSON)); !strings.Contains(got, `"payload":"e_8"`) {
		t.Errorf("a payload that is not what it says: %s", got)
	}
}

// TestCommands: who may see and answer what, over the wire.
func TestCommands(t *testing.T) {
	r := &rooms{twins: map[dunlin.DeviceID]*dunlin.Twin{"fridge": {Device: "fridge", Commands: waiting()}},
		receipt: func(id string) *receipt {
			if id == "fridge" {
				return nil
			}
			return &receipt{Receipt: dunlin.Receipt{Err: fmt.Errorf("%w: no command of this id waits for an answer", dunlin.ErrNotFound)}}
		},
		secrets: map[string]dunlin.Principal{"fridge:s3cret": {Kind: dunlin.PrincipalDevice, Tenant: "default", ID: "fridge"},
			"app:s3cret": {Kind: dunlin.PrincipalApplication, Tenant: "default", ID: "app"}, ":token": {Kind: dunlin.PrincipalDevice, Tenant: "default", ID: "fridge"}}}
	open := dial(t, serve(t, Config{Open: true, PayloadBytesMax: 100}, r))
	closed := dial(t, serve(t, Config{}, r))
	octets := option(message.ContentFormat, 42)
	for _, c := range []struct {
		name string
		cl   *client
		ask  message.Message
		want codes.Code
		text string
	}{
		{"list", open, get("d/fridge/c"), code(2, 5), `[{"id":"7-0"`},
		{"list in CBOR", open, get("d/fridge/c", option(message.Accept, 60)), code(2, 5), "\x84"},
		{"list in SenML", open, get("d/fridge/c", option(message.Accept, 110)), code(4, 6), ""},
		{"PUT", open, request(codes.PUT, "d/fridge/c"), code(4, 5), "only GET"},
		{"answer", open, post("d/fridge/c/7-0", "done", octets), code(2, 4), ""},
		{"answer with nothing", open, post("d/fridge/c/7-1", ""), code(2, 4), ""},
		{"GET of one", open, get("d/fridge/c/7-0"), code(4, 5), "only POST"},
		{"no id", open, post("d/fridge/c/now", ""), code(4, 0), "command id"},
		{"too large", open, post("d/fridge/c/7-0", long), code(4, 13), "too large"},
		{"nothing waits", open, post("d/other/c/7-0", ""), code(4, 4), "not found"},
		{"no credential", closed, get("d/fridge/c"), code(4, 1), ""},
		{"the device", closed, get("d/fridge/c?k=s3cret"), code(2, 5), "["},
		{"another device's", closed, get("d/other/c?u=fridge&k=s3cret"), code(4, 3), ""},
		{"an application", closed, get("d/fridge/c?u=app&k=s3cret"), code(2, 5), "["},
		{"an application answers", closed, post("d/fridge/c/7-0?u=app&k=s3cret", ""), code(4, 3), ""},
		{"another device answers", closed, post("d/other/c/7-0?u=fridge&k=s3cret", ""), code(4, 3), ""},
		{"the device answers", closed, post("d/fridge/c/7-2?k=s3cret", "x", octets), code(2, 4), ""},
	} {
		if a := c.cl.ask(c.ask); a.Code != c.want || !strings.Contains(string(a.Payload), c.text) {
			t.Errorf("%s: got %s", c.name, show(a))
		}
	}
	var got []string
	for _, u := range r.got() {
		if u.Device == "fridge" {
			got = append(got, fmt.Sprintf("%d %s %q %d %v", u.Kind, u.Timer, u.Payload, u.Format, u.MessageID != 0))
		}
	}
	if want := "[4 7-0 \"done\" 42 true 4 7-1 \"\" 42 true 4 7-2 \"x\" 42 true]"; fmt.Sprint(got) != want {
		t.Errorf("uplinks %v, want %s", got, want)
	}
}

// TestLibcoapAnswers lists and answers with libcoap's client.
func TestLibcoapAnswers(t *testing.T) {
	tool, err := exec.LookPath("coap-client-notls")
	if err != nil {
		t.Skip("coap-client-notls is not installed (Debian: libcoap3-bin)")
	}
	r := &rooms{twins: map[dunlin.DeviceID]*dunlin.Twin{"fridge": {Device: "fridge", Commands: waiting()}}}
	at := "coap://" + serve(t, Config{Open: true}, r).Addr().String() + "/d/fridge/c"
	out, err := exec.CommandContext(t.Context(), tool, "-v", "0", "-B", "5", "-m", "get", at).CombinedOutput()
	if err != nil || strings.TrimSpace(string(out)) != string(appendCommands(nil, waiting(), dunlin.FormatJSON)) {
		t.Errorf("%v: %s", err, out)
	}
	out, err = exec.CommandContext(t.Context(), tool, "-v", "0", "-B", "5", "-m", "post", "-t", "50", "-e", `{"done":true}`, at+"/7-0").CombinedOutput()
	if err != nil || len(strings.TrimSpace(string(out))) > 0 {
		t.Errorf("%v: %s", err, out)
	}
	if us := r.got(); len(us) != 1 || us[0].Kind != dunlin.InputResult || us[0].Timer != "7-0" || string(us[0].Payload) != `{"done":true}` || us[0].Format != dunlin.FormatJSON {
		t.Errorf("uplinks %+v", us)
	}
}
