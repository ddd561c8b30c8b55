package payload

import (
	"encoding/base64"
	"math"
	"strconv"
	"unicode/utf8"

	"github.com/dunlin-iot/dunlin"
)

// AppendSenML appends records of one device as a SenML JSON pack: what subscribers and readers see, whatever the device
// spoke. The base name is the device and a slash, times are exact to the microsecond, and Decode makes the same records
// of it, for times from 1978-07-04 on (earlier ones cannot be written absolutely, RFC 8428 §4.5.3). A number that JSON
// does not have (from a plugin; devices cannot send one) becomes the text "NaN", "+Inf" or "-Inf".
func AppendSenML(dst []byte, dev dunlin.DeviceID, recs []dunlin.Record) []byte {
	dst = append(dst, '[')
	for i := range recs {
		r := &recs[i]
		if i == 0 {
			dst = append(dst, `{"bn":`...)
			dst = appendString(dst, string(dev))
			dst = append(dst[:len(dst)-1], `/","bt":`...)
			dst = appendSeconds(dst, int64(r.Time))
			dst = append(dst, ',')
		} else {
			dst = append(dst, ',', '{')
		}
		dst = append(dst, `"n":`...)
		dst = appendString(dst, r.Metric)
		if r.Unit != "" {
			dst = append(dst, `,"u":`...)
			dst = appendString(dst, r.Unit)
		}
		if t := r.Time - recs[0].Time; t != 0 {
			dst = append(dst, `,"t":`...)
			dst = appendSeconds(dst, int64(t))
		}
		dst = appendValue(dst, r)
		dst = append(dst, '}')
	}
	return append(dst, ']')
}

func appendValue(dst []byte, r *dunlin.Record) []byte {
	switch r.Kind {
	case dunlin.Boolean:
		dst = append(dst, `,"vb":`...)
		return strconv.AppendBool(dst, r.Num != 0)
	case dunlin.Text:
		dst = append(dst, `,"vs":`...)
		return appendString(dst, r.Str)
	case dunlin.Data:
		dst = append(dst, `,"vd":"`...)
		dst = base64.RawURLEncoding.AppendEncode(dst, []byte(r.Str))
		return append(dst, '"')
	}
	if math.IsNaN(r.Num) || math.IsInf(r.Num, 0) {
		dst = append(dst, `,"vs":"`...)
		dst = strconv.AppendFloat(dst, r.Num, 'g', -1, 64)
		return append(dst, '"')
	}
	return appendNumber(append(dst, `,"v":`...), r.Num)
}

// appendNumber writes the shortest digits that read back as f, without an exponent where people would not use one.
func appendNumber(dst []byte, f float64) []byte {
	if a := math.Abs(f); a != 0 && (a < 1e-6 || a >= 1e21) {
		return strconv.AppendFloat(dst, f, 'e', -1, 64)
	}
	return strconv.AppendFloat(dst, f, 'f', -1, 64)
}

// appendSeconds writes microseconds as seconds with as many digits as it takes.
func appendSeconds(dst []byte, us int64) []byte {
	u := uint64(us)
	if us < 0 {
		dst = append(dst, '-')
		u = -u
	}
	dst = strconv.AppendUint(dst, u/1e6, 10)
	frac := u % 1e6
	if frac == 0 {
		return dst
	}
	dst = append(dst, '.')
	for digit := uint64(1e5); frac > 0; digit /= 10 {
		dst = append(dst, '0'+byte(frac/digit))
		frac %= digit
	}
	return dst
}

const hexDigits = "0123456789abcdef"

// appendString writes a JSON string. What is not UTF-8 becomes U+FFFD, as JSON has no other way.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	from := 0
	for i := 0; i < len(s); {
		c := s[i]
		if c >= utf8.RuneSelf {
			r, n := utf8.DecodeRuneInString(s[i:])
			if r == utf8.RuneError && n == 1 {
				dst = append(append(dst, s[from:i]...), "\ufffd"...)
				from = i + 1
			}
			i += n
			continue
		}
		if c < ' ' || c == '"' || c == '\\' {
			dst = append(dst, s[from:i]...)
			from = i + 1
			switch c {
			case '"', '\\':
				dst = append(dst, '\\', c)
			case '\n':
				dst = append(dst, '\\', 'n')
			case '\t':
				dst = append(dst, '\\', 't')
			default:
				dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
		}
		i++
	}
	return append(append(dst, s[from:]...), '"')
}

// quoted is at most the first 40 bytes of a name from outside, fit for an error.
func quoted(name []byte) string {
	return strconv.Quote(string(name[:min(len(name), 40)]))
}
