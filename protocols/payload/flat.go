package payload

import (
	"bytes"
	"math"
	"time"
	"unicode/utf8"

	"github.com/dunlin-iot/dunlin"
)

// timeKey is the key of a plain object's time, at its top level.
const timeKey = "ts"

// flat is a plain object or map on its way to records: nested ones are flattened, with a slash between the keys.
type flat struct {
	path  []byte // of the value being read
	time  int64
	timed bool
}

// enter appends a key to the path and returns the length to go back to.
func (f *flat) enter(key []byte) int {
	n := len(f.path)
	if n > 0 {
		f.path = append(f.path, '/')
	}
	// A longer path is refused when its value comes; cutting keeps hostile keys from adding up.
	f.path = append(f.path, key[:min(len(key), 2*dunlin.MetricBytesMax)]...)
	return n
}

// enterIndex is enter for an element of an array.
func (f *flat) enterIndex(i int) int {
	var b [4]byte
	n := len(b)
	for {
		n--
		b[n] = '0' + byte(i%10)
		if i /= 10; i == 0 || n == 0 {
			return f.enter(b[n:])
		}
	}
}

// emit appends a record of the current path.
func (p *pack) emit(f *flat, kind dunlin.ValueKind, num float64, str string, pos int) {
	if math.IsNaN(num) || math.IsInf(num, 0) {
		p.fail(pos, "a value is not a finite number")
		return
	}
	metric := p.metricString(f.path, pos)
	if p.err == nil && !p.tooMany() {
		p.recs = append(p.recs, dunlin.Record{Metric: metric, Kind: kind, Num: num, Str: str})
	}
}

// flatEnd gives all records their time and refuses a metric that came twice.
func (p *pack) flatEnd(f *flat, pos int) {
	if p.err != nil {
		return
	}
	t := p.u.Received
	if f.timed {
		t = dunlin.Time(f.time)
	}
	if t <= 0 || t >= timeEnd {
		p.fail(pos, "its time is before 1970 or after 9999")
		return
	}
	var seen map[string]struct{}
	if len(p.recs) > 16 {
		seen = make(map[string]struct{}, len(p.recs))
	}
	for i := range p.recs {
		m := p.recs[i].Metric
		p.recs[i].Time = t
		twice := false
		if seen != nil {
			_, twice = seen[m]
			seen[m] = struct{}{}
		} else {
			for j := range i {
				twice = twice || p.recs[j].Metric == m
			}
		}
		if twice {
			p.fail(pos, "it has "+quoted([]byte(m))+" twice")
			return
		}
	}
}

// setTime takes the number under the time key: seconds, milliseconds or microseconds since 1970, told apart by their size.
// Small numbers are refused: an uptime or a counter is not a time.
func (p *pack) setTime(f *flat, n *number, pos int) {
	seconds, ok := n.float()
	switch {
	case ok && seconds >= 1<<28 && seconds < 1e11:
	case ok && seconds >= 1e11 && seconds < 1e14:
		n.exp -= 3
	case ok && seconds >= 1e14 && seconds < 1e17:
		n.exp -= 6
	default:
		p.fail(pos, `its time ("ts") is not a number of seconds, milliseconds or microseconds since 1970`)
		return
	}
	f.timed = true
	if f.time, ok = n.micros(); !ok || !n.exact {
		p.fail(pos, `its time ("ts") has too many digits`)
	}
}

// setTimeText takes RFC 3339.
func (p *pack) setTimeText(f *flat, text []byte, pos int) {
	t, err := time.Parse(time.RFC3339Nano, string(text))
	if err != nil {
		p.fail(pos, `its time ("ts") is not RFC 3339`)
		return
	}
	f.timed, f.time = true, t.UnixMicro()
}

func (p *pack) flatJSON(body []byte) {
	p.b = body
	s := (*scanner)(p)
	switch s.next() {
	case '{':
	case '[':
		s.fail("want an object; an array of SenML records is application/senml+json")
		return
	default:
		s.fail("want an object")
		return
	}
	p.recs = make([]dunlin.Record, 0, min(bytes.Count(body, []byte{':'}), len(body)/4, RecordsMax))
	var room [dunlin.MetricBytesMax]byte
	f := flat{path: room[:0]}
	s.flatValue(&f, 0)
	s.end()
	p.flatEnd(&f, len(body))
}

func (s *scanner) flatValue(f *flat, depth int) {
	switch c := s.next(); c {
	case '{', '[':
		s.flatNested(f, depth)
	case '"':
		pos := s.i
		v := s.string()
		if !utf8.Valid(v) {
			s.pack().fail(pos, "a text is not UTF-8")
		}
		s.pack().emit(f, dunlin.Text, 0, string(v), pos)
	case 't', 'f':
		pos, num := s.i, 0.0
		if s.bool() {
			num = 1
		}
		s.pack().emit(f, dunlin.Boolean, num, "", pos)
	case 'n':
		s.literal("null") // no value
	default:
		pos := s.i
		s.pack().emit(f, dunlin.Number, s.float(), "", pos)
	}
}

func (s *scanner) flatNested(f *flat, depth int) {
	if depth == depthMax {
		s.fail("nested too deeply")
		return
	}
	object := s.b[s.i] == '{'
	closing := s.b[s.i] + 2
	s.i++
	index := 0
	for first := true; s.more(&first, closing); index++ {
		var back int
		if object {
			key := s.string()
			s.take(':', "a colon")
			if depth == 0 && string(key) == timeKey {
				s.flatTime(f)
				continue
			}
			back = f.enter(key)
		} else {
			back = f.enterIndex(index)
		}
		s.flatValue(f, depth+1)
		f.path = f.path[:back]
		if s.err != nil {
			return
		}
	}
}

func (s *scanner) flatTime(f *flat) {
	c := s.next()
	pos := s.i
	if f.timed {
		s.fail("a time comes twice")
		return
	}
	if c == '"' {
		s.pack().setTimeText(f, s.string(), pos)
		return
	}
	n := s.number()
	s.pack().setTime(f, &n, pos)
}

func (p *pack) flatCBOR(body []byte) {
	p.b = body
	s := (*cborScanner)(p)
	h := s.head()
	if h.major == cborTag && h.arg == tagSelf {
		h = s.head()
	}
	if h.major != cborMap {
		s.fail(h.at, "want a map")
		return
	}
	if !h.indef {
		p.recs = make([]dunlin.Record, 0, min(h.arg, uint64(len(body)/2), RecordsMax))
	}
	var room [dunlin.MetricBytesMax]byte
	f := flat{path: room[:0]}
	s.flatNested(&f, h, 0)
	s.end()
	p.flatEnd(&f, len(body))
}

func (s *cborScanner) flatValue(f *flat, depth int) {
	h := s.head()
	for h.major == cborTag && h.arg != tagDecimal && depth < depthMax {
		h = s.head() // what other tags say about a value, records cannot
		depth++
	}
	switch h.major {
	case cborArray, cborMap:
		s.flatNested(f, h, depth)
	case cborText:
		v := s.string(h)
		if !utf8.Valid(v) {
			s.fail(h.at, "a text is not UTF-8")
		}
		s.pack().emit(f, dunlin.Text, 0, string(v), h.at)
	case cborBytes:
		s.pack().emit(f, dunlin.Data, 0, string(s.string(h)), h.at)
	case cborSimple:
		switch h.info {
		case cborNull, cborUndefined:
			return // no value
		case cborFalse, cborTrue:
			s.pack().emit(f, dunlin.Boolean, float64(h.info-cborFalse), "", h.at)
			return
		}
		fallthrough
	default:
		num, ok := s.floatOf(h)
		if !ok {
			s.fail(h.at, "a value is of a kind that records cannot hold")
		}
		s.pack().emit(f, dunlin.Number, num, "", h.at)
	}
}

func (s *cborScanner) flatNested(f *flat, h item, depth int) {
	if depth == depthMax {
		s.fail(h.at, "nested too deeply")
		return
	}
	each := uint64(h.major - cborArray + 1)
	n := s.size(h, each)
	for i := 0; s.more(i, n); i++ {
		var back int
		if h.major == cborMap {
			at := s.i
			key := s.text()
			if depth == 0 && string(key) == timeKey {
				s.flatTime(f, at)
				continue
			}
			back = f.enter(key)
		} else {
			back = f.enterIndex(i)
		}
		s.flatValue(f, depth+1)
		f.path = f.path[:back]
	}
}

func (s *cborScanner) flatTime(f *flat, at int) {
	if f.timed {
		s.fail(at, "a time comes twice")
		return
	}
	h := s.head()
	tag := h.major == cborTag && (h.arg == tagTime || h.arg == tagTimeText)
	if tag {
		h = s.head()
	}
	if h.major == cborText {
		s.pack().setTimeText(f, s.string(h), h.at)
		return
	}
	v, ok := s.floatOf(h)
	if !ok {
		s.fail(h.at, "want a time")
		return
	}
	switch {
	case v >= 1<<28 && v < 1e11:
	case v >= 1e11 && v < 1e14 && !tag:
		v /= 1e3
	case v >= 1e14 && v < 1e17 && !tag:
		v /= 1e6
	default:
		s.fail(h.at, `its time ("ts") is not a number of seconds, milliseconds or microseconds since 1970`)
		return
	}
	f.timed = true
	if f.time, ok = floatMicros(v); !ok {
		s.fail(h.at, `its time ("ts") is out of range`)
	}
}

// text reads text/plain: one number, as people write them.
func (p *pack) text(body []byte) {
	b := bytes.TrimSpace(body)
	b = bytes.TrimPrefix(b, []byte{'+'})
	n, ok := scanNumber(b)
	var f float64
	if ok && len(n.text) == len(b) {
		f, ok = n.float()
	} else {
		ok = false
	}
	if !ok {
		p.fail(0, "want one number, such as 21.5")
		return
	}
	fl := flat{path: []byte(NamelessMetric)}
	p.recs = make([]dunlin.Record, 0, 1)
	p.emit(&fl, dunlin.Number, f, "", 0)
	p.flatEnd(&fl, len(body))
}
