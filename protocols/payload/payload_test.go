package payload_test

import (
	"encoding/hex"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/payload"
)

// now is when the gateway received: 2026-01-01T00:00:00Z.
const now dunlin.Time = 1_767_225_600_000_000

func uplink(dev string, f dunlin.ContentFormat) *dunlin.Uplink {
	u := &dunlin.Uplink{DeviceKey: dunlin.DeviceKey{Tenant: "default", Device: dunlin.DeviceID(dev)}}
	u.Format, u.Received = f, now
	return u
}

// decode renders what became of a payload, one record a line: metric [unit] seconds relative to now, value.
func decode(d *payload.Decoder, dev string, f dunlin.ContentFormat, body string) (string, error) {
	u := uplink(dev, f)
	if err := d.Decode(u, []byte(body)); err != nil {
		return "", err
	}
	return render(u.Records), nil
}

func render(recs []dunlin.Record) string {
	var b strings.Builder
	for _, r := range recs {
		fmt.Fprintf(&b, "%s", r.Metric)
		if r.Unit != "" {
			fmt.Fprintf(&b, " [%s]", r.Unit)
		}
		if r.Time != now {
			if dt := r.Time.Sub(now); dt.Abs().Hours() < 24 {
				fmt.Fprintf(&b, " %+gs", dt.Seconds())
			} else {
				fmt.Fprintf(&b, " %s", r.Time)
			}
		}
		switch r.Kind {
		case dunlin.Number, dunlin.Boolean:
			fmt.Fprintf(&b, " %v\n", r.Value())
		default:
			fmt.Fprintf(&b, " %q\n", r.Value())
		}
	}
	return b.String()
}

type decodeCase struct{ name, dev, body, want string }

func check(t *testing.T, f dunlin.ContentFormat, cases []decodeCase) {
	t.Helper()
	d := payload.NewDecoder()
	for _, c := range cases {
		got, err := decode(d, c.dev, f, c.body)
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
		} else if got != c.want {
			t.Errorf("%s: got\n%swant\n%s", c.name, got, c.want)
		}
	}
}

// The examples of RFC 8428 §5.1, as the device that they name sends them.
func TestExamplesOfRFC8428(t *testing.T) {
	check(t, dunlin.FormatSenMLJSON, []decodeCase{
		{"5.1.1 single datapoint", "10e2073a01080063", `[{"n":"urn:dev:ow:10e2073a01080063","u":"Cel","v":23.1}]`,
			"value [Cel] 23.1\n"},
		{"5.1.2 multiple datapoints", "10e2073a01080063", `[
     {"bn":"urn:dev:ow:10e2073a01080063:","n":"voltage","u":"V","v":120.1},
     {"n":"current","u":"A","v":1.2}
   ]`, "voltage [V] 120.1\ncurrent [A] 1.2\n"},
		{"5.1.2 with times", "10e2073a0108006", `[
     {"bn":"urn:dev:ow:10e2073a0108006:","bt":1.276020076001e+09,
      "bu":"A","bver":5,
      "n":"voltage","u":"V","v":120.1},
     {"n":"current","t":-5,"v":1.2},
     {"n":"current","t":-4,"v":1.3},
     {"n":"current","t":-3,"v":0.14e1},
     {"n":"current","v":1.7}
   ]`, "voltage [V] 2010-06-08T18:01:16.001Z 120.1\ncurrent [A] 2010-06-08T18:01:11.001Z 1.2\n" +
			"current [A] 2010-06-08T18:01:12.001Z 1.3\ncurrent [A] 2010-06-08T18:01:13.001Z 1.4\n" +
			"current [A] 2010-06-08T18:01:16.001Z 1.7\n"},
		{"5.1.3 multiple measurements", "10e2073a01080063", `[
     {"bn":"urn:dev:ow:10e2073a01080063","bt":1.320067464e+09,
      "bu":"%RH","v":20},
     {"u":"lon","v":24.30621},
     {"u":"lat","v":60.07965},
     {"t":60,"v":20.3},
     {"u":"%EL","t":150,"v":98}
   ]`, "value [%RH] 2011-10-31T13:24:24Z 20\nvalue/lon [lon] 2011-10-31T13:24:24Z 24.30621\n" +
			"value/lat [lat] 2011-10-31T13:24:24Z 60.07965\nvalue [%RH] 2011-10-31T13:25:24Z 20.3\n" +
			"value/EL [%EL] 2011-10-31T13:26:54Z 98\n"},
		{"5.1.5 multiple data types", "10e2073a01080063", `[
     {"bn":"urn:dev:ow:10e2073a01080063:","n":"temp","u":"Cel","v":23.1},
     {"n":"label","vs":"Machine Room"},
     {"n":"open","vb":false},
     {"n":"nfc-reader","vd":"aGkgCg"}
   ]`, "temp [Cel] 23.1\nlabel \"Machine Room\"\nopen false\nnfc-reader \"hi \\n\"\n"},
		{"5.1.6 collection of resources", "2001:db8::2", `[
     {"bn":"2001:db8::2/","bt":1.320078429e+09,
      "n":"temperature","u":"Cel","v":25.2},
     {"n":"humidity","u":"%RH","v":30}
   ]`, "temperature [Cel] 2011-10-31T16:27:09Z 25.2\nhumidity [%RH] 2011-10-31T16:27:09Z 30\n"},
		{"meta-data", "10e2073a01080063", `[
     {"bn":"urn:dev:ow:10e2073a01080063:","bt":1.320078429e+09,
      "l":"[{\"href\":\"humidity\",\"foo\":\"bar\"}]",
      "n":"temperature","u":"Cel","v":27.2},
     {"n":"humidity","u":"%RH","v":80}
   ]`, "temperature [Cel] 2011-10-31T16:27:09Z 27.2\nhumidity [%RH] 2011-10-31T16:27:09Z 80\n"},
		{"5.1.7 setting an actuator", "10e2073a01080063", `[
     {"bn":"urn:dev:ow:10e2073a01080063:"},
     {"n":"temp","u":"Cel","v":23.1},
     {"n":"heat","u":"/","v":1},
     {"n":"fan","u":"/","v":0}
   ]`, "temp [Cel] 23.1\nheat [/] 1\nfan [/] 0\n"},
	})
}

// The example of RFC 8428 §6, the CBOR of the second one above.
func TestCBORExampleOfRFC8428(t *testing.T) {
	b, err := hex.DecodeString("87a721781b75726e3a6465763a6f773a3130653230373361303130383030363a22fb41d303a15b001062236141" +
		"20050067766f6c7461676501615602fb405e066666666666a3006763757272656e74062402fb3ff3333333333333a3006763757272656e7406" +
		"2302fb3ff4cccccccccccda3006763757272656e74062202fb3ff6666666666666a3006763757272656e74062102f93e00a300676375727265" +
		"6e74062002fb3ff999999999999aa3006763757272656e74060002fb3ffb333333333333")
	if err != nil {
		t.Fatal(err)
	}
	check(t, dunlin.FormatSenMLCBOR, []decodeCase{{"6", "10e2073a0108006", string(b),
		"voltage [V] 2010-06-08T18:01:16.001Z 120.1\ncurrent [A] 2010-06-08T18:01:11.001Z 1.2\n" +
			"current [A] 2010-06-08T18:01:12.001Z 1.3\ncurrent [A] 2010-06-08T18:01:13.001Z 1.4\n" +
			"current [A] 2010-06-08T18:01:14.001Z 1.5\ncurrent [A] 2010-06-08T18:01:15.001Z 1.6\n" +
			"current [A] 2010-06-08T18:01:16.001Z 1.7\n"}})
}

func TestSenMLResolution(t *testing.T) {
	check(t, dunlin.FormatSenMLJSON, []decodeCase{
		{"base fields hold from their record on", "d", `[{"n":"a","v":1},{"bu":"Cel","bt":-10,"n":"b","v":2},{"n":"c","t":3,"v":4}]`,
			"a 1\nb [Cel] -10s 2\nc [Cel] -7s 4\n"},
		{"labels in any order", "d", `[{"v":1,"u":"V","n":"a","bn":"d/"}]`, "a [V] 1\n"},
		{"a unit of its own over the base unit", "d", `[{"bu":"A","n":"a","u":"V","v":1}]`, "a [V] 1\n"},
		{"a base value is added, and stands for a missing one", "d", `[{"bv":20,"n":"a","v":0.5},{"n":"b"},{"n":"c","vb":true}]`,
			"a 20.5\nb 20\nc true\n"},
		{"a sum is a metric of its own", "d", `[{"n":"p","u":"W","v":5,"s":100},{"n":"q","s":7}]`,
			"p [W] 5\np/sum [W s] 100\nq/sum 7\n"},
		{"a base sum likewise", "d", `[{"bs":100,"n":"p","v":5,"s":1},{"n":"q","v":6}]`, "p 5\np/sum 101\nq 6\nq/sum 100\n"},
		{"update time is a hint that is not kept", "d", `[{"n":"a","v":1,"ut":60}]`, "a 1\n"},
		{"relative up to 2^28, absolute from there on", "d", `[{"n":"a","t":-1.5,"v":1},{"n":"a","t":268435455,"v":2},{"n":"a","t":268435456,"v":3}]`,
			"a -1.5s 1\na 2034-07-04T21:24:15Z 2\na 1978-07-04T21:24:16Z 3\n"},
		{"times are decimals, not floats", "d", `[{"bt":253402300799.123456,"n":"a","v":1},{"n":"a","t":0.000001,"v":1}]`,
			"a 9999-12-31T23:59:59.123456Z 1\na 9999-12-31T23:59:59.123457Z 1\n"},
		{"unknown labels are nothing", "d", `[{"n":"a","v":1,"x":{"y":[1,{"z":null}]},"_w":"\u00e9"}]`, "a 1\n"},
		{"escapes", "d", `[{"\u006e":"\u0061","vs":"\"\\\/\b\f\n\r\t\u00e9\ud83d\ude00\ud83d"}]`,
			`a "\"\\/\b\f\n\r\té😀�"` + "\n"},
		{"empty values", "d", `[{"n":"a","vs":""},{"n":"b","vd":""}]`, "a \"\"\nb \"\"\n"},
		{"data with padding", "d", `[{"n":"a","vd":"aGk="}]`, "a \"hi\"\n"},
		{"secondary units", "d", `[{"bver":26,"n":"a","u":"ms","v":1}]`, "a [ms] 1\n"},
	})
}

func TestWhoseNames(t *testing.T) {
	check(t, dunlin.FormatSenMLJSON, []decodeCase{
		{"bare, with a slash", "fridge-7", `[{"bn":"fridge-7/","n":"temp","v":1}]`, "temp 1\n"},
		{"bare, with a colon", "fridge-7", `[{"bn":"fridge-7:","n":"temp","v":1}]`, "temp 1\n"},
		{"bare, with nothing", "fridge-7", `[{"bn":"fridge-7","n":"temp","v":1},{"n":"/hum","v":2}]`, "temp 1\nhum 2\n"},
		{"bare, and a group of metrics", "fridge-7", `[{"bn":"fridge-7/engine/","n":"rpm","v":1}]`, "engine/rpm 1\n"},
		{"in the name", "fridge-7", `[{"n":"fridge-7/temp","v":1},{"n":"urn:dev:ow:fridge-7:hum","v":2}]`, "temp 1\nhum 2\n"},
		{"a metric that is called as its device", "temp", `[{"n":"temp","v":1}]`, "temp 1\n"},
		{"a metric that begins as its device", "temp", `[{"n":"temperature","v":1},{"bn":"tem","n":"perature","v":2}]`,
			"temperature 1\ntemperature 2\n"},
		{"the base name alone", "fridge-7", `[{"bn":"fridge-7","v":1}]`, "value 1\n"},
		{"a base name that is a group of metrics", "fridge-7", `[{"bn":"engine/","n":"rpm","v":1}]`, "engine/rpm 1\n"},
		{"split anywhere", "fridge-7", `[{"bn":"fri","n":"dge-7/temp","v":1}]`, "temp 1\n"},
		{"URN with colon", "10e2", `[{"bn":"urn:dev:ow:10e2:","n":"temp","v":1}]`, "temp 1\n"},
		{"URN without", "10e2", `[{"bn":"URN:DEV:ow:10e2","n":"temp","v":1}]`, "temp 1\n"},
		{"URN with a part of a device", "10e2", `[{"bn":"urn:dev:mac:10e2_","n":"temp","v":1}]`, "temp 1\n"},
		{"URN of another namespace", "f81d4fae", `[{"bn":"urn:uuid:f81d4fae:","n":"temp","v":1}]`, "temp 1\n"},
		{"URN with groups", "fridge-7", `[{"bn":"urn:acme:kitchen:fridge-7:","n":"temp","v":1}]`, "temp 1\n"},
		{"an id with its kind", "ow:10e2", `[{"bn":"urn:dev:ow:10e2:","n":"temp","v":1},{"bn":"","n":"urn:dev:ow:10e2:hum","v":2}]`,
			"temp 1\nhum 2\n"},
		{"an id that is a URN", "urn:dev:ow:10e2", `[{"bn":"urn:dev:ow:10e2:","n":"temp","v":1},{"bn":"","n":"urn:dev:ow:10e2","v":2}]`,
			"temp 1\nvalue 2\n"},
	})
	d := payload.NewDecoder()
	for body, want := range map[string]string{
		`[{"bn":"urn:dev:ow:other:","n":"temp","v":1}]`:                "other",
		`[{"bn":"urn:dev:ow:other","n":"temp","v":1}]`:                 "other",
		`[{"n":"urn:dev:mac:other_temp","v":1}]`:                       "other",
		`[{"n":"urn:uuid:f81d4fae-7dec-11d0:x","v":1}]`:                "f81d4fae-7dec-11d0",
		`[{"bn":"urn:dev:ow:fridge-70:","n":"temp","v":1}]`:            "fridge-70",
		`[{"bn":"urn:dev:ow:a-fridge-7:","n":"temp","v":1}]`:           "a-fridge-7",
		`[{"n":"temp","v":1},{"bn":"urn:dev:ow:late:","n":"x","v":1}]`: "late",
	} {
		_, err := decode(d, "fridge-7", dunlin.FormatSenMLJSON, body)
		var other *payload.OtherDevice
		if !errors.As(err, &other) || string(other.Device) != want || !errors.Is(err, dunlin.ErrForbidden) {
			t.Errorf("%s: %v, want another device %q", body, err, want)
		}
	}
}

func TestSplit(t *testing.T) {
	d := payload.NewDecoder()
	u := uplink("gw-1", dunlin.FormatSenMLJSON)
	u.MessageID, u.Tag = 7, 9
	others, err := d.Split(u, []byte(`[{"bn":"urn:dev:ow:a:","n":"temp","v":1},{"n":"hum","v":2},{"bn":"urn:dev:ow:b:","n":"temp","v":3},
		{"bn":"","n":"load","v":4},{"bn":"urn:dev:ow:a:","n":"temp","t":-1,"v":5}]`))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := render(u.Records), "load 4\n"; got != want {
		t.Errorf("of the gateway itself: got\n%swant\n%s", got, want)
	}
	if len(others) != 2 || others[0].Device != "a" || others[1].Device != "b" || others[0].MessageID != 7 || others[0].Tag != 0 {
		t.Fatalf("others: %+v", others)
	}
	if got, want := render(others[0].Records), "temp 1\nhum 2\ntemp -1s 5\n"; got != want {
		t.Errorf("of a: got\n%swant\n%s", got, want)
	}
	if got, want := render(others[1].Records), "temp 3\n"; got != want {
		t.Errorf("of b: got\n%swant\n%s", got, want)
	}
	if _, err := d.Split(u, []byte(`[{"n":"urn:dev:ow:-bad:x","v":1}]`)); !errors.Is(err, dunlin.ErrForbidden) {
		t.Errorf("a device id that is none: %v", err)
	}
}

func TestFlatJSON(t *testing.T) {
	check(t, dunlin.FormatJSON, []decodeCase{
		{"all kinds", "d", `{"temp":4.5,"door":true,"note":"ok","gone":null}`, "temp 4.5\ndoor true\nnote \"ok\"\n"},
		{"nested", "d", `{"acc":{"x":1,"y":-2},"cells":[3.7,{"v":3.6}]}`, "acc/x 1\nacc/y -2\ncells/0 3.7\ncells/1/v 3.6\n"},
		{"time in seconds, after the values", "d", `{"a":1,"ts":1767225590.5}`, "a -9.5s 1\n"},
		{"time in milliseconds", "d", `{"ts":1767225590500,"a":1}`, "a -9.5s 1\n"},
		{"time in microseconds", "d", `{"ts":1767225590500000,"a":1}`, "a -9.5s 1\n"},
		{"time as RFC 3339", "d", `{"ts":"2025-12-31T23:59:59.5Z","a":1}`, "a -0.5s 1\n"},
		{"a nested ts is a metric", "d", `{"a":{"ts":5}}`, "a/ts 5\n"},
	})
}

func TestFlatCBOR(t *testing.T) {
	unhex := func(s string) string {
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	check(t, dunlin.FormatCBOR, []decodeCase{
		{"all kinds", "d", unhex("a7 6161 f94480 6162 f5 6163 626f6b 6164 f6 6165 420102 6166 20 6167 1903e8"),
			"a 4.5\nb true\nc \"ok\"\ne \"\\x01\\x02\"\nf -1\ng 1000\n"},
		{"nested, of unknown length", "d", unhex("bf 6161 9f 01 fa40600000 ff 6162 a1 6163 f4 ff"), "a/0 1\na/1 3.5\nb/c false\n"},
		{"a decimal fraction", "d", unhex("a1 6161 c4 82 21 196ab3"), "a 273.15\n"},
		{"time with its tag", "d", unhex("a2 627473 c1 1a6955b8f6 6161 01"), "a -10s 1\n"},
		{"time in milliseconds", "d", unhex("a2 627473 1b 0000019b76da8074 6161 01"), "a -10.124s 1\n"},
		{"self-described", "d", unhex("d9d9f7 a1 6161 01"), "a 1\n"},
	})
}

func TestText(t *testing.T) {
	check(t, dunlin.FormatText, []decodeCase{
		{"plain", "d", "21.5", "value 21.5\n"}, {"with white space", "d", " +3\r\n", "value 3\n"}, {"exponent", "d", "-1e3", "value -1000\n"},
	})
}

func TestOctets(t *testing.T) {
	u := uplink("d", dunlin.FormatOctets)
	body := []byte{1, 2, 3}
	if err := payload.NewDecoder().Decode(u, body); err != nil {
		t.Fatal(err)
	}
	body[0] = 9
	if u.Kind != dunlin.InputRaw || string(u.Payload) != "\x01\x02\x03" || u.Records != nil {
		t.Errorf("got %+v", u.Input)
	}
}

// refusal is a payload, the error that it matches and what that says.
type refusal struct {
	format dunlin.ContentFormat
	body   string
	is     error
	says   string
}

// Whatever is refused leaves the uplink as it was, and says what and where.
func checkRefusals(t *testing.T, cases []refusal) {
	t.Helper()
	d := payload.NewDecoder()
	for _, c := range cases {
		u := uplink("d", c.format)
		before := u.Input
		err := d.Decode(u, []byte(c.body))
		if !errors.Is(err, c.is) || !strings.Contains(fmt.Sprint(err), c.says) {
			t.Errorf("%.60s: got %v, want %v: %s", c.body, err, c.is, c.says)
		}
		if u.Kind != before.Kind || u.Records != nil || u.Payload != nil {
			t.Errorf("%.60s: the uplink changed: %+v", c.body, u.Input)
		}
	}
}

func TestRefusedSenML(t *testing.T) {
	many := `[` + strings.Repeat(`{"n":"a","v":1},`, payload.RecordsMax) + `{"n":"a","v":1}]`
	checkRefusals(t, []refusal{
		{dunlin.FormatSenMLJSON, ``, dunlin.ErrBadPayload, "want a SenML pack"},
		{dunlin.FormatSenMLJSON, `{}`, dunlin.ErrBadPayload, "byte 0: want a SenML pack"},
		{dunlin.FormatSenMLJSON, `[]`, dunlin.ErrBadPayload, "no values"},
		{dunlin.FormatSenMLJSON, `[{}]`, dunlin.ErrBadPayload, "byte 1:"},
		{dunlin.FormatSenMLJSON, `[{"bn":"d/"}]`, dunlin.ErrBadPayload, "no values"},
		{dunlin.FormatSenMLJSON, `[{"n":"a","v":1}`, dunlin.ErrBadPayload, "byte 16"},
		{dunlin.FormatSenMLJSON, `[{"n":"a","v":1},]`, dunlin.ErrBadPayload, "byte 17"},
		{dunlin.FormatSenMLJSON, `[{"n":"a","v":1}]x`, dunlin.ErrBadPayload, "byte 17: something follows"},
		{dunlin.FormatSenMLJSON, `[{"n":"a","v":"1"}]`, dunlin.ErrBadPayload, "want a number"},
		{dunlin.FormatSenMLJSON, `[{"n":"a","v":01}]`, dunlin.ErrBadPayload, ""},
		{dunlin.FormatSenMLJSON, `[{"n":"a","v":1e999}]`, dunlin.ErrBadPayload, "out of range"},
		{dunlin.FormatSenMLJSON, `[{"n":"a","v":1e308,"bv":1.7e308}]`, dunlin.ErrBadPayload, "finite"},
		{dunlin.FormatSenMLJSON, `[{"n":"a","v":NaN}]`, dunlin.ErrBadPayload, ""},
		{dunlin.FormatSenMLJSON, `[{"n":"a"}]`, dunlin.ErrBadPayload, "no value"},
		{dunlin.FormatSenMLJSON, `[{"n":"a","v":1,"vb":true}]`, dunlin.ErrBadPayload, "more than one value"},
		{dunlin.FormatSenMLJSON, `[{"n":"a","v":1,"v":2}]`, dunlin.ErrBadPayload, "twice"},
		{dunlin.FormatSenMLJSON, `[{"n":"a","v":1,"new_":2}]`, dunlin.ErrBadPayload, `"new_"`},
		{dunlin.FormatSenMLJSON, `[{"bver":11,"n":"a","v":1}]`, dunlin.ErrBadPayload, "bver"},
		{dunlin.FormatSenMLJSON, `[{"bver":5,"n":"a","v":1},{"bver":10,"n":"a","v":1}]`, dunlin.ErrBadPayload, "bver"},
		{dunlin.FormatSenMLJSON, `[{"v":1,"n":"a b"}]`, dunlin.ErrBadPayload, `"a b"`},
		{dunlin.FormatSenMLJSON, `[{"v":1,"n":"_a"}]`, dunlin.ErrBadPayload, `"_a"`},
		{dunlin.FormatSenMLJSON, `[{"v":1,"n":""}]`, dunlin.ErrBadPayload, "no name"},
		{dunlin.FormatSenMLJSON, `[{"v":1}]`, dunlin.ErrBadPayload, "no name"},
		{dunlin.FormatSenMLJSON, `[{"v":1,"n":"` + strings.Repeat("a", 129) + `"}]`, dunlin.ErrBadPayload, "128"},
		{dunlin.FormatSenMLJSON, `[{"v":1,"n":"a","u":"` + strings.Repeat("a", 65) + `"}]`, dunlin.ErrBadPayload, "unit"},
		{dunlin.FormatSenMLJSON, `[{"v":1,"n":"a","t":-1e10}]`, dunlin.ErrBadPayload, "1970"},
		{dunlin.FormatSenMLJSON, `[{"v":1,"n":"a","t":1e12}]`, dunlin.ErrBadPayload, "9999"},
		{dunlin.FormatSenMLJSON, `[{"v":1,"n":"a","t":1e300}]`, dunlin.ErrBadPayload, "range"},
		{dunlin.FormatSenMLJSON, `[{"n":"a","vd":"a+b/"}]`, dunlin.ErrBadPayload, "base64url"},
		{dunlin.FormatSenMLJSON, "[{\"n\":\"a\",\"vs\":\"\xff\"}]", dunlin.ErrBadPayload, "UTF-8"},
		{dunlin.FormatSenMLJSON, "[{\"n\":\"a\",\"vs\":\"a\nb\"}]", dunlin.ErrBadPayload, "control"},
		{dunlin.FormatSenMLJSON, `[{"x":` + strings.Repeat("[", 100) + strings.Repeat("]", 100) + `,"n":"a","v":1}]`, dunlin.ErrBadPayload, "deeply"},
		{dunlin.FormatSenMLJSON, many, dunlin.ErrTooLarge, "512"},
		{dunlin.FormatSenMLJSON, strings.Repeat(" ", payload.BytesMax+1), dunlin.ErrTooLarge, "bytes"},
	})
}

func TestRefusedOtherFormats(t *testing.T) {
	checkRefusals(t, []refusal{
		{dunlin.FormatJSON, `[{"n":"a","v":1}]`, dunlin.ErrBadPayload, "application/senml+json"},
		{dunlin.FormatJSON, `{}`, dunlin.ErrBadPayload, "no values"},
		{dunlin.FormatJSON, `{"a":1,"a":2}`, dunlin.ErrBadPayload, `"a" twice`},
		{dunlin.FormatJSON, `{"a":{"b":1},"a/b":2}`, dunlin.ErrBadPayload, `"a/b" twice`},
		{dunlin.FormatJSON, `{"":1}`, dunlin.ErrBadPayload, "metric name"},
		{dunlin.FormatJSON, `{"a":1,"ts":5}`, dunlin.ErrBadPayload, "ts"},
		{dunlin.FormatJSON, `{"a":1,"ts":"yesterday"}`, dunlin.ErrBadPayload, "ts"},
		{dunlin.FormatJSON, `{"a":1,"ts":1767225590,"ts":1767225591}`, dunlin.ErrBadPayload, "twice"},
		{dunlin.FormatJSON, strings.Repeat(`{"a":`, 20) + "1" + strings.Repeat("}", 20), dunlin.ErrBadPayload, "deeply"},
		{dunlin.FormatCBOR, "\xa1\x61a\xfb\x7f\xf8\x00\x00\x00\x00\x00\x00", dunlin.ErrBadPayload, "finite"},
		{dunlin.FormatCBOR, "\xba\xff\xff\xff\xff", dunlin.ErrBadPayload, "longer than the payload"},
		{dunlin.FormatCBOR, "\xa1\x61a\x01\x00", dunlin.ErrBadPayload, "follows"},
		{dunlin.FormatSenMLCBOR, "\x81\xa2\x00\x61a\x02\xf9\x7e\x00", dunlin.ErrBadPayload, "finite"},
		{dunlin.FormatSenMLCBOR, "\x81\xa3\x00\x61a\x02\x01\x62x_\x01", dunlin.ErrBadPayload, `"x_"`},
		{dunlin.FormatSenMLCBOR, "\x9a\xff\xff\xff\xff", dunlin.ErrBadPayload, "longer than the payload"},
		{dunlin.FormatText, "warm", dunlin.ErrBadPayload, "number"},
		{dunlin.FormatText, "0x10", dunlin.ErrBadPayload, "number"},
		{dunlin.FormatText, "inf", dunlin.ErrBadPayload, "number"},
		{dunlin.FormatText, "", dunlin.ErrBadPayload, "number"},
		{9999, "", dunlin.ErrFormat, "9999"},
	})
}

func TestFormats(t *testing.T) {
	for _, c := range []struct {
		mediaType string
		want      dunlin.ContentFormat
		ok        bool
	}{
		{"application/senml+json", dunlin.FormatSenMLJSON, true},
		{"Application/JSON; charset=utf-8", dunlin.FormatJSON, true},
		{" text/plain ;q=1", dunlin.FormatText, true},
		{"application/octet-stream", dunlin.FormatOctets, true},
		{"application/xml", 0, false},
		{"", 0, false},
	} {
		if got, ok := payload.FormatOf(c.mediaType); got != c.want || ok != c.ok {
			t.Errorf("FormatOf(%q) = %v, %v", c.mediaType, got, ok)
		}
	}
	for _, f := range []dunlin.ContentFormat{0, 42, 50, 60, 110, 112} {
		if got, ok := payload.FormatOf(payload.MediaType(f)); got != f || !ok {
			t.Errorf("FormatOf(MediaType(%d)) = %v, %v", f, got, ok)
		}
	}
}

func TestAppendSenML(t *testing.T) {
	got := string(payload.AppendSenML(nil, "fridge-7", []dunlin.Record{
		{Metric: "temp", Unit: "Cel", Time: now + 1500, Kind: dunlin.Number, Num: 4.5},
		{Metric: "door", Time: now + 1500, Kind: dunlin.Boolean, Num: 1},
		{Metric: "note", Time: now, Kind: dunlin.Text, Str: "a\"\\\n\x01é"},
		{Metric: "raw", Time: now + 2_001_500, Kind: dunlin.Data, Str: "hi \n"},
		{Metric: "odd", Time: now + 1500, Kind: dunlin.Number, Num: math.Inf(-1)},
	}))
	want := `[{"bn":"fridge-7/","bt":1767225600.0015,"n":"temp","u":"Cel","v":4.5},{"n":"door","vb":true},` +
		`{"n":"note","t":-0.0015,"vs":"a\"\\\n\u0001é"},{"n":"raw","t":2,"vd":"aGkgCg"},{"n":"odd","vs":"-Inf"}]`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if got := string(payload.AppendSenML([]byte("x"), "d", nil)); got != "x[]" {
		t.Errorf("no records: %s", got)
	}
}
