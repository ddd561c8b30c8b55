package coap

import (
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/dunlin-iot/dunlin"
	"github.com/dunlin-iot/dunlin/protocols/payload"
)

// appendTwin renders the newest value of each metric in a format that devices also send, so that what a device reads is
// what it may write: a SenML pack with times and units, or a flat map of metric and value.
func appendTwin(dst []byte, tw *dunlin.Twin, f dunlin.ContentFormat) []byte {
	recs := recordsOf(tw)
	switch f {
	case dunlin.FormatSenMLCBOR:
		return appendSenMLCBOR(dst, tw.Device, recs)
	case dunlin.FormatJSON:
		return appendFlatJSON(dst, recs)
	case dunlin.FormatCBOR:
		return appendFlatCBOR(dst, recs)
	}
	return payload.AppendSenML(dst, tw.Device, recs)
}

// recordsOf returns the reported values by metric: the same twin has the same bytes.
func recordsOf(tw *dunlin.Twin) []dunlin.Record {
	recs := make([]dunlin.Record, 0, len(tw.Reported))
	for metric, v := range tw.Reported {
		r := dunlin.Record{Metric: metric, Unit: v.Unit, Time: v.At}
		switch v := v.Value.(type) {
		case float64:
			r.Kind, r.Num = dunlin.Number, v
		case bool:
			r.Kind = dunlin.Boolean
			if v {
				r.Num = 1
			}
		case string:
			r.Kind, r.Str = dunlin.Text, v
		case []byte:
			r.Kind, r.Str = dunlin.Data, string(v)
		default:
			continue // Record.Value makes no other
		}
		recs = append(recs, r)
	}
	slices.SortFunc(recs, func(a, b dunlin.Record) int { return strings.Compare(a.Metric, b.Metric) })
	return recs
}

func appendFlatJSON(dst []byte, recs []dunlin.Record) []byte {
	dst = append(dst, '{')
	for i := range recs {
		r := &recs[i]
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(appendText(dst, r.Metric), ':')
		switch {
		case r.Kind == dunlin.Boolean:
			dst = strconv.AppendBool(dst, r.Num != 0)
		case r.Kind == dunlin.Text:
			dst = appendText(dst, r.Str)
		case r.Kind == dunlin.Data:
			dst = append(base64.RawURLEncoding.AppendEncode(append(dst, '"'), []byte(r.Str)), '"')
		case math.IsNaN(r.Num) || math.IsInf(r.Num, 0): // JSON has no such numbers
			dst = append(strconv.AppendFloat(append(dst, '"'), r.Num, 'g', -1, 64), '"')
		default:
			dst = strconv.AppendFloat(dst, r.Num, 'g', -1, 64)
		}
	}
	return append(dst, '}')
}

func appendText(dst []byte, s string) []byte {
	b, err := json.Marshal(s)
	if err != nil {
		panic("coap: a string has no JSON: " + err.Error())
	}
	return append(dst, b...)
}

func appendFlatCBOR(dst []byte, recs []dunlin.Record) []byte {
	dst = cborHead(dst, cborMap, uint64(len(recs)))
	for i := range recs {
		dst = cborText(dst, recs[i].Metric)
		dst = cborValue(dst, &recs[i])
	}
	return dst
}

// The labels of SenML in CBOR (RFC 8428 §6).
const (
	labelBaseName = -2
	labelBaseTime = -3
	labelName     = 0
	labelUnit     = 1
	labelValue    = 2
	labelString   = 3
	labelBool     = 4
	labelTime     = 6
	labelData     = 8
)

// appendSenMLCBOR is payload.AppendSenML's pack in CBOR.
func appendSenMLCBOR(dst []byte, dev dunlin.DeviceID, recs []dunlin.Record) []byte {
	dst = cborHead(dst, cborArray, uint64(len(recs)))
	for i := range recs {
		r := &recs[i]
		since := r.Time - recs[0].Time
		fields := 2 // name and value
		for _, more := range [...]bool{i == 0, i == 0, r.Unit != "", since != 0} {
			if more {
				fields++
			}
		}
		dst = cborHead(dst, cborMap, uint64(fields))
		if i == 0 {
			dst = cborText(cborInt(dst, labelBaseName), string(dev)+"/")
			dst = cborNumber(cborInt(dst, labelBaseTime), float64(r.Time)/1e6)
		}
		dst = cborText(cborInt(dst, labelName), r.Metric)
		if r.Unit != "" {
			dst = cborText(cborInt(dst, labelUnit), r.Unit)
		}
		if since != 0 {
			dst = cborNumber(cborInt(dst, labelTime), float64(since)/1e6)
		}
		label := labelValue
		switch r.Kind {
		case dunlin.Boolean:
			label = labelBool
		case dunlin.Text:
			label = labelString
		case dunlin.Data:
			label = labelData
		}
		dst = cborValue(cborInt(dst, int64(label)), r)
	}
	return dst
}

// The major types of CBOR (RFC 8949 §3.1), shifted to their place.
const (
	cborUint  = 0 << 5
	cborNint  = 1 << 5
	cborBytes = 2 << 5
	cborStr   = 3 << 5
	cborArray = 4 << 5
	cborMap   = 5 << 5
	cborFalse = 7<<5 | 20
	cborTrue  = 7<<5 | 21
	cborF32   = 7<<5 | 26
	cborF64   = 7<<5 | 27
)

func cborHead(dst []byte, major byte, n uint64) []byte {
	switch {
	case n < 24:
		return append(dst, major|byte(n))
	case n <= math.MaxUint8:
		return append(dst, major|24, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, major|25), uint16(n))
	case n <= math.MaxUint32:
		return binary.BigEndian.AppendUint32(append(dst, major|26), uint32(n))
	}
	return binary.BigEndian.AppendUint64(append(dst, major|27), n)
}

func cborText(dst []byte, s string) []byte {
	return append(cborHead(dst, cborStr, uint64(len(s))), s...)
}

func cborInt(dst []byte, v int64) []byte {
	if v < 0 {
		return cborHead(dst, cborNint, uint64(-1-v))
	}
	return cborHead(dst, cborUint, uint64(v))
}

// cborNumber takes the shortest of integer, float32 and float64 that is exact.
func cborNumber(dst []byte, f float64) []byte {
	const exact = 1 << 53
	if f == math.Trunc(f) && math.Abs(f) <= exact && (f != 0 || !math.Signbit(f)) {
		return cborInt(dst, int64(f))
	}
	if s := float32(f); float64(s) == f {
		return binary.BigEndian.AppendUint32(append(dst, cborF32), math.Float32bits(s))
	}
	return binary.BigEndian.AppendUint64(append(dst, cborF64), math.Float64bits(f))
}

func cborValue(dst []byte, r *dunlin.Record) []byte {
	switch r.Kind {
	case dunlin.Boolean:
		if r.Num != 0 {
			return append(dst, cborTrue)
		}
		return append(dst, cborFalse)
	case dunlin.Text:
		return cborText(dst, r.Str)
	case dunlin.Data:
		return append(cborHead(dst, cborBytes, uint64(len(r.Str))), r.Str...)
	}
	return cborNumber(dst, r.Num)
}
