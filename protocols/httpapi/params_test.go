package httpapi

import (
	"encoding/json"
	"math"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
)

func TestTimes(t *testing.T) {
	for in, want := range map[string]string{
		"2026-01-31T12:00:00Z":           "2026-01-31T12:00:00Z",
		"2026-01-31T12:00:00.123456789Z": "2026-01-31T12:00:00.123456Z",
		"2026-01-31T12:00:00+02:00":      "2026-01-31T10:00:00Z",
		"2026-01-31T12:00:00 02:00":      "2026-01-31T10:00:00Z", // an unescaped plus
		"now":                            "2026-03-01T12:00:00Z",
		"-1h":                            "2026-03-01T11:00:00Z",
		"-7d":                            "2026-02-22T12:00:00Z",
		"-2w":                            "2026-02-15T12:00:00Z",
		"+90s":                           "2026-03-01T12:01:30Z",
		" 90s":                           "2026-03-01T12:01:30Z",
		"-1h30m":                         "2026-03-01T10:30:00Z",
		"1970-01-01T00:00:00Z":           "1970-01-01T00:00:00.000001Z", // zero means not given
	} {
		var p timeParam
		if err := p.UnmarshalText([]byte(in)); err != nil {
			t.Errorf("%q: %v", in, err)
		} else if got := p.resolve(testNow).String(); got != want {
			t.Errorf("%q: got %s, want %s", in, got, want)
		}
	}
	for _, in := range []string{"", "yesterday", "-", "-1", "-1x", "--1h", "-1.5d", "2026-01-31", "10000-01-01T00:00:00Z", "-9999999999999d", "1772366400"} {
		var p timeParam
		if err := p.UnmarshalText([]byte(in)); err == nil {
			t.Errorf("%q is taken as %s", in, p.resolve(testNow))
		}
	}
}

func TestOffered(t *testing.T) {
	for accept, want := range map[string]string{
		"": mediaJSON, "*/*": mediaJSON, "text/csv": mediaCSV, "TEXT/CSV": mediaCSV, "text/*": mediaCSV, "application/*": mediaJSON,
		"application/json;q=0.5, text/csv": mediaCSV, "application/json;q=0, */*": mediaSenML, "image/png": "", "image/png, */*;q=0.1": mediaJSON,
		"text/html,application/xhtml+xml,*/*;q=0.8": mediaJSON, "text/csv;q=x": "", "text/csv;header=present;q=0.9": mediaCSV,
	} {
		if got := offered(accept, mediaJSON, mediaSenML, mediaCSV); got != want {
			t.Errorf("Accept %q: got %q, want %q", accept, got, want)
		}
	}
}

// FuzzTime: whatever is taken resolves to a moment that RFC 3339 can write, and reads back as itself.
func FuzzTime(f *testing.F) {
	for _, s := range []string{"2026-01-31T12:00:00Z", "-1h", "+292y", "now", "-106751d", "0001-01-01T00:00:00-23:59", "9999-12-31T23:59:59-23:59"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var p timeParam
		if p.UnmarshalText([]byte(s)) != nil {
			return
		}
		at := p.resolve(testNow)
		if at == 0 {
			t.Fatalf("%q resolves to zero, which means not given", s)
		}
		var again timeParam
		if err := again.UnmarshalText([]byte(at.String())); err != nil && at.Std().Year() >= 1 && at.Std().Year() <= 9999 {
			t.Fatalf("%q resolves to %s, which does not parse: %v", s, at, err)
		} else if err == nil && again.resolve(0) != at {
			t.Fatalf("%q resolves to %d, which reads back as %d", s, at, again.resolve(0))
		}
	})
}

// FuzzEventID: whatever is taken is a position in this cluster, and is written again as it came.
func FuzzEventID(f *testing.F) {
	f.Add("AQIDBA")
	f.Add("AQIDBA.0.3")
	f.Add("AQIDBA.0.3.2.1")
	f.Add("AQIDBA.9.3")
	f.Add("AQIDBA.")
	f.Fuzz(func(t *testing.T, s string) {
		id, err := parseEventID(s, 4)
		if err != nil {
			return
		}
		if len(id.cursor) != 4 {
			t.Fatalf("%q has %d shards", s, len(id.cursor))
		}
		stream := &stream{at: id.cursor, resume: id}
		text := string(stream.appendPosition(nil))
		again, err := parseEventID(text, 4)
		if err != nil || len(again.half) != len(id.half) {
			t.Fatalf("%q is written as %q, which reads as %+v, %v", s, text, again, err)
		}
	})
}

// FuzzAccept: no Accept header panics, and the choice is among the offers.
func FuzzAccept(f *testing.F) {
	f.Add("text/csv;q=0.5,*/*")
	f.Add("a;,bb")
	f.Fuzz(func(t *testing.T, s string) {
		switch offered(s, mediaJSON, mediaCSV) {
		case "", mediaJSON, mediaCSV:
		default:
			t.Fatalf("%q offers something else", s)
		}
	})
}

// TestNumbersReadBack is the law of the JSON encoder: every finite number reads back as the same bits.
func TestNumbersReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := rapid.Float64().Draw(t, "f")
		text := appendNumber(nil, f)
		var back float64
		if math.IsNaN(f) || math.IsInf(f, 0) {
			if !json.Valid(text) || text[0] != '"' {
				t.Fatalf("%v is written as %s", f, text)
			}
			return
		}
		if err := json.Unmarshal(text, &back); err != nil || math.Float64bits(back) != math.Float64bits(f) {
			t.Fatalf("%v is written as %s, which reads as %v, %v", f, text, back, err)
		}
	})
}

// TestStringsReadBack: every string is written as JSON, and valid ones read back.
func TestStringsReadBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := rapid.String().Draw(t, "s")
		var back string
		if err := json.Unmarshal(appendString(nil, s), &back); err != nil || back != strings.ToValidUTF8(s, "\ufffd") {
			t.Fatalf("%q reads back as %q, %v", s, back, err)
		}
		csv := string(csvField(nil, s))
		if strings.ContainsAny(s, "\",\r\n") && !strings.HasPrefix(csv, `"`) {
			t.Fatalf("CSV field %s is not quoted", csv)
		}
	})
}

func TestConfigDefaults(t *testing.T) {
	c, err := Config{}.withDefaults()
	if err != nil || c.Addr != "127.0.0.1:8080" || c.Heartbeat != 15*time.Second || c.Ready() != nil || c.Clock() == 0 {
		t.Errorf("got %+v, %v", c, err)
	}
	if _, err := New(Config{StreamsMax: -1}, Deps{}); err == nil {
		t.Error("a negative bound is taken")
	}
	if _, err := New(Config{}, Deps{}); err == nil || problemOf(err).Status != 400 {
		t.Errorf("missing rooms: %v", err)
	}
	if d := dunlin.TimeOf(time.Now()).Sub(c.Clock()); d > time.Minute || d < -time.Minute {
		t.Errorf("the default clock is off by %v", d)
	}
}
