package coap

import (
	"encoding/hex"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/dunlin-iot/dunlin"
)

const reading = `[{"n":"temp","u":"Cel","v":21.5}]`

var (
	senml  = option(message.ContentFormat, 110)
	text   = option(message.ContentFormat) // 0 in its shortest form
	long   = strings.Repeat("x", 300)
	device = "d/fridge/t"
)

// TestAnswers is the table of requests and what an open node answers. An answer with code 0 is a Reset.
func TestAnswers(t *testing.T) {
	r := &rooms{receipt: receipts, twins: map[dunlin.DeviceID]*dunlin.Twin{"fridge": {Device: "fridge"}}}
	g := serve(t, Config{Open: true, PayloadBytesMax: 1000}, r)
	big := `[{"n":"temp","vs":"` + strings.Repeat("x", 1000) + `"}]`
	for _, c := range []struct {
		name string
		ask  message.Message
		want codes.Code
		text string // part of the diagnostic payload
		opts map[message.OptionID]int
	}{
		{"SenML", post(device, reading, senml), code(2, 4), "", nil},
		{"SenML, guessed", post(device, reading), code(2, 4), "", nil},
		{"a number, guessed", post(device, "-21.5"), code(2, 4), "", nil},
		{"an object, guessed", post(device, ` {"temp":21.5,"door":true}`), code(2, 4), "", nil},
		{"octets", post(device, "\x01\x02", option(message.ContentFormat, 42)), code(2, 4), "", nil},
		{"nothing that can be guessed", post(device, "hello"), code(4, 15), "no Content-Format", nil},
		{"no payload", post(device, "", senml), code(4, 0), "no payload", nil},
		{"unknown format", post(device, "<a/>", option(message.ContentFormat, 41)), code(4, 15), "", nil},
		{"broken SenML", post(device, `[{"n":"temp","v":}]`, senml), code(4, 0), "byte", nil},
		{"another device's record", post(device, `[{"bn":"urn:dev:mac:other","v":1}]`, senml), code(4, 3), "", nil},
		{"too large", post(device, big, senml), code(4, 13), "too large", map[message.OptionID]int{message.Size1: 1000}},
		{"larger than the buffer", post(device, strings.Repeat(" ", 8000)+reading, senml), code(4, 13), "", map[message.OptionID]int{message.Size1: 1000}},

		{"unknown path", post("d/fridge/x", "1"), code(4, 4), "no such resource", nil},
		{"too short a path", post("d/fridge", "1"), code(4, 4), "", nil},
		{"too long a path", post("d/fridge/t/", "1"), code(4, 4), "", nil},
		{"no path", message.Message{Code: codes.POST, Payload: []byte("1")}, code(4, 4), "", nil},
		{"not a device id", post("d/fri dge/t", "1"), code(4, 0), "device id", nil},
		{"the credential's device, but there is none", post("t", "1"), code(4, 1), "", nil},
		{"GET telemetry", get(device), code(4, 5), "", nil},
		{"DELETE telemetry", request(codes.DELETE, device), code(4, 5), "", nil},
		{"FETCH", request(5, device), code(4, 5), "unknown method", nil},
		{"method 31", request(31, "nowhere"), code(4, 5), "unknown method", nil},
		{"POST a twin", post("d/fridge/s", "1"), code(4, 5), "", nil},
		{"unknown device's twin", get("d/nobody/s"), code(4, 4), "not found", nil},

		{"unknown critical option", post(device, "1", option(9, 1)), code(4, 2), "option 9 ", nil},
		{"If-Match", post(device, "1", option(message.IfMatch, 1)), code(4, 2), "option 1 ", nil},
		{"unknown elective option", post(device, "1", option(2050, 1)), code(2, 4), "", nil},
		{"Uri-Host and Uri-Port", post(device, "1", option(message.URIHost, 'h'), option(message.URIPort, 22, 51)), code(2, 4), "", nil},
		{"empty Uri-Host", post(device, "1", option(message.URIHost)), code(4, 2), "option 3 ", nil},
		{"two Accepts", get("d/fridge/s", option(message.Accept, 50), option(message.Accept, 60)), code(4, 2), "option 17 ", nil},
		{"Accept of 3 bytes", get("d/fridge/s", option(message.Accept, 0, 0, 50)), code(4, 2), "option 17 ", nil},
		{"Content-Format of 3 bytes is ignored", post(device, "1", option(message.ContentFormat, 0, 0, 41)), code(2, 4), "", nil},
		{"second Content-Format is ignored", post(device, "1", text, option(message.ContentFormat, 41)), code(2, 4), "", nil},
		{"Uri-Path of 300 bytes", post("d/"+long+"/t", "1"), code(4, 2), "option 11 ", nil},
		{"Proxy-Uri", post(device, "1", message.Option{ID: message.ProxyURI, Value: []byte("coap://x/")}), code(5, 5), "", nil},
		{"Observe is ignored", get("d/fridge/s", option(message.Observe)), code(2, 5), "", nil},
		{"too many options", request(codes.POST, strings.Repeat("a/", 40)), code(4, 2), "too many", nil},

		{"one block is no block", post(device, "1", option(message.Block1, 6)), code(2, 4), "", map[message.OptionID]int{message.Block1: 6}},
		{"first of several blocks", post(device, "1", option(message.Block1, 8|6)), code(4, 13), "one message", map[message.OptionID]int{message.Size1: 1000}},
		{"second block", post(device, "1", option(message.Block1, 16|6)), code(4, 8), "no blocks before", nil},
		{"reserved block size", post(device, "1", option(message.Block1, 7)), code(4, 0), "reserved", nil},
		{"Block1 of 4 bytes", post(device, "1", option(message.Block1, 0, 0, 0, 6)), code(4, 2), "option 27 ", nil},
		{"Block1 in a GET", get("d/fridge/s", option(message.Block1, 6)), code(4, 2), "option 27 ", nil},
		{"Block2 in a POST", post(device, "1", option(message.Block2, 2)), code(2, 4), "", nil},
		{"a later Block2 of a POST", post(device, "1", option(message.Block2, 16|2)), code(4, 2), "", nil},
		{"a block behind the end", get("d/fridge/s", option(message.Block2, 16|2)), code(4, 0), "no such block", nil},
		{"reserved size of Block2", get("d/fridge/s", option(message.Block2, 7)), code(4, 0), "reserved", nil},
		{"not acceptable", get("d/fridge/s", option(message.Accept, 41)), code(4, 6), "110", nil},
		{"links as JSON", get(".well-known/core", option(message.Accept, 50)), code(4, 6), "40", nil},

		{"unknown device", post("d/stranger/t", "1"), code(4, 4), "unknown device", nil},
		{"overloaded", post("d/overloaded/t", "1"), code(5, 3), "", map[message.OptionID]int{message.MaxAge: 7}},
		{"unavailable", post("d/unavailable/t", "1"), code(5, 3), "", map[message.OptionID]int{message.MaxAge: 1}},
		{"owned elsewhere", post("d/elsewhere/t", "1"), code(5, 3), "", map[message.OptionID]int{message.MaxAge: 1}},
		{"forbidden by the domain", post("d/forbidden/t", "1"), code(4, 3), "not allowed", nil},
		{"too large for the domain", post("d/small/t", "1"), code(4, 13), "", nil},
		{"conflict", post("d/conflict/t", "1"), code(4, 9), "", nil},
		{"a bug", post("d/bug/t", "1"), code(5, 0), "", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := dial(t, g)
			for _, typ := range []message.Type{message.Confirmable, message.NonConfirmable} {
				c.ask.Type = typ
				if typ == message.NonConfirmable && c.want == code(4, 2) && strings.HasPrefix(c.text, "option ") {
					cl.write(encode(t, message.Message{Type: typ, Code: c.ask.Code, Options: c.ask.Options, MessageID: 9}))
					if m := cl.must(); m.Type != message.Reset || m.MessageID != 9 {
						t.Errorf("got %s, want a Reset", show(m))
					}
					continue
				}
				a := cl.ask(c.ask)
				if a.Code != c.want || !strings.Contains(string(a.Payload), c.text) || c.want == code(2, 4) && len(a.Payload) > 0 {
					t.Errorf("%v: got %s, want %d.%02d %q", typ, show(a), c.want>>5, c.want&31, c.text)
				}
				for id, want := range c.opts {
					if got := uintOption(a, id); got != want {
						t.Errorf("%v: %v is %d, want %d", typ, id, got, want)
					}
				}
			}
			cl.quiet()
		})
	}
}

// receipts are the outcomes of devices that have a story.
func receipts(id string) *receipt {
	errs := map[string]error{"stranger": dunlin.ErrUnknownDevice, "overloaded": dunlin.ErrOverloaded, "unavailable": dunlin.ErrUnavailable,
		"elsewhere": dunlin.ErrNotOwner, "forbidden": dunlin.ErrForbidden, "small": dunlin.ErrTooLarge,
		"conflict": dunlin.ErrConflict, "bug": errors.New("nil map")}
	err := errs[id]
	if err == nil {
		return nil
	}
	rc := &receipt{Receipt: dunlin.Receipt{Err: fmt.Errorf("commit %s: %w", id, err)}}
	if id == "overloaded" {
		rc.RetryAfterSeconds = 7
	}
	return rc
}

// TestRejected: datagrams that are answered with a Reset or not at all. The message layer's scripts have more of them.
func TestRejected(t *testing.T) {
	g := serve(t, Config{Open: true}, &rooms{})
	for _, c := range []struct{ name, datagram, want string }{
		{"ping", "4000abcd", "7000abcd"},
		{"token of 9 bytes", "4901abcd 010203040506070809", "7000abcd"},
		{"payload marker, no payload", "4002abcd ff", "7000abcd"},
		{"reserved class", "4020abcd", "7000abcd"},
		{"version 2", "8001abcd", ""},
		{"token of 9 bytes, non-confirmable", "5901abcd 010203040506070809", ""},
		{"three bytes", "4001ab", ""},
		{"nothing", "", ""},
		{"an ACK of nothing", "6000abcd", ""},
		{"a Reset of nothing", "7000abcd", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			cl := dial(t, g)
			b, err := hex.DecodeString(strings.ReplaceAll(c.datagram, " ", ""))
			if err != nil {
				t.Fatal(err)
			}
			cl.write(b)
			if c.want != "" {
				if got, ok := cl.read(5 * time.Second); hex.EncodeToString(got) != c.want {
					t.Errorf("got %x (%v), want %s", got, ok, c.want)
				}
			}
			cl.quiet()
		})
	}
}

// TestUplink: what the ingestor gets of a reading.
func TestUplink(t *testing.T) {
	r := &rooms{}
	g := serve(t, Config{Open: true}, r)
	cl := dial(t, g)
	cl.ask(post(device, reading, senml))
	cl.ask(post(device, reading, senml))
	got := r.got()
	if len(got) != 2 {
		t.Fatalf("%d uplinks, want 2", len(got))
	}
	u := got[0]
	if u.Device != "fridge" || u.Tenant != dunlin.DefaultTenant || u.Sender.Kind != dunlin.PrincipalOpen ||
		u.Received != testNow || u.Flags != dunlin.FlagMayRepeat|dunlin.FlagExchange || u.Format != dunlin.FormatSenMLJSON || u.Input.Sender != "" {
		t.Errorf("got %+v", u)
	}
	want := dunlin.Record{Metric: "temp", Unit: "Cel", Num: 21.5, Kind: dunlin.Number, Time: testNow}
	if len(u.Records) != 1 || u.Records[0] != want {
		t.Errorf("records %+v, want %+v", u.Records, want)
	}
	if u.MessageID == 0 || u.MessageID == got[1].MessageID {
		t.Errorf("message ids %x and %x of two messages", u.MessageID, got[1].MessageID)
	}
}
