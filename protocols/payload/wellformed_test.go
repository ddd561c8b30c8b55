package payload

import (
	"encoding/json"
	"errors"
	"math"
	"strconv"
	"strings"
	"testing"

	"github.com/fxamacker/cbor/v2"
	"pgregory.net/rapid"

	"github.com/dunlin-iot/dunlin"
)

func skipJSON(b []byte) error {
	p := pack{d: NewDecoder(), u: new(dunlin.Uplink)}
	p.b = b
	s := (*scanner)(&p)
	s.skip(0)
	s.end()
	return p.err
}

func skipCBOR(b []byte) error {
	p := pack{d: NewDecoder(), u: new(dunlin.Uplink)}
	p.b = b
	s := (*cborScanner)(&p)
	s.skip(0)
	s.end()
	return p.err
}

func tooDeep(err error) bool { return err != nil && strings.Contains(err.Error(), "deeply") }

// FuzzJSONAgainstTheStandardLibrary: what encoding/json calls valid, and only that, passes our scanner, but for depth.
func FuzzJSONAgainstTheStandardLibrary(f *testing.F) {
	for _, s := range []string{``, ` [1 , 2.5e-3,"a\u00e9\"", {"a":null,"b":[true,false]}] `, `{"a":01}`, `[1,]`, `{"a":1,}`, `"\x"`, `-`, `1.`,
		`1e`, `.5`, `"a`, "\"\x01\"", `nul`, `[]]`, `{"a"}`, `{1:2}`, "\x00", "[\x00]", "[1\x00", `{"a":1`, `[`, `"\ud800"`, `"\u12"`, `tru`, `-0`, `1E+5`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, want := skipJSON(b), json.Valid(b)
		if (got == nil) != want && !tooDeep(got) {
			t.Fatalf("%q: we say %v, encoding/json valid=%v", b, got, want)
		}
	})
}

// FuzzCBORAgainstFxamacker: what fxamacker/cbor calls well-formed, and only that, passes our scanner, but for depth.
func FuzzCBORAgainstFxamacker(f *testing.F) {
	for _, s := range []string{"", "\x00", "\x18\x18", "\x1c", "\x3b\xff\xff\xff\xff\xff\xff\xff\xff", "\x5f\x41a\x41b\xff", "\x7f\x61a\x41b\xff",
		"\x5f\x5f\xff\xff", "\x9f\x01\xff", "\xbf\x01\xff", "\xbf\x01\x02\xff", "\xff", "\xf8\x18", "\xf8\x20", "\xf9\x7e\x00", "\xc1\x00", "\xc1",
		"\xdf\x00", "\x1f", "\xa1\x01", "\x82\x01", "\xd9\xd9\xf7\x00", "\x00\x00", "\xa1\xff\x00", "\x81\xff", "\xf7", "\xfc"} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		got, want := skipCBOR(b), cbor.Wellformed(b)
		var nested *cbor.MaxNestedLevelError
		if (got == nil) != (want == nil) && !tooDeep(got) && !errors.As(want, &nested) {
			t.Fatalf("%x: we say %v, fxamacker %v", b, got, want)
		}
	})
}

// Our numbers are strconv's, to the last bit, and an integer or decimal number of seconds is exact in microseconds.
func FuzzNumberAgainstStrconv(f *testing.F) {
	for _, s := range []string{"0", "-0", "1.5", "9007199254740993", "0.1", "1e22", "1e23", "1e-22", "123456789012345678901234567890", "5e-324",
		"1.7976931348623157e308", "1.8e308", "0.000000000000000000000000000001", "1e999999999", "0e999", "8.5e-30", "2.2250738585072011e-308"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, ok := scanNumber([]byte(s))
		if whole := ok && len(n.text) == len(s); whole != json.Valid([]byte(s)) && strings.Trim(s, "-+.eE0123456789") == "" {
			t.Fatalf("%q: a number: %v, encoding/json: %v", s, whole, !whole)
		}
		if !ok {
			return
		}
		got, ok := n.float()
		want, err := strconv.ParseFloat(string(n.text), 64)
		if ok != (err == nil) || ok && math.Float64bits(got) != math.Float64bits(want) {
			t.Fatalf("%q: got %v %v, want %v %v", n.text, got, ok, want, err)
		}
		if m, ok := n.micros(); ok && math.Abs(float64(m)-want*1e6) > 1+math.Abs(want)*1e-9 {
			t.Fatalf("%q: %d µs", n.text, m)
		}
	})
}

func TestDecimalsAreStrconvs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		f := rapid.OneOf(rapid.Float64(), rapid.Custom(func(t *rapid.T) float64 {
			return float64(rapid.Int64Range(-1e7, 1e7).Draw(t, "n")) / 1000
		})).Draw(t, "f")
		format := rapid.SampledFrom([]byte{'e', 'f', 'g'}).Draw(t, "format")
		s := strconv.FormatFloat(f, format, rapid.IntRange(-1, 25).Draw(t, "digits"), 64)
		n, ok := scanNumber([]byte(s))
		got, inRange := n.float()
		want, err := strconv.ParseFloat(s, 64)
		if !ok || inRange != (err == nil) || inRange && math.Float64bits(got) != math.Float64bits(want) {
			t.Fatalf("%s: got %v, want %v", s, got, want)
		}
	})
}

func TestHalfFloats(t *testing.T) {
	for v := range 1 << 16 {
		var want float64
		if err := cbor.Unmarshal([]byte{0xf9, byte(v >> 8), byte(v)}, &want); err != nil {
			t.Fatal(err)
		}
		if got := half(uint16(v)); got != want && !(math.IsNaN(got) && math.IsNaN(want)) {
			t.Fatalf("half %04x = %v, want %v", v, got, want)
		}
	}
}

// The table stays bounded under a flood of names, hands out equal strings, and takes real names in again afterwards.
func TestInternerUnderFlood(t *testing.T) {
	d := NewDecoder()
	u := new(dunlin.Uplink)
	p := pack{d: d, u: u}
	for i := range 10 * internSlots {
		if got, want := p.metricString([]byte("flood"+strconv.Itoa(i)), 0), "flood"+strconv.Itoa(i); got != want {
			t.Fatalf("got %q, want %q", got, want)
		}
	}
	p.metricString([]byte("temperature"), 0)
	if _, _, ok := d.metrics.find([]byte("temperature")); !ok {
		t.Error("a name is not in the table after it was used")
	}
}
