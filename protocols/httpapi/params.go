package httpapi

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/danielgtaylor/huma/v2"

	"github.com/dunlin-iot/dunlin"
)

// timeParam is a moment in a query: RFC 3339, "now", or a span before or after now such as "-1h" or "-7d".
type timeParam struct {
	at       dunlin.Time
	offset   time.Duration
	relative bool
	set      bool
}

// Time bounds: years 1 to 9999, what RFC 3339 can write.
const (
	timeMin dunlin.Time = -62135596800_000000
	timeMax dunlin.Time = 253402300799_999999
)

// UnmarshalText makes timeParam a huma parameter.
func (p *timeParam) UnmarshalText(b []byte) error {
	s := string(b)
	*p = timeParam{set: true}
	if s == "now" {
		p.relative = true
		return nil
	}
	if s != "" && (s[0] == '-' || s[0] == '+' || s[0] == ' ') && strings.IndexByte(s, ':') < 0 {
		d, err := parseSpan(s[1:])
		if err != nil {
			return err
		}
		if s[0] == '-' {
			d = -d
		}
		p.relative, p.offset = true, d // a "+" that came as a blank is still a plus
		return nil
	}
	// "+02:00" in a query that somebody forgot to escape arrives as " 02:00".
	t, err := time.Parse(time.RFC3339Nano, strings.Replace(s, " ", "+", 1))
	if err != nil || t.Year() < 1 || t.Year() > 9999 {
		return fmt.Errorf("%q is no time: write RFC 3339 (2026-01-31T12:00:00Z), now, or a span from now (-1h, -7d)", s)
	}
	p.at = dunlin.TimeOf(t)
	return nil
}

// Schema documents the parameter.
func (timeParam) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Examples: []any{"2026-01-31T12:00:00Z", "-1h", "now"}}
}

// resolve gives the moment; 0 if the parameter was not given. A relative one is never 0.
func (p timeParam) resolve(now dunlin.Time) dunlin.Time {
	if !p.set {
		return 0
	}
	t := p.at
	if p.relative {
		t = min(max(now.Add(p.offset), timeMin), timeMax)
	}
	if t == 0 { // the epoch itself: zero means "not given", so take the next microsecond
		t = 1
	}
	return t
}

// spanParam is a length of time in a query: "90s", "5m", "1d".
type spanParam struct{ d time.Duration }

// UnmarshalText makes spanParam a huma parameter.
func (p *spanParam) UnmarshalText(b []byte) (err error) {
	p.d, err = parseSpan(string(b))
	if err == nil && p.d < time.Millisecond {
		err = fmt.Errorf("%q is too short: at least 1ms", b)
	}
	return err
}

// Schema documents the parameter.
func (spanParam) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Examples: []any{"5m", "1h", "1d"}}
}

// parseSpan is time.ParseDuration with days and weeks as a whole, and without a sign.
func parseSpan(s string) (time.Duration, error) {
	bad := fmt.Errorf("%q is no span of time: write it as 90s, 15m, 24h, 7d or 2w", s)
	if s == "" || s[0] == '-' || s[0] == '+' {
		return 0, bad
	}
	unit := time.Duration(0)
	switch s[len(s)-1] {
	case 'd':
		unit = 24 * time.Hour
	case 'w':
		unit = 7 * 24 * time.Hour
	}
	if unit != 0 {
		n, err := strconv.ParseUint(s[:len(s)-1], 10, 32)
		if err != nil || n > uint64(math.MaxInt64/unit) {
			return 0, bad
		}
		return time.Duration(n) * unit, nil
	}
	d, err := time.ParseDuration(s)
	if err != nil {
		return 0, bad
	}
	return d, nil
}

// cursorParam is an opaque page token. It is the answering room's; we bound it.
type cursorParam struct{ s string }

const cursorBytesMax = 2048

// UnmarshalText makes cursorParam a huma parameter.
func (p *cursorParam) UnmarshalText(b []byte) error {
	if len(b) > cursorBytesMax {
		return fmt.Errorf("the cursor has %d bytes, at most %d can be: take it from a page's next link", len(b), cursorBytesMax)
	}
	for _, c := range b {
		if c < 0x20 || c > 0x7e {
			return fmt.Errorf("the cursor has a byte that none of ours has: take it from a page's next link")
		}
	}
	p.s = string(b)
	return nil
}

// Schema documents the parameter.
func (cursorParam) Schema(huma.Registry) *huma.Schema {
	return &huma.Schema{Type: huma.TypeString, Description: "Opaque; of a page's next link"}
}

// etagOf is the strong entity tag of a revision.
func etagOf(revision uint64) string { return `"` + strconv.FormatUint(revision, 10) + `"` }

// matchesETag reports whether an If-None-Match header names the tag (RFC 9110 §13.1.2: weak comparison, or "*").
func matchesETag(header, tag string) bool {
	for item := range strings.SplitSeq(header, ",") {
		item = strings.TrimPrefix(strings.TrimSpace(item), "W/")
		if item == "*" || item == tag {
			return true
		}
	}
	return false
}

// offered picks the representation that an Accept header likes best; "" if it takes none of them. The first offer is the
// default. Ranges like text/* and */* count; malformed parts are skipped.
func offered(accept string, offers ...string) string {
	if strings.TrimSpace(accept) == "" {
		return offers[0]
	}
	best, bestQ := "", 0.0
	for _, offer := range offers {
		if q := quality(accept, offer); q > bestQ {
			best, bestQ = offer, q
		}
	}
	return best
}

// quality is the weight that an Accept header gives a media type: the most specific range that matches decides.
func quality(accept, offer string) float64 {
	major, _, _ := strings.Cut(offer, "/")
	q, specific := 0.0, 0
	for part := range strings.SplitSeq(accept, ",") {
		name, params, _ := strings.Cut(part, ";")
		name = strings.ToLower(strings.TrimSpace(name))
		rank := 0
		switch name {
		case offer:
			rank = 3
		case major + "/*":
			rank = 2
		case "*/*", "*":
			rank = 1
		}
		if rank <= specific {
			continue
		}
		weight := 1.0
		for param := range strings.SplitSeq(params, ";") {
			if v, ok := strings.CutPrefix(strings.TrimSpace(param), "q="); ok {
				f, err := strconv.ParseFloat(v, 64)
				if err != nil || f < 0 || f > 1 || f != f {
					f = 0
				}
				weight = f
			}
		}
		q, specific = weight, rank
	}
	return q
}

// quoted quotes what a client sent, the beginning of it at least.
func quoted(s string) string { return strconv.Quote(cut(s)) }

func cut(s string) string {
	if len(s) > valueBytesMax {
		return s[:valueBytesMax] + "…"
	}
	return s
}
