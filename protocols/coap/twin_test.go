package coap

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/payload"
)

func fridge() *dunlin.Twin {
	return &dunlin.Twin{Device: "fridge", Version: 7, Reported: map[string]dunlin.Reported{
		"temp": {Value: 4.25, Unit: "Cel", At: testNow}, "door": {Value: true, At: testNow - 1_500_000},
		"fw": {Value: "1.2\"β", At: testNow}, "raw": {Value: []byte{1, 255}, At: testNow}, "bad": {Value: math.NaN(), At: testNow}}}
}

// TestTwinFormats: the representations, byte by byte.
func TestTwinFormats(t *testing.T) {
	for f, want := range map[dunlin.ContentFormat]string{
		dunlin.FormatSenMLJSON: `[{"bn":"fridge/","bt":1700000000,"n":"bad","vs":"NaN"},{"n":"door","t":-1.5,"vb":true},` +
			`{"n":"fw","vs":"1.2\"β"},{"n":"raw","vd":"Af8"},{"n":"temp","u":"Cel","v":4.25}]`,
		dunlin.FormatJSON: `{"bad":"NaN","door":true,"fw":"1.2\"β","raw":"Af8","temp":4.25}`,
	} {
		if got := string(appendTwin(nil, fridge(), f)); got != want {
			t.Errorf("format %d:\n got %s\nwant %s", f, got, want)
		}
	}
	for f, want := range map[dunlin.ContentFormat]string{
		dunlin.FormatSenMLCBOR: "85" +
			"a4 21 67 6672696467652f 22 1a6553f100 00 63 626164 02 fb7ff8000000000001" +
			"a3 00 64 646f6f72 06 fabfc00000 04 f5" +
			"a2 00 62 6677 03 66 312e3222ceb2" +
			"a2 00 63 726177 08 42 01ff" +
			"a3 00 64 74656d70 01 63 43656c 02 fa40880000",
		dunlin.FormatCBOR: "a5 63626164 fb7ff8000000000001 64646f6f72 f5 626677 66312e3222ceb2 63726177 4201ff 6474656d70 fa40880000",
	} {
		if got, want := hex.EncodeToString(appendTwin(nil, fridge(), f)), strings.ReplaceAll(want, " ", ""); got != want {
			t.Errorf("format %d:\n got %s\nwant %s", f, got, want)
		}
	}
}

// TestTwinReadsBack: what a device gets in SenML is what it may send.
func TestTwinReadsBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tw := &dunlin.Twin{Device: "dev-1", Reported: map[string]dunlin.Reported{}}
		for i := range rapid.IntRange(1, 8).Draw(t, "metrics") {
			v := rapid.OneOf(rapid.Custom(func(t *rapid.T) any {
				return rapid.Float64().Filter(func(f float64) bool { return !math.IsInf(f, 0) && !math.IsNaN(f) }).Draw(t, "f")
			}), rapid.Custom(func(t *rapid.T) any { return rapid.Bool().Draw(t, "b") }),
				rapid.Custom(func(t *rapid.T) any { return rapid.String().Draw(t, "s") }),
				rapid.Custom(func(t *rapid.T) any { return []byte(rapid.StringN(0, 300, 300).Draw(t, "d")) })).Draw(t, "v")
			tw.Reported[fmt.Sprintf("m%d", i)] = dunlin.Reported{Value: v, Unit: rapid.SampledFrom([]string{"", "Cel"}).Draw(t, "u"),
				At: dunlin.Time(rapid.Int64Range(1e15, 3e15).Draw(t, "at"))}
		}
		for _, f := range []dunlin.ContentFormat{dunlin.FormatSenMLJSON, dunlin.FormatSenMLCBOR} {
			body := appendTwin(nil, tw, f)
			u := dunlin.Uplink{DeviceKey: dunlin.DeviceKey{Device: "dev-1"}, Input: dunlin.Input{Format: f, Received: testNow}}
			if err := payload.NewDecoder().Decode(&u, body); err != nil {
				t.Fatalf("format %d: %v in %q", f, err, body)
			}
			want := recordsOf(tw)
			if len(u.Records) != len(want) {
				t.Fatalf("format %d: %d records, want %d", f, len(u.Records), len(want))
			}
			for i := range want {
				if !u.Records[i].Same(want[i]) && !(want[i].Num == 0 && u.Records[i].Num == 0) {
					t.Fatalf("format %d: got %+v, want %+v, in %q", f, u.Records[i], want[i], body)
				}
			}
		}
	})
}

// TestTwin: formats, ETag and blocks over the wire.
func TestTwin(t *testing.T) {
	r := &rooms{twins: map[dunlin.DeviceID]*dunlin.Twin{"fridge": fridge()}}
	cl := dial(t, serve(t, Config{Open: true}, r))
	a := cl.ask(get("d/fridge/s"))
	if a.Code != codes.Content || uintOption(a, message.ContentFormat) != 110 || uintOption(a, message.MaxAge) != 1 ||
		!bytes.Equal(a.Payload, appendTwin(nil, fridge(), 110)) {
		t.Errorf("got %s", show(a))
	}
	tag, err := a.Options.GetBytes(message.ETag)
	if err != nil {
		t.Fatal(err)
	}
	a = cl.ask(get("d/fridge/s", option(message.ETag, 1, 2), option(message.ETag, tag...)))
	if a.Code != codes.Valid || len(a.Payload) > 0 {
		t.Errorf("with its ETag: got %s, want 2.03", show(a))
	}
	a = cl.ask(get("d/fridge/s", option(message.ETag, tag...), option(message.Accept, 60)))
	if a.Code != codes.Content || uintOption(a, message.ContentFormat) != 60 {
		t.Errorf("with another format's ETag: got %s, want 2.05", show(a))
	}
	big := fridge()
	for i := range 200 {
		big.Reported[fmt.Sprintf("metric-%03d", i)] = dunlin.Reported{Value: float64(i), At: testNow}
	}
	r.set(func() { r.twins = map[dunlin.DeviceID]*dunlin.Twin{"big": big} })
	want := appendTwin(nil, big, 110)
	for _, szx := range []int{-1, 0, 4, 6} {
		var got []byte
		for num := 0; ; num++ {
			m := get("d/big/s")
			if szx >= 0 || num > 0 {
				v := num<<4 | max(szx, 0)
				if szx < 0 {
					v = num<<4 | 6
				}
				m.Options = m.Options.Add(option(message.Block2, byte(v>>8), byte(v)))
			}
			a := cl.ask(m)
			b := uintOption(a, message.Block2)
			if a.Code != codes.Content || b < 0 || b>>4 != num {
				t.Fatalf("block %d of size %d: got %s", num, szx, show(a))
			}
			if got = append(got, a.Payload...); b&8 == 0 {
				break
			}
		}
		if !bytes.Equal(got, want) {
			t.Errorf("blocks of size %d are %d bytes, want %d", szx, len(got), len(want))
		}
	}
	r.set(func() { r.twinErr = dunlin.ErrUnavailable })
	if a := cl.ask(get("d/big/s")); a.Code != codes.ServiceUnavailable || uintOption(a, message.MaxAge) != 1 {
		t.Errorf("got %s, want 5.03", show(a))
	}
}

// TestCut: whatever room there is, the blocks make up the whole, none larger than asked for or than there is room.
func TestCut(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		body := rapid.SliceOfN(rapid.Byte(), 0, 3000).Draw(t, "body")
		room := rapid.IntRange(-10, 1200).Draw(t, "room")
		want := block{set: rapid.Bool().Draw(t, "set"), szx: uint8(rapid.IntRange(0, 6).Draw(t, "szx"))}
		var got []byte
		for {
			part, blk, ok := cut(body, want, room)
			if !ok {
				t.Fatalf("no block %+v of %d bytes", want, len(body))
			}
			if len(part) > max(room, 16) || len(part) > blockBytesMax || want.set && len(part) > want.size() {
				t.Fatalf("a part of %d bytes with room for %d, wanted %+v", len(part), room, want)
			}
			got = append(got, part...)
			if !blk.more {
				break
			}
			want = block{set: true, szx: blk.szx, num: blk.num + 1}
		}
		if !bytes.Equal(got, body) {
			t.Fatalf("%d bytes, want %d", len(got), len(body))
		}
	})
}

// TestLinks: discovery and its filters (RFC 6690 §4.1).
func TestLinks(t *testing.T) {
	cl := dial(t, serve(t, Config{Open: true}, &rooms{}))
	for query, want := range map[string]string{
		"":                   `</t>;rt="dunlin.telemetry";ct="110 112 50 60 0 42";title="POST, also d/{id}/t",</s>;rt="dunlin.twin";ct="110 112 50 60";title="GET, also d/{id}/s",</c>;rt="dunlin.commands";ct="50 60";title="GET, also d/{id}/c; POST an answer to c/{command}",</.well-known/core>;ct="40"`,
		"?rt=dunlin.twin":    `</s>;rt="dunlin.twin";ct="110 112 50 60";title="GET, also d/{id}/s"`,
		"?href=/.well*":      `</.well-known/core>;ct="40"`,
		"?ct=40":             `</.well-known/core>;ct="40"`,
		"?rt=dunlin.*&ct=42": `</t>;rt="dunlin.telemetry";ct="110 112 50 60 0 42";title="POST, also d/{id}/t"`,
		"?rt=nothing":        ``,
	} {
		a := cl.ask(get(".well-known/core" + query))
		if a.Code != codes.Content || string(a.Payload) != want || uintOption(a, message.ContentFormat) != 40 {
			t.Errorf("%s: got %s, want %s", query, show(a), want)
		}
	}
}
