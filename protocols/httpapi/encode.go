package httpapi

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"math"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dunlin-iot/dunlin"
)

// number is a float64 that JSON can always carry: what JSON has no number for is written as a string.
type number float64

// MarshalJSON renders a JSON number, or "NaN", "Infinity", "-Infinity".
func (n number) MarshalJSON() ([]byte, error) { return appendNumber(nil, float64(n)), nil }

// Schema documents the type.
func (number) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{OneOf: []*huma.Schema{{Type: huma.TypeNumber}, {Type: huma.TypeString, Enum: []any{"NaN", "Infinity", "-Infinity"}}}}
}

// value is a record's value: number, bool, string, or bytes as base64.
type value struct{ v any }

// MarshalJSON renders the value; numbers as type number does.
func (v value) MarshalJSON() ([]byte, error) {
	if f, ok := v.v.(float64); ok {
		return appendNumber(nil, f), nil
	}
	return json.Marshal(v.v)
}

// Schema documents the type.
func (value) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Description: `Number, boolean, string, or base64 of bytes; "NaN", "Infinity" or "-Infinity" for numbers that JSON lacks`,
		OneOf: []*huma.Schema{{Type: huma.TypeNumber}, {Type: huma.TypeBoolean}, {Type: huma.TypeString}}}
}

// appendNumber appends the shortest decimal that reads back as the same float64, in the form of encoding/json.
func appendNumber(dst []byte, f float64) []byte {
	switch {
	case f != f:
		return append(dst, `"NaN"`...)
	case math.IsInf(f, 1):
		return append(dst, `"Infinity"`...)
	case math.IsInf(f, -1):
		return append(dst, `"-Infinity"`...)
	}
	format := byte('f')
	if abs := math.Abs(f); abs != 0 && (abs < 1e-6 || abs >= 1e21) {
		format = 'e'
	}
	return strconv.AppendFloat(dst, f, format, -1, 64)
}

// marshal is json.Marshal without the escapes that only JSON inside HTML needs; nil if v has no JSON.
func marshal(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if enc.Encode(v) != nil {
		return nil
	}
	return bytes.TrimSuffix(b.Bytes(), []byte("\n"))
}

// appendString appends a JSON string.
func appendString(dst []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < 0x20 || c == '"' || c == '\\' || c >= utf8.RuneSelf {
			return append(dst, marshal(s)...) // replaces what is not UTF-8
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

// appendTime appends a JSON string of RFC 3339 in UTC.
func appendTime(dst []byte, t dunlin.Time) []byte {
	dst = append(dst, '"')
	dst = t.Std().AppendFormat(dst, time.RFC3339Nano)
	return append(dst, '"')
}

// appendRecord appends {"metric":…,"unit":…,"time":…,"value":…}: a reading as this API writes it everywhere.
func appendRecord(dst []byte, r *dunlin.Record) []byte {
	dst = append(dst, `{"metric":`...)
	dst = appendString(dst, r.Metric)
	if r.Unit != "" {
		dst = append(dst, `,"unit":`...)
		dst = appendString(dst, r.Unit)
	}
	dst = append(dst, `,"time":`...)
	dst = appendTime(dst, r.Time)
	dst = append(dst, `,"value":`...)
	dst = appendValue(dst, r)
	return append(dst, '}')
}

func appendValue(dst []byte, r *dunlin.Record) []byte {
	switch r.Kind {
	case dunlin.Boolean:
		return strconv.AppendBool(dst, r.Num != 0)
	case dunlin.Text:
		return appendString(dst, r.Str)
	case dunlin.Data:
		dst = append(dst, '"')
		dst = base64.StdEncoding.AppendEncode(dst, []byte(r.Str))
		return append(dst, '"')
	}
	return appendNumber(dst, r.Num)
}

func appendRecords(dst []byte, recs []dunlin.Record) []byte {
	dst = append(dst, '[')
	for i := range recs {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendRecord(dst, &recs[i])
	}
	return append(dst, ']')
}

// appendBucket appends a bucket as dunlin.Bucket's JSON, with numbers that JSON lacks as strings.
func appendBucket(dst []byte, b *dunlin.Bucket) []byte {
	dst = append(dst, `{"metric":`...)
	dst = appendString(dst, b.Metric)
	dst = append(dst, `,"start":`...)
	dst = appendTime(dst, b.Start)
	dst = append(dst, `,"count":`...)
	dst = strconv.AppendInt(dst, int64(b.Count), 10)
	for _, f := range [...]struct {
		name string
		v    float64
	}{{`,"min":`, b.Min}, {`,"max":`, b.Max}, {`,"mean":`, b.Mean}, {`,"first":`, b.First}, {`,"last":`, b.Last}} {
		dst = append(dst, f.name...)
		dst = appendNumber(dst, f.v)
	}
	return append(dst, '}')
}

// csvField appends a field of RFC 4180.
func csvField(dst []byte, s string) []byte {
	quote := false
	for i := range len(s) {
		if c := s[i]; c == '"' || c == ',' || c == '\n' || c == '\r' {
			quote = true
			break
		}
	}
	if !quote {
		return append(dst, s...)
	}
	dst = append(dst, '"')
	for i := range len(s) {
		if s[i] == '"' {
			dst = append(dst, '"')
		}
		dst = append(dst, s[i])
	}
	return append(dst, '"')
}
